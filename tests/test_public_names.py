"""`from tpas import ...`: what is public, that it is loaded when it is used, and that docs/api.md agrees."""

import ast
import importlib.util
import inspect
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import tpas

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "transformers", "numpy", "scipy", "accelerate", "PIL")


def run_python(code: str) -> list[str]:
    """The words that `code` prints in a fresh interpreter."""
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT.parent
    ).stdout.split()


def names_for_editors() -> dict[str, tuple[str, str]]:
    """By public name the module, and the name there, that a type checker is shown."""
    tree = ast.parse((ROOT / "__init__.py").read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    return {
        alias.asname or alias.name: (f"tpas.{node.module}", alias.name)
        for node in block.body
        for alias in node.names
    }


def test_editors_are_shown_the_same_names():
    assert sorted(names_for_editors()) == sorted(tpas.__all__) == list(dict.fromkeys(sorted(tpas.__all__)))


@pytest.mark.parametrize("name", tpas.__all__)
def test_a_public_name_is_what_its_module_defines(name):
    module, own_name = names_for_editors()[name]
    found = getattr(tpas, name)
    assert found is getattr(import_module(module), own_name)  # no second class
    assert found.__module__ == module, f"{name} is defined in {found.__module__}"
    assert inspect.getdoc(found), f"{name} has no docstring"
    assert importlib.util.find_spec(f"tpas.{name}") is None, f"{name} hides a module"


def test_the_api_page_has_a_row_for_every_public_name_and_for_no_other():
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| \S", page, re.MULTILINE)
    listed = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    assert sorted(listed) == sorted(tpas.__all__)


def test_the_import_loads_nothing_and_registers_nothing():
    loaded = run_python("import sys, tpas; dir(tpas); print(*sys.modules)")
    assert "tpas" in loaded
    assert not [name for name in loaded if name.startswith("tpas.") or name in HEAVY]
    loaded = run_python("import sys; from tpas import sca_rerank, coverage; print(*sys.modules)")
    assert [name for name in loaded if name.startswith("tpas.")] == ["tpas.sca"]


def test_a_name_is_listed_before_it_is_loaded_and_one_that_is_not_there_is_refused():
    assert set(tpas.__all__) <= set(dir(tpas))
    with pytest.raises(AttributeError, match="module 'tpas' has no attribute 'Galery'"):
        tpas.Galery  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'Galery'"):
        from tpas import Galery  # noqa: F401


def test_under_another_name_it_still_finds_its_own_modules(monkeypatch):
    """Tools that take the root for a plain folder import it by the folder's name."""
    places = {"submodule_search_locations": [str(ROOT)]}
    spec = importlib.util.spec_from_file_location("cloned_folder", ROOT / "__init__.py", **places)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "cloned_folder", module)
    spec.loader.exec_module(module)
    assert [name for name in sys.modules if name.startswith("cloned_folder.")] == []
    try:
        assert module.coverage([[1, 2], [1, 3]]) == 0.5
        assert module.coverage.__module__ == "cloned_folder.sca"
    finally:
        for name in [name for name in sys.modules if name.startswith("cloned_folder.")]:
            del sys.modules[name]
