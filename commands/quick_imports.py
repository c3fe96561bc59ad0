"""The first import of torch and transformers, without what a command that answers somebody has no use for.

Half of `import torch, transformers.modeling_utils` goes into what our model does without: transformers reads
all its source files twice, to list its names, and imports torch's compiler, distributed tensors and SciPy.
Here the files are read once, and the rest is imported when somebody asks for it. Half of `import gradio` goes
into files that it writes for editors.
"""

import gc
import importlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec, module_from_spec
from pathlib import Path
from types import ModuleType
from typing import Any


@contextmanager
def quick_imports(page: bool = False) -> Iterator[None]:
    """For the first imports of torch and transformers, all of whose objects stay to the end.

    Args:
        page: and of Gradio, which serves the page.

    Looking through them for garbage, meanwhile and once more at the exit, takes a third of a short command.
    In a process that has imported either already, this changes nothing.
    """
    if "torch" in sys.modules:
        yield
        return
    gc.disable()
    try:
        # Of several processes transformers is to know.
        if "transformers" not in sys.modules and "RANK" not in os.environ:
            with suppress(ImportError, AttributeError):  # another version: as it would be without this
                _import_models()
        if page and "gradio" not in sys.modules:
            with suppress(ImportError, AttributeError):
                _import_gradio()
        yield
    finally:
        gc.freeze()
        gc.enable()


def _import_models() -> None:
    """Imports our model and processor, and with them all of transformers that they need."""
    utilities = _import_transformers()
    for name in ("is_torch_distributed_available", "is_torch_flex_attn_available"):
        # As of a torch that was built without. For good: what is imported later has to agree.
        for module in (utilities, sys.modules[utilities.__name__.rpartition(".")[0]]):
            setattr(module, name, _no)
    stand_ins = [
        _StandIn("torch._dynamo", allow_in_graph=_mark, assume_constant_result=_mark, disable=_mark),
        _StandIn.of_function("torch._dynamo._trace_wrapped_higher_order_op", "TransformGetItemToIndex"),
        _StandIn.of_function("scipy.optimize", "linear_sum_assignment"),
    ]
    for stand_in in stand_ins:
        sys.modules.setdefault(stand_in.__name__, stand_in)
    for package in ("torch.distributed", "torch.fx.experimental", "torch.nn.attention"):
        _import_when_asked_for(package)
    try:
        from .. import modeling_tpas, processing_tpas  # noqa: F401
    finally:
        for stand_in in stand_ins:
            if sys.modules.get(stand_in.__name__) is stand_in:
                del sys.modules[stand_in.__name__]


def _import_when_asked_for(package: str) -> None:
    """Lets a package have its submodules: peft, for one, takes it that transformers has imported them."""

    def submodule(name: str) -> ModuleType:
        try:
            return importlib.import_module(f"{package}.{name}")
        except ModuleNotFoundError:
            raise AttributeError(f"module {package!r} has no attribute {name!r}") from None

    importlib.import_module(package).__dict__.setdefault("__getattr__", submodule)


def _import_transformers() -> Any:
    """Imports transformers, which lists its names once, and quickly; returns its `utils.import_utils`.

    They are the same names: of a file it reads the last lines that begin with `__all__`, and here it gets
    these alone.
    """
    with _before("transformers", "utils.import_utils") as utilities:
        names_in, names_under = utilities.fetch__all__, cache(utilities.create_import_structure_from_path)

        def names_of_folder(path: str | Path) -> dict:
            path = Path(path)
            return names_under(str(path.parent if path.is_file() else path))

        utilities.fetch__all__ = lambda content: names_in(content[content.rfind("\n__all__") + 1 :])
        utilities.create_import_structure_from_path = names_of_folder
    return utilities


def _import_gradio() -> None:
    """Imports Gradio, which for editors would write a stub of each of its components again."""
    with _before("gradio", "component_meta") as components:
        components.create_or_modify_pyi = lambda *_: None


@contextmanager
def _before(package: str, module: str) -> Iterator[Any]:
    """Imports a package; one of its modules comes first, to be changed before the package uses it."""
    spec = find_spec(package)
    if spec is None or spec.loader is None:
        raise ImportError(f"No module named {package!r}")
    unfinished = module_from_spec(spec)
    unfinished.__dict__["__version__"] = version(package)
    sys.modules[package] = unfinished
    try:
        yield importlib.import_module(f"{package}.{module}")
        spec.loader.exec_module(unfinished)
    except BaseException:
        sys.modules.pop(package, None)
        raise


class _StandIn(ModuleType):
    """A module of a few names; whoever asks for another gets the real one, which takes its place."""

    def __init__(self, name: str, **names: Any):
        super().__init__(name)
        self.__dict__.update(names)

    @classmethod
    def of_function(cls, module: str, name: str) -> "_StandIn":
        """One whose function imports the real one when it is called."""

        def call(*args: Any, **settings: Any) -> Any:
            return getattr(importlib.import_module(module), name)(*args, **settings)

        return cls(module, **{name: call, "__path__": []})

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__path__":
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)


def _mark(function: Callable | None = None, *_: Any, **__: Any) -> Callable:
    """Marks a function for `torch.compile`, which nobody calls here: by nothing."""
    return (lambda marked: marked) if function is None else function


def _no() -> bool:
    return False
