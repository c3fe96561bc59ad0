"""Measures text-to-image retrieval on PAB, stage by stage.

    python evaluate_retrieval.py --model MODEL --data_root PAB --output results.json

Stages: the embeddings alone; their best pictures re-ranked by cross-modal matching; with `--fusion_weight` a
weighted sum of both; Similarity Coverage Analysis (SCA) on top. Prints Recall@k and mAP in percent, over all
queries and over the normal and the anomalous ones. `accelerate launch` shares the work out; the numbers stay.
"""

import argparse
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from accelerate import Accelerator
from datasets import Dataset
from torch import Tensor

from tpas.lora import load_model
from tpas.modeling_tpas import TPASModel
from tpas.pab import SPLITS, RetrievalBenchmark, load_pab, retrieval_split
from tpas.pictures import PictureFiles
from tpas.processing_tpas import TPASProcessor
from tpas.recall_at_k import RecallAtK
from tpas.sca import Confidence, SCAReport, sca_rerank
from tpas.search import (
    check_fusion_weight,
    encode_images,
    encode_texts,
    fuse,
    match_shortlists,
    model_fingerprint,
    rank_by_embeddings,
    reorder,
    replace_head,
    resolve_shortlist,
)
from tpas.synthetic_pab import MANIFEST

logger = logging.getLogger(__name__)

DEFAULT_K = (1, 5, 10)
STAGE_NAMES = {
    "embeddings": "embeddings",
    "embeddings_sca": "embeddings + SCA",
    "matching": "+ matching",
    "fused": "+ matching, fused",
    "sca": "+ SCA",
}
LISTED_PICTURES = 10  # per query and stage in the rankings file


@dataclass(frozen=True)
class EvaluationResult:
    """What `evaluate` measured.

    Attributes:
        stages: by stage, by "all", "normal" and "anomaly" (absent without such queries), by "recall@k" and
            "mAP": fractions in [0, 1].
        group_sizes: queries in each group.
        final_stage: "fused" or "matching", the stage that "sca" settles.
        rankings: stage to (Q, G) indices into the benchmark's gallery, best first.
        scores: stage to (Q, K) scores of the first K of them; SCA leaves each picture its own.
        moved: (Q,) bool, whether SCA changed the final stage's first answer.
        sca_report: SCA's counts on the final stage.
    """

    stages: dict[str, dict[str, dict[str, float]]]
    group_sizes: dict[str, int]
    final_stage: str
    shortlist: int
    fusion_weight: float
    sca_confidence: Confidence
    rankings: dict[str, Tensor]
    scores: dict[str, Tensor]
    moved: Tensor
    sca_report: SCAReport


def annotation_places(dataset: Dataset) -> dict[str, str]:
    """File and line of each picture of `load_pab`'s dataset."""
    columns = (dataset["image"], dataset["file"], dataset["line"])
    return {image: f"{file}, line {line}" for image, file, line in zip(*columns, strict=True)}


def evaluate(
    model: TPASModel,
    processor: TPASProcessor,
    benchmark: RetrievalBenchmark,
    root: Path,
    *,
    shortlist: int | None = None,
    fusion_weight: float = 0.0,
    sca_confidence: Confidence = "score",
    batch_size: int = 64,
    k: Sequence[int] | None = None,
    annotated_at: Mapping[str, str] | None = None,
    accelerator: Accelerator | None = None,
) -> EvaluationResult:
    """Ranks the gallery for every query of the benchmark and measures each stage.

    The model is put into evaluation mode and left in it. With an `accelerator` of several processes each
    takes a share of the batches, and all return the same result.

    Args:
        shortlist: pictures that are re-ranked for each query; `None`: 128, or the gallery.
        k: cutoffs of Recall@k; `None`: those of 1, 5 and 10 that the gallery allows.
        annotated_at: see `PictureFiles`.

    Raises:
        ValueError: for a shortlist or a k above the gallery's size, a fusion weight out of range, and an
            unreadable picture.
        FileNotFoundError: for a missing picture.
    """
    gallery_ids = benchmark.gallery_ids
    shortlist = resolve_shortlist(shortlist, len(gallery_ids))
    cutoffs = resolve_k(k, len(gallery_ids))
    check_fusion_weight(fusion_weight)
    model.eval()

    pictures = PictureFiles(root, gallery_ids, annotated_at or {})
    work = {"batch_size": batch_size, "accelerator": accelerator}
    images = encode_images(model, processor, pictures, **work)
    texts = encode_texts(model, processor, benchmark.captions, **work)
    ranking, cosines = rank_by_embeddings(texts.embeds, images.embeds, gallery_ids)  # (Q, G)
    candidates, candidate_cosines = ranking[:, :shortlist], cosines[:, :shortlist]  # (Q, K)
    match_scores = match_shortlists(model, images, texts, candidates, **work)  # (Q, K)

    lists = {"embeddings": (candidates, candidate_cosines), "matching": reorder(candidates, match_scores)}
    final_stage = "matching"
    if fusion_weight != 0:
        final_stage = "fused"
        lists["fused"] = reorder(candidates, fuse(match_scores, candidate_cosines, fusion_weight))
    settled = {}
    for stage, name in (("embeddings", "embeddings_sca"), (final_stage, "sca")):
        indices, scores = lists[stage]
        settled[name] = sca_rerank(indices, scores, confidence=sca_confidence, query_ids=benchmark.query_ids)
        lists[name] = (settled[name].indices, settled[name].scores)

    rankings = {name: replace_head(ranking, lists[name][0]) for name in STAGE_NAMES if name in lists}
    groups = query_groups(benchmark)
    return EvaluationResult(
        stages={name: measure(ranking, benchmark, groups, cutoffs) for name, ranking in rankings.items()},
        group_sizes={group: len(queries) for group, queries in groups.items()},
        final_stage=final_stage,
        shortlist=shortlist,
        fusion_weight=fusion_weight,
        sca_confidence=sca_confidence,
        rankings=rankings,
        scores={name: lists[name][1] for name in rankings},
        moved=settled["sca"].moved,
        sca_report=settled["sca"].report,
    )


def resolve_k(k: Sequence[int] | None, gallery_size: int) -> list[int]:
    """The cutoffs asked for, or for `None` those of 1, 5 and 10 that the gallery allows.

    Raises:
        ValueError: for a cutoff below 1 or above the gallery's size.
    """
    if k is None:
        allowed = [cutoff for cutoff in DEFAULT_K if cutoff <= gallery_size]
        if len(allowed) < len(DEFAULT_K):
            logger.info("the gallery has %d pictures: Recall@k for k in %s", gallery_size, allowed)
        return allowed
    for cutoff in k:
        if not 1 <= cutoff <= gallery_size:
            raise ValueError(f"k must be between 1 and the gallery's {gallery_size} pictures, got {cutoff}")
    return sorted(set(k))


def query_groups(benchmark: RetrievalBenchmark) -> dict[str, list[int]]:
    """Rows of all queries, and of the normal and the anomalous ones where there are any."""
    behaviours = benchmark.query_behaviours
    groups = {"all": list(range(len(behaviours)))}
    for behaviour in ("normal", "anomaly"):
        rows = [row for row, value in enumerate(behaviours) if value == behaviour]
        if rows:
            groups[behaviour] = rows
    return groups


def measure(
    ranking: Tensor, benchmark: RetrievalBenchmark, groups: dict[str, list[int]], k: Sequence[int]
) -> dict[str, dict[str, float]]:
    """Recall@k and mAP of each group of queries for a full ranking (Q, G)."""
    ids = benchmark.gallery_ids
    predictions = [[ids[column] for column in row] for row in ranking[:, : max(k)].tolist()]
    precisions = average_precisions(ranking, benchmark)
    measures = {}
    for group, rows in groups.items():
        recalls = RecallAtK(keep_in_memory=True).compute(
            predictions=[predictions[row] for row in rows],
            references=[benchmark.relevant[row] for row in rows],
            k=list(k),
        )
        measures[group] = {f"recall@{cutoff}": float(recalls[f"recall@{cutoff}"]) for cutoff in k}
        measures[group]["mAP"] = float(precisions[rows].mean())
    return measures


def average_precisions(ranking: Tensor, benchmark: RetrievalBenchmark) -> np.ndarray:
    """(Q,) the precision at the rank of each relevant picture in the ranking (Q, G), averaged over these."""
    column = {gallery_id: index for index, gallery_id in enumerate(benchmark.gallery_ids)}
    rank_of = np.empty(ranking.shape[1], dtype=np.int64)
    precisions = np.empty(len(ranking))
    for row, (order, relevant) in enumerate(zip(ranking.numpy(), benchmark.relevant, strict=True)):
        rank_of[order] = np.arange(1, len(order) + 1)
        ranks = np.sort(rank_of[[column[gallery_id] for gallery_id in relevant]])
        precisions[row] = (np.arange(1, len(ranks) + 1) / ranks).mean()
    return precisions


def format_table(result: EvaluationResult) -> str:
    """The stages as aligned rows of text, figures in percent."""
    metrics = list(result.stages["embeddings"]["all"])
    heads = [metric.replace("recall@", "R@") for metric in metrics]
    groups = result.group_sizes
    label_width = max(len(name) for name in STAGE_NAMES.values())
    block = 7 * len(metrics)
    lines = [
        " " * label_width
        + "".join(f"{f'{group} ({size} queries)':>{block}} |" for group, size in groups.items()).rstrip(" |"),
        " " * label_width + (" |".join("".join(f"{head:>7}" for head in heads) for _ in groups)),
    ]
    for stage, measures in result.stages.items():
        figures = ("".join(f"{100 * measures[group][metric]:7.2f}" for metric in metrics) for group in groups)
        lines.append(f"{STAGE_NAMES[stage]:<{label_width}}" + " |".join(figures))
    return "\n".join(lines)


def results_json(result: EvaluationResult, benchmark: RetrievalBenchmark, **context: Any) -> dict[str, Any]:
    """What `--output` holds."""
    return {
        **context,
        "queries": len(benchmark.captions),
        "gallery": len(benchmark.gallery_ids),
        "shortlist": result.shortlist,
        "fusion_weight": result.fusion_weight,
        "sca_confidence": result.sca_confidence,
        "stages": result.stages,
        "sca_report": asdict(result.sca_report),
    }


def rankings_json(result: EvaluationResult, benchmark: RetrievalBenchmark) -> dict[str, Any]:
    """What `--rankings` holds: for each query and stage the best pictures that have that stage's score."""
    ids = benchmark.gallery_ids
    queries = []
    for row, caption in enumerate(benchmark.captions):
        stages = {}
        for stage, scores in result.scores.items():
            listed = scores[row, :LISTED_PICTURES].tolist()
            columns = result.rankings[stage][row, : len(listed)].tolist()
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
    # A gallery id is the picture's path relative to the data's root.
    return {"gallery": {gallery_id: gallery_id for gallery_id in ids}, "queries": queries}


def write_json(path: Path, content: Any) -> None:
    """Writes beside and renames: the file is whole or is not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(partial, path)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--model", required=True, help="folder or Hub name of a model with its processor")
    add("--data_root", required=True, type=Path, help="PAB's folder, with annotation/ in it")
    add(
        "--split",
        choices=[split for split in SPLITS if split != "train"],
        default="test",
        help="default: test",
    )
    add(
        "--validation_fraction",
        type=float,
        help="with validation: share of train, by source video (default: 0.02)",
    )
    add("--max_validation_pairs", type=int, help="with validation: pairs at most (default: 2000)")
    add(
        "--shortlist", type=int, help="pictures re-ranked for each query (default: 128, or the whole gallery)"
    )
    add("--fusion_weight", type=float, default=0.0, help="weight of the embeddings' score (default: 0, none)")
    add(
        "--sca_confidence", choices=get_args(Confidence), default="score", help="default: score, as the paper"
    )
    add("--k", type=int, nargs="+", help="cutoffs of Recall@k (default: 1 5 10)")
    add(
        "--batch_size",
        type=int,
        default=64,
        help="images, captions or pairs in one forward pass (default: 64)",
    )
    add("--output", type=Path, help="write the figures to this JSON file")
    add("--rankings", type=Path, help="write each query's best pictures to this JSON file")
    arguments = parser.parse_args(argv)
    for name in ("validation_fraction", "max_validation_pairs"):
        if getattr(arguments, name) is not None and arguments.split != "validation":
            parser.error(f"--{name} has no effect on --split {arguments.split}")
    return arguments


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse_arguments(argv)
    accelerator = Accelerator()
    level = logging.INFO if accelerator.is_main_process else logging.ERROR
    logging.basicConfig(level=level, format="%(message)s")

    names = ("validation_fraction", "max_validation_pairs")
    cut = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    with accelerator.main_process_first():  # it fills the cache of annotations, the others find them there
        dataset = load_pab(arguments.data_root, arguments.split, **cut)
    benchmark = retrieval_split(dataset)
    model = load_model(arguments.model, dtype=torch.float32).to(accelerator.device)
    processor = TPASProcessor.from_pretrained(arguments.model)

    result = evaluate(
        model,
        processor,
        benchmark,
        arguments.data_root,
        shortlist=arguments.shortlist,
        fusion_weight=arguments.fusion_weight,
        sca_confidence=arguments.sca_confidence,
        batch_size=arguments.batch_size,
        k=arguments.k,
        annotated_at=annotation_places(dataset),
        accelerator=accelerator,
    )
    if accelerator.is_main_process:
        print(format_table(result))
        if arguments.output:
            context = {name: str(getattr(arguments, name)) for name in ("model", "data_root", "split")}
            drawn = (arguments.data_root / MANIFEST).is_file()
            context |= {
                "model_fingerprint": model_fingerprint(model),
                "data_name": "Drawn PAB" if drawn else "PAB",
                "data_fingerprint": benchmark.fingerprint,
            }
            write_json(arguments.output, results_json(result, benchmark, **context))
        if arguments.rankings:
            write_json(arguments.rankings, rankings_json(result, benchmark))
    accelerator.end_training()


if __name__ == "__main__":
    main()
