"""The folder that a run writes: what it may hold, and models that are replaced whole."""

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, cast

from accelerate import Accelerator
from torch import nn

from ..data.json_records import read_json
from ..data.whole_files import AlreadyHeldError, held_alone, recover, replacing
from ..models.interface import RetrievalModel, RetrievalProcessor
from ..models.lora import keep_base
from .checkpointing import (
    WRITING_FAILED,
    DamagedCheckpointError,
    Progress,
    changed_settings,
    find_checkpoints,
    read_progress,
)
from .processes import of_main_process

logger = logging.getLogger(__name__)

LOCK = "run.lock"
# Seconds in which a run that was told to stop, and started again, has written its checkpoint.
PATIENCE = 60.0
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


def arguments_of_run(model: Path) -> dict[str, Any] | None:
    """The arguments of the run that left this model, if it lies where the run wrote it.

    Raises:
        ValueError: their file is damaged.
    """
    beside = model.resolve().parent / "training_arguments.json"
    if model.resolve().name not in MODELS or not beside.is_file():
        return None
    return read_json(beside)


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


@contextmanager
def alone_in(accelerator: Accelerator, lock_file: Path, patience: float = PATIENCE) -> Iterator[None]:
    """Holds the right to write a run's folder, for all processes of the run; see [`held_alone`].

    Args:
        lock_file: is there as long as it is held; its folder is made if need be.
        patience: seconds to wait for another run to end.

    Raises:
        RuntimeError: another run holds it, or it cannot be made; in every process.
    """

    def hold() -> None:
        try:
            lock_file.parent.mkdir(parents=True, exist_ok=True)
            try:
                stack.enter_context(held_alone(lock_file))
            except AlreadyHeldError as held:
                logger.info("%s holds %s: waiting %.0f s for its end", held, lock_file, patience)
                stack.enter_context(held_alone(lock_file, patience))
        except AlreadyHeldError as held:
            raise RuntimeError(
                f"another run writes to {lock_file.parent} ({held}): wait for its end, or choose another "
                "--output_dir"
            ) from None
        except OSError as error:
            raise RuntimeError(f"{lock_file.parent} cannot be written to ({error})") from error

    with ExitStack() as stack:
        of_main_process(accelerator, hold)
        if accelerator.is_main_process:  # goes while it is held: who waits for it notices
            stack.callback(lock_file.unlink, missing_ok=True)
        yield


def find_progress(
    resume_from: str, output_dir: Path, settings: dict[str, Any]
) -> tuple[Path | None, Progress]:
    """The checkpoint to go on from, and how far it is.

    Args:
        resume_from: a checkpoint of this `output_dir`, or "last" for the newest that is whole, which says
            what is wrong with newer ones; None is the answer if the run was stopped before it had one.

    Raises:
        FileNotFoundError: it is no checkpoint.
        DamagedCheckpointError: it is damaged, or with "last" all are.
        ValueError: it is of another run.
    """
    checkpoints, arguments_file = output_dir / "checkpoints", output_dir / "training_arguments.json"
    if resume_from == "last":
        damages = []
        for checkpoint in reversed(find_checkpoints(checkpoints)):
            try:
                return checkpoint, read_progress(checkpoint, settings)
            except DamagedCheckpointError as damage:
                logger.warning("%s: going back to the checkpoint before it", damage)
                damages.append(str(damage))
        if damages:
            raise DamagedCheckpointError(
                f"no checkpoint in {checkpoints} is whole: {'; '.join(damages)}. Restore one, or start again "
                "with --overwrite_output_dir"
            )
        if arguments_file.exists():
            refuse_another_run(arguments_file, settings)
        return None, Progress()
    checkpoint = Path(resume_from)
    try:
        progress = read_progress(checkpoint, settings)
    except DamagedCheckpointError as damage:
        raise DamagedCheckpointError(
            f"{damage}: restore it, or take the newest whole one by --resume_from_checkpoint last"
        ) from None
    if checkpoint.resolve().parent != checkpoints.resolve():
        raise ValueError(f"{checkpoint} is of another run than {output_dir}: give its own --output_dir")
    return checkpoint, progress


def refuse_another_run(arguments_file: Path, settings: dict[str, Any]) -> None:
    """Raises ValueError if `training_arguments.json` is of a run with other settings than these."""
    before = read_json(arguments_file)
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
