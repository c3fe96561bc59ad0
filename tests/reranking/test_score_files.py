"""Score files: what is written is what is read, ids decide the order, and broken files are named."""

import io
import json
import os
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_tensors

from tpas.reranking import score_files
from tpas.reranking.ranked_lists import in_tie_order
from tpas.reranking.score_files import ScoreFile, align, align_gallery, read_score_file, write_score_file

QUERIES, GALLERY = ("q1", "q2", "Frage drei ü"), ("007", "7", "a b", "图")
DENSE = ScoreFile(np.arange(12, dtype=np.float32).reshape(3, 4), None, QUERIES, GALLERY)
LISTS = ScoreFile(
    np.array([[0.9, 0.1], [2, 2], [-1, -3]]), np.array([[0, 1], [3, 2], [1, 3]]), QUERIES, GALLERY
)
NOT_CONTIGUOUS = replace(DENSE, scores=np.arange(12.0).reshape(4, 3).T)
MOVED = np.array([True, False, False])
RERANKED = replace(LISTS, scores=np.array([[0.1, 0.9], [2, 2], [-1, -3]]), moved=MOVED)


def assert_equal(one, other):
    for name in ("scores", "indices", "moved"):
        left, right = getattr(one, name), getattr(other, name)
        assert (left is None) == (right is None)
        if left is not None:
            assert name == "indices" or left.dtype == right.dtype
            np.testing.assert_array_equal(left, right)
    assert (one.query_ids, one.gallery_ids) == (other.query_ids, other.gallery_ids)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
@pytest.mark.parametrize(
    "content", [DENSE, LISTS, RERANKED, NOT_CONTIGUOUS], ids=["dense", "lists", "re-ranked", "not contiguous"]
)
def test_what_is_written_is_read(content, suffix, tmp_path):
    path = tmp_path / "new" / f"scores{suffix}"
    for _ in range(2):  # the second time over the first
        write_score_file(path, content)
        assert_equal(read_score_file(path), content)
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_a_failed_write_leaves_the_old_file(suffix, tmp_path, monkeypatch):
    path = tmp_path / f"scores{suffix}"
    write_score_file(path, DENSE)

    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="no space left"):
        write_score_file(path, LISTS)
    assert os.listdir(tmp_path) == [path.name]
    assert_equal(read_score_file(path), DENSE)


def test_files_of_other_systems_are_read(tmp_path):
    """As numpy and torch write them, without this module."""
    arrays = {"scores": np.ones((1, 2), np.float16), "query_ids": ["q"], "gallery_ids": ["x", "y"]}
    np.savez_compressed(tmp_path / "a.npz", **arrays)
    assert read_score_file(tmp_path / "a.npz").gallery_ids == ("x", "y")
    ids = {"query_ids": json.dumps(["q"]), "gallery_ids": json.dumps(["x", "y"])}
    tensors = {"scores": torch.ones(1, 1), "indices": torch.ones(1, 1, dtype=torch.int32)}
    save_tensors(tensors, tmp_path / "b.safetensors", ids)
    assert read_score_file(tmp_path / "b.safetensors").indices.tolist() == [[1]]
    for of_torch in (torch.bfloat16, torch.float8_e4m3fn):
        save_tensors({"scores": torch.ones(1, 2).to(of_torch)}, tmp_path / "c.safetensors", ids)
        with pytest.raises(ValueError, match=r"c\.safe.*: .*numpy has no bfloat16 or float8: use float32"):
            read_score_file(tmp_path / "c.safetensors")


def test_what_a_file_holds_besides_is_not_read(tmp_path):
    besides = {"captions": np.array(["a man", None], dtype=object)}  # it could not be: it needs pickle
    np.savez(tmp_path / "a.npz", scores=[[2.0]], query_ids=["q"], gallery_ids=["x"], **besides)
    assert read_score_file(tmp_path / "a.npz").scores.tolist() == [[2.0]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scores": np.array([[0.9, 0.1], [2, np.nan], [0, 0]])}, "query 'q2' has the score nan: .* finite"),
        ({"scores": np.array([[0.9, 0.1], [np.inf, 1], [0, 0]])}, "query 'q2' has the score inf: .* or -inf"),
        ({"scores": np.array([[0.9, 0.1], [2, 1], [0, 1]])}, "'Frage drei ü' is not sorted, .* 1.0 .*sort"),
        ({"scores": np.ones((3, 2), complex)}, "scores must be real numbers, got complex128"),
        ({"scores": np.ones(3)}, r"scores must be \(queries, images\), got shape \(3,\)"),
        ({"scores": np.ones((3, 0))}, r"got shape \(3, 0\)"),
        ({"scores": np.ones((4, 2))}, "3 query ids for 4 rows"),
        ({"scores": np.ones((3, 3))}, r"one shape, got \(3, 2\) and \(3, 3\)"),
        ({"indices": None}, "4 gallery ids for 2 columns of scores; top-K lists need indices"),
        ({"indices": np.ones((3, 2))}, "indices must be integers, got float64"),
        ({"indices": np.array([[0, 1], [3, 4], [1, 0]])}, "'q2' has index 4, but the gallery has 4"),
        ({"indices": np.array([[0, 1], [3, -1], [1, 0]])}, "query 'q2' has fewer candidates than the others"),
        ({"indices": np.array([[0, 1], [3, 3], [1, 0]])}, "query 'q2' lists '图' twice .candidate 2"),
        ({"query_ids": ("q1", "q2", "q1")}, "query id 'q1' is there 2 times"),
        ({"gallery_ids": ("a", "b", "b", "c")}, "gallery id 'b' is there 2 times"),
        ({"gallery_ids": ("a", "b", "", "c")}, "gallery ids must not be empty .* got ''"),
        ({"query_ids": ("q1", "q2", "q3\0")}, "a zero character"),
        ({"moved": np.array([True, False])}, r"moved must be \(3,\) bool, got \(2,\) bool"),
        ({"moved": np.array([1, 0, 0])}, r"moved must be \(3,\) bool, got \(3,\) int64"),
    ],
)
def test_broken_content_is_refused_by_the_query(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(LISTS, **changes)


def test_a_moved_row_must_descend_after_its_first():
    for row, moved in (([1.0, 2, 3], True), ([1.0, 2], False)):
        indices, gallery = np.arange(len(row))[None], tuple("abc"[: len(row)])
        with pytest.raises(ValueError, match="query 'q' is not sorted"):
            ScoreFile(np.array([row]), indices, ("q",), gallery, np.array([moved]))
    with pytest.raises(ValueError, match="moved belongs to lists"):
        replace(DENSE, moved=np.zeros(3, dtype=bool))


def npz(**changes):
    arrays = {"scores": np.ones((1, 2)), "query_ids": np.array(["q"]), "gallery_ids": np.array(["x", "y"])}
    given = {name: array for name, array in (arrays | changes).items() if array is not None}
    return lambda path: np.savez(path, **given)


def safetensors(**changes):
    metadata = {"query_ids": '["q"]', "gallery_ids": '["x", "y"]'} | changes
    given = {name: text for name, text in metadata.items() if text is not None}
    return lambda path: save_file({"scores": np.ones((1, 2))}, path, given)


def ids_as_tensor(path):
    save_file({"scores": np.ones((1, 2)), "query_ids": np.array([7])}, path, {"gallery_ids": '["x", "y"]'})


def objects(*content):
    return np.array(content, dtype=object)


def one_array(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def truncated(write):
    def write_half(path):
        write(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return write_half


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("a.npz", npz(scores=None), "has no scores, only gallery_ids, query_ids"),
        ("a.npz", npz(query_ids=None, gallery_ids=None), "has no query_ids and no gallery_ids, only scores"),
        ("a.npz", npz(query_ids=np.array([7])), r"query_ids must be a list of strings, got int64 .*astype"),
        (
            "a.npz",
            npz(query_ids=objects("q")),
            r"allow_pickle=False; query_ids holds Python objects: .*query_ids.astype\(str\)",
        ),
        (
            "a.npz",
            npz(indices=objects([0, 1], [0])),
            "rows of different lengths .* give every query as many candidates",
        ),
        ("a.npz", truncated(npz()), "no readable score file"),
        ("a.npz", lambda path: path.write_bytes(b"PK\3\4 and no more"), "no readable score file"),
        ("a.npz", lambda path: path.write_bytes(b""), "no readable score file"),
        ("a.npz", lambda path: path.write_bytes(one_array(np.ones(3))), "no readable score file"),
        ("a.npz", lambda path: path.write_bytes(one_array(np.array([None]))), "no readable score file"),
        ("a.safetensors", safetensors(query_ids=None), "has no query_ids, only gallery_ids, scores"),
        ("a.safetensors", safetensors(query_ids="q"), "query_ids must be a JSON list of strings: Expecting"),
        ("a.safetensors", safetensors(query_ids='{"q": 1}'), "query_ids must be a JSON list of strings"),
        ("a.safetensors", ids_as_tensor, "query_ids is a tensor: it must be a JSON list"),
        ("a.safetensors", safetensors(query_ids="[1]"), "query_ids must be a JSON list of strings"),
        ("a.safetensors", truncated(safetensors()), "no readable score file"),
        ("a.safetensors", lambda path: path.write_bytes(b""), "no readable score file"),
        (
            "a.csv",
            lambda path: path.write_text("q,x,1"),
            r"ends in .npz, .safetensors, .trec or .run, not in '.csv'",
        ),
    ],
)
def test_what_is_no_score_file_is_refused_by_name(name, write, message, tmp_path):
    write(tmp_path / name)
    with pytest.raises(ValueError, match=rf"{name}: .*{message}"):
        read_score_file(tmp_path / name)


@pytest.mark.parametrize("suffix", [".npz", ".trec"])
def test_a_pipe_and_a_run_of_gigabytes_are_not_read(suffix, tmp_path):
    os.mkfifo(tmp_path / f"a{suffix}")
    with pytest.raises(ValueError, match=rf"a{suffix} is no file"):
        read_score_file(tmp_path / f"a{suffix}")
    with (tmp_path / "b.run").open("wb") as stream:
        stream.truncate(2**33)
    with pytest.raises(ValueError, match=r"b.run: more than 268,435,456 bytes"):
        read_score_file(tmp_path / "b.run")


def test_a_missing_file_is_an_os_error(tmp_path):
    for name in ("a.npz", "a.safetensors"):
        with pytest.raises(OSError, match="a\\."):
            read_score_file(tmp_path / name)


@settings(max_examples=60)
@given(st.booleans(), st.randoms(use_true_random=False))
def test_alignment_is_by_id_and_never_by_position(dense, random):
    content = DENSE if dense else RERANKED
    rows, columns = random.sample(range(3), 3), random.sample(range(4), 4)
    shuffled = ScoreFile(
        content.scores[rows][:, columns] if dense else content.scores[rows],
        None if dense else np.argsort(columns)[content.indices[rows]],
        *(tuple(QUERIES[row] for row in rows), tuple(GALLERY[column] for column in columns)),
        moved=None if dense else content.moved[rows],
    )
    first, aligned = align([content, shuffled], ["a", "b"])
    assert first is content
    assert_equal(aligned, content)
    # A gallery alone, as that of a bank with other queries.
    bank = align_gallery(replace(shuffled, query_ids=("x", "y", "z")), "bank", GALLERY, "a")
    assert bank.gallery_ids == GALLERY
    assert_equal(align([content, replace(bank, query_ids=shuffled.query_ids)], "ab")[1], content)


def test_small_indices_are_aligned_with_a_gallery_that_is_larger():
    gallery = tuple(f"{number:03}" for number in range(300))
    content = ScoreFile(np.ones((1, 256)), np.arange(256, dtype=np.uint8)[None], ("q",), gallery)
    aligned = align_gallery(content, "a", gallery[::-1], "b")
    assert [aligned.gallery_ids[column] for column in aligned.indices[0]] == list(gallery[:256])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"query_ids": ("q1", "x", "y")},
            r"b and a are not about the same queries: of 3 and 3 query ids, "
            r"2 of a are not in b \('q2', 'Frage drei ü'\); 2 of b are not in a \('x', 'y'\)",
        ),
        ({"query_ids": ("q1", "q2", "0Frage drei ü")}, "zeros in front count: '0Frage drei ü' is not 'Frage"),
        ({"gallery_ids": ("7", "007", "a b", "x")}, r"same images: of 4 and 4 .* 1 of a .* \('图'\)"),
        (
            {"gallery_ids": (*GALLERY, *"vwxyz"), "scores": LISTS.scores},
            r"of 9 and 4 gallery ids, 5 of b are not in a \('v', 'w', 'x', \.\.\.\)",
        ),
    ],
)
def test_other_ids_are_refused_with_the_first_that_differ(changes, message):
    with pytest.raises(ValueError, match=message):
        align([LISTS, replace(LISTS, **changes)], ["a", "b"])


def test_the_order_by_digest_depends_on_the_set_alone():
    names = [f"{number:03}" for number in range(50)]
    assert in_tie_order(names) == in_tie_order(names[::-1])
    assert sorted(in_tie_order(names)) == names != list(in_tie_order(names))


def test_a_file_is_looked_at_before_it_is_unpacked(tmp_path, monkeypatch):
    """A megabyte of zeros may unpack to gigabytes; a header may ask for what is not there."""
    path, ids = tmp_path / "bomb.npz", np.array(["a", "b"])
    read = []
    monkeypatch.setattr(np.lib.npyio.NpzFile, "__getitem__", lambda self, name: read.append(name))
    np.savez_compressed(path, scores=np.zeros((3, 10**6), "f4"), query_ids=ids, gallery_ids=ids)
    with pytest.raises(ValueError, match="bomb.npz: .*there are 2 query ids for 3 rows of scores"):
        read_score_file(path)
    lists = {"scores": np.zeros((2, 10**6), "f4"), "indices": np.zeros((2, 2), int)}
    for content, said in (
        (lists, "must have one shape"),
        ({"scores": lists["scores"]}, "2 gallery ids for 100"),
    ):
        np.savez_compressed(path, query_ids=ids, gallery_ids=ids, **content)
        with pytest.raises(ValueError, match=f"bomb.npz: .*{said}"):
            read_score_file(path)
    for long_ids in (np.array(["a" * 5000]), np.zeros(2**23 + 1, "U1")):
        np.savez_compressed(path, scores=np.zeros((1, 1), "f4"), query_ids=ids[:1], gallery_ids=long_ids)
        with pytest.raises(ValueError, match="gallery_ids are .* of up to .* characters, .* are read"):
            read_score_file(path)
    monkeypatch.setattr(score_files, "LARGEST_CONTENT", 10**6)
    np.savez_compressed(path, scores=np.zeros((2, 10**6), "f4"), query_ids=ids, gallery_ids=ids)
    with pytest.raises(ValueError, match=r"unpacks to 8,000,016 bytes, and at most 1,000,000 .* float32"):
        read_score_file(path)
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in {"scores": np.zeros((2, 2)), "query_ids": ids, "gallery_ids": ids}.items():
            stream = io.BytesIO()
            np.save(stream, array)
            content = stream.getvalue().replace(b"(2, 2)", b"(2, 9)")
            archive.writestr(f"{name}.npy", content)
    with pytest.raises(ValueError, match="scores is to have 144 bytes, and 32 are there: damaged"):
        read_score_file(path)
    assert not read
