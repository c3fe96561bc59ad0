"""recall_at_k.py against a naive reading of Eq. 11, hand calculations, and evaluate's own loader."""

import json
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from tpas.recall_at_k import RecallAtK

SOURCE = Path(__file__).parents[1] / "recall_at_k.py"


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
    predictions = [
        [names[i] for i in generator.permutation(gallery)[: generator.integers(12, gallery + 1)]]
        for _ in range(queries)
    ]
    references = [
        [names[i] for i in generator.permutation(gallery)[: generator.integers(1, 5)]] for _ in range(queries)
    ]
    return predictions, references


def test_hand_calculation(metric):
    scores = metric.compute(
        predictions=[["a", "b", "c", "d"], ["d", "c", "b", "a"]],
        references=[["b"], ["d", "a", "x"]],
        k=[1, 2, 4],
    )
    assert scores == pytest.approx(
        {
            "recall@1": (0 + 1 / 3) / 2,
            "recall@2": (1 + 1 / 3) / 2,
            "recall@4": (1 + 2 / 3) / 2,
            "mAP": (1 / 2 + (1 / 1 + 2 / 4 + 0) / 3) / 2,
        }
    )


def test_default_cutoffs_and_plain_numbers(metric):
    names = [str(number) for number in range(10)]
    scores = metric.compute(predictions=[names, names], references=[["0"], ["7"]])
    assert scores == {"recall@1": 0.5, "recall@5": 0.5, "recall@10": 1.0, "mAP": (1 + 1 / 8) / 2}
    assert list(scores) == ["recall@1", "recall@5", "recall@10", "mAP"]
    assert json.loads(json.dumps(scores)) == scores


@pytest.mark.parametrize("seed", range(5))
def test_equals_the_naive_oracle(metric, seed):
    predictions, references = drawn(seed)
    expected = naive(predictions, references, [1, 3, 12])
    assert metric.compute(predictions=predictions, references=references, k=[1, 3, 12]) == pytest.approx(
        expected
    )


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
        metric.add_batch(
            predictions=[predictions[i] for i in order], references=[references[i] for i in order]
        )
        assert metric.compute(k=[2, 5]) == expected  # to the last digit


def test_k_may_be_one_number_and_arrays_of_strings_serve(metric, tmp_path):
    predictions = np.array([["a", "b"], ["b", "a"]])
    scores = metric.compute(predictions=predictions, references=[("a",), ("a",)], k=np.int64(1))
    assert scores == {"recall@1": 0.5, "mAP": 0.75}
    assert metric.compute(predictions=predictions, references=[["a"], ["a"]], k=[2, 1, 2]).keys() == {
        "recall@2",
        "recall@1",
        "mAP",
    }
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
