"""A subset of pairs that covers the variety of their captions."""

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm


def diverse_subset(embeds: Tensor, count: int, seed: int) -> Tensor:
    """`count` rows of the embeddings, each the farthest from those before it.

    The greedy choice of k-center (Sener and Savarese 2018), by cosine: the first row is drawn by the seed,
    ties go to the smaller row, and no row comes twice, even where all are equal. So the head of a result is
    the result for a smaller `count`. Each row chosen costs one product of the embeddings with a vector, in
    fp32: another device or number of threads may round it otherwise and choose another of two rows that are
    equally far, so whoever needs the same subset again keeps the result. Memory: a few numbers a row.

    Args:
        embeds: (M, D), unit norm, on any device.

    Returns:
        (count,) int64 on the CPU, in the order of choice.

    Raises:
        ValueError: `count` is not between 1 and M, or a row's norm is not 1.
    """
    if embeds.dim() != 2:
        raise ValueError(f"embeds must be (rows, dimensions), got {tuple(embeds.shape)}")
    if not 1 <= count <= len(embeds):
        raise ValueError(f"count must be between 1 and the {len(embeds)} rows, got {count}")
    embeds = embeds.detach().float()
    norms = torch.linalg.vector_norm(embeds, dim=1)
    wrong = ~((norms - 1).abs() < 1e-2)  # true for NaN as well
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise ValueError(f"row {row} of embeds has the norm {norms[row]:.4g}, not 1: normalise them first")

    # RandomState's stream is frozen for ever (NEP 19).
    row = np.random.RandomState(seed).randint(len(embeds))
    chosen = torch.empty(count, dtype=torch.int64)
    nearest = torch.full((len(embeds),), -torch.inf, device=embeds.device)  # cosine to the nearest one chosen
    for position in tqdm(range(count), desc="choosing diverse pairs", unit="pair", delay=5):
        chosen[position] = row
        torch.maximum(nearest, embeds @ embeds[row], out=nearest)
        nearest[row] = torch.inf  # never again
        row = int(nearest.argmin())  # the first of equal ones
    return chosen
