"""Standing queries: limits from reference footage, what they promise, and old footage replayed."""

import json
from dataclasses import replace

import numpy as np
import pytest
from tiny_films import two_cameras

from tpas.data.moments import Moment
from tpas.footage.films import Gap
from tpas.footage.intake import build_footage
from tpas.footage.records import FilmRecord
from tpas.footage.replay import Replay, TrueMoment, read_truth
from tpas.footage.rules import FootageRules
from tpas.footage.sources import find_films
from tpas.footage.standing import (
    A_DAY,
    Alarm,
    StandingQueries,
    interval_a_day,
    scores_of_visits,
    seconds_watched,
)


@pytest.fixture
def gallery(model, processor, tmp_path):
    """Of two cameras, two visits each."""
    two_cameras(tmp_path)
    rules = FootageRules(detector=f"boxes:{tmp_path / 'boxes.jsonl'}")
    return build_footage(find_films(tmp_path / "films"), tmp_path / "gallery", model, processor, rules)


def test_no_more_alarms_come_than_were_stated_whatever_the_scores_are():
    """Over many references and days after them, for two texts of very different scores."""
    generator = np.random.default_rng(0)
    days, ahead, came = 3.0, 2.0, []
    for _ in range(2000):
        known, new = (generator.lognormal(size=(2, generator.poisson(20 * d))) for d in (days, ahead))
        known[1], new[1] = -1 / known[1], -1 / new[1]
        queries = StandingQueries.from_scores(["a", "b"], known, days, alarms_per_day=1.7)
        came.append((new > queries.limits[:, None]).sum(axis=1) / ahead)
    assert [len(own) for own in queries.best] == [3, 2]  # 1.7 a day of 3 days are 5.1 places
    assert np.mean(came, axis=0) == pytest.approx([1, 2 / 3], abs=0.05)


def test_a_limit_is_a_score_of_the_reference_and_says_how_rare_a_score_is():
    queries = StandingQueries.from_scores(["a"], np.array([[5.0, 1, 4, 2, 3]]), days=2, alarms_per_day=1.5)
    assert queries.limits == [3.0]
    assert queries.false_alarms_a_day(0, 3.5) == (1 + 2) / 2
    assert queries.false_alarms_a_day(0, 9.0) == 1 / 2


def test_too_little_reference_is_refused_with_the_hours_that_it_takes():
    scores = np.zeros((3, 100))
    with pytest.raises(
        ValueError, match=r"1 false alarms a day by 3 texts .* need 72.0 hours .* are 36.0: .* 2$"
    ):
        StandingQueries.from_scores(list("abc"), scores, days=1.5, alarms_per_day=1)
    assert StandingQueries.from_scores(list("abc"), scores, days=1.5, alarms_per_day=2).days == 1.5
    with pytest.raises(ValueError, match=r"more than there are visits: 3 in 24.0 hours .* at most 3"):
        StandingQueries.from_scores(["a"], scores[:1, :3], days=1, alarms_per_day=4)
    with pytest.raises(ValueError, match="nobody was seen"):
        StandingQueries.from_scores(["a"], scores[:1, :0], days=1, alarms_per_day=1)
    with pytest.raises(ValueError, match="10,000 texts, and at most 100"):
        StandingQueries.from_scores([str(n) for n in range(10_000)], scores, days=1, alarms_per_day=1)
    with pytest.raises(ValueError, match="above 0"):
        StandingQueries.from_scores(["a"], scores[:1], days=1, alarms_per_day=float("nan"))


def test_what_a_film_does_not_show_is_not_watched(tmp_path):
    record = FilmRecord(tmp_path, "cam", end={"end_s": 100.0, "state": None})
    record.gaps = [Gap(10, 30, "silence"), Gap(20, 40, "silence"), Gap(90, 120, "silence")]
    assert seconds_watched(record) == 100 - 30 - 10
    assert seconds_watched(replace(record, end=None, quiet_s=25.0)) == 10  # of a stream that was killed


def test_alarms_are_the_visits_above_the_limit_by_their_best_view(gallery, tmp_path):
    texts = ["a man runs", "a woman wears a hat"]
    queries = StandingQueries.learn(texts, [gallery], alarms_per_day=3 * A_DAY / 21)
    assert queries.visits == 4
    scores = scores_of_visits(gallery, texts)
    assert scores.shape == (2, 4)
    for text, own in zip(texts, scores, strict=True):
        every = gallery.search([text], top_k=99, shortlist=99)[0]
        np.testing.assert_allclose(np.sort(own)[::-1], [hit.score for hit in every], atol=1e-5)
    low = replace(queries, best=tuple((float(np.sort(own)[1]),) for own in scores))
    found = [(alarm.moment.visit, alarm.text) for alarm in low.find(gallery)]
    visits = sorted({moment.visit for _, moment in gallery.stored.moments()})
    expected = [
        (visit, text)
        for text, own in zip(texts, scores, strict=True)
        for visit, score in zip(visits, own, strict=True)
        if score > np.sort(own)[1] + 1e-6
    ]
    assert sorted(found) == sorted(expected)
    low.save(tmp_path / "limits.json")
    assert StandingQueries.load(tmp_path / "limits.json") == low
    by_cosine = StandingQueries.learn(texts[:1], [gallery], alarms_per_day=A_DAY / 21, rerank=False)
    assert -1 <= by_cosine.limits[0] <= 1
    with pytest.raises(ValueError, match="are of the model other, and the gallery"):
        replace(low, model_fingerprint="other").find(gallery)
    with pytest.raises(
        ValueError, match="found in the reference with {'views': 9}, and now with {'views': 4}"
    ):
        replace(low, settings={"views": 9}).check_settings({"views": 4})
    (tmp_path / "limits.json").write_text("{}")
    with pytest.raises(ValueError, match="limits.json holds no limits"):
        StandingQueries.load(tmp_path / "limits.json")


def alarm_at(start_s, text="a", camera="cam1.mp4"):
    moment = Moment(camera, start_s, start_s + 2, 1, (0, 0, 1, 1), start_s)
    return Alarm("id", text, moment, 1.0, 0.0, 1.0)


def test_a_replay_counts_what_was_missed_and_what_was_false(gallery):
    queries = StandingQueries(("a", "b"), ((0.0,), (0.0,)), 1.0, 1, 1.0)
    truth = [
        TrueMoment("cam1.mp4", 1, 3, "a"),
        TrueMoment("cam1.mp4", 7, 9, "b"),
        TrueMoment("cam2.avi", 7, 9),
    ]
    alarms = [alarm_at(2.5), alarm_at(8), alarm_at(8, camera="cam2.avi"), alarm_at(20)]
    replay = Replay(queries, 2.0, 9, alarms, truth)
    assert replay.missed == truth[1:2]
    assert replay.false_alarms == [alarms[1], alarms[3]]
    content = replay.to_json()
    assert (content["false_alarms_a_day"], content["true_moments"]) == (1.0, 3)
    assert content["false_alarms_a_day_95"] == pytest.approx([0.1211, 3.6123], abs=1e-4)  # Garwood's, of 2
    assert interval_a_day(0, 1.0) == pytest.approx((0, 3.6889), abs=1e-4)
    with pytest.raises(ValueError, match="camera 'cam3', and there are cam1.mp4, cam2.avi"):
        Replay.of(queries, gallery, [TrueMoment("cam3", 0, 1)])
    with pytest.raises(ValueError, match="the text 'c', which is not asked"):
        Replay.of(queries, gallery, [TrueMoment("cam1.mp4", 0, 1, "c")])


def test_true_moments_are_read_and_what_is_none_is_named(tmp_path):
    table, lines = tmp_path / "true.csv", tmp_path / "true.jsonl"
    table.write_text('camera,start_s,end_s,text\ncam1.mp4,00:01:02.5,70,"a man, lying"\ncam1.mp4,80,81,\n')
    assert read_truth(table) == [
        TrueMoment("cam1.mp4", 62.5, 70.0, "a man, lying"),
        TrueMoment("cam1.mp4", 80.0, 81.0),
    ]
    lines.write_text(json.dumps({"camera": "cam1.mp4", "start_s": 1, "end_s": 2.5}) + "\n")
    assert read_truth(lines) == [TrueMoment("cam1.mp4", 1.0, 2.5)]
    for content, said in (
        ("camera,start\ncam1.mp4,1\n", "line 2: a true moment has camera"),
        ("camera,start_s,end_s\ncam1.mp4,noon,2\n", "line 2: 'noon' is no time"),
        ("camera,start_s,end_s\ncam1.mp4,3,2\n", "ends at 2 s, before it begins at 3 s"),
    ):
        table.write_text(content)
        with pytest.raises(ValueError, match=said):
            read_truth(table)
