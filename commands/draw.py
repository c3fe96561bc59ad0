"""Draws a small Pedestrian Anomaly Behavior set in PAB's own layout.

tpas draw outputs/people --train_pairs 100 --test_pairs 20
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from typer import Argument, Option

from .command_line import CommandLine, CommandResult

app = CommandLine("tpas draw", __doc__)


@app.command()
def draw(
    root: Annotated[Path, Argument(help="new folder to draw into")],
    world: Annotated[Literal["demo", "pretraining"], Option(help="looks, actions and places")] = "demo",
    train_pairs: Annotated[int, Option(help="image-caption pairs for training")] = 2000,
    test_pairs: Annotated[int, Option(help="image-caption pairs for testing")] = 200,
    seed: int = 0,
    image_size: Annotated[int, Option(help="pixels a side")] = 192,
    workers: Annotated[int | None, Option(help="processes (default: one a core)")] = None,
) -> CommandResult:
    """Draws a small Pedestrian Anomaly Behavior set in PAB's own layout.

    tpas draw outputs/people --train_pairs 100 --test_pairs 20
    """
    from ..data.drawn.synthetic_pab import draw_pab
    from ..data.drawn.synthetic_worlds import WORLDS

    drawn = {"train_pairs": train_pairs, "test_pairs": test_pairs, "seed": seed, "image_size": image_size}
    draw_pab(root, world=WORLDS[world], workers=workers, **drawn)
    text = f"{root}: {train_pairs:,} pairs to train on, {test_pairs:,} to test"
    return CommandResult({"root": str(root), "world": world} | drawn, text)


def main(argv: Sequence[str] | None = None) -> None:
    app.run(argv)


if __name__ == "__main__":
    main()
