"""What the benchmarks share that fine-tune the demo's start on drawn people: flags, settings and data."""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from drawn_people import DEMO_START
from measuring import markdown_table

from tpas.commands.demo import QUICK, DemoSettings, fine_tuning_command, run_logged
from tpas.data.drawn.synthetic_pab import draw_pab
from tpas.models.interface import RetrievalModel
from tpas.models.loading import load_model


def seeds_parser(documentation: str, seeds: list[int]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=documentation.partition("\n")[0])
    shown = " ".join(map(str, seeds))
    parser.add_argument("--seeds", type=int, nargs="+", default=seeds, help=f"default: {shown}")
    parser.add_argument("--quick", action="store_true", help="the demo's --quick: nothing is learnt")
    parser.add_argument("--output", type=Path, help="every figure in JSON; a .md of that name is beside it")
    return parser


def settings_of(arguments: argparse.Namespace) -> DemoSettings:
    """The demo's, with `--steps` where there are such; with `--quick` its own."""
    if arguments.quick:
        return QUICK
    return replace(DemoSettings(), max_train_steps=getattr(arguments, "steps", DemoSettings.max_train_steps))


def fine_tuned_model(name: str | None, settings: DemoSettings, folder: Path) -> RetrievalModel:
    """The model of that name, or else the demo's start, fine-tuned in `folder` on the first seed's people."""
    if name is None:
        draw_people(folder, settings, 0)
        run_logged(fine_tuning_command(settings, DEMO_START, 0), folder, "fine_tune")
        name = str(folder / "fine_tuned" / "best")
    return load_model(name)


def draw_people(folder: Path, settings: DemoSettings, seed: int) -> Path:
    """Draws the seed's people into `folder/pab`."""
    pairs = {"train_pairs": settings.train_pairs, "test_pairs": settings.test_pairs}
    return draw_pab(folder / "pab", seed=seed, **pairs)


def captioned_table(caption: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join([caption, "", *markdown_table(heads, rows)]) + "\n"
