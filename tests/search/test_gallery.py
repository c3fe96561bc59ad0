"""Building, keeping and searching a gallery on disk."""

import errno
import gc
import hashlib
import io
import json
import multiprocessing
import os
import resource
import shutil
import signal
import threading
import weakref
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from accelerate import Accelerator, debug_launcher
from datasets import Dataset, Features, IterableDataset, Value
from datasets import Image as ImageFeature
from PIL import Image, ImageSequence
from tiny_inputs import interrupted_before_the_manifest, noise_image, spoil, spread_match_logits
from transformers import BertTokenizer

from tpas.commands.gallery import main as manage_gallery
from tpas.commands.search import main as search_gallery
from tpas.data.image_folders import FolderRules
from tpas.engine.encoding import encode_images, encode_texts
from tpas.engine.matching import PlainMatcher
from tpas.modeling_tpas import TPASModel
from tpas.models.fingerprints import model_fingerprint
from tpas.models.loading import load_model
from tpas.models.lora import add_lora
from tpas.processing_tpas import TPASProcessor, load_image
from tpas.sca import sca_rerank
from tpas.search import manifest, shards, stored_gallery
from tpas.search.exact_index import ROUNDED_FROM
from tpas.search.gallery import Gallery
from tpas.search.gallery_files import GalleryFiles
from tpas.search.image_tokens import ImageTokens, RecomputedImageTokens
from tpas.search.manifest import (
    EMBEDDINGS,
    IMAGES,
    LOCK,
    MANIFEST,
    SHARDS,
    THUMBNAILS,
    TOKENS,
    GalleryError,
    builder_lock,
)
from tpas.search.ranking import rank_by_embeddings, reorder
from tpas.search.shards import id_hash

TEXTS = ["a man wears red", "woman runs", "a hat a shirt falls blue green street"]
SMALL = Image.new("RGB", (9, 9))
PRINT = "[0-9a-f]{16}"  # a fingerprint


# Plain arithmetic, no tokens, and three tensors an image: as unlike ours as a model can be.
EVERY_MODEL = pytest.mark.parametrize("family", ["tpas", "siglip2"])


@pytest.fixture
def family() -> str:
    """Of the model; a test that `EVERY_MODEL` marks has others than ours as well."""
    return "tpas"


@pytest.fixture
def encoders(family, request):
    return load_model(str(request.getfixturevalue("folders")[family]))


@pytest.fixture
def model(family, model, request):
    return model if family == "tpas" else request.getfixturevalue("encoders")[0]


@pytest.fixture
def processor(family, processor, request):
    return processor if family == "tpas" else request.getfixturevalue("encoders")[1]


@pytest.fixture
def folder(tmp_path) -> Path:
    """20 images in two folders."""
    return draw_images(tmp_path / "images", 20)


@pytest.fixture
def build(model, processor, folder, tmp_path):
    """A function that builds a gallery of the folder."""

    def build(name: str = "gallery", **settings) -> Gallery:
        return Gallery.build(model, processor, folder, tmp_path / name, **settings)

    return build


@pytest.fixture
def gallery(build) -> Gallery:
    return build()


@pytest.fixture
def sharded(build) -> Gallery:
    """In shards of 8, 8 and 4 images."""
    return build(shard_size=8)


def draw_images(folder: Path, count: int, first: int = 0) -> Path:
    for number in range(first, first + count):
        path = folder / f"camera {number % 2}" / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise_image(number).save(path)
    return folder


def file_digests(path: Path) -> dict[str, str]:
    """Every file of a gallery but its lock, with its content; the gallery's random name left out."""
    digests = {}
    for file in sorted(path.rglob("*")):
        if file.is_file() and file.name != LOCK:
            content = file.read_bytes()
            if file.name == MANIFEST:
                content = json.dumps(json.loads(content) | {"name": ""}).encode()
            digests[file.relative_to(path).as_posix()] = hashlib.sha256(content).hexdigest()
    return digests


def exit_code_of(work, *arguments) -> int | None:
    """Of a process that begins with what is in memory here."""
    process = multiprocessing.get_context("fork").Process(target=work, args=arguments)
    process.start()
    process.join()
    return process.exitcode


def ids_of(answers) -> list[list[str]]:
    return [[hit.id for hit in hits] for hits in answers]


def fields(answers) -> list[list[tuple]]:
    return [
        [(hit.id, hit.rank, hit.score, hit.cosine, hit.match_logit, hit.embedding_rank) for hit in hits]
        for hits in answers
    ]


# Searching, against the stages over tensors in memory


@pytest.mark.parametrize("tokens", ["float32", None])
def test_search_equals_the_stages_in_memory(build, model, processor, folder, tokens):
    gallery = build(tokens=tokens, shard_size=7)
    answers = gallery.search(TEXTS, top_k=10, shortlist=6)

    ids = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    assert gallery.ids == ids
    embeds, states = encode_images(model, processor(images=[load_image(folder / name) for name in ids]))
    texts = encode_texts(model, processor, TEXTS)
    ranking, cosines = rank_by_embeddings(texts.embeds, embeds, ids)
    scores = PlainMatcher(model).logits_of_shortlists(states, texts, ranking[:, :6])[:, :, 1]
    head, head_scores = reorder(ranking[:, :6], scores)
    for query, hits in enumerate(answers):
        expected = head[query].tolist() + ranking[query, 6:10].tolist()
        assert [hit.id for hit in hits] == [ids[row] for row in expected]
        assert [hit.rank for hit in hits] == list(range(1, 11))
        by_cosine = ranking[query].tolist()
        assert [hit.embedding_rank for hit in hits] == [by_cosine.index(row) + 1 for row in expected]
        assert [hit.match_logit for hit in hits[:6]] == pytest.approx(head_scores[query].tolist(), abs=1e-6)
        assert [hit.match_logit for hit in hits[6:]] == [None] * 4
        assert [hit.score for hit in hits] == [hit.match_logit for hit in hits]
        own_cosines = [cosines[query, by_cosine.index(row)].item() for row in expected]
        assert [hit.cosine for hit in hits] == pytest.approx(own_cosines, abs=1e-6)
        assert [hit.path for hit in hits] == [folder.resolve() / hit.id for hit in hits]


def test_search_without_matching(gallery):
    for hits in gallery.search(TEXTS, top_k=20, rerank=False):
        assert [hit.rank for hit in hits] == [hit.embedding_rank for hit in hits] == list(range(1, 21))
        assert all(hit.match_logit is None and hit.score == hit.cosine for hit in hits)
        assert hits == sorted(hits, key=lambda hit: -hit.cosine)


def test_an_image_is_a_query(gallery, folder):
    (hits,) = gallery.search(TEXTS[:1], top_k=1)
    image = load_image(folder / hits[0].id)
    expected = gallery.similar(hits[0], top_k=5)[0]
    found = gallery.similar(image, top_k=6)
    assert found[0][0].id == hits[0].id
    assert found[0][0].cosine == pytest.approx(1, abs=1e-5)
    assert [hit.id for hit in found[0][1:]] == [hit.id for hit in expected]
    assert [hit.cosine for hit in found[0][1:]] == pytest.approx([hit.cosine for hit in expected], abs=1e-5)
    # One that is searched beside the gallery does not find itself.
    upload = gallery.encode_image(image, "mine.png")
    assert found.similar_to.image().size == image.size
    with_upload = gallery.similar(upload, top_k=6, extra=[upload])
    assert with_upload.searched == len(gallery)
    assert ids_of(with_upload) == ids_of(found)


@pytest.mark.parametrize("rerank", [False, True])
def test_search_with_sca_resolves_the_shortlists(gallery, rerank):
    texts = [*TEXTS, TEXTS[0]]  # the last and the first collide
    ids = gallery.ids
    plain = gallery.search(texts, top_k=8, shortlist=8, rerank=rerank)
    rows = np.array([[ids.index(hit.id) for hit in hits] for hits in plain])
    scores = np.array([[hit.score for hit in hits] for hits in plain])
    expected = sca_rerank(rows, scores, confidence="margin").indices
    assert not np.array_equal(expected, rows)
    reranked = gallery.search(texts, top_k=3, shortlist=8, rerank=rerank, sca="margin")
    assert [[ids.index(hit.id) for hit in hits] for hits in reranked] == expected[:, :3].tolist()


def test_a_cascade_answers_as_fp32_does(model, build):
    spread_match_logits(model)
    gallery = build()
    for settings in ({"top_k": 2}, {"top_k": 1, "sca": "margin"}, {"top_k": 3, "shortlist": 9}):
        expected = gallery.search(TEXTS, **settings)
        assert expected.cascade_report is None
        answers = gallery.search(TEXTS, **settings, cascade=True)
        assert ids_of(answers) == ids_of(expected)
        for own, other in zip(sum(answers, []), sum(expected, []), strict=True):
            assert own.match_logit == pytest.approx(other.match_logit, abs=1e-5)
        assert answers.cascade_report.pairs == len(TEXTS) * settings.get("shortlist", 20)
        assert answers.cascade_report.share_saved > 0


def test_of_a_longer_answer_so_many_are_exact(model, build):
    spread_match_logits(model)
    gallery = build()
    expected = gallery.search(TEXTS, top_k=15)
    answers = gallery.search(TEXTS, top_k=15, cascade=True, exact_top=3)
    assert ids_of(hits[:3] for hits in answers) == ids_of(hits[:3] for hits in expected)
    assert {len(hits) for hits in answers} == {15}
    of_three = gallery.search(TEXTS, top_k=3, cascade=True).cascade_report
    assert answers.cascade_report.pairs_in_fp32 == of_three.pairs_in_fp32 < len(TEXTS) * 15


@pytest.mark.parametrize("cascade", [False, True])
def test_a_warm_gallery_has_all_that_a_search_needs(gallery, cascade):
    gallery.warm_up(cascade=cascade)
    warm = set(vars(gallery))
    expected = gallery.search(TEXTS, top_k=3)
    assert ids_of(gallery.search(TEXTS, top_k=3, cascade=cascade)) == ids_of(expected)
    assert set(vars(gallery)) == warm
    assert gallery._opened_index.queries > ROUNDED_FROM


def test_warming_up_reads_no_images_files(build, folder):
    gallery = build(tokens=None)
    shutil.rmtree(folder)
    gallery.warm_up()
    assert gallery.search(TEXTS, rerank=False)


def test_more_texts_than_are_in_memory_at_once(model, build):
    spread_match_logits(model)
    gallery = build()
    for settings in ({}, {"rerank": False}, {"sca": "margin"}, {"cascade": True, "top_k": 1}):
        expected = gallery.search(TEXTS, **settings)
        answers = gallery.search(TEXTS, **settings, texts_at_once=2)
        assert ids_of(answers) == ids_of(expected)
        for own, other in zip(sum(answers, []), sum(expected, []), strict=True):
            assert own.score == pytest.approx(other.score, abs=1e-5)
    assert answers.cascade_report.pairs == len(TEXTS) * 20


@pytest.mark.parametrize(
    ("built", "opened", "asked", "reason"),
    [
        ({}, {}, {"rerank": False}, "nothing to save without re-ranking"),
        ({}, {"matching_dtype": "bfloat16"}, {}, "opened to match in bfloat16"),
        ({}, {}, {"sca": "softmax"}, "SCA by softmax reads every score"),
        ({"tokens": None}, {}, {}, "the gallery keeps no tokens"),
    ],
)
def test_a_cascade_that_cannot_help_is_refused(build, model, processor, built, opened, asked, reason):
    gallery = Gallery.open(build(**built).path, model, processor, **opened)
    with pytest.raises(ValueError, match=reason):
        gallery.search(TEXTS, cascade=True, **asked)


def test_an_unknown_confidence_is_refused_before_anything_is_matched(gallery):
    with pytest.raises(ValueError, match="sca must be None or one of .*, got 'scores'"):
        gallery.search(TEXTS, sca="scores")
    assert "_matcher" not in vars(gallery)


def test_matching_in_bf16_is_close(build, model, processor):
    spread_match_logits(model)
    path = build().path
    exact, fast = (
        Gallery.open(path, model, processor, matching_dtype=dtype).search(TEXTS, top_k=20)
        for dtype in ("float32", "bfloat16")
    )
    for own, other in zip(fast, exact, strict=True):
        logits = {hit.id: hit.match_logit for hit in other}
        assert 1e-5 < max(abs(hit.match_logit - logits[hit.id]) for hit in own) < 0.1
    with pytest.raises(ValueError, match=r"one of .'float32', 'bfloat16'., got 'float16'"):
        Gallery.open(path, model, processor, matching_dtype="float16")


def test_a_model_in_training_mode_answers_as_in_evaluation(model, build):
    model.train()
    gallery = build()
    expected = fields(gallery.search(TEXTS, rerank=False)), fields(gallery.search(TEXTS))
    model.train()
    assert fields(gallery.search(TEXTS, rerank=False)) == expected[0]
    model.train()
    assert fields(gallery.search(TEXTS)) == expected[1]


def test_search_takes_what_there_is(gallery):
    assert [len(hits) for hits in gallery.search(TEXTS, top_k=50)] == [20] * 3
    assert gallery.search([]) == []
    with pytest.raises(ValueError, match="top_k must be at least 1, got 0"):
        gallery.search(TEXTS, top_k=0)
    for texts in ("a man", 7, None):
        with pytest.raises(TypeError, match=f"texts must be an iterable of strings, got {texts!r}"):
            gallery.search(texts)
    with pytest.raises(TypeError, match="each text must be a string, got 7"):
        gallery.search(["a man", 7])
    answers = fields(gallery.search(TEXTS))
    for texts in (tuple(TEXTS), np.array(TEXTS), (text for text in TEXTS), dict.fromkeys(TEXTS)):
        assert fields(gallery.search(texts)) == answers
    for texts in ((), np.array([]), iter([])):
        assert gallery.search(texts) == []
    with pytest.raises(ValueError, match="with its model and processor"):
        Gallery.open(gallery.path).search(TEXTS)
    gallery.delete(gallery.ids)
    assert (len(gallery), gallery.search(TEXTS)) == (0, [[], [], []])


def test_tokens_read_as_an_array(build, model, processor, folder):
    kept, left = build("kept", tokens="float32", shard_size=7), build("left", tokens=None, shard_size=7)
    _, states = encode_images(model, processor(images=[load_image(folder / name) for name in kept.ids]))
    expected = states.numpy()
    recomputed = RecomputedImageTokens(left.stored, model, processor, None, batch_size=4)
    for tokens in (ImageTokens(kept.stored), recomputed):
        assert len(tokens) == 20
        for rows in (3, slice(5, 9), [8, 2, 19], np.array([6, 7]), torch.tensor([0, 13])):
            np.testing.assert_allclose(tokens[rows], expected[rows], atol=1e-6)


# What images come from


def test_what_a_folder_links_to_is_in_its_gallery(build, model, processor, folder, tmp_path, caplog):
    outside = draw_images(tmp_path / "outside", 1, first=77) / "camera 1"
    (folder / "link.png").symlink_to(outside / "077.png")
    (folder / "linked").symlink_to(outside)
    (folder / "linked again").symlink_to(outside)
    (folder / "camera 0" / "up").symlink_to(folder)
    (folder / "notes.txt").write_text("no image")
    (folder / ".trash").mkdir()
    (folder / "broken.png").write_text("no image")
    gallery = build(tokens=None)
    assert {"link.png", "linked/077.png"} < set(gallery.ids)
    assert caplog.messages[-1] == (
        f"{folder}: 4 files not taken: 1 .txt, 1 link leading back (camera 0/up), 1 link to a folder taken "
        "already (linked again), 1 no image but by name (broken.png); 1 excluded (.trash)"
    )
    hit = next(hit for hit in gallery.search(TEXTS, top_k=22)[0] if hit.id == "link.png")
    assert hit.image().tobytes() == load_image(outside / "077.png").tobytes()
    not_followed = Gallery.open(gallery.path, model, processor, follow_links=False)
    with pytest.raises(GalleryError, match="image 'link.*' cannot be read: .* is a link that leads out of"):
        not_followed.search(TEXTS)
    gallery = build("not followed", rules=FolderRules(follow_links=False))
    assert len(gallery) == 20
    assert "4 links not followed (link.png)" in caplog.text


def test_a_gallery_from_elsewhere_names_no_file_outside_its_root(build, folder, tmp_path):
    """Whoever made it wrote what it says of its files."""
    draw_images(tmp_path / "outside", 1)
    gallery = build()
    for path in ("../outside/camera 0/000.png", str(tmp_path / "outside" / "camera 0" / "000.png")):
        gallery.stored.record(0)["path"] = path
        with pytest.raises(ValueError, match="leads out of"):
            gallery.stored.open_file(0)


def opened(files):
    """Each file's name and image, not decoded, and closed before the next."""
    for file in files:
        with Image.open(file) as image:
            yield file.stem, image


def test_datasets_and_pairs_give_the_same_gallery(model, processor, folder, tmp_path):
    files = sorted(folder.rglob("*.png"))
    names = [file.stem for file in files]
    columns = {"name": names, "image": [{"bytes": file.read_bytes(), "path": None} for file in files]}
    features = Features({"name": Value("string"), "image": ImageFeature()})
    sources = {
        "dataset": Dataset.from_dict(columns, features=features),
        "files": zip(names, files, strict=True),
        "images": opened(files),
    }
    answers = {}
    for name, images in sources.items():
        column = "name" if name == "dataset" else None
        gallery = Gallery.build(model, processor, images, tmp_path / name, id_column=column)
        answers[name] = gallery.search(TEXTS)
    assert fields(answers["dataset"]) == fields(answers["files"]) == fields(answers["images"])
    assert answers["files"][0][0].path in files
    assert answers["dataset"][0][0].path is None
    with pytest.raises(FileNotFoundError, match="was no file, and the gallery keeps no thumbnails"):
        answers["dataset"][0][0].image()
    numbered = Gallery.build(model, processor, sources["dataset"], tmp_path / "numbered")
    assert numbered.ids == [str(number) for number in range(20)]


def test_files_that_are_links_or_share_a_name(model, processor, folder, tmp_path):
    """Each file of a Hub snapshot is a link out of its folder."""
    blobs = sorted(folder.rglob("*.png"))
    files = [tmp_path / "home" / camera / "1.png" for camera in ("x", "y")]
    for file, blob in zip(files, blobs, strict=False):
        file.parent.mkdir(parents=True)
        file.symlink_to(os.path.relpath(blob, file.parent))
    pairs = [(file.parent.name, file) for file in files]
    path = Gallery.build(model, processor, pairs, tmp_path / "gallery", tokens=None).path

    def found(**opened_as):
        gallery = Gallery.open(path, model, processor, **opened_as)
        hits = gallery.search(TEXTS[:1])[0]  # which computes the tokens from the files
        return {hit.id: (hit.path, hit.image().tobytes()) for hit in hits}

    content = [load_image(blob).tobytes() for blob in blobs[:2]]
    assert found() == {"x": (files[0], content[0]), "y": (files[1], content[1])}
    for file, blob in zip(files, blobs, strict=False):
        moved = tmp_path / "disk" / file.relative_to("/")
        moved.parent.mkdir(parents=True)
        shutil.copy(blob, moved)
        file.unlink()
    moved = [tmp_path / "disk" / file.relative_to("/") for file in files]
    assert found(images_root=tmp_path / "disk") == {"x": (moved[0], content[0]), "y": (moved[1], content[1])}
    with pytest.raises(GalleryError, match="no such image file"):
        found(images_root=tmp_path)


def test_only_a_few_of_the_images_given_are_in_memory(model, processor, tmp_path):
    gone, alive = [], []

    def images():
        for number in range(64):
            image = noise_image(number)
            weakref.finalize(image, gone.append, number)
            alive.append(number + 1 - len(gone))
            yield str(number), image
            del image

    gallery = Gallery.build(model, processor, images(), tmp_path / "gallery", batch_size=4, workers=1)
    assert len(gallery) == 64
    assert max(alive) <= 3 * 4  # a batch at the model, one that is read, and the next


def test_images_that_were_not_decoded_stay_so(model, processor, folder, tmp_path):
    files = sorted(folder.rglob("*.png"))[:6]
    images = [(file.name, Image.open(file)) for file in files]
    gallery = Gallery.build(model, processor, images, tmp_path / "gallery")
    assert gallery.ids == [file.name for file in files]
    for file, (_, image) in zip(files, images, strict=True):
        assert image.tile  # what is still to be decoded
        assert image.convert("RGB").tobytes() == load_image(file).tobytes()


def test_the_frames_of_one_image_are_images(model, processor, tmp_path):
    frames = [noise_image(number) for number in range(6)]
    frames[0].save(tmp_path / "frames.tif", save_all=True, append_images=frames[1:])
    names = [str(number) for number in range(6)]
    with Image.open(tmp_path / "frames.tif") as image:
        pairs = zip(names, ImageSequence.Iterator(image), strict=True)
        gallery = Gallery.build(model, processor, pairs, tmp_path / "gallery")
    expected = Gallery.build(model, processor, zip(names, frames, strict=True), tmp_path / "expected")
    assert fields(gallery.search(TEXTS)) == fields(expected.search(TEXTS))


def test_thumbnails_are_small_copies(build, folder, tmp_path):
    gallery = build(thumbnail_size=10, shard_size=8)
    file = sorted(folder.rglob("*.png"))[12]
    shutil.copy(file, tmp_path / "copy.png")
    (hit,) = [hit for hit in gallery.search(TEXTS[:1], top_k=20)[0] if hit.path == file.resolve()]
    file.unlink()
    expected = Image.open(tmp_path / "copy.png")
    expected.thumbnail((10, 10))
    stream = io.BytesIO()
    expected.save(stream, "JPEG", quality=85)
    assert hit.image().size == (6, 10)
    assert hit.image().tobytes() == Image.open(stream).convert("RGB").tobytes()


def test_unreadable_images_are_left_out_and_named(build, folder, caplog):
    broken = folder / "camera 0" / "004.png"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:60])
    (folder / "camera 1" / "005.png").write_text("no image")
    (folder / "large.png").write_bytes(b"P6 10000 10000 255 ")  # says that so many pixels follow
    gallery = build(shard_size=1)
    assert sorted(gallery.unreadable) == ["camera 0/004.png", "camera 1/005.png", "large.png"]
    assert "10000x10000 pixels are more than" in gallery.unreadable["large.png"]
    assert "left out camera 1/005.png" in caplog.text
    assert len(gallery) == 18 == len(list((gallery.path / SHARDS).iterdir()))

    broken.write_bytes(whole)  # repaired
    gallery.append(folder)
    assert sorted(gallery.unreadable) == ["camera 1/005.png", "large.png"]
    assert len(gallery) == 19


def test_a_broken_image_from_anywhere_is_left_out_and_named(build, model, processor, folder, tmp_path):
    whole = sorted(folder.rglob("*.png"))[0]
    broken = folder / "broken.png"
    noise_image(50).save(broken, exif=b"II*\0")  # Pillow: struct.error
    gallery = build("folder")
    assert list(gallery.unreadable) == ["broken.png"]
    assert gallery.unreadable["broken.png"].startswith(f"{broken}: broken image")

    images = [(n, Image.open(io.BytesIO(file.read_bytes()))) for n, file in {"a": broken, "b": whole}.items()]
    for image in (Image.open(broken), noise_image(1)):
        image.close()
        images.append((f"closed {len(images)}", image))
    gallery = Gallery.build(model, processor, images, tmp_path / "images")
    assert gallery.ids == ["b"]
    assert sorted(gallery.unreadable) == ["a", "closed 2", "closed 3"]
    assert gallery.unreadable["a"].startswith("a: broken image")

    rows = [{"bytes": file.read_bytes(), "path": None} for file in (broken, whole)]
    rows += [None, {"bytes": None, "path": str(whole)}]
    dataset = Dataset.from_dict({"image": rows}, features=Features({"image": ImageFeature()}))
    gallery = Gallery.build(model, processor, dataset, tmp_path / "dataset")
    assert gallery.ids == ["1", "3"]
    assert gallery.unreadable["0"].startswith("0: broken image")
    assert gallery.unreadable["2"] == "2: the dataset's row has no image"


def unknown_columns():
    dataset = IterableDataset.from_generator(lambda: iter([{"image": Image.new("RGB", (9, 9))}]))
    assert dataset.features is None
    return dataset


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (["a.jpg", "b.jpg"], r"pairs \(id, image\), such as \[\(path.name, path\) .*, got 'a.jpg'"),
        (["ab", "cd"], "pairs .*, got 'ab'"),
        ({"a": "a.jpg"}, "pairs .*, got 'a'"),
        ([Path("a.jpg")], "pairs .*, got PosixPath"),
        ([("a", "a.jpg", "a man")], "pairs .*, got .'a', 'a.jpg', 'a man'"),
        ([(7, "a.jpg")], "id must be a string that is not empty, got 7"),
        (unknown_columns, "columns of the streaming dataset are not known: give pairs"),
        (7, "images must be a folder, a datasets.Dataset or pairs"),
    ],
)
def test_what_is_no_pair_is_refused_and_leaves_nothing(model, processor, tmp_path, images, message):
    with pytest.raises(TypeError, match=message):
        Gallery.build(model, processor, images() if callable(images) else images, tmp_path / "gallery")
    assert not (tmp_path / "gallery").exists()


def test_a_streaming_dataset(model, processor, folder, tmp_path):
    rows = [{"bytes": file.read_bytes(), "path": None} for file in sorted(folder.rglob("*.png"))]
    dataset = Dataset.from_dict({"image": rows}, features=Features({"image": ImageFeature()}))
    gallery = Gallery.build(model, processor, dataset.to_iterable_dataset(), tmp_path / "stream")
    expected = Gallery.build(model, processor, dataset, tmp_path / "gallery")
    assert fields(gallery.search(TEXTS)) == fields(expected.search(TEXTS))


@pytest.mark.parametrize(
    ("images", "tokens", "error", "message"),
    [
        ([("a", SMALL)] * 2, "float16", ValueError, "two images have the id 'a'"),
        ([("", SMALL)], "float16", TypeError, "must be a string that is not empty"),
        ([("a", b"bytes")], "float16", TypeError, "image 'a' must be a path or a PIL image"),
        ("nowhere", "float16", NotADirectoryError, "nowhere is no folder of images"),
        ([("a", SMALL)], None, GalleryError, "'a' is no file to compute its tokens from again"),
    ],
)
def test_what_is_no_source_of_images_is_refused(model, processor, tmp_path, images, tokens, error, message):
    with pytest.raises(error, match=message):
        Gallery.build(model, processor, images, tmp_path / "gallery", tokens=tokens)


@pytest.mark.parametrize(
    ("layer", "value", "message"),
    [
        ("image_projection", torch.nan, "embedding of image '.*' is not finite: its weights are damaged"),
        ("vision_model.layernorm", 1e6, "tokens of image '.*' are too large for float16: .*tokens=float32"),
    ],
)
def test_what_no_search_could_place_is_refused(model, build, layer, value, message):
    model.get_submodule(layer).bias.data[3] = value
    with pytest.raises(GalleryError, match=message):
        build()


def test_a_folder_of_odd_names_and_odd_files(model, processor, tmp_path):
    folder = draw_images(tmp_path / "Bilder ä 日本", 2)
    (folder / "camera 0" / "000.png").rename(folder / "ü 7.png")
    (folder / "circle.png").symlink_to(folder / "circle.png")
    (folder / "lost.png").symlink_to(folder / "nowhere.png")
    (folder / "text.jpg").write_text("no image")
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "folder.jpg").mkdir()
    os.mkfifo(folder / "pipe.jpg")
    (tmp_path / "link").symlink_to(folder)
    gallery = Gallery.build(model, processor, tmp_path / "link", tmp_path / "galerie ß")
    assert gallery.ids == ["camera 1/001.png", "ü 7.png"]
    assert sorted(gallery.unreadable) == ["circle.png", "empty.jpg", "lost.png", "pipe.jpg", "text.jpg"]
    assert {hit.path for hit in gallery.search(TEXTS)[0]} == {folder / name for name in gallery.ids}


@pytest.mark.parametrize("count", [0, 1])
def test_a_gallery_of_hardly_any_images(model, processor, tmp_path, count):
    images = [("007", Image.new("RGB", (9, 9), "red")), ("7", Image.new("RGB", (9, 9), "blue"))]
    gallery = Gallery.build(model, processor, images[:count], tmp_path / "gallery")
    for settings in ({}, {"sca": "margin"}, {"rerank": False}, {"shortlist": 1}):
        assert [[hit.id for hit in hits] for hits in gallery.search(["man"], **settings)] == [["007"][:count]]
    if not count:
        with pytest.raises(ValueError, match="has no images to make an index of"):
            gallery.write_index("faiss")
    else:
        with pytest.raises(ValueError, match="no texts to measure"):
            gallery.write_index("faiss", [])
    gallery.append(images)
    assert gallery.ids == ["007", "7"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_images_are_encoded_by_the_fastest_with_the_models_values(build, model, processor, folder, dtype):
    model = model.to(dtype)
    asked_of_the_model = dtype == torch.bfloat16
    model.get_image_features = asked = Mock(wraps=model.get_image_features)
    gallery = build(tokens=None, shard_size=8, batch_size=3)
    batches = [len(call.kwargs["pixel_values"]) for call in asked.call_args_list]
    assert batches == ([3, 3, 2, 3, 3, 2, 3, 1] if asked_of_the_model else [])
    answers = gallery.search(TEXTS)
    assert (asked.call_count > len(batches) + 1) == asked_of_the_model
    embeds, _ = encode_images(model, processor(images=[load_image(folder / name) for name in gallery.ids]))
    torch.testing.assert_close(torch.cat(gallery.stored.embeddings), embeds, atol=1e-5, rtol=0)
    if not asked_of_the_model:  # a later search has the copy of the first, and makes no other
        torch.nn.init.zeros_(model.image_projection.weight)
        assert fields(gallery.search(TEXTS)) == fields(answers)


def test_an_adapter_that_is_not_merged_is_refused_before_anything_is_encoded(
    model, processor, folder, tmp_path
):
    adapted = add_lora(model, 2, 4, 0.0)
    with pytest.raises(TypeError, match="an adapter must be merged first"):
        Gallery.build(adapted, processor, folder, tmp_path / "adapted")
    gallery = Gallery.build(adapted.merge_and_unload(), processor, folder, tmp_path / "merged")
    assert [len(hits) for hits in gallery.search(TEXTS)] == [10] * 3


# Appending and deleting


def test_ids_are_any_strings(model, processor, tmp_path):
    ids = ["0001", "001", "1", "é", "e\u0301", "a b", "日本/ß.jpg", "..", "x\ny"]
    images = [(name, Image.new("RGB", (9, 9), (20 * row, 9, 9))) for row, name in enumerate(ids)]
    gallery = Gallery.build(model, processor, images, tmp_path / "gallery", shard_size=4)
    assert gallery.ids == ids
    assert {hit.id for hit in gallery.search(TEXTS)[0]} == set(ids)
    with pytest.raises(TypeError, match="got the string '1'"):
        gallery.delete("1")
    gallery.delete(["001", "é", "日本/ß.jpg", "001"])
    assert gallery.ids == ["0001", "1", "e\u0301", "a b", "..", "x\ny"]


def test_two_folders_with_the_same_names_share_a_gallery(gallery, folder, tmp_path):
    other = draw_images(tmp_path / "other", 3, first=30)
    for number in range(3):
        (other / f"camera {number % 2}" / f"{30 + number:03d}.png").rename(other / f"{number:03d}.png")
    (other / "camera 0" / "000.png").write_bytes((other / "000.png").read_bytes())
    name = "camera 0/000.png"
    both = f"'{name}': {folder / name} is in the gallery {gallery.path}, and {other / name} is another"
    with pytest.raises(GalleryError, match=f"two images have the id {both}: --id_prefix other/ makes"):
        gallery.append(other)
    assert len(gallery) == 20
    gallery.append(other, on_clash="skip")
    assert len(gallery) == 23
    gallery.append(other, id_prefix="other/")
    assert len(gallery) == 27
    assert {"other/camera 0/000.png", "other/000.png"} < set(gallery.ids)
    (hit,) = [hit for hit in gallery.search(TEXTS[:1], top_k=27)[0] if hit.id == "other/camera 0/000.png"]
    assert hit.path == other / "camera 0" / "000.png"
    with pytest.raises(ValueError, match="on_clash must be one of .*'replace'.*, got 'ask'"):
        gallery.append(other, on_clash="ask")


def test_the_same_image_from_another_place_is_the_same(gallery, folder, tmp_path):
    """A folder that was copied, or moved to another disk: each file is new, its content is not."""
    shutil.copytree(folder, tmp_path / "copy", copy_function=shutil.copyfile)
    folder.rename(tmp_path / "gone")
    before = file_digests(gallery.path)
    gallery.append(tmp_path / "copy")
    assert file_digests(gallery.path) == before
    rows = [(name, tmp_path / "copy" / name) for name in gallery.ids]
    rows = {"name": gallery.ids, "image": [{"bytes": file.read_bytes(), "path": None} for _, file in rows]}
    dataset = Dataset.from_dict(rows, features=Features({"name": Value("string"), "image": ImageFeature()}))
    gallery.append(dataset, id_column="name")
    assert file_digests(gallery.path) == before


def test_the_rows_of_a_second_dataset_are_not_those_of_the_first(model, processor, folder, tmp_path):
    """Their ids are row numbers in both."""
    files = sorted(folder.rglob("*.png"))
    rows = [{"bytes": file.read_bytes(), "path": None} for file in files]
    features = Features({"image": ImageFeature()})
    first, second = (Dataset.from_dict({"image": part}, features=features) for part in (rows[:5], rows[5:10]))
    gallery = Gallery.build(model, processor, first, tmp_path / "gallery")
    with pytest.raises(GalleryError, match="two images have the id '0': an image that was no file is in"):
        gallery.append(second)
    gallery.append(second, id_prefix="second/")
    assert gallery.ids == [*"01234", *(f"second/{number}" for number in range(5))]


def embedding(gallery: Gallery, name: str) -> torch.Tensor:
    return gallery.stored.embedding_rows(torch.tensor(gallery.stored.rows_of([name])))


def swap(file: Path, other: Path) -> None:
    """Another image in its place, of equal size and time of change."""
    before = file.stat()
    file.write_bytes(other.read_bytes().ljust(before.st_size, b"\0"))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


@EVERY_MODEL
def test_a_changed_image_is_named_kept_or_encoded_again(build, folder):
    first, *_, second = sorted((folder / "camera 0").iterdir(), key=lambda path: -path.stat().st_size)
    names = [path.relative_to(folder).as_posix() for path in (first, second)]
    before = embedding(build(shard_size=8), names[0])
    swap(first, second)
    message = f"{first} was changed since it was encoded .*: --on_clash replace encodes it again, skip keeps"
    with pytest.raises(GalleryError, match=message):
        build(shard_size=8)
    assert torch.equal(embedding(build(shard_size=8, on_clash="skip"), names[0]), before)
    replaced = build(shard_size=8, on_clash="replace")
    torch.testing.assert_close(*(embedding(replaced, name) for name in names), atol=1e-5, rtol=0)
    assert not torch.allclose(embedding(replaced, names[0]), before, atol=1e-3)
    replaced.verify()
    assert len(replaced) == 20


def test_an_image_that_was_changed_since_a_killed_build_is_encoded_again(build, folder, monkeypatch):
    with interrupted_before_the_manifest(monkeypatch), pytest.raises(KeyboardInterrupt):
        build(shard_size=8)
    first, *_, second = sorted((folder / "camera 0").iterdir(), key=lambda path: -path.stat().st_size)
    swap(first, second)
    with pytest.raises(GalleryError, match=f"{first} was changed since it was encoded"):
        build(shard_size=8)
    gallery = build(shard_size=8, on_clash="replace")
    names = [path.relative_to(folder).as_posix() for path in (first, second)]
    torch.testing.assert_close(*(embedding(gallery, name) for name in names), atol=1e-5, rtol=0)
    assert len(gallery) == 20


@EVERY_MODEL
def test_appending_leaves_readers_their_view(sharded, build, model, processor, folder):
    reader = Gallery.open(sharded.path, model, processor)
    before = fields(reader.search(TEXTS))
    names = {path.name for path in (sharded.path / SHARDS).iterdir()}

    draw_images(folder, 9, first=20)
    sharded.append(folder, shard_size=8)
    assert names < {path.name for path in (sharded.path / SHARDS).iterdir()}
    assert (len(reader), len(sharded)) == (20, 29)
    assert fields(Gallery.open(sharded.path, model, processor).search(TEXTS)) == fields(sharded.search(TEXTS))
    late = Gallery(reader.stored, model, processor, "exact", None)  # reads all of it only now
    assert fields(late.search(TEXTS)) == before

    assert ids_of(sharded.search(TEXTS)) == ids_of(build("whole", shard_size=8).search(TEXTS))


def append_and_index(model, processor, folder, path):
    gallery = Gallery.open(path, model, processor)
    gallery.append(folder)
    gallery.write_index("faiss")


@EVERY_MODEL
def test_a_faiss_index_of_readers_stays_when_another_process_renews_it(sharded, model, processor, folder):
    with pytest.raises(GalleryError, match="has no faiss index: run `tpas gallery index"):
        Gallery.open(sharded.path, model, processor, index="faiss")
    assert Gallery.open(sharded.path, index="faiss").ids == sharded.ids  # which cannot search, so needs none
    sharded.write_index("faiss")
    reader = Gallery.open(sharded.path, model, processor, index="faiss")
    draw_images(folder, 9, first=20)
    assert exit_code_of(append_and_index, model, processor, folder, sharded.path) == 0
    assert (len(reader), fields(reader.search(TEXTS))) == (20, fields(sharded.search(TEXTS)))
    reader.append(folder)  # which opens it anew, and with it the new index
    exact = Gallery.open(sharded.path, model, processor)
    assert (len(reader), fields(reader.search(TEXTS))) == (29, fields(exact.search(TEXTS)))


def test_an_opened_gallery_is_not_read(gallery, model, processor):
    opened = Gallery.open(gallery.path, model, processor)
    assert "_opened_index" not in vars(opened)
    assert "embeddings" not in vars(opened.stored)


@EVERY_MODEL
def test_deleted_images_leave_nothing_behind(build, model, processor, folder):
    gallery = build(shard_size=8, thumbnail_size=8)
    reader = Gallery.open(gallery.path, model, processor)
    gone = [gallery.ids[0], *gallery.ids[8:16]]
    left = [name for name in gallery.ids if name not in gone]
    before = {hit.id: hit for hit in gallery.search(TEXTS[:1], top_k=20)[0]}
    thumbnails = {name: hit.image().tobytes() for name, hit in before.items()}
    gallery.delete(gone)
    assert gallery.ids == left
    assert not [p for p in gallery.path.rglob("*.json") if gone[0] in p.read_text()]
    gallery.verify()
    after = gallery.search(TEXTS[:1], top_k=20)[0]
    assert {hit.id for hit in after} == set(left)
    assert all(hit.match_logit == pytest.approx(before[hit.id].match_logit, abs=1e-6) for hit in after)
    assert all(hit.image().tobytes() == thumbnails[hit.id] for hit in after)
    with pytest.raises(GalleryError, match="were deleted: open it again"):
        before[gone[0]].image()
    with pytest.raises(GalleryError, match="were deleted: open it again"):
        reader.search(TEXTS, rows=[0])
    found = reader.search(TEXTS[:1], top_k=20)[0]
    assert [(hit.id, hit.score) for hit in found] == [(hit.id, hit.score) for hit in after]
    with pytest.raises(KeyError, match="has no images"):
        gallery.delete([left[0], gone[0]])
    assert len(gallery) == len(left)
    gallery.append(folder)
    assert sorted(gallery.ids) == sorted(left + gone)


@EVERY_MODEL
@pytest.mark.filterwarnings("ignore:Deprecated call to `pkg_resources:DeprecationWarning")
def test_a_database_answers_as_exact_search_and_forgets_a_gallery_that_was_emptied(
    gallery, model, processor, tmp_path
):
    pytest.importorskip("milvus_lite")
    address = str(tmp_path / "milvus.db")
    assert gallery.write_index(address).startswith("20 images are in")
    in_database = Gallery.open(gallery.path, model, processor, index=address)
    assert fields(in_database.search(TEXTS)) == fields(gallery.search(TEXTS))
    gallery.delete(gallery.ids)
    assert gallery.write_index(address).startswith("0 images are in")


@EVERY_MODEL
def test_a_killed_deletion_can_be_repeated(sharded, monkeypatch):
    gone = sharded.ids[3]
    with interrupted_before_the_manifest(monkeypatch), pytest.raises(KeyboardInterrupt):
        sharded.delete([gone])
    assert gone in Gallery.open(sharded.path).ids
    sharded.delete([gone])
    assert gone not in sharded.ids
    assert len(list((sharded.path / SHARDS).iterdir())) == 3


# Faults


def build_and_die(model, processor, folder, path, survives):
    """Reads `survives` images, and is killed as the system kills."""

    class DeadlyProcessor(type(processor)):
        read = 0

        def __call__(self, *arguments, **settings):
            if self.read == survives:
                os.kill(os.getpid(), signal.SIGKILL)
            self.read += 1
            return super().__call__(*arguments, **settings)

    processor.__class__ = DeadlyProcessor
    Gallery.build(model, processor, folder, path, shard_size=6, batch_size=3, workers=1)


@EVERY_MODEL
def test_a_killed_build_goes_on(build, model, processor, folder, tmp_path):
    whole = file_digests(build("whole", shard_size=6, batch_size=3).path)
    path = tmp_path / "gallery"
    assert exit_code_of(build_and_die, model, processor, folder, path, 15) == -signal.SIGKILL
    with pytest.raises(GalleryError, match="is not finished: do the same build again"):
        Gallery.open(path)
    spoil(sorted(folder.rglob("*.png"))[:12])  # of two shards; half of the third was read as well
    build(shard_size=6, batch_size=3, on_clash="skip")
    assert file_digests(path) == whole


@EVERY_MODEL
def test_a_killed_build_goes_on_with_more_images(build, folder, monkeypatch):
    """New images shift the others into other shards; what is finished is still not encoded again."""
    with interrupted_before_the_manifest(monkeypatch), pytest.raises(KeyboardInterrupt):
        build(shard_size=6)
    spoil(folder.rglob("*.png"))
    for number in (100, 101, 102, 103):  # of which two sort before most others
        draw_images(folder, 1, first=number)
    gallery = build(shard_size=6, on_clash="skip")
    assert sorted(gallery.ids) == sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.png"))


@pytest.mark.parametrize("shard_size", [1, 6])
def test_a_killed_build_that_met_unreadable_images_goes_on(build, folder, monkeypatch, shard_size):
    broken = folder / "camera 0" / "004.png"
    image = broken.read_bytes()
    broken.write_bytes(image[:60])
    whole = file_digests(build("whole", shard_size=shard_size).path)
    with interrupted_before_the_manifest(monkeypatch), pytest.raises(KeyboardInterrupt):
        build(shard_size=shard_size)
    spoil(file for file in folder.rglob("*.png") if file != broken)
    with interrupted_before_the_manifest(monkeypatch), pytest.raises(KeyboardInterrupt):
        build(shard_size=shard_size, on_clash="skip")
    gallery = build(shard_size=shard_size, on_clash="skip")
    assert list(gallery.unreadable) == ["camera 0/004.png"]
    assert file_digests(gallery.path) == whole


def test_a_manifest_without_embeddings_or_of_deep_nesting_is_damaged(build):
    path = build().path / MANIFEST
    content = json.loads(path.read_text())
    del content["shards"][0]["files"]["embeddings.safetensors"]
    for damaged in (json.dumps(content), 100_000 * "["):
        path.write_text(damaged)
        with pytest.raises(GalleryError, match=r"gallery\.json is damaged"):
            GalleryFiles(path.parent)


@pytest.mark.parametrize("shard_size", [1, 6])
def test_a_killed_build_tries_again_what_it_could_not_read(build, folder, monkeypatch, shard_size):
    broken = folder / "camera 0" / "004.png"
    image = broken.read_bytes()
    broken.write_bytes(image[:60])
    with interrupted_before_the_manifest(monkeypatch), pytest.raises(KeyboardInterrupt):
        build(shard_size=shard_size)
    broken.write_bytes(image)
    gallery = build(shard_size=shard_size)
    assert not gallery.unreadable
    assert sorted(gallery.ids) == sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.png"))


@EVERY_MODEL
def test_a_build_may_be_repeated(gallery, build, folder, caplog):
    before = file_digests(gallery.path)
    spoil(folder.rglob("*.png"))
    with caplog.at_level("INFO"):
        build(on_clash="skip")
    assert file_digests(gallery.path) == before
    assert f"20 images are in the gallery {gallery.path} already" in caplog.text


def append_with_little_room(model, processor, folder, path):
    """Under a limit that the system puts on the length of files, in place of a disk that is full."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (9000, resource.RLIM_INFINITY))
    gallery = Gallery.open(path, model, processor)
    with pytest.raises(GalleryError, match=r"could not write to the gallery .*do the same again"):
        gallery.append(folder, shard_size=9)  # 9 images have 9792 bytes of tokens


def test_a_full_disk_leaves_what_is_there(sharded, model, processor, folder):
    before = file_digests(sharded.path)
    draw_images(folder, 9, first=20)
    assert exit_code_of(append_with_little_room, model, processor, folder, sharded.path) == 0
    assert file_digests(sharded.path) == before
    sharded.append(folder, shard_size=9)
    assert len(sharded) == 29
    sharded.verify()


def append_and_die(model, processor, folder, path):
    """Is killed when the manifest is written, and not yet in its place."""
    os.replace = lambda source, target: (
        os.kill(os.getpid(), signal.SIGKILL) if Path(target).name == MANIFEST else os.rename(source, target)
    )
    Gallery.open(path, model, processor).append(folder)


@EVERY_MODEL
def test_a_kill_before_the_manifest_is_in_place_leaves_the_old_one(sharded, model, processor, folder):
    draw_images(folder, 9, first=20)
    assert exit_code_of(append_and_die, model, processor, folder, sharded.path) == -signal.SIGKILL
    assert list(sharded.path.glob(".gallery.json.*.partial"))
    assert len(Gallery.open(sharded.path)) == 20
    sharded.append(folder)
    assert len(sharded) == 29
    assert not list(sharded.path.glob(".*"))
    sharded.verify()


@pytest.mark.parametrize("file", [EMBEDDINGS, TOKENS, IMAGES])
def test_damage_is_found_and_named(sharded, model, processor, file):
    path = sharded.path
    target = sorted(path.glob(f"shards/*/{file}"))[1]
    content = target.read_bytes()
    target.write_bytes(content[:-1])
    with pytest.raises(GalleryError, match=rf"{target} is damaged \(it has {len(content) - 1} bytes instead"):
        Gallery.open(path)
    target.write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
    gallery = Gallery.open(path, model, processor)
    with pytest.raises(GalleryError, match=f"{target} is damaged"):
        gallery.search(TEXTS, top_k=20)
    with pytest.raises(GalleryError, match=f"{target} is damaged .its checksum differs"):
        gallery.verify()
    target.unlink()
    with pytest.raises(GalleryError, match=f"{target} is damaged .*No such file"):
        Gallery.open(path)


def read_as_another_user(folder):
    os.chdir(folder)
    if os.geteuid() == 0:  # to whom everything is readable
        os.setuid(65534)
    assert os.access("gallery", os.X_OK)
    message = "^the gallery gallery may not be read by this user: .*, by chmod -R a.rX gallery, and"
    with pytest.raises(GalleryError, match=message):
        read_all(Path("gallery"))


@pytest.mark.parametrize("file", [MANIFEST, EMBEDDINGS, TOKENS, IMAGES, THUMBNAILS])
def test_a_file_that_another_user_may_not_read_is_no_damage(build, tmp_path, file):
    (target,) = build(thumbnail_size=8).path.rglob(file)
    target.chmod(0)
    tmp_path.chmod(0o755)
    assert exit_code_of(read_as_another_user, tmp_path) == 0


def test_a_damaged_hash_of_an_id_stops_an_append(gallery, build):
    """It would encode an image again, under an id that is there already."""
    (target,) = gallery.path.glob(f"shards/*/{EMBEDDINGS}")
    content = bytearray(target.read_bytes())
    place = content.index(id_hash("camera 0/004.png").to_bytes(8, "little", signed=True))
    content[place] ^= 1
    target.write_bytes(content)
    with pytest.raises(GalleryError, match=f"{target} is damaged .its checksum differs"):
        build()


@pytest.mark.parametrize("name", ["embeddings", "id_hashes", "token_checksums", "tokens"])
def test_a_renamed_tensor_is_named(sharded, model, processor, name):
    target = sorted(sharded.path.glob(f"shards/*/{TOKENS if name == 'tokens' else EMBEDDINGS}"))[1]
    target.write_bytes(target.read_bytes().replace(name.encode(), name.upper().encode(), 1))
    with pytest.raises(GalleryError, match=f"{target} is damaged .its '{name}' are not 8 rows of"):
        Gallery.open(sharded.path, model, processor).search(TEXTS)  # tokens are mapped when asked for


def read_all(path: Path) -> None:
    stored = stored_gallery.StoredGallery(path)
    stored.rows_of(list(stored.ids()))
    for row in range(len(stored)):
        stored.shard_row(row)


@pytest.mark.parametrize("file", [MANIFEST, EMBEDDINGS, TOKENS, THUMBNAILS])
def test_a_changed_bit_where_a_file_says_what_it_holds_ends_in_no_other_error(
    model, processor, folder, tmp_path, file
):
    images = [(path.name, path) for path in sorted(folder.rglob("*.png"))[:2]]
    path = Gallery.build(model, processor, images, tmp_path / "gallery", thumbnail_size=8).path
    (target,) = path.rglob(file)
    content = target.read_bytes()
    tensors_from = 8 + int.from_bytes(content[:8], "little")
    places = {MANIFEST: range(len(content)), THUMBNAILS: range(len(content) - 150, len(content))}
    places = places.get(file, range(tensors_from))
    found = 0
    for place in places:
        target.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        try:
            read_all(path)
        except GalleryError:
            found += 1
    assert found > len(places) / 4
    target.write_bytes(content)
    read_all(path)


def open_with_little_room(path):
    """Under a limit of the addresses that the process may use, in place of one of the files it may map."""
    gc.collect()  # what other tests mapped is not let go of meanwhile
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + 40 * 2**20, resource.RLIM_INFINITY))
    with pytest.raises(GalleryError, match="has 100 shards, and the system maps no more .*larger shard_size"):
        stored_gallery.StoredGallery(path)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="it reads how Linux accounts for memory")
def test_more_shards_than_the_system_maps_are_named(tmp_path):
    settings = manifest.GallerySettings("0" * 16, None, None)
    content, name = manifest.new_manifest(settings), shards.shard_name(0, [])
    embeddings = torch.zeros(2000, 256)
    rows = [shards.ShardRow(str(row), own, None, None, None, None) for row, own in enumerate(embeddings)]
    shards.write_shard(tmp_path, name, settings, rows, {})
    shards.list_shards(tmp_path, content, [name])
    content["shards"] *= 100  # 2 MB each
    manifest.write_manifest(tmp_path, content)
    assert len(stored_gallery.StoredGallery(tmp_path)) == 200_000
    assert exit_code_of(open_with_little_room, tmp_path) == 0


def test_a_damaged_manifest_is_named(gallery, tmp_path):
    file = gallery.path / MANIFEST
    content = json.loads(file.read_text())
    elsewhere = {"shards": [content["shards"][0] | {"name": "../../elsewhere"}]}
    again = "build the gallery again"
    for change, message in (({"format": 99}, again), ({"settings": {}}, again), (elsewhere, "damaged")):
        file.write_text(json.dumps(content | change))
        with pytest.raises(GalleryError, match=message):
            Gallery.open(gallery.path)
    with pytest.raises(FileNotFoundError, match="is no gallery"):
        Gallery.open(tmp_path)


def hold_lock(path, ready, done):
    with builder_lock(path):
        ready.set()
        done.wait(60)


def test_a_second_builder_waits_for_a_moment_and_is_refused(build, tmp_path):
    context = multiprocessing.get_context("fork")
    ready, done = context.Event(), context.Event()
    holder = context.Process(target=hold_lock, args=(tmp_path / "gallery", ready, done))
    holder.start()
    try:
        assert ready.wait(60)
        with pytest.raises(GalleryError, match="another process is writing to the gallery"):
            build()
        threading.Timer(0.5, done.set).start()  # as a search that keeps columns
        assert len(build()) == 20
    finally:
        done.set()
        holder.join()


def test_another_model_or_other_settings_are_refused(gallery, build, processor, folder, tiny_config):
    other = TPASModel(tiny_config).eval()
    for work in (
        lambda: Gallery.open(gallery.path, other, processor),
        lambda: Gallery.build(other, processor, folder, gallery.path),
    ):
        with pytest.raises(GalleryError, match=f"was made by the model {PRINT}, and this one is {PRINT}"):
            work()
    with pytest.raises(GalleryError, match="was begun with tokens=float16, and tokens=None was asked for"):
        build(tokens=None)


def test_a_gallery_in_bf16_stays_in_bf16(gallery, build, folder, tmp_path):
    rounded = build("rounded", bf16=True)
    kept, exact = (torch.cat(each.stored.embeddings) for each in (rounded, gallery))
    cosines = (kept * exact).sum(dim=1)
    assert 0.999 < cosines.min() < 1 - 1e-6
    assert kept.norm(dim=1).sub(1).abs().max() < 1e-6
    rounded.append(draw_images(folder, 1, first=20))
    assert rounded.stored.settings.bf16
    assert len(rounded) == 21
    with pytest.raises(GalleryError, match="was begun with bf16=True, and bf16=False was asked for"):
        build("rounded")
    (hits,) = build("without", bf16=True, tokens=None).search(["a man"], top_k=2)  # encoded again
    assert hits[0].match_logit is not None


def changed_activation(model, processor):
    model.config.vision_config.hidden_act = "relu"


def changed_image_size(model, processor):
    model.config.vision_config.image_size = processor.image_size = 64


def changed_mean(model, processor):
    processor.image_processor.image_mean = [0.5, 0.5, 0.5]


def changed_resampling(model, processor):
    processor.image_processor.resample = Image.Resampling.NEAREST


@pytest.mark.parametrize("change", [changed_activation, changed_image_size, changed_mean, changed_resampling])
def test_what_decides_features_under_equal_weights_is_compared(
    gallery, model, processor, folder, tmp_path, change
):
    path = gallery.path
    for part in (model, processor):
        part.save_pretrained(tmp_path / "saved")
    revision = [kind.from_pretrained(tmp_path / "saved") for kind in (TPASModel, TPASProcessor)]
    revision[1].max_text_length -= 1  # texts are encoded at each search
    assert len(Gallery.open(path, *revision)) == 20
    change(*revision)
    assert model_fingerprint(revision[0]) == model_fingerprint(model)
    for work in (lambda: Gallery.open(path, *revision), lambda: Gallery.build(*revision, folder, path)):
        with pytest.raises(GalleryError, match=f"with the image settings {PRINT}, and these are {PRINT}"):
            work()
    content = json.loads((path / MANIFEST).read_text())
    del content["settings"]["picture_fingerprint"]  # as before it was kept
    (path / MANIFEST).write_text(json.dumps(content))
    assert len(Gallery.open(path, *revision)) == 20


def test_a_tokenizer_of_other_words_is_refused(gallery, model, processor, folder):
    words = processor.tokenizer.get_vocab()
    other = dict(zip(words, reversed(words.values()), strict=True))
    processor.tokenizer = BertTokenizer(vocab=other)
    for work in (
        lambda: Gallery.open(gallery.path, model, processor),
        lambda: Gallery.build(model, processor, folder, gallery.path),
    ):
        with pytest.raises(GalleryError, match=f"tokenizer of the words {PRINT}, and this one has {PRINT}"):
            work()
    content = json.loads((gallery.path / MANIFEST).read_text())
    del content["settings"]["text_fingerprint"]  # as before it was kept
    (gallery.path / MANIFEST).write_text(json.dumps(content))
    assert len(Gallery.open(gallery.path, model, processor)) == 20


def test_a_gallery_on_a_read_only_disk_can_be_searched(gallery, model, processor, folder):
    path = gallery.path
    expected = fields(Gallery.open(path, model, processor).search(TEXTS))
    before = file_digests(path)
    (path / LOCK).unlink()
    everything = [path, *path.rglob("*")]
    for item in everything:
        item.chmod(0o555 if item.is_dir() else 0o444)
    try:
        gallery = Gallery.open(path, model, processor)
        assert fields(gallery.search(TEXTS)) == expected
        if os.geteuid() != 0:  # to whom nothing is read-only
            with pytest.raises(GalleryError, match="cannot be written to"):
                gallery.append(folder)
        assert not (path / LOCK).exists()
    finally:
        for item in everything:
            item.chmod(0o755)
    assert file_digests(path) == before


def test_a_directory_that_cannot_be_made_is_named(build, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(GalleryError, match="gallery cannot be written to"):
        build("file/gallery")


def test_tokens_left_out_need_the_same_images(build, model, processor, folder, tmp_path):
    path = build(tokens=None).path
    moved = tmp_path / "moved"
    folder.rename(moved)
    with pytest.raises(GalleryError, match=r"image 'camera \d/\d+.png' cannot be read: .*no such image file"):
        Gallery.open(path, model, processor).search(TEXTS)
    with pytest.raises(NotADirectoryError, match="images_root .*images is no folder"):
        Gallery.open(path, model, processor, images_root=folder)
    gallery = Gallery.open(path, model, processor, images_root=moved)
    hit = gallery.search(TEXTS)[0][0]
    assert hit.path == moved / hit.id
    Image.new("RGB", (24, 40), "red").save(hit.path)
    with pytest.raises(GalleryError, match=f"image '{hit.id}' is not the one that the gallery"):
        gallery.search(TEXTS)


# Several processes


def build_on_two_processes(model, processor, folder, path):
    accelerator = Accelerator()
    assert accelerator.num_processes == 2
    settings = {"shard_size": 3, "batch_size": 2, "accelerator": accelerator}
    gallery = Gallery.build(model, processor, folder, path, **settings)
    assert len(gallery) == 19
    assert sorted(gallery.unreadable) == ["camera 0/008.png"]
    Gallery.build(model, processor, folder, path, **settings)  # nothing is new: what cannot be read is not
    assert not gallery.refresh()


def fail_on_one_of_two_processes(model, processor, folder, path):
    accelerator, message = Accelerator(), "another process stopped: could not write"
    if accelerator.process_index == 1:
        message = "the disk is full: make room, then do the same again"
        os.replace = Mock(side_effect=OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(GalleryError, match=message):
        Gallery.build(model, processor, folder, path, shard_size=3, batch_size=2, accelerator=accelerator)


@EVERY_MODEL
def test_two_processes_build_what_one_builds(build, model, processor, folder, tmp_path, fresh_accelerator):
    (folder / "camera 0" / "008.png").write_text("no image")
    path = tmp_path / "two"
    # The first attempt leaves a shard of one process, which stops when it hears of the other's failure.
    debug_launcher(fail_on_one_of_two_processes, (model, processor, folder, path), num_processes=2)
    assert len(list((path / SHARDS).iterdir())) == 1
    debug_launcher(build_on_two_processes, (model, processor, folder, path), num_processes=2)
    assert file_digests(path) == file_digests(build("one", shard_size=3, batch_size=2).path)


# The commands


def test_the_commands(start, folder, tmp_path, capsys):
    path = str(tmp_path / "gallery")
    of_the_model = ["--model", str(start), "--path", path]
    manage_gallery(["build", str(folder), *of_the_model, "--shard_size", "8", "--batch_size", "5"])
    assert "20 images in 3 shards" in capsys.readouterr().out
    draw_images(folder, 3, first=20)
    manage_gallery(["append", str(folder), *of_the_model])
    more = draw_images(folder.parent / "more", 3, first=30)
    shutil.copy(folder / "camera 0" / "002.png", more / "camera 0" / "000.png")
    with pytest.raises(
        SystemExit, match=f"append: two images have the id .*{more}.*: --id_prefix more/ makes"
    ):
        manage_gallery(["append", str(more), *of_the_model, "--exclude", "032*"])
    manage_gallery(["append", str(more), *of_the_model, "--id_prefix", "more/", "--exclude", "032*"])
    assert "26 images in" in capsys.readouterr().out
    more = [f"more/camera {number % 2}/{number:03d}.png" for number in (0, 30, 31)]
    manage_gallery(["delete", path, *more])
    manage_gallery(["delete", path, "camera 0/000.png"])
    manage_gallery(["info", path, "--verify", "--unreadable"])
    printed = capsys.readouterr().out
    assert "1 images removed, 22 left" in printed
    assert "every file agrees with its checksum" in printed

    words = [path, *TEXTS, "--model", str(start), "--top_k", "4", "--json", "--sca"]
    search_gallery(words)
    answers = json.loads(capsys.readouterr().out)
    gallery = Gallery.open(path, TPASModel.from_pretrained(start), TPASProcessor.from_pretrained(start))
    expected = gallery.search(TEXTS, top_k=4, sca="score")
    assert [answer["text"] for answer in answers] == TEXTS
    assert all(hit["score"] == hit["match_logit"] is not None for answer in answers for hit in answer["hits"])
    assert [[hit["id"] for hit in answer["hits"]] for answer in answers] == ids_of(expected)
    search_gallery([*words, "--cascade"])
    captured = capsys.readouterr()
    assert [[hit["id"] for hit in a["hits"]] for a in json.loads(captured.out)] == ids_of(expected)
    assert captured.err.splitlines()[-1].startswith("cascade: of 66 pairs fp32 read ")
    search_gallery([path, TEXTS[0], "--model", str(start), "--bf16"])
    assert expected[0][0].id in capsys.readouterr().out
    (tmp_path / "texts").write_text("\n".join(TEXTS))
    texts = ["--texts", str(tmp_path / "texts"), "--model", str(start)]
    manage_gallery(["index", path, "--index", "faiss", *texts])
    assert "of 22 images, recall@128 of 1.0000 measured on 3 texts" in capsys.readouterr().out
    by_faiss = ["--index", "faiss", "--no_rerank", "--top_k", "1"]
    search_gallery([path, TEXTS[0], "--model", str(start), *by_faiss])
    assert str(gallery.search(TEXTS[:1], rerank=False)[0][0].path) in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["info", "nowhere"], "nowhere is no gallery"),
        (["index", "GALLERY", "--index", "nothing"], "index must be 'exact', 'faiss', or a Milvus address"),
        (["delete", "GALLERY", "nobody"], r"has no images \['nobody'\]"),
    ],
)
def test_bad_input_to_the_command_is_one_line(gallery, command, message):
    with pytest.raises(SystemExit, match=message) as caught:
        manage_gallery([str(gallery.path) if word == "GALLERY" else word for word in command])
    assert "\n" not in str(caught.value)
