"""Dual softmax, Sinkhorn, CSLS and QB-Norm against loops over single numbers, and their promises."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ranked_lists import as_dicts, ranked_lists

from tpas.reranking.hubness import csls, dual_softmax, sinkhorn
from tpas.reranking.querybank import QueryBank, qb_norm

pytestmark = pytest.mark.filterwarnings("ignore:.*queries share .* candidate images:UserWarning")

TRANSDUCTIVE = (dual_softmax, sinkhorn, csls)


def dense_scores(queries=7, images=9, seed=0):
    """Random scores with a hub, image 2, that most queries rank first."""
    scores = np.random.default_rng(seed).standard_normal((queries, images))
    scores[:, 2] += 2
    return scores


def as_lists(dense, candidates):
    indices = np.argsort(-dense, axis=1, kind="stable")[:, :candidates]
    return indices, np.take_along_axis(dense, indices, axis=1)


def assert_ranked_by(result, expected):
    """The result holds the expected scores (a dict for each query), in descending order."""
    for found, wanted in zip(as_dicts(result.indices, result.scores), expected, strict=True):
        assert found == pytest.approx(wanted, abs=1e-9)
        assert list(found.values()) == sorted(found.values(), reverse=True)


def naive_dual_softmax(lists, temperature):
    powers = [{g: math.exp(s / temperature) for g, s in row.items()} for row in lists]
    total = {g: sum(row.get(g, 0) for row in powers) for row in powers for g in row}
    return [{g: math.log(p / sum(row.values()) * p / total[g]) for g, p in row.items()} for row in powers]


def naive_csls(lists, neighbours):
    last = sum(min(row.values()) for row in lists) / len(lists)
    of_images = min(neighbours, len(lists))

    def mean_of_image(g):
        best = sorted((row[g] for row in lists if g in row), reverse=True)[:of_images]
        return sum(best + [last] * (of_images - len(best))) / of_images

    def mean_of_query(row):
        best = sorted(row.values(), reverse=True)[:neighbours]
        return sum(best) / len(best)

    return [{g: 2 * s - mean_of_query(row) - mean_of_image(g) for g, s in row.items()} for row in lists]


@settings(max_examples=80)
@given(ranked_lists(), st.sampled_from([0.5, 1.0, 3.0]))
def test_dual_softmax_of_lists_by_a_loop(lists, temperature):
    result = dual_softmax(*lists, temperature=temperature)
    assert_ranked_by(result, naive_dual_softmax(as_dicts(*lists), temperature))


@settings(max_examples=80)
@given(ranked_lists(), st.integers(1, 12))
def test_csls_of_lists_by_a_loop(lists, neighbours):
    assert_ranked_by(csls(*lists, neighbours=neighbours), naive_csls(as_dicts(*lists), neighbours))


def test_dense_matrices_by_a_loop():
    dense = dense_scores()
    rows = [dict(enumerate(row)) for row in dense.tolist()]
    assert_ranked_by(dual_softmax(None, dense, temperature=0.4), naive_dual_softmax(rows, 0.4))
    assert_ranked_by(csls(None, dense, neighbours=3), naive_csls(rows, 3))


def test_matrices_that_are_worked_through_in_parts():
    """So large that neither all rows nor all columns are copied at once."""
    dense = dense_scores(2100, 2000)
    scores = torch.from_numpy(dense)
    softmaxes = (scores / 0.4).log_softmax(dim=0) + (scores / 0.4).log_softmax(dim=1)
    means = [scores.topk(3, dim=side).values.mean(dim=side, keepdim=True) for side in (0, 1)]
    for result, expected in (
        (dual_softmax(None, dense, temperature=0.4), softmaxes),
        (csls(None, dense, neighbours=3), 2 * scores - means[0] - means[1]),
    ):
        ranked = np.take_along_axis(expected.numpy(), result.indices, axis=1)
        np.testing.assert_allclose(result.scores, ranked, atol=1e-9)
        assert (np.diff(result.scores, axis=1) <= 0).all()
        assert (np.sort(result.indices, axis=1) == np.arange(2000)).all()


@pytest.mark.parametrize("rerank", TRANSDUCTIVE)
def test_whole_lists_are_a_dense_matrix(rerank):
    dense = dense_scores()
    whole, listed = rerank(None, dense), rerank(*as_lists(dense, dense.shape[1]))
    np.testing.assert_array_equal(whole.indices, listed.indices)
    np.testing.assert_allclose(whole.scores, listed.scores, atol=1e-9)
    assert whole.report == listed.report
    # All images take part, and only then the best are returned.
    np.testing.assert_array_equal(rerank(None, dense, top_k=3).indices, whole.indices[:, :3])


@pytest.mark.parametrize("rerank", TRANSDUCTIVE)
def test_a_hub_counts_less(rerank):
    result = rerank(None, dense_scores())
    assert result.report.collisions_before > result.report.collisions_after
    assert result.report.coverage_after > result.report.coverage_before
    assert result.report.moved == result.moved.sum() > 0
    assert result.report.transductive
    np.testing.assert_array_equal(result.moved, result.indices[:, 0] != dense_scores().argmax(axis=1))


@pytest.mark.parametrize("rerank", TRANSDUCTIVE)
@settings(max_examples=60)
@given(lists=ranked_lists())
def test_lists_keep_their_candidates_and_a_single_query_its_order(rerank, lists):
    indices, scores = lists
    result = rerank(indices, scores)
    np.testing.assert_array_equal(np.sort(result.indices, axis=1), np.sort(indices, axis=1))
    single = rerank(indices[:1], scores[:1])
    np.testing.assert_array_equal(single.indices, indices[:1])
    assert not single.moved.any()


@pytest.mark.parametrize("rerank", [*TRANSDUCTIVE, lambda *lists: qb_norm(*lists, bank=query_bank())])
@pytest.mark.parametrize("candidates", [None, 4])
def test_order_of_queries_means_nothing(rerank, candidates):
    dense = dense_scores(queries=20)
    indices, scores = (None, dense) if candidates is None else as_lists(dense, candidates)
    order = np.random.default_rng(1).permutation(len(dense))
    result = rerank(indices, scores)
    permuted = rerank(None if indices is None else indices[order], scores[order])
    np.testing.assert_array_equal(permuted.indices, result.indices[order])
    np.testing.assert_allclose(permuted.scores, result.scores[order])


def plan_of(result, images):
    """The transport plan (Q, G) that sinkhorn's scores are the logarithms of."""
    plan = np.zeros((len(result.indices), images))
    np.put_along_axis(plan, result.indices, np.exp(result.scores), axis=1)
    return plan


def test_sinkhorn_of_a_square_matrix_is_doubly_stochastic():
    dense = dense_scores(8, 8)
    plan = plan_of(sinkhorn(None, dense, temperature=0.3, iterations=3000), 8)
    np.testing.assert_allclose(plan.sum(axis=1), 1, atol=1e-9)
    np.testing.assert_allclose(plan.sum(axis=0), 1, atol=1e-6)
    # By Sinkhorn's theorem the one such matrix that is a diagonal times the kernel times a diagonal.
    ratio = np.log(plan) - dense / 0.3
    np.testing.assert_allclose(ratio - ratio[:1] - ratio[:, :1] + ratio[0, 0], 0, atol=1e-9)


@pytest.mark.parametrize("capacity", [1, 2])
def test_sinkhorn_leaves_distractors_their_room(capacity):
    dense = dense_scores(8, 20)
    plan = plan_of(sinkhorn(None, dense, temperature=0.3, iterations=3000, capacity=capacity), 20)
    columns = plan.sum(axis=0)
    np.testing.assert_allclose(plan.sum(axis=1), 1, atol=1e-9)
    assert columns.max() <= capacity + 1e-6
    assert columns[2] == pytest.approx(capacity, abs=1e-6)
    assert columns.min() < 0.2
    # Optimal by complementary slackness: only full columns are scaled down, the others all by 1.
    scaling = np.log(plan) - dense / 0.3
    scaling -= scaling.max(axis=1, keepdims=True)
    free = columns < capacity - 1e-6
    np.testing.assert_allclose(scaling[:, free], 0, atol=1e-6)
    assert (scaling <= 1e-9).all()


def test_sinkhorn_after_any_number_of_iterations_has_whole_queries():
    for indices, scores in ((None, dense_scores()), as_lists(dense_scores(), 3)):
        result = sinkhorn(indices, scores, temperature=0.1, iterations=1)
        np.testing.assert_allclose(np.exp(result.scores).sum(axis=1), 1, atol=1e-9)


def test_sinkhorn_stays_finite_where_no_plan_exists():
    indices, scores = np.zeros((50, 1), dtype=int), np.linspace(0, 5000, 50)[:, None]
    result = sinkhorn(indices, scores, temperature=1e-3, iterations=500)
    np.testing.assert_allclose(result.scores, 0, atol=1e-9)
    far = sinkhorn(None, np.array([[5000.0, 0], [4000, 0]]), temperature=1e-2, iterations=500)
    assert np.isfinite(far.scores).all()


def test_sinkhorn_warns_where_images_are_few():
    with pytest.warns(UserWarning, match="6 queries share 3 candidate images, but capacity is 1"):
        sinkhorn(None, dense_scores(6, 3))


def query_bank(captions=40, images=9, **chosen):
    return QueryBank.from_scores(dense_scores(captions, images, seed=5), **({"temperature": 0.5} | chosen))


def naive_qb_norm(rows, bank, temperature, activation):
    """The source's dynamic inverted softmax, in units of the score."""
    activated = set()
    for caption in bank:
        activated.update(sorted(range(len(caption)), key=lambda g: -caption[g])[:activation])
    new = []
    for row in rows:
        new.append(row)
        if max(row, key=row.get) in activated:
            total = {g: sum(math.exp(caption[g] / temperature) for caption in bank) for g in row}
            share = {g: math.exp(s / temperature) / total[g] for g, s in row.items()}
            new[-1] = {g: temperature * math.log(value) for g, value in share.items()}
    return new


@pytest.mark.parametrize("activation", [1, 2])
@pytest.mark.parametrize("candidates", [None, 5])
def test_qb_norm_by_a_loop(activation, candidates):
    dense, bank = dense_scores(30), dense_scores(6, seed=5)
    dense[:15, 2] -= 3  # so that some first answers are no hubs
    indices, scores = (None, dense) if candidates is None else as_lists(dense, candidates)
    of_captions = QueryBank.from_scores(bank, temperature=0.5, activation=activation)
    result = qb_norm(indices, scores, bank=of_captions)
    rows = [dict(enumerate(row)) for row in dense.tolist()] if indices is None else as_dicts(indices, scores)
    expected = naive_qb_norm(rows, bank.tolist(), 0.5, activation)
    assert_ranked_by(result, expected)
    assert 0 < sum(new != old for new, old in zip(expected, rows, strict=True)) < len(rows)
    assert not result.report.transductive


@settings(max_examples=80)
@given(ranked_lists(), st.booleans(), st.randoms(use_true_random=False))
def test_qb_norm_answers_a_query_alone_as_among_others(lists, dense, random):
    indices, scores = lists
    if dense:
        generator = np.random.default_rng(random.randrange(1000))
        indices, scores = None, generator.standard_normal((len(scores), 9))
    bank = query_bank()
    together = qb_norm(indices, scores, bank=bank)
    for query in range(len(scores)):
        row = slice(query, query + 1)
        alone = qb_norm(None if dense else indices[row], scores[row], bank=bank)
        assert alone.indices.tobytes() == together.indices[row].tobytes()
        assert alone.scores.tobytes() == together.scores[row].tobytes()
        assert alone.moved[0] == together.moved[query]


def test_the_other_re_rankers_answer_otherwise_alone():
    """The property above would be empty if they all had it."""
    dense = dense_scores()
    for rerank in TRANSDUCTIVE:
        together = rerank(None, dense).indices
        assert any((rerank(None, dense[[q]]).indices[0] != together[q]).any() for q in range(len(dense)))


@pytest.mark.parametrize("rerank", [*TRANSDUCTIVE, lambda *lists: qb_norm(*lists, bank=query_bank())])
@pytest.mark.parametrize(
    ("given_type", "score_type"),
    [
        *((torch.float32, torch.float32), (torch.float64, torch.float64)),
        *((torch.bfloat16, torch.float32), (torch.int64, torch.float64)),
    ],
)
def test_tensors_give_tensors(rerank, given_type, score_type):
    dense = (torch.from_numpy(dense_scores()) * 4).to(given_type)
    result, array = rerank(None, dense), rerank(None, dense.double().numpy())
    assert result.scores.dtype == score_type
    np.testing.assert_array_equal(result.moved.numpy(), array.moved)
    np.testing.assert_allclose(result.scores.numpy(), array.scores, rtol=1e-4, atol=1e-5)
    indices, scores = as_lists(dense.double().numpy(), 4)
    listed = rerank(torch.from_numpy(indices).int(), torch.from_numpy(scores).to(given_type))
    assert listed.indices.dtype == torch.int32


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: dual_softmax(None, np.ones((2, 3)), temperature=0), "temperature must be greater than 0"),
        (lambda: sinkhorn(None, np.ones((2, 3)), temperature=-1), "temperature must be greater than 0"),
        (lambda: sinkhorn(None, np.ones((2, 3)), iterations=0), "iterations must be at least 1, got 0"),
        (lambda: sinkhorn(None, np.ones((2, 3)), capacity=0), "capacity must be at least 1, got 0"),
        (lambda: csls(None, np.ones((2, 3)), neighbours=0), "neighbours must be at least 1, got 0"),
        (lambda: csls(None, np.ones((2, 3)), top_k=4), "top_k must be at most 3, .*, got 4"),
        (lambda: csls(None, np.array([[1, np.nan]])), "scores must be finite, .*; query 0"),
        (lambda: csls([[0, 0]], [[1, 0]]), "must not repeat within a row"),
        (lambda: query_bank(temperature=0), "temperature must be greater than 0"),
        (lambda: query_bank(activation=10), "activation must be at most the 9 images, got 10"),
        (lambda: QueryBank.from_scores([[1, np.inf]]), "scores must be finite, .*; query 0"),
        (lambda: QueryBank.from_scores([[1, -np.inf]]), "-inf, which says .*: score every image for every"),
        (lambda: qb_norm(None, np.ones((2, 3)), bank=query_bank()), "9 images, the dense scores have 3"),
        (lambda: qb_norm([[1, 9]], [[2, 1]], bank=query_bank()), r"the 9 images .*; query 0 has \[1, 9\]"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
