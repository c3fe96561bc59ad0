"""Measures text-to-image retrieval on PAB, stage by stage, zero-shot or fine-tuned.

    python evaluate_retrieval.py --model MODEL --data_root PAB --output results.json

Stages: the embeddings alone; their best pictures re-ranked by cross-modal matching; with `--fusion_weight` a
weighted sum of both; Similarity Coverage Analysis (SCA) on top. Prints Recall@k and mAP in percent, over all
queries and over the normal and the anomalous ones; the files hold all else. `accelerate launch` shares the
work out; the numbers stay, to the bit. `tpas compare` tests one `--output` against another. Models of others,
such as CLIP, SigLIP, BLIP and open_clip's, go the same way: see `tpas.retrieval_models.loading`.
"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from accelerate import Accelerator

from tpas.evaluation.arguments import (
    add_ranking_arguments,
    load_for_ranking,
    load_matcher_for_ranking,
    ranking_settings,
)
from tpas.evaluation.pictures import annotation_places, find_distractors
from tpas.evaluation.result_files import rankings_json, results_json, write_json, write_scores, write_text
from tpas.evaluation.retrieval import EvaluationResult, evaluate
from tpas.evaluation.significance import confidence_intervals
from tpas.evaluation.tables import Intervals, format_table, markdown_report
from tpas.pab import SPLITS, load_pab, retrieval_split
from tpas.retrieval_stages import model_fingerprint
from tpas.score_files import check_suffix
from tpas.synthetic_pab import MANIFEST


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
    add(
        "--model",
        required=True,
        help="folder or Hub name of a model with its processor, or KIND:NAME (tpas.retrieval_models.loading)",
    )
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
        metavar="FILE",
        help="write the shortlists' scores as score files, .npz or .safetensors; NAME.npz becomes "
        "NAME.embeddings.npz, NAME.matching.npz, ...",
    )
    arguments = parser.parse_args(argv)
    for name in ("validation_fraction", "max_validation_pairs"):
        if getattr(arguments, name) is not None and arguments.split != "validation":
            parser.error(f"--{name} has no effect on --split {arguments.split}")
    if arguments.seed < 0:  # numpy would refuse it, but only once all is ranked
        parser.error(f"--seed must be at least 0, got {arguments.seed}")
    return arguments


def run(arguments: argparse.Namespace, accelerator: Accelerator) -> None:
    """Evaluates, prints and writes. Every process must call it; the main one reports."""
    if arguments.scores:
        check_suffix(arguments.scores)
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
        matcher=load_matcher_for_ranking(arguments, accelerator.device),
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
            if arguments.matcher is not None:
                context["matcher"] = arguments.matcher
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
