"""What an evaluation reads beside PAB (distractors) and writes: scores, Markdown, plots; the comparison."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import pyplot
from PIL import Image

from tpas.commands.compare import main as compare
from tpas.commands.evaluate import main as evaluate
from tpas.data.distractors import find_distractors, images_listed
from tpas.data.image_folders import FolderRules
from tpas.data.pab import load_pab, retrieval_split
from tpas.evaluation.result_files import Evaluation, rankings_json
from tpas.evaluation.retrieval import evaluate as measure
from tpas.figures.evaluation_plots import evaluation_figures, right_places
from tpas.models.loading import load_model
from tpas.reranking.score_files import ScoreFile, read_score_file, write_score_file

pytestmark = pytest.mark.usefixtures("fresh_accelerator")


@pytest.fixture
def noise(tmp_path) -> Path:
    """A folder of seven images of noise, two of them one folder deeper, and a text file."""
    folder = tmp_path / "noise"
    generator = np.random.default_rng(0)
    for number in range(7):
        path = folder / ("deeper" if number > 4 else "") / f"{number:03}.{'png' if number % 2 else 'jpg'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(path)
    (folder / "notes.txt").write_text("no image")
    return folder


def run(start: Path, root: Path, *flags: object) -> None:
    evaluate(["--model", str(start), "--data_root", str(root), *map(str, flags)])


def read(path: Path) -> dict:
    return json.loads(path.read_text())


# Distractors


def test_distractors_enlarge_the_gallery_and_answer_nothing(start, small_pab, noise, tmp_path):
    run(start, small_pab, "--output", tmp_path / "alone")
    run(start, small_pab, "--gallery", noise, "--output", tmp_path / "more", "--rankings", tmp_path / "r")
    alone, more = read(tmp_path / "alone"), read(tmp_path / "more")
    assert (alone["gallery"], more["gallery"], more["distractors"]) == (12, 19, 7)
    assert alone["data_fingerprint"] != more["data_fingerprint"]
    gallery = read(tmp_path / "r")["gallery"]
    assert gallery["noise/deeper/006.jpg"] == str(noise / "deeper" / "006.jpg")
    # Among embeddings alone a distractor can only push a right image down.
    ranks = [results["outcomes"]["relevant_ranks"]["embeddings"] for results in (alone, more)]
    assert all(before[0] <= after[0] <= before[0] + 7 for before, after in zip(*ranks, strict=True))


def test_images_of_the_gallery_and_copies_of_them_are_no_distractors(small_pab, noise, caplog):
    own = retrieval_split(load_pab(small_pab, "test")).gallery_ids
    (noise / "copy.jpg").write_bytes((small_pab / own[0]).read_bytes())
    with caplog.at_level("INFO"):
        assert "noise/copy.jpg" not in find_distractors(noise, small_pab, own)
    assert "1 of 8 distractors are in the gallery already" in caplog.text
    inside = find_distractors(small_pab, small_pab, own)  # the training images, by their own paths
    assert len(inside) == 24
    assert all((small_pab / name).is_file() and name.startswith("train/") for name in inside)


def test_a_list_of_images_names_its_own_folder(noise, small_pab):
    listing = noise / "list.txt"
    listing.write_text("000.jpg\n\n deeper/005.png \n")
    assert images_listed(listing) == [noise / "000.jpg", noise / "deeper" / "005.png"]
    assert list(find_distractors(listing, small_pab, [])) == ["noise/000.jpg", "noise/deeper/005.png"]
    listing.write_text("\ufeff000.jpg\r\n", encoding="utf-8")  # as Windows writes it
    assert images_listed(listing) == [noise / "000.jpg"]
    with pytest.raises(ValueError, match=r"000.jpg: neither a folder nor a list"):
        find_distractors(noise / "000.jpg", small_pab, [])


def test_distractors_are_links_out_of_their_folder(noise, small_pab, tmp_path, caplog):
    """As in the cache of the Hub, and where a camera's folder is linked."""
    folder = tmp_path / "cache" / "snapshot"
    folder.mkdir(parents=True)
    (folder / "1.jpg").symlink_to(noise / "000.jpg")
    (folder / "camera").symlink_to(noise / "deeper")
    (folder / "list.txt").write_text("1.jpg\ncamera/005.png")
    (folder / "2.heic").touch()
    names = ["snapshot/1.jpg", "snapshot/camera/005.png"]
    assert list(find_distractors(folder / "list.txt", small_pab, [])) == names
    found = find_distractors(folder, small_pab, [])
    assert found.keys() > set(names)
    assert found["snapshot/camera/005.png"].samefile(noise / "deeper" / "005.png")
    assert "2 files not taken: 1 .heic (pip install 'tpas[heic]'), 1 .txt" in caplog.text
    rules = FolderRules(follow_links=False)
    with pytest.raises(FileNotFoundError, match="no image in it. 4 files not taken: 2 links not followed"):
        find_distractors(folder, small_pab, [], rules)
    with pytest.raises(ValueError, match="list.txt, line 1: '1.jpg': .* is a link that leads out of"):
        find_distractors(folder / "list.txt", small_pab, [], rules)


def test_the_benchmarks_own_images_may_be_linked(start, small_pab, tmp_path, capsys):
    root = tmp_path / "root"
    shutil.copytree(small_pab / "annotation", root / "annotation")
    (root / "test").symlink_to(small_pab / "test")
    run(start, root, "--output", tmp_path / "linked")
    run(start, small_pab, "--output", tmp_path / "there")
    assert read(tmp_path / "linked")["stages"] == read(tmp_path / "there")["stages"]
    with pytest.raises(SystemExit, match="evaluate: annotation/test/.*, line .* is a link that leads out"):
        run(start, root, "--no_follow_links")


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ("000.jpg\n../000.jpg", ValueError, r"list.txt, line 2: '../000.jpg': .* leads out of"),
        ("/000.jpg", ValueError, "list.txt, line 1: '/000.jpg': .* leads out of"),
        ("000.jpg\n002.jpg\n./000.jpg", ValueError, "line 3: './000.jpg' is the image of line 1 again"),
        ("000.jpg\n999.jpg", FileNotFoundError, "list.txt, line 2: no such image: .*999.jpg"),
        ("\n", ValueError, "list.txt: the list is empty"),
    ],
)
def test_a_bad_list_is_named_with_its_line(noise, content, error, message):
    (noise / "list.txt").write_text(content)
    with pytest.raises(error, match=message):
        images_listed(noise / "list.txt")


def test_a_folder_without_images_and_a_taken_name_are_refused(noise, small_pab, tmp_path):
    with pytest.raises(FileNotFoundError, match="no image in it"):
        find_distractors(small_pab / "annotation", small_pab, [])
    with pytest.raises(ValueError, match=r"000.jpg: the gallery has another image named 'noise/000.jpg'"):
        find_distractors(noise, small_pab, ["noise/000.jpg"])


def test_a_broken_distractor_is_named(start, small_pab, noise):
    (noise / "000.jpg").write_bytes(b"no image")
    with pytest.raises(SystemExit, match=r"tpas evaluate: .*noise/000.jpg: not an image"):
        run(start, small_pab, "--gallery", noise)


# Several relevant images


def test_hit_rate_and_recall_differ_where_several_images_answer(start, small_pab, tmp_path, caplog, recwarn):
    root = tmp_path / "pab"
    shutil.copytree(small_pab, root)
    rows = [json.loads(line) for line in (root / "annotation/test/attr.json").read_text().splitlines()]
    for number, row in enumerate(rows):
        row["image_id"] = f"{number // 3:02}"  # three images answer each text
    (root / "annotation/test/ucc.json").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    run(start, root, "--split", "ucc", "--k", 1, 12, "--output", tmp_path / "ucc.json")
    assert "relevant to up to 3 queries, but SCA lets it answer 1: SCA may lower recall" in caplog.text
    table = tmp_path / "pairs.csv"  # two texts an image: said once, not by SCA again
    lines = [f"{row['image']},a {who}" for row in rows for who in ("man", "woman")]
    table.write_text("\n".join(["image,text", *lines]))
    caplog.clear()
    run(start, table, "--image_root", root)
    assert caplog.text.count("may lower recall") == 1
    assert not [each for each in recwarn if "may lower recall" in str(each.message)]
    caplog.clear()
    run(start, root, "--split", "ucc", "--sca_capacity", 3)
    run(start, small_pab)
    assert "may lower recall" not in caplog.text
    results = read(tmp_path / "ucc.json")
    figures = results["stages"]["sca"]["all"]
    assert figures["hit_rate@1"] == pytest.approx(3 * figures["recall@1"])
    assert figures["recall@12"] == figures["hit_rate@12"] == 1
    assert 0 < figures["hit_rate@1"] < 1
    ranks = [sorted(row) for row in results["outcomes"]["relevant_ranks"]["sca"]]
    assert {len(row) for row in ranks} == {3}
    assert figures["mINP"] == pytest.approx(np.mean([3 / row[-1] for row in ranks]))
    assert figures["median_rank"] == np.median([row[0] for row in ranks])


# Sizes


def test_image_size_and_text_length_reach_model_and_processor(start, small_pab, tmp_path):
    run(start, small_pab, "--output", tmp_path / "own.json")
    run(start, small_pab, *("--image_size", 64, "--max_text_length", 9, "--output", tmp_path / "other.json"))
    own, other = read(tmp_path / "own.json"), read(tmp_path / "other.json")
    assert (own["image_size"], own["max_text_length"]) == (32, 24)
    assert (other["image_size"], other["max_text_length"]) == (64, 9)
    assert own["outcomes"] != other["outcomes"]


# Files


@pytest.fixture
def written(start, small_pab, tmp_path) -> Path:
    folder = tmp_path / "written"
    flags = ("--fusion_weight", 0.3, "--shortlist", 10, "--output", folder / "results.json")
    flags += ("--markdown", folder / "results.md", "--write_scores", folder / "s.npz")
    run(start, small_pab, *flags, "--rankings", folder / "rankings.json")
    return folder


def test_score_files_hold_the_lists_by_id(written, small_pab):
    rankings = read(written / "rankings.json")["queries"]
    stages = ["embeddings", "fused", "matching"]
    assert sorted(path.name for path in written.glob("*.npz")) == [f"s.{stage}.npz" for stage in stages]
    for stage in stages:
        with np.load(written / f"s.{stage}.npz", allow_pickle=False) as arrays:
            assert arrays["query_ids"].tolist() == [query["query_id"] for query in rankings]
            assert arrays["scores"].dtype == np.float32
            for query, indices, scores in zip(rankings, arrays["indices"], arrays["scores"], strict=True):
                listed = query["stages"][stage]
                assert arrays["gallery_ids"][indices].tolist() == listed["ids"]
                assert scores.tolist() == pytest.approx(listed["scores"])


def test_scores_may_be_safetensors_and_nothing_else(start, small_pab, tmp_path):
    run(start, small_pab, "--write_scores", tmp_path / "s.safetensors", "--token_memory", "inf")
    assert read_score_file(tmp_path / "s.matching.safetensors").describe() == "12 queries, 12 images, top 12"
    with pytest.raises(SystemExit, match=r"s.csv: a score file ends in .npz, .safetensors, .trec or .run"):
        run(tmp_path / "no model is read", small_pab, "--write_scores", tmp_path / "s.csv")


def test_markdown_says_what_the_json_says(written):
    text = (written / "results.md").read_text()
    results = read(written / "results.json")
    title = f"# {results['model']} on pab (drawn), test"
    assert text.startswith(f"{title}\n\n## all (12 queries)\n\n| stage | Recall@1")
    lines = (line.strip("|").split("|") for line in text.splitlines() if "|" in line)
    rows = [[cell.strip() for cell in cells] for cells in lines]
    final = [row for row in rows if row[0] == "+ SCA"]
    figures, intervals = results["stages"]["sca"]["all"], results["confidence"]["stages"]["sca"]["all"]
    low, high = intervals["recall@1"]
    assert final[0][1] == f"{100 * figures['recall@1']:.2f} [{100 * low:.2f}, {100 * high:.2f}]"
    assert final[0][-1] == f"{figures['median_rank']:g}"
    first = results["first_answers"]["sca"]
    assert final[3][1:] == [f"{100 * first['coverage']:.2f}", f"{100 * first['collision_rate']:.2f}"]
    pair = results["pair_confusion"]["sca"]["anomaly"]
    assert final[6][1:4] == ["anomaly", "6", f"{100 * pair['right']:.2f}"]
    assert {len(row) for row in rows} == {10, 3, 7}  # every table is even


def test_plots_are_images_and_leave_no_state(start, small_pab, tmp_path):
    plots = tmp_path / "plots"
    run(start, small_pab, "--plots", plots)
    names = {"collisions.jpg", "failures.jpg", "recall_curve.png", "score_distributions.png", "successes.jpg"}
    assert {path.name for path in plots.iterdir()} == names
    for path in plots.iterdir():
        with Image.open(path) as image:
            assert min(image.size) > 60
            assert len(image.convert("L").getcolors()) > 20
    assert pyplot.get_fignums() == []


def test_the_sheets_show_queries_of_their_kind(start, small_pab):
    model, processor = load_model(str(start))
    benchmark = retrieval_split(load_pab(small_pab, "test"))
    result = measure(model, processor, benchmark, small_pab)
    figures = evaluation_figures(result, benchmark, small_pab)
    queries = rankings_json(result, benchmark, {})["queries"]
    right = [query["stages"]["sca"]["ids"][0] in query["relevant"] for query in queries]
    assert 0 < sum(right) < len(queries)
    for name, kind in (("successes.jpg", True), ("failures.jpg", False)):
        words = " ".join(text.get_text() for text in figures[name].texts)
        kinds = [found for one, found in zip(queries, right, strict=True) if one["caption"] in words]
        assert kinds == [kind] * min(6, right.count(kind))
        assert words.count("✓ right") == len(kinds)  # the right one is always to be seen
    moved = [query for query in queries if query["moved"]]
    words = " ".join(text.get_text() for text in figures["collisions.jpg"].texts)
    assert moved
    assert sum(query["caption"] in words for query in moved) >= min(4, len(moved))
    assert words.count("moves on: ") == min(4, len(moved))


def test_right_places_by_hand():
    indices = torch.tensor([[3, 1, 2], [0, 2, 3]])
    places = right_places(indices, [np.array([2, 3]), np.array([1])])
    assert places.tolist() == [[True, False, True], [False] * 3]


def test_what_was_written_is_read(written, small_pab):
    files = written / "results.json", written / "rankings.json"
    results, rankings = map(read, files)
    evaluation = Evaluation.read(*files, small_pab)
    assert evaluation.results == results
    for query, entry in zip(evaluation.queries, rankings["queries"], strict=True):
        fields = [entry[name] for name in ("query_id", "caption", "behaviour", "moved")]
        assert [query.id, query.text, query.behaviour, query.moved] == fields
        assert query.relevant == {name: (small_pab / name).resolve() for name in entry["relevant"]}
        ids = {stage: lists["ids"] for stage, lists in entry["stages"].items()}
        for stage, hits in query.hits.items():
            assert [hit.id for hit in hits] == ids[stage]
            assert [hit.rank for hit in hits] == list(range(1, 11))
            assert [hit.score for hit in hits] == entry["stages"][stage]["scores"]
            assert all(hit.path == (small_pab / hit.id).resolve() for hit in hits)
            by_cosine = [ids["embeddings"].index(hit.id) + 1 for hit in hits]
            assert [hit.embedding_rank for hit in hits] == by_cosine
            before = {"sca": "fused", "embeddings_sca": "embeddings"}.get(stage)
            expected = [before and ids[before].index(hit.id) + 1 for hit in hits]
            assert [hit.rank_before_sca for hit in hits] == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not a JSON file"),
        ("[]", "no queries or gallery in it; run tpas evaluate again"),
        ('{"gallery": {}}', "no queries in it"),
    ],
)
def test_rankings_that_are_none_are_named(written, small_pab, content, message):
    (written / "rankings.json").write_text(content)
    with pytest.raises(ValueError, match=f"rankings.json: {message}"):
        Evaluation.read(written / "results.json", written / "rankings.json", small_pab)


# Score files


def measure_files(small_pab, output: Path, *flags: object) -> dict:
    evaluate(["--data_root", str(small_pab), "--output", str(output), *map(str, flags)])
    return read(output)


def test_score_files_have_the_figures_of_the_model_that_wrote_them(written, small_pab, tmp_path, capsys):
    own = read(written / "results.json")
    stages = ("embeddings", "matching", "fused")
    files = [written / f"s.{stage}.npz" for stage in stages]
    files[2:] = [tmp_path / "s.fused.run"]
    write_score_file(files[2], read_score_file(written / "s.fused.npz"))
    others = ("--markdown", tmp_path / "s.md", "--rankings", tmp_path / "r.json", "--plots", tmp_path / "p")
    results = measure_files(small_pab, tmp_path / "s.json", "--scores", *files, *others)
    assert [*results["stages"]] == [path.name for path in files]
    assert results["data_fingerprint"] == own["data_fingerprint"]
    for stage, path in zip(stages, files, strict=True):
        for group, figures in results["stages"][path.name].items():
            for name in ("recall@1", "recall@5", "recall@10", "hit_rate@10", "median_rank"):
                assert figures[name] == own["stages"][stage][group][name]
        assert results["first_answers"][path.name] == own["first_answers"][stage]
        ranks = own["outcomes"]["relevant_ranks"][stage]  # beyond the ten of its list a file ranks no image
        within = [[rank if rank <= 10 else None for rank in row] for row in ranks]
        assert results["outcomes"]["relevant_ranks"][path.name] == within
        own_lists = [query["stages"][stage]["ids"] for query in read(written / "rankings.json")["queries"]]
        lists = [query["stages"][path.name]["ids"] for query in read(tmp_path / "r.json")["queries"]]
        assert lists == own_lists
    assert "| s.fused.run |" in (tmp_path / "s.md").read_text()
    assert {path.name for path in (tmp_path / "p").iterdir()} == {
        "recall_curve.png",
        "score_distributions.png",
    }
    capsys.readouterr()
    fused, other = str(files[2]), str(written / "results.json")
    compare([other, fused, "--stage", "fused", "--data_root", str(small_pab)])
    compare([str(tmp_path / "s.json"), other, "--stage", "s.fused.run", "fused"])
    by_file, by_results = capsys.readouterr().out.split("first: ")[1:]
    for printed in (by_file, by_results):
        assert re.search(r"recall@10 +(\S+) +\1 +\+0.00", printed)


def test_what_is_not_scored_is_not_found_and_names_decide(small_pab, tmp_path, caplog):
    benchmark = retrieval_split(load_pab(small_pab, "test"))
    queries, gallery = benchmark.query_ids[::-1], sorted(benchmark.gallery_ids)
    scores = np.random.default_rng(0).random((12, 12)) + 1
    right = [gallery.index(benchmark.relevant[11 - row][0]) for row in range(12)]
    filled = np.full((12, 12), -100.0)
    for row in range(12):
        kept = [right[row], *(column for column in range(12) if column != right[row])][row < 3 :][:6]
        filled[row, kept] = scores[row, kept]  # the right image of the first three is not among them
    write_score_file(tmp_path / "a.npz", ScoreFile(filled, None, tuple(queries), tuple(gallery)))
    with caplog.at_level("INFO"):
        results = measure_files(small_pab, tmp_path / "a.json", "--scores", tmp_path / "a.npz", "--k", 6)
    assert "a.npz ranks 6 of 12 images for a query: 3 of 12 right ones are not among them" in caplog.text
    ranks = [1 + int((row > row[own]).sum()) for row, own in zip(filled, right, strict=True)]
    ranks = [None if row < 3 else rank for row, rank in enumerate(ranks)]
    assert results["outcomes"]["relevant_ranks"]["a.npz"] == [[rank] for rank in ranks[::-1]]
    everything = results["stages"]["a.npz"]["all"]
    assert everything["recall@6"] == 9 / 12
    assert everything["mAP"] == pytest.approx(sum(1 / rank for rank in ranks if rank) / 12)


def test_score_files_that_do_not_fit_are_refused(small_pab, tmp_path):
    benchmark = retrieval_split(load_pab(small_pab, "test"))
    queries, gallery = tuple(benchmark.query_ids), tuple(benchmark.gallery_ids)
    path = tmp_path / "a.npz"
    root = ["--data_root", str(small_pab)]
    for content, message in (
        (
            ScoreFile(np.ones((11, 12)), None, queries[1:], gallery),
            f"1 of the test .* not in a.npz .'{queries[0]}'",
        ),
        (
            ScoreFile(np.ones((12, 13)), None, queries, (*gallery, "x.jpg")),
            r"1 of a.npz are not in .*'x.jpg'",
        ),
    ):
        write_score_file(path, content)
        with pytest.raises(SystemExit, match=message):
            evaluate([*root, "--scores", str(path)])
    for flags, message in (
        (["--scores", str(path), "--model", "m"], "either --model or --scores"),
        ([], "either --model or --scores"),
        (["--scores", str(path), "--shortlist", "3"], "--shortlist is for a --model"),
        (["--scores", str(path), "--write_scores", "b.npz"], "--write_scores is for a --model"),
        (["--scores", str(path), str(path)], "a.npz is given twice"),
    ):
        with pytest.raises(SystemExit, match=message):
            evaluate([*root, *flags])
    with pytest.raises(SystemExit, match="a score file has no labels: give --data_root"):
        compare([str(path), str(path)])


# The comparison


def outcomes(query_ids: list, relevant_ranks: object, k: object) -> dict:
    of_queries = {"query_ids": query_ids, "relevant_ranks": relevant_ranks}
    return {"outcomes": of_queries, "data_fingerprint": "f", "k": k}


def results_file(path: Path, ranks: dict[str, list[int]], fingerprint: str = "f", k: tuple = (1, 2)) -> Path:
    content = outcomes(list(ranks), {"sca": list(ranks.values())}, k) | {"data_fingerprint": fingerprint}
    path.write_text(json.dumps(content))
    return path


def test_the_comparison_aligns_by_id(tmp_path, capsys):
    ranks = {"a": [1], "b": [2], "c": [4, 1], "d": [3]}
    first = results_file(tmp_path / "a.json", ranks)
    better = {"d": [1], "a": [1], "c": [1, 2], "b": [2]}
    second = results_file(tmp_path / "b.json", better, k=(1, 2, 3))
    compare([str(first), str(second), "--output", str(tmp_path / "c.json")])
    figures = read(tmp_path / "c.json")["figures"]
    assert figures["recall@1"]["first"] == (1 + 0 + 0.5 + 0) / 4
    assert figures["recall@1"]["second"] == (1 + 0 + 0.5 + 1) / 4
    assert figures["recall@2"]["difference"] == pytest.approx((0.5 + 1) / 4)
    assert "recall@3" not in figures
    assert figures["mINP"]["second"] == pytest.approx((1 + 0.5 + 1 + 1) / 4)
    printed = capsys.readouterr().out
    assert "\n4 queries" in printed  # files of an earlier version name no data
    assert "recall@1       37.50   62.50  +25.00" in printed


def test_two_stages_of_one_file_compare(written, capsys):
    results = written / "results.json"
    compare([str(results), str(results), "--stage", "embeddings", "sca"])
    stages = read(results)["stages"]
    lines = capsys.readouterr().out.splitlines()
    assert "pab (drawn), 12 queries" in lines
    row = next(line for line in lines if line.startswith("mAP"))
    expected = [f"{100 * stages[stage]['all']['mAP']:.2f}" for stage in ("embeddings", "sca")]
    assert row.split()[1:3] == expected


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"fingerprint": "g"}, "a.json .data f. and .*b.json .data g. were measured on different"),
        ({"ranks": {"a": [1], "x": [1]}}, "only one of them has query b"),
        ({"k": (7,)}, "Recall@k for k in .1, 2., .*b.json for .7."),
        ({"ranks": {"a": [1], "b": [0]}}, "b.json: the ranks of query b must be integers from 1, .* got .0."),
        ({"ranks": {"a": [1], "b": []}}, "b.json: the ranks of query b must be integers from 1"),
        ({"ranks": {"a": [1], "b": [2, 2]}}, "b.json: the ranks of query b .* each once, got .2, 2."),
        ({"ranks": {}}, "b.json: needs query_ids"),
        ({"k": ("1",)}, "b.json: needs .* integers as k"),
        ({"k": (0,)}, "b.json: needs .* integers as k"),
        ({"ranks": {"a": [1], "b": [10**400]}}, "b.json: the ranks of query b must be integers from 1"),
        ({"ranks": {"a": [1], "\ud800": [1]}}, "b.json: not a JSON file: .*surrogates not allowed"),
        ({"fingerprint": ["f"]}, "b.json: its data_fingerprint and dataset_name must be texts"),
    ],
)
def test_what_cannot_be_compared_is_refused(tmp_path, second, message):
    first = results_file(tmp_path / "a.json", {"a": [1], "b": [2]})
    other = {"ranks": {"a": [1], "b": [2]}} | second
    with pytest.raises(SystemExit, match=message):
        compare([str(first), str(results_file(tmp_path / "b.json", **other))])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not a JSON file"),
        ({}, "no outcomes in it"),
        ([], "no outcomes"),
        (outcomes(["a"], {"sca": None}, [1]), "no outcomes for 1 different query ids"),
        (outcomes([[]], ["sca"], 1), "needs query_ids and relevant_ranks by stage in outcomes, and integers"),
    ],
)
def test_a_file_that_is_no_result_is_refused(tmp_path, content, message):
    first = results_file(tmp_path / "a.json", {"a": [1], "b": [2]})
    (tmp_path / "b.json").write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(SystemExit, match=f"b.json: {message}"):
        compare([str(first), str(tmp_path / "b.json")])
    with pytest.raises(SystemExit, match="a.json: no stage 'fused', it has sca"):
        compare([str(first), str(first), "--stage", "fused"])
