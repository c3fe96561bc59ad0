"""The stages of an evaluation: their order, and what each is called where."""

from collections.abc import Container
from enum import StrEnum


class Stage(StrEnum):
    """The stages in their order; as strings they are the keys in results, rankings and score files.

    Attributes:
        label: in a table of all stages, whose lines build on each other.
        heading: the same on the demo's page.
        alone: where it stands by itself, as in a model card.
        has_scores: whether it ranks by a score of its own; SCA only moves what another stage scored.
    """

    label: str
    heading: str
    alone: str
    has_scores: bool

    EMBEDDINGS = "embeddings", "embeddings", "Embeddings alone", "embeddings", True
    EMBEDDINGS_SCA = "embeddings_sca", "embeddings + SCA", "Embeddings + SCA", "embeddings, SCA", False
    MATCHING = "matching", "+ matching", "+ cross-modal matching", "matching", True
    FUSED = "fused", "+ matching, fused", "+ matching, fused", "matching fused with embeddings", True
    SCA = "sca", "+ SCA", "+ SCA", "SCA on the stage before", False

    def __new__(cls, key: str, label: str, heading: str, alone: str, has_scores: bool) -> "Stage":
        stage = str.__new__(cls, key)
        stage._value_ = key
        stage.label, stage.heading, stage.alone, stage.has_scores = label, heading, alone, has_scores
        return stage


def final_stage(stages: Container[str]) -> Stage:
    """The last of them that has scores of its own: the one that `Stage.SCA` re-ranks."""
    return [stage for stage in Stage if stage.has_scores and stage in stages][-1]


def label_of(stage: str) -> str:
    """What a stage is called in a table of all of them; a score file, which is no stage, by its own name."""
    return Stage(stage).label if is_stage(stage) else stage


def is_stage(name: str) -> bool:
    """Whether it is one of the stages, and not the name of a score file that was measured."""
    return name in Stage._value2member_map_
