"""Brings Swin's relative position tables to another window, as X-VLM does."""

import torch
from torch import Tensor


def spline_basis(positions: Tensor, knots: Tensor) -> Tensor:
    """The cubic splines with the given knots, as powers and truncated powers: (P,), (K,) to (P, 4 + K)."""
    powers = positions[:, None] ** torch.arange(4)
    truncated = (positions[:, None] - knots[None, :]).clamp(min=0) ** 3
    return torch.cat([powers, truncated], dim=1)


def interpolation_matrix(source: int, target: int) -> Tensor:
    """The linear map (target, source) by which upstream resizes one axis of a relative position table.

    As upstream's `interpolate_relative_pos_embed`: the source's positions grow geometrically from the
    centre, with the ratio (at most 1.5, found by the same bisection) at which they end where the
    target's unit steps end; through them goes a not-a-knot cubic spline, held constant beyond its ends.
    """
    if source < 4:
        raise ValueError(f"a relative position table of {source}x{source} is too small for a cubic spline")
    low, high = 1.01, 1.5
    while high - low > 1e-6:
        ratio = (low + high) / 2
        if (1 - ratio ** (source // 2)) / (1 - ratio) > target // 2:
            high = ratio
        else:
            low = ratio
    half = (ratio ** torch.arange(source // 2, dtype=torch.float64)).cumsum(0)
    positions = torch.cat([-half.flip(0), half.new_zeros(1), half])  # (source,)
    steps = torch.arange(target, dtype=torch.float64) - target // 2  # (target,)
    end = half[-1]
    knots = positions[2:-2] / end  # not-a-knot: the outermost inner points are none
    values_of_basis = spline_basis(positions / end, knots)  # (source, source)
    return torch.linalg.solve(values_of_basis, spline_basis((steps / end).clamp(-1, 1), knots), left=False)


def interpolate_table(table: Tensor, target: int) -> Tensor:
    """A relative position table (source * source, heads) to (target * target, heads), exactly as upstream."""
    source = round(len(table) ** 0.5)
    matrix = interpolation_matrix(source, target)
    grid = table.double().view(source, source, -1)
    resized = torch.einsum("ai,ijh,bj->abh", matrix, grid, matrix)
    return resized.reshape(target * target, -1).to(table.dtype)


def is_other_window(table: Tensor, wanted: Tensor) -> bool:
    """Whether both are relative position tables of the same heads, for windows of different size."""
    if table.dim() != 2 or table.shape[1:] != wanted.shape[1:]:
        return False
    side = round(len(table) ** 0.5)
    return side % 2 == 1 and side**2 == len(table) != len(wanted)
