"""The stages of an evaluation as rows of a table: for the terminal, in Markdown, and for pages."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .measures import headline
from .retrieval import EvaluationResult
from .settings import CUTOFFS
from .stages import Stage, final_stage, label_of

Intervals = Mapping[str, Mapping[str, Mapping[str, tuple[float, float]]]]  # by stage, group and figure


@dataclass(frozen=True)
class StageRow:
    """One stage in a few figures, fractions in [0, 1].

    Attributes:
        recalls: at `CUTOFFS`.
        normal, anomaly: Recall@1 of these queries; None without any.
        gain: in Recall@1, over the stage it builds on; None of the first.
    """

    stage: Stage
    recalls: tuple[float, ...]
    mean_average_precision: float
    normal: float | None
    anomaly: float | None
    gain: float | None


def stage_rows(results: Mapping[str, Any]) -> list[StageRow]:
    """The stages of a results file (`results_json`) in their order."""
    stages = results["stages"]

    def recall_at_1(stage: str, group: str) -> float | None:
        return stages[stage].get(group, {}).get("recall@1")

    rows = []
    for stage in [stage for stage in Stage if stage in stages]:
        everything = stages[stage]["all"]
        gain = None
        if stage != Stage.EMBEDDINGS:
            before = final_stage(stages) if stage == Stage.SCA else Stage.EMBEDDINGS
            gain = everything["recall@1"] - stages[before]["all"]["recall@1"]
        rows.append(
            StageRow(
                stage,
                recalls=tuple(everything[f"recall@{cutoff}"] for cutoff in CUTOFFS),
                mean_average_precision=everything["mAP"],
                normal=recall_at_1(stage, "normal"),
                anomaly=recall_at_1(stage, "anomaly"),
                gain=gain,
            )
        )
    return rows


def format_table(result: EvaluationResult) -> str:
    """Recall@k and mAP of the stages as aligned rows of text, in percent."""
    metrics = list(headline(_any_of(result.stages)["all"]))
    heads = [metric.replace("recall@", "R@").replace("hit_rate@", "hit@") for metric in metrics]
    groups = result.group_sizes
    label_width = max(
        len(label) for label in (*(stage.label for stage in Stage), *map(label_of, result.stages))
    )
    block = 7 * len(metrics)
    lines = [
        " " * label_width
        + "".join(f"{f'{group} ({size} queries)':>{block}} |" for group, size in groups.items()).rstrip(" |"),
        " " * label_width + (" |".join("".join(f"{head:>7}" for head in heads) for _ in groups)),
    ]
    for stage, measures in result.stages.items():
        figures = ("".join(f"{100 * measures[group][metric]:7.2f}" for metric in metrics) for group in groups)
        lines.append(f"{label_of(stage):<{label_width}}" + " |".join(figures))
    return "\n".join(lines)


def markdown_report(result: EvaluationResult, intervals: Intervals, title: str) -> str:
    """Every figure of every stage and group in Markdown, Recall@k and mAP with their intervals."""
    parts = [f"# {title}"]
    for group, size in result.group_sizes.items():
        parts.append(f"## {group} ({size:,} queries)\n\n{_group_table(result, intervals, group)}")
    heads = ["stage", "coverage", "collision rate"]
    rows = [
        [label_of(stage), *_percent(figures, ("coverage", "collision_rate"))]
        for stage, figures in result.first_answers.items()
    ]
    parts.append(
        f"## First answers, without labels\n\n{_table(heads, rows)}\n\n"
        "Coverage: different first answers / queries, an upper bound of Recall@1 where each query has one "
        "right image of its own."
    )
    shares = ("right", "hard_negative", "other", "right_before_hard_negative")
    heads = ["stage", "queries of", "number", *(share.replace("_", " ") for share in shares)]
    rows = [
        [label_of(stage), group, f"{figures['queries']:,}", *_percent(figures, shares)]
        for stage, by_group in result.pair_confusion.items()
        for group, figures in by_group.items()
    ]
    if rows:
        parts.append(
            f"## The two of a pair\n\n{_table(heads, rows)}\n\n"
            "The first answer is the right image, or its hard negative (the same source video, the other "
            "behaviour: the right person doing the wrong thing), or another."
        )
    parts.append(
        "Figures in percent, the median rank in places; in brackets the 95 % bootstrap interval over queries."
    )
    return "\n\n".join(parts) + "\n"


def _any_of(stages: Mapping[str, Any]) -> Any:
    """What one of the stages has; all have the same figures."""
    return next(iter(stages.values()))


def _group_table(result: EvaluationResult, intervals: Intervals, group: str) -> str:
    names = list(_any_of(result.stages)[group])
    rows = []
    for stage, measures in result.stages.items():
        shown = {name: intervals[stage][group][name] for name in headline(measures[group])}
        cells = [_figure(name, measures[group][name], shown.get(name)) for name in names]
        rows.append([label_of(stage), *cells])
    return _table(["stage", *(name.replace("recall", "Recall").replace("_", " ") for name in names)], rows)


def _percent(figures: Mapping[str, float], names: Sequence[str]) -> list[str]:
    return [f"{100 * figures[name]:.2f}" for name in names]


def _figure(name: str, value: float, interval: tuple[float, float] | None) -> str:
    if name == "median_rank":
        return f"{value:g}"
    bounds = "" if interval is None else f" [{100 * interval[0]:.2f}, {100 * interval[1]:.2f}]"
    return f"{100 * value:.2f}{bounds}"


def _table(heads: list[str], rows: list[list[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
