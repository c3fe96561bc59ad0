"""`tpas fuse`: files aligned by id, both rules, and what is refused."""

import re
from dataclasses import replace

import numpy as np
import pytest

from tpas.commands.fuse import main
from tpas.reranking.fusion import SystemScores, reciprocal_rank, weighted_sum
from tpas.reranking.score_files import ScoreFile, read_score_file, write_score_file

QUERY_IDS, GALLERY_IDS = ("a", "b", "c"), tuple("vwxyz")


def dense_scores(seed):
    return np.random.default_rng(seed).random((3, 5))


def list_scores(seed, candidates):
    dense = dense_scores(seed)
    indices = np.argsort(-dense, axis=1)[:, :candidates]
    return SystemScores(np.take_along_axis(dense, indices, axis=1), indices)


SYSTEMS = {
    "a.npz": SystemScores(dense_scores(1)),
    "b.safetensors": list_scores(2, 3),
    "c.npz": list_scores(3, 2),
}


def write(path, system, rows=(0, 1, 2), columns=(0, 1, 2, 3, 4)):
    """The system's scores, with rows and columns in another order and under the ids that belong to them."""
    rows, columns = list(rows), list(columns)
    scores, indices = system.scores[rows], None
    if system.indices is None:
        scores = scores[:, columns]
    else:
        indices = np.argsort(columns)[system.indices[rows]]
    query_ids = tuple(QUERY_IDS[row] for row in rows)
    write_score_file(path, ScoreFile(scores, indices, query_ids, tuple(GALLERY_IDS[g] for g in columns)))


def by_name(path):
    """The scores of a file by query id and image id."""
    content = read_score_file(path)
    indices = content.indices
    if indices is None:
        indices = np.tile(np.arange(len(content.gallery_ids)), (len(content.query_ids), 1))
    names = np.array(content.gallery_ids)[indices].tolist()
    return {
        query: dict(zip(images, scores, strict=True))
        for query, images, scores in zip(content.query_ids, names, content.scores.tolist(), strict=True)
    }


def expected_by_name(fused):
    indices = np.tile(np.arange(5), (3, 1)) if fused.indices is None else fused.indices
    return {
        query: {GALLERY_IDS[g]: score for g, score in zip(images, scores, strict=True)}
        for query, images, scores in zip(QUERY_IDS, indices.tolist(), fused.scores.tolist(), strict=True)
    }


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The systems' files, each in an order of its own."""
    monkeypatch.chdir(tmp_path)
    write("a.npz", SYSTEMS["a.npz"])
    write("b.safetensors", SYSTEMS["b.safetensors"], rows=(2, 0, 1), columns=(4, 2, 0, 1, 3))
    write("c.npz", SYSTEMS["c.npz"], rows=(1, 2, 0), columns=(3, 0, 4, 1, 2))
    return tmp_path


@pytest.mark.parametrize(
    ("options", "fuse"),
    [
        ("a.npz b.safetensors --weights 0.7 0.3", lambda *files: weighted_sum(files, [0.7, 0.3])),
        ("b.safetensors c.npz --weights 2 1", lambda *files: weighted_sum(files, [2, 1])),
        ("c.npz a.npz --weights 1 1 --top_k 4", lambda *files: weighted_sum(files, [1, 1], top_k=4)),
        ("a.npz b.safetensors c.npz --rrf", lambda *files: reciprocal_rank(files)),
        ("b.safetensors c.npz --rrf --rrf_k 0", lambda *files: reciprocal_rank(files, constant=0)),
    ],
)
def test_the_command_is_the_function_on_files_in_any_order(options, fuse, folder, capsys):
    names = [name for name in options.split() if name in SYSTEMS]
    main([*options.split(), "--output", "out.npz"])
    expected = fuse(*(SYSTEMS[name] for name in names))
    found = by_name("out.npz")
    for query, scores in expected_by_name(expected).items():
        assert sorted(found[query].values()) == pytest.approx(sorted(scores.values()), rel=1e-5)
        for image, score in scores.items():
            # Of images that tie for the last place, the name decides which is there.
            assert score == min(scores.values()) or found[query][image] == pytest.approx(score, rel=1e-5)
        if expected.indices is not None:
            assert list(found[query].values()) == sorted(found[query].values(), reverse=True)
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == [*names, "out.npz"]
    shape = "dense" if expected.indices is None else f"top {expected.indices.shape[1]}"
    assert lines[-1] == f"out.npz: 3 queries, 5 images, {shape}"


def test_ties_do_not_follow_the_order_of_the_images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flat = SystemScores(np.ones((3, 5)))
    found = []
    for columns in ((0, 1, 2, 3, 4), (3, 4, 1, 0, 2)):
        write("a.npz", flat, columns=columns)
        write("b.npz", flat)
        main(["a.npz", "b.npz", "--rrf", "--top_k", "2", "--output", "out.npz"])
        found.append(by_name("out.npz"))
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("a.npz --rrf", "fusion needs two score files or more"),
        ("a.npz c.npz --weights 1 1 1", "one for each of the 2 systems, got 3"),
        ("a.npz c.npz --weights 1 -1", r"at least 0 and not all 0, got \[1.0, -1.0\]"),
        ("a.npz c.npz --weights 1 1 --rrf_k 3", "--rrf_k has no effect with --weights"),
        ("a.npz c.npz --rrf --rrf_k -3", "constant must be at least 0, got -3"),
        ("b.safetensors c.npz --rrf --top_k 4", "top_k must be at most 3, the candidates given, got 4"),
        ("a.npz none.npz --rrf", "No such file or directory: 'none.npz'"),
        (
            "a.npz other.npz --rrf",
            r"other.npz and a.npz are not about the same queries: of 3 and 3 query ids, 1 of a.npz are not in"
            r" other.npz \('b'\); 1 of other.npz are not in a.npz \('q'\)",
        ),
        ("a.npz reranked.npz --rrf", "reranked.npz: first answers are resolved already: fuse first"),
    ],
)
def test_what_cannot_be_fused_is_refused(options, message, folder):
    write_score_file("other.npz", replace(read_score_file("a.npz"), query_ids=("a", "q", "c")))
    moved = np.array([True, False, False])
    write_score_file("reranked.npz", replace(read_score_file("c.npz"), moved=moved))
    with pytest.raises(SystemExit) as ended:
        main([*options.split(), "--output", "out.npz"])
    assert re.fullmatch(rf"tpas fuse: .*{message}.*", str(ended.value)), ended.value
    assert not (folder / "out.npz").exists()


def test_one_rule_must_be_chosen(folder, capsys):
    for rules in ([], ["--rrf", "--weights", "1", "1"]):
        with pytest.raises(SystemExit):
            main(["a.npz", "c.npz", *rules, "--output", "out.npz"])
        assert "--weights" in capsys.readouterr().err
