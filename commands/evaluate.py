"""Measures text-to-image retrieval on PAB or data of your own, stage by stage, zero-shot or fine-tuned.

    tpas evaluate --model MODEL --data_root PAB --output results.json
    tpas evaluate --model openai/clip-vit-base-patch32 --data_root photos/pairs.csv
    tpas evaluate --scores fused.npz theirs.trec --data_root PAB

Stages: the embeddings alone; their best images re-ranked by cross-modal matching; with `--fusion_weight` a
weighted sum of both; Similarity Coverage Analysis (SCA) on top. Prints Recall@k and mAP in percent, over all
queries and over the normal and the anomalous ones; the files hold all else. `accelerate launch` shares the
work out; the numbers stay, to the bit. `tpas compare` tests one `--output` against another, and `tpas report`
makes one table of many. Models of others, such as CLIP, SigLIP, BLIP and open_clip's, go the same way: see
`tpas.models.loading`.

With `--scores` score files of any system are measured, a line each: what `tpas rerank`, `tpas fuse` and
`--write_scores` wrote, or TREC runs. Queries and images are matched by name. What a file does not score comes
last, and a right image among it is not found.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from ..data.annotation_fields import EvaluatedSplit
from ..data.image_folders import FolderRules
from ..data.whole_files import check_place
from ..evaluation.arguments import RankingArguments, flag
from .command_line import CommandLine, CommandResult, WrongUsage, is_main_process

if TYPE_CHECKING:
    from ..evaluation.retrieval import EvaluationResult
    from ..evaluation.tables import Intervals

app = CommandLine("tpas evaluate", __doc__)


@dataclass
class ResultFiles:
    """What is written. Each field is a flag."""

    output: Path | None = flag(None, "write all figures, and every query's outcome, as JSON")
    rankings: Path | None = flag(None, "write each query's best images, as JSON")
    markdown: Path | None = flag(None, "write all figures as a Markdown table")
    plots: Path | None = flag(None, "folder to draw curves, and some queries with their images in")
    write_scores: Path | None = flag(
        None,
        "with --model: write the shortlists' scores as score files, .npz, .safetensors, .trec or .run; "
        "NAME.npz becomes NAME.embeddings.npz, NAME.matching.npz, ...",
    )
    qrels: Path | None = flag(
        None, "write which images are right as TREC's relevance file, for trec_eval, ir-measures and ranx"
    )

    def check(self) -> None:
        """Refuses what could not be written, before the gallery is ranked for hours."""
        if self.write_scores:
            from ..reranking.score_files import check_suffix

            check_suffix(self.write_scores)
        a_plot = None
        if self.plots:
            from ..figures.evaluation_plots import RECALL_CURVE  # matplotlib takes a second to import

            a_plot = self.plots / RECALL_CURVE
        for path in (self.output, self.rankings, self.markdown, self.write_scores, self.qrels, a_plot):
            if path:
                check_place(path)


@dataclass
class Measured:
    """What is measured on. Each field is a flag."""

    data_root: Path = field(
        metadata={
            "help": "pairs of images and texts: a folder of PAB or in its layout, a table (.csv, .tsv, "
            ".jsonl, .json, .parquet), an imagefolder, CUHK-PEDES, ICFG-PEDES or RSTPReid, or hf:OWNER/NAME"
        }
    )
    split: EvaluatedSplit = flag("test", "of these pairs")
    image_root: Path | None = flag(
        None, "folder of the images, if not as --data_root says (default: beside the table)"
    )
    dataset_name: str | None = flag(
        None, "what the data are called in tables, files and cards (default: their own name)"
    )
    validation_fraction: float | None = flag(
        None, "with validation: share of train, by source video (default: 0.02)"
    )
    max_validation_pairs: int | None = flag(None, "with validation: pairs at most (default: 2000)")
    gallery: Path | None = flag(
        None, "images to add to the gallery: a folder, or a text file with a path a line, relative to it"
    )
    k: list[int] | None = flag(None, "cutoffs of Recall@k (default: 1 5 10)")

    def __post_init__(self) -> None:
        """Raises ValueError for a setting of the validation split with another one."""
        cut = {name: getattr(self, name) for name in ("validation_fraction", "max_validation_pairs")}
        self.cut = {name: value for name, value in cut.items() if value is not None}
        if self.cut and self.split != "validation":
            raise ValueError(f"--{next(iter(self.cut))} has no effect on --split {self.split}")

    def open(self, rules: FolderRules, check_images: bool) -> None:
        """Reads the annotations, and finds the distractors: `data`, `pairs`, `distractors`, `benchmark`."""
        from ..data import pab
        from ..data.distractors import find_distractors
        from ..data.retrieval_data import RetrievalData

        self.data = RetrievalData.open(self.data_root, self.image_root)
        self.pairs = self.data.pairs(self.split, **self.cut)
        if check_images:
            self.data.check_images(self.pairs)
        own = list(dict.fromkeys(self.pairs["image"]))
        root, added = self.data.image_root, self.gallery
        self.distractors = find_distractors(added, root, own, rules) if added else {}
        self.benchmark = pab.retrieval_split(self.pairs, gallery=[*own, *self.distractors])

    @property
    def context(self) -> dict[str, Any]:
        """What a result says of it."""
        return {
            "data_root": str(self.data_root),
            "split": self.split,
            "dataset_name": self.dataset_name or self.data.name,
            "data_fingerprint": self.benchmark.fingerprint,
            "distractors": len(self.distractors),
        }


@app.command()
def evaluate(
    measured: Measured,
    ranking: RankingArguments,
    files: ResultFiles,
    rules: FolderRules,
    model: Annotated[
        str | None,
        Option(help="folder or Hub name of a model with its processor, or KIND:NAME of another's"),
    ] = None,
    scores: Annotated[
        list[Path] | None,
        Option(
            help="score files to measure in place of --model: .npz, .safetensors, or TREC runs, .trec or .run"
        ),
    ] = None,
    seed: Annotated[int, Option(help="of the bootstrap, and of the queries that are drawn", min=0)] = 0,
) -> CommandResult | None:
    if (model is None) == (not scores):
        both = " (--scores is read; --write_scores is for a model's)" if scores else ""
        raise WrongUsage(f"give either --model or --scores{both}")
    if scores:
        return evaluate_scores(scores, measured, ranking, files, rules, seed)
    assert model is not None  # as checked above
    files.check()

    from accelerate import Accelerator

    from ..data.pab import annotation_places
    from ..evaluation.retrieval import evaluate
    from ..models.fingerprints import model_fingerprint
    from ..models.unread_texts import warn_of_unread
    from ..training.processes import main_process_first
    from ..training.run_folder import arguments_of_run

    accelerator = Accelerator()
    with main_process_first(accelerator):  # it fills the cache of annotations, the others find them there
        measured.open(rules, check_images=True)
    pairs, benchmark = measured.pairs, measured.benchmark
    training = arguments_of_run(Path(model))
    network, processor = ranking.load(model, accelerator.device)
    if accelerator.is_main_process:
        places = [f"{file}, line {line}" for file, line in zip(pairs["file"], pairs["line"], strict=True)]
        warn_of_unread(processor, pairs["caption"], places)
    result = evaluate(
        network,
        processor,
        benchmark,
        measured.data.image_root,
        shortlist=ranking.shortlist,
        matcher=ranking.load_matcher(accelerator.device),
        **ranking.settings(),
        k=measured.k,
        annotated_at=annotation_places(pairs),
        elsewhere=measured.distractors,
        follow_links=rules.follow_links,
        accelerator=accelerator,
    )
    accelerator.end_training()
    if not accelerator.is_main_process:
        return None

    context = {"model": model} | ({} if training is None else {"training": training}) | measured.context
    if ranking.matcher:
        read = min(ranking.matcher_shortlist, len(benchmark.gallery_ids))
        context |= {"matcher": ranking.matcher, "matcher_shortlist": read}
    context |= {
        "image_size": processor.image_size,
        "max_text_length": processor.max_text_length,
        "model_fingerprint": model_fingerprint(network),
    }
    return write(files, result, measured, seed, context)


def evaluate_scores(
    paths: list[Path],
    measured: Measured,
    ranking: RankingArguments,
    files: ResultFiles,
    rules: FolderRules,
    seed: int,
) -> CommandResult | None:
    """Measures score files, and writes what is asked for; the main process alone."""
    for given in fields(ranking):
        if getattr(ranking, given.name) != given.default:
            raise WrongUsage(f"--{given.name} is for a --model: score files are measured as they are")
    if files.write_scores:
        raise WrongUsage(
            "--write_scores is for a --model: tpas rerank and tpas fuse write score files of score files"
        )
    from ..reranking.score_files import named_score_files

    files.check()
    if not is_main_process():  # one process is enough for it
        return None
    systems = named_score_files(paths)

    from ..evaluation.scored import measure_scores

    measured.open(rules, check_images=False)
    added = f" with {measured.gallery}" if measured.gallery else ""
    about = f"the {measured.split} split of {measured.data_root}{added}"
    result = measure_scores(systems, measured.benchmark, about, k=measured.k)
    named = {name: str(path) for name, path in zip(systems, paths, strict=True)}
    return write(files, result, measured, seed, {"scores": named} | measured.context)


def write(
    files: ResultFiles,
    result: "EvaluationResult",
    measured: Measured,
    seed: int,
    context: dict[str, Any],
) -> CommandResult:
    """Writes the files that are asked for; `context` says in them what was measured with what."""
    from ..data.whole_files import write_json, write_text
    from ..evaluation.result_files import rankings_json, results_json, write_scores
    from ..evaluation.tables import format_table, markdown_report
    from ..reranking.trec_files import qrels_lines

    benchmark, distractors = measured.benchmark, measured.distractors

    @cache  # the intervals take seconds
    def content() -> dict[str, Any]:
        return results_json(result, benchmark, interval_figures(result, seed), seed, **context)

    if files.output:
        write_json(files.output, content())
    if files.rankings:
        write_json(files.rankings, rankings_json(result, benchmark, distractors))
    if files.markdown:
        system = context.get("model") or ", ".join(context["scores"])
        title = f"{system} on {context['dataset_name']}, {context['split']}"
        write_text(files.markdown, markdown_report(result, content()["confidence"]["stages"], title))
    if files.qrels:
        write_text(files.qrels, "".join(qrels_lines(benchmark.query_ids, benchmark.relevant)))
    if files.write_scores:
        ids = benchmark.query_ids, benchmark.gallery_ids
        write_scores(files.write_scores, *ids, result.rankings, result.scores)
    if files.plots:
        from ..figures.evaluation_plots import write_plots

        write_plots(files.plots, result, benchmark, measured.data.image_root, distractors, seed)
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
