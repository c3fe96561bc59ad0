"""What docs/ says is so: its code runs in order, its links lead somewhere, its names can be imported."""

import contextlib
import importlib.util
import json
import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from PIL import Image

from tpas import __main__
from tpas.evaluation.result_files import Evaluation

ROOT = Path(__file__).parents[1]
DOCUMENTS = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md"]
BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#\s]+)")
LARGEST_IMAGE = 200_000  # bytes


def run_command(line: str) -> None:
    """A line of a shell block; `tpas` in this process, which spares the imports."""
    words = shlex.split(line)
    if words[0] != "tpas":
        subprocess.run(line, shell=True, check=True)
        return
    try:
        __main__.main(words[1:])
    except SystemExit as end:
        if end.code:
            raise AssertionError(f"{line} ended with {end.code}") from end


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft's question
@pytest.mark.usefixtures("fresh_accelerator")
def test_the_walkthrough_runs(tmp_path, fresh_accelerator, capfd):
    (tmp_path / "demo_start").symlink_to(ROOT / "demo_start")
    folder = tmp_path / "walk"
    folder.mkdir()
    blocks = BLOCK.findall((ROOT / "docs" / "walkthrough.md").read_text(encoding="utf-8"))
    assert [kind for kind, _ in blocks].count("python") >= 5
    names: dict[str, object] = {}
    with contextlib.chdir(folder):
        for kind, code in blocks:
            fresh_accelerator()
            if kind == "python":
                exec(compile(code, "walkthrough.md", "exec"), names)
            else:
                for line in code.splitlines():
                    run_command(line)
    printed = capfd.readouterr().out
    for words in ("by cosine", "train0000.jpg,A", "SCAReport(queries=3", "README.md, the model card"):
        assert words in printed
    figures = ("found.html", "found.png", "training.png", "reranked.png", "plots/failures.jpg")
    for name in (*figures, "run/merged/pipeline_tpas.py"):
        assert (folder / name).is_file()
    assert len(names["answer"]) == 2


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document):
    for target in LINK.findall(document.read_text(encoding="utf-8")):
        if not target.startswith("https://"):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_files_that_are_named_are_there():
    """By their path, or by the end of it."""
    files = [path.relative_to(ROOT) for path in ROOT.rglob("*.py") if ".venv" not in path.parts]
    cards = [ROOT / "model_card.md", *ROOT.glob("[a-z]*/README.md"), *ROOT.glob("[a-z]*/*/README.md")]
    for document in [*DOCUMENTS, *cards]:
        for name in re.findall(r"`([\w./-]+\.py)\b", document.read_text(encoding="utf-8")):
            assert any(file.match(name) for file in files), f"{document.name} names {name}"


def test_the_drawing_of_the_rooms_is_the_contract():
    """docs/architecture.md, line by line the layers of pyproject.toml, as far as they are folders."""
    (contract,) = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    drawing = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").split("```")[1]

    def folders(lines: list[str]) -> list[list[str]]:
        found = ([word for word in re.split(r"[ |:]+", line) if (ROOT / word).is_dir()] for line in lines)
        return [names for names in found if names]

    rows = [re.split(r" {4,}", line.strip())[0] for line in drawing.splitlines() if line.strip(" \n▼")]
    assert folders([row for row in rows if row]) == folders(contract["layers"])


def test_the_readme_image_shows_a_query_of_each_kind(tmp_path):
    """The rule by which `docs/make_image.py` chooses, on a demo of two queries of each kind."""
    specification = importlib.util.spec_from_file_location("make_image", ROOT / "docs" / "make_image.py")
    make_image = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(make_image)
    ids = [f"test/{number}.png" for number in range(6)]
    (tmp_path / "demo" / "pab" / "test").mkdir(parents=True)
    for number, name in enumerate(ids):
        Image.new("RGB", (20, 20), (40 * number, 0, 0)).save(tmp_path / "demo" / "pab" / name)

    def query(caption: str, behaviour: str, rank_of_right: int) -> dict:
        listed = {"ids": ids, "scores": [6.0 - place for place in range(6)]}
        texts = {"query_id": caption, "caption": caption, "behaviour": behaviour}
        stages = dict.fromkeys(("embeddings", "matching", "sca"), listed)
        return texts | {"relevant": [ids[rank_of_right - 1]], "stages": stages, "moved": False}

    kinds = {"falls": ("anomaly", 1), "walks": ("normal", 1), "lies": ("anomaly", 3), "runs": ("normal", 6)}
    queries = [query(f"{who} {verb}.", *kind) for who in ("A man", "He") for verb, kind in kinds.items()]
    written = tmp_path / "demo" / "evaluation" / "fine_tuned"
    written.mkdir(parents=True)
    rankings = {"gallery": dict(zip(ids, ids, strict=True)), "queries": queries}
    (written / "rankings.json").write_text(json.dumps(rankings))
    results = {"stages": {"embeddings": {}, "matching": {}}, "shortlist": 6, "gallery": 6, "sca_report": {}}
    (written / "results.json").write_text(json.dumps(results))

    files = written / "results.json", written / "rankings.json"
    evaluation = Evaluation.read(*files, image_root=tmp_path / "demo" / "pab")
    chosen = make_image.choose_queries(evaluation.queries)
    assert [query.text for query in chosen] == ["He falls.", "He walks.", "He lies."]
    make_image.main([str(tmp_path / "demo"), "--output", str(tmp_path / "image.jpg")])
    with Image.open(tmp_path / "image.jpg") as image:
        assert image.width > 500
    rankings["queries"] = queries[:1]
    (written / "rankings.json").write_text(json.dumps(rankings))
    with pytest.raises(ValueError, match="no query of each kind"):
        make_image.main([str(tmp_path / "demo")])


def test_images_are_small():
    images = [path for path in (ROOT / "docs").iterdir() if path.suffix in (".svg", ".jpg", ".png")]
    assert images
    for path in images:
        assert path.stat().st_size <= LARGEST_IMAGE, f"{path.name} is larger than {LARGEST_IMAGE:,} bytes"


def test_citation_and_changelog_are_of_this_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == project["version"]
    assert citation["license"] == project["license"]
    (paper,) = citation["references"]
    assert paper["url"] == "https://arxiv.org/abs/2502.03230"
    card = (ROOT / "model_card.md").read_text(encoding="utf-8")
    names = " and ".join(f"{author['family-names']}, {author['given-names']}" for author in paper["authors"])
    assert f"author        = {{{names}}}" in card
    assert f"## [{project['version']}]" in (ROOT / "docs" / "CHANGELOG.md").read_text(encoding="utf-8")
