"""What programs send and are sent, as OpenAPI shows it; the names are those of `tpas search --json`."""

from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlencode

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from ..data.moments import Moment
from ..search.arguments import LEAST_CHANCE
from ..search.feedback import MOST_PHRASES, Feedback
from ..search.hits import SearchHit, SearchResult
from ..search_page.filters import Filter
from ..search_page.questions import Asked, RequestError, Visitor, wanted_of
from ..search_page.requests import Limits

LIMITS = Limits()
Text = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=LIMITS.text_characters)
]
# Of an image, a gallery or whatever it is filtered by; without limits a text may be none of UTF-8.
Name = Annotated[str, StringConstraints(max_length=4096)]
MOST_VISITS = 1_000  # in one answer


class WantedImages(BaseModel):
    """Which images are looked through; what is left out lets all pass."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    gallery: Name | None = Field(None, description="its name; may be left out where a key opens one alone")
    folder: Name | None = Field(None, description="and those in it")
    camera: Name | None = Field(None, description="its whole name")
    behaviour: Name | None = None
    action: Name | None = None
    scene: Name | None = None
    since: Name | None = Field(None, description="of images: the day of the file, 2026-01-31")
    until: Name | None = None
    seen_from: Name | None = Field(
        None, alias="from", description="of films: 00:01:12, or the clock's time, 2026-01-31T08:00"
    )
    seen_to: Name | None = Field(None, alias="to")

    def wanted(self) -> Filter:
        """Raises RequestError for a day or a time that is none."""
        return wanted_of(self.model_dump(by_alias=True, exclude_none=True))


class WantedVisits(WantedImages):
    """Which visits are wanted, and which of them an answer holds."""

    first: int = Field(0, ge=0, description="how many to pass over")
    count: int = Field(100, ge=1, le=MOST_VISITS)


class Search(WantedImages):
    """Texts to look for."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"texts": ["a man in a red jacket is lying on the ground"], "top_k": 3}}
    )

    texts: list[Text] = Field(min_length=1, max_length=LIMITS.texts)
    top_k: int = Field(10, ge=1, le=LIMITS.images_found, description="images in each answer")
    rerank: bool | None = Field(None, description="false: by the embeddings alone")
    sca: bool = Field(False, description="each text looks for an image of its own: resolve collisions")
    coverage: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="in place of top_k: as many as hold the right one in this share",
    )
    least_chance: float = Field(LEAST_CHANCE, ge=0, le=1, description="below it `no_one` is true")
    liked: list[Name] = Field([], max_length=LIMITS.marks, description="images more of whose kind is wanted")
    disliked: list[Name] = Field([], max_length=LIMITS.marks, description="images that it is not")
    must: list[Text] = Field([], max_length=MOST_PHRASES, description="phrases that must be seen")
    must_not: list[Text] = Field([], max_length=MOST_PHRASES, description="phrases that must not be seen")

    def asked(self, visitor: Visitor) -> Asked:
        """Raises RequestError, as `wanted`, and for feedback that contradicts itself."""
        try:
            feedback = Feedback.of(self.liked, self.disliked, self.must, self.must_not)
        except ValueError as error:
            raise RequestError(str(error)) from error
        settings = self.rerank, self.sca, self.coverage, feedback, visitor
        return Asked(tuple(self.texts), self.top_k, self.wanted(), *settings)


class Visit(BaseModel):
    """When and where in a film somebody was seen."""

    camera: str
    start_s: float = Field(description="seconds since the film's beginning")
    end_s: float
    track: int = Field(description="the visit's number, of this camera")
    box: list[float] = Field(description="left, top, width and height in the frame, in pixels")
    started: str | None = Field(None, description="the clock's time of the first sight")

    @classmethod
    def of(cls, moment: Moment) -> "Visit":
        started = moment.started
        return cls(**moment.to_json(), started=None if started is None else started.isoformat())


class Phrase(BaseModel):
    """What one phrase says of an image by itself; it orders nothing."""

    model_config = ConfigDict(from_attributes=True)

    phrase: str
    wanted: bool = Field(description="whether it must be seen; otherwise it must not")
    cosine: float
    match_logit: float | None


OWN = ("image", "moment", "phrases")  # what a `SearchHit` says otherwise


class Hit(BaseModel):
    """An image that answers a text."""

    id: str
    rank: int
    score: float | None = Field(description="the match logit, or the cosine: of one answer only")
    cosine: float | None
    match_logit: float | None
    embedding_rank: int | None
    rank_before_sca: int | None
    chance: float | None = Field(description="that it is the one asked for, where there is a calibration")
    image: str = Field(description="the address of the image")
    moment: Visit | None = None
    clip: str | None = Field(None, description="the address of the moment's clip")
    phrases: list[Phrase] = []

    @classmethod
    def of(cls, hit: SearchHit, gallery: str) -> "Hit":
        names = (
            "id",
            "rank",
            "score",
            "cosine",
            "match_logit",
            "embedding_rank",
            "rank_before_sca",
            "chance",
        )
        values: dict[str, Any] = {name: getattr(hit, name) for name in names}
        moment = None if hit.moment is None else Visit.of(hit.moment)
        phrases = [Phrase.model_validate(score) for score in hit.phrases]
        clip = None if moment is None else address_of(gallery, hit.id, "clips")
        image = address_of(gallery, hit.id)
        return cls(**values, image=image, moment=moment, clip=clip, phrases=phrases)


class Answer(BaseModel):
    """The images found for one text, best first."""

    text: str
    chance: float | None = Field(description="that the one asked for is there, where there is a calibration")
    no_one: bool | None = Field(description="whether that is less than `least_chance`")
    hits: list[Hit]


class Answers(BaseModel):
    gallery: str
    searched: int = Field(description="images that were looked through")
    meaning_of_scores: str
    unread: list[str] = Field(description="what of the texts the model does not know or cuts off")
    answers: list[Answer]

    @classmethod
    def of(cls, result: SearchResult, gallery: str, unread: list[str], least_chance: float) -> "Answers":
        answers = [
            Answer(
                text=text,
                chance=result.chances[number],
                no_one=None
                if result.chances[number] is None
                else result.no_one(number, least_chance) is not None,
                hits=[Hit.of(hit, gallery) for hit in hits],
            )
            for number, (text, hits) in enumerate(zip(result.texts, result, strict=True))
        ]
        meaning = result.meaning_of_scores
        return cls(
            gallery=gallery,
            searched=result.searched,
            meaning_of_scores=meaning,
            unread=unread,
            answers=answers,
        )


class SeenVisit(Visit):
    """A visit, and its first image."""

    id: str
    image: str
    clip: str

    @classmethod
    def shown(cls, image: str, moment: Moment, gallery: str) -> "SeenVisit":
        own, clip = address_of(gallery, image), address_of(gallery, image, "clips")
        return cls(**Visit.of(moment).model_dump(), id=image, image=own, clip=clip)


class Visits(BaseModel):
    gallery: str
    total: int = Field(description="of all that pass")
    visits: list[SeenVisit]


class RaisedAlarm(Visit):
    """A visit that a standing query of `tpas watch` speaks of."""

    id: str = Field(description="of visit and text")
    raised_at: str = Field(description="the clock's time")
    text: str
    score: float
    limit: float = Field(description="what the score had to be above")
    false_alarms_a_day: float = Field(
        description="so high a score comes so often from people who do nothing of the kind"
    )
    quiet: bool = Field(description="in quiet hours, so it was not sent")
    image: str | None = Field(description="the address of the view that matches best")
    clip: str | None = Field(description="that of the moment's clip")

    @classmethod
    def of_line(cls, line: dict[str, Any], gallery: str) -> "RaisedAlarm":
        """From a line of alarms.jsonl, whose files are the server's own; ValueError where it is none."""
        view = line.get("image")
        image = None if view is None else f"{line['camera']}/{Path(str(view)).name}"
        known = {name: value for name, value in line.items() if name in cls.model_fields}
        for name, kind in (("image", "images"), ("clip", "clips")):
            known[name] = None if image is None else address_of(gallery, image, kind)
        return cls.model_validate(known)


class RaisedAlarms(BaseModel):
    gallery: str
    total: int
    alarms: list[RaisedAlarm] = Field(description="the newest first")


class GalleryFacts(BaseModel):
    """A gallery, and by what it can be filtered: values with their numbers of images."""

    name: str
    images: int
    visits: int = Field(description="in films")
    model: str
    can_rerank: bool
    knows_chances: bool = Field(description="whether there is a calibration of its model")
    filters: dict[str, dict[str, int]]


class Refusal(BaseModel):
    """Why there is no answer, in a line."""

    model_config = ConfigDict(json_schema_extra={"example": {"error": "an unknown key"}})

    error: str


def address_of(gallery: str, image: str, kind: str = "images") -> str:
    """Of an image, or of its clip, at this server; its id is never a part of a path."""
    return f"/v1/{kind}?" + urlencode({"gallery": gallery, "id": image})
