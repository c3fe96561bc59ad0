"""What docs/ says is so: its commands and code run in order, its links lead somewhere, its names can be imported."""

import contextlib
import importlib
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from tpas import __main__

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("docs/*.md"), ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "README.md"])
BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def run_command(line: str) -> None:
    """A line of a shell block; `tpas` in this process, which spares the imports."""
    words = shlex.split(line)
    if words[0] != "tpas":
        subprocess.run(line, shell=True, check=True)
        return
    try:
        __main__.main(words[1:])
    except SystemExit as end:
        assert not end.code, f"{line}: {end.code}"


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft's question
@pytest.mark.usefixtures("fresh_accelerator")
def test_the_walkthrough_runs(tmp_path, fresh_accelerator, capfd):
    (tmp_path / "demo_start").symlink_to(ROOT / "demo_start")
    folder = tmp_path / "walk"
    folder.mkdir()
    text = (ROOT / "docs" / "walkthrough.md").read_text(encoding="utf-8")
    blocks = BLOCK.findall(text)
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
    for words in ("by cosine", '"image": "pictures/0', "SCAReport(queries=3", "README.md, the model card"):
        assert words in printed
    for name in ("found.png", "training.png", "settled.png", "plots/failures.jpg", "run/merged/pipeline_tpas.py"):
        assert (folder / name).is_file()
    assert len(names["answer"]) == 2
