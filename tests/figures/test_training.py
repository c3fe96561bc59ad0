"""The curves of a run have the numbers of its log."""

import json
import math
from xml.etree import ElementTree

import numpy as np
import pytest

from tpas.figures.saving import svg_of
from tpas.figures.training import moving_mean, plot_training, training_panels
from tpas.training.log import read_training_log

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


def test_svg_for_a_page_has_no_background():
    root = ElementTree.fromstring(svg_of(plot_training(LOG)))
    backgrounds = [node for node in root.iter() if "fill: #ffffff" in node.get("style", "")]
    assert not [node for node in backgrounds if "opacity: 0" not in node.get("style")]
