"""Detectors: boxes from files, transformers' by name, ONNX files; asked only where something moves."""

import re
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from tiny_films import walkers
from transformers import YolosConfig, YolosForObjectDetection, YolosImageProcessorPil

from tpas.footage.detectors import (
    LEAST_SCORE,
    GivenBoxes,
    OnnxDetector,
    TransformersDetector,
    WhereItMoves,
    detector_of,
)
from tpas.footage.following import SURE


@dataclass
class Shown:
    """A frame that is there already."""

    time_s: float
    number: int
    pixels: np.ndarray

    width = property(lambda self: self.pixels.shape[1])
    height = property(lambda self: self.pixels.shape[0])

    def image(self, longest=None):
        return self.pixels


def shown(number):
    return Shown((number - 1) / 10, number, np.zeros((120, 160, 3), np.uint8))


@pytest.mark.parametrize(
    "lines",
    [
        "2,-1,10,20,30,40,0.9\n2,-1,50,20,30,40,0.8,1,1\n2,-1,80,20,30,40,0.8,3,1\n",  # the last: a car
        '{"time_s": 0.1, "box": [10, 20, 30, 40], "score": 0.9}\n'
        '{"time_s": 0.11, "box": [1, 1, 5, 5], "class": "dog"}\n'
        '{"time_s": 0.1, "box": [50, 20, 30, 40], "score": 0.8, "class": "Person"}\n',
        '{"frame": 2, "boxes": [[10, 20, 30, 40], [50, 20, 30, 40]], "scores": [0.9, 0.8]}\n',
    ],
)
def test_boxes_of_another_detector(tmp_path, lines):
    file = tmp_path / "boxes"
    file.write_text(lines)
    detector = detector_of(f"boxes:{file}")
    boxes, scores = detector.find(shown(2))
    assert boxes.tolist() == [[10, 20, 40, 60], [50, 20, 80, 60]]
    assert scores.tolist() == pytest.approx([0.9, 0.8])
    assert len(detector.find(shown(1))[0]) == 0


@pytest.mark.parametrize(
    "line", ["1,2,3", '{"time_s": 1}', '{"frame": 1, "box": [0, 0, -1, 5]}', "1,-1,0,0,nan,5"]
)
def test_a_line_that_is_no_boxes_is_named(tmp_path, line):
    (tmp_path / "boxes").write_text(f"1,-1,10,20,30,40,0.9\n{line}\n")
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path / 'boxes'}, line 2: no boxes")):
        GivenBoxes(tmp_path / "boxes")


def test_a_detector_is_asked_where_something_moves_and_not_at_each_frame():
    asked = []

    class Network:
        def find_people(self, image):
            asked.append(image.shape)
            people = np.array([[0, 0, image.shape[1], image.shape[0]], [0, 0, 2, 2]], np.float32)
            return people, np.array([0.9, 0.9], np.float32)

    detector = WhereItMoves(Network(), every_s=0.5)
    at = [{}] * 20 + [{0: (100, 60, 120, 110)}] * 20
    found = []
    for number, image in enumerate(walkers(range(40), at, [(220, 30, 30)])):
        found.append(detector.find(Shown(number / 10, number + 1, image)))
    assert [number for number, people in enumerate(found) if people is not None] == list(range(0, 40, 5))
    assert len(asked) == 4  # of the second half alone
    assert all(height < 120 and width < 160 for height, width, _ in asked)
    boxes, scores = found[30]
    ((left, top, right, bottom),) = boxes[scores >= SURE]  # the other one is where nothing moves
    assert left < 100 < 120 < right
    assert top < 60 < 110 < bottom <= 120


def test_who_is_not_recognised_any_more_is_held_by_what_moves():
    class Network:
        def find_people(self, image):
            return np.empty((0, 4), np.float32), np.empty(0, np.float32)

    detector = WhereItMoves(Network(), every_s=0.1)
    images = walkers(range(40), [{}] * 20 + [{0: (100, 60, 120, 110)}] * 20, [(220, 30, 30)])
    found = [detector.find(Shown(number / 10, number + 1, image)) for number, image in enumerate(images)]
    assert not any(len(boxes) for boxes, _ in found[:20])
    boxes, scores = found[30]
    assert boxes == pytest.approx(np.array([[100, 60, 120, 110]]), abs=4)
    assert scores.tolist() == [pytest.approx(LEAST_SCORE)]  # too weak to begin a visit
    assert LEAST_SCORE < SURE


def save_yolos(folder, classes):
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    labels = {"id2label": dict(enumerate(classes)), "label2id": {name: n for n, name in enumerate(classes)}}
    config = YolosConfig(**size, image_size=[32, 48], patch_size=16, num_detection_tokens=5, **labels)
    network = YolosForObjectDetection(config)
    with torch.no_grad():  # surely the last of the classes, whatever it sees
        network.class_labels_classifier.layers[-1].bias.copy_(
            torch.tensor([-9.0] * (len(classes) - 1) + [9.0, -9.0])
        )
    network.save_pretrained(folder)
    YolosImageProcessorPil(size={"height": 32, "width": 48}).save_pretrained(folder)
    return str(folder)


def test_a_detector_of_transformers_by_its_name(tmp_path):
    detector = TransformersDetector(save_yolos(tmp_path / "yolos", ["cat", "person"]))
    boxes, scores = detector.find_people(np.full((60, 90, 3), 120, np.uint8))
    assert boxes.shape == (len(scores), 4)
    assert len(scores)
    assert (scores > 0.99).all()
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    assert ((centres > 0) & (centres < [90, 60])).all()
    cats = TransformersDetector(save_yolos(tmp_path / "cats", ["person", "cat"]))
    assert not len(cats.find_people(np.full((60, 90, 3), 120, np.uint8))[0])
    with pytest.raises(ValueError, match="has no class 'person', only cat, dog"):
        detector_of(save_yolos(tmp_path / "others", ["cat", "dog"]))


def field(number, content):
    """One field of a protobuf message."""
    if isinstance(content, int):
        return bytes([number << 3]) + varint(content)
    content = content.encode() if isinstance(content, str) else content
    return bytes([number << 3 | 2]) + varint(len(content)) + content


def varint(value):
    low = bytes([value & 127 | (128 if value > 127 else 0)])
    return low + (varint(value >> 7) if value > 127 else b"")


def onnx_file(path, outputs, names=None, size=32):
    """A network that answers any image with these arrays."""
    kinds = {"float32": 1, "int64": 7}

    def tensor(name, array):
        shape = b"".join(field(1, side) for side in array.shape)
        return shape + field(2, kinds[str(array.dtype)]) + field(8, name) + field(9, array.tobytes())

    def value(name, kind, shape):
        sides = b"".join(field(1, field(1, side)) for side in shape)
        return field(1, name) + field(2, field(1, field(1, kind) + field(2, sides)))

    graph = b""
    for name in outputs:
        graph += field(1, field(1, f"{name}_kept") + field(2, name) + field(4, "Identity"))
    graph += field(2, "graph")
    for name, array in outputs.items():
        graph += field(5, tensor(f"{name}_kept", array))
    graph += field(11, value("image", 1, (1, 3, size, size)))
    for name, array in outputs.items():
        graph += field(12, value(name, kinds[str(array.dtype)], array.shape))
    model = field(1, 8) + field(7, graph) + field(8, field(2, 17))
    if names is not None:
        model += field(14, field(1, "names") + field(2, names))
    path.write_bytes(model)
    return path


def test_an_onnx_file_by_its_outputs(tmp_path):
    image = np.zeros((60, 90, 3), np.uint8)
    boxes = np.array([[[0, 0, 16, 16], [1, 0, 16, 16], [8, 8, 32, 32]]], np.float32)  # of 32 x 32 pixels
    scores = np.array([[0.9, 0.8, 0.7]], np.float32)
    listed = {"labels": np.array([[0, 0, 5]]), "boxes": boxes, "scores": scores}
    found, sure = OnnxDetector(onnx_file(tmp_path / "a.onnx", listed)).find_people(image)
    assert found.tolist() == [[0, 0, 45, 30]]  # the double and what is no person are gone
    assert sure.tolist() == pytest.approx([0.9])
    logits = np.array([[[-9.0, 2.0], [-9.0, -9.0]]], np.float32)
    shares = np.array([[[0.5, 0.5, 1.0, 0.5], [0.1, 0.1, 0.1, 0.1]]], np.float32)
    other = onnx_file(
        tmp_path / "b.onnx", {"logits": logits, "pred_boxes": shares}, "{0: 'cat', 1: 'person'}"
    )
    found, sure = OnnxDetector(other).find_people(image)
    assert found.tolist() == [[0, 15, 90, 45]]
    with pytest.raises(ValueError, match="has no class 'person'"):
        OnnxDetector(onnx_file(tmp_path / "c.onnx", listed, "['cat', 'dog']"))
    with pytest.raises(ValueError, match="not known what they mean"):
        OnnxDetector(onnx_file(tmp_path / "d.onnx", {"a": boxes, "b": scores}))
    (tmp_path / "e.onnx").write_text("no network")
    with pytest.raises(ValueError, match="no ONNX file that can be read"):
        detector_of(str(tmp_path / "e.onnx"))
