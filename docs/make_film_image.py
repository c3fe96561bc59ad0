"""Draws the README's image of films: `python docs/make_film_image.py`, in a minute or two, without downloads.

Two drawn cameras, looked through by motion; the text is that of the first who lies still, the hits are the
first three of demo_start, each as the whole frame that is kept of a moment.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from tpas.commands.demo import search_films
from tpas.figures.results import plot_result_rows
from tpas.figures.saving import save_figure

ROOT = Path(__file__).parents[1]
DOTS_PER_INCH = 105


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("film.jpg"))
    arguments = parser.parse_args(argv)
    with TemporaryDirectory() as folder:
        row = search_films(str(ROOT / "demo_start"), Path(folder, "films"))
        save_figure(plot_result_rows([row]), arguments.output, DOTS_PER_INCH)


if __name__ == "__main__":
    main()
