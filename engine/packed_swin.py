"""Swin for inference over rows in the order of their windows, with the values of transformers' `SwinModel`.

A layer works window by window: some windows at a time go through the whole of it, so that what it writes
stays in the cache. To shift the windows, to pad them and to merge patches is to take rows in another order,
one gather a layer; position biases are looked up, and masks of shifted windows added to them, once. Linear
layers run on the fast path of `packed_layers.py`. Nothing here trains.
"""

from collections.abc import Iterable, Sequence
from copy import deepcopy
from itertools import groupby
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import SwinModel
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.swin.modeling_swin import SwinLayer, SwinPatchMerging, SwinStage

from ..configuration_tpas import stage_maps, stage_window
from .packed_layers import PackedLinear, attend_on_cpu

CPU_ROWS_AT_ONCE = 1152  # of the patches that go through a layer; 8 windows of 12 x 12
MASKED = -100.0  # transformers' own, added to scores of patches that are neighbours by the shift only
PADDING = -1


def window_rows(height: int, width: int, window: int, shift: int) -> tuple[Tensor, list[int]]:
    """The patches of each window of a map of height x width patches, numbered row by row, and its kind.

    Returns:
        (W, window^2) patch numbers, `PADDING` where a window reaches beyond the map;
        W kinds in ascending order: of shifted windows 1 for those at the right edge, 2 at the bottom, 3 at
        both, whose patches come from opposite edges of the map; else 0.
    """
    down, across = -(-height // window), -(-width // window)  # windows
    patches = numbered(height, width, down * window, across * window).roll((-shift, -shift), dims=(0, 1))
    rows = patches.view(down, window, across, window).transpose(1, 2).reshape(down * across, window**2)
    at_bottom, at_right = (
        ((torch.arange(windows) == windows - 1) & bool(shift)).long() for windows in (down, across)
    )
    kinds, order = (2 * at_bottom[:, None] + at_right).flatten().sort(stable=True)
    return rows[order], kinds.tolist()


def numbered(height: int, width: int, padded_height: int, padded_width: int) -> Tensor:
    """(padded height, padded width): the patches of a map, numbered row by row, and `PADDING` beyond it."""
    patches = torch.arange(height * width).view(height, width)
    return F.pad(patches, (0, padded_width - width, 0, padded_height - height), value=PADDING)


def shift_masks(window: int, shift: int) -> Tensor:
    """(4, window^2, window^2), to be added to the scores in windows of each kind."""
    wrapped = torch.arange(window) >= window - shift  # came from the opposite edge
    regions = [
        (2 * (wrapped & bool(kind & 2))[:, None] + (wrapped & bool(kind & 1))).flatten() for kind in range(4)
    ]  # each (window^2,)
    return torch.stack([MASKED * (region[:, None] != region) for region in regions])


class _Gather:
    """Takes rows of each image in another order.

    Args:
        patches: (P,) the patch that each row is to be, or `PADDING`.
        given: (N,) the patch that each row is.
    """

    def __init__(self, patches: Tensor, given: Tensor):
        place = torch.full((int(given.max()) + 1,), PADDING)
        place[given[given >= 0]] = (given >= 0).nonzero()[:, 0]
        self.rows = place[patches.clamp(min=0)]  # (P,); padding takes any
        padding = (patches == PADDING)[:, None]  # (P, 1)
        self.padding = padding if padding.any() else None

    def indices(self, images: int, given: int, device: torch.device) -> tuple[Tensor, Tensor | None]:
        """Into the (images * given) rows of all images, (images * P,), and which are padding, or None."""
        starts = given * torch.arange(images)[:, None]
        padding = None if self.padding is None else self.padding.repeat(images, 1).to(device)
        return (starts + self.rows).flatten().to(device), padding


class PackedSwinLayer(nn.Module):
    """Attention within windows and feed-forward, from a layer's own modules.

    Args:
        given: (N,) the patch that each row of an image is, in what comes in.
        stage_map: (height, width) of the map of patches.
        shifted: whether this layer's windows are, where there are several.
    """

    def __init__(
        self,
        layer: SwinLayer,
        given: Tensor,
        stage_map: tuple[int, int],
        window: int,
        shifted: bool,
        dtype,
        activation,
    ):
        super().__init__()
        shift = window // 2 if shifted and min(stage_map) > window else 0
        rows, self.kinds = window_rows(*stage_map, window, shift)
        self.window_area = rows.shape[1]
        self.patches = rows.flatten()  # (P,) what each row is in what goes out
        self.gather = _Gather(self.patches, given)
        attention = layer.attention
        self.query_key_value = PackedLinear(attention.q_proj, attention.k_proj, attention.v_proj, dtype=dtype)
        self.dense = PackedLinear(attention.o_proj, dtype=dtype)
        self.intermediate = PackedLinear(layer.mlp.fc1, activation=activation, dtype=dtype)
        self.output = PackedLinear(layer.mlp.fc2, dtype=dtype)
        self.norm_before = deepcopy(layer.layernorm_before).to(dtype)
        self.norm_after = deepcopy(layer.layernorm_after).to(dtype)
        self.head_size, self.scaling = attention.head_dim, attention.scaling
        bias = attention.relative_position_bias().detach()  # (1, H, L, L)
        if shift:
            bias = bias + shift_masks(window, shift)[:, None].to(bias.device)
        self.bias = bias.to(dtype).clone()  # (1 or 4 kinds, H, L, L)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(B, N, C) to (B, P, C), rows in the order of this layer's windows."""
        images, given, width = hidden_states.shape
        device = hidden_states.device
        indices, padding = self.gather.indices(images, given, device)
        rows = hidden_states.reshape(-1, width)
        output = rows.new_empty(len(indices), width)
        kinds = self.kinds * images
        at_once = max(1, CPU_ROWS_AT_ONCE // self.window_area) if device.type == "cpu" else len(kinds)
        for first in range(0, len(kinds), at_once):
            some = slice(first * self.window_area, (first + at_once) * self.window_area)
            self._transform(
                rows[indices[some]],
                None if padding is None else padding[some],
                kinds[first : first + at_once],
                output[some],
            )
        return output.view(images, -1, width)

    def _transform(self, rows: Tensor, padding: Tensor | None, kinds: Sequence[int], output: Tensor) -> None:
        normed = self.norm_before(rows)
        if padding is not None:
            normed.masked_fill_(padding, 0.0)
        projected = self.query_key_value(normed).view(len(kinds), self.window_area, 3, -1, self.head_size)
        query, key, value = projected.permute(2, 0, 3, 1, 4)  # each (windows, H, L, d)
        context = rows.new_empty(query.transpose(1, 2).shape)  # (windows, L, H, d)
        if rows.device.type == "cpu" and rows.dtype == torch.float32:
            for window, kind in enumerate(kinds):
                own = attend_on_cpu(query[window], key[window], value[window], self.scaling, self.bias[kind])
                context[window] = own.transpose(0, 1)
        else:
            self._attend_by_runs(query, key, value, kinds, context)
        rows.add_(self.dense(context.view(rows.shape)))
        torch.add(rows, self.output(self.intermediate(self.norm_after(rows))), out=output)

    def _attend_by_runs(self, query, key, value, kinds: Sequence[int], context: Tensor) -> None:
        """One call for each run of windows of one kind."""
        start = 0
        for kind, run in groupby(kinds):
            stop = start + sum(1 for _ in run)
            own = slice(start, stop)
            bias = self.bias[kind].expand(stop - start, -1, -1, -1)
            context[own] = F.scaled_dot_product_attention(
                query[own], key[own], value[own], attn_mask=bias, scale=self.scaling
            ).transpose(1, 2)
            start = stop


class PackedPatchMerging(nn.Module):
    """Four neighbouring patches to one of the next stage; arguments as in [`PackedSwinLayer`]."""

    def __init__(
        self, merging: SwinPatchMerging, given: Tensor, stage_map: tuple[int, int], dtype: torch.dtype
    ):
        super().__init__()
        down, across = (-(-side // 2) for side in stage_map)
        patches = numbered(*stage_map, 2 * down, 2 * across)
        neighbours = patches.view(down, 2, across, 2).permute(0, 2, 3, 1)  # columns before rows, as there
        self.gather = _Gather(neighbours.flatten(), given)
        self.patches = torch.arange(down * across)
        self.norm = deepcopy(merging.norm).to(dtype)
        self.reduction = PackedLinear(merging.reduction, dtype=dtype)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(B, N, C) to (B, N / 4, 2 C), rows in the order of the map."""
        images, given, width = hidden_states.shape
        indices, padding = self.gather.indices(images, given, hidden_states.device)
        rows = hidden_states.reshape(-1, width)[indices]
        if padding is not None:
            rows.masked_fill_(padding, 0.0)
        return self.reduction(self.norm(rows.view(images, -1, 4 * width)))


class PackedSwinModel(nn.Module):
    """A copy of Swin, prepared for encoding many images of its configuration's size."""

    def __init__(self, vision_model: SwinModel, dtype: torch.dtype):
        super().__init__()
        config = vision_model.config
        self.embeddings = deepcopy(vision_model.embeddings).to(dtype)
        maps = stage_maps(config)
        patches = torch.arange(maps[0][0] * maps[0][1])
        steps = []
        for stage, own in zip(cast(Iterable[SwinStage], vision_model.encoder.layers), maps, strict=True):
            window = stage_window(config.window_size, own)
            for number, layer in enumerate(cast(Iterable[SwinLayer], stage.blocks)):
                shifted = number % 2 == 1
                steps.append(PackedSwinLayer(layer, patches, own, window, shifted, dtype, config.hidden_act))
                patches = steps[-1].patches
            if stage.downsample is not None:
                merging = cast(SwinPatchMerging, stage.downsample)
                steps.append(PackedPatchMerging(merging, patches, own, dtype))
                patches = steps[-1].patches
        self.steps = nn.ModuleList(steps)
        self.last = _Gather(torch.arange(maps[-1][0] * maps[-1][1]), patches)
        self.layer_norm = deepcopy(vision_model.layernorm).to(dtype)

    def forward(self, pixel_values: Tensor) -> BaseModelOutput:
        """(B, 3, H, W) to `last_hidden_state` (B, N, D)."""
        hidden_states, _ = self.embeddings(pixel_values)
        for step in self.steps:
            hidden_states = step(hidden_states)
        images, given, width = hidden_states.shape
        indices, _ = self.last.indices(images, given, hidden_states.device)
        rows = hidden_states.reshape(-1, width)[indices].view(images, -1, width)
        return BaseModelOutput(last_hidden_state=self.layer_norm(rows))
