"""A drawn PAB has PAB's layout, equal bytes for equal seeds, texts about what is seen, and no leaks."""

import json
import random
import re
from dataclasses import astuple, replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tpas.commands import draw
from tpas.data.drawn import synthetic_pab
from tpas.data.drawn.figure_drawing import POSES
from tpas.data.drawn.scene_drawing import SCENES
from tpas.data.drawn.synthetic_pab import captions_vocabulary, draw_pab, draw_source, telling_words
from tpas.data.drawn.synthetic_worlds import DEMO_WORLD, PRETRAINING_WORLD, WORLDS

SIZE = 40
KEYS = {"image", "caption", "image_id", "hard_i", "hard_c", "hard_i_id"}
KEYS |= {"source_id", "source_caption", "scene"}


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("drawn") / "pab"
    return draw_pab(folder, train_pairs=80, test_pairs=24, seed=5, image_size=SIZE, workers=1)


@pytest.fixture(scope="module")
def train(root) -> list[dict]:
    return read_lines(root / "annotation/train/attr_0.json")


@pytest.fixture(scope="module")
def test_split(root) -> list[dict]:
    return read_lines(root / "annotation/test/attr.json")


def described(seed: int, count: int, world=DEMO_WORLD) -> list[synthetic_pab.Source]:
    return [synthetic_pab.describe_source(world, seed, index) for index in range(count)]


def captions(world, count: int) -> list[str]:
    return [
        synthetic_pab._caption(source, action, random.Random(index))
        for index, source in enumerate(described(2, count, world))
        for action in (source.normal, source.anomaly)
    ]


def test_rows_have_pabs_keys_and_one_behaviour(train, test_split):
    assert (len(train), len(test_split)) == (80, 24)
    for row in train + test_split:
        (behaviour,) = set(row) - KEYS
        assert behaviour in ("normal", "anomaly")
        assert set(row) > KEYS
        assert re.fullmatch(r"\d+_\d", row["source_id"])
    assert all(isinstance(row["caption"], str) for row in train)
    assert all(isinstance(row["caption"], list) and len(row["caption"]) == 1 for row in test_split)


def test_images_lie_where_pab_has_them(root, train, test_split):
    for row in train:
        folder = "goal" if "normal" in row else "wentrong"
        assert re.fullmatch(rf"train/imgs_0/{folder}/\d+\.jpg", row["image"])
    for row in test_split:
        assert re.fullmatch(r"test/imgs/\d{6}\.jpg", row["image"])
    drawn = {str(path.relative_to(root)) for path in root.rglob("*.jpg")}
    assert drawn == {row["image"] for row in train + test_split}
    with Image.open(root / train[0]["image"]) as image:
        assert (image.mode, image.size, image.format) == ("RGB", (SIZE, SIZE), "JPEG")


def test_hard_fields_are_the_same_persons_other_behaviour(train, test_split):
    for rows, prefix in ((train, "train/"), (test_split, "")):
        by_image = {row["image"]: row for row in rows}
        for row in rows:
            hard = by_image[prefix + row["hard_i"]]
            assert not row["hard_i"].startswith("train/")
            assert ("normal" in hard) != ("normal" in row)
            assert row["hard_c"] == (hard["caption"] if prefix else hard["caption"][0])
            assert row["hard_i_id"] == hard["image_id"]
            assert hard["source_id"].split("_")[0] == row["source_id"].split("_")[0]
            assert hard["source_id"] != row["source_id"]


def test_neighbours_in_the_test_file_are_one_person_in_one_scene(test_split):
    for normal, anomaly in zip(test_split[::2], test_split[1::2], strict=True):
        assert "normal" in normal
        assert "anomaly" in anomaly
        assert normal["scene"] == anomaly["scene"]
        assert normal["source_id"].split("_")[0] == anomaly["source_id"].split("_")[0]


def test_train_and_test_share_nothing(train, test_split):
    def values(rows, key):
        return {str(row[key]).split("_")[0] for row in rows}

    assert not values(train, "source_id") & values(test_split, "source_id")
    assert not {row["image_id"] for row in train} & {row["image_id"] for row in test_split}
    assert len({row["image_id"] for row in train + test_split}) == len(train) + len(test_split)
    assert not {row["caption"] for row in train} & {row["caption"][0] for row in test_split}


def test_names_and_ids_tell_nothing(test_split):
    """Neither rises along the file, tells normal from anomaly, or brings the two of a person together."""
    for key in ("image", "image_id"):
        order = np.argsort(np.argsort([row[key] for row in test_split])).reshape(-1, 2)
        assert abs(np.corrcoef(order.ravel(), np.arange(order.size))[0, 1]) < 0.6
        assert 1 < (order[:, 0] < order[:, 1]).sum() < len(order) - 1
        assert (np.abs(order[:, 0] - order[:, 1]) > 1).sum() > len(order) / 2


def test_annotation_is_split_into_numbered_files(tmp_path):
    root = draw_pab(tmp_path / "pab", train_pairs=1002, test_pairs=2, image_size=32, workers=1)
    files = [read_lines(root / f"annotation/train/attr_{number}.json") for number in range(2)]
    assert [len(rows) for rows in files] == [1000, 2]
    assert len({row["image"] for rows in files for row in rows}) == 1002
    assert len(list((root / "annotation/train").iterdir())) == 2


def test_any_number_of_workers_draws_the_same_bytes(root, tmp_path):
    again = draw_pab(tmp_path / "pab", train_pairs=80, test_pairs=24, seed=5, image_size=SIZE, workers=2)
    assert contents(again) == contents(root)


def test_another_seed_draws_another_set(root, tmp_path):
    other = draw_pab(tmp_path / "pab", train_pairs=2, test_pairs=24, seed=6, image_size=SIZE, workers=1)
    ours, theirs = (read_lines(folder / "annotation/test/attr.json") for folder in (root, other))
    assert not {row["caption"][0] for row in ours} & {row["caption"][0] for row in theirs}
    assert not {row["image"] for row in ours} & {row["image"] for row in theirs}


def test_an_example_depends_on_the_arguments_alone():
    normal, anomaly = draw_source(PRETRAINING_WORLD, 9, 2, SIZE)
    assert (normal.behaviour, anomaly.behaviour) == ("normal", "anomaly")
    assert (normal.source_id, anomaly.source_id) == ("2_0", "2_1")
    assert normal.scene == anomaly.scene
    draw_source(PRETRAINING_WORLD, 9, 1, SIZE)
    for example, same in zip((normal, anomaly), draw_source(PRETRAINING_WORLD, 9, 2, SIZE), strict=True):
        assert example.image.size == (SIZE, SIZE)
        assert np.array_equal(np.asarray(example.image), np.asarray(same.image))
        assert replace(example, image=None) == replace(same, image=None)
    assert normal.caption != draw_source(PRETRAINING_WORLD, 10, 2, SIZE)[0].caption


def test_worlds_share_no_scene_and_a_core_of_actions():
    worlds = PRETRAINING_WORLD, DEMO_WORLD
    scenes, actions, colours = (
        [{item.name: item for item in getattr(world, part)} for world in worlds]
        for part in ("scenes", "actions", "colours")
    )
    assert not set(scenes[0]) & set(scenes[1])
    places = [{place for scene in world.scenes for place in scene.places} for world in worlds]
    assert not places[0] & places[1]
    assert len(set(actions[0]) & set(actions[1])) >= 10
    assert len(set(actions[1]) - set(actions[0])) >= 5
    shared = set(colours[0]) & set(colours[1])
    assert len(shared) == 9
    assert all(colours[0][name].rgb != colours[1][name].rgb for name in shared)


@pytest.mark.parametrize("world", WORLDS.values(), ids=list(WORLDS))
def test_everything_in_a_world_can_be_drawn(world):
    assert {scene.name for scene in world.scenes} <= set(SCENES)
    assert {action.pose for action in world.actions} <= set(POSES)
    behaviours = [action.behaviour for action in world.actions]
    assert behaviours.count("normal") >= 10
    assert behaviours.count("anomaly") >= 8
    sources = (draw_source(world, 1, index, image_size=32) for index in range(200))
    drawn = {(example.action, example.scene) for source in sources for example in source}
    assert {action for action, _ in drawn} == {action.name for action in world.actions}
    assert {scene for _, scene in drawn} == {scene.name for scene in world.scenes}
    indoors = {scene.name for scene in world.scenes if not scene.outdoors}
    assert not {scene for action, scene in drawn if action == "being hit by a car"} & indoors


def test_about_half_of_the_families_differ_in_one_attribute():
    sources = described(seed=3, count=600)
    lookalikes = 0
    for first, second in zip(sources[::2], sources[1::2], strict=True):
        assert first.emphasised == second.emphasised
        if first.emphasised is None:
            continue
        lookalikes += 1
        looks = zip(astuple(first.look), astuple(second.look), strict=True)
        assert sum(one != other for one, other in looks) == 1
        assert (first.scene, first.sky) == (second.scene, second.sky)
    assert 0.4 < lookalikes / 300 < 0.6


def test_nothing_is_worn_unseen():
    for world in WORLDS.values():
        for source in described(seed=4, count=400, world=world):
            lower = source.look.lower
            assert (lower is None) == (source.look.upper.name == "dress")
            if source.look.upper.name in ("coat", "raincoat"):
                assert lower.name not in ("shorts", "skirt")


@pytest.mark.parametrize("world", WORLDS.values(), ids=list(WORLDS))
def test_captions_have_20_to_60_words_of_the_vocabulary(world):
    vocabulary = set(captions_vocabulary(world))
    lengths = []
    for caption in captions(world, 500):
        words = re.split(r"[\s\W]+", caption.lower().strip("."))
        assert set(words) <= vocabulary
        lengths.append(len(caption.split()))
        assert re.search(r"[{}]|\s\s|\s[.,;]|\.\.", caption) is None
        assert all(text[0].isupper() for text in caption.split(". "))
        assert not re.search(r"\ba [aeio]|\ban [^aeiou]", caption)
    assert min(lengths) >= 20
    assert max(lengths) <= 60
    assert 28 <= np.mean(lengths) <= 38
    # Images are mirrored in training, so no text may tell the sides apart.
    assert not vocabulary & {"left", "right"}


def test_a_shorter_caption_says_less_and_the_rest_alike():
    shortened = 0
    for index in range(60):
        limits = {}, {"longest_caption": 24}
        long, short = (draw_source(PRETRAINING_WORLD, 4, index, SIZE, **limit)[1] for limit in limits)
        assert long.caption.startswith(short.caption)
        assert len(short.caption.split()) <= 24 or short.caption.count(". ") <= 1  # an opening at least
        shortened += long.caption != short.caption
        assert np.array_equal(np.asarray(long.image), np.asarray(short.image))
    assert shortened > 20


def test_telling_words_name_what_is_seen():
    words = set(telling_words(DEMO_WORLD))
    assert {"blue", "gray", "hoodie", "guitar", "beach", "kicked", "mohawk", "balloon"} <= words
    assert not words & {"the", "image", "wearing", "he", "she", "man", "woman", "shows", "a", "is"}
    assert words < set(captions_vocabulary(DEMO_WORLD))


def test_the_vocabulary_is_small_sorted_and_free_of_doubles():
    words = captions_vocabulary(PRETRAINING_WORLD, DEMO_WORLD)
    assert words == sorted(set(words))
    assert len(words) <= 700
    assert set(words) == set(captions_vocabulary(PRETRAINING_WORLD)) | set(captions_vocabulary(DEMO_WORLD))
    assert all(re.fullmatch("[a-z0-9]+", word) for word in words)


def test_captions_name_the_garments_the_action_and_the_place():
    for index, source in enumerate(described(seed=2, count=300)):
        for action in (source.normal, source.anomaly):
            caption = synthetic_pab._caption(source, action, random.Random(index)).lower()
            look = source.look
            assert any(phrase in caption for phrase in action.phrases)
            assert any(place in caption for place in source.scene.places)
            assert any(word in caption for word in look.upper.words)
            assert any(word in caption for word in look.upper_colour.words)
            if look.lower is not None:
                coloured = product(look.lower_colour.words, look.lower.words)
                assert any(" ".join(words) in caption for words in coloured)
            if look.pattern.name != "plain":
                assert any(word in caption for word in look.pattern.words)


def test_what_tells_lookalikes_apart_is_nearly_always_said():
    said = []
    for index, source in enumerate(described(seed=8, count=3000)):
        if source.emphasised == "shoes":
            caption = synthetic_pab._caption(source, source.normal, random.Random(index))
            said.append(any(f"{word} s" in caption for word in source.look.shoes_colour.words))
    assert len(said) > 100
    assert np.mean(said) > 0.88


def test_a_finished_root_is_returned_without_drawing(root):
    changed = root.parent.stat().st_mtime_ns
    assert draw_pab(root, train_pairs=80, test_pairs=24, seed=5, image_size=SIZE, workers=1) == root
    assert root.parent.stat().st_mtime_ns == changed  # nothing was made beside it


def test_a_root_with_other_arguments_or_files_is_refused(root, tmp_path):
    before = contents(root)
    for other in ({"seed": 6}, {"train_pairs": 82}, {"world": PRETRAINING_WORLD}):
        arguments = {"train_pairs": 80, "test_pairs": 24, "seed": 5, "image_size": SIZE, "workers": 1} | other
        with pytest.raises(FileExistsError, match="not drawn with the arguments"):
            draw_pab(root, **arguments)
    assert contents(root) == before
    foreign = tmp_path / "thesis"
    foreign.mkdir()
    (foreign / "chapter.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="thesis"):
        draw_pab(foreign, train_pairs=2, test_pairs=2)
    with pytest.raises(FileExistsError, match="is a file"):
        draw_pab(foreign / "chapter.txt", train_pairs=2, test_pairs=2)
    assert contents(tmp_path) == {"thesis/chapter.txt": b"mine"}


def test_an_empty_folder_may_be_drawn_into(tmp_path):
    root = tmp_path / "pab"
    root.mkdir()
    draw_pab(root, train_pairs=2, test_pairs=2, image_size=SIZE, workers=1)
    assert len(list(root.rglob("*.jpg"))) == 4
    assert [path.name for path in tmp_path.iterdir()] == ["pab"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_interruption_leaves_nothing(tmp_path, error):
    class Scenes(tuple):
        chosen = 0

        def __getitem__(self, number):
            if self.chosen == 5:
                raise error("stopped")
            self.chosen += 1
            return super().__getitem__(number)

    world = replace(DEMO_WORLD, scenes=Scenes(DEMO_WORLD.scenes))
    with pytest.raises(error, match="stopped"):
        draw_pab(tmp_path / "pab", world=world, train_pairs=12, test_pairs=2, image_size=SIZE, workers=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("argument", "value"),
    [("train_pairs", 3), ("train_pairs", 0), ("test_pairs", 7), ("image_size", 8), ("workers", 0)],
)
def test_what_cannot_be_drawn_is_refused_at_once(tmp_path, argument, value):
    with pytest.raises(ValueError, match=f"{argument} must .* {value}$"):
        draw_pab(tmp_path / "pab", **{argument: value})
    assert list(tmp_path.iterdir()) == []


def test_the_command_draws(tmp_path):
    folder = tmp_path / "pab"
    arguments = f"--train_pairs 4 --test_pairs 2 --seed 1 --image_size {SIZE} --workers 1"
    draw.main([str(folder), *arguments.split()])
    same = draw_pab(tmp_path / "same", train_pairs=4, test_pairs=2, seed=1, image_size=SIZE, workers=1)
    assert contents(folder) == contents(same)
