"""People drawn by a program, in PAB's layout: what makes up their world, and how it is painted."""

import tomllib
from pathlib import Path
from typing import Any

MANIFEST = "synthetic_pab.json"  # in a finished folder; names the arguments that it was drawn with


def is_drawn(data_root: Path) -> bool:
    return (data_root / MANIFEST).is_file()


def read_tables(name: str) -> dict[str, Any]:
    """The TOML file of this name beside this module; ValueError with the name for one that is not TOML."""
    try:
        return tomllib.loads((Path(__file__).parent / name).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
