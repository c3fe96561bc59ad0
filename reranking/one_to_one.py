"""Re-rankers that give each query an image of its own: bounded assignment and greedy matching.

Both are transductive. Both leave each query its candidates and each candidate its score, and only choose
which one comes first; a query that finds no image keeps its first answer.
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from ..sca import (
    candidate_lists,
    check_count,
    rank_of_ids,
    sca_rerank,
    warn_where_images_are_few,
)
from .ranked_lists import RerankReport, RerankResult, answers_put_first

_LARGEST_DENSE = 100_000  # cost entries; beyond it a sparse solver is faster


def bounded_assignment(
    indices: Any,
    scores: Any,
    *,
    max_loss: float | None = None,
    capacity: int = 1,
    query_ids: Sequence[str] | Sequence[int] | Any = None,
    top_k: int | None = None,
) -> RerankResult:
    """Gives as many queries as possible an image of their own, with the greatest sum of scores.

    A query may take any of its K candidates that costs it at most `max_loss`, the score of its first answer
    minus that candidate's. Queries and the images they may take form a graph; each connected component of it
    in which a first answer collides is solved exactly, and the others stay as they are. The optimum counts
    losses only, so it is immune to an offset that a query adds to all its scores.

    Linear assignment: Kuhn, "The Hungarian method for the assignment problem" (1955); solved by the algorithm
    of Jonker and Volgenant, "A shortest augmenting path algorithm for dense and sparse linear assignment
    problems" (1987), as scipy has it.

    What is promised: no query loses more than `max_loss`; distinct first answers never become fewer; a query
    left at its first answer without holding it has no allowed image that nobody holds; a query whose
    component is without a collision stays; the order of the queries does not matter.

    The time of one component grows about with the square of its queries: `max_loss` and `top_k` keep
    components small.

    Args:
        indices, scores, query_ids, capacity, top_k: as in [`tpas.sca.sca_rerank`].
        max_loss: >= 0, in units of the score. `None`: any loss.

    Raises:
        ValueError, TypeError: where the input breaks the above, naming the row or the value.

    Warns:
        UserWarning: as `sca_rerank` does, where images are few.
    """
    check_count("capacity", capacity, 1)
    if max_loss is not None and not max_loss >= 0:
        raise ValueError(f"max_loss must be at least 0, got {max_loss}")
    images, values, scored = candidate_lists(indices, scores, top_k)
    rank = rank_of_ids(query_ids, len(images))
    warn_where_images_are_few(len(images), images, capacity)

    exact = values.astype(np.float64)
    losses = exact[:, :1] - exact  # (Q, K)
    allowed = losses <= (np.inf if max_loss is None else max_loss)
    allowed &= np.arange(images.shape[1]) < scored[:, None]
    query, place = np.nonzero(allowed)  # (edges,) both
    _, image = np.unique(images[query, place], return_inverse=True)
    component = _components(query, image, len(images))  # (Q,)
    first = image[place == 0]  # (Q,): every query's first candidate is allowed
    collides = (np.bincount(first) > capacity)[first]
    unresolved = np.zeros(component.max() + 1, dtype=bool)
    unresolved[component[collides]] = True

    kept = unresolved[component[query]]
    query, place, image = query[kept], place[kept], image[kept]
    # Components after each other, in each the queries by id, so that ties do not depend on rows.
    order = np.lexsort((place, rank[query], component[query]))
    query, place, image = query[order], place[order], image[order]
    ends = np.flatnonzero(np.diff(component[query])) + 1
    answer = np.zeros(len(images), dtype=np.int64)
    for edges in np.split(np.arange(len(query)), ends) if len(query) else ():
        row, members = _numbered(query[edges])
        column = np.unique(image[edges], return_inverse=True)[1]
        chosen = _assign(row, column, losses[query[edges], place[edges]], capacity)
        answer[members[row[chosen]]] = place[edges[chosen]]
    return answers_put_first("assignment", images, values, answer, capacity, indices, scores)


def greedy_matching(
    indices: Any,
    scores: Any,
    *,
    capacity: int = 1,
    query_ids: Sequence[str] | Sequence[int] | Any = None,
    top_k: int | None = None,
) -> RerankResult:
    """Takes pairs of query and candidate, the highest score first, where both are still free.

    The greedy matching of Avis, "A survey of heuristics for the weighted matching problem" (1983); among word
    pairs the competitive linking of Melamed, "Models of translational equivalence among words" (2000).
    Queries and images both prefer the pair with the higher score, so the result is the one stable matching,
    which SCA finds where its queries may move on without bound; hence the same procedure serves here. It is
    not immune to a query's own offset.

    Args:
        indices, scores, capacity, query_ids, top_k: as in [`tpas.sca.sca_rerank`]. Equal scores are taken by
            query id, then in the order of the query's list.

    Raises, warns: as `sca_rerank`.
    """
    result = sca_rerank(
        indices, scores, max_shift=sys.maxsize, capacity=capacity, query_ids=query_ids, top_k=top_k
    )
    counts = asdict(result.report)
    del counts["moves"]
    report = RerankReport(method="greedy", transductive=True, **counts)
    return RerankResult(result.indices, result.scores, result.moved, report)


def _components(query: np.ndarray, image: np.ndarray, queries: int) -> np.ndarray:
    """For each query the number of the connected component it lies in, (Q,), from its edges."""
    from scipy.sparse import coo_array  # here and below: scipy takes half a second to import
    from scipy.sparse.csgraph import connected_components

    nodes = queries + int(image.max()) + 1
    edges = coo_array((np.ones(len(query), dtype=np.int8), (query, queries + image)), shape=(nodes, nodes))
    return connected_components(edges, directed=False)[1][:queries]


def _numbered(grouped: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of values that lie together where they are equal: each one's group, from 0, and each group's value."""
    starts = np.append(True, grouped[1:] != grouped[:-1])
    return np.cumsum(starts) - 1, grouped[starts]


def _assign(row: np.ndarray, column: np.ndarray, loss: np.ndarray, capacity: int) -> np.ndarray:
    """The edges of the best assignment: most rows served, then the smallest sum of losses.

    Args:
        row: (E,) numbers from 0, ascending; column: (E,) numbers from 0; loss: (E,) >= 0.
    """
    from scipy.optimize import linear_sum_assignment
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import min_weight_full_bipartite_matching

    rows, columns = int(row[-1]) + 1, int(column.max()) + 1
    largest = float(loss.max()) or 1.0
    # A row that goes without costs more than any chain of moves that would have served it.
    without = (rows + 1) * largest
    copies = np.arange(capacity)[:, None] * columns
    source = np.concatenate([np.tile(row, capacity), np.arange(rows)])
    target = np.concatenate([(column + copies).ravel(), capacity * columns + np.arange(rows)])
    # The same amount more on each edge changes nothing; the sparse solver takes a 0 for no edge.
    cost = np.concatenate([np.tile(loss, capacity), np.full(rows, without)]) + largest
    shape = (rows, capacity * columns + rows)
    if shape[0] * shape[1] <= _LARGEST_DENSE:
        dense = np.full(shape, np.inf)
        dense[source, target] = cost
        served, taken = linear_sum_assignment(dense)
    else:
        served, taken = min_weight_full_bipartite_matching(
            coo_array((cost, (source, target)), shape=shape).tocsr()
        )
    real = taken < capacity * columns
    served, taken = served[real], taken[real] % columns
    key = row * columns + column  # (E,)
    by_key = np.argsort(key)
    return by_key[np.searchsorted(key, served * columns + taken, sorter=by_key)]
