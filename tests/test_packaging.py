"""What installing, cloning and reading the repository promises."""

import fnmatch
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
MEGABYTE = 2**20
LARGEST_FILE, LARGEST_CHECKPOINT = 2 * MEGABYTE, 8 * MEGABYTE
MOST_ROOT_FILES = 18
# Where a developer's own files lie; a path that starts there means nothing to anyone else.
PRIVATE_PATH = re.compile(r"(?<![\w.:/~-])/(?:home|Users|root|work)/\w|\.\./shared/")


def shipped_files() -> list[Path]:
    """Every file that .gitignore does not leave out; works without git, as in a downloaded archive."""
    lines = (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    ignored = [".git", *(line.strip("/\n") for line in lines)]
    found = []
    for folder, folders, files in os.walk(ROOT):
        folders[:] = [name for name in folders if not any(fnmatch.fnmatch(name, p) for p in ignored)]
        found += [Path(folder, name) for name in files if name != ".git"]
    return found


def requirements() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    return [Requirement(line) for group in groups for line in group if not line.startswith("tpas")]


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if not line.startswith("#")]
    return {name.lower().replace("_", "-"): version for name, version in pairs}


def run_python(code: str, folder: Path) -> str:
    """The standard output of ``code`` in a fresh interpreter that starts in ``folder``."""
    command = [sys.executable, "-B", "-c", code]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


TRAINING = {"transformers", "accelerate", "datasets", "evaluate"}


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("sca", TRAINING),
        *((f"reranking.{name}", TRAINING | {"torch"}) for name in ("fusion", "one_to_one", "querybank")),
        ("commands.rerank", TRAINING | {"torch"}),
        ("evaluation.stages", {"numpy", "torch", "transformers"}),
        *((f"training.{name}_augmentation", TRAINING | {"torch"}) for name in ("image", "caption")),
    ],
)
def test_pure_tools_import_alone(module, unwanted, tmp_path):
    loaded = run_python(f"import sys, tpas.{module}; print(*sys.modules)", tmp_path).split()
    assert f"tpas.{module}" in loaded
    assert not unwanted & set(loaded)


def test_importing_every_module_does_nothing_and_loads_nothing_to_draw_with(tmp_path):
    modules = sorted(path.stem for path in ROOT.glob("*.py") if path.stem != "__init__")
    imports = "\n".join(f"import tpas.{module}" for module in (*modules, "evaluation.result_files"))
    loaded = f"{imports}\nimport sys; print('matplotlib' in sys.modules)"
    assert run_python(loaded, tmp_path) == "False\n"
    assert not list(tmp_path.iterdir())


def test_every_folder_of_code_is_a_package():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    places = [path.parent.relative_to(ROOT) for path in shipped_files() if path.name == "__init__.py"]
    assert sorted(settings["packages"]) == sorted(".".join(("tpas", *place.parts)) for place in places)


def test_the_wheel_holds_the_package_and_nothing_else(tmp_path):
    files = [path.relative_to(ROOT) for path in shipped_files()]
    for file in files:
        (tmp_path / "copy" / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, tmp_path / "copy" / file)
    build = f"from setuptools.build_meta import build_wheel; build_wheel({str(tmp_path)!r})"
    run_python(build, tmp_path / "copy")
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        built = {name for name in archive.namelist() if ".dist-info/" not in name}

    folders = [file.parent for file in files if file.name == "__init__.py" and file.parent != Path()]
    below = {file for file in files if file.parent in folders}  # templates and style sheets as well
    at_the_root = {file for file in files if file.parent == Path() and file.suffix == ".py"}
    at_the_root |= {Path("py.typed"), Path("model_card.md")}
    assert built == {f"tpas/{file.as_posix()}" for file in below | at_the_root}


def test_the_root_has_few_files():
    """So that a reader of its listing sees what this is."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a clone")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    at_the_root = [name for name in listed.splitlines() if "/" not in name]
    assert len(at_the_root) <= MOST_ROOT_FILES, f"{len(at_the_root)} files at the root: {at_the_root}"


def test_constraints_pin_every_requirement():
    pinned = pins()
    for requirement in requirements():
        version = pinned[requirement.name.lower().replace("_", "-")]
        assert requirement.specifier.contains(version), f"constraints.txt has {version}, not {requirement}"


def test_files_are_small():
    for path in shipped_files():
        limit = LARGEST_CHECKPOINT if path.suffix == ".safetensors" else LARGEST_FILE
        assert path.stat().st_size <= limit, f"{path.relative_to(ROOT)} is larger than {limit // MEGABYTE} MB"


def test_no_file_names_a_private_path():
    for path in shipped_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # an image or weights
        found = PRIVATE_PATH.search(text)
        assert not found, f"{path.relative_to(ROOT)} contains {text[found.start() : found.start() + 60]!r}"


def test_readme_names_every_root_file_and_folder():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(\w+)\.py\b", readme))
    assert named == {path.stem for path in ROOT.glob("*.py") if not path.stem.startswith("__")}
    table = readme.partition("## Where things are")[2]
    assert {path.parent.name for path in ROOT.glob("*/__init__.py")} <= set(re.findall(r"`([\w/]+)/`", table))


def test_the_examples_of_readme_and_how_it_works_run_as_they_stand(tmp_path):
    search, stages = (
        re.search(r"```python\n(.*?)```", (ROOT / name).read_text(encoding="utf-8"), re.DOTALL).group(1)
        for name in ("README.md", "docs/how_it_works.md")
    )
    (tmp_path / "demo_start").symlink_to(ROOT / "demo_start")
    # In one process, to spare the imports, and in a namespace each.
    printed = run_python(
        f"for code in {[search, stages]!r}: exec(code, {{'__name__': '__main__'}})", tmp_path
    )
    hit = r"^  ([123])\.  -?\d\.\d\d  .*outputs/people/test/(.*\.jpg)$"
    found = re.findall(hit, printed, re.M)
    assert [rank for rank, _ in found] == ["1", "2", "3"] * 2
    annotation = "".join(file.read_text() for file in tmp_path.glob("outputs/people/annotation/test/*"))
    captions = {line["image"]: str(line["caption"]) for line in map(json.loads, annotation.splitlines())}
    first = [captions[f"test/{name}"] for rank, name in found if rank == "1"]
    assert ["football" in first[0], "kicked" in first[1]] == [True, True]  # README: each finds its own
    assert "SCAReport(queries=" in printed


def test_model_card_has_its_front_matter():
    card = ModelCard((ROOT / "model_card.md").read_text(encoding="utf-8"))
    assert (card.data.license, card.data.library_name) == ("apache-2.0", "transformers")
