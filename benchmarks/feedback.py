"""What feedback on a search is worth on drawn people: phrases that must be there or not, likes and dislikes.

    python benchmarks/feedback.py --output benchmarks/feedback.json

Draws people, fine-tunes the demo's start on them (or takes `--model`), and searches galleries of people drawn
with other seeds, each second person asked for once: by a vague text of what they do and where, or by a whole
caption. A simulated person then says more: phrases for what is worn, or marks on the first ten images. The
painter's own list of who wears and does what is the judge. Beside the rules of `tpas.search.feedback` stand
others, on the same scores. Prints tables; `--output` writes every figure as JSON and the tables as Markdown
beside it; `--quick` only shows that it runs. Beside the fine-tuning, six minutes of two cores, it takes some
three minutes of one.
"""

import random
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from demo_runs import captioned_table, fine_tuned_model, seeds_parser, settings_of
from measuring import machine_name, write_output

from tpas.data.drawn.synthetic_pab import Look, describe_source, draw_source
from tpas.data.drawn.synthetic_worlds import DEMO_WORLD
from tpas.search.calibration import auroc
from tpas.search.feedback import DISLIKED_WEIGHT, LIKED_WEIGHT, Feedback
from tpas.search.gallery import Gallery

STAGES = ("embeddings", "re-ranked")
HEADS = ["R@1", "R@10", "MRR", "mean rank"]
FIRST = 10  # images that a person looks at, and marks
Worn = dict[str, tuple[str, str]]  # by part: kind and colour
Found = dict[tuple[str, ...], list[float]]  # by case, rule and figure, of each text


@dataclass(frozen=True)
class Person:
    """An image's texts, and what it shows; `phrases` by part as `worn`."""

    id: str
    caption: str
    vague: str
    action: str
    worn: Worn
    phrases: dict[str, str]


def what_is_worn(look: Look) -> tuple[Worn, dict[str, str]]:
    """What can be seen of it: kind and colour, and a phrase for both."""
    seen = {"upper": (look.upper, look.upper_colour)}
    for part in ("lower", "headwear", "carried"):
        if getattr(look, part) is not None:
            seen[part] = (getattr(look, part), getattr(look, f"{part}_colour"))
    plural = ("trousers", "shorts", "jeans", "leggings", "joggers")
    phrases = {}
    for part, (thing, colour) in seen.items():
        words = f"{colour.words[0]} {thing.words[0]}"
        article = "" if thing.name in plural else "an " if words[0] in "aeiou" else "a "
        phrases[part] = article + words
    return {part: (thing.name, colour.name) for part, (thing, colour) in seen.items()}, phrases


class People:
    """A seed's gallery; scores of texts with all its images, (G,) each, in the order of `persons`."""

    def __init__(self, model: Any, seed: int, pairs: int, folder: Path):
        rng = random.Random(seed)
        images, self.persons = [], []
        for number in range(pairs // 2):
            source = describe_source(DEMO_WORLD, f"{seed}/feedback", number)
            worn, phrases = what_is_worn(source.look)
            acts = zip(
                draw_source(DEMO_WORLD, f"{seed}/feedback", number),
                (source.normal, source.anomaly),
                strict=True,
            )
            for example, action in acts:
                noun = "woman" if source.look.woman else "man"
                vague = f"A {noun} is {rng.choice(action.phrases)} {rng.choice(source.scene.places)}."
                name = f"{example.source_id}.png"
                images.append((name, example.image))
                self.persons.append(Person(name, example.caption, vague, action.name, worn, phrases))
        self.gallery = Gallery.build(*model, images, folder / f"gallery {seed}")
        ids = self.gallery.ids
        self.rows = [ids.index(person.id) for person in self.persons]
        self.read: dict[str, np.ndarray] = {}

    def scores(self, *texts: str) -> np.ndarray:
        """Cosines and match logits: (texts, 2, G)."""
        if new := [text for text in dict.fromkeys(texts) if text not in self.read]:
            rows, stages = self.gallery.stage_scores(new, len(self.gallery))
            for text, own, scores in zip(new, rows.argsort(dim=1), stages, strict=True):
                self.read[text] = scores[own][self.rows].numpy().T
        return np.stack([self.read[text] for text in texts])

    def ranks(self, text: str, **said: Any) -> dict[str, int]:
        """By id, as `Gallery.search` answers where it shows and reads all."""
        count = len(self.gallery)
        return {hit.id: hit.rank for hit in self.gallery.search([text], count, count, **said)[0]}

    def embeddings(self) -> np.ndarray:
        """(G, D)."""
        return np.concatenate([np.asarray(part) for part in self.gallery.stored.embeddings])[self.rows]

    def shows(self, part: str, thing: tuple[str, str]) -> np.ndarray:
        """(G,)."""
        return np.array([person.worn.get(part) == thing for person in self.persons])


def standard(scores: np.ndarray) -> np.ndarray:
    return (scores - scores.mean(axis=-1, keepdims=True)) / scores.std(axis=-1, keepdims=True)


def log_chance(logits: np.ndarray) -> np.ndarray:
    return -np.logaddexp(0, -logits)


def must_rules(people: People, text: str, phrases: Sequence[str]) -> dict[str, np.ndarray]:
    """By rule, scores without and with re-ranking: (2, G)."""
    whole, parts = people.scores(text)[0], people.scores(*phrases)  # (2, G), (P, 2, G)
    rules = {
        "the text alone": whole,
        "**read with the text**": people.scores(Feedback.of(must=phrases).read_with(text))[0],
    }
    for weight in (0.25, 0.5, 1.0):
        rules[f"text + {weight:g} x phrases, z-scores"] = standard(whole) + weight * standard(parts).mean(
            axis=0
        )
    rules["lowest z-score of all"] = np.minimum(standard(whole), standard(parts).min(axis=0))
    chances = log_chance(whole[1]) + log_chance(parts[:, 1]).sum(axis=0)
    return rules | {"product of chances": np.stack([whole[0], chances])}


def must_not_rules(people: People, text: str, phrase: str) -> dict[str, np.ndarray]:
    """Likewise."""
    whole, part = people.scores(text, phrase)  # (2, G) both
    rules = {"the text alone": whole}
    for weight in (0, DISLIKED_WEIGHT, 0.25, 0.5, 1.0):
        moved = whole[0] - weight * part[0]  # of one order with the cosine of a query brought to length 1
        name = f"text - {weight:g} x phrase, both scores"
        name = f"**{name}**" if weight == DISLIKED_WEIGHT else name
        rules[name] = np.stack([moved, standard(moved) + standard(whole[1])])
    rules["text - phrase, then logits alone"] = np.stack([whole[0] - part[0], whole[1]])
    for weight in (0.25, 0.5, 1.0):
        rules[f"text - {weight:g} x phrase, z-scores"] = standard(whole) - weight * standard(part)
    chances = log_chance(whole[1]) + log_chance(-part[1])
    return rules | {"product of chances": np.stack([whole[0], chances])}


def mark_rules(people: People, text: str, liked: list[int], disliked: list[int]) -> dict[str, np.ndarray]:
    """By rule, one score (G,) of each image."""
    cosines, logits = people.scores(text)[0]
    embeddings = people.embeddings()
    rules = {
        "marked taken out, match logits": logits,
        "marked taken out, both scores": standard(logits) + standard(cosines),
    }
    for likes, dislikes in ((0.3, 0.1), (LIKED_WEIGHT, 0), (1.5, 0.3), (LIKED_WEIGHT, DISLIKED_WEIGHT)):
        moved = cosines
        if liked:
            moved = moved + likes * embeddings @ embeddings[liked].mean(axis=0)
        if disliked:
            moved = moved - dislikes * embeddings @ embeddings[disliked].mean(axis=0)
        rules[f"Rocchio {likes:g}, {dislikes:g}, embeddings alone"] = moved
        if (likes, dislikes) != (LIKED_WEIGHT, DISLIKED_WEIGHT):  # which are measured as they are
            rules[f"Rocchio {likes:g}, {dislikes:g}, both scores"] = standard(logits) + standard(moved)
    return rules


def measure_phrases(people: People, right: int, rng: random.Random, found: Found) -> None:
    """What phrases do for the rank of the right image."""
    own = people.persons[right]
    phrases = rng.sample(list(own.phrases.values()), min(2, len(own.phrases)))
    for case, text, said in (
        ("vague text, one phrase", own.vague, phrases[:1]),
        ("vague text, two phrases", own.vague, phrases),
        ("whole caption, one phrase", own.caption, phrases[:1]),
    ):
        for rule, of_stages in must_rules(people, text, said).items():
            for stage, scores in zip(STAGES, of_stages, strict=True):
                found["must", case, rule, stage].append(1 + int((scores > scores[right]).sum()))
    for case, text in (("vague text", own.vague), ("whole caption", own.caption)):
        first = [people.persons[place] for place in np.argsort(-people.scores(text)[0, 1])[:FIRST]]
        seen = [
            (other.phrases[part], part, thing)
            for other in first
            for part, thing in other.worn.items()
            if thing != own.worn.get(part)
        ]
        if not seen:
            continue
        phrase, *thing = seen[0]
        shows = people.shows(*thing)
        for rule, of_stages in must_not_rules(people, text, phrase).items():
            for stage, scores in zip(STAGES, of_stages, strict=True):
                found["must not", case, rule, stage].append(1 + int((scores > scores[right]).sum()))
                shown = float(shows[np.argsort(-scores)[:FIRST]].mean())
                found["must not", case, rule, f"{stage}, shown"].append(shown)


def measure_phrase_scores(people: People, found: Found) -> None:
    """How well a phrase alone tells who shows it, of those that were asked for."""
    asked = {
        phrase: (part, person.worn[part])
        for person in people.persons
        for part, phrase in person.phrases.items()
        if phrase in people.read
    }
    for phrase, (part, thing) in asked.items():
        for stage, scores in zip(STAGES, people.read[phrase], strict=True):
            found["phrase", part, "AUROC", stage].append(auroc(scores, people.shows(part, thing)))


def measure_marks(people: People, right: int, found: Found) -> None:
    """What a round of marks does for the rank of the right image, where it is not among the first."""
    own, case = people.persons[right], "vague text"
    logits = people.scores(own.vague)[0, 1]
    marked = np.argsort(-logits)[:FIRST].tolist()
    if right in marked:
        return  # it is found
    alike = [
        people.persons[place].action == own.action
        or bool(people.persons[place].worn.items() & own.worn.items())
        for place in marked
    ]
    liked = [place for place, like in zip(marked, alike, strict=True) if like]
    disliked = [place for place, like in zip(marked, alike, strict=True) if not like]
    found["marks", case, "liked", "images"].append(len(liked))
    found["marks", case, "nothing said", "rank"].append(1 + int((logits > logits[right]).sum()))
    for rule, scores in mark_rules(people, own.vague, liked, disliked).items():
        better = scores > scores[right]
        better[marked] = False
        found["marks", case, rule, "rank"].append(1 + int(better.sum()))
    names = [[people.persons[place].id for place in places] for places in (liked, disliked)]
    ranks = people.ranks(own.vague, liked=names[0], disliked=names[1])
    before = sum(ranks[name] < ranks[own.id] for name in names[0])
    rule = f"**Rocchio {LIKED_WEIGHT:g}, {DISLIKED_WEIGHT:g}, both scores**"
    found["marks", case, rule, "rank"].append(ranks[own.id] - before)


def measure(people: People, numbers: Sequence[int], seed: int, found: Found) -> None:
    """Asks for persons by their numbers, once each, for their normal and abnormal acts in turn."""
    for number in numbers:
        right = 2 * number + number % 2
        measure_phrases(people, right, random.Random(f"{seed} {right}"), found)
        measure_marks(people, right, found)


def figures(ranks: Sequence[float]) -> list[str]:
    """Recall@1 and @10, the mean of 1 / rank, and the mean rank."""
    values = np.array(ranks)
    shares = [(values <= 1).mean(), (values <= 10).mean(), (1 / values).mean()]
    return [*(f"{100 * share:.1f}" for share in shares), f"{values.mean():.1f}"]


def summary(found: Found) -> list[dict[str, Any]]:
    """Of each list its key, its length, and its figures, or its mean where it holds no ranks."""
    rows = []
    for (kind, case, rule, figure), own in found.items():
        row = {"kind": kind, "case": case, "rule": rule, "figure": figure, "count": len(own)}
        is_ranks = kind != "phrase" and figure in (*STAGES, "rank")
        values = dict(zip(HEADS, map(float, figures(own)), strict=True)) if is_ranks else {}
        rows.append(row | (values or {"mean": round(float(np.mean(own)), 4)}))
    return rows


def tables(found: Found, seeds: int, images: int) -> str:
    cases: dict[tuple[str, str], list[str]] = defaultdict(list)
    for kind, case, rule, _ in found:
        cases[kind, case] += [] if rule in cases[kind, case] else [rule]
    parts = [
        f"Galleries of {images} images, {seeds} seeds; shares in %; bold is what `Gallery.search` does.\n"
    ]
    for (kind, case), rules in cases.items():
        of_rule = {rule: [found.get((kind, case, rule, stage), []) for stage in STAGES] for rule in rules}
        if kind == "must":
            caption = f"Must: {case}; {len(of_rule[rules[0]][0])} texts."
            heads = ["", *(f"{head}, {stage}" for stage in STAGES for head in HEADS)]
            rows = [[rule, *(value for own in of for value in figures(own))] for rule, of in of_rule.items()]
        elif kind == "must not":
            caption = (
                f"Must not: {case}; {len(of_rule[rules[0]][0])} texts; the phrase is of what the best other "
                f"person wears and the right one does not. Show it: of the first {FIRST}, those that do."
            )
            heads = ["", *(f"{head}, {stage}" for stage in STAGES for head in [*HEADS, "show it"])]
            rows = []
            for rule, of in of_rule.items():
                shown = [100 * np.mean(found[kind, case, rule, f"{stage}, shown"]) for stage in STAGES]
                pairs = zip(of, shown, strict=True)
                rows.append(
                    [rule, *(value for own, share in pairs for value in [*figures(own), f"{share:.1f}"])]
                )
        elif kind == "marks":
            liked = found[kind, case, "liked", "images"]
            caption = (
                f"Marks: {case}; {len(liked)} texts whose right image is not among the first {FIRST}. Of "
                f"these those are liked who do or wear the same ({np.mean(liked):.1f} on average), the "
                "others not; ranks are among what is not marked."
            )
            heads = ["", *HEADS]
            rows = [[rule, *figures(found[kind, case, rule, "rank"])] for rule in rules if rule != "liked"]
        else:
            continue
        parts.append(captioned_table(caption, heads, rows))
    rows = [
        [part, *(f"{np.mean(found[kind, part, 'AUROC', stage]):.3f}" for stage in STAGES)]
        for kind, part in cases
        if kind == "phrase"
    ]
    caption = "A phrase's own score: AUROC of the images that show it against all others."
    return "\n".join([*parts, captioned_table(caption, ["", "cosine", "match logit"], rows)])


def main(argv: list[str] | None = None) -> None:
    parser = seeds_parser(__doc__, seeds=[205, 206, 207, 208, 209])
    parser.add_argument("--model", help="in place of fine-tuning the demo's start")
    arguments = parser.parse_args(argv)
    settings, started = settings_of(arguments), time.monotonic()
    found: Found = defaultdict(list)
    with tempfile.TemporaryDirectory(prefix="tpas-feedback-") as created:
        folder = Path(created)
        model = fine_tuned_model(arguments.model, settings, folder)
        for seed in arguments.seeds:
            people = People(model, seed, settings.test_pairs, folder)
            measure(people, range(0, settings.test_pairs // 2, 2), seed, found)
            measure_phrase_scores(people, found)
    took = f"By {machine_name()}, in {(time.monotonic() - started) / 60:.0f} minutes."
    table = f"{took}\n\n{tables(found, len(arguments.seeds), settings.test_pairs)}"
    print(f"\n{table}")
    written = {"machine": took, "seeds": arguments.seeds, "figures": summary(found)}
    write_output(arguments.output, written, table)


if __name__ == "__main__":
    main()
