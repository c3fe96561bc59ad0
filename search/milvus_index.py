"""A gallery's embeddings in a Milvus vector database (the extra `milvus`), for more than one machine holds.

Milvus finds candidates by its own index; the gallery's embeddings on disk score them again, so cosines and
ties are those of exact search. Embeddings go by the hash of the image's id, which is the primary key.
"""

import logging
import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from .arguments import without_password
from .exact_index import ExactIndex, rank_candidates
from .manifest import GalleryError
from .stored_gallery import StoredGallery

CANDIDATES = 2  # rows that are scored again for each one asked for
ROWS_AT_ONCE = 4_000  # some 4 MB of embeddings; a message has 64 MB at most
KEYS_AT_ONCE = 16_384  # read back; a server makes each page wait for its clock, some 0.4 s
QUERIES_AT_ONCE = 16  # which a busy server answers in time
SECONDS_TO_SEARCH = 20  # then a database that is gone is given up
SECONDS_TO_WRITE = 120  # time enough for one to come back
NOT_LOADED = 101  # the code of Milvus' error
LONGEST_ID = 65_535  # bytes, the most of a VARCHAR


class MilvusIndex:
    """See [`ExactIndex`]; how many of the best rows its search misses depends on the database's settings.

    A collection holds one gallery. Its alias says as of which change, so that an old one is not searched. One
    that was loaded before a change goes on: images that its gallery does not know are left out.

    Args:
        address: "http://host:19530", with a login as "http://user:password@host:19530"; or a file "*.db" for
            the embedded milvus-lite.
        exact: over the mapped embeddings of `stored`, which are checked when they are first read.

    Raises:
        GalleryError: the database cannot be reached; so do the methods.
    """

    most_candidates = 16_384  # Milvus's own limit of a search

    def __init__(self, address: str, stored: StoredGallery, exact: ExactIndex):
        self.address = address
        self.shown_address = without_password(address)
        self.stored = stored
        self.exact = exact
        self.collection = f"tpas_{stored.manifest['name']}"
        self.state_alias = f"{self.collection}_{stored.state}"
        pymilvus = import_pymilvus()
        with self._explained_errors():
            try:
                self.client = pymilvus.MilvusClient(uri=address)
            except ValueError:  # which may cite the password, as where it holds a slash
                raise GalleryError(
                    f"{self.shown_address} is no address of a database; in a password, / is written as %2F"
                ) from None

    def close(self) -> None:
        self.client.close()

    def load(self) -> None:
        """Readies the database for searching.

        Raises:
            GalleryError: it holds nothing of the gallery, or its images before or after another change.
        """
        with self._explained_errors():
            if not self.client.has_collection(self.collection):
                raise self._lacking(f"does not hold the gallery {self.stored.directory}")
            if self.state_alias not in self._aliases():
                raise self._lacking(f"holds the gallery {self.stored.directory} as of another change")
            self.client.load_collection(self.collection)
            # Waits until the database shows all that was written, so that no search has to.
            self.client.query(self.collection, filter="", output_fields=["count(*)"])

    def synchronise(self) -> None:
        """Makes the database hold the gallery's embeddings: adds what it lacks, removes what is gone."""
        with self._explained_errors():
            there = self.client.has_collection(self.collection)
            for alias in self._aliases() if there else ():
                self.client.drop_alias(alias)
            if there and not self.client.list_indexes(self.collection):  # who made it was killed over it
                self.client.drop_collection(self.collection)
                there = False
            if not there:
                self._create_collection()
            self.client.load_collection(self.collection)
            known = dict(self._checksums())
            keys = self.stored.id_hashes.tolist()
            ids = self.stored.ids()
            embeddings = (embedding for segment in self.stored.embeddings for embedding in segment)
            rows: list[dict[str, Any]] = []
            for key, name, embedding in zip(keys, ids, embeddings, strict=True):
                checksum = zlib.crc32(embedding.numpy().data)
                if known.pop(key, None) != checksum:  # new, or deleted and appended as another image
                    row = {"key": key, "id": name, "checksum": checksum, "embedding": embedding.numpy()}
                    rows.append(row)
                if len(rows) == ROWS_AT_ONCE:
                    self.client.upsert(self.collection, rows, timeout=SECONDS_TO_WRITE)
                    rows = []
            if rows:
                self.client.upsert(self.collection, rows, timeout=SECONDS_TO_WRITE)
            gone = sorted(known)
            for start in range(0, len(gone), ROWS_AT_ONCE):
                self.client.delete(self.collection, ids=gone[start : start + ROWS_AT_ONCE])
            self.client.flush(self.collection)  # what is left in memory is indexed as well
            self.client.create_alias(self.collection, self.state_alias)

    def search(self, queries: Tensor, count: int, among: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As `ExactIndex.search`: rows (Q, count) and cosines (Q, count).

        Args:
            among: (n,) ascending, the rows to look for, at least `count`; `None`: all. Where the database's
                best hold too few of them, all of them are scored.
        """
        if count > self.most_candidates:
            raise GalleryError(f"a Milvus search finds at most {self.most_candidates} images, not {count}")
        candidates = [torch.empty(0, dtype=torch.long)] * len(queries)
        waiting = list(range(len(queries)))  # for more of the images that the gallery knows
        share = 1 if among is None else len(among) / len(self.stored)
        limit = min(math.ceil(CANDIDATES * count / share), len(self.stored), self.most_candidates)
        while waiting:
            found = self._nearest(queries[waiting], limit)
            for query, keys in zip(waiting, found, strict=True):
                candidates[query] = self._known_rows(keys, among)
                if len(candidates[query]) < count and (limit == self.most_candidates or len(keys) < limit):
                    if among is None:
                        raise self._lacking(f"found fewer than {count} images")
                    candidates[query] = among
            waiting = [query for query in waiting if len(candidates[query]) < count]
            limit = min(2 * limit, self.most_candidates)
        self.stored.check_rows(torch.cat(candidates))
        return rank_candidates(queries, candidates, count, self.exact)

    def _nearest(self, queries: Tensor, limit: int) -> list[list[int]]:
        """The keys that the database finds for each query (Q, D)."""
        if len(queries) > QUERIES_AT_ONCE:
            return [keys for own in queries.split(QUERIES_AT_ONCE) for keys in self._nearest(own, limit)]
        asked = {"data": list(queries.float().numpy()), "limit": limit, "timeout": SECONDS_TO_SEARCH}
        asked |= {"anns_field": "embedding", "search_params": {"metric_type": "IP"}}
        asked["consistency_level"] = "Bounded"  # "Strong" makes each search wait 0.4 s; see `load`
        with self._explained_errors():
            try:
                answers = self.client.search(self.collection, **asked)
            except import_pymilvus().MilvusException as error:
                if error.code != NOT_LOADED:
                    raise
                # The server was started again meanwhile. Of many images this takes longer, and goes on there.
                self.client.load_collection(self.collection, timeout=SECONDS_TO_SEARCH)
                answers = self.client.search(self.collection, **asked)
        # The primary key by its attribute: in the mapping a server names it "id", milvus-lite "key".
        return [[hit.id for hit in answer] for answer in answers]

    def _known_rows(self, keys: list[int], among: Tensor | None) -> Tensor:
        """The rows of the keys, without those that the gallery lacks: images that were appended since."""
        rows = _found_in(*self.stored.sorted_hashes, torch.tensor(keys, dtype=torch.long))
        return rows if among is None else _found_in(among, among, rows)

    def _create_collection(self) -> None:
        types = import_pymilvus().DataType
        schema = self.client.create_schema(auto_id=False)
        schema.add_field("key", types.INT64, is_primary=True)
        schema.add_field("id", types.VARCHAR, max_length=LONGEST_ID)
        schema.add_field("checksum", types.INT64)
        schema.add_field("embedding", types.FLOAT_VECTOR, dim=self.exact.segments[0].shape[1])
        index = self.client.prepare_index_params()
        index.add_index("embedding", index_type="AUTOINDEX", metric_type="IP")
        self.client.create_collection(
            self.collection, schema=schema, index_params=index, consistency_level="Strong"
        )

    def _aliases(self) -> list[str]:
        return self.client.list_aliases(self.collection)["aliases"]

    def _checksums(self) -> Iterator[tuple[int, int]]:
        """Key and checksum of every embedding in the database."""
        pages = self.client.query_iterator(
            self.collection, batch_size=KEYS_AT_ONCE, filter="", output_fields=["key", "checksum"]
        )
        while page := pages.next():
            for row in page:
                yield row["key"], row["checksum"]
        pages.close()

    @contextmanager
    def _explained_errors(self) -> Iterator[None]:
        pymilvus = import_pymilvus()
        import grpc

        try:
            yield
        except pymilvus.MilvusException as error:
            reason = str(error).replace(self.address, self.shown_address)
            raise GalleryError(f"the Milvus database at {self.shown_address} refused: {reason}") from None
        except grpc.RpcError as error:  # pymilvus lets through that the time is over
            reason = str(error.code()) if isinstance(error, grpc.Call) else repr(error)
            raise GalleryError(
                f"the Milvus database at {self.shown_address} did not answer in time ({reason}): it is gone, "
                "or too busy; ask again"
            ) from None

    def _lacking(self, problem: str) -> GalleryError:
        self.stored.check_unchanged()  # or a renewed database would not be this one's either
        return GalleryError(
            f"the database at {self.shown_address} {problem}: run "
            f"`tpas gallery index {self.stored.directory} --index {self.shown_address}`"
        )


class RowsOfDatabase:
    """Searches some rows of a gallery through its database; a row's place in `rows` stands for it."""

    def __init__(self, database: MilvusIndex, rows: Tensor):
        self.database = database
        self.rows, self.places = rows.sort()

    def search(self, queries: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """As `MilvusIndex.search`."""
        rows, cosines = self.database.search(queries, count, self.rows)
        return self.places[torch.searchsorted(self.rows, rows)], cosines


def _found_in(ascending: Tensor, values: Tensor, wanted: Tensor) -> Tensor:
    """The values (n,) that stand where `ascending` (n,) has what is wanted, without what it has not."""
    places = torch.searchsorted(ascending, wanted).clamp(max=len(ascending) - 1)
    return values[places[ascending[places] == wanted]]


def import_pymilvus() -> Any:
    """pymilvus, which only those who ask for this index need."""
    try:
        import pymilvus
    except ImportError as error:
        raise ImportError("a Milvus database needs pymilvus: pip install -e '.[milvus]'") from error
    logging.getLogger("pymilvus").setLevel(logging.CRITICAL)  # what it logs with a trace is raised here
    return pymilvus
