"""Transformer layers for inference over packed rows: texts one after another, without padding or masks.

The arithmetic of BERT's layers arranged for speed: weights are laid out once for the machine's fastest GEMM
(on a CPU oneDNN's, in full fp32), activations are fused into it, projections of one input are stacked, and
each text attends within its own rows. Nothing here trains.
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import lru_cache, partial, wraps
from importlib.util import find_spec
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import ACT2FN

# oneDNN compiles a kernel for each number of rows it meets, some milliseconds each: so there are to be few.
ROW_MULTIPLE = 16
# transformers' names of the activations that oneDNN computes inside the GEMM: its operation and algorithm.
FUSED_ACTIVATIONS = {
    None: ("none", ""),
    "relu": ("relu", ""),
    "gelu": ("gelu", "none"),
    "gelu_new": ("gelu", "tanh"),
    "gelu_pytorch_tanh": ("gelu", "tanh"),
}


def without_autocast(method: Callable[..., Any]) -> Callable[..., Any]:
    """For a method of an object with a `device`: its precision is its own, whatever its caller autocasts."""

    @wraps(method)
    def run(self, *arguments, **named):
        with torch.autocast(self.device.type, enabled=False):
            return method(self, *arguments, **named)

    return run


class PackedLinear(nn.Module):
    """`activation(linear(x))` of one `nn.Linear`, or of several with the same input, outputs side by side.

    Holds a copy of the weights: laid out for oneDNN on a CPU, as they are elsewhere.

    Args:
        activation: transformers' name of an activation, or None.

    Raises:
        TypeError: for anything but `nn.Linear`, such as a layer whose adapter is not merged.
    """

    def __init__(self, *linears: nn.Linear, activation: str | None = None, dtype=torch.float32):
        super().__init__()
        require_linear(*linears)
        self.in_features = linears[0].in_features
        self.out_features = sum(linear.out_features for linear in linears)
        self.weight = torch.cat([linear.weight.detach() for linear in linears]).to(dtype)  # (out, in)
        biases = [linear.bias.detach() for linear in linears if linear.bias is not None]
        self.bias = torch.cat(biases).to(dtype) if biases else None  # (out,)
        self.is_packed = self.weight.device.type == "cpu" and _onednn_has(dtype)
        if self.is_packed:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(self.weight)
        fused = self.is_packed and activation in FUSED_ACTIVATIONS
        self.operation, self.algorithm = FUSED_ACTIVATIONS[activation if fused else None]
        self.activation = None if fused or activation is None else ACT2FN[activation]

    def forward(self, hidden_states: Tensor) -> Tensor:
        if self.is_packed:
            hidden_states = torch.ops.mkldnn._linear_pointwise(
                hidden_states, self.weight, self.bias, self.operation, [], self.algorithm
            )
        else:
            hidden_states = F.linear(hidden_states, self.weight, self.bias)
        return hidden_states if self.activation is None else self.activation(hidden_states)


def require_linear(*layers: nn.Module) -> None:
    """Raises TypeError for anything but `nn.Linear`: an adapter's layer has the `weight` of its base only."""
    for layer in layers:
        if not isinstance(layer, nn.Linear):
            raise TypeError(f"expected nn.Linear, got {type(layer)}: an adapter must be merged first")


def _onednn_has(dtype: torch.dtype) -> bool:
    if not torch.backends.mkldnn.is_available():
        return False
    return dtype == torch.float32 or (
        dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


def ragged_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_lengths: Sequence[int],
    key_lengths: Sequence[int],
    scaling: float,
    rounds_scores: bool = False,
) -> Tensor:
    """Attention of each segment of `query` to the segment of `key` and `value` of the same number.

    Args:
        query: (Tq, H, d) rows, segment after segment; rows beyond the last segment give zeros.
        key, value: (Tk, H, d), likewise.
        query_lengths, key_lengths: rows of each segment.
        rounds_scores: see [`attend_on_cpu`].

    Returns:
        (Tq, H, d)
    """
    if query.device.type == "cpu":
        attend_ragged = partial(_attend_in_loop, rounds_scores=rounds_scores)
    else:  # one call for all segments: a call for each would starve a GPU
        flash = _has_flash_attention(query.device, query.dtype)
        attend_ragged = _attend_by_flash_attention if flash else _attend_nested
    return attend_ragged(query, key, value, query_lengths, key_lengths, scaling)


def _attend_in_loop(query, key, value, query_lengths, key_lengths, scaling, rounds_scores=False):
    """One call for each segment; on a CPU a call costs little."""
    context = query.new_zeros(query.shape)
    query_start = key_start = 0
    for query_length, key_length in zip(query_lengths, key_lengths, strict=True):
        queries = slice(query_start, query_start + query_length)
        keys = slice(key_start, key_start + key_length)
        by_head = query[queries].transpose(0, 1)  # (H, length, d)
        of_keys = key[keys].transpose(0, 1), value[keys].transpose(0, 1)
        own = attend_on_cpu(by_head, *of_keys, scaling, rounds_scores=rounds_scores)
        context[queries] = own.transpose(0, 1)
        query_start, key_start = queries.stop, keys.stop
    return context


def attend_on_cpu(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float,
    bias: Tensor | None = None,
    rounds_scores: bool = False,
) -> Tensor:
    """Attention of (H, Lq, d) to (H, Lk, d), scores plus a bias (H, Lq, Lk): (H, Lq, d).

    Written out in fp32, where two batched products are faster than sdpa's own, which are cut small.

    Args:
        rounds_scores: in half precision likewise, several times faster. sdpa's scores are fp32 there, these
            are rounded; the softmax is fp32's. Without a bias.
    """
    if rounds_scores and query.dtype != torch.float32:
        scores = torch.bmm(query, key.transpose(1, 2)).float().mul_(scaling)
        return torch.bmm(scores.softmax(dim=-1).to(query.dtype), value)
    if query.dtype != torch.float32:  # scores would be rounded to that type, which sdpa's are not
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=scaling)
    key = key.transpose(1, 2)
    if bias is None:
        scores = torch.bmm(query, key).mul_(scaling)
    else:
        scores = torch.baddbmm(bias, query, key, alpha=scaling)
    return torch.bmm(scores.softmax(dim=-1), value)


def _attend_nested(query, key, value, query_lengths, key_lengths, scaling):
    """Over PyTorch's nested tensors, which have a kernel for every precision."""

    def nest(rows, lengths):
        nested = torch.nested.nested_tensor_from_jagged(
            rows[: sum(lengths)].contiguous(),
            _offsets(tuple(lengths), rows.device),
            min_seqlen=min(lengths),
            max_seqlen=max(lengths),
        )
        return nested.transpose(1, 2)  # (segments, H, length, d)

    keys_and_values = nest(key, key_lengths), nest(value, key_lengths)
    output = F.scaled_dot_product_attention(nest(query, query_lengths), *keys_and_values, scale=scaling)
    context = query.new_zeros(query.shape)
    context[: sum(query_lengths)] = output.transpose(1, 2).values()
    return context


def _attend_by_flash_attention(query, key, value, query_lengths, key_lengths, scaling):
    """In half precision, of heads up to 256 wide."""
    from torch.nn.attention.varlen import varlen_attn

    assert scaling == query.shape[-1] ** -0.5, "older releases of torch take no other scale"
    context = query.new_zeros(query.shape)
    rows, keys = sum(query_lengths), sum(key_lengths)
    context[:rows] = varlen_attn(
        query[:rows],
        key[:keys],
        value[:keys],
        _offsets(tuple(query_lengths), query.device),
        _offsets(tuple(key_lengths), query.device),
        max(query_lengths),
        max(key_lengths),
    )
    return context


@lru_cache
def _has_flash_attention(device: torch.device, dtype: torch.dtype) -> bool:
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return False
    is_in_torch = find_spec("torch.nn.attention.varlen") is not None  # since 2.10
    return is_in_torch and torch.cuda.get_device_capability(device) >= (8, 0)  # Ampere


@lru_cache(maxsize=16)  # all layers ask for the same
def _offsets(lengths: tuple[int, ...], device: torch.device) -> Tensor:
    """Where each segment begins, and the last one ends."""
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32).to(device)


def pad_rows(rows: Tensor) -> Tensor:
    """Rows (T, ...) with zeros appended up to a multiple of [`ROW_MULTIPLE`]."""
    missing = -len(rows) % ROW_MULTIPLE
    return torch.cat([rows, rows.new_zeros(missing, *rows.shape[1:])]) if missing else rows


class PackedSelfAttention(nn.Module):
    """BERT's self-attention with its residual and norm, from that layer's own modules."""

    def __init__(
        self,
        query,
        key,
        value,
        dense,
        layer_norm,
        head_size: int,
        dtype: torch.dtype,
        rounds_scores: bool = False,
    ):
        """`rounds_scores`: see [`attend_on_cpu`]."""
        super().__init__()
        self.rounds_scores = rounds_scores
        self.query_key_value = PackedLinear(query, key, value, dtype=dtype)
        self.dense = PackedLinear(dense, dtype=dtype)
        self.layer_norm = deepcopy(layer_norm).to(dtype)
        self.head_size = head_size

    def forward(self, hidden_states: Tensor, lengths: Sequence[int]) -> Tensor:
        """Rows (T, D) of texts of these lengths to rows (T, D)."""
        projected = self.query_key_value(hidden_states).unflatten(-1, (3, -1, self.head_size))
        query, key, value = projected.unbind(1)  # each (T, H, d)
        scaling = self.head_size**-0.5
        context = ragged_attention(query, key, value, lengths, lengths, scaling, self.rounds_scores)
        return self.layer_norm(self.dense(context.flatten(1)).add_(hidden_states))


class PackedFeedForward(nn.Module):
    """BERT's feed-forward with its residual and norm, from that layer's own modules."""

    def __init__(self, intermediate, output, layer_norm, activation: str, dtype: torch.dtype):
        super().__init__()
        self.intermediate = PackedLinear(intermediate, activation=activation, dtype=dtype)
        self.output = PackedLinear(output, dtype=dtype)
        self.layer_norm = deepcopy(layer_norm).to(dtype)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.layer_norm(self.output(self.intermediate(hidden_states)).add_(hidden_states))
