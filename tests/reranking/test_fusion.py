"""Weighted sum and reciprocal rank fusion against loops, and what a list that lacks an image does."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tpas.reranking.fusion import SystemScores, reciprocal_rank, standardise, weighted_sum


@st.composite
def fusions(draw):
    """Two or three systems, each dense or lists, of the same queries and images, and their weights."""
    queries, images = draw(st.integers(1, 4)), draw(st.integers(1, 7))
    generator = np.random.default_rng(draw(st.integers(0, 10**6)))
    systems = []
    for _ in range(draw(st.integers(2, 3))):
        dense = generator.integers(0, 6, (queries, images)) / 2
        if draw(st.booleans()):
            systems.append(SystemScores(dense))
        else:
            order = np.argsort(-dense, axis=1, kind="stable")[:, : draw(st.integers(1, images))]
            systems.append(SystemScores(np.take_along_axis(dense, order, axis=1), order))
    weights = [draw(st.sampled_from([0.0, 0.5, 2.0])) for _ in systems[1:]] + [1.0]
    return systems, weights


def listed(system, query):
    """A query's images and scores in the system, best first."""
    row = system.scores[query].tolist()
    images = range(len(row)) if system.indices is None else system.indices[query].tolist()
    return sorted(zip(images, row, strict=True), key=lambda pair: (-pair[1], pair[0]))


def naive_weighted_sum(systems, weights, query):
    total = {}
    z_scores = []
    for system in systems:
        images, scores = zip(*listed(system, query), strict=True)
        deviation = np.std(scores) if len(set(scores)) > 1 else 1.0
        z_scores.append({g: (s - np.mean(scores)) / deviation for g, s in zip(images, scores, strict=True)})
    for image in set().union(*z_scores):
        weighted = zip(z_scores, weights, strict=True)
        total[image] = sum(weight * z.get(image, min(z.values())) for z, weight in weighted)
    return total


def naive_reciprocal_rank(systems, constant, query):
    total = {}
    for system in systems:
        ranked = [image for image, _ in listed(system, query)]
        if system.indices is not None:
            ranked = system.indices[query].tolist()  # lists say the order of equal scores themselves
        for rank, image in enumerate(ranked, start=1):
            total[image] = total.get(image, 0) + 1 / (constant + rank)
    return total


def assert_is(fused, systems, expected, top_k):
    """`fused` holds `expected`, a dict from image to score for each query."""
    longest = max(system.scores.shape[1] for system in systems)
    if top_k is None and any(system.indices is None for system in systems):
        assert fused.indices is None
        for row, total in zip(fused.scores, expected, strict=True):
            np.testing.assert_allclose(row, [total[g] for g in range(longest)], atol=1e-5)
        return
    assert fused.indices.shape == fused.scores.shape == (len(expected), top_k or longest)
    for images, scores, total in zip(fused.indices.tolist(), fused.scores.tolist(), expected, strict=True):
        assert len(set(images)) == len(images)
        assert scores == pytest.approx([total[image] for image in images], abs=1e-5)
        assert scores == pytest.approx(sorted(total.values(), reverse=True)[: len(images)], abs=1e-5)
        pairs = [*zip(images, scores, strict=True)]
        assert pairs == sorted(pairs, key=lambda pair: (-pair[1], pair[0]))


@settings(max_examples=150)
@given(fusions(), st.sampled_from([None, 1]))
def test_weighted_sum_by_a_loop(fusion, top_k):
    systems, weights = fusion
    fused = weighted_sum(systems, weights, top_k=top_k)
    expected = [naive_weighted_sum(systems, weights, query) for query in range(len(systems[0].scores))]
    assert_is(fused, systems, expected, top_k)


@settings(max_examples=150)
@given(fusions(), st.sampled_from([0, 60]), st.sampled_from([None, 1]))
def test_reciprocal_rank_by_a_loop(fusion, constant, top_k):
    systems, _ = fusion
    fused = reciprocal_rank(systems, constant=constant, top_k=top_k)
    expected = [naive_reciprocal_rank(systems, constant, query) for query in range(len(systems[0].scores))]
    assert_is(fused, systems, expected, top_k)


def test_an_image_that_a_list_lacks_by_hand():
    # z: 1 and -1 in each. Image 5 is only in the first list, 9 only in the second: there -1 for them.
    one, other = np.array([[0.9, 0.7]]), np.array([[40.0, 20]])
    lists = [SystemScores(one, np.array([[3, 5]])), SystemScores(other, np.array([[9, 3]]))]
    fused = weighted_sum(lists, [1.0, 2.0])
    assert fused.indices.tolist() == [[9, 3]]
    assert fused.scores.tolist() == [[2 - 1, 1 - 2]]  # 5 has -1 - 2 and is cut off
    by_rank = reciprocal_rank(lists)
    assert by_rank.indices.tolist() == [[3, 9]]
    np.testing.assert_allclose(by_rank.scores, [[1 / 61 + 1 / 62, 1 / 61]], rtol=1e-6)


@pytest.mark.parametrize(
    ("fuse", "dense"), [(weighted_sum, False), (weighted_sum, True), (reciprocal_rank, True)]
)
def test_large_input_is_fused_in_parts(fuse, dense):
    generator = np.random.default_rng(0)
    scores = -np.sort(-generator.random((410, 5000)), axis=1)
    order = generator.permuted(np.tile(np.arange(6000), (410, 1)), axis=1)[:, :5000]
    systems = [SystemScores(scores, order), SystemScores(scores**2, order[::-1])]
    if dense:
        systems.append(SystemScores(generator.random((410, 6000))))
    weights = {"weights": [1] * len(systems)} if fuse is weighted_sum else {}
    last = slice(380, 410)  # reaches into the last part, and alone is a part of its own
    ends = [replace(system, scores=system.scores[last]) for system in systems]
    ends = [end if end.indices is None else replace(end, indices=end.indices[last]) for end in ends]
    whole, alone = fuse(systems, top_k=4, **weights), fuse(ends, top_k=4, **weights)
    np.testing.assert_array_equal(whole.indices[last], alone.indices)
    np.testing.assert_array_equal(whole.scores[last], alone.scores)


def test_standardise_of_constant_rows_and_of_integers():
    z = standardise(np.array([[1, 2, 3], [7, 7, 7]]))
    np.testing.assert_allclose(z, [[-(1.5**0.5), 0, 1.5**0.5], [0, 0, 0]])
    # 0.1 has no exact mean, and that rounding is no deviation.
    assert standardise(np.full((1, 3), 0.1)).tolist() == [[0, 0, 0]]


SYSTEMS = [SystemScores(np.ones((2, 3))), SystemScores(np.ones((2, 2)), np.array([[0, 1], [0, 1]]))]


def unlike(*shape: int) -> list[SystemScores]:
    return [SYSTEMS[0], SystemScores(np.ones(shape))]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: weighted_sum(SYSTEMS, [1.0]), "one for each of the 2 systems, got 1"),
        (lambda: weighted_sum(SYSTEMS, [1.0, -1.0]), r"finite, at least 0 and not all 0, got \[1.0, -1.0\]"),
        (lambda: weighted_sum(SYSTEMS, [0.0, 0.0]), "not all 0"),
        (lambda: weighted_sum(SYSTEMS, [float("nan"), 1.0]), "finite"),
        (lambda: weighted_sum(SYSTEMS, [1, 1], top_k=4), "top_k must be at most 3, .* got 4"),
        (lambda: weighted_sum(SYSTEMS[1:], [1], top_k=0), "top_k must be at least 1, got 0"),
        (lambda: reciprocal_rank(SYSTEMS, constant=-1), "constant must be at least 0, got -1"),
        (lambda: weighted_sum(unlike(2, 4), [1, 1]), r"same .* images, got shapes \(2, 3\), \(2, 4\)"),
        (lambda: reciprocal_rank(unlike(3, 3)), r"same queries and images, got shapes \(2, 3\), \(3, 3\)"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("fuse", [lambda systems: weighted_sum(systems, [1, 2]), reciprocal_rank])
def test_numbers_of_images_may_be_as_large_as_hashes(fuse):
    generator = np.random.default_rng(0)
    scores = -np.sort(-generator.random((2, 5, 4)), axis=2)
    lists = generator.permuted(np.tile(np.arange(6), (2, 5, 1)), axis=2)[:, :, :4]
    names = np.sort(generator.integers(2**61, 2**63 - 1, 6))
    plain, named = (
        fuse([SystemScores(values, indices) for values, indices in zip(scores, of_images, strict=True)])
        for of_images in (lists, names[lists])
    )
    np.testing.assert_array_equal(names[plain.indices], named.indices)
    np.testing.assert_array_equal(plain.scores, named.scores)
