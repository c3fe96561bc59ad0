"""The speed benchmarks run as they stand; what they measure is for people to read."""

import importlib
import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """A function that runs a benchmark here, to spare the imports: what it printed, and what it wrote."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")  # as `python benchmarks/name.py` does
    logger = logging.getLogger("tpas")
    level = logger.level

    def run(benchmark: str, *settings: str, suffix: str = ".json") -> tuple[str, Any]:
        output = tmp_path / f"{benchmark}{suffix}"
        importlib.import_module(benchmark).main(["--quick", "--output", str(output), *settings])
        written = output.read_text()
        return capsys.readouterr().out, json.loads(written) if suffix == ".json" else written

    yield run
    logger.setLevel(level)


def rows_of(benchmark: str, result: dict) -> list:
    """As `make bench` reads what a benchmark wrote."""
    return importlib.import_module("speed_and_memory").rows_of(benchmark, result)


def test_rerank(run):
    printed, result = run("rerank")
    assert set(result["rows"]) == {"upstream", "upstream, sdpa", "engine fp32", "engine bf16"}
    upstream, engine = result["rows"]["upstream"], result["rows"]["engine fp32"]
    assert engine["answers"]["largest_score_difference"] < 1e-5
    assert engine["answers"]["queries_of_equal_order"] == engine["answers"]["queries"] == 3
    assert 0 < engine["gflop_per_item"] < upstream["gflop_per_item"]
    assert upstream["times_faster"] == pytest.approx(1)
    assert "engine bf16" in printed
    rows = rows_of("rerank", result)
    engines = ("engine fp32", "engine bf16")
    assert [row.ratio for row in rows] == [result["rows"][name]["times_faster"] for name in engines]


def test_encoding(run):
    printed, result = run("encoding")
    assert max(result["largest_difference_of_embeddings"].values()) < 1e-5
    for rows in result["rows"].values():
        assert set(rows) == {"model", "engine fp32", "engine bf16"}
        for row in rows.values():
            assert row["items_per_second"] > 0
            assert row["share_of_gemm_limit"] > 0
            at_the_limit = row["times_faster"] / row["share_of_gemm_limit"]
            assert row["times_faster_at_the_limit"] == pytest.approx(at_the_limit)
    assert "decoding an image" in printed
    assert [row.unit for row in rows_of("encoding", result)] == 2 * ["images/s"] + 2 * ["texts/s"]


def test_cascade(run):
    printed, result = run("cascade")
    cascade = result["drawn_people"]["rows"]["cascade"]
    assert cascade["queries_of_equal_best_ten"] == result["drawn_people"]["queries"] == 20
    assert 0 < cascade["share_saved"] < 1
    assert result["full_size"]["largest_difference_of_fp32"] < 1e-5
    assert [live["words"] for live in result["live"]] == [10, 50]
    assert "equal best 10" in printed


def test_gallery_decoding(run):
    printed, result = run("gallery_decoding", "--images", "12")
    for row in result["rows"].values():
        assert row["seconds_to_read"] > 0
        assert row["1 threads"]["seconds_an_image"] > 0
        assert 0 <= row["1 threads"]["waited_share"] < 1
    assert "the encoder" in printed


def test_embedding_search(run):
    _, result = run("embedding_search", "--threads", "1")
    for row in rows_of("embedding_search", result):
        assert row.value > 0
        assert row.baseline_value > 0
        assert row.share_of_limit > 0


def bench(folder: Path, *benchmarks: str, **environment: str) -> tuple[int, list[str], dict]:
    command = [sys.executable, ROOT / "benchmarks" / "speed_and_memory.py", "--quick", "--output_dir", folder]
    command += ["--only", *benchmarks]
    process = subprocess.run(command, env=ENVIRONMENT | environment, capture_output=True, text=True)
    return process.returncode, process.stdout.splitlines(), json.loads((folder / "summary.json").read_text())


def test_the_table_of_all_benchmarks(tmp_path):
    code, lines, summary = bench(tmp_path, "sca_scale")
    assert code == 0
    assert len(lines) == 1 + len(summary["rows"]) == 3
    assert lines[1].startswith("SCA of 2,000 queries, even, max_shift 1")
    written = json.loads((tmp_path / "sca_scale.json").read_text())["rows"]
    assert summary["rows"][0]["value"] == written[0]["microseconds_per_query"] > 0
    assert summary["rows"][0]["ratio"] == pytest.approx(1 / written[0]["growth"])


def test_a_benchmark_that_cannot_run_says_why_and_the_others_go_on(tmp_path):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "faiss.py").write_text("raise ImportError('no faiss here')")
    path = os.pathsep.join([str(tmp_path / "broken"), ENVIRONMENT["PYTHONPATH"]])
    code, lines, summary = bench(tmp_path, "embedding_search", "sca_scale", PYTHONPATH=path)
    assert code == 1
    assert lines[1].startswith("SCA of 2,000 queries")
    reason = "ended with code 1: ImportError: no faiss here"
    assert lines[-1] == f"benchmarks/embedding_search.py {reason}"
    assert summary["failures"] == {"embedding_search": reason}


def test_what_a_gallery_costs(run, tmp_path):
    printed, result = run("gallery_costs", "--threads", "1")
    assert (tmp_path / "gallery_costs.md").read_text() == printed
    two_thousand, *_, hundred_million = result["rows"]
    assert "| 2,000 |" in printed
    assert "| 100,000,000 |" in printed
    assert two_thousand["ranked"]
    assert not hundred_million["ranked"]
    assert hundred_million["build_hours"] == pytest.approx(50_000 * two_thousand["build_hours"])
    assert hundred_million["disk_GB"] == pytest.approx(50_000 * two_thousand["disk_GB"])


def test_systems(run):
    _, table = run("systems", suffix=".md")
    assert "77.86 → 79.98" in table
    rows = [line.split(" | ") for line in table.splitlines() if line.startswith("|")][2:]
    pairs = {row[0].removeprefix("| "): row[6] for row in rows}
    matching = [name for name, rate in pairs.items() if rate != "—"]
    assert matching == ["a TPAS model (X-VLM)", "blip: BLIP base"]
    assert "nothing of this is a measurement" in table


def test_photographs(tmp_path, monkeypatch, small_pab):
    """Its models, and the two ways to search that need no process of their own."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    photographs = importlib.import_module("photographs")
    images = shutil.copytree(small_pab / "test" / "imgs", tmp_path / "images")
    for number, name in enumerate(photographs.BUILDERS):
        folder = tmp_path / str(number)
        assert 0 < photographs.build(name, folder, True) < 10_000_000
        python, page = photographs.search_by_python_and_page(images, folder)
        assert len(python[0]) == photographs.TOP_K
        assert photographs.difference(python, page) < photographs.TOLERANCE
        moved = [[(name, score + 1e-3) for name, score in hits] for hits in page]
        with pytest.raises(ValueError, match="the answers differ"):
            photographs.difference(python, moved)
