"""How a gallery is ranked beyond the model: numbers that functions and flags share. No heavy imports."""

from dataclasses import asdict, dataclass

import numpy as np

from ..sca import Confidence, Mode, sca_rerank

CUTOFFS = (1, 5, 10)  # of Recall@k, as in the paper's tables
DEFAULT_MATCHER_SHORTLIST = 10  # a vision-language model takes long for a pair


@dataclass(frozen=True)
class SCASettings:
    """How SCA resolves collisions; see `sca_rerank`. The defaults are the paper's."""

    confidence: Confidence = "score"
    mode: Mode = "deferred"
    max_shift: int = 1
    tau: float = 0.0
    capacity: int = 1

    def __post_init__(self) -> None:
        """Lets SCA refuse impossible settings now, and not when hours of ranking are done."""
        sca_rerank(np.zeros((1, 1), dtype=np.int64), np.zeros((1, 1)), **asdict(self))
