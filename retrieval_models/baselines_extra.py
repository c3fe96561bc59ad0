"""Libraries of the extra `baselines`, which torch of another build than torchvision's cannot import."""

from importlib import import_module
from types import ModuleType


def import_from_baselines(library: str) -> ModuleType:
    """The library.

    Raises:
        ValueError: it cannot be imported; with the line that installs it.
    """
    try:
        return import_module(library)
    except (ImportError, RuntimeError) as error:  # RuntimeError: torchvision of another build than torch
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"{library} cannot be imported ({reason}): pip install -e '.[baselines]', with torchvision of "
            "the same build as torch"
        ) from error
