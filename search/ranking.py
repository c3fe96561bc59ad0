"""Rankings on tensors: by embeddings, by new scores of the best, by both together.

A query's ranking depends on its text, the images and their ids, not on the order of the gallery. Equal scores
are ordered by a hash of the gallery id: PAB's file names say which images are normal, and rows follow file
names, so neither may decide.
"""

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from ..reranking.fusion import SystemScores, check_fusion_weight, weighted_sum
from ..reranking.ranked_lists import tie_order

logger = logging.getLogger(__name__)

DEFAULT_SHORTLIST = 128  # images that are re-ranked for each query


def rank_by_embeddings(
    text_embeds: Tensor, image_embeds: Tensor, gallery_ids: Sequence[str]
) -> tuple[Tensor, Tensor]:
    """Stage 1: the gallery for each query, best first.

    Returns:
        Indices (Q, G) into the gallery and their cosines (Q, G), descending.
    """
    ties = torch.tensor(tie_order(gallery_ids))  # (G,)
    # Summed in double and rounded, so that equal images get equal scores wherever they lie in the matrix.
    cosines = (text_embeds.double() @ image_embeds[ties].double().t()).float()  # (Q, G)
    cosines, order = cosines.sort(dim=1, descending=True, stable=True)
    return ties[order], cosines


def resolve_shortlist(shortlist: int | None, gallery_size: int) -> int:
    """The shortlist asked for (`None`: the default), or the whole gallery where that is smaller.

    Raises:
        ValueError: for a shortlist below 1.
    """
    shortlist = DEFAULT_SHORTLIST if shortlist is None else shortlist
    if shortlist < 1:
        raise ValueError(f"the shortlist must be at least 1, got {shortlist}")
    if gallery_size < shortlist:
        logger.info("the gallery has %d images: the shortlist holds all of them", gallery_size)
    return min(shortlist, gallery_size)


def fuse(matching: Tensor, embedding: Tensor, fusion_weight: float) -> Tensor:
    """(1 - w) z(matching) + w z(embedding) of scores (Q, K); z brings a query's K to mean 0 and deviation 1.

    Weight 0 returns the match logits as they are. Where all K scores of a query are equal, z is 0.
    """
    check_fusion_weight(fusion_weight)
    if fusion_weight == 0:
        return matching
    systems = [SystemScores(matching.numpy()), SystemScores(embedding.numpy())]
    return torch.from_numpy(weighted_sum(systems, [1 - fusion_weight, fusion_weight]).scores)


def reorder(shortlists: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """Shortlists (Q, K) by their new scores (Q, K), best first, and these; equal scores keep their order."""
    scores, order = scores.sort(dim=1, descending=True, stable=True)
    return shortlists.gather(1, order), scores


def visits_first(ranking: Tensor, scores: Tensor, visits: Tensor) -> tuple[Tensor, Tensor, int]:
    """Rankings (Q, K) and their scores, the first image of each visit in front of the visits' other images.

    Args:
        visits: (places,) what the images of a visit share.

    Returns:
        (Q, K) both, and how many visits the query with the fewest has.
    """
    orders, counts = [], []
    for row in visits[ranking].tolist():
        firsts = {visit: place for place, visit in reversed(list(enumerate(row)))}
        others = set(range(len(row))).difference(firsts.values())
        orders.append([*sorted(firsts.values()), *sorted(others)])
        counts.append(len(firsts))
    order = torch.tensor(orders)
    return ranking.gather(1, order), scores.gather(1, order), min(counts)


def replace_head(ranking: Tensor, head: Tensor) -> Tensor:
    """A full ranking (Q, G) with its first K images in the new order `head` (Q, K)."""
    return torch.cat([head, ranking[:, head.shape[1] :]], dim=1)
