"""The page over films: answers with camera and time, filters, clips of the gallery's own moments alone."""

import shutil
from dataclasses import replace

import av
import numpy as np
import pytest
from starlette.testclient import TestClient
from tiny_films import two_cameras

from tpas.figures.contact_sheet import write_contact_sheet
from tpas.figures.results import ResultRow, plot_result_rows
from tpas.footage.intake import build_footage
from tpas.footage.rules import FootageRules
from tpas.footage.sources import find_films
from tpas.search.feedback import Feedback
from tpas.search.gallery import Gallery
from tpas.search_page.access import AllowedHosts
from tpas.search_page.clips import Clips, span_of, why_no_clip
from tpas.search_page.filters import written
from tpas.search_page.questions import Question, RequestError
from tpas.search_page.rendering import Renderer
from tpas.search_page.request_limits import RequestLimits
from tpas.search_page.requests import Limits, SearchRequests, Session
from tpas.search_page.uploads import Uploads

ADDRESS = "http://127.0.0.1:7860"


@pytest.fixture(scope="module")
def filmed(tmp_path_factory):
    return two_cameras(tmp_path_factory.mktemp("filmed"))


@pytest.fixture
def requests(filmed, model, processor, tmp_path):
    """The page's requests over a gallery of films that may be changed."""
    films = shutil.copytree(filmed / "films", tmp_path / "films")
    rules = FootageRules(detector=f"boxes:{filmed / 'boxes.jsonl'}", views=2)
    gallery = build_footage(find_films(films), tmp_path / "gallery", model, processor, rules)
    return SearchRequests(gallery, limits=Limits(own_machine=False))


def ask(requests, **said):
    """A session in which an address was asked."""
    session, asked = Session(), Question.of_address({"q": "a man runs"} | said)
    requests.search(session, asked.texts, wanted=asked.wanted)
    return session


def moments(session):
    return sorted((hit.moment.camera, round(hit.moment.start_s)) for hit in session.result[0])


def test_an_answer_says_camera_and_time(requests):
    session = ask(requests)
    shown = Renderer(requests).answers(session)
    assert moments(session) == [("cam1.mp4", 1), ("cam1.mp4", 7), ("cam2.avi", 1), ("cam2.avi", 7)]
    first = next(hit.moment for hit in session.result[0] if hit.moment.camera == "cam1.mp4")
    for text in ("cam1.mp4", "cam2.avi", "The best 4 visits", written(first.started)):
        assert text in shown
    clip = Renderer(requests)._clip(next(hit for hit in session.result[0] if hit.moment == first))
    assert clip["at"] == pytest.approx(first.seen_s - span_of(first)[0], abs=1e-3)
    begin_s = first.start_s - span_of(first)[0]
    for at, left, top, width, height in clip["boxes"]:  # the walker goes to the right, 30 pixels in a second
        assert left == pytest.approx(100 * (23 + 30 * (at - begin_s)) / 160, abs=2)
        assert (top, width, height) == pytest.approx((25, 10, 100 * 50 / 120), abs=1)
    assert [clip["boxes"][end][0] for end in (0, -1)] == pytest.approx([begin_s, begin_s + 1.9], abs=0.1)


def test_a_visit_that_is_not_the_one_is_shown_by_no_other_view(requests):
    first = ask(requests).result[0][0]
    views = [moment for moment in requests.gallery.stored.moments() if moment[1].visit == first.moment.visit]
    assert len(views) == 2
    left = ask(requests).result[0][1:]
    found = requests.search(Session(), ["a man runs"], feedback=Feedback.of(disliked=[first.id]))[0]
    assert {hit.moment.visit for hit in found} == {hit.moment.visit for hit in left}


def test_a_sheet_says_time_and_place(requests, tmp_path):
    result = ask(requests).result
    (hits,) = result
    first = hits[0].moment
    scene = np.asarray(hits[0].scene()).astype(int)
    assert scene.shape == (120, 160, 3)
    left, top, width, height = map(round, first.box)
    yellow = (scene[..., 0] > 200) & (scene[..., 1] > 150) & (scene[..., 2] < 110)  # the box is drawn
    assert yellow[top, left : left + width].all()
    assert yellow[top : top + height, left].all()
    assert yellow.sum() < 4 * (width + height)
    write_contact_sheet(tmp_path / "found.html", result)
    sheet = (tmp_path / "found.html").read_text(encoding="utf-8")
    assert [sheet.count(str(hit.moment)) for hit in hits] == [1, 1, 1, 1]
    known = next(hit.moment for hit in hits if hit.moment.started)
    assert known.started.strftime("%Y-%m-%d %H:%M:%S") in sheet
    assert sheet.count('class="scene"') == 4
    hits[0].path.with_name(first.frame).unlink()
    assert hits[0].scene() is None
    write_contact_sheet(tmp_path / "found.html", result)
    assert (tmp_path / "found.html").read_text(encoding="utf-8").count('class="scene"') == 3
    drawn = [text.get_text() for text in plot_result_rows([ResultRow("a man runs", hits)]).texts]
    assert [text for text in drawn if text.startswith("cam")] == [hit.moment.camera for hit in hits]
    assert [text.split(" · ")[-1] for text in drawn if " · " in text] == [
        str(hit.moment).split()[0] for hit in hits
    ]


def test_a_camera_and_times_are_filtered_by(requests):
    assert requests.facts.choices("camera") == {"cam1.mp4": 2, "cam2.avi": 2}  # visits, not images
    assert requests.facts.choices("folder") == {}
    assert moments(ask(requests, camera="cam2.avi", to="0:05")) == [("cam2.avi", 1)]
    assert moments(ask(requests, **{"from": "2026-11-26 08:00:05+00:00"})) == [("cam1.mp4", 7)]
    assert moments(ask(requests, to="2026-11-27")) == [("cam1.mp4", 1), ("cam1.mp4", 7)]
    with pytest.raises(RequestError, match="No image passes the filter"):
        ask(requests, **{"from": "00:01:12"})
    requests.gallery.delete([name for name in requests.gallery.ids if name.startswith("cam1")])
    requests._look_at_rows()
    with pytest.raises(RequestError, match="No film says when it began"):
        ask(requests, to="2026-11-27")


def test_more_of_a_person_are_visits_before_other_cameras(requests):
    session = ask(requests)
    best = session.result[0][0]
    other = ({"cam1.mp4", "cam2.avi"} - {best.moment.camera}).pop()
    requests.similar(session, best.id)
    assert moments(session) == [(other, 1), (other, 7)]
    asked = Question.of_address({"like": best.id, "camera": best.moment.camera})
    requests.similar(session, best.id, wanted=asked.wanted)
    (again,) = session.result[0]  # the other visit before the camera that was chosen
    assert (again.moment.camera, again.moment.visit) != (other, best.moment.visit)


def test_a_clip_is_given_of_the_gallerys_own_moments_alone(requests, tmp_path, monkeypatch):
    async def nothing(scope, receive, send):
        raise AssertionError("a clip is no question of Gradio's")

    visitor = TestClient(
        RequestLimits(
            nothing,
            hosts=AllowedHosts("127.0.0.1"),
            uploads=Uploads(tmp_path / "uploads", 1),
            limits=Limits(),
            questions={},
            clips=Clips(tmp_path / "clips", requests),
        ),
        base_url=ADDRESS,
    )

    def clip(image, **headers):
        return visitor.get("/clip", params={"image": image}, headers=headers)

    monkeypatch.setattr("tpas.search_page.request_limits.CLIPS_A_MINUTE", 3)
    for wrong in (
        "",
        "/etc/passwd",
        str(tmp_path / "films/cam1.mp4"),
        "../films/cam1.mp4",
        "http://192.0.2.7/a.mp4",
    ):
        answer = clip(wrong)
        assert (answer.status_code, answer.text) == (404, "Refused: a clip that there is not.")
    assert not list((tmp_path / "clips").iterdir())
    name = next(name for name in requests.gallery.ids if name.startswith("cam2.avi/2"))  # MPEG-4 in AVI
    answer = clip(name)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "video/mp4")
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    (tmp_path / "given.mp4").write_bytes(answer.content)
    moment = requests.moment(name)
    with av.open(str(tmp_path / "given.mp4")) as opened:
        assert opened.streams.video[0].codec_context.name == "h264"
        frames = {round(frame.time + span_of(moment)[0], 1): frame for frame in opened.decode(video=0)}
    assert (min(frames), max(frames)) == pytest.approx((moment.start_s - 1, moment.end_s + 1), abs=0.11)
    left, top, width, height = map(int, moment.box)
    seen = frames[round(moment.seen_s, 1)].to_ndarray(format="rgb24")[top : top + height, left : left + width]
    assert seen[..., 2].mean() > 2 * seen[..., 0].mean()  # the walker in blue stands in the box
    part = clip(name, range="bytes=10-19")
    assert (part.status_code, part.content) == (206, answer.content[10:20])

    cut = [clip(name).status_code for name in requests.gallery.ids]
    assert sorted(cut) == 3 * [200] + 3 * [429]  # nothing was counted of what there is not
    assert clip(name).status_code == 200  # which is there
    Gallery.open(requests.gallery.path).delete([name])
    assert clip(name).status_code == 404
    assert clip(next(iter(requests.gallery.ids))).status_code == 429  # the clips from before are gone
    assert not list((tmp_path / "clips").iterdir())


def test_what_no_browser_can_be_given_is_said(requests, tmp_path):
    session = ask(requests)
    (tmp_path / "films/cam1.mp4").unlink()
    (tmp_path / "films/cam2.avi").write_text("no film")
    clips = Clips(tmp_path / "clips", requests)
    for hit in session.result[0]:
        moment = hit.moment
        gone = hit.moment.camera == "cam1.mp4"
        shown = Renderer(requests).explanation(session, 0, hit.id, "a man", hit, None)
        assert ("<video" in shown, "The film is no longer where it was." in shown) == (not gone, gone)
        assert 'alt="The whole frame"' in shown or not gone
        with pytest.raises(RequestError, match="no longer where it was" if gone else "cannot be read"):
            clips.cut(hit.id)
    assert not list((tmp_path / "clips").iterdir())
    assert why_no_clip(replace(moment, film="rtsp://camera/1")).startswith("A stream is not kept")


@pytest.mark.parametrize("index", ["faiss", "milvus"])
@pytest.mark.filterwarnings("ignore:Deprecated call to `pkg_resources:DeprecationWarning")
def test_cameras_and_times_are_filtered_by_in_every_index(requests, model, processor, tmp_path, index):
    pytest.importorskip({"faiss": "faiss", "milvus": "milvus_lite"}[index])
    index = index if index == "faiss" else str(tmp_path / "milvus.db")
    exact = requests.gallery
    exact.write_index(index)
    indexed = Gallery.open(exact.path, model, processor, index=index)
    for chosen in ({}, {"camera": "cam2*"}, {"since": 5.0}, {"camera": "cam1.mp4", "until": 5.0}):
        rows = exact.rows_of_moments(**chosen) if chosen else None
        expected, found = (gallery.search(["a man runs"], rows=rows)[0] for gallery in (exact, indexed))
        assert [(hit.id, hit.moment, hit.score) for hit in found] == [
            (hit.id, hit.moment, hit.score) for hit in expected
        ]
        assert len(expected) == {0: 4, 1: 2, 2: 1}[len(chosen)]
