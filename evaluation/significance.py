"""How sure a figure is: bootstrap intervals over queries, and paired tests between two systems.

Queries are what is resampled: the interval says how far a figure would move with other queries of the same
kind, not with another training run or another gallery.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.stats import bootstrap, norm, permutation_test
from tqdm import tqdm

LEVEL = 0.95
RESAMPLES = 2000
PERMUTATIONS = 9999  # the least p-value they can give is 1 / 10,000
_AT_ONCE = 100  # resamples held in memory together


def confidence_intervals(
    queries: Sequence[Mapping[str, float]], *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """The percentile bootstrap interval at `LEVEL` of the mean of each figure; one resample serves them all.

    The median rank is left out: its interval would be a few integers.
    """
    names = [name for name in queries[0] if name != "median_rank"]
    values = np.array([[figures[name] for figures in queries] for name in names])  # (figures, Q)
    if len(queries) == 1:  # nothing to resample
        return {name: (float(value), float(value)) for name, (value,) in zip(names, values, strict=True)}
    interval = bootstrap(
        (values,),
        np.mean,
        axis=-1,
        vectorized=True,
        n_resamples=resamples,
        batch=_AT_ONCE,
        confidence_level=LEVEL,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return {
        name: (float(low), float(high))
        for name, low, high in zip(names, interval.low, interval.high, strict=True)
    }


def wilson_interval(share: float, count: int) -> tuple[float, float]:
    """Wilson's interval at `LEVEL` of a share of `count` queries, which holds for few of them as well."""
    z = norm.ppf((1 + LEVEL) / 2)
    centre = share + z**2 / (2 * count)
    spread = z * np.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    whole = 1 + z**2 / count
    return float((centre - spread) / whole), float((centre + spread) / whole)


def paired_comparison(
    first: Sequence[Mapping[str, float]],
    second: Sequence[Mapping[str, float]],
    *,
    resamples: int = RESAMPLES,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> dict[str, dict[str, float]]:
    """Two systems on the same queries, row by row: the mean difference of each figure and its chance.

    Returns:
        By figure "first", "second" (means), "difference" (second - first), "low" and "high" (its bootstrap
        interval at `LEVEL`), and "p_value", two-sided: how often a difference as large appears when the two
        outcomes of each query are swapped at random.
    """
    if len(first) != len(second):
        raise ValueError(f"a paired comparison needs the same queries, got {len(first)} and {len(second)}")
    differences = [
        {name: two[name] - one[name] for name in one if name != "median_rank"}
        for one, two in zip(first, second, strict=True)
    ]
    intervals = confidence_intervals(differences, resamples=resamples, seed=seed)
    comparison = {}
    bar = tqdm(intervals.items(), desc="permutation tests", unit="figure", leave=False, disable=None)
    for name, (low, high) in bar:
        one = np.array([figures[name] for figures in first])
        two = np.array([figures[name] for figures in second])
        comparison[name] = {
            "first": float(one.mean()),
            "second": float(two.mean()),
            "difference": float(two.mean() - one.mean()),
            "low": low,
            "high": high,
            "p_value": _swap_test(two - one, permutations, seed),
        }
    return comparison


def _swap_test(differences: np.ndarray, permutations: int, seed: int) -> float:
    """Queries on which both systems agree do not change when swapped, so only the others are permuted."""
    decided = differences[differences != 0]
    if not len(decided):
        return 1.0
    if len(decided) == 1:  # scipy wants two at least; both swaps give a difference as large
        return 1.0
    return float(
        permutation_test(
            (decided,),
            lambda values, axis: values.mean(axis=axis),
            permutation_type="samples",
            vectorized=True,
            n_resamples=permutations,
            batch=_AT_ONCE,
            rng=np.random.default_rng(seed),
        ).pvalue
    )
