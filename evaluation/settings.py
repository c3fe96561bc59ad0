"""How a gallery is ranked beyond the model: numbers that functions and flags share. No heavy imports."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..sca import Confidence, Mode, SCAResult, sca_rerank

CUTOFFS = (1, 5, 10)  # of Recall@k, as in the paper's tables


@dataclass(frozen=True)
class SCASettings:
    """How SCA resolves collisions; see `sca_rerank`. The defaults are the paper's."""

    confidence: Confidence = "score"
    mode: Mode = "deferred"
    max_shift: int = 1
    tau: float = 0.0
    capacity: int = 1
    text_threshold: float | None = None

    def __post_init__(self) -> None:
        """Lets SCA refuse impossible settings now, and not when hours of ranking are done."""
        self.rerank(np.zeros((1, 1), dtype=np.int64), np.zeros((1, 1)), np.ones((1, 1)))

    def rerank(
        self, indices: Any, scores: Any, text_embeds: Any, query_ids: Sequence[str] | None = None
    ) -> SCAResult:
        """`sca_rerank` with these settings; `text_embeds` (Q, D) are read where there is a threshold."""
        gate = {} if self.text_threshold is None else {"text_embeds": text_embeds}
        return sca_rerank(indices, scores, query_ids=query_ids, **gate, **asdict(self))
