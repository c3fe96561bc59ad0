"""Scores that only fill up what was not scored: every method answers as on the lists of what was."""

from functools import partial

import numpy as np
import pytest

from tpas.reranking.fusion import SystemScores, reciprocal_rank, weighted_sum
from tpas.reranking.hubness import csls, dual_softmax, sinkhorn
from tpas.reranking.one_to_one import bounded_assignment, greedy_matching
from tpas.reranking.querybank import QueryBank, qb_norm
from tpas.sca import filling_of, sca_rerank

QUERIES, IMAGES, SCORED = 30, 40, 6
BANK = QueryBank.from_scores(np.random.default_rng(5).standard_normal((12, IMAGES)), temperature=1.0)
OF_ANY_LENGTH = [
    sca_rerank,
    partial(sca_rerank, confidence="margin", max_shift=4),
    partial(sca_rerank, confidence="softmax", max_shift=4),
    partial(sca_rerank, mode="single_pass"),
    bounded_assignment,
    partial(bounded_assignment, max_loss=2.0),
    greedy_matching,
]
OF_ONE_LENGTH = [
    partial(dual_softmax, temperature=1.0),
    partial(sinkhorn, temperature=1.0),
    csls,
    partial(qb_norm, bank=BANK),
]


def system(indices, scores):
    return SystemScores(scores, indices)


def other_system():
    return SystemScores(np.random.default_rng(9).standard_normal((QUERIES, IMAGES)))


FUSIONS = [
    lambda *lists: weighted_sum([system(*lists), other_system()], [1, 2]),
    lambda *lists: weighted_sum([system(*lists)] * 2, [1, 2]),
    lambda *lists: reciprocal_rank([system(*lists), other_system()]),
    lambda *lists: reciprocal_rank([system(*lists)] * 2),
]


def scored_lists(scored=SCORED):
    """Logits of each query's best images, of both signs, with hubs and collisions."""
    scores = 4 * np.random.default_rng(0).standard_normal((QUERIES, IMAGES)).astype(np.float32)
    scores[:, :3] += 6
    indices = np.argsort(-scores, axis=1, kind="stable")[:, :scored]
    return indices, np.take_along_axis(scores, indices, axis=1)


def filled(indices, scores, filling):
    """The whole matrix, as evaluation scripts make it."""
    whole = np.full((QUERIES, IMAGES), filling, dtype=scores.dtype)
    np.put_along_axis(whole, indices, scores, axis=1)
    return whole


def assert_the_same(result, expected):
    np.testing.assert_array_equal(result.indices, expected.indices)
    np.testing.assert_array_equal(result.scores, expected.scores)
    if hasattr(expected, "report"):
        np.testing.assert_array_equal(result.moved, expected.moved)
        assert result.report == expected.report


@pytest.mark.parametrize("filling", [-100.0, 0.0, -1e4, -3e38, -np.inf])
@pytest.mark.parametrize("method", [*OF_ANY_LENGTH, *OF_ONE_LENGTH, *FUSIONS])
def test_a_filled_matrix_is_the_lists_of_what_was_scored(method, filling):
    lists = scored_lists()
    with pytest.warns(UserWarning, match=r"1,020 of 1,200 scores are (about )?[^ ]*: taken as not scored"):
        result = method(None, filled(*lists, filling))
    assert_the_same(result, method(*lists))


@pytest.mark.parametrize("method", [*OF_ANY_LENGTH, *OF_ONE_LENGTH, *FUSIONS])
def test_lists_that_end_in_a_filling_end_before_it(method):
    lists = scored_lists()
    whole = filled(*lists, -100.0)
    indices = np.argsort(-whole, axis=1, kind="stable")[:, :20]  # as a search for the best 20 gives them
    with pytest.warns(UserWarning, match="420 of 600 scores are -100: taken as not scored"):
        result = method(indices, np.take_along_axis(whole, indices, axis=1))
    assert_the_same(result, method(*lists))


def test_what_is_added_to_scores_is_a_filling_too():
    """As a mask of -1e9 is, so that no two numbers are equal."""
    lists = scored_lists()
    masked = filled(*lists, 0.0) + np.random.default_rng(1).random((QUERIES, IMAGES), dtype=np.float32)
    masked = filled(*lists, 0.0) + np.where(filled(*lists, 0.0) == 0, masked - 1e9, 0)
    with pytest.warns(UserWarning, match=r"scores are about -1e\+09"):
        assert_the_same(csls(None, masked), csls(*lists))


def uneven():
    """A matrix in which query 0 has one image alone, and the lists of the others."""
    indices, scores = scored_lists()
    whole = filled(indices, scores, -100.0)
    whole[0, indices[0, 1:]] = -100
    return whole, indices, scores


@pytest.mark.parametrize("method", OF_ANY_LENGTH)
def test_no_query_gets_an_image_that_was_not_scored(method):
    whole, indices, _ = uneven()
    with pytest.warns(UserWarning, match="1,025 of 1,200 scores"):
        result = method(None, whole)
    assert result.indices.shape == (QUERIES, SCORED)
    assert result.indices[0, 0] == indices[0, 0]
    assert result.scores[0].tolist() == [whole[0, indices[0, 0]], *[-100] * 5]
    assert result.moved.any()
    np.testing.assert_array_equal(np.sort(result.indices[1:], axis=1), np.sort(indices[1:], axis=1))
    assert (result.scores[1:, 0] > -100).all()


@pytest.mark.parametrize("method", OF_ONE_LENGTH)
@pytest.mark.filterwarnings("ignore:.*taken as not scored", "ignore:.*candidate images")
def test_unequal_numbers_of_scores_are_refused_with_the_way_out(method):
    whole, indices, scores = uneven()
    with pytest.raises(ValueError, match="between 1 and 6 scored images, .*: pass top_k=1 to keep"):
        method(None, whole)
    assert_the_same(method(None, whole, top_k=1), method(indices[:, :1], scores[:, :1]))


@pytest.mark.filterwarnings("ignore:.*taken as not scored")
def test_fusion_of_unequal_numbers_of_scores_by_hand():
    inf = np.inf
    one = SystemScores(np.array([[4.0, 2, -inf], [0.5, -inf, -inf]]))
    other = SystemScores(np.array([[0.0, 0, 0.5], [0.0, 0.5, 0]]))
    low, high = -(0.5**0.5), 2**0.5  # z of three numbers of which one is greater
    summed = weighted_sum([one, other], [1, 1])
    np.testing.assert_allclose(summed.scores, [[1 + low, -1 + low, -1 + high], [low, high, low]], rtol=1e-6)
    ranked = reciprocal_rank([one, other], constant=0)
    expected = [[1 + 1 / 2, 1 / 2 + 1 / 3, 1], [1 + 1 / 2, 1, 1 / 3]]
    np.testing.assert_allclose(ranked.scores, expected, rtol=1e-6)


@pytest.mark.parametrize(
    "scores",
    [
        np.eye(8),
        np.maximum(0, np.arange(36.0) - 25).reshape(4, 9),  # words in common
        np.where(np.eye(8) > 0, 0.5, 0),  # fractions, but a label
        np.array([[0.001, -2.5]]),
        np.array([[0.7, 0.3], [-100, -100]]),  # a query of low scores
        np.array([[0.9, -20.0], [0.8, -30]]),
        scored_lists()[1],
        np.random.default_rng(0).integers(-5, 5, (20, 20)),
    ],
)
def test_scores_are_not_taken_for_a_filling(scores):
    assert filling_of(scores) is None


def test_a_filled_bank_is_refused():
    with pytest.raises(ValueError, match="the bank's scores hold -100, .*: score every image"):
        QueryBank.from_scores(filled(*scored_lists(), -100.0))
