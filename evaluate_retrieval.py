"""Measures text-to-image retrieval on PAB, stage by stage, zero-shot or fine-tuned.

    python evaluate_retrieval.py --model MODEL --data_root PAB --output results.json

Stages: the embeddings alone; their best pictures re-ranked by cross-modal matching; with `--fusion_weight` a
weighted sum of both; Similarity Coverage Analysis (SCA) on top. Prints Recall@k and mAP in percent, over all
queries and over the normal and the anomalous ones; the files hold all else. `accelerate launch` shares the
work out; the numbers stay, to the bit. `tpas compare` tests one `--output` against another.
"""

import argparse
import logging
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import get_args

import torch
from accelerate import Accelerator

from tpas.evaluation.pictures import annotation_places, find_distractors
from tpas.evaluation.ranking import SCASettings
from tpas.evaluation.result_files import rankings_json, results_json, write_json, write_scores, write_text
from tpas.evaluation.retrieval import EvaluationResult, evaluate
from tpas.evaluation.significance import confidence_intervals
from tpas.evaluation.tables import Intervals, format_table, markdown_report
from tpas.lora import load_model
from tpas.modeling_tpas import TPASModel
from tpas.pab import SPLITS, load_pab, retrieval_split
from tpas.processing_tpas import TPASProcessor
from tpas.sca import Confidence, Mode
from tpas.search import model_fingerprint
from tpas.synthetic_pab import MANIFEST


def add_ranking_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that say how a gallery is ranked; `load_for_ranking` and `ranking_settings` read them."""
    add = parser.add_argument
    add(
        "--shortlist", type=int, help="pictures re-ranked for each query (default: 128, or the whole gallery)"
    )
    add("--fusion_weight", type=float, default=0.0, help="weight of the embeddings' score (default: 0, none)")
    add("--max_text_length", type=int, help="tokens at which a caption is cut (default: the processor's)")
    add("--image_size", type=int, help="pixels a side, the model is resized to it (default: the model's)")
    add(
        "--sca_confidence", choices=get_args(Confidence), default="score", help="default: score, as the paper"
    )
    add("--sca_mode", choices=get_args(Mode), default="deferred", help="default: deferred")
    add("--sca_max_shift", type=int, default=1, help="places a query may move down (default: 1)")
    add("--sca_tau", type=float, default=0.0, help="confidences so close are left alone (default: 0)")
    add("--sca_capacity", type=int, default=1, help="queries that a picture may answer (default: 1)")
    add(
        "--batch_size",
        type=int,
        default=64,
        help="pictures that a process reads at once (default: 64); changes memory and speed, never a figure",
    )
    add(
        "--token_memory",
        type=float,
        default=4.0,
        metavar="GIB",
        help="of the pictures' tokens that a process keeps between the stages (default: 4); shortlisted "
        "pictures beyond it are encoded twice",
    )


def ranking_settings(arguments: argparse.Namespace) -> dict:
    """Keyword arguments of `rank_gallery` and `evaluate`, but the shortlist."""
    return {
        "fusion_weight": arguments.fusion_weight,
        "sca": SCASettings(**{f.name: getattr(arguments, f"sca_{f.name}") for f in fields(SCASettings)}),
        "batch_size": arguments.batch_size,
        "token_memory": int(arguments.token_memory * 2**30),
    }


def load_for_ranking(arguments: argparse.Namespace, device: torch.device) -> tuple[TPASModel, TPASProcessor]:
    """The model in fp32 and its processor, at the size and length asked for.

    Raises:
        ValueError: for a text length that the model cannot take, or an image size that does not fit it.
    """
    model = load_model(arguments.model, dtype=torch.float32)
    processor = TPASProcessor.from_pretrained(arguments.model)
    if arguments.image_size is not None:
        model.resize_image(arguments.image_size)
        processor.image_size = arguments.image_size
    if arguments.max_text_length is not None:
        longest = model.config.text_config.max_position_embeddings
        if not 3 <= arguments.max_text_length <= longest:
            raise ValueError(
                f"--max_text_length must be between 3 and the model's {longest} positions, "
                f"got {arguments.max_text_length}"
            )
        processor.max_text_length = arguments.max_text_length
    return model.to(device), processor


def interval_figures(result: EvaluationResult, seed: int) -> Intervals:
    """The bootstrap interval of each figure, by stage and group."""
    intervals = {}
    for stage in result.stages:
        queries = result.query_figures(stage)
        intervals[stage] = {
            group: confidence_intervals([queries[row] for row in rows], seed=seed)
            for group, rows in result.group_rows.items()
        }
    return intervals


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
        "--gallery",
        type=Path,
        metavar="DISTRACTORS",
        help="pictures to add to the gallery: a folder, or a text file with a path a line, relative to it",
    )
    add_ranking_arguments(parser)
    add("--k", type=int, nargs="+", help="cutoffs of Recall@k (default: 1 5 10)")
    add("--seed", type=int, default=0, help="of the bootstrap (default: 0)")
    add("--output", type=Path, metavar="JSON", help="write all figures, and every query's outcome")
    add("--rankings", type=Path, metavar="JSON", help="write each query's best pictures")
    add("--markdown", type=Path, metavar="FILE", help="write all figures as a Markdown table")
    add("--plots", type=Path, metavar="FOLDER", help="draw recall curves, score distributions, collisions")
    add(
        "--scores",
        type=Path,
        metavar="NPZ",
        help="write the shortlists' scores; NAME.npz becomes NAME.embeddings.npz, NAME.matching.npz, ...",
    )
    arguments = parser.parse_args(argv)
    for name in ("validation_fraction", "max_validation_pairs"):
        if getattr(arguments, name) is not None and arguments.split != "validation":
            parser.error(f"--{name} has no effect on --split {arguments.split}")
    return arguments


def run(arguments: argparse.Namespace, accelerator: Accelerator) -> None:
    """Evaluates, prints and writes. Every process must call it; the main one reports."""
    names = ("validation_fraction", "max_validation_pairs")
    cut = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    root = arguments.data_root
    with accelerator.main_process_first():  # it fills the cache of annotations, the others find them there
        dataset = load_pab(root, arguments.split, **cut)
    own = list(dict.fromkeys(dataset["image"]))
    distractors = find_distractors(arguments.gallery, root, own) if arguments.gallery else {}
    benchmark = retrieval_split(dataset, gallery=[*own, *distractors])
    model, processor = load_for_ranking(arguments, accelerator.device)
    result = evaluate(
        model,
        processor,
        benchmark,
        root,
        shortlist=arguments.shortlist,
        **ranking_settings(arguments),
        k=arguments.k,
        annotated_at=annotation_places(dataset),
        elsewhere=distractors,
        accelerator=accelerator,
    )
    if accelerator.is_main_process:
        print(format_table(result))
        intervals = interval_figures(result, arguments.seed) if arguments.output or arguments.markdown else {}
        data_name = "Drawn PAB" if (root / MANIFEST).is_file() else "PAB"
        if arguments.output:
            context = {name: str(getattr(arguments, name)) for name in ("model", "data_root", "split")}
            context |= {
                "image_size": processor.image_size,
                "max_text_length": processor.max_text_length,
                "model_fingerprint": model_fingerprint(model),
                "data_name": data_name,
                "data_fingerprint": benchmark.fingerprint,
                "distractors": len(distractors),
            }
            content = results_json(result, benchmark, intervals, arguments.seed, **context)
            write_json(arguments.output, content)
        if arguments.rankings:
            write_json(arguments.rankings, rankings_json(result, benchmark, distractors))
        if arguments.markdown:
            title = f"{arguments.model} on {data_name}, {arguments.split}"
            write_text(arguments.markdown, markdown_report(result, intervals, title))
        if arguments.scores:
            write_scores(
                arguments.scores,
                benchmark.query_ids,
                benchmark.gallery_ids,
                result.rankings,
                result.scores,
            )
        if arguments.plots:
            from tpas.evaluation.plots import write_plots  # matplotlib takes a second to import

            write_plots(arguments.plots, result, benchmark)


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse_arguments(argv)
    accelerator = Accelerator()
    level = logging.INFO if accelerator.is_main_process else logging.ERROR
    logging.basicConfig(level=level, format="%(message)s")
    try:
        run(arguments, accelerator)
    except (OSError, ValueError) as error:
        raise SystemExit(f"tpas evaluate: {error}") from error
    accelerator.end_training()


if __name__ == "__main__":
    main()
