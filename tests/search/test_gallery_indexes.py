"""What ranks a gallery's embeddings, against a sort of all cosines in double precision."""

import hashlib
import os
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from unittest.mock import MagicMock

import grpc
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tpas.commands.gallery import main as manage_gallery
from tpas.search import exact_index
from tpas.search.exact_index import (
    PAIRS_AT_ONCE,
    ROUNDED_AT_ONCE_FROM,
    ROUNDED_FROM,
    ExactIndex,
    cosines_by_bf16,
)
from tpas.search.faiss_index import FaissIndex
from tpas.search.indexes import index_of_rows, open_index, write_index
from tpas.search.manifest import (
    EMBEDDINGS,
    GalleryError,
    GallerySettings,
    new_manifest,
    read_manifest,
)
from tpas.search.milvus_index import MilvusIndex, RowsOfDatabase
from tpas.search.ranking import rank_by_embeddings
from tpas.search.shards import ShardRow, id_hash, list_shards, shard_name, write_shard
from tpas.search.stored_gallery import StoredGallery, delete_images

SETTINGS = GallerySettings("0" * 16, None, None)


def recall_of(found: Tensor, wanted: Tensor) -> float:
    """The share of the rows `wanted` (Q, K) that are in `found` (Q, K)."""
    pairs = zip(found.tolist(), wanted.tolist(), strict=True)
    return sum(len({*own} & {*best}) for own, best in pairs) / wanted.numel()


def unit(*shape: int) -> Tensor:
    return F.normalize(torch.randn(*shape), dim=-1)


def clustered(rows: int, size: int, clusters: int = 50, seed: int = 1) -> Tensor:
    """Unit vectors around a few centres, as images of a few scenes and actions are."""
    generator = torch.Generator().manual_seed(seed)
    centres = F.normalize(torch.randn(clusters, size, generator=generator), dim=1)
    chosen = torch.randint(clusters, (rows,), generator=generator)
    around = F.normalize(torch.randn(rows, size, generator=generator))
    return F.normalize(centres[chosen] + 0.7 * around, dim=1)


def write_gallery(directory, embeddings: Tensor, shard_size: int = 100, prefix: str = "image"):
    """A gallery of embeddings alone."""
    (directory / "shards").mkdir(parents=True, exist_ok=True)
    manifest = read_manifest(directory) or new_manifest(SETTINGS)
    names = []
    for number, part in enumerate(embeddings.split(shard_size)):
        ids = [f"{prefix} {number * shard_size + row}" for row in range(len(part))]
        names.append(shard_name(manifest["next_shard"] + number, ids))
        rows = [ShardRow(*named, None, None, None, None) for named in zip(ids, part, strict=True)]
        write_shard(directory, names[-1], SETTINGS, rows, {})
    list_shards(directory, manifest, names)
    return StoredGallery(directory)


# Exact search


def index_of(images: Tensor, sizes: int | list[int], **settings) -> ExactIndex:
    """Of images named by their row, in segments of these sizes, and asked so often that rounding them pays.

    A gallery of some hundred rows is looked through in several steps.
    """
    hashes = torch.tensor([id_hash(str(row)) for row in range(len(images))])
    index = ExactIndex(images.split(sizes), hashes, **{"span_rows": 200} | settings)
    index.search(unit(ROUNDED_FROM + 1, images.shape[1]), 1)
    return index


def best_in_double(texts: Tensor, images: Tensor, count: int) -> list[Tensor]:
    """The rows and cosines (Q, count) that the index of these images should find."""
    ranked = rank_by_embeddings(texts, images, [str(row) for row in range(len(images))])
    return [values[:, :count] for values in ranked]


@pytest.mark.parametrize("in_bf16", [False, True])
@pytest.mark.parametrize(("queries", "count"), [(1, 1), (5, 3), (5, 17), (32, 128), (3, 900)])
def test_exact_search_is_a_sort_in_double(queries, count, in_bf16):
    images, texts = clustered(900, 16), unit(queries, 16)
    images[500:700] = images[:200].clone()  # every one of these twice
    expected = best_in_double(texts, images, count)
    for sizes in ([900], [100] * 9, [1, 200, 63, 64, 65, 507]):
        index = index_of(images, sizes, in_bf16=in_bf16)
        assert all(map(torch.equal, index.search(texts, count), expected))


@pytest.mark.parametrize("sizes", [[900], [100] * 9])
def test_exact_search_where_most_spans_hold_nothing_of_interest(sizes):
    texts = unit(2, 16)
    images = F.normalize(unit(900, 16) - 3 * texts.sum(dim=0), dim=1)
    images[:30] = F.normalize(texts[0] + unit(30, 16), dim=1)
    found, _ = index_of(images, sizes).search(texts, 5)
    assert torch.equal(found, best_in_double(texts, images, 5)[0])


@pytest.mark.parametrize("are_kept", [True, False])
def test_rounded_rows_keep_every_pair_that_reaches_a_cosine_and_few_others(are_kept):
    if not exact_index._multiplies_bf16_faster():
        pytest.skip("products of bf16 need a CPU with instructions for them")
    images, texts = unit(5000, 64), unit(7, 64)
    true = texts.double() @ images.double().t()
    asked = true.topk(100).values[:, -1].float() - 1e-5
    parts = images.split(700)
    span = exact_index.RoundedRows(parts).cosines(texts) if are_kept else cosines_by_bf16(parts, texts)
    query, rows = exact_index.reaching(span.computed, span.computed_of(asked))
    found = set(zip(query.tolist(), rows.tolist(), strict=True))
    assert len(found) == len(rows) < 1.5 * 700
    assert found >= {tuple(pair) for pair in (true >= asked[:, None]).nonzero().tolist()}
    computed = span.computed[query, rows]
    assert (span.lower_bounds(computed, query) <= true[query, rows]).all()
    assert (span.upper_bounds(computed, query) >= true[query, rows]).all()


def test_rows_beyond_what_is_kept_in_memory_are_searched_as_well():
    images, texts = clustered(900, 16), unit(25, 16)
    index = ExactIndex(
        images.split(100), torch.arange(900), span_rows=192, rounded_bytes=2 * 2 * 192 * 16, in_bf16=True
    )
    for kept in ([], [], [0, 1], [0, 1]):  # it is not known before the 65th query that there will be so many
        assert torch.equal(index.search(texts, 17)[0], best_in_double(texts, images, 17)[0])
        assert sorted(index.rounded) == kept


def test_exact_search_where_all_images_are_equal():
    images = unit(1, 16).expand(500, 16).contiguous()
    index = index_of(images, 500)
    rows, cosines = index.search(unit(3, 16), 20)
    assert torch.equal(rows, index.id_hashes.argsort()[:20].expand(3, 20))
    assert torch.equal(cosines, cosines[:, :1].expand(3, 20))


def embeddings_made_to_mislead(kind: str, texts: Tensor, rows: int) -> Tensor:
    """Vectors of unit norm at most whose cosines with the texts (Q, D) are hard to tell apart, or to compute.

    The first text may be changed for it.
    """
    size = texts.shape[1]
    if kind == "steps of one bit":  # about a cosine of 0.7, thousands within what bf16 and fp32 round away
        images = F.normalize(texts[:1] + unit(1, size), dim=1).repeat(rows, 1)
        bits = images.view(torch.int32)
        bits += torch.randint(-2, 3, bits.shape, dtype=torch.int32)
    elif kind == "rounding against the best":
        # Every coordinate of the text and of the best rows is rounded to bf16 down as far as can be, of the
        # others up.
        is_best = (torch.arange(rows) % 40 == 0)[:, None]
        images = texts[:1] * torch.where(is_best, 0.997, 0.97)
        bits = images.view(torch.int32)
        bits.bitwise_and_(-0x10000)
        bits += torch.where(is_best, 0x7FFF, 0x8001).int() - torch.randint(64, bits.shape).int()
        texts[0] = images[0]
    elif kind == "subnormal":
        images = 1e-39 * torch.randn(rows, size)
        images[torch.arange(rows), torch.randint(size, (rows,))] = 1.0
        images[: rows // 2] *= -1
    elif kind == "zeros":
        images = unit(rows, size)
        images[torch.rand(rows) < 0.9] = 0.0  # all tie
    return images[torch.randperm(rows)]


@pytest.mark.parametrize("in_bf16", [False, True])
@pytest.mark.parametrize("kind", ["steps of one bit", "rounding against the best", "subnormal", "zeros"])
def test_exact_search_where_cosines_are_made_to_mislead(kind, in_bf16):
    texts = unit(6, 64)
    texts[1] = texts[1].to(torch.bfloat16).float()  # nothing of it is lost
    images = embeddings_made_to_mislead(kind, texts, 6000)
    index = index_of(images, 700, span_rows=1024, in_bf16=in_bf16)
    for asked, count in ((texts, 1), (texts[:1], 1), (texts[:1], 128), (texts, 2000)):
        assert all(map(torch.equal, index.search(asked, count), best_in_double(asked, images, count)))
    new = ExactIndex(index.segments, index.id_hashes, span_rows=1024, in_bf16=in_bf16)
    several = texts.repeat(2, 1)  # for which rows are rounded before any are kept
    assert ROUNDED_AT_ONCE_FROM <= len(several) <= ROUNDED_FROM
    assert all(map(torch.equal, new.search(several, 128), best_in_double(several, images, 128)))
    assert not new.rounded


def test_exact_search_under_autocast():
    texts = unit(5, 16)
    images = embeddings_made_to_mislead("rounding against the best", texts, 900)
    index = index_of(images, 100, in_bf16=False)
    with torch.autocast("cpu"):
        rows, _ = index.search(texts, 17)
    assert torch.equal(rows, best_in_double(texts, images, 17)[0])


class LargestTensor(TorchDispatchMode):
    """Notes how many elements the largest tensor has that is made."""

    elements = 0

    def __torch_dispatch__(self, function, types, arguments=(), settings=None):
        made = function(*arguments, **settings or {})
        if isinstance(made, Tensor):
            self.elements = max(self.elements, made.numel())
        return made


def test_many_rows_are_gathered_in_chunks():
    images, texts = clustered(900, 16), unit(80, 16)
    index, largest = index_of(images, 100), LargestTensor()
    with largest:
        found, _ = index.search(texts, 900)
    assert torch.equal(found, best_in_double(texts, images, 900)[0])
    assert largest.elements == PAIRS_AT_ONCE * 16 < 80 * 900 * 16


def test_exact_search_where_torch_was_told_to_round_products_in_fp32(monkeypatch):
    """As a CPU with AMX does in "medium" precision, in every product."""
    linear = F.linear
    monkeypatch.setattr(F, "linear", lambda rows, *more: linear(rows.bfloat16().float(), *more))
    texts = unit(5, 16).bfloat16().float()
    images = embeddings_made_to_mislead("rounding against the best", texts, 900)
    index, (expected, _) = index_of(images, 100, in_bf16=False), best_in_double(texts, images, 17)
    assert not torch.equal(index.search(texts, 17)[0], expected)  # unless it is told as well
    torch.set_float32_matmul_precision("medium")
    try:
        assert torch.equal(index.search(texts, 17)[0], expected)
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("number", [torch.nan, torch.inf])
def test_a_query_that_is_not_finite_is_refused(number):
    texts = unit(3, 8)
    texts[1, 5] = number
    with pytest.raises(ValueError, match="the embedding of query 1 is not finite"):
        ExactIndex([unit(10, 8)], torch.arange(10)).search(texts, 2)


@pytest.mark.parametrize("count", [0, 11])
def test_more_rows_than_there_are_are_refused(count):
    with pytest.raises(ValueError, match=f"between 1 and 10 rows can be found, {count} were asked for"):
        ExactIndex([unit(10, 8)], torch.arange(10)).search(unit(1, 8), count)


def test_hashes_order_as_the_digests_do():
    ids = [f"image {number}" for number in range(300)]
    by_digest = sorted(ids, key=lambda name: hashlib.blake2b(name.encode()).digest())
    assert sorted(ids, key=id_hash) == by_digest
    assert all(-(2**63) <= id_hash(name) < 2**63 for name in ids)


# faiss


@pytest.mark.parametrize("kind", ["clustered", "random"])
def test_faiss_reaches_the_recall_that_it_was_set_for(kind):
    images = clustered(6000, 32) if kind == "clustered" else unit(6000, 32)
    exact = ExactIndex(images.split(500), torch.randperm(6000))
    index, measured = FaissIndex.train(exact)
    assert measured >= 0.99
    # Queries that it has not seen, further from the images than its own.
    texts = F.normalize(images[torch.randint(6000, (100,))] + 2 * unit(100, 32), dim=1)
    rows, cosines = index.search(texts, 128)
    wanted, wanted_cosines = exact.search(texts, 128)
    assert recall_of(rows, wanted) >= 0.99
    assert index.recall(texts, wanted) >= recall_of(rows, wanted)
    if kind == "clustered":
        assert index.lists.nprobe < index.lists.nlist / 2  # it did not get there by reading everything
    # What is found is scored and ordered as by exact search.
    same = rows == wanted
    assert torch.equal(cosines[same], wanted_cosines[same])
    assert torch.equal(cosines, cosines.sort(dim=1, descending=True).values)


def test_faiss_reads_all_where_its_lists_hold_too_little():
    exact = ExactIndex([clustered(500, 16)], torch.arange(500))
    index, _ = FaissIndex.train(exact)
    index.lists.nprobe = 1
    texts = unit(4, 16)
    wanted, _ = exact.search(texts, 400)
    assert torch.equal(index.search(texts, 400)[0], wanted)
    assert index.recall(texts, wanted) < 0.5  # which the lists alone do not find


def test_a_faiss_index_on_disk(tmp_path, capsys):
    images = clustered(1000, 16)
    stored = write_gallery(tmp_path / "gallery", images)
    with pytest.raises(GalleryError, match="has no faiss index: run `tpas gallery index"):
        open_index("faiss", stored)
    manage_gallery(["index", str(stored.directory), "--index", "faiss"])
    assert "recall@128 of" in capsys.readouterr().out
    texts = F.normalize(images[:50] + unit(50, 16), dim=1)
    rows, _ = open_index("faiss", stored).search(texts, 128)
    assert recall_of(rows, open_index("exact", stored).search(texts, 128)[0]) >= 0.99

    file = stored.directory / "faiss.index"
    content = file.read_bytes()
    file.write_bytes(content[:-1] + b"x")
    with pytest.raises(GalleryError, match="faiss.index is damaged"):
        open_index("faiss", stored)
    file.write_bytes(content)
    open_index("faiss", stored)
    delete_images(stored.directory, ["image 7"])
    assert not file.exists()  # it held what was computed from the image
    with pytest.raises(GalleryError, match="has no faiss index"):
        open_index("faiss", StoredGallery(stored.directory))


@contextmanager
def damaged(stored: StoredGallery, numbers: Iterable[int]) -> Iterator[None]:
    """Meanwhile a bit of an embedding in each of these shards is changed, so that a check of them fails."""
    whole = {}
    for number in numbers:
        path = stored.directory / "shards" / stored.shards[number]["name"] / EMBEDDINGS
        whole[path] = path.read_bytes()
        content = bytearray(whole[path])
        content[content.index(stored.mapped_embeddings[number][3].numpy().tobytes())] ^= 1
        path.write_bytes(content)
    yield
    for path, content in whole.items():
        path.write_bytes(content)


def rows_near(images: Tensor, shard: int) -> Tensor:
    """A query whose best rows are those of the shard."""
    return F.normalize(images[100 * shard : 100 * (shard + 1)].mean(dim=0, keepdim=True), dim=1)


def shards_apart(shards: int, size: int) -> Tensor:
    """Embeddings (100 * shards, size) of which each shard's 100 are near to each other, and to no others'."""
    centres = torch.linalg.qr(torch.randn(size, shards))[0].t()
    return F.normalize(centres.repeat_interleave(100, dim=0) + 0.3 * unit(100 * shards, size), dim=1)


def test_faiss_checks_the_shards_that_it_finds_rows_of(tmp_path):
    images = shards_apart(8, 16)
    write_index("faiss", write_gallery(tmp_path / "gallery", images))
    stored = StoredGallery(tmp_path / "gallery")
    with damaged(stored, {*range(8)} - {5}):
        index = open_index("faiss", stored)
        index.search(rows_near(images, 5), 20)
        with pytest.raises(GalleryError, match=f"{stored.shards[2]['name']}/{EMBEDDINGS} is damaged"):
            index.search(rows_near(images, 2), 20)
        index.lists.nprobe = 1
        with pytest.raises(GalleryError, match=f"{stored.shards[0]['name']}/{EMBEDDINGS} is damaged"):
            index.search(rows_near(images, 5), 700)  # for which all rows are read
    with damaged(stored, [5]):
        index.search(rows_near(images, 5), 20)  # whose shard was checked
        with pytest.raises(GalleryError, match=f"{stored.shards[5]['name']}/{EMBEDDINGS} is damaged"):
            open_index("faiss", StoredGallery(stored.directory)).search(rows_near(images, 5), 20)


def test_one_image_is_deleted_without_reading_all_others(tmp_path):
    stored = write_gallery(tmp_path / "gallery", shards_apart(5, 16))
    embeddings = stored.mapped_embeddings[3].clone()
    with (
        damaged(stored, [3]),
        pytest.raises(GalleryError, match=f"{stored.shards[3]['name']}/{EMBEDDINGS} is damaged"),
    ):
        delete_images(stored.directory, ["image 307"])
    with damaged(stored, [0, 1, 2, 4]):
        delete_images(stored.directory, ["image 307"])
    stored = StoredGallery(stored.directory)
    assert torch.equal(stored.mapped_embeddings[3], torch.cat([embeddings[:7], embeddings[8:]]))


def test_a_faiss_index_over_another_change_is_told_from_a_gallery_to_be_opened_again(tmp_path):
    images = clustered(300, 16)
    before = write_gallery(tmp_path / "gallery", images)
    write_index("faiss", before)
    after = write_gallery(tmp_path / "gallery", images[:10], prefix="other")
    with pytest.raises(GalleryError, match="faiss.index is older than .* change: run `tpas gallery index"):
        open_index("faiss", after)
    write_index("faiss", after)
    for work in (open_index, write_index):
        with pytest.raises(GalleryError, match="was changed since it was opened: open it again"):
            work("faiss", before)
    open_index("faiss", after)
    delete_images(after.directory, ["other 3"])
    with pytest.raises(GalleryError, match="was changed since it was opened: open it again"):
        open_index("faiss", after)


# Milvus, in its embedded form and, where TPAS_MILVUS is the address of one, on a server


@pytest.fixture(params=["embedded", "server"])
def database(request, tmp_path) -> str:
    """The address of a database that does not hold the test's gallery yet."""
    if request.param == "embedded":
        pytest.importorskip("milvus_lite")
        return str(tmp_path / "milvus.db")
    if "TPAS_MILVUS" not in os.environ:
        pytest.skip("TPAS_MILVUS names no Milvus server")
    return os.environ["TPAS_MILVUS"]


@pytest.mark.filterwarnings("ignore:Deprecated call to `pkg_resources:DeprecationWarning")
def test_milvus_answers_as_exact_search(tmp_path, database):
    images, texts = clustered(700, 16), unit(6, 16)
    stored = write_gallery(tmp_path / "gallery", images)
    with pytest.raises(GalleryError, match="does not hold the gallery .*run `tpas gallery index"):
        open_index(database, stored)
    assert "700 images are in the database" in write_index(database, stored)

    def answers_as_exact(gallery):
        index = open_index(database, gallery)
        found = index.search(texts, 20)
        index.close()
        assert all(map(torch.equal, found, open_index("exact", gallery).search(texts, 20)))

    answers_as_exact(stored)
    delete_images(stored.directory, [f"image {row}" for row in range(90, 130)])
    changed = write_gallery(stored.directory, unit(40, 16), prefix="other")  # as many as before
    with pytest.raises(GalleryError, match="holds the gallery .* as of another change"):
        open_index(database, changed)
    write_index(database, changed)
    answers_as_exact(changed)


@pytest.mark.filterwarnings("ignore:Deprecated call to `pkg_resources:DeprecationWarning")
def test_milvus_goes_on_for_those_who_opened_the_gallery_before(tmp_path, database):
    images = shards_apart(7, 16)
    before = write_gallery(tmp_path / "gallery", images)
    write_index(database, before)
    before = StoredGallery(before.directory)
    reader = open_index(database, before)
    # Of many more, each nearer to the query than all that were there; to the other query none is near.
    query, other = rows_near(images, 3), rows_near(images, 5)
    nearer = F.normalize(query + 0.01 * unit(300, 16), dim=1)
    after = write_gallery(tmp_path / "gallery", nearer, prefix="other")
    write_index(database, after)
    queries = torch.cat([other, query])
    for number in (3, 5):
        with damaged(before, [number]), pytest.raises(GalleryError, match="is damaged"):
            reader.search(queries, 20)
    with damaged(before, {*range(7)} - {3, 5}):  # it reads no others
        found = reader.search(queries, 20)
    assert all(map(torch.equal, found, open_index("exact", before).search(queries, 20)))
    with pytest.raises(GalleryError, match="was changed since it was opened: open it again"):
        open_index(database, before)
    delete_images(after.directory, [f"image {row}" for row in range(690)])
    write_index(database, StoredGallery(after.directory))
    with pytest.raises(GalleryError, match="was changed since it was opened: open it again"):
        reader.search(queries, 20)
    reader.close()


@pytest.mark.filterwarnings("ignore:Deprecated call to `pkg_resources:DeprecationWarning")
def test_milvus_finds_among_some_rows_also_after_its_collection_was_unloaded(tmp_path, database):
    stored = write_gallery(tmp_path / "gallery", clustered(700, 16))
    write_index(database, stored)
    index = open_index(database, stored)
    index.client.release_collection(index.collection)  # as an old server that was killed forgets to load it
    texts = unit(6, 16)
    farthest = open_index("exact", stored).search(texts[:1], 700)[0][0, -300:]
    index.most_candidates = 100  # among which is none of the farthest: then all of these are scored
    for rows, least in ((torch.randperm(700)[:300], 0.8), (farthest, 0.99)):  # a server misses some
        places, cosines = RowsOfDatabase(index, rows).search(texts[:1], 20)
        exact = ExactIndex([stored.embedding_rows(rows)], stored.id_hashes[rows])
        best, _ = exact.search(texts[:1], 20)
        assert torch.isin(places, best).float().mean() >= least
        assert torch.allclose(cosines, texts[:1] @ stored.embedding_rows(rows)[places[0]].t(), atol=1e-6)
    index.close()
    assert isinstance(index_of_rows(index, torch.arange(70_000), 2_000_000), RowsOfDatabase)
    assert index_of_rows(index, torch.arange(70_000), 3_000_000) is None  # too few of its best would pass
    assert index_of_rows(index, torch.arange(700), 700) is None
    assert index_of_rows(exact, torch.arange(70_000), 70_000) is None


@pytest.mark.filterwarnings("ignore:Deprecated call to `pkg_resources:DeprecationWarning")
def test_milvus_takes_the_new_embedding_of_an_image_that_was_replaced(tmp_path, database):
    stored = write_gallery(tmp_path / "gallery", unit(10, 8))
    write_index(database, stored)
    delete_images(stored.directory, [f"image {row}" for row in range(10)])
    replaced = write_gallery(stored.directory, unit(10, 8))  # the same ids
    write_index(database, replaced)
    index = open_index(database, replaced)
    for row, embedding in enumerate(replaced.embeddings[0]):
        asked = {"data": [embedding.numpy()], "anns_field": "embedding", "output_fields": ["id"]}
        (answer,) = index.client.search(index.collection, **asked, limit=1)
        assert answer[0]["entity"]["id"] == f"image {row}"
        assert answer[0]["distance"] == pytest.approx(1, abs=1e-5)
    with pytest.raises(GalleryError, match="at most 16384 images, not 20000"):
        index.search(unit(1, 8), 20_000)
    index.client.release_collection(index.collection)
    index.client.drop_index(index.collection, "embedding")  # as of one that was killed while it made them
    index.close()
    write_index(database, replaced)
    open_index(database, replaced).close()


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("http://127.0.0.1:9", "the Milvus database at http://127.0.0.1:9 refused"),
        ("http://user:secret@127.0.0.1:9", "http://user:[*]{3}@127.0.0.1:9 refused"),
        ("http://user:s/e@cret@127.0.0.1:9", "http://user:[*]{3}@127.0.0.1:9 is no address"),
        ("httpx://user:secret@127.0.0.1:9", "refused: .* httpx://user:[*]{3}@127.0.0.1:9 is illegal"),
        ("user:secret@127.0.0.1:9", "got 'user:[*]{3}@127.0.0.1:9'"),
    ],
)
def test_a_database_that_cannot_be_used_is_named_without_its_password(tmp_path, address, shown):
    stored = write_gallery(tmp_path / "gallery", unit(10, 8))
    for work in (open_index, write_index):
        with pytest.raises((GalleryError, ValueError), match=shown) as raised:
            work(address, stored)
        assert "cret" not in "".join(traceback.format_exception(raised.value))


def test_a_database_with_a_password_says_what_was_done_without_it(tmp_path, monkeypatch, capsys):
    stored = write_gallery(tmp_path / "gallery", unit(10, 8))
    address, client = "http://user:secret@host:19530", MagicMock()
    client.return_value.query_iterator.return_value.next.return_value = []  # an empty database
    monkeypatch.setattr("pymilvus.MilvusClient", client)
    manage_gallery(["index", str(stored.directory), "--index", address, "--json"])
    client.assert_called_once_with(uri=address)
    printed = capsys.readouterr()
    assert printed.out.count("http://user:***@host:19530") == 2
    assert "secret" not in printed.out + printed.err


def test_a_database_that_is_too_slow_is_named(tmp_path, monkeypatch):
    stored = write_gallery(tmp_path / "gallery", unit(10, 8))
    client = MagicMock()
    client.return_value.search.side_effect = grpc.RpcError("the deadline")  # pymilvus does not translate it
    monkeypatch.setattr("pymilvus.MilvusClient", client)
    index = MilvusIndex(
        "http://user:secret@host:19530", stored, ExactIndex(stored.embeddings, stored.id_hashes)
    )
    with pytest.raises(
        GalleryError, match=r"http://user:\*\*\*@host:19530 did not answer in time .*the deadline"
    ):
        index.search(unit(1, 8), 3)


# What is missing


@pytest.mark.parametrize(
    ("library", "index", "extra"), [("faiss", "faiss", "index"), ("pymilvus", "milvus.db", "milvus")]
)
def test_a_missing_library_names_its_extra(tmp_path, monkeypatch, library, index, extra):
    stored = write_gallery(tmp_path / "gallery", unit(10, 8))
    monkeypatch.setitem(sys.modules, library, None)  # as where it is not installed
    with pytest.raises(ImportError, match=rf"pip install -e '\.\[{extra}\]'"):
        open_index(index, stored)
