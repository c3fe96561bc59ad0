"""The folder that a run writes: what it may hold, and models that are replaced whole."""

import json
from pathlib import Path
from typing import Any, cast

from torch import nn

from ..data.whole_files import recover, replacing
from ..models.interface import RetrievalModel, RetrievalProcessor
from ..models.lora import keep_base
from .checkpointing import WRITING_FAILED, Progress, changed_settings, find_checkpoints, read_progress

MODELS = ("best", "last", "averaged", "merged")
SUBSET_FILE = "subset.json"
RUN_FILES = (
    "training_arguments.json",
    "training_log.jsonl",
    *MODELS,
    "checkpoints",
    *("tensorboard", "wandb", "trackio"),
    SUBSET_FILE,
    "seeds.json",
)


def earlier_run(output_dir: Path, overwrite: bool) -> list[Path]:
    """What `output_dir` holds of an earlier run.

    Raises:
        FileExistsError: if there is something and it is not to be overwritten.
    """
    earlier = [output_dir / name for name in RUN_FILES if (output_dir / name).exists()]
    if earlier and not overwrite:
        raise FileExistsError(
            f"{output_dir} holds a run already ({', '.join(path.name for path in earlier)}): choose another "
            "--output_dir, go on with that run by --resume_from_checkpoint last, or delete it with "
            "--overwrite_output_dir"
        )
    return earlier


def find_progress(
    resume_from: str, output_dir: Path, settings: dict[str, Any]
) -> tuple[Path | None, Progress]:
    """The checkpoint to go on from, and how far it is.

    Args:
        resume_from: a checkpoint of this `output_dir`, or "last" for the newest; None is the answer if the
            run was stopped before it had one.

    Raises:
        FileNotFoundError: it is no checkpoint.
        ValueError: it is of another run.
    """
    checkpoints, arguments_file = output_dir / "checkpoints", output_dir / "training_arguments.json"
    if resume_from == "last":
        found = find_checkpoints(checkpoints)
        if not found:
            if arguments_file.exists():
                refuse_another_run(arguments_file, settings)
            return None, Progress()
        return found[-1], read_progress(found[-1], settings)
    checkpoint = Path(resume_from)
    progress = read_progress(checkpoint, settings)
    if checkpoint.resolve().parent != checkpoints.resolve():
        raise ValueError(f"{checkpoint} is of another run than {output_dir}: give its own --output_dir")
    return checkpoint, progress


def refuse_another_run(arguments_file: Path, settings: dict[str, Any]) -> None:
    """Raises ValueError if `training_arguments.json` is of a run with other settings than these."""
    before = json.loads(arguments_file.read_text(encoding="utf-8"))
    if changed := changed_settings(before, settings):
        raise ValueError(
            f"{arguments_file.parent} holds another run without a checkpoint, with other settings "
            f"({', '.join(changed)}): choose another --output_dir"
        )


def save_model(model: nn.Module, processor: RetrievalProcessor, directory: Path) -> None:
    """Writes both; the folder of that name is always whole.

    Raises:
        RuntimeError: it could not be written; what was there is untouched.
    """
    try:
        with replacing(directory) as unfinished:
            cast(RetrievalModel, model).save_pretrained(unfinished)
            keep_base(model, unfinished)
            processor.save_pretrained(unfinished)
    except WRITING_FAILED as error:
        raise RuntimeError(
            f"{directory} could not be written ({error}); what was there is untouched. Make room, then go on "
            "with --resume_from_checkpoint last"
        ) from error


def recover_models(output_dir: Path) -> None:
    """Puts back what `save_model` was replacing when the run was killed."""
    for name in MODELS:
        recover(output_dir / name)
