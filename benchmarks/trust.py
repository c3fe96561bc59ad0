"""What a calibration is worth on drawn people: is somebody there, and how many images hold the right one.

    python benchmarks/trust.py --output benchmarks/trust.json

Draws people, fine-tunes the demo's start on them (or takes `--model`), and searches galleries of people drawn
with other seeds: it learns from some, as `tpas calibrate` does, and measures on the others. For each text its
person is there, and once more left out with all images. Prints tables; `--output` writes every figure as JSON
and the tables as Markdown beside it; `--quick` only shows that it runs. Some ten minutes on two idle cores,
half of them the fine-tuning. Where scikit-learn is installed, its gradient boosting is tried as well.
"""

import importlib.util
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from demo_runs import fine_tuned_model, seeds_parser, settings_of
from measuring import machine_name, write_output
from presence_features import SETS, SHORTLIST, People, best_possible, who_was_painted
from trust_tables import tables

from tpas.data.drawn.synthetic_pab import draw_pab, draw_source
from tpas.data.drawn.synthetic_worlds import DEMO_WORLD, PRETRAINING_WORLD, World
from tpas.data.pab import load_pab, source_videos
from tpas.evaluation.labelled_answers import gallery_of_pairs, labelled_answers
from tpas.search.calibration import (
    Calibration,
    LabelledAnswers,
    auroc,
    calibration_error,
    false_positives,
    logistic_regression,
    measured,
)

COVERAGES = (0.8, 0.9, 0.95)
SPLITS = 200
PRESENCE = 0.1  # in how many searches the person is there, where that is rare


def search(model: Any, seed: int, pairs: int, folder: Path, world: World = DEMO_WORLD) -> People:
    """The people of a seed, asked for by one text each, of their normal and anomalous acts in turn."""
    counts = {"train_pairs": pairs // 2, "test_pairs": pairs}
    root = draw_pab(folder / f"{world.name}{seed}", world=world, seed=seed, workers=1, **counts)
    dataset = load_pab(root, "test", cache_dir=folder / "cache")
    gallery = gallery_of_pairs(*model, dataset, root, folder / f"gallery of {world.name} {seed}")
    _, persons = np.unique(source_videos(dataset), return_inverse=True)
    behaviours = np.array(dataset["behaviour"])
    asked = np.flatnonzero(behaviours == np.where(persons % 2, "anomaly", "normal"))
    answers = labelled_answers(gallery, dataset, asked=asked, shortlist=SHORTLIST)
    texts = [dataset["caption"][row] for row in asked]
    rows, _ = gallery.stage_scores(texts, answers.stages.shape[1], rerank=False)
    bank = load_pab(root, "train", cache_dir=folder / "cache")["caption"]  # of others, as QB-Norm takes it
    places, cosines = gallery.stage_scores(bank, len(gallery), rerank=False)
    of_image = np.take_along_axis(cosines.numpy()[:, :, 0], places.numpy().argsort(axis=1), axis=1)  # (B, G)

    drawn = [draw_source(world, f"{seed}/test", number) for number in range(pairs // 2)]
    who = {own.caption: (number, own.behaviour) for number, both in enumerate(drawn) for own in both}
    of_id = {name: who[text] for name, text in zip(dataset["image"], dataset["caption"], strict=True)}
    shown = [of_id[name] for name in gallery.ids]
    answered, lookalikes = who_was_painted(world, seed, [who[text] for text in texts], texts, shown)
    lookalikes = np.take_along_axis(lookalikes, rows.numpy(), axis=1)
    return People(gallery, texts, answers, rows.numpy(), of_image, answered, lookalikes)


def together(people: list[People]) -> LabelledAnswers:
    """Answers of galleries of one size as if of one; persons stay apart."""
    answers = [own.answers for own in people]
    persons = np.concatenate([own.persons + 10**6 * number for number, own in enumerate(answers)])
    arrays = [
        np.concatenate([getattr(own, name) for own in answers])
        for name in ("stages", "is_right", "shows_person")
    ]
    return LabelledAnswers(
        *arrays, persons, sum((list(own.behaviours) for own in answers), []), answers[0].images
    )


def telling_apart(
    calibration: Calibration, learnt: list[People], tested: list[People]
) -> dict[str, list[list[float]]]:
    """By what a regression is given: AUROC and false positives at 95 %, of each seed that is tested."""
    known = [own.features(calibration, seed) for seed, own in enumerate(learnt)]
    others = [own.features(calibration, seed) for seed, own in enumerate(tested)]
    there = np.concatenate([present for _, present in known])
    found = {}
    for title, names in SETS.items():
        inputs, *of_tested = (
            np.column_stack([own[name] for name in names])
            for own in (_joined(known), *(o for o, _ in others))
        )
        intercept, *weights = logistic_regression(inputs, there)
        rules = {title: lambda rows, intercept=intercept, weights=weights: intercept + rows @ weights}
        if title == list(SETS)[-1] and importlib.util.find_spec("sklearn") is not None:
            from sklearn.ensemble import HistGradientBoostingClassifier  # type: ignore[import-not-found]

            sizes = {"max_leaf_nodes": 6, "min_samples_leaf": 30, "l2_regularization": 5}
            boosted = HistGradientBoostingClassifier(
                max_iter=80, learning_rate=0.05, random_state=0, **sizes
            ).fit(inputs, there)
            rules[f"{title}, by gradient boosting"] = boosted.decision_function
        for name, rule in rules.items():
            scores = [rule(rows) for rows in of_tested]
            found[name] = [
                [auroc(score, present), false_positives(score, present)]
                for score, (_, present) in zip(scores, others, strict=True)
            ]
    return found


def _joined(of_seeds: list[tuple[dict[str, np.ndarray], np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([own[name] for own, _ in of_seeds]) for name in of_seeds[0][0]}


def among_fewer(answers: LabelledAnswers, size: float) -> LabelledAnswers:
    """The same answers in a gallery of `size` of the images, drawn for each text; its person's are kept."""
    drawn = np.random.default_rng(0).random(answers.is_right.shape)
    order = np.where(answers.shows_person, -1, drawn).argsort(axis=1)[:, : round(size * answers.images)]
    kept = np.sort(order, axis=1)
    stages = np.take_along_axis(answers.stages, kept[:, :, None], axis=1)
    labels = (np.take_along_axis(own, kept, axis=1) for own in (answers.is_right, answers.shows_person))
    return LabelledAnswers(stages, *labels, answers.persons, answers.behaviours, kept.shape[1])


def chances_of(
    calibration: Calibration, tested: list[People], size: float = 1.0
) -> list[tuple[np.ndarray, ...]]:
    """Chance, whether there, and best score of each seed, (2 Q,) each, with `size` of the images."""
    generator = np.random.default_rng(0)
    return [calibration.test(own.answers, generator, size) for own in tested]


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """What one would take a match logit for, without a calibration."""
    return 1 / (1 + np.exp(-logits))


def reliability(chances: np.ndarray, there: np.ndarray, groups: int = 10) -> list[list[float]]:
    """Mean chance and frequency of ten groups of equal size, ascending."""
    parts = np.array_split(np.argsort(chances, kind="stable"), groups)
    return [[float(chances[part].mean()), float(there[part].mean())] for part in parts]


def interval_of_error(chances: np.ndarray, there: np.ndarray) -> list[float]:
    """95 % bootstrap interval of the expected calibration error."""
    generator = np.random.default_rng(0)
    drawn = [generator.integers(len(chances), size=len(chances)) for _ in range(500)]
    return np.quantile(
        [calibration_error(chances[rows], there[rows]) for rows in drawn], [0.025, 0.975]
    ).tolist()


def sets_of(
    calibration: Calibration, people: People, coverage: float, each_behaviour: bool = False
) -> dict[str, float]:
    """How often the set holds the right image, also by behaviour, and how many images it has."""
    answers = people.answers
    read = np.broadcast_to(np.arange(answers.is_right.shape[1]) < SHORTLIST, answers.is_right.shape)
    shares = calibration.shares(answers.stages, read)
    chosen = (shares >= calibration.least_share(coverage, each_behaviour=each_behaviour)) & read
    holds = (chosen & answers.is_right).any(axis=1)
    behaviours = np.array(answers.behaviours)
    of_class = {name: float(holds[behaviours == name].mean()) for name in ("normal", "anomaly")}
    return {
        "coverage": float(holds.mean()),
        "images": float(np.maximum(chosen.sum(axis=1), 1).mean()),
    } | of_class


def places_of_right(people: People, by: int) -> np.ndarray:
    """(Q,) the rank of the right image by cosine, 0, or match logit, 1; infinite where it was not read."""
    scores = people.answers.stages[:, :SHORTLIST, by]
    right = people.answers.is_right[:, :SHORTLIST]
    own = np.where(right, scores, -np.inf).max(axis=1, keepdims=True)
    return np.where(right.any(axis=1), 1 + (scores > own).sum(axis=1), np.inf)


def coverage_over_splits(calibration: Calibration, people: list[People], coverage: float) -> dict[str, float]:
    """Over many halvings of the persons: mean coverage, and the share within its 95 % interval."""
    held = calibration.strangeness_of(together(people), np.random.default_rng(0))["all"]
    held, generator = np.array(held), np.random.default_rng(1)
    found, inside = [], 0
    for _ in range(SPLITS):
        order = generator.permutation(len(held))
        promised, new = held[order[: len(held) // 2]], held[order[len(held) // 2 :]]
        limit = replace(calibration, strangeness={"all": np.sort(promised).tolist()}).least_share(coverage)
        count = int((new <= -np.log(limit) + 1e-12).sum())
        # Of a draw of new persons under a limit that is itself drawn: their beta-binomial interval.
        low, high = _interval(len(promised), len(new), coverage)
        inside += low <= count <= high
        found.append(count / len(new))
    return {
        "mean": float(np.mean(found)),
        "lowest": min(found),
        "highest": max(found),
        "inside": inside / SPLITS,
    }


def _interval(promised: int, new: int, coverage: float) -> tuple[float, float]:
    from scipy.stats import betabinom

    place = int(np.ceil((promised + 1) * coverage - 1e-9))
    low, high = betabinom.interval(0.95, new, place, promised + 1 - place)
    return low, high


def limits_of(tested: list[People], galleries: dict[str, list[People]]) -> dict[str, Any]:
    """Why present and absent are not told apart better.

    By gallery: how often the right image comes first, and the AUROC of the best use of scores of this
    sharpness. Of the absent: how many somebody else's image answers as it was painted, whose first image is
    the one drawn to differ in one thing, and the AUROC of the best score against these and the others.
    """
    generator = np.random.default_rng(0)
    by_gallery = {}
    for name, people in galleries.items():
        size = int(name.split()[0]) / people[0].answers.images if name[0].isdigit() else 1.0
        first = []
        for own in people:
            read = own.answers.read(True, SHORTLIST, generator, size)
            logits = np.where(read, own.answers.stages[:, :, -1], -np.inf)
            first.append(own.answers.is_right[np.arange(len(logits)), logits.argmax(axis=1)].mean())
        by_gallery[name] = [float(np.mean(first)), best_possible(together(people), size)]
    against = {"their lookalike": [], "anybody else": []}
    shares = []
    for own in tested:
        best = {}
        for present in (True, False):
            read = own.answers.read(present, SHORTLIST, generator)
            best[present] = np.where(read, own.answers.stages[:, :, -1], -np.inf)
        is_lookalike = own.lookalikes[np.arange(len(own.texts)), best[False].argmax(axis=1)]
        shares.append(float(is_lookalike.mean()))
        there, absent = best[True].max(axis=1), best[False].max(axis=1)
        for name, chosen in (("their lookalike", is_lookalike), ("anybody else", ~is_lookalike)):
            is_there = np.repeat([True, False], [len(there), chosen.sum()])
            against[name].append(auroc(np.r_[there, absent[chosen]], is_there))
    answered = float(np.concatenate([own.answered for own in tested]).mean())
    return {
        "by_gallery": by_gallery,
        "answered_by_another": answered,
        "auroc_of_the_painter": 1 - answered / 2,
        "first_is_lookalike": shares,
        "auroc_against": against,
    }


def rarely_there(chances: list[tuple[np.ndarray, ...]], calibration: Calibration) -> dict[str, Any]:
    """Where the person is there in `PRESENCE` of the searches: mean chance and its error, told so and not."""
    said, there = (np.concatenate([own[i] for own in chances]) for i in (0, 1))
    present = np.flatnonzero(there)
    kept = np.random.default_rng(0).permutation(present)[: round((~there).sum() * PRESENCE / (1 - PRESENCE))]
    rows = np.r_[kept, np.flatnonzero(~there)]
    odds = said / (1 - said) * PRESENCE / (1 - PRESENCE)
    assert calibration.presence == 0.5, "of which these odds are"
    both = {"not told": said[rows], f"told --presence {PRESENCE:g}": (odds / (1 + odds))[rows]}
    return {
        name: [float(values.mean()), calibration_error(values, there[rows])] for name, values in both.items()
    } | {"searches": len(rows), "there": len(kept)}


def galleries_of(
    calibration: Calibration, learnt: list[People], tested: list[People], elsewhere: list[People]
) -> dict[str, list[tuple[np.ndarray, ...]]]:
    """Chance, whether there and best score of each seed, by gallery."""
    pairs = tested[0].answers.images
    others_stay = [
        replace(own, answers=replace(own.answers, shows_person=own.answers.is_right)) for own in tested
    ]
    fewer = Calibration.learn(among_fewer(together(learnt), 0.25), shortlist=SHORTLIST)
    return {
        f"{round(0.25 * pairs)} images": chances_of(calibration, tested, 0.25),
        f"{round(0.5 * pairs)} images": chances_of(calibration, tested, 0.5),
        f"{pairs} images": chances_of(calibration, tested),
        "other scenes": chances_of(calibration, elsewhere),
        "their other image stays": chances_of(calibration, others_stay),
        f"{pairs} images, learnt among {fewer.images}": chances_of(fewer, tested),
    }


def measure_chances(
    calibration: Calibration, galleries: dict[str, list[tuple[np.ndarray, ...]]], usual: str
) -> dict[str, Any]:
    """What chances are worth in each gallery, and of all seeds together in the `usual` one."""
    chances, there, logits = (np.concatenate([own[i] for own in galleries[usual]]) for i in range(3))
    before = sigmoid(logits)
    return {
        "galleries": {name: [measured(*own) for own in of_seed] for name, of_seed in galleries.items()},
        "ece_of_sigmoid": {
            name: [calibration_error(sigmoid(own[2]), own[1]) for own in of_seed]
            for name, of_seed in galleries.items()
        },
        "mean_chance": {
            name: [float(own[0].mean()) for own in of_seed] for name, of_seed in galleries.items()
        },
        "reliability": reliability(chances, there),
        "reliability_before": reliability(before, there),
        "ece": calibration_error(chances, there),
        "ece_interval": interval_of_error(chances, there),
        "ece_of_a_perfect_one": measured(chances, there, logits)["ece_of_a_perfect_one"],
        "ece_before": calibration_error(before, there),
        "ece_before_interval": interval_of_error(before, there),
        "no_one": {
            str(limit): [float((chances[~there] < limit).mean()), float((chances[there] < limit).mean())]
            for limit in (0.05, 0.1, 0.2, 0.3, 0.5)
        },
        "rarely_there": rarely_there(galleries[usual], calibration),
    }


def measure_sets(
    calibration: Calibration, learnt: list[People], tested: list[People], elsewhere: list[People]
) -> dict[str, Any]:
    """Answer sets of each coverage, and fixed lists as long as the people learnt from need."""
    kinds = {
        "same scenes": (tested, False),
        "same scenes, normal and anomalous alike": (tested, True),
        "other scenes": (elsewhere, False),
    }
    sets = {
        name: {
            str(coverage): [sets_of(calibration, own, coverage, each) for own in people]
            for coverage in COVERAGES
        }
        for name, (people, each) in kinds.items()
    }
    top_k: dict[str, dict[str, list[list[float]]]] = {}
    for name, by in (("cosine", 0), ("match logit", 1)):
        known = np.concatenate([places_of_right(own, by) for own in learnt])
        top_k[name] = {}
        for coverage in COVERAGES:
            k = int(np.quantile(known, coverage, method="higher"))
            held = [float((places_of_right(own, by) <= k).mean()) for own in tested]
            top_k[name][str(coverage)] = [[k, share] for share in held]
    splits = {str(coverage): coverage_over_splits(calibration, tested, coverage) for coverage in COVERAGES}
    return {"sets": sets, "top_k": top_k, "splits": splits, "number_of_splits": SPLITS}


def measure(learnt: list[People], tested: list[People], elsewhere: list[People]) -> dict[str, Any]:
    """Every figure; `elsewhere` are people in other scenes."""
    usual = f"{tested[0].answers.images} images"
    calibration = Calibration.learn(together(learnt), shortlist=SHORTLIST)
    galleries = galleries_of(calibration, learnt, tested, elsewhere)
    searched = {name: elsewhere if name == "other scenes" else tested for name in list(galleries)[:4]}
    numbers = {name: getattr(calibration, name) for name in ("persons", "weights", "somebody")}
    return (
        numbers
        | {"telling_apart": telling_apart(calibration, learnt, tested)}
        | {"limits": limits_of(tested, searched)}
        | measure_chances(calibration, galleries, usual)
        | measure_sets(calibration, learnt, tested, elsewhere)
    )


def main(argv: list[str] | None = None) -> None:
    parser = seeds_parser(__doc__, seeds=[100, 101, 102])
    parser.add_argument("--test_seeds", type=int, nargs="+", default=[105, 106, 107, 108, 109])
    parser.add_argument("--model", help="in place of fine-tuning the demo's start")
    arguments = parser.parse_args(argv)
    settings, started = settings_of(arguments), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="tpas-trust-") as created:
        folder = Path(created)
        pairs = 80 if arguments.quick else settings.test_pairs
        model = fine_tuned_model(arguments.model, settings, folder)
        learnt = [search(model, seed, pairs, folder) for seed in arguments.seeds]
        tested = [search(model, seed, pairs, folder) for seed in arguments.test_seeds]
        elsewhere = [search(model, seed, pairs, folder, PRETRAINING_WORLD) for seed in arguments.test_seeds]
    found = measure(learnt, tested, elsewhere)
    found |= {"seeds": arguments.seeds, "test_seeds": arguments.test_seeds}
    made = "fine-tuned from the demo's start" if arguments.model is None else "that was given (--model)"
    found |= {"model": made, "machine": machine_name(), "minutes": (time.monotonic() - started) / 60}
    table = tables(found, pairs)
    print(f"\n{table}")
    write_output(arguments.output, found, table)


if __name__ == "__main__":
    main()
