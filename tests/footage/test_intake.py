"""From films to a gallery of moments: a kill loses nothing, nothing comes twice, each visit answers once."""

import json
import os
import re
import shutil
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import av
import pytest
import torch
from PIL import Image
from tiny_films import COLOURS, TRUTH, walkers, write_boxes, write_film, write_walk
from tiny_inputs import interrupted_before_the_manifest

from tpas.__main__ import main as tpas_command
from tpas.data.drawn.drawn_footage import draw_footage
from tpas.data.moments import Moment
from tpas.footage.clips import clip_name, cut_clip
from tpas.footage.comparison import compare_visits
from tpas.footage.intake import build_footage, look_through
from tpas.footage.records import FOUND, FilmRecord, boxes_between, visits_of
from tpas.footage.retention import forget, forget_images, older_visits
from tpas.footage.rules import FootageRules
from tpas.footage.sources import Source, find_films
from tpas.search.gallery import Gallery
from tpas.search.manifest import FOOTAGE

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def filmed(tmp_path_factory):
    """A film of three visits, and the rules by which their boxes are found; not to be changed."""
    folder = tmp_path_factory.mktemp("filmed")
    boxes = write_boxes(folder / "boxes.jsonl")
    film = write_walk(folder / "cam1.mp4", boxes, metadata={"creation_time": "2026-11-26T08:00:00Z"})
    return film, FootageRules(detector=f"boxes:{folder / 'boxes.jsonl'}")


@pytest.fixture
def built(filmed, model, processor, tmp_path):
    film, rules = filmed
    return build_footage(find_films(film), tmp_path / "gallery", model, processor, rules)


def spans(gallery_path):
    return [(visit["start_s"], visit["end_s"]) for visit in visits_of(gallery_path)["visits"]]


def test_each_visit_is_one_moment_and_answers_once(built, filmed):
    assert spans(built.path) == [pytest.approx(span, abs=0.11) for span in TRUTH]
    assert len(built) > 3  # several views of each
    (hits,) = built.search(["a man runs"], top_k=10)
    assert sorted(hit.moment.track for hit in hits) == [1, 2, 3]
    assert [hit.rank for hit in hits] == [1, 2, 3]
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    every = built.search(["a man runs"], top_k=10, rows=range(len(built)), shortlist=len(built))[0]
    assert {hit.id for hit in every} == {hit.id for hit in hits}
    of_all = {hit.moment.track: hit.score for hit in hits}
    for row, moment in built.stored.moments():  # by itself, no view of a visit is better than the one shown
        (alone,) = built.search(["a man runs"], rows=[row])[0]
        assert alone.score <= of_all[moment.track] + 1e-5
    first = min(hits, key=lambda hit: hit.moment.track)
    shown = first.moment.to_json()
    assert list(shown) == ["camera", "start_s", "end_s", "track", "box"]
    assert (shown["camera"], shown["track"]) == ("cam1.mp4", 1)
    assert shown["box"][1:] == [30, 16, 50]
    assert str(first.moment) == "00:00:01.1 to 00:00:04.0 cam1.mp4"
    assert first.moment.film == str(filmed[0])
    assert first.image().size == (75, 75)
    with Image.open(first.path.with_name(first.moment.frame)) as frame:
        assert frame.size == (160, 120)


def test_where_the_person_of_a_moment_was_is_known_at_each_time(built):
    moment = next(moment for _, moment in built.stored.moments() if moment.track == 2)  # 25 pixels a second
    boxes = boxes_between(built.path, moment, 9.0, 10.25)
    assert [boxes[0][0], boxes[-1][0]] == [9.0, 10.25]
    assert [box for _, box in boxes] == [
        pytest.approx((20 + 25 * (time_s - 8), 30, 16, 50), abs=2) for time_s, _ in boxes
    ]
    times = [time_s for time_s, _ in boxes_between(built.path, moment)]
    assert (times[0], times[-1]) == (moment.start_s, moment.end_s)
    assert not boxes_between(built.path, moment, 12.5, 13.0)
    early = built.path / FOOTAGE / moment.camera / FOUND
    early.write_text(re.sub(r', "boxes": .*(?=}})', "", early.read_text()))  # as earlier versions wrote it
    assert not boxes_between(built.path, moment)
    assert len(visits_of(built.path)["visits"]) == 3


@pytest.mark.filterwarnings("ignore:3 queries share 1 candidate")
def test_sca_resolves_collisions_of_visits(built):
    texts = ["a man runs", "a woman runs", "a person falls"]
    for shortlist in range(1, len(built) + 1):  # the texts' lists hold views of differently many visits
        for top_k in (2, 3):
            plain = built.search(texts, top_k=top_k, shortlist=shortlist)
            resolved = built.search(texts, top_k=top_k, shortlist=shortlist, sca="score")
            for before, hits in zip(plain, resolved, strict=True):
                assert len({hit.moment.track for hit in hits}) == top_k
                assert {hit.id: hit.rank_before_sca for hit in hits} == {hit.id: hit.rank for hit in before}


def test_more_of_this_person_are_other_visits(built):
    (hits,) = built.search(["a man runs"])
    (others,) = built.similar(hits[0])
    assert sorted(other.moment.track for other in others) == sorted({1, 2, 3} - {hits[0].moment.track})


def test_a_camera_and_a_time_are_chosen(built):
    def tracks(**chosen):
        rows = built.rows_of_moments(**chosen)
        return sorted({built.stored.moment(row).track for row in rows.tolist()})

    assert tracks() == [1, 2, 3]
    assert tracks(since=5.0) == [2, 3]
    assert tracks(until=10.0) == [1, 2]
    assert tracks(camera="cam*", since=5.0, until=12.5) == [2]
    began = datetime.fromisoformat("2026-11-26T08:00:00+00:00")
    assert tracks(since=began + timedelta(seconds=15)) == [3]
    with pytest.raises(ValueError, match="no camera 'cam2'; it has cam1.mp4"):
        tracks(camera="cam2")


def test_a_kill_at_any_moment_loses_nothing_and_nothing_comes_twice(
    filmed, model, processor, tmp_path, monkeypatch
):
    film, rules = filmed
    (source,) = find_films(film)
    whole = build_footage([source], tmp_path / "whole", model, processor, rules)
    expected = visits_of(tmp_path / "whole")["visits"]
    folder = Path(FOOTAGE, source.camera)
    content = (whole.path / folder / FOUND).read_bytes()
    cuts = [place for place, byte in enumerate(content) if byte == ord("\n")]
    for number, cut in enumerate([*cuts, *(cut + 7 for cut in cuts[:-1]), 3]):  # after a line, and within one
        gallery = tmp_path / f"cut{number}"
        shutil.copytree(whole.path / folder, gallery / folder)
        (gallery / folder / FOUND).write_bytes(content[: cut + 1])
        (gallery / folder / "9-1.jpg").write_bytes(b"half written")
        look_through(source, gallery, rules)
        record = FilmRecord.read(gallery / folder, source.camera)
        assert [view.name for _, view, _ in record.moments()] == [
            *sorted(path.name for path in (whole.path / folder).glob("*-?.jpg"))
        ]
        assert visits_of(gallery)["visits"] == expected
        assert cut == cuts[-1] or not (gallery / folder / "9-1.jpg").exists()
    with interrupted_before_the_manifest(monkeypatch), pytest.raises(KeyboardInterrupt):
        build_footage([source], tmp_path / "late", model, processor, rules)
    again = build_footage([source], tmp_path / "late", model, processor, rules)
    assert again.ids == whole.ids
    torch.testing.assert_close(torch.cat(again.stored.embeddings), torch.cat(whole.stored.embeddings))
    before = (again.path / folder / FOUND).stat().st_mtime_ns
    assert build_footage([source], again.path, model, processor, rules).ids == whole.ids
    assert (again.path / folder / FOUND).stat().st_mtime_ns == before  # there was nothing to do


def test_a_film_that_has_grown_is_gone_on_with(filmed, model, processor, tmp_path):
    film, rules = filmed
    boxes = write_boxes(tmp_path / "boxes.jsonl")
    growing = write_walk(tmp_path / "cam1.mp4", boxes, seconds=10)
    half = build_footage(find_films(growing), tmp_path / "gallery", model, processor, rules)
    assert spans(half.path) == [pytest.approx((1.1, 4.0), abs=0.11), pytest.approx((8.1, 9.9), abs=0.11)]
    write_walk(growing, boxes)
    whole = build_footage(find_films(growing), tmp_path / "gallery", model, processor, rules)
    assert spans(whole.path) == [pytest.approx(span, abs=0.11) for span in TRUTH]
    assert {moment.visit for _, moment in whole.stored.moments()} == {
        ("cam1.mp4", visit["track"]) for visit in visits_of(whole.path)["visits"]
    }


def test_a_film_that_has_grown_has_each_gap_once(tmp_path):
    film, rules = tmp_path / "grow.ts", FootageRules(detector="motion")
    first = [number / 10 for number in range(100)]
    write_film(film, first + [20 + number / 10 for number in range(10)])
    record = look_through(Source("grow", str(film)), tmp_path, rules)
    assert [gap.end_s for gap in record.gaps] == [20.0]
    write_film(film, first + [20 + number / 10 for number in range(20)])
    look_through(Source("grow", str(film)), tmp_path, rules)
    (grown,) = visits_of(tmp_path)["films"]
    assert [(gap["start_s"], gap["end_s"]) for gap in grown["gaps"]] == [(9.9, 20.0)]


def test_what_does_not_belong_together_is_refused_and_the_others_go_on(
    filmed, model, processor, tmp_path, caplog
):
    film, rules = filmed
    (tmp_path / "films").mkdir()
    shutil.copy(film, tmp_path / "films" / "cam1.mp4")
    (tmp_path / "films" / "cam0.mp4").write_text("no film")
    gallery = tmp_path / "gallery"
    built = build_footage(find_films(tmp_path / "films"), gallery, model, processor, rules)
    assert {moment.camera for _, moment in built.stored.moments()} == {"cam1.mp4"}
    assert "left out cam0.mp4" in caplog.text
    with pytest.raises(ValueError, match="looked through with .*views.*4.*another gallery"):
        build_footage(
            [Source("cam1.mp4", str(film))], gallery, model, processor, FootageRules(rules.detector, views=2)
        )
    other = write_film(tmp_path / "cam1.mp4", [0.0, 0.1])
    with pytest.raises(ValueError, match="is another film: --camera gives it another name"):
        build_footage(find_films(other), gallery, model, processor, rules)


def test_a_film_is_known_by_its_content_and_read_again_by_nobody(filmed, tmp_path):
    """A recorder writes over a file of constant size; a copy, or a new date, changes nothing."""
    film, rules = tmp_path / "ring.mp4", filmed[1]
    shutil.copy(filmed[0], film)
    source = Source("ring", str(film))
    found = look_through(source, tmp_path, rules).folder / FOUND
    os.utime(film, (1, 1))
    assert [*look_through(source, tmp_path, rules).visits] == [1, 2, 3]
    stamped = found.read_bytes()
    assert stamped.count(b'"end"') == 2  # so that it is compared once
    assert [*look_through(source, tmp_path, rules).visits] == [1, 2, 3]
    assert found.read_bytes() == stamped

    content = bytearray(film.read_bytes())
    content[len(content) // 2] ^= 1
    film.write_bytes(content)
    with pytest.raises(ValueError, match="ring.mp4 is another film than the one of this name"):
        look_through(source, tmp_path, rules)
    found.write_bytes(re.sub(rb', "content": "[0-9a-f]+"', b"", stamped))  # as early versions wrote it
    assert [*look_through(source, tmp_path, rules).visits] == [1, 2, 3]


def test_a_folder_that_keeps_the_last_images_is_another_film(tmp_path):
    def take(*minutes):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for minute in minutes:
            Image.new("RGB", (64, 48)).save(folder / f"2026-11-26_12-{minute}-00.png")

    source, rules = Source("ring", str(folder := tmp_path / "images")), FootageRules(detector="none")
    take(10, 11)
    look_through(source, tmp_path, rules)
    take(10, 11)
    assert look_through(source, tmp_path, rules).end["end_s"] == 60
    for later in ((11, 12), (11, 12, 13)):
        take(*later)
        with pytest.raises(ValueError, match="images is another film than the one of this name"):
            look_through(source, tmp_path, rules)
    take(10, 11, 12)
    assert look_through(source, tmp_path, rules).end["end_s"] == 120


def test_another_film_does_not_go_on_with_one_that_was_interrupted(filmed, tmp_path):
    film, rules = filmed
    other = shutil.copy(film, tmp_path / "other.mp4")

    def interrupt(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        look_through(Source("door", str(film)), tmp_path, rules, found=interrupt)
    with pytest.raises(ValueError, match="other.mp4 is another film: --camera .* moved: remove .*door, and"):
        look_through(Source("door", str(other)), tmp_path, rules)
    record = look_through(Source("door", str(film)), tmp_path, rules)
    assert [*record.visits] == [1, 2, 3]


def test_a_gallery_that_was_moved_has_its_pictures(built, model, processor, filmed, tmp_path):
    ids, place = built.ids, shutil.move(built.path, tmp_path / "elsewhere")
    moved = Gallery.open(place, model, processor, images_root=tmp_path)  # which is for other images
    (hits,) = moved.search(["a man runs"])
    for hit in hits:
        assert hit.path.parent == place / FOOTAGE / "cam1.mp4"
        assert moved.stored.open_file(hit.row, moved.images_root).size == (75, 75)
        assert hit.scene().size == (160, 120)
    again = build_footage(find_films(filmed[0]), place, model, processor, filmed[1])
    assert again.ids == ids
    again.delete([hits[0].id])
    assert all(again.stored.root_of(row) == str(place / FOOTAGE) for row in range(len(again)))


def test_deleting_keeps_the_moments_of_the_others(built, model, processor):
    gone = [built.stored.record(row)["id"] for row, moment in built.stored.moments() if moment.track == 2]
    built.delete(gone[:-1])
    opened = Gallery.open(built.path, model, processor)
    assert {moment.track for _, moment in opened.stored.moments()} == {1, 2, 3}
    opened.delete(gone[-1:])
    assert {moment.track for _, moment in opened.stored.moments()} == {1, 3}
    assert sorted(hit.moment.track for hit in opened.search(["a man runs"])[0]) == [1, 3]


def test_the_name_of_a_clip_is_one_that_a_disk_takes():
    camera = "/".join(["入口の監視カメラ" * 3] * 6)
    names = {clip_name(Moment(f"{camera}/{end}", 1.0, 2.0, 1, (0, 0, 1, 1), 1.5), True) for end in ("a", "b")}
    assert len(names) == 2
    assert all(len(name.encode()) < 200 for name in names)


def test_a_clip_shows_the_moment(built, tmp_path):
    moment = next(moment for _, moment in built.stored.moments() if moment.track == 2)
    clip = cut_clip(moment, tmp_path / "clips")
    assert clip.name.startswith("cam1.mp4-00-00-08.1-2-")
    with av.open(str(clip)) as opened:
        times = [frame.time for frame in opened.decode(video=0)]
    assert times[0] == pytest.approx(0.0, abs=0.01)
    assert moment.end_s - moment.start_s <= times[-1] <= moment.end_s - moment.start_s + 12
    (tmp_path / "images").mkdir()
    for second in range(20):  # of a sequence of images it is encoded
        Image.new("RGB", (32, 24), (10 * second, 0, 0)).save(
            tmp_path / "images" / f"2026-11-26_08-00-{second:02d}.png"
        )
    shown = Moment("images", 5.0, 9.0, 1, (0, 0, 1, 1), 6.0, film=str(tmp_path / "images"))
    with av.open(str(cut_clip(shown, tmp_path / "clips"))) as opened:
        reds = [frame.to_ndarray(format="rgb24")[..., 0].mean() for frame in opened.decode(video=0)]
    assert len(reds) == 7
    assert reds[0] == pytest.approx(40, abs=8)
    with pytest.raises(FileNotFoundError, match="no more there"):
        cut_clip(Moment("gone", 0.0, 1.0, 1, (0, 0, 1, 1), 0.0, film=str(tmp_path / "gone.mp4")), tmp_path)


def test_whole_frames_are_moments_too(tmp_path):
    images = [walkers([0], [{}], COLOURS)[0] // (1 + number // 20) for number in range(60)]
    film = write_film(tmp_path / "a.mp4", [number / 10 for number in range(60)], images, size=(160, 120))
    (source,) = find_films(film)
    record = look_through(source, tmp_path / "gallery", FootageRules(detector="none"))
    assert [(visit.start_s, visit.end_s) for visit in record.visits.values()] == [
        pytest.approx(span, abs=0.11) for span in ((0.0, 1.9), (2.0, 3.9), (4.0, 5.9))
    ]


def test_motion_finds_the_visits_of_a_drawn_film(tmp_path):
    """Somebody acts, two cross, somebody lies still: each is one visit, within half a second."""
    truth = draw_footage(tmp_path / "films", cameras=1, visits=4, width=200, stays_s=2.0)
    (source,) = find_films(tmp_path / "films")
    record = look_through(source, tmp_path / "gallery", FootageRules())
    moments = list({moment.track: moment for _, _, moment in record.moments()}.values())
    compared = compare_visits(moments, truth)
    assert (compared.visits, compared.found, compared.split, compared.made_up) == (4, 4, 0, 0)
    assert compared.latest_s <= 0.6
    assert compared.overlap > 0.85
    assert "lying" in {visit.pose for visit in truth}
    assert sum(visit.crosses for visit in truth) == 2


def test_the_commands_answer_with_moments(filmed, start, tmp_path, capsys, caplog):
    film, rules = filmed
    folder = tmp_path / "films"
    folder.mkdir()
    shutil.copy(film, folder / "cam1.mp4")
    words = ["--model", str(start), "--detector", rules.detector]
    tpas_command(
        [
            "search",
            str(folder / "cam1.mp4"),
            "a man",
            *words,
            "--from",
            "0:06",
            "--clips",
            str(tmp_path / "clips"),
        ]
    )
    text = capsys.readouterr().out
    assert "00:00:08.1 to 00:00:12.0 cam1.mp4" in text
    assert "00:00:01.1" not in text
    assert len(list((tmp_path / "clips").iterdir())) == 2
    tpas_command(["footage", "build", str(folder), *words, "--path", str(tmp_path / "gallery"), "--json"])
    listed = json.loads(capsys.readouterr().out)
    assert [visit["track"] for visit in listed["visits"]] == [1, 2, 3]
    assert list(listed["visits"][0]) == ["camera", "start_s", "end_s", "track", "box"]
    tpas_command(["footage", "list", str(tmp_path / "gallery"), "--json"])
    assert json.loads(capsys.readouterr().out) == listed
    tpas_command(
        ["search", str(tmp_path / "gallery"), "a man", "--json", "--to", "00:00:05", "--camera", "cam1.mp4"]
    )
    ((hit,),) = [answer["hits"] for answer in json.loads(capsys.readouterr().out)]
    assert hit["moment"] == listed["visits"][0] | {"box": hit["moment"]["box"]}
    (folder / "cam1.mp4").rename(folder / "moved.mp4")
    alike = ["search", str(tmp_path / "gallery"), "--image", hit["path"], "--clips", str(tmp_path / "none")]
    tpas_command([*alike, "--json"])
    (answer,) = json.loads(capsys.readouterr().out)
    assert [each["moment"]["track"] for each in answer["hits"]][0] == 1  # itself, then who is alike
    assert sorted(each["moment"]["track"] for each in answer["hits"]) == [1, 2, 3]
    assert "clip" not in answer["hits"][0]
    assert f"no clip of visit 2: the film {folder / 'cam1.mp4'} of cam1.mp4 is no more there" in caplog.text
    (folder / "moved.mp4").rename(folder / "cam1.mp4")
    with pytest.raises(SystemExit, match="--blur_faces is of films, and .*start holds images"):
        tpas_command(["search", str(start), "a man", "--blur_faces", "--model", str(start)])
    for wrong in (["--to", "noon"], ["--from", "2026-13-01"], ["--margin", "-1"], ["--started_at", "soon"]):
        with pytest.raises(SystemExit, match=wrong[0].lstrip("-") + "|" + wrong[1]):
            tpas_command(["search", str(folder / "cam1.mp4"), "a man", *words, *wrong])


def test_a_search_that_stays_open_knows_which_visits_have_gone(filmed, start, tmp_path, monkeypatch, capsys):
    film, rules = filmed
    gallery = str(tmp_path / "gallery")
    of = ["--model", str(start)]
    tpas_command(["footage", "build", str(film), *of, "--path", gallery, "--detector", rules.detector])
    capsys.readouterr()

    def typed():
        yield b"a man\n"
        stored = Gallery.open(gallery)
        stored.delete([stored.ids[row] for row, moment in stored.stored.moments() if moment.track == 1])
        yield b"a man\n"
        yield b""

    lines = SimpleNamespace(readline=partial(next, typed()))
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: False, buffer=lines))
    tpas_command(["search", gallery, *of, "--interactive", "--json", "--camera", film.name])
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    tracks = [sorted(hit["moment"]["track"] for hit in answer["hits"]) for answer in answers]
    assert tracks == [[1, 2, 3], [2, 3]]


def test_a_record_cannot_have_files_elsewhere_removed(built):
    (found,) = (built.path / FOOTAGE).rglob(FOUND)
    (built.path / "keep.jpg").write_bytes(b"")
    found.write_text(found.read_text().replace("1-1.frame.jpg", "../../keep.jpg"))
    with pytest.raises(ValueError, match=r"line 2 is damaged .*own folder, got '../../keep.jpg'"):
        forget_images(built.path, [built.ids[0]])
    assert (built.path / "keep.jpg").exists()


def test_clips_do_not_become_films_that_are_searched(filmed, start):
    film, rules = filmed
    inside = ["--clips", str(film.parent / "found"), "--model", str(start), "--detector", rules.detector]
    with pytest.raises(
        SystemExit, match="--clips .*found lies in .*, whose films are searched: name another"
    ):
        tpas_command(["search", str(film.parent), "a man", *inside])


def test_old_visits_are_forgotten_with_all_that_was_made_of_them(built, model, processor, filmed, capsys):
    began = datetime.fromisoformat("2026-11-26T08:00:00+00:00")
    older = older_visits(built.path, timedelta(days=1), began + timedelta(days=1, seconds=13))
    assert [[visit.track for visit in visits] for _, visits in older] == [[1, 2]]
    removed = forget(built.path, older)
    assert {name.split("/")[1][0] for name in removed} == {"1", "2"}
    left = sorted(path.name for path in (built.path / FOOTAGE).rglob("*.jpg"))
    assert left
    assert all(name.startswith("3-") for name in left)
    assert [visit["track"] for visit in visits_of(built.path)["visits"]] == [3]
    assert {moment.track for _, moment in Gallery.open(built.path).stored.moments()} == {3}
    build_footage(find_films(filmed[0]), built.path, model, processor, filmed[1])  # does not bring them back
    assert {moment.track for _, moment in Gallery.open(built.path).stored.moments()} == {3}
    tpas_command(["gallery", "delete", str(built.path), "--older_than", "0.1h", "--json"])
    is_past = datetime.now().astimezone() > began + timedelta(hours=1)
    assert json.loads(capsys.readouterr().out)["visits"] == is_past
    with pytest.raises(SystemExit, match="'soon' is no age, such as 30d"):
        tpas_command(["gallery", "delete", str(built.path), "--older_than", "soon"])


def test_of_a_forgotten_visit_no_line_is_left(built):
    """Neither its times nor where the person went; what an early version, or a kill, left goes as well."""
    found = built.path / FOOTAGE / "cam1.mp4" / FOUND

    def visits_in_file():
        lines = [json.loads(line) for line in found.read_text().splitlines()]
        return [line["visit"]["track"] for line in lines if "visit" in line]

    whole = found.read_bytes()
    older = older_visits(built.path, timedelta(days=1), datetime.fromisoformat("2026-12-26T08:00:00+00:00"))
    forget(built.path, older)
    assert visits_in_file() == []
    assert FilmRecord.read(found.parent, "cam1.mp4").next_track == 4  # no later one is taken for the third

    found.write_bytes(whole + b'{"forgotten": [1, 2]}\n')
    assert [visit["track"] for visit in visits_of(built.path)["visits"]] == [3]
    left = older_visits(built.path, timedelta(days=10_000), datetime.now().astimezone())
    assert [[visit.track for visit in visits] for _, visits in left] == [[]]
    forget(built.path, left)
    assert visits_in_file() == [3]
    assert not older_visits(built.path, timedelta(days=10_000), datetime.now().astimezone())


def test_what_is_forgotten_of_an_interrupted_film_does_not_come_back(filmed, tmp_path):
    film, rules = filmed
    record = look_through(source := Source("cam1.mp4", str(film)), tmp_path, rules)
    lines = (record.folder / FOUND).read_bytes().splitlines(keepends=True)
    second = next(place for place, line in enumerate(lines) if b'"track": 2,' in line)
    (record.folder / FOUND).write_bytes(b"".join(lines[: second + 1]))
    interrupted = FilmRecord.read(record.folder, record.camera)
    assert [*interrupted.visits] == [1]
    interrupted.forget([1])
    look_through(source, tmp_path, rules)
    assert spans(tmp_path) == [pytest.approx(span, abs=0.11) for span in TRUTH[1:]]


def test_an_image_that_is_deleted_does_not_come_back(built, model, processor, filmed, capsys):
    """One view of the first visit, and all of the second: with their files, and for each later build."""
    (first, *_), second = ([name for name in built.ids if f"/{track}-" in name] for track in (1, 2))
    left = {*built.ids} - {first, *second}
    folder = built.path / FOOTAGE / "cam1.mp4"
    with pytest.raises(SystemExit, match="no.jpg"):
        tpas_command(["gallery", "delete", str(built.path), first, "no.jpg"])
    assert Gallery.open(built.path).ids == built.ids
    with (folder / FOUND).open("ab") as found:
        found.write(b'{"gap": {"start_')  # as a kill leaves it
    tpas_command(["gallery", "delete", str(built.path), first, *second, "--json"])
    assert json.loads(capsys.readouterr().out)["images"] == len(left)

    def check():
        assert {*Gallery.open(built.path).ids} == left
        assert {f"cam1.mp4/{path.name}" for path in folder.glob("*-?.jpg")} == left
        assert len([*folder.glob("*.frame.jpg")]) == len(left)
        assert [visit["track"] for visit in visits_of(built.path)["visits"]] == [1, 3]
        assert (folder / FOUND).read_text().count('"visit"') == 2

    check()
    build_footage(find_films(filmed[0]), built.path, model, processor, filmed[1])
    check()


@pytest.mark.parametrize("camera", ["hall/", "./hall", "hall//"])
def test_a_cameras_name_is_that_of_its_folder(filmed, camera):
    assert find_films(filmed[0], camera)[0].camera == "hall"
    assert find_films(filmed[0].parent, camera)[0].camera == "hall/cam1.mp4"


@pytest.mark.parametrize("camera", ["", ".", "./", "/hall", "hall/../.."])
def test_what_is_no_cameras_name_is_refused(filmed, camera):
    with pytest.raises(ValueError, match="a camera's name is a word"):
        find_films(filmed[0], camera)


def test_old_visits_of_an_odd_name_are_forgotten_as_well(filmed, model, processor, tmp_path):
    """Early versions took "hall/" as it is, so that the gallery's ids differ from the record's."""
    film, rules = filmed
    early = build_footage([Source("hall//cam1.mp4", str(film))], tmp_path, model, processor, rules)
    assert early.ids[0].startswith("hall//")
    began = datetime.fromisoformat("2026-11-26T08:00:00+00:00")
    forget(tmp_path, older_visits(tmp_path, timedelta(days=1), began + timedelta(days=1, seconds=13)))
    assert {moment.track for _, moment in Gallery.open(tmp_path).stored.moments()} == {3}
    now = build_footage([Source("hall/cam1.mp4", str(film))], tmp_path, model, processor, rules)
    assert {name.rpartition("-")[0] for name in now.ids} == {"hall/cam1.mp4/3"}
