"""QB-Norm: takes from each image what it is to a bank of training captions.

It looks at the bank and at no other query, so it is not transductive and also serves a single live query.

Bogolin et al., "Cross Modal Retrieval with Querybank Normalisation" (CVPR 2022), with the dynamic inverted
softmax.
"""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from ..sca import (
    best_columns,
    blocks,
    check_count,
    check_temperature,
    checked_arrays,
    checked_input,
    filling_of,
    refuse_rows,
)
from .hubness import DEFAULT_TEMPERATURE, log_sum_of_columns
from .ranked_lists import RerankResult, new_score_type, rescored


@dataclass(frozen=True, eq=False)
class QueryBank:
    """What is kept of a bank of captions: two numbers for each of G images, however many captions there were.

    Attributes:
        log_sums: (G,) the logarithm of the sum over the captions of exp(score / temperature).
        activated: (G,) bool, whether some caption has the image among its best.
        temperature: the one of `log_sums`.
    """

    log_sums: np.ndarray
    activated: np.ndarray
    temperature: float

    @classmethod
    def from_scores(
        cls, bank_scores: Any, *, temperature: float = DEFAULT_TEMPERATURE, activation: int = 1
    ) -> Self:
        """Sums up dense scores (B, G) of B captions, by the same scorer as the queries' and the same gallery.

        Args:
            bank_scores: (B, G), each image scored for each caption. Training captions: those of the test set
                would make it transductive.
            temperature: > 0, in units of the score; 1 / beta of the source, which has beta = 20 for cosines.
            activation: an image is activated if it is among the best so many of a caption (the source: 1).
        """
        check_temperature(temperature)
        _, values = checked_arrays(None, bank_scores)
        if (filling := filling_of(values)) is not None:
            raise ValueError(
                f"the bank's scores hold {filling}, which says that an image was not scored: "
                "score every image for every caption"
            )
        check_count("activation", activation, 1)
        if activation > values.shape[1]:
            raise ValueError(f"activation must be at most the {values.shape[1]} images, got {activation}")
        activated = np.zeros(values.shape[1], dtype=bool)
        activated[best_columns(values, activation)] = True
        return cls(log_sum_of_columns(values, None, temperature), activated, temperature)


def qb_norm(indices: Any, scores: Any, *, bank: QueryBank, top_k: int | None = None) -> RerankResult:
    """New score, where the query's first answer is activated: the score less what the image is to the bank.

    That is `temperature * log(exp(score / temperature) / sum over captions of exp(score / temperature))`, in
    units of the score. A query whose first answer is not activated keeps its scores. Each row is computed
    from that row and the bank alone: a query has the same answer alone and among others, to the bit.

    Args:
        indices: as in [`tpas.sca.sca_rerank`], numbers of the bank's images. `None`: `scores` is dense.
        scores: (Q, K) or (Q, G); Q may be 1.
        bank: of the same G images.
        top_k: how many images to return for each query, after all given have taken part. `None`: all.

    Raises:
        ValueError, TypeError: where the input breaks the above, naming the row or the value.
    """
    images, values = checked_arrays(indices, scores)
    gallery = len(bank.log_sums)
    if images is None and values.shape[1] != gallery:
        raise ValueError(f"the bank has {gallery} images, the dense scores have {values.shape[1]}")
    images, values = checked_input(indices, scores, top_k)
    if images is not None:
        refuse_rows(images >= gallery, f"indices must be below the {gallery} images of the bank", images)
    first = values.argmax(axis=1) if images is None else images[:, 0]
    new = np.empty(values.shape, dtype=new_score_type(values))
    for part in blocks(*values.shape):
        hubness = bank.log_sums[None] if images is None else bank.log_sums[images[part]]
        lowered = values[part] - bank.temperature * hubness
        new[part] = np.where(bank.activated[first[part], None], lowered, values[part])
    return rescored("qb-norm", images, values, new, top_k, indices, scores, transductive=False)
