"""People drawn by a program, in PAB's layout: what makes up their world, and how it is painted."""

from pathlib import Path

MANIFEST = "synthetic_pab.json"  # in a finished folder; names the arguments that it was drawn with


def is_drawn(data_root: Path) -> bool:
    return (data_root / MANIFEST).is_file()
