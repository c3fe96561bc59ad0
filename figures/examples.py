"""Which queries of an evaluation are worth a look, and what is shown of each: for pages and figures alike.

A query here is an entry of `queries` in what `rankings_json` makes.
"""

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from .collisions import find_moves

SCA_OUTCOMES = ("corrected", "spoilt", "wrong before and after")
IMAGES_SHOWN = 6  # of each query


@dataclass(frozen=True)
class Answer:
    """An image as an answer to a query; without rank and score where it is not among those listed."""

    id: str
    rank: int | None
    score: float | None
    right: bool


@dataclass(frozen=True)
class Resolved:
    """A query that SCA moved, and the one that kept the image which both had claimed, if it is known."""

    query: Mapping
    outcome: str
    before: Answer
    after: Answer
    holder: Mapping | None
    kept: Answer | None


def is_right(query: Mapping, stage: str) -> bool:
    """Whether the query's first answer at that stage is a relevant image."""
    return query["stages"][stage]["ids"][0] in query["relevant"]


def sca_outcome(query: Mapping, before: str) -> str:
    """What SCA did to a query that it moved, one of `SCA_OUTCOMES`; `before` is the stage that it reranked.

    Where a query has several relevant images and SCA moved it from one to another, nothing is lost:
    that counts as "corrected".
    """
    if is_right(query, "sca"):
        return "corrected"
    return "spoilt" if is_right(query, before) else "wrong before and after"


def verdict(query: Mapping, before: str) -> str:
    """In a few words, how the query fared."""
    if query["moved"]:
        return f"moved by SCA: {sca_outcome(query, before)}"
    if not is_right(query, "sca"):
        return "wrong"
    return "right at once" if is_right(query, "embeddings") else "found by matching"


def choose_queries(queries: Sequence[Mapping], before: str, *, count: int, seed: int) -> list[Mapping]:
    """Up to `count` queries in which every kind of success and failure is seen.

    The verdicts, each once for normal and once for anomalous behaviour, take turns; among those of one kind
    `seed` draws.
    """
    groups: dict[tuple[str, str], list[Mapping]] = {}
    for query in queries:
        groups.setdefault((verdict(query, before), query["behaviour"] or ""), []).append(query)
    return _take_in_turn([groups[kind] for kind in sorted(groups)], count, seed)


def moved_queries(queries: Sequence[Mapping], before: str) -> dict[str, list[Mapping]]:
    """The queries that SCA moved, by outcome; every outcome is there, also without a query."""
    moved: dict[str, list[Mapping]] = {outcome: [] for outcome in SCA_OUTCOMES}
    for query in queries:
        if query["moved"]:
            moved[sca_outcome(query, before)].append(query)
    return moved


def choose_collisions(queries: Sequence[Mapping], before: str, *, count: int, seed: int) -> list[Resolved]:
    """Up to `count` queries that SCA moved, the outcomes in turn; among those of one outcome `seed` draws."""
    chosen = _take_in_turn(moved_queries(queries, before).values(), count, seed)
    listed = [query["stages"][before] for query in queries]
    moves = find_moves(
        [stage["ids"] for stage in listed],
        [stage["scores"] for stage in listed],
        [query["stages"]["sca"]["ids"] for query in queries],
    )
    by_query = {queries[move.query]["query_id"]: move for move in moves}
    reranked = []
    for query in chosen:
        move = by_query[query["query_id"]]
        holder = None if move.holder is None else queries[move.holder]
        reranked.append(
            Resolved(
                query,
                sca_outcome(query, before),
                answer(query, before, move.claimed),
                answer(query, before, move.taken),
                holder,
                None if holder is None else answer(holder, before, move.claimed),
            )
        )
    return reranked


def _take_in_turn(groups: Iterable[Sequence[Mapping]], count: int, seed: int) -> list[Mapping]:
    """Up to `count` in all: one of each group, then another of each, in an order drawn by `seed`."""
    generator = random.Random(seed)
    shuffled = [generator.sample(group, len(group)) for group in groups]
    rounds = max(map(len, shuffled), default=0)
    return [group[turn] for turn in range(rounds) for group in shuffled if turn < len(group)][:count]


def answer(query: Mapping, stage: str, identifier: str) -> Answer:
    """An image as this query's answer at that stage."""
    ids, scores = query["stages"][stage]["ids"], query["stages"][stage]["scores"]
    right = identifier in query["relevant"]
    if identifier not in ids:
        return Answer(identifier, None, None, right)
    place = ids.index(identifier)
    return Answer(identifier, place + 1, scores[place], right)


def shown_answers(query: Mapping) -> list[Answer]:
    """The best `IMAGES_SHOWN` of the last stage.

    Where no right one is among them, the best of those takes the last place: what was missed is to be seen.
    """
    ids = query["stages"]["sca"]["ids"]
    shown = ids[:IMAGES_SHOWN]
    if not set(shown) & set(query["relevant"]):
        missed = [name for name in ids if name in query["relevant"]] or query["relevant"]
        shown = [*shown[: IMAGES_SHOWN - 1], missed[0]]
    return [answer(query, "sca", identifier) for identifier in shown]


def rank_of_right(query: Mapping, stage: str) -> str:
    """The best rank of a relevant image, or that it is beyond the listed ones."""
    ids = query["stages"][stage]["ids"]
    ranks = [str(rank) for rank, name in enumerate(ids, start=1) if name in query["relevant"]]
    return ranks[0] if ranks else f"> {len(ids)}"
