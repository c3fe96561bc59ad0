"""Averages of the weights of a run: they often retrieve better than the weights of its last step."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

AVERAGES_FILE = "averages.safetensors"


class WeightAverages(nn.Module):
    """An exponential moving average over the steps, and the mean over the last epochs.

    Args:
        model: whose weights are averaged. It is copied for each average.
        ema_decay: what the moving average keeps of itself in a step; 0: there is none.
        last_epochs: how many epochs the mean is over; 0: there is none.
    """

    def __init__(self, model: nn.Module, ema_decay: float, last_epochs: int):
        super().__init__()
        self.moving = (
            AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(ema_decay)) if ema_decay else None
        )
        self.epochs = AveragedModel(model) if last_epochs else None
        self.last_epochs = last_epochs

    @torch.no_grad()
    def after_step(self, model: nn.Module) -> None:
        if self.moving is not None:
            self.moving.update_parameters(model)

    @torch.no_grad()
    def after_epoch(self, model: nn.Module, epochs_left: int) -> None:
        """Takes the model into the mean, if it is one of the last epochs; `epochs_left` come after it."""
        if self.epochs is not None and epochs_left < self.last_epochs:
            self.epochs.update_parameters(model)

    def save(self, directory: Path) -> None:
        """Writes the averages, if there are any, into a checkpoint."""
        if state := self.state_dict():
            save_file(
                {name: tensor.contiguous() for name, tensor in state.items()}, directory / AVERAGES_FILE
            )

    def load(self, directory: Path) -> None:
        if self.state_dict():
            self.load_state_dict(load_file(directory / AVERAGES_FILE))
