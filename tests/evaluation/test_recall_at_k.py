"""recall_at_k.py against a naive reading of Eq. 11, hand calculations, and evaluate's own loader."""

import json
import math
import multiprocessing
import os
import statistics
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tpas.evaluation.recall_at_k import RecallAtK, figures_of_ranks, rank_by_score
from tpas.search.ranking import rank_by_embeddings

SOURCE = Path(__file__).parents[2] / "evaluation" / "recall_at_k.py"


@pytest.fixture
def metric(tmp_path):
    return RecallAtK(cache_dir=str(tmp_path))


def buffers(folder):
    return [path.name for path in folder.rglob("*.arrow")]


def naive(predictions, references, cutoffs):
    """Exact fractions, straight from the definitions."""
    queries = len(predictions)
    scores = {}
    for cutoff in cutoffs:
        total = Fraction(0)
        for ranked, relevant in zip(predictions, references, strict=True):
            total += Fraction(len(set(ranked[:cutoff]) & set(relevant)), len(relevant))
        scores[f"recall@{cutoff}"] = float(total / queries)
    total = Fraction(0)
    for ranked, relevant in zip(predictions, references, strict=True):
        for name in relevant:
            if name in ranked:
                rank = ranked.index(name) + 1
                found = len(set(ranked[:rank]) & set(relevant))
                total += Fraction(found, rank) / len(relevant)
    return scores | {"mAP": float(total / queries)}


def drawn(seed, queries=40, gallery=25):
    """Ranked lists of 12 to 25 answers, and 1 to 4 relevant ones that need not be among them."""
    generator = np.random.default_rng(seed)
    names = [f"{number:04d}" for number in range(gallery)]

    def lists(least, most):
        return [
            generator.permutation(names)[: generator.integers(least, most + 1)].tolist()
            for _ in range(queries)
        ]

    return lists(12, gallery), lists(1, 4)


def test_hand_calculation(metric):
    predictions, references = [list("abcd"), list("dcba")], [["b"], ["d", "a", "x"]]
    scores = metric.compute(predictions=predictions, references=references, k=[1, 2, 4])
    recalls = {"recall@1": (0 + 1 / 3) / 2, "recall@2": (1 + 1 / 3) / 2, "recall@4": (1 + 2 / 3) / 2}
    assert scores == pytest.approx(recalls | {"mAP": (1 / 2 + (1 / 1 + 2 / 4 + 0) / 3) / 2})


def test_default_cutoffs_and_plain_numbers(metric):
    names = [str(number) for number in range(10)]
    scores = metric.compute(predictions=[names, names], references=[["0"], ["7"]])
    assert scores == {"recall@1": 0.5, "recall@5": 0.5, "recall@10": 1.0, "mAP": (1 + 1 / 8) / 2}
    assert list(scores) == ["recall@1", "recall@5", "recall@10", "mAP"]
    assert json.loads(json.dumps(scores)) == scores


@pytest.mark.parametrize("seed", range(5))
def test_equals_the_naive_oracle(metric, seed):
    predictions, references = drawn(seed)
    scores = metric.compute(predictions=predictions, references=references, k=[1, 3, 12])
    assert scores == pytest.approx(naive(predictions, references, [1, 3, 12]))


def test_order_of_queries_and_ways_of_adding_do_not_matter(metric):
    predictions, references = drawn(7)
    expected = metric.compute(predictions=predictions, references=references, k=[2, 5])

    metric.add_batch(predictions=predictions[:17], references=references[:17])
    metric.add_batch(predictions=[], references=[])
    metric.add(prediction=predictions[17], reference=references[17])
    assert len(metric) == 18
    assert metric.compute(predictions=predictions[18:], references=references[18:], k=[2, 5]) == expected

    generator = np.random.default_rng(0)
    for order in (generator.permutation(len(predictions)) for _ in range(8)):
        predicted, relevant = ([lists[i] for i in order] for lists in (predictions, references))
        metric.add_batch(predictions=predicted, references=relevant)
        assert metric.compute(k=[2, 5]) == expected  # to the last digit


def test_k_may_be_one_number_and_arrays_of_strings_serve(metric, tmp_path):
    predictions = np.array([["a", "b"], ["b", "a"]])
    scores = metric.compute(predictions=predictions, references=[("a",), ("a",)], k=np.int64(1))
    assert scores == {"recall@1": 0.5, "mAP": 0.75}
    scores = metric.compute(predictions=predictions, references=[["a"], ["a"]], k=[2, 1, 2])
    assert scores.keys() == {"recall@2", "recall@1", "mAP"}
    assert buffers(tmp_path) == []


@pytest.mark.parametrize(
    ("predictions", "references", "k", "error", "message"),
    [
        ([["a", "b"], ["a"]], [["a"], ["a"]], 2, ValueError, r"got 2: query 1 has 1$"),
        ([["a", "b"]], [["a"]], (1, 5, 10), ValueError, r"got 10: query 0 has 2$"),
        ([["a"]], [["a"]], 0, ValueError, "k must be at least 1, got 0"),
        ([["a"]], [["a"]], [1, -3], ValueError, "k must be at least 1, got -3"),
        ([["a"]], [["a"]], [], ValueError, "k must hold at least one cutoff"),
        ([["a"]], [["a"]], True, TypeError, "k must be an integer or several, got True"),
        ([["a"]], [["a"]], 1.0, TypeError, "k must be an integer or several, got 1.0"),
        ([["a"]], [["a"]], "1", TypeError, "k must be an integer or several, got '1'"),
        ([["a"], ["a", "b", "a"]], [["a"], ["b"]], 1, ValueError, "prediction of query 1 .* 'a' 2 times"),
        ([["a"], ["a"]], [["a"], ["b", "b"]], 1, ValueError, "reference of query 1 .* 'b' 2 times"),
        ([["a"], ["a"]], [["a"], []], 1, ValueError, "query 1 has no relevant id"),
        ([["a"], []], [["a"], ["a"]], 1, ValueError, "got 1: query 1 has 0"),
        ([["a"], ["a"]], [["a"]], 1, ValueError, "got 2 and 1: query 1 has only one of them"),
        ([["a"]], [["a"], ["a"]], 1, ValueError, "got 1 and 2: query 1 has only one of them"),
        ([["a"], [7]], [["a"], ["a"]], 1, TypeError, "prediction of query 1 must hold strings only, got 7"),
        ([["a", None]], [["a"]], 1, TypeError, "prediction of query 0 must hold strings only, got None"),
        ([["a"]], ["a"], 1, TypeError, "reference of query 0 must be a list of id strings, got 'a'"),
        ([["a"]], [None], 1, TypeError, "reference of query 0 must be a list of id strings, got None"),
        ([["a"]], None, 1, TypeError, "references must be a list"),
        ([], [], 1, ValueError, "there are no queries to score"),
    ],
)
def test_bad_input_is_named_and_leaves_nothing(metric, tmp_path, predictions, references, k, error, message):
    with pytest.raises(error, match=message):
        metric.compute(predictions=predictions, references=references, k=k)
    assert buffers(tmp_path) == []
    assert metric.compute(predictions=[["a"]], references=[["a"]], k=1) == {"recall@1": 1.0, "mAP": 1.0}


def test_a_refused_batch_is_numbered_on_and_changes_nothing(metric):
    metric.add_batch(predictions=[["a", "b"], ["b", "a"]], references=[["a"], ["a"]])
    with pytest.raises(ValueError, match="query 3 has no relevant id"):
        metric.add_batch(predictions=[["a"], ["a"]], references=[["a"], []])
    with pytest.raises(ValueError, match="prediction of query 2 must hold distinct ids"):
        metric.add(prediction=["a", "a"], reference=["a"])
    with pytest.raises(ValueError, match="k must be at least 1"):
        metric.compute(k=0)
    assert metric.compute(k=1) == {"recall@1": 0.5, "mAP": 0.75}


# The detailed figures


def naive_details(predictions, references, cutoffs):
    """From the definitions: hit rates, the rank of the hardest match, the first rank."""
    queries = len(predictions)
    scores = {}
    pairs = list(zip(predictions, references, strict=True))
    for cutoff in cutoffs:
        hits = sum(any(name in relevant for name in ranked[:cutoff]) for ranked, relevant in pairs)
        scores[f"hit_rate@{cutoff}"] = hits / queries
    inverse_penalties, firsts = [], []
    for ranked, relevant in pairs:
        found = [ranked.index(name) + 1 for name in relevant if name in ranked]
        # Ye et al.: the penalty is (hardest - relevant) / hardest; it nears 1 where the hardest is far away.
        hardest = max(found) if len(found) == len(relevant) else math.inf
        penalty = 1.0 if hardest == math.inf else (hardest - len(relevant)) / hardest
        inverse_penalties.append(1 - penalty)
        firsts.append(min(found, default=math.inf))
    return scores | {"mINP": sum(inverse_penalties) / queries, "median_rank": statistics.median(firsts)}


@st.composite
def instances(draw):
    """Lists of 3 to 9 of 9 answers, with 1 to 3 relevant ones that need not be among them."""
    names = [f"{number:02}" for number in range(9)]
    relevant = st.lists(st.sampled_from(names), min_size=1, max_size=3, unique=True)
    query = st.tuples(st.permutations(names), st.integers(3, 9), relevant)
    queries = draw(st.lists(query, min_size=1, max_size=6))
    return [ranked[:length] for ranked, length, _ in queries], [relevant for *_, relevant in queries]


@settings(max_examples=40, deadline=None)
@given(instances())
def test_detailed_figures_equal_the_naive_oracle(instance):
    predictions, references = instance
    metric, lists = RecallAtK(keep_in_memory=True), {"predictions": predictions, "references": references}
    scores = metric.compute(**lists, k=[1, 3], detailed=True)
    expected = naive(predictions, references, [1, 3]) | naive_details(predictions, references, [1, 3])
    assert scores == pytest.approx(expected)


def test_details_by_hand():
    assert figures_of_ranks([2, 4], 2, [1, 3]) == {
        "recall@1": 0.0,
        "recall@3": 0.5,
        "hit_rate@1": 0.0,
        "hit_rate@3": 1.0,
        "mAP": (1 / 2 + 2 / 4) / 2,
        "mINP": 1 - (4 - 2) / 4,
        "median_rank": 2.0,
    }
    missed = figures_of_ranks([3], 2, [5])
    assert (missed["recall@5"], missed["hit_rate@5"], missed["mINP"]) == (0.5, 1.0, 0.0)
    assert figures_of_ranks([], 1, [5])["median_rank"] == math.inf


# Scores


def test_scores_rank_and_the_order_of_rows_never_helps(metric):
    names = [f"{number:02}" for number in range(12)]
    references = [["03"], ["07", "01"], ["00"]]
    generator = np.random.default_rng(0)
    scores = generator.integers(0, 3, (3, 12)) / 2  # many ties
    results = []
    for _ in range(4):
        order = generator.permutation(12)
        shuffled = [names[i] for i in order]
        metric.add(prediction=shuffled, reference=references[0], scores=scores[0][order])
        rest = {"predictions": [shuffled] * 2, "references": references[1:], "scores": scores[1:, order]}
        results.append(metric.compute(**rest, k=[1, 5], detailed=True))
    assert all(result == results[0] for result in results)
    ranked = [rank_by_score(names, row.tolist()) for row in scores]
    assert metric.compute(predictions=ranked, references=references, k=[1, 5], detailed=True) == results[0]
    for tensors in (torch.tensor(scores).bfloat16(), list(torch.tensor(scores))):
        lists = {"predictions": [names] * 3, "references": references, "scores": tensors}
        assert metric.compute(**lists, k=[1, 5], detailed=True) == results[0]


def test_unsigned_scores_do_not_wrap_round():
    assert rank_by_score(["a", "b", "c", "d"], np.array([0, 255, 1, 128], dtype=np.uint8)) == list("bdca")


def test_ties_are_resolved_as_the_search_resolves_them():
    ids = [f"image {number}" for number in range(30)]
    texts = torch.nn.functional.normalize(torch.randn(2, 4), dim=1)
    images = torch.nn.functional.normalize(torch.randn(6, 4), dim=1)[torch.arange(30) % 6]
    indices, cosines = rank_by_embeddings(texts, images, ids)
    for columns, values in zip(indices.tolist(), cosines.tolist(), strict=True):
        score_of = dict(zip(columns, values, strict=True))
        ranked = rank_by_score(ids, [score_of[column] for column in range(30)])
        assert ranked == [ids[column] for column in columns]


@pytest.mark.parametrize(
    ("scores", "error", "message"),
    [
        ([[1.0, 2.0]], ValueError, "got 1 and 2: query 1 has only one of them"),
        ([[1.0, 2.0], [1.0]], ValueError, "query 1 needs a score for each of 2 ids, got 1"),
        ([[1.0, 2.0], 3.0], ValueError, "query 1 needs a score for each of 2 ids, got 3.0"),
        ([[1.0, 2.0], [1.0, math.nan]], ValueError, "scores of query 1 must be finite numbers, got nan"),
        ([[1.0, math.inf], [1.0, 2.0]], ValueError, "scores of query 0 must be finite numbers, got inf"),
        ([[1.0, "2"], [1.0, 2.0]], ValueError, "scores of query 0 must be finite numbers, got '2'"),
        ("scores", TypeError, "scores must be a list"),
    ],
)
def test_bad_scores_are_named(metric, tmp_path, scores, error, message):
    lists = {"predictions": [["a", "b"]] * 2, "references": [["a"]] * 2, "scores": scores}
    with pytest.raises(error, match=message):
        metric.compute(**lists, k=1)
    with pytest.raises(error, match=message):
        metric.add_batch(**lists)
    assert buffers(tmp_path) == []


# Several processes


def score_share(folder, process):
    """What one of two processes does: adds every second query, and writes what it gets."""
    predictions, references = drawn(3)
    metric = RecallAtK(num_process=2, process_id=process, experiment_id="one", cache_dir=str(folder))
    for row in range(process, len(predictions), 2):
        metric.add(prediction=predictions[row], reference=references[row])
    scores = metric.compute(k=[1, 3, 12], detailed=True)
    (folder / f"{process}.json").write_text(json.dumps([os.getpid(), scores]))


def test_two_processes_score_together(metric, tmp_path):
    fork = multiprocessing.get_context("fork")  # spares the second import of everything
    processes = [fork.Process(target=score_share, args=(tmp_path, process)) for process in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=60)
    assert [process.exitcode for process in processes] == [0, 0]
    written = [json.loads((tmp_path / f"{process}.json").read_text()) for process in (0, 1)]
    assert len({os.getpid(), *(pid for pid, _ in written)}) == 3
    predictions, references = drawn(3)
    alone = metric.compute(predictions=predictions, references=references, k=[1, 3, 12], detailed=True)
    assert [scores for _, scores in written] == [alone, None]


LOAD_OFFLINE = """
import sys

def no_network(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname"):
        raise SystemExit(f"the network was tried: {event} {arguments}")

sys.addaudithook(no_network)
import evaluate
import json
metric = evaluate.load(sys.argv[1])
scores = metric.compute(predictions=[["a", "b"], ["b", "a"]], references=[["a"], ["a"]], k=[1, 2])
documented = "shortest list" in metric.compute.__doc__
print(json.dumps({"scores": scores, "class": type(metric).__name__, "documented": documented}))
"""


def test_evaluate_loads_the_file_alone_and_offline(tmp_path):
    alone = tmp_path / "elsewhere" / "recall_at_k.py"
    alone.parent.mkdir()
    alone.write_bytes(SOURCE.read_bytes())
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    finished = subprocess.run(
        [sys.executable, "-c", LOAD_OFFLINE, "./recall_at_k.py"],
        cwd=alone.parent,
        env=environment | {"HF_HOME": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    assert json.loads(finished.stdout.splitlines()[-1]) == {
        "scores": {"recall@1": 0.5, "recall@2": 1.0, "mAP": 0.75},
        "class": "RecallAtK",
        "documented": True,
    }
