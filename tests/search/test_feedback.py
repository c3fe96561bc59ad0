"""Liked and disliked images, and phrases, against arithmetic with the embeddings and logits themselves."""

import numpy as np
import pytest
import torch
from tiny_inputs import noise_image, spread_match_logits

from tpas.engine.encoding import encode_texts
from tpas.search.feedback import DISLIKED_WEIGHT, LIKED_WEIGHT, MOST_PHRASES, Feedback
from tpas.search.gallery import Gallery

TEXT, RED = "a man wears red", "a red shirt"
LIKED, DISLIKED = ["3.png", "5.png"], ["8.png"]


@pytest.fixture
def gallery(model, processor, tmp_path) -> Gallery:
    images = [(f"{number}.png", noise_image(number)) for number in range(12)]
    return Gallery.build(spread_match_logits(model), processor, images, tmp_path / "gallery")


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


@pytest.fixture
def expected_cosines(gallery, model, processor) -> dict[str, float]:
    """By id, of all images, with the query as Rocchio's rule moves it: three kinds of feedback at once."""
    text, phrase = encode_texts(model, processor, [TEXT, "a hat"]).embeds.numpy()
    images = gallery.stored.embedding_rows(torch.arange(12)).numpy()
    of = dict(zip(gallery.ids, images, strict=True))
    liked, disliked = (of["3.png"] + of["5.png"]) / 2, of["8.png"]
    query = unit(text + LIKED_WEIGHT * liked - DISLIKED_WEIGHT * disliked - DISLIKED_WEIGHT * phrase)
    return {name: float(image @ query) for name, image in of.items()}


def test_feedback_moves_the_query_and_what_is_disliked_is_not_shown(gallery, expected_cosines):
    said = {"liked": LIKED, "disliked": DISLIKED, "must_not": ["a hat"]}
    (hits,) = gallery.search([TEXT], top_k=12, rerank=False, **said)
    order = sorted(expected_cosines, key=lambda name: -expected_cosines[name])
    assert [hit.id for hit in hits] == [name for name in order if name != "8.png"]
    assert [hit.score for hit in hits] == pytest.approx([expected_cosines[hit.id] for hit in hits], abs=1e-6)
    (few,) = gallery.search([TEXT], top_k=3, rerank=False, **said)
    assert [hit.id for hit in few] == [hit.id for hit in hits[:3]]


def test_the_matcher_checks_what_feedback_found(gallery, expected_cosines):
    (plain,) = gallery.search([TEXT], top_k=12)
    logits = {hit.id: hit.match_logit for hit in plain}
    result = gallery.search([TEXT], top_k=12, liked=LIKED, disliked=DISLIKED, must_not=["a hat"])
    both = [np.array([of[name] for name in gallery.ids]) for of in (logits, expected_cosines)]
    fused = sum((scores - scores.mean()) / scores.std() for scores in both) / 2
    expected = dict(zip(gallery.ids, fused, strict=True))
    order = sorted(expected, key=lambda name: -expected[name])
    assert [hit.id for hit in result[0]] == [name for name in order if name != "8.png"]
    assert [hit.score for hit in result[0]] == pytest.approx(
        [expected[hit.id] for hit in result[0]], abs=1e-3
    )
    assert [hit.match_logit for hit in result[0]] == pytest.approx(
        [logits[hit.id] for hit in result[0]], abs=1e-3
    )
    assert "moved query" in result.meaning_of_scores
    assert result.part(slice(0, 1)).meaning_of_scores == result.meaning_of_scores


def test_a_phrase_that_must_be_there_is_read_with_the_text(gallery):
    result = gallery.search([TEXT, "she has a Red Shirt"], top_k=12, must=[RED])
    assert result.texts == ["a man wears red. A red shirt.", "she has a Red Shirt"]  # not said twice
    for hits, expected in zip(result, gallery.search(result.texts, top_k=12), strict=True):
        assert [(hit.id, hit.score) for hit in hits] == [(hit.id, hit.score) for hit in expected]


def test_each_phrase_is_scored_by_itself(gallery):
    (hits,) = gallery.search([TEXT], top_k=5, shortlist=3, must=[RED], must_not=["a hat"])
    assert [[(said.phrase, said.wanted) for said in hit.phrases] for hit in hits] == 5 * [
        [(RED, True), ("a hat", False)]
    ]
    for number, phrase in enumerate([RED, "a hat"]):
        alone = {hit.id: hit for hit in gallery.search([phrase], top_k=12, shortlist=12)[0]}
        for place, hit in enumerate(hits):
            said, own = hit.phrases[number], alone[hit.id]
            assert said.cosine == pytest.approx(own.cosine, abs=1e-6)
            assert said.match_logit == (pytest.approx(own.match_logit, abs=1e-3) if place < 3 else None)


def test_an_image_beside_the_gallery_and_rows_take_part(gallery):
    own = gallery.encode_image(noise_image(40), "mine.png")
    beside = gallery.similar(own, 1, extra=[own])  # a hit of an image that is not of the gallery
    assert beside.similar_to is not None
    (hits,) = gallery.search(
        [TEXT], top_k=9, rows=[2, 4, 6], extra=[own], disliked=[beside.similar_to, "4.png"], must=[RED]
    )
    searched = {gallery.ids[row] for row in (2, 4, 6)} | {"mine.png"}
    assert {hit.id for hit in hits} == searched - {"mine.png", "4.png"}
    (hits,) = gallery.search([TEXT], top_k=9, rows=[2], extra=[own], must=[RED])
    cosines = {hit.id: hit.phrases[0].cosine for hit in hits}
    (alone,) = gallery.search([RED], top_k=9, rows=[2], extra=[own])
    assert cosines == pytest.approx({hit.id: hit.cosine for hit in alone}, abs=1e-6)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({"liked": ["1.png"], "disliked": ["1.png"]}, "image '1.png' is both liked and disliked"),
        ({"must": ["A hat"], "must_not": ["a hat"]}, "'a hat' is both in must and in must_not"),
        ({"must": ["  "]}, "must: '' is empty"),
        ({"must_not": ["..."]}, "must_not: '...' is empty, or punctuation alone"),
        ({"must": map(str, range(1000))}, f"1000 phrases are too many: at most {MOST_PHRASES}"),
    ],
)
def test_feedback_that_cannot_be_is_refused(said, reason):
    with pytest.raises(ValueError, match=reason):
        Feedback.of(**said)


def test_feedback_of_other_kinds_is_refused(gallery):
    with pytest.raises(TypeError, match="must must be a list, got 'a hat'"):
        Feedback.of(must="a hat")
    with pytest.raises(TypeError, match="liked must be ids of images, or hits, got 3"):
        Feedback.of(liked=[3])
    with pytest.raises(KeyError, match="nobody.png"):
        gallery.search([TEXT], disliked=["nobody.png"])
    for said in ({"liked": ["1.png"], "sca": "score"}, {"must_not": ["a hat"], "cascade": True}):
        with pytest.raises(ValueError, match="SCA and a cascade go by match logits alone"):
            gallery.search([TEXT], **said)
