"""TREC runs: trec_eval's order, in both directions, and lines that are none."""

import numpy as np
import pytest
from hypothesis import given, settings
from ranked_lists import ranked_lists

from tpas.commands.fuse import main as fuse
from tpas.reranking.score_files import ScoreFile, read_score_file, write_score_file
from tpas.reranking.trec_files import qrels_lines


def listed(content: ScoreFile) -> list[list[str]]:
    """The images of each query that were scored, in order."""
    kept = np.isfinite(content.scores)
    return [
        [content.gallery_ids[column] for column in row[mask]]
        for row, mask in zip(content.indices, kept, strict=True)
    ]


def test_a_run_is_ordered_as_trec_eval_does(tmp_path):
    lines = [
        "two Q0 b 1 0.5 tag",  # the ranks and the order of the lines say nothing
        "one\tQ0  a 1 -1e0 tag",
        "",
        "one Q0 c 9 3 tag",
        "two Q0 a 2 0.5 tag",
        "two Q0 é 3 0.5 tag",  # of equal ones the name that comes last
        "two Q0 d 4 -inf tag",
    ]
    path = tmp_path / "a.run"
    path.write_bytes("\r\n".join(lines).encode())
    content = read_score_file(path)
    assert content.query_ids == ("two", "one")
    assert set(content.gallery_ids) == set("abcdé")
    assert listed(content) == [["é", "b", "a"], ["c", "a"]]
    assert content.scores[1].tolist() == [3, -1, -np.inf, -np.inf]
    assert content.names_listed_only


@settings(max_examples=60)
@given(ranked_lists())
def test_a_run_keeps_order_and_scores_with_ties_and_first_answers_moved(tmp_path_factory, lists):
    indices, scores = lists
    moved = np.arange(len(indices)) % 2 == 1
    for array in (indices, scores):  # the last answer first
        array[moved] = np.roll(array[moved], 1, axis=1)
    names = [str(number) for number in range(indices.max() + 1)]
    queries = [f"q{row}" for row in range(len(indices))]
    content = ScoreFile(scores, indices, tuple(queries), tuple(names), moved)
    path = tmp_path_factory.mktemp("runs") / "a.trec"
    write_score_file(path, content)
    again = read_score_file(path)
    assert listed(again) == [[names[column] for column in row] for row in indices]
    np.testing.assert_allclose(again.scores[~moved], scores[~moved], rtol=1e-5, atol=1e-6)
    assert (np.diff(again.scores.astype(np.float32)) <= 0).all()  # as trec_eval reads them


def test_what_only_fills_up_is_not_written(tmp_path):
    scores = np.full((6, 5), -100.0)
    scores[:, 0] = np.random.default_rng(0).random(6)
    scores[:, 1] = scores[:, 0] + 1
    names = tuple("abcdef"), tuple("vwxyz")
    write_score_file(tmp_path / "a.run", ScoreFile(scores, None, *names))
    lines = (tmp_path / "a.run").read_text().splitlines()
    assert lines[:2] == [f"a Q0 w 1 {scores[0, 1]} tpas", f"a Q0 v 2 {scores[0, 0]} tpas"]
    assert len(lines) == 12


def test_a_run_is_fused_with_a_file_that_names_the_whole_gallery(tmp_path):
    (tmp_path / "a.run").write_text("q Q0 b 1 2 t\nq Q0 a 2 1 t\n")
    dense = ScoreFile(np.array([[0.0, 1.0, 5.0]]), None, ("q",), ("c", "b", "a"))
    write_score_file(tmp_path / "b.npz", dense)
    files = [str(tmp_path / name) for name in ("a.run", "b.npz", "out.run")]
    fuse([*files[:2], "--rrf", "--output", files[2]])
    # 1/61 + 1/62 of both a and b, and 1/63 of c, which the run does not list.
    assert listed(read_score_file(files[2]))[0][2] == "c"
    fuse([*files[:2], "--weights", "0.1", "0.9", "--output", files[2]])
    assert listed(read_score_file(files[2])) == [["a", "b", "c"]]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("q Q0 a 1 1 t\nq Q0 b 2 1", r"line 2: a run has 6 fields a line .* got 5: 'q Q0 b 2 1'"),
        ("q Q0 a 1 one t", "line 1: the score must be a number, got 'one'"),
        ("q Q0 a 1 nan t", "line 1: the score is nan: it must be finite"),
        ("q Q0 a 1 1 t\n\nq Q0 a 2 0 t", "line 3: query 'q' lists 'a' again, as in line 1"),
        ("\n", "the run has no line"),
    ],
)
def test_a_line_that_is_none_is_named(tmp_path, lines, message):
    (tmp_path / "a.trec").write_text(lines)
    with pytest.raises(ValueError, match=rf"a\.trec: {message}"):
        read_score_file(tmp_path / "a.trec")


@pytest.mark.parametrize(
    ("name", "score", "message"),
    [("a b", 1.0, "image 'a b' holds white space"), ("a", 1e39, "a score is beyond single precision")],
)
def test_what_a_run_cannot_say_is_refused_and_nothing_is_left(tmp_path, name, score, message):
    content = ScoreFile(np.array([[score, 0.0]]), None, ("q",), (name, "c"))
    with pytest.raises(ValueError, match=rf"out.run: {message}"):
        write_score_file(tmp_path / "out.run", content)
    assert not list(tmp_path.iterdir())


def test_the_lines_of_relevance():
    assert list(qrels_lines(["p", "q"], [["a"], ["b", "c"]])) == ["p 0 a 1\n", "q 0 b 1\n", "q 0 c 1\n"]
