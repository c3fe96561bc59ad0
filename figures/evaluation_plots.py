"""Plots of an evaluation: recall curves, scores, and queries with their images.

Figures are drawn without pyplot, so nothing is left behind in the caller's own matplotlib.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from ..data.pab import RetrievalBenchmark
from ..data.pab_images import image_path
from ..evaluation.result_files import RankedQuery, ranked_queries, rankings_json
from ..evaluation.retrieval import EvaluationResult
from ..evaluation.stages import Stage, is_stage, label_of
from .collisions import plot_collisions
from .examples import choose_queries, collisions_by_outcome, is_answered, shown_hits, take_in_turn, verdict
from .results import ResultRow, plot_result_rows
from .saving import save_figure
from .sheet import RIGHT, WRONG, plot_note

DEEPEST_RANK = 100  # of the recall curves
SHOWN_QUERIES = 6  # of the successes, and of the failures
SHOWN_COLLISIONS = 4
RECALL_CURVE = "recall_curve.png"


def write_plots(
    folder: Path,
    result: EvaluationResult,
    benchmark: RetrievalBenchmark,
    root: Path,
    elsewhere: Mapping[str, Path] | None = None,
    seed: int = 0,
) -> list[Path]:
    """The figures of `evaluation_figures` in a folder."""
    figures = evaluation_figures(result, benchmark, root, elsewhere, seed)
    return [save_figure(figure, folder / name) for name, figure in figures.items()]


def evaluation_figures(
    result: EvaluationResult,
    benchmark: RetrievalBenchmark,
    root: Path,
    elsewhere: Mapping[str, Path] | None = None,
    seed: int = 0,
) -> dict[str, Figure]:
    """Curves and distributions, and some queries with their images, by the name of the file for each.

    The latter are about the last stage and SCA, so score files, which have neither, have the curves alone.

    Args:
        root, elsewhere: where the images lie; see `ImageFiles`.
        seed: draws the queries that are shown.
    """
    curves = {
        RECALL_CURVE: recall_curve(result),
        "score_distributions.png": score_distributions(result, benchmark),
    }
    if Stage.SCA not in result.stages:
        return curves
    elsewhere = elsewhere or {}
    queries = ranked_queries(
        rankings_json(result, benchmark, elsewhere),
        lambda name: elsewhere.get(name) or image_path(root, name),
    )
    right = [query for query in queries if is_answered(query, Stage.SCA)]
    wrong = [query for query in queries if not is_answered(query, Stage.SCA)]
    return curves | {
        "successes.jpg": query_sheet(right, seed, "No query found its right image first."),
        "failures.jpg": query_sheet(wrong, seed, "Every query found its right image first."),
        "collisions.jpg": collision_sheet(queries, seed),
    }


def query_sheet(queries: Sequence[RankedQuery], seed: int, without_any: str) -> Figure:
    """Some of these queries, of every kind, with their best images; `without_any` says that there is none.

    A right image that is not among the best stands last, with its rank where that is known.
    """
    rows = []
    for query in choose_queries(queries, count=SHOWN_QUERIES, seed=seed):
        hits, missed = shown_hits(query)
        file = None if missed is None else query.relevant[missed]
        rows.append(ResultRow(query.text, hits, query.relevant, verdict(query), file))
    return plot_result_rows(rows) if rows else plot_note(without_any)


def collision_sheet(queries: Sequence[RankedQuery], seed: int) -> Figure:
    """Some of the queries that SCA moved, each beside the one that kept the image."""
    collisions = take_in_turn(collisions_by_outcome(queries).values(), SHOWN_COLLISIONS, seed)
    if not collisions:
        return plot_note("SCA moved no query.")
    return plot_collisions(
        collisions, [query.text for query in queries], [query.relevant for query in queries]
    )


def recall_curve(result: EvaluationResult) -> Figure:
    """The share of the queries with a relevant image among the best k, over k, stage by stage."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    ranks = np.arange(1, min(DEEPEST_RANK, max(2, result.shortlist)) + 1)
    for stage, relevant in result.relevant_ranks.items():
        first = np.sort([row.min() for row in relevant])
        found = np.searchsorted(first, ranks, side="right") / len(first)
        style = (
            "--" if stage in (Stage.SCA, Stage.EMBEDDINGS_SCA) else "-"
        )  # SCA runs along the stage that it re-ranks
        axes.plot(ranks, 100 * found, style, label=label_of(stage), linewidth=1.6)
    axes.set(xscale="log", xlabel="k", ylabel="queries that found a right image, %", xlim=(1, ranks[-1]))
    axes.set_xticks([k for k in (1, 2, 5, 10, 20, 50, 100) if k <= ranks[-1]])
    axes.xaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    return figure


def score_distributions(result: EvaluationResult, benchmark: RetrievalBenchmark) -> Figure:
    """The scores that right and wrong images of the shortlists got, each stage with scores of its own."""
    column = {gallery_id: index for index, gallery_id in enumerate(benchmark.gallery_ids)}
    relevant = [np.array([column[gallery_id] for gallery_id in row]) for row in benchmark.relevant]
    stages = [stage for stage in result.rankings if not is_stage(stage) or Stage(stage).has_scores]
    figure = Figure(figsize=(4.2 * len(stages), 3.6), layout="constrained")
    for axes, stage in zip(figure.subplots(1, len(stages), squeeze=False)[0], stages, strict=True):
        right = right_places(result.rankings[stage], relevant)
        scores = result.scores[stage].numpy()
        scored = np.isfinite(scores)
        bins = np.linspace(scores[scored].min(), scores[scored].max() + 1e-6, 41)
        for mask, name, colour in ((~right & scored, "wrong", WRONG), (right & scored, "right", RIGHT)):
            if mask.any():
                weights = np.full(mask.sum(), 100 / mask.sum())
                axes.hist(scores[mask], bins, weights=weights, color=colour, alpha=0.55, label=name)
        axes.set(title=label_of(stage), xlabel="score", ylabel="images of the kind, %")
        axes.legend()
    return figure


def right_places(indices: Tensor, relevant: Sequence[np.ndarray]) -> np.ndarray:
    """(Q, K) bool: which images of the lists (Q, K) are relevant."""
    rows = zip(indices.numpy(), relevant, strict=True)
    return np.stack([np.isin(row, images) for row, images in rows])
