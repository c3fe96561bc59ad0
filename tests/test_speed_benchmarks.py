"""The speed benchmarks run as they stand; what they measure is for people to read."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(benchmark: str, output: Path) -> tuple[str, dict]:
    process = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / f"{benchmark}.py", "--quick", "--output", output],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout, json.loads(output.read_text())


def test_rerank(tmp_path):
    printed, result = run("rerank", tmp_path / "rerank.json")
    assert set(result["rows"]) == {"upstream", "upstream, sdpa", "engine fp32", "engine bf16"}
    upstream, engine = result["rows"]["upstream"], result["rows"]["engine fp32"]
    assert engine["answers"]["largest_score_difference"] < 1e-5
    assert engine["answers"]["queries_of_equal_order"] == engine["answers"]["queries"] == 3
    assert 0 < engine["gflop_per_pair"] < upstream["gflop_per_pair"]
    assert upstream["times_upstream"] == pytest.approx(1)
    assert "engine bf16" in printed


def test_encoding(tmp_path):
    printed, result = run("encoding", tmp_path / "encoding.json")
    assert max(result["largest_difference_of_embeddings"].values()) < 1e-5
    for kind in ("image", "text"):
        rows = result["rows"][kind]
        assert sum(name.startswith("engine") for name in rows) == 4
        for row in rows.values():
            assert row["items_per_second"] > 0
            assert len(row["times_faster_than"]) == 2
    assert "decoding a picture" in printed
