"""The flags of every command that ranks a gallery, and what they say. Nothing heavy is imported for them."""

import sys
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from ..sca import Confidence, Mode
from ..search.arguments import BASE_MODEL_HELP, DEFAULT_MATCHER_SHORTLIST
from .settings import SCASettings

if TYPE_CHECKING:
    import torch

    from ..models.interface import ImageMatcher, RetrievalModel, RetrievalProcessor


# Of AI City 2026, Track 4; for each number that somebody might tune.
NOT_BY_THE_TEST_SET = (
    "choose it on held-out data: the challenge forbids any use of the test set's outputs for that"
)


def flag(default: Any, about: str) -> Any:
    """A field that is a flag of a command, with what its help says."""
    return field(default=default, metadata={"help": about})


@dataclass
class RankingArguments:
    """How a gallery is ranked. Each field is a flag of `tpas evaluate` and `tpas submit`."""

    shortlist: int | None = flag(
        None, "images re-ranked for each query, or the whole gallery where that is smaller (default: 128)"
    )
    matcher: str | None = flag(
        None,
        "vlm:NAME, or vlm:NAME@COMMIT, a vision-language model that says yes or no to a pair, in place of "
        "the model's stage 2",
    )
    matcher_shortlist: int = flag(
        DEFAULT_MATCHER_SHORTLIST, "with it: images that it reads for each query, or the whole gallery"
    )
    trust_remote_code: bool = flag(False, "run the code that comes with the model")
    revision: str | None = flag(None, "commit of the model's Hub repository")
    base_model: str | None = flag(None, BASE_MODEL_HELP)
    fusion_weight: float = flag(0.0, f"weight of the embeddings' score; 0: none; {NOT_BY_THE_TEST_SET}")
    max_text_length: int | None = flag(None, "tokens at which a caption is cut (default: the processor's)")
    image_size: int | None = flag(None, "pixels a side, the model is resized to it (default: the model's)")
    sca_confidence: Confidence = flag("score", "the paper's: score")
    sca_mode: Mode = flag("deferred", "when a query that lost moves on")
    sca_max_shift: int = flag(1, "places a query may move down")
    sca_tau: float = flag(0.0, f"confidences so close are left alone; {NOT_BY_THE_TEST_SET}")
    sca_capacity: int = flag(1, "queries that an image may answer")
    sca_text_threshold: float | None = flag(
        None,
        "texts compete for an image only if the cosine of their embeddings is so high (default: all do); "
        f"{NOT_BY_THE_TEST_SET}",
    )
    batch_size: int = flag(
        64, "images that a process reads at once; changes memory and speed, never a figure"
    )
    token_memory: float = flag(
        4.0,
        "GiB of the images' tokens that a process keeps between the stages; shortlisted images beyond it "
        "are encoded twice",
    )

    def settings(self) -> dict[str, Any]:
        """Keyword arguments of `rank_gallery` and `evaluate`, but the shortlist."""
        return {
            "matcher_shortlist": self.matcher_shortlist,
            "fusion_weight": self.fusion_weight,
            "sca": SCASettings(**{f.name: getattr(self, f"sca_{f.name}") for f in fields(SCASettings)}),
            "batch_size": self.batch_size,
            "token_memory": int(min(self.token_memory * 2**30, sys.maxsize)),  # inf: keep all
        }

    def load(self, model_name: str, device: "torch.device") -> tuple["RetrievalModel", "RetrievalProcessor"]:
        """The model in fp32 and its processor, at the size and length asked for.

        Raises:
            ValueError: for a text length that the model cannot take, or an image size that does not fit it.
        """
        from ..modeling_tpas import TPASModel
        from ..models.loading import load_model

        model, processor = load_model(
            model_name,
            trust_remote_code=self.trust_remote_code,
            revision=self.revision,
            base_model=self.base_model,
        )
        is_ours = isinstance(model, TPASModel)
        if self.image_size is not None:
            if not is_ours:
                raise ValueError(f"--image_size {self.image_size}: only TPAS models are resized")
            model.resize_image(self.image_size)
            processor.image_size = self.image_size
        if self.max_text_length is not None:
            longest = processor.max_text_length
            if is_ours:
                longest = model.config.text_config.max_position_embeddings
            if not 3 <= self.max_text_length <= longest:
                raise ValueError(
                    f"--max_text_length must be between 3 and the model's {longest} positions, "
                    f"got {self.max_text_length}"
                )
            processor.max_text_length = self.max_text_length
        return model.to(device), processor

    def load_matcher(self, device: "torch.device") -> "ImageMatcher | None":
        """The stage 2 that is asked for in place of the model's own.

        Raises:
            ValueError: a shortlist for it, and no matcher; and see `load_matcher`.
        """
        if self.matcher is None:
            if self.matcher_shortlist != DEFAULT_MATCHER_SHORTLIST:
                raise ValueError(
                    f"--matcher_shortlist {self.matcher_shortlist} has no effect without --matcher"
                )
            return None
        from ..models.loading import load_matcher

        return load_matcher(self.matcher, device, trust_remote_code=self.trust_remote_code)
