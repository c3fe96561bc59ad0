"""Data of every kind give the same figures, and a wrong row is named by file, line and column."""

import csv
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import datasets
import huggingface_hub.constants
import pytest
import torch
from datasets import Dataset, DatasetDict, Features, Value
from tiny_inputs import noise_image
from training_runs import flags, train

from tpas.commands.evaluate import main as evaluate_command
from tpas.data.pab import load_pab, retrieval_split
from tpas.data.retrieval_data import RetrievalData
from tpas.evaluation.retrieval import evaluate
from tpas.evaluation.tables import format_table
from tpas.processing_tpas import load_image
from tpas.training.data import PairCollator, TrainingPairs

Rows = list[dict[str, str]]


# PAB's pairs as others would keep them: each writes them below a new folder and returns what to open.


def csv_of(path: Path, rows: Rows, separator: str = ",", encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding=encoding) as file:
        table = csv.DictWriter(file, list(rows[0]), delimiter=separator)
        table.writeheader()
        table.writerows(rows)
    return path


def lines_of(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def renamed(rows: Rows, **names: str) -> Rows:
    return [{names.get(name, name): value for name, value in row.items()} for row in rows]


def as_csv(folder: Path, rows: Rows, pab: Path) -> Path:
    shutil.copytree(pab / "test", folder / "test"), shutil.copytree(pab / "train", folder / "train")
    return csv_of(folder / "street.csv", rows)


def as_csv_of_a_spreadsheet(folder: Path, rows: Rows, pab: Path) -> Path:
    shutil.copytree(pab, folder / "images")
    rows = renamed(rows, image="Filename", text="Caption")
    return csv_of(folder / "street.csv", rows, ";", "utf-16")


def as_json_lines(folder: Path, rows: Rows, pab: Path) -> Path:
    here = [row | {"image": str(folder.absolute() / "images" / row["image"])} for row in rows]
    shutil.copytree(pab, folder / "images")
    return lines_of(folder / "street.jsonl", here)


def published(file: str, image: str, images: str = "imgs") -> Callable[[Path, Rows, Path], Path]:
    def write(folder: Path, rows: Rows, pab: Path) -> Path:
        shutil.copytree(pab, folder / images)
        records = [
            {"split": row["split"], "captions": [row["text"]], image: row["image"], "id": number}
            | {"processed_tokens": [row["text"].split()]}
            for number, row in enumerate(rows)
        ]
        (folder / file).write_text(json.dumps(records), encoding="utf-8")
        return folder

    return write


def as_imagefolder(folder: Path, rows: Rows, pab: Path) -> Path:
    shutil.copytree(pab, folder)
    shutil.rmtree(folder / "annotation")
    rows = [{"file_name": row["image"], "caption": row["text"]} for row in rows]
    csv_of(folder / "metadata.csv", rows)
    return folder


def as_imagefolder_by_split(folder: Path, rows: Rows, pab: Path) -> Path:
    for split in ("train", "test"):
        shutil.copytree(pab / split, folder / split)
        names = {row["image"].removeprefix(f"{split}/"): row for row in rows if row["split"] == split}
        lines_of(
            folder / split / "metadata.jsonl", [{"file_name": n, "text": r["text"]} for n, r in names.items()]
        )
    return folder


def with_images(rows: Rows, pab: Path) -> DatasetDict:
    features = Features({"image": datasets.Image(), "text": Value("string")})

    def of_split(split: str) -> Dataset:
        found = [row for row in rows if row["split"] == split]
        images = [{"bytes": (pab / row["image"]).read_bytes(), "path": row["image"]} for row in found]
        return Dataset.from_dict({"image": images, "text": [row["text"] for row in found]}, features)

    return DatasetDict({split: of_split(split) for split in ("train", "test")})


def as_saved(folder: Path, rows: Rows, pab: Path) -> Path:
    with_images(rows, pab).save_to_disk(str(folder))
    return folder


def as_parquet(folder: Path, rows: Rows, pab: Path) -> Path:
    for split, dataset in with_images(rows, pab).items():
        (folder / "data").mkdir(parents=True, exist_ok=True)
        dataset.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    return folder


def as_one_parquet_file(folder: Path, rows: Rows, pab: Path) -> Path:
    shutil.copytree(pab, folder)
    Dataset.from_list(rows).to_parquet(folder / "street.parquet")
    return folder / "street.parquet"


def as_hub_data(folder: Path, rows: Rows, pab: Path) -> str:
    repository, commit = Path(huggingface_hub.constants.HF_HUB_CACHE, "datasets--we--street"), "0" * 40
    as_parquet(repository / "snapshots" / commit, rows, pab)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    return "hf:we/street"


KINDS = {
    "a CSV": (as_csv, "street"),
    "a spreadsheet's": (as_csv_of_a_spreadsheet, "street (drawn)"),
    "JSON Lines": (as_json_lines, "street (drawn)"),
    "CUHK-PEDES": (published("reid_raw.json", "file_path"), "CUHK-PEDES (drawn)"),
    "ICFG-PEDES": (published("ICFG-PEDES.json", "file_path"), "ICFG-PEDES (drawn)"),
    "RSTPReid": (published("data_captions.json", "img_path"), "RSTPReid (drawn)"),
    "an imagefolder": (as_imagefolder, "data (drawn)"),
    "one by split": (as_imagefolder_by_split, "data"),
    "save_to_disk": (as_saved, "data"),
    "Parquet": (as_parquet, "data"),
    "a Parquet file": (as_one_parquet_file, "street (drawn)"),
    "the Hub": (as_hub_data, "we/street"),
}


@pytest.fixture(scope="module")
def rows(small_pab) -> Rows:
    return [
        {"image": row["image"], "text": row["caption"], "id": row["image_id"], "split": split}
        for split in ("train", "test")
        for row in load_pab(small_pab, split, validation_fraction=0)
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_the_figures_of_pab(kind, rows, small_pab, model, processor, tmp_path):
    for parameter in model.parameters():  # far from its start, where all texts would look alike
        torch.nn.init.normal_(parameter, std=0.6) if parameter.ndim > 1 else None
    expected = evaluate(model, processor, retrieval_split(load_pab(small_pab, "test")), small_pab)

    write, name = KINDS[kind]
    source = write(tmp_path / "data", rows, small_pab)
    root = None if kind != "JSON Lines" else tmp_path / "data" / "images"
    data = RetrievalData.open(source, root, cache_dir=tmp_path / "cache")
    assert data.name == name
    test = data.pairs("test")
    data.check_images(test)
    found = evaluate(model, processor, retrieval_split(test), data.image_root)
    for stage, groups in expected.stages.items():
        assert found.stages[stage]["all"] == groups["all"]
    held_out, kept = (
        data.pairs("validation", validation_fraction=0.25),
        data.pairs("train", validation_fraction=0.25),
    )
    assert (len(held_out), len(held_out) + len(kept)) == (6, 24)
    assert not set(held_out["image"]) & set(kept["image"])


# What rows say


@pytest.fixture
def write(tmp_path) -> Callable[..., RetrievalData]:
    """Opens a table of this content beside the images a.png to d.png."""
    for seed, name in enumerate("abcd"):
        noise_image(seed).save(tmp_path / f"{name}.png")

    def write(content: str | bytes | list[dict], name: str = "pairs.csv") -> RetrievalData:
        if isinstance(content, list):
            lines_of(tmp_path / name, content)
        else:
            (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return RetrievalData.open(tmp_path / name, cache_dir=tmp_path / "cache")

    return write


def relevant_of(dataset: Dataset) -> dict[str, set[str]]:
    benchmark = retrieval_split(dataset)
    return dict(zip(benchmark.captions, map(set, benchmark.relevant), strict=True))


def test_texts_are_right_for_all_images_of_their_id(write):
    data = write(
        [
            {"image": "a.png", "captions": ["one", "two"], "id": 7},
            {"image": "b.png", "captions": ["three"], "id": 7},
            {"image": "c.png", "captions": "four", "id": 8},
        ],
        "pairs.jsonl",
    )
    seven = {"a.png", "b.png"}
    assert relevant_of(data.pairs("test")) == {"one": seven, "two": seven, "three": seven, "four": {"c.png"}}


def test_hit_rates_are_shown_where_an_id_has_several_images(write, model, processor):
    data = write("image,text,id\na.png,a man,1\nb.png,red hat,1\nc.png,blue,2\nd.png,falls,2\n")
    result = evaluate(model, processor, retrieval_split(data.pairs("test")), data.image_root)
    heads = format_table(result).splitlines()[1].split()
    assert heads == ["R@1", "hit@1", "mAP"]  # of four images k is 1 alone
    figures = result.stages["embeddings"]["all"]
    assert figures["recall@1"] == figures["hit_rate@1"] / 2 > 0


def test_without_ids_an_image_is_right_for_each_of_its_texts_and_no_negative_of_them(write, processor):
    data = write("image,text\na.png,a man\na.png,red hat\nb.png,blue shirt\n")
    test = data.pairs("test")
    assert relevant_of(test) == {"a man": {"a.png"}, "red hat": {"a.png"}, "blue shirt": {"b.png"}}
    pairs = TrainingPairs(test, data.image_root, seed=0)
    ids = PairCollator(processor)([pairs[row] for row in range(3)])["image_ids"]
    assert (ids[:, None] == ids).tolist() == [[True, True, False], [True, True, False], [False, False, True]]


def test_splits_are_those_of_the_column(write):
    data = write(
        "image,text,split\na.png,one,train\nb.png,two,Training\nc.png,three,val\nc.png,four,dev\nd.png,five,test\n"
    )
    found = {split: data.pairs(split)["caption"][:] for split in ("train", "validation", "test")}
    assert found == {"train": ["one", "two"], "validation": ["three", "four"], "test": ["five"]}
    assert len(data.pairs("validation", max_validation_pairs=1)) == 1


def test_without_splits_all_rows_are_evaluated_and_some_held_out(write, caplog):
    caplog.set_level("INFO", "tpas")
    data = write("image,text\na.png,one\nb.png,two\nc.png,three\nd.png,four\n")
    assert len(data.pairs("test")) == 4
    assert "pairs names no splits: all its 4 pairs are evaluated" in caplog.text
    held_out, kept = data.pairs("validation")["image"][:], data.pairs("train")["image"][:]
    assert (len(held_out), sorted(held_out + kept)) == (1, ["a.png", "b.png", "c.png", "d.png"])
    with pytest.raises(ValueError, match="pairs has no pair of the split 'ucc': it names no splits"):
        data.pairs("ucc")


def test_a_split_that_is_not_there_is_refused_with_those_that_are(write):
    data = write("image,text,split\na.png,one,train\nb.png,two,train\nc.png,three,val\n")
    with pytest.raises(ValueError, match="no pair of the split 'test': 2 of 'train', 1 of 'validation'"):
        data.pairs("test")


def test_validation_never_parts_a_persons_images(write):
    names = "abcd"
    data = write("image,text,person_id\n" + "".join(f"{n}.png,text {n},{n in 'ab'}\n" for n in names))
    held_out = set(data.pairs("validation", validation_fraction=0.5)["image"])
    assert held_out in ({"a.png", "b.png"}, {"c.png", "d.png"})


def test_pabs_labels_may_stand_in_a_table(write):
    data = write(
        "image,text,behaviour,action,source_id\na.png,one,normal,Running,5_1\nb.png,two,anomaly,Falling,5_2\n"
    )
    benchmark = retrieval_split(data.pairs("test"))
    assert (benchmark.query_behaviours, benchmark.query_actions) == (
        ["normal", "anomaly"],
        ["Running", "Falling"],
    )
    assert benchmark.hard_negatives == [["b.png"], ["a.png"]]


def test_a_quoted_text_may_hold_separators_quotes_and_lines(write):
    data = write('image,text\r\na.png,"one, ""two""\r\nthree"\r\n\r\nb.png,four\r\n')
    rows = data.pairs("test")
    assert rows["caption"][:] == ['one, "two"\r\nthree', "four"]
    assert rows["line"][:] == [2, 5]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("image,text\na.png,one\n,two\n", "line 3: 'image' is missing or empty"),
        ("image,text\na.png,\n", "line 2: 'text' is missing or empty"),
        ("image,caption\na.png,...\n", r"line 2: 'caption' holds no word, got '\.\.\.'"),
        ("image,text\na.png,one, two\n", r"line 2: 3 fields for the 2 columns: put a text that holds ','"),
        ('image,text\na.png,"one" two\n', "line 2: ',' expected after '\"': a quote inside"),
        ('image,text\na.png,one\nb.png,"two\n', "line 3: unexpected end of data: .*ends with one"),
        ("a.png,one\n", "line 1, which names the columns: no column of images"),
        (
            "a.png,one\nb.png,two\n",
            "line 1, which names the columns: no column of images: one must be called image or file_name or",
        ),
        ("image,name\na.png,one\n", "line 1, .*: no column of texts: .* but they are 'image', 'name'"),
        ("image,text,text\na.png,one,two\n", "line 1: two columns of one name"),
        ("image,text\n", "there is no row in it"),
        ("", "there is no row in it"),
        ("image,text,split\na.png,one,tset\n", "line 2: 'split' must be train, val or test, got 'tset'"),
        ("image,text,split\na.png,one,test\nb.png,two,\n", "line 3: 'split' is missing or empty"),
        ("image,text,behaviour\na.png,one,odd\n", "line 2: 'behaviour' must be normal or anomaly"),
        (
            "image,text,id\na.png,one,1\na.png,two,2\n",
            r"line 3: 'id' is '2', but 'a.png' has '1' on .*line 2",
        ),
        ("image,text\n../a.png,one\n", r"line 2: the image path '../a.png' leaves the root"),
        ("image,text\n/etc/a.png,one\n", r"line 2: .*leaves the root .*\(--image_root\)"),
        (b"image,text\na.png,caf\xe9\n", "line 2: not UTF-8: .*iconv -f CP1252"),
        ([{"image": "a.png", "text": ["one", " "]}], "line 1: 'text' is missing or empty"),
        ([{"image": "a.png", "text": []}], "line 1: 'text' is missing or empty"),
        ([{"image": "a.png", "text": 1.5}], "line 1: 'text' must be text, got 1.5"),
        ([["a.png", "one"]], "line 1: expected a JSON object with an image and a text"),
    ],
)
def test_a_bad_row_is_named(write, tmp_path, content, message):
    name = "pairs.jsonl" if isinstance(content, list) else "pairs.csv"
    with pytest.raises(ValueError, match=rf"^{re.escape(str(tmp_path / name))}[,:] {message}"):
        write(content, name)


def test_missing_images_are_counted_and_the_first_named(write, tmp_path):
    data = write("image,text\na.png,one\nx.png,two\nx.png,three\ny.png,four\n")
    place = re.escape(
        f"{tmp_path / 'pairs.csv'}, line 3: {tmp_path / 'x.png'}: no such image file, nor are 1 other"
    )
    with pytest.raises(FileNotFoundError, match=f"^{place}.*--image_root"):
        data.check_images(data.pairs("test"))


def test_a_place_without_data_is_refused_with_what_was_looked_for(tmp_path):
    (tmp_path / "pairs.csv").touch()
    with pytest.raises(FileNotFoundError, match=r"annotation/ \(PAB\), reid_raw.json.*such as .*pairs.csv"):
        RetrievalData.open(tmp_path)
    (tmp_path / "pairs.xlsx").touch()
    with pytest.raises(ValueError, match=r"pairs.xlsx: a table's name ends in one of \.csv, .*: save it as"):
        RetrievalData.open(tmp_path / "pairs.xlsx")
    with pytest.raises(
        FileNotFoundError, match="nowhere: no such file or folder; a data set of the Hub is hf:"
    ):
        RetrievalData.open(tmp_path / "nowhere")
    with pytest.raises(
        OSError, match=r"^hf:we/nothing: no such data set .*hf download --repo-type dataset we/no"
    ):
        RetrievalData.open("hf:we/nothing")


def test_an_image_of_a_data_set_is_one_file_and_comes_back_when_it_is_gone(tmp_path):
    noise_image(0).save(tmp_path / "a.png")
    features = Features({"image": datasets.Image(), "text": datasets.List(Value("string"))})
    content = {"image": [str(tmp_path / "a.png")] * 2, "text": [["one", "two"], ["three"]]}
    Dataset.from_dict(content, features).save_to_disk(str(tmp_path / "saved"))
    for _ in range(2):
        data = RetrievalData.open(tmp_path / "saved", cache_dir=tmp_path / "cache")
        (image,) = data.image_root.iterdir()
        assert relevant_of(data.pairs("test")) == dict.fromkeys(("one", "two", "three"), {image.name})
        assert load_image(image).tobytes() == noise_image(0).tobytes()
        shutil.rmtree(data.image_root)


def test_a_table_may_lie_in_a_data_set_of_the_hub(tmp_path):
    repository = Path(huggingface_hub.constants.HF_HUB_CACHE, "datasets--we--tables")
    folder = repository / "snapshots" / ("1" * 40)
    csv_of(folder / "split" / "pairs.csv", [{"image": "a.png", "text": "one"}])
    noise_image(0).save(folder / "split" / "a.png")
    data = RetrievalData.open(f"hf:we/tables@{'1' * 40}/split/pairs.csv", cache_dir=tmp_path)
    data.check_images(data.pairs("test"))
    assert (data.name, data.image_root) == ("we/tables/split/pairs.csv", folder / "split")
    with pytest.raises(ValueError, match="leads out of the data set"):
        RetrievalData.open(f"hf:we/tables@{'1' * 40}/../../x.csv")


# The commands


def test_evaluation_and_training_take_a_table_and_give_its_name(
    rows, small_pab, start, tmp_path, fresh_accelerator
):
    table, output = csv_of(tmp_path / "street.csv", rows), tmp_path / "results.json"
    places = ["--data_root", str(table), "--image_root", str(small_pab)]
    evaluate_command(["--model", str(start), *places, "--output", str(output)])
    results = json.loads(output.read_text())
    assert (results["dataset_name"], results["queries"]) == ("street (drawn)", 12)
    settings = {"image_root": small_pab, "max_train_steps": 1, "batch_size": 8, "evaluate_every": 0}
    train(flags(table, start, tmp_path / "run", **settings))
    arguments = json.loads((tmp_path / "run" / "training_arguments.json").read_text())
    assert arguments["dataset_name"] == "street (drawn)"
    rows = RetrievalData.open(table, small_pab).pairs("train", validation_fraction=0.34)
    assert arguments["training_pairs"] == len(rows) == 24 - 8


@pytest.mark.parametrize("elsewhere", ["../other/a.parquet", "/etc/passwd", "http://127.0.0.1:9/a.parquet"])
@pytest.mark.parametrize("said_in", ["README.md", ".huggingface.yaml", "state.json", "dataset_dict.json"])
def test_a_data_set_names_no_file_that_lies_elsewhere(said_in, elsewhere, tmp_path):
    for name in ("mine", "other"):
        rows = Dataset.from_dict({"image": ["a.png"], "text": [f"of {name}"]})
        rows.to_parquet(tmp_path / name / "a.parquet")
    configs = f'configs: [{{"config_name": "default", "data_files": ["{elsewhere}"]}}]'
    content = {
        "README.md": f"---\n{configs}\n---\n",
        ".huggingface.yaml": configs,
        "state.json": json.dumps({"_data_files": [{"filename": elsewhere}]}),
        "dataset_dict.json": json.dumps({"splits": [elsewhere]}),
    }
    (tmp_path / "mine" / said_in).write_text(content[said_in])
    with pytest.raises(ValueError, match=rf"mine names '{re.escape(elsewhere)}', which is no file or folder"):
        RetrievalData.open(tmp_path / "mine", cache_dir=tmp_path / "cache")


def test_images_of_a_data_set_have_names_that_fit_and_are_images(tmp_path):
    feature = {"image": datasets.Image(), "text": Value("string")}
    noise_image(0).save(tmp_path / "a", "PNG")
    image = {"bytes": (tmp_path / "a").read_bytes(), "path": f"{'é' * 90}.{'b' * 300}"}
    Dataset.from_dict({"image": [image], "text": ["one"]}, Features(feature)).save_to_disk(tmp_path / "long")
    (name,) = RetrievalData.open(tmp_path / "long", cache_dir=tmp_path / "c").image_root.iterdir()
    assert name.suffix == ".png"
    Dataset.from_dict({"image": [1], "text": ["one"]}).save_to_disk(tmp_path / "number")
    with pytest.raises(ValueError, match="the column 'image' must hold images or paths, "):
        RetrievalData.open(tmp_path / "number", cache_dir=tmp_path / "c")


def test_a_pipe_among_the_files_is_passed_by_and_an_endless_path_refused(tmp_path):
    (tmp_path / "annotation" / "test").mkdir(parents=True)
    for pipe in ("metadata.csv", "annotation/test/attr.json"):
        os.mkfifo(tmp_path / pipe)
    with pytest.raises(FileNotFoundError, match="no annotation file of 'test'"):
        RetrievalData.open(tmp_path).pairs("test")
    shutil.rmtree(tmp_path / "annotation")
    with pytest.raises(FileNotFoundError, match="no images with texts found"):
        RetrievalData.open(tmp_path)
    table = csv_of(tmp_path / "t.csv", [{"image": "a/" * 3000, "text": "one"}])
    with pytest.raises(ValueError, match="line 2: the image path has 6,000 characters, 4,096 at most"):
        RetrievalData.open(table, cache_dir=tmp_path / "c")
