"""Packed layers against torch's own, one text at a time."""

import pytest
import torch
from peft import LoraConfig
from peft.tuners.lora import Linear as LoraLinear
from torch import nn
from torch.nn import functional as F
from transformers.activations import ACT2FN

from tpas.engine.packed_layers import (
    FUSED_ACTIVATIONS,
    ROW_MULTIPLE,
    PackedLinear,
    _attend_in_loop,
    _attend_nested,
    pad_rows,
)


@pytest.mark.parametrize("activation", [*FUSED_ACTIVATIONS, "silu", "gelu_fast"])
def test_packed_linear_is_linear_and_activation(activation):
    linear, rows = nn.Linear(24, 40), 3 * torch.randn(7, 24)
    expected = linear(rows) if activation is None else ACT2FN[activation](linear(rows))
    actual = PackedLinear(linear, activation=activation)(rows)
    torch.testing.assert_close(actual, expected.detach(), atol=2e-6, rtol=1e-6)


def test_projections_of_one_input_are_stacked():
    linears, rows = [nn.Linear(8, width) for width in (5, 6)], torch.randn(2, 3, 8)
    expected = torch.cat([linear(rows) for linear in linears], dim=-1)
    torch.testing.assert_close(PackedLinear(*linears)(rows), expected.detach())


def test_a_linear_layer_may_have_no_bias():
    linear, rows = nn.Linear(8, 5, bias=False), torch.randn(3, 8)
    torch.testing.assert_close(PackedLinear(linear)(rows), linear(rows).detach())


def test_what_onednn_does_not_take_is_computed_all_the_same():
    linear, rows = nn.Linear(8, 5).double(), torch.randn(3, 8).double()
    packed = PackedLinear(linear, activation="gelu", dtype=torch.float64)
    assert not packed.is_packed
    torch.testing.assert_close(packed(rows), F.gelu(linear(rows)).detach())


def test_later_changes_of_the_layer_do_not_reach_its_packed_copy():
    for dtype in (torch.float32, torch.float64):
        linear = nn.Linear(4, 4).to(dtype)
        packed, rows = PackedLinear(linear, dtype=dtype), torch.randn(2, 4, dtype=dtype)
        before = packed(rows).clone()
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
        assert torch.equal(packed(rows), before)


def test_an_adapter_that_is_not_merged_is_refused():
    adapted = LoraLinear(nn.Linear(4, 4), "default", LoraConfig(r=2), r=2)
    with pytest.raises(TypeError, match="got .*lora.*: an adapter must be merged first"):
        PackedLinear(adapted)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage")
@pytest.mark.parametrize("attend", [_attend_in_loop, _attend_nested])
@pytest.mark.parametrize(
    ("query_lengths", "key_lengths"), [([3, 3, 1, 6], [5, 5, 5, 2]), ([2], [7]), ([4, 4], [4, 4])]
)
def test_each_segment_attends_to_its_own(attend, query_lengths, key_lengths):
    heads, width, scaling = 2, 4, 0.3
    query = torch.randn(sum(query_lengths) + 3, heads, width)  # three rows of padding
    key, value = torch.randn(2, sum(key_lengths), heads, width)
    context = attend(query, key, value, query_lengths, key_lengths, scaling)

    expected = torch.zeros_like(query)
    for segment, length in enumerate(query_lengths):
        rows = slice(sum(query_lengths[:segment]), sum(query_lengths[: segment + 1]))
        own = slice(sum(key_lengths[:segment]), sum(key_lengths[: segment + 1]))
        for head in range(heads):
            weights = (query[rows, head] @ key[own, head].t() * scaling).softmax(dim=-1)
            expected[rows, head] = weights @ value[own, head]
        assert length == rows.stop - rows.start
    torch.testing.assert_close(context, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("count", [1, ROW_MULTIPLE - 1, ROW_MULTIPLE, ROW_MULTIPLE + 1])
def test_rows_are_padded_with_zeros(count):
    rows = torch.ones(count, 2)
    padded = pad_rows(rows)
    assert len(padded) % ROW_MULTIPLE == 0
    assert len(padded) - count < ROW_MULTIPLE
    assert torch.equal(padded[:count], rows)
    assert not padded[count:].any()
