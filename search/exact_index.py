"""Exact search over embeddings: the best rows of each query by cosine, ties by the hash of the id.

A product over all rows, in bf16 where the CPU multiplies that faster than fp32, gives bounds of each cosine;
rows whose upper bound is below `count` lower bounds are ruled out. The few that are left are scored in
double. So the answer is that of a sort of all cosines in double precision.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .stored_gallery import gather_rows

SPAN_ROWS = 65_536  # looked through at once
GROUP_ROWS = 64  # whose greatest cosine is looked at first: in most groups no row reaches the threshold
QUERIES_AT_ONCE = 128
PAIRS_AT_ONCE = 65_536  # whose embeddings are held
PAIRS_IN_DOUBLE = 512  # of which these in double precision, in the cache
ROUNDED_FROM = 64  # queries: for fewer it takes longer to keep rounded rows than is saved
ROUNDED_AT_ONCE_FROM = 9  # queries at once, by which rounding the rows for them alone pays
BLOCK_ROWS = 4_096  # rounded at once, in the cache
ROUNDED_BYTES = 2**31  # of rounded rows kept in memory: 4,194,304 rows of 256 dimensions
LOWEST = -2.0  # below every cosine
BF16_ROUNDOFF = 2.0**-8  # at most this share of a number is lost when it is rounded


class ExactIndex:
    """Searches unit vectors that lie in parts, in memory or mapped from disk.

    An index that is asked more than `ROUNDED_FROM` queries keeps a rounded copy of its rows, half as large.

    Args:
        segments: (n, D) fp32 each.
        id_hashes: (G,) int64, which resolve ties: the smaller first.
        span_rows: looked through at once.
        rounded_bytes: most of the rounded copy; rows beyond are always read in fp32.
        in_bf16: whether to keep one; `None`: on a CPU that multiplies bf16 faster.
    """

    def __init__(
        self,
        segments: Sequence[Tensor],
        id_hashes: Tensor,
        *,
        span_rows: int = SPAN_ROWS,
        rounded_bytes: int = ROUNDED_BYTES,
        in_bf16: bool | None = None,
    ):
        self.segments = segments
        self.id_hashes = id_hashes
        self.span_rows = span_rows
        self.rounded_bytes = rounded_bytes
        self.in_bf16 = _multiplies_bf16_faster() if in_bf16 is None else in_bf16
        self.starts = [0, *accumulate(map(len, segments))]
        self.spans = list(regroup(segments, span_rows))
        self.rounded: dict[int, RoundedRows] = {}  # by span
        self.queries = 0  # that were asked so far

    def search(self, queries: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The best `count` rows for each query.

        Args:
            queries: (Q, D), unit norm.
            count: between 1 and the number of rows.

        Returns:
            rows (Q, count) and their cosines (Q, count) fp32, best first.
        """
        if not 1 <= count <= self.starts[-1]:
            raise ValueError(f"between 1 and {self.starts[-1]} rows can be found, {count} were asked for")
        for query in (~queries.isfinite().all(dim=1)).nonzero():
            raise ValueError(f"the embedding of query {query.item()} is not finite, so it has no best rows")
        self.queries += len(queries)
        with torch.autocast("cpu", enabled=False):  # the bounds are those of fp32
            results = [self._search(part.float(), count) for part in queries.split(QUERIES_AT_ONCE)]
        return torch.cat([rows for rows, _ in results]), torch.cat([cosines for _, cosines in results])

    def _search(self, queries: Tensor, count: int) -> tuple[Tensor, Tensor]:
        found = _Candidates(len(queries), count)
        for number, parts in enumerate(self.spans):
            rounded = self._rounded(number)
            by_bf16 = rounded is not None or (self.in_bf16 and len(queries) >= ROUNDED_AT_ONCE_FROM)
            if rounded is not None:
                span = rounded.cosines(queries)
            else:
                span = cosines_by_bf16(parts, queries) if by_bf16 else cosines_by_fp32(parts, queries)
            if number == 0:
                found.threshold = span.lower_bounds(reached_by(span.computed, count))
            query, rows = reaching(span.computed, span.computed_of(found.threshold))
            if by_bf16 and len(rows) > span.computed.shape[1]:  # it hardly tells rows apart
                span = cosines_by_fp32(parts, queries)
                query, rows = reaching(span.computed, span.computed_of(found.threshold))
            computed = span.computed[query, rows]
            lower, upper = span.lower_bounds(computed, query), span.upper_bounds(computed, query)
            found.add(query, rows + number * self.span_rows, lower, upper)
        return rank_candidates(queries, found.rows(), count, self)

    def _rounded(self, number: int) -> "RoundedRows | None":
        """The rounded rows of a span, if they are of use and may be kept."""
        if number not in self.rounded:
            size = 2 * self.span_rows * self.spans[number][0].shape[1]
            pays = self.queries > ROUNDED_FROM and self.in_bf16
            if not pays or (number + 1) * size > self.rounded_bytes:
                return None
            self.rounded[number] = RoundedRows(self.spans[number])
        return self.rounded[number]


@dataclass(frozen=True)
class Cosines:
    """Cosines as they were computed, and how far from the true ones they may be.

    Attributes:
        computed: (Q, n) fp32.
        slack: (Q,) how far off they were before the result was rounded.
        roundoff: the share of itself by which the result was.
    """

    computed: Tensor
    slack: Tensor
    roundoff: float = 0.0

    def computed_of(self, cosine: Tensor) -> Tensor:
        """What is computed at the least for true cosines (Q,) and greater ones."""
        least = cosine - self.slack
        return least - self.roundoff * least.abs()

    def lower_bounds(self, computed: Tensor, query: Tensor | slice = slice(None)) -> Tensor:
        """Of the true cosines of these queries, one each, for those computed."""
        return computed - self.roundoff * computed.abs() - self.slack[query]

    def upper_bounds(self, computed: Tensor, query: Tensor | slice = slice(None)) -> Tensor:
        return computed + self.roundoff * computed.abs() + self.slack[query]


def cosines_by_fp32(parts: Sequence[Tensor], queries: Tensor) -> Cosines:
    """Of rows in parts (n, D) with queries (Q, D), all of unit norm."""
    # A product with one vector takes another road, which reads the rows at half the speed.
    asked = queries if len(queries) > 1 else queries.repeat(2, 1)
    computed = torch.empty(len(queries), sum(map(len, parts)))
    for part, own in zip(parts, computed.split([len(part) for part in parts], dim=1), strict=True):
        own.copy_(F.linear(part, asked).t()[: len(queries)])
    return Cosines(computed, torch.full((len(queries),), _lost_by_sums(queries.shape[1])))


def cosines_by_bf16(parts: Sequence[Tensor], queries: Tensor) -> Cosines:
    """As `cosines_by_fp32`; the rows are rounded on the way, and not kept."""
    rounded = queries.bfloat16()
    packed = torch.ops.mkldnn._reorder_linear_weight(rounded)
    computed = torch.empty(len(queries), sum(map(len, parts)))
    wide = torch.empty(BLOCK_ROWS, queries.shape[1])
    room = torch.empty_like(wide, dtype=torch.bfloat16)
    for block, own in zip(regroup(parts, BLOCK_ROWS), computed.split(BLOCK_ROWS, dim=1), strict=True):
        rows = block[0] if len(block) == 1 else torch.cat(block, out=wide[: own.shape[1]])
        rows = room[: len(rows)].copy_(rows)
        own.copy_(torch.ops.mkldnn._linear_pointwise(rows, packed, None, "none", [], "").t())
    return Cosines(computed, _lost_by_bf16(queries, rounded, BF16_ROUNDOFF), BF16_ROUNDOFF)


class RoundedRows:
    """Unit vectors in bf16, laid out for products with few queries by oneDNN.

    The layout is the one that torch.compile uses for the weights of linear layers.

    Args:
        parts: (n, D) fp32 each.
    """

    def __init__(self, parts: Sequence[Tensor]):
        rounded = torch.empty(sum(map(len, parts)), parts[0].shape[1], dtype=torch.bfloat16)
        lost = []
        for block, own in zip(regroup(parts, BLOCK_ROWS), rounded.split(BLOCK_ROWS), strict=True):
            rows = torch.cat(block)
            lost.append(rows.sub_(own.copy_(rows)).norm(dim=1).max())
        self.lost = torch.stack(lost).max()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(rounded)

    def cosines(self, queries: Tensor) -> Cosines:
        """With queries (Q, D) of unit norm."""
        rounded = queries.bfloat16()
        computed = torch.ops.mkldnn._linear_pointwise(rounded, self.packed, None, "none", [], "")
        return Cosines(computed.float(), _lost_by_bf16(queries, rounded, self.lost), BF16_ROUNDOFF)


def regroup(parts: Iterable[Tensor], rows: int) -> Iterator[list[Tensor]]:
    """The parts, (n, D) each, cut into lists of `rows` rows in the same order; the last has fewer."""
    pieces, filled = [], 0
    for part in parts:
        taken = 0
        while taken < len(part):
            pieces.append(part[taken : taken + rows - filled])
            taken, filled = taken + len(pieces[-1]), filled + len(pieces[-1])
            if filled == rows:
                yield pieces
                pieces, filled = [], 0
    if pieces:
        yield pieces


def reached_by(cosines: Tensor, count: int) -> Tensor:
    """(Q, n) to (Q,): what at least `count` columns of each row reach, hardly more; `LOWEST` if n is less."""
    if count > cosines.shape[1]:
        return torch.full_like(cosines[:, 0], LOWEST)
    best = _best_of_groups(cosines)
    return (best if count <= best.shape[1] else cosines).topk(count).values[:, -1]


def reaching(cosines: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns (P,) of the elements of (Q, n) that reach their row's threshold (Q,); few are to."""
    whole = cosines.shape[1] // GROUP_ROWS * GROUP_ROWS
    row, group = (_best_of_groups(cosines) >= threshold[:, None]).nonzero(as_tuple=True)
    groups = cosines[:, :whole].unflatten(1, (-1, GROUP_ROWS))  # (Q, G, GROUP_ROWS)
    place, column = (groups[row, group] >= threshold[row, None]).nonzero(as_tuple=True)
    rest_row, rest = (cosines[:, whole:] >= threshold[:, None]).nonzero(as_tuple=True)
    columns = torch.cat([group[place] * GROUP_ROWS + column, rest + whole])
    return torch.cat([row[place], rest_row]), columns


def _best_of_groups(cosines: Tensor) -> Tensor:
    """(Q, n) to (Q, n // GROUP_ROWS): the greatest of each group of columns, the last few left out."""
    whole = cosines.shape[1] // GROUP_ROWS * GROUP_ROWS
    return cosines[:, :whole].unflatten(1, (-1, GROUP_ROWS)).amax(dim=2)


def _lost_by_bf16(queries: Tensor, rounded: Tensor, lost_of_rows: Tensor | float) -> Tensor:
    """(Q,) how far off cosines of rounded queries are with rounded rows, which are off by so much at most."""
    lost = (queries - rounded).norm(dim=1) + lost_of_rows
    return 1.01 * lost + _lost_by_sums(queries.shape[1])  # norms are 1, or rounded to nearly 1


def _lost_by_sums(size: int) -> float:
    """How far off a cosine of vectors of this size is by its sum in fp32, at most size * 2^-24.

    The rest is for the rounding of bounds, norms of nearly 1, and the rounding of the answer to fp32.
    """
    return 1.05 * ((size + 8) * 2.0**-24 + _lost_by_fp32_products())


def _lost_by_fp32_products() -> float:
    """How far off a cosine is where torch is set to round the inputs of fp32 products on a CPU.

    So `torch.set_float32_matmul_precision("medium")` does, here to bf16, and some set it for their GPU.
    """
    rounded_to = getattr(torch.backends.mkldnn, "matmul").fp32_precision  # noqa: B009 - untyped in torch
    unit_roundoff = {"bf16": 2.0**-8, "tf32": 2.0**-11}.get(rounded_to, 0.0)
    return 2.01 * unit_roundoff  # of both vectors


def _multiplies_bf16_faster() -> bool:
    """Whether the CPU has instructions for products of bf16, and oneDNN, which uses them, is there."""
    has_instructions = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return has_instructions and torch.backends.mkldnn.is_available() and bool(torch.backends.mkldnn.enabled)


class _Candidates:
    """Rows that may be among the best `count` of each of Q queries.

    Attributes:
        threshold: (Q,) cosine that a row must be able to have, `LOWEST` until enough were looked at.
    """

    def __init__(self, queries: int, count: int):
        self.queries = queries
        self.count = count
        self.entries: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        self.size = 0
        self.limit = 2 * queries * count
        self.threshold = torch.full((queries,), LOWEST)

    def add(self, query: Tensor, rows: Tensor, lower: Tensor, upper: Tensor) -> None:
        """Rows (P,) of the queries numbered `query`, with bounds of their cosines."""
        self.entries.append((query, rows, lower, upper))
        self.size += len(rows)
        if self.size > self.limit:
            self._keep_best()

    def rows(self) -> list[Tensor]:
        """The rows of each query."""
        self._keep_best()
        query, rows, *_ = self.entries[0]
        return list(rows.split(query.bincount(minlength=self.queries).tolist()))

    def _keep_best(self) -> None:
        query, rows, lower, upper = (torch.cat(parts) for parts in zip(*self.entries, strict=True))
        order = query.argsort(stable=True)
        query, rows, lower, upper = query[order], rows[order], lower[order], upper[order]
        sizes = query.bincount(minlength=self.queries)
        place = torch.arange(len(query)) - (sizes.cumsum(0) - sizes)[query]  # among its query's entries
        table = torch.full((self.queries, max(self.count, int(sizes.max()))), LOWEST)
        table[query, place] = lower
        self.threshold = torch.maximum(self.threshold, table.topk(self.count).values[:, -1])
        kept = upper >= self.threshold[query]
        self.entries = [(query[kept], rows[kept], lower[kept], upper[kept])]
        self.size = int(kept.sum())
        self.limit = max(2 * self.queries * self.count, 2 * self.size)  # ties may be many


def rank_candidates(
    queries: Tensor, candidates: Sequence[Tensor], count: int, index: ExactIndex
) -> tuple[Tensor, Tensor]:
    """The best `count` of each query's candidate rows, by cosine in double precision, ties by hash.

    Args:
        queries: (Q, D).
        candidates: for each query at least `count` rows.

    Returns:
        rows (Q, count) and cosines (Q, count) fp32, best first.
    """
    sizes = torch.tensor([len(rows) for rows in candidates])
    rows = torch.cat(list(candidates))  # (C,)
    query = torch.arange(len(queries)).repeat_interleave(sizes)  # (C,)
    rows, order = rows.sort()  # as they lie on the disk
    query = query[order]
    products = []
    for chunk, asked in zip(rows.split(PAIRS_AT_ONCE), query.split(PAIRS_AT_ONCE), strict=True):
        embeds = gather_rows(index.segments, index.starts, chunk)  # (c, D)
        for part, own in zip(embeds.split(PAIRS_IN_DOUBLE), asked.split(PAIRS_IN_DOUBLE), strict=True):
            products.append((part.double() * queries[own].double()).sum(dim=1))
    # Rounded, so that equal images get equal cosines wherever they lie.
    cosines = torch.cat(products).float()  # (C,)
    best_first = np.lexsort((index.id_hashes[rows].numpy(), -cosines.numpy(), query.numpy()))
    first = sizes.cumsum(0) - sizes  # (Q,) of each query in `best_first`
    best = torch.from_numpy(best_first)[first[:, None] + torch.arange(count)]  # (Q, count)
    return rows[best], cosines[best]
