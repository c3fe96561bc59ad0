"""sca.py against a literal transcription of the procedure, brute-force stable matchings, and its promises."""

import json
import math
import subprocess
import sys
import warnings
from collections import deque
from dataclasses import asdict
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from ranked_lists import as_dicts, ranked_lists

from tpas.sca import coverage, sca_rerank

SOURCE = Path(__file__).parents[1] / "sca.py"

# Few images for many queries collide often, which the warning is about; a test of its own asks for it.
pytestmark = pytest.mark.filterwarnings("ignore:.*queries share .* candidate images:UserWarning")


@st.composite
def options(draw, candidates, queries):
    """Every option at once; the arguments of `sca_rerank`."""
    mode = draw(st.sampled_from(["deferred", "deferred", "single_pass"]))
    chosen = {
        "confidence": draw(st.sampled_from(["score", "softmax", "margin"])),
        "mode": mode,
        "max_shift": draw(st.integers(0, 1 if mode == "single_pass" else candidates + 1)),
        "tau": draw(st.sampled_from([0.0, 0.0, 0.05, 1.0, 2.0])),
        "temperature": draw(st.sampled_from([0.5, 1.0, 2.0])),
        "capacity": draw(st.sampled_from([1, 1, 1, 2, 3])),
        "query_ids": draw(st.permutations([f"query {number}" for number in range(queries)])),
    }
    if draw(st.booleans()):
        coordinates = st.lists(st.sampled_from([-1.0, 0.5, 2.0]), min_size=3, max_size=3)
        chosen["text_embeds"] = np.array([draw(coordinates) for _ in range(queries)])
        chosen["text_threshold"] = draw(st.sampled_from([-1.0, 0.0, 0.6, 1.0]))
    return chosen


@st.composite
def problems(draw, **limits):
    indices, scores = draw(ranked_lists(**limits))
    return indices, scores, draw(options(indices.shape[1], len(indices)))


def confidences(row, confidence, temperature):
    row = [float(value) for value in row]
    if confidence == "margin":
        return [row[k] - row[k + 1] for k in range(len(row) - 1)] + [0.0]
    if confidence == "softmax":
        powers = [math.exp(value / temperature) for value in row]
        return [power / sum(powers) for power in powers]
    return row


def literal(indices, scores, *, confidence, mode, max_shift, tau, temperature, capacity, query_ids, **texts):
    """The procedure of the design, step by step and slowly: the place of each query's final answer, moves."""
    queries, candidates = indices.shape
    # Rounding as that of the array arithmetic must not decide what is equal.
    trust = [[round(c, 12) for c in confidences(row, confidence, temperature)] for row in scores]

    def similar(left, right):
        if not texts:
            return True
        a, b = texts["text_embeds"][left], texts["text_embeds"][right]
        return a @ b / np.linalg.norm(a) / np.linalg.norm(b) >= texts["text_threshold"] - 1e-9

    def before(left, right):
        """Whether the first (confidence, query) beats the second."""
        if left[0] != right[0]:
            return left[0] > right[0]
        return query_ids[left[1]] < query_ids[right[1]]

    pointer = [0] * queries
    holders = {}
    moves = 0
    lost_in_single_pass = set()
    waiting = deque(sorted(range(queries), key=lambda q: (-trust[q][0], query_ids[q])))
    while waiting:
        query = waiting.popleft()
        claim = (trust[query][pointer[query]], query)
        held_by = holders.setdefault(int(indices[query, pointer[query]]), [])
        if len(held_by) < capacity:
            held_by.append(claim)
            continue
        weakest = held_by[0]
        for other in held_by:
            if before(weakest, other):
                weakest = other
        if not similar(query, weakest[1]):
            continue
        if tau > 0 and abs(claim[0] - weakest[0]) <= tau:
            continue
        loser = query
        if before(claim, weakest):
            held_by.remove(weakest)
            held_by.append(claim)
            loser = weakest[1]
        if mode == "single_pass":
            lost_in_single_pass.add(loser)
        elif pointer[loser] < min(max_shift, candidates - 1):
            pointer[loser] += 1
            moves += 1
            waiting.append(loser)
        else:
            pointer[loser] = 0
    if mode == "single_pass" and max_shift == 1 and candidates > 1:
        for query in lost_in_single_pass:
            pointer[query] = 1
        moves = len(lost_in_single_pass)
    return pointer, moves


def assert_equals_the_literal_procedure(indices, scores, chosen):
    copies = indices.copy(), scores.copy()
    result = sca_rerank(indices, scores, **chosen)
    pointer, moves = literal(indices, scores, **chosen)

    for query, place in enumerate(pointer):
        order = [place, *(k for k in range(indices.shape[1]) if k != place)]
        assert result.indices[query].tolist() == indices[query, order].tolist()
        assert result.scores[query].tolist() == scores[query, order].tolist()
    assert result.moved.tolist() == [place > 0 for place in pointer]

    def collisions(first):
        return sum(first.count(image) > chosen["capacity"] for image in first)

    first, new_first = indices[:, 0].tolist(), result.indices[:, 0].tolist()
    assert asdict(result.report) == {
        "queries": len(first),
        "collisions_before": collisions(first),
        "collisions_after": collisions(new_first),
        "coverage_before": len(set(first)) / len(first),
        "coverage_after": len(set(new_first)) / len(first),
        "moved": sum(place > 0 for place in pointer),
        "moves": moves,
    }
    assert json.loads(json.dumps(asdict(result.report))) == asdict(result.report)
    np.testing.assert_array_equal(indices, copies[0])
    np.testing.assert_array_equal(scores, copies[1])


@settings(max_examples=300)
@given(problems())
def test_equals_the_literal_procedure(problem):
    assert_equals_the_literal_procedure(*problem)


@pytest.mark.parametrize("confidence", ["score", "softmax", "margin"])
@pytest.mark.parametrize("mode", ["deferred", "single_pass"])
@pytest.mark.parametrize(("capacity", "tau", "gated"), [(1, 0.0, False), (3, 0.0, False), (2, 0.25, True)])
def test_long_chains_equal_the_literal_procedure(confidence, mode, capacity, tau, gated):
    generator = np.random.default_rng(5)
    queries, images, candidates = 300, 150, 8
    ranked = np.argsort(generator.random((queries, images)) ** 0.2 + np.linspace(0, 0.5, images), axis=1)
    scores = -np.sort(-generator.integers(0, 40, (queries, candidates)) / 8, axis=1)  # eighths are exact
    chosen = {"confidence": confidence, "mode": mode, "max_shift": 1 if mode == "single_pass" else 6}
    chosen |= {"tau": tau, "temperature": 1.0, "capacity": capacity}
    chosen["query_ids"] = generator.permutation(queries).tolist()
    if gated:
        chosen |= {"text_embeds": generator.standard_normal((queries, 4)), "text_threshold": -0.3}
    assert_equals_the_literal_procedure(ranked[:, :candidates], scores, chosen)


def all_competing(chosen):
    """The options with those turned off that make the order of claims matter."""
    kept = {name: value for name, value in chosen.items() if not name.startswith("text_")}
    return kept | {"capacity": 1, "tau": 0.0, "mode": "deferred"}


@settings(max_examples=200)
@given(problem=problems())
def test_many_claims_at_once_equal_the_literal_procedure(problem):
    """Of so many copies of a problem, each with images of its own, that their losers move on in rounds."""
    indices, scores, chosen = problem
    chosen, copies = all_competing(chosen), 2001
    place, moves = literal(indices, scores, **chosen)
    by_id = np.argsort(chosen.pop("query_ids"))
    images = (indices[by_id] + 10 * np.arange(copies)[:, None, None]).reshape(-1, indices.shape[1])
    for many in (images, images + 10**12):
        result = sca_rerank(many, np.tile(scores[by_id], (copies, 1)), **chosen)
        assert result.report.moves == copies * moves
        expected = many[np.arange(len(many)), np.tile(np.array(place)[by_id], copies)]
        np.testing.assert_array_equal(result.indices[:, 0], expected)


@pytest.mark.parametrize("confidence", ["score", "softmax", "margin"])
@pytest.mark.parametrize("largest_image", [0, 10**9])
def test_claims_at_once_and_then_one_by_one_equal_the_literal_procedure(confidence, largest_image):
    generator = np.random.default_rng(7)
    queries, candidates = 6000, 8
    indices = (queries * generator.random((queries, 3 * candidates)) ** 2).astype(int)
    indices = np.array([list(dict.fromkeys(row))[:candidates] for row in indices.tolist()]) + largest_image
    scores = -np.sort(-generator.integers(0, 200, (queries, candidates)) / 8, axis=1)
    chosen = {"confidence": confidence, "mode": "deferred", "max_shift": candidates - 1, "tau": 0.0}
    chosen |= {"temperature": 1.0, "capacity": 1, "query_ids": range(queries)}
    assert_equals_the_literal_procedure(indices, scores, chosen)


def stable_matchings(indices, trust, rank):
    """All stable matchings by trying every one: for each query the place of its image, or None."""
    queries, candidates = indices.shape
    for places in product([*range(candidates), None], repeat=queries):
        held = {int(indices[q, k]): q for q, k in enumerate(places) if k is not None}
        if len(held) < sum(k is not None for k in places):
            continue  # an image was given twice

        def blocks(query, k, held=held, places=places):
            """Query and its k-th candidate would both rather have each other."""
            if places[query] is not None and places[query] <= k:
                return False
            image = int(indices[query, k])
            if image not in held:
                return True
            holder = held[image]
            rival = (trust[holder][places[holder]], -rank[holder])
            return (trust[query][k], -rank[query]) > rival

        if not any(blocks(query, k) for query in range(queries) for k in range(candidates)):
            yield places


@settings(max_examples=120)
@given(
    ranked_lists(most_queries=4, most_candidates=3, most_images=4),
    st.sampled_from(["score", "softmax", "margin"]),
    st.randoms(use_true_random=False),
)
def test_unbounded_deferred_is_the_stable_matching(lists, confidence, random):
    indices, scores = lists
    queries, candidates = indices.shape
    query_ids = random.sample(range(100), queries)
    trust = [[round(c, 12) for c in confidences(row, confidence, 1.0)] for row in scores]
    stable = list(stable_matchings(indices, trust, query_ids))
    if confidence != "margin":
        assert len(stable) == 1
    # Among several, deferred acceptance finds the one in which every query has the best it has in any.
    best = [min((m[q] for m in stable if m[q] is not None), default=None) for q in range(queries)]
    assert tuple(best) in stable

    result = sca_rerank(indices, scores, confidence=confidence, max_shift=candidates - 1, query_ids=query_ids)
    expected = [indices[q, 0 if best[q] is None else best[q]] for q in range(queries)]
    assert result.indices[:, 0].tolist() == expected


@settings(max_examples=150)
@given(problems())
def test_deeper_sets_stay_and_coverage_never_falls(problem):
    indices, scores, chosen = problem
    result = sca_rerank(indices, scores, **chosen)
    for k in range(chosen["max_shift"] + 1, indices.shape[1] + 1):
        for row, new_row in zip(indices, result.indices, strict=True):
            assert set(row[:k]) == set(new_row[:k])
    assert as_dicts(result.indices, result.scores) == as_dicts(indices, scores)
    assert set(indices[:, 0]) <= set(result.indices[:, 0])
    assert coverage(result.indices) == result.report.coverage_after >= result.report.coverage_before


def of_queries(chosen, rows):
    """The options for some of the queries."""
    per_query = {name: chosen[name] for name in ("query_ids", "text_embeds") if name in chosen}
    return chosen | {name: [values[row] for row in rows] for name, values in per_query.items()}


@settings(max_examples=100)
@given(problems())
def test_nothing_changes_without_collisions(problem):
    indices, scores, chosen = problem
    first_claims = [int(np.flatnonzero(indices[:, 0] == image)[0]) for image in np.unique(indices[:, 0])]
    for kept in (first_claims, [0]):  # one query for each claimed image; a single query
        result = sca_rerank(indices[kept], scores[kept], **of_queries(chosen, kept))
        np.testing.assert_array_equal(result.indices, indices[kept])
        np.testing.assert_array_equal(result.scores, scores[kept])
        assert not result.moved.any()
        assert result.report.moves == result.report.collisions_before == result.report.collisions_after == 0


@settings(max_examples=150)
@given(problems(), st.randoms(use_true_random=False))
def test_order_of_queries_and_names_of_images_mean_nothing(problem, random):
    indices, scores, chosen = problem
    result = sca_rerank(indices, scores, **chosen)
    again = sca_rerank(indices, scores, **chosen)
    assert again.indices.tobytes() == result.indices.tobytes()
    assert again.scores.tobytes() == result.scores.tobytes()

    order = random.sample(range(len(indices)), len(indices))
    permuted = sca_rerank(indices[order], scores[order], **of_queries(chosen, order))
    np.testing.assert_array_equal(permuted.indices, result.indices[order])
    np.testing.assert_array_equal(permuted.scores, result.scores[order])
    assert permuted.report == result.report

    names = np.array(random.sample(range(10**12), int(indices.max()) + 1))
    renamed = sca_rerank(names[indices], scores, **chosen)
    np.testing.assert_array_equal(renamed.indices, names[result.indices])
    assert renamed.report == result.report


@settings(max_examples=150)
@given(problems(), st.data())
def test_margin_and_softmax_ignore_a_query_s_offset(problem, data):
    indices, scores, chosen = problem
    assume(chosen["confidence"] != "score")
    offsets = data.draw(st.lists(st.integers(-5000, 5000), min_size=len(indices), max_size=len(indices)))
    shifted = sca_rerank(indices, scores + np.array(offsets)[:, None], **chosen)
    np.testing.assert_array_equal(shifted.indices, sca_rerank(indices, scores, **chosen).indices)


def test_the_paper_s_default_by_hand():
    indices = np.array([[7, 3, 5], [7, 5, 3], [7, 5, 3], [9, 7, 3]])
    scores = np.array([[0.9, 0.5, 0.1], [0.8, 0.7, 0.1], [0.7, 0.6, 0.1], [0.2, 0.1, 0.0]])
    result = sca_rerank(indices, scores)
    # Image 7 stays with query 0; query 1 takes its second answer, which query 2 then finds taken.
    assert result.indices.tolist() == [[7, 3, 5], [5, 7, 3], [7, 5, 3], [9, 7, 3]]
    assert result.scores.tolist() == [[0.9, 0.5, 0.1], [0.7, 0.8, 0.1], [0.7, 0.6, 0.1], [0.2, 0.1, 0.0]]
    assert result.moved.tolist() == [False, True, False, False]
    assert asdict(result.report) == {
        **{"queries": 4, "moved": 1, "moves": 2, "collisions_before": 3, "collisions_after": 2},
        **{"coverage_before": 0.5, "coverage_after": 0.75},
    }
    assert sca_rerank(indices, scores, mode="single_pass").indices[:, 0].tolist() == [7, 5, 5, 9]
    # Query 2 falls to its third answer where it may; with room for two, only query 2 has to leave image 7.
    assert sca_rerank(indices, scores, max_shift=2).indices[:, 0].tolist() == [7, 5, 3, 9]
    assert sca_rerank(indices, scores, capacity=2).indices[:, 0].tolist() == [7, 7, 5, 9]
    # By margin, 7 - 1 and 6 - 0: queries 1 and 2 tie in their second answer, and the smaller id has it.
    tied = np.array([[9, 5, 1], [8, 7, 1], [7, 6, 0], [2, 1, 0]])
    by_id = sca_rerank(indices, tied, confidence="margin", query_ids=["b", "d", "a", "c"])
    assert by_id.indices[:, 0].tolist() == [7, 7, 5, 9]


def test_temperature_decides_by_gap_or_by_field():
    indices, scores = np.array([[0, 1, 2], [0, 1, 2]]), np.array([[2.0, 0, 0], [1.5, 0, -9]])
    # 1 / (1 + 2 exp(-4)) = 0.965 against 1 / (1 + exp(-3)) = 0.953 at 0.5; 0.379 against 0.452 at 10
    assert sca_rerank(indices, scores, confidence="softmax", temperature=0.5).moved.tolist() == [False, True]
    assert sca_rerank(indices, scores, confidence="softmax", temperature=10).moved.tolist() == [True, False]


def test_a_moving_query_displaces_a_less_confident_holder():
    indices = np.array([[0, 1, 2], [0, 1, 2], [1, 2, 0]])
    scores = np.array([[9.0, 1, 0], [8, 7, 0], [6, 5, 0]])
    result = sca_rerank(indices, scores)
    assert result.indices[:, 0].tolist() == [0, 1, 2]
    assert result.report.coverage_after == 1.0


def test_tau_and_text_gate_by_hand():
    indices, scores = np.array([[0, 1], [0, 1]]), np.array([[0.9, 0.1], [0.7, 0.1]])
    assert sca_rerank(indices, scores, tau=0.1).moved.tolist() == [False, True]
    assert sca_rerank(indices, scores, tau=0.3).moved.tolist() == [False, False]
    for embeds, threshold, moves_on in (
        ([[1, 0], [3, 4]], 0.6, True),  # the cosine is 0.6, whatever the lengths
        ([[1, 0], [3, 4]], 0.7, False),
        ([[0.1, 0.9], np.array([0.1, 0.9]) * 3], 1.0, True),  # which rounds to 0.9999999999999998
    ):
        result = sca_rerank(indices, scores, text_embeds=embeds, text_threshold=threshold)
        assert result.moved.tolist() == [False, moves_on]


@settings(max_examples=60)
@given(st.integers(1, 8), st.integers(1, 6), st.data())
def test_a_dense_matrix_is_cut_to_its_best(queries, images, data):
    row = st.lists(st.integers(0, 3), min_size=images, max_size=images)
    rows = data.draw(st.lists(row, min_size=queries, max_size=queries))
    dense, top_k = np.array(rows, dtype=np.float32), data.draw(st.integers(1, images))
    indices = np.array([sorted(range(len(row)), key=lambda g: (-row[g], g))[:top_k] for row in rows])
    scores = np.take_along_axis(dense, indices, axis=1)
    cut, listed = sca_rerank(None, dense, top_k=top_k), sca_rerank(indices, scores)
    np.testing.assert_array_equal(cut.indices, listed.indices)
    np.testing.assert_array_equal(cut.scores, listed.scores)
    assert cut.scores.dtype == np.float32
    assert cut.report == listed.report


def test_a_large_dense_matrix_is_cut_and_text_pairs_are_compared_in_parts():
    generator = np.random.default_rng(0)
    dense = generator.integers(0, 9, (250, 20_000)).astype(np.float32)
    texts = {"text_embeds": generator.standard_normal((250, 20_000)), "text_threshold": 0.0}
    indices = np.argsort(-dense, axis=1, kind="stable")[:, :4]
    whole, gated = sca_rerank(None, dense, top_k=4), sca_rerank(None, dense, top_k=4, **texts)
    assert (gated.moved != whole.moved).any()
    chosen = {"confidence": "score", "mode": "deferred", "max_shift": 1, "tau": 0.0, "temperature": 1.0}
    chosen |= {"capacity": 1, "query_ids": range(250)}
    for result, more in ((whole, {}), (gated, texts)):
        place, _ = literal(indices, np.take_along_axis(dense, indices, axis=1), **chosen, **more)
        np.testing.assert_array_equal(result.indices[:, 0], indices[np.arange(250), place])


def test_top_k_cuts_lists():
    indices, scores = np.array([[4, 5, 6], [4, 6, 5]]), np.array([[3.0, 2, 1], [2, 1, 0]])
    result = sca_rerank(indices, scores, top_k=2)
    assert result.indices.tolist() == [[4, 5], [6, 4]]
    assert result.scores.tolist() == [[3, 2], [1, 2]]


@pytest.mark.parametrize(
    "score_type", [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64]
)
@pytest.mark.parametrize("index_type", [torch.int32, torch.int64])
def test_tensors_give_tensors(score_type, index_type):
    indices = torch.tensor([[7, 3], [7, 5]], dtype=index_type)
    scores = torch.tensor([[9, 1], [8, 7]], dtype=score_type)
    result = sca_rerank(indices, scores, text_embeds=torch.ones(2, 3).bfloat16(), text_threshold=0.5)
    expected = torch.tensor([[7, 3], [5, 7]]).to(index_type), torch.tensor([[9, 1], [7, 8]]).to(score_type)
    torch.testing.assert_close((result.indices, result.scores), expected, rtol=0, atol=0)
    torch.testing.assert_close(result.moved, torch.tensor([False, True]))
    assert coverage(result.indices) == 1.0


def test_a_dense_tensor_with_gradient_and_a_tensor_of_ids():
    dense = torch.tensor([[0.9, 0.5], [0.9, 0.5]], requires_grad=True)
    result = sca_rerank(None, dense, query_ids=torch.tensor([8, 3]))
    torch.testing.assert_close(result.indices, torch.tensor([[1, 0], [0, 1]]))
    assert result.scores.dtype == torch.float32
    assert not result.scores.requires_grad


@pytest.mark.parametrize("score_type", [np.float16, np.float32, np.float64, np.int32, np.uint8])
def test_arrays_keep_their_types(score_type):
    indices, scores = np.array([[7, 3], [7, 5]], np.uint16), np.array([[9, 1], [8, 7]], score_type)
    for confidence in ("score", "margin", "softmax"):
        result = sca_rerank(indices, scores, confidence=confidence)
        types = result.indices.dtype, result.scores.dtype, result.moved.dtype
        assert types == (np.uint16, score_type, bool)
        assert result.indices.tolist() == [[7, 3], [5, 7]]


def test_large_integer_ids_and_text_order_of_string_ids():
    indices, scores = np.array([[0, 1], [0, 1]]), np.ones((2, 2))
    assert sca_rerank(indices, scores).moved.tolist() == [False, True]
    assert sca_rerank(indices, scores, query_ids=[10**15 + 1, 10**15]).moved.tolist() == [True, False]
    assert sca_rerank(indices, scores, query_ids=[9, 10]).moved.tolist() == [False, True]
    assert sca_rerank(indices, scores, query_ids=["9", "10"]).moved.tolist() == [True, False]
    for names in (np.array(["9", "10"]), np.array([10, 9])):
        assert sca_rerank(indices, scores, query_ids=names).moved.tolist() == [True, False]
        assert sca_rerank(indices, scores, query_ids=list(names)).moved.tolist() == [True, False]


def test_warns_only_where_an_image_must_answer_several():
    indices, scores = np.array([[0, 1], [0, 1], [1, 0], [0, 1]]), np.ones((4, 2))
    with pytest.warns(UserWarning, match="4 queries share 2 candidate images, but capacity is 1") as caught:
        sca_rerank(indices, scores)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nearer than the module's mark, which would win over a mark here
        sca_rerank(indices, scores, capacity=2)
        sca_rerank(indices[[0, 0, 0, 0]], scores, capacity=2)
        sca_rerank(indices[:3], scores[:3])
        sca_rerank(np.array([[0, 1], [0, 2], [0, 3], [0, 1]]), scores)


LISTS = (np.array([[0, 1, 2], [2, 1, 0]]), np.array([[3.0, 2, 1], [9, 8, 7]]))
AT_0 = {"text_threshold": 0}


@pytest.mark.parametrize(
    ("chosen", "error", "message"),
    [
        ({"confidence": "entropy"}, ValueError, "confidence must .* score, softmax, margin, got 'entropy'"),
        ({"mode": "twice"}, ValueError, "mode must be one of deferred, single_pass, got 'twice'"),
        ({"max_shift": -1}, ValueError, "max_shift must be at least 0, got -1"),
        ({"max_shift": 1.5}, TypeError, "max_shift must be an integer, got 1.5"),
        ({"mode": "single_pass", "max_shift": 2}, ValueError, "max_shift must be 0 or 1, got 2"),
        ({"capacity": 0}, ValueError, "capacity must be at least 1, got 0"),
        ({"capacity": True}, TypeError, "capacity must be an integer, got True"),
        ({"tau": -0.1}, ValueError, "tau must be at least 0, got -0.1"),
        ({"tau": math.nan}, ValueError, "tau must be at least 0, got nan"),
        ({"temperature": 0}, ValueError, "temperature must be greater than 0 and finite, got 0"),
        ({"temperature": math.inf}, ValueError, "temperature must be greater than 0 and finite, got inf"),
        ({"top_k": 0}, ValueError, "top_k must be at least 1, got 0"),
        ({"top_k": 4}, ValueError, "top_k must be at most 3, the candidates given, got 4"),
        ({"top_k": 2.0}, TypeError, "top_k must be an integer, got 2.0"),
        ({"text_threshold": 0.5}, ValueError, "text_embeds and text_threshold go together"),
        ({"text_embeds": np.ones((2, 3))}, ValueError, "text_embeds and text_threshold go together"),
        ({"text_embeds": np.ones((2, 3)), "text_threshold": 1.5}, ValueError, "between -1 and 1, got 1.5"),
        ({"text_embeds": np.ones((3, 3))} | AT_0, ValueError, r"each of 2 queries, got shape \(3, 3\)"),
        ({"text_embeds": [[1, 2], [0, 0]]} | AT_0, ValueError, r"query 1 has \[0, 0\]"),
        ({"text_embeds": [[1, math.nan], [0, 1]]} | AT_0, ValueError, "finite and not zero; query 0"),
        ({"query_ids": ["a"]}, ValueError, "each of the 2 queries, got 1"),
        ({"query_ids": ["a", "a"]}, ValueError, "queries 0 and 1 are both 'a'"),
        ({"query_ids": ["a", 1]}, TypeError, "all strings or all integers, got int, str"),
        ({"query_ids": [0.5, 1.5]}, TypeError, "all strings or all integers, got float"),
    ],
)
def test_bad_options_are_named(chosen, error, message):
    with pytest.raises(error, match=message):
        sca_rerank(*LISTS, **chosen)


@pytest.mark.parametrize(
    ("indices", "scores", "error", "message"),
    [
        ([[0, 1], [0, 1]], [[1.0, 0.5], [1, math.nan]], ValueError, r"finite, .*; query 1 has \[ ?1., nan\]"),
        (None, [[1.0, math.inf]], ValueError, "scores must be finite, or -inf .*; query 0"),
        (None, [[1.0, 2], [-math.inf] * 2], ValueError, "nothing was scored: -inf is no score; query 1"),
        ([[0, 1], [3, 3]], [[1, 0], [1, 0]], ValueError, r"repeat within a row; query 1 has \[3, 3\]"),
        ([[0, 1], [3, 2]], [[1, 0], [0, 1]], ValueError, r"descend in each row .*; query 1 has \[0, 1\]"),
        ([[0, 1], [3, -1]], [[1, 0], [1, 0]], ValueError, r"negative .*; query 1 has \[ 3, -1\]"),
        ([[0, 1]], [[1, 0], [1, 0]], ValueError, r"one shape, got \(1, 2\) and \(2, 2\)"),
        ([[0, 1], [0]], [[1, 0], [1, 0]], ValueError, "indices must have rows of one length"),
        ([[0.0, 1.0]], [[1, 0]], TypeError, "indices must be integers, got float64"),
        ([["a", "b"]], [[1, 0]], TypeError, "indices must be integers"),
        ([[0, 1]], [["1", "0"]], TypeError, "scores must be real numbers"),
        ([0, 1], [1, 0], ValueError, r"got shape \(2,\)"),
        (np.empty((2, 0), int), np.empty((2, 0)), ValueError, r"at least one of each, got shape \(2, 0\)"),
        (np.empty((0, 2), int), np.empty((0, 2)), ValueError, r"at least one of each, got shape \(0, 2\)"),
    ],
)
def test_bad_lists_are_named(indices, scores, error, message):
    with pytest.raises(error, match=message):
        sca_rerank(indices, scores)


def test_coverage_by_hand_and_its_error():
    assert coverage(np.array([[5, 1], [5, 2], [6, 5]])) == 2 / 3
    with pytest.raises(ValueError, match=r"at least one of each, got shape \(3,\)"):
        coverage(np.array([1, 2, 3]))


ALONE = """
import runpy, sys

sys.modules.update(torch=None, transformers=None, tpas=None, scipy=None)  # importing any of them now fails
module = runpy.run_path(sys.argv[1])
print(module["sca_rerank"]([[7, 3], [7, 5]], [[9, 1], [8, 7]]).indices.tolist())
"""


def test_works_alone_with_numpy_only():
    command = [sys.executable, "-c", ALONE, str(SOURCE)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.stdout.strip() == "[[7, 3], [5, 7]]", finished.stderr
