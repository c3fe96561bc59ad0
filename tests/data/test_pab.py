"""Every variant of PAB's files is read as it is written, cut without leaks and drawn reproducibly."""

import dataclasses
import json
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest
from tiny_inputs import spoil

from tpas.data.drawn import MANIFEST
from tpas.data.pab import (
    dataset_name,
    load_pab,
    open_annotations,
    retrieval_split,
    rows_fingerprint,
    source_videos,
)
from tpas.data.pab_images import image_path

# The two rows that PAB's own documentation shows (captions shortened).
PERFORMING = {
    **{"image": "train/imgs_0/goal/0.jpg", "image_id": "0_0", "source_id": "1_0", "normal": "Performing"},
    "caption": "The image shows a band performing on stage under a large tent.",
    **{"hard_i": "imgs_0/full/0.jpg", "hard_i_id": "0_8954", "scene": "outdoor concert"},
    "hard_c": "The image shows a band performing under a large white tent.",
    "source_caption": "band was performing under a big tent",
}
FALLING = {
    **{"image": "train/imgs_0/full/6667.jpg", "image_id": "0_13630", "source_id": "3617_2"},
    "caption": "The image shows a person running on a grassy field.",
    **{"hard_i": "imgs_0/goal/6736.jpg", "hard_i_id": "0_5077", "anomaly": "Falling", "scene": "Lawn"},
    "hard_c": "The image shows a person running on a grassy field with a ball.",
    "source_caption": "he kept falling to the ground",
}


def write_lines(path: Path, *records: dict | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    path.write_text("\n".join([*lines, ""]), encoding="utf-8")
    return path


def write_train(root: Path, *records: dict | str) -> Path:
    return write_lines(root / "annotation/train/attr_0.json", *records)


def pair(number: int, video: str, **fields: str) -> dict:
    names = {"image": f"train/imgs_0/goal/{number}.jpg", "image_id": f"0_{number}", "source_id": f"{video}_0"}
    return names | {"caption": f"caption {number}", "normal": "Walking"} | fields


@pytest.fixture
def load(tmp_path):
    """`load_pab` of tmp_path/pab with a cache of its own; no pair is held out unless a test says so."""

    def load(split: str = "train", **options):
        options = {"validation_fraction": 0, "cache_dir": tmp_path / "cache", **options}
        return load_pab(tmp_path / "pab", split, **options)

    return load


@pytest.fixture
def root(tmp_path) -> Path:
    return tmp_path / "pab"


def unlabelled(row: dict[str, str]) -> dict[str, str]:
    return {key: value for key, value in row.items() if key not in ("normal", "anomaly")}


def test_the_documented_rows_keep_every_field(root, load):
    write_train(root, PERFORMING, FALLING)
    place = {"file": "annotation/train/attr_0.json"}
    performing = place | {"line": 1, "behaviour": "normal", "action": PERFORMING["normal"]}
    falling = place | {"line": 2, "behaviour": "anomaly", "action": FALLING["anomaly"]}
    assert load().to_list() == [
        unlabelled(PERFORMING) | performing | {"hard_i": "train/imgs_0/full/0.jpg"},
        unlabelled(FALLING) | falling | {"hard_i": "train/imgs_0/goal/6736.jpg"},
    ]


TRAIN_FILES = ("train/attr_0", "train/pair_0", "train/imgs_0", "train_attr/attr_0")


@pytest.mark.parametrize("name", [*TRAIN_FILES, "test/attr", "test/pair", "test/ucc"])
def test_each_release_is_found(root, load, name):
    write_lines(root / f"annotation/{name}.json", PERFORMING)
    dataset = load("ucc" if name == "test/ucc" else name.partition("/")[0].removesuffix("_attr"))
    assert dataset["image_id"][:] == ["0_0"]
    assert dataset["file"][:] == [f"annotation/{name}.json"]


def test_attributes_are_preferred_to_bare_pairs_and_other_files_are_left_alone(root, load):
    write_train(root, PERFORMING)
    write_lines(root / "annotation/train/pair_0.json", PERFORMING | {"image_id": "pair"})
    write_lines(root / "annotation/train/attr_old.json", "not ours")
    write_lines(root / "annotation/source_caption.json", "not ours")
    assert load()["image_id"][:] == ["0_0"]


def test_files_are_read_in_the_order_of_their_numbers(root, load):
    for number in (10, 2, 0, 1):
        rows = [pair(line, "1", image_id=f"{number}-{line}") for line in (1, 2)]
        write_lines(root / f"annotation/train/attr_{number}.json", rows[0], "", rows[1])
    dataset = load()
    assert dataset["image_id"][:] == ["0-1", "0-2", "1-1", "1-2", "2-1", "2-2", "10-1", "10-2"]
    assert dataset["line"][:] == [1, 3] * 4
    assert dataset["file"][6] == "annotation/train/attr_10.json"


def test_a_missing_number_is_reported(root, load, caplog):
    for number in (0, 3):
        write_lines(root / f"annotation/train/attr_{number}.json", PERFORMING)
    load()
    assert "[1, 2]" in caplog.text


def test_annotations_may_lie_elsewhere(tmp_path, root, load):
    root.mkdir()
    folder = tmp_path / "elsewhere"
    first = write_lines(folder / "imgs_2.json", pair(2, "1"))
    second = write_lines(folder / "imgs_10.json", pair(10, "1"))
    assert load(annotations=folder)["image_id"][:] == ["0_2", "0_10"]
    assert load(annotations=[second, str(first)])["image_id"][:] == ["0_2", "0_10"]
    assert load(annotations=second)["file"][:] == [str(second)]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"image": "train/wentrong/1.webp"}, {"image": "train/wentrong/1.webp", "behaviour": "normal"}),
        ({"normal": None}, {"behaviour": "normal", "action": None}),
        ({"normal": None, "image": "train/imgs_0/wentrong/1.webp"}, {"behaviour": "anomaly", "action": None}),
        ({"normal": None, "image": "train/imgs_0/wentwrong/1.png"}, {"behaviour": "anomaly", "action": None}),
        ({"normal": None, "image": "train/imgs_0/full/1.png"}, {"behaviour": None, "action": None}),
        ({"normal": " ", "anomaly": "Lying"}, {"behaviour": "anomaly", "action": "Lying"}),
        ({"hard_i": "train/imgs_0/full/0.jpg"}, {"hard_i": "train/imgs_0/full/0.jpg"}),
        ({"hard_i": "imgs_1/full/0.webp"}, {"hard_i": "train/imgs_1/full/0.webp"}),
        ({"hard_i": None, "hard_c": ""}, {"hard_i": None, "hard_c": None}),
        ({"hard_c": "."}, {"hard_c": None}),  # to X-VLM's processor it is empty
        ({"image_id": "007", "source_id": "0012_3"}, {"image_id": "007", "source_id": "0012_3"}),
        ({"image_id": 7, "source_id": 12}, {"image_id": "7", "source_id": "12"}),
        ({"image": "./train\\imgs_0//goal\\1.jpg"}, {"image": "train/imgs_0/goal/1.jpg"}),
        ({"caption": "Stürzt \u2028 vom \U0001f6b2"}, {"caption": "Stürzt \u2028 vom \U0001f6b2"}),
    ],
)  # fmt: skip
def test_variants_of_a_row(root, load, change: dict, expected: dict):
    write_train(root, PERFORMING | change)
    row = load()[0]
    assert {key: row[key] for key in expected} == expected


def test_optional_fields_may_be_absent(root, load):
    given = {"image": "ucc/01.jpg", "caption": "A fight.", "image_id": "01"}
    write_lines(root / "annotation/test/ucc.json", given)
    row, place = load("ucc")[0], {"line": 1, "file": "annotation/test/ucc.json"}
    assert len(row) == 13
    assert {key: value for key, value in row.items() if value is not None} == given | place


def test_a_list_of_captions_makes_a_row_of_each(root, load):
    rows = [
        {"image": "test/0.jpg", "caption": ["one", "two"], "image_id": "0"},
        {"image": "test/1.jpg", "caption": ["three"], "image_id": "1"},
    ]
    write_lines(root / "annotation/test/attr.json", *rows)
    dataset = load("test")
    assert dataset["caption"][:] == ["one", "two", "three"]
    assert dataset["image"][:] == ["test/0.jpg", "test/0.jpg", "test/1.jpg"]
    assert dataset["line"][:] == [1, 1, 2]


@pytest.mark.parametrize("indent", [None, 0, 2])
def test_a_json_array_reads_as_json_lines_do(root, load, indent: int | None):
    records = [PERFORMING, FALLING, pair(3, "1")]
    lines = load_without_place(load, write_train(root, *records))
    text = json.dumps(records, indent=indent)
    assert load_without_place(load, write_train(root, "\n" + text)) == lines
    # The line of a row is the one where its object begins: here found by the opening brace.
    rows = enumerate(("\n" + text).split("\n"), start=1)
    assert load()["line"][:] == [number for number, line in rows for _ in range(line.count("{"))]


def load_without_place(load, path: Path) -> list[dict]:
    return load(annotations=path).remove_columns(["file", "line"]).to_list()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le", "utf-16-be"])
def test_byte_order_mark_and_windows_line_ends(root, load, encoding):
    path = write_train(root)
    lines = "\r\n".join(map(json.dumps, (PERFORMING, FALLING)))
    for text in (lines, f"[{lines.replace(chr(10), ',')}]"):
        path.write_bytes(f"\ufeff{text}".encode(encoding))
        assert load()["image_id"][:] == ["0_0", "0_13630"]


@pytest.mark.parametrize("form", ["{}\n{}", "[{},\n{}]"])
def test_another_encoding_is_named_by_file_and_line(root, load, form):
    rows = [json.dumps(pair, ensure_ascii=False) for pair in (PERFORMING, FALLING | {"caption": "a café"})]
    write_train(root).write_bytes(form.format(*rows).encode("cp1252"))
    with pytest.raises(
        ValueError, match=r"^annotation/\S+\.json, line 2: not UTF-8: .*a caf' .* 0xe9; .*iconv"
    ):
        load()


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ('{"image": "a.jpg", "caption": ', "not a line of JSON"),
        ("[" * 100_000, "not a line of JSON"),
        ("[]", "expected a JSON object"),
        ({"caption": "c", "image_id": "1"}, "'image' is missing or empty"),
        ({"image": "a.jpg", "caption": "c"}, "'image_id' is missing or empty"),
        ({"image": "a.jpg", "image_id": "1"}, "'caption' is missing or empty"),
        ({"image": "a.jpg", "image_id": "1", "caption": " \n"}, "'caption' is missing or empty"),
        ({"image": "a.jpg", "image_id": "1", "caption": []}, "'caption' is an empty list"),
        ({"image": "a.jpg", "image_id": "1", "caption": ["c", ""]}, "'caption' is missing or empty"),
        ({"image": "a.jpg", "image_id": "1", "caption": "...!"}, r"'caption' holds no word, got '\.\.\.!'"),
        ({"image": "a.jpg", "image_id": "1", "caption": {"c": 1}}, "'caption' must be text"),
        ({"image": "a.jpg", "image_id": True, "caption": "c"}, "'image_id' must be text"),
        (r'{"image": "a.jpg", "image_id": "1", "caption": "\ud83d"}', "'caption' holds half of a surrogate"),
        (PERFORMING | {"anomaly": "Falling"}, "both 'normal' .* and 'anomaly'"),
        *(
            (PERFORMING | {"image": image}, "leaves the root")
            for image in ("../a.jpg", "train/../../a.jpg", "/etc/a.jpg", "..\\a.jpg", "C:/a.jpg")
        ),
        (PERFORMING | {"hard_i": "../../secret.jpg"}, "leaves the root"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(tmp_path, root, load, record, message):
    write_lines(root / "annotation/train/attr_0.json", FALLING)
    broken = write_lines(root / "annotation/train/attr_1.json", PERFORMING, record)
    with pytest.raises(ValueError, match=rf"^annotation/train/attr_1\.json, line 2: .*{message}"):
        load()
    # Nothing half-written stays behind, and a mended file is read.
    assert not list((tmp_path / "cache").rglob("*.arrow"))
    write_lines(broken, PERFORMING)
    assert len(load()) == 2


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('[{"image": "a.jpg"},\n\n{"image": ]', 3),
        ('[\n{"image": "a.jpg", "caption": "c", "image_id": "1"}\n{"image"', 3),
        ('[\n{"image": "a.jpg", "caption": "c", "image_id": "1"},\n]', 3),
        ('[\n{"image": "a.jpg", "caption": "c", "image_id": "1"}\n] more', 3),
        ('[\n{"image": "a.jpg", "caption": "c", "image_id": "1"}\n', 3),
        ('[\n{"image": "a.jpg", "caption": "c", "image_id": "1"},\n{"image": "a.jpg", "image_id": "1"}]', 3),
        ('[\n\n"\udcff"]', 3),
        ('{"image": "a.jpg", "caption": "c", "image_id": "1"}\n\n{"caption": "\udcff"}', 3),
    ],
)
def test_a_broken_array_or_encoding_is_named_by_file_and_line(root, load, text: str, line: int):
    write_train(root).write_bytes(text.encode("utf-8", "surrogateescape"))
    if text.startswith('[{"image": "a.jpg"}'):
        line = 1  # Rows are checked as they come: the first one lacks its caption.
    with pytest.raises(ValueError, match=rf"^annotation/train/attr_0\.json, line {line}: "):
        load()


@pytest.mark.parametrize("text", ["", "\n \n", "[]", " [ ] "])
def test_files_without_a_pair_are_refused(root, load, text: str):
    write_train(root, text)
    with pytest.raises(ValueError, match="no pair in annotation/train/attr_0.json"):
        load()


def test_missing_files_are_named_with_what_was_looked_for(tmp_path, root, load):
    with pytest.raises(FileNotFoundError, match=r"pab is not a folder"):
        load()
    write_train(root, PERFORMING)
    with pytest.raises(FileNotFoundError, match=r"annotation/test/attr\.json, annotation/test/pair\.json"):
        load("test")
    with pytest.raises(FileNotFoundError, match=r"absent\.json"):
        load(annotations=tmp_path / "absent.json")
    with pytest.raises(FileNotFoundError, match=r"ucc\.json"):
        load("ucc", annotations=root / "annotation/train")


@pytest.mark.parametrize(
    ("split", "options", "message"),
    [
        ("dev", {}, "train, validation, test, ucc, .*multi-weather_light, got 'dev'"),
        ("test", {"pairs": 1}, "'test'"),
        ("validation", {"pairs": 1}, "'validation'"),
        ("train", {"pairs": 0}, "at least 1, got 0"),
        ("train", {"pairs": 3}, "pairs=3 asked for, but 'train' has 2"),
        ("train", {"pairs": 1, "subset": "last"}, "random, first, balanced, got 'last'"),
        ("train", {"subset": "first"}, "give pairs"),
        ("test", {"subset": "balanced"}, "give pairs"),
        ("train", {"validation_fraction": 1}, "below 1, got 1"),
        ("train", {"validation_fraction": -0.1}, "at least 0"),
        ("validation", {"max_validation_pairs": 0}, "at least 1, got 0"),
        ("validation", {}, "validation_fraction=0"),
    ],
)
def test_impossible_requests_are_refused(root, load, split: str, options: dict, message: str):
    write_train(root, PERFORMING, FALLING)
    with pytest.raises(ValueError, match=message):
        load(split, **options)


def test_a_second_opening_maps_the_file_and_a_change_is_seen(tmp_path, root, load):
    path = write_train(root, *(pair(number, "1", caption="long " * 1000) for number in range(400)))
    load()
    spoil([path])
    allocated = pa.total_allocated_bytes()
    dataset = load()
    assert len(dataset) == 400
    assert dataset.data.nbytes > 2_000_000
    assert pa.total_allocated_bytes() - allocated < 100_000
    assert all(Path(file["filename"]).is_relative_to(tmp_path / "cache") for file in dataset.cache_files)
    assert dataset.cache_files

    write_train(root, pair(0, "1", caption="a"), pair(1, "1", caption="b"))
    assert load()["caption"][:] == ["a", "b"]
    # The same size at another time, then another size at the same time.
    for captions in (["c", "d"], ["e", "longer"]):
        write_train(root, *(pair(number, "1", caption=caption) for number, caption in enumerate(captions)))
        os.utime(path, ns=(1, 1))
        assert load()["caption"][:] == captions


def test_two_processes_open_the_same_files_at_once_and_draw_the_same(tmp_path, root, load):
    write_train(root, *(pair(number, str(number % 50)) for number in range(1000)))
    program = (
        "import json, sys; from tpas.data.pab import load_pab; "
        "train = load_pab(sys.argv[1], 'train', 9, 3, cache_dir=sys.argv[2]); "
        "validation = load_pab(sys.argv[1], 'validation', cache_dir=sys.argv[2]); "
        "print(json.dumps([part['image_id'][:] for part in (train, validation)]))"
    )
    command = [sys.executable, "-c", program, str(root), str(tmp_path / "cache")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    environments = [os.environ | {"PYTHONHASHSEED": hash_seed} for hash_seed in "12"]
    processes = [subprocess.Popen(command, env=environment, **pipes) for environment in environments]
    outputs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert outputs[0] == outputs[1]
    here = load(pairs=9, seed=3, validation_fraction=0.02), load("validation", validation_fraction=0.02)
    assert json.loads(outputs[0]) == [part["image_id"][:] for part in here]


def test_subsets_are_exact_nested_and_drawn_by_seed_from_the_training_part(root, load):
    write_train(root, *(pair(number, str(number % 40)) for number in range(400)))
    train = set(load(validation_fraction=0.1)["image_id"])

    def draw(pairs: int, seed: int = 42) -> list[str]:
        return load(pairs=pairs, seed=seed, validation_fraction=0.1)["image_id"][:]

    sizes = (1, 10, 100, 200, len(train))
    subsets = [draw(size) for size in sizes]
    assert [len(subset) for subset in subsets] == [len(set(subset)) for subset in subsets] == list(sizes)
    for smaller, larger in zip(subsets, [*subsets[1:], train], strict=True):
        assert set(smaller) <= set(larger)
    assert draw(100) == subsets[2]
    assert set(draw(100, seed=7)) != set(subsets[2])
    # A draw over the whole file: each quarter gives about a quarter of it.
    quarters = [sum(int(name[2:]) // 100 == quarter for name in subsets[3]) for quarter in range(4)]
    assert min(quarters) > 30


def test_a_subset_is_the_same_for_ever(root, load):
    """The figures of a paper rest on which pairs these are: written down once, for seed 42."""
    write_train(root, *(pair(number, str(number)) for number in range(10)))
    assert load(pairs=4)["image_id"][:] == ["0_0", "0_1", "0_5", "0_8"]
    assert load("validation", validation_fraction=0.3)["image_id"][:] == ["0_0", "0_1", "0_4"]
    falling = {"normal": None, "anomaly": "Falling"}
    write_train(root, *(pair(number, str(number), **(falling if number > 5 else {})) for number in range(10)))
    # Seed 42 permutes the rows to 8 1 5 0 7 ...: the first two of either side.
    assert load(pairs=4, subset="balanced")["image_id"][:] == ["0_1", "0_5", "0_7", "0_8"]


def test_the_first_pairs_are_those_at_the_beginning_of_the_training_part(root, load):
    write_train(root, *(pair(number, str(number % 40)) for number in range(400)))
    train = load(validation_fraction=0.1)["image_id"][:]
    assert len(train) < 400
    for size in (1, 150, len(train)):
        for seed in (42, 7):
            chosen = load(pairs=size, seed=seed, subset="first", validation_fraction=0.1)
            assert chosen["image_id"][:] == train[:size]


def test_a_balanced_subset_is_half_and_half_nested_and_drawn_by_seed(root, load, caplog):
    records = [pair(number, str(number), normal="Walking") for number in range(60)]
    records += [pair(number, str(number), normal=None, anomaly="Falling") for number in range(60, 80)]
    records += [pair(n, str(n), normal=None, image=f"train/imgs_0/full/{n}.jpg") for n in range(80, 85)]
    random.Random(0).shuffle(records)
    write_train(root, *records)

    def draw(pairs: int, seed: int = 42) -> list[str]:
        chosen = load(pairs=pairs, seed=seed, subset="balanced")
        behaviours = chosen["behaviour"][:]
        assert behaviours.count("normal") - behaviours.count("anomaly") == pairs % 2
        assert len(set(chosen["image_id"])) == len(behaviours) == pairs
        return chosen["image_id"][:]

    subsets = [draw(size) for size in (1, 2, 7, 20, 40)]
    assert "5 of 85 pairs have no behaviour and are left out" in caplog.text
    for smaller, larger in zip(subsets, subsets[1:], strict=False):
        assert set(smaller) < set(larger)
    assert draw(20) == subsets[3]
    assert set(draw(20, seed=7)) != set(subsets[3])
    place = {record["image_id"]: position for position, record in enumerate(records)}
    assert [place[name] for name in subsets[3]] == sorted(place[name] for name in subsets[3])
    # One normal pair more can be had, an anomalous one more cannot.
    assert len(draw(41)) == 41
    with pytest.raises(ValueError, match=r"60 normal and 20 anomalous pairs, and 5 without.*: 41 at most"):
        draw(42)


@pytest.mark.parametrize("seed", range(4))
def test_no_video_and_no_hard_negative_is_on_both_sides(root, load, seed: int):
    chance = random.Random(seed)
    videos = [f"{chance.randrange(10**6)}" for _ in range(30)]
    records = []
    for number in range(500):
        record = pair(number, chance.choice(videos))
        record["source_id"] = record["source_id"][:-1] + chance.choice("012")
        if chance.random() < 0.2:
            record["hard_i"] = f"imgs_0/goal/{chance.randrange(500)}.jpg"
        if chance.random() < 0.2:
            record["hard_i_id"] = f"0_{chance.randrange(500)}"
        records.append(record)
    write_train(root, *records)
    fraction = chance.choice([0.05, 0.2, 0.5])
    train, held = (load(split, validation_fraction=fraction) for split in ("train", "validation"))

    video_of = {record["image_id"]: record["source_id"].split("_")[0] for record in records}
    validation_videos = {video_of[name] for name in held["image_id"]}
    assert 0 < len(held) <= fraction * 500
    # Oracle, row by row: held out if of a held-out video; in train unless it mentions a held-out image.
    expected_train, expected_held = [], []
    for record in records:
        if video_of[record["image_id"]] in validation_videos:
            expected_held.append(record["image_id"])
            continue
        mentioned = {record.get("hard_i_id"), "0_" + Path(record.get("hard_i", "")).stem}
        if not any(video_of.get(name) in validation_videos for name in mentioned):
            expected_train.append(record["image_id"])
    assert held["image_id"][:] == expected_held
    assert train["image_id"][:] == expected_train
    # As many videos as fit: whichever is next in their fixed order would have gone beyond the bound.
    sizes = Counter(video for video in video_of.values() if video not in validation_videos)
    assert len(held) + max(sizes.values()) > fraction * 500


def test_the_held_out_videos_do_not_depend_on_the_rest(root, load):
    """With a part of the rows, or in another order, the videos are held out in the same order."""
    records = [pair(number, str(number % 20)) for number in range(200)]

    def held_out(rows: list[dict], fraction: float) -> set[str]:
        write_train(root, *rows)
        held = load("validation", validation_fraction=fraction)
        return {source.split("_")[0] for source in held["source_id"]}

    few, more = held_out(records, 0.1), held_out(records, 0.4)
    assert (len(few), len(more)) == (2, 8)
    assert few < more
    assert held_out(records[::-1], 0.1) == few
    of_three_videos = [record for record in records if record["source_id"].split("_")[0] in few | {"3"}]
    assert held_out(of_three_videos, 0.7) == few
    assert held_out(records[:100], 0.1) == few


def test_a_large_validation_split_shows_a_fixed_part_of_all_its_videos(root, load):
    write_train(root, *(pair(number, str(number // 50)) for number in range(1000)))
    everything, part, smaller = (
        load("validation", validation_fraction=0.5, max_validation_pairs=limit) for limit in (500, 100, 50)
    )
    assert (len(everything), len(part), len(smaller)) == (500, 100, 50)
    assert set(smaller["image_id"]) < set(part["image_id"]) < set(everything["image_id"])
    assert set(part["source_id"]) == set(everything["source_id"])
    assert len(load(validation_fraction=0.5, max_validation_pairs=50)) == 500


def test_a_tiny_set_gives_one_video_or_says_why_not(root, load):
    write_train(root, pair(0, "1"), pair(1, "1"), pair(2, "2"), pair(3, "2"))
    train, held = (load(split, validation_fraction=0.02) for split in ("train", "validation"))
    assert (len(train), len(held)) == (2, 2)
    write_train(root, pair(0, "1"), pair(1, "1"))
    with pytest.raises(ValueError, match="all pairs come from one source video"):
        load("validation", validation_fraction=0.02)
    write_train(root, pair(0, "1", hard_i_id="0_1"), pair(1, "2", hard_i_id="0_0"))
    with pytest.raises(ValueError, match="hard negative"):
        load(validation_fraction=0.02)


def test_without_source_ids_images_are_held_out_by_their_own_ids(root, load, caplog):
    records = [pair(number, "1") for number in range(50)] * 2
    for record in records[:50]:
        del record["source_id"]
    write_train(root, *(record | {"caption": f"{index}"} for index, record in enumerate(records)))
    train, held = (load(split, validation_fraction=0.1) for split in ("train", "validation"))
    assert "100 of 100 pairs have no source_id" in caplog.text
    assert len(held) == 10
    assert not set(train["image_id"]) & set(held["image_id"])
    assert len(train) + len(held) == 100


def test_source_videos_number_the_rows_of_one_video_alike(root, load):
    records = [pair(0, "7"), pair(1, "8"), pair(2, "7"), pair(3, "8"), pair(3, "8")]
    records[0]["source_id"], records[2]["source_id"] = "7_1", "7_12"
    for record in records[3:]:
        del record["source_id"]
    write_train(root, *records)
    numbers = source_videos(load()).tolist()
    assert numbers[0] == numbers[2]
    assert numbers[3] == numbers[4]
    assert len(set(numbers)) == 3
    chosen = load().select([2, 1, 0])
    assert source_videos(chosen)[0] == source_videos(chosen)[2] != source_videos(chosen)[1]


def test_an_annotation_stays_in_the_root_and_links_are_followed(tmp_path, root, monkeypatch):
    inside, outside = root / "train", tmp_path / "outside"
    inside.mkdir(parents=True)
    outside.mkdir()
    (outside / "secret.jpg").touch()
    (inside / "0.jpg").touch()
    (inside / "same.jpg").symlink_to("0.jpg")
    (inside / "file.jpg").symlink_to(outside / "secret.jpg")
    (root / "folder").symlink_to(outside)
    assert image_path(root, "train/0.jpg") == (inside / "0.jpg").resolve()
    assert image_path(str(root), "train/same.jpg") == (inside / "0.jpg").resolve()
    monkeypatch.chdir(tmp_path)
    for image in ("train/same.jpg", "train/0.webp"):
        assert image_path(root.name, image) == (inside / "0.jpg").resolve()
    for image in ("../outside/secret.jpg", str(outside / "secret.jpg"), "train/../../outside/secret.jpg", ""):
        with pytest.raises(ValueError, match="leaves the root"):
            image_path(root, image)
    for image in ("train/file.jpg", "folder/secret.jpg", "folder/secret.webp"):
        assert image_path(root, image) == (outside / "secret.jpg").resolve()
        with pytest.raises(ValueError, match="is a link that leads out of"):
            image_path(root, image, follow_links=False)
    assert image_path(root, "train/same.jpg", follow_links=False) == (inside / "0.jpg").resolve()


def test_image_path_finds_the_repacked_image(root):
    folder = root.resolve() / "train"
    folder.mkdir(parents=True)
    for name in ("0.webp", "1.webp", "1.jpg", "2.webp", "2.png"):
        (folder / name).touch()
    expected = {"0.jpg": "0.webp", "1.jpg": "1.jpg", "2.jpg": "2.jpg", "3.jpg": "3.jpg", "2.png": "2.png"}
    for name, found in expected.items():
        assert image_path(root, f"train/{name}") == folder / found


@pytest.mark.parametrize(
    "place",
    [
        "train/imgs_9/goal/0.jpg",
        "imgs_9/goal/0.jpg",
        "Part 2/imgs_9/imgs_9/goal/0.webp",
        "Part 2/imgs_9/goal/0.jpg",
        "train/Part 2/imgs_9/imgs_9/goal/0.jpg",
    ],
)
def test_image_path_finds_a_training_image_in_either_layout(root, place):
    """Both of PAB's, as it is annotated for training and as it is downloaded (Part = number // 8 + 1)."""
    file = root.resolve() / place
    file.parent.mkdir(parents=True)
    for annotated in ("train/imgs_9/goal/0.jpg", "imgs_9/goal/0.jpg"):
        assert image_path(root, annotated) == root.resolve() / annotated  # that is where it is missed
        file.touch()
        assert image_path(root, annotated) == file
        file.unlink()
    other = root.resolve() / "Part 1/imgs_9/imgs_9/goal/0.jpg"  # no part of these
    other.parent.mkdir(parents=True)
    other.touch()
    assert image_path(root, "imgs_9/goal/0.jpg") == root.resolve() / "imgs_9/goal/0.jpg"


def test_other_weather_is_a_split_of_its_own(root, load):
    row = {"image": "test/0.jpg", "caption": ["A man in the rain."], "image_id": "007", "normal": "Walking"}
    write_lines(root / "annotation/multi-weather/multi-weather_dark_rain.json", row)
    dataset = load("multi-weather_dark_rain")
    assert (dataset["caption"][:], dataset["image_id"][:]) == (["A man in the rain."], ["007"])
    with pytest.raises(FileNotFoundError, match="annotation/multi-weather/multi-weather_snow.json"):
        load("multi-weather_snow")


def test_the_fingerprint_is_of_what_is_annotated_and_of_nothing_else(tmp_path, root):
    def fingerprint(root: Path) -> str:
        return rows_fingerprint(open_annotations(root, "train", None, tmp_path / "cache"))

    write_train(root, PERFORMING, FALLING)
    before = fingerprint(root)
    moved = tmp_path / "moved"
    write_lines(moved / "annotation/train/pair_0.json", PERFORMING)
    write_lines(moved / "annotation/train/pair_1.json", FALLING)
    assert fingerprint(moved) == before
    fingerprints = {before}
    without = {key: value for key, value in FALLING.items() if key != "hard_c"}
    shifted = FALLING | {"image_id": "0_1", "caption": FALLING["caption"] + "3630"}
    for changed in ([FALLING, PERFORMING], [PERFORMING], [PERFORMING, without], [PERFORMING, shifted]):
        write_train(root, *changed)
        fingerprints.add(fingerprint(root))
    assert len(fingerprints) == 5


def test_data_are_called_as_their_folder(tmp_path, monkeypatch):
    (tmp_path / "street").mkdir()
    (tmp_path / "link").symlink_to("street")
    assert dataset_name(tmp_path / "link") == "link"
    monkeypatch.chdir(tmp_path / "street")
    assert dataset_name(Path(".")) == "street"
    Path(MANIFEST).touch()
    assert dataset_name(Path(".")) == "street (drawn)"


def test_retrieval_split_by_hand(root, load):
    fight = {"image": "ucc/a.jpg", "caption": ["first"], "image_id": "01"}
    rows = [
        fight | {"anomaly": "Fighting", "scene": "street"},
        {"image": "ucc/b.jpg", "caption": ["second", "third"], "image_id": "1"},
        *2 * [{"image": "ucc/c.jpg", "caption": ["fourth"], "image_id": "01", "normal": "Walking"}],
    ]
    write_lines(root / "annotation/test/ucc.json", *rows)
    benchmark = retrieval_split(load("ucc"))
    assert benchmark.captions == ["first", "second", "third", "fourth", "fourth"]
    assert sorted(benchmark.gallery_ids) == ["ucc/a.jpg", "ucc/b.jpg", "ucc/c.jpg"]
    one, several = ["ucc/b.jpg"], ["ucc/a.jpg", "ucc/c.jpg"]
    assert [sorted(images) for images in benchmark.relevant] == [several, one, one, several, several]
    assert benchmark.query_behaviours == ["anomaly", None, None, "normal", "normal"]
    assert benchmark.query_actions == ["Fighting", None, None, "Walking", "Walking"]
    assert benchmark.query_scenes == ["street", None, None, None, None]
    assert len(set(benchmark.query_ids)) == 5
    with pytest.raises(dataclasses.FrozenInstanceError):
        benchmark.captions = []


def test_a_gallery_of_its_own(root, load):
    names = {"1": "1", "2": "2", "2b": "2"}  # and their ids
    rows = [{"image": f"test/{name}.jpg", "caption": [name], "image_id": i} for name, i in names.items()]
    write_lines(root / "annotation/test/attr.json", *rows)
    dataset = load("test")
    gallery = ["test/2b.jpg", "distractor.jpg", "test/1.jpg", "test/1.jpg"]
    benchmark = retrieval_split(dataset, gallery)
    assert sorted(benchmark.gallery_ids) == ["distractor.jpg", "test/1.jpg", "test/2b.jpg"]
    assert benchmark.relevant == [["test/1.jpg"], ["test/2b.jpg"], ["test/2b.jpg"]]
    with pytest.raises(ValueError, match=r"^annotation/test/attr\.json, line 2: .*image_id '2'"):
        retrieval_split(dataset, ["test/1.jpg"])
    with pytest.raises(ValueError, match="gallery is empty"):
        retrieval_split(dataset, [])


def test_neither_ids_nor_order_tell_the_answer(root, load):
    """A scorer that knows nothing, its ties broken by query id and gallery order, stays at chance."""
    names = [f"{n:03}" for n in range(200)]
    rows = [{"image": f"test/{name}.jpg", "caption": [name], "image_id": name} for name in names]
    write_lines(root / "annotation/test/attr.json", *rows)
    dataset = load("test")
    benchmark = retrieval_split(dataset)
    order = sorted(range(200), key=benchmark.query_ids.__getitem__)
    for queries in (range(200), order):
        assigned = zip(queries, benchmark.gallery_ids, strict=True)
        assert sum(image in benchmark.relevant[query] for query, image in assigned) < 10
    # Of two neighbours in the file, either may come first.
    places = {image: place for place, image in enumerate(benchmark.gallery_ids)}
    for first in (benchmark.query_ids, [places[row["image"]] for row in rows]):
        assert 30 < sum(first[n] < first[n + 1] for n in range(0, 200, 2)) < 70
    # The file's order leaves no trace either.
    shuffled = retrieval_split(dataset.shuffle(seed=1))
    assert shuffled.gallery_ids == benchmark.gallery_ids
    by_id, expected = (dict(zip(b.query_ids, b.captions, strict=True)) for b in (shuffled, benchmark))
    assert by_id == expected


def test_hard_negatives_show_the_same_source_behaving_the_other_way(root, load):
    def row(number: int, behaviour: str | None, source_id: str | None, hard_i: str | None = None) -> dict:
        fields = {"image": f"test/{number}.jpg", "caption": [f"c {number}"], "image_id": number}
        optional = {"source_id": source_id, "hard_i": hard_i}
        fields |= {name: value for name, value in optional.items() if value is not None}
        return fields | ({} if behaviour is None else {behaviour: "doing"})

    rows = [
        row(0, "normal", "7_0"),
        row(1, "anomaly", "7_1"),
        row(2, "anomaly", "7_2"),
        row(3, "normal", "71_0", "test/4.jpg"),  # another video; the hard negative counts without one only
        row(4, "anomaly", None, "test/3.jpg"),
        row(5, "anomaly", None, "test/4.jpg"),  # not the other behaviour
        row(6, None, "7_3"),  # of unknown behaviour
        row(7, "normal", None, "test/elsewhere.jpg"),
    ]
    write_lines(root / "annotation/test/attr.json", *rows)
    benchmark = retrieval_split(load("test"))
    names = [{int(Path(image).stem) for image in images} for images in benchmark.hard_negatives]
    assert names == [{1, 2}, {0}, {0}, set(), {3}, set(), set(), set()]
    without = retrieval_split(load("test"), [f"test/{number}.jpg" for number in (7, 6, 5, 4, 3, 2, 1, 0)])
    assert without.hard_negatives == benchmark.hard_negatives
