"""The service over ASGI: equal answers, who may ask what, what is refused and how, what is logged."""

import asyncio
import base64
import io
import json
import logging
import re
import shutil
import signal
import socket
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from tpas.__main__ import main
from tpas.commands.command_line import WrongUsage
from tpas.commands.serve import of_galleries
from tpas.data.drawn.synthetic_pab import draw_pab
from tpas.footage.intake import build_footage
from tpas.footage.rules import FootageRules
from tpas.footage.sources import find_films
from tpas.modeling_tpas import TPASModel
from tpas.processing_tpas import TPASProcessor
from tpas.search.gallery import Gallery
from tpas.search_page.questions import Asked, RequestError
from tpas.search_page.requests import SearchRequests
from tpas.service.keys import Keys, add_key, revoke_key

pytest.importorskip("gradio", reason="the extra `app` is not installed")
pytest.importorskip("prometheus_client", reason="the extra `app` is not installed")
av = pytest.importorskip("av", reason="the extra `footage` is not installed")

import httpx  # noqa: E402 (comes with the extra, as these do)
from starlette.testclient import TestClient  # noqa: E402
from tiny_films import two_cameras  # noqa: E402

from tpas.search_page.access import AllowedHosts  # noqa: E402
from tpas.service import batches as batches_module  # noqa: E402
from tpas.service.audit import AuditLog, verify  # noqa: E402
from tpas.service.batches import Batches  # noqa: E402
from tpas.service.gate import Rules  # noqa: E402
from tpas.service.logs import JsonLines  # noqa: E402
from tpas.service.serving import Service  # noqa: E402

pytestmark = [pytest.mark.filterwarnings("ignore::ResourceWarning"), pytest.mark.usefixtures("pages_loops")]

START = Path(__file__).parents[2] / "demo_start"
TEXTS = ["a man in a red coat", "a woman is running", "somebody lies on the ground", "a person with a hat"]
HOSTS = AllowedHosts("127.0.0.1")


@pytest.fixture(scope="module")
def model():
    return TPASModel.from_pretrained(START).eval(), TPASProcessor.from_pretrained(START)


@pytest.fixture(scope="module")
def pab(tmp_path_factory):
    return draw_pab(tmp_path_factory.mktemp("service") / "pab", train_pairs=6, test_pairs=12, workers=1)


@pytest.fixture(scope="module")
def built(model, pab):
    return {
        "street": Gallery.build(*model, pab / "test", pab.parent / "street", thumbnail_size=64).path,
        "shop": Gallery.build(*model, pab / "train", pab.parent / "shop").path,
    }


@pytest.fixture
def service(built, model):
    """A function that makes a service of some galleries, by name; all its arguments are optional."""

    def make(*names, rules=None, audit=None, galleries=built, **settings):
        served = {
            name: SearchRequests(
                Gallery.open(galleries[name], *model), name=name, audit=audit and audit.write
            )
            for name in names or ("street",)
        }
        return Service(served, rules or Rules(HOSTS), log=audit, **settings)

    return make


def ask(app, *requests):
    """The answers to requests (method, address, more) that are sent at once."""

    async def all_at_once():
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:7860") as client:
            sent = (client.request(method, address, **more) for method, address, more in requests)
            return await asyncio.gather(*sent)

    return asyncio.run(all_at_once())


def search(*texts, headers=None, **more):
    content = json.dumps({"texts": list(texts), **more})  # all in ASCII, also what has no UTF-8
    return "POST", "/v1/search", {"content": content, "headers": headers}


def hits(answer):
    return [(hit["id"], hit["score"], hit["cosine"], hit["embedding_rank"]) for hit in answer["hits"]]


def test_answers_of_many_clients_equal_those_of_the_command_to_the_bit(service, built, model, capsys):
    app = service()
    wide = [search(text, top_k=4) for text in TEXTS] + [search(*TEXTS[:2], top_k=9)]
    others = [search(TEXTS[0], rerank=False), search(*TEXTS[:3], sca=True)]
    answered = ask(app, *wide, *others)
    assert [each.status_code for each in answered] == 7 * [200]

    main(["search", str(built["street"]), *TEXTS, "--model", str(START), "--json", "-k", "4"])
    by_command = [hits(answer) for answer in json.loads(capsys.readouterr().out)]
    gallery = Gallery.open(built["street"], *model)

    def alone(*texts, **settings):
        found = gallery.search(texts, **settings)
        return [[(hit.id, hit.score, hit.cosine, hit.embedding_rank) for hit in answer] for answer in found]

    by_service = [[hits(answer) for answer in each.json()["answers"]] for each in answered]
    assert [found[0] for found in by_service[:4]] == by_command
    assert by_service[:4] == [alone(text, top_k=4) for text in TEXTS]
    assert by_service[4] == alone(*TEXTS[:2], top_k=9)
    assert by_service[5] == alone(TEXTS[0], rerank=False)
    assert by_service[6] == alone(*TEXTS[:3], sca="score")
    # The first may have gone alone, the others went together.
    (metrics,) = ask(app, ("GET", "/metrics", {}))
    assert re.search(r"tpas_pass_texts_count [12]\.0", metrics.text)
    assert "tpas_pass_texts_sum 10.0" in metrics.text
    assert 'tpas_requests_total{endpoint="/v1/search",status="200"} 7.0' in metrics.text


def test_what_a_program_reads_is_described(service):
    app = service()
    described, galleries, ready = ask(
        app, ("GET", "/v1/openapi.json", {}), ("GET", "/v1/galleries", {}), ("GET", "/ready", {})
    )
    example = described.json()["components"]["schemas"]["Search"]["example"]
    (answered,) = ask(app, search(*example.pop("texts"), **example))
    (answer,) = answered.json()["answers"]
    assert len(answer["hits"]) == example["top_k"]
    (thumbnail, full) = ask(
        app, *(("GET", f"{answer['hits'][0]['image']}&size={size}", {}) for size in ("thumbnail", "full"))
    )
    assert thumbnail.content[:3] == full.content[:3] == b"\xff\xd8\xff"
    assert len(thumbnail.content) < len(full.content)
    assert galleries.json()[0] | {"filters": {}} == {
        **{"name": "street", "images": 12, "visits": 0, "model": "demo_start", "can_rerank": True},
        **{"knows_chances": False, "filters": {}},
    }
    assert ready.json() == {"status": "ready"}


BEARER = {"Authorization": "Bearer tpas_nobody"}


@pytest.mark.parametrize(
    ("request_", "status", "error"),
    [
        (search(), 400, "texts: List should have at least 1 item"),
        (search(" "), 400, "texts.0: String should have at least 1 character"),
        (search("x" * 1001), 400, "texts.0: String should have at most 1000 characters"),
        (search(*21 * ["a man"]), 400, "texts: List should have at most 20 items"),
        (search("..."), 400, "Text 1 has no words in it"),
        (search("a man", top_k=0), 400, "top_k: Input should be greater than or equal to 1"),
        (search("a man", camrea="cam1"), 400, "camrea: Extra inputs are not permitted"),
        (search("a man", since="yesterday"), 400, "A day is written as 2026-01-31."),
        (search("a man", camera="nowhere"), 400, "No image passes the filter"),
        (search("a man", coverage=0.9), 400, "There is no calibration"),
        (search("a man", gallery="shop"), 404, "Name a gallery of this key: street."),
        (("POST", "/v1/search", {"content": b"{"}), 400, "JSON decode error"),
        (("POST", "/v1/search", {"content": b"[" * 100_000}), 400, ""),
        (("POST", "/v1/search", {"content": 10_000_000 * b"x"}), 413, "a request of more than 262144 bytes"),
        (("GET", "/v1/images?id=../../etc/passwd", {}), 404, "The gallery has no image of this name."),
        (("GET", "/v1/images?id=%2Fetc%2Fpasswd&size=full", {}), 404, "The gallery has no image"),
        (("GET", "/v1/images?id=a%00b", {}), 404, "The gallery has no image of this name."),
        (("GET", "/v1/moments?from=now", {}), 400, "A time is written as"),
        (("GET", "/v1/moments?count=1001", {}), 400, "count: Input should be less than or equal to 1000"),
        (("GET", "/v1/clips?id=nowhere", {}), 404, "This server makes no clips."),
        (search("a man", liked=["\ud800"]), 400, "liked.0: Input should be a valid string, unable to parse"),
        (search("a man", camera="\ud800"), 400, "camera: Input should be a valid string, unable to parse"),
        (("GET", "/v1/galleries/", {}), 404, "Not Found"),
        (("GET", "/v1/nothing", {}), 404, "Not Found"),
        (("DELETE", "/v1/galleries", {}), 405, "Method Not Allowed"),
        (("GET", "/v1/galleries", {"headers": {"Host": "evil.example"}}), 421, "a host that"),
        (("GET", "/v1/galleries", {"headers": {"Origin": "http://evil.example"}}), 403, "a page of another"),
    ],
)
def test_what_is_refused_is_refused_in_a_line(service, request_, status, error):
    (answer,) = ask(service(), request_)
    assert (answer.status_code, list(answer.json())) == (status, ["error"])
    assert answer.json()["error"].startswith(error)
    assert "\n" not in answer.text


def test_a_key_opens_its_galleries_and_no_others(service, tmp_path):
    file = tmp_path / "keys.json"
    all_, shop = add_key(file, "desk"), add_key(file, "gate", ["shop"])
    rules = Rules(HOSTS, Keys(file), requests_a_minute=20)
    app = service("street", "shop", rules=rules, folder=tmp_path / "pages")
    desk, gate = ({"Authorization": f"Bearer {key}"} for key in (all_, shop))
    basic = {"Authorization": "Basic " + base64.b64encode(f"me:{shop}".encode()).decode()}

    def status(path, headers=None):
        (answer,) = ask(app, ("GET", path, {"headers": headers}))
        return answer.status_code

    assert [status("/v1/galleries"), status("/v1/galleries", BEARER), status("/metrics")] == [401, 401, 401]
    assert [status("/health"), status("/ready"), status("/v1/openapi.json")] == [200, 200, 200]
    (own,) = ask(app, ("GET", "/v1/galleries", {"headers": gate}))
    assert [each["name"] for each in own.json()] == ["shop"]
    both, street, first = ask(
        app,
        search(TEXTS[0], headers=desk),
        search(TEXTS[0], gallery="street", headers=gate),
        search(TEXTS[0], headers=gate),
    )
    assert [both.status_code, street.status_code, first.status_code] == [404, 404, 200]
    assert street.json() == {"error": "Name a gallery of this key: shop."}
    assert first.json()["gallery"] == "shop"
    # The pages, by a browser's own question for a password.
    assert [status("/page/shop/", headers) for headers in (basic, gate, None)] == [200, 200, 401]
    assert [status("/page/shop", headers) for headers in (basic, None)] == [307, 401]

    def said(path, headers):
        (answer,) = ask(app, ("GET", path, {"headers": headers}))
        return answer.status_code, answer.text, answer.headers.get("www-authenticate")

    for path in ("", "/", "/config"):  # nobody learns by any of them that there is such a gallery
        for headers in (None, BEARER, basic):
            assert said(f"/page/street{path}", headers) == said(f"/page/nowhere{path}", headers)
    assert said("/page/street/", basic)[:2] == (404, '{"error":"Not Found"}')
    assert [status("/metrics", headers) for headers in (desk, gate)] == [200, 403]
    (links,) = ask(app, ("GET", "/", {"headers": basic}))
    assert ("page/shop/" in links.text, "street" in links.text) == (True, False)
    revoke_key(file, "gate")
    assert [status("/v1/galleries", gate), status("/page/shop/", basic)] == [401, 401]
    file.rename(tmp_path / "elsewhere.json")
    refused = [said("/v1/galleries", desk) for _ in range(11)]  # their key is not the wrong one
    assert {(code, text) for code, text, _ in refused} == {
        (503, '{"error":"the keys cannot be read now: the server\'s log says why"}')
    }
    assert status("/page/shop/", desk) == 503
    (tmp_path / "elsewhere.json").rename(file)
    assert status("/page/shop/", desk) == 200


def test_how_often_and_how_many(service, tmp_path, monkeypatch):
    file = tmp_path / "keys.json"
    key = {"headers": {"Authorization": f"Bearer {add_key(file, 'desk')}"}}
    app = service(rules=Rules(HOSTS, Keys(file), requests_a_minute=3))
    answers = ask(app, *4 * [("GET", "/v1/galleries", key)])
    assert sorted(each.status_code for each in answers) == [200, 200, 200, 429]
    wrong = [ask(app, ("GET", "/v1/galleries", {"headers": BEARER}))[0].status_code for _ in range(11)]
    assert wrong == 10 * [401] + [429]
    monkeypatch.setattr("tpas.service.gate.OPEN_REQUESTS", 2)
    answers = ask(service(), *3 * [search("a man")])
    assert sorted(each.status_code for each in answers) == [200, 200, 429]


def test_a_slow_body_and_a_slow_answer_are_given_up(service, monkeypatch):
    async def slowly():
        yield b"{"
        await asyncio.sleep(5)

    monkeypatch.setattr("tpas.service.gate.QUESTION_SECONDS", 0.05)
    (answer,) = ask(service(), ("POST", "/v1/search", {"content": slowly()}))
    assert (answer.status_code, answer.json()) == (408, {"error": "a request that took too long"})


def test_a_gallery_is_asked_as_it_is_on_the_disk(service, built, model, pab, tmp_path):
    galleries = {"street": shutil.copytree(built["street"], tmp_path / "street")}
    app = service(galleries=galleries)

    def found():
        (answer,) = ask(app, search("a man", top_k=100))
        return answer.status_code, answer.json()

    assert found()[1]["searched"] == 12
    first = found()[1]["answers"][0]["hits"][0]
    grown = Gallery.open(galleries["street"], *model)
    grown.append(pab / "train", id_prefix="more/")
    assert found()[1]["searched"] == 18
    grown.delete([first["id"]])
    assert first["id"] not in [hit["id"] for hit in found()[1]["answers"][0]["hits"]]
    (gone,) = ask(app, ("GET", first["image"], {}))
    assert gone.status_code == 404
    shutil.rmtree(galleries["street"])
    shutil.copytree(built["shop"], galleries["street"])  # another in its place
    assert found()[1]["searched"] == 6
    shutil.rmtree(galleries["street"])
    status, refused = found()
    assert (status, refused) == (
        503,
        {"error": "The gallery cannot be searched as it is now. The server's log says why."},
    )
    (ready,) = ask(app, ("GET", "/ready", {}))
    assert ready.status_code == 503


def test_nothing_is_shown_without_its_line(service, tmp_path, monkeypatch):
    log = AuditLog(tmp_path / "audit.jsonl")
    file = tmp_path / "keys.json"
    key = {"Authorization": f"Bearer {add_key(file, 'desk')}"}
    app = service(audit=log, rules=Rules(HOSTS, Keys(file)))
    answered = ask(app, search(TEXTS[0], top_k=2, headers=key), search(TEXTS[1], top_k=1, headers=key))
    shown = [[hit["id"] for hit in each.json()["answers"][0]["hits"]] for each in answered]
    image = "GET", answered[0].json()["answers"][0]["hits"][0]["image"], {"headers": key}
    ask(app, image)
    lines = [json.loads(line) for line in log.path.read_text().splitlines()[1:]]
    assert [(line["who"], line["texts"], line["shown"]) for line in lines[:2]] == [
        ("desk", [TEXTS[0]], [shown[0]]),
        ("desk", [TEXTS[1]], [shown[1]]),
    ]
    assert [(lines[2][name]) for name in ("event", "image", "gallery")] == ["image", shown[0][0], "street"]
    assert verify(log.path).problem is None

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    shown_nothing = ask(app, search(TEXTS[0], headers=key), image)
    for refused in (*shown_nothing, *ask(app, ("GET", "/ready", {}))):
        assert (refused.status_code, refused.json()) == (
            507,
            {"error": "The audit log cannot be written, so nothing is shown."},
        )
    monkeypatch.undo()
    assert ask(app, ("GET", "/ready", {}))[0].status_code == 200  # by a line of its own
    log.close()
    assert (verify(log.path).lines, verify(log.path).problem) == (6, None)


def test_alarms_are_those_of_the_watched_gallery(service, built, tmp_path):
    street = shutil.copytree(built["street"], tmp_path / "street")
    alarm = {"camera": "gate", "start_s": 1.0, "end_s": 3.0, "track": 2, "box": [1.0, 2.0, 3.0, 4.0]}
    alarm |= {"text": TEXTS[2], "score": 2.0, "limit": 1.5, "false_alarms_a_day": 0.1, "quiet": False}
    alarm |= {"started": None, "image": "/var/g/footage/gate/2-0.jpg", "clip": "/var/g/alarms/clips/a.mp4"}
    for camera, hour in (("", 8), ("other", 9)):
        folder = street / "alarms" / camera
        folder.mkdir(parents=True, exist_ok=True)
        line = json.dumps(alarm | {"id": f"a{hour}", "raised_at": f"2026-11-26T0{hour}:00:00+00:00"})
        (folder / "alarms.jsonl").write_text(f"{line}\n{line[:9]}")  # the last one is being written
    log = AuditLog(tmp_path / "audit.jsonl")
    app = service("street", galleries={"street": street}, audit=log)
    newest, all_of_them = ask(app, *(("GET", "/v1/alarms", {"params": {"count": n}}) for n in (1, 9)))
    assert newest.json()["total"] == 2
    assert [each["id"] for each in all_of_them.json()["alarms"]] == ["a9", "a8"]
    (shown,) = newest.json()["alarms"]
    assert shown["image"] == "/v1/images?gallery=street&id=gate%2F2-0.jpg"
    assert "/var/g" not in newest.text
    assert json.loads(log.path.read_text().splitlines()[-1])["shown"] in ([["a9"]], [["a9", "a8"]])
    (street / "alarms" / "other" / "alarms.jsonl").write_text("")
    untimed = json.dumps(alarm | {"id": "a1"})
    for damaged in ("{\n{}\n", f"{untimed}\n"):
        (street / "alarms" / "alarms.jsonl").write_text(damaged)
        (answer,) = ask(app, ("GET", "/v1/alarms", {}))
        assert answer.status_code == 503
        assert answer.json()["error"].startswith("The file of alarms cannot be read.")
    log.close()


def test_films_answer_with_visits_and_their_clips(service, model, tmp_path):
    filmed = two_cameras(tmp_path)
    rules = FootageRules(detector=f"boxes:{filmed / 'boxes.jsonl'}", views=1)
    built = build_footage(find_films(filmed / "films"), tmp_path / "gallery", *model, rules)
    log = AuditLog(tmp_path / "audit.jsonl")
    app = service(galleries={"street": built.path}, audit=log, folder=tmp_path / "pages")
    everything, some, later, found = ask(
        app,
        ("GET", "/v1/moments", {}),
        ("GET", "/v1/moments?first=1&count=2", {}),
        ("GET", "/v1/moments?camera=cam2.avi&from=00:05", {}),
        search("a man runs"),
    )
    visits = everything.json()["visits"]
    assert [(each["camera"], round(each["start_s"])) for each in visits] == [
        *(("cam1.mp4", 1), ("cam1.mp4", 7), ("cam2.avi", 1), ("cam2.avi", 7))
    ]
    assert (some.json()["total"], some.json()["visits"]) == (4, visits[1:3])
    assert later.json()["visits"] == visits[3:]
    hits_ = found.json()["answers"][0]["hits"]
    assert {hit["clip"] for hit in hits_} == {visit["clip"] for visit in visits}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (clip,) = ask(app, ("GET", hits_[0]["clip"], {}))
    assert clip.headers["content-type"] in ("video/mp4", "video/webm")
    with av.open(io.BytesIO(clip.content)) as opened:
        assert opened.streams.video[0].width == 160
    assert json.loads(log.path.read_text().splitlines()[-1])["image"] == hits_[0]["id"]
    log.close()
    shutil.rmtree(filmed / "films")
    (gone,) = ask(app, ("GET", visits[0]["clip"] + "x", {}))
    assert (gone.status_code, gone.json()) == (404, {"error": "The gallery has no image of this name."})


def test_the_page_is_logged_by_the_visitors_key(service, tmp_path):
    log, file = AuditLog(tmp_path / "audit.jsonl"), tmp_path / "keys.json"
    basic = "Basic " + base64.b64encode(f"me:{add_key(file, 'desk')}".encode()).decode()
    app = service(audit=log, rules=Rules(HOSTS, Keys(file)), folder=tmp_path / "pages")
    headers = {"Authorization": basic, "x-tpas-who": "somebody else"}
    with TestClient(app, base_url="http://127.0.0.1:7860", headers=headers) as visitor:
        events = visitor.get("/config").json()["dependencies"]
        number = next(event["id"] for event in events if len(event["inputs"]) == 17)
        form = [None, TEXTS[0], "gallery", *5 * ["any"], *4 * [None], 3, False, False, None, None]
        question = {"data": form, "fn_index": number, "session_hash": "alice"}
        visitor.post("/gradio_api/queue/join", json=question)
        shown = visitor.get("/gradio_api/queue/data?session_hash=alice").text
    line = json.loads(log.path.read_text().splitlines()[-1])
    assert (line["who"], line["client"], line["texts"]) == ("desk", "testclient", [TEXTS[0]])
    assert line["shown"][0]
    assert all(image.rsplit("/")[-1] in shown for image in line["shown"][0][:3])
    log.close()


def test_the_log_says_what_was_searched_for_only_if_asked(service, caplog):
    caplog.set_level(logging.INFO, logger="tpas")
    for log_texts in (False, True):
        caplog.clear()
        ask(service(rules=Rules(HOSTS, log_texts=log_texts)), search("a zebra in pyjamas"))
        lines = [JsonLines().format(record) for record in caplog.records]
        (said,) = [line for line in map(json.loads, lines) if line["message"] == "request"]
        assert [said[name] for name in ("endpoint", "status", "gallery", "texts")] == [
            *("/v1/search", 200, "street", 1)
        ]
        assert any("zebra" in line or "pyjamas" in line for line in lines) == log_texts


def test_annotations_and_roots_are_of_the_gallery_that_is_named():
    given = ["street=a.jsonl", "shop=b.csv", "street=c=d.csv"]
    assert of_galleries(given, ["street", "shop"], "annotations") == {
        "street": [Path("a.jsonl"), Path("c=d.csv")],
        "shop": [Path("b.csv")],
    }
    assert of_galleries(["x=y.csv"], ["street"], "annotations") == {"street": [Path("x=y.csv")]}
    with pytest.raises(WrongUsage, match="--images_root photos: say of which gallery, as in street=photos"):
        of_galleries(["photos"], ["street", "shop"], "images_root")


def in_batches(answer, *asked, **settings):
    async def ask_all():
        batches = Batches(answer, **settings)
        return await asyncio.gather(*(batches.ask(Asked((text,))) for text in asked), return_exceptions=True)

    return asyncio.run(ask_all())


def test_a_question_that_fails_fails_alone():
    passes = []

    def answer(asked):
        passes.append([each.texts[0] for each in asked])
        if any(each.texts[0] == "poison" for each in asked):
            raise RuntimeError("of a library")
        return [each.texts[0].upper() for each in asked]

    answers = in_batches(answer, "a", "poison", "b")
    assert (answers[0], answers[2]) == ("A", "B")
    assert (answers[1].status, "of a library" in str(answers[1])) == (500, False)
    assert passes == [["a", "poison", "b"], ["a"], ["poison"], ["b"]]
    passes.clear()
    in_batches(answer, *"abcde", texts_a_pass=2)
    assert passes == [["a", "b"], ["c", "d"], ["e"]]


def test_more_questions_than_can_wait_are_refused(monkeypatch):
    monkeypatch.setattr(batches_module, "WAITING_QUESTIONS", 2)
    answers = in_batches(lambda asked: [each.texts[0] for each in asked], *"abc")
    assert answers[:2] == ["a", "b"]
    assert isinstance(answers[2], RequestError)
    assert answers[2].status == 503
    monkeypatch.setattr(batches_module, "ANSWER_SECONDS", 0.0)
    (late,) = in_batches(lambda asked: [each.texts[0] for each in asked], "a")
    assert late.status == 503


def test_who_does_not_wait_is_not_searched_for():
    seen = []

    def answer(asked):
        seen.extend(each.texts[0] for each in asked)
        return [each.texts[0] for each in asked]

    async def leave():
        batches = Batches(answer)
        gone = asyncio.create_task(batches.ask(Asked(("gone",))))
        stays = asyncio.create_task(batches.ask(Asked(("stays",))))
        await asyncio.sleep(0)
        gone.cancel()
        return await stays

    assert asyncio.run(leave()) == "stays"
    assert seen == ["stays"]


def test_whatever_a_service_says_from_its_start_on_is_a_line_of_json(built):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = ["serve", f"street={built['street']}", "--model", str(START), "--port", str(port)]
    served = subprocess.Popen([sys.executable, "-m", "tpas", *words], stderr=subprocess.PIPE, text=True)
    first = served.stderr.readline()  # once it listens
    served.send_signal(signal.SIGTERM)
    said = [json.loads(line) for line in (first, *served.communicate(timeout=60)[1].splitlines())]
    assert said[0]["level"] == "info"
    assert said[0]["message"].startswith("12 images of street at http://")
    assert served.returncode == 128 + signal.SIGTERM
