"""Exact search over embeddings: the best rows of each query by cosine, ties by the hash of the id.

One pass in fp32, block by block, keeps every row that may be among the best, given how far fp32 can be off;
those few are scored again in double. So the answer is that of a sort of all cosines in double precision.
"""

from collections.abc import Iterator, Sequence
from itertools import accumulate

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tpas.gallery.stored_gallery import gather_rows

BLOCK_ROWS = 4_096  # 4 MB of 256 dimensions, which stay in the cache between copy and product
QUERIES_AT_ONCE = 256
PAIRS_AT_ONCE = 2_048  # whose embeddings are held in double precision, in the cache


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
        results = [self._search(part.float(), count) for part in queries.split(QUERIES_AT_ONCE)]
        return torch.cat([rows for rows, _ in results]), torch.cat([cosines for _, cosines in results])

    def _search(self, queries: Tensor, count: int) -> tuple[Tensor, Tensor]:
        # A sum of D products of unit vectors is off by at most D * 2^-24, in the best one as in any other;
        # the rest is for the threshold's own rounding, norms of nearly 1 and the rounding of the result.
        margin = 2.1 * (queries.shape[1] + 8) * 2.0**-24
        product = BlockProduct(queries)
        threshold = torch.zeros(len(queries))  # the fp32 cosine that a row of each query must reach
        found = _Candidates(len(queries), count)
        start = 0
        for block in self._blocks():
            excess = product(block, threshold)  # (n, Q)
            if start == 0:
                # The first block has no threshold yet; where it is too small, neither have the others.
                kept = min(count, len(block))
                threshold = excess.topk(kept, dim=0).values[-1] - margin if kept == count else threshold - 2
                excess -= threshold
            rows, query = _not_negative(excess)
            found.add(query, rows + start, excess[rows, query] + threshold[query])
            if found.crowded:
                threshold = torch.maximum(threshold, found.keep_best(margin))
            start += len(block)
        found.keep_best(margin)
        return rank_candidates(queries, found.rows(), count, self)

    def _blocks(self) -> Iterator[Tensor]:
        """All rows in order, (n, D) with n up to BLOCK_ROWS, each copied into the same memory.

        The copy reads at full bandwidth, and the product then finds its rows in the cache: some 15 % faster
        than a product that reads from memory itself.
        """
        block = torch.empty(BLOCK_ROWS, self.segments[0].shape[1])
        parts, filled = [], 0
        for segment in self.segments:
            taken = 0
            while taken < len(segment):
                part = segment[taken : taken + BLOCK_ROWS - filled]
                parts.append(part)
                taken, filled = taken + len(part), filled + len(part)
                if filled == BLOCK_ROWS:
                    yield torch.cat(parts, out=block)
                    parts, filled = [], 0
        if parts:
            yield torch.cat(parts)


class BlockProduct:
    """Cosines of a block with the queries, less each query's threshold.

    On oneDNN where torch has it, with the packing that torch.compile uses for linear layers: half as fast
    again as torch's own fp32 product on the machine it was measured on.
    """

    def __init__(self, queries: Tensor):
        self.queries = queries  # (Q, D)
        self.packed = None
        if torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled:
            self.packed = torch.ops.mkldnn._reorder_linear_weight(queries, BLOCK_ROWS)

    def __call__(self, block: Tensor, threshold: Tensor) -> Tensor:
        """(n, D), (Q,) to (n, Q)."""
        if self.packed is None:
            return F.linear(block, self.queries, -threshold)
        return torch.ops.mkldnn._linear_pointwise(block, self.packed, -threshold, "none", [], "")


def _not_negative(values: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns of the few elements >= 0 of (n, Q)."""
    mask = (values >= 0).view(-1)
    if mask.numel() % 8 == 0:  # eight at once: most are all below
        eights = mask.view(torch.int64).nonzero()[:, 0]
        group, place = mask.view(-1, 8)[eights].nonzero(as_tuple=True)
        places = eights[group] * 8 + place
    else:
        places = mask.nonzero()[:, 0]
    return places // values.shape[1], places % values.shape[1]


class _Candidates:
    """Rows that may be among the best `count` of each of Q queries."""

    def __init__(self, queries: int, count: int):
        self.queries = queries
        self.count = count
        self.entries: list[tuple[Tensor, Tensor, Tensor]] = []
        self.size = 0
        self.limit = 4 * queries * count

    def add(self, query: Tensor, rows: Tensor, cosines: Tensor) -> None:
        self.entries.append((query, rows, cosines))
        self.size += len(rows)

    @property
    def crowded(self) -> bool:
        return self.size > self.limit

    def keep_best(self, margin: float) -> Tensor:
        """Forgets what cannot be among the best; returns the cosine (Q,) that others must reach."""
        query, rows, cosines = (torch.cat(parts) for parts in zip(*self.entries, strict=True))
        order = cosines.argsort(descending=True)
        order = order[query[order].argsort(stable=True)]  # by query, then best first
        query, rows, cosines = query[order], rows[order], cosines[order]
        sizes = query.bincount(minlength=self.queries)
        last = sizes.cumsum(0) - sizes + self.count - 1  # (Q,) place of each query's last one in the best
        threshold = torch.full((self.queries,), -torch.inf)
        enough = sizes >= self.count
        threshold[enough] = cosines[last[enough]] - margin
        kept = cosines >= threshold[query]
        self.entries = [(query[kept], rows[kept], cosines[kept])]
        self.size = int(kept.sum())
        self.limit = max(4 * self.queries * self.count, 2 * self.size)  # ties may be many
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
