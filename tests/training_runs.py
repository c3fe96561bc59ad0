"""Fine-tuning runs: their flags, what they leave, and runs to which something happens."""

import json
import os
import signal
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import typer
from accelerate.state import AcceleratorState, GradientState
from torch import Tensor

from tpas.modeling_tpas import TPASModel
from tpas.train_accelerate import app, main
from tpas.training.arguments import FineTuningArguments
from tpas.training.fine_tuning import Run


def flags(data_root: Path, start: Path | None, output: Path, **changes: object) -> list[str]:
    """Of a run without workers and without a tracker; a change to None leaves a flag out."""
    settings = {"data_root": data_root, "output_dir": output, "model_name_or_path": start}
    settings |= {"learning_rate": 1e-3, "validation_fraction": 0.34, "log_every": 1}
    settings |= {"num_workers": 0, "report_to": "none"} | changes
    given = {name: value for name, value in settings.items() if value is not None}
    return [word for name, value in given.items() for word in (f"--{name}", str(value))]


def read_log(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "training_log.jsonl").read_text().splitlines()]


def losses_of(run: Path) -> list[float]:
    return [entry["loss"] for entry in read_log(run) if "loss" in entry]


def weights(folder: Path) -> dict[str, Tensor]:
    return TPASModel.from_pretrained(folder).state_dict()


def parsed(words: list[str]) -> FineTuningArguments:
    """What `tpas train` makes of its flags."""
    values = typer.main.get_command(app).make_context("tpas train", list(words)).params
    return FineTuningArguments(**{field.name: values[field.name] for field in fields(FineTuningArguments)})


def reset_accelerator() -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def train(words: list[str]) -> None:
    """The command, as in a process that has no accelerator yet; what `debug_launcher` starts, too."""
    reset_accelerator()
    main(words)


class WatchedRun(Run):
    """Calls `after_batch(run, losses)` after each batch; `batches_done` counts those of this process."""

    def __init__(self, words: list[str], after_batch: Callable[["WatchedRun", dict[str, Tensor]], Any]):
        reset_accelerator()
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
