"""The tables of trust.py, as Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from demo_runs import captioned_table


def mean_and_deviation(values: Sequence[float], digits: int = 3) -> str:
    return f"{np.mean(values):.{digits}f} ± {np.std(values, ddof=1) if len(values) > 1 else 0:.{digits}f}"


def tables(found: Mapping[str, Any], pairs: int) -> str:
    seeds = f"mean ± deviation over {len(found['mean_chance']['other scenes'])} seeds"
    parts = [
        f"Of a model {found['model']}, on {found['machine']}: {found['minutes']:.0f} minutes. Learnt from "
        f"seeds {_listed(found['seeds'])}, measured on {_listed(found['test_seeds'])}.\n",
        *_telling_apart(found, pairs, seeds),
        *_chances(found, seeds),
        *_sets(found, seeds),
    ]
    return "\n".join(parts)


def _listed(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))


def _telling_apart(found: Mapping[str, Any], pairs: int, seeds: str) -> list[str]:
    rows = [
        [name, *(mean_and_deviation([own[i] for own in of_seed]) for i in (0, 1))]
        for name, of_seed in found["telling_apart"].items()
    ]
    parts = [
        captioned_table(
            f"Present against absent, {pairs} images, by logistic regression on what is named; {seeds}.",
            ["", "AUROC", "false positives at 95 % recall"],
            rows,
        )
    ]
    limits = found["limits"]
    rows = [
        [
            name,
            f"{first:.0%}",
            f"{np.mean([own['auroc'] for own in found['galleries'][name]]):.3f}",
            f"{possible:.3f}",
        ]
        for name, (first, possible) in limits["by_gallery"].items()
    ]
    caption = (
        "What scores of this sharpness can tell: the likelihood ratio, the best of rules, where the scores "
        "of images are independent draws of those of right and of wrong images."
    )
    heads = ["", "the right image comes first", "AUROC, chance", "AUROC, likelihood ratio"]
    parts.append(captioned_table(caption, heads, rows))
    lookalike, others = (mean_and_deviation(values) for values in limits["auroc_against"].values())
    rows = [
        ["of the absent, another image shows all that the text says", f"{limits['answered_by_another']:.1%}"],
        ["AUROC of one who sees what was painted", f"{limits['auroc_of_the_painter']:.3f}"],
        [
            "of the absent, their lookalike, who differs in one thing, comes first",
            f"{np.mean(limits['first_is_lookalike']):.0%}",
        ],
        ["AUROC of the best score, against these", lookalike],
        ["AUROC of the best score, against the other absent", others],
    ]
    parts.append(captioned_table(f"What the images could tell; {seeds}.", ["", ""], rows))
    return parts


def _chances(found: Mapping[str, Any], seeds: str) -> list[str]:
    columns = {
        "auroc_of_best_score": "AUROC, best score",
        "auroc": "AUROC, chance",
        "fpr95_of_best_score": "false positives at 95 %, best score",
        "fpr95": "the same, chance",
        "ece": "ECE",
        "ece_of_a_perfect_one": "ECE of a perfect one",
    }
    more = {
        "ece_of_sigmoid": "ECE, sigmoid of the best match logit",
        "mean_chance": "mean chance (half are there)",
    }
    rows = [
        [
            name,
            *(mean_and_deviation([own[key] for own in of_seed]) for key in columns),
            *(mean_and_deviation(found[key][name]) for key in more),
        ]
        for name, of_seed in found["galleries"].items()
    ]
    heads = ["", *columns.values(), *more.values()]
    parts = [captioned_table(f"The calibration, in galleries; {seeds}.", heads, rows)]

    both = zip(found["reliability"], found["reliability_before"], strict=True)
    rows = [[f"{100 * share:.0f} %" for share in (*after, *before)] for after, before in both]
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
    heads = ["chance", "said of those who are not there", "said of those who are"]
    parts.append(captioned_table('"No one like this" below a chance.', heads, rows))

    rare = dict(found["rarely_there"])
    caption = f"Of {rare.pop('searches')} searches in {rare.pop('there')} the person was there."
    rows = [[name, f"{100 * mean:.0f} %", f"{error:.3f}"] for name, (mean, error) in rare.items()]
    parts.append(captioned_table(caption, ["", "mean chance", "ECE"], rows))
    return parts


def _sets(found: Mapping[str, Any], seeds: str) -> list[str]:
    rows = []
    for coverage, promised in ((key, f"{float(key):.0%}") for key in found["splits"]):
        for name, of_coverage in found["sets"].items():
            keys = ("coverage", "images", "normal", "anomaly")
            figures = [mean_and_deviation([own[key] for own in of_coverage[coverage]], 2) for key in keys]
            rows.append([f"set of {promised}, {name}", *figures])
        for name, of_coverage in found["top_k"].items():
            held = mean_and_deviation([share for _, share in of_coverage[coverage]], 2)
            rows.append([f"first k by {name} for {promised}", held, str(of_coverage[coverage][0][0]), "", ""])
    caption = f"Sets, and first k as many as hold it in the people learnt from; {seeds}."
    heads = ["", "holds the right image", "images", "of normal texts", "of anomalous texts"]
    parts = [captioned_table(caption, heads, rows)]
    rows = [
        [
            f"{float(coverage):.0%}",
            f"{own['mean']:.3f}",
            f"{own['lowest']:.3f} to {own['highest']:.3f}",
            f"{own['inside']:.0%}",
        ]
        for coverage, own in found["splits"].items()
    ]
    caption = f"{found['number_of_splits']} halvings of the persons that are tested."
    heads = ["promised", "held", "range", "within their 95 % interval"]
    return [*parts, captioned_table(caption, heads, rows)]
