"""What may tell an answer whose person is there from one whose person is not, and what cannot be told.

`trust.py` gives each set of these features to a logistic regression. Also here: which images answer a text by
what the painter knows, and how well the best use of scores of this sharpness would do.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from tpas.data.drawn.synthetic_pab import Source, describe_source
from tpas.data.drawn.synthetic_worlds import World
from tpas.engine.encoding import encode_texts
from tpas.engine.fastest import matcher_for, text_encoder_for
from tpas.search.calibration import Calibration, LabelledAnswers, auroc
from tpas.search.gallery import Gallery
from tpas.search.image_tokens import ImageTokens
from tpas.search.selection import Selection

SHORTLIST = 128
RANKS = (2, 3, 5, 10)
BOTH = ["logit", "cosine"]
OWN_BIAS = ["logit mean", "logit deviation", "cosine mean", "cosine deviation", "logit z", "cosine z"]
IMAGE_BIAS = ["bank mean", "bank log-sum"]
PARTS = ["lowest of its parts", "mean of its parts", "best less a part", "best less a word", "words against"]
SETS = {
    "best match logit": ["logit"],
    "best cosine": ["cosine"],
    "both": BOTH,
    "margins alone": ["logit margin", "cosine margin"],
    "both, margins": [*BOTH, "logit margin", "cosine margin"],
    "both, the scores at ranks 2 to 10": [
        *BOTH,
        *(f"{name} {rank}" for name in BOTH for rank in RANKS),
    ],
    "both, how alone the first stands (entropy)": [*BOTH, "entropy", "share"],
    "both, whether the stages agree": [*BOTH, "cosine of best", "rank of best"],
    "both, the query's own bias (z-scores)": [*BOTH, *OWN_BIAS],
    "both, the image's own bias (hubs)": [*BOTH, *IMAGE_BIAS],
    "both, the length of the text": [*BOTH, "words"],
    "both, each part and word of the text": [*BOTH, *PARTS],
}
SETS["all of these"] = list(dict.fromkeys(name for names in SETS.values() for name in names)) + ["evidence"]


@dataclass(frozen=True)
class People:
    """A seed's gallery searched with texts (Q,), and what a bank of other texts says of its images.

    Attributes:
        rows: (Q, K), the gallery's, of each answer's images.
        bank: (B, G), cosines of other texts, as QB-Norm takes them.
        answered: (Q,) bool: an image of somebody else shows all that the text says, as it was painted.
        lookalikes: (Q, K) bool: who was drawn to differ from the one asked for in one thing.
    """

    gallery: Gallery
    texts: list[str]
    answers: LabelledAnswers
    rows: np.ndarray
    bank: np.ndarray
    answered: np.ndarray
    lookalikes: np.ndarray

    def features(self, calibration: Calibration, seed: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """By name (2 Q,), with the person and without, and which."""
        generator = np.random.default_rng(seed)
        read = [self.answers.read(present, SHORTLIST, generator) for present in (True, False)]
        logits = self.answers.stages[:, :, -1]
        best = np.stack([np.where(own, logits, -np.inf).argmax(axis=1) for own in read])  # (2, Q)
        parts = self._of_parts(best)
        found = [self._of_scores(calibration, own) | part for own, part in zip(read, parts, strict=True)]
        there = np.repeat([True, False], len(self.texts))
        return {name: np.concatenate([own[name] for own in found]) for name in found[0]}, there

    def _of_scores(self, calibration: Calibration, read: np.ndarray) -> dict[str, np.ndarray]:
        cosines, logits = np.where(read[None], np.moveaxis(self.answers.stages, -1, 0), -np.inf)
        evidence = self.answers.stages @ np.array(calibration.weights)
        shares = calibration.shares(self.answers.stages, read)
        best = logits.argmax(axis=1)
        cosine = cosines[np.arange(len(best)), best]
        of_image = self.bank[:, self.rows[np.arange(len(best)), best]]  # (B, Q)
        found = {
            "evidence": np.log(np.where(read, np.exp(evidence), 0).sum(axis=1)),
            "share": np.log(shares.max(axis=1)),
            "entropy": -(shares * np.log(shares + 1e-12)).sum(axis=1),
            "cosine of best": cosine,
            "rank of best": np.log1p((cosines > cosine[:, None]).sum(axis=1)),
            "bank mean": of_image.mean(axis=0),
            "bank log-sum": np.log(np.exp(20 * of_image).mean(axis=0)),
            "words": np.array([len(text.split()) for text in self.texts]),
        }
        for name, values in (("logit", logits), ("cosine", cosines)):
            ordered, finite = -np.sort(-values, axis=1), np.ma.masked_invalid(values)
            mean, deviation = finite.mean(axis=1).data, finite.std(axis=1).data
            found |= {name: ordered[:, 0], f"{name} margin": ordered[:, 0] - ordered[:, 1]}
            found |= {f"{name} {rank}": ordered[:, rank - 1] for rank in RANKS}
            found |= {f"{name} mean": mean, f"{name} deviation": deviation}
            found[f"{name} z"] = (ordered[:, 0] - mean) / deviation
        return found

    def _of_parts(self, best: np.ndarray) -> list[dict[str, np.ndarray]]:
        """Of the best image (2, Q) with the person and without: what it answers of the text's parts."""
        model, processor = self.gallery.model, self.gallery.processor
        assert model is not None
        assert processor is not None
        matcher, encoder = matcher_for(model), text_encoder_for(model)  # type: ignore[arg-type]
        selection = Selection(ImageTokens(self.gallery.stored))
        found: list[dict[str, list[float]]] = [{name: [] for name in PARTS} for _ in best]
        for query, text in enumerate(self.texts):
            kinds, variants = zip(*variants_of(text), strict=True)
            encoded = encode_texts(encoder, processor, list(variants))
            rows = torch.from_numpy(self.rows[query, best[:, query]]).expand(len(variants), -1)
            logits = matcher.logits_of_shortlists(selection, encoded, rows.contiguous())[:, :, 1].numpy()
            for own, place, values in zip(found, best[:, query], logits.T, strict=True):
                of_kind = {
                    kind: values[np.array(kinds) == kind] for kind in ("part", "less part", "less word")
                }
                change = of_kind["less word"] - self.answers.stages[query, place, -1]
                own["lowest of its parts"].append(of_kind["part"].min())
                own["mean of its parts"].append(of_kind["part"].mean())
                less = of_kind["less part"] - self.answers.stages[query, place, -1]
                own["best less a part"].append(less.max(initial=-10))
                own["best less a word"].append(change.max())
                own["words against"].append(np.maximum(change, 0).sum())
        return [{name: np.array(values) for name, values in own.items()} for own in found]


def variants_of(text: str) -> Iterator[tuple[str, str]]:
    """Each part of a text between commas, stops and "and"; the text less that part; the text less a word."""
    for part in re.finditer(r"(?:(?! and )[^.,;])+", text):
        rest = text[: part.start()] + text[part.end() :]
        if len(part.group().split()) > 1:
            yield "part", part.group().strip()
            if len(rest.split()) > 3:
                yield "less part", rest.strip()
    for word in re.finditer(r"[\w-]{3,}", text):
        yield "less word", text[: word.start()] + text[word.end() :]


# --- what was painted -------------------------------------------------------------------------------------

ALWAYS_SAID = ("woman", "upper", "upper_colour", "pattern", "lower")
WORDS_OF_HAIR = ("hair", "bald", "bun", "ponytail", "afro")


def who_was_painted(
    world: World, seed: int, asked: list[tuple[int, str]], texts: list[str], shown: list[tuple[int, str]]
) -> tuple[np.ndarray, np.ndarray]:
    """Whether somebody else among the images answers each text (Q,), and who is whose lookalike (Q, G).

    Args:
        asked, shown: the number of the person, and "normal" or "anomaly", of the texts and of the images.
    """
    people = {number: describe_source(world, f"{seed}/test", number) for number, _ in shown}
    answers = np.array(
        [
            [
                other != person
                and _is_answered(people[person], behaviour, text, people[other], behaviour_shown)
                for other, behaviour_shown in shown
            ]
            for (person, behaviour), text in zip(asked, texts, strict=True)
        ]
    )
    lookalikes = np.array(
        [
            [other == person ^ 1 and people[person].emphasised is not None for other, _ in shown]
            for person, _ in asked
        ]
    )
    return np.array(answers.any(axis=1)), lookalikes


def _is_answered(asked: Source, behaviour: str, text: str, shown: Source, behaviour_shown: str) -> bool:
    """Whether an image shows what the text names: clothes, action and place always, the rest where named."""
    look, other, text = asked.look, shown.look, text.lower()
    same = [getattr(look, name) == getattr(other, name) for name in ALWAYS_SAID]
    same += [asked.scene == shown.scene, look.lower is None or look.lower_colour == other.lower_colour]
    same += [getattr(asked, behaviour) == getattr(shown, behaviour_shown)]
    if any(word in text for word in WORDS_OF_HAIR):
        same += [(look.hair, look.hair_colour) == (other.hair, other.hair_colour)]
    if "shoes" in text or "sneakers" in text:
        same += [look.shoes_colour == other.shoes_colour]
    for thing in ("headwear", "carried"):
        worn = getattr(look, thing)
        if worn is not None and any(word in text for word in worn.words):
            colour = f"{thing}_colour"
            same += [worn == getattr(other, thing), getattr(look, colour) == getattr(other, colour)]
    return all(same)


# --- what scores of this sharpness could tell -------------------------------------------------------------


def best_possible(answers: LabelledAnswers, size: float, searches: int = 20_000) -> float:
    """AUROC of the likelihood ratio, the best of all rules, where scores of images were independent draws.

    Evidence of right and of wrong images is drawn as it was found, and added up as Bayes' rule has it.
    """
    generator = np.random.default_rng(0)
    weights = Calibration.learn(answers).weights
    evidence = answers.stages @ np.array(weights)
    right, wrong = evidence[answers.is_right], evidence[~answers.shows_person]
    images = round(size * answers.images)
    sums = []
    for present in (True, False):
        drawn = generator.choice(wrong, size=(searches, images))
        if present:
            drawn[:, 0] = generator.choice(right, size=searches)
        sums.append(np.log(np.exp(drawn - right.max()).sum(axis=1)))
    return auroc(np.concatenate(sums), np.repeat([True, False], searches))
