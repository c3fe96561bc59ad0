"""Rankings on tensors: their order, ties, fusion."""

import hashlib

import numpy as np
import pytest
import torch

from tpas.search.ranking import fuse, rank_by_embeddings, reorder, replace_head, resolve_shortlist
from tpas.search.stages import Stages, ordered


def random_embeds(rows: int) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(rows, 8), dim=1)


# Stage 1


def test_ranking_is_by_cosine_and_ties_are_by_hash_of_the_id():
    texts = random_embeds(5)
    images = random_embeds(12)
    images[[3, 7, 9]] = images[0].clone()
    ids = [f"image {number}" for number in range(12)]
    indices, cosines = rank_by_embeddings(texts, images, ids)

    for query in range(5):
        exact = (texts[query].double() @ images.double().t()).float().tolist()
        expected = sorted(range(12), key=lambda g: (-exact[g], hashlib.blake2b(ids[g].encode()).digest()))
        assert indices[query].tolist() == expected
        assert cosines[query].tolist() == [exact[g] for g in expected]


# The shortlist's size


def test_the_default_shortlist_is_128_or_the_whole_gallery(caplog):
    assert resolve_shortlist(None, 1978) == 128
    assert not caplog.records
    with caplog.at_level("INFO"):
        assert resolve_shortlist(None, 40) == 40
    assert "the gallery has 40 images: the shortlist holds all of them" in caplog.text
    assert resolve_shortlist(40, 40) == 40
    assert resolve_shortlist(41, 40) == 40


# Scores and orders


def test_fusion_is_the_weighted_sum_of_standardised_scores():
    matching, embedding = torch.randn(4, 6) * 9 + 5, torch.randn(4, 6) / 7
    fused = fuse(matching, embedding, 0.3)
    for query in range(4):
        m, e = matching[query].double().numpy(), embedding[query].double().numpy()
        expected = 0.7 * (m - m.mean()) / m.std() + 0.3 * (e - e.mean()) / e.std()
        np.testing.assert_allclose(fused[query].numpy(), expected, rtol=1e-5)
    torch.testing.assert_close(fuse(matching * 4 - 3, embedding, 0.3), fused)


def test_fusion_weight_zero_leaves_the_match_logits_untouched():
    matching = torch.randn(3, 5)
    assert fuse(matching, torch.randn(3, 5), 0.0) is matching


def test_equal_scores_take_no_part_in_a_fusion():
    matching = torch.full((1, 3), 0.1)
    assert fuse(matching, torch.tensor([[3.0, 2.0, 1.0]]), 0.5)[0].tolist() == pytest.approx(
        [0.5 * 1.5**0.5, 0.0, -0.5 * 1.5**0.5]
    )
    assert fuse(matching[:, :1], matching[:, :1], 0.5).tolist() == [[0.0]]


@pytest.mark.parametrize("weight", [-0.1, 1.5])
def test_a_fusion_weight_out_of_range_is_refused(weight):
    with pytest.raises(ValueError, match=f"between 0 .* and 1, got {weight}"):
        fuse(torch.zeros(1, 2), torch.zeros(1, 2), weight)


def test_reordered_shortlists_keep_the_tail_and_equal_scores_keep_their_order():
    ranking = torch.tensor([[4, 2, 0, 3, 1], [1, 0, 2, 4, 3]])
    scores = torch.tensor([[0.1, 0.9, 0.1], [0.5, 0.5, 0.7]])
    head, sorted_scores = reorder(ranking[:, :3], scores)
    assert head.tolist() == [[2, 4, 0], [2, 1, 0]]
    assert sorted_scores.tolist() == [pytest.approx([0.9, 0.1, 0.1]), pytest.approx([0.7, 0.5, 0.5])]
    assert replace_head(ranking, head).tolist() == [[2, 4, 0, 3, 1], [2, 1, 0, 4, 3]]


def test_sca_over_films_keeps_the_visits_that_another_text_has_fewer_of():
    visits = torch.tensor([0, 0, 0, 3, 4, 5])  # of places: three views of the first
    candidates = torch.tensor([[3, 4, 0, 1, 5, 2], [0, 1, 2, 3, 4, 5]])
    scores = torch.tensor([[2.0, 1.0, 4.0, 3.0], [9.0, 8.0, 7.0, 6.0]])
    stages = Stages(candidates, torch.linspace(1, 0, 6).repeat(2, 1), scores)
    ranking, before, _ = ordered(stages, 4, "score", visits)
    assert before.tolist() == [[0, 3, 4, 1, 5, 2], [0, 3, 1, 2, 4, 5]]
    assert ranking.tolist() == [[3, 0, 4, 1, 5, 2], [0, 3, 1, 2, 4, 5]]  # 4 is only in one text's list
