"""The stages in their order, what each builds on, and their rows in a table."""

import json

import pytest

from tpas.evaluation.stages import Stage, final_stage
from tpas.evaluation.tables import stage_rows


def results(**recall_at_1: float) -> dict:
    """A results file with these stages."""

    def figures(recall: float) -> dict[str, float]:
        return {"recall@1": recall, "recall@5": recall + 0.1, "recall@10": recall + 0.2, "mAP": recall + 0.05}

    return {
        "stages": {
            stage: {"all": figures(recall), "normal": figures(recall + 0.01)}
            for stage, recall in recall_at_1.items()
        }
    }


def test_a_stage_is_its_key_and_has_a_name_for_each_place():
    assert list(Stage) == ["embeddings", "embeddings_sca", "matching", "fused", "sca"]
    assert json.loads(json.dumps({Stage.SCA: Stage.FUSED})) == {"sca": "fused"}
    assert f"{Stage('fused')}: {Stage.FUSED.label}, {Stage.FUSED.alone}" == (
        "fused: + matching, fused, matching fused with embeddings"
    )
    assert [stage for stage in Stage if stage.has_scores] == ["embeddings", "matching", "fused"]


@pytest.mark.parametrize(
    ("stages", "final"),
    [
        (("sca", "embeddings"), "embeddings"),
        (("matching", "sca", "embeddings"), "matching"),
        (tuple(Stage), "fused"),
    ],
)
def test_the_final_stage_is_the_last_with_scores(stages, final):
    assert final_stage(stages) == final


def test_each_stage_is_compared_with_the_one_it_builds_on():
    measured = {"sca": 0.46, "embeddings": 0.5, "embeddings_sca": 0.51, "matching": 0.52, "fused": 0.53}
    rows = {row.stage: row for row in stage_rows(results(**measured))}
    assert list(rows) == list(Stage)
    gains = {stage: row.gain for stage, row in rows.items()}
    assert gains.pop("embeddings") is None
    assert gains == pytest.approx({"embeddings_sca": 0.01, "matching": 0.02, "fused": 0.03, "sca": -0.07})
    assert rows["matching"].recalls == pytest.approx((0.52, 0.62, 0.72))
    assert rows["matching"].mean_average_precision == pytest.approx(0.57)
    del measured["fused"]
    assert stage_rows(results(**measured))[-1].gain == pytest.approx(-0.06)
    assert stage_rows(results(embeddings=0.5, sca=0.6))[-1].gain == pytest.approx(0.1)


def test_groups_without_queries_are_left_open():
    (row,) = stage_rows(results(embeddings=0.5))
    assert (row.normal, row.anomaly) == (0.51, None)
