"""An approximate index by faiss for galleries that are too large for exact search (the extra `index`).

Inverted lists of 8-bit codes: a query reads the lists whose centres are nearest to it. How many it takes for
the recall that is asked for depends on the embeddings, so it is measured when the index is built. What the
codes find is scored again with the gallery's own embeddings, so cosines and ties are those of exact search.
"""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.json_records import read_json
from ..data.whole_files import denial, file_checksum, replacing, write_json
from .exact_index import ExactIndex, rank_candidates
from .manifest import (
    FAISS_DESCRIPTION,
    FAISS_INDEX,
    GalleryError,
    builder_lock,
    explained_write_errors,
)
from .stored_gallery import StoredGallery, gather_rows

logger = logging.getLogger(__name__)

KIND = b"IwSq"  # faiss' name of inverted lists of scalar codes, at the beginning of their file
CANDIDATES = 2  # rows that are scored again for each one asked for
TRAINING_ROWS_PER_LIST = 64
CALIBRATION_COUNT = 128  # the recall is that of this many best rows
CALIBRATION_QUERIES = 128
# Cosines of calibration queries with the images that they were made from: texts lie apart from images.
CALIBRATION_COSINES = (0.5, 0.25)


class FaissIndex:
    """See [`ExactIndex`]; its search misses some of the best rows.

    Args:
        lists: an `IndexIVF` over the rows of `exact`, with its `nprobe` set.
        stored: the gallery whose mapped embeddings `exact` searches, to be checked when they are first read;
            `None`: they need no check.
    """

    def __init__(self, lists: Any, exact: ExactIndex, stored: StoredGallery | None = None):
        self.lists = lists
        self.exact = exact
        self.stored = stored

    @classmethod
    def train(
        cls, exact: ExactIndex, *, recall: float = 0.99, queries: Tensor | None = None, seed: int = 0
    ) -> tuple["FaissIndex", float]:
        """An index over the rows of `exact`, and the recall@128 measured when it was set.

        Args:
            recall: of exact search's best 128 rows, the least share to be found, on average of the queries.
            queries: (Q, D), unit norm, to measure with: the embeddings of texts as they will be asked.
                `None`: images of the gallery, made noisy, at two distances; the worse one counts.
        """
        faiss = import_faiss()
        rows, size = exact.starts[-1], exact.segments[0].shape[1]
        generator = np.random.default_rng(seed)
        lists = max(1, min(round(4 * rows**0.5), rows // 39))  # with fewer rows a list, faiss warns
        index = faiss.index_factory(size, f"IVF{lists},SQ8", faiss.METRIC_INNER_PRODUCT)
        sample = generator.permutation(rows)[: TRAINING_ROWS_PER_LIST * lists]
        index.train(gather_rows(exact.segments, exact.starts, torch.from_numpy(np.sort(sample))).numpy())
        for segment in exact.segments:
            index.add(segment.numpy())

        if queries is None:
            chosen = torch.from_numpy(generator.integers(0, rows, CALIBRATION_QUERIES))
            noise = torch.from_numpy(generator.standard_normal((len(chosen), size), dtype=np.float32))
            images = gather_rows(exact.segments, exact.starts, chosen)
            samples = [
                F.normalize(images + (1 / cosine**2 - 1) ** 0.5 * F.normalize(noise), dim=1)
                for cosine in CALIBRATION_COSINES
            ]
        else:
            samples = [queries]
        count = min(CALIBRATION_COUNT, rows)
        wanted = [exact.search(sample, count)[0] for sample in samples]
        made = cls(index, exact)
        # Half of what may be missing is kept for queries other than these.
        target = 1 - (1 - recall) / 2
        index.nprobe = 1
        while True:
            measured = min(map(made.recall, samples, wanted))
            if measured >= target or index.nprobe == lists:
                break
            index.nprobe = min(lists, max(index.nprobe + 1, index.nprobe * 5 // 4))
        logger.info("%d of %d lists for a recall@%d of %.4f", index.nprobe, lists, count, measured)
        return made, measured

    def search(self, queries: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """As `ExactIndex.search`: rows (Q, count) and cosines (Q, count)."""
        candidates = self._candidates(queries, count)
        few = torch.tensor([len(rows) < count for rows in candidates])  # their lists held too little
        rows = torch.empty(len(queries), count, dtype=torch.long)
        cosines = torch.empty(len(queries), count)
        if few.any():
            if self.stored is not None:
                self.stored.check_all_rows()
            rows[few], cosines[few] = self.exact.search(queries[few], count)
        if not few.all():
            enough = [found for found in candidates if len(found) >= count]
            if self.stored is not None:
                self.stored.check_rows(torch.cat(enough))
            rows[~few], cosines[~few] = rank_candidates(queries[~few], enough, count, self.exact)
        return rows, cosines

    def recall(self, queries: Tensor, wanted: Tensor) -> float:
        """The share of exact search's rows `wanted` (Q, K) that the lists alone find."""
        count = wanted.shape[1]
        hits = [
            torch.isin(best, found).double().mean().item()
            for best, found in zip(wanted, self._candidates(queries, count), strict=True)
        ]
        return sum(hits) / len(hits)

    def _candidates(self, queries: Tensor, count: int) -> list[Tensor]:
        """For each query the rows that its lists hold nearest: more than `count`, or all there are."""
        most = min(CANDIDATES * count, self.exact.starts[-1])
        _, found = self.lists.search(queries.float().numpy(), most)  # (Q, most), -1 where the lists ended
        return [rows[rows >= 0] for rows in torch.from_numpy(found)]


def write_faiss_index(stored: StoredGallery, exact: ExactIndex, **settings: Any) -> float:
    """Builds the index into the gallery's directory; `settings` as in [`FaissIndex.train`].

    Returns:
        the recall@128 that was measured.
    """
    faiss = import_faiss()
    index, recall = FaissIndex.train(exact, **settings)
    with builder_lock(stored.directory), explained_write_errors(stored.directory):
        with replacing(stored.directory / FAISS_INDEX, durable=True) as unfinished:
            unfinished.write_bytes(faiss.serialize_index(index.lists))
            description = {"state": stored.state, "blake2b": file_checksum(unfinished), "recall": recall}
        write_json(stored.directory / FAISS_DESCRIPTION, description, durable=True)
    return recall


def open_faiss_index(stored: StoredGallery, exact: ExactIndex) -> FaissIndex:
    """The index that [`write_faiss_index`] left in the gallery's directory.

    Raises:
        GalleryError: there is none, it is damaged, or of another change than `stored`.
    """
    faiss = import_faiss()
    path, problem = stored.directory / FAISS_INDEX, None
    try:
        description = read_json(stored.directory / FAISS_DESCRIPTION)
        state, checksum = description["state"], description["blake2b"]
        found = file_checksum(path)
    except FileNotFoundError:
        problem = f"the gallery {stored.directory} has no faiss index"
    except PermissionError as error:
        raise GalleryError(f"the gallery {denial(stored.directory)}") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem = f"{stored.directory / FAISS_DESCRIPTION} is damaged ({error!r})"
    else:
        if state != stored.state:
            problem = f"{path} is older than the gallery's last change"
        elif found != checksum:
            problem = f"{path} is damaged (its checksum differs)"
    if problem is not None:
        stored.check_unchanged()  # or a new index would not be this one's either
        raise GalleryError(f"{problem}: run `tpas gallery index {stored.directory} --index faiss`")
    renewed = f"run `tpas gallery index {stored.directory} --index faiss`"
    check_kind(path, stored, exact, renewed)
    lists = faiss.read_index(str(path))
    if lists.d != exact.segments[0].shape[1] or lists.ntotal != len(stored):
        raise GalleryError(
            f"{path} is of {lists.ntotal} embeddings of width {lists.d}, not the gallery's: {renewed}"
        )
    return FaissIndex(lists, exact, stored)


def check_kind(path: Path, stored: StoredGallery, exact: ExactIndex, way_out: str) -> None:
    """Raises GalleryError, before faiss reads it, for a file that cannot be what [`write_faiss_index`] left.

    What faiss itself makes of a file that was made to deceive it, nobody can promise.
    """
    width = exact.segments[0].shape[1]
    # Codes and ids of all rows, the lists' centres and, for a small gallery, what stands before them.
    largest = len(stored) * (width + 8) * 2 + len(stored) * width * 4 + 2**20
    with path.open("rb") as file:
        kind = file.read(4)
    if kind != KIND or path.stat().st_size > largest:
        raise GalleryError(f"{path} is no index as this package writes it: {way_out}")


def import_faiss() -> Any:
    """faiss, which only those who ask for this index need."""
    try:
        import faiss
    except ImportError as error:
        raise ImportError("a faiss index needs faiss: pip install -e '.[index]'") from error
    return faiss
