"""Chances and answer sets on made scores, whose right values are known."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.special import expit, logsumexp, softmax
from scipy.stats import betabinom

from tpas.search.calibration import Calibration, LabelledAnswers, calibration_error

IMAGES = 60


def made_answers(texts: int, seed: int, images: int = IMAGES) -> LabelledAnswers:
    """Scores of the right image higher by 1.5 deviations; 2 texts a person, whose images are both theirs."""
    generator = np.random.default_rng(seed)
    stages = generator.normal(size=(texts, images, 2))
    is_right = np.arange(images)[None] == generator.integers(images, size=texts)[:, None]
    stages[is_right] += 1.5
    order = np.argsort(-stages[:, :, 0], axis=1)  # best first by cosine, as a search gives them
    stages = np.take_along_axis(stages, order[:, :, None], axis=1)
    is_right = np.take_along_axis(is_right, order, axis=1)
    behaviours = ["normal", "anomaly"] * (texts // 2)
    return LabelledAnswers(stages, is_right, is_right, np.arange(texts) // 2, behaviours, images)


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    return Calibration.learn(made_answers(1200, seed=0), fingerprints=("a", "b", "c"), shortlist=55)


def test_numbers_are_those_of_the_likelihood(calibration):
    # Of normal scores moved by 1.5 the logarithm of the likelihood ratio is 1.5 times the score.
    assert calibration.weights == pytest.approx((1.5, 1.5), abs=0.25)
    _, of_evidence, of_size = calibration.somebody
    assert (of_evidence, of_size) == pytest.approx((1, -1), abs=0.5)


def test_chances_and_shares_are_as_written(calibration):
    stages = made_answers(6, seed=3).stages[:, :40]
    evidence = stages @ np.array(calibration.weights)
    intercept, of_evidence, of_size = calibration.somebody
    somebody = expit(intercept + of_evidence * logsumexp(evidence, axis=1) + of_size * math.log(500))
    chances, of_images = calibration.chances(stages, 500)
    np.testing.assert_allclose(chances, somebody)
    np.testing.assert_allclose(of_images, somebody[:, None] * softmax(evidence, axis=1))
    rare, _ = replace(calibration, presence=0.1).chances(stages, 500)
    np.testing.assert_allclose(rare / (1 - rare), chances / (1 - chances) / 9)


@pytest.mark.parametrize(("size", "seed"), [(1.0, 5), (0.25, 6)])
def test_chances_are_what_happens_also_among_fewer_images(calibration, size, seed):
    chances, there, best = calibration.test(made_answers(2000, seed), np.random.default_rng(seed), size)
    assert there.mean() == 0.5
    assert calibration_error(chances, there) < 0.05
    assert calibration_error(expit(best), there) > 0.15


def test_a_set_holds_the_right_image_as_often_as_promised(calibration):
    coverage, promised, new, splits = 0.9, 60, 50, 200
    held = np.array(calibration.strangeness_of(made_answers(4000, seed=9), np.random.default_rng(0))["all"])
    assert len(held) == 2000  # one text a person
    generator = np.random.default_rng(1)
    place = math.ceil((promised + 1) * coverage)
    low, high = betabinom.interval(0.95, new, place, promised + 1 - place)
    found = []
    for _ in range(splits):
        drawn = generator.permutation(held)[: promised + new]
        own = replace(calibration, strangeness={"all": sorted(drawn[:promised].tolist())})
        found.append(int((np.exp(-drawn[promised:]) >= own.least_share(coverage)).sum()))
    assert np.mean([low <= count <= high for count in found]) >= 0.93
    assert 0.89 < np.mean(found) / new < 0.93


def test_limits_are_those_of_split_conformal_prediction(calibration):
    own = replace(
        calibration, strangeness={"all": [0.5] * 8 + [1.0], "normal": [0.1] * 9, "anomaly": [2.0] * 9}
    )
    assert own.least_share(0.9) == pytest.approx(math.exp(-1.0))  # the 9th of 9: (9 + 1) * 0.9
    assert own.least_share(0.8) == pytest.approx(math.exp(-0.5))
    assert own.least_share(0.9, each_behaviour=True) == pytest.approx(math.exp(-2.0))
    with pytest.raises(ValueError, match="0.95 needs 19 held-out persons, and the calibration has 9"):
        own.least_share(0.95)
    with pytest.raises(ValueError, match="between 0 and 1"):
        own.least_share(90)
    assert own.highest_coverage() == 0.9
    own.least_share(own.highest_coverage())
    with pytest.raises(ValueError, match="has 3 with normal texts: calibrate with at least 18 such persons"):
        replace(own, strangeness={"normal": [1.0] * 3}).least_share(0.9, each_behaviour=True)
    short = replace(own, strangeness={"all": [0.5] * 8 + [math.inf]})
    assert short.highest_coverage() == 0.8
    with pytest.raises(ValueError, match=r"55 images hold the right image of 80.0% .* longer --shortlist"):
        short.least_share(0.9)


def test_too_few_persons_and_scores_that_are_no_numbers_are_refused():
    with pytest.raises(ValueError, match="of 39 persons, and a calibration needs 40"):
        Calibration.learn(made_answers(78, seed=0))
    answers = made_answers(80, seed=0)
    answers.stages[[3, 5], 0, 0] = math.nan, math.inf
    with pytest.raises(ValueError, match="the scores of 2 of 80 texts are not finite"):
        Calibration.learn(answers)


def test_answers_none_of_which_has_its_image_are_refused():
    answers = made_answers(80, seed=0)
    with pytest.raises(ValueError, match="of 40 texts none has its image among the 60 that are read"):
        Calibration.learn(replace(answers, is_right=np.zeros_like(answers.is_right)))


def test_a_file_holds_it_and_a_damaged_one_is_named(calibration, tmp_path):
    path = tmp_path / "calibration.json"
    kept = replace(calibration, strangeness={"all": [0.5, math.inf]})
    kept.save(path)
    assert Calibration.load(path) == kept
    content = json.loads(path.read_text())
    for wrong in (
        {"format": 2},
        {"weights": []},
        {"weights": [1, None]},
        {"somebody": [1, 2]},
        {"strangeness": {"all": [2, 1]}},
        {"strangeness": {"all": [math.nan]}},
        {"presence": 1},
        {"more": 1},
    ):
        path.write_text(json.dumps(content | wrong))
        with pytest.raises(
            ValueError, match=r"calibration.json is no calibration that `tpas calibrate` wrote"
        ):
            Calibration.load(path)


def test_another_model_stage_or_shortlist_is_refused(calibration):
    calibration.check_model("a", None, "c")
    with pytest.raises(ValueError, match="of the image settings b, and this is d"):
        calibration.check_model("a", "d", "c")
    with pytest.raises(
        ValueError, match="of embeddings and stage 2, and this search is by the embeddings alone"
    ):
        calibration.check_stages(1, None, 100)
    with pytest.raises(ValueError, match="of a shortlist of 55 images, and 50 are asked for"):
        calibration.check_stages(2, 50, 100)
    calibration.check_stages(2, 50, 30)  # all are read
    assert calibration.warning_of_size(4 * IMAGES) is None
    assert "learnt among 60 images, and there are 241" in (calibration.warning_of_size(241) or "")
