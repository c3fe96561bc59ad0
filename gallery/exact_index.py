"""Exact search over embeddings: the best rows of each query by cosine, ties by the hash of the id.

Block by block a product rules out nearly all rows, given how far its rounding can be off: in bf16 where the
CPU multiplies that faster than fp32. The rows that are left are scored in fp32, and those that may be among
the best, given how far fp32 can be off, again in double. So the answer is that of a sort of all cosines in
double precision.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tpas.gallery.stored_gallery import gather_rows

BLOCK_ROWS = 4_096  # in one product: 4 MB of 256 dimensions, which stay in the cache between copy and product
SPAN_ROWS = 8 * BLOCK_ROWS  # looked through at once
GROUP_ROWS = 64  # whose greatest cosine is looked at first: in most groups no row reaches the threshold
QUERIES_AT_ONCE = 128
PAIRS_AT_ONCE = 512  # whose embeddings are held in double precision, in the cache


class ExactIndex:
    """Searches unit vectors that lie in parts, in memory or mapped from disk.

    Args:
        segments: (n, D) fp32 each.
        id_hashes: (G,) int64, which settle ties: the smaller first.
    """

    def __init__(self, segments: Sequence[Tensor], id_hashes: Tensor):
        self.segments = segments
        self.id_hashes = id_hashes
        self.starts = [0, *accumulate(map(len, segments))]

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
        results = [self._search(part.float(), count) for part in queries.split(QUERIES_AT_ONCE)]
        return torch.cat([rows for rows, _ in results]), torch.cat([cosines for _, cosines in results])

    def _search(self, queries: Tensor, count: int) -> tuple[Tensor, Tensor]:
        # A sum of D products of unit vectors is off by at most D * 2^-24, in the best one as in any other;
        # the rest is for the threshold's own rounding, norms of nearly 1 and the rounding of the result.
        margin = 2.1 * ((queries.shape[1] + 8) * 2.0**-24 + _lost_by_fp32_products())
        span_filter = SpanFilter(queries)
        threshold = None  # (Q,) cosine in fp32 that a row of each query must reach
        found = _Candidates(len(queries), count)
        start = 0
        for parts in regroup(self.segments, SPAN_ROWS):
            length = sum(map(len, parts))
            if threshold is not None:
                rows, query = span_filter(parts, threshold)
                crowded = len(rows) > length  # then a product of all is less work than one of these
            if threshold is None or crowded:
                cosines = torch.cat([F.linear(part, queries) for part in parts])  # (n, Q)
                if threshold is None:
                    threshold = reached_by(cosines, count) - margin
                rows, query = not_negative(cosines - threshold)
                cosines = cosines[rows, query]
            else:
                embeds = gather_rows(parts, [0, *accumulate(map(len, parts))], rows)  # (P, D)
                cosines = F.linear(embeds, queries).gather(1, query[:, None])[:, 0]
            found.add(query, rows + start, cosines)
            if found.crowded:
                threshold = torch.maximum(threshold, found.keep_best(margin))
            start += length
        found.keep_best(margin)
        return rank_candidates(queries, found.rows(), count, self)


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
    """(n, Q) to (Q,): what at least `count` rows of each column reach, hardly more; -inf if n is less."""
    if count > len(cosines):
        return torch.full_like(cosines[0], -torch.inf)
    groups = cosines[: len(cosines) // GROUP_ROWS * GROUP_ROWS].view(-1, GROUP_ROWS, cosines.shape[1])
    best = groups.amax(dim=1) if count <= len(groups) else cosines
    return best.topk(count, dim=0).values[-1]


class SpanFilter:
    """Which pairs of rows with unit queries (Q, D) may reach a threshold, by a product in fp32 or bf16."""

    def __init__(self, queries: Tensor):
        dtype = torch.bfloat16 if _multiplies_bf16_faster() else torch.float32
        self.product = BlockProduct(queries.to(dtype))
        # How much a cosine of unit vectors can lose when both are rounded, the row by 2^-8 at most. How far
        # off its sum is in fp32, the threshold itself allows for.
        lost = (queries - queries.to(dtype)).norm(dim=1)
        self.slack = 1.01 * (lost + 2.0**-8) if dtype == torch.bfloat16 else torch.zeros(len(queries))  # (Q,)
        self.block = torch.empty(BLOCK_ROWS, queries.shape[1], dtype=dtype)
        self.excess = torch.empty(SPAN_ROWS, len(queries))  # of cosines over the threshold

    def __call__(self, parts: Sequence[Tensor], threshold: Tensor) -> tuple[Tensor, Tensor]:
        """Parts (n, D) of a span of fp32 rows and thresholds (Q,) to pairs: rows of the span and queries.

        Every pair is there whose cosine in fp32 reaches its query's threshold, and some more.
        """
        length = 0
        for pieces in regroup(parts, BLOCK_ROWS):
            # Copied, as a copy reads at full bandwidth, and the product then finds its rows in the cache.
            filled = 0
            for piece in pieces:
                self.block[filled : filled + len(piece)] = piece
                filled += len(piece)
            excess = self.product(self.block[:filled], self.slack - threshold)
            self.excess[length : length + filled] = excess
            length += filled
        return not_negative(self.excess[:length])


def not_negative(values: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns (P,) of the elements >= 0 of (n, Q), which are to be few."""
    whole = len(values) // GROUP_ROWS * GROUP_ROWS
    groups = values[:whole].view(-1, GROUP_ROWS, values.shape[1])  # (G, GROUP_ROWS, Q)
    group, column = (groups.amax(dim=1) >= 0).nonzero(as_tuple=True)
    place, row = (groups[group, :, column] >= 0).nonzero(as_tuple=True)
    rest, rest_column = (values[whole:] >= 0).nonzero(as_tuple=True)
    rows = torch.cat([group[place] * GROUP_ROWS + row, rest + whole])
    return rows, torch.cat([column[place], rest_column])


class BlockProduct:
    """Products of a block with the queries, and something added for each query.

    On oneDNN where torch has it, with the packing that torch.compile uses for linear layers: half as fast
    again as torch's own fp32 product on the machine it was measured on.
    """

    def __init__(self, queries: Tensor):
        self.queries = queries  # (Q, D)
        self.packed = None
        if torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled:
            self.packed = torch.ops.mkldnn._reorder_linear_weight(queries, BLOCK_ROWS)

    def __call__(self, block: Tensor, added: Tensor) -> Tensor:
        """(n, D), (Q,) fp32 to (n, Q); a sum keeps its sign where the result is rounded to bf16."""
        if self.packed is None:
            return F.linear(block, self.queries, added)
        return torch.ops.mkldnn._linear_pointwise(block, self.packed, added, "none", [], "")


def _lost_by_fp32_products() -> float:
    """How far off a cosine is where torch was told to round the inputs of fp32 products on a CPU.

    So `torch.set_float32_matmul_precision("medium")` does, here to bf16, and some set it for their GPU.
    """
    unit_roundoff = {"bf16": 2.0**-8, "tf32": 2.0**-11}.get(torch.backends.mkldnn.matmul.fp32_precision, 0.0)
    return 2.01 * unit_roundoff  # of both vectors


def _multiplies_bf16_faster() -> bool:
    """Whether the CPU has instructions for products of bf16, and oneDNN, which uses them, is there."""
    has_instructions = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return has_instructions and torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled


class _Candidates:
    """Rows that may be among the best `count` of each of Q queries."""

    def __init__(self, queries: int, count: int):
        self.queries = queries
        self.count = count
        self.entries: list[tuple[Tensor, Tensor, Tensor]] = []
        self.size = 0
        self.limit = 2 * queries * count

    def add(self, query: Tensor, rows: Tensor, cosines: Tensor) -> None:
        self.entries.append((query, rows, cosines))
        self.size += len(rows)

    @property
    def crowded(self) -> bool:
        return self.size > self.limit

    def keep_best(self, margin: float) -> Tensor:
        """Forgets what cannot be among the best; returns the cosine (Q,) that others must reach."""
        query, rows, cosines = (torch.cat(parts) for parts in zip(*self.entries, strict=True))
        order = query.argsort(stable=True)
        query, rows, cosines = query[order], rows[order], cosines[order]
        sizes = query.bincount(minlength=self.queries)
        place = torch.arange(len(query)) - (sizes.cumsum(0) - sizes)[query]  # among its query's entries
        table = torch.full((self.queries, max(self.count, int(sizes.max()))), -torch.inf)
        table[query, place] = cosines
        threshold = table.topk(self.count).values[:, -1] - margin  # (Q,), -inf where entries are too few
        kept = cosines >= threshold[query]
        self.entries = [(query[kept], rows[kept], cosines[kept])]
        self.size = int(kept.sum())
        self.limit = max(2 * self.queries * self.count, 2 * self.size)  # ties may be many
        return threshold

    def rows(self) -> list[Tensor]:
        """The rows of each query."""
        query, rows, _ = self.entries[0]
        return list(rows.split(query.bincount(minlength=self.queries).tolist()))


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
    embeds = gather_rows(index.segments, index.starts, rows)  # (C, D)
    products = [
        (part.double() * queries[own].double()).sum(dim=1)
        for part, own in zip(embeds.split(PAIRS_AT_ONCE), query.split(PAIRS_AT_ONCE), strict=True)
    ]
    # Rounded, so that equal pictures get equal cosines wherever they lie.
    cosines = torch.cat(products).float()  # (C,)
    order = np.lexsort((index.id_hashes[rows].numpy(), -cosines.numpy(), query.numpy()))
    first = sizes.cumsum(0) - sizes  # (Q,) of each query in `order`
    best = torch.from_numpy(order)[first[:, None] + torch.arange(count)]  # (Q, count)
    return rows[best], cosines[best]
