"""What scores are worth: the chance that the one asked for is there, and answers of a stated coverage.

A [`Calibration`] is learnt by `tpas calibrate` from searches whose right answers are known. It belongs to one
model and one shortlist, and reads of an answer no more than the cosines and match logits of its shortlist:

    evidence of an image   a weighted sum of cosine and match logit (conditional logit, McFadden 1973)
    its share              the softmax of the evidence over the shortlist: which it is, if it is one of them
    chance of somebody     a logistic regression on the logarithm of the sum of exp(evidence), and on that of
                           the number of images: among many, somebody else looks right more often; its odds
                           are multiplied by those of `presence` (Bayes), since it is learnt from halves
    chance of an image     the chance of somebody, times its share
    answer set             the images whose share is at least a limit (split conformal prediction)

Margins, biases, each part of the text by itself and more add next to nothing to this (benchmarks/trust.md).
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Self

import numpy as np

from ..data.whole_files import write_json

CALIBRATION = "calibration.json"  # in a model's folder
FORMAT = 1
LEAST_PERSONS = 40  # half of them to learn five numbers from, half to test these and to promise by
FAR = 4  # times the number of images, up and down, as far as benchmarks/trust.py has measured it
BEHAVIOURS = ["normal", "anomaly"]
RIDGE = 1.0  # on standardised numbers: what some dozen persons cannot settle stays near 0
SIZES = (1.0, 0.5)  # of the gallery, by leaving out images: between two shows what its size does
ASSUMPTION = (
    "This holds on average over texts and images that are like those it was learnt from, in a gallery of "
    "about that size; it is no promise for one text, nor for another camera, season or way of writing."
)


@dataclass(frozen=True)
class LabelledAnswers:
    """Answers to Q texts whose right images are known: the best K by cosine of each.

    Attributes:
        stages: (Q, K, 1 or 2), cosines, and match logits where there is a stage 2.
        is_right: (Q, K) bool.
        shows_person: (Q, K) bool, the right ones and other images of the same person, which are left out to
            have an answer whose person is not there.
        persons: (Q,) integers, equal for texts of one person.
        behaviours: (Q,), "normal", "anomaly" or None.
        images: in the gallery.
    """

    stages: np.ndarray
    is_right: np.ndarray
    shows_person: np.ndarray
    persons: np.ndarray
    behaviours: Sequence[str | None]
    images: int

    def of(self, rows: np.ndarray) -> "LabelledAnswers":
        arrays = self.stages[rows], self.is_right[rows], self.shows_person[rows], self.persons[rows]
        return LabelledAnswers(*arrays, [self.behaviours[row] for row in rows], self.images)

    def read(
        self, present: bool, shortlist: int, generator: np.random.Generator, size: float = 1.0
    ) -> np.ndarray:
        """(Q, K) bool: which images are the shortlist of a gallery of `size` of the images.

        With the person or without; with it, as many others are left out on average, so that the number of
        images does not tell.
        """
        others = generator.random(self.is_right.shape)
        left_out = self.shows_person.sum(axis=1, keepdims=True) / self.images if present else 0
        kept = np.where(self.shows_person, present, others < size * (1 - left_out))
        return kept & (kept.cumsum(axis=1) <= shortlist)


@dataclass(frozen=True)
class Calibration:
    """Five numbers learnt from labelled searches, and how they did on others.

    Attributes:
        model_fingerprint, image_fingerprint, text_fingerprint: of the model, as a gallery has them.
        shortlist: images of an answer that it reads.
        images, persons: that it was learnt from.
        weights: of the cosine, and of the match logit where it reads one.
        somebody: intercept, weight of the evidence, weight of the logarithm of the number of images.
        strangeness: by "all", "normal" and "anomaly", ascending, of one held-out text a person: minus the
            logarithm of its right image's share, infinite where that was not read.
        measured: on held-out texts, see [`measured`].
        presence: in what share of the searches the one asked for is there; other than half, the chances
            follow, and neither the order of the images nor the sets.
    """

    model_fingerprint: str
    image_fingerprint: str | None
    text_fingerprint: str | None
    shortlist: int
    images: int
    persons: int
    weights: tuple[float, ...]
    somebody: tuple[float, float, float]
    strangeness: dict[str, list[float]] = field(repr=False)
    measured: dict[str, float] = field(default_factory=dict)
    presence: float = 0.5

    def __post_init__(self):
        check_presence(self.presence)

    @classmethod
    def learn(
        cls,
        answers: LabelledAnswers,
        *,
        fingerprints: Sequence[str | None] = ("", None, None),
        shortlist: int = 128,
        seed: int = 0,
    ) -> Self:
        """Learns from half of the persons, drawn by `seed`; measures, and takes its promises, on the others.

        Args:
            fingerprints: of model, images and texts.

        Raises:
            ValueError: there are fewer than `LEAST_PERSONS` persons, or scores that are no numbers.
        """
        persons = check_persons(answers.persons)
        if unknown := int((~np.isfinite(answers.stages)).any(axis=(1, 2)).sum()):
            raise ValueError(
                f"the scores of {unknown} of {len(answers.stages)} texts are not finite: the model's weights "
                "are damaged, or it overflows"
            )
        generator = np.random.default_rng(seed)
        learning = np.isin(answers.persons, generator.permutation(persons)[: len(persons) // 2])
        known, held_out = answers.of(np.flatnonzero(learning)), answers.of(np.flatnonzero(~learning))

        read = known.read(True, shortlist, generator)
        weights = _conditional_logit(known.stages, known.is_right & read, read)
        rows, present = [], []
        for size in SIZES:
            for is_there in (True, False):
                read = known.read(is_there, shortlist, generator, size)
                log_images = np.full(len(read), math.log(max(size * known.images, 1)))
                rows.append(np.column_stack([_log_sums(known.stages @ weights, read), log_images]))
                present.append(np.full(len(read), is_there))
        somebody = logistic_regression(np.concatenate(rows), np.concatenate(present))
        numbers = tuple(map(float, weights)), tuple(map(float, somebody))
        learnt = cls(*fingerprints, shortlist, answers.images, len(persons), *numbers, {})  # type: ignore[arg-type]
        return cls(
            **{
                **{item.name: getattr(learnt, item.name) for item in fields(learnt)},
                "strangeness": learnt.strangeness_of(held_out, generator),
                "measured": measured(*learnt.test(held_out, generator)),
            }
        )

    def chances(self, stages: np.ndarray, images: int) -> tuple[np.ndarray, np.ndarray]:
        """Of Q answers the chance (Q,) that the one asked for is among them, and that of each image (Q, S).

        Args:
            stages: (Q, S, 1 or 2), cosines and match logits of the shortlists.
            images: that were searched.
        """
        read = np.ones(stages.shape[:2], dtype=bool)
        somebody = self._somebody(stages, read, images)
        return somebody, somebody[:, None] * self.shares(stages)

    def shares(self, stages: np.ndarray, read: np.ndarray | None = None) -> np.ndarray:
        """(Q, S), which sum to 1: how likely each image is the right one, if one of them is."""
        evidence = stages.astype(float) @ np.array(self.weights)
        read = np.ones(evidence.shape, dtype=bool) if read is None else read
        return np.where(read, np.exp(evidence - _log_sums(evidence, read)[:, None]), 0)

    def least_share(self, coverage: float, *, each_behaviour: bool = False) -> float:
        """The limit for answer sets that hold the right image in `coverage` of the cases.

        With n held-out persons the set holds it in at least `coverage` of the cases, on average over what was
        drawn to calibrate, and in at most 1 / (n + 1) more (Vovk et al. 2005; Lei et al. 2018). One text a
        person keeps them exchangeable (Dunn, Wasserman and Ramdas 2022).

        Args:
            each_behaviour: of the normal and of the anomalous texts alike, by the stricter of both limits.

        Raises:
            ValueError: a coverage that so few persons, or so short a shortlist, cannot promise; says what it
                takes.
        """
        if not 0 < coverage < 1:
            raise ValueError(f"coverage must lie between 0 and 1, such as 0.9, got {coverage}")
        groups = BEHAVIOURS if each_behaviour else ["all"]
        limits = []
        for group in groups:
            strangeness = self.strangeness.get(group, [])
            place = math.ceil((len(strangeness) + 1) * coverage - 1e-9)  # from 1
            if place > len(strangeness):
                needed = math.ceil(coverage / (1 - coverage) - 1e-9)
                raise ValueError(
                    f"a coverage of {coverage:g} needs {needed} held-out persons, and the calibration has "
                    f"{len(strangeness)}{'' if group == 'all' else f' with {group} texts'}: calibrate with "
                    f"at least {2 * needed} such persons, or ask for less"
                )
            if math.isinf(limit := strangeness[place - 1]):
                found = sum(map(math.isfinite, strangeness)) / (len(strangeness) + 1)
                raise ValueError(
                    f"a coverage of {coverage:g} cannot be promised: {self.shortlist} images hold the "
                    f"right image of {found:.1%} of the held-out texts; calibrate with a longer --shortlist"
                )
            limits.append(limit)
        return math.exp(-max(limits))

    def highest_coverage(self, *, each_behaviour: bool = False) -> float:
        """The most that `least_share` can promise; 0 of a behaviour without texts."""
        groups = [self.strangeness.get(name, []) for name in (BEHAVIOURS if each_behaviour else ["all"])]
        return min(sum(map(math.isfinite, group)) / (len(group) + 1) for group in groups)

    def test(
        self, answers: LabelledAnswers, generator: np.random.Generator, size: float = 1.0
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of each text with and without its person: the chance said, whether it was there, and the best
        score of the last stage: (2 Q,) each; in a gallery of `size` of the images."""
        chances, best = [], []
        for present in (True, False):
            read = answers.read(present, self.shortlist, generator, size)
            chances.append(self._somebody(answers.stages, read, round(size * answers.images)))
            best.append(np.where(read, answers.stages[:, :, -1], -np.inf).max(axis=1))
        there = np.repeat([True, False], len(answers.persons))
        return np.concatenate(chances), there, np.concatenate(best)

    def _somebody(self, stages: np.ndarray, read: np.ndarray, images: int) -> np.ndarray:
        intercept, of_evidence, of_size = self.somebody
        sums = _log_sums(stages.astype(float) @ np.array(self.weights), read)
        log_odds = intercept + of_evidence * sums + of_size * math.log(images)
        return 1 / (1 + np.exp(-(log_odds + math.log(self.presence / (1 - self.presence)))))

    def strangeness_of(
        self, answers: LabelledAnswers, generator: np.random.Generator
    ) -> dict[str, list[float]]:
        """See the attribute; `generator` draws the text of each person."""
        read = np.arange(answers.is_right.shape[1])[None] < self.shortlist
        shares = self.shares(answers.stages, np.broadcast_to(read, answers.is_right.shape))
        right = np.where(answers.is_right, shares, 0).max(axis=1)
        strangeness = np.where(right > 0, -np.log(np.maximum(right, 1e-300)), np.inf)
        order = generator.permutation(len(right))
        groups = {"all": order}
        for name in BEHAVIOURS:
            groups[name] = np.array([row for row in order if answers.behaviours[row] == name], dtype=int)
        one_each = {
            name: rows[np.unique(answers.persons[rows], return_index=True)[1]]
            for name, rows in groups.items()
        }
        return {name: np.sort(strangeness[rows]).tolist() for name, rows in one_each.items()}

    def check_model(self, *fingerprints: str | None) -> None:
        """Raises ValueError where it was learnt from other weights, image settings or words."""
        own = self.model_fingerprint, self.image_fingerprint, self.text_fingerprint
        for kind, learnt, there in zip(
            ("model", "image settings", "tokenizer"), own, fingerprints, strict=True
        ):
            if None not in (learnt, there) and learnt != there:
                raise ValueError(
                    f"the calibration is of the {kind} {learnt}, and this is {there}: "
                    "`tpas calibrate` makes one for it"
                )

    def check_stages(self, stages: int, shortlist: int | None, images: int) -> None:
        """Raises ValueError where a search is not of the stages and the shortlist that it was learnt from.

        Args:
            shortlist: None where there is no stage 2: then it reads as many as it needs.
            images: that are searched.
        """
        names = {1: "the embeddings alone", 2: "embeddings and stage 2"}
        if stages != len(self.weights):
            raise ValueError(
                f"the calibration is of {names[len(self.weights)]}, and this search is by {names[stages]}"
            )
        if shortlist is not None and min(shortlist, images) != min(self.shortlist, images):
            raise ValueError(
                f"the calibration is of a shortlist of {self.shortlist} images, and {shortlist} are asked for"
            )

    def warning_of_size(self, images: int) -> str | None:
        """What is to be said of a gallery that is far larger or smaller than that it was learnt from."""
        if self.images / FAR <= images <= self.images * FAR:
            return None
        return (
            f"the calibration was learnt among {self.images} images, and there are {images}: chances are "
            "extrapolated, and a coverage is not promised; tpas calibrate --gallery adds images"
        )

    def save(self, path: str | Path) -> None:
        """As JSON, numbers and no code; infinite ones as null."""
        content = {"format": FORMAT, **asdict(self)}
        content["strangeness"] = {
            group: [None if math.isinf(value) else value for value in values]
            for group, values in self.strangeness.items()
        }
        write_json(Path(path), content)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """What `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is something else, or damaged; names the file.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            if content.pop("format") != FORMAT:
                raise ValueError("it is of another version")
            content["strangeness"] = {
                group: [math.inf if value is None else float(value) for value in values]
                for group, values in content["strangeness"].items()
            }
            content["weights"] = tuple(map(float, content["weights"]))
            content["somebody"] = tuple(map(float, content["somebody"]))
            read = cls(**content)
            numbers = [*read.weights, *read.somebody]
            if len(read.weights) not in (1, 2) or len(read.somebody) != 3 or not np.isfinite(numbers).all():
                raise ValueError("its numbers are not as they should be")
            held = [value for values in read.strangeness.values() for value in values]
            if min(read.shortlist, read.images) < 1 or not all(value >= 0 for value in held):
                raise ValueError("its numbers are not as they should be")
            if any(values != sorted(values) for values in read.strangeness.values()):
                raise ValueError("its numbers are not in order")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is no calibration that `tpas calibrate` wrote: {error}") from error
        return read


def check_presence(presence: float) -> None:
    """Raises ValueError for what is no share of searches."""
    if not 0 < presence < 1:
        raise ValueError(
            "presence is the share of searches whose person is there, between 0 and 1, such as 0.1: "
            f"got {presence:g}"
        )


def check_persons(persons: np.ndarray) -> np.ndarray:
    """Those that differ; raises ValueError where they are too few to learn from."""
    persons = np.unique(persons)
    if len(persons) < LEAST_PERSONS:
        raise ValueError(
            f"the texts are of {len(persons)} persons, and a calibration needs {LEAST_PERSONS}: give more "
            "pairs (--validation_fraction, --max_validation_pairs)"
        )
    return persons


def measured(chances: np.ndarray, there: np.ndarray, best_scores: np.ndarray) -> dict[str, float]:
    """What chances (N,) are worth that somebody is there; before: by the best score alone.

    "auroc": how often somebody who is there has the higher chance than somebody who is not; "fpr95": of those
    who are not there, how many pass the limit that lets 95 % of the others pass; "ece": the mean difference
    between chance and frequency, in ten groups of equal size, beside the "ece_of_a_perfect_one" that chance
    alone makes of so few.
    """
    generator = np.random.default_rng(0)
    perfect = [calibration_error(chances, generator.random(len(chances)) < chances) for _ in range(200)]
    return {
        "texts": len(chances) // 2,
        "auroc_of_best_score": auroc(best_scores, there),
        "auroc": auroc(chances, there),
        "fpr95_of_best_score": false_positives(best_scores, there),
        "fpr95": false_positives(chances, there),
        "ece": calibration_error(chances, there),
        "ece_of_a_perfect_one": float(np.mean(perfect)),
    }


def auroc(scores: np.ndarray, there: np.ndarray) -> float:
    from scipy.stats import rankdata

    ranks, positive = rankdata(scores), int(there.sum())
    return float((ranks[there].sum() - positive * (positive + 1) / 2) / (positive * (len(there) - positive)))


def false_positives(scores: np.ndarray, there: np.ndarray, recall: float = 0.95) -> float:
    """The share of those that are not there above the limit that `recall` of the others reach."""
    limit = np.quantile(scores[there], 1 - recall, method="lower")
    return float((scores[~there] >= limit).mean())


def calibration_error(chances: np.ndarray, there: np.ndarray, groups: int = 10) -> float:
    parts = np.array_split(np.argsort(chances, kind="stable"), groups)
    return float(
        sum(abs(chances[part].mean() - there[part].mean()) * len(part) for part in parts if len(part))
        / len(chances)
    )


def logistic_regression(rows: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Intercept and weights (1 + F,) of features (N, F), with a ridge on the standardised ones.

    By scipy, which tpas needs anyway: scikit-learn would be a dependency of every search for five numbers.
    """
    from scipy.optimize import minimize

    mean, deviation = rows.mean(axis=0), rows.std(axis=0) + 1e-9
    inputs = np.column_stack([np.ones(len(rows)), (rows - mean) / deviation])
    signs = np.where(positive, 1.0, -1.0)
    ridge = np.r_[0, np.full(rows.shape[1], RIDGE)]

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        margins = signs * (inputs @ weights)
        slopes = -signs / (1 + np.exp(np.minimum(margins, 500)))
        value = np.logaddexp(0, -margins).sum() + (ridge * weights**2).sum() / 2
        return float(value), inputs.T @ slopes + ridge * weights

    found = minimize(loss, np.zeros(inputs.shape[1]), jac=True, method="L-BFGS-B").x
    weights = found[1:] / deviation
    return np.r_[found[0] - weights @ mean, weights]


def _conditional_logit(stages: np.ndarray, is_right: np.ndarray, read: np.ndarray) -> np.ndarray:
    """The weights (F,) by which the softmax over the images that are read best says which is right."""
    from scipy.optimize import minimize

    found = is_right.any(axis=1)  # the others tell nothing
    if not found.any():
        raise ValueError(
            f"of {len(is_right):,} texts none has its image among the {is_right.shape[1]} that are read, so "
            "there is nothing to learn from: a longer --shortlist or another model finds some"
        )
    stages, is_right, read = stages[found].astype(float), is_right[found], read[found]
    deviation = stages[read].std(axis=0) + 1e-9
    inputs = stages / deviation

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        evidence = inputs @ weights
        shares = np.where(read, np.exp(evidence - _log_sums(evidence, read)[:, None]), 0)
        of_right = np.where(is_right, np.exp(evidence - _log_sums(evidence, is_right)[:, None]), 0)
        value = (_log_sums(evidence, read) - _log_sums(evidence, is_right)).sum() + RIDGE * (
            weights**2
        ).sum() / 2
        return float(value), np.einsum("qk,qkf->f", shares - of_right, inputs) + RIDGE * weights

    return minimize(loss, np.ones(inputs.shape[-1]), jac=True, method="L-BFGS-B").x / deviation


def _log_sums(evidence: np.ndarray, read: np.ndarray) -> np.ndarray:
    """(Q,), the logarithm of the sum of exp(evidence) over what is read."""
    masked = np.where(read, evidence, -np.inf)
    highest = masked.max(axis=1, keepdims=True)
    return (highest + np.log(np.exp(masked - highest).sum(axis=1, keepdims=True)))[:, 0]
