"""What a run reports: figures for terminal, file and tracker, means of losses, time and memory."""

import json
import logging
import resource
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.distributed.tensor import DTensor

from ..data.whole_files import explained_full_disk
from .arguments import FineTuningArguments
from .data import stable_number
from .processes import shared_errors

logger = logging.getLogger(__name__)
GIGABYTE = 1e9


def read_training_log(path: str | Path) -> list[dict[str, Any]]:
    """The finished lines of a `training_log.jsonl`, also while a run writes it."""
    lines = Path(path).read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


class TrainingLog:
    """Sends figures to the terminal, `training_log.jsonl` and the trackers, all on the main process only.

    Every process must call `step` and `evaluation`, and has the main one's errors.
    """

    def __init__(self, path: Path, accelerator: Accelerator):
        self.path = path
        self.accelerator = accelerator

    @property
    def length(self) -> int:
        """In bytes."""
        return self.path.stat().st_size if self.path.exists() else 0

    def step(self, step: int, epoch: float, figures: dict[str, float], time_left: str) -> None:
        """`time_left` goes to the terminal alone: it is no figure of the run."""
        tracked = {f"train/{name}": value for name, value in figures.items()}
        self._write({"step": step, "epoch": epoch} | figures, tracked)
        shown = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
        logger.info("step %d: %s; %s", step, shown, time_left)

    def evaluation(
        self, step: int, epoch: float, stages: dict[str, Any], table: str, weights: str | None = None
    ) -> None:
        """What `evaluate` measured and how it is shown; `weights`: which, where not the run's own."""
        of_weights = {} if weights is None else {"weights": weights}
        prefix = "validation" if weights is None else f"validation/{weights}"
        figures = {
            f"{prefix}/{stage}/{metric}": value
            for stage, groups in stages.items()
            for metric, value in groups["all"].items()
        }
        self._write({"step": step, "epoch": epoch} | of_weights | {"evaluation": stages}, figures)
        of_what = "" if weights is None else f", {weights} weights"
        logger.info("validation after step %d%s\n%s", step, of_what, table)

    def _write(self, entry: dict[str, Any], tracked: dict[str, Any]) -> None:
        """Sends a line to the file, and figures to the trackers."""
        with shared_errors(self.accelerator):
            if self.accelerator.is_main_process:
                with explained_full_disk(self.path), self.path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(entry) + "\n")
            self.accelerator.log(tracked, step=entry["step"])


class LossMeans:
    """Means of the losses, over batches and processes, since the last `take`."""

    def __init__(self, accelerator: Accelerator, names: Sequence[str]):
        self.accelerator = accelerator
        self.names = names
        self.batches: list[Tensor] = []

    def add(self, losses: dict[str, Tensor]) -> None:
        self.batches.append(torch.stack([losses[name].detach().float() for name in self.names]))

    def take(self) -> dict[str, float]:
        means = self.accelerator.reduce(torch.stack(self.batches).mean(dim=0), reduction="mean")
        self.batches.clear()
        return dict(zip(self.names, cast(Tensor, means).tolist(), strict=True))

    def check_finite(self, step: int, parameters: Iterable[Tensor] = ()) -> None:
        """Raises FloatingPointError, in every process, if a loss since the last `take` was not finite.

        Or one of the parameters: a step may ruin them though its loss was finite.
        """
        device = self.accelerator.device
        parts = (p.to_local() if isinstance(p, DTensor) else p for p in parameters)
        each = [tensor.detach().isfinite().all().to(device) for tensor in (*self.batches, *parts)]
        finite = torch.stack(each).all().float() if each else torch.ones((), device=device)
        if self.accelerator.reduce(finite, reduction="sum") < self.accelerator.num_processes:
            raise FloatingPointError(
                f"a loss or weight is no finite number by step {step}. Nothing was saved since: go on from "
                "the last checkpoint with --resume_from_checkpoint last if it was an accident, or start "
                "again with a lower --learning_rate, --max_grad_norm 1 or without --mixed_precision fp16"
            )

    def of_all_processes(self) -> list[list[list[float]]]:
        """By process, by batch: what `restore` takes. Every process must call it."""
        own = torch.stack(self.batches) if self.batches else torch.empty(0, len(self.names))
        return cast(Tensor, self.accelerator.gather(own[None].to(self.accelerator.device))).tolist()

    def restore(self, losses: list[list[list[float]]]) -> None:
        own = losses[self.accelerator.process_index] if losses else []
        self.batches = [torch.tensor(batch, device=self.accelerator.device) for batch in own]


class Clock:
    """How long the rest of a run takes, going by the steps since it was started."""

    def __init__(self, done: int, total: int):
        self.done = done
        self.total = total
        self.started = time.monotonic()

    def time_left(self, step: int) -> str:
        if step <= self.done:
            return "time left unknown"
        seconds = (time.monotonic() - self.started) / (step - self.done) * (self.total - step)
        return f"{timedelta(seconds=round(seconds))} left"


def peak_memory() -> str:
    """The most memory that this process has used so far, in GB: on its GPUs where it has any, and in all."""
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    used = kilobytes * (1 if sys.platform == "darwin" else 1024) / GIGABYTE
    if not torch.cuda.is_available():
        return f"{used:.2f} GB"
    on_gpu = sum(torch.cuda.max_memory_allocated(device) for device in range(torch.cuda.device_count()))
    return f"{on_gpu / GIGABYTE:.2f} GB on the GPU, {used:.2f} GB beside it"


def start_tracker(accelerator: Accelerator, arguments: FineTuningArguments) -> None:
    """Announces the run to its tracker; one that is resumed goes on there as well."""
    shown = {name: "none" if value is None else value for name, value in asdict(arguments).items()}
    if arguments.report_to == "tensorboard":
        accelerator.init_trackers("tensorboard", config=shown)  # the name becomes the folder's
        return
    output_dir = Path(arguments.output_dir).resolve()
    name = f"{output_dir.name}-{stable_number(str(output_dir)):016x}"
    of_run = {
        "wandb": {"id": name, "name": output_dir.name, "resume": "allow", "dir": str(output_dir)},
        "trackio": {"name": name, "resume": "allow"},
    }
    accelerator.init_trackers("tpas", config=shown, init_kwargs=of_run)
