"""The search page's results as HTML, images and files inside it: nothing of them is served from a path."""

import base64
import io
import itertools
import logging
from collections import Counter
from collections.abc import Sequence, Set
from dataclasses import replace
from pathlib import Path, PurePosixPath
from urllib.parse import urlencode

import jinja2
from PIL import Image

from ..data.challenge import ANSWERS
from ..data.moments import Moment, clock
from ..footage.records import boxes_between
from ..search.arguments import LEAST_CHANCE
from ..search.explanation import Explanation, heat_layer
from ..search.feedback import name_of
from ..search.hits import SearchHit, SearchResult, percent
from ..search.shards import jpeg_thumbnail
from .clips import span_of, why_no_clip
from .exports import SHEET_IMAGES, answer_file, csv_table, image_sheet
from .filters import written
from .questions import MARKS, ImageName, Question
from .requests import SearchRequests, Session

logger = logging.getLogger(__name__)

TEMPLATES = Path(__file__).parent
WORDS_LISTED = 6  # for the match, and as many against it
LEAST_EFFECT = 0.02  # logits; less is listed neither for nor against
LEAST_EFFECT_ON_COSINES = 0.002
EXAMPLES_SHOWN, SAMPLE = 3, 8


class Renderer:
    """Fills the templates beside this file, which escape all that is put into them."""

    def __init__(self, requests: SearchRequests):
        self.requests = requests
        self.environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(TEMPLATES),
            autoescape=True,
            trim_blocks=True,
            lstrip_blocks=True,
            undefined=jinja2.StrictUndefined,
        )
        self.environment.filters |= {
            "decimal": _decimal,
            "signed": _signed,
            "share_of": _share_of,
            "counted": _counted,
            "span": lambda moment: f"{clock(moment.start_s)} to {clock(moment.end_s)}",
            "wall_clock": _wall_clock,
            "written": written,
            "percent": percent,
            "file_name": lambda name: PurePosixPath(name).name or name,
            "address_of_text": lambda text: Question((text,)).address,
        }
        self.numbers = itertools.count()

    def welcome(self) -> str:
        """What is shown before the first search."""
        requests = self.requests
        return self._render(
            "welcome.html",
            gallery=requests.name,
            model=requests.model_name,
            can_rerank=requests.can_rerank,
            images=len(requests.gallery),
            visits=requests.facts.visits,
            examples=requests.example_texts(EXAMPLES_SHOWN),
            sample=[
                (hit.id, self._card(hit), Question(image=hit.id).address) for hit in requests.sample(SAMPLE)
            ],
        )

    def answers(self, session: Session, waiting: Set[int] = frozenset()) -> str:
        """A page of the session's answers, with links to save them all.

        Args:
            waiting: the numbers of the texts that are still to be re-ranked.
        """
        result = session.result
        assert result is not None, "there is no result yet"
        try:
            lines, no_answer_file = answer_file(result), None
        except ValueError as error:
            lines, no_answer_file = "", str(error)
        start = session.page * session.shown
        shown = [hits[start : start + session.shown] for hits in result]
        self.requests.prepare_cards(hit for hits in shown for hit in hits)
        similar_to = result.similar_to
        return self._render(
            "answers.html",
            result=result,
            least_chance=LEAST_CHANCE,
            waiting=waiting,
            address=session.question.address,
            sca_address=replace(session.question, sca=not session.question.sca).address,
            question=session.question,
            marked={name: [self._marked(mark) for mark in marks] for name, marks in self._marks(session)},
            shared=0 if result.moved else shared_firsts(result),
            wanted=[(name, written(value)) for name, value in session.question.wanted if value is not None],
            on_other_cameras=session.question.wanted.camera is None and self.requests.facts.cameras > 1,
            asked_image=similar_to and self._card(similar_to),
            page=session.page,
            pages=-(-max(map(len, result), default=0) // session.shown),
            shown=shown,
            name_of=lambda hit: self.requests.name_of(session, hit),
            sheet_images=SHEET_IMAGES,
            answers=ANSWERS,
            unread=self.requests.unread(result),
            card=self._card,
            label_of=self.requests.label,
            csv=data_address(csv_table(result, self.requests.label).encode(), "text/csv"),
            answer_file=data_address(lines.encode(), "text/plain"),
            no_answer_file=no_answer_file,
        )

    def sheet(self, session: Session) -> str:
        """A link to an image of the session's answers."""
        assert session.result is not None, "there is no result yet"
        return self.saving("tpas-results.png", image_sheet(session.result), "image/png")

    def saving(self, name: str, content: bytes, kind: str = "image/jpeg") -> str:
        """A link to a file, which the page's script saves."""
        return self._render("saving.html", name=name, address=data_address(content, kind))

    def explanation(
        self,
        session: Session,
        answer: int,
        image: ImageName,
        text: str,
        found: SearchHit,
        explanation: Explanation | None,
        waiting: bool = False,
    ) -> str:
        """One image large; with an explanation, each word of the text with its heat map.

        Args:
            waiting: for an explanation, which comes.
        """
        large, scene = self.requests.large(found), _scene(found)
        words, speaking_for, speaking_against = [], [], []
        if explanation is not None:
            effects = explanation.effects.tolist()
            strongest = max(map(abs, effects))
            least = LEAST_EFFECT_ON_COSINES if explanation.match_logit is None else LEAST_EFFECT
            words = [
                {
                    "word": word,
                    "effect": effect,
                    "strength": round(abs(effect) / strongest, 3) if strongest else 0,
                    "heat": png_address(heat_layer(values)),
                }
                for word, effect, values in zip(explanation.words, effects, explanation.maps, strict=True)
            ]
            ordered = sorted(words, key=lambda word: word["effect"])
            speaking_for = [word for word in ordered[::-1] if word["effect"] >= least][:WORDS_LISTED]
            speaking_against = [word for word in ordered if word["effect"] <= -least][:WORDS_LISTED]
        return self._render(
            "explanation.html",
            answer=answer,
            name=image,
            like=Question(image=image, wanted=session.question.wanted).address,
            path=_path(found) if self.requests.limits.own_machine else None,
            scene=scene,
            frame_ratio=1.5 if found.moment is None or found.moment.size is None else _of(found.moment.size),
            no_clip=found.moment and why_no_clip(found.moment),
            clip=None if found.moment is None else self._clip(found),
            waiting=waiting,
            text=text,
            found=found,
            image=large and data_address(large, "image/jpeg"),
            ratio=1 if large is None else _ratio(large),
            explanation=explanation,
            text_heat=explanation and png_address(heat_layer(explanation.text_map)),
            words=words,
            speaking_for=speaking_for,
            speaking_against=speaking_against,
        )

    def own_images(self, session: Session, refused: dict[str, str]) -> str:
        """What a person has uploaded, and what was refused and why."""
        return self._render(
            "own_images.html",
            images=[data_address(image.thumbnail, "image/jpeg") for image in session.own_images],
            names=[image.id for image in session.own_images],
            addresses=[Question(image=number).address for number in range(len(session.own_images))],
            refused=refused,
            limits=self.requests.limits,
        )

    def problem(self, message: str) -> str:
        """An error, in place of what was asked for."""
        return self._render("problem.html", message=message)

    def _clip(self, found: SearchHit) -> dict[str, object]:
        """A visit's clip: its address, the view's time in it, and when where the person is.

        Each box is its time in the clip, then left, top, width and height in percent of the frame.
        """
        moment = found.moment
        assert moment is not None
        start_s, end_s = span_of(moment)
        boxes = []
        if moment.size is not None:
            known = boxes_between(self.requests.gallery.path, moment, start_s, end_s)
            across, down = moment.size
            for time_s, (left, top, width, height) in known or [(moment.seen_s, moment.box)]:
                sides = left / across, top / down, width / across, height / down
                boxes.append([round(time_s - start_s, 3), *(round(100 * side, 2) for side in sides)])
        address = "clip?" + urlencode({"image": found.id})
        return {"address": address, "at": round(moment.seen_s - start_s, 3), "boxes": boxes}

    def _marks(self, session: Session) -> list[tuple[str, list[str]]]:
        feedback = session.question.feedback
        return [(name, list(map(name_of, getattr(feedback, name)))) for name in MARKS]

    def _marked(self, image: str) -> tuple[str, str | None]:
        return image, self._card(self.requests.image(image))

    def _card(self, found: SearchHit) -> str | None:
        jpeg = self.requests.card(found)
        return None if jpeg is None else data_address(jpeg, "image/jpeg")

    def _render(self, template: str, **values: object) -> str:
        # A page that is sent the same twice changes nothing, and would wait for an answer that came already.
        return self.environment.get_template(template).render(request=next(self.numbers), **values)


def shared_firsts(result: SearchResult) -> int:
    """Texts whose first image is another text's as well."""
    firsts = Counter((hits[0].row, id(hits[0].extra)) for hits in result if hits)
    return sum(count for count in firsts.values() if count > 1)


def page_style() -> str:
    """The page's style sheet."""
    return (TEMPLATES / "page.css").read_text(encoding="utf-8")


def page_script(name: str) -> str:
    """The script "answers", "explanation" or "saving", which runs when that part of the page is there."""
    return (TEMPLATES / f"{name}.js").read_text(encoding="utf-8")


def data_address(content: bytes, kind: str) -> str:
    """A data: address that holds the content itself."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def png_address(image: Image.Image) -> str:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return data_address(stream.getvalue(), "image/png")


def _path(found: SearchHit) -> Path | str | None:
    return found.path if found.moment is None else found.moment.film


def _scene(found: SearchHit) -> str | None:
    """The whole frame with the box drawn; None where none was kept or it cannot be read."""
    try:
        scene = found.scene()
    except (OSError, ValueError) as error:
        logger.warning("a whole frame cannot be shown: %s", error)
        return None
    return None if scene is None else data_address(jpeg_thumbnail(scene, max(scene.size)), "image/jpeg")


def _wall_clock(moment: Moment) -> str | None:
    """From when to when by the wall clock, at this machine's place; None where that is not known."""
    if moment.started is None or moment.ended is None:
        return None
    started, ended = written(moment.started), written(moment.ended)
    return f"{started} to {ended.split()[1] if started.split()[0] == ended.split()[0] else ended}"


def _of(size: tuple[int, int]) -> float:
    return round(size[0] / size[1], 4)


def _ratio(encoded: bytes) -> float:
    """An image's width by its height."""
    with Image.open(io.BytesIO(encoded)) as image:
        return _of(image.size)


def _decimal(value: float) -> str:
    return f"{value:.2f}".replace("-", "−")


def _signed(value: float, digits: int = 2) -> str:
    return f"{value:+.{digits}f}".replace("-", "−")


def _share_of(score: float, scores: Sequence[float]) -> float:
    """Where a score lies between the lowest and highest of `scores`, in percent; 100 where all are equal."""
    lowest, highest = min(scores), max(scores)
    return 100.0 if lowest == highest else round(100 * (score - lowest) / (highest - lowest), 1)


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
