"""How what was found in films compares with the truth: visits found, split and made up, and their times."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

FOUND = 0.3  # intersection over union in time, of a visit that counts as found


class Lasting(Protocol):
    """Something before a camera from one time to another."""

    @property
    def camera(self) -> str: ...
    @property
    def start_s(self) -> float: ...
    @property
    def end_s(self) -> float: ...


@dataclass(frozen=True)
class Comparison:
    """Counts, and times of the visits that were found.

    Attributes:
        visits: there were.
        found: of them.
        split: pieces of visits that were found as further visits.
        made_up: visits that there were not.
        overlap: mean intersection over union in time of those found; 0 where none was.
        latest_s: the greatest difference of a first or last sight.
        matches: (number in the truth, number in what was found) of each visit found.
    """

    visits: int
    found: int
    split: int
    made_up: int
    overlap: float
    latest_s: float
    matches: tuple[tuple[int, int], ...]


def compare_visits(found: Sequence[Lasting], truth: Sequence[Lasting]) -> Comparison:
    """Pairs the visits of each camera one to one so that their times overlap most, and counts the rest."""
    from scipy.optimize import linear_sum_assignment

    overlaps = np.array([[_overlap(one, true) for one in found] for true in truth]).reshape(
        len(truth), len(found)
    )
    pairs = [
        (true, one)
        for true, one in zip(*(side.tolist() for side in linear_sum_assignment(-overlaps)), strict=True)
        if overlaps[true, one] >= FOUND
    ]
    paired = {one for _, one in pairs}
    rest = [one for number, one in enumerate(found) if number not in paired]
    split = sum(any(_share(one, true) > 0.5 for true in truth) for one in rest)
    late = [
        max(abs(found[one].start_s - truth[true].start_s), abs(found[one].end_s - truth[true].end_s))
        for true, one in pairs
    ]
    return Comparison(
        visits=len(truth),
        found=len(pairs),
        split=split,
        made_up=len(rest) - split,
        overlap=float(np.mean([overlaps[pair] for pair in pairs])) if pairs else 0.0,
        latest_s=max(late, default=0.0),
        matches=tuple(pairs),
    )


def _shared(one: Lasting, other: Lasting) -> float:
    if one.camera != other.camera:
        return 0.0
    return max(0.0, min(one.end_s, other.end_s) - max(one.start_s, other.start_s))


def _overlap(one: Lasting, other: Lasting) -> float:
    shared = _shared(one, other)
    return shared / max(one.end_s - one.start_s + other.end_s - other.start_s - shared, 1e-6)


def _share(one: Lasting, other: Lasting) -> float:
    """Of the first one's time."""
    return _shared(one, other) / max(one.end_s - one.start_s, 1e-6)
