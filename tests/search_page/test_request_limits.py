"""What stands in front of the page: attacks on it by kind, in one process, without a network."""

import asyncio
import base64
import io
import json
import logging
import socket
from pathlib import Path

import pytest
from PIL import Image

from tpas.data.drawn.synthetic_pab import draw_pab
from tpas.data.whole_files import WRITER, held_alone
from tpas.modeling_tpas import TPASModel
from tpas.processing_tpas import TPASProcessor
from tpas.search.gallery import Gallery
from tpas.search_page.requests import Limits, SearchRequests

pytest.importorskip("gradio", reason="the extra `app` is not installed")

from starlette.datastructures import Headers  # noqa: E402 (comes with the extra, as these do)
from starlette.testclient import TestClient  # noqa: E402

from tpas.search_page.access import AllowedHosts, check_access, client_key, serves_own_machine  # noqa: E402
from tpas.search_page.request_limits import QUESTION_BYTES, WAITING_QUESTIONS, RequestLimits  # noqa: E402
from tpas.search_page.serving import guarded_page, remove_folders_of_killed  # noqa: E402
from tpas.search_page.uploads import VISITORS, NoRoomError, Uploads  # noqa: E402

pytestmark = [pytest.mark.filterwarnings("ignore::ResourceWarning"), pytest.mark.usefixtures("pages_loops")]

START = Path(__file__).parents[2] / "demo_start"
ADDRESS = "http://127.0.0.1:7860"
JOIN, UPLOAD = "/gradio_api/queue/join", "/gradio_api/upload"
MANY = Limits(requests_a_minute=10_000)


@pytest.fixture(scope="module")
def requests(tmp_path_factory):
    root = draw_pab(tmp_path_factory.mktemp("limits") / "pab", train_pairs=2, test_pairs=12, workers=1)
    model, processor = TPASModel.from_pretrained(START).eval(), TPASProcessor.from_pretrained(START)
    gallery = Gallery.build(model, processor, root / "test", root.parent / "gallery")
    return SearchRequests(gallery, limits=MANY)


@pytest.fixture
def uploads(tmp_path):
    return Uploads(tmp_path / "uploads", 2**21)


@pytest.fixture(scope="module")
def whole(requests, tmp_path_factory):
    """A visitor of the whole page, and its uploads."""
    uploads = Uploads(tmp_path_factory.mktemp("page") / "uploads", 2**20)
    with (
        pytest.MonkeyPatch.context() as patch,
        TestClient(guarded_page(requests, uploads), base_url=ADDRESS) as visitor,
    ):
        patch.setattr("tpas.search_page.request_limits.REQUESTS_A_MINUTE", 100_000)
        yield visitor, uploads


@pytest.fixture
def page(whole, monkeypatch):
    """A visitor of the whole page; whoever would reach for the network fails the test."""
    reached = []
    monkeypatch.setattr(socket.socket, "connect", lambda _, address: reached.append(address))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *address, **_: reached.append(address))
    yield whole[0]
    assert not reached


@pytest.fixture
def limited(uploads):
    """RequestLimits before an application that keeps what reaches it."""

    async def take(scope, receive, send):
        taken.append((scope["path"], (await receive()).get("body")))
        await send({"type": "http.response.start", "status": 200, "headers": ALLOWING})
        await send({"type": "http.response.body", "body": b"taken"})

    taken = []

    def visitor(address=ADDRESS, client="192.0.2.1", **settings):
        given = {"hosts": AllowedHosts("127.0.0.1"), "uploads": uploads, "limits": Limits()} | settings
        given["questions"] = {0: [False], 3: [False, True, False]}
        return TestClient(RequestLimits(take, **given), base_url=address, client=(client, 1))

    visitor.taken = taken
    return visitor


ALLOWING = [(b"access-control-allow-origin", b"*"), (b"access-control-allow-credentials", b"true")]


def question(page, inputs, *values, **more):
    """What the page sends for the event that has so many inputs: 17 search, 3 upload."""
    events = page.get("/config").json()["dependencies"]
    number = next(event["id"] for event in events if len(event["inputs"]) == inputs)
    return {"data": list(values), "fn_index": number, "session_hash": "alice"} | more


def ask(page, body):
    """The events of an answer."""
    assert page.post(JOIN, content=json.dumps(body)).status_code == 200
    return page.get(f"/gradio_api/queue/data?session_hash={body['session_hash']}").text


def file_of(path, **more):
    return {"path": path, "meta": {"_type": "gradio.FileData"}, "orig_name": "a.png"} | more


def png(side=8):
    stream = io.BytesIO()
    Image.new("RGB", (side, side), "red").save(stream, "PNG")
    return stream.getvalue()


def sent(page, *contents):
    return page.post(UPLOAD, files=[("files", (f"{place}.png", each)) for place, each in enumerate(contents)])


SEARCH = [None, "a man", "gallery", *5 * ["any"], *4 * [None], 3, True, True, None, None]


def test_the_page_searches_and_takes_uploads(page, whole):
    searched = ask(page, question(page, len(SEARCH), *SEARCH))
    assert "tpas-cards" in searched
    uploads = whole[1]
    tokens = sent(page, png(), png()).json()
    assert str(uploads.folder) not in "".join(tokens)
    added = ask(page, question(page, 3, None, [file_of(token) for token in tokens], "gallery"))
    assert added.count("data:image/jpeg") == 2
    assert not list(uploads.folder.iterdir())
    again = page.post(JOIN, json=question(page, 3, None, [file_of(tokens[0])], "gallery"))
    assert again.status_code == 403  # it was read, and is known no more


HERE = "http://127.0.0.1:9/x.jpg"
PATHS = [
    HERE,
    "https://192.0.2.7/x.jpg",
    "HTTP://192.0.2.7/x.jpg",
    "file:///etc/passwd",
    "/etc/passwd",
    "/proc/self/environ",
    "../../etc/passwd",
    "",
    "data:image/png;base64,AAAA",
    "hf://datasets/a/b",
    "//192.0.2.7/share/x.jpg",
    None,
    7,
    ["a"],
    {"path": "/etc/passwd"},
]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("place", ["files", "file", "url", "deep", "event", "text", "where", "session"])
def test_no_address_or_path_that_is_sent_is_opened(page, path, place, caplog):
    file = file_of(path)
    files = {
        "files": [file],
        "file": file,
        "url": {"url": path, "meta": {"_type": "gradio.FileData"}},
        "deep": [[{"a": [file]}]],
    }
    if place in files or place == "event":
        event = {"path": file, "url": path} if place == "event" else None
        body = question(page, 3, None, files.get(place), "gallery", event_data=event)
    else:
        values = [*SEARCH]
        values[["session", "text", "where"].index(place)] = file
        body = question(page, len(SEARCH), *values)
    with caplog.at_level(logging.WARNING):
        answer = page.post(JOIN, json=body)
    assert answer.status_code in (400, 403)
    (record,) = caplog.records
    assert record.message.startswith("refused testclient (")
    for text in (answer.text, record.message):
        assert "passwd" not in text
        assert "192.0.2.7" not in text
        assert "/tmp" not in text


def test_an_upload_is_known_to_who_sent_it_alone(limited, uploads):
    (token,) = sent(limited(), png()).json()
    body = {"data": [None, [file_of(token)], "own"], "fn_index": 3, "session_hash": "mallory"}
    assert limited(client="192.0.2.2").post(JOIN, json=body).status_code == 403
    assert not limited.taken
    assert limited().post(JOIN, json=body).status_code == 200
    assert json.loads(limited.taken[0][1]) == {
        "data": [None, None, "own"],
        "event_data": {"uploads": [token]},
        "fn_index": 3,
        "trigger_id": None,
        "session_hash": "mallory",
    }


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("../../etc/passwd", "passwd"),
        ("..", "image"),
        ("C:\\Windows\\a.png", "a.png"),
        ("a\x00\nb.png", "ab.png"),
        (300 * "é" + ".png", ".png"),
        ("", "image"),
    ],
)
def test_an_upload_lies_in_its_own_folder_whatever_its_name(uploads, name, kept):
    path = uploads.take(uploads.add("a", name, io.BytesIO(b"x"), 1))
    assert path.name.endswith(kept)
    assert path.parent.parent == uploads.folder
    assert path.read_bytes() == b"x"
    assert len(path.name.encode()) <= 100


BODIES = {
    "no JSON": b"data=1",
    "nothing": b"",
    "no object": b"[1]",
    "deep": 20_000 * b"[" + 20_000 * b"]",
    "deep objects": 20_000 * b'{"data":' + b"1" + 20_000 * b"}",
    "NaN": b'{"data": [NaN], "fn_index": 0, "session_hash": "a"}',
    "infinite": b'{"data": [1e999], "fn_index": 0, "session_hash": "a"}',
    "huge number": b'{"data": [' + 5_000 * b"9" + b'], "fn_index": 0, "session_hash": "a"}',
    "large number": b'{"data": [99999999999999999999], "fn_index": 0, "session_hash": "a"}',
    "many values": json.dumps({"data": [1, 1], "fn_index": 0, "session_hash": "a"}).encode(),
    "no value": b'{"data": [], "fn_index": 0, "session_hash": "a"}',
    "no data": b'{"fn_index": 0, "session_hash": "a"}',
    "negative function": b'{"data": [1], "fn_index": -1, "session_hash": "a"}',
    "true function": b'{"data": [1], "fn_index": true, "session_hash": "a"}',
    "named function": b'{"data": [1], "fn_index": "0", "session_hash": "a"}',
    "no session": b'{"data": [1], "fn_index": 0}',
    "odd session": b'{"data": [1], "fn_index": 0, "session_hash": "../a"}',
    "long session": json.dumps({"data": [1], "fn_index": 0, "session_hash": 65 * "a"}).encode(),
    "nested event": b'{"data": [1], "fn_index": 0, "session_hash": "a", "event_data": {"a": [1]}}',
    "text for files": b'{"data": [null, "a", "own"], "fn_index": 3, "session_hash": "a"}',
    "a question of none": b'{"data": [], "fn_index": 9, "session_hash": "a"}',
    "not UTF-8": b'{"data": ["\xff"], "fn_index": 0, "session_hash": "a"}',
}


@pytest.mark.parametrize("kind", BODIES)
def test_a_question_that_no_page_asks_reaches_nobody(limited, kind):
    assert limited().post(JOIN, content=BODIES[kind]).status_code == 400
    assert not limited.taken


@pytest.mark.parametrize(
    "event",
    [None, {}, {"answer": -1}, {"answer": 1e9, "image": True}, {"uploads": "/a"}, {"page": -1, "image": "a"}]
    + [{"q": "a man", "whole": True, "since": 7}, {"own": 1e15}, {"like": "\ud800", "sca": "../a"}, 7],
)
def test_every_question_of_the_page_stands_values_of_any_kind(page, event, caplog, capsys):
    """Nothing raises, so that nothing of what was sent is in the log."""
    values = 3 * [None, -1, "../a", "\ud800", True, "=1", 2.5, "any"]
    questions = page.get("/config").json()["dependencies"]
    for place in range(8) if event is None else (0, 4):  # each value in every place, where nothing is pressed
        for question_of in questions:
            data = (values[place:] + values[:place])[: len(question_of["inputs"])]
            if question_of["targets"][0][1] == "upload":
                data[1] = None
            body = {"data": data, "fn_index": question_of["id"], "session_hash": "mallory"}
            answer = ask(page, body | {"event_data": event})
            assert '"msg":"process_completed"' in answer
            assert "/tmp" not in answer
    assert not [record for record in caplog.records if record.name.startswith("tpas")]
    assert "../a" not in capsys.readouterr().err


@pytest.mark.parametrize("path", [JOIN, UPLOAD, "/gradio_api/cancel", "/gradio_api/reset"])
def test_a_body_that_is_too_large_is_refused_while_it_comes(uploads, path):
    """Three hundred megabytes in parts of 64 KB, of which hardly more than the limit are read."""
    read, answered = [], []
    most = Limits(own_images=1, upload_megabytes=1)

    async def receive():
        read.append(2**16)
        return {"type": "http.request", "body": bytes(2**16), "more_body": len(read) < 4_800}

    async def send(message):
        answered.append(message)

    length = str(2**20).encode()  # which is not true
    headers = [(b"host", b"127.0.0.1"), (b"content-length", length)]
    headers += [(b"content-type", b"multipart/form-data; boundary=x")]
    scope = {"type": "http", "method": "POST", "path": path, "headers": headers, "client": ("192.0.2.1", 1)}
    app = RequestLimits(None, hosts=AllowedHosts("127.0.0.1"), uploads=uploads, limits=most, questions={})
    asyncio.run(app(scope | {"query_string": b""}, receive, send))
    assert answered[0]["status"] in (400, 413)
    assert sum(read) <= max(QUESTION_BYTES, 2**20) + 3 * 2**16
    assert not list(uploads.folder.iterdir())


def test_uploads_are_bounded_by_count_bytes_and_what_waits(limited, uploads):
    limits = Limits(own_images=3, upload_megabytes=1, requests_a_minute=20)
    visitor = limited(limits=limits)
    assert sent(visitor, *4 * [png()]).status_code == 400
    assert sent(visitor, bytes(2**20 + 1)).status_code == 413
    assert visitor.post(UPLOAD, content=iter([b"of no known length"])).status_code == 413
    assert visitor.post(UPLOAD, content=b"", headers={"content-length": "9" * 30}).status_code == 413
    assert visitor.post(UPLOAD, content=b"no form").status_code in (200, 400)
    assert not list(uploads.folder.iterdir())
    statuses = [sent(visitor, bytes(2**20)).status_code for _ in range(3)]
    assert statuses == [200, 503, 503]  # two megabytes may wait, the form included
    assert sent(limited(client="192.0.2.2", limits=limits), png()).status_code == 200


def test_what_comes_of_others_counts_while_it_comes(uploads):
    uploads.check_room("192.0.2.1", 1)
    with pytest.raises(NoRoomError):
        uploads.check_room("192.0.2.1", 1, of_others=VISITORS * uploads.most_bytes)


def test_an_upload_that_is_broken_off_and_answers_to_nobody_are_a_line_in_the_log(uploads, page, caplog):
    async def receive():
        return {"type": "http.disconnect"}

    async def send(message):
        answered.append(message)

    answered = []
    headers = [(b"host", b"127.0.0.1"), (b"content-length", b"99")]
    headers += [(b"content-type", b"multipart/form-data; boundary=x")]
    scope = {"type": "http", "method": "POST", "path": UPLOAD, "headers": headers, "query_string": b""}
    app = RequestLimits(None, hosts=AllowedHosts("127.0.0.1"), uploads=uploads, limits=MANY, questions={})
    asyncio.run(app(scope | {"client": ("192.0.2.1", 1)}, receive, send))
    assert answered[0]["status"] == 400
    assert not app.uploading
    assert page.get("/gradio_api/queue/data?session_hash=nobody").status_code == 404
    said = [record.getMessage() for record in caplog.records if record.name.startswith("tpas")]
    assert [line.partition(": ")[2] for line in said] == [
        "a request that was broken off",
        "answers of a session that asked nothing",
    ]


def test_one_client_cannot_ask_for_all(limited, monkeypatch):
    waiting = {"192.0.2.1": WAITING_QUESTIONS}
    body = {"data": [1], "fn_index": 0, "session_hash": "a"}
    first = limited(waiting=lambda client: waiting.get(client, 0))
    assert first.post(JOIN, json=body).status_code == 429
    assert (
        limited(client="192.0.2.2", waiting=lambda client: waiting.get(client, 0))
        .post(JOIN, json=body)
        .status_code
        == 200
    )
    monkeypatch.setattr("tpas.search_page.request_limits.NEW_SESSIONS_AN_HOUR", 3)
    visitor = limited()
    statuses = [visitor.post(JOIN, json=body | {"session_hash": f"s{n % 5}"}).status_code for n in range(10)]
    assert statuses == [200, 200, 200, 429, 429, 200, 200, 200, 429, 429]
    few = limited(limits=Limits(requests_a_minute=1))
    assert [few.post(JOIN, content=b"wrong").status_code for _ in range(5)] == [400, 400, 400, 400, 429]
    own = limited(limits=Limits(requests_a_minute=1, own_machine=True))
    assert [own.post(JOIN, content=b"wrong").status_code for _ in range(6)] == 6 * [400]


@pytest.mark.parametrize(
    ("path", "method"),
    [
        *[
            (path, "GET")
            for path in (
                "/gradio_api/file=/etc/passwd",
                "/gradio_api/file=http://127.0.0.1:9/",
                "/file=/etc/passwd",
                "/gradio_api/proxy=http://127.0.0.1:9/",
                "/gradio_api/call/search/1",
                "/gradio_api/stream/a/b/c/playlist.m3u8",
                "/gradio_api/dev/reload",
                "/gradio_api/openapi.json",
                "/gradio_api/upload_progress?upload_id=a",
                "/gradio_api/heartbeat/a%00b",  # Gradio would write a trace of it into the log
                "/gradio_api/deep_link?session_hash=a",
                "/gradio_api/mcp/sse",
                "/monitoring/summary",
                "/static/../../../etc/passwd",
                "/static/%2e%2e/%2e%2e/etc/passwd",
                "/docs",
                "/login",
            )
        ],
        *[
            (path, "POST")
            for path in (
                "/gradio_api/component_server",
                "/gradio_api/run/predict",
                "/gradio_api/call/search",
                "/gradio_api/process_recording",
                "/gradio_api/vibe-edit",
                "/login",
                "/",
            )
        ],
        *[("/", method) for method in ("PUT", "DELETE", "OPTIONS", "TRACE", "PATCH")],
    ],
)
def test_what_the_page_does_not_ask_for_is_not_there(page, path, method):
    answer = page.request(method, path)
    assert answer.status_code == 404
    assert "root:" not in answer.text


OWN = [("host", "127.0.0.1:7860")]


@pytest.mark.parametrize(
    ("headers", "refused"),
    [
        (OWN, False),
        ([("host", "localhost:8080")], False),
        ([("host", "[::1]:7860")], False),
        ([("host", "10.1.2.3:7860")], False),  # the address that the connection came in by
        ([("host", "10.1.2.4:7860")], True),
        ([("host", "evil.example:7860")], True),
        ([("host", "127.0.0.1.evil.example")], True),
        ([("host", "127.0.0.1@evil.example")], True),
        ([("host", "evil.example/127.0.0.1")], True),
        ([("host", "")], True),
        ([], True),
        ([*OWN, ("host", "evil.example")], True),
        ([*OWN, ("x-forwarded-host", "evil.example")], True),
        ([*OWN, ("x-forwarded-host", "search.example.org")], False),
        ([*OWN, ("origin", "http://127.0.0.1:7860")], False),
        ([*OWN, ("origin", "http://127.0.0.1:3000")], True),  # another server of this machine
        ([*OWN, ("origin", "http://localhost:7860")], True),
        ([*OWN, ("origin", "https://evil.example")], True),
        ([*OWN, ("origin", "null")], True),
        ([*OWN, ("origin", "")], True),
        ([*OWN, ("origin", "http://127.0.0.1:99999")], True),
        ([*OWN, ("origin", "file://")], True),
        ([*OWN, ("origin", "https://search.example.org")], False),
        ([("host", "search.example.org"), ("origin", "https://search.example.org")], False),
        ([("host", "search.example.org"), ("origin", "https://x.search.example.org")], True),
        ([*OWN, ("sec-fetch-site", "same-origin")], False),
        ([*OWN, ("sec-fetch-site", "none"), ("sec-fetch-mode", "navigate")], False),
        ([*OWN, ("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate")], False),
        ([*OWN, ("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "no-cors")], True),
        ([*OWN, ("sec-fetch-site", "same-site"), ("sec-fetch-mode", "cors")], True),
    ],
)
def test_only_the_own_hosts_and_pages_are_answered(headers, refused):
    hosts = AllowedHosts("127.0.0.1", ["search.example.org"])
    raw = [(name.encode(), value.encode()) for name, value in headers]
    assert bool(hosts.refusal(Headers(raw=raw), "GET", "10.1.2.3")) == refused


@pytest.mark.parametrize("path", ["/config", "/gradio_api/queue/data?session_hash=a", JOIN, UPLOAD])
def test_a_page_of_another_web_site_reads_and_changes_nothing(limited, path):
    method = "GET" if "join" not in path and "upload" not in path else "POST"
    for headers in ({"origin": "https://evil.example"}, {"host": "evil.example"}):
        answer = limited().request(method, path, headers=headers)
        assert answer.status_code in (403, 421)
    assert not limited.taken
    own = limited().get("/config", headers={"origin": ADDRESS})
    assert own.status_code == 200
    for each in (answer, own):
        assert not [name for name in each.headers if name.startswith("access-control")]
        assert each.headers["x-content-type-options"] == "nosniff"
        assert each.headers["referrer-policy"] == "no-referrer"
        assert "frame-ancestors 'none'" in each.headers["content-security-policy"]
    space = limited(in_space=True).get("/")
    assert "frame-ancestors 'self' https://huggingface.co" in space.headers["content-security-policy"]
    assert "x-frame-options" not in space.headers


def basic(password, user="any"):
    return {"authorization": f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"}


def test_a_password_is_asked_for_everywhere(limited):
    visitor = limited(password="correct horse é")
    for path in ("/", "/config", "/gradio_api/queue/data", "/clip?image=a"):
        answer = visitor.get(path)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"].startswith("Basic ")
    assert visitor.post(UPLOAD, content=b"").status_code == 401
    assert visitor.get("/", headers=basic("correct horse é")).status_code == 200
    wrong = [basic("correct"), basic(""), {"authorization": "Basic ?"}, {"authorization": "Bearer a"}]
    assert [visitor.get("/", headers=each).status_code for each in wrong] == 4 * [401]
    assert [visitor.get("/", headers=basic("x")).status_code for _ in range(7)] == 6 * [401] + [429]
    assert visitor.get("/", headers=basic("correct horse é")).status_code == 429  # nobody tries on
    assert (
        limited(client="192.0.2.9", password="correct horse é")
        .get("/", headers=basic("correct horse é"))
        .status_code
        == 200
    )


@pytest.mark.parametrize(
    ("host", "content", "settings", "message"),
    [
        ("0.0.0.0", None, {}, "--host 0.0.0.0 lets other machines reach the gallery: give a password"),
        ("::", None, {}, "give a password"),
        ("192.0.2.1", None, {}, "give a password"),
        ("0.0.0.0", "short", {}, "at least 8 characters"),
        ("0.0.0.0", "", {}, "at least 8 characters"),
        ("0.0.0.0", b"caf\xe9 cr\xe8me", {}, "password, line 1: not UTF-8"),
        (None, None, {"allowed_hosts": ["http://a.example"]}, "--allowed_host takes a host's name alone"),
        (None, None, {"allowed_hosts": ["a.example:80"]}, "--allowed_host takes a host's name alone"),
        (None, None, {"trusted_proxies": ["*"]}, "--trusted_proxy takes an address or a network"),
        ("127.0.0.1", None, {}, None),
        ("localhost", None, {}, None),
        ("::1", None, {}, None),
        ("0.0.0.0", "correct horse\nsecond line", {}, None),
    ],
)
def test_a_password_or_this_machine_alone(tmp_path, monkeypatch, host, content, settings, message):
    for name in ("TPAS_PASSWORD", "SPACE_ID", "GRADIO_SERVER_NAME"):
        monkeypatch.delenv(name, raising=False)
    file = None if content is None else tmp_path / "password"
    if file:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    if message:
        with pytest.raises(ValueError, match=message.replace(".", r"\.")):
            check_access(host, file, **settings)
        return
    assert check_access(host, file, **settings) == (host, "correct horse" if content else None)
    monkeypatch.setenv("TPAS_PASSWORD", "caf\udce9 cr\udce8me")  # as Python has what is not UTF-8
    with pytest.raises(ValueError, match="TPAS_PASSWORD: it is not in UTF-8"):
        check_access(host, None)
    monkeypatch.delenv("TPAS_PASSWORD")
    monkeypatch.setenv("SPACE_ID", "you/search")
    assert check_access("0.0.0.0", None) == ("0.0.0.0", None)


def test_a_forged_forwarded_for_counts_as_nobody_else(requests, uploads, caplog):
    """Of a trusted proxy the address that it added is believed, not what the visitor wrote before it."""
    for proxies, expected in (([], "10.0.0.5"), (["10.0.0.0/8"], "203.0.113.9"), (["10.0.0.6"], "10.0.0.5")):
        app = guarded_page(requests, uploads, trusted_proxies=proxies)
        visitor = TestClient(app, base_url=ADDRESS, client=("10.0.0.5", 1))
        caplog.clear()
        visitor.get("/login", headers={"x-forwarded-for": "198.51.100.1, 203.0.113.9"})
        assert f"refused {expected} (404)" in caplog.text


def test_a_visitor_has_a_network_of_addresses():
    assert client_key("2001:db8:1:2:3::4") == client_key("2001:db8:1:2:ffff::") == "2001:db8:1:2::/64"
    assert client_key("::ffff:192.0.2.1") == "192.0.2.1"


def test_the_own_machine_is_one_that_nobody_else_can_ask(monkeypatch):
    monkeypatch.delenv("SPACE_ID", raising=False)
    assert all(map(serves_own_machine, ("127.0.0.1", "localhost", "::1")))
    assert not any(map(serves_own_machine, ("0.0.0.0", "::", "192.0.2.1")))
    assert not serves_own_machine("127.0.0.1", allowed_hosts=["search.example.org"])
    assert not serves_own_machine("127.0.0.1", trusted_proxies=["127.0.0.1"])
    monkeypatch.setenv("SPACE_ID", "you/search")
    assert not serves_own_machine("127.0.0.1")


def test_what_was_uploaded_to_a_page_that_was_killed_goes_with_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for name in ("tpas-app-killed", "tpas-app-living", "tpas-app-of-others", "else"):
        (tmp_path / name / "uploads").mkdir(parents=True)
    (tmp_path / "tpas-app-killed" / WRITER).touch()
    with held_alone(tmp_path / "tpas-app-living" / WRITER):
        remove_folders_of_killed()
    assert {path.name for path in tmp_path.iterdir()} == {"tpas-app-living", "tpas-app-of-others", "else"}
