"""The speed benchmarks run as they stand; what they measure is for people to read."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}


def run(benchmark: str, output: Path, *settings: str) -> tuple[str, dict]:
    process = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / f"{benchmark}.py", "--quick", "--output", output, *settings],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout, json.loads(output.read_text())


def rows_of(benchmark: str, result: dict) -> list:
    """As `make bench` reads what a benchmark wrote."""
    path = ROOT / "benchmarks" / "speed_and_memory.py"
    spec = importlib.util.spec_from_file_location("speed_and_memory", path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # dataclasses look it up there
    spec.loader.exec_module(module)
    return module.rows_of(benchmark, result)


def test_rerank(tmp_path):
    printed, result = run("rerank", tmp_path / "rerank.json")
    assert set(result["rows"]) == {"upstream", "upstream, sdpa", "engine fp32", "engine bf16"}
    upstream, engine = result["rows"]["upstream"], result["rows"]["engine fp32"]
    assert engine["answers"]["largest_score_difference"] < 1e-5
    assert engine["answers"]["queries_of_equal_order"] == engine["answers"]["queries"] == 3
    assert 0 < engine["gflop_per_pair"] < upstream["gflop_per_pair"]
    assert upstream["times_upstream"] == pytest.approx(1)
    assert "engine bf16" in printed
    rows = rows_of("rerank", result)
    assert [row.ratio for row in rows] == [
        result["rows"][name]["times_upstream"] for name in ("engine fp32", "engine bf16")
    ]


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
    assert [row.unit for row in rows_of("encoding", result)] == ["images/s", "texts/s"]


def test_cascade(tmp_path):
    printed, result = run("cascade", tmp_path / "cascade.json")
    cascade = result["drawn_people"]["rows"]["cascade"]
    assert cascade["queries_of_equal_best_ten"] == result["drawn_people"]["queries"] == 20
    assert 0 < cascade["share_saved"] < 1
    assert "equal best 10" in printed


def test_evaluation_speed(tmp_path):
    _, result = run("evaluation_speed", tmp_path / "evaluation_speed.json")
    for row in result["rows"].values():
        assert row["largest_score_difference"] < 1e-5
        assert row["times_faster"] > 0


def test_gallery_decoding(tmp_path):
    printed, result = run("gallery_decoding", tmp_path / "gallery_decoding.json", "--pictures", "12")
    assert all(0 <= row["1 threads"]["waited_share"] < 1 for row in result["rows"].values())
    assert min(result["seconds_a_picture_by_pass"].values()) > 0
    assert "the encoder" in printed


def test_embedding_search(tmp_path):
    _, result = run("embedding_search", tmp_path / "embedding_search.json", "--threads", "1")
    for row in rows_of("embedding_search", result):
        assert row.value > 0
        assert row.baseline_value > 0
        assert row.share_of_limit > 0


def test_the_table_of_all_benchmarks(tmp_path):
    command = [sys.executable, ROOT / "benchmarks" / "speed_and_memory.py", "--quick", "--only", "sca_scale"]
    process = subprocess.run(
        [*command, "--output_dir", tmp_path], env=ENVIRONMENT, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    summary = json.loads((tmp_path / "summary.json").read_text())
    lines = process.stdout.splitlines()
    assert len(lines) == 1 + len(summary) == 3
    assert lines[1].startswith("SCA of 2,000 queries, even, max_shift 1")
    written = json.loads((tmp_path / "sca_scale.json").read_text())["rows"]
    assert summary[0]["value"] == written[0]["microseconds_per_query"] > 0
    assert summary[0]["ratio"] == pytest.approx(1 / written[0]["growth"])
