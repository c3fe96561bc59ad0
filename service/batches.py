"""Questions of several clients, gathered for a moment and answered in one pass of the model."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence

from starlette.concurrency import run_in_threadpool

from ..search_page.questions import Asked, RequestError
from ..search_page.requests import Answered

logger = logging.getLogger(__name__)

GATHER_SECONDS = 0.005  # that a question waits for others, where several ask; far less than a pass takes
TEXTS_A_PASS = 64
WAITING_QUESTIONS = 256  # of all clients; more are refused
ANSWER_SECONDS = 110.0  # in which a question has its answer, or is refused: before its request ends

Answer = Callable[[Sequence[Asked]], Sequence[Answered | RequestError]]


class BusyError(RequestError):
    """Too many ask."""

    status = 503


class FailedError(RequestError):
    """A mistake, of ours or of a library."""

    status = 500


class Batches:
    """Of one gallery. While a pass goes on, questions wait, and the next one takes all that have come.

    Args:
        answer: as `SearchRequests.answers`; called in a thread, one call at a time.
        texts_a_pass: at most, but for one question of more; 1: each question by itself.
        observe: told the number of texts of each pass.
    """

    def __init__(
        self, answer: Answer, texts_a_pass: int = TEXTS_A_PASS, observe: Callable[[int], object] = id
    ):
        self.answer, self.texts_a_pass, self.observe = answer, texts_a_pass, observe
        self.waiting: deque[tuple[Asked, asyncio.Future[Answered]]] = deque()
        self._work: asyncio.Task[None] | None = None
        self._are_several = False  # that ask by now: who asks alone waits for nobody

    async def ask(self, asked: Asked) -> Answered:
        """Raises RequestError where there is no answer; its status says whether there may be one later."""
        if len(self.waiting) >= WAITING_QUESTIONS:
            raise BusyError("Too many questions wait: ask again in a moment.")
        future = asyncio.get_running_loop().create_future()
        self.waiting.append((asked, future))
        if self._work is None or self._work.done():
            self._work = asyncio.create_task(self._answer_all())
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                return await future  # cancelled where the client waits no longer: then nobody searches for it
        except TimeoutError as error:
            raise BusyError(
                f'No answer within {ANSWER_SECONDS:.0f} seconds: fewer texts, or "rerank": false, take less.'
            ) from error

    async def _answer_all(self) -> None:
        while self.waiting:
            if self._are_several:
                await asyncio.sleep(GATHER_SECONDS)
            taken = self._taken()
            self._are_several = self.texts_a_pass > 1 and len(taken) > 1
            answers = await run_in_threadpool(self._answers, [asked for asked, _ in taken])
            for (_, future), answer in zip(taken, answers, strict=True):
                if future.done():
                    continue
                if isinstance(answer, RequestError):
                    future.set_exception(answer)
                else:
                    future.set_result(answer)

    def _taken(self) -> list[tuple[Asked, asyncio.Future[Answered]]]:
        taken, texts = [], 0
        while self.waiting and (not taken or texts + len(self.waiting[0][0].texts) <= self.texts_a_pass):
            asked, future = self.waiting.popleft()
            if not future.done():
                taken.append((asked, future))
                texts += len(asked.texts)
        return taken

    def _answers(self, asked: Sequence[Asked]) -> Sequence[Answered | RequestError]:
        """Where a pass fails, each by itself: what one asks does no harm to another."""
        try:
            if asked:
                self.observe(sum(len(each.texts) for each in asked))
            return self.answer(asked)
        except Exception as error:
            if len(asked) > 1:
                return [self._answers([each])[0] for each in asked]
            logger.exception("a search failed: %s", type(error).__name__)
            return [FailedError("The server could not do this. Its log says why.")]
