"""Libraries of the extra `baselines`: what is said where they cannot be imported, and how to install them."""

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


def missing_from_baselines(what: str, error: ImportError) -> ValueError:
    """The error to raise where transformers says that `what` needs a package."""
    reason = str(error).strip().splitlines()[0]
    return ValueError(
        f"{what} needs a package that is not installed: pip install -e '.[baselines]' ({reason})"
    )
