"""The cascade against fp32 alone: over made scores whose errors are known, and over a model."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_inputs import spread_match_logits

from tpas.engine.encoding import EncodedTexts
from tpas.engine.fast_matching import FastMatcher
from tpas.engine.matching_cascade import (
    ERROR_FACTOR,
    LEAST_ERROR_BOUND,
    MatchingCascade,
    even_batch_size,
)
from tpas.modeling_tpas import TPASModel


class Table:
    """Stands in for a matcher: the logits (Q, G) of class 1 are given."""

    device, pairs_per_batch = torch.device("cpu"), 24

    def __init__(self, scores: torch.Tensor):
        self.scores, self.asked = scores, []

    def logits_of_shortlists(self, images, texts, shortlists, batch_size):
        return torch.stack([torch.zeros(shortlists.shape), self.scores.gather(1, shortlists)], dim=2)

    def read_texts(self, texts):
        return texts

    def logits_of_pairs(self, images, texts, queries, of_images, batch_size):
        self.asked += list(zip(queries.tolist(), of_images.tolist(), strict=True))
        scores = self.scores[queries, of_images]
        return torch.stack([torch.zeros(len(scores)), scores], dim=1)


def cascade_of(exact: torch.Tensor, screened: torch.Tensor) -> MatchingCascade:
    cascade = object.__new__(MatchingCascade)
    cascade.exact, cascade.screen, cascade.largest_error = Table(exact), Table(screened), 0.0
    return cascade


def run(cascade: MatchingCascade, shortlists: torch.Tensor, top_k: int):
    logits, report = cascade.logits_of_shortlists(None, None, shortlists, top_k)
    return logits[:, :, 1], report


@given(
    seed=st.integers(0, 10_000),
    queries=st.integers(1, 4),
    size=st.integers(1, 30),
    top_k=st.integers(1, 12),
    error=st.sampled_from([0.0, 0.004, 0.3]),
)
def test_the_best_are_those_of_fp32_while_errors_stay_within_the_bound(seed, queries, size, top_k, error):
    generator = torch.Generator().manual_seed(seed)
    exact = torch.randn(queries, size, generator=generator)
    # Errors between a half and the whole of `error`: the first pair seen tells what to reckon with.
    signs = torch.randint(2, exact.shape, generator=generator) * 2 - 1
    screened = exact + signs * error * (0.5 + torch.rand(exact.shape, generator=generator) / 2)
    shortlists = torch.stack([torch.randperm(size, generator=generator) for _ in range(queries)])
    cascade = cascade_of(exact, screened)
    scores, report = run(cascade, shortlists, top_k)

    expected = exact.gather(1, shortlists)
    best = expected.argsort(dim=1, descending=True)[:, :top_k]
    assert torch.equal(scores.argsort(dim=1, descending=True)[:, :top_k], best)
    assert torch.equal(scores.gather(1, best), expected.gather(1, best))
    asked = cascade.exact.asked
    assert len(asked) == len(set(asked)) == report.pairs_in_fp32
    assert report.pairs == queries * size
    assert report.error_bound >= max(LEAST_ERROR_BOUND, error)
    # No more is read than can matter: what is asked beyond the first `top_k` is within two bounds of them.
    least = expected.gather(1, best)[:, -1]
    for query, image in asked:
        assert screened[query, image] >= least[query] - 2 * report.error_bound - 1e-6


def test_a_larger_error_seen_later_widens_the_search():
    exact = torch.tensor([[5.0, 4.0, 3.995, 3.0]])
    screened = torch.tensor([[5.0, 4.0, 3.695, 3.5]])  # of the third the error is 0.3
    cascade = cascade_of(exact, screened)
    scores, report = run(cascade, torch.arange(4)[None], 2)
    assert report.pairs_in_fp32 == 2  # so far nothing said that bf16 could be wrong by more than the least
    assert report.error_bound == LEAST_ERROR_BOUND

    screened[0, 2] = 3.992  # within the least bound of the second; and the fourth is wrong by 0.5
    cascade = cascade_of(torch.tensor([[5.0, 4.0, 4.192, 3.7]]), screened)
    scores, report = run(cascade, torch.arange(4)[None], 2)
    assert cascade.exact.asked == [(0, 0), (0, 1), (0, 2)]
    assert scores[0].tolist() == pytest.approx([5, 4, 4.192, 3.5])
    assert report.error_bound == pytest.approx(ERROR_FACTOR * 0.2)
    assert report.share_saved == 0.25
    assert str(report) == "of 4 pairs fp32 read 3, 25.0% were saved (error bound of bf16: 0.400)"

    run(cascade, torch.arange(4)[None], 2)  # what was learnt stays
    assert cascade.error_bound == pytest.approx(ERROR_FACTOR * 0.2)


@pytest.mark.parametrize(("pairs", "expected"), [(0, 1), (1, 1), (10, 5), (49, 13), (128, 22), (253_184, 24)])
def test_two_threads_have_equal_parts_of_a_few_pairs(pairs, expected):
    assert even_batch_size(Table(torch.empty(0)), pairs, threads=2) == expected


@pytest.fixture
def model(tiny_config) -> TPASModel:
    tiny_config.num_cross_modal_layers = 2
    return spread_match_logits(TPASModel(tiny_config).eval())


def test_a_models_best_are_those_of_fp32(model):
    mask = (torch.arange(9) < torch.tensor([3, 9, 5, 7])[:, None]).long()
    texts = EncodedTexts(torch.randn(4, 16), torch.randn(4, 9, 32) * mask[:, :, None], mask)
    images = torch.randn(60, 17, 32).half().numpy()
    shortlists = torch.stack([torch.randperm(60)[:40] for _ in range(4)])
    expected = FastMatcher(model).logits_of_shortlists(images, texts, shortlists)
    logits, report = MatchingCascade(model).logits_of_shortlists(images, texts, shortlists, 5)
    best = expected[:, :, 1].argsort(dim=1, descending=True)[:, :5]
    assert torch.equal(logits[:, :, 1].argsort(dim=1, descending=True)[:, :5], best)
    rows = np.arange(4)[:, None]
    torch.testing.assert_close(logits[rows, best], expected[rows, best], atol=1e-5, rtol=0)
    assert 0.3 < report.share_saved < 1
    assert (logits - expected).abs().max() > 1e-4  # the others have their bf16 logits


def test_no_queries_save_nothing(model):
    texts = EncodedTexts(torch.empty(0, 16), torch.empty(0, 3, 32), torch.empty(0, 3, dtype=torch.long))
    shortlists = torch.empty(0, 4, dtype=torch.long)
    logits, report = MatchingCascade(model).logits_of_shortlists(torch.randn(4, 17, 32), texts, shortlists, 2)
    assert logits.shape == (0, 4, 2)
    assert report.share_saved == 0
