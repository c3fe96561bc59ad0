"""The pipeline scores as the model does, whatever the batches, also where this package is not installed."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from datasets import Dataset, Features, Value
from datasets import Image as ImageColumn
from PIL import Image

from tpas.commands.hub_upload import prepare
from tpas.modeling_tpas import TPASModel
from tpas.pipeline_tpas import ImageTextMatchingPipeline, Rows
from tpas.processing_tpas import TPASProcessor

ROOT = Path(__file__).parents[1]
TEXTS = ["A man is falling on a lawn.", "A woman in red walks along a street.", "A boy."]
FRESH_PROCESS = """
import json
from transformers import pipeline

directory, image, copy = sys.argv[1:]
item = {"image": image, "text": ["A man is falling on a lawn.", "A boy."]}
match = pipeline("image-text-matching", model=directory, trust_remote_code=True, device="cpu")
answer = match(item)
match.save_pretrained(copy)
again = pipeline(model=copy, trust_remote_code=True, device="cpu")  # the task is in its configuration
assert again(item) == answer
print(json.dumps(answer), file=open("answer.json", "w"))
"""


@pytest.fixture
def match(start) -> ImageTextMatchingPipeline:
    model, processor = TPASModel.from_pretrained(start).train(), TPASProcessor.from_pretrained(start)
    return ImageTextMatchingPipeline(model=model, processor=processor, device="cpu")


def expected_answer(match: ImageTextMatchingPipeline, image: Image.Image, text: str) -> dict:
    """One pair by the model alone."""
    model, processor = match.model, match.processor
    with torch.no_grad():
        output = model(**processor(images=[image], text=[text]))
    logits = output.match_logits[0]
    scores = {
        "match_logit": logits[1].item(),
        "cosine": (output.image_embeds[0] @ output.text_embeds[0]).item(),
    }
    return {"text": text} | {name: pytest.approx(score, abs=1e-5) for name, score in scores.items()}


@pytest.mark.parametrize("batch_size", [1, 2, 8])
@pytest.mark.parametrize("pairs_at_once", [2, 64])
def test_every_pair_is_scored_as_by_the_model(match, images, batch_size, pairs_at_once):
    match.pairs_at_once = pairs_at_once
    texts = [TEXTS[0], TEXTS, TEXTS[1:], (TEXTS[2],), TEXTS[1]]
    items = [{"image": image, "text": text} for image, text in zip(images[:5], texts, strict=True)]
    answers = match(items, batch_size=batch_size)
    for image, text_or_texts, answer in zip(images[:5], texts, answers, strict=True):
        if isinstance(text_or_texts, str):
            assert answer == expected_answer(match, image, text_or_texts)
        else:
            assert answer == [expected_answer(match, image, text) for text in text_or_texts]
    assert list(match((item for item in items), batch_size=batch_size)) == answers


def test_a_single_item_and_none(match, images, tmp_path):
    images[0].save(tmp_path / "image.png")
    expected = expected_answer(match, images[0], TEXTS[0])
    for image in (images[0], tmp_path / "image.png", str(tmp_path / "image.png")):
        assert match({"image": image, "text": TEXTS[0]}) == expected
    assert match([]) == []
    grey = images[0].convert("L")
    assert match({"image": grey, "text": "A boy."}) == expected_answer(match, grey.convert("RGB"), "A boy.")


@pytest.mark.parametrize("batch_size", [1, 3])
def test_data_sets_and_generators_answer_one_after_the_other(match, images, batch_size):
    """`datasets.Dataset`, whole and streamed, with a column more; torch's; a generator."""
    rows = [
        {"image": image, "text": text, "id": text[:3]} for image, text in zip(images, TEXTS, strict=False)
    ]
    expected = [expected_answer(match, row["image"], row["text"]) for row in rows]
    dataset = Dataset.from_list(
        rows, features=Features(image=ImageColumn(), text=Value("string"), id=Value("string"))
    )
    for given in (dataset, dataset.to_iterable_dataset(), Rows(rows), (row for row in rows)):
        answers = match(given, batch_size=batch_size)
        assert not isinstance(answers, list)
        assert list(answers) == expected


def test_a_data_set_without_the_two_columns_is_refused(match, images):
    with pytest.raises(ValueError, match=r"an item is .* got \['caption', 'image'\]"):
        list(match(Dataset.from_dict({"image": ["a.jpg"], "caption": ["A boy."]})))


def test_a_model_in_training_mode_is_put_into_evaluation_mode(match, images):
    item = {"image": images[0], "text": TEXTS}
    assert match(item) == match(item)


@pytest.mark.parametrize(
    ("item", "error", "message"),
    [
        ("image.jpg", ValueError, "an item is .* got str"),
        ({"image": "image.jpg"}, ValueError, r"got \['image'\]"),
        ({"image": Image.new("RGB", (8, 8)), "text": []}, ValueError, "empty list"),
        ({"image": Image.new("RGB", (8, 8)), "text": ["A boy.", " "]}, ValueError, "caption 1 is empty"),
        ({"image": "nowhere.jpg", "text": "A boy."}, FileNotFoundError, "nowhere.jpg: no such image file"),
        ({"image": "https://example.org/a.jpg", "text": "A boy."}, ValueError, "nothing is downloaded"),
        ({"image": 7, "text": "A boy."}, TypeError, "got int"),
    ],
)
def test_what_is_no_pair_is_refused(match, item, error, message):
    with pytest.raises(error, match=message):
        match(item)


def test_an_unknown_setting_is_refused(match, images):
    with pytest.raises(TypeError, match="takes no top_k"):
        match({"image": images[0], "text": "A boy."}, top_k=3)


def test_what_is_pushed_works_where_tpas_is_not_installed(match, start, images, tmp_path, run_without_tpas):
    pushed = tmp_path / "pushed"
    pushed.mkdir()
    for name, path in prepare(start, "user/tpas", [], None).files.items():
        shutil.copy(path, pushed / name)
    images[0].save(tmp_path / "image.png")
    run_without_tpas(FRESH_PROCESS, pushed, tmp_path / "image.png", tmp_path / "copy", cwd=tmp_path)
    answer = json.loads((tmp_path / "answer.json").read_text())
    assert answer == [expected_answer(match, images[0], text) for text in (TEXTS[0], "A boy.")]


def test_a_saved_model_brings_the_pipeline_and_so_does_the_demos(start):
    assert (start / "pipeline_tpas.py").read_text() == (ROOT / "pipeline_tpas.py").read_text()
    for directory in (start, ROOT / "demo_start"):
        config = json.loads((directory / "config.json").read_text())
        assert config["custom_pipelines"] == ImageTextMatchingPipeline.registration()
