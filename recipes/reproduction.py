"""What the recipes share: a row of the paper's tables is run and printed beside what the paper prints.

A recipe assembles the commands that a user would type, shows them, and runs them in its output folder. What
has ended well is not run again, so a recipe that was stopped goes on when it is started again, and recipes
that need the same model or the same evaluation find it there:

    logs/                  what each command said
    fine_tuned/<run>/      what train_accelerate.py writes
    evaluation/<run>/      results.json of tpas evaluate
    finished/<name>.json   the command that ended well
    <recipe>.json, .md     measured and the paper's
"""

import argparse
import hashlib
import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import snapshot_download

from tpas.commands.demo import (
    ACCELERATE_LAUNCH,
    REPOSITORY,
    TPAS,
    Command,
    DemoError,
    as_flags,
    ending_tidily,
    one_process,
    run_logged,
    shown_command,
)
from tpas.data.drawn import MANIFEST, is_drawn
from tpas.data.drawn.synthetic_pab import draw_pab
from tpas.data.whole_files import write_json, write_text
from tpas.evaluation.settings import CUTOFFS
from tpas.evaluation.stages import Stage

PAPER = "arXiv:2502.03230"
Recalls = tuple[float, float, float]  # Recall@1, @5, @10 in percent
Run = Callable[..., None]  # runs a command as `run_logged` does
# Rows of Table 2 and of Table 4, and what the grid looks for.
PAPER_ZERO_SHOT: Recalls = (77.86, 98.28, 99.24)

PAB_TEST_QUERIES = 1978
CHECKPOINT_EVERY = 1000  # steps; an epoch over all of PAB has some 60 times as many
FEWEST_PAIRS = 10_000  # the first row of Table 3
# So many pairs of the paper are one in miniature, where the other numbers are these.
MINIATURE_SCALE = 2000
MINIATURE_PAB = {"train_pairs": 24, "test_pairs": 12, "image_size": 96, "workers": 1}
MINIATURE_TRAINING = {"num_train_epochs": 1, "batch_size": 4, "num_workers": 0, "log_every": 1}
MINIATURE_TRAINING |= {"report_to": "none"}
MINIATURE_NOTE = (
    "In miniature: drawn people, a small model, a few steps. It shows that the recipe runs, and says nothing "
    "about the paper's figures."
)


@dataclass(frozen=True)
class Row:
    """A row of the paper.

    Attributes:
        recipe: its name for `reproduce.py`, and of what that writes.
        paper: what the paper prints.
        stages: those of our evaluation that the paper's figures may be of; where it leaves open which, all.
        pairs: to train on, `None` for all, with `fine_tuned`.
        model: what to start from unless `--model` says otherwise; `None`: X-VLM, once converted.
        system: a name for its files, where it is not X-VLM.
    """

    recipe: str
    table: int
    name: str
    paper: Recalls
    stages: tuple[str, ...]
    fine_tuned: bool = False
    pairs: int | None = None
    model: str | None = None
    system: str = ""

    @property
    def title(self) -> str:
        return f"Table {self.table}: {self.name}"


@dataclass(frozen=True)
class Workplace:
    """Where a recipe runs, from what, and what runs its commands."""

    model: str | Path
    data_root: Path
    output_dir: Path
    miniature: bool
    run: Run = run_logged


# ------------------------------------------------------------------------------------------ a row of a table


def reproduce(row: Row, argv: Sequence[str] | None = None, run: Run = run_logged) -> None:
    """The command of a recipe: runs the row, prints it beside the paper's and writes both."""
    arguments = parse_row_arguments(row, argv)
    with one_line_errors(row.recipe):
        place = prepare(arguments, arguments.model, run)
        if row.fine_tuned:
            runs = [fine_tune_and_evaluate(row, place, seed, arguments) for seed in arguments.seeds]
        else:
            name = "_".join(filter(None, (row.system, "zero_shot")))
            results = evaluate_once(place, place.model, name, {}, arguments.extra)
            runs = [{"results": results}]
        report_row(row, place, runs, row.recipe + steps_suffix(arguments))


def parse_row_arguments(row: Row, argv: Sequence[str] | None) -> argparse.Namespace:
    description = f"{row.title}, beside the paper's figures."
    parser = argparse.ArgumentParser(prog=row.recipe, description=description, allow_abbrev=False)
    add = parser.add_argument
    shown = "" if row.model is None else f" (default: {row.model})"
    add("--model", help=f"folder, Hub id or KIND:NAME of the model to start from, with its processor{shown}")
    if row.fine_tuned:
        add("--seeds", type=int, nargs="+", default=[42], help="a run for each (default: 42)")
        add_training_arguments(parser)
    else:
        add_common_arguments(parser, "tpas evaluate")
    if row.table == 3:
        equal = "as many steps as the epochs have over PAIRS pairs, so that rows differ in their data alone"
        settings = {"type": int, "nargs": "?", "const": FEWEST_PAIRS, "metavar": "PAIRS"}
        add("--equal_steps", **settings, help=f"{equal} (default: {FEWEST_PAIRS})")
    arguments = parser.parse_args(argv)
    if arguments.model is None and not arguments.miniature:
        if row.model is None:
            parser.error("give --model (and --data_root), or --miniature")
        arguments.model = row.model
    if row.fine_tuned and len(set(arguments.seeds)) < len(arguments.seeds):
        parser.error(f"argument --seeds: each only once, got {' '.join(map(str, arguments.seeds))}")
    return arguments


def fine_tune_and_evaluate(row: Row, place: Workplace, seed: int, arguments: argparse.Namespace) -> dict:
    """One run of a fine-tuned row: its seed, its sizes and the results of its evaluation."""
    of_system = f"{row.system}_" if row.system else ""
    run = f"{of_system}{row.pairs or 'all'}_pairs{steps_suffix(arguments)}_seed_{seed}"
    folder = Path("fine_tuned", run)
    weights = folder / arguments.weights
    command = fine_tuning_command(row, place, seed, folder, arguments)
    run_once(place, command, f"fine_tune_{run}", weights, place.model)
    sizes = json.loads((place.output_dir / folder / "training_arguments.json").read_text(encoding="utf-8"))
    names = ("training_pairs", "steps_as_pairs", "total_steps", "effective_batch", "num_processes")
    return {
        "seed": seed,
        "weights": arguments.weights,
        **{name: sizes[name] for name in names},
        "results": evaluate_once(place, weights, f"{run}_{arguments.weights}", {}),
    }


def fine_tuning_command(
    row: Row, place: Workplace, seed: int, folder: Path, arguments: argparse.Namespace
) -> Command:
    """`accelerate launch train_accelerate.py`; its defaults are the paper's recipe."""
    scale = MINIATURE_SCALE if place.miniature else 1
    training: dict[str, object] = {
        "data_root": place.data_root,
        "output_dir": folder,
        "model_name_or_path": place.model,
        "resume_from_checkpoint": "last",
        "seed": seed,
        "evaluate_every": 1,
    }
    if row.pairs is not None:
        training["pairs"] = row.pairs // scale
    if getattr(arguments, "equal_steps", None) is not None:
        training["steps_as_pairs"] = max(1, arguments.equal_steps // scale)
    training |= MINIATURE_TRAINING if place.miniature else {"checkpoint_every": CHECKPOINT_EVERY}
    launch: dict[str, object] = one_process() if place.miniature else {}
    if arguments.config_file is not None:
        launch = {"config_file": arguments.config_file.resolve()}
    script = REPOSITORY / "train_accelerate.py"
    return [*ACCELERATE_LAUNCH, *as_flags(launch), script, *as_flags(training), *arguments.extra]


def steps_suffix(arguments: argparse.Namespace) -> str:
    """Keeps runs at equal steps apart from the paper's recipe."""
    equal_steps = getattr(arguments, "equal_steps", None)
    return "" if equal_steps is None else f"_steps_as_{equal_steps}"


def report_row(row: Row, place: Workplace, runs: list[dict], name: str) -> None:
    """Prints the row, and writes it as `<name>.json` and `<name>.md`."""
    measured = {stage: summarise([run["results"] for run in runs], stage) for stage in Stage}
    measured = {stage: figures for stage, figures in measured.items() if figures}
    content = {
        "recipe": row.recipe,
        "title": row.title,
        "unit": "percent",
        "miniature": place.miniature,
        "model": str(place.model),
        "data_root": str(place.data_root),
        "measured": measured,
        "paper": {"source": PAPER, "may_be_of_stages": row.stages} | by_name(row.paper),
        "runs": runs_without_outcomes(runs),
    }
    report(place, name, content, row_table(row, measured, runs, place.miniature))


def row_table(row: Row, measured: dict, runs: list[dict], miniature: bool) -> str:
    """Markdown: each stage as measured, the paper's figures at the stages that they may be of."""
    results = [run["results"] for run in runs]
    compared = not miniature and is_pab(results)
    heads = ["stage", "measured", f"paper ({PAPER})", *(["measured - paper"] if compared else [])]
    rows = []
    for stage, figures in measured.items():
        cells = [Stage(stage).label, shown_summary(figures), "", ""]
        if stage in row.stages:
            means = (figures[f"recall@{k}"]["mean"] for k in CUTOFFS)
            differences = (mean - paper for mean, paper in zip(means, row.paper, strict=True))
            cells[2:] = shown_recalls(row.paper), " / ".join(f"{value:+.2f}" for value in differences)
        rows.append(cells[: len(heads)])
    lines = [f"# {row.title}", "", *table_lines(heads, rows)]
    lines += ["", f"Recall@1 / @5 / @10 in %, {shown_data(results[0])}."]
    if row.fine_tuned:
        first, several = runs[0], len(runs) > 1
        seeds = ", ".join(str(run["seed"]) for run in runs)
        lines[-1] += (
            f" Fine-tuned on {first['training_pairs']:,} pairs, steps: {first['total_steps']:,}, batch: "
            f"{first['effective_batch']}; {'mean of seeds' if several else 'seed'} {seeds}"
            f"{', ± their standard deviation' if several else ''}; {first['weights']} weights."
        )
        if first["steps_as_pairs"]:
            lines[-1] += f" As many steps as over {first['steps_as_pairs']:,} pairs: not the paper's recipe."
    if len(row.stages) > 1:
        lines += ["", "The paper does not say which of these stages its figures are of."]
    return "\n".join([*lines, *notes(results, miniature)]) + "\n"


def summarise(results: list[dict], stage: str) -> dict[str, dict[str, float]]:
    """Mean and standard deviation over the runs of each Recall@k of a stage, in percent; {} without it."""
    if stage not in results[0]["stages"]:
        return {}
    summary = {}
    for k in CUTOFFS:
        values = [100 * result["stages"][stage]["all"][f"recall@{k}"] for result in results]
        summary[f"recall@{k}"] = {"mean": statistics.fmean(values)}
        if len(values) > 1:
            summary[f"recall@{k}"]["deviation"] = statistics.stdev(values)
    return summary


def shown_summary(figures: dict[str, dict[str, float]]) -> str:
    cells = (figures[f"recall@{k}"] for k in CUTOFFS)
    return " / ".join(
        f"{cell['mean']:.2f}" + (f" ± {cell['deviation']:.2f}" if "deviation" in cell else "")
        for cell in cells
    )


def runs_without_outcomes(runs: list[dict]) -> list[dict]:
    """The runs without what only their results.json needs: query by query, which is most of it."""
    without = [{name: own for name, own in run["results"].items() if name != "outcomes"} for run in runs]
    return [run | {"results": results} for run, results in zip(runs, without, strict=True)]


# ------------------------------------------------------------------------ what the other recipes need as well


def add_common_arguments(parser: argparse.ArgumentParser, takes_extra: str) -> None:
    add = parser.add_argument
    add("--data_root", help="PAB's folder, with annotation/ in it, or a data set's Hub id")
    folder = "default: outputs/recipes, with --miniature outputs/recipes_miniature"
    add("--output_dir", type=Path, help=folder)
    people = "drawn people, the demo's start and a few steps"
    unless = "where --model and --data_root do not say otherwise"
    add("--miniature", action="store_true", help=f"{people}, {unless}: shows that the recipe runs")
    add("extra", nargs="*", metavar="-- FLAG", help=f"after --: more flags, for {takes_extra}")


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of a recipe that fine-tunes."""
    add = parser.add_argument
    add_common_arguments(parser, "train_accelerate.py")
    add("--config_file", type=Path, help="accelerate's, such as recipes/accelerate/single_gpu.yaml")
    which = "to evaluate: the best on held-out training pairs, or the last (default: best)"
    add("--weights", choices=["best", "last"], default="best", help=which)


def prepare(arguments: argparse.Namespace, model: str | None, run: Run = run_logged) -> Workplace:
    """Finds or draws the data, and makes the output folder.

    Raises:
        ValueError: no data are given, or there are none of that name.
    """
    name = "recipes_miniature" if arguments.miniature else "recipes"
    output_dir = (arguments.output_dir or Path("outputs", name)).resolve()
    output_dir.mkdir(parents=True, exist_ok=True)
    if arguments.data_root is not None:
        data_root = find_data(arguments.data_root)
    elif arguments.miniature:
        data_root = draw_pab(output_dir / "pab", **MINIATURE_PAB)
    else:
        raise ValueError("give --data_root, PAB's folder or a data set's Hub id, or --miniature")
    found = REPOSITORY / "demo_start" if model is None else local_or_hub(model)
    return Workplace(found, data_root, output_dir, arguments.miniature, run)


def local_or_hub(model: str) -> str | Path:
    """A folder as an absolute path, because commands run in the output folder; a Hub id as it is."""
    return Path(model).resolve() if Path(model).exists() else model


def find_data(data_root: str) -> Path:
    if Path(data_root).is_dir():
        return Path(data_root).resolve()
    try:
        return Path(snapshot_download(data_root, repo_type="dataset"))
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"--data_root {data_root}: no such folder, nor a data set ({reason})") from error


def evaluate_once(
    place: Workplace, model: str | Path, name: str, flags: dict[str, object], extra: Sequence[str] = ()
) -> dict:
    """What `tpas evaluate` writes of the test split, from `evaluation/<name>/results.json`."""
    results = Path("evaluation", name, "results.json")
    arguments = {"model": model, "data_root": place.data_root, "split": "test", "output": results}
    command = [*TPAS, "evaluate", *as_flags(arguments | flags), *extra]
    run_once(place, command, f"evaluate_{name}", results, model)
    return json.loads((place.output_dir / results).read_text(encoding="utf-8"))


def run_once(place: Workplace, command: Command, name: str, product: Path, model: str | Path) -> None:
    """Runs a command in the output folder, unless it ended well before on the same `model`.

    Its `product`, a file or folder that appears whole or not at all, is relative to the output folder.
    """
    marker = place.output_dir / "finished" / f"{name}.json"
    words = [str(word) for word in command[1:]]
    weights = weights_digest(place.output_dir / model) if isinstance(model, Path) else model
    as_before = {"command": words, "model": weights}  # what an earlier version wrote
    # Their content in place of where they lie.
    content = {str(place.data_root): annotations_digest(place.data_root), str(model): weights}
    wanted = {"command": [content.get(word, word) for word in words]}
    print(f"$ {shown_command(command, place.output_dir)}", flush=True)
    ended = is_marked(marker, wanted) or is_marked(marker, as_before)
    if ended and (place.output_dir / product).exists():
        print(f"  has ended well before; to run it again, remove {marker}", flush=True)
        return
    marker.unlink(missing_ok=True)
    print(f"  says: {place.output_dir / 'logs' / name}.log", flush=True)
    place.run(command, place.output_dir, name, offline=place.miniature)
    write_json(marker, wanted)


def is_marked(marker: Path, wanted: dict) -> bool:
    try:
        return json.loads(marker.read_text(encoding="utf-8")) == wanted
    except (OSError, ValueError):
        return False


def weights_digest(model: Path) -> str:
    """Of the weight files of a model's folder, or of a checkpoint's file."""
    digest = hashlib.blake2b(digest_size=8)
    files = [model] if model.is_file() else sorted(model.glob("*.safetensors"))  # an adapter's as well
    for path in files:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "blake2b").digest())
    return digest.hexdigest()


def annotations_digest(data_root: Path) -> str:
    """Of all annotation files, by their names and contents, and of what says that the data are drawn."""
    digest = hashlib.blake2b(digest_size=8)
    for path in sorted([*(data_root / "annotation").rglob("*.json"), *data_root.glob(MANIFEST)]):
        digest.update(path.relative_to(data_root).as_posix().encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "blake2b").digest())
    return digest.hexdigest()


@contextmanager
def one_line_errors(recipe: str) -> Iterator[None]:
    """Ends the recipe with one line where something fails, as the repository's commands do."""
    try:
        with ending_tidily():
            yield
    except (DemoError, OSError, ValueError) as error:
        log = getattr(error, "log", None)
        raise SystemExit(f"{recipe}: {error}" + (f" (the whole output: {log})" if log else "")) from error
    except KeyboardInterrupt:
        raise SystemExit(f"{recipe}: interrupted; the same command goes on from here") from None


def recalls_of(results: dict, stage: str) -> Recalls:
    return tuple(100 * results["stages"][stage]["all"][f"recall@{k}"] for k in CUTOFFS)


def shown_recalls(recalls: Recalls) -> str:
    return " / ".join(f"{recall:.2f}" for recall in recalls)


def by_name(recalls: Recalls) -> dict[str, float]:
    return {f"recall@{k}": recall for k, recall in zip(CUTOFFS, recalls, strict=True)}


def table_lines(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    lines = [f"| {' | '.join(map(str, cells))} |" for cells in (heads, *rows)]
    return [lines[0], "|---" * len(heads) + "|", *lines[1:]]


def report(place: Workplace, name: str, content: dict, table: str) -> None:
    """Prints the table, and writes `<name>.json` and `<name>.md`."""
    write_json(place.output_dir / f"{name}.json", content)
    write_text(place.output_dir / f"{name}.md", table)
    print(f"\n{table}")


def is_pab(results: Sequence[dict]) -> bool:
    """Whether the results may be of PAB's test split: a name alone says nothing."""
    drawn = any(is_drawn(Path(result["data_root"])) for result in results)
    return not drawn and all(result["queries"] == PAB_TEST_QUERIES for result in results)


def shown_data(results: dict) -> str:
    name = f"{results['dataset_name']}, " if "dataset_name" in results else ""  # not an earlier version's
    return f"{name}{results['split']}, {results['queries']:,} queries"


def notes(results: Sequence[dict], miniature: bool) -> list[str]:
    """The closing lines of a table, each after an empty one."""
    if miniature:
        return ["", MINIATURE_NOTE]
    other = f"Not PAB's {PAB_TEST_QUERIES:,} test queries: the paper's figures say nothing about these."
    return [] if is_pab(results) else ["", other]
