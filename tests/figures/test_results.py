"""Texts over their images: the right one has the green frame, and what is missing is shown as such."""

import numpy as np
import pytest
from figure_pixels import COLOURS, IMAGES, columns_with, framed, hits, pixels, plotted, texts
from matplotlib import pyplot
from PIL import Image

from tpas.figures.results import ResultRow, caption, plot_result_rows
from tpas.figures.sheet import NEUTRAL, RIGHT, WRONG, box_for, fitted_size
from tpas.search.hits import SearchHit


def test_images_stand_in_order_in_frames_that_say_how_good_they_are(tmp_path):
    row = ResultRow("A man falls.", hits(IMAGES, [3.25, 2, -1.5, -2]), relevant={"1"})
    figure = plot_result_rows([row])
    image = pixels(figure, tmp_path)
    lefts = [columns_with(image, colour)[0] for colour in COLOURS]
    assert lefts == sorted(lefts)
    assert framed(image, RIGHT) == [1]
    assert framed(image, WRONG) == [0]  # ranked before the right one
    assert framed(image, NEUTRAL) == [2, 3]
    assert texts(figure) == ["A man falls.", "1 · 3.25", "2 · 2.00", "✓ right", "3 · −1.50", "4 · −2.00"]


def test_without_knowledge_every_frame_is_neutral(tmp_path):
    figure = plotted("A man falls.", IMAGES)
    image = pixels(figure, tmp_path)
    assert framed(image, NEUTRAL) == [0, 1, 2, 3]
    assert framed(image, RIGHT) == framed(image, WRONG) == []
    assert texts(figure) == ["A man falls.", "1 · 9.00", "2 · 8.00", "3 · 7.00", "4 · 6.00"]


def test_a_rank_that_sca_changed_is_marked_and_no_number_stands_where_there_is_none():
    moved = [SearchHit("a", 1, 2.0, rank_before_sca=2), SearchHit("b", 2, 3.0, rank_before_sca=1)]
    others = [SearchHit("c", 3, 1.0, rank_before_sca=3), SearchHit("d", 4, None, rank_before_sca=4)]
    captions = [caption(hit) for hit in (*moved, *others)]
    assert captions == ["2 → 1 · 2.00", "1 → 2 · 3.00", "3 · 1.00", "4"]


def test_proportions_are_kept(tmp_path):
    wide = Image.new("RGB", (90, 30), COLOURS[0])
    image = pixels(plotted("A street.", [wide]), tmp_path)
    rows = columns_with(image.transpose(1, 0, 2), COLOURS[0])
    columns = columns_with(image, COLOURS[0])
    assert len(columns) / len(rows) == pytest.approx(3, rel=0.05)
    assert fitted_size(wide, 2.0, 2.0) == (2.0, pytest.approx(2 / 3))
    assert box_for([wide, IMAGES[0]], 1.5, 0.75, 2.25) == 2.25
    assert box_for([IMAGES[0]], 1.5, 0.75, 2.25) == 1.0


def test_files_and_images_give_the_same_figure(tmp_path):
    IMAGES[0].save(tmp_path / "one.png")
    from_memory = pixels(plotted("A man.", [IMAGES[0]]), tmp_path)
    for path in (tmp_path / "one.png", str(tmp_path / "one.png")):
        np.testing.assert_array_equal(pixels(plotted("A man.", [path]), tmp_path), from_memory)


def test_what_cannot_be_had_is_a_placeholder_and_the_log_says_why(tmp_path, caplog):
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    found = hits([tmp_path / "gone.jpg", tmp_path / "broken.jpg", IMAGES[0]])
    figure = plot_result_rows([ResultRow("A man.", [*found, SearchHit("a name alone", 4, 0.5)])])
    assert texts(figure).count("no image") == 3
    assert "gone.jpg: no such image file" in caplog.text
    assert "broken.jpg: not an image" in caplog.text
    assert "'a name alone' is known by its name alone" in caplog.text
    assert len(figure.axes) == 1


def test_rows_share_their_columns_and_what_was_missed_stands_last(tmp_path):
    IMAGES[3].save(tmp_path / "missed.png")
    (found,) = hits(IMAGES[2:3])
    rows = [
        ResultRow("A man.", hits(IMAGES[:2]), {"0"}),
        ResultRow("A woman.", [found], {"another"}, "x", missed=tmp_path / "missed.png"),
    ]
    figure = plot_result_rows(rows)
    image = pixels(figure, tmp_path)
    lefts = [columns_with(image, colour)[0] for colour in COLOURS]
    assert lefts[0] == lefts[2]
    assert lefts[1] == lefts[3]
    assert texts(figure)[-3:] == ["1 · 9.00", "", "✓ right"]  # neither rank nor score is known of the last
    assert "x" in texts(figure)
    assert 3 in framed(image, RIGHT)


@pytest.mark.parametrize("rows", [[], [ResultRow("A man.", [])]])
def test_a_figure_of_nothing_is_refused(rows):
    with pytest.raises(ValueError, match="nothing to show"):
        plot_result_rows(rows)


def test_drawing_leaves_the_images_as_they_were():
    large = Image.new("RGB", (2000, 1000))
    plotted("A street.", [large])
    assert large.size == (2000, 1000)


def test_no_figure_is_left_in_pyplot():
    plotted("A man.", IMAGES)
    assert pyplot.get_fignums() == []
