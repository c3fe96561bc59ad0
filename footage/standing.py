"""Standing queries: texts that are asked of every new visit, and alarm at a rate that the user states.

A visit raises an alarm where its score for a text is above the text's limit. Limits are taken from reference
footage in which nothing happened that is looked for: see [`StandingQueries.learn`].
"""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from ..data.moments import Moment
from ..data.whole_files import write_json
from .records import FilmRecord, records_of

if TYPE_CHECKING:
    from ..search.gallery import Gallery

FORMAT = 1
A_DAY = 86_400.0  # seconds
MOST_TEXTS = 100  # each visit's four views are matched with every text: at full size 4 s on a processor


@dataclass(frozen=True)
class Alarm:
    """A visit that one of the texts speaks of.

    Attributes:
        id: of visit and text, the same whenever they are found.
        score, limit: the visit's score for the text, and what it had to be above.
        false_alarms_a_day: at most so many alarms of at least this score come a day from people who do
            nothing of the kind, as expected: the smaller the surer.
        image: the file of the view that matches best.
        clip: the file of the moment cut from its film; None of a stream, and until it is cut.
        raised_at: the wall clock's time at which it was found, in ISO 8601; empty of a replay.
        quiet: in quiet hours: it is kept, and not sent.
    """

    id: str
    text: str
    moment: Moment
    score: float
    limit: float
    false_alarms_a_day: float
    image: str | None = None
    clip: str | None = None
    raised_at: str = ""
    quiet: bool = False

    def to_json(self) -> dict[str, Any]:
        """As a line of alarms.jsonl."""
        own = {name: getattr(self, name) for name in ("id", "raised_at", "text")}
        started = self.moment.started
        own |= self.moment.to_json() | {"started": None if started is None else started.isoformat()}
        numbers = {name: getattr(self, name) for name in ("score", "limit", "false_alarms_a_day")}
        own |= {name: round(value, 4) for name, value in numbers.items()}
        return own | {name: getattr(self, name) for name in ("image", "clip", "quiet")}


def id_of(moment: Moment, text: str) -> str:
    """An alarm's: camera, visit, and 8 digits that stand for the text."""
    return f"{moment.camera}/{moment.track}/{hashlib.blake2b(text.encode(), digest_size=4).hexdigest()}"


@dataclass(frozen=True)
class StandingQueries:
    """Texts with their limits, learnt from reference footage.

    Attributes:
        texts: that differ.
        best: of each text the highest scores of the reference's visits, descending; the last is its limit.
        days: of reference footage that was watched.
        visits: in it.
        alarms_per_day: false alarms of all texts together in 24 hours of footage, as stated.
        model_fingerprint, image_fingerprint, text_fingerprint: of the model, as a gallery has them.
        settings: how people were found in the reference.
        rerank: whether scores are match logits; None: where the model has a stage 2. Else they are cosines.
        key: stands for what it was learnt from.
    """

    texts: tuple[str, ...]
    best: tuple[tuple[float, ...], ...] = field(repr=False)
    days: float
    visits: int
    alarms_per_day: float
    model_fingerprint: str = ""
    image_fingerprint: str | None = None
    text_fingerprint: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    rerank: bool | None = None
    key: str = ""

    @classmethod
    def learn(
        cls,
        texts: Sequence[str],
        references: "Sequence[Gallery]",
        alarms_per_day: float,
        *,
        rerank: bool | None = None,
    ) -> Self:
        """Limits for texts, from galleries of films in which nothing happened that they speak of.

        A visit's score is the match logit, or of a model without stage 2 the cosine, of its best view.

        What is promised: if visits come one by one at a steady rate, independently, and those that are
        watched are like those of the reference, then all texts together raise at most `alarms_per_day` false
        alarms in 24 hours of footage, on average over references and days; exactly, from any number of
        visits, and whatever their scores are like. For the limit of a text is the k-th highest score of a
        reference of T days. Of all visits ever, in the order of their scores, each lies in the reference by a
        chance of T / (T + D), and else in the next D days, so that the number of those D days before the k-th
        of the reference is negative binomial, with mean k D / T. It is the limit for Poisson arrivals of the
        exceedances of Gumbel and von Schelling (The distribution of the number of exceedances, Annals of
        Mathematical Statistics 21, 1950): k N / (n + 1) of N new visits over the k-th of n exchangeable ones.
        Texts share T x `alarms_per_day` places, and the first ones have the rest: so T has to be at least
        (number of texts) / `alarms_per_day` days.

        What is not: for one reference the true rate is off by a factor of about 1 ± 1 / sqrt(k); somebody who
        looks like an alarm and comes ten times raises ten.

        Args:
            references: of `tpas footage build`, opened with the model, and made alike.
            alarms_per_day: in 24 hours of footage: of two cameras at once there are 48 a day.
            rerank: False: by cosines, though there is a stage 2.

        Raises:
            ValueError: no text, too many, or one twice; too little footage, with the hours that it takes; a
                rate that more visits would be needed for; a gallery without footage, or of settings of its
                own.
        """
        check_texts(texts)
        records = [record for gallery in references for record in footage_of(gallery.path)]
        days = sum(map(seconds_watched, records)) / A_DAY
        check_length(days, len(texts), alarms_per_day)
        settings = same_settings(records)
        scores = np.concatenate([scores_of_visits(gallery, texts, rerank) for gallery in references], axis=1)
        own = references[0].stored.settings
        return cls.from_scores(
            texts,
            scores,
            days,
            alarms_per_day,
            model_fingerprint=own.model_fingerprint,
            image_fingerprint=own.image_fingerprint,
            text_fingerprint=own.text_fingerprint,
            settings=settings,
            rerank=rerank,
            key=key_of(texts, references, alarms_per_day, rerank),
        )

    @classmethod
    def from_scores(
        cls, texts: Sequence[str], scores: np.ndarray, days: float, alarms_per_day: float, **about: Any
    ) -> Self:
        """The same of scores (texts, visits) of any system."""
        check_texts(texts)
        check_length(days, len(texts), alarms_per_day)
        visits = scores.shape[1]
        if not visits:
            raise ValueError("nobody was seen in the reference: it says nothing of how people score")
        places, rest = divmod(math.floor(alarms_per_day * days + 1e-9), len(texts))
        if places + bool(rest) > visits:
            raise ValueError(
                f"--alarms_per_day {alarms_per_day:g} is more than there are visits: {visits} in "
                f"{hours(days)} hours of reference; state at most {len(texts) * visits / days:.3g}"
            )
        best = tuple(
            tuple(np.sort(own)[::-1][: places + (number < rest)].tolist())
            for number, own in enumerate(scores.astype(float))
        )
        return cls(tuple(texts), best, days, visits, alarms_per_day, **about)

    @property
    def limits(self) -> np.ndarray:
        """(texts,)."""
        return np.array([own[-1] for own in self.best])

    def false_alarms_a_day(self, text: int, score: float) -> float:
        """See [`Alarm`]; of a score that is above the limit of the text of this number."""
        return (1 + sum(other >= score for other in self.best[text])) / self.days

    def find(self, gallery: "Gallery", ids: Sequence[str] | None = None) -> list[Alarm]:
        """The alarms of a gallery's visits, by camera, time and text.

        Args:
            gallery: opened with the model.
            ids: images of the visits that are looked at; `None`: all.

        Raises:
            ValueError: it is of another model, or people were found in other ways.
        """
        self.check_gallery(gallery)
        rows = None if ids is None else gallery.stored.rows_of(list(ids))
        count = len(gallery) if rows is None else len(rows)
        if not count:
            return []
        searched = {"rows": rows, "top_k": count, "shortlist": count, "rerank": self.rerank}
        answers = gallery.search(list(self.texts), **searched)
        alarms = []
        for number, (text, hits) in enumerate(zip(self.texts, answers, strict=True)):
            for hit in hits:
                if hit.moment is None or hit.score is None or not hit.score > self.best[number][-1]:
                    continue
                rare = self.false_alarms_a_day(number, hit.score)
                image = None if hit.path is None else str(hit.path)
                name = id_of(hit.moment, text)
                alarms.append(Alarm(name, text, hit.moment, hit.score, self.best[number][-1], rare, image))
        return sorted(alarms, key=lambda alarm: (alarm.moment.camera, alarm.moment.start_s, alarm.text))

    def check_gallery(self, gallery: "Gallery") -> None:
        own = gallery.stored.settings
        for kind, learnt, there in (
            ("model", self.model_fingerprint, own.model_fingerprint),
            ("image settings", self.image_fingerprint, own.image_fingerprint),
            ("tokenizer", self.text_fingerprint, own.text_fingerprint),
        ):
            if learnt and there and learnt != there:
                raise ValueError(
                    f"the limits are of the {kind} {learnt}, and the gallery {gallery.path} is of {there}: "
                    "learn them from footage of this one"
                )

    def check_settings(self, settings: dict[str, Any]) -> None:
        """Raises ValueError where people are found otherwise than in the reference."""
        if self.settings and (other := _differing(self.settings, settings)):
            raise ValueError(
                f"people were found in the reference with {other}, and now with "
                f"{ {name: settings.get(name) for name in other} }: scores would not compare; use the same"
            )

    def save(self, path: Path) -> None:
        write_json(path, {"format": FORMAT, **asdict(self)}, durable=True)

    @classmethod
    def load(cls, path: Path) -> Self:
        """What `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is something else, or damaged; names the file.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content.pop("format") != FORMAT:
                raise ValueError("it is of another version")
            content["texts"] = tuple(content["texts"])
            content["best"] = tuple(tuple(map(float, own)) for own in content["best"])
            read = cls(**content)
            check_texts(read.texts)
            if len(read.best) != len(read.texts) or not np.isfinite(read.limits).all() or not read.days > 0:
                raise ValueError("its numbers are not as they should be")
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise ValueError(f"{path} holds no limits of standing queries: {error}") from error
        return read


def check_texts(texts: Sequence[str]) -> None:
    if not texts or len(set(texts)) < len(texts):
        raise ValueError(f"texts must be some that differ, got {len(texts)} and {len(set(texts))} different")
    if len(texts) > MOST_TEXTS:
        raise ValueError(f"{len(texts):,} texts, and at most {MOST_TEXTS} are asked of every visit")


def check_length(days: float, texts: int, alarms_per_day: float) -> None:
    """Raises ValueError, with the number that is missing, where reference footage is too short for a rate."""
    if not (alarms_per_day > 0 and math.isfinite(alarms_per_day)):
        raise ValueError(f"alarms_per_day must be above 0, such as 1, got {alarms_per_day:g}")
    if alarms_per_day * days + 1e-9 < texts:
        least = texts / max(days, 1e-9)
        raise ValueError(
            f"{alarms_per_day:g} false alarms a day by {texts} text{'s' if texts > 1 else ''} in all need "
            f"{hours(texts / alarms_per_day)} hours of reference footage without events, and there are "
            f"{hours(days)}: give more, fewer texts, or --alarms_per_day {math.ceil(1000 * least) / 1000:g}"
        )


def hours(days: float) -> str:
    """For people: 30.5, and 0.012 of less than an hour."""
    return f"{24 * days:,.1f}" if 24 * days >= 1 else f"{24 * days:.2g}"


def footage_of(path: Path) -> list[FilmRecord]:
    """The records of a gallery's films; ValueError where there are none."""
    records = records_of(path)
    if not records:
        raise ValueError(f"{path} holds no footage, as `tpas footage build` makes it")
    return records


def seconds_watched(record: FilmRecord) -> float:
    """Of a film: what was looked through, without the times of which it shows nothing."""
    end_s = record.quiet_s if record.end is None else record.end["end_s"]
    unseen_s, until_s = 0.0, 0.0
    for gap in sorted(record.gaps, key=lambda gap: gap.start_s):
        begin_s, stop_s = max(gap.start_s, until_s), min(gap.end_s, end_s)
        unseen_s, until_s = unseen_s + max(0.0, stop_s - begin_s), max(until_s, stop_s)
    return max(0.0, end_s - unseen_s)


def same_settings(records: Sequence[FilmRecord]) -> dict[str, Any]:
    """How people were found in all of them; ValueError where that differs."""
    first = records[0].about.get("settings") or {}
    for record in records:
        if other := _differing(first, record.about.get("settings") or {}):
            raise ValueError(
                f"people were found with {other} in {records[0].camera}, and otherwise in {record.camera}: "
                "scores would not compare"
            )
    return first


def _differing(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    def alike(value: Any) -> Any:  # each film has a file of boxes of its own
        return "boxes" if isinstance(value, str) and value.startswith("boxes:") else value

    return {name: value for name, value in first.items() if alike(value) != alike(second.get(name))}


def scores_of_visits(gallery: "Gallery", texts: Sequence[str], rerank: bool | None = None) -> np.ndarray:
    """(texts, visits), by each visit's best view; visits in the order of their first rows."""
    if not len(gallery):
        return np.empty((len(texts), 0))
    rows, stages = gallery.stage_scores(texts, len(gallery), rerank)
    visits = gallery.stored.visits
    assert visits is not None, "a gallery of films"
    firsts, of_row = np.unique(visits.numpy(), return_inverse=True)
    scores = np.full((len(texts), len(firsts)), -np.inf)
    places = of_row[rows.numpy()]  # (texts, rows)
    np.maximum.at(scores, (np.arange(len(texts))[:, None], places), stages[:, :, -1].numpy().astype(float))
    return scores


def key_of(
    texts: Sequence[str], references: "Sequence[Gallery]", alarms_per_day: float, rerank: bool | None
) -> str:
    """Stands for what limits are learnt from: the same as long as nothing of it has changed."""
    content: list[Any] = [list(texts), alarms_per_day, rerank]
    for gallery in references:
        own = gallery.stored.settings
        seconds = [seconds_watched(record) for record in records_of(gallery.path)]
        content.append([gallery.stored.state, own.model_fingerprint, own.text_fingerprint, seconds])
    return hashlib.blake2b(json.dumps(content).encode(), digest_size=16).hexdigest()


def interval_a_day(count: int, days: float) -> tuple[float, float]:
    """The exact 95 % interval of a Poisson rate of which `count` were seen (Garwood 1936)."""
    from scipy.stats import chi2

    low = chi2.ppf(0.025, 2 * count) / 2 if count else 0.0
    return float(low / days), float(chi2.ppf(0.975, 2 * count + 2) / 2 / days)
