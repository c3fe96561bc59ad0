"""What a calibration is worth on drawn people: is somebody there, and how many images hold the right one.

    python benchmarks/trust.py --output benchmarks/trust.json

Draws people, fine-tunes the demo's start on them (or takes `--model`), and searches galleries of people drawn
with other seeds: it learns from some, as `tpas calibrate` does, and measures on the others. For each text its
person is there, and once more left out with all images. Prints tables; `--output` writes every figure as JSON
and the tables as Markdown beside it; `--quick` only shows that it runs.
"""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from demo_runs import captioned_table, draw_people, seeds_parser, settings_of
from drawn_people import DEMO_START
from measuring import write_output

from tpas.commands.demo import fine_tuning_command, run_logged
from tpas.data.drawn.synthetic_pab import draw_pab
from tpas.data.drawn.synthetic_worlds import DEMO_WORLD, PRETRAINING_WORLD, World
from tpas.data.pab import load_pab, source_videos
from tpas.evaluation.labelled_answers import gallery_of_pairs, labelled_answers
from tpas.models.loading import load_model
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
SHORTLIST = 128
# What a logistic regression is given to tell present from absent, of each answer.
FEATURES = {
    "best match logit": ["logit"],
    "best cosine": ["cosine"],
    "both": ["logit", "cosine"],
    "margins alone": ["logit margin", "cosine margin"],
    "both, margins": ["logit", "cosine", "logit margin", "cosine margin"],
    "both, the query's own bias": [
        "logit",
        "cosine",
        "logit mean",
        "logit deviation",
        "cosine mean",
        "cosine deviation",
    ],
    "both, the image's own bias": ["logit", "cosine", "bank mean", "bank log-sum"],
    "all of these": [
        *("logit", "cosine", "logit margin", "cosine margin", "logit mean", "logit deviation", "cosine mean"),
        *("cosine deviation", "bank mean", "bank log-sum", "evidence", "share"),
    ],
}


class People:
    """A seed's gallery searched with its texts, and what a bank of other texts says of its images."""

    def __init__(self, answers: LabelledAnswers, rows: np.ndarray, bank: np.ndarray):
        self.answers, self.rows, self.bank = answers, rows, bank
        self.bank_mean, self.bank_log_sum = bank.mean(axis=0), np.log(np.exp(20 * bank).mean(axis=0))  # (G,)

    def features(self, calibration: Calibration, seed: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """By name (2 Q,), with the person and without, and which."""
        generator = np.random.default_rng(seed)
        parts = []
        for present in (True, False):
            read = self.answers.read(present, SHORTLIST, generator)
            cosines, logits = np.where(read[None], np.moveaxis(self.answers.stages, -1, 0), -np.inf)
            evidence = self.answers.stages @ np.array(calibration.weights)
            shares = calibration.shares(self.answers.stages, read)
            sums = np.log(np.where(read, np.exp(evidence), 0).sum(axis=1))
            best = self.rows[np.arange(len(read)), logits.argmax(axis=1)]
            two = {name: np.sort(values)[:, -2:] for name, values in (("logit", logits), ("cosine", cosines))}
            part = {"evidence": sums, "share": np.log(shares.max(axis=1))}
            part |= {"bank mean": self.bank_mean[best], "bank log-sum": self.bank_log_sum[best]}
            for name, values in (("logit", logits), ("cosine", cosines)):
                finite = np.ma.masked_invalid(values)
                part |= {name: two[name][:, 1], f"{name} margin": two[name][:, 1] - two[name][:, 0]}
                part |= {
                    f"{name} mean": finite.mean(axis=1).data,
                    f"{name} deviation": finite.std(axis=1).data,
                }
            parts.append(part)
        there = np.repeat([True, False], len(self.rows))
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}, there


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
    return People(answers, rows.numpy(), of_image)


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


def mean_and_deviation(values: list[float], digits: int = 3) -> str:
    return f"{np.mean(values):.{digits}f} ± {np.std(values, ddof=1) if len(values) > 1 else 0:.{digits}f}"


def telling_apart(
    calibration: Calibration, learnt: list[People], tested: list[People]
) -> dict[str, list[list[float]]]:
    """By what a regression is given: AUROC and false positives at 95 %, of each seed that is tested."""
    known = [own.features(calibration, seed) for seed, own in enumerate(learnt)]
    others = [own.features(calibration, seed) for seed, own in enumerate(tested)]
    there = np.concatenate([present for _, present in known])
    found = {}
    for title, names in FEATURES.items():
        inputs = np.concatenate([np.column_stack([own[name] for name in names]) for own, _ in known])
        intercept, *weights = logistic_regression(inputs, there)
        scores = [intercept + np.column_stack([own[name] for name in names]) @ weights for own, _ in others]
        found[title] = [
            [auroc(score, present), false_positives(score, present)]
            for score, (_, present) in zip(scores, others, strict=True)
        ]
    return found


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


def sets_of(calibration: Calibration, people: People, coverage: float) -> dict[str, float]:
    """How often the set holds the right image, also by behaviour, and how many images it has."""
    answers = people.answers
    read = np.broadcast_to(np.arange(answers.is_right.shape[1]) < SHORTLIST, answers.is_right.shape)
    shares = calibration.shares(answers.stages, read)
    chosen = (shares >= calibration.least_share(coverage)) & read
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


def measure(learnt: list[People], tested: list[People], elsewhere: list[People]) -> dict[str, Any]:
    """Every figure; `elsewhere` are people in other scenes."""
    pairs = tested[0].answers.images
    calibration = Calibration.learn(together(learnt), shortlist=SHORTLIST)

    chances = chances_of(calibration, tested)
    pooled, there = np.concatenate([own[0] for own in chances]), np.concatenate([own[1] for own in chances])
    logits = np.concatenate([own[2] for own in chances])
    sizes = {size: chances_of(calibration, tested, size) for size in (0.25, 0.5)}
    galleries = {f"{round(size * pairs)} images": own for size, own in sizes.items()}
    galleries[f"{pairs} images"] = chances
    galleries["other scenes"] = chances_of(calibration, elsewhere)
    same_person = [
        People(replace(own.answers, shows_person=own.answers.is_right), own.rows, own.bank) for own in tested
    ]
    galleries["their other image stays"] = chances_of(calibration, same_person)
    first = np.concatenate([places_of_right(own, by=1) == 1 for own in tested])
    queries = len(first) // len(tested)
    is_first = [first[start : start + queries] for start in range(0, len(first), queries)]
    apart = {
        name: [
            auroc(*(values[np.r_[rows, np.ones(queries, bool)]] for values in (own[0], own[1])))
            for own, rows in zip(chances, (chosen(rows) for rows in is_first), strict=True)
        ]
        for name, chosen in (
            ("its image comes first", lambda rows: rows),
            ("another comes first", np.logical_not),
        )
    }
    return {
        "persons": calibration.persons,
        "weights": calibration.weights,
        "somebody": calibration.somebody,
        "telling_apart": telling_apart(calibration, learnt, tested),
        "galleries": {name: [measured(*own) for own in of_seed] for name, of_seed in galleries.items()},
        "ece_of_sigmoid": {
            name: [calibration_error(sigmoid(own[2]), own[1]) for own in of_seed]
            for name, of_seed in galleries.items()
        },
        "mean_chance": {
            name: [float(own[0].mean()) for own in of_seed] for name, of_seed in galleries.items()
        },
        "auroc_where": apart,
        "reliability": reliability(pooled, there),
        "reliability_before": reliability(sigmoid(logits), there),
        "ece": calibration_error(pooled, there),
        "ece_interval": interval_of_error(pooled, there),
        "ece_of_a_perfect_one": measured(pooled, there, logits)["ece_of_a_perfect_one"],
        "ece_before": calibration_error(sigmoid(logits), there),
        "ece_before_interval": interval_of_error(sigmoid(logits), there),
        "no_one": {
            str(limit): [float((pooled[~there] < limit).mean()), float((pooled[there] < limit).mean())]
            for limit in (0.05, 0.1, 0.2, 0.3, 0.5)
        },
        "sets": {
            name: {
                str(coverage): [sets_of(calibration, own, coverage) for own in people]
                for coverage in COVERAGES
            }
            for name, people in (
                ("same scenes", tested),
                ("other scenes", elsewhere),
            )
        },
        "top_k": {
            name: {
                str(coverage): [
                    [
                        k := int(
                            np.quantile(
                                np.concatenate([places_of_right(own, by) for own in learnt]),
                                coverage,
                                method="higher",
                            )
                        ),
                        float((places_of_right(own, by) <= k).mean()),
                    ]
                    for own in tested
                ]
                for coverage in COVERAGES
            }
            for name, by in (("cosine", 0), ("match logit", 1))
        },
        "splits": {
            str(coverage): coverage_over_splits(calibration, tested, coverage) for coverage in COVERAGES
        },
    }


def tables(found: dict[str, Any], pairs: int) -> str:
    seeds = f"mean ± deviation over {len(found['mean_chance']['other scenes'])} seeds"
    both = [
        [name, *(mean_and_deviation([own[i] for own in rows]) for i in (0, 1))]
        for name, rows in found["telling_apart"].items()
    ]
    parts = [
        captioned_table(
            f"Present against absent, {pairs} images, by logistic regression on what is named; {seeds}.",
            ["", "AUROC", "false positives at 95 % recall"],
            both,
        )
    ]
    rows = []
    for name, of_seed in found["galleries"].items():
        figures = [
            mean_and_deviation([own[key] for own in of_seed])
            for key in (
                "auroc_of_best_score",
                "auroc",
                "fpr95_of_best_score",
                "fpr95",
                "ece",
                "ece_of_a_perfect_one",
            )
        ]
        more = [mean_and_deviation(found[key][name]) for key in ("ece_of_sigmoid", "mean_chance")]
        rows.append([name, *figures, *more])
    heads = [
        "",
        "AUROC, best score",
        "AUROC, chance",
        "false positives at 95 %, best score",
        "the same, chance",
        "ECE",
        "ECE of a perfect one",
        "ECE, sigmoid of the best match logit",
        "mean chance (half are there)",
    ]
    parts.append(captioned_table(f"The calibration, in galleries; {seeds}.", heads, rows))
    rows = [[name, mean_and_deviation(values)] for name, values in found["auroc_where"].items()]
    parts.append(
        captioned_table(
            f"Of those who are there, AUROC against all who are not; {seeds}.",
            ["by match logit", "AUROC"],
            rows,
        )
    )
    rows = [
        [
            f"{100 * after[0]:.0f} %",
            f"{100 * after[1]:.0f} %",
            f"{100 * before[0]:.0f} %",
            f"{100 * before[1]:.0f} %",
        ]
        for after, before in zip(found["reliability"], found["reliability_before"], strict=True)
    ]
    errors = [
        f"{name} {found[key]:.3f} ({low:.3f} to {high:.3f})"
        for name, key in (("calibrated", "ece"), ("before", "ece_before"))
        for low, high in [found[f"{key}_interval"]]
    ]
    errors.append(f"of a perfect one {found['ece_of_a_perfect_one']:.3f}")
    caption = f"Reliability, all seeds in ten groups. Expected calibration error: {', '.join(errors)}."
    heads = ["chance said", "were there", "sigmoid of the best match logit", "were there"]
    parts.append(captioned_table(caption, heads, rows))
    rows = [
        [f"{float(limit):.0%}", f"{100 * absent:.0f} %", f"{100 * present:.0f} %"]
        for limit, (absent, present) in found["no_one"].items()
    ]
    parts.append(
        captioned_table(
            '"No one like this" below a chance.',
            ["chance", "said of those who are not there", "said of those who are"],
            rows,
        )
    )
    rows = []
    for coverage in map(str, COVERAGES):
        for name, of_seed in ((name, own[coverage]) for name, own in found["sets"].items()):
            figures = [
                mean_and_deviation([own[key] for own in of_seed], 2)
                for key in ("coverage", "images", "normal", "anomaly")
            ]
            rows.append([f"set of {float(coverage):.0%}, {name}", *figures])
        for name, own in found["top_k"].items():
            held = mean_and_deviation([share for _, share in own[coverage]], 2)
            rows.append(
                [f"first k by {name} for {float(coverage):.0%}", held, str(own[coverage][0][0]), "", ""]
            )
    parts.append(
        captioned_table(
            f"Sets, and first k as many as hold it in the people learnt from; {seeds}.",
            ["", "holds the right image", "images", "of normal texts", "of anomalous texts"],
            rows,
        )
    )
    rows = [
        [
            f"{float(coverage):.0%}",
            f"{own['mean']:.3f}",
            f"{own['lowest']:.3f} to {own['highest']:.3f}",
            f"{own['inside']:.0%}",
        ]
        for coverage, own in found["splits"].items()
    ]
    parts.append(
        captioned_table(
            f"{SPLITS} halvings of the persons that are tested.",
            ["promised", "held", "range", "within their 95 % interval"],
            rows,
        )
    )
    return "\n".join(parts)


def main(argv: list[str] | None = None) -> None:
    parser = seeds_parser(__doc__, seeds=[100, 101, 102])
    parser.add_argument("--test_seeds", type=int, nargs="+", default=[105, 106, 107, 108, 109])
    parser.add_argument("--model", help="in place of fine-tuning the demo's start")
    arguments = parser.parse_args(argv)
    settings = settings_of(arguments)
    with tempfile.TemporaryDirectory(prefix="tpas-trust-") as created:
        folder = Path(created)
        name = arguments.model
        if name is None:
            draw_people(folder, settings, 0)
            run_logged(fine_tuning_command(settings, DEMO_START, 0), folder, "fine_tune")
            name = str(folder / "fine_tuned" / "best")
        pairs = 80 if arguments.quick else settings.test_pairs
        model = load_model(name)
        learnt = [search(model, seed, pairs, folder) for seed in arguments.seeds]
        tested = [search(model, seed, pairs, folder) for seed in arguments.test_seeds]
        elsewhere = [search(model, seed, pairs, folder, PRETRAINING_WORLD) for seed in arguments.test_seeds]
    found = measure(learnt, tested, elsewhere)
    found |= {"seeds": arguments.seeds, "test_seeds": arguments.test_seeds}
    table = tables(found, pairs)
    print(f"\n{table}")
    write_output(arguments.output, found, table)


if __name__ == "__main__":
    main()
