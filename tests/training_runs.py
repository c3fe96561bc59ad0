"""Fine-tuning runs to which something happens."""

import os
import signal
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import typer
from torch import Tensor

from tpas.train_accelerate import app
from tpas.training.arguments import FineTuningArguments
from tpas.training.fine_tuning import Run


def parsed(words: list[str]) -> FineTuningArguments:
    """What `tpas train` makes of its flags."""
    values = typer.main.get_command(app).make_context("tpas train", list(words)).params
    return FineTuningArguments(**{field.name: values[field.name] for field in fields(FineTuningArguments)})


class WatchedRun(Run):
    """Calls `after_batch(run, losses)` after each batch; `batches_done` counts those of this process."""

    def __init__(self, words: list[str], after_batch: Callable[["WatchedRun", dict[str, Tensor]], Any]):
        super().__init__(parsed(words))
        self.after_batch = after_batch
        self.batches_done = 0

    def train_batch(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        losses = super().train_batch(batch)
        self.batches_done += 1
        return self.after_batch(self, losses) or losses


def stopped_after(batches: int, words: list[str], by: int = signal.SIGTERM) -> WatchedRun:
    """A run to which a signal comes while it is in its `batches`-th batch."""

    def stop(run: WatchedRun, losses: dict[str, Tensor]) -> None:
        if run.batches_done == batches:
            os.kill(os.getpid(), by)

    return WatchedRun(words, stop)
