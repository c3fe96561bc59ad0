"""What import-linter does not see: the Hub's form, purity, work at import, undeclared libraries."""

import ast
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tpas.__main__ import COMMANDS, ELSEWHERE
from tpas.models.hub_code import HUB_CODE

ROOT = Path(__file__).parents[1]

HUB_MODULES = tuple(name.removesuffix(".py") for name in HUB_CODE)
# Usable alone: numbers or images in, numbers or images out. They touch no disk.
PURE = (
    *("sca", "evaluation.recall_at_k", "reranking.fusion", "reranking.ranked_lists", "reranking.one_to_one"),
    *("reranking.hubness", "reranking.querybank"),
    *("training.image_augmentation", "training.caption_augmentation", "training.subsets"),
)
HUB_LIBRARIES = {"torch", "transformers", "tokenizers", "huggingface_hub", "PIL", "numpy"}
DISK_MODULES = {"os", "pathlib", "io", "shutil", "tempfile", "glob", "pickle", "shelve", "sqlite3"}
DISK_CALLS = {"open", "read_text", "write_text", "read_bytes", "write_bytes", "fromfile", "tofile", "memmap"}
# The name under which the Hub finds a class has to be set where the class is defined.
IMPORT_TIME_CALLS = {"register_for_auto_class"}
# Distributions whose import name is another one.
IMPORT_NAMES = {
    "opencv-python": "cv2",
    "pillow": "PIL",
    "pyyaml": "yaml",
    "Jinja2": "jinja2",
    "faiss-cpu": "faiss",
    "grpcio": "grpc",
    "open_clip_torch": "open_clip",
    "prometheus-client": "prometheus_client",
}
# The extra that these rooms and files may need beyond the core; a file's own entry goes before its room's.
# `None`: the core alone.
EXTRAS = dict.fromkeys(("engine", "reranking", "search", "sca", "commands.rerank", "commands.fuse"))
EXTRAS |= {
    "search.faiss_index": "index",
    "search.milvus_index": "milvus",
    "search_page": "app",
    "service": "app",
}
EXTRAS |= dict.fromkeys(("footage", "data.drawn.drawn_footage"), "footage")
EXTRAS |= dict.fromkeys(("figures.contact_sheet", "figures.pages", *HUB_MODULES))


# The commands of `tpas`, one below another, and two that are run as modules.
COMMAND_MODULES = [ELSEWHERE.get(name, f"commands.{name}") for name in (*COMMANDS, "serve key")]
COMMAND_MODULES += ["__main__", "commands.pretrain_start"]


def package_modules() -> list[str]:
    """The names of our modules below `tpas`, such as "sca" and "training.checkpointing"."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    folders = (ROOT.joinpath(*package.split(".")[1:]) for package in settings["packages"])
    files = (file for folder in folders for file in folder.glob("*.py") if file.stem != "__init__")
    return sorted(".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files)


@cache
def read(module: str) -> ast.Module:
    path = ROOT.joinpath(*module.split(".")).with_suffix(".py")
    return ast.parse(path.read_text(encoding="utf-8"), filename=path.name)


def library_imports(tree: ast.Module) -> set[str]:
    """The top-level names of everything not ours that a file imports, the standard library included."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module.split(".")[0])
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
    return found - {"tpas"}


def third_party_imports(tree: ast.Module) -> set[str]:
    return library_imports(tree) - sys.stdlib_module_names


def called_names(tree: ast.AST) -> set[str]:
    calls = (node.func for node in ast.walk(tree) if isinstance(node, ast.Call))
    return {func.id if isinstance(func, ast.Name) else getattr(func, "attr", "") for func in calls}


def hub_violations(module: str, tree: ast.Module) -> list[str]:
    """One text for each import by which a shipped file could not be loaded without this package."""
    violations = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            right = all(alias.name.split(".")[0] != "tpas" for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.level or node.module.split(".")[0] == "tpas"):
            # The only form whose target transformers ships along with a checkpoint.
            ours = node.level == 1 and node.module in HUB_MODULES
            right = ours and all(alias.name != "*" for alias in node.names)
        else:
            continue
        if not right:
            line = f"{module}.py:{node.lineno}: not `from .shipped_module import Name`"
            violations.append(f"{line}: {ast.unparse(node)}")
    return violations + [
        f"{module} imports {library}, which not everyone who loads a checkpoint has"
        for library in sorted(third_party_imports(tree) - HUB_LIBRARIES)
    ]


def absolute_imports(module: str, tree: ast.Module) -> list[str]:
    """Imports of our own by the package's name, which no editor follows where the root is the package."""
    return [
        f"{module}.py:{node.lineno}: {ast.unparse(node)}: imports inside the package are relative"
        for node in ast.walk(tree)
        if (isinstance(node, ast.ImportFrom) and not node.level and node.module.split(".")[0] == "tpas")
        or (isinstance(node, ast.Import) and any(alias.name.split(".")[0] == "tpas" for alias in node.names))
    ]


def purity_violations(module: str, tree: ast.Module) -> list[str]:
    """One text for each way in which a pure tool reaches for the disk."""
    return [
        f"{module} is a pure tool and uses {name}: it must not touch the disk"
        for name in sorted((library_imports(tree) & DISK_MODULES) | (called_names(tree) & DISK_CALLS))
    ]


def import_time_violations(module: str, tree: ast.Module) -> list[str]:
    """One text for each statement that does something when ``module`` is imported."""
    inert = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)
    inert += (ast.AsyncFunctionDef,)
    tests = ("__name__ == '__main__'", "TYPE_CHECKING")
    violations = []
    for statement in tree.body:
        match statement:
            case ast.Expr(ast.Constant()):
                continue  # a docstring
            case ast.Expr(ast.Call()) if called_names(statement.value) <= IMPORT_TIME_CALLS:
                continue
            case ast.If() if ast.unparse(statement.test) in tests:
                continue
        if not isinstance(statement, inert):
            line = f"{module}.py:{statement.lineno}"
            violations.append(f"{line}: `{ast.unparse(statement)[:60]}` runs at import")
    return violations


def command_violations(module: str, tree: ast.Module) -> list[str]:
    """What a command lacks: ``main(argv=None)``, and a call of it where the file is run."""
    mains = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "main"]
    if not mains:
        return [f"{module} is a command without a function main(argv=None)"]
    violations = []
    arguments = mains[0].args
    names, defaults = [argument.arg for argument in arguments.args], map(ast.unparse, arguments.defaults)
    if (names, [*defaults]) != (["argv"], ["None"]):
        violations.append(f"{module}: the signature is main(argv=None), found main({ast.unparse(arguments)})")
    run = [node for node in tree.body if isinstance(node, ast.If) and "__main__" in ast.unparse(node.test)]
    if not any("main" in called_names(block) for block in run):
        violations.append(f"{module} does not call main under `if __name__ == '__main__'`")
    return violations


def declared(group: str | None) -> set[str]:
    """Import names of what pyproject.toml asks for in ``group`` (None: always), nested groups included."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = project["dependencies"] if group is None else project["optional-dependencies"][group]
    names = set()
    for requirement in map(Requirement, lines):
        if requirement.name == "tpas":
            names = names.union(*map(declared, requirement.extras))
        else:
            names.add(IMPORT_NAMES.get(requirement.name, requirement.name))
    return names


@pytest.mark.parametrize("module", HUB_MODULES)
def test_what_the_hub_ships_loads_alone(module):
    assert not hub_violations(module, read(module))


# `train_accelerate.py` is run as a script, whose imports cannot be relative.
@pytest.mark.parametrize("module", [name for name in package_modules() if name != "train_accelerate"])
def test_imports_inside_the_package_are_relative(module):
    assert not absolute_imports(module, read(module))


@pytest.mark.parametrize("module", PURE)
def test_pure_tools_touch_no_disk(module):
    assert not purity_violations(module, read(module))


@pytest.mark.parametrize("module", package_modules())
def test_nothing_runs_at_import(module):
    assert not import_time_violations(module, read(module))


@pytest.mark.parametrize("module", COMMAND_MODULES)
def test_commands_have_a_main(module):
    assert not command_violations(module, read(module))


def test_every_command_is_in_the_table():
    trees = {module: read(module).body for module in package_modules()}
    names = {module: [getattr(node, "name", "") for node in body] for module, body in trees.items()}
    assert sorted(COMMAND_MODULES) == [module for module in names if "main" in names[module]]


@pytest.mark.parametrize("module", sorted({*package_modules()} - {*COMMAND_MODULES}))
def test_libraries_do_not_print(module):
    assert "print" not in called_names(read(module)), f"{module} prints: a library logs"


@pytest.mark.parametrize("module", package_modules())
def test_every_library_is_declared(module):
    """Whoever installs what pyproject.toml says can import the file; models and rankings need no extra."""
    extra = EXTRAS.get(module, EXTRAS.get(module.split(".")[0], "demo"))
    available = declared(None) | (declared(extra) if extra else set())
    missing = sorted(third_party_imports(read(module)) - available)
    assert not missing, f"{module}.py imports {missing}, which pyproject.toml does not declare for it"


# The rules themselves, on lines that break them.
@pytest.mark.parametrize(
    ("rule", "module", "source"),
    [
        (hub_violations, "modeling_tpas", "from tpas.objectives import contrastive_loss"),
        (hub_violations, "modeling_tpas", "from .sca import sca_rerank"),
        (hub_violations, "modeling_tpas", "from . import objectives"),
        (hub_violations, "modeling_tpas", "from .objectives.deep import loss"),
        (hub_violations, "modeling_tpas", "from .objectives import *"),
        (hub_violations, "modeling_tpas", "def late():\n    import datasets"),
        (hub_violations, "modeling_tpas", "import tpas.objectives"),
        (absolute_imports, "search.gallery", "from tpas.sca import sca_rerank"),
        (absolute_imports, "search.gallery", "import tpas.sca"),
        (absolute_imports, "search.gallery", "from tpas import sca"),
        (purity_violations, "sca", "import os.path"),
        (purity_violations, "sca", "from pathlib import Path"),
        (purity_violations, "sca", "def f(p):\n    return open(p)"),
        (purity_violations, "sca", "p.write_text('')"),
        (import_time_violations, "demo", "print('hello')"),
        (import_time_violations, "demo", "main()"),
        (import_time_violations, "demo", "for i in range(3):\n    pass"),
        (import_time_violations, "demo", "with open('a') as f:\n    pass"),
        (command_violations, "demo", "def run():\n    pass"),
        (command_violations, "demo", "def main():\n    pass"),
        (command_violations, "demo", "def main(argv):\n    pass"),
        (command_violations, "demo", "def main(argv=None):\n    pass"),
    ],
)
def test_what_breaks_a_rule_is_found(rule, module, source):
    assert rule(module, ast.parse(source))


def test_imports_that_keep_the_rules_are_let_pass():
    assert not hub_violations("modeling_tpas", ast.parse("import torch\nfrom .objectives import match_pairs"))
    assert not absolute_imports("search.gallery", ast.parse("from ..sca import sca_rerank\nimport numpy"))
