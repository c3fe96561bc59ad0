"""What people ask on the search page: answers, limits, private images, exports, markup, labels."""

import csv
import io
import json
import os
import re
from dataclasses import replace
from datetime import date, datetime
from html import escape
from pathlib import Path
from urllib.parse import parse_qsl

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tpas.data.challenge import Challenge, find_mistakes
from tpas.data.drawn.synthetic_pab import draw_pab
from tpas.data.pab import load_pab
from tpas.modeling_tpas import TPASModel
from tpas.models.unread_texts import unread_warnings
from tpas.processing_tpas import TPASProcessor, load_image
from tpas.search.columns import Columns
from tpas.search.explanation import explain
from tpas.search.feedback import Feedback
from tpas.search.gallery import Gallery
from tpas.search.hits import SearchHit, SearchResult
from tpas.search_page.exports import answer_file, as_cell_text, csv_table
from tpas.search_page.filters import Facts, Filter
from tpas.search_page.labels import ImageLabel, labels_of, read_labels
from tpas.search_page.questions import Asked, Question
from tpas.search_page.rendering import Renderer
from tpas.search_page.requests import Answered, Limits, RequestError, SearchRequests, Session

START = Path(__file__).parents[2] / "demo_start"
IMAGES = 40


@pytest.fixture(scope="module")
def pab(tmp_path_factory):
    root = tmp_path_factory.mktemp("page") / "pab"
    return draw_pab(root, train_pairs=2, test_pairs=IMAGES, image_size=96, workers=1)


@pytest.fixture(scope="module")
def model():
    return TPASModel.from_pretrained(START).eval()


@pytest.fixture(scope="module")
def processor():
    return TPASProcessor.from_pretrained(START)


@pytest.fixture(scope="module")
def gallery(pab, model, processor, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "gallery"
    return Gallery.build(model, processor, pab / "test", path, tokens="float32")


@pytest.fixture(scope="module")
def requests(gallery, pab):
    return SearchRequests(gallery, read_labels(pab / "annotation/test/attr.json"))


@pytest.fixture(scope="module")
def captions(pab):
    """Every image's caption, by gallery id."""
    pairs = load_pab(pab, "test", cache_dir=pab.parent / "cache")
    return dict(zip([name.removeprefix("test/") for name in pairs["image"]], pairs["caption"], strict=True))


def found(hits):
    return [hit.id for hit in hits]


def with_hits(result: SearchResult, hits: list[SearchHit]) -> SearchResult:
    """The result of one text with other hits."""
    return SearchResult([hits], texts=result.texts, searched=result.searched)


@pytest.mark.parametrize("resolve", [False, True])
def test_answers_are_those_of_a_gallery_search(requests, gallery, captions, resolve):
    texts = list(captions.values())[:8]
    answers = requests.search(Session(), texts, shown=15, sca=resolve)
    assert answers == gallery.search(texts, top_k=15, sca="score" if resolve else None)
    assert (answers.sca_report is not None) == resolve


def test_by_a_cascade_the_first_page_is_as_without(gallery, captions, caplog):
    caplog.set_level("INFO", "tpas")
    texts, session = list(captions.values())[:8], Session(shown=5)
    requests = SearchRequests(gallery, cascade=True)
    requests.warm_up()
    answers = requests.search(session, texts, shown=30)
    expected = gallery.search(texts, top_k=30)
    assert [found(hits[:5]) for hits in answers] == [found(hits[:5]) for hits in expected]
    assert answers.cascade_report.share_saved > 0.5
    caplog.clear()
    (answered,) = requests.answers([Asked(tuple(texts), 5)])
    assert "cascade: of 320 pairs" in caplog.text
    assert [found(hits) for hits in answered.result] == [found(hits[:5]) for hits in expected]
    # What it cannot serve is asked without.
    moved = Feedback.of([found(expected[0])[0]], [], [], [])
    caplog.clear()
    for settings in ({"feedback": moved}, {"rerank": False}):
        requests.search(session, texts[:1], **settings)
    assert isinstance(requests.answers([Asked((texts[0],), 128)])[0], Answered)
    assert "cascade" not in caplog.text


def test_a_cascade_of_no_use_is_refused_at_the_start(gallery, model, processor):
    in_bf16 = Gallery.open(gallery.path, model, processor, matching_dtype="bfloat16")
    with pytest.raises(ValueError, match="opened to match in bfloat16"):
        SearchRequests(in_bf16, cascade=True)


def test_without_re_ranking_the_cosine_ranks(requests, gallery, captions):
    text = next(iter(captions.values()))
    (answer,) = requests.search(Session(), [text], rerank=False)
    (hits,) = gallery.search([text], top_k=12, rerank=False)
    assert found(answer) == [hit.id for hit in hits]
    assert all(hit.match_logit is None for hit in answer)


def test_feedback_is_asked_with_the_text_and_can_be_taken_back(requests, gallery, captions):
    text, session = next(iter(captions.values())), Session()
    liked, disliked = found(requests.search(session, [text])[0])[:2]
    feedback = Feedback.of([liked], [disliked], ["a red <hat>"], ["a dog"])
    *_, waiting = requests.search_in_stages(
        session, [text], shown=15, where="gallery", wanted=Filter(), rerank=True, sca=False, feedback=feedback
    )
    assert not waiting
    assert session.result == gallery.search([text], top_k=15, **feedback.settings)
    question = session.question
    assert (question.feedback, question.said("liked", liked).feedback.liked) == (feedback, ())
    assert question.said("liked", disliked).feedback == replace(
        feedback, liked=(liked, disliked), disliked=()
    )
    page = Renderer(requests).answers(session)
    pressed = re.findall(r'data-mark="(\w+) (.*?)" aria-pressed="true"', page)
    assert pressed == [("liked", liked)]
    assert f'data-mark="liked {disliked}"' not in page  # which is shown as taken away alone
    for name, one in (("liked", liked), ("disliked", disliked), ("must_not", "a dog")):
        assert f'data-ask="{escape(question.said(name, one).address)}"' in page
    score = session.result[0][0].phrases[0].match_logit
    assert f"+ a red &lt;hat&gt; <b>{score:.2f}</b>".replace("-", "−") in page


def test_what_sca_moved_is_said(requests, captions):
    """The same text twice: both claim one image, and one of them has to move on."""
    text = next(iter(captions.values()))
    session = Session()
    first, second = result = requests.search(session, [text, text + " and"], shown=12, sca=True)
    before = [requests.search(Session(), [one])[0] for one in (text, text + " and")]
    claimed = found(before[0])[0]
    assert found(before[1])[0] == claimed
    moved, holder = (1, 0) if found(first)[0] == claimed else (0, 1)
    assert found(result[holder])[0] == claimed
    assert result.taken_by[holder] is None
    assert result.taken_by[moved] == holder
    assert found(result[moved])[:2] == found(before[moved])[1::-1]
    assert [hit.rank_before_sca for hit in result[moved][:3]] == [2, 1, 3]
    assert (result.sca_report.moved, result.sca_report.collisions_after) == (1, 0)


@pytest.mark.parametrize("labels", [("anomaly", None), (None, "street"), ("normal", "railway platform")])
def test_a_filter_searches_exactly_what_is_labelled_so(requests, pab, captions, model, processor, labels):
    behaviour, scene = labels
    rows = map(json.loads, (pab / "annotation/test/attr.json").read_text().splitlines())
    wanted = [
        row["image"].removeprefix("test/")
        for row in rows
        if (behaviour is None or behaviour in row) and (scene is None or row["scene"] == scene)
    ]
    assert 0 < len(wanted) < IMAGES
    text = next(iter(captions.values()))
    wanted_so = Filter(behaviour=behaviour, scene=scene)
    (answer,) = result = requests.search(Session(), [text], wanted=wanted_so, shown=48)
    images = [load_image(pab / "test" / name) for name in wanted]
    with torch.inference_mode():
        logits = model(**processor(images=images, text=[text] * len(images))).match_logits[:, 1]
    assert found(answer) == [wanted[place] for place in logits.argsort(descending=True)]
    assert result.searched == len(wanted)


def test_own_images_are_searched_beside_the_gallery(requests, pab, captions, gallery):
    name, text = next(iter(captions.items()))
    session, other = Session(), Session()
    assert not requests.add_images(session, [pab / "test" / name])
    (own,) = requests.search(session, [text], where="own")
    assert found(own) == [Path(name).name]
    (both,) = result = requests.search(session, [text], where="both", shown=48)
    assert len(both) == result.searched == IMAGES + 1
    by_id = {hit.id: hit for hit in both}
    twin, shared = by_id[Path(name).name], by_id[name]
    assert abs(twin.rank - shared.rank) == 1
    assert twin.match_logit == pytest.approx(shared.match_logit, abs=2e-3)  # kept in fp16
    assert len(requests.search(session, [text], where="gallery", shown=48)[0]) == IMAGES

    assert len(requests.search(other, [text], where="both", shown=48)[0]) == IMAGES
    with pytest.raises(RequestError, match="no images here yet"):
        requests.search(other, [text], where="own")


def test_a_filter_is_for_the_gallery_and_own_images_are_searched_all_the_same(requests, pab, captions):
    session, street = Session(), Filter(scene="street")
    requests.add_images(session, [pab / "test" / next(iter(captions))])
    (both,) = result = requests.search(session, ["a man"], where="both", wanted=street, shown=48)
    own = [hit for hit in both if hit.extra is not None]
    assert len(own) == 1
    assert {requests.label(hit).scene for hit in both if hit.extra is None} == {"street"}
    assert result.searched == requests.facts.choices("scene")["street"] + 1
    assert found(requests.search(session, ["a man"], where="own", wanted=street)[0]) == [own[0].id]
    (similar,) = requests.similar(session, 0, wanted=street, shown=48)
    assert {requests.label(hit).scene for hit in similar} == {"street"}


@pytest.mark.parametrize("sca", [False, True])
def test_answers_come_by_their_embeddings_first_and_re_ranked_text_by_text(requests, gallery, captions, sca):
    texts, session, seen = list(captions.values())[:3], Session(), []
    asked = {"shown": 5, "where": "gallery", "wanted": Filter(), "rerank": True, "sca": sca}
    for waiting in requests.search_in_stages(session, texts, **asked):
        seen.append((waiting, [found(hits) for hits in session.result]))
    by_embeddings = [found(hits) for hits in gallery.search(texts, top_k=5, rerank=False)]
    last = [found(hits) for hits in gallery.search(texts, top_k=5, sca="score" if sca else None)]
    assert by_embeddings != last
    assert seen[0] == ({0, 1, 2}, by_embeddings)
    assert seen[-1] == (set(), last)
    if not sca:
        assert seen[1] == ({1, 2}, [last[0], *by_embeddings[1:]])
    assert session.question == Question(tuple(texts), sca=sca)


def test_pages_show_what_was_found_once_each(requests, captions):
    session, renderer = Session(), Renderer(requests)
    (hits,) = requests.search(session, ["a man"], shown=IMAGES)
    shown = []
    for page in range(4):
        requests.turn(session, page, 12)
        shown += re.findall(r'tpas-card.*data-image="([^"]+)"', renderer.answers(session))
    assert shown == found(hits)
    requests.turn(session, 99, 12)
    assert "Ranks 37 to 40 of 40 images." in renderer.answers(session)


def test_a_page_says_first_that_there_is_no_one(requests):
    session, renderer = Session(), Renderer(requests)
    result = requests.search(session, ["a man"])
    assert "No one like this" not in renderer.answers(session)
    result.chances[0] = 0.08
    page = renderer.answers(session)
    assert page.index("No one like this (chance 8 %).") < page.index("tpas-card")


def test_files_are_named_whole_on_the_own_machine_alone(gallery):
    for own_machine in (True, False):
        requests, session = SearchRequests(gallery, limits=Limits(own_machine=own_machine)), Session()
        hit = requests.search(session, ["a man"])[0][0]
        page = Renderer(requests).explanation(session, 0, hit.id, "a man", hit, None)
        assert hit.id in page
        assert (str(hit.path) in page) == own_machine


def test_an_image_is_saved_in_all_its_pixels_without_what_lies_beside_them(model, processor, tmp_path):
    (tmp_path / "images" / "a").mkdir(parents=True)
    exif = Image.Exif()
    exif[0x010E] = "where it was taken"
    Image.new("RGB", (2000, 1700)).save(tmp_path / "images" / "a" / "b.jpg", exif=exif)
    requests = SearchRequests(Gallery.build(model, processor, tmp_path / "images", tmp_path / "gallery"))
    name, content = requests.full_size(Session(), "a/b.jpg")
    image = Image.open(io.BytesIO(content))
    assert (name, image.size, dict(image.getexif())) == ("b.jpg", (2000, 1700), {})
    assert Image.open(io.BytesIO(requests.large(requests.sample(1)[0]))).size == (1600, 1360)


def test_the_first_screen_says_what_is_searched_by_what_and_examples_that_fit(requests, gallery, captions):
    page = Renderer(requests).welcome()
    for said in ("gallery", "40 images", "demo_start"):
        assert f"<b>{said}</b>" in page or said in page
    assert page.count("data-ask") == 3 + 8
    assert set(requests.example_texts(3)) <= set(captions.values())
    without = SearchRequests(gallery, name="Mine").example_texts(
        3
    )  # no captions: texts of which it knows the words
    assert len(without) == 3
    assert not any(unread_warnings(requests.processor, [text], [text]) for text in without)


def test_removed_images_are_gone(requests, pab, captions):
    session = Session()
    requests.add_images(session, [pab / "test" / name for name in list(captions)[:3]])
    requests.search(session, ["a man"], where="own")
    requests.remove_images(session)
    assert (session.own_images, session.result) == ([], None)


def test_images_that_are_none_are_refused_by_name(gallery, pab, captions, tmp_path):
    requests = SearchRequests(gallery, limits=Limits(own_images=2, upload_megabytes=1))
    (tmp_path / "letter.jpg").write_text("not an image")
    Image.new("RGB", (9000, 10000)).save(tmp_path / "huge.png")
    (tmp_path / "heavy.jpg").write_bytes(bytes(2**20 + 1))
    Image.new("RGB", (9, 9)).save(tmp_path / "short.png", exif=b"II*\0")
    images = [pab / "test" / name for name in list(captions)[:3]]
    session = Session()
    refused = requests.add_images(session, [*tmp_path.iterdir(), *images])
    assert set(refused) == {"letter.jpg", "huge.png", "heavy.jpg", "short.png", images[2].name}
    reasons = {"letter.jpg": "not an image", "huge.png": "9000x10000 pixels", "short.png": "broken image"}
    for name, reason in (reasons | {"heavy.jpg": "larger than 1 MB"}).items():
        assert reason in refused[name]
    assert refused[images[2].name] == "more than 2 images"
    assert not any(str(tmp_path) in reason for reason in refused.values())
    assert [image.id for image in session.own_images] == [path.name for path in images[:2]]


@pytest.mark.parametrize(
    ("texts", "settings", "message"),
    [
        ([], {}, "Write what you are looking for"),
        (["  ", "\t"], {}, "Write what you are looking for"),
        (["a man", "?!."], {}, "Text 2 has no words"),
        (["\u200b"], {}, "Text 1 has no words"),
        (["a man"] * 21, {}, "21 texts are too many"),
        (["a" * 1001], {}, "Text 1 has 1001 characters"),
        (["a man"], {"wanted": Filter(scene="moon")}, "No image passes the filter"),
        (["a man"], {"feedback": Feedback.of(["nobody.jpg"])}, "The gallery has no image of this name"),
        (["a man"], {"feedback": Feedback.of(map(str, range(25)))}, "25 marked images are too many: 24 at"),
        (["a man"], {"feedback": Feedback.of(must=["a" * 1001])}, "A phrase has 1001 characters: 1000 at"),
        (["a man", "a boy"], {"feedback": Feedback.of(must_not=["a hat"]), "sca": True}, "of one person"),
        (["a man"], {"wanted": Filter(scene="street"), "where": "own"}, "You have no images here yet"),
    ],
)
def test_what_cannot_be_answered_is_refused(requests, texts, settings, message):
    with pytest.raises(RequestError, match=message):
        requests.search(Session(), texts, **settings)


@pytest.mark.parametrize("answer", [1, -1, "0", None, True, 0.0])
@pytest.mark.parametrize("image", [0, -1, None, 0.0, True, "none.jpg", "", "../a.jpg"])
def test_what_a_browser_says_points_into_the_own_result_only(requests, answer, image):
    session = Session()
    best = requests.search(session, ["a man in a red jacket"], shown=2)[0][0].id
    for asked in ((answer, best), (0, image)):
        for ask in (requests.hit, requests.explain):
            with pytest.raises(RequestError):
                ask(session, *asked)
    for ask in (requests.similar, requests.full_size):
        with pytest.raises(RequestError):
            ask(session, image)
    beyond = next(name for name in requests.gallery.ids if name not in found(session.result[0]))
    with pytest.raises(RequestError, match="no such image in your result"):
        requests.explain(session, 0, beyond)


def test_an_explanation_is_of_the_ranked_pair(requests, model, processor, pab, captions):
    sentence = list(captions.values())[3]
    session = Session()
    (answer,) = requests.search(session, [sentence])
    text, hit, explanation = requests.explain(session, 0, answer[2].id)
    assert text == sentence
    assert hit is answer[2]
    assert explanation.match_logit == pytest.approx(hit.match_logit, abs=1e-4)
    expected = explain(model, processor, load_image(pab / "test" / hit.id), text)
    torch.testing.assert_close(explanation.effects, expected.effects, atol=1e-3, rtol=0)


@pytest.mark.parametrize("own", [False, True])
def test_similar_images_are_the_nearest_embeddings(requests, model, processor, pab, captions, own):
    session = Session()
    if own:
        requests.add_images(session, [pab / "test" / next(iter(captions))])
    (answer,) = requests.search(session, ["a man in a red jacket"], where="own" if own else "gallery")
    (similar,) = requests.similar(session, 0 if own else answer[0].id, shown=5)

    names = list(captions)
    with torch.inference_mode():
        pixels = processor(images=[load_image(pab / "test" / name) for name in names])["pixel_values"]
        embeds = model.get_image_features(pixels).pooler_output
    place = 0 if own else names.index(answer[0].id)
    cosines = embeds @ embeds[place]
    if not own:
        cosines[place] = -2
    best = cosines.argsort(descending=True)[:5]
    assert found(similar) == [names[place] for place in best]
    assert [hit.cosine for hit in similar] == pytest.approx(cosines[best].tolist(), abs=1e-3)
    assert requests.explain(session, 0, similar[0].id)[2] is None  # no text found them


def test_a_gallery_without_its_files_shows_thumbnails(model, processor, pab, captions, tmp_path):
    names = list(captions)[:3]
    for name in names:
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        load_image(pab / "test" / name).save(tmp_path / "images" / name)
    for size, folder in ((64, "kept"), (None, "gone")):
        Gallery.build(model, processor, tmp_path / "images", tmp_path / folder, thumbnail_size=size)
    for name in names:
        (tmp_path / "images" / name).unlink()
    for folder, width in (("kept", 64), ("gone", None)):
        requests, session = SearchRequests(Gallery.open(tmp_path / folder, model, processor)), Session()
        hit = requests.search(session, ["a man"])[0][0]
        for jpeg in (requests.card(hit), requests.large(hit)):
            assert (jpeg and Image.open(io.BytesIO(jpeg)).width) == width
        renderer = Renderer(requests)
        page = renderer.answers(session)
        assert page.count("cannot be read") == (0 if width else 3)
        why = renderer.explanation(session, 0, hit.id, *requests.explain(session, 0, hit.id))
        assert ("looks" in why, "cannot be read" in why) == (bool(width), not width)


def test_a_csv_holds_the_answers(requests, captions):
    session = Session()
    answers = requests.search(session, ['A "man", in a coat', next(iter(captions.values()))], shown=3)
    rows = list(csv.DictReader(io.StringIO(csv_table(answers, requests.label))))
    assert [row["text_number"] for row in rows] == ["1"] * 3 + ["2"] * 3
    assert rows[0]["text"] == 'A "man", in a coat'
    best = answers[1][0]
    assert rows[3]["image"] == best.id
    assert float(rows[3]["match_logit"]) == pytest.approx(best.match_logit, abs=1e-6)
    assert rows[3]["rank_by_embedding"] == str(best.embedding_rank)
    label = requests.label(best)
    assert (rows[3]["behaviour"], rows[3]["scene"]) == (label.behaviour, label.scene)
    scores = [float(row["score"]) for row in rows[3:]]
    assert scores == [pytest.approx(hit.match_logit, abs=1e-6) for hit in answers[1]]
    assert scores == sorted(scores, reverse=True)


def test_a_csv_says_what_each_phrase_says(requests):
    feedback = Feedback.of(must=["=a hat"], must_not=["a red coat"])
    (hits,) = answers = requests.search(Session(), ["a man"], shown=3, feedback=feedback)
    rows = list(csv.DictReader(io.StringIO(csv_table(answers, requests.label))))
    for row, hit in zip(rows, hits, strict=True):
        for name, said in zip(("must: =a hat", "must_not: a red coat"), hit.phrases, strict=True):
            shown = float(row[f"{name} (match_logit)"]), float(row[f"{name} (cosine)"])
            assert shown == pytest.approx((said.match_logit, said.cosine), abs=1e-6)


def test_a_spreadsheet_computes_nothing_that_is_in_a_csv(requests):
    result = requests.search(Session(), ['-2+3+cmd|" /C calc"!A0'], shown=3)
    first, second, third = result[0]
    label = ImageLabel("normal", '=HYPERLINK("http://example.org")', "+1", None)
    hits = [replace(first, id='@SUM(1,1)\n".jpg'), replace(second, id="\t=1.jpg"), third]
    content = csv_table(with_hits(result, hits), lambda hit: label if hit.rank == 1 else None)
    rows = list(csv.reader(io.StringIO(content, newline="")))
    assert len(rows) == 4
    assert rows[1][1] == """'-2+3+cmd|" /C calc"!A0"""
    assert rows[1][3] == """'@SUM(1,1)\n".jpg"""
    assert rows[1][-6:-4] == ["""'=HYPERLINK("http://example.org")""", "'+1"]
    assert rows[2][3] == "'\t'=1.jpg"
    assert rows[3][3] == third.id
    assert float(rows[1][6]) == pytest.approx(first.match_logit, abs=1e-6)  # a number stays one


UNSEEN = [
    "",
    " ",
    "\t",
    "\r",
    "\n",
    "\x00",
    "\xa0",
    "\xad",
    "\u200b",
    "\u2060",
    "\u3000",
    "\ufeff",
    "\u3164",
    "\u0300",
    '"',
]
SIGNS = ["=", "+", "-", "@", "＝", "＋", "－", "＠", "﹦", "﹢", "﹣", "﹫", "⁼", "⁺", "⁻", "−"]
FRAGMENTS = [*UNSEEN, *SIGNS, ";", ",", '"', "'", "1+1", "cmd|' /C calc'!A0", "A man", "\u2028"]


@given(st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=3), max_size=8).map("".join))
def test_no_text_begins_a_formula_in_any_cell(text):
    """An oracle of its own: what separates, what is trimmed, what is folded, each as a list of characters."""
    written = as_cell_text(text)
    for cell in re.split(r"[;\t\r\n\v\f\x1c-\x1e\x85\u2028\u2029]", written):
        seen = cell.strip("".join(UNSEEN) + " \u2000\u200c\u200d\u200e\u202f\u205f")
        assert seen[:1] not in SIGNS, (text, written)
    assert written[:1] not in ("\t", "\r", "\n")
    added = iter(written)  # only apostrophes were added, and nothing was taken away
    assert all(char in added for char in text)
    assert written.replace("'", "") == text.replace("'", "")


@pytest.mark.parametrize("sign", SIGNS)
@pytest.mark.parametrize("unseen", UNSEEN)
def test_a_sign_behind_what_is_not_seen_is_held(sign, unseen):
    assert "'" in as_cell_text(f"{unseen}{sign}1+1")
    assert as_cell_text(f"A man; {unseen}a coat{sign}") == f"A man; {unseen}a coat{sign}"


def test_an_answer_file_is_one_that_the_challenge_takes(requests, pab, captions):
    texts = list(captions.values())[:4]
    answers = requests.search(Session(), texts, shown=12)
    images = {Path(name).stem: pab / "test" / name for name in captions}
    challenge = Challenge([f"q{number}" for number in range(4)], texts, images)
    text = answer_file(answers)
    assert not find_mistakes(text, challenge)
    assert text.splitlines()[2].split()[0] == Path(found(answers[2])[0]).stem


def test_an_answer_file_that_would_be_wrong_is_refused(requests, pab, captions):
    session = Session()
    with pytest.raises(ValueError, match="names 10 images"):
        answer_file(requests.search(session, ["a man"], shown=9))
    with pytest.raises(ValueError, match="answers to texts"):
        answer_file(requests.similar(session, session.result[0][0].id))
    requests.add_images(session, [pab / "test" / next(iter(captions))])
    with pytest.raises(ValueError, match="of the gallery only"):
        answer_file(requests.search(session, ["a man"], where="own"))

    many = requests.search(session, ["a man"])
    taken = "elsewhere/" + Path(found(many[0])[1]).name
    for name, message in (("a b.jpg", "space in its name"), (taken, "share a name")):
        with pytest.raises(ValueError, match=message):
            answer_file(with_hits(many, [replace(many[0][0], id=name), *many[0][1:]]))


def test_nothing_that_was_typed_becomes_markup(requests):
    session = Session()
    best = requests.search(session, ["<script>alert(1)</script> man"])[0][0].id
    renderer = Renderer(requests)
    pages = [
        renderer.answers(session),
        renderer.explanation(session, 0, best, *requests.explain(session, 0, best)),
        renderer.problem("<script>"),
        renderer.welcome(),
        renderer.own_images(session, {"<script>.jpg": "<script>"}),
    ]
    for page in pages:
        assert "<script" not in page
    assert "&lt;script&gt;" in pages[0]
    assert renderer.problem("the same") != renderer.problem("the same")  # every page differs from the last


def shown(page: str) -> tuple[list[float], list[float]]:
    """The scores and the bars on a page, in its order."""
    scores = re.findall(r"score <b>(.*?)</b>", page)
    bars = re.findall(r"--share: ([\d.]+)%", page)
    return [float(score.replace("−", "-")) for score in scores], list(map(float, bars))


@pytest.mark.parametrize("rerank", [True, False])
def test_one_number_orders_the_images_and_is_shown(gallery, captions, rerank):
    requests, session = SearchRequests(gallery, shortlist=20), Session(shown=24)
    for text in list(captions.values())[:5]:
        (hits,) = requests.search(session, [text], shown=24, rerank=rerank)
        page = Renderer(requests).answers(session)
        scores, bars = shown(page)
        assert scores == [round(hit.score, 2) for hit in hits[: 20 if rerank else 24]]
        assert scores == sorted(scores, reverse=True)
        assert bars == sorted(bars, reverse=True)
        assert (bars[0], bars[-1]) == (100, 0)
        assert page.count("not re-ranked") == (4 if rerank else 0)
        assert ("the match logit of" in page, "the cosine of" in page) == (rerank, not rerank)
        assert "The best 24 of 40 images." in page


def test_an_image_that_sca_moved_keeps_its_score_and_is_marked(requests, captions):
    text, session = next(iter(captions.values())), Session()
    requests.search(session, [text, text], shown=5, sca=True)
    page = Renderer(requests).answers(session)
    first, second = (shown(section)[0] for section in page.split("<section")[1:])
    assert second == [first[1], first[0], *first[2:]]
    assert "Its first image went to text 1, whose score for it is no lower." in page
    assert page.count("SCA 2 → 1") == page.count("SCA 1 → 2") == 1


def test_an_explanation_says_the_number_that_ranked(gallery, captions):
    requests, session = SearchRequests(gallery, shortlist=3), Session()
    text = next(iter(captions.values()))
    for rerank, place, note in ((True, 1, False), (True, 4, True), (False, 1, True)):
        hit = requests.search(session, [text], rerank=rerank)[0][place]
        page = " ".join(
            Renderer(requests).explanation(session, 0, hit.id, *requests.explain(session, 0, hit.id)).split()
        )
        if not note:
            assert f"The score is {hit.score:.2f}".replace("-", "−") in page
        assert (f"which was ranked by its cosine, {hit.cosine:.2f}." in page) == note


@pytest.mark.parametrize(
    ("texts", "lines"),
    [
        (["a man in a red jacket"], []),
        (["a man\u2028in red"], []),  # one text, whatever it was pasted from
        (["a man and a zebra"], ["The model does not know the word &#39;zebra&#39; (your text)."]),
        (["a man", "一个男人"], ["no word at all is known of text 2: what is found for it is chance."]),
        (["a man", "a man " * 34 + "in red"], ["Text 2 is longer than the 70 tokens that the model reads: "]),
    ],
)
def test_what_is_not_understood_is_said_before_the_answers(requests, texts, lines):
    session = Session()
    assert len(requests.unread(requests.search(session, texts))) == len(lines)
    page = Renderer(requests).answers(session)
    assert page.count("understood") == len(lines)
    for line in lines:
        assert page.index(line) < page.index("Save as CSV") < page.index("tpas-card")
    requests.similar(session, session.result[0][0].id)
    assert "understood" not in Renderer(requests).answers(session)


@pytest.fixture
def changing(model, processor, pab, captions, tmp_path):
    """A service over a gallery of its own, and that gallery as another process opens it."""
    names = list(captions)[:8]
    images = [(name, pab / "test" / name) for name in names]
    Gallery.build(model, processor, images, tmp_path / "gallery", thumbnail_size=64)
    labels = {name: ImageLabel("anomaly" if name == names[0] else "normal") for name in names}
    requests = SearchRequests(Gallery.open(tmp_path / "gallery", model, processor), labels)
    return requests, Gallery.open(tmp_path / "gallery", model, processor), names


def test_what_is_deleted_is_neither_found_nor_shown_by_who_runs(changing):
    requests, other, names = changing
    session = Session()
    (before,) = requests.search(session, ["a man"], shown=8)
    gone = before[0].id
    assert requests.card(before[0])
    Renderer(requests).answers(session)
    other.delete([gone])
    with pytest.raises(RequestError, match="changed since: search again"):
        requests.explain(session, 0, before[1].id)
    with pytest.raises(RequestError, match="search again"):
        requests.result(session)
    with pytest.raises(RequestError, match="no image of this name"):
        requests.similar(session, gone)
    (after,) = requests.search(session, ["a man"], shown=8)
    assert set(found(after)) == set(names) - {gone}
    assert [requests.label(hit).behaviour == "anomaly" for hit in after] == [
        hit.id == names[0] for hit in after
    ]
    assert requests.result(session) == [after]  # and what did not change stays


def test_rows_are_those_of_a_gallery_that_a_search_has_opened_anew(changing):
    requests, other, names = changing
    other.delete(names[1:3])
    requests.gallery.refresh()  # as a search does where a deletion comes between
    (hits,) = requests.search(Session(), ["a man"], wanted=Filter(behaviour="normal"))
    assert set(found(hits)) == set(names[3:])


def test_a_gallery_that_is_gone_or_of_another_model_is_not_searched_as_before(changing, caplog):
    requests, other, names = changing
    session = Session()
    requests.search(session, ["a man"])
    manifest = other.path / "gallery.json"
    content = json.loads(manifest.read_text())
    fingerprint = content["settings"]["model_fingerprint"]
    for broken in ({"model_fingerprint": "0" * 16}, None):
        text = json.dumps(content | {"settings": content["settings"] | broken}) if broken else "{"
        manifest.write_text(text)
        for ask in (
            lambda: requests.search(session, ["a man"]),
            lambda: requests.explain(session, 0, names[0]),
        ):
            caplog.clear()
            with pytest.raises(RequestError, match="cannot be searched as it is now"):
                ask()
            (record,) = caplog.records
            assert ("0" * 16 if broken else "gallery.json is damaged") in record.message
    manifest.write_text(json.dumps(content))
    assert fingerprint in manifest.read_text()
    assert len(requests.search(session, ["a man"], shown=8)[0]) == 8


def test_uploads_of_more_pixels_or_scans_than_a_page_takes_are_not_decoded(changing, tmp_path):
    requests, _, _ = changing
    large, deep, fine = (tmp_path / name for name in ("large.png", "deep.jpg", "fine.jpg"))
    Image.new("1", (5_001, 5_000)).save(large)
    Image.new("L", (64, 64)).save(fine, progressive=True)
    content = fine.read_bytes()
    scan = content[content.rindex(b"\xff\xda") : -2]
    deep.write_bytes(content[:-2] + 200 * scan + content[-2:])
    session = Session()
    assert requests.add_images(session, [large, deep, fine]) == {
        "large.png": "5001x5000 pixels are more than 25000000",
        "deep.jpg": "more than 100 scans",
    }
    assert [image.id for image in session.own_images] == ["fine.jpg"]


def test_images_of_all_sessions_together_are_bounded(changing, tmp_path, monkeypatch):
    requests, _, _ = changing
    monkeypatch.setattr("tpas.search_page.requests.KEPT_IMAGES", 3)
    file = tmp_path / "a.png"
    Image.new("RGB", (8, 8)).save(file)
    first, second, third = Session(), Session(), Session()
    for session, count in ((first, 1), (second, 2), (first, 1), (third, 1)):
        requests.add_images(session, count * [file])
    assert [len(session.own_images) for session in (first, second, third)] == [2, 0, 1]


@pytest.mark.parametrize("shown", [0, -3, 49, float("nan"), float("inf"), "12", None, 1e300])
def test_a_number_of_images_that_no_slider_gives_is_refused(requests, shown):
    with pytest.raises(RequestError, match="Between 1 and 48"):
        requests.turn(Session(), 0, shown)


def test_a_single_image_has_no_neighbours(model, processor, pab, captions, tmp_path):
    (tmp_path / "images").mkdir()
    load_image(pab / "test" / next(iter(captions))).save(tmp_path / "images" / "one.png")
    requests = SearchRequests(Gallery.build(model, processor, tmp_path / "images", tmp_path / "gallery"))
    renderer, session = Renderer(requests), Session()
    assert "ranks 1 image by" in renderer.welcome()
    requests.search(session, ["a man"])
    assert "All of 1 image." in renderer.answers(session)
    requests.similar(session, "one.png")
    assert "There is no other image." in renderer.answers(session)


def write(path, *lines):
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path


def test_labels_of_all_three_kinds_of_file(tmp_path):
    expected = {
        "a/1.jpg": ImageLabel("normal", "walking", "street", "A man walks."),
        "a/2.jpg": ImageLabel("anomaly", "falling", None, None),
    }
    pab = write(
        tmp_path / "attr.json",
        {"image": "a/1.jpg", "caption": ["A man walks."], "normal": "walking", "scene": "street"},
        {"image": "a/2.jpg", "anomaly": "falling"},
        {"image": "a/1.jpg", "caption": "Another text about it.", "normal": "walking"},
    )
    walking = {"file_name": "a/1.jpg", "behaviour": "normal", "action": "walking"}
    metadata = write(
        tmp_path / "metadata.jsonl",
        walking | {"scene": "street", "caption": "A man walks."},
        "",
        {"file_name": "a/2.jpg", "behaviour": "anomaly", "action": "falling"},
    )
    table = write(
        tmp_path / "metadata.csv",
        "file_name,behaviour,action,scene,caption",
        'a/1.jpg,normal,walking,street,"A man walks."',
        "a/2.jpg,anomaly,falling,,",
    )
    array = tmp_path / "array.json"
    array.write_text(
        "\ufeff" + json.dumps([json.loads(line) for line in pab.read_text().splitlines()], indent=1)
    )
    for path in (pab, metadata, table, array):
        assert read_labels(path) == expected
    parts = [tmp_path / "parts" / name for name in ("attr_0.json", "attr_1.jsonl", "README.md")]
    parts[0].parent.mkdir()
    for part, line in zip(parts, pab.read_text().splitlines(), strict=True):
        part.write_text(line)
    for where in (parts[0].parent, parts[:2]):
        assert read_labels(where) == expected
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no annotation file in it"):
        read_labels(tmp_path / "empty")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not a line of JSON"),
        ("[1]", "line 2: expected an object"),
        ('{"scene": "street"}', "line 2: 'image' or 'file_name' must name the image, got None"),
        ('{"image": "b", "behaviour": "odd"}', "line 2: 'behaviour' must be normal or anomaly, got 'odd'"),
        ('{"image": "b", "scene": 3}', "line 2: 'scene' must be text, got 3"),
        (f'{{"image": "{"b/" * 3000}"}}', "line 2: the image's path has 6,000 characters, 4,096 at most"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, line, message):
    path = write(tmp_path / "attr.json", {"image": "a"}, line)
    with pytest.raises(ValueError, match=message):
        read_labels(path)


def test_files_that_hold_no_labels_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such annotation file"):
        read_labels(tmp_path / "none.json")
    with pytest.raises(ValueError, match="no image is named"):
        read_labels(write(tmp_path / "empty.json"))
    write(tmp_path / "huge.csv", "file_name,scene", f"a,{'b' * 200_000}")
    with pytest.raises(ValueError, match="huge.csv: not a table of .*: field larger than field limit"):
        read_labels(tmp_path / "huge.csv")
    (tmp_path / "pipes").mkdir()
    os.mkfifo(tmp_path / "pipes" / "a.json")  # which is passed by
    with pytest.raises(FileNotFoundError, match="no annotation file in it"):
        read_labels(tmp_path / "pipes")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="not a text file"):
        read_labels(tmp_path / "binary.csv")


def record(name, day=None):
    state = {} if day is None else {"state": [1, int(datetime(2026, 1, day, 12).timestamp()) * 10**9, 0, 0]}
    return {"id": name, "root": "/r", "path": name} | state


def test_what_can_be_filtered_by_is_read_off_paths_times_and_labels():
    names = ["camera1/a/1.jpg", "camera1/b/2.jpg", "camera2/3.jpg", "4.jpg", "x/0007_c3s1_000151_00.jpg"]
    records = [record(name, day) for name, day in zip(names, (1, 2, 3, None, 31), strict=True)]
    labels = [None, ImageLabel("anomaly"), ImageLabel("normal", camera="north"), None, None]
    facts = Facts(Columns.of_records(records), labels)
    folders = {"camera1": 2, "camera1/a": 1, "camera1/b": 1, "camera2": 1, "x": 1}
    assert facts.choices("folder") == folders
    assert facts.choices("camera") == {"camera1": 2, "north": 1, "c3": 1}
    assert (facts.choices("behaviour"), facts.choices("scene")) == ({"anomaly": 1, "normal": 1}, {})
    assert facts.span == (date(2026, 1, 1), date(2026, 1, 31))
    for wanted, rows in (
        (Filter(folder="camera1"), [0, 1]),
        (Filter(folder="camera"), []),
        (Filter(camera="camera1", behaviour="anomaly"), [1]),
        (Filter(since=date(2026, 1, 2)), [1, 2, 4]),
        (Filter(since=date(2026, 1, 2), until=date(2026, 1, 3), folder="camera2"), [2]),
        (Filter(), [0, 1, 2, 3, 4]),
    ):
        assert facts.rows(wanted).tolist() == rows
    alike = Facts(Columns.of_records([record("a/1.jpg", 1), record("a/2.jpg", 1)]), [None, None])
    assert not any(alike.choices(name) for name in alike.chosen)
    assert alike.span is None
    broken = [record("a.jpg") | {"state": state} for state in ([], "ab", [1, "2"], [1, 10**40], None)]
    assert not Facts(Columns.of_records(broken), len(broken) * [None]).days.any()  # of anybody's gallery


@pytest.mark.parametrize(
    "question",
    [
        Question(("a man & a = b?\u2028#1", "", "一个男人")),
        Question(
            ("a", "b"), None, Filter("x/y", "c1", "anomaly", "run", "at sea", date(2026, 1, 31)), sca=True
        ),
        Question(image="a b/ü&q=1.jpg", wanted=Filter(until=date(2026, 1, 31))),
        Question(image=3),
        Question(
            ("a",), feedback=Feedback.of(["b c/ü&.jpg", "d.jpg"], ["e.jpg"], ["a red hat", "f"], ["a dog"])
        ),
        Question(("a",), wanted=Filter(seen_from=72.4, seen_to=datetime(2026, 1, 31, 8, 0, 5).astimezone())),
    ],
)
def test_an_address_holds_a_question(question):
    said = dict(parse_qsl(question.address.removeprefix("?"), keep_blank_values=True))
    assert Question.of_address(said) == question


def test_an_address_of_anybody_is_read_or_refused():
    assert Question.of_address({"own": "x"}).image == Question.of_address({"own": "9" * 99}).image == -1
    with pytest.raises(RequestError, match="2026-01-31"):
        Question.of_address({"q": "a", "since": "yesterday"})
    for time in ("noon", "2026-13-01", "1:2:3:4", "-1", "9999-12-31T23:59-12:00"):
        with pytest.raises(RequestError, match="00:01:12 of a film"):
            Question.of_address({"q": "a", "to": time})


def test_ids_below_the_annotations_root_find_their_label():
    street, lawn, beach = (ImageLabel(scene=scene) for scene in ("street", "lawn", "beach"))
    labels = {"test/a/1.jpg": street, "test/b/1.jpg": lawn, "test/b/2.jpg": beach}
    ids = ["test/a/1.jpg", "b/1.jpg", "2.jpg", "1.jpg", "3.jpg"]
    assert labels_of(ids, labels) == [street, lawn, beach, None, None]  # 1.jpg could be either
