"""Bounded assignment against every assignment there is, greedy matching against the greedy walk itself."""

from dataclasses import asdict
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ranked_lists import ranked_lists
from scipy.optimize import linear_sum_assignment

from tpas.reranking.one_to_one import bounded_assignment, greedy_matching

pytestmark = pytest.mark.filterwarnings("ignore:.*queries share .* candidate images:UserWarning")


# So few that every assignment can be tried.
small_lists = ranked_lists(most_queries=5, most_candidates=4, most_images=6)


def large_lists(queries=400, images=300, candidates=6, seed=3):
    generator = np.random.default_rng(seed)
    popular = generator.random((queries, images)) ** 0.2 + np.linspace(0, 0.5, images)
    indices = np.argsort(popular, axis=1)[:, :candidates]
    return indices, -np.sort(-generator.random((queries, candidates)), axis=1)


def places(indices, result):
    """Where each query's new first answer was in its list."""
    return (indices == result.indices[:, :1]).argmax(axis=1)


def best_by_enumeration(indices, scores, max_loss, capacity):
    """(queries served, sum of losses) of the best way to give each query one of its candidates or nothing."""
    choices = []
    for row, values in zip(indices.tolist(), scores.tolist(), strict=True):
        losses = [values[0] - value for value in values]
        choices.append([None, *((g, x) for g, x in zip(row, losses, strict=True) if x <= max_loss)])
    best = (0, 0.0)
    for way in product(*choices):
        held = [pair for pair in way if pair is not None]
        images = [image for image, _ in held]
        if all(images.count(image) <= capacity for image in images):
            best = max(best, (len(held), -sum(loss for _, loss in held)))
    return best[0], -best[1]


def served(first, capacity):
    """How many queries hold an image, if as many as may hold each image that is claimed."""
    return sum(min(capacity, count) for count in np.unique(first, return_counts=True)[1])


@settings(max_examples=250)
@given(small_lists, st.sampled_from([None, 0.0, 1.0, 3.0]), st.sampled_from([1, 1, 2]))
def test_assignment_is_the_best_of_all(lists, max_loss, capacity):
    indices, scores = lists
    result = bounded_assignment(indices, scores, max_loss=max_loss, capacity=capacity)
    bound = np.inf if max_loss is None else max_loss
    place = places(indices, result)
    losses = scores[:, 0] - scores[np.arange(len(scores)), place]
    assert (losses <= bound).all()
    count, loss = best_by_enumeration(indices, scores, bound, capacity)
    assert served(result.indices[:, 0], capacity) == count
    # Who stays at its first answer without holding it loses nothing, so the sum is that of the served.
    assert losses.sum() == pytest.approx(loss)

    for query, at in enumerate(place):
        order = [at, *(k for k in range(indices.shape[1]) if k != at)]
        assert result.indices[query].tolist() == indices[query, order].tolist()
        assert result.scores[query].tolist() == scores[query, order].tolist()
    assert result.moved.tolist() == (place > 0).tolist()
    assert result.report.coverage_after >= result.report.coverage_before


@settings(max_examples=120)
@given(small_lists, st.sampled_from([None, 2.0]), st.randoms(use_true_random=False))
def test_order_of_queries_and_their_offsets_mean_nothing(lists, max_loss, random):
    indices, scores = lists
    ids = [f"query {number}" for number in random.sample(range(100), len(indices))]
    result = bounded_assignment(indices, scores, max_loss=max_loss, query_ids=ids)
    order = random.sample(range(len(indices)), len(indices))
    settings = {"max_loss": max_loss, "query_ids": [ids[i] for i in order]}
    permuted = bounded_assignment(indices[order], scores[order], **settings)
    np.testing.assert_array_equal(permuted.indices, result.indices[order])
    offsets = np.array([random.randrange(-50, 50) for _ in ids])[:, None]
    shifted = bounded_assignment(indices, scores + offsets, max_loss=max_loss, query_ids=ids)
    np.testing.assert_array_equal(shifted.indices, result.indices)


@settings(max_examples=80)
@given(ranked_lists(most_queries=8))
def test_nothing_changes_without_collisions(lists):
    indices, scores = lists
    firsts = np.unique(indices[:, 0], return_index=True)[1]
    for kept in (firsts, [0]):
        for rerank in (bounded_assignment, greedy_matching):
            result = rerank(indices[kept], scores[kept])
            np.testing.assert_array_equal(result.indices, indices[kept])
            assert not result.moved.any()


def test_components_without_a_collision_stay():
    # Queries 0 to 2 share images 0 to 2 and collide; 3 and 4 share images 7 and 8 and do not.
    indices = np.array([[0, 1], [0, 1], [2, 1], [7, 8], [8, 7]])
    scores = np.array([[9.0, 2], [8, 7], [5, 1], [1, 1], [9, 8]])
    result = bounded_assignment(indices, scores)
    assert result.indices[:, 0].tolist() == [0, 1, 2, 7, 8]
    assert asdict(result.report) == {
        **{"method": "assignment", "transductive": True, "queries": 5, "moved": 1},
        **{"collisions_before": 2, "collisions_after": 0, "coverage_before": 0.8, "coverage_after": 1.0},
    }


def test_assignment_moves_a_chain_that_sca_cannot():
    # Query 1 loses least if it takes image 1 and query 2, whose answer it was, takes image 2.
    indices = np.array([[0, 3], [0, 1], [1, 2]])
    scores = np.array([[9.0, 0], [9, 8], [5, 4]])
    assert bounded_assignment(indices, scores).indices[:, 0].tolist() == [0, 1, 2]
    # With so small a bound nobody may move, and query 1 stays at its first answer.
    assert bounded_assignment(indices, scores, max_loss=0.5).indices[:, 0].tolist() == [0, 0, 1]
    assert bounded_assignment(indices, scores, capacity=2).indices[:, 0].tolist() == [0, 0, 1]


@pytest.mark.parametrize("movers", [10, 400])  # so many go to the sparse solver
def test_a_query_is_served_though_many_must_move(movers):
    """All but one lose as much as any may, so that one more has an image of its own."""
    first = np.array([0, *range(movers)])
    indices = np.stack([first, [movers + 1, *range(1, movers + 1)]], axis=1)
    scores = np.tile([2.0, 1], (movers + 1, 1))
    scores[0, 1] = 0  # too great a loss
    result = bounded_assignment(indices, scores, max_loss=1)
    assert result.indices[:, 0].tolist() == [0, *range(1, movers + 1)]
    assert result.report.collisions_after == 0


@pytest.mark.parametrize("queries", [90, 400])  # so many go to the sparse solver
def test_assignment_has_the_greatest_gain_of_all(queries):
    indices, scores = large_lists(queries, images=queries * 3 // 4)
    result = bounded_assignment(indices, scores, max_loss=0.6)
    losses = scores[:, :1] - scores
    gains = np.zeros((queries, queries))  # an image far outweighs what is lost for it
    np.put_along_axis(gains, indices, np.where(losses <= 0.6, 1000 - losses, 0), axis=1)
    best = gains[linear_sum_assignment(gains, maximize=True)]
    assert served(result.indices[:, 0], 1) == (best > 0).sum() > len(np.unique(indices[:, 0]))
    lost = (scores[:, 0] - result.scores[:, 0]).sum()
    assert lost == pytest.approx((1000 - best[best > 0]).sum(), abs=1e-8)


def greedy_walk(indices, scores, ids, capacity):
    pairs = [(-scores[q, k], ids[q], k, q) for q in range(len(indices)) for k in range(indices.shape[1])]
    room = dict.fromkeys(indices.ravel().tolist(), capacity)
    place = {}
    for _, _, k, q in sorted(pairs):
        image = int(indices[q, k])
        if q not in place and room[image] > 0:
            place[q] = k
            room[image] -= 1
    return [place.get(q, 0) for q in range(len(indices))]


@settings(max_examples=250)
@given(ranked_lists(most_queries=9), st.sampled_from([1, 1, 2]), st.randoms(use_true_random=False))
def test_greedy_is_the_greedy_walk(lists, capacity, random):
    indices, scores = lists
    ids = random.sample(range(100), len(indices))
    result = greedy_matching(indices, scores, capacity=capacity, query_ids=ids)
    assert places(indices, result).tolist() == greedy_walk(indices, scores, ids, capacity)
    assert result.report.method == "greedy"
    assert result.report.transductive


@pytest.mark.parametrize("capacity", [1, 3])
def test_greedy_is_the_greedy_walk_on_long_chains(capacity):
    indices, scores = large_lists()
    result = greedy_matching(indices, np.round(scores, 1), capacity=capacity)
    expected = greedy_walk(indices, np.round(scores, 1), range(len(indices)), capacity)
    assert places(indices, result).tolist() == expected


@pytest.mark.parametrize("rerank", [bounded_assignment, greedy_matching])
def test_tensors_dense_matrices_and_types(rerank):
    result = rerank(None, torch.tensor([[9, 1, 0], [8, 7, 0]], dtype=torch.bfloat16), top_k=2)
    torch.testing.assert_close(result.indices, torch.tensor([[0, 1], [1, 0]]))
    torch.testing.assert_close(result.scores, torch.tensor([[9, 1], [7, 8]], dtype=torch.bfloat16))
    torch.testing.assert_close(result.moved, torch.tensor([False, True]))
    integers = rerank(np.array([[0, 1], [0, 1]], dtype=np.uint16), np.array([[9, 1], [8, 7]]))
    assert integers.indices.dtype == np.uint16
    assert integers.indices.tolist() == [[0, 1], [1, 0]]


@pytest.mark.parametrize("rerank", [bounded_assignment, greedy_matching])
def test_warns_where_an_image_must_answer_several(rerank):
    indices, scores = np.array([[0, 1], [0, 1], [1, 0], [0, 1]]), np.ones((4, 2))
    with pytest.warns(UserWarning, match="4 queries share 2 candidate images, but capacity is 1.*may lower"):
        rerank(indices, scores)


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"max_loss": -1}, "max_loss must be at least 0, got -1"),
        ({"max_loss": float("nan")}, "max_loss must be at least 0, got nan"),
        ({"capacity": 0}, "capacity must be at least 1, got 0"),
        ({"top_k": 9}, "top_k must be at most 2"),
        ({"query_ids": ["a", "a"]}, "queries 0 and 1 are both 'a'"),
    ],
)
def test_bad_options_are_named(chosen, message):
    with pytest.raises(ValueError, match=message):
        bounded_assignment(np.array([[0, 1], [0, 1]]), np.ones((2, 2)), **chosen)
