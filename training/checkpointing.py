"""Checkpoints of a training run: all that it takes to go on as if the run had never been stopped.

`output_dir/checkpoints/step_00000120/` holds what `accelerate` saves (weights, optimizer, schedule, random
states of every process), `progress.json` and `checksums.json`, the length and checksum of each of them. It is
written beside, synced to the disk and renamed, so a checkpoint of that name is whole, whenever the run was
killed or the power cut; what damages it later is named.
"""

import json
import logging
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils.other import load as load_data
from safetensors import SafetensorError, safe_open

from ..data.whole_files import (
    UNFINISHED,
    check_readable,
    content_of,
    file_checksum,
    put_in_place,
)
from .processes import shared_errors

logger = logging.getLogger(__name__)

PROGRESS = "progress.json"
CHECKSUMS = "checksums.json"
WRITING_FAILED = (OSError, RuntimeError, SafetensorError)  # torch and safetensors have errors of their own
RENAMED_SETTINGS = {"counterparts": "hard_negatives"}  # as earlier versions wrote them
# What may change when a run goes on, because nothing of it reaches the weights, ...
FREE_TO_CHANGE = {
    "output_dir",
    "base_model",
    "dataset_name",
    "follow_links",
    "image_root",
    "trust_remote_code",
    "num_workers",
    "prefetch_factor",
    "report_to",
    "overwrite_output_dir",
    "resume_from_checkpoint",
    "checkpoint_every",
    "checkpoints_kept",
}
# ... or because the run only becomes longer or shorter ...
LENGTH = {"num_train_epochs", "max_train_steps", "steps_as_pairs", "total_steps"}
# ... or because what lies there is compared in its place.
IMAGE_SIZES = "image_sizes"
PLACES = {
    "data_fingerprint": ("data_root",),
    "start_fingerprint": ("model_name_or_path", "config_name", "revision"),
}
CHECKPOINT_NAME = re.compile(r"step_(\d{8,})")


class DamagedCheckpointError(ValueError):
    """A checkpoint that is not as it was written; the message names the file."""


@dataclass
class Progress:
    """Where a run is.

    Attributes:
        step: optimizer steps done.
        epoch, batches: the epoch it is in, and the batches of it that are done.
        best_recall: of the validation, -1 before the first.
        evaluations_since_best: how many came after it.
        log_bytes: length of the log.
        generator_state: of the data order's generator when the epoch began, hexadecimal.
        losses: of the batches since the last line of the log, by process and batch.
        skipped: the messages about unreadable images.
        planned_steps: how many the run was to have when it was here; 0: not known.
    """

    step: int = 0
    epoch: int = 0
    batches: int = 0
    best_recall: float = -1.0
    evaluations_since_best: int = 0
    log_bytes: int = 0
    generator_state: str = ""
    losses: list[list[list[float]]] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    planned_steps: int = 0

    def keep_generator(self, generator: torch.Generator) -> None:
        self.generator_state = bytes(generator.get_state().tolist()).hex()

    def restore_generator(self, generator: torch.Generator) -> None:
        generator.set_state(torch.tensor(list(bytes.fromhex(self.generator_state)), dtype=torch.uint8))


def find_checkpoints(directory: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first. They were whole when they got their names."""
    found = [path for path in directory.glob("step_*") if CHECKPOINT_NAME.fullmatch(path.name)]
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step_"))


def save_checkpoint(
    accelerator: Accelerator,
    directory: Path,
    progress: Progress,
    settings: dict[str, Any],
    kept: int,
    save_more: Callable[[Path], None],
) -> Path:
    """Writes a checkpoint, then removes all but the newest `kept`. Every process must call it.

    Later ones are removed as well: the run that wrote them has gone back to an earlier one since.

    Args:
        settings: what the run depends on; `read_progress` refuses others.
        save_more: writes what else belongs into the checkpoint's folder; called on the main process.

    Raises:
        RuntimeError: a process could not write it, in every one; what was there is untouched.
    """
    target = directory / f"step_{progress.step:08d}"
    partial = directory / f".{target.name}{UNFINISHED}"  # of all processes
    try:
        with shared_errors(accelerator):
            if accelerator.is_main_process:
                for left in directory.glob(".step_*"):  # of a run that was killed
                    shutil.rmtree(left)
                partial.mkdir(parents=True)
        with shared_errors(accelerator):
            accelerator.save_state(str(partial))
        with shared_errors(accelerator):
            if accelerator.is_main_process:
                save_more(partial)
                content = {"progress": asdict(progress), "settings": settings, "checksums": CHECKSUMS}
                (partial / PROGRESS).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
                checksums = json.dumps(content_of(partial), indent=1)
                (partial / CHECKSUMS).write_text(checksums + "\n", encoding="utf-8")
                put_in_place(partial, target, durable=True)
    except WRITING_FAILED as error:
        shutil.rmtree(partial, ignore_errors=True)
        good = find_checkpoints(directory)
        last = f"the last good one is {good[-1]}" if good else "there is none yet"
        raise RuntimeError(
            f"the checkpoint of step {progress.step} could not be written ({error}); {last}. Make room, then "
            "go on with --resume_from_checkpoint last"
        ) from error
    with shared_errors(accelerator):
        if accelerator.is_main_process:
            found = find_checkpoints(directory)
            newest = found.index(target) + 1
            for path in list(map(set_aside, found[: max(0, newest - kept)] + found[newest:])):
                shutil.rmtree(path)
    return target


def set_aside(checkpoint: Path) -> Path:
    """Renames a checkpoint, so that while it is being removed it is not taken for a whole one."""
    return checkpoint.rename(checkpoint.with_name(f".{checkpoint.name}.discarded"))


def under_todays_names(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings that a run wrote, also one of an earlier version."""
    return {RENAMED_SETTINGS.get(name, name): value for name, value in settings.items()}


def changed_settings(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What of the settings `now` is not as it was when a run began, in words; [] if the run may go on.

    An earlier version kept no fingerprints: of its runs the places are compared. What it did not know of is
    not compared.
    """
    before, now = under_todays_names(before), json.loads(json.dumps(now))
    places = {name for names in PLACES.values() for name in names}
    compared = before.keys() - FREE_TO_CHANGE - LENGTH - PLACES.keys() - places - {IMAGE_SIZES}
    changed = [
        f"{name} {before[name]!r} (now {now.get(name)!r})"
        for name in sorted(compared)
        if before[name] != now.get(name)
    ]

    def shown(names: Sequence[str]) -> str:
        given = (name for name in names if before.get(name) or now.get(name))
        return ", ".join(f"{name} {before.get(name)!r} (now {now.get(name)!r})" for name in given)

    for fingerprint, names in PLACES.items():
        if fingerprint not in before:
            if not all(_is_same_place(before.get(name), now.get(name)) for name in names):
                changed.append(shown(names))
        elif before[fingerprint] != now.get(fingerprint):
            fingerprints = f"{before[fingerprint]} (now {now.get(fingerprint)})"
            changed.append(f"the content of {shown(names)}, {fingerprint} {fingerprints}")
    sizes = before.get(IMAGE_SIZES, [])
    others = sum(one != other for one, other in zip(sizes, now.get(IMAGE_SIZES, []), strict=False))
    if 2 * others > len(sizes):  # not of some, which may have been repaired meanwhile
        changed.append(f"the images of {shown(['data_root'])}, {others} of {len(sizes)} of another size")
    return changed


def _is_same_place(one: str | None, other: str | None) -> bool:
    return one == other or bool(one and other and Path(one).resolve() == Path(other).resolve())


def check_whole(checkpoint: Path) -> None:
    """Reads every file of a checkpoint and compares its checksum.

    A checkpoint of an earlier version has none: of it the files are read as far as that shows damage, and
    nothing of their content is run.

    Raises:
        FileNotFoundError: it is no checkpoint.
        DamagedCheckpointError: naming the first file that is not as it was written.
        PermissionError: this user may not read it, with the way out.
    """
    check_readable(checkpoint)
    is_one = checkpoint.is_dir() and CHECKPOINT_NAME.fullmatch(checkpoint.name)
    if not is_one and not (checkpoint / PROGRESS).is_file():
        raise FileNotFoundError(f"{checkpoint} is no checkpoint: there is no {PROGRESS} in it")
    with _naming_damage(checkpoint / PROGRESS):
        content = json.loads((checkpoint / PROGRESS).read_text(encoding="utf-8"))
        processes = content["settings"].get("num_processes", 1)
        Progress(**content["progress"])
    if not (checkpoint / CHECKSUMS).is_file() and "checksums" not in content:
        for number in range(processes):
            with _naming_damage(file := checkpoint / f"random_states_{number}.pkl"):
                load_data(file, map_location="cpu")  # accelerate passes over one that it cannot read
        for file in sorted(checkpoint.rglob("*")):
            with _naming_damage(file):
                if file.suffix == ".safetensors":
                    safe_open(file, "pt").__enter__()
                elif file.suffix == ".bin":
                    load_data(file, map_location="cpu")
        return
    with _naming_damage(checkpoint / CHECKSUMS):
        expected = json.loads((checkpoint / CHECKSUMS).read_text(encoding="utf-8"))
        names = sorted(expected)
    for name in names:
        with _naming_damage(checkpoint / name):
            length = (checkpoint / name).stat().st_size
            if length != expected[name]["bytes"]:
                raise ValueError(f"it has {length} bytes instead of {expected[name]['bytes']}")
            if file_checksum(checkpoint / name) != expected[name]["blake2b"]:
                raise ValueError(f"its checksum differs from that in {CHECKSUMS}")


@contextmanager
def _naming_damage(file: Path) -> Iterator[None]:
    """Calls what goes wrong inside a damage of this file: from broken data torch raises almost anything."""
    try:
        yield
    except FileNotFoundError as error:
        raise DamagedCheckpointError(f"{file} is missing") from error
    except Exception as error:
        raise DamagedCheckpointError(f"{file} is damaged ({str(error) or type(error).__name__})") from error


def read_progress(checkpoint: Path, settings: dict[str, Any]) -> Progress:
    """The progress of a checkpoint.

    Raises:
        FileNotFoundError, DamagedCheckpointError, PermissionError: see [`check_whole`].
        ValueError: its run had other settings, which are named, or is further than it is to go.
    """
    check_whole(checkpoint)
    content = json.loads((checkpoint / PROGRESS).read_text(encoding="utf-8"))
    if changed := changed_settings(content["settings"], settings):
        raise ValueError(
            f"{checkpoint} is of a run with other settings: {', '.join(changed)}. Give these again to go on "
            "with it, or start another run in another --output_dir"
        )
    newer = settings.keys() - under_todays_names(content["settings"]).keys() - FREE_TO_CHANGE
    if unknown := sorted(newer - PLACES.keys() - {IMAGE_SIZES}):
        logger.info("%s is of an earlier version, which did not know of %s", checkpoint, ", ".join(unknown))
    progress = Progress(**content["progress"])
    progress.planned_steps = content["settings"].get("total_steps", 0)
    if progress.step > settings.get("total_steps", progress.step):
        by = "max_train_steps" if settings["max_train_steps"] else "num_train_epochs"
        epochs = progress.step / settings["steps_per_epoch"]
        raise ValueError(
            f"{checkpoint} has done {progress.step} steps, {epochs:.3g} epochs, and --{by} {settings[by]} "
            f"asks for {settings['total_steps']} steps: give a greater --{by}, go on from an earlier "
            "checkpoint by its name, or start another run in another --output_dir"
        )
    return progress
