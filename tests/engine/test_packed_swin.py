"""Packed Swin against transformers' own, whatever the windows do."""

import pytest
import torch
from torch import nn
from transformers import SwinConfig, SwinModel

from tpas.configuration_tpas import height_and_width
from tpas.engine.packed_swin import PackedSwinModel, shift_masks, window_rows


def build(image_size, window_size: int, depths: list[int], **more) -> SwinModel:
    stages = {"depths": depths, "num_heads": [2**stage for stage in range(len(depths))]}
    sizes = {"image_size": image_size, "patch_size": 4, "embed_dim": 16, "window_size": window_size}
    model = SwinModel(SwinConfig(**sizes, **stages, **more), add_pooling_layer=False).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


@torch.no_grad()
@pytest.mark.parametrize(
    ("image_size", "window_size", "depths"),
    [
        pytest.param(32, 4, [2, 2], id="shifted windows, then one window"),
        pytest.param(48, 3, [3, 2, 1], id="a shift of 1, windows of 3"),
        pytest.param(36, 4, [2, 2], id="maps of 9 and 5: windows and merging are padded"),
        pytest.param(32, 8, [2], id="one window, which is not shifted"),
        pytest.param(144, 36, [1], id="a window larger than what goes through at once"),
        pytest.param((48, 32), 4, [2, 2], id="maps of 12x8, shifted, and of 6x4, padded and not shifted"),
        pytest.param((20, 52), 3, [2, 2], id="wider than high, padded: maps of 5x13 and 3x7"),
    ],
)
@pytest.mark.parametrize("images", [3, 40])  # at once, and some windows at a time
def test_outputs_are_swins(image_size, window_size, depths, images):
    model = build(image_size, window_size, depths)
    pixels = torch.randn(images, 3, *height_and_width(image_size))
    expected = model(pixels).last_hidden_state
    actual = PackedSwinModel(model, torch.float32)(pixels).last_hidden_state
    assert expected.std() > 0.1
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_position_embeddings_and_projections_without_bias():
    model = build(32, 4, [2, 1], use_absolute_embeddings=True, qkv_bias=False, hidden_act="relu")
    pixels = torch.randn(2, 3, 32, 32)
    actual = PackedSwinModel(model, torch.float32)(pixels).last_hidden_state
    torch.testing.assert_close(actual, model(pixels).last_hidden_state, atol=1e-5, rtol=1e-5)


def test_windows_of_a_map_by_hand():
    rows, kinds = window_rows(height=4, width=4, window=2, shift=1)
    assert rows.tolist() == [[5, 6, 9, 10], [7, 4, 11, 8], [13, 14, 1, 2], [15, 12, 3, 0]]
    assert kinds == [0, 1, 2, 3]
    rows, kinds = window_rows(height=3, width=3, window=2, shift=0)
    assert rows.tolist() == [[0, 1, 3, 4], [2, -1, 5, -1], [6, 7, -1, -1], [8, -1, -1, -1]]
    assert kinds == [0, 0, 0, 0]
    rows, kinds = window_rows(height=4, width=2, window=2, shift=1)  # a shift comes back at both edges
    assert rows.tolist() == [[3, 2, 5, 4], [7, 6, 1, 0]]
    assert kinds == [1, 3]


def test_masks_part_what_only_the_shift_brought_together():
    inside, right, bottom, both = (shift_masks(window=2, shift=1) == 0).int().tolist()
    assert inside == [[1] * 4] * 4
    assert right == [[1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 1, 0], [0, 1, 0, 1]]
    assert bottom == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]
    assert both == [[int(row == column) for column in range(4)] for row in range(4)]
