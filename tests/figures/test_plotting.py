"""Figures: the right image has the green frame, texts fit, and what is missing is shown as such."""

import json
import math
import os
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib import font_manager, pyplot
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from tpas.figures.collisions import ResolvedCollision, find_moves, plot_collisions, resolved_collisions
from tpas.figures.results import ResultRow, plot_result_rows, plot_results
from tpas.figures.saving import save_figure, svg_of
from tpas.figures.sheet import (
    NEUTRAL,
    RIGHT,
    WRONG,
    Paragraph,
    RankedImage,
    box_for,
    fitted_size,
    plot_note,
)
from tpas.figures.text import ELLIPSIS, MISSING, drawable, is_right_to_left, wrap
from tpas.figures.training import moving_mean, plot_training, training_panels
from tpas.sca import sca_rerank
from tpas.training.log import read_training_log

COLOURS = [(200, 30, 30), (30, 30, 200), (200, 200, 30), (30, 200, 200)]
IMAGES = [Image.new("RGB", (40, 60), colour) for colour in COLOURS]
DOTS = 288  # an inch, four a point
LONG = "A man in a red coat is lying on the pavement beside his bicycle. " * 4


def pixels(figure: Figure, folder: Path) -> np.ndarray:
    """What the figure looks like as a file, (H, W, 3)."""
    return np.asarray(Image.open(save_figure(figure, folder / "figure.png", DOTS)).convert("RGB")).astype(int)


def columns_with(image: np.ndarray, colour: tuple, tolerance: int = 6, at_least: int = 20) -> np.ndarray:
    """The columns in which many pixels have about that colour."""
    return np.flatnonzero((np.abs(image - np.array(colour)).max(axis=2) <= tolerance).sum(axis=0) >= at_least)


def framed(image: np.ndarray, frame: str) -> list[int]:
    """Which of IMAGES stand inside a frame of that colour: its sides are just outside of theirs."""
    sides = columns_with(image, [round(255 * part) for part in to_rgb(frame)], at_least=100)
    found = []
    for number, colour in enumerate(COLOURS):
        own = columns_with(image, colour)
        if len(own) and any(own[0] - 20 < side < own[0] for side in sides):
            found.append(number)
    return found


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.texts]


def test_images_stand_in_order_in_frames_that_say_how_good_they_are(tmp_path):
    figure = plot_results("A man falls.", IMAGES, [3.25, 2, -1.5, -2], [False, True, False, False])
    image = pixels(figure, tmp_path)
    lefts = [columns_with(image, colour)[0] for colour in COLOURS]
    assert lefts == sorted(lefts)
    assert framed(image, RIGHT) == [1]
    assert framed(image, WRONG) == [0]  # ranked before the right one
    assert framed(image, NEUTRAL) == [2, 3]
    assert texts(figure) == ["A man falls.", "1 · 3.25", "2 · 2.00", "✓ right", "3 · −1.50", "4 · −2.00"]


def test_without_knowledge_every_frame_is_neutral(tmp_path):
    figure = plot_results("A man falls.", IMAGES)
    image = pixels(figure, tmp_path)
    assert framed(image, NEUTRAL) == [0, 1, 2, 3]
    assert framed(image, RIGHT) == framed(image, WRONG) == []
    assert texts(figure) == ["A man falls.", "1", "2", "3", "4"]


def test_proportions_are_kept(tmp_path):
    wide = Image.new("RGB", (90, 30), COLOURS[0])
    image = pixels(plot_results("A street.", [wide]), tmp_path)
    rows = columns_with(image.transpose(1, 0, 2), COLOURS[0])
    columns = columns_with(image, COLOURS[0])
    assert len(columns) / len(rows) == pytest.approx(3, rel=0.05)
    assert fitted_size(wide, 2.0, 2.0) == (2.0, pytest.approx(2 / 3))
    assert box_for([wide, IMAGES[0]], 1.5, 0.75, 2.25) == 2.25
    assert box_for([IMAGES[0]], 1.5, 0.75, 2.25) == 1.0


def test_files_and_images_give_the_same_figure(tmp_path):
    IMAGES[0].save(tmp_path / "one.png")
    from_memory = pixels(plot_results("A man.", [IMAGES[0]]), tmp_path)
    for path in (tmp_path / "one.png", str(tmp_path / "one.png")):
        np.testing.assert_array_equal(pixels(plot_results("A man.", [path]), tmp_path), from_memory)


def test_what_cannot_be_had_is_a_placeholder_and_the_log_says_why(tmp_path, caplog):
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    figure = plot_results("A man.", [tmp_path / "gone.jpg", tmp_path / "broken.jpg", None, IMAGES[0]])
    assert texts(figure).count("no image") == 3
    assert "gone.jpg: no such image file" in caplog.text
    assert "broken.jpg: not an image" in caplog.text
    assert len(caplog.records) == 2
    assert len(figure.axes) == 1


def test_rows_share_their_columns_and_keep_given_ranks(tmp_path):
    rows = [
        ResultRow("A man.", [RankedImage(IMAGES[0], 1.0, True, 1), RankedImage(IMAGES[1], 0.5, False, 2)]),
        ResultRow(
            "A woman.",
            [RankedImage(IMAGES[2], 1.0, False, 1), RankedImage(IMAGES[3], None, True)],
            "x",
        ),
    ]
    figure = plot_result_rows(rows)
    image = pixels(figure, tmp_path)
    lefts = [columns_with(image, colour)[0] for colour in COLOURS]
    assert lefts[0] == lefts[2]
    assert lefts[1] == lefts[3]
    assert texts(figure)[-3:] == ["1 · 1.00", "", "✓ right"]  # neither rank nor score is known of the last
    assert "x" in texts(figure)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["a"], [1.0, 2.0]), "scores must have one value an image, got 2 for 1"),
        ((IMAGES, None, [True]), "right must have one value an image, got 1 for 4"),
        (([],), "nothing to show"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        plot_results("A man.", *arguments)


def test_hits_of_a_search(tmp_path):
    class Hit:
        def __init__(self, rank, image):
            self.id, self.rank, self.score, self.path = (
                f"{rank}.jpg",
                rank,
                1.0 / rank,
                tmp_path / f"{rank}.jpg",
            )
            self.shown = image

        def image(self):
            if self.shown is None:
                raise FileNotFoundError(self.path)
            return self.shown

    hits = [Hit(1, IMAGES[0]), Hit(2, None), Hit(3, IMAGES[2])]
    row = ResultRow.of_hits("A man.", hits, relevant={"3.jpg"})
    assert [(ranked.rank, ranked.score, ranked.right) for ranked in row.images] == [
        (1, 1.0, False),
        (2, 0.5, False),
        (3, 1 / 3, True),
    ]
    assert texts(plot_result_rows([row])).count("no image") == 1
    assert all(ranked.right is None for ranked in ResultRow.of_hits("A man.", hits).images)


# Texts


def width_of(line: str, size: float) -> float:
    """In inches, measured by drawing it."""
    figure = Figure(dpi=200)
    canvas = FigureCanvasAgg(figure)
    drawn = figure.text(0, 0, line, fontsize=size, parse_math=False)
    return drawn.get_window_extent(canvas.get_renderer()).width / 200


@pytest.mark.parametrize("text", [LONG, "W" * 300, MISSING * 100, LONG + "x" * 90 + " end"])
def test_lines_fit_and_lose_nothing(text):
    lines = wrap(text, 3.0, 10.0, ["DejaVu Sans"], max_lines=99)
    assert len(lines) > 3
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert all(width_of(line, 10.0) <= 3.02 for line in lines)
    for line, following in zip(lines, lines[1:], strict=False):  # none is broken for nothing
        assert width_of(f"{line} {following.split()[0]}", 10.0) > 2.98


def test_words_stay_whole_where_they_can():
    lines = wrap(LONG.strip(), 3.0, 10.0, ["DejaVu Sans"], max_lines=99)
    assert " ".join(lines) == LONG.strip()


def test_wide_characters_break_anywhere(monkeypatch):
    monkeypatch.setattr("tpas.figures.text._width", lambda text, font: len(text))
    assert wrap("走在路上的人 in red", 4, 10.0, [], max_lines=99) == ["走在路上", "的人", "in", "red"]


def test_too_long_a_text_ends_in_an_ellipsis():
    paragraph = Paragraph.fit(LONG, 3.0, max_lines=2)
    assert len(paragraph.lines) == 2
    assert paragraph.lines[-1].endswith(ELLIPSIS)
    assert width_of(paragraph.lines[-1], 10.0) <= 3.02


def test_a_dollar_is_a_dollar_and_white_space_is_one_space(tmp_path):
    figure = plot_results("from $5\tto\n\n$6 \\frac\x00", IMAGES)
    assert texts(figure)[0] == "from $5 to $6 \\frac"
    pixels(figure, tmp_path)  # as mathematics it could not be drawn


def test_right_to_left_text_starts_at_the_right(tmp_path):
    hebrew = "איש במעיל אדום שוכב על המדרכה"
    assert is_right_to_left(hebrew)
    assert is_right_to_left("12 رجل")
    assert not is_right_to_left("12 men, רחוב")
    assert not is_right_to_left("")
    image = pixels(plot_results(hebrew, IMAGES[:1]), tmp_path)
    dark = np.flatnonzero((image[: DOTS // 2].max(axis=2) < 120).any(axis=0))
    assert dark.min() > image.shape[1] / 3
    assert dark.max() > image.shape[1] - DOTS // 3


def test_characters_without_a_font_become_boxes_and_the_log_names_them(monkeypatch, caplog, tmp_path):
    monkeypatch.setattr("tpas.figures.text._installed_fonts", lambda: [])
    text, families = drawable("A man 走 \u0915\U000e0001")
    assert text == f"A man {MISSING} {MISSING}"  # a joiner has no shape of its own
    assert families == ["DejaVu Sans"]
    assert "'走' (U+8D70)" in caplog.text
    assert "install a font" in caplog.text
    pixels(plot_results("走", IMAGES), tmp_path)  # matplotlib has nothing to warn of


def test_another_font_helps_out(monkeypatch, caplog):
    other = font_manager.findfont("cmr10")
    monkeypatch.setattr(
        "tpas.figures.text._characters", lambda path: frozenset("走A" if path == other else "A")
    )
    monkeypatch.setattr("tpas.figures.text._installed_fonts", lambda: [("cmr10", other)])
    assert drawable("A走") == ("A走", ["DejaVu Sans", "cmr10"])
    assert not caplog.records


# Resolved collisions


def test_the_sheet_of_a_collision_shows_who_kept_the_image(tmp_path):
    kept = RankedImage(IMAGES[0], 3.0, True, 1)
    figure = plot_collisions(
        [
            ResolvedCollision(
                "A girl runs.",
                replace(kept, right=False, score=2.0),
                RankedImage(IMAGES[1], 1.0, True, 2),
                "A man falls.",
                kept,
                "corrected",
            ),
            ResolvedCollision("A boy.", RankedImage(IMAGES[2]), RankedImage(None)),  # nothing else is known
        ]
    )
    assert texts(figure) == [
        *("keeps the image", "1 · 3.00", "✓ right", "A man falls."),
        *("wanted it too and moves on: corrected", "1 · 2.00", "2 · 1.00", "✓ right", "A girl runs."),
        *("wanted it too and moves on", "", "no image", "", "A boy."),
    ]
    image = pixels(figure, tmp_path)
    assert framed(image, RIGHT) == [0, 1]
    with pytest.raises(ValueError, match="nothing was moved"):
        plot_collisions([])


def test_moves_are_those_of_a_brute_force():
    generator = np.random.default_rng(3)
    moved = 0
    for _ in range(50):
        scores = generator.normal(size=(6, 5)).round(1)
        order = np.argsort(-scores, axis=1, kind="stable")
        before, confidences = order.tolist(), np.take_along_axis(scores, order, axis=1).tolist()
        after = sca_rerank(None, scores, top_k=5).indices.tolist()
        moves = {move.query: move for move in find_moves(before, confidences, after)}
        for query in range(6):
            assert (query in moves) == (before[query][0] != after[query][0])
            if query in moves:
                move, moved = moves[query], moved + 1
                assert (move.claimed, move.taken) == (before[query][0], after[query][0])
                holders = [other for other in range(6) if after[other][0] == move.claimed]
                best = max((scores[other, move.claimed] for other in holders), default=None)
                assert (move.holder is None) == (not holders)
                assert move.holder is None or scores[move.holder, move.claimed] == best
    assert moved > 20


def test_collisions_of_ones_own_scores():
    scores = np.array([[0.9, 0.1, 0.2, 0.0], [0.8, 0.7, 0.3, 0.1]])
    reranked = sca_rerank(None, scores, top_k=4)
    (collision,) = resolved_collisions(["a", "b"], scores, reranked, IMAGES, relevant=[[0], [1]])
    assert (collision.text, collision.holder, collision.outcome) == ("b", "a", "corrected")
    assert collision.before == RankedImage(IMAGES[0], 0.8, False, 1)
    assert collision.after == RankedImage(IMAGES[1], 0.7, True, 2)
    assert collision.kept == RankedImage(IMAGES[0], 0.9, True, 1)
    (unknown,) = resolved_collisions(["a", "b"], scores, reranked, IMAGES)
    assert unknown.outcome == ""
    assert unknown.after.right is None


# Training

LOG = [
    {"step": step, "epoch": step / 4, "loss": 3.0, "contrastive_loss": 4.0 / step, "matching_loss": 0.6}
    for step in range(1, 9)
] + [
    {"step": 8, "epoch": 2.0, "evaluation": {"matching": {"all": {"recall@1": 0.5}}}},
    {"step": 8, "epoch": 2.0, "weights": "averaged", "evaluation": {"matching": {"all": {"recall@1": 0.75}}}},
]


def test_the_curves_have_the_numbers_of_the_log(tmp_path):
    path = tmp_path / "training_log.jsonl"
    path.write_text(
        "".join(f"{line}\n" for line in map(json.dumps, LOG)) + '{"step": 9, "mat'
    )  # still being written
    log = read_training_log(path)
    assert log == LOG
    contrastive, matching, recall = training_panels(log)
    assert contrastive.title == "Contrastive loss"
    assert contrastive.lines == {"each step": [(step, 4.0 / step) for step in range(1, 9)]}
    assert recall.lines == {"+ matching": [(8, 50.0)], "+ matching (averaged weights)": [(8, 75.0)]}
    axes = plot_training(log).axes
    assert [one.get_title() for one in axes] == [contrastive.title, matching.title, recall.title]
    np.testing.assert_array_equal(axes[0].lines[0].get_ydata(), [4.0 / step for step in range(1, 9)])


def test_a_log_of_nothing_is_refused_and_what_is_not_finite_left_out():
    with pytest.raises(ValueError, match="neither a loss nor an evaluation"):
        plot_training([{"step": 1, "epoch": 0.1}])
    (panel,) = training_panels(
        [
            {"step": 1, "matching_loss": 1.0},
            {"step": 2, "matching_loss": math.nan},
            {"step": 3, "matching_loss": 2.0},
        ]
    )
    assert panel.lines["each step"] == [(1, 1.0), (3, 2.0)]


def test_the_moving_mean_by_hand():
    assert moving_mean([1.0, 5.0]) == [1.0, 5.0]
    values = [float(value) for value in range(48)]
    values[20] = 100.0
    smoothed = moving_mean(values)
    assert smoothed[0] == 1.0  # of 0, 1, 2
    assert smoothed[21] == pytest.approx((19 + 100 + 21 + 22 + 23) / 5)


# Files


@pytest.mark.parametrize("suffix", ["png", "pdf", "svg", "jpg", "webp"])
def test_a_figure_becomes_a_file_of_its_kind_twice_the_same(suffix, tmp_path):
    begins = {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml", "jpg": b"\xff\xd8", "webp": b"RIFF"}
    contents = []
    for name in ("one", "two"):
        figure = plot_results("Ein Mann fällt – ✓.", IMAGES)
        path = save_figure(figure, tmp_path / "new" / f"{name}.{suffix}")
        contents.append(path.read_bytes())
    assert contents[0].startswith(begins[suffix])
    assert contents[0] == contents[1]
    assert sorted(os.listdir(tmp_path / "new")) == [f"one.{suffix}", f"two.{suffix}"]


def test_another_kind_of_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"figure.gif: a figure is written as one of png, pdf"):
        save_figure(plot_note("nothing"), tmp_path / "figure.gif")
    assert not list(tmp_path.iterdir())


def test_svg_for_a_page_has_no_background():
    root = ElementTree.fromstring(svg_of(plot_training(LOG)))
    backgrounds = [node for node in root.iter() if "fill: #ffffff" in node.get("style", "")]
    assert not [node for node in backgrounds if "opacity: 0" not in node.get("style")]


def test_no_figure_is_left_in_pyplot():
    plot_results("A man.", IMAGES)
    assert pyplot.get_fignums() == []
