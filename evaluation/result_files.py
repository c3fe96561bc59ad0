"""The files of an evaluation: figures and outcomes (JSON), listed images (JSON), score files."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..data.json_records import read_json
from ..data.pab import RetrievalBenchmark
from ..data.pab_images import image_path
from ..reranking.score_files import ScoreFile, write_score_file
from ..search.hits import SearchHit
from .many_runs import are_counts
from .measures import query_figures
from .retrieval import EvaluationResult
from .significance import LEVEL, RESAMPLES
from .stages import Stage, final_stage
from .tables import Intervals

LISTED_IMAGES = 10  # per query and stage in the rankings file


def results_json(
    result: EvaluationResult, benchmark: RetrievalBenchmark, intervals: Intervals, seed: int, **context: Any
) -> dict[str, Any]:
    """What `--output` holds; `outcomes` is what a paired test needs, query by query.

    Where a score file does not rank a right image, its rank is null, as is a median that lies beyond.
    """
    return {
        **context,
        "queries": len(benchmark.captions),
        "gallery": len(benchmark.gallery_ids),
        "shortlist": result.shortlist,
        "fusion_weight": result.fusion_weight,
        "sca": result.sca and asdict(result.sca),
        "final_stage": result.final_stage,
        "k": result.k,
        "stages": {
            stage: {group: _with_null(figures) for group, figures in groups.items()}
            for stage, groups in result.stages.items()
        },
        "confidence": {"level": LEVEL, "resamples": RESAMPLES, "seed": seed, "stages": intervals},
        "first_answers": result.first_answers,
        "pair_confusion": result.pair_confusion,
        "by_action": result.by_action,
        "by_scene": result.by_scene,
        "sca_report": result.sca_report and asdict(result.sca_report),
        "outcomes": {
            "query_ids": benchmark.query_ids,
            "relevant_ranks": {
                stage: [_ranks_json(row) for row in ranks] for stage, ranks in result.relevant_ranks.items()
            },
        },
    }


def _with_null(figures: Mapping[str, float]) -> dict[str, float | None]:
    return {name: None if value == math.inf else value for name, value in figures.items()}


def _ranks_json(ranks: np.ndarray) -> list[int | None]:
    return [int(rank) if np.isfinite(rank) else None for rank in ranks]


def rankings_json(
    result: EvaluationResult, benchmark: RetrievalBenchmark, elsewhere: Mapping[str, Path]
) -> dict[str, Any]:
    """What `--rankings` holds: for each query and stage the best images that have that stage's score."""
    ids = benchmark.gallery_ids
    queries = []
    for row, caption in enumerate(benchmark.captions):
        stages = {}
        for stage, scores in result.scores.items():
            columns = result.rankings[stage][row, :LISTED_IMAGES].tolist()
            listed = scores[row, :LISTED_IMAGES].tolist()
            stages[stage] = {"ids": [ids[column] for column in columns], "scores": listed}
        queries.append(
            {
                "query_id": benchmark.query_ids[row],
                "caption": caption,
                "relevant": benchmark.relevant[row],
                "behaviour": benchmark.query_behaviours[row],
                "stages": stages,
                "moved": bool(result.moved[row]),
            }
        )
    # A gallery id is the image's path relative to the data's root, but for distractors from elsewhere.
    return {"gallery": {name: str(elsewhere.get(name, name)) for name in ids}, "queries": queries}


@dataclass(frozen=True)
class RankedQuery:
    """A query with its best images at each stage, at most `LISTED_IMAGES`.

    Attributes:
        relevant: the ids of its right images, each with its file.
        behaviour: "normal", "anomaly" or None.
        hits: by stage, best first. `rank_before_sca` is None also for an image that was not listed before.
        moved: whether SCA changed its first answer.
    """

    id: str
    text: str
    relevant: Mapping[str, Path]
    behaviour: str | None
    hits: Mapping[str, Sequence[SearchHit]]
    moved: bool


def ranked_queries(rankings: Mapping[str, Any], file_of: Callable[[str], Path]) -> list[RankedQuery]:
    """The queries of what `rankings_json` makes; `file_of` gives an image's file by its id."""
    file_of = cache(file_of)
    return [
        RankedQuery(
            id=query["query_id"],
            text=query["caption"],
            relevant={name: file_of(name) for name in query["relevant"]},
            behaviour=query["behaviour"],
            hits={stage: _hits(query["stages"], stage, file_of) for stage in query["stages"]},
            moved=query["moved"],
        )
        for query in rankings["queries"]
    ]


def _hits(stages: Mapping[str, Any], stage: str, file_of: Callable[[str], Path]) -> list[SearchHit]:
    def ranks_at(other: str) -> dict[str, int]:
        return {name: rank for rank, name in enumerate(stages[other]["ids"], start=1)}

    by_cosine = ranks_at(Stage.EMBEDDINGS)
    before_sca: dict[str, int] = {}
    if not Stage(stage).has_scores:
        before_sca = ranks_at(final_stage(stages) if stage == Stage.SCA else Stage.EMBEDDINGS)
    listed = zip(stages[stage]["ids"], stages[stage]["scores"], strict=True)
    return [
        SearchHit(
            id=name,
            rank=rank,
            score=score,
            embedding_rank=by_cosine.get(name),
            rank_before_sca=before_sca.get(name),
            path=file_of(name),
        )
        for rank, (name, score) in enumerate(listed, start=1)
    ]


@dataclass(frozen=True)
class Evaluation:
    """What `tpas evaluate` wrote about one model: `--output` and `--rankings`."""

    results: Mapping[str, Any]
    queries: Sequence[RankedQuery]

    @classmethod
    def read(cls, results_path: Path, rankings_path: Path, image_root: Path) -> "Evaluation":
        """Reads both files; `image_root` is the data's root, in which the images lie.

        Raises:
            ValueError: a file is not what the evaluation writes, or an image lies elsewhere.
        """
        results = _content(results_path, ("stages", "shortlist", "gallery", "sca_report"))
        rankings = _content(rankings_path, ("queries", "gallery"))
        gallery = rankings["gallery"]
        return cls(results, ranked_queries(rankings, lambda name: image_path(image_root, gallery[name])))


def _content(path: Path, keys: Sequence[str]) -> dict[str, Any]:
    content = read_json(path)
    missing = [key for key in keys if not isinstance(content, dict) or key not in content]
    if missing:
        raise ValueError(f"{path}: no {' or '.join(missing)} in it; run tpas evaluate again")
    return content


def write_scores(
    path: Path,
    query_ids: Sequence[str],
    gallery_ids: Sequence[str],
    indices: Mapping[str, Tensor],
    scores: Mapping[str, Tensor],
) -> list[Path]:
    """A score file for each stage with scores of its own, named after it: `s.npz` to `s.matching.npz`.

    SCA has no scores of its own, so its stages have no file.
    """
    written = []
    for stage in Stage:
        if not stage.has_scores or stage not in indices:
            continue
        lists = scores[stage].numpy(), indices[stage].numpy()
        written.append(path.with_name(f"{path.stem}.{stage}{path.suffix}"))
        write_score_file(written[-1], ScoreFile(*lists, tuple(query_ids), tuple(gallery_ids)))
    return written


@dataclass(frozen=True)
class Outcomes:
    """What one results file says of each query: its figures at one stage, by query id.

    Attributes:
        dataset_name: None in the files of earlier versions, which called all data PAB.
        relevant_ranks: infinite where a score file does not rank an image.
    """

    path: Path
    dataset_name: str | None
    data_fingerprint: str
    stage: str
    k: list[int]
    relevant_ranks: dict[str, np.ndarray]

    def figures(self, query_ids: list[str], k: list[int]) -> list[dict[str, float]]:
        """The figures of these queries, in their order."""
        return query_figures([self.relevant_ranks[query_id] for query_id in query_ids], k)


def read_outcomes(path: Path, stage: str | None) -> Outcomes:
    """Reads a results file; `None`: its "sca", or its last stage.

    Raises FileNotFoundError, or ValueError naming the file and what is wrong with it.
    """
    results = read_json(path)
    try:
        outcomes = results["outcomes"]
        query_ids, stages = outcomes["query_ids"], outcomes["relevant_ranks"]
        fingerprint, k = results["data_fingerprint"], results["k"]
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: no outcomes in it ({error}): not written by tpas evaluate --output, or by an "
            "earlier version of it; evaluate again"
        ) from error
    if not _all_are(str, query_ids) or not are_counts(k, 1) or not isinstance(stages, dict):
        raise ValueError(
            f"{path}: needs query_ids and relevant_ranks by stage in outcomes, and integers as k; "
            "evaluate again"
        )
    if not isinstance(fingerprint, str) or not isinstance(results.get("dataset_name"), str | None):
        raise ValueError(f"{path}: its data_fingerprint and dataset_name must be texts; evaluate again")
    if stage is None:
        stage = Stage.SCA.value if Stage.SCA in stages or not stages else list(stages)[-1]
    if stage not in stages:
        raise ValueError(f"{path}: no stage '{stage}', it has {', '.join(stages)}")
    ranks = stages[stage]
    outcomes_found = len(ranks) if isinstance(ranks, list) else "no"
    if outcomes_found != len(query_ids) or len(set(query_ids)) != len(query_ids):
        raise ValueError(f"{path}: {outcomes_found} outcomes for {len(set(query_ids))} different query ids")
    for query_id, row in zip(query_ids, ranks, strict=True):
        if not _are_ranks(row):
            raise ValueError(
                f"{path}: the ranks of query {query_id} must be integers from 1, each once, got {row!r}"
            )
    ranks_of = {
        query_id: np.array([np.inf if rank is None else rank for rank in row])
        for query_id, row in zip(query_ids, ranks, strict=True)
    }
    return Outcomes(path, results.get("dataset_name"), fingerprint, stage, k, ranks_of)


def _are_ranks(row: Any) -> bool:
    """Whether it lists ranks from 1, each once, and null of what was not ranked."""
    if not isinstance(row, list) or not row:
        return False
    found = [rank for rank in row if rank is not None]
    return not found or (are_counts(found, 1) and len(set(found)) == len(found))


def _all_are(kind: type, values: Any) -> bool:
    """Whether `values` is a list of something, all of it exactly of that kind."""
    return isinstance(values, list) and bool(values) and all(type(value) is kind for value in values)
