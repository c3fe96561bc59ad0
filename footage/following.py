"""Follows people from frame to frame: one visit is one entry, from first to last sight.

ByteTrack, of the library `trackers`, links the boxes of frames into tracks. Around it:

- Where two people come together, their tracks cannot be told apart: they form a bunch, and when they part
  again, appearance says who is who.
- Where somebody is lost from sight within the picture, and somebody starts nearby soon after, appearance says
  whether this is the same visit.
- A track within another, or one that never went anywhere, is no person.

Appearance is a function from images of people to unit vectors, such as the embeddings of the model that will
search the gallery; without one, place, time and direction decide alone.
"""

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from .films import Frame
from .views import Box, Trail, View, Views, difference, view_of

Appearance = Callable[[Sequence[Image.Image]], np.ndarray]  # (n, D), unit rows

LOST_S = 1.0  # without a box, before a track ends
TOGETHER = 0.4  # intersection over union of two boxes that cannot be told apart any more
PIECE, PIECE_SIGHTS = 0.3, 6  # of another's area, or so seldom seen before both are one: a hand, a foot
PIECE_S = 1.5  # of something that came out of somebody: a leg, a shadow, a door behind them
APART_S = 0.6  # after which people who parted have been seen well enough
ALONE_S = 2.0  # after which a bunch that shows no more than one person is one
JOINED_S = 8.0  # between two pieces of one visit, at most
JOINED_BLINDLY_S = 2.0  # the same without appearance
SPEED = 1.5  # body heights a second, of somebody who is out of sight
BORDER = 0.015  # of the frame's side: who is lost here has left
CONTINUED = 0.03  # of cosine, in favour of the track that had the person before
UNLIKE = 0.08  # of cosine below a person's own least alike views: somebody else
MOVED = 0.3  # of its own size, which somebody has to have moved who was found by motion
SHORTEST_S = 0.5
OTHER_SCENE = 6.0  # grey values between small copies of whole frames
SURE = 0.6  # the least score that somebody is found by; who is followed already may be seen more weakly


@dataclass(frozen=True)
class Visit:
    """One person before one camera, from first to last sight.

    Attributes:
        start_s, end_s: of the film.
        box: in the best view.
        views: best first.
        boxes: when the person was where; in between, on a straight line.
    """

    start_s: float
    end_s: float
    views: tuple[View, ...]
    boxes: tuple[tuple[float, Box], ...] = ()

    @property
    def box(self) -> Box:
        return self.views[0].box


@dataclass(eq=False)
class _Person:
    start_s: float
    end_s: float
    first: Box
    last: Box
    views: Views
    trail: Trail = field(default_factory=Trail)
    speed: tuple[float, float] = (0.0, 0.0)  # of the centre, pixels a second
    sights: int = 0
    within: int = 0  # of these within somebody else's box
    reach: list[float] = field(
        default_factory=list
    )  # least and greatest x, least and greatest y of the centre
    is_fresh: bool = True  # it is not decided yet whether this continues another's visit
    is_of_another: bool = False  # was first seen where somebody else was
    area: float = 0.0  # of the box, when it was alone
    has_left: bool = False  # was last seen at the picture's border

    def __post_init__(self) -> None:
        self.trail.add(self.start_s, self.first)

    def see(self, time_s: float, box: Box) -> None:
        (x, y), (was_x, was_y) = _centre(box), _centre(self.last)
        step = time_s - self.end_s
        if 0 < step < 1:
            keep = math.exp(-step / 0.5)
            now = (x - was_x) / step, (y - was_y) / step
            self.speed = tuple(keep * s + (1 - keep) * n for s, n in zip(self.speed, now, strict=True))  # type: ignore[assignment]
        self.end_s, self.last = time_s, box
        self.trail.add(time_s, box)
        self.sights += 1
        low_x, high_x, low_y, high_y = self.reach or (x, x, y, y)
        self.reach = [min(low_x, x), max(high_x, x), min(low_y, y), max(high_y, y)]

    def take(self, other: "_Person") -> None:
        """Another piece of the same visit, a later one."""
        self.end_s, self.last, self.speed = other.end_s, other.last, other.speed
        self.has_left = other.has_left
        self.sights += other.sights
        self.within += other.within
        self.views.take(other.views)
        self.trail.take(other.trail)
        if not (self.reach and other.reach):
            self.reach = self.reach or other.reach
            return
        lows = [min(a, b) for a, b in zip(self.reach[::2], other.reach[::2], strict=True)]
        highs = [max(a, b) for a, b in zip(self.reach[1::2], other.reach[1::2], strict=True)]
        self.reach = [lows[0], highs[0], lows[1], highs[1]]

    def has_moved(self) -> bool:
        if not self.reach:
            return False
        low_x, high_x, low_y, high_y = self.reach
        size = min(_height(self.first), _height(self.last), 2 * _width(self.first), 2 * _width(self.last))
        return max(high_x - low_x, high_y - low_y) >= MOVED * size


@dataclass(eq=False)
class _Track:
    """One of ByteTrack's."""

    box: Box
    seen_s: float
    views: Views  # since it is apart from the others of its bunch
    own: _Person | None  # whose it was before it came together with others
    apart_s: float = 0.0
    first: Box | None = None
    recent: deque[Box] = field(default_factory=lambda: deque(maxlen=4))  # ByteTrack sees who parts only then


@dataclass(eq=False)
class _Bunch:
    """People who cannot be told apart, and the tracks that show them; usually one of each."""

    people: list[_Person]
    tracks: dict[int, _Track]


class Follower:
    """Boxes in, visits out.

    Args:
        frames_per_second: that are looked at.
        appearance: see above.
        must_move: leaves out what stays where it was first seen, as things do that motion finds.
        views, margin: see `Views`.
        shortest_s: of a visit.
    """

    def __init__(
        self,
        frames_per_second: float = 10.0,
        appearance: Appearance | None = None,
        *,
        must_move: bool = False,
        views: int = 4,
        margin: float = 0.25,
        shortest_s: float = SHORTEST_S,
    ):
        self.trackers, self.supervision = imported_trackers()
        self.appearance = appearance
        self.frames_per_second = frames_per_second
        self.must_move = must_move
        self.new_views = lambda: Views(views, margin)
        self.shortest_s = shortest_s
        self.lost_s = max(LOST_S, 2.5 / frames_per_second)
        self.tracker = self.trackers.ByteTrackTracker(
            lost_track_buffer=round(30 * self.lost_s),
            frame_rate=frames_per_second,
            track_activation_threshold=SURE,
            high_conf_det_threshold=SURE,
            minimum_consecutive_frames=2 if frames_per_second >= 5 else 1,
            minimum_iou_threshold=0.1,
        )
        self.bunches: list[_Bunch] = []
        self.lost: list[_Person] = []

    def settled_s(self, time_s: float) -> float | None:
        """From where on a film has to be looked at again: now, where nobody is in sight or may come back."""
        return None if self.bunches or self.lost else time_s

    def update(self, frame: Frame, boxes: np.ndarray, scores: np.ndarray | None = None) -> list[Visit]:
        """The visits that are over since the last frame.

        Args:
            boxes: (n, 4) left, top, right, bottom in pixels.
            scores: (n,) in [0, 1]; `None`: all are sure.
        """
        time_s = frame.time_s
        seen = self._tracked(boxes, scores, time_s)
        here = {number: bunch for bunch in self.bunches for number in bunch.tracks}
        for number, box in seen.items():
            if number in here:
                track = here[number].tracks[number]
                track.box, track.seen_s = box, time_s
                track.recent.append(box)
        for number, box in seen.items():
            if number not in here:
                self._start(number, box, time_s)
        self._bring_together(time_s)
        self._drop_lost_tracks(time_s)
        for bunch in list(self.bunches):
            if len(bunch.tracks) > 1:
                self._part(bunch, time_s)
            elif len(bunch.people) > 1:
                self._leave_one(bunch, time_s)
        self._look(frame)
        self._join(time_s)
        return self._over(time_s)

    def finish(self) -> list[Visit]:
        """The visits that the film's end has cut, and those that wait."""
        for bunch in self.bunches:
            self.lost += bunch.people
        self.bunches = []
        self._join(math.inf)
        return self._over(math.inf)

    def _tracked(self, boxes: np.ndarray, scores: np.ndarray | None, time_s: float) -> dict[int, Box]:
        found = self.supervision.Detections(
            xyxy=np.asarray(boxes, np.float32).reshape(-1, 4),
            confidence=None if scores is None else np.asarray(scores, np.float32),
        )
        tracked = self.tracker.update(found, timestamp=time_s)
        if not len(tracked):
            return {}
        pairs = zip(tracked.tracker_id.tolist(), tracked.xyxy.tolist(), strict=True)
        return {number: tuple(box) for number, box in pairs if number >= 0}

    def _start(self, number: int, box: Box, time_s: float) -> None:
        """A new track: somebody who parts from a bunch, or somebody new."""
        track = _Track(box, time_s, self.new_views(), None, first=box)
        person = _Person(time_s, time_s, box, box, self.new_views())
        for bunch in self.bunches:
            if any(
                _covered(box, _grown(there, 0.3)) > 0.2
                for other in bunch.tracks.values()
                for there in (other.box, *other.recent)
            ):
                if len(bunch.people) > 1:
                    bunch.tracks[number] = track
                    return
                person.is_of_another = True
        track.own = person
        self.bunches.append(_Bunch([person], {number: track}))

    def _bring_together(self, time_s: float) -> None:
        """Makes one bunch of two whose boxes cover each other, or one of which has gone into the other."""
        for first in list(self.bunches):
            for second in list(self.bunches):
                if first is second or first not in self.bunches or second not in self.bunches:
                    continue
                if any(
                    self._are_together(one, other, time_s)
                    for one in first.tracks.values()
                    for other in second.tracks.values()
                ):
                    self._unite(first, second, time_s)

    def _unite(self, first: _Bunch, second: _Bunch, time_s: float) -> None:
        """One bunch of two; where one was no more than a piece of a person, that person alone."""
        self.bunches.remove(second)
        if len(first.people) == len(second.people) == 1:
            one, other = first.people[0], second.people[0]
            piece, whole = (one, other) if one.area < other.area else (other, one)
            is_young = min(one.sights, other.sights) < PIECE_SIGHTS and _stacked(one.last, other.last)
            is_small = piece.area < PIECE * whole.area and piece.sights < 3 * PIECE_SIGHTS
            if is_small or is_young:
                seen = {n: t for n, t in (first.tracks | second.tracks).items() if t.seen_s == time_s}
                whole.start_s = min(one.start_s, other.start_s)
                first.people, first.tracks = [whole], seen or first.tracks | second.tracks
                for track in first.tracks.values():
                    track.own = whole
                return
        first.people += second.people
        first.tracks |= second.tracks

    def _are_together(self, one: _Track, other: _Track, time_s: float) -> bool:
        if one.seen_s == time_s and other.seen_s == time_s:
            return _overlap(one.box, other.box) > TOGETHER
        if one.seen_s == time_s:
            one, other = other, one
        if other.seen_s < time_s or one.seen_s < time_s - self.lost_s or one.own is None:
            return False
        # One is not seen any more, and the other is where it was: as large as both, or in front of it.
        ahead = min(time_s - one.seen_s, 0.5)
        moved = tuple(edge + ahead * speed for edge, speed in zip(one.box, one.own.speed * 2, strict=True))
        return time_s - one.seen_s > 0.15 and _covered(moved, other.box) > 0.5  # type: ignore[arg-type]

    def _drop_lost_tracks(self, time_s: float) -> None:
        for bunch in list(self.bunches):
            for number, track in list(bunch.tracks.items()):
                others = any(other.seen_s == time_s for other in bunch.tracks.values())
                if time_s - track.seen_s > self.lost_s or (
                    others and len(bunch.people) > 1 and time_s - track.seen_s > 0.3
                ):
                    del bunch.tracks[number]
            if not bunch.tracks:
                self.bunches.remove(bunch)
                self.lost += bunch.people

    def _part(self, bunch: _Bunch, time_s: float) -> None:
        """Says who is who, where tracks of a bunch have been apart from its others for long enough."""
        tracks = list(bunch.tracks.values())
        for track in tracks:
            others = (other for other in tracks if other is not track)
            if not track.apart_s or any(_overlap(track.box, other.box) > 0.05 for other in others):
                track.apart_s, track.views = time_s, self.new_views()
        free = {number: t for number, t in bunch.tracks.items() if time_s - t.apart_s >= APART_S}
        if not free:
            return
        likeness = self._likeness(bunch.people, list(free.values()))  # (people, tracks)
        from scipy.optimize import linear_sum_assignment

        rows, columns = linear_sum_assignment(-likeness)
        given: list[list[_Person]] = [[] for _ in free]
        for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
            given[column].append(bunch.people[row])
        rest = [bunch.people[row] for row in sorted(set(range(len(bunch.people))) - set(rows.tolist()))]
        close = {number: track for number, track in bunch.tracks.items() if number not in free}
        self.bunches.remove(bunch)
        if close:
            if not rest:  # two had come as one
                track = next(iter(close.values()))
                rest = [_Person(time_s, time_s, track.box, track.box, self.new_views())]
                rest[0].see(time_s, track.box)
            self.bunches.append(_Bunch(rest, close))
            if len(close) == len(rest) == 1:
                next(iter(close.values())).own = rest[0]
        else:
            for person in rest:  # who went off behind one of the others
                given[int(likeness[bunch.people.index(person)].argmax())].append(person)
        for (number, track), people in zip(free.items(), given, strict=True):
            if not people:
                people = [
                    _Person(track.apart_s, time_s, track.first or track.box, track.box, self.new_views())
                ]
                people[0].see(time_s, track.box)
            if len(people) == 1:
                people[0].views.take(track.views)
            track.views, track.apart_s = self.new_views(), 0.0
            track.own = people[0] if len(people) == 1 else None
            self.bunches.append(_Bunch(people, {number: track}))

    def _leave_one(self, bunch: _Bunch, time_s: float) -> None:
        """Says who is left, where for a while there has been no more to be seen than one of them."""
        (track,) = bunch.tracks.values()
        if not track.apart_s or _area(track.box) > 1.4 * max(person.area for person in bunch.people):
            track.apart_s, track.views = time_s, self.new_views()
        if time_s - track.apart_s < ALONE_S:
            return
        left = bunch.people[int(self._likeness(bunch.people, [track])[:, 0].argmax())]
        for person in bunch.people:
            if person is not left:
                person.end_s, person.has_left = track.apart_s, True
                self.lost.append(person)
        left.views.take(track.views)
        bunch.people = [left]
        track.views, track.apart_s, track.own = self.new_views(), 0.0, left

    def _likeness(self, people: list[_Person], tracks: list[_Track]) -> np.ndarray:
        """(people, tracks): by appearance where both have been seen, otherwise by direction."""
        alike = np.zeros((len(people), len(tracks)))
        known = [self._looks(person.views) for person in people]
        now = [self._looks(track.views) for track in tracks]
        by_looks = all(looks is not None for looks in (*known, *now))
        for row, person in enumerate(people):
            for column, track in enumerate(tracks):
                if by_looks:
                    alike[row, column] = float((known[row] @ now[column].T).max())  # type: ignore[union-attr, operator]
                else:
                    # Who came from the left goes on to the right.
                    x, y = _centre(track.box)
                    from_x, from_y = _centre(person.first)
                    way = (x - from_x) * person.speed[0] + (y - from_y) * person.speed[1]
                    alike[row, column] = way / max(
                        1.0, math.hypot(*person.speed) * math.hypot(x - from_x, y - from_y)
                    )
                if track.own is person:
                    alike[row, column] += CONTINUED
        return alike

    def _looks(self, views: Views) -> np.ndarray | None:
        if self.appearance is None or not views.kept:
            return None
        return np.asarray(self.appearance([view.person() for view in views.best_first()[:2]]))

    def _look(self, frame: Frame) -> None:
        """Enters what is seen of everybody, and keeps views of those who stand free."""
        time_s = frame.time_s
        visible = [
            (bunch, track)
            for bunch in self.bunches
            for track in bunch.tracks.values()
            if track.seen_s == time_s
        ]
        for bunch, track in visible:
            others = [other.box for _, other in visible if other is not track]
            if len(bunch.tracks) > 1 or len(bunch.people) > 1:
                for person in bunch.people:
                    person.end_s, person.last = time_s, track.box
                    person.trail.add(time_s, track.box)
                    person.has_left = _at_border(track.box, frame)
                    if not any(
                        view.is_whole for view in person.views.kept
                    ):  # better together than not at all
                        person.views.offer(frame, track.box, is_whole=False)
                if track.apart_s and track.apart_s < time_s:
                    track.views.offer(frame, track.box, is_whole=True)
                continue
            (person,) = bunch.people
            person.see(time_s, track.box)
            person.has_left = _at_border(track.box, frame)
            person.area = area = _area(track.box)
            person.within += any(
                _area(other) > 1.3 * area
                and _covered(track.box, _grown(other, 0.4 if _area(other) > 3 * area else 0.1)) > 0.7
                for other in others
            )
            free = all(_covered(_grown(track.box, 0.2), other) < 0.02 for other in others)
            person.views.offer(frame, track.box, free and not _at_border(track.box, frame))

    def _join(self, time_s: float) -> None:
        """Gives people who came out of nowhere the visit that ended there."""
        fresh = [
            bunch.people[0]
            for bunch in self.bunches
            if len(bunch.people) == 1
            and bunch.people[0].is_fresh
            and time_s - bunch.people[0].start_s >= APART_S
        ]
        fresh += [person for person in self.lost if person.is_fresh]
        for person in fresh:
            person.is_fresh = False
            before = [
                other for other in self.lost if other is not person and self._may_continue(other, person)
            ]
            before = [other for other in before if self._looks_alike(other, person)]
            if not before:
                continue
            last = max(before, key=lambda other: other.end_s)
            last.take(person)
            if person in self.lost:
                self.lost.remove(person)
                continue
            self.lost.remove(last)
            for bunch in self.bunches:
                if person in bunch.people:
                    bunch.people[bunch.people.index(person)] = last
                    for track in bunch.tracks.values():
                        track.own = last if track.own is person else track.own

    def _may_continue(self, lost: _Person, fresh: _Person) -> bool:
        """Whether time and place allow that one visit went on in the other."""
        gap = fresh.start_s - lost.end_s
        if not 0 <= gap + 0.11 <= JOINED_S:
            return False
        height = max(_height(lost.last), _height(fresh.first))
        x, y = _centre(lost.last)
        ahead = min(max(gap, 0.0), 1.0)
        x, y = x + lost.speed[0] * ahead, y + lost.speed[1] * ahead
        new_x, new_y = _centre(fresh.first)
        distance = math.hypot(new_x - x, new_y - y)
        if lost.has_left:
            return gap <= self.lost_s and _overlap(lost.last, fresh.first) > 0.1
        if self.appearance is None and gap > JOINED_BLINDLY_S:
            return False
        return distance <= (0.5 + SPEED * max(gap, 0.0)) * height and distance <= 2.5 * height

    def _looks_alike(self, lost: _Person, fresh: _Person) -> bool:
        known, now = self._looks(lost.views), self._looks(fresh.views)
        if known is None or now is None:
            return True
        own = float((known @ known.T).min())  # how different one person's views are
        return float((known @ now.T).max()) >= min(own, 1.0) - UNLIKE

    def _over(self, time_s: float) -> list[Visit]:
        """The visits that nobody can continue any more."""
        wait = JOINED_S if self.appearance is not None else JOINED_BLINDLY_S
        over = [person for person in self.lost if time_s - person.end_s > wait + APART_S]
        self.lost = [person for person in self.lost if person not in over]
        visits = []
        for person in over:
            views = person.views.best_first()
            long_enough = person.end_s - person.start_s >= self.shortest_s and person.sights >= 3
            is_piece = person.within > 0.7 * person.sights
            is_piece |= person.is_of_another and person.sights < PIECE_S * self.frames_per_second
            if not views or not long_enough or is_piece or (self.must_move and not person.has_moved()):
                continue
            boxes = person.trail.until(person.end_s, person.last)
            visits.append(Visit(person.start_s, person.end_s, tuple(views), boxes))
        return sorted(visits, key=lambda visit: (visit.start_s, visit.box))


class Scenes:
    """Whole frames as visits: one lasts until the picture is another; as [`Follower`]."""

    def __init__(self) -> None:
        self.current: View | None = None
        self.end_s = 0.0

    def settled_s(self, time_s: float) -> float | None:
        return time_s if self.current is None else self.current.time_s

    def update(self, frame: Frame, boxes: np.ndarray, scores: np.ndarray | None = None) -> list[Visit]:
        before, view = self.finish, view_of(frame, tuple(boxes[0].tolist()), 0.0)
        if self.current is not None and difference(view, self.current) < OTHER_SCENE:
            self.end_s = frame.time_s
            return []
        over = before()
        self.current, self.end_s = view, frame.time_s
        return over

    def finish(self) -> list[Visit]:
        if self.current is None:
            return []
        over, self.current = Visit(self.current.time_s, self.end_s, (self.current,)), None
        return [over]


def imported_trackers() -> tuple[Any, Any]:
    """The libraries `trackers` and `supervision`.

    Raises:
        ImportError: with the way out.
    """
    try:
        import supervision
        import trackers
    except ImportError as error:
        raise ImportError(f"films need the extra `footage`: pip install -e '.[footage]' ({error})") from error
    return trackers, supervision


def _width(box: Box) -> float:
    return box[2] - box[0]


def _height(box: Box) -> float:
    return box[3] - box[1]


def _area(box: Box) -> float:
    return max(0.0, _width(box)) * max(0.0, _height(box))


def _centre(box: Box) -> tuple[float, float]:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def _grown(box: Box, share: float) -> Box:
    aside, above = share * _width(box), share * _height(box)
    return box[0] - aside, box[1] - above, box[2] + aside, box[3] + above


def _shared(box: Box, other: Box) -> float:
    across = min(box[2], other[2]) - max(box[0], other[0])
    down = min(box[3], other[3]) - max(box[1], other[1])
    return max(0.0, across) * max(0.0, down)


def _stacked(box: Box, other: Box) -> bool:
    """Whether one is above the other, as head and legs are."""
    across = min(box[2], other[2]) - max(box[0], other[0])
    return across > 0.5 * min(_width(box), _width(other))


def _covered(box: Box, other: Box) -> float:
    """The share of a box that another covers."""
    return _shared(box, other) / max(_area(box), 1e-6)


def _overlap(box: Box, other: Box) -> float:
    """Intersection over union."""
    shared = _shared(box, other)
    return shared / max(_area(box) + _area(other) - shared, 1e-6)


def _at_border(box: Box, frame: Frame) -> bool:
    aside, above = BORDER * frame.width, BORDER * frame.height
    left, top, right, bottom = box
    return left < aside or top < above or right > frame.width - aside or bottom > frame.height - above
