"""AdamW with a learning rate and a decay for each parameter: X-VLM's, and the field's refinements."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn
from transformers.trainer_pt_utils import get_parameter_names

from ..configuration_tpas import TPASConfig


@dataclass(frozen=True)
class LearningRates:
    """What a parameter's learning rate is made of.

    Attributes:
        base: the greatest rate of a step.
        multiplier: of parameters that are new to the start model, or that `multiplied` names.
        multiplied: a regular expression, searched for in a parameter's name; None: only new ones.
        layer_decay: factor from one layer of an encoder to the one below it; 1: all layers alike.
    """

    base: float
    multiplier: float = 1.0
    multiplied: str | None = None
    layer_decay: float = 1.0

    def scales(self, names: Iterable[str], new: set[str], config: TPASConfig) -> dict[str, float]:
        """Learning rate / `base` of each name.

        Raises:
            ValueError: `multiplied` is no regular expression, or fits no name.
        """
        names = list(names)
        pattern = None
        if self.multiplied is not None:
            try:
                pattern = re.compile(self.multiplied)
            except re.error as error:
                raise ValueError(
                    f"--multiplied_parameters {self.multiplied!r} is no regular expression: {error}"
                ) from error
            if not any(map(pattern.search, names)):
                raise ValueError(
                    f"--multiplied_parameters {self.multiplied!r} fits none of the trained parameters: "
                    f"{', '.join(names[:3])}, ..."
                )
        return {
            name: (1.0 if self.layer_decay == 1 else self.layer_decay ** layers_above(name, config))
            * (self.multiplier if name in new or (pattern and pattern.search(name)) else 1.0)
            for name in names
        }


def layers_above(name: str, config: TPASConfig) -> int:
    """How many layers lie between a parameter and the heads: 0 in the heads, 1 in an encoder's last layer.

    Text layers count those of the cross-modal encoder as lying above them, as the one BERT that both were.
    """
    depths = config.vision_config.depths
    text_layers, cross_layers = config.text_config.num_hidden_layers, config.num_cross_modal_layers
    if "vision_model." in name:
        if "vision_model.embeddings." in name:
            return sum(depths) + 1
        if found := re.search(r"encoder\.layers\.(\d+)\.(?:blocks\.(\d+)\.)?", name):
            stage = int(found[1])
            block = depths[stage] - 1 if found[2] is None else int(found[2])  # patch merging ends its stage
            return sum(depths[stage:]) - block
        return 0  # the last LayerNorm
    if "text_model." in name:
        found = re.search(r"encoder\.layer\.(\d+)\.", name)
        return cross_layers + (text_layers + 1 if found is None else text_layers - int(found[1]))
    if found := re.search(r"cross_modal_encoder\.layers\.(\d+)\.", name):
        return cross_layers - int(found[1])
    return 0


def build_optimizer(
    module: nn.Module,
    rates: LearningRates,
    *,
    new_parameters: set[str],
    config: TPASConfig,
    weight_decay: float,
    betas: tuple[float, float],
    epsilon: float,
    fused: bool | None = None,
) -> torch.optim.AdamW:
    """AdamW over what is trained, a group for each combination of learning rate and decay, base rate first.

    With `fused` a step passes over the memory once; None: as torch decides, which on a CPU is some ten times.

    No decay on LayerNorms and on whatever has "bias" in its name, as in X-VLM: Swin's tables of relative
    position biases are among these.
    """
    trained = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    decayed = set(get_parameter_names(module, [nn.LayerNorm], ["bias"]))
    groups: dict[tuple[float, bool], list[str]] = {}
    for name, scale in rates.scales(trained, new_parameters, config).items():
        groups.setdefault((scale, name in decayed), []).append(name)
    return torch.optim.AdamW(
        [
            {
                "params": [(name, trained[name]) for name in names],
                "lr": rates.base * scale,
                "weight_decay": weight_decay if decay else 0.0,
            }
            for (scale, decay), names in sorted(groups.items(), key=lambda item: (item[0][0] != 1.0, item[0]))
        ],
        lr=rates.base,
        betas=betas,
        eps=epsilon,
        fused=fused,
    )


def describe_groups(optimizer: torch.optim.Optimizer) -> list[str]:
    """A line for each learning rate: on how many parameters it is, and under which names."""
    names_of: dict[float, list[str]] = {}
    counts: dict[float, int] = {}
    for group in optimizer.param_groups:
        rate = group["initial_lr"] if "initial_lr" in group else group["lr"]
        names_of.setdefault(rate, []).extend(group["param_names"])
        counts[rate] = counts.get(rate, 0) + sum(parameter.numel() for parameter in group["params"])
    return [
        f"learning rate {rate:g} on {counts[rate]:,} numbers: {_abridged(names_of[rate])}"
        for rate in sorted(names_of, reverse=True)
    ]


def _abridged(names: list[str]) -> str:
    """Names without the parts of a layer, each once: "model.text_model.encoder.layer.0"."""
    layer = re.compile(r"^(.*?\.(?:layers?|blocks)\.\d+(?:\.blocks\.\d+)?)\..*$")
    short = dict.fromkeys(layer.sub(r"\1", name) for name in names)
    shown = list(short)[:8]
    return ", ".join(shown) + (f" and {len(short) - len(shown)} more" if len(short) > len(shown) else "")
