"""Finds the people in a frame, by whichever detector a user names.

    motion                       what moves or has come, see `motion.py`; needs no weights
    boxes:FILE                   boxes of any other detector, in MOT's format or as JSON Lines
    NAME                         an object detector of transformers with the class "person"; or its folder
    FILE.onnx                    the same by onnxruntime
    none                         whole frames

A detector with weights looks where something moves, and only as often as is asked: a CPU needs that.
"""

import json
import logging
import math
from bisect import bisect_left
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from .films import Frame
from .motion import MotionDetector

logger = logging.getLogger(__name__)

PERSON = "person"
LEAST_SCORE = 0.1  # ByteTrack follows somebody half hidden by boxes as weak as this
SAME_PERSON = 0.5  # intersection over union of two boxes of a detector that does not suppress doubles itself
FOUND_THERE = 0.3  # intersection over union of what moves and somebody who was found there
AROUND = 0.3  # how much more of the picture a detector sees than what moves, in shares of it

Found = tuple[np.ndarray, np.ndarray]  # boxes (n, 4) left, top, right, bottom in pixels; scores (n,)


class Detector(Protocol):
    """Finds people in the frames of one film, in their order.

    Attributes:
        by_motion: finds what moves, be it no person.
    """

    by_motion: bool

    def find(self, frame: Frame) -> Found | None:
        """The people, or None where this frame was not looked at."""
        ...


class ByMotion:
    by_motion = True

    def __init__(self) -> None:
        self.motion = MotionDetector()

    def find(self, frame: Frame) -> Found | None:
        boxes = self.motion.boxes(frame)
        return boxes, np.ones(len(boxes), np.float32)


class GivenBoxes:
    """Boxes that another detector has found, from a file.

    MOT: `frame,id,left,top,width,height,score,...` a line, frames from 1. JSON Lines: `{"time_s": 1.2, "box":
    [left, top, width, height], "score": 0.9}` or `{"frame": 13, "boxes": [[left, top, width, height], ...]}`
    a line, frames from 1. Boxes of another "class" than person are passed over.

    Raises:
        ValueError: a line is neither; names it.
    """

    by_motion = False

    def __init__(self, file: Path):
        self.by_frame: dict[int, list[list[float]]] = {}
        timed: dict[float, list[list[float]]] = {}
        with file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                try:
                    time_s, frame, rows = _boxes_of(line)
                except (ValueError, KeyError, TypeError, AttributeError) as error:
                    raise ValueError(
                        f"{file}, line {number}: no boxes, as in 1,-1,left,top,width,height,score or "
                        f'{{"time_s": 1.2, "box": [left, top, width, height]}} ({error})'
                    ) from error
                if time_s is not None:
                    timed.setdefault(time_s, []).extend(rows)
                else:
                    self.by_frame.setdefault(frame, []).extend(rows)
        if not self.by_frame and not timed:
            raise ValueError(f"{file}: no boxes in it")
        self.times = sorted(timed)
        self.timed = timed

    def find(self, frame: Frame) -> Found | None:
        if self.times:
            place = bisect_left(self.times, frame.time_s)
            near = [
                time for time in self.times[max(0, place - 1) : place + 1] if abs(time - frame.time_s) < 0.021
            ]
            rows = self.timed[min(near, key=lambda time: abs(time - frame.time_s))] if near else []
        else:
            rows = self.by_frame.get(frame.number, [])
        return _found(rows)


class WholeFrames:
    """Every frame as it is."""

    by_motion = False

    def find(self, frame: Frame) -> Found | None:
        return np.array([[0, 0, frame.width, frame.height]], np.float32), np.ones(1, np.float32)


@dataclass
class WhereItMoves:
    """A detector that is asked where something moves, at most every `every_s` seconds.

    Attributes:
        people: finds those of an image, boxes in its pixels.
    """

    people: "Network"
    every_s: float
    by_motion = False

    def __post_init__(self) -> None:
        self.motion = MotionDetector()
        self.looked_s = -math.inf

    def find(self, frame: Frame) -> Found | None:
        boxes = self.motion.boxes(frame)
        if frame.time_s - self.looked_s < self.every_s - 1e-3:
            return None
        self.looked_s = frame.time_s
        if not len(boxes):
            return _found([])
        left, top = boxes[:, :2].min(axis=0)
        right, bottom = boxes[:, 2:].max(axis=0)
        # Half the picture at least: a detector has learnt people of some size, in a scene.
        aside = max(AROUND * (right - left), (frame.width / 2 - (right - left)) / 2)
        above = max(AROUND * (bottom - top), (frame.height / 2 - (bottom - top)) / 2)
        left, right = max(0, int(left - aside)), min(frame.width, math.ceil(right + aside))
        top, bottom = max(0, int(top - above)), min(frame.height, math.ceil(bottom + above))
        found, scores = self.people.find_people(frame.image()[top:bottom, left:right])
        found = found + np.array([left, top, left, top], np.float32)
        moves = [bool((_overlaps(box, boxes) > 0).any()) for box in found]
        found, scores = found[moves], scores[moves]
        # Who is followed already and no more recognised (few detectors know a person who lies) is held by
        # what is seen to be there still; so weak a box begins nobody.
        held = np.array([box for box in boxes if not (_overlaps(box, found) > FOUND_THERE).any()])
        weak = np.full(len(held), LEAST_SCORE, np.float32)
        return np.concatenate([found, held.reshape(-1, 4)]).astype(np.float32), np.concatenate([scores, weak])


class Network(Protocol):
    def find_people(self, image: np.ndarray) -> Found:
        """Of an image (height, width, 3) uint8 RGB."""
        ...


class TransformersDetector:
    """An object detector of transformers, by its name on the Hub or its folder.

    Raises:
        OSError: there is none of this name.
        ValueError: it is none, or its classes have no person.
    """

    def __init__(self, name: str, revision: str | None = None):
        import torch
        from transformers import AutoConfig, AutoImageProcessor, AutoModelForObjectDetection

        self.torch = torch
        config = AutoConfig.from_pretrained(name, revision=revision)
        classes = {int(number): str(label).lower() for number, label in (config.id2label or {}).items()}
        self.persons = [number for number, label in classes.items() if label == PERSON]
        if not self.persons:
            some = ", ".join(list(classes.values())[:5])
            raise ValueError(f"the detector {name} has no class {PERSON!r}, only {some}, ...")
        try:
            self.network = AutoModelForObjectDetection.from_pretrained(name, revision=revision).eval()
        except ValueError as error:
            raise ValueError(f"{name} is no object detector of transformers: {error}") from error
        self.processor = AutoImageProcessor.from_pretrained(name, revision=revision, use_fast=False)

    def find_people(self, image: np.ndarray) -> Found:
        with self.torch.inference_mode():
            inputs = self.processor(images=Image.fromarray(image), return_tensors="pt")
            output = self.network(**inputs)
        (result,) = self.processor.post_process_object_detection(
            output, threshold=LEAST_SCORE, target_sizes=[image.shape[:2]]
        )
        person = np.isin(result["labels"].numpy(), self.persons)
        boxes = result["boxes"].numpy()[person].astype(np.float32)
        return _without_doubles(boxes, result["scores"].numpy()[person].astype(np.float32))


class OnnxDetector:
    """A detector as an ONNX file, of one of three shapes that exporters make.

    - outputs `labels`, `boxes` and `scores`: (1, n), (1, n, 4) corners in pixels, (1, n), as RT-DETR, D-FINE
      and DEIM export them, with or without an input `orig_target_sizes`;
    - `logits` and `pred_boxes`: (1, n, classes) and (1, n, 4) centre and size in shares, as optimum exports
      detectors of transformers;
    - a map (1, 5 + classes, height, width), as FastestDet's.

    Its person is class 0, COCO's, unless the metadata `names` of the file say otherwise.

    Raises:
        ImportError: onnxruntime is missing.
        ValueError: it is none, has another shape, or names classes without a person.
    """

    def __init__(self, file: Path):
        try:
            import onnxruntime
        except ImportError as error:
            raise ImportError(f"{file}: an ONNX file needs the extra `footage` ({error})") from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 2
        try:
            self.session = onnxruntime.InferenceSession(
                str(file), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's are of no common class
            raise ValueError(
                f"{file} is no ONNX file that can be read: {' '.join(str(error).split())}"
            ) from error
        self.file = file
        self.inputs = self.session.get_inputs()
        self.outputs = [output.name for output in self.session.get_outputs()]
        shape = self.inputs[0].shape
        if len(shape) != 4 or shape[1] != 3:
            raise ValueError(f"{file}: its input is {shape}, and an image is (1, 3, height, width)")
        self.height, self.width = (side if isinstance(side, int) else 640 for side in shape[2:])
        self.person = self._class_of_a_person()
        known = {"labels", "boxes", "scores"} <= {*self.outputs} or {"logits", "pred_boxes"} <= {
            *self.outputs
        }
        if not known and len(self.outputs) != 1:
            raise ValueError(f"{file}: of its outputs {self.outputs} it is not known what they mean")

    def _class_of_a_person(self) -> int:
        names = self.session.get_modelmeta().custom_metadata_map.get("names")
        if not names:
            return 0
        try:
            listed = (
                json.loads(names.replace("'", '"'))
                if names.lstrip().startswith("[")
                else _python_names(names)
            )
        except ValueError as error:
            raise ValueError(f"{self.file}: its names of classes cannot be read: {names[:80]}") from error
        for number, name in enumerate(listed) if isinstance(listed, list) else listed.items():
            if str(name).lower() == PERSON:
                return int(number)
        raise ValueError(f"the detector {self.file} has no class {PERSON!r}")

    def find_people(self, image: np.ndarray) -> Found:
        height, width = image.shape[:2]
        small = Image.fromarray(image).resize((self.width, self.height), Image.Resampling.BILINEAR)
        pixels = np.asarray(small, np.float32).transpose(2, 0, 1)[None] / 255
        given: Any = {self.inputs[0].name: np.ascontiguousarray(pixels)}
        for other in self.inputs[1:]:
            given[other.name] = np.array([[self.width, self.height]], np.int64)
        given = self.session.run(None, given)
        result: dict[str, np.ndarray] = dict(zip(self.outputs, map(np.asarray, given), strict=True))
        scale = np.array([width, height, width, height], np.float32)
        if "labels" in result:
            person = result["labels"][0] == self.person
            side = np.array([self.width, self.height] * 2, np.float32)
            boxes, scores = result["boxes"][0][person] / side * scale, result["scores"][0][person]
        elif "logits" in result:
            scores = _sigmoid(result["logits"][0][:, self.person])
            boxes = _corners(result["pred_boxes"][0]) * scale
        else:
            (grid,) = result.values()
            boxes, scores = self._of_grid(grid[0])
            boxes = boxes * scale
        sure = scores >= LEAST_SCORE
        return _without_doubles(boxes[sure].astype(np.float32), scores[sure].astype(np.float32))

    def _of_grid(self, grid: np.ndarray) -> Found:
        if grid.ndim != 3 or grid.shape[0] < 6 + self.person:
            raise ValueError(f"{self.file}: of its output {grid.shape} it is not known what it means")
        rows, columns = grid.shape[1:]
        classes = grid[5:]
        scores = grid[0] ** 0.6 * classes[self.person] ** 0.4
        scores = np.where(classes.argmax(axis=0) == self.person, scores, 0.0)
        across, down = np.meshgrid(np.arange(columns), np.arange(rows))
        centre = (across + np.tanh(grid[1])) / columns, (down + np.tanh(grid[2])) / rows
        whole = np.stack([*centre, _sigmoid(grid[3]), _sigmoid(grid[4])], axis=-1)
        return _corners(whole.reshape(-1, 4)), scores.reshape(-1)


def detector_of(name: str, every_s: float = 0.5, revision: str | None = None) -> Detector:
    """The detector of a name, see above.

    Args:
        every_s: between two looks of a detector with weights.

    Raises:
        ValueError, OSError, ImportError: see the detectors.
    """
    if name == "motion":
        return ByMotion()
    if name == "none":
        return WholeFrames()
    if name.startswith("boxes:"):
        return GivenBoxes(Path(name.removeprefix("boxes:")))
    if name.lower().endswith(".onnx"):
        return WhereItMoves(OnnxDetector(Path(name)), every_s)
    return WhereItMoves(TransformersDetector(name, revision), every_s)


def _boxes_of(line: str) -> tuple[float | None, int, list[list[float]]]:
    """Time or frame of a line, and its boxes: left, top, width, height and score each."""
    if not line.lstrip().startswith("{"):
        parts = [float(part) for part in line.strip().rstrip(",").split(",")]
        if len(parts) < 6:
            raise ValueError("fewer than 6 numbers")
        score = parts[6] if len(parts) > 6 and parts[6] >= 0 else 1.0
        if len(parts) > 7 and parts[7] not in (-1, 1):  # another class of MOT's
            return None, int(parts[0]), []
        return None, int(parts[0]), [_checked([*parts[2:6], score])]
    entry = json.loads(line)
    time_s = None if "time_s" not in entry else float(entry["time_s"])
    frame = 0 if time_s is not None else int(entry["frame"])
    if str(entry.get("class", entry.get("label", PERSON))).lower() != PERSON:
        return time_s, frame, []
    boxes = entry["boxes"] if "boxes" in entry else [entry["box"]]
    scores = entry.get("scores") or [entry.get("score", 1.0)] * len(boxes)
    return time_s, frame, [_checked([*box, score]) for box, score in zip(boxes, scores, strict=True)]


def _checked(row: list[float]) -> list[float]:
    row = [float(number) for number in row]
    if len(row) != 5 or not all(map(math.isfinite, row)) or row[2] <= 0 or row[3] <= 0:
        raise ValueError(f"a box is left, top, width and height, got {row[:-1]}")
    return row


def _found(rows: list[list[float]]) -> Found:
    table = np.array(rows, np.float32).reshape(-1, 5)
    boxes = table[:, :4].copy()
    boxes[:, 2:] += boxes[:, :2]
    return boxes, table[:, 4]


def _python_names(text: str) -> Any:
    import ast

    return ast.literal_eval(text)


def _sigmoid(values: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-values))


def _corners(boxes: np.ndarray) -> np.ndarray:
    """Of centre, width and height."""
    return np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], axis=1)


def _overlaps(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(n,) intersection over union."""
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    shared = np.prod(np.clip(high - low, 0, None), axis=1)
    areas = np.prod(others[:, 2:] - others[:, :2], axis=1)
    return shared / np.maximum(np.prod(box[2:] - box[:2]) + areas - shared, 1e-6)


def _without_doubles(boxes: np.ndarray, scores: np.ndarray) -> Found:
    """Each person once: the surest of boxes that cover each other, and no weak box of a part."""
    kept: list[int] = []
    for number in np.argsort(-scores, kind="stable").tolist():
        box, others = boxes[number], boxes[kept]
        low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
        shared = np.prod(np.clip(high - low, 0, None), axis=1)
        smaller = np.minimum(np.prod(box[2:] - box[:2]), np.prod(others[:, 2:] - others[:, :2], axis=1))
        is_part = (shared > 0.6 * smaller) & (scores[number] < 0.7 * scores[kept])
        if not kept or (_overlaps(box, others).max() < SAME_PERSON and not is_part.any()):
            kept.append(number)
    return boxes[kept], scores[kept]
