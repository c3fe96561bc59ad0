"""Clips of what was found in films, for the page: cut on demand, encoded as browsers play them."""

import asyncio
import hashlib
import logging
from collections.abc import Callable
from functools import cache
from pathlib import Path

from starlette.concurrency import run_in_threadpool

from ..data.moments import Moment
from ..data.whole_files import replacing
from ..footage.clips import AROUND_S, Form, encode_clip
from ..footage.films import imported_av
from ..footage.sources import is_address
from .questions import MissingError, UnavailableError
from .requests import SearchRequests

logger = logging.getLogger(__name__)

MEDIA_TYPES = {".mp4": "video/mp4", ".webm": "video/webm"}
LONGEST_S = 30.0  # of a clip; of a longer visit it shows what is around the view
KEPT_CLIPS = 100  # on the disk, some 2 MB each; those that were cut longest ago make room
# What all browsers play, or, where this ffmpeg has it not, what most do.
FORMS = (
    Form("libx264", "mp4", {"preset": "veryfast"}, {"movflags": "faststart"}, 15, 960),
    Form("libvpx-vp9", "webm", {"deadline": "realtime", "cpu-used": "8"}, {}, 15, 960),
)


def span_of(moment: Moment) -> tuple[float, float]:
    """From when to when, in seconds of the film, the clip of a moment goes."""
    first, last = max(0.0, moment.start_s - AROUND_S), moment.end_s + AROUND_S
    if last - first > LONGEST_S:
        first = min(max(first, moment.seen_s - LONGEST_S / 2), last - LONGEST_S)
    return first, min(last, first + LONGEST_S)


def why_no_clip(moment: Moment) -> str | None:
    """Why there can be no clip of a moment, for the person who asked; None where there can."""
    if moment.film is None or is_address(moment.film):
        return "A stream is not kept: its recorder has the film. This is the frame that was kept."
    if not Path(moment.film).exists():
        return "The film is no longer where it was. This is the frame that was kept."
    return None


class Clips:
    """Each goes by the name of an image of the gallery, so that no request can name a film by its path.

    Those that were cut before the gallery was changed are removed with the next that is asked for.

    Args:
        folder: for these files alone.
    """

    def __init__(self, folder: Path, requests: SearchRequests):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.requests = folder, requests
        self._opened = requests.opened
        self.cutting = asyncio.Lock()

    async def made(self, image: str, before_cutting: Callable[[], object] = lambda: None) -> Path:
        """The clip of an image's visit, one cut at a time.

        Args:
            before_cutting: called where it has to be cut.

        Raises:
            RequestError: as of `cut`.
        """
        path = await run_in_threadpool(self.kept, image)
        if path is not None:
            return path
        before_cutting()
        async with self.cutting:
            return await run_in_threadpool(self.cut, image)

    def kept(self, image: str) -> Path | None:
        """The clip of an image's visit, if it was cut before.

        Raises:
            RequestError: the gallery has no such image any more, or it is of no film.
        """
        path = self._place(image, self.requests.moment(image))
        return path if path.exists() else None

    def cut(self, image: str) -> Path:
        """The same, cut if need be; to be called for one at a time.

        Raises:
            RequestError: likewise; or the film is gone, or cannot be read, or not be encoded.
        """
        moment = self.requests.moment(image)
        path = self._place(image, moment)
        if path.exists():
            return path
        if reason := why_no_clip(moment):
            raise MissingError(reason)
        for old in self._files()[: -KEPT_CLIPS + 1]:
            old.unlink(missing_ok=True)
        try:
            with replacing(path) as unfinished:
                encode_clip(moment, unfinished, *span_of(moment), _form(), self.requests.faces)
        except (OSError, ValueError) as error:  # of PyAV's errors each is one of these
            logger.warning("no clip of %s: %s", moment, error)
            raise UnavailableError("The film cannot be read there. The server's log says why.") from error
        return path

    def _place(self, image: str, moment: Moment) -> Path:
        if self._opened != self.requests.opened:
            self._opened = self.requests.opened
            for old in self._files():
                old.unlink(missing_ok=True)
        try:
            kind = _form().kind
        except ImportError as error:
            logger.warning("no clip of %s: %s", moment, error)
            raise UnavailableError("The film cannot be read there. The server's log says why.") from error
        name = hashlib.sha256(f"{image}\n{moment.to_record()}".encode()).hexdigest()
        return self.folder / f"{name}.{kind}"

    def _files(self) -> list[Path]:
        """Those that were cut longest ago first."""
        there = (file for file in self.folder.iterdir() if file.is_file())
        return sorted(there, key=lambda file: file.stat().st_mtime)


@cache
def _form() -> Form:
    av = imported_av()
    return next((form for form in FORMS if form.codec in av.codecs_available), FORMS[0])
