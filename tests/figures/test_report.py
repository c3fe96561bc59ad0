"""The page says what the evaluation found, marks the right image, and needs nothing beside itself."""

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image

from tpas.data.pab_images import image_path
from tpas.evaluation.absent_people import AbsentPeople
from tpas.evaluation.result_files import Evaluation, ranked_queries
from tpas.figures.examples import choose_queries, collisions_by_outcome, verdict
from tpas.figures.report import build_report
from tpas.search.hits import SearchHit

# An image's colour says which it is, JPEG's rounding included: red = 30 * number.
IMAGES = {f"test/{number}.png": (30 * number, 100, 200 - 20 * number) for number in range(8)}
IDS = list(IMAGES)


def ranking(*first):
    """All ids, these first, with descending scores."""
    ids = [IDS[number] for number in first] + [name for number, name in enumerate(IDS) if number not in first]
    return {"ids": ids, "scores": [9.5 - place for place in range(len(ids))]}


def query(number, caption, behaviour, embeddings, matching, sca):
    return {
        "query_id": f"query {number}",
        "caption": caption,
        "relevant": [IDS[number]],
        "behaviour": behaviour,
        "stages": {"embeddings": ranking(*embeddings), "matching": ranking(*matching), "sca": ranking(*sca)},
        "moved": matching[0] != sca[0],
    }


def made_rankings():
    queries = [
        query(0, "A man in a <script>alert('red')</script> coat & hat falls.", "anomaly", [0], [0], [0]),
        query(1, "A woman in blue walks.", "normal", [0, 1], [0, 1], [1, 0]),  # corrected by SCA
        query(2, "A boy jumps.", "normal", [2], [2], [3, 2]),  # spoilt by SCA
        query(3, "A girl lies on the grass.", "anomaly", [5], [2, 5, 3], [2, 5, 3]),  # wrong, and holds 2's
        query(4, "An old man reads.", "normal", [6, 4], [4], [4]),  # found by matching
        # Wrong before and after, the right one last:
        query(5, "A tall woman runs.", "normal", [7, 6], [7, 6], [6, 7]),
    ]
    return {"gallery": {name: name for name in IDS}, "queries": queries}


def made_evaluation(recall, rankings, root):
    queries = ranked_queries(rankings, lambda name: image_path(root, rankings["gallery"][name]))
    return Evaluation(made_results(recall), queries)


def queries_of(*entries):
    """As read, of images that no test opens."""
    return ranked_queries({"queries": entries}, Path)


def made_results(recall):
    def group(value):
        return {"recall@1": value, "recall@5": value + 0.1, "recall@10": value + 0.2, "mAP": value + 0.05}

    values = {"embeddings": recall, "embeddings_sca": recall + 0.01, "matching": recall + 0.02}
    values |= {"sca": recall - 0.04}
    stages = {
        name: {"all": group(value), "normal": group(value - 0.011), "anomaly": group(value + 0.011)}
        for name, value in values.items()
    }
    report = {"collisions_before": 5, "collisions_after": 3, "coverage_before": 0.5, "coverage_after": 0.75}
    return {"queries": 6, "gallery": 8, "shortlist": 8, "stages": stages, "sca_report": report}


def without_stage_2(evaluation):
    """The same of a model that has embeddings alone."""
    results = evaluation.results
    stages = {stage: figures for stage, figures in results["stages"].items() if stage != "matching"}
    queries = [
        replace(query, hits={stage: hits for stage, hits in query.hits.items() if stage != "matching"})
        for query in evaluation.queries
    ]
    return Evaluation(results | {"stages": stages}, queries)


TRAINING_LOG = [
    {"step": step, "epoch": step / 4, "loss": 3.0, "contrastive_loss": 4.0 / step, "matching_loss": 0.6}
    for step in range(1, 9)
] + [{"step": 8, "epoch": 2.0, "evaluation": {"embeddings": {"all": {"recall@1": 0.5}}}}]


@pytest.fixture
def image_root(tmp_path):
    (tmp_path / "test").mkdir()
    for name, colour in IMAGES.items():
        Image.new("RGB", (300, 400), colour).save(tmp_path / name)
    return tmp_path


def make_page(image_root, rankings=None, shown=lambda evaluation: evaluation, **changes):
    rankings = rankings or made_rankings()
    arguments = {
        "training_log": TRAINING_LOG,
        "arguments": {"seed": 7, "train_pairs": 1234},
        "versions": {"torch": "2.13.0"},
        "durations": {"Draw": 1.25},
        "commands": ["accelerate launch train_accelerate.py --data_root '<here>'"],
    } | changes
    zero_shot = made_evaluation(0.0437, made_rankings(), image_root)
    fine_tuned = made_evaluation(0.4321, rankings, image_root)
    return build_report(shown(zero_shot), shown(fine_tuned), **arguments)


class Reader(HTMLParser):
    """The images with the classes of their figure, the cards with theirs, table cells, and every tag."""

    def __init__(self, page):
        super().__init__()
        self.figures, self.cards, self.rows, self.tags, self.addresses = [], [], [], [], []
        self.open_cells = False
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append((tag, attributes))
        self.addresses += [
            attributes[name] for name in ("src", "href", "srcset", "data") if name in attributes
        ]
        if tag == "article":
            self.cards.append({"text": "", "figures": []})
        if tag == "figure":
            self.figures.append({"classes": attributes.get("class", "").split()})
            if self.cards:
                self.cards[-1]["figures"].append(self.figures[-1])
        if tag == "img" and self.figures and "src" not in self.figures[-1]:  # not a chart
            self.figures[-1] |= attributes
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self.open_cells = True

    def handle_endtag(self, tag):
        self.open_cells &= tag not in ("td", "th")

    def handle_data(self, data):
        if self.open_cells:
            self.rows[-1][-1] += data
        if self.cards:
            self.cards[-1]["text"] += data


def image_number(figure):
    """Which of IMAGES the figure's data address shows."""
    kind, _, content = figure["src"].partition(",")
    assert kind == "data:image/jpeg;base64"
    image = Image.open(io.BytesIO(base64.b64decode(content)))
    assert max(image.size) <= 192
    return round(image.getpixel((20, 20))[0] / 30)


def test_people_who_are_not_there_end_the_page(image_root):
    assert "People who are not there" not in make_page(image_root)
    nearest = [SearchHit(IDS[3], 1, 2.5, path=image_root / IDS[3])]
    absent = AbsentPeople(50, 13, 4, "A woman in purple.", 0.95, 0.034, nearest)
    card = Reader(make_page(image_root, absent=absent)).cards[-1]
    said = " ".join(card["text"].split())
    assert "A woman in purple." in said
    assert "chance 95.0 %. Without them: no one like this (chance 3.4 %); nearest:" in said
    assert [image_number(figure) for figure in card["figures"]] == [3]
    assert "13 of 50 who are not there" in make_page(image_root, absent=absent)


def test_the_right_image_and_no_other_is_framed(image_root):
    reader = Reader(make_page(image_root))
    captions = {entry["caption"]: number for number, entry in enumerate(made_rankings()["queries"])}
    cards = reader.cards[:6]
    assert len({captions[caption] for card in cards for caption in captions if caption in card["text"]}) == 6
    for card in cards:
        number = next(number for caption, number in captions.items() if caption in card["text"])
        shown = [image_number(figure) for figure in card["figures"]]
        framed = [image_number(figure) for figure in card["figures"] if "right" in figure["classes"]]
        expected = made_rankings()["queries"][number]["stages"]["sca"]["ids"]
        assert framed == [number]
        assert len(shown) == 6
        assert [IDS[image] for image in shown[:5]] == expected[:5]
        missed = [figure for figure in card["figures"] if "missed" in figure["classes"]]
        assert len(missed) == (expected[0] != IDS[number])


def test_a_right_image_beyond_the_shown_ones_takes_the_last_place_with_its_rank(image_root):
    rankings = made_rankings()
    rankings["queries"][3]["stages"]["sca"] = ranking(0, 1, 2, 4, 5, 6, 7, 3)
    reader = Reader(make_page(image_root, rankings))
    card = next(card for card in reader.cards if "A girl lies" in card["text"])
    assert [image_number(figure) for figure in card["figures"]] == [0, 1, 2, 4, 5, 3]
    assert "rank 8 · 2.50" in card["text"]
    # ... and when the evaluation did not even list it, the page says that instead of a rank.
    for part in rankings["queries"][3]["stages"].values():
        part["ids"], part["scores"] = part["ids"][:7], part["scores"][:7]
    rankings["queries"][3]["stages"]["sca"] = {"ids": IDS[:3] + IDS[4:], "scores": [1.0] * 7}
    reader = Reader(make_page(image_root, rankings))
    card = next(card for card in reader.cards if "A girl lies" in card["text"])
    assert image_number(card["figures"][-1]) == 3
    assert "not in the first ten" in card["text"]
    assert "> 7" in card["text"]


def test_a_page_speaks_of_matching_only_where_there_was_some(image_root):
    words = ("re-scores the best 8", "+ matching", "matching: <b>", "score,\n    the match logit:")
    page, without = make_page(image_root), make_page(image_root, shown=without_stage_2)
    assert all(word in page for word in words)
    assert not any(word in without for word in words)
    assert "its score,\n    the cosine:" in without


def test_what_others_wrote_cannot_become_markup(image_root):
    page = make_page(image_root)
    assert "&lt;script&gt;alert(&#39;red&#39;)&lt;/script&gt; coat &amp; hat" in page
    reader = Reader(page)
    assert not [tag for tag, _ in reader.tags if tag == "script"]
    assert "&lt;here&gt;" in page
    known = (
        "html head meta title style body header h1 h2 h3 h4 p ol li span small main section div table thead"
        " tbody tr th td article blockquote figure img figcaption br strong b"
        " footer dl dt dd details summary pre code"
    )
    assert {tag for tag, _ in reader.tags} <= set(known.split())


def test_the_page_needs_nothing_beside_itself(image_root):
    page = make_page(image_root)
    assert make_page(image_root) == page  # the same input gives the same page
    assert not re.findall(r"https?://|//[a-z]+\.|file:|url\(|@import", page)
    reader = Reader(page)
    assert reader.addresses
    assert all(address.startswith("data:") for address in reader.addresses)
    assert str(image_root) not in page
    assert all(attributes.get("alt") for tag, attributes in reader.tags if tag == "img")
    headings = [int(tag[1]) for tag, _ in reader.tags if re.fullmatch(r"h\d", tag)]
    assert headings[0] == 1
    assert headings.count(1) == 1
    assert all(after - before <= 1 for before, after in zip(headings, headings[1:], strict=False))


def test_the_page_begins_with_an_answer_and_ends_with_what_to_type(image_root):
    page = make_page(image_root, next_commands=["tpas app 'a & b'"])
    top, _, rest = page.partition("<h2")
    assert "Above: of the texts that it answered, the shortest about an anomaly." in top
    assert re.findall(r"<blockquote[^>]*>(.*?)</blockquote>", top) == [
        "A man in a &lt;script&gt;alert(&#39;red&#39;)&lt;/script&gt; coat &amp; hat falls."
    ]
    ladder = re.findall(r'class="name">(.*?)<.*?class="value">(.*?)<', top, re.DOTALL)
    assert ladder[1:] == [("Fine-tuned", "43.2"), ("+ matching", "45.2"), ("+ SCA", "39.2")]
    assert "<pre>tpas app &#39;a &amp; b&#39;</pre>" in rest
    assert "Go on" not in make_page(image_root)


def test_a_stage_gains_the_same_at_the_top_and_in_the_table(image_root):
    def with_fused(evaluation):
        stages = evaluation.results["stages"]
        fused = {"fused": {group: figures.copy() for group, figures in stages["embeddings"].items()}}
        fused["fused"]["all"]["recall@1"] += 0.03
        return Evaluation(evaluation.results | {"stages": fused | stages}, evaluation.queries)

    page = make_page(image_root, shown=with_fused)
    top = re.findall(r'class="name">(.*?)<.*?class="(?:good|bad)">([^ <]+) points', page, re.DOTALL)
    in_table = {row[0]: row[-1] for row in Reader(page).rows}
    assert (
        dict(top)["+ both fused"] == in_table["+ matching, fused"] == "+3.0"
    )  # over embeddings, not matching
    assert dict(top)["+ SCA"] == in_table["+ SCA"] == "−7.0"


def test_the_table_holds_the_numbers_of_the_results(image_root):
    rows = Reader(make_page(image_root)).rows
    assert ["Embeddings alone", "4.4", "14.4", "24.4", "9.4", "3.3", "5.5", "–"] in rows
    assert ["Embeddings alone", "43.2", "53.2", "63.2", "48.2", "42.1", "44.3", "–"] in rows
    assert ["+ cross-modal matching", "45.2", "55.2", "65.2", "50.2", "44.1", "46.3", "+2.0"] in rows
    assert ["+ SCA", "39.2", "49.2", "59.2", "44.2", "38.1", "40.3", "−6.0"] in rows  # a loss is shown as one


def test_collisions_show_who_kept_the_image_and_own_up_to_the_losses(image_root):
    page = make_page(image_root)
    reader = Reader(page)
    collisions = {card["text"].split()[0]: card for card in reader.cards[6:]}
    assert set(collisions) == {"corrected", "spoilt", "wrong"}
    corrected, spoilt = collisions["corrected"], collisions["spoilt"]
    # kept, before, after
    assert [image_number(figure) for figure in corrected["figures"]] == [0, 0, 1]
    assert ["right" in figure["classes"] for figure in corrected["figures"]] == [True, False, True]
    assert corrected["text"].index("coat & hat") < corrected["text"].index("A woman in blue")
    assert [image_number(figure) for figure in spoilt["figures"]] == [2, 2, 3]
    assert ["right" in figure["classes"] for figure in spoilt["figures"]] == [False, True, False]
    for words in ("3 of 6 queries", "1 corrected", "1 spoilt", "1 wrong before and after"):
        assert words in re.sub(r"<[^>]+>", "", page)


def test_of_several_that_kept_the_image_the_most_confident_is_shown(image_root):
    rankings = made_rankings()
    weaker = query(6, "A shy man, less sure.", "normal", [0], [0], [0])
    weaker["stages"]["matching"]["scores"] = [score - 1 for score in weaker["stages"]["matching"]["scores"]]
    rankings["queries"].insert(0, weaker)
    collisions = Reader(make_page(image_root, rankings)).cards[7:]
    corrected = next(card["text"] for card in collisions if card["text"].split()[0] == "corrected")
    assert "coat & hat" in corrected
    assert "less sure" not in corrected


def test_no_collision_is_said_so(image_root):
    rankings = made_rankings()
    for entry in rankings["queries"]:
        entry["stages"]["sca"], entry["moved"] = entry["stages"]["matching"], False
    assert "SCA moved nothing" in make_page(image_root, rankings)


@pytest.mark.parametrize(
    ("before", "after", "outcome"), [(1, 0, "corrected"), (0, 1, "spoilt"), (1, 2, "wrong before and after")]
)
def test_sca_outcome(before, after, outcome):
    queries = queries_of(query(0, "", "normal", [0], [before], [after]))
    assert verdict(queries[0]) == f"moved by SCA: {outcome}"
    counts = {name: len(collisions) for name, collisions in collisions_by_outcome(queries).items()}
    assert counts == {"corrected": 0, "spoilt": 0, "wrong before and after": 0} | {outcome: 1}


def test_the_choice_mixes_kinds_and_behaviours_and_is_seeded():
    common = [query(0, f"right {n}", ("normal", "anomaly")[n % 2], [0], [0], [0]) for n in range(40)]
    rare = [query(1, f"wrong {n}", "normal", [0], [0], [0]) for n in range(3)]
    queries = queries_of(*common, *rare)
    chosen = choose_queries(queries, count=7, seed=1)
    assert len(chosen) == 7
    assert len({id(entry) for entry in chosen}) == 7
    assert sum(entry.text.startswith("wrong") for entry in chosen) >= 2
    assert {entry.behaviour for entry in chosen if entry.text.startswith("right")} == {"normal", "anomaly"}
    assert choose_queries(queries, count=7, seed=1) == chosen
    assert choose_queries(queries, count=7, seed=2) != chosen
    assert len(choose_queries(queries, count=100, seed=1)) == len(queries)


def test_the_curves_are_images_with_their_ends_in_words(image_root):
    images = [attributes for tag, attributes in Reader(make_page(image_root)).tags if tag == "img"]
    charts = [image for image in images if image["src"].startswith("data:image/svg+xml;base64,")]
    assert [chart["alt"] for chart in charts] == [
        "Contrastive loss by step. each step: from 4 to 0.5.",
        "Matching loss by step. each step: from 0.6 to 0.6.",
        "Recall@1 on validation, % by step. embeddings: from 50 to 50.",
    ]
    for chart in charts:
        root = ElementTree.fromstring(base64.b64decode(chart["src"].partition(",")[2]))
        assert root.tag == "{http://www.w3.org/2000/svg}svg"


def test_an_image_outside_the_root_or_missing_is_named(image_root):
    rankings = made_rankings()
    rankings["gallery"][IDS[0]] = "../0.png"
    with pytest.raises(ValueError, match=r"\.\./0\.png"):
        make_page(image_root, rankings)
    (image_root / IDS[0]).unlink()
    with pytest.raises(FileNotFoundError, match=r"0\.png"):
        make_page(image_root)
