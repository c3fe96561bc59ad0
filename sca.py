"""Similarity Coverage Analysis: resolves the collisions between the ranked lists of many queries.

Where two queries claim the same image as their first answer, the more confident one keeps it and the other
moves on to its next one. SCA is transductive: it looks at all queries together, so it fits a batch of queries
and not a single live one, and it assumes that an image answers one query (or `capacity` of them). Where that
is untrue it may lower recall.

Needs numpy only. Torch tensors are accepted, and then torch tensors come back.
"""

from __future__ import annotations

import heapq
import math
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import numpy as np

Confidence = Literal["score", "softmax", "margin"]
Mode = Literal["deferred", "single_pass"]

_ELEMENTS_AT_ONCE = 4_000_000  # bounds temporary arrays to some tens of megabytes
_FEW_LOSERS = 2_000  # so few queries are resolved faster one by one than all at once
_FAR_BELOW = 1_000  # and so many times any other score: then a score only says that there is none
_FILLINGS = (0.0, -100.0)  # numpy's zeros; the evaluation scripts of X-VLM and BLIP
_ROWS_TO_TELL = 5  # fewer rows may hold a value equally often by chance


def blocks(rows: int, elements_a_row: int) -> Iterator[slice]:
    """All rows, as slices so short that a temporary array of one slice is small."""
    at_once = max(1, _ELEMENTS_AT_ONCE // elements_a_row)
    for start in range(0, rows, at_once):
        yield slice(start, start + at_once)


@dataclass(frozen=True)
class SCAReport:
    """What SCA found and did, in plain numbers (`dataclasses.asdict` of it is JSON).

    Attributes:
        queries: the number of queries.
        collisions_before, collisions_after: the number of queries whose first answer is the first answer of
            more than `capacity` queries; by default: of another query as well. All parties to a collision
            count, also the one that keeps the image.
        coverage_before, coverage_after: distinct first answers / queries, in (0, 1]. It needs no labels, and
            where each query has one right image of its own it is an upper bound of Recall@1.
        moved: the number of queries whose first answer changed.
        moves: the steps down taken to get there, including those of queries that found no place and
            returned to their first answer.
    """

    queries: int
    collisions_before: int
    collisions_after: int
    coverage_before: float
    coverage_after: float
    moved: int
    moves: int

    transductive: ClassVar[bool] = True  # an answer depends on the other queries


@dataclass(frozen=True, eq=False)
class SCAResult:
    """What `sca_rerank` returns: numpy arrays, or tensors on the same device for what was given as tensors.

    Attributes:
        indices: (Q, K) images, in the type given. Each row holds the candidates it held before: the new first
            answer first, the others in their old order.
        scores: (Q, K), in the type given. Each image keeps its own score, so a moved row no longer descends.
        moved: (Q,) bool, whether the query's first answer changed.
        report: the counts.
    """

    indices: Any
    scores: Any
    moved: Any
    report: SCAReport


def sca_rerank(
    indices: Any,
    scores: Any,
    *,
    confidence: Confidence = "score",
    mode: Mode = "deferred",
    max_shift: int = 1,
    tau: float = 0.0,
    temperature: float = 1.0,
    text_embeds: Any = None,
    text_threshold: float | None = None,
    query_ids: Sequence[str] | Sequence[int] | Any = None,
    capacity: int = 1,
    top_k: int | None = None,
) -> SCAResult:
    """Re-ranks the lists of all queries so that fewer of them share a first answer.

    Every query claims its first candidate, the most confident query first. Where an image is taken, the more
    confident of claimant and holder has it. The other moves on to its next candidate and waits at the end of
    the queue, so that all first claims are resolved before any second one; after `max_shift` moves in vain it
    returns to its own first answer and stays there. The defaults are the paper's SCA (Eq. 10, Table 4).

    What is promised:
    - For every k > `max_shift` the set of a query's best k images stays as it was.
    - Queries without collisions stay as they were, so a single query does.
    - Distinct first answers never become fewer, in either mode: an image that is claimed first stays taken.
    - The order of the queries does not matter, if `query_ids` are given or no confidences are equal.
    - Image numbers mean nothing beyond equality, except for ties of a dense matrix (below).
    - With `max_shift=K-1` and `tau=0` ("deferred", no text gate) the images are held as in the stable
      matching that is best for every query; for "score" and "softmax" there is no other stable one.
    - Equal input gives equal output to the bit.

    Args:
        indices: (Q, K) integers >= 0, each query's candidate images, best first, none twice in a row.
            `None`: `scores` is dense, and its column g belongs to image g.
        scores: (Q, K), the candidates' scores, descending in each row (equal neighbours are fine).
            With `indices=None`: (Q, G) in any order; equal scores of a row are ranked by image number.
            Minus infinity, and what only fills up a matrix or a list ([`filling_of`]), is no candidate: the
            lists that come back are as long as the longest of those without it.
        confidence: how sure a query is of a candidate. "score": the score itself. "softmax": the softmax over
            the row at `temperature`. "margin": the score minus that of the next candidate (the last one: 0).
            "softmax" and "margin" are immune to an offset that a query adds to all its scores (but for
            rounding).
        mode: "deferred": as above. "single_pass": only first claims count, and the loser swaps its ranks 1
            and 2 without asking whether its second answer is free.
        max_shift: the most moves a query may make, >= 0; beyond K - 1 it changes nothing. With
            "single_pass": 0 or 1.
        tau: >= 0, in units of the confidence. Above 0, claimant and holder both stay if they are at most
            `tau` apart. At 0, equal confidence is resolved by the smaller query id.
        temperature: > 0; only "softmax" reads it.
        text_embeds: (Q, D), the queries' embeddings, of any length but 0. Given together with
            `text_threshold`: claimant and holder both stay if the cosine of their texts is below it.
        text_threshold: in [-1, 1].
        query_ids: Q distinct strings (compared as text: "10" comes before "9") or Q distinct integers, which
            resolve ties. `None`: row numbers.
        capacity: how many queries an image may answer, >= 1. While fewer hold it, an image is free; after
            that a claimant meets its least confident holder.
        top_k: keep only the K = `top_k` best candidates of each query, before anything else. `None`: all.

    Raises:
        ValueError, TypeError: where the input breaks the above, naming the row or the value.

    Warns:
        UserWarning: if there are at least `capacity` + 1 times as many queries as different candidate images,
            as where an image has several captions. Then SCA may lower recall without a greater `capacity`.
            And if scores are taken as not scored.
    """
    _check_options(confidence, mode, max_shift, tau, temperature, capacity)
    images, values, scored = candidate_lists(indices, scores, top_k)  # (Q, K) both, (Q,)
    queries, candidates = images.shape
    rank = rank_of_ids(query_ids, queries)
    similar = _text_gate(text_embeds, text_threshold, queries)
    claims_before = claims(images)
    warn_where_images_are_few(queries, images, capacity)

    longest = min(max_shift, candidates - 1) + 1
    reach = np.minimum(scored, longest)  # (Q,) candidates that a query may claim
    certainty = _confidence(values, scored, confidence, temperature)[:, :longest]
    contest = _Contest(images[:, :longest], certainty, reach, rank, capacity, tau, similar)
    losers, holding = contest.resolve_first_claims()
    moves, place = 0, np.zeros(queries, dtype=np.int64)  # of the new first answer in the old list
    if longest > 1 and len(losers):
        if mode == "single_pass":
            losers = losers[reach[losers] > 1]
            place[losers] = 1
            moves = len(losers)
        else:
            moves, place = contest.resolve_later_claims(losers, holding)

    moved = place > 0
    new_images, new_values = put_first(images, place), put_first(values, place)
    claims_after = claims(new_images)
    report = SCAReport(
        queries=queries,
        collisions_before=int(claims_before[claims_before > capacity].sum()),
        collisions_after=int(claims_after[claims_after > capacity].sum()),
        coverage_before=len(claims_before) / queries,
        coverage_after=len(claims_after) / queries,
        moved=int(moved.sum()),
        moves=moves,
    )
    return SCAResult(
        indices=as_given(new_images, scores if indices is None else indices),
        scores=as_given(new_values, scores),
        moved=as_given(moved, scores),
        report=report,
    )


def coverage(indices: Any) -> float:
    """Distinct first answers / queries of ranked lists (Q, K), in (0, 1].

    Where each query has one right image of its own it is an upper bound of Recall@1, and it needs no labels.
    """
    images = to_numpy(indices, "indices")
    _refuse_shape(images, "indices")
    return len(claims(images)) / len(images)


# A holder's confidence, minus the rank of its id, the query: the smallest of them is displaced first.
_Claim = tuple[float, int, int]


@dataclass(frozen=True, eq=False)
class _Contest:
    """Queries claiming images.

    Attributes:
        images: (Q, S) the candidates that a query may claim, in its order.
        certainty: (Q, S) the query's confidence in them.
        reach: (Q,) from 1 to S, how many of them it may claim.
        rank: (Q,) the place of the query's id among all ids.
        capacity, tau: as in `sca_rerank`.
        similar: says of pairs of queries, (n,) and (n,), whether they compete, or `None` if all do.
    """

    images: np.ndarray
    certainty: np.ndarray
    reach: np.ndarray
    rank: np.ndarray
    capacity: int
    tau: float
    similar: Callable[[np.ndarray, np.ndarray], np.ndarray] | None

    def resolve_first_claims(self) -> tuple[np.ndarray, np.ndarray]:
        """Lets all queries claim their first candidate at once, since most of them have no rival.

        The most confident claims first, so an image's first `capacity` claimants hold it; each later one
        meets the least confident of them and cannot displace it.

        Returns:
            The queries that must move on, most confident first, and the queries that hold an image.
        """
        first, certainty = self.images[:, 0], self.certainty[:, 0]
        waiting = np.lexsort((self.rank, -certainty))  # (Q,) queries, most confident first, ties by id
        by_image = np.argsort(first[waiting], kind="stable")  # (Q,) places in `waiting`, image by image
        claimants = waiting[by_image]
        claimed = first[claimants]
        position = np.arange(len(first))
        opens_group = np.append(True, claimed[1:] != claimed[:-1])
        group_start = np.maximum.accumulate(np.where(opens_group, position, 0))
        holds = position - group_start < self.capacity

        late = np.flatnonzero(~holds)
        challengers, rivals = claimants[late], claimants[group_start[late] + self.capacity - 1]
        moves_on = np.ones(len(late), dtype=bool)
        if self.tau > 0:
            moves_on &= certainty[rivals] - certainty[challengers] > self.tau
        if self.similar is not None:
            moves_on &= self.similar(challengers, rivals)
        return waiting[np.sort(by_image[late[moves_on]])], claimants[holds]

    def resolve_later_claims(self, losers: np.ndarray, holding: np.ndarray) -> tuple[int, np.ndarray]:
        """Lets the losers, and those they displace, claim on until nobody waits.

        Returns the number of moves, and (Q,) the place of each query's final answer among its candidates.
        """
        moves, places = 0, np.zeros(len(self.images), dtype=np.int64)
        if self.capacity == 1 and self.tau == 0 and self.similar is None:
            moves, places, losers, holding = self._resolve_in_rounds(losers, holding)
        if not len(losers):
            return moves, places

        # `item` reads single Python numbers: much faster than numpy scalars, without copying all to lists.
        image_at, certainty_at, negative_rank = self.images.item, self.certainty.item, (-self.rank).item
        reach = self.reach.item
        place = places.tolist()
        holders: dict[int, list[_Claim]] = {}  # for each claimed image its holders, a heap
        for query in holding.tolist():
            claim = (certainty_at(query, place[query]), negative_rank(query), query)
            heapq.heappush(holders.setdefault(image_at(query, place[query]), []), claim)
        waiting: deque[int] = deque()

        def move_on(query: int) -> None:
            nonlocal moves
            if place[query] + 1 < reach(query):
                place[query] += 1
                moves += 1
                waiting.append(query)
            else:
                place[query] = 0  # All in vain: its own first answer again, without a claim to it.

        for query in losers.tolist():
            move_on(query)
        while waiting:
            query = waiting.popleft()
            claim = (certainty_at(query, place[query]), negative_rank(query), query)
            heap = holders.setdefault(image_at(query, place[query]), [])
            if len(heap) < self.capacity:
                heapq.heappush(heap, claim)
                continue
            rival_certainty, _, rival = heap[0]
            if self.tau > 0 and abs(claim[0] - rival_certainty) <= self.tau:
                continue
            if self.similar is not None and not self.similar(np.array([query]), np.array([rival]))[0]:
                continue
            move_on(heapq.heappushpop(heap, claim)[2])
        return moves, np.array(place)

    def _resolve_in_rounds(
        self, losers: np.ndarray, holding: np.ndarray
    ) -> tuple[int, np.ndarray, np.ndarray, np.ndarray]:
        """Lets all losers move on at once, again and again, as long as there are many of them.

        Where an image answers one query and the more confident claim always wins, this is deferred
        acceptance: every order of the claims makes the same claims and ends in the same matching (McVitie and
        Wilson, "The stable marriage problem", 1971).

        Returns:
            The moves, (Q,) the places so far, the queries that have lost and not yet moved on, and those that
            hold an image.
        """
        images = self.images
        if images.max() >= 2 * images.size:  # too large to be places in an array
            images = np.unique(images, return_inverse=True)[1].reshape(images.shape)
        holder = np.full(int(images.max()) + 1, -1)  # the query that holds the image, or -1
        holder[images[holding, 0]] = holding
        place = np.zeros(len(images), dtype=np.int64)
        moves = 0
        while len(losers) > _FEW_LOSERS:
            in_vain = place[losers] + 1 == self.reach[losers]
            place[losers[in_vain]] = 0
            claimants = losers[~in_vain]
            place[claimants] += 1
            moves += len(claimants)
            claimed = images[claimants, place[claimants]]
            certainty = self.certainty[claimants, place[claimants]]
            order = np.lexsort((self.rank[claimants], -certainty, claimed))  # image by image, the best first
            opens_group = np.ones(len(order), dtype=bool)
            opens_group[1:] = claimed[order[1:]] != claimed[order[:-1]]
            best = order[opens_group]
            challenger, image = claimants[best], claimed[best]
            rival = holder[image]
            rival_certainty = self.certainty[rival, place[rival]]  # meaningless where there is no rival
            ahead = certainty[best] > rival_certainty
            ahead |= (certainty[best] == rival_certainty) & (self.rank[challenger] < self.rank[rival])
            free = rival < 0
            wins = free | ahead
            holder[image[wins]] = challenger[wins]
            losers = np.concatenate([claimants[order[~opens_group]], challenger[~wins], rival[ahead & ~free]])
        return moves, place, losers, holder[holder >= 0]


def _confidence(
    values: np.ndarray, scored: np.ndarray, confidence: Confidence, temperature: float
) -> np.ndarray:
    """Descending scores (Q, K) to the confidence in each candidate (Q, K), in double precision.

    What lies beyond the first `scored` (Q,) of a row is no candidate; its confidence means nothing.
    """
    values = values.astype(np.float64)
    listed = np.arange(values.shape[1]) < scored[:, None]
    if confidence == "softmax":
        # A row's first value is its greatest, so no exponential overflows.
        powers = np.where(listed, np.exp((values - values[:, :1]) / temperature), 0)
        return powers / powers.sum(axis=1, keepdims=True)
    if confidence == "margin":
        margins = np.zeros_like(values)
        np.subtract(values[:, :-1], values[:, 1:], out=margins[:, :-1], where=listed[:, 1:])
        return margins
    return values


def _text_gate(
    text_embeds: Any, text_threshold: float | None, queries: int
) -> Callable[[np.ndarray, np.ndarray], np.ndarray] | None:
    """A function of pairs of queries, (n,) and (n,): are their texts similar? `None` without a threshold."""
    if text_embeds is None and text_threshold is None:
        return None
    if text_embeds is None or text_threshold is None:
        raise ValueError("text_embeds and text_threshold go together: give both or neither")
    if not -1 <= text_threshold <= 1:
        raise ValueError(f"text_threshold is a cosine, so between -1 and 1, got {text_threshold}")
    embeds = to_numpy(text_embeds, "text_embeds")
    if embeds.ndim != 2 or len(embeds) != queries:
        raise ValueError(f"text_embeds must be a row for each of {queries} queries, got shape {embeds.shape}")
    squares = np.einsum("nd,nd->n", embeds, embeds, dtype=np.float64)
    refuse_rows(
        ~(np.isfinite(squares) & (squares > 0))[:, None], "text_embeds must be finite and not zero", embeds
    )

    def similar(left: np.ndarray, right: np.ndarray) -> np.ndarray:
        cosines = np.empty(len(left))
        for part in blocks(len(left), embeds.shape[1]):
            one, other = left[part], right[part]
            products = np.einsum("nd,nd->n", embeds[one], embeds[other], dtype=np.float64)
            cosines[part] = products / np.sqrt(squares[one] * squares[other])
        return cosines + 1e-9 >= text_threshold  # the rounding of equal texts must not miss a threshold of 1

    return similar


def rank_of_ids(query_ids: Any, queries: int) -> np.ndarray:
    """(Q,) the place of each query's id among the sorted ids.

    Images of equal score are another matter: they come as the caller has ranked them.
    """
    if query_ids is None:
        return np.arange(queries)
    names = query_ids.tolist() if hasattr(query_ids, "tolist") else list(query_ids)
    if len(names) != queries:
        raise ValueError(f"query_ids must name each of the {queries} queries, got {len(names)}")
    texts = [isinstance(name, str) for name in names]  # numpy's own strings as well
    numbers = [isinstance(name, (int, np.integer)) and not isinstance(name, bool) for name in names]
    if not all(texts) and not all(numbers):
        found = ", ".join(sorted({type(name).__name__ for name in names}))
        raise TypeError(f"query_ids must be all strings or all integers, got {found}")
    order = sorted(range(queries), key=names.__getitem__)
    for one, other in zip(order[:-1], order[1:], strict=True):
        if names[one] == names[other]:
            raise ValueError(f"query_ids must be distinct: queries {one} and {other} are both {names[one]!r}")
    rank = np.empty(queries, dtype=np.int64)
    rank[order] = np.arange(queries)
    return rank


def _check_options(
    confidence: str,
    mode: str,
    max_shift: int,
    tau: float,
    temperature: float,
    capacity: int,
) -> None:
    for name, choice, choices in (
        ("confidence", confidence, get_args(Confidence)),
        ("mode", mode, get_args(Mode)),
    ):
        if choice not in choices:
            raise ValueError(f"{name} must be one of {', '.join(choices)}, got {choice!r}")
    check_count("max_shift", max_shift, 0)
    check_count("capacity", capacity, 1)
    if mode == "single_pass" and max_shift > 1:
        raise ValueError(f"single_pass moves a query at most once: max_shift must be 0 or 1, got {max_shift}")
    if not tau >= 0:
        raise ValueError(f"tau must be at least 0, got {tau}")
    check_temperature(temperature)


def check_count(name: str, number: int, least: int) -> None:
    """Raises for an option that is no integer of at least `least`."""
    if isinstance(number, bool) or not isinstance(number, (int, np.integer)):
        raise TypeError(f"{name} must be an integer, got {number!r}")
    if number < least:
        raise ValueError(f"{name} must be at least {least}, got {number}")


def check_temperature(temperature: float) -> None:
    """Raises for a temperature that nothing can be divided by."""
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f"temperature must be greater than 0 and finite, got {temperature}")


def candidate_lists(
    indices: Any, scores: Any, top_k: int | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Checks the input and returns images (Q, K) and scores (Q, K), best first, and how many of each row
    are candidates, (Q,); see [`scored_candidates`]."""
    images, values, scored = scored_candidates(*checked_arrays(indices, scores))
    top_k = checked_top_k(top_k, values)
    if images is None:
        images = best_columns(values, top_k)
        values = np.take_along_axis(values, images, axis=1)
    return images[:, :top_k], values[:, :top_k], np.minimum(scored, top_k)


def checked_top_k(top_k: int | None, values: np.ndarray) -> int:
    """`top_k`, or for `None` all that each row of `values` holds."""
    if top_k is None:
        return values.shape[1]
    check_count("top_k", top_k, 1)
    if top_k > values.shape[1]:
        raise ValueError(f"top_k must be at most {values.shape[1]}, the candidates given, got {top_k}")
    return top_k


def checked_input(indices: Any, scores: Any, top_k: int | None) -> tuple[np.ndarray | None, np.ndarray]:
    """Images (Q, K) and scores (Q, K) of candidates alone, or `None` and dense scores (Q, G).

    For methods that need as many candidates of each query; a `top_k` that all have cuts to the best ones.
    """
    images, values, scored = scored_candidates(*checked_arrays(indices, scores))
    fewest = int(scored.min())
    if images is not None and fewest < images.shape[1]:
        if top_k is None or top_k > fewest:
            raise ValueError(
                f"queries have between {fewest} and {images.shape[1]} scored images, and this method needs "
                f"as many of each: pass top_k={fewest} to keep each query's best, or score more"
            )
        images, values = images[:, :top_k], values[:, :top_k]
    return images, values


def checked_arrays(indices: Any, scores: Any) -> tuple[np.ndarray | None, np.ndarray]:
    """Images (Q, K) and scores (Q, K) as arrays, or `None` and dense scores (Q, G), if nothing is wrong."""
    values = to_numpy(scores, "scores")
    _refuse_shape(values, "scores")
    if values.dtype.kind not in "fiu":
        raise TypeError(f"scores must be real numbers, got {values.dtype}")
    broken = np.isnan(values) | (values == np.inf)
    refuse_rows(broken, "scores must be finite, or -inf where nothing was scored", values)
    if indices is None:
        return None, values

    images = to_numpy(indices, "indices")
    if images.shape != values.shape:
        raise ValueError(f"indices and scores must have one shape, got {images.shape} and {values.shape}")
    if images.dtype.kind not in "iu":
        raise TypeError(f"indices must be integers, got {images.dtype}")
    refuse_rows(images < 0, "indices must not be negative (as where a search found too few images)", images)
    rising = values[:, 1:] > values[:, :-1]
    refuse_rows(rising, "scores must descend in each row (a dense matrix needs indices=None)", values)
    ordered = np.sort(images, axis=1)
    refuse_rows(ordered[:, 1:] == ordered[:, :-1], "indices must not repeat within a row", images)
    return images, values


def scored_candidates(
    images: np.ndarray | None, values: np.ndarray
) -> tuple[np.ndarray | None, np.ndarray, np.ndarray]:
    """What was scored of a matrix (Q, G), `images` being `None`, or of lists (Q, K).

    Returns:
        images, values, and how many of each row were scored, (Q,). Without scores that only fill up
        ([`filling_of`]) it is what was given; otherwise lists as long as the longest, where the end of a
        shorter one is made of images that were not scored.

    Raises:
        ValueError: nothing was scored of a query.

    Warns:
        UserWarning: in the name of the caller's caller's caller, how many were taken as not scored.
    """
    filling = filling_of(values)
    if filling is None:
        return images, values, np.full(len(values), values.shape[1])
    scored = values.shape[1] - _times(values, filling)
    refuse_rows((scored == 0)[:, None], f"nothing was scored: {filling} is no score", values)
    warnings.warn(
        f"{values.size - scored.sum():,} of {values.size:,} scores are {filling}: taken as not scored",
        UserWarning,
        stacklevel=4,
    )
    longest = int(scored.max())
    if images is None:
        known = values
        if _range_of_others(values, filling.lowest, filling.highest)[0] < filling.lowest:
            known = np.where(values == filling.lowest, -np.inf, values)  # lest zeros come before logits
        images = best_columns(known, longest)
        values = np.take_along_axis(values, images, axis=1)
    return images[:, :longest], values[:, :longest], scored


@dataclass(frozen=True)
class Filling:
    """The scores from `lowest` to `highest` say that nothing was scored; minus infinity always does."""

    lowest: float
    highest: float

    def holds(self, values: np.ndarray) -> np.ndarray:
        """Which of them say so, bool of the same shape."""
        return ((values >= self.lowest) & (values <= self.highest)) | (values == -np.inf)

    def __str__(self) -> str:
        return f"{'' if self.lowest == self.highest else 'about '}{self.lowest:g}"


def filling_of(values: np.ndarray) -> Filling | None:
    """What fills up scores (Q, K) where nothing was scored, or `None` where all were scored.

    It is minus infinity; numbers from -1,000 down that lie a thousand times as far from 0 as any other, as
    -1e9, -65504 and -3e38 do; or, among fractions, one whole number that comes again and again,
    - negative, and farther below all others than these lie apart, as -100 is below match logits; or
    - the least one, 0 or -100, where every row holds it equally often, which is how the best K of each query
      look in a matrix of zeros. With fewer than five rows that may be chance.
    A finite one fills up a part of some row: where it would be whole rows, these are queries of low scores.
    """
    lowest, least_of_all = np.inf, np.inf
    for part in blocks(*values.shape):
        block = values[part]
        least_of_all = min(least_of_all, float(block.min()))
        lowest = min(lowest, float(block.min(where=np.isfinite(block), initial=block.max())))
    if lowest <= -_FAR_BELOW:
        least, greatest = _range_of_others(values, -np.inf, lowest / 2)
        farthest, far = max(greatest, -least), Filling(lowest, lowest / 2)
        if 0 < farthest < -lowest / _FAR_BELOW and _parts_rows(_times(values, far), values):
            return far
    for number in dict.fromkeys((lowest, *_FILLINGS)):
        if float(number).is_integer() and _fills_up(values, number, number == lowest):
            return Filling(number, number)
    return Filling(-np.inf, -np.inf) if least_of_all == -np.inf else None


def _fills_up(values: np.ndarray, number: float, is_lowest: bool) -> bool:
    """Whether the whole number is a filling by the second half of `filling_of`."""
    times = _times(values, Filling(number, number))
    if times.sum() < 2 or not _parts_rows(times, values):
        return False
    least, greatest = _range_of_others(values, number, number)
    far_below = is_lowest and number < 0 and least - number > greatest - least > 0
    even = len(values) >= _ROWS_TO_TELL and times.min() == times.max()
    if not (far_below or even):
        return False
    others = np.concatenate([values[part][values[part] != number] for part in blocks(*values.shape)])
    others = others[np.isfinite(others)]
    fractions = others[others != np.trunc(others)]
    # Scores that are counts or votes are whole numbers, or a few values that come again themselves.
    return len(fractions) >= 0.9 * len(others) and 2 * len(np.unique(fractions)) > len(fractions)


def _times(values: np.ndarray, filling: Filling) -> np.ndarray:
    """How often each row of (Q, K) holds the filling, (Q,)."""
    times = np.empty(len(values), dtype=np.int64)
    for part in blocks(*values.shape):
        times[part] = filling.holds(values[part]).sum(axis=1)
    return times


def _parts_rows(times: np.ndarray, values: np.ndarray) -> bool:
    return bool(((times > 0) & (times < values.shape[1])).any())


def _range_of_others(values: np.ndarray, lowest: float, highest: float) -> tuple[float, float]:
    """The least and the greatest finite score outside of a range; infinity and its negative without any."""
    least, greatest = np.inf, -np.inf
    for part in blocks(*values.shape):
        block = values[part]
        others = block[((block < lowest) | (block > highest)) & np.isfinite(block)]
        if len(others):
            least, greatest = min(least, float(others.min())), max(greatest, float(others.max()))
    return least, greatest


def best_columns(values: np.ndarray, top_k: int) -> np.ndarray:
    """(Q, G) to the columns (Q, K) of each row's K greatest values, descending, equal ones by column."""
    queries, images = values.shape
    best = np.empty((queries, top_k), dtype=np.int64)
    for part in blocks(queries, images):
        rows = values[part]
        least = np.partition(rows, images - top_k, axis=1)[:, images - top_k, None]  # (rows, 1) K-th greatest
        above, equal = rows > least, rows == least
        room = top_k - above.sum(axis=1, keepdims=True)
        kept = above | (equal & (np.cumsum(equal, axis=1) <= room))  # exactly K in each row
        columns = np.nonzero(kept)[1].reshape(-1, top_k)
        kept_values = np.take_along_axis(rows, columns, axis=1).astype(np.float64)
        order = np.argsort(-kept_values, axis=1, kind="stable")
        best[part] = np.take_along_axis(columns, order, axis=1)
    return best


def claims(images: np.ndarray) -> np.ndarray:
    """For each image that is some query's first answer: of how many."""
    return np.unique(images[:, 0], return_counts=True)[1]


def put_first(rows: np.ndarray, place: np.ndarray) -> np.ndarray:
    """Rows (Q, K) with the element at `place` (Q,) first, the others in their old order."""
    rows, moved = rows.copy(), np.flatnonzero(place)
    target, column = place[moved, None], np.arange(rows.shape[1])
    source = np.where(column == 0, target, np.where(column <= target, column - 1, column))  # (moved, K)
    rows[moved] = np.take_along_axis(rows[moved], source, axis=1)
    return rows


def warn_where_images_are_few(queries: int, images: np.ndarray, capacity: int) -> None:
    """Warns, in the name of the caller's caller, if the queries are far too many for the images (n, K)."""
    if queries < (capacity + 1) * len(claims(images)):
        return  # The first answers alone show that there are images enough; to count all takes longer.
    distinct = len(np.unique(images))
    if queries >= (capacity + 1) * distinct:
        warnings.warn(
            f"{queries} queries share {distinct} candidate images, but capacity is {capacity}: where an image"
            " answers several queries, to resolve their collisions may lower recall; pass as capacity the"
            " number of queries an image may answer",
            UserWarning,
            stacklevel=3,
        )


def _refuse_shape(array: np.ndarray, name: str) -> None:
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(
            f"{name} must be (queries, candidates), at least one of each, got shape {array.shape}"
        )


def refuse_rows(broken: np.ndarray, rule: str, rows: np.ndarray) -> None:
    """Raises for the first row of `broken` that holds a true value, showing that row as it was given."""
    if broken.any():
        row = int(np.flatnonzero(broken.any(axis=1))[0])
        shown = np.array2string(rows[row], threshold=12, separator=", ")
        raise ValueError(f"{rule}; query {row} has {shown}")


def to_numpy(array: Any, name: str) -> np.ndarray:
    """An array, nested list or torch tensor (on any device) as a numpy array."""
    if hasattr(array, "detach"):
        tensor = array.detach().cpu()
        # numpy has no bfloat16; going through float and back is exact.
        return (
            tensor.float() if tensor.is_floating_point() and tensor.element_size() < 4 else tensor
        ).numpy()
    try:
        return np.asarray(array)
    except ValueError as error:
        raise ValueError(f"{name} must have rows of one length") from error


def as_given(array: np.ndarray, given: Any, *, keep_type: bool = True) -> Any:
    """`array` itself; or, if `given` is a tensor, as a tensor on its device.

    With `keep_type`, what floats is of the type of `given`.
    """
    if not hasattr(given, "detach"):
        return array
    import torch  # Here, because whoever has a tensor has torch, and nobody else needs it.

    tensor = torch.from_numpy(array).to(given.device)
    return tensor.to(given.dtype) if keep_type and tensor.is_floating_point() else tensor
