"""What ranks a gallery's embeddings: exact search, faiss or a Milvus database, by one word or address."""

from typing import Protocol

from torch import Tensor

from .arguments import check_index, without_password
from .exact_index import ExactIndex
from .faiss_index import open_faiss_index, write_faiss_index
from .milvus_index import MilvusIndex, RowsOfDatabase
from .stored_gallery import StoredGallery

ROWS_COPIED = 65_536  # so many and fewer are searched exactly, by a copy of their embeddings
ONE_OF = 32  # images must pass a filter, or few of a database's best would


class Index(Protocol):
    """What all of them do."""

    def search(self, queries: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """For queries (Q, D), unit norm: rows (Q, count) and cosines (Q, count), best first, ties by hash."""
        ...


def open_index(index: str, stored: StoredGallery) -> Index:
    """The index over a gallery.

    Exact search compares all embeddings with their checksums first; the others do so shard by shard, when
    they first find rows of it.

    Raises:
        GalleryError: it has not been written yet, is damaged, or of another change than `stored`.
        ImportError: its library is missing; names the extra.
    """
    if check_index(index) == "exact":
        return ExactIndex(stored.embeddings, stored.id_hashes)
    unchecked = ExactIndex(stored.mapped_embeddings, stored.id_hashes)
    if index == "faiss":
        return open_faiss_index(stored, unchecked)
    database = MilvusIndex(index, stored, unchecked)
    database.load()
    return database


def index_of_rows(index: Index, rows: Tensor, images: int) -> Index | None:
    """What searches these rows of a gallery of so many images by its index; None: exact search does."""
    if isinstance(index, MilvusIndex) and len(rows) > ROWS_COPIED and ONE_OF * len(rows) > images:
        return RowsOfDatabase(index, rows)
    return None


def write_index(index: str, stored: StoredGallery, queries: Tensor | None = None) -> str:
    """Makes or renews what `open_index` opens, and says in a text what was done.

    Args:
        queries: embeddings (Q, D) of texts as they will be asked, on which a faiss index measures its recall.

    Raises:
        GalleryError: the gallery was changed since `stored` was opened, or the index cannot be written.
        ImportError: its library is missing; names the extra.
    """
    stored.check_unchanged()  # or it would take the place of a newer index
    exact = ExactIndex(stored.embeddings, stored.id_hashes)
    if check_index(index) == "exact":
        return "exact search needs no index"
    if index == "faiss":
        recall = write_faiss_index(stored, exact, queries=queries)
        sample = "noisy images" if queries is None else f"{len(queries)} texts"
        return f"faiss index of {len(stored)} images, recall@128 of {recall:.4f} measured on {sample}"
    database = MilvusIndex(index, stored, exact)
    database.synchronise()
    database.close()
    return f"{len(stored)} images are in the database at {without_password(index)}"
