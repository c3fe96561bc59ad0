"""Many evaluations in one figure: a figure of each stage of each run, with its deviation over seeds."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from ..evaluation.many_runs import RunTable
from ..evaluation.stages import label_of
from .training import LABELS, LINE_COLOURS

WIDTH, LINE_HEIGHT, AROUND = 7.5, 0.21, 0.9  # inches


def plot_runs(tables: Sequence[RunTable], name: str = "recall@1") -> Figure:
    """A panel for each data set; in it each run, and under its name a line for each stage.

    Raises:
        ValueError: of some data no run has that figure.
    """
    panels = []
    for table in tables:
        lines: list[tuple[str, float | None, float | None]] = []  # a run's name, or a stage with its figure
        before = None
        for row in table.rows:
            figure = row.figures["all"].get(name)
            if figure is None or figure.mean is None:
                continue
            if row.run != before:
                several = f" (n = {len(row.paths)})" if len(row.paths) > 1 else ""
                lines.append((f"{row.run}{several}", None, None))
                before = row.run
            lines.append((label_of(row.stage), figure.mean, figure.deviation))
        if not lines:
            raise ValueError(f"there is no {name!r} to draw of {table.title}")
        panels.append(lines)
    heights = [AROUND + LINE_HEIGHT * len(lines) for lines in panels]
    drawn = Figure(figsize=(WIDTH, sum(heights)), layout="constrained")
    rows_of_axes = drawn.subplots(len(tables), squeeze=False, height_ratios=heights)[:, 0]
    for axes, table, lines in zip(rows_of_axes, tables, panels, strict=True):
        for place, (_, mean, deviation) in enumerate(lines):
            if mean is None:
                continue
            spread = None if deviation is None else 100 * deviation
            style = {"fmt": "o", "markersize": 4.5, "capsize": 2.5, "color": LINE_COLOURS[0]}
            axes.errorbar(100 * mean, place, xerr=spread, **style)
        axes.set_yticks(range(len(lines)), [label for label, _, _ in lines])
        for label, (_, mean, _) in zip(axes.get_yticklabels(), lines, strict=True):
            label.set_fontweight("normal" if mean is not None else "bold")
        axes.set_ylim(len(lines) - 0.5, -0.5)
        axes.margins(x=0.06)
        axes.set_title(table.title, fontsize=10, color=LABELS, loc="left")
        axes.set_xlabel(f"{name.replace('recall', 'Recall')}, %", fontsize=9, color=LABELS)
        axes.tick_params(colors=LABELS, labelsize=8.5)
        axes.tick_params(axis="y", length=0)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.spines["bottom"].set_color(LABELS)
        axes.grid(axis="x", color=LABELS, alpha=0.25, linewidth=0.7)
    return drawn
