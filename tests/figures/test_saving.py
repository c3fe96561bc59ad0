"""A figure as a file of the kind that its name says."""

import os

import pytest
from figure_pixels import IMAGES, plotted

from tpas.figures.saving import save_figure
from tpas.figures.sheet import plot_note


@pytest.mark.parametrize("suffix", ["png", "pdf", "svg", "jpg", "webp"])
def test_a_figure_becomes_a_file_of_its_kind_twice_the_same(suffix, tmp_path):
    begins = {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml", "jpg": b"\xff\xd8", "webp": b"RIFF"}
    contents = []
    for name in ("one", "two"):
        figure = plotted("Ein Mann fällt – ✓.", IMAGES)
        path = save_figure(figure, tmp_path / "new" / f"{name}.{suffix}")
        contents.append(path.read_bytes())
    assert contents[0].startswith(begins[suffix])
    assert contents[0] == contents[1]
    assert sorted(os.listdir(tmp_path / "new")) == [f"one.{suffix}", f"two.{suffix}"]


def test_another_kind_of_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"figure.gif: a figure is written as one of png, pdf"):
        save_figure(plot_note("nothing"), tmp_path / "figure.gif")
    assert not list(tmp_path.iterdir())
