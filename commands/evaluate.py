"""Measures text-to-image retrieval on PAB, stage by stage, zero-shot or fine-tuned.

    tpas evaluate --model MODEL --data_root PAB --output results.json

Stages: the embeddings alone; their best images re-ranked by cross-modal matching; with `--fusion_weight` a
weighted sum of both; Similarity Coverage Analysis (SCA) on top. Prints Recall@k and mAP in percent, over all
queries and over the normal and the anomalous ones; the files hold all else. `accelerate launch` shares the
work out; the numbers stay, to the bit. `tpas compare` tests one `--output` against another. Models of others,
such as CLIP, SigLIP, BLIP and open_clip's, go the same way: see `tpas.models.loading`.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from typer import Option

from ..data.whole_files import check_place
from ..evaluation.arguments import RankingArguments
from .command_line import CommandLine, CommandResult, WrongUsage

if TYPE_CHECKING:
    from ..evaluation.retrieval import EvaluationResult
    from ..evaluation.tables import Intervals

app = CommandLine("tpas evaluate", __doc__)


@app.command()
def evaluate(
    model: Annotated[
        str, Option(help="folder or Hub name of a model with its processor, or KIND:NAME of another's")
    ],
    data_root: Annotated[Path, Option(help="PAB's folder, with annotation/ in it")],
    ranking: RankingArguments,
    split: Annotated[Literal["validation", "test", "ucc"], Option()] = "test",
    validation_fraction: Annotated[
        float | None, Option(help="with validation: share of train, by source video (default: 0.02)")
    ] = None,
    max_validation_pairs: Annotated[
        int | None, Option(help="with validation: pairs at most (default: 2000)")
    ] = None,
    gallery: Annotated[
        Path | None,
        Option(
            help="images to add to the gallery: a folder, or a text file with a path a line, relative to it"
        ),
    ] = None,
    k: Annotated[list[int] | None, Option(help="cutoffs of Recall@k (default: 1 5 10)")] = None,
    seed: Annotated[int, Option(help="of the bootstrap, and of the queries that are drawn", min=0)] = 0,
    output: Annotated[
        Path | None, Option(help="write all figures, and every query's outcome, as JSON")
    ] = None,
    rankings: Annotated[Path | None, Option(help="write each query's best images, as JSON")] = None,
    markdown: Annotated[Path | None, Option(help="write all figures as a Markdown table")] = None,
    plots: Annotated[
        Path | None, Option(help="folder to draw curves, collisions, and some queries with their images in")
    ] = None,
    scores: Annotated[
        Path | None,
        Option(
            help="write the shortlists' scores as score files, .npz or .safetensors; NAME.npz becomes "
            "NAME.embeddings.npz, NAME.matching.npz, ..."
        ),
    ] = None,
) -> CommandResult | None:
    from accelerate import Accelerator

    from ..data.distractors import find_distractors
    from ..data.drawn import is_drawn
    from ..data.pab import annotation_places, load_pab, retrieval_split
    from ..data.whole_files import write_json, write_text
    from ..engine.retrieval_stages import model_fingerprint
    from ..evaluation.result_files import rankings_json, results_json, write_scores
    from ..evaluation.retrieval import evaluate
    from ..evaluation.tables import format_table, markdown_report
    from ..reranking.score_files import check_suffix

    cut = {"validation_fraction": validation_fraction, "max_validation_pairs": max_validation_pairs}
    cut = {name: value for name, value in cut.items() if value is not None}
    if cut and split != "validation":
        raise WrongUsage(f"--{next(iter(cut))} has no effect on --split {split}")
    # What can be refused is, before the gallery is ranked for hours.
    if scores:
        check_suffix(scores)
    if plots:
        from ..figures.evaluation_plots import write_plots  # matplotlib takes a second to import
    for path in (output, rankings, markdown, scores, plots and plots / "collisions.png"):
        if path:
            check_place(path)
    accelerator = Accelerator()
    with accelerator.main_process_first():  # it fills the cache of annotations, the others find them there
        dataset = load_pab(data_root, split, **cut)
    own = list(dict.fromkeys(dataset["image"]))
    distractors = find_distractors(gallery, data_root, own) if gallery else {}
    benchmark = retrieval_split(dataset, gallery=[*own, *distractors])
    network, processor = ranking.load(model, accelerator.device)
    result = evaluate(
        network,
        processor,
        benchmark,
        data_root,
        shortlist=ranking.shortlist,
        matcher=ranking.load_matcher(accelerator.device),
        **ranking.settings(),
        k=k,
        annotated_at=annotation_places(dataset),
        elsewhere=distractors,
        accelerator=accelerator,
    )
    accelerator.end_training()
    if not accelerator.is_main_process:
        return None
    of_matcher = {}
    if ranking.matcher:
        read = min(ranking.matcher_shortlist, len(benchmark.gallery_ids))
        of_matcher = {"matcher": ranking.matcher, "matcher_shortlist": read}
    data_name = "Drawn PAB" if is_drawn(data_root) else "PAB"
    context = {
        "model": model,
        "data_root": str(data_root),
        "split": split,
        **of_matcher,
        "image_size": processor.image_size,
        "max_text_length": processor.max_text_length,
        "model_fingerprint": model_fingerprint(network),
        "data_name": data_name,
        "data_fingerprint": benchmark.fingerprint,
        "distractors": len(distractors),
    }

    @cache  # they take seconds
    def intervals() -> "Intervals":
        return interval_figures(result, seed)

    def content() -> dict[str, Any]:
        return results_json(result, benchmark, intervals(), seed, **context)

    if output:
        write_json(output, content())
    if rankings:
        write_json(rankings, rankings_json(result, benchmark, distractors))
    if markdown:
        title = f"{model} on {data_name}, {split}"
        write_text(markdown, markdown_report(result, intervals(), title))
    if scores:
        write_scores(scores, benchmark.query_ids, benchmark.gallery_ids, result.rankings, result.scores)
    if plots:
        write_plots(plots, result, benchmark, data_root, distractors, seed)
    return CommandResult(content, format_table(result))


def interval_figures(result: "EvaluationResult", seed: int) -> "Intervals":
    """The bootstrap interval of each figure, by stage and group."""
    from tqdm import tqdm

    from ..evaluation.significance import confidence_intervals

    intervals = {}
    bar = tqdm(result.stages, desc="bootstrap intervals", unit="stage", leave=False, disable=None)
    for stage in bar:
        queries = result.query_figures(stage)
        intervals[stage] = {
            group: confidence_intervals([queries[row] for row in rows], seed=seed)
            for group, rows in result.group_rows.items()
        }
    return intervals


def main(argv: Sequence[str] | None = None) -> None:
    app.run(argv)


if __name__ == "__main__":
    main()
