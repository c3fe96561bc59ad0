"""Damaged and hostile files in every command: one line that names what is wrong, never "unforeseen"."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tpas.__main__ import main as tpas
from tpas.reranking.score_files import ScoreFile, write_score_file

VALUES = (None, True, 0, -1, 10**9, 10**30, 1.5, "", "../../x", [], {}, [[]], float("nan"))
ROUNDS = 24  # of each kind


def changed_json(content: str, rng: random.Random) -> str:
    """With one value anywhere in it replaced or taken out; of JSON Lines too."""
    try:
        whole = json.loads(content)
    except ValueError:
        lines = content.splitlines()
        line = rng.randrange(len(lines))
        lines[line] = changed_json(lines[line], rng)
        return "\n".join(lines)
    place, node = [], whole
    while isinstance(node, dict | list) and node and (not place or rng.random() < 0.8):
        key = rng.choice(list(node) if isinstance(node, dict) else range(len(node)))
        place.append((node, key))
        node = node[key]
    if not place:
        return json.dumps(rng.choice(VALUES))
    parent, key = place[-1]
    if rng.random() < 0.3:
        del parent[key]
    else:
        parent[key] = rng.choice(VALUES)
    return json.dumps(whole)


def spoil(file: Path, rng: random.Random) -> str:
    """Changes a file in one of five ways; says how."""
    content = file.read_bytes()
    how = rng.choice(
        ["cut", "flip", "empty", "gone", *["json"] * 8] if file.suffix == ".json" else ["cut", "flip"]
    )
    if how == "cut":
        file.write_bytes(content[: rng.randrange(len(content))])
    elif how == "flip":  # mostly in a header
        place = rng.randrange(min(len(content), 400))
        file.write_bytes(
            content[:place] + bytes([content[place] ^ 1 << rng.randrange(8)]) + content[place + 1 :]
        )
    elif how == "empty":
        file.write_bytes(b"")
    elif how == "gone":
        file.unlink()
    else:
        file.write_text(changed_json(content.decode(), rng))
    return f"{how} {file.name}"


@pytest.fixture
def refusals(tmp_path, capsys) -> Callable[..., int]:
    """A function that spoils copies of a folder, a file each time, and runs a command on each."""

    def count(folder: Path, *words: object, files: str = "*") -> int:
        refused = 0
        for number in range(ROUNDS):
            rng = random.Random(number)
            copy = tmp_path / "copies"
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(folder, copy)
            kinds = (".json", ".safetensors", ".npz", ".zip")
            found = sorted(path for path in copy.rglob(files) if path.suffix in kinds)
            how = spoil(rng.choice(found), rng)
            try:
                tpas([str(word).replace("COPY", str(copy)) for word in words])
            except SystemExit as end:
                said = f"{end.code} {capsys.readouterr().out}"
                refused += 1
                assert "unforeseen" not in said, (number, how, said)
                assert any(name in said for name in (str(copy), "gallery", "annotation/")), (
                    number,
                    how,
                    said,
                )
            printed = capsys.readouterr().out
            assert "NaN" not in printed, (number, how, printed)
        return refused

    return count


@pytest.fixture
def gallery(start, small_pab, tmp_path, capsys) -> Path:
    tpas(
        [
            "gallery",
            "build",
            str(small_pab / "test"),
            "--model",
            str(start),
            "--path",
            str(tmp_path / "gallery"),
        ]
    )
    return tmp_path / "gallery"


def test_a_model_s_folder(refusals, start, gallery):
    words = ("search", gallery, "a man falls", "--model", "COPY", "--json")
    assert refusals(start, *words) > ROUNDS // 2


def test_a_gallery_s_folder(refusals, start, gallery):
    words = ("search", "COPY", "a man falls", "--model", start, "--json")
    assert refusals(gallery, *words) > ROUNDS // 4
    assert refusals(gallery, "gallery", "info", "COPY", "--verify") > ROUNDS // 4


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_a_score_file(refusals, tmp_path, suffix):
    (tmp_path / "scores").mkdir()
    scores = np.random.default_rng(0).standard_normal((5, 7)).astype("f4")
    ids = tuple(map(str, range(7)))
    write_score_file(tmp_path / "scores" / f"scores{suffix}", ScoreFile(scores, None, ids[:5], ids))
    words = ("rerank", f"COPY/scores{suffix}", "--method", "sca", "--output", tmp_path / "out.npz")
    assert refusals(tmp_path / "scores", *words) > ROUNDS // 2


@pytest.mark.usefixtures("fresh_accelerator")
def test_results_and_annotations(refusals, start, small_pab, tmp_path):
    (tmp_path / "results").mkdir()
    words = ("evaluate", "--model", start, "--k", "1", "--data_root")
    tpas([*map(str, words), str(small_pab), "--output", str(tmp_path / "results" / "a.json")])
    shutil.copy(tmp_path / "results" / "a.json", tmp_path / "b.json")
    refusals(tmp_path / "results", "compare", "COPY/a.json", tmp_path / "b.json")
    refusals(small_pab, *words, "COPY", files="attr.json")
