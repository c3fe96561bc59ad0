"""The curves of a fine-tuning run, from the lines of its `training_log.jsonl`."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..evaluation.stages import Stage

# Readable on white and on nearly black, for pages that follow the reader's choice of either.
LINE_COLOURS = ("#3d7fd1", "#d0701f", "#2a9a55", "#9a63cf")
LABELS = "#7b8087"
PANEL_SIZE = (3.4, 2.4)  # inches
LOSS_ENDING = "_loss"


@dataclass(frozen=True)
class Panel:
    """One set of axes: named lines of (step, value).

    Attributes:
        smooth: whether the points are drawn faintly, with their moving mean over them.
    """

    title: str
    lines: Mapping[str, Sequence[tuple[float, float]]]
    smooth: bool

    @property
    def summary(self) -> str:
        """For those who cannot see it."""
        ends = (f"{name}: from {line[0][1]:.3g} to {line[-1][1]:.3g}" for name, line in self.lines.items())
        return f"{self.title} by step. {'; '.join(ends)}."


def training_panels(training_log: Sequence[Mapping]) -> list[Panel]:
    """Each part of the loss by step and, where it was measured, Recall@1 on validation by stage, in %.

    What is not finite, as in a run that went wrong, is left out of its line.
    """
    losses: dict[str, list[tuple[float, float]]] = {}
    recalls: dict[str, list[tuple[float, float]]] = {}
    for line in training_log:
        for name, value in line.items():
            if name.endswith(LOSS_ENDING) and value is not None and math.isfinite(value):
                losses.setdefault(name, []).append((line["step"], value))
        weights = f" ({line['weights']} weights)" if "weights" in line else ""
        for stage, groups in line.get("evaluation", {}).items():
            if stage == Stage.EMBEDDINGS_SCA:  # beside the path to the last stage
                continue
            value = 100 * groups["all"]["recall@1"]
            recalls.setdefault(Stage(stage).label + weights, []).append((line["step"], value))
    panels = [
        Panel(name.replace("_", " ").capitalize(), {"each step": line}, smooth=True)
        for name, line in losses.items()
    ]
    return panels + ([Panel("Recall@1 on validation, %", recalls, smooth=False)] if recalls else [])


def plot_training(training_log: Sequence[Mapping]) -> Figure:
    """All panels of a log (see `read_training_log`) side by side.

    Raises:
        ValueError: the log has neither a loss nor an evaluation in it.
    """
    panels = training_panels(training_log)
    if not panels:
        raise ValueError("the training log has neither a loss nor an evaluation in it yet")
    figure = Figure(figsize=(PANEL_SIZE[0] * len(panels), PANEL_SIZE[1]), layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        _draw(axes, panel)
    return figure


def plot_panel(panel: Panel) -> Figure:
    """One panel without its title, for a page that has its own."""
    figure = Figure(figsize=PANEL_SIZE, layout="constrained")
    axes = figure.subplots()
    _draw(axes, panel)
    axes.set_title("")
    return figure


def _draw(axes: Axes, panel: Panel) -> None:
    for (name, line), colour in zip(panel.lines.items(), LINE_COLOURS * len(panel.lines), strict=False):
        steps, values = zip(*line, strict=True)
        if panel.smooth:
            axes.plot(steps, values, color=colour, linewidth=0.8, alpha=0.35)
            axes.plot(steps, moving_mean(values), color=colour, linewidth=1.8)
        else:
            axes.plot(steps, values, color=colour, linewidth=1.8, marker="o", markersize=4, label=name)
    axes.set_title(panel.title, fontsize=11, color=LABELS)
    axes.set_xlabel("step", fontsize=9, color=LABELS)
    axes.set_xlim(left=0)
    axes.locator_params(axis="y", nbins=6)
    axes.tick_params(colors=LABELS, labelsize=9)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(LABELS)
    axes.grid(axis="y", color=LABELS, alpha=0.25, linewidth=0.7)
    if len(panel.lines) > 1:
        axes.legend(
            loc="upper center",
            bbox_to_anchor=(0.5, -0.24),  # below the axes, where it hides no line
            ncols=2,
            columnspacing=1.2,
            fontsize=8.5,
            frameon=False,
            labelcolor=LABELS,
        )


def moving_mean(values: Sequence[float]) -> list[float]:
    """The mean of each value and its neighbours, over about a twelfth of them all."""
    reach = len(values) // 24
    windows = (values[max(0, place - reach) : place + reach + 1] for place in range(len(values)))
    return [sum(window) / len(window) for window in windows]
