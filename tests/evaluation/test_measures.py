"""evaluation/measures.py and significance.py against brute force and hand calculation."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tpas.data.pab import RetrievalBenchmark
from tpas.evaluation.measures import first_answers, group_figures, pair_confusion, query_figures, query_groups
from tpas.evaluation.recall_at_k import RecallAtK
from tpas.evaluation.significance import confidence_intervals, paired_comparison


def random_rankings(seed: int) -> tuple[list[list[str]], list[list[str]], list[np.ndarray]]:
    """20 whole rankings of 15 images, 1 to 4 relevant ones each, and the ranks of these."""
    generator = np.random.default_rng(seed)
    ids = [f"{number:02}" for number in range(15)]
    rankings = [generator.permutation(ids).tolist() for _ in range(20)]
    relevant = [generator.permutation(ids)[: 1 + row % 4].tolist() for row in range(20)]
    pairs = zip(rankings, relevant, strict=True)
    ranks = [np.array([ranking.index(name) + 1 for name in names]) for ranking, names in pairs]
    return rankings, relevant, ranks


def test_figures_from_ranks_equal_the_metric_on_whole_rankings():
    rankings, relevant, ranks = random_rankings(0)
    nothing = [None] * 20
    names = [str(row) for row in range(20)]
    groups = query_groups(RetrievalBenchmark(names, names, nothing, nothing, nothing, names, relevant))
    assert list(groups) == ["all"]
    whole = RecallAtK().compute(predictions=rankings, references=relevant, k=[2, 7], detailed=True)
    assert group_figures(query_figures(ranks, [2, 7]), groups)["all"] == whole


def test_confusion_of_pairs_by_hand():
    relevant = [np.array([1]), np.array([5, 2]), np.array([3]), np.array([1]), np.array([9])]
    hard_negatives = [np.array([2]), np.array([1]), np.array([4, 7]), np.array([], dtype=int), np.array([2])]
    groups = {"all": [0, 1, 2, 3, 4], "normal": [0, 2], "anomaly": [3]}
    names = ("queries", "right", "hard_negative", "other", "right_before_hard_negative")
    assert pair_confusion(relevant, hard_negatives, groups) == {
        "all": dict(zip(names, (4, 1 / 4, 1 / 4, 2 / 4, 2 / 4), strict=True)),
        "normal": dict(zip(names, (2, 1 / 2, 0.0, 1 / 2, 1.0), strict=True)),
    }


def test_first_answers_by_hand():
    first = torch.tensor([[4, 0], [2, 0], [4, 1], [4, 3], [7, 4]])
    assert first_answers(first) == {"coverage": 3 / 5, "collision_rate": 3 / 5}


# Intervals and tests


def as_figures(values) -> list[dict[str, float]]:
    return [{"recall@1": float(value), "median_rank": 3.0} for value in values]


def test_an_interval_equals_the_percentiles_of_all_resamples():
    values = np.array([0.0, 1.0, 1.0, 0.25, 0.5])
    means = [np.mean(drawn) for drawn in itertools.product(values, repeat=5)]  # all 3,125
    intervals = confidence_intervals(as_figures(values), resamples=20_000, seed=1)
    assert intervals.keys() == {"recall@1"}
    assert intervals["recall@1"] == pytest.approx(np.percentile(means, [2.5, 97.5]), abs=0.03)


def test_intervals_are_seeded_and_collapse_where_there_is_nothing_to_resample():
    figures = as_figures(np.random.default_rng(0).random(30))
    assert confidence_intervals(figures, seed=5) == confidence_intervals(figures, seed=5)
    assert confidence_intervals(figures, seed=5) != confidence_intervals(figures, seed=6)
    assert confidence_intervals(as_figures([0.5])) == {"recall@1": (0.5, 0.5)}
    assert confidence_intervals(as_figures([1.0] * 4)) == {"recall@1": (1.0, 1.0)}


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=10))
def test_the_p_value_is_the_share_of_all_swaps(outcomes):
    first, second = np.array(outcomes, dtype=float).T
    difference = second - first
    swapped = [np.mean(difference * signs) for signs in itertools.product((1, -1), repeat=len(outcomes))]
    as_large = np.mean(np.abs(swapped) >= abs(difference.mean()) - 1e-12)
    compared = paired_comparison(as_figures(first), as_figures(second), resamples=50)["recall@1"]
    assert compared["p_value"] == pytest.approx(as_large)
    assert compared["difference"] == pytest.approx(difference.mean())
    assert (compared["first"], compared["second"]) == pytest.approx((first.mean(), second.mean()))


def test_swapping_the_systems_turns_the_sign():
    generator = np.random.default_rng(3)
    first = generator.random(60)
    second = first + generator.normal(0.1, 0.2, 60)
    one = paired_comparison(as_figures(first), as_figures(second), permutations=500)["recall@1"]
    other = paired_comparison(as_figures(second), as_figures(first), permutations=500)["recall@1"]
    assert one["difference"] == pytest.approx(-other["difference"])
    assert one["low"] < one["difference"] < one["high"]
    assert one["p_value"] < 0.05
    with pytest.raises(ValueError, match="the same queries, got 60 and 59"):
        paired_comparison(as_figures(first), as_figures(second[1:]))
