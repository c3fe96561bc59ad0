"""`tpas rerank`: every method through the command, what it prints, and what it refuses."""

import json
import re
from dataclasses import replace
from functools import partial
from typing import get_args

import numpy as np
import pytest

from tpas.commands.evaluate import main as evaluate
from tpas.commands.rerank import METHODS, MethodName, main, rerank_score_file
from tpas.reranking.hubness import csls, dual_softmax, sinkhorn
from tpas.reranking.one_to_one import bounded_assignment, greedy_matching
from tpas.reranking.querybank import QueryBank, qb_norm
from tpas.reranking.score_files import ScoreFile, read_score_file, write_score_file
from tpas.sca import sca_rerank

QUERIES, IMAGES = 12, 15
QUERY_IDS = tuple(f"query {number}" for number in range(QUERIES))
GALLERY_IDS = tuple(f"{number:03}.jpg" for number in range(IMAGES))


def dense_file(queries=QUERIES, seed=0):
    scores = np.random.default_rng(seed).standard_normal((queries, IMAGES)).astype(np.float32)
    scores[:, 2] += 2  # a hub
    return ScoreFile(scores, None, tuple(f"query {number}" for number in range(queries)), GALLERY_IDS)


def list_file(candidates=6):
    dense = dense_file()
    indices = np.argsort(-dense.scores, axis=1)[:, :candidates]
    return replace(dense, scores=np.take_along_axis(dense.scores, indices, axis=1), indices=indices)


def named(content):
    """For each query id the ids of its images, best first."""
    names = np.array(content.gallery_ids)[content.indices].tolist()
    return dict(zip(content.query_ids, names, strict=True))


@pytest.fixture
def paths(tmp_path):
    write_score_file(tmp_path / "lists.npz", list_file())
    write_score_file(tmp_path / "dense.npz", dense_file())
    write_score_file(tmp_path / "bank.npz", dense_file(40, seed=5))
    return tmp_path


BANK = QueryBank.from_scores(dense_file(40, seed=5).scores, temperature=0.5)
CALLS = [
    ("sca", {"max_shift": 2, "tau": 0.01}, sca_rerank),
    ("sca", {"confidence": "softmax", "temperature": 0.5, "capacity": 2}, sca_rerank),
    ("margin-sca", {"max_shift": 4}, partial(sca_rerank, confidence="margin")),
    ("single-pass", {"confidence": "margin"}, partial(sca_rerank, mode="single_pass")),
    ("assignment", {"max_loss": 1.5}, bounded_assignment),
    ("greedy", {"capacity": 2}, greedy_matching),
    ("dual-softmax", {"temperature": 0.5}, dual_softmax),
    ("sinkhorn", {"iterations": 7, "temperature": 0.5}, sinkhorn),
    ("csls", {"neighbours": 3}, csls),
    ("qb-norm", {"temperature": 0.5, "bank": "bank.npz"}, lambda *lists, **_: qb_norm(*lists, bank=BANK)),
]


def test_every_method_is_offered_and_called_below():
    assert get_args(MethodName) == tuple(METHODS)
    assert {method for method, _, _ in CALLS} == set(METHODS)


@pytest.mark.parametrize(("method", "options", "rerank"), CALLS)
@pytest.mark.parametrize("kind", ["lists", "dense"])
def test_the_command_is_the_function(method, options, rerank, kind, paths, monkeypatch, capsys):
    monkeypatch.chdir(paths)
    output = "out.safetensors" if kind == "lists" else "out.npz"
    flags = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    main([f"{kind}.npz", "--method", method, *flags, "--output", output])
    given = read_score_file(f"{kind}.npz")
    expected = rerank(given.indices, given.scores, **options)
    written = read_score_file(output)
    names = np.array(GALLERY_IDS)[expected.indices].tolist()
    assert named(written) == dict(zip(QUERY_IDS, names, strict=True))
    np.testing.assert_allclose(written.scores, expected.scores, rtol=1e-5)

    printed = capsys.readouterr()
    assert not printed.err
    lines = printed.out.splitlines()
    report = expected.report
    shape = "top 6" if kind == "lists" else "dense"
    assert lines[0] == f"{kind}.npz: 12 queries, 15 images, {shape}"
    assert f"{output}: {written.describe()}" in lines
    transductive = "not transductive, each query by itself"
    if method != "qb-norm":
        transductive = "transductive, it looks at all queries together"
    assert f"{method}: {transductive}" in lines
    numbers = [line.split() for line in lines]
    counts = [str(report.collisions_before), "->", str(report.collisions_after)]
    assert ["collisions", *counts, "queries"] in numbers
    assert ["moved", str(report.moved), "queries"] in numbers
    shares = [f"{report.coverage_before:.2%}", "->", f"{report.coverage_after:.2%}"]
    assert ["coverage", *shares, "of", "the", "queries"] in numbers
    assert report.moved > 0
    # What was resolved is marked, so that nobody takes its scores for an order.
    assert written.reranked == METHODS[method].puts_first


@pytest.mark.parametrize("method", METHODS)
def test_neither_order_of_rows_nor_of_images_decides(method):
    """With equal scores all over, so that ties decide."""
    dense = dense_file()
    dense = replace(dense, scores=np.round(dense.scores))
    options = {"bank": dense_file(40, seed=5)} if method == "qb-norm" else {}
    generator = np.random.default_rng(1)
    rows, columns = generator.permutation(QUERIES), generator.permutation(IMAGES)
    ids = (
        tuple(names[place] for place in order) for names, order in ((QUERY_IDS, rows), (GALLERY_IDS, columns))
    )
    shuffled = ScoreFile(dense.scores[rows][:, columns], None, *ids)
    one, report = rerank_score_file(dense, method, options | {"top_k": 5})
    other, again = rerank_score_file(shuffled, method, options | {"top_k": 5})
    assert report == again
    if method in ("dual-softmax", "sinkhorn"):  # whose sums are rounded in the order of the rows
        scores = dict(zip(other.query_ids, other.scores, strict=True))
        for query, row in zip(one.query_ids, one.scores, strict=True):
            np.testing.assert_allclose(row, scores[query], rtol=1e-5)
    else:
        assert named(one) == named(other)


def test_top_k_is_cut_before_sca_and_after_scaling(paths, monkeypatch):
    monkeypatch.chdir(paths)
    dense = dense_file().scores
    for method, rerank in (("sca", sca_rerank), ("csls", csls)):
        main(["dense.npz", "--method", method, "--top_k", "3", "--output", "out.npz"])
        names = np.array(GALLERY_IDS)[rerank(None, dense, top_k=3).indices].tolist()
        assert [*named(read_score_file("out.npz")).values()] == names


def refusal(*arguments):
    """The one line with which the command ends."""
    with pytest.raises(SystemExit) as ended:
        main([*map(str, arguments)])
    assert ended.value.code
    assert "\n" not in str(ended.value)
    return str(ended.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--method csls --tau 0.1", "--tau has no effect with --method csls"),
        ("--method margin-sca --confidence score", "--confidence has no effect with --method margin-sca"),
        ("--method single-pass --max_shift 1", "--max_shift has no effect with --method single-pass"),
        ("--method sca --max_loss 1", "--max_loss has no effect with --method sca"),
        ("--method sca --bank bank.npz", "--bank has no effect with --method sca"),
        ("--method sca --temperature 1", "--temperature has no effect .* without --confidence softmax"),
        ("--method assignment --tau 0", "--tau has no effect with --method assignment"),
        ("--method qb-norm", "--method qb-norm needs --bank"),
        ("--method qb-norm --bank lists.npz", "the bank must be dense"),
        ("--method qb-norm --bank none.npz", "No such file or directory: 'none.npz'"),
        ("--method sca --max_shift -1", "max_shift must be at least 0, got -1"),
        ("--method sca --top_k 7", "top_k must be at most 6, the candidates given, got 7"),
        ("--method sca --output out.csv", "out.csv: a score file ends in .npz, .safetensors, .trec or .run"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message, paths, monkeypatch):
    monkeypatch.chdir(paths)
    error = refusal("lists.npz", "--output", "out.npz", *options.split())
    assert error.startswith("tpas rerank: ")
    assert not (paths / "out.npz").exists()
    assert re.search(message, error), error


def test_a_broken_file_is_refused_by_its_name_and_the_query(tmp_path):
    content = list_file()
    arrays = {name: getattr(content, name) for name in ("scores", "indices", "query_ids", "gallery_ids")}
    arrays["scores"][3, 1] = np.nan
    np.savez(tmp_path / "scores.npz", **arrays)
    error = refusal(tmp_path / "scores.npz", "--method", "csls", "--output", tmp_path / "out.npz")
    assert "scores.npz: query 'query 3' has the score nan: scores must be finite" in error
    assert not (tmp_path / "out.npz").exists()


def test_a_bank_of_another_gallery_is_refused(paths, monkeypatch):
    monkeypatch.chdir(paths)
    write_score_file("other.npz", replace(dense_file(), gallery_ids=("new.jpg", *GALLERY_IDS[1:])))
    error = refusal("dense.npz", "--method", "qb-norm", "--bank", "other.npz", "--output", "out.npz")
    assert "the bank and the file are not about the same images" in error
    assert "1 of the file are not in the bank ('000.jpg')" in error
    assert "1 of the bank are not in the file ('new.jpg')" in error


def test_a_resolved_file_is_not_resolved_again(paths, monkeypatch):
    monkeypatch.chdir(paths)
    main(["lists.npz", "--method", "sca", "--output", "reranked.npz"])
    assert "resolved already" in refusal("reranked.npz", "--method", "csls", "--output", "out.npz")


@pytest.mark.parametrize("method", ["sca", "margin-sca", "single-pass", "assignment", "greedy", "sinkhorn"])
def test_several_captions_an_image_are_warned_of(method, tmp_path, capsys):
    scores = np.random.default_rng(0).random((10, 5))
    content = ScoreFile(scores, None, tuple(map(str, range(10))), tuple("abcde"))
    write_score_file(tmp_path / "scores.npz", content)
    arguments = [str(tmp_path / "scores.npz"), "--method", method, "--output", str(tmp_path / "out.npz")]
    main(arguments)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("tpas rerank: warning: 10 queries share 5 candidate images, but capacity is 1")
    assert "may lower recall" in line
    assert line.endswith("(--capacity)")
    main([*arguments, "--capacity", "2"])
    assert not capsys.readouterr().err


@pytest.mark.usefixtures("fresh_accelerator")
def test_what_an_evaluation_writes_is_resolved_as_the_evaluation_does(small_pab, start, tmp_path):
    words = ["--model", start, "--data_root", small_pab, "--rankings", tmp_path / "rankings.json"]
    evaluate([str(word) for word in [*words, "--write_scores", tmp_path / "scores.npz"]])
    written, reranked = (str(tmp_path / name) for name in ("scores.matching.npz", "reranked.npz"))
    main([written, "--method", "sca", "--output", reranked])
    queries = json.loads((tmp_path / "rankings.json").read_text())["queries"]
    reranked = named(read_score_file(reranked))
    assert any(query["moved"] for query in queries)
    for query in queries:
        expected = query["stages"]["sca"]["ids"]
        assert reranked[query["query_id"]][: len(expected)] == expected


@pytest.mark.parametrize("method", METHODS)
def test_a_filled_matrix_gives_the_file_of_the_lists(method, paths, monkeypatch, caplog):
    """As the evaluation scripts of X-VLM and BLIP write it."""
    monkeypatch.chdir(paths)
    lists = list_file()
    matrix = np.full((QUERIES, IMAGES), -100, dtype=np.float32)
    np.put_along_axis(matrix, lists.indices, lists.scores, axis=1)
    write_score_file("filled.npz", replace(dense_file(), scores=matrix))
    bank = ["--bank", "bank.npz"] if method == "qb-norm" else []
    for name in ("lists", "filled"):
        main([f"{name}.npz", "--method", method, "--output", f"{name}.out.npz", *bank])
    expected, found = read_score_file("lists.out.npz"), read_score_file("filled.out.npz")
    assert named(found) == named(expected)
    np.testing.assert_array_equal(found.scores, expected.scores)
    assert caplog.text.count("warning: 108 of 180 scores are -100: taken as not scored") == 1
