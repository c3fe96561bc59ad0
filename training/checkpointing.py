"""Checkpoints of a training run: all that it takes to go on as if the run had never been stopped.

`output_dir/checkpoints/step_00000120/` holds what `accelerate` saves (weights, optimizer, schedule, random
states of every process) and `progress.json`. It is written beside and renamed, so a checkpoint of that name
is whole, whenever the run was killed.
"""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError

from ..data.whole_files import UNFINISHED, put_in_place

PROGRESS = "progress.json"
WRITING_FAILED = (OSError, RuntimeError, SafetensorError)  # torch and safetensors have errors of their own
RENAMED_SETTINGS = {"counterparts": "hard_negatives"}  # as earlier versions wrote them
CHECKPOINT_NAME = re.compile(r"step_(\d{8,})")


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

    def keep_generator(self, generator: torch.Generator) -> None:
        self.generator_state = bytes(generator.get_state().tolist()).hex()

    def restore_generator(self, generator: torch.Generator) -> None:
        generator.set_state(torch.tensor(list(bytes.fromhex(self.generator_state)), dtype=torch.uint8))


def find_checkpoints(directory: Path) -> list[Path]:
    """The whole checkpoints in a folder, oldest first."""
    found = [path for path in directory.glob("step_*") if CHECKPOINT_NAME.fullmatch(path.name)]
    return sorted((path for path in found if (path / PROGRESS).is_file()), key=step_of)


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
        RuntimeError: it could not be written; what was there is untouched.
    """
    target = directory / f"step_{progress.step:08d}"
    partial = directory / f".{target.name}{UNFINISHED}"  # of all processes
    try:
        if accelerator.is_main_process:
            for left in directory.glob(".step_*"):  # of a run that was killed
                shutil.rmtree(left)
            partial.mkdir(parents=True)
        accelerator.wait_for_everyone()
        accelerator.save_state(str(partial))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            save_more(partial)
            content = {"progress": asdict(progress), "settings": settings}
            (partial / PROGRESS).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
            put_in_place(partial, target)
    except WRITING_FAILED as error:
        shutil.rmtree(partial, ignore_errors=True)
        good = find_checkpoints(directory)
        last = f"the last good one is {good[-1]}" if good else "there is none yet"
        raise RuntimeError(
            f"the checkpoint of step {progress.step} could not be written ({error}); {last}. Make room, then "
            "go on with --resume_from_checkpoint last"
        ) from error
    if accelerator.is_main_process:
        found = find_checkpoints(directory)
        newest = found.index(target) + 1
        for path in list(map(set_aside, found[: max(0, newest - kept)] + found[newest:])):
            shutil.rmtree(path)
    accelerator.wait_for_everyone()
    return target


def set_aside(checkpoint: Path) -> Path:
    """Renames a checkpoint, so that while it is being removed it is not taken for a whole one."""
    return checkpoint.rename(checkpoint.with_name(f".{checkpoint.name}.discarded"))


def under_todays_names(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings that a run wrote, also one of an earlier version."""
    return {RENAMED_SETTINGS.get(name, name): value for name, value in settings.items()}


def read_progress(checkpoint: Path, settings: dict[str, Any]) -> Progress:
    """The progress of a checkpoint.

    Raises:
        FileNotFoundError: it is none.
        ValueError: its run had other settings, which are named.
    """
    path = checkpoint / PROGRESS
    if not path.is_file():
        raise FileNotFoundError(f"{checkpoint} is no checkpoint: there is no {PROGRESS} in it")
    content = json.loads(path.read_text(encoding="utf-8"))
    before, now = under_todays_names(content["settings"]), json.loads(json.dumps(settings))
    changed = [
        f"{name} {before.get(name)!r} (now {now.get(name)!r})"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]
    if changed:
        raise ValueError(
            f"{checkpoint} is of a run with other settings: {', '.join(changed)}. Give these again to go on "
            "with it, or start another run in another --output_dir"
        )
    return Progress(**content["progress"])
