"""Holds the imports of every root file to the design: commands -> services -> pure tools and Hub code."""

import ast
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]

# Every .py file of the package has a layer. A new one is entered here, in the layer whose rules it can keep.
LAYERS = {
    # Shipped with every checkpoint, so transformers must be able to load them without this package.
    "hub": {
        "configuration_tpas",
        "objectives",
        "modeling_tpas",
        "pipeline_tpas",
        "processing_tpas",
        "relative_position",
    },
    # Usable alone: import nothing of ours, touch no disk.
    "pure": {
        "sca",
        "recall_at_k",
        "training.image_augmentation",
        "training.caption_augmentation",
        "training.subsets",
    },
    # As pure, but they may build on pure tools.
    "ranking": {
        "fusion",
        "rerankers.reranking",
        "rerankers.one_to_one",
        "rerankers.hubness",
        "rerankers.querybank",
    },
    "service": {
        "pab",
        "figure_drawing",
        "retrieval_models.interface",
        "retrieval_models.loading",
        "retrieval_models.dual_encoder",
        "retrieval_models.pair_processor",
        "retrieval_models.transformers_encoders",
        "retrieval_models.baselines_extra",
        "retrieval_models.blip",
        "retrieval_models.open_clip_encoders",
        "retrieval_models.llm2clip",
        "retrieval_models.vision_language_matcher",
        "scene_drawing",
        "synthetic_worlds",
        "synthetic_pab",
        "retrieval_stages",
        "search",
        "gallery.pictures",
        "gallery.manifest",
        "gallery.shards",
        "gallery.stored_gallery",
        "gallery.building",
        "gallery.image_tokens",
        "gallery.exact_index",
        "gallery.faiss_index",
        "gallery.milvus_index",
        "gallery.indexes",
        "packed_layers",
        "packed_swin",
        "passes",
        "fast_matching",
        "matching_cascade",
        "fast_encoding",
        "lora",
        "command_line",
        "folder_gallery",
        "contact_sheet",
        "checkpoint_conversion",
        "hub_upload",
        "report",
        "training.arguments",
        "training.averaging",
        "score_files",
        "training.checkpointing",
        "training.data",
        "training.fine_tuning",
        "training.gradient_cache",
        "training.log",
        "training.masked_language_modelling",
        "training.objective",
        "training.optimizer",
        "training.run_folder",
        "challenge",
        "plotting.results",
        "plotting.saving",
        "plotting.settled",
        "plotting.sheet",
        "plotting.text",
        "plotting.training",
        "evaluation.arguments",
        "evaluation.examples",
        "evaluation.matching",
        "evaluation.measures",
        "evaluation.pictures",
        "evaluation.plots",
        "evaluation.ranking",
        "evaluation.settings",
        "evaluation.result_files",
        "evaluation.retrieval",
        "evaluation.significance",
        "evaluation.tables",
        "explanation",
        "search_page.labels",
        "search_page.picture_pool",
        "search_page.desk",
        "search_page.exports",
        "search_page.rendering",
        "search_page.guard",
        "search_page.page",
    },
    "command": {
        "train_accelerate",
        "evaluate_retrieval",
        "compare_evaluations",
        "submit_answers",
        "convert_checkpoint",
        "push_to_hub",
        "pretrain_start",
        "rerank_scores",
        "fuse_scores",
        "demo",
        "manage_gallery",
        "search_gallery",
        "app",
        "__main__",
    },
}
ALLOWED_LAYERS = {
    "hub": {"hub"},
    "pure": set(),
    "ranking": {"pure", "ranking"},
    "service": {"hub", "pure", "ranking", "service"},
    "command": {"hub", "pure", "ranking", "service", "command"},
}
HUB_LIBRARIES = {"torch", "transformers", "tokenizers", "huggingface_hub", "PIL", "numpy"}
DISK_MODULES = {"os", "pathlib", "io", "shutil", "tempfile", "glob", "pickle", "shelve", "sqlite3"}
DISK_CALLS = {"open", "read_text", "write_text", "read_bytes", "write_bytes", "fromfile", "tofile", "memmap"}
# The name under which the Hub finds a class has to be set where the class is defined.
IMPORT_TIME_CALLS = {"register_for_auto_class"}
# Distributions whose import name is another one.
IMPORT_NAMES = {
    "pillow": "PIL",
    "Jinja2": "jinja2",
    "MarkupSafe": "markupsafe",
    "faiss-cpu": "faiss",
    "open_clip_torch": "open_clip",
}
# What search must do without, and the extra that each of these files may need beyond the core.
CORE = {
    *(
        "search",
        "retrieval_stages",
        "fast_matching",
        "matching_cascade",
        "fast_encoding",
        "packed_layers",
        "packed_swin",
        "passes",
        "score_files",
        "rerank_scores",
        "fuse_scores",
    ),
    *(f"gallery.{name}" for name in ("pictures", "manifest", "shards", "stored_gallery")),
    *(f"gallery.{name}" for name in ("building", "image_tokens", "exact_index", "indexes")),
}
OWN_EXTRA = {
    "gallery.faiss_index": "index",
    "gallery.milvus_index": "milvus",
    "search_page.page": "app",
    "search_page.guard": "app",
}


def layer_of(module: str) -> str | None:
    return next((layer for layer, modules in LAYERS.items() if module in modules), None)


def package_modules() -> list[str]:
    """The names of our modules below `tpas`, such as "sca" and "training.checkpointing"."""
    files = (
        *ROOT.glob("*.py"),
        *(file for init in ROOT.glob("*/__init__.py") for file in init.parent.glob("*.py")),
    )
    names = (file.relative_to(ROOT).with_suffix("").parts for file in files if file.stem != "__init__")
    return sorted(".".join(parts) for parts in names)


def modules_of(*layers: str) -> list[str]:
    return [module for module in package_modules() if layer_of(module) in layers]


def read(module: str) -> ast.Module:
    path = ROOT.joinpath(*module.split(".")).with_suffix(".py")
    return ast.parse(path.read_text(encoding="utf-8"), filename=path.name)


def own_imports(tree: ast.Module) -> set[str]:
    """The modules of ours that a file imports, at its top or inside a function, in whatever form."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            path = (node.module or "").split(".")
            if node.level == 0 and path[0] != "tpas":
                continue
            inside = ".".join(path if node.level else path[1:])
            found |= {inside} if inside else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[2] for alias in node.names if alias.name.startswith("tpas.")}
    return found


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


def import_violations(module: str, tree: ast.Module) -> list[str]:
    """One sentence for each import of ``module`` that its layer does not allow."""
    layer = layer_of(module)
    violations = [
        f"{module} ({layer}) imports {other} ({layer_of(other)}): imports point downwards only"
        for other in sorted(own_imports(tree))
        if layer_of(other) not in ALLOWED_LAYERS[layer]
    ]
    form = "from .module import Name" if layer == "hub" else "from tpas.module import Name"
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            right = all(alias.name.split(".")[0] != "tpas" for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.level or node.module.split(".")[0] == "tpas"):
            if layer == "hub":
                # The only form whose target transformers ships along with a checkpoint.
                right = node.level == 1 and node.module is not None and "." not in node.module
            else:
                right = node.level == 0 and node.module.partition(".")[2] in package_modules()
            right = right and all(alias.name != "*" for alias in node.names)
        else:
            continue
        if not right:
            violations.append(f"{module}.py:{node.lineno}: `{ast.unparse(node)}` has not the form `{form}`")
    if layer == "hub":
        violations += [
            f"{module} imports {library}, which not everyone who loads a checkpoint has"
            for library in sorted(third_party_imports(tree) - HUB_LIBRARIES)
        ]
    return violations


def purity_violations(module: str, tree: ast.Module) -> list[str]:
    """One sentence for each way in which a pure tool reaches for the disk."""
    return [
        f"{module} is a pure tool and uses {name}: it must not touch the disk"
        for name in sorted((library_imports(tree) & DISK_MODULES) | (called_names(tree) & DISK_CALLS))
    ]


def import_time_violations(module: str, tree: ast.Module) -> list[str]:
    """One sentence for each statement that does something when ``module`` is imported."""
    inert = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)
    violations = []
    for statement in tree.body:
        if isinstance(statement, inert):
            continue
        if isinstance(statement, ast.Expr):
            if isinstance(statement.value, ast.Constant):
                continue  # a docstring
            if isinstance(statement.value, ast.Call) and called_names(statement.value) <= IMPORT_TIME_CALLS:
                continue
        if isinstance(statement, ast.If) and ast.unparse(statement.test) in (
            "__name__ == '__main__'",
            "TYPE_CHECKING",
        ):
            continue
        violations.append(f"{module}.py:{statement.lineno}: `{ast.unparse(statement)[:60]}` runs at import")
    return violations


def command_violations(module: str, tree: ast.Module) -> list[str]:
    """What a command lacks: ``main(argv=None)`` and the guard that calls it."""
    mains = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "main"]
    if not mains:
        return [f"{module} is a command without a function main(argv=None)"]
    violations = []
    arguments = mains[0].args
    names, defaults = (
        [argument.arg for argument in arguments.args],
        list(map(ast.unparse, arguments.defaults)),
    )
    if (names, defaults) != (["argv"], ["None"]):
        violations.append(f"{module}: the signature is main(argv=None), found main({ast.unparse(arguments)})")
    guards = [node for node in tree.body if isinstance(node, ast.If) and "__main__" in ast.unparse(node.test)]
    if not any("main" in called_names(guard) for guard in guards):
        violations.append(f"{module} does not call main under `if __name__ == '__main__'`")
    return violations


def find_cycle(imports: dict[str, set[str]]) -> list[str]:
    """A chain of imports that returns to its start, or an empty list."""

    def follow(chain: list[str]) -> list[str]:
        for target in sorted(imports.get(chain[-1], ())):
            if target in chain:
                return chain[chain.index(target) :] + [target]
            if cycle := follow([*chain, target]):
                return cycle
        return []

    return next((cycle for module in imports if (cycle := follow([module]))), [])


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


def test_every_root_file_has_a_layer():
    listed = set().union(*LAYERS.values())
    for module in package_modules():
        assert module in listed, (
            f"{module}.py has no layer: add it to LAYERS in {Path(__file__).name}, where it keeps the rules"
        )
    gone = sorted(listed - set(package_modules()))
    assert not gone, f"LAYERS in {Path(__file__).name} lists files that are gone: {gone}"


@pytest.mark.parametrize("module", modules_of(*LAYERS))
def test_imports_point_downwards(module):
    assert not import_violations(module, read(module))


def test_no_file_imports_itself_in_a_circle():
    assert not find_cycle({module: own_imports(read(module)) for module in package_modules()})


@pytest.mark.parametrize("module", modules_of("pure", "ranking"))
def test_pure_tools_touch_no_disk(module):
    assert not purity_violations(module, read(module))


@pytest.mark.parametrize("module", package_modules())
def test_nothing_runs_at_import(module):
    assert not import_time_violations(module, read(module))


def has_main(tree: ast.Module) -> bool:
    return any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body)


@pytest.mark.parametrize("module", package_modules())
def test_commands_have_a_main(module):
    """A service may be a command as well (`synthetic_pab.py`); then the same holds for it."""
    if layer_of(module) == "command" or has_main(read(module)):
        assert not command_violations(module, read(module))


@pytest.mark.parametrize("module", modules_of("hub", "pure", "ranking", "service"))
def test_libraries_do_not_print(module):
    outside_main = [node for node in read(module).body if getattr(node, "name", "") != "main"]
    assert not any("print" in called_names(node) for node in outside_main), f"{module} prints: a library logs"


@pytest.mark.parametrize("module", package_modules())
def test_every_library_is_declared(module):
    """Whoever installs what pyproject.toml says can import the file; models and rankings need no extra."""
    available = declared(None)
    without_extra = CORE.union(LAYERS["hub"], LAYERS["pure"], LAYERS["ranking"]) - {"recall_at_k"}
    if module in OWN_EXTRA:
        available |= declared(OWN_EXTRA[module])
    elif module not in without_extra:
        available |= declared("demo")
    missing = sorted(third_party_imports(read(module)) - available)
    assert not missing, f"{module}.py imports {missing}, which pyproject.toml does not declare for it"


# The rules themselves, each on a line that breaks it.
@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("objectives", "from tpas.sca import sca_rerank"),
        ("objectives", "from .sca import sca_rerank"),
        ("modeling_tpas", "from . import objectives"),
        ("modeling_tpas", "from .objectives.deep import loss"),
        ("modeling_tpas", "from .objectives import *"),
        ("modeling_tpas", "def late():\n    import datasets"),
        ("modeling_tpas", "import tpas.objectives"),
        ("sca", "from tpas.recall_at_k import RecallAtK"),
        ("search", "from tpas.demo import main"),
        ("fusion", "from tpas.search import fuse"),
        ("search", "from .sca import sca_rerank"),
        ("search", "import tpas.sca"),
        ("search", "from tpas import sca"),
        ("demo", "from tpas import train_accelerate"),
        ("demo", "from tpas.nowhere import anything"),
    ],
)
def test_a_wrong_import_is_found(module, source):
    assert import_violations(module, ast.parse(source))


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("modeling_tpas", "import torch\nfrom .objectives import contrastive_loss"),
        ("sca", "import numpy as np"),
        ("rerankers.querybank", "from tpas.rerankers.hubness import csls\nfrom tpas.sca import sca_rerank"),
        ("search", "from tpas.sca import sca_rerank\nfrom tpas.pab import load_pab"),
        ("demo", "from tpas.evaluate_retrieval import main"),
    ],
)
def test_a_right_import_passes(module, source):
    assert not import_violations(module, ast.parse(source))


@pytest.mark.parametrize(
    "source",
    ["import os.path", "from pathlib import Path", "def f(p):\n    return open(p)", "p.write_text('')"],
)
def test_a_tool_that_touches_the_disk_is_found(source):
    assert purity_violations("sca", ast.parse(source))


@pytest.mark.parametrize(
    "source", ["print('hello')", "main()", "for i in range(3):\n    pass", "with open('a') as f:\n    pass"]
)
def test_work_at_import_is_found(source):
    assert import_time_violations("demo", ast.parse(source))


@pytest.mark.parametrize(
    "source",
    [
        "def run():\n    pass",
        "def main():\n    pass",
        "def main(argv):\n    pass",
        "def main(argv=None):\n    pass",
    ],
)
def test_an_incomplete_command_is_found(source):
    assert command_violations("demo", ast.parse(source))


def test_a_circle_is_found():
    assert find_cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert not find_cycle({"a": {"b", "c"}, "b": {"c"}})
