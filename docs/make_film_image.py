"""Draws the README's image of films: `python docs/make_film_image.py`, in a minute or two, without downloads.

Two drawn cameras, looked through by motion; the text is that of the first who lies still, the hits are the
first three of demo_start, each as the whole frame that is kept of a moment.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from tpas.data.drawn.drawn_footage import draw_footage
from tpas.figures.results import ResultRow, plot_result_rows
from tpas.figures.saving import save_figure
from tpas.footage.intake import open_footage
from tpas.models.loading import load_model

ROOT = Path(__file__).parents[1]
SHOWN = 3
DOTS_PER_INCH = 105


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("film.jpg"))
    arguments = parser.parse_args(argv)
    with TemporaryDirectory() as folder:
        truth = draw_footage(Path(folder, "films"), width=480, stays_s=4.0)
        text = next(visit.text for visit in truth if visit.pose == "lying")
        gallery = open_footage(Path(folder, "films"), *load_model(str(ROOT / "demo_start")))
        (hits,) = gallery.search([text], top_k=SHOWN)
        right = {
            hit.id
            for hit in hits
            for visit in truth
            if hit.moment is not None
            and visit.text == text
            and visit.camera == hit.moment.camera
            and visit.start_s < hit.moment.seen_s < visit.end_s
        }
        scenes = [replace(hit, _open=hit.scene) for hit in hits]
        save_figure(plot_result_rows([ResultRow(text, scenes, right)]), arguments.output, DOTS_PER_INCH)


if __name__ == "__main__":
    main()
