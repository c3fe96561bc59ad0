"""Which queries of an evaluation are worth a look, and what is shown of each: for pages and figures alike."""

import random
from collections.abc import Iterable, Sequence
from typing import TypeVar

from ..evaluation.result_files import RankedQuery
from ..evaluation.stages import Stage, final_stage
from ..search.hits import SearchHit
from .collisions import Collision, find_collisions, sca_outcome

SCA_OUTCOMES = ("corrected", "spoilt", "wrong before and after")
IMAGES_SHOWN = 6  # of each query
T = TypeVar("T")


def is_answered(query: RankedQuery, stage: str) -> bool:
    """Whether the query's first answer at that stage is a right image."""
    return query.hits[stage][0].id in query.relevant


def verdict(query: RankedQuery) -> str:
    """In a few words, how the query fared."""
    if query.moved:
        claimed, taken = query.hits[final_stage(query.hits)][0], query.hits[Stage.SCA][0]
        return f"moved by SCA: {sca_outcome(claimed, taken, query.relevant)}"
    if not is_answered(query, Stage.SCA):
        return "wrong"
    return "right at once" if is_answered(query, Stage.EMBEDDINGS) else "found by matching"


def choose_queries(queries: Sequence[RankedQuery], *, count: int, seed: int) -> list[RankedQuery]:
    """Up to `count` queries in which every kind of success and failure is seen.

    The verdicts, each once for normal and once for anomalous behaviour, take turns; among those of one kind
    `seed` draws.
    """
    groups: dict[tuple[str, str], list[RankedQuery]] = {}
    for query in queries:
        groups.setdefault((verdict(query), query.behaviour or ""), []).append(query)
    return take_in_turn([groups[kind] for kind in sorted(groups)], count, seed)


def collisions_by_outcome(queries: Sequence[RankedQuery]) -> dict[str, list[Collision]]:
    """The queries that SCA moved, by outcome; every outcome is there, also without a query."""
    by_outcome: dict[str, list[Collision]] = {outcome: [] for outcome in SCA_OUTCOMES}
    before = [query.hits[final_stage(query.hits)] for query in queries]
    for collision in find_collisions(before, [query.hits[Stage.SCA] for query in queries]):
        relevant = queries[collision.query].relevant
        by_outcome[sca_outcome(collision.claimed, collision.taken, relevant)].append(collision)
    return by_outcome


def take_in_turn(groups: Iterable[Sequence[T]], count: int, seed: int) -> list[T]:
    """Up to `count` in all: one of each group, then another of each, in an order drawn by `seed`."""
    generator = random.Random(seed)
    shuffled = [generator.sample(group, len(group)) for group in groups]
    rounds = max(map(len, shuffled), default=0)
    return [group[turn] for turn in range(rounds) for group in shuffled if turn < len(group)][:count]


def shown_hits(query: RankedQuery) -> tuple[list[SearchHit], str | None]:
    """The best `IMAGES_SHOWN` of the last stage, or one less and the id of a right image that was not listed.

    Where no right one is among them, the best of those takes the last place: what was missed is to be seen.
    """
    hits = list(query.hits[Stage.SCA])
    shown = hits[:IMAGES_SHOWN]
    right = [hit for hit in hits if hit.id in query.relevant]
    if right and right[0] in shown:
        return shown, None
    shown = shown[: IMAGES_SHOWN - 1]
    return (shown + right[:1], None) if right else (shown, next(iter(query.relevant)))


def rank_of_right(query: RankedQuery, stage: str) -> str:
    """The best rank of a right image, or that it is beyond the listed ones."""
    hits = query.hits[stage]
    return next((str(hit.rank) for hit in hits if hit.id in query.relevant), f"> {len(hits)}")
