"""`tpas calibrate` on drawn people, and a search that uses what it wrote."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_retrieval_models import cached_snapshot

from tpas import Calibration, Gallery, draw_pab, load_model
from tpas.commands.calibrate import main as calibrate
from tpas.commands.push import main as push
from tpas.commands.search import main as search
from tpas.data.pab import load_pab, source_videos
from tpas.evaluation.absent_people import search_without_them

MODEL = Path(__file__).parents[2] / "demo_start"
TEXTS = ["A woman in a red coat is lying on the pavement.", "A man in a blue jacket is running."]


@pytest.fixture(scope="module")
def people(tmp_path_factory) -> Path:
    """44 persons to learn from, and 12 images to search."""
    folder = tmp_path_factory.mktemp("drawn") / "pab"
    return draw_pab(folder, train_pairs=92, test_pairs=12, image_size=48, workers=1)


@pytest.fixture(scope="module")
def model(people, tmp_path_factory) -> Path:
    """The demo's start with a calibration of its own."""
    folder = Path(shutil.copytree(MODEL, tmp_path_factory.mktemp("model") / "start"))
    words = f"--model {folder} --data_root {people} --validation_fraction 0.96 --shortlist 12 --json"
    calibrate(words.split())
    return folder


def searched(capsys, *words: object) -> list[dict]:
    capsys.readouterr()
    search([*map(str, words), "--json"])
    return json.loads(capsys.readouterr().out)


def test_a_search_says_first_that_there_is_no_one(people, model, capsys):
    folder = people / "test" / "imgs"
    asked = (folder, *TEXTS, "--model", model, "--shortlist", 12, "-k", 3)
    answers = searched(capsys, *asked)
    gallery = Gallery.open(next(Path(f"{folder}.gallery").iterdir()), *load_model(str(model)))
    calibration = Calibration.load(model / "calibration.json")
    rows, stages = gallery.stage_scores(TEXTS, 12)
    chances, of_images = calibration.chances(stages.numpy(), 12)
    for number, answer in enumerate(answers):
        assert list(answer)[:3] == ["text", "no_one", "chance"]
        assert answer["chance"] == pytest.approx(chances[number])
        assert answer["no_one"] is bool(chances[number] < 0.2)
        by_id = dict(zip([gallery.ids[row] for row in rows[number]], of_images[number], strict=True))
        assert [hit["chance"] for hit in answer["hits"]] == pytest.approx(
            [by_id[hit["id"]] for hit in answer["hits"]]
        )

    search([*map(str, asked), "--least_chance", "1"])
    first, said, heads, *_ = capsys.readouterr().out.splitlines()
    assert first == TEXTS[0]
    assert said == f"no one like this (chance {100 * chances[0]:.0f} %); nearest:"
    assert heads.split() == ["rank", "chance", "score", "cosine", "by", "cosine", "image"]

    # A set is what has a share of at least the limit, by chance; SCA and another shortlist have none.
    limit = calibration.least_share(0.8)
    for number, answer in enumerate(searched(capsys, *asked, "--coverage", 0.8)):
        shares = of_images[number] / chances[number]
        assert len(answer["hits"]) == max(1, (shares >= limit).sum())
        assert [hit["chance"] for hit in answer["hits"]] == pytest.approx(
            sorted(of_images[number], reverse=True)[: len(answer["hits"])]
        )
    limit = calibration.least_share(0.5, each_behaviour=True)
    words = ("--coverage", 0.5, "--each_behaviour", "--presence", 0.1)
    for number, answer in enumerate(searched(capsys, *asked, *words)):
        assert len(answer["hits"]) == max(1, (of_images[number] / chances[number] >= limit).sum())
        odds = chances[number] / (1 - chances[number]) / 9
        assert answer["chance"] == pytest.approx(odds / (1 + odds))
    gallery.calibration = calibration
    with pytest.raises(ValueError, match="coverage 0.8: .* shortlist of 12 images, and 5 are asked for"):
        gallery.search(TEXTS, shortlist=5, coverage=0.8)
    assert gallery.search(TEXTS, shortlist=5).chances == [None, None]


def test_people_are_asked_for_with_their_images_and_without(people, model, tmp_path):
    dataset = load_pab(people, "train", cache_dir=tmp_path / "cache")
    video = dict(zip(dataset["image"], source_videos(dataset), strict=True))
    calibration = Calibration.load(model / "calibration.json")
    loaded = load_model(str(model))
    for presence, said in ((1e-6, 45), (1 - 1e-6, 0)):  # all are unlikely, or none is
        own = replace(calibration, presence=presence)
        found = search_without_them(*loaded, own, dataset, people, tmp_path / "gallery")
        assert (found.searches, found.said_of_absent, found.said_of_present) == (45, said, said)
    person = video[dataset["image"][dataset["caption"].index(found.text)]]
    assert person not in {video[hit.id] for hit in found.nearest}
    asked = Gallery.open(tmp_path / "gallery", *loaded, calibration=own)
    assert found.chance_present == asked.search([found.text], shortlist=12).chances[0] > found.chance_absent


def test_it_goes_to_the_hub_with_the_model_and_comes_back(people, model, tmp_path, capsys):
    folder = Path(shutil.copytree(model, tmp_path / "model"))
    push([str(folder), "user/calibrated", "--dry_run", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert "calibration.json" in found["files"]
    assert "learnt by `tpas calibrate` from 44 persons and 88 images" in found["card"]
    shutil.copytree(folder, cached_snapshot("user/calibrated", "d" * 40, latest=True), dirs_exist_ok=True)
    asked = (people / "test" / "imgs", TEXTS[0], "--shortlist", 12)
    of_hub = searched(capsys, *asked, "--model", "user/calibrated")
    assert of_hub[0]["chance"] == searched(capsys, *asked, "--model", model)[0]["chance"]

    content = json.loads((folder / "calibration.json").read_text())
    (folder / "calibration.json").write_text(json.dumps(content | {"model_fingerprint": "another"}))
    with pytest.raises(SystemExit, match=r"calibration.json: .* is of the model another, .*; or remove it"):
        push([str(folder), "user/calibrated", "--dry_run"])


def test_pairs_that_the_run_trained_on_are_not_calibrated_on(people, model, tmp_path, capsys):
    """The run's own cut is taken, here one of too few persons; of a larger one it is warned."""
    best = Path(shutil.copytree(model, tmp_path / "best"))
    (tmp_path / "training_arguments.json").write_text('{"validation_fraction": 0.4}')
    flags = ["--model", str(best), "--data_root", str(people)]
    for words, warned in (([], False), (["--validation_fraction", "0.5"], True)):
        with pytest.raises(SystemExit, match="persons, and a calibration needs 40"):
            calibrate([*flags, *words])
        assert ("trained with --validation_fraction 0.4" in capsys.readouterr().err) == warned


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("calibrate --split test", "must not see the test set"),
        ("calibrate --split ucc", "must not see the test set"),
        ("calibrate --validation_fraction 0.5", "persons, and a calibration needs 40"),
        (
            "search --coverage 0.99",
            "a coverage of 0.99 needs 99 held-out persons, and the calibration has 22",
        ),
        ("search --coverage 0.99 --each_behaviour", "and the calibration has 22 with normal texts"),
        ("search --each_behaviour", "--each_behaviour is of a --coverage"),
        ("search --presence 0", "between 0 and 1, such as 0.1: got 0"),
        ("search --presence 0.1 --model START", "--presence needs a calibration"),
        ("calibrate --presence 1", "between 0 and 1, such as 0.1: got 1"),
        ("search --coverage 0.8 --sca", "leave out --sca"),
        ("search --model START --coverage 0.8", "--coverage needs a calibration"),
        ("search --model OTHER --calibration FILE", "the calibration is of the model"),
        ("search --calibration CONFIG", "config.json is no calibration that `tpas calibrate` wrote"),
    ],
)
def test_what_cannot_be_promised_is_refused(people, model, folders, capsys, words, message):
    names = {"START": MODEL, "OTHER": folders["clip"], "FILE": model / "calibration.json"}
    names["CONFIG"] = model / "config.json"
    command, *flags = [str(names.get(word, word)) for word in words.split()]
    if "--model" not in flags:
        flags += ["--model", str(model)]
    places = (
        ["--data_root", str(people)] if command == "calibrate" else [str(people / "test" / "imgs"), TEXTS[0]]
    )
    with pytest.raises(SystemExit) as ended:
        {"calibrate": calibrate, "search": search}[command]([*places, *flags])
    assert message in f"{ended.value.code} {capsys.readouterr().err}"
