"""Plots of an evaluation: recall curves, scores, collisions, and queries with their images.

Figures are drawn without pyplot, so nothing is left behind in the caller's own matplotlib.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import networkx as nx
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from ..data.pab import RetrievalBenchmark
from ..data.pab_images import image_path
from ..evaluation.result_files import SYSTEM_STAGES, rankings_json
from ..evaluation.retrieval import EvaluationResult
from ..evaluation.tables import STAGE_NAMES
from .collisions import ResolvedCollision, plot_collisions
from .examples import (
    Answer,
    choose_collisions,
    choose_queries,
    is_right,
    shown_answers,
    verdict,
)
from .results import ResultRow, plot_result_rows
from .saving import save_figure
from .sheet import NEUTRAL, RIGHT, WRONG, RankedImage, plot_note

DEEPEST_RANK = 100  # of the recall curves
SHOWN_COLLISIONS = 30  # images that most queries claim
SHOWN_QUERIES = 6  # of the successes, and of the failures
SHOWN_MOVES = 4


def write_plots(
    folder: Path,
    result: EvaluationResult,
    benchmark: RetrievalBenchmark,
    root: Path,
    elsewhere: Mapping[str, Path] | None = None,
    seed: int = 0,
) -> list[Path]:
    """Curves and distributions of the figures, and some queries with their images, in a folder.

    Args:
        root, elsewhere: where the images lie; see `ImageFiles`.
        seed: draws the queries that are shown.
    """
    elsewhere = elsewhere or {}
    queries = rankings_json(result, benchmark, elsewhere)["queries"]
    before = result.final_stage

    def ranked(answer: Answer) -> RankedImage:
        image = elsewhere.get(answer.id) or image_path(root, answer.id)
        return RankedImage(image, answer.score, answer.right, answer.rank)

    right = [query for query in queries if is_right(query, "sca")]
    wrong = [query for query in queries if not is_right(query, "sca")]
    figures = {
        "recall_curve.png": recall_curve(result),
        "score_distributions.png": score_distributions(result, benchmark),
        "collisions.png": collisions(result, benchmark),
        "successes.jpg": query_sheet(right, before, ranked, seed, "No query found its right image first."),
        "failures.jpg": query_sheet(wrong, before, ranked, seed, "Every query found its right image first."),
        "collisions.jpg": collision_sheet(queries, before, ranked, seed),
    }
    return [save_figure(figure, folder / name) for name, figure in figures.items()]


def query_sheet(
    queries: Sequence[Mapping],
    before: str,
    ranked: Callable[[Answer], RankedImage],
    seed: int,
    without_any: str,
) -> Figure:
    """Some of these queries, of every kind, with their best images; `without_any` says that there is none.

    A right image that is not among the best stands last, with its rank where that is known.
    """
    rows = [
        ResultRow(
            query["caption"], [ranked(answer) for answer in shown_answers(query)], verdict(query, before)
        )
        for query in choose_queries(queries, before, count=SHOWN_QUERIES, seed=seed)
    ]
    return plot_result_rows(rows) if rows else plot_note(without_any)


def collision_sheet(
    queries: Sequence[Mapping], before: str, ranked: Callable[[Answer], RankedImage], seed: int
) -> Figure:
    """Some of the queries that SCA moved, each beside the one that kept the image."""
    reranked = [
        ResolvedCollision(
            one.query["caption"],
            ranked(one.before),
            ranked(one.after),
            None if one.holder is None else one.holder["caption"],
            None if one.kept is None else ranked(one.kept),
            one.outcome,
        )
        for one in choose_collisions(queries, before, count=SHOWN_MOVES, seed=seed)
    ]
    return plot_collisions(reranked) if reranked else plot_note("SCA moved no query.")


def recall_curve(result: EvaluationResult) -> Figure:
    """The share of the queries with a relevant image among the best k, over k, stage by stage."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    ranks = np.arange(1, min(DEEPEST_RANK, max(2, result.shortlist)) + 1)
    for stage, relevant in result.relevant_ranks.items():
        first = np.sort([row.min() for row in relevant])
        found = np.searchsorted(first, ranks, side="right") / len(first)
        style = "--" if stage.endswith("sca") else "-"  # SCA runs along the stage that it resolves
        axes.plot(ranks, 100 * found, style, label=STAGE_NAMES[stage], linewidth=1.6)
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
    stages = [stage for stage in SYSTEM_STAGES if stage in result.rankings]
    figure = Figure(figsize=(4.2 * len(stages), 3.6), layout="constrained")
    for axes, stage in zip(figure.subplots(1, len(stages), squeeze=False)[0], stages, strict=True):
        right = right_places(result.rankings[stage], relevant)
        scores = result.scores[stage].numpy()
        bins = np.linspace(scores.min(), scores.max() + 1e-6, 41)
        for mask, name, colour in ((~right, "wrong", WRONG), (right, "right", RIGHT)):
            if mask.any():
                weights = np.full(mask.sum(), 100 / mask.sum())
                axes.hist(scores[mask], bins, weights=weights, color=colour, alpha=0.55, label=name)
        axes.set(title=STAGE_NAMES[stage], xlabel="score", ylabel="images of the kind, %")
        axes.legend()
    return figure


def right_places(indices: Tensor, relevant: Sequence[np.ndarray]) -> np.ndarray:
    """(Q, K) bool: which images of the lists (Q, K) are relevant."""
    rows = zip(indices.numpy(), relevant, strict=True)
    return np.stack([np.isin(row, images) for row, images in rows])


def collisions(result: EvaluationResult, benchmark: RetrievalBenchmark) -> Figure:
    """Which queries claim which images, before and after SCA, for the most wanted images.

    Squares are images, dots are queries, and a line is a query's first answer: green where it is right.
    """
    before = result.rankings[result.final_stage][:, 0].numpy()
    after = result.rankings["sca"][:, 0].numpy()
    images, claims = np.unique(before, return_counts=True)
    most = sorted(zip(-claims, images, strict=True))[:SHOWN_COLLISIONS]
    wanted = [image for count, image in most if -count > 1]
    queries = np.flatnonzero(np.isin(before, wanted))
    figure = Figure(figsize=(11, 5.5), layout="constrained")
    graphs = [claim_graph(first, queries) for first in (before, after)]
    places = _places(nx.compose(*graphs))
    column = {gallery_id: index for index, gallery_id in enumerate(benchmark.gallery_ids)}
    answers = [{column[gallery_id] for gallery_id in row} for row in benchmark.relevant]
    report = result.sca_report
    titles = (
        f"before SCA: {report.collisions_before} queries share their answer, "
        f"coverage {100 * report.coverage_before:.1f} %",
        f"after SCA: {report.collisions_after}, coverage {100 * report.coverage_after:.1f} %",
    )
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    for axes, graph, title in zip(panels, graphs, titles, strict=True):
        _draw(axes, graph, places, answers)
        axes.set_title(title, fontsize=10)
    if len(wanted) == SHOWN_COLLISIONS:
        figure.suptitle(f"the {SHOWN_COLLISIONS} images that most queries claimed", fontsize=10)
    return figure


def claim_graph(first: np.ndarray, queries: np.ndarray) -> nx.Graph:
    """The queries, ("query", row), each joined to its first answer, ("image", column)."""
    graph = nx.Graph()
    for query in queries.tolist():
        graph.add_edge(("query", query), ("image", int(first[query])))
    return graph


def _places(graph: nx.Graph) -> dict:
    """Coordinates: each connected component in a cell of its own, the largest first."""
    components = sorted(nx.connected_components(graph), key=lambda nodes: (-len(nodes), min(nodes)))
    side = max(1, int(np.ceil(np.sqrt(len(components)))))
    places = {}
    for number, nodes in enumerate(components):
        cell = np.array([number % side, -(number // side)])
        inside = nx.spring_layout(graph.subgraph(sorted(nodes)), seed=0, scale=0.4)
        places |= {node: cell + place for node, place in inside.items()}
    return places


def _draw(axes: Axes, graph: nx.Graph, places: dict, answers: Sequence[set[int]]) -> None:
    for one, other in graph.edges:
        (_, query), (_, image) = (one, other) if one[0] == "query" else (other, one)
        x, y = zip(places[one], places[other], strict=True)
        axes.plot(x, y, color=RIGHT if image in answers[query] else WRONG, linewidth=1, zorder=1)
    for kind, marker, colour in (("query", "o", "black"), ("image", "s", NEUTRAL)):
        points = [places[node] for node in graph if node[0] == kind]
        if points:
            axes.scatter(*zip(*points, strict=True), marker=marker, s=16, color=colour, zorder=2, label=kind)
    axes.axis("off")
    if len(graph):
        for label, colour in (("right answer", RIGHT), ("wrong answer", WRONG)):
            axes.plot([], [], color=colour, linewidth=1, label=label)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, 0), ncols=4, fontsize=8, frameon=False)
    else:
        axes.text(0.5, 0.5, "no two queries share their first answer", ha="center", transform=axes.transAxes)
