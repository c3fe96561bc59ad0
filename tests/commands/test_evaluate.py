import json
import os
import re
import shutil
import statistics
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator, debug_launcher
from accelerate.state import AcceleratorState
from tiny_inputs import score_each_pair
from transformers import BertTokenizer

from tpas.commands.evaluate import main
from tpas.data.drawn.synthetic_pab import draw_pab
from tpas.data.pab import RetrievalBenchmark, annotation_places, load_pab, retrieval_split
from tpas.data.pab_images import image_path
from tpas.evaluation.measures import headline
from tpas.evaluation.retrieval import evaluate, resolve_k
from tpas.evaluation.settings import SCASettings
from tpas.evaluation.tables import format_table
from tpas.modeling_tpas import TPASModel
from tpas.processing_tpas import TPASProcessor, clean_caption, load_image
from tpas.sca import sca_rerank

pytestmark = pytest.mark.usefixtures("fresh_accelerator")
TEST_PAIRS = 12


@pytest.fixture(scope="module")
def drawn_root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("drawn") / "pab"
    return draw_pab(root, train_pairs=16, test_pairs=TEST_PAIRS, image_size=48, workers=1)


@pytest.fixture(scope="module")
def benchmark(drawn_root) -> RetrievalBenchmark:
    return retrieval_split(load_pab(drawn_root, "test"))


@pytest.fixture
def processor(tiny_config, benchmark) -> TPASProcessor:
    words = sorted({word for caption in benchmark.captions for word in clean_caption(caption).split()})
    known = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words][: tiny_config.text_config.vocab_size]
    tokenizer = BertTokenizer(vocab={word: index for index, word in enumerate(known)})
    return TPASProcessor.build(tokenizer, image_size=32, max_text_length=tiny_config.max_text_length)


@pytest.fixture
def model(tiny_config) -> TPASModel:
    model = TPASModel(tiny_config)
    for parameter in model.parameters():  # far from its start, where all captions would look alike
        torch.nn.init.normal_(parameter, std=0.6) if parameter.ndim > 1 else None
    return model


@pytest.fixture
def start(model, processor, tmp_path) -> Path:
    model.save_pretrained(tmp_path / "start")
    processor.save_pretrained(tmp_path / "start")
    return tmp_path / "start"


def run(start: Path | str, root: Path | str, *flags: object) -> None:
    main(["--model", str(start), "--data_root", str(root), *map(str, flags)])


def naive_measures(rankings: list[list[str]], relevant: list[list[str]], rows: list[int]) -> dict[str, float]:
    measures = {f"recall@{k}": [] for k in (1, 5, 10)} | {"mAP": []}
    for row in rows:
        for k in (1, 5, 10):
            found = sum(image in rankings[row][:k] for image in relevant[row])
            measures[f"recall@{k}"].append(found / len(relevant[row]))
        ranks = sorted(rankings[row].index(image) + 1 for image in relevant[row])
        measures["mAP"].append(np.mean([(place + 1) / rank for place, rank in enumerate(ranks)]))
    return {name: np.mean(values) for name, values in measures.items()}


@pytest.mark.parametrize(("shortlist", "fusion_weight"), [(None, 0.0), (4, 0.4)])
def test_stages_equal_a_naive_search(model, processor, benchmark, drawn_root, shortlist, fusion_weight):
    settings = {"shortlist": shortlist, "fusion_weight": fusion_weight, "batch_size": 5}
    result = evaluate(model, processor, benchmark, drawn_root, **settings)
    images = [load_image(image_path(drawn_root, image)) for image in benchmark.gallery_ids]
    scores = score_each_pair(model, processor, images, benchmark.captions)
    cosines, logits = (of_all.double().numpy() for of_all in scores)
    size = shortlist or TEST_PAIRS
    final = "fused" if fusion_weight else "matching"

    orders = {"embeddings": [], "matching": [], "fused": []}
    final_scores = []
    for row in range(TEST_PAIRS):
        by_cosine = sorted(range(TEST_PAIRS), key=lambda g: -cosines[row, g])
        head, tail = by_cosine[:size], by_cosine[size:]
        match, cosine = logits[row, head], cosines[row, head]
        fused = (1 - fusion_weight) * (match - match.mean()) / match.std()
        fused += fusion_weight * (cosine - cosine.mean()) / cosine.std()
        orders["embeddings"].append(by_cosine)
        orders["matching"].append([head[place] for place in np.argsort(-match)] + tail)
        orders["fused"].append([head[place] for place in np.argsort(-fused)] + tail)
        final_scores.append(np.sort(fused if fusion_weight else match)[::-1])
    heads = np.array(orders[final])[:, :size]
    reranked = sca_rerank(heads, np.array(final_scores), query_ids=benchmark.query_ids)
    pairs = zip(reranked.indices.tolist(), orders[final], strict=True)
    orders["sca"] = [head + order[size:] for head, order in pairs]

    assert result.final_stage == final
    assert ("fused" in result.stages) == (fusion_weight > 0)
    groups = {
        "all": list(range(TEST_PAIRS)),
        "normal": [row for row, b in enumerate(benchmark.query_behaviours) if b == "normal"],
        "anomaly": [row for row, b in enumerate(benchmark.query_behaviours) if b == "anomaly"],
    }
    assert result.group_sizes == {"all": 12, "normal": 6, "anomaly": 6}
    for stage in result.stages.keys() - {"embeddings_sca"}:
        assert result.rankings[stage].tolist() == [order[:size] for order in orders[stage]], stage
        ids = [[benchmark.gallery_ids[column] for column in order] for order in orders[stage]]
        for row, relevant in enumerate(benchmark.relevant):
            ranks = [ids[row].index(image) + 1 for image in relevant]
            assert result.relevant_ranks[stage][row].tolist() == ranks
        for group, rows in groups.items():
            expected = naive_measures(ids, benchmark.relevant, rows)
            assert headline(result.stages[stage][group]) == pytest.approx(expected)
        # One relevant image each, and its hard_negative: the other one of the drawn pair.
        right = [ids[row].index(benchmark.relevant[row][0]) for row in range(TEST_PAIRS)]
        other = [ids[row].index(benchmark.hard_negatives[row][0]) for row in range(TEST_PAIRS)]
        confusion = result.pair_confusion[stage]["all"]
        assert confusion["queries"] == TEST_PAIRS
        assert confusion["right"] == np.mean(np.array(right) == 0)
        assert confusion["hard_negative"] == np.mean(np.array(other) == 0)
        assert confusion["right_before_hard_negative"] == np.mean(np.array(right) < np.array(other))
        first = [order[0] for order in orders[stage]]
        assert result.first_answers[stage]["coverage"] == len(set(first)) / TEST_PAIRS
        shared = sum(first.count(image) > 1 for image in first)
        assert result.first_answers[stage]["collision_rate"] == shared / TEST_PAIRS
    assert result.moved.tolist() == reranked.moved.tolist()
    assert result.sca_report == reranked.report


def test_sca_settings_reach_sca(model, processor, benchmark, drawn_root):
    settings = {"confidence": "margin", "max_shift": 3, "tau": 0.01, "capacity": 2}
    result = evaluate(model, processor, benchmark, drawn_root, sca=SCASettings(**settings))
    lists = result.rankings["matching"], result.scores["matching"]
    expected = sca_rerank(*lists, query_ids=benchmark.query_ids, **settings)
    assert torch.equal(result.rankings["sca"], expected.indices)
    assert result.sca_report == expected.report
    assert result.sca == SCASettings(**settings)


def test_only_similar_texts_compete(model, processor, benchmark, drawn_root):
    with torch.no_grad():
        model.eval()
        texts = [model.get_text_features(**processor(text=[caption])) for caption in benchmark.captions]
    embeds = torch.cat([text.pooler_output for text in texts])  # (Q, projection_dim)
    cosines = (embeds @ embeds.T)[*torch.triu_indices(len(embeds), len(embeds), 1)]  # 66, one for each pair
    threshold = statistics.median(cosines.tolist())  # between two of them
    moved = {}
    for value in (None, -1.0, threshold, 1.0):
        settings = SCASettings(max_shift=3, text_threshold=value)
        result = evaluate(model, processor, benchmark, drawn_root, shortlist=5, sca=settings)
        for before, after in (("embeddings", "embeddings_sca"), ("matching", "sca")):
            lists = result.rankings[before], result.scores[before]
            gate = {} if value is None else {"text_embeds": embeds, "text_threshold": value}
            expected = sca_rerank(*lists, query_ids=benchmark.query_ids, max_shift=3, **gate)
            assert torch.equal(result.rankings[after], expected.indices)
            moved[after, value] = expected.report.moved
    assert moved["sca", None] == moved["sca", -1.0] > moved["sca", 1.0]


def test_figures_by_action_and_scene(model, processor, benchmark, drawn_root):
    result = evaluate(model, processor, benchmark, drawn_root)
    of_actions, of_scenes = benchmark.query_actions, benchmark.query_scenes
    for by_label, labels in ((result.by_action, of_actions), (result.by_scene, of_scenes)):
        assert by_label.keys() == set(labels)
        for label, measured in by_label.items():
            rows = [row for row, own in enumerate(labels) if own == label]
            assert measured["queries"] == len(rows)
            found = [result.relevant_ranks["sca"][row].min() <= 1 for row in rows]
            assert measured["stages"]["sca"]["recall@1"] == pytest.approx(np.mean(found))


def test_cutoffs_are_those_that_the_gallery_allows(caplog):
    assert resolve_k(None, 10) == [1, 5, 10]
    with caplog.at_level("INFO"):
        assert resolve_k(None, 7) == [1, 5]
    assert "the gallery has 7 images" in caplog.text
    assert resolve_k([3, 1], 7) == [1, 3]
    for k in (0, 8):
        with pytest.raises(ValueError, match=f"between 1 and the gallery's 7 images, got {k}"):
            resolve_k([1, k], 7)


def test_command_prints_and_writes_what_it_measured(start, drawn_root, benchmark, tmp_path, capsys):
    output, rankings = tmp_path / "results" / "results.json", tmp_path / "results" / "rankings.json"
    files = ("--output", output, "--rankings", rankings)
    run(start, drawn_root, "--shortlist", 11, "--fusion_weight", 0.5, *files)
    results, ranked = json.loads(output.read_text()), json.loads(rankings.read_text())
    assert sorted(path.name for path in output.parent.iterdir()) == ["rankings.json", "results.json"]
    assert results["model"] == str(start)
    assert (results["split"], results["queries"], results["gallery"]) == ("test", TEST_PAIRS, TEST_PAIRS)
    assert (results["shortlist"], results["fusion_weight"]) == (11, 0.5)
    assert list(results["stages"]) == ["embeddings", "embeddings_sca", "matching", "fused", "sca"]
    assert results["sca_report"]["moved"] == sum(query["moved"] for query in ranked["queries"])

    assert set(ranked["gallery"]) == set(benchmark.gallery_ids)
    assert all((drawn_root / path).is_file() for path in ranked["gallery"].values())
    assert [query["caption"] for query in ranked["queries"]] == benchmark.captions
    intervals = results["confidence"]["stages"]
    for stage, groups in results["stages"].items():
        for group, figures in groups.items():
            for name, (low, high) in intervals[stage][group].items():
                assert 0 <= low <= figures[name] <= high <= 1
        for k in (1, 5, 10):
            found = [query["relevant"][0] in query["stages"][stage]["ids"][:k] for query in ranked["queries"]]
            assert groups["all"][f"recall@{k}"] == pytest.approx(np.mean(found))
    for query in ranked["queries"]:
        first = {stage: lists["ids"][0] for stage, lists in query["stages"].items()}
        assert query["moved"] == (first["sca"] != first["fused"])
        for stage in ("embeddings", "matching", "fused"):
            scores = query["stages"][stage]["scores"]
            assert len(scores) == 10
            assert scores == sorted(scores, reverse=True)

    printed = capsys.readouterr().out.splitlines()
    assert "all (12 queries)" in printed[0]
    assert "anomaly (6 queries)" in printed[0]
    assert printed[1].split()[:4] == ["R@1", "R@5", "R@10", "mAP"]
    assert len(printed) == 2 + 5
    assert len({len(line) for line in printed}) == 1
    final = results["stages"]["sca"]["all"]
    assert printed[-1].startswith("+ SCA")
    assert printed[-1].split()[2:6] == [f"{100 * value:.2f}" for value in headline(final).values()]


def test_a_shortlist_below_ten_is_listed_as_far_as_it_has_scores(start, drawn_root, tmp_path):
    rankings = tmp_path / "rankings.json"
    run(start, drawn_root, "--shortlist", 8, "--rankings", rankings)
    for query in json.loads(rankings.read_text())["queries"]:
        for lists in query["stages"].values():
            assert len(lists["ids"]) == len(lists["scores"]) == 8


def test_table_without_behaviours_has_one_block(model, processor, benchmark, drawn_root):
    unknown = replace(benchmark, query_behaviours=[None] * TEST_PAIRS)
    table = format_table(evaluate(model, processor, unknown, drawn_root, k=[2]))
    assert "normal" not in table
    assert table.splitlines()[1].split() == ["R@2", "mAP"]


def evaluate_on_two_processes(root, start, folder, *flags):
    AcceleratorState._reset_state(reset_partial_state=True)
    files = ("--output", folder / "results.json", "--rankings", folder / "rankings.json")
    run(start, root, "--shortlist", 7, "--fusion_weight", 0.3, *flags, *files)
    accelerator = Accelerator()
    (folder / f"process_{accelerator.process_index}_of_{accelerator.num_processes}").touch()


def test_two_processes_write_the_same_bytes_as_one(start, drawn_root, tmp_path, capfd):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    flags = ("--batch_size", "1", "--token_memory", "0")
    debug_launcher(evaluate_on_two_processes, (drawn_root, start, tmp_path / "two", *flags), num_processes=2)
    assert capfd.readouterr().out.count("all (12 queries)") == 1
    names = sorted(path.name for path in (tmp_path / "two").iterdir())
    assert names == ["process_0_of_2", "process_1_of_2", "rankings.json", "results.json"]
    evaluate_on_two_processes(drawn_root, start, tmp_path / "one", "--batch_size", "64")  # here: on one
    assert (tmp_path / "one" / "process_0_of_1").exists()
    for name in ("results.json", "rankings.json"):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


# Bad input


@pytest.mark.parametrize(("length", "message"), [(None, "no such image file"), (200, "broken image")])
def test_a_missing_or_cut_image_is_named_with_its_annotation(start, drawn_root, tmp_path, length, message):
    root, output = shutil.copytree(drawn_root, tmp_path / "broken"), tmp_path / "results.json"
    pair = load_pab(root, "test")[2]
    content = (root / pair["image"]).read_bytes()
    (root / pair["image"]).unlink()
    if length:
        (root / pair["image"]).write_bytes(content[:length])
    with pytest.raises(SystemExit, match=message) as error:
        run(start, root, "--output", output)
    assert str(error.value).startswith(f"tpas evaluate: {pair['file']}, line {pair['line']}: ")
    assert str(root / pair["image"]) in str(error.value)
    assert not output.exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--shortlist", "0"], "the shortlist must be at least 1, got 0"),
        (["--k", "1", "13"], "k must be between 1 and the gallery's 12 images, got 13"),
        (["--fusion_weight", "2"], "fusion weight must be between 0"),
        (["--batch_size", "0"], "batch size must be at least 1"),
        (["--max_text_length", "33"], "_text_length must be between 3 and the model's 32 positions, got 33"),
        (["--image_size", "30"], "image_size"),
        (["--sca_max_shift", "2", "--sca_mode", "single_pass"], "max_shift must be 0 or 1, got 2"),
        (["--sca_text_threshold", "2"], "text_threshold is a cosine, so between -1 and 1, got 2.0"),
        (["--gallery", "nowhere"], "nowhere: neither a folder of images nor a list of them"),
    ],
)
def test_impossible_numbers_are_refused(start, drawn_root, tmp_path, flags, message):
    output = tmp_path / "results.json"
    with pytest.raises(SystemExit, match=message):
        run(start, drawn_root, "--output", output, *flags)
    assert not output.exists()


@pytest.mark.parametrize("flag", ["--output", "--rankings", "--markdown", "--write_scores", "--plots"])
def test_a_file_that_could_not_be_written_is_refused_before_the_ranking(drawn_root, tmp_path, flag):
    (tmp_path / "taken").write_text("")
    place = tmp_path / "taken" / "scores.npz"
    with pytest.raises(SystemExit, match=f"^tpas evaluate: no place for {place}"):
        run("no model is read", drawn_root, flag, place)
    (tmp_path / "folder.npz").mkdir()
    if flag != "--plots":
        with pytest.raises(SystemExit, match=r"folder.npz is a folder: name a file"):
            run("no model is read", drawn_root, flag, tmp_path / "folder.npz")


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("--validation_fraction", 0.1, "--validation_fraction has no effect on --split test"),
        (
            "--seed",
            -1,
            "'--seed': Input should be greater than or equal to 0",
        ),  # the bootstrap would refuse it
    ],
)
def test_wrong_flags_are_refused_at_once(capsys, flag, value, message):
    with pytest.raises(SystemExit):
        run("m", "d", flag, value)
    assert message in capsys.readouterr().err


def test_captions_that_are_cut_are_counted_once(start, drawn_root, tmp_path, caplog):
    run(start, drawn_root, "--max_text_length", "5")
    (line,) = [record.getMessage() for record in caplog.records if "longer than" in record.getMessage()]
    first = r"of the first, annotation/test/attr.json, line 1, '.+' is lost"
    assert re.fullmatch(rf"warning: 12 of 12 texts are longer than the 5 tokens .*: {first}", line)


def test_validation_split_is_cut_from_train(start, drawn_root, tmp_path):
    output = tmp_path / "results.json"
    settings = {"validation_fraction": 0.5, "max_validation_pairs": 4}
    flags = [word for name, value in settings.items() for word in (f"--{name}", value)]
    run(start, drawn_root, "--split", "validation", *flags, "--output", output)
    assert json.loads(output.read_text())["queries"] == 4
    dataset = load_pab(drawn_root, "validation", **settings)
    assert all(place.startswith(f"annotation{os.sep}train") for place in annotation_places(dataset).values())


def test_data_are_called_what_the_user_calls_them(start, drawn_root, tmp_path):
    output, report = tmp_path / "results.json", tmp_path / "report.md"
    named = ["--dataset_name", "Streets", "--output", str(output), "--markdown", str(report)]
    main(["--model", str(start), "--data_root", str(drawn_root), *named])
    results = json.loads(output.read_text())
    assert results["dataset_name"] == "Streets"
    assert "PAB" not in output.read_text()
    assert report.read_text().startswith(f"# {start} on Streets, test\n")
