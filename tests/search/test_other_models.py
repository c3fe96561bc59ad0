"""Galleries, searches and explanations of other models than ours: real classes at toy size."""

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_retrieval_models import cached_snapshot, noise_images
from transformers import BertTokenizer, SiglipModel, SiglipVisionModel

from tpas.commands.gallery import main as manage_gallery
from tpas.commands.search import main as search_main
from tpas.models.interface import can_match
from tpas.models.loading import load_model
from tpas.models.model_source import ModelSource
from tpas.processing_tpas import load_image
from tpas.search.explanation import GRID, explain
from tpas.search.folder_gallery import open_folder
from tpas.search.gallery import Gallery
from tpas.search.manifest import MANIFEST, GalleryError
from tpas.search_page.rendering import Renderer
from tpas.search_page.requests import RequestError, SearchRequests, Session

DEMO_START = Path(__file__).parents[2] / "demo_start"
TEXTS = ["a man in a red coat is running on the street", "a woman is lying on the grass"]
COUNT = 9
EACH = pytest.mark.parametrize("family", ["clip", "siglip2", "blip"])  # plain, NaFlex, with a stage 2

pytestmark = pytest.mark.usefixtures("fresh_accelerator")


@pytest.fixture(autouse=True)
def _no_model_of_the_user(monkeypatch):
    monkeypatch.delenv("TPAS_MODEL", raising=False)


@pytest.fixture
def images(tmp_path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for number, image in enumerate(noise_images(COUNT)):
        image.save(folder / f"{number}.png")
    return folder


def scores_of_pairs(model, processor, images: Path) -> torch.Tensor:
    """(Q, G) in the order of the names, each pair by the model's own calls: match logits, or cosines."""
    scores = torch.empty(len(TEXTS), COUNT)
    for column, path in enumerate(sorted(images.iterdir())):
        for row, text in enumerate(TEXTS):
            scores[row, column] = score_of(model, processor, load_image(path), text)
    return scores


@torch.inference_mode()
def score_of(model, processor, image: Image.Image, text: str) -> float:
    image_features = model.get_image_features(**processor(images=[image]))
    inputs = processor(text=[text])
    text_features = model.get_text_features(**inputs)
    if can_match(model):
        states = image_features.last_hidden_state, text_features.last_hidden_state
        return model.match(*states, inputs["attention_mask"])[0, 1].item()
    return (image_features.pooler_output[0] @ text_features.pooler_output[0]).item()


def found(answers) -> list[list[tuple[str, float]]]:
    return [[(hit.id, pytest.approx(hit.score, abs=1e-5)) for hit in hits] for hits in answers]


@EACH
def test_command_page_and_python_answer_as_the_model_itself(folders, family, images, tmp_path, capsys):
    model, processor = load_model(str(folders[family]))
    scores = scores_of_pairs(model, processor, images)
    names = [path.name for path in sorted(images.iterdir())]

    gallery = Gallery.build(model, processor, images, tmp_path / "gallery", shard_size=4)
    assert gallery.stored.settings.tokens == ("float16" if family == "blip" else None)
    python = gallery.search(TEXTS, top_k=COUNT)
    tolerance = 2e-3 if family == "blip" else 1e-5  # tokens in float16
    for hits, row in zip(python, scores, strict=True):
        descending = row.sort(descending=True)
        assert [hit.score for hit in hits] == pytest.approx(descending.values.tolist(), abs=tolerance)
        assert [hit.id for hit in hits] == [names[column] for column in descending.indices.tolist()]
    assert python.is_reranked == can_match(model)

    page = SearchRequests(gallery)
    assert found(page.search(Session(), TEXTS, shown=COUNT, sca=False)) == found(python)
    search_main([str(images), *TEXTS, "--model", str(folders[family]), "--json"])  # a plain folder
    search_main([str(tmp_path / "gallery"), *TEXTS, "--json"])  # which knows its model
    texts = capsys.readouterr().out.split("\n]\n")
    for printed in texts[:2]:
        answers = json.loads(printed + "\n]")
        for answer, hits in zip(answers, python, strict=True):
            assert [(hit["id"], hit["score"]) for hit in answer["hits"]] == found([hits])[0]


def test_images_are_appended_and_an_index_set_by_the_gallerys_own_model(folders, images, tmp_path):
    model, processor = load_model(str(folders["siglip2"]))
    late = (images / "8.png").rename(tmp_path / "8.png")
    path = Gallery.build(model, processor, images, tmp_path / "gallery", shard_size=2).path
    late.rename(images / "8.png")
    manage_gallery(["append", str(images), "--path", str(path)])
    gallery = Gallery.open(path, model, processor)
    assert len(gallery) == COUNT
    assert gallery.stored.model_source == ModelSource(str(folders["siglip2"]))
    (tmp_path / "texts").write_text("\n".join(TEXTS))
    manage_gallery(["index", str(gallery.path), "--index", "faiss", "--texts", str(tmp_path / "texts")])
    approximate = Gallery.open(gallery.path, model, processor, index="faiss")
    assert found(approximate.search(TEXTS)) == found(gallery.search(TEXTS))


def refusal(command, *words: object) -> str:
    with pytest.raises(SystemExit) as refused:
        command([str(word) for word in words])
    message = str(refused.value)
    assert "\n" not in message
    return message


def test_a_gallery_names_its_model_and_is_not_obeyed_blindly(folders, images, tmp_path, caplog):
    path = tmp_path / "gallery"
    clip = shutil.copytree(folders["clip"], tmp_path / "clip")
    manage_gallery(["build", str(images), "--model", f"transformers:{clip}", "--path", str(path)])
    with caplog.at_level(logging.INFO):
        search_main([str(path), TEXTS[0]])
    assert f"was made by transformers:{clip}, which is loaded" in caplog.text
    assert "is of a --model" in refusal(search_main, path, TEXTS[0], "--trust_remote_code")
    message = refusal(search_main, path, TEXTS[0], "--model", folders["siglip"])
    assert f"use that model, transformers:{clip}, or build another gallery with this one" in message

    config = json.loads((clip / "config.json").read_text())
    (clip / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "mine.Model"}}))
    message = refusal(search_main, path, TEXTS[0])
    assert "comes with code of its own" in message
    clip.rename(tmp_path / "moved")
    assert "cannot be loaded" in refusal(search_main, path, TEXTS[0])
    assert "--model says where it is now" in refusal(manage_gallery, "append", images, "--path", path)
    (tmp_path / "moved" / "config.json").write_text(json.dumps(config))
    search_main([str(path), TEXTS[0], "--model", str(tmp_path / "moved")])

    manifest = json.loads((path / MANIFEST).read_text())
    stranger = {"name": "somebody/model", "revision": "a" * 40, "base_model": None}
    (path / MANIFEST).write_text(json.dumps(manifest | {"model": stranger}))
    message = refusal(search_main, path, TEXTS[0])
    assert f"not on this machine: --model somebody/model --revision {'a' * 40} fetches it" in message
    del manifest["model"]  # as early versions wrote it
    (path / MANIFEST).write_text(json.dumps(manifest))
    message = refusal(search_main, path, TEXTS[0])
    fingerprint = manifest["settings"]["model_fingerprint"]
    assert "does not say which model made it: give --model or set TPAS_MODEL" in message
    assert f"the one with the fingerprint {fingerprint}" in message
    search_main([str(path), TEXTS[0], "--model", str(tmp_path / "moved")])
    (path / MANIFEST).write_text(json.dumps(manifest | {"model": {"name": 7}}))
    assert "is damaged" in refusal(search_main, path, TEXTS[0])


def test_what_a_model_cannot_do_is_refused_before_anything_is_encoded(folders, images):
    for family, words, message in (
        ("clip", ["--bf16"], "only TPAS models compute in bfloat16"),
        ("clip", ["--cascade"], "a cascade is of a TPAS model's own stage 2"),
        ("blip", ["--bf16"], "only TPAS models compute in bfloat16"),
        ("blip", ["--cascade"], "a cascade is of a TPAS model's own stage 2"),
        ("clip", ["--matcher", "clip:x"], "--matcher clip:x: give vlm:NAME"),
        ("clip", ["--matcher", "vlm:x", "--no_rerank"], "--matcher re-ranks, and --no_rerank was given"),
    ):
        assert message in refusal(search_main, images, TEXTS[0], "--model", folders[family], *words)
    assert not images.with_name("images.gallery").exists()
    model, processor = load_model(str(folders["clip"]))
    with pytest.raises(ValueError, match="embeddings alone, nothing to re-rank by"):
        open_folder(images, model, processor).search(TEXTS, rerank=True)


def test_a_processor_or_tokenizer_of_another_model_is_refused(folders, images, tmp_path):
    model, processor = load_model(str(folders["clip"]))
    ours, our_processor = load_model(str(DEMO_START))
    for pair in ((model, our_processor), (ours, processor)):
        with pytest.raises(TypeError, match="is the processor of another model than a"):
            Gallery.build(*pair, images, tmp_path / "gallery")
    gallery = Gallery.build(model, processor, images, tmp_path / "gallery")
    with pytest.raises(GalleryError, match="with the image settings"):
        Gallery.open(gallery.path, model, load_model(str(folders["siglip"]))[1])
    folder = shutil.copytree(folders["clip"], tmp_path / "clip")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary |= {f"word{number}": len(vocabulary) + number for number in range(3)}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert "it belongs to another model" in refusal(search_main, images, TEXTS[0], "--model", folder)


@pytest.mark.parametrize(
    ("share", "message"),
    [
        (1, "is a BertTokenizer, a clip model's a CLIPTokenizer: it belongs to another model; put the one"),
        (0.5, " words, the model {size}: it belongs to another model; put the one into the folder that"),
    ],
    ids=["of its size", "smaller"],
)
def test_a_tokenizer_of_another_family_is_refused(folders, images, tmp_path, share, message):
    folder = shutil.copytree(folders["clip"], tmp_path / "clip")
    size = json.loads((folder / "config.json").read_text())["text_config"]["vocab_size"]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = [*special, *(f"word{number}" for number in range(int(size * share) - len(special)))]
    other = BertTokenizer(vocab={word: number for number, word in enumerate(vocabulary)})
    other.save_pretrained(folder)
    assert message.format(size=size) in refusal(search_main, images, TEXTS[0], "--model", folder)


@EACH
def test_an_image_processor_of_another_model_is_refused(folders, family, images, tmp_path):
    folder = shutil.copytree(folders[family], tmp_path / family)
    other = folders["clip" if family == "siglip2" else "siglip2"]
    shutil.copy(other / "preprocessor_config.json", folder)
    message = refusal(search_main, images, TEXTS[0], "--model", folder)
    assert "preprocessor_config.json belongs to another model; put the one into the folder" in message
    assert not images.with_name("images.gallery").exists()


def test_a_model_without_a_text_encoder_or_without_consent_to_its_code_is_refused(folders, images, tmp_path):
    vision = SiglipModel.from_pretrained(folders["siglip"]).config.vision_config
    SiglipVisionModel(vision).save_pretrained(tmp_path / "vision")
    message = refusal(search_main, images, TEXTS[0], "--model", tmp_path / "vision")
    assert "SiglipVisionModel has no get_image_features and no get_text_features, so it gives no" in message
    assert "--matcher vlm:NAME" in message
    folder = shutil.copytree(folders["clip"], tmp_path / "clip")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "mine.Model"}}))
    message = refusal(search_main, images, TEXTS[0], "--model", folder)
    assert (
        "comes with code of its own, which would run here: read it, then add --trust_remote_code" in message
    )


def test_a_gallery_of_another_revision_is_named_with_the_way_out(folders, images, tmp_path):
    name, commits = "somebody/revised", ("a" * 40, "b" * 40)
    snapshots = [
        shutil.copytree(folders["siglip"], cached_snapshot(name, c), dirs_exist_ok=True) for c in commits
    ]
    path, weights = tmp_path / "gallery", load_file(snapshots[1] / "model.safetensors")
    weights["logit_scale"] += 1
    save_file(weights, snapshots[1] / "model.safetensors", metadata={"format": "pt"})
    named = ["--model", name, "--revision"]
    manage_gallery(["build", str(images), *named, commits[0], "--path", str(path)])
    message = refusal(search_main, path, TEXTS[0], *named, commits[1])
    assert f"use that model, {name} at {commits[0]}, or build another gallery with this one" in message
    search_main([str(path), TEXTS[0]])


@pytest.mark.parametrize("family", ["clip", "blip"])
def test_hiding_regions_and_words_is_measured(folders, family, images, tmp_path):
    model, processor = load_model(str(folders[family]))
    image, text = load_image(images / "3.png"), "a man in red"
    explanation = explain(model, processor, image, text)
    assert explanation.words == ["a", "man", "in", "red"]
    whole = score_of(model, processor, image, text)
    assert explanation.score == pytest.approx(whole, abs=1e-5)
    assert (explanation.match_logit is None) == (family == "clip")
    without = ["man in red", "a in red", "a man red", "a man in"]
    effects = [whole - score_of(model, processor, image, shorter) for shorter in without]
    assert explanation.effects.tolist() == pytest.approx(effects, abs=1e-5)
    mean = tuple(round(channel) for channel in np.asarray(image).mean(axis=(0, 1)).tolist())
    for row, column in ((0, 0), (3, 4), (6, 6)):
        hidden = image.copy()
        for x in range(round(image.width * column / GRID), round(image.width * (column + 1) / GRID)):
            for y in range(round(image.height * row / GRID), round(image.height * (row + 1) / GRID)):
                hidden.putpixel((x, y), mean)
        loss = whole - score_of(model, processor, hidden, text)
        assert explanation.text_map[row, column].item() == pytest.approx(max(loss, 0), abs=1e-5)
        if family == "clip":
            loss_without_man = score_of(model, processor, image, without[1]) - score_of(
                model, processor, hidden, without[1]
            )
            of_man = explanation.maps[1, row, column].item()
            assert of_man == pytest.approx(max(loss - loss_without_man, 0), abs=1e-5)
    assert explanation.text_map.max() > 1e-4
    assert explain(model, processor, image, "man").words == ["man"]

    gallery = Gallery.build(model, processor, images, tmp_path / "gallery")
    session, page = Session(), SearchRequests(gallery)
    (hits,) = page.search(session, [text], shown=COUNT)
    place = [hit.id for hit in hits].index("3.png")
    by_page = page.explain(session, 0, "3.png")[2]
    assert by_page is not None
    assert torch.allclose(by_page.text_map, explanation.text_map, atol=1e-5)
    shown = Renderer(page).explanation(session, 0, "3.png", *page.explain(session, 0, "3.png"))
    assert ("the cosine of" if family == "clip" else "the match logit of") in " ".join(shown.split())
    (images / "3.png").unlink()
    with pytest.raises(GalleryError, match=r"image '3\.png' .* cannot be read to explain it: .*images_root"):
        gallery.explain(hits[place], text)
    with pytest.raises(RequestError, match="file cannot be read"):
        page.explain(session, 0, "3.png")


class Brightness:
    """A matcher: how bright the image is, and how long the text."""

    pairs_per_batch = 4

    def match_images(self, images, captions):
        pairs = zip(images, captions, strict=True)
        brightness = [np.asarray(image).mean(axis=(0, 1)).sum() + len(text) for image, text in pairs]
        return torch.tensor(brightness).float()


def test_a_matcher_reads_the_first_few(folders, images, tmp_path):
    model, processor = load_model(str(folders["clip"]))
    gallery = Gallery.build(model, processor, images, tmp_path / "gallery")
    own = gallery.encode_image(Image.new("RGB", (40, 40), "white"), "white")
    by_cosine = gallery.search(TEXTS, top_k=COUNT + 1, extra=[own])
    answers = gallery.search(
        TEXTS, top_k=COUNT + 1, extra=[own], matcher=Brightness(), matcher_shortlist=COUNT + 1
    )
    assert answers.is_reranked
    assert answers.by_matcher
    for text, hits, others in zip(TEXTS, answers, by_cosine, strict=True):
        assert hits[0].id == "white"
        assert hits[0].score == pytest.approx(3 * 255 + len(text), abs=3)
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
        assert {hit.id: hit.cosine for hit in hits} == {hit.id: hit.cosine for hit in others}
    first = gallery.search(TEXTS, top_k=4, matcher=Brightness(), matcher_shortlist=2)
    for hits, others in zip(first, gallery.search(TEXTS, top_k=4), strict=True):
        assert {hit.id for hit in hits[:2]} == {hit.id for hit in others[:2]}
        assert [hit.id for hit in hits[2:]] == [hit.id for hit in others[2:]]
        assert [hit.score for hit in hits[2:]] == [None, None]


def test_who_searches_photographs_with_the_demos_model_is_told(images, small_pab, caplog):
    search_main([str(images), TEXTS[0], "--model", str(DEMO_START)])
    assert caplog.text.count("knows drawn people only") == 1
    caplog.clear()
    search_main([str(small_pab / "test" / "imgs"), TEXTS[0], "--model", str(DEMO_START)])
    assert "drawn people" not in caplog.text
