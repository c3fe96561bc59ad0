"""The search page in a real browser: a Chromium that is on the machine, or playwright's own."""

import csv
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import tomllib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from huggingface_hub import RepoCard
from tiny_films import two_cameras, write_film

from tpas.commands.app import look_for_images, main
from tpas.data.drawn.synthetic_pab import draw_pab
from tpas.data.whole_files import WRITER
from tpas.footage.intake import build_footage
from tpas.footage.rules import FootageRules
from tpas.footage.sources import find_films
from tpas.modeling_tpas import TPASModel
from tpas.processing_tpas import TPASProcessor, load_image
from tpas.search.gallery import Gallery
from tpas.search_page.requests import Limits, SearchRequests, Session

pytest.importorskip("gradio", reason="the extra `app` is not installed")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

import uvicorn  # noqa: E402 (comes with the extra, as these do)

from tpas.search_page.clips import Clips  # noqa: E402
from tpas.search_page.page import SearchPage  # noqa: E402
from tpas.search_page.serving import guarded_page  # noqa: E402
from tpas.search_page.uploads import Uploads  # noqa: E402

ROOT = Path(__file__).parents[2]
SPACE = ROOT / "search_page" / "space"
START = ROOT / "demo_start"
PHONE = {"width": 390, "height": 844}
DESKTOP = {"width": 1280, "height": 900}
TIMEOUT = 15_000  # milliseconds


@pytest.fixture(scope="module")
def pab(tmp_path_factory):
    return draw_pab(tmp_path_factory.mktemp("drawn") / "pab", train_pairs=2, test_pairs=40, workers=1)


@pytest.fixture(scope="module")
def rows(pab):
    """The annotations of the gallery's images, each with its gallery id."""
    lines = map(json.loads, (pab / "annotation/test/attr.json").read_text().splitlines())
    return [row | {"id": row["image"].removeprefix("test/")} for row in lines]


@pytest.fixture(scope="module")
def gallery(pab, tmp_path_factory):
    model = TPASModel.from_pretrained(START).eval()
    processor = TPASProcessor.from_pretrained(START)
    return Gallery.build(model, processor, pab / "test", tmp_path_factory.mktemp("built") / "gallery")


@pytest.fixture(scope="module")
def server(pab, gallery, tmp_path_factory):
    """The address of a Space's app.py, copied and started as a Space does; and the folder of its uploads."""
    space = tmp_path_factory.mktemp("space")
    shutil.copy(SPACE / "app.py", space)
    uploads = space / "temporary"
    uploads.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    variables = {
        "TPAS_MODEL": START,
        "TPAS_GALLERY": gallery.path,
        "TPAS_ANNOTATIONS": pab / "annotation/test/attr.json",
        "GRADIO_SERVER_PORT": port,
        "TMPDIR": uploads,
    }
    environment = os.environ | {name: str(value) for name, value in variables.items()}
    log = (space / "log").open("w+")
    process = subprocess.Popen([sys.executable, "app.py"], cwd=space, env=environment, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}/"
    for _ in range(300):
        if process.poll() is not None or "images at" in (space / "log").read_text():
            break
        time.sleep(0.2)
    else:
        process.kill()
    started = process.poll() is None
    if not started:
        process.wait()
        pytest.fail((space / "log").read_text())
    yield address, uploads
    process.terminate()
    process.wait(timeout=20)
    log.close()
    text = (space / "log").read_text()
    assert "a request failed" not in text
    assert "Traceback" not in text
    assert not list(uploads.glob("tpas-app-*"))


@pytest.fixture(scope="module")
def browser():
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    found = next(filter(None, map(shutil.which, names)), None)
    # Chromium's sandbox does not start for root, as in a container.
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with playwright.sync_playwright() as driver:
        if found is None and not Path(driver.chromium.executable_path).exists():
            pytest.skip(f"no browser: neither {', '.join(names)} nor playwright's own")
        chromium = driver.chromium.launch(executable_path=found, args=arguments)
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser, server):
    """Opens the page as another person would each time; no request may go anywhere but to its server."""
    address, _ = server
    visitors, requests, mistakes = [], [], []

    def open_page(viewport=DESKTOP, **context):
        visitors.append(browser.new_context(viewport=viewport, **context))
        page = visitors[-1].new_page()
        page.set_default_timeout(TIMEOUT)
        page.on("request", lambda request: requests.append(request.url))
        page.on("pageerror", lambda error: mistakes.append(str(error)))
        page.goto(address)
        page.wait_for_selector(".tpas-welcome")
        return page

    yield open_page
    for visitor in visitors:
        visitor.close()
    assert requests
    assert not [url for url in requests if not url.startswith((address, "data:", "blob:"))]
    assert not mistakes


def search(page, *texts):
    page.fill("#tpas-texts textarea", "\n".join(texts))
    page.click("#tpas-search")
    answered(page)


def answered(page):
    """Waits for the last stage of an answer."""
    page.wait_for_selector(".tpas-cards")
    page.wait_for_selector(".tpas-reading", state="detached")


def upload(page, *files):
    page.get_by_text("My own images").click()
    # Gradio's button holds no file input before it is clicked.
    with page.expect_file_chooser() as chooser:
        page.locator("#tpas-upload").click()
    chooser.value.set_files([str(file) for file in files])


def downloaded(page, button):
    with page.expect_download() as download:
        page.get_by_text(button).click()
    return download.value.suggested_filename, Path(download.value.path()).read_text(encoding="utf-8")


def well_found(gallery, rows):
    """A row whose image the model finds first, by the library's own search."""
    hits = gallery.search([row["caption"][0] for row in rows], top_k=1)
    return next(row for row, (hit,) in zip(rows, hits, strict=True) if hit.id == row["id"])


def test_type_search_look_and_save(visit, gallery, rows):
    page, row = visit(), well_found(gallery, rows)
    search(page, row["caption"][0])
    cards = page.locator(".tpas-card")
    assert cards.count() == 12
    assert cards.first.get_attribute("title") == row["id"]
    assert row["scene"] in cards.first.inner_text()

    cards.first.click()
    page.wait_for_selector("#tpas-dialog .tpas-words")
    heat = page.locator(".tpas-layer")
    switch = page.get_by_label("Heat map over the image")
    assert heat.is_hidden()  # the image alone comes first
    switch.check()
    assert heat.is_visible()
    switch.uncheck()
    assert heat.is_hidden()
    assert heat.evaluate("image => image.complete && image.naturalWidth") == 6  # the model's 6 x 6 patches
    whole = heat.get_attribute("src")
    word = page.locator(".tpas-words label").nth(2)
    word.click()
    assert heat.get_attribute("src") not in (whole, None)
    assert heat.is_visible()
    assert f"“{word.inner_text()}”" in page.locator(".tpas-caption").inner_text()
    numbers = re.findall(r"[+−]\d\.\d\d", page.locator(".tpas-sides").inner_text())
    assert numbers
    heat.evaluate("image => image.remove()")  # as where the image's file is gone
    page.locator(".tpas-words label").nth(1).click()

    page.keyboard.press("Escape")
    assert page.locator("#tpas-dialog").is_hidden()
    name, content = downloaded(page, "Save as CSV")
    assert name == "tpas-results.csv"
    table = list(csv.DictReader(content.splitlines()))
    assert len(table) == 40  # of all pages
    assert table[0]["image"] == row["id"]
    assert table[0]["text"] == row["caption"][0]
    name, content = downloaded(page, "Save as answer file")
    assert name == "answer.txt"
    assert content == " ".join(Path(line["image"]).stem for line in table[:10]) + "\n"


def test_the_answers_are_saved_as_an_image(visit, tmp_path):
    page = visit()
    search(page, "a man in a coat", "a woman in a red dress")
    for _ in range(2):  # the same once more is saved once more
        with page.expect_download() as download:
            page.get_by_text("Save as image").click()
        assert download.value.suggested_filename == "tpas-results.png"
        download.value.save_as(tmp_path / "sheet.png")
        sheet = load_image(tmp_path / "sheet.png")
    assert sheet.width > sheet.height > 400  # two rows of six images


def test_by_keyboard_alone_on_a_phone(visit, rows):
    page = visit(PHONE)
    page.get_by_text("Settings", exact=True).click()
    page.locator("#tpas-texts textarea").focus()
    page.keyboard.type("A woman in a red dress at " + 80 * "W")  # an address is as long
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("a man")
    page.keyboard.press("Enter")
    answered(page)
    assert page.locator(".tpas-answers section").count() == 2
    # The settings push the answers out of sight, and the page has to bring them back.
    in_sight = f"document.querySelector('.tpas-answers').getBoundingClientRect().top < {PHONE['height']} / 2"
    page.wait_for_function(in_sight)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    for _ in range(30):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.matches('.tpas-card')"):
            break
    card = page.evaluate("document.activeElement.title")
    page.keyboard.press("Enter")
    page.wait_for_selector("#tpas-dialog .tpas-words")
    before = page.locator(".tpas-layer").get_attribute("src")
    page.keyboard.press("ArrowRight")
    assert page.locator(".tpas-layer").get_attribute("src") != before
    assert page.evaluate("document.querySelector('#tpas-dialog').scrollWidth") <= PHONE["width"]
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.title") == card


def test_texts_that_claim_one_image_are_resolved(visit, rows):
    page, caption = visit(), rows[0]["caption"][0]
    search(page, caption, f"{caption} and")
    assert page.locator(".tpas-sca").inner_text().startswith("2 of 2 texts have the same first image")
    page.get_by_text("Resolve by SCA").click()  # it is offered, not imposed
    page.wait_for_selector("text=Show without SCA")
    text = page.locator(".tpas-sca").inner_text()
    assert text.startswith("2 of 2 texts had the same first image as another text.")
    assert page.locator("h2 + p .tpas-moved").count() == 1
    assert page.locator(".tpas-card .tpas-moved").first.inner_text() in ("SCA 2 → 1", "SCA 1 → 2")
    firsts = [
        page.locator(".tpas-cards").nth(answer).locator("button").first.get_attribute("title")
        for answer in (0, 1)
    ]
    assert firsts[0] != firsts[1]


def test_a_filter_acts_at_once_and_similar_images_keep_a_way_back(visit, rows):
    behaviour = {row["id"]: "normal" if "normal" in row else "anomaly" for row in rows}
    page = visit()
    search(page, "a man in a blue jacket")
    page.get_by_text("Filter", exact=True).click()
    page.locator("#tpas-behaviour input").click()
    page.get_by_role("option", name="anomaly").click()
    page.wait_for_url("**/?q=a+man+in+a+blue+jacket&behaviour=anomaly")
    answered(page)

    def titles():
        return page.locator(".tpas-card").evaluate_all("cards => cards.map(card => card.title)")

    before = titles()
    assert {behaviour[title] for title in before} == {"anomaly"}
    page.locator(".tpas-card").nth(1).click()
    page.get_by_text("Find similar images").click()
    page.wait_for_selector(f"h2:has-text('Similar to {before[1]}')")
    similar = titles()
    assert before[1] not in similar
    assert {behaviour[title] for title in similar} == {"anomaly"}
    page.locator(".tpas-card").first.click()
    page.wait_for_selector("#tpas-dialog p:has-text('cosine')")
    assert page.locator(".tpas-words").count() == 0
    page.keyboard.press("Escape")

    page.get_by_text("← Back").click()
    page.wait_for_selector(".tpas-answers h2:has-text('a man in a blue jacket')")
    answered(page)
    assert titles() == before
    page.reload()
    answered(page)
    assert titles() == before
    assert page.locator("#tpas-texts textarea").input_value() == "a man in a blue jacket"
    assert page.locator(".tpas-wanted").inner_text() == "Of the gallery only: behaviour anomaly."


def test_images_are_liked_or_not_by_keyboard_and_touch_and_the_address_holds_it(visit, rows):
    page = visit(PHONE, has_touch=True)
    search(page, rows[0]["caption"][0])
    titles = "cards => cards.map(card => card.title)"
    first, second, *_ = page.locator(".tpas-card").evaluate_all(titles)
    page.locator(f'[data-mark="disliked {first}"]').tap()
    page.wait_for_selector(".tpas-said")
    answered(page)
    assert first not in page.locator(".tpas-card").evaluate_all(titles)
    like = page.locator(f'[data-mark="liked {second}"]')
    like.focus()
    page.keyboard.press("Space")
    page.wait_for_selector("[aria-pressed=true]")
    answered(page)
    assert page.evaluate("document.activeElement.dataset.mark") == f"liked {second}"
    page.reload()
    page.wait_for_selector("[aria-pressed=true]")
    answered(page)
    page.get_by_role("button", name=f"{first}: take back").tap()
    page.wait_for_function("document.querySelectorAll('.tpas-taken').length == 1")
    answered(page)
    page.get_by_text("What must be seen, and what not").tap()
    page.fill("#tpas-must textarea", "a red hat, a bag")
    page.press("#tpas-must textarea", "Enter")
    page.wait_for_function("document.querySelectorAll('.tpas-taken').length == 3")  # what is liked stays
    assert "+ a bag" in page.locator(".tpas-card").first.inner_text()
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]


def test_by_touch_a_phone_jumps_turns_pages_and_saves_an_image(visit, pab):
    page = visit(PHONE, has_touch=True)
    search(page, "a man", "a woman", "a child")
    page.locator(".tpas-jump button").nth(2).tap()
    page.wait_for_function(
        "Math.abs(document.querySelector('#tpas-answer-2').getBoundingClientRect().top) < 100"
    )
    assert (
        page.evaluate("document.querySelector('.tpas-jump').getBoundingClientRect().top") == 0
    )  # stays in sight
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    page.get_by_text("More →").tap()
    page.wait_for_selector("text=Page 2 of 4")
    assert "Ranks 13 to 24 of 40 images." in page.locator(".tpas-answers section").first.inner_text()
    card = page.locator(".tpas-cards li").first
    name = card.locator(".tpas-file").inner_text()
    with page.expect_download() as download:
        card.locator(".tpas-download").tap()
    assert download.value.suggested_filename == name
    assert load_image(download.value.path()).size == load_image(next(pab.rglob(name))).size


def test_an_example_is_searched(visit, rows):
    page = visit()
    example = page.locator(".tpas-examples a").first
    text = example.inner_text()
    assert text in [row["caption"][0] for row in rows]
    example.click()
    page.wait_for_selector(f".tpas-answers h2:has-text('{text}')")
    assert page.locator("#tpas-texts textarea").input_value() == text


def test_mistakes_are_explained_in_place(visit, tmp_path):
    page = visit()
    page.click("#tpas-search")
    page.wait_for_selector("[role=alert]:has-text('Write what you are looking for')")
    (tmp_path / "letter.png").write_text("not an image")
    upload(page, tmp_path / "letter.png")
    page.wait_for_selector("[role=alert]:has-text('letter.png: not an image')")


def test_uploads_are_seen_by_nobody_else_and_stay_on_no_disk(visit, server, pab, rows, tmp_path):
    _, uploads = server
    mine = tmp_path / "holiday.png"
    load_image(pab / rows[0]["image"]).rotate(3).save(mine)
    alice, bob = visit(), visit()
    upload(alice, mine)
    alice.wait_for_selector(".tpas-own .tpas-strip img")
    search(alice, rows[0]["caption"][0])  # from now on in both
    titles = alice.locator(".tpas-card").evaluate_all("cards => cards.map(card => card.title)")
    assert "holiday.png" in titles[:3]

    bob.get_by_text("My own images").click()
    bob.get_by_text("both", exact=True).click()
    search(bob, rows[0]["caption"][0])
    assert "holiday.png" not in bob.content()
    assert bob.locator(".tpas-own .tpas-strip").count() == 0
    (folder,) = uploads.glob("tpas-app-*")
    written = [file for file in folder.rglob("*") if file.is_file() and file.stat().st_size]
    assert [file.name for file in written] == [WRITER]  # which says whose folder it is

    alice.locator(
        ".tpas-own .tpas-strip a"
    ).click()  # an image as the query, of which the address keeps nothing
    alice.wait_for_selector("h2:has-text('Similar to holiday.png')")
    assert alice.url.endswith("?own=0")
    alice.get_by_text("Remove my images").click()
    alice.wait_for_selector(".tpas-own .tpas-strip", state="detached")
    assert "holiday.png" not in alice.content()


def test_the_browser_itself_refuses_to_send_elsewhere(browser, server):
    page = browser.new_page()
    page.goto(server[0])
    directive = page.evaluate(
        """() => new Promise((resolve) => {
            const report = (event) => resolve(event.effectiveDirective);
            document.addEventListener("securitypolicyviolation", report);
            const image = new Image();
            image.src = "https://example.org/pixel.png";
        })"""
    )
    page.close()
    assert directive == "img-src"


def status_of(address, data=None):
    request = Request(address, data=data, headers={"Content-Type": "application/json"})
    try:
        with urlopen(request, timeout=10) as response:
            return response.status, response.read().decode()
    except HTTPError as error:
        return error.code, error.read().decode(errors="replace")


def test_files_are_not_served(server, pab, rows, gallery):
    address, _ = server
    image = pab / rows[0]["image"]
    assert load_image(image).size == (192, 192)
    files = (image, gallery.path / "manifest.json", ROOT / "app.py", "/etc/passwd")
    for file in files:
        for route in ("file=", "file/", "gradio_api/file=", "gradio_api/file/", "gradio_api/proxy="):
            assert status_of(f"{address}{route}{file}")[0] in (403, 404), (route, file)
    assert status_of(f"{address}gradio_api/file=http://127.0.0.1/")[0] == 404
    assert status_of(f"{address}gradio_api/info")[1].count("search") == 0  # nothing to call from outside


def test_nothing_passes_by_the_queue_or_reaches_ffmpeg(server):
    address, _ = server
    body = json.dumps({"data": [None], "fn_index": 0, "session_hash": "mallory"}).encode()
    for route in ("run/predict", "api/predict"):
        assert status_of(f"{address}gradio_api/{route}", body)[0] == 404
    assert status_of(f"{address}gradio_api/process_recording", b"{}")[0] == 404
    assert status_of(f"{address}monitoring/summary")[0] == 404


def test_a_folder_is_opened_and_a_port_that_is_taken_said_in_one_line(gallery, pab, tmp_path):
    images = shutil.copytree(pab / "train", tmp_path / "images")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        at = rf"127\.0\.0\.1, port {port}"
        film = [str(write_film(tmp_path / "cam.mp4", [0.0, 0.1])), "--detector", "none"]
        for place in (["--gallery", str(gallery.path)], [str(gallery.path)], [str(images)], film):
            with pytest.raises(SystemExit, match=f"tpas app: cannot listen at {at}: .*--port"):
                main([*place, "--model", str(START), "--port", str(port)])
    (made,) = (tmp_path / "images.gallery").iterdir()
    assert len(Gallery.open(made)) == 2
    (made,) = (tmp_path / "cam.mp4.gallery").iterdir()
    assert Gallery.open(made).stored.moment(0).camera == "cam.mp4"


@pytest.fixture
def films(model, processor, tmp_path):
    """The address of a page over two visits before each of two cameras."""
    folder = two_cameras(tmp_path)
    rules = FootageRules(detector=f"boxes:{folder / 'boxes.jsonl'}", views=1)
    requests = SearchRequests(
        build_footage(find_films(folder / "films"), tmp_path / "gallery", model, processor, rules)
    )
    page = guarded_page(requests, Uploads(tmp_path / "uploads", 1), clips=Clips(tmp_path / "clips", requests))
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(page, log_level="warning", ws="none"))
    serving = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    serving.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
    server.should_exit = True
    serving.join(10)
    listening.close()


def test_a_moment_is_played_where_its_box_is_drawn(films, browser):
    visitor = browser.new_context(viewport=DESKTOP)
    page = visitor.new_page()
    page.set_default_timeout(TIMEOUT)
    page.goto(f"{films}?q=a+man+runs")
    answered(page)
    assert page.locator(".tpas-card").count() == 4
    page.get_by_text("Filter", exact=True).click()
    page.fill("#tpas-from textarea, #tpas-from input", "0:05")
    page.keyboard.press("Enter")
    page.wait_for_url("**/?q=a+man+runs&from=00%3A00%3A05.0")
    answered(page)
    cameras = page.locator(".tpas-moment").all_inner_texts()
    assert sorted(cameras) == ["cam1.mp4", "cam2.avi"]
    assert page.locator(".tpas-when").first.inner_text().startswith("00:00:07.1 to 00:00:09.0")
    page.locator(".tpas-card").first.click()
    page.wait_for_selector(".tpas-words")
    page.wait_for_selector("#tpas-dialog .tpas-box:visible")
    stands, seen = page.locator("video").evaluate("video => [video.currentTime, Number(video.dataset.at)]")
    assert stands == pytest.approx(seen, abs=0.05)
    page.locator("video").evaluate("video => video.play()")
    page.wait_for_selector("#tpas-dialog .tpas-box", state="hidden")  # the person has gone on
    page.get_by_text("More of this person").click()
    page.wait_for_selector("h2:has-text('Similar to 00:00:07.1')")
    assert page.locator(".tpas-moment").all_inner_texts() == cameras[1:]
    visitor.close()


def test_images_that_were_moved_are_missed_at_the_start(pab, tmp_path, caplog):
    model, processor = TPASModel.from_pretrained(START), TPASProcessor.from_pretrained(START)
    images = shutil.copytree(pab / "train", tmp_path / "images")
    kinds = {"tokens": {}, "thumbnails": {"thumbnail_size": 32}, "neither": {"tokens": None}}
    for name, kept in kinds.items():
        Gallery.build(model, processor, images, tmp_path / name, **kept)
    images.rename(tmp_path / "moved")
    for name in kinds:
        look_for_images(Gallery.open(tmp_path / name, images_root=tmp_path / "moved"))
    look_for_images(Gallery.open(tmp_path / "thumbnails"))
    assert not caplog.records
    look_for_images(Gallery.open(tmp_path / "tokens"))
    assert "--images_root" in caplog.text
    with pytest.raises(FileNotFoundError, match="--images_root names the folder"):
        look_for_images(Gallery.open(tmp_path / "neither"))


def last_of(shown):
    """The answers in the last of what a handler yields."""
    *_, (_, answers, *_) = shown
    return answers


def test_too_many_requests_of_one_address_are_refused(gallery, tmp_path):
    limits = Limits(requests_a_minute=2)
    page = SearchPage(SearchRequests(gallery, limits=limits), Uploads(tmp_path, 1))
    request = SimpleNamespace(client=SimpleNamespace(host="192.0.2.1"), headers={})
    neighbour = SimpleNamespace(client=SimpleNamespace(host="192.0.2.2"), headers={})
    question = (Session(), "a man in a coat", "gallery", *5 * ["any"], *4 * [None], 3, True, True, None, None)
    answers = [last_of(page.search(request, *question)) for _ in range(3)]
    assert ["tpas-cards" in answer for answer in answers] == [True, True, False]
    assert "More than 2 requests in a minute" in answers[2]
    assert "tpas-cards" in last_of(page.search(neighbour, *question))
    own = SearchPage(SearchRequests(gallery, limits=replace(limits, own_machine=True)), Uploads(tmp_path, 1))
    assert all("tpas-cards" in last_of(own.search(request, *question)) for _ in range(4))


def test_a_line_is_a_text_whatever_else_ends_one_in_unicode(gallery, tmp_path):
    page, request = (
        SearchPage(SearchRequests(gallery), Uploads(tmp_path, 1)),
        SimpleNamespace(client=SimpleNamespace(host="::1"), headers={}),
    )
    question = ("a man\u2028in red\n\na boy", "gallery", *5 * ["any"], *4 * [None], 3, True, True, None, None)
    shown = last_of(page.search(request, Session(), *question))
    assert shown.count("<section") == 2


def test_a_failure_is_told_and_logged(gallery, tmp_path, caplog):
    page = SearchPage(SearchRequests(gallery), Uploads(tmp_path, 1))
    page.requests.search_in_stages = Mock(side_effect=ZeroDivisionError("division by zero"))
    request = SimpleNamespace(client=SimpleNamespace(host="192.0.2.1"), headers={})
    shown = last_of(
        page.search(
            request, Session(), "a man", "gallery", *5 * ["any"], *4 * [None], 3, True, True, None, None
        )
    )
    assert "The server could not do this" in shown
    assert "division by zero" in caplog.text
    assert "division" not in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--gallery"),
        (["--gallery", "nowhere", "--model", str(START)], "nowhere"),
        (["--gallery", "nowhere", "--model", str(START), "--annotations", "no.json"], "no such annotation"),
    ],
)
def test_what_is_missing_is_said_in_one_line(arguments, message, monkeypatch, capsys):
    for name in ("TPAS_GALLERY", "TPAS_MODEL", "TPAS_ANNOTATIONS"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code not in (0, None)
    assert message in f"{stop.value} {capsys.readouterr().err}"


def test_a_space_is_described_as_the_hub_reads_it():
    card = RepoCard((SPACE / "README.md").read_text(encoding="utf-8"), ignore_metadata_errors=False)
    pins = dict(re.findall(r"^(\S+)==(\S+)$", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    data = card.data.to_dict()
    assert (data["sdk"], data["sdk_version"]) == ("gradio", pins["gradio"])
    assert (SPACE / data["app_file"]).is_file()
    assert len(data["short_description"]) <= 60  # the Hub takes no more
    wheel = f"tpas[app] @ https://huggingface.co/spaces/OWNER/NAME/resolve/main/tpas-{project['version']}-py3"
    assert wheel in (SPACE / "requirements.txt").read_text()
