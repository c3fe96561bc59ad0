"""The whole path on drawn people, in minutes.

    tpas demo --output_dir outputs/demo

Draws a small PAB, evaluates the start checkpoint as it is (zero-shot), fine-tunes it through ``accelerate
launch``, evaluates again, calibrates, looks for people who are not there, searches two drawn films, and
writes ``index.html``: one page with the table, the loss curves, ranked images and moments. It runs the
commands that a user of a real PAB would run; the page ends with them.
"""

import json
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from ..data.drawn.synthetic_pab import DEMO_WORLD, draw_pab
from ..data.whole_files import replacing
from ..search.gallery_files import place_of_gallery
from .command_line import CommandLine, CommandResult, WrongUsage

if TYPE_CHECKING:
    from ..evaluation.absent_people import AbsentPeople
    from ..evaluation.result_files import Evaluation
    from ..figures.results import ResultRow

REPOSITORY = Path(__file__).resolve().parents[1]
STEPS = 7
MOMENTS = 3  # of films, shown
MARKER = "demo.json"
MADE_BY = "tpas demo"
CACHE = "datasets_cache"  # removed at the end
TPAS = [sys.executable, "-m", "tpas"]
ACCELERATE_LAUNCH = [sys.executable, "-m", "accelerate.commands.launch"]
# All that a demo leaves behind. A folder with anything else in it is somebody's work and is not replaced.
OUTPUT_NAMES = {MARKER, "index.html", "pab", "evaluation", "fine_tuned", "films", "logs"}


@dataclass(frozen=True)
class DemoSettings:
    """Every number of the demo. It fits in six minutes on two cores."""

    train_pairs: int = 6000
    test_pairs: int = 200
    max_train_steps: int = 300
    batch_size: int = 48
    learning_rate: float = 8e-4
    cross_modal_multiplier: float = 0.5  # of the learning rate, at all of which matching forgets
    label_smoothing: float = 0.2
    masked_language_modelling_weight: float = 1.0  # new words are learnt from the image
    warmup_ratio: float = 0.1
    max_grad_norm: float = 1.0
    augmentation: bool = False  # of use in a long training only
    validation_fraction: float = 0.02
    evaluate_every: int = 1  # epochs
    log_every: int = 5  # steps
    num_workers: int = 1
    shortlist: int = 128
    cameras: int = 2
    visits: int = 4  # of each camera
    fusion_weight: float = 0.4  # to the embeddings; chosen, as the learning rate, on seed 12
    sca_confidence: str = "score"


QUICK = replace(
    DemoSettings(),
    train_pairs=160,
    test_pairs=40,
    max_train_steps=8,
    batch_size=16,
    validation_fraction=0.05,
    log_every=1,
    cameras=1,
    visits=1,
)


# Paths in a command are relative to the demo's folder, which is renamed when all is done, or absolute.
Command = list[str | Path]


class DemoError(RuntimeError):
    """A step that failed; `log` is the output of the command that did, if it was a command."""

    def __init__(self, message: str, log: Path | None = None) -> None:
        super().__init__(message)
        self.log = log


def run_logged(
    command: Command,
    folder: Path,
    name: str,
    meanwhile: Callable[[], None] = lambda: None,
    offline: bool = True,
) -> None:
    """Runs a command in `folder` with its output in `logs/<name>.log`, calling `meanwhile` each second.

    An `offline` one never asks the network and caches nothing outside the folder.

    Raises `DemoError` with the line that says why when the command fails.
    """
    log = folder / "logs" / f"{name}.log"
    log.parent.mkdir(exist_ok=True)
    alone = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(folder / CACHE)}
    environment = os.environ | (alone if offline else {})
    words = [str(word) for word in command]
    with log.open("wb") as output:
        # A session of its own, so that what the command starts can be ended with it.
        process = subprocess.Popen(
            words,
            cwd=folder,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            while process.poll() is None:
                try:
                    process.wait(timeout=1)
                except subprocess.TimeoutExpired:
                    meanwhile()
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
                process.wait()
    if process.returncode:
        reason = reason_of_failure(log.read_text(encoding="utf-8", errors="replace"))
        raise DemoError(reason or f"{name} ended with status {process.returncode}", log)


@dataclass(frozen=True)
class Experiment:
    """What the demo measures, before anything is made of it."""

    zero_shot: "Evaluation"
    fine_tuned: "Evaluation"
    training_log: list[dict]
    commands: list[Command]
    durations: dict[str, float]


def run_experiment(
    settings: DemoSettings, start: Path, seed: int, folder: Path, run: Callable[..., None] = run_logged
) -> Experiment:
    """Draws a PAB by `seed`, evaluates the model `start`, fine-tunes it and evaluates it again, in `folder`.

    Says on the terminal what it does. `run` runs a command as `run_logged` does. Raises `DemoError` where a
    step fails.
    """
    durations: dict[str, float] = {}
    commands = [
        evaluation_command(settings, start, "zero_shot"),
        fine_tuning_command(settings, start, seed),
        evaluation_command(settings, Path("fine_tuned/best"), "fine_tuned"),
    ]

    with step(1, f"Draw {settings.train_pairs:,} training and {settings.test_pairs:,} test pairs", durations):
        pairs = {"train_pairs": settings.train_pairs, "test_pairs": settings.test_pairs}
        draw_pab(folder / "pab", world=DEMO_WORLD, seed=seed, **pairs)
    with step(2, "Evaluate the start (zero-shot)", durations):
        run(commands[0], folder, "evaluate_zero_shot")
        zero_shot = read_evaluation(folder, "zero_shot")
    with step(3, f"Fine-tune for {settings.max_train_steps} steps", durations):
        progress = TrainingProgress(folder / "fine_tuned" / "training_log.jsonl", settings.max_train_steps)
        run(commands[1], folder, "fine_tune", meanwhile=progress.show)
        training_log = progress.read()
    with step(4, "Evaluate the fine-tuned model", durations):
        run(commands[2], folder, "evaluate_fine_tuned")
        fine_tuned = read_evaluation(folder, "fine_tuned")
    return Experiment(zero_shot, fine_tuned, training_log, commands, durations)


def look_for_absent(
    settings: DemoSettings, folder: Path, run: Callable[..., None]
) -> "tuple[list[Command], AbsentPeople | None]":
    """Calibrates the fine-tuned model, and asks it for people whose images are left out.

    Returns:
        The commands that were run and what was found; nothing where too few people were drawn.
    """
    from ..data.pab import load_pab
    from ..evaluation.absent_people import search_without_them
    from ..models.loading import load_model
    from ..search.calibration import CALIBRATION, LEAST_PERSONS, Calibration

    validation = settings.train_pairs * settings.validation_fraction
    if min(validation, settings.test_pairs) < 2 * LEAST_PERSONS:  # each is drawn twice
        return [], None
    best = Path("fine_tuned", "best")
    flags = {"model": best, "data_root": Path("pab"), "validation_fraction": settings.validation_fraction}
    command: Command = [*TPAS, "calibrate", *as_flags(flags)]
    run(command, folder, "calibrate")
    calibration, pab = Calibration.load(folder / best / CALIBRATION), folder / "pab"
    dataset = load_pab(pab, "test", cache_dir=folder / CACHE)
    with tempfile.TemporaryDirectory(prefix="tpas-demo-") as gallery:
        model = load_model(str(folder / best))
        return [command], search_without_them(*model, calibration, dataset, pab, Path(gallery))


def search_films(model: str, films: Path, cameras: int = 2, visits: int = 4) -> "ResultRow":
    """Draws films into `films`, finds who passes in them by motion, and asks for the first who lies still.

    The best moments are the visits' whole frames; they are read from the gallery beside `films` when drawn.
    """
    from ..data.drawn.drawn_footage import draw_footage
    from ..figures.results import ResultRow
    from ..footage.intake import open_footage
    from ..models.loading import load_model

    truth = draw_footage(films, cameras=cameras, visits=visits, width=480, stays_s=4.0)
    text = next((visit for visit in truth if visit.pose == "lying"), truth[0]).text
    (hits,) = open_footage(films, *load_model(model)).search([text], top_k=MOMENTS)
    right = {
        hit.id
        for hit in hits
        for visit in truth
        if hit.moment is not None
        and visit.text == text
        and visit.camera == hit.moment.camera
        and visit.start_s < hit.moment.seen_s < visit.end_s
    }
    return ResultRow(text, [replace(hit, _open=hit.scene) for hit in hits], right)


def evaluation_command(settings: DemoSettings, model: Path, name: str) -> Command:
    """`tpas evaluate` on the test split, into `evaluation/<name>/`."""
    arguments = {
        "model": model,
        "data_root": Path("pab"),
        "split": "test",
        "shortlist": min(settings.shortlist, settings.test_pairs),
        "fusion_weight": settings.fusion_weight,
        "sca_confidence": settings.sca_confidence,
        "output": Path("evaluation", name, "results.json"),
        "rankings": Path("evaluation", name, "rankings.json"),
        "plots": Path("evaluation", name, "plots"),
    }
    return [*TPAS, "evaluate", *as_flags(arguments)]


def read_evaluation(folder: Path, name: str) -> "Evaluation":
    from ..evaluation.result_files import Evaluation

    written = folder / "evaluation" / name
    return Evaluation.read(written / "results.json", written / "rankings.json", image_root=folder / "pab")


def fine_tuning_command(settings: DemoSettings, start: Path, seed: int) -> Command:
    """`accelerate launch train_accelerate.py` with the demo's numbers, on one GPU if there is one."""
    training = {
        "data_root": Path("pab"),
        "output_dir": Path("fine_tuned"),
        "model_name_or_path": start,
        "max_train_steps": settings.max_train_steps,
        "batch_size": settings.batch_size,
        "learning_rate": settings.learning_rate,
        "new_parameter_multiplier": settings.cross_modal_multiplier,
        "multiplied_parameters": "cross_modal_encoder|matching_head",
        "label_smoothing": settings.label_smoothing,
        "masked_language_modelling_weight": settings.masked_language_modelling_weight,
        "warmup_ratio": settings.warmup_ratio,
        "max_grad_norm": settings.max_grad_norm,
        "augmentation": settings.augmentation,
        "validation_fraction": settings.validation_fraction,
        "evaluate_every": settings.evaluate_every,
        "fusion_weight": settings.fusion_weight,
        "log_every": settings.log_every,
        "num_workers": settings.num_workers,
        "seed": seed,
        "report_to": "none",
    }
    launch = as_flags(one_process())
    return [*ACCELERATE_LAUNCH, *launch, REPOSITORY / "train_accelerate.py", *as_flags(training)]


def one_process() -> dict[str, object]:
    """Flags of `accelerate launch` that make it the same on every machine, whatever its configuration."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {
        "num_processes": 1,
        "num_machines": 1,
        "mixed_precision": "no",
        "dynamo_backend": "no",
        # Left out, accelerate takes one thread. More than eight do not help a model of this size.
        "num_cpu_threads_per_process": os.environ.get("OMP_NUM_THREADS", min(cores, 8)),
    }


def as_flags(values: dict[str, object]) -> Command:
    return [
        word
        for name, value in values.items()
        for word in (f"--{name}", value if isinstance(value, Path) else str(value))
    ]


# --------------------------------------------------------------------------------- steps, commands, progress


@contextmanager
def step(number: int, title: str, durations: dict[str, float]) -> Iterator[None]:
    """Prints the step's heading and, when it ends, its time, which goes into `durations` in seconds."""
    print(f"[{number}/{STEPS}] {title}", flush=True)
    started = time.perf_counter()
    try:
        yield
    except (OSError, ValueError, DemoError) as error:
        raise DemoError(f"step {number} of {STEPS} failed: {error}", getattr(error, "log", None)) from error
    durations[title] = time.perf_counter() - started
    print(f"      {durations[title]:.1f} s", flush=True)


@contextmanager
def ending_tidily() -> Iterator[None]:
    """Lets `timeout` or a closed terminal end the demo as Ctrl-C does: with its clean-up."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def reason_of_failure(output: str) -> str:
    """The line of a failed command's output that says why: its last error, else its last line.

    What `accelerate launch` adds about its child is passed over.
    """
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [
        line
        for line in lines
        if re.match(r"tpas[\w ]*: |([\w.]*(Error|Exception)|[\w.]+: error)\b", line)
        and "CalledProcessError" not in line
    ]
    return (errors or lines or [""])[-1]


class TrainingProgress:
    """Follows a `training_log.jsonl` that is being written."""

    def __init__(self, path: Path, total_steps: int) -> None:
        self.path = path
        self.total_steps = total_steps
        self.shown = 0

    def read(self) -> list[dict]:
        """The finished lines so far."""
        from ..training.log import read_training_log  # torch and accelerate take seconds to import

        return read_training_log(self.path) if self.path.exists() else []

    def show(self) -> None:
        """Prints a line whenever another tenth of the steps is done."""
        losses = [line for line in self.read() if "loss" in line]
        if losses and losses[-1]["step"] - self.shown >= self.total_steps / 10:
            self.shown = losses[-1]["step"]
            print(f"      step {self.shown}/{self.total_steps}, loss {losses[-1]['loss']:.3f}", flush=True)


# ------------------------------------------------------------------------------------------------- the result


def format_table(zero_shot: Mapping[str, Any], fine_tuned: Mapping[str, Any]) -> str:
    """The table of the page as text, in percent, of two results files."""
    from ..evaluation.settings import CUTOFFS
    from ..evaluation.tables import stage_rows

    header = f"{'':38}" + "".join(f"{name:>8}" for name in (*(f"R@{cutoff}" for cutoff in CUTOFFS), "mAP"))
    lines = [header]
    for model, results in (("Zero-shot", zero_shot), ("Fine-tuned", fine_tuned)):
        lines.append(model)
        for row in stage_rows(results):
            values = (*row.recalls, row.mean_average_precision)
            lines.append(f"  {row.stage.heading:36}" + "".join(f"{100 * value:8.1f}" for value in values))
    return "\n".join(lines)


def shown_command(command: Command, output_dir: Path) -> str:
    """The command as a user would type it in the repository, for the folder that the demo ends in."""

    def shown(word: str | Path) -> str:
        if isinstance(word, str):
            return word
        path = output_dir / word
        return str(path.relative_to(REPOSITORY) if path.is_relative_to(REPOSITORY) else path)

    begun = ["accelerate", "launch"] if command[:3] == ACCELERATE_LAUNCH else ["tpas"]
    return shlex.join([*begun, *map(shown, command[3:])])


def check_output_dir(output_dir: Path) -> None:
    """Raises `DemoError` unless the folder is absent, empty or an earlier demo's own."""
    if not output_dir.exists():
        return
    if not output_dir.is_dir():
        raise DemoError(f"{output_dir} is a file: choose another --output_dir")
    names = {path.name for path in output_dir.iterdir()}
    if not names:
        return
    try:
        marker = json.loads((output_dir / MARKER).read_text(encoding="utf-8"))
        ours = isinstance(marker, dict) and marker.get("made_by") == MADE_BY
    except (OSError, ValueError):
        ours = False
    if not ours:
        raise DemoError(f"{output_dir} was not made by this demo: choose another --output_dir, or remove it")
    if names - OUTPUT_NAMES:
        raise DemoError(
            f"{output_dir} holds more than an earlier demo ({', '.join(sorted(names - OUTPUT_NAMES))}): "
            "move that elsewhere, or choose another --output_dir"
        )


def run_demo(
    settings: DemoSettings, start: Path, seed: int, output_dir: Path, run: Callable[..., None] = run_logged
) -> CommandResult:
    """The demo from the drawing to the page. `output_dir` is replaced when everything has succeeded."""
    check_output_dir(output_dir)
    failure_log = output_dir.with_name(f"{output_dir.name}.failed.log")
    with replacing(output_dir) as folder:
        folder.mkdir()
        try:
            experiment = run_experiment(settings, start, seed, folder, run)
        except DemoError as error:
            if error.log is None:
                raise
            os.replace(error.log, failure_log)
            raise DemoError(f"{error} (the whole output: {failure_log})") from error
        with step(5, "Look for people who are not there", experiment.durations):
            commands, absent = look_for_absent(settings, folder, run)
            experiment.commands.extend(commands)
        with step(
            6, f"Search {settings.cameras} drawn film{'s'[: settings.cameras > 1]}", experiment.durations
        ):
            films = folder / "films"
            best = str(folder / "fine_tuned" / "best")
            moments = search_films(best, films, settings.cameras, settings.visits)
        with step(7, "Write the page", experiment.durations):
            write_page(experiment, absent, moments, settings, start, seed, folder, output_dir)
            for unneeded in (folder / CACHE, place_of_gallery(films)):
                shutil.rmtree(unneeded, ignore_errors=True)
    failure_log.unlink(missing_ok=True)

    page, seconds = output_dir / "index.html", sum(experiment.durations.values())
    return CommandResult(
        {
            "page": str(page),
            "seconds": round(seconds, 1),
            "zero_shot": experiment.zero_shot.results["stages"],
            "fine_tuned": experiment.fine_tuned.results["stages"],
            "absent_people": None if absent is None else of_absent(absent),
        },
        f"\n{format_table(experiment.zero_shot.results, experiment.fine_tuned.results)}\n{said_of(absent)}\n"
        f"{seconds:.0f} s in all. Open {page.as_uri()}",
    )


def of_absent(absent: "AbsentPeople") -> dict[str, Any]:
    """As JSON has it."""
    values = {name: value for name, value in vars(absent).items() if name != "nearest"}
    return values | {"nearest": [hit.id for hit in absent.nearest]}


def said_of(absent: "AbsentPeople | None") -> str:
    """A line for the terminal; nothing where nobody was looked for."""
    if absent is None:
        return ""
    return (
        f'"No one like this" was said of {absent.said_of_absent} of {absent.searches} people who are not '
        f"there, and wrongly of {absent.said_of_present} of {absent.searches} who are.\n"
    )


def write_page(
    experiment: Experiment,
    absent: "AbsentPeople | None",
    moments: "ResultRow",
    settings: DemoSettings,
    start: Path,
    seed: int,
    folder: Path,
    output_dir: Path,
) -> None:
    """Writes `index.html` and the marker by which a later demo knows the folder."""
    from ..figures.report import build_report

    shown_start = start.relative_to(REPOSITORY) if start.is_relative_to(REPOSITORY) else start
    packages = ("tpas", "torch", "transformers", "accelerate", "datasets", "numpy", "pillow")
    context = {
        "arguments": {"seed": seed, "model_name_or_path": str(shown_start)} | asdict(settings),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
        "durations": experiment.durations,
        "commands": [shown_command(command, output_dir) for command in experiment.commands],
    }
    page = build_report(
        experiment.zero_shot,
        experiment.fine_tuned,
        training_log=experiment.training_log,
        next_commands=next_commands(output_dir, experiment.fine_tuned.queries[0].text, moments.text),
        absent=absent,
        moments=moments,
        **context,
    )
    (folder / "index.html").write_text(page, encoding="utf-8")
    marker = {"made_by": MADE_BY} | context
    (folder / MARKER).write_text(json.dumps(marker, indent=2) + "\n", encoding="utf-8")


def next_commands(output_dir: Path, text: str, text_of_film: str) -> list[str]:
    """Searches by the fine-tuned model, and its page on the images and on the films."""
    images, films = output_dir / "pab" / "test", output_dir / "films"
    rest = ["--model", str(output_dir / "fine_tuned" / "best")]
    return [
        shlex.join(["tpas", "search", str(images), text, *rest, "--sheet", str(output_dir / "found.html")]),
        shlex.join(["tpas", "search", str(films), text_of_film, *rest]),
        *(shlex.join(["tpas", "app", str(place), *rest]) for place in (images, films)),
    ]


app = CommandLine("tpas demo", __doc__)


def _sized(name: str, least: int) -> Any:
    small, usual = getattr(QUICK, name), getattr(DemoSettings, name)
    return Option(help=f"default: {usual}, with --quick {small}", min=least)


@app.command()
def demo(
    output_dir: Annotated[Path, Option(help="replaced if it is an earlier demo's")] = Path("outputs/demo"),
    model_name_or_path: Annotated[
        Path, Option(help="the model to start from, with its processor", show_default="demo_start/")
    ] = REPOSITORY / "demo_start",
    seed: Annotated[int, Option(help="of the drawing and the fine-tuning", min=0)] = 0,
    quick: Annotated[bool, Option(help="a smoke test: everything small, nothing learnt")] = False,
    train_pairs: Annotated[int | None, _sized("train_pairs", 2)] = None,
    test_pairs: Annotated[int | None, _sized("test_pairs", 10)] = None,  # fewer have no Recall@10
    max_train_steps: Annotated[int | None, _sized("max_train_steps", 1)] = None,
) -> CommandResult:
    if not (model_name_or_path / "config.json").is_file():
        raise WrongUsage(
            f"no model in {model_name_or_path}: run the demo from a clone of the repository, which "
            "has demo_start/, or name another with --model_name_or_path"
        )
    given = {"train_pairs": train_pairs, "test_pairs": test_pairs, "max_train_steps": max_train_steps}
    settings = replace(
        QUICK if quick else DemoSettings(),
        **{name: value for name, value in given.items() if value is not None},
    )
    try:
        with ending_tidily():
            return run_demo(settings, model_name_or_path.resolve(), seed, output_dir.resolve())
    except KeyboardInterrupt:
        raise KeyboardInterrupt("interrupted, nothing was written") from None


def main(argv: Sequence[str] | None = None) -> None:
    app.run(argv)


if __name__ == "__main__":
    main()
