"""The fast matcher against `TPASModel.match`, pair by pair in double precision, and against upstream."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_inputs import spread_match_logits

from tpas.engine.encoding import EncodedTexts
from tpas.engine.fast_matching import AbsorbedAttention, FastMatcher, FewRowsAttention
from tpas.engine.matching import PlainMatcher
from tpas.modeling_tpas import TPASModel
from tpas.models.checkpoint_conversion import build_config, convert_state_dict

REFERENCE = Path(__file__).parents[1] / "data" / "xvlm_reference"
TOKENS = 17  # 16 patches and their mean


@pytest.fixture
def build(tiny_config):
    """A function from a number of cross-modal layers to a model whose weights make scores differ clearly."""

    def build(layers: int, activation: str = "gelu") -> TPASModel:
        tiny_config.num_cross_modal_layers = layers
        tiny_config.text_config.hidden_act = activation
        tiny_config.text_config.num_attention_heads = 4
        return spread_match_logits(TPASModel(tiny_config).eval())

    return build


def random_texts(lengths: list[int], width: int = 32) -> EncodedTexts:
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    hidden_states = torch.randn(*mask.shape, width) * mask[:, :, None]
    return EncodedTexts(torch.randn(len(lengths), 16), hidden_states, mask)


def random_shortlists(queries: int, size: int, gallery: int) -> torch.Tensor:
    return torch.stack([torch.randperm(gallery)[:size] for _ in range(queries)])


@torch.no_grad()
def match_each_pair(model, images, texts: EncodedTexts, shortlists) -> torch.Tensor:
    model = model.double()
    scores = torch.empty(shortlists.shape, dtype=torch.float64)
    for query, shortlist in enumerate(shortlists):
        length = int(texts.attention_mask[query].sum())
        for position, image in enumerate(shortlist):
            hidden = texts.hidden_states[query : query + 1, :length].double()
            scores[query, position] = model.match(images[image][None].double(), hidden, None)[0, 1]
    model.float()
    return scores


def scores_of(matcher, images, texts, shortlists, batch_size=None) -> torch.Tensor:
    """The logits of class 1."""
    return matcher.logits_of_shortlists(images, texts, shortlists, batch_size=batch_size)[:, :, 1]


def assert_close(actual, expected):
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual.double(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("matcher", [FastMatcher, PlainMatcher])
@pytest.mark.parametrize("batch_size", [1, 4, None, 1000])
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_scores_are_those_of_match(build, layers, batch_size, matcher):
    model = build(layers)
    texts, images = random_texts([7, 2, 23, 7, 11, 2]), torch.randn(9, TOKENS, 32)
    shortlists = random_shortlists(6, 4, 8)
    shortlists[:, 1] = 8  # an image that every query has, beside those that few have
    shortlists[0, 0] = shortlists[0, 2]  # and one that a query has twice
    scores = scores_of(matcher(model), images, texts, shortlists, batch_size)
    expected = match_each_pair(model, images, texts, shortlists)
    assert expected.std() > 0.1
    assert_close(scores, expected)
    assert torch.equal(scores.argsort(dim=1, stable=True)[1:], expected.argsort(dim=1, stable=True)[1:])


@pytest.mark.parametrize("activation", ["relu", "gelu_new", "silu"])
def test_the_activation_is_the_configurations(build, activation):
    model = build(2, activation)
    texts, images, shortlists = random_texts([5, 9]), torch.randn(3, TOKENS, 32), random_shortlists(2, 2, 3)
    scores = scores_of(FastMatcher(model), images, texts, shortlists)
    assert_close(scores, match_each_pair(model, images, texts, shortlists))


def test_scores_equal_upstreams():
    weights = {}
    for part in sorted(REFERENCE.glob("checkpoint_*.safetensors")):
        weights |= load_file(part)
    model = TPASModel(build_config(weights, REFERENCE / "swin.json", REFERENCE / "bert.json"))
    model.load_state_dict(convert_state_dict(weights, model).state_dict)
    reference = load_file(REFERENCE / "retrieval_io.safetensors")
    expected = reference["itm_logits_t2i"][:, :, 1]
    texts = EncodedTexts(reference["text_feat"], reference["text_embeds"], reference["text_atts"])
    shortlists = torch.arange(expected.shape[1]).expand(expected.shape)
    scores = scores_of(FastMatcher(model.eval()), reference["image_embeds"], texts, shortlists)
    assert_close(scores, expected.double())


def test_tokens_may_lie_in_a_file_of_half_precision(build, tmp_path):
    model, texts = build(2), random_texts([4, 6, 4])
    images = torch.randn(5, TOKENS, 32).half()
    written = np.memmap(tmp_path / "tokens", dtype=np.float16, mode="w+", shape=tuple(images.shape))
    written[:] = images.numpy()
    written.flush()
    mapped = np.memmap(tmp_path / "tokens", dtype=np.float16, mode="r", shape=tuple(images.shape))
    shortlists = random_shortlists(3, 3, 5)
    scores = scores_of(FastMatcher(model), mapped, texts, shortlists)
    assert_close(scores, match_each_pair(model, images, texts, shortlists))


class CountingRows:
    """An array that keeps account of the rows it is asked for."""

    def __init__(self, array):
        self.array, self.asked = array, []

    def __len__(self):
        return len(self.array)

    def __getitem__(self, rows):
        self.asked.append(np.atleast_1d(rows).tolist())
        return self.array[rows]


@pytest.mark.parametrize(("batch_size", "most_reads"), [(64, 1), (6, 1), (2, 3)])
def test_each_image_is_read_once_as_sorted_rows(build, batch_size, most_reads):
    images = CountingRows(np.random.randn(12, TOKENS, 32).astype(np.float32))
    shortlists = random_shortlists(6, 4, 10)
    shortlists[:, 0] = 11
    scores_of(FastMatcher(build(1)), images, random_texts([3] * 6), shortlists, batch_size)
    rows = sum(images.asked, [])
    assert set(rows) == set(shortlists.flatten().tolist())
    assert all(asked == sorted(set(asked)) for asked in images.asked)
    assert rows.count(11) == most_reads
    if batch_size >= 6:  # no image is in more shortlists than that
        assert len(rows) == len(set(rows))


def test_bf16_is_close(build):
    model = build(3)
    texts, images = random_texts([9, 5, 12]), torch.randn(6, TOKENS, 32)
    shortlists = random_shortlists(3, 6, 6)
    exact = match_each_pair(model, images, texts, shortlists)
    scores = scores_of(FastMatcher(model, dtype=torch.bfloat16), images, texts, shortlists)
    assert scores.dtype == torch.float32
    error = (scores - exact).abs().max()
    assert 1e-4 < error < 0.15 * exact.std() + 0.02


def test_the_model_is_left_as_it_is_and_later_changes_do_not_count(build):
    model = build(2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    texts, images, shortlists = random_texts([5, 8]), torch.randn(4, TOKENS, 32), random_shortlists(2, 3, 4)
    matchers = [FastMatcher(model, dtype) for dtype in (torch.float32, torch.bfloat16)]
    scores = [scores_of(matcher, images, texts, shortlists) for matcher in matchers]
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    for matcher, expected in zip(matchers, scores, strict=True):
        assert torch.equal(scores_of(matcher, images, texts, shortlists), expected)


def test_a_model_in_training_is_refused(build):
    with pytest.raises(ValueError, match="training mode.*call model.eval()"):
        FastMatcher(build(1).train())


@pytest.mark.parametrize("wrong", [-1, 4])
def test_a_shortlist_outside_the_gallery_is_refused(build, wrong):
    images, shortlists = torch.randn(4, TOKENS, 32), torch.tensor([[0, wrong]])
    with pytest.raises(IndexError, match="of 4, from 0"):
        scores_of(FastMatcher(build(1)), images, random_texts([3]), shortlists)


def test_a_batch_of_none_and_a_text_of_none_are_refused(build):
    matcher, images, shortlists = FastMatcher(build(1)), torch.randn(4, TOKENS, 32), torch.tensor([[0]])
    with pytest.raises(ValueError, match="at least 1, got 0"):
        scores_of(matcher, images, random_texts([3]), shortlists, batch_size=0)
    empty = random_texts([3])
    empty.attention_mask[:] = 0
    with pytest.raises(ValueError, match="text 0 has no"):
        scores_of(matcher, images, empty, shortlists)


def test_no_queries_give_no_scores(build):
    texts = EncodedTexts(torch.empty(0, 16), torch.empty(0, 3, 32), torch.empty(0, 3, dtype=torch.long))
    shortlists = torch.empty(0, 4, dtype=torch.long)
    scores = scores_of(FastMatcher(build(2)), torch.randn(4, TOKENS, 32), texts, shortlists)
    assert scores.shape == (0, 4)


def test_few_rows_attend_alike_absorbed_and_projected(build):
    attention = build(2).cross_modal_encoder.layers[-1].cross_attention
    inputs = torch.randn(5, 32), torch.randn(9, 32), [2, 3], [4, 5]
    absorbed, projected = (
        kind(attention, torch.float32)(*inputs) for kind in (AbsorbedAttention, FewRowsAttention)
    )
    torch.testing.assert_close(projected, absorbed, atol=1e-6, rtol=0)


def test_few_rows_of_text_leave_images_unprojected(build):
    model = build(3)
    texts, images = random_texts([7, 2, 15]), torch.randn(9, TOKENS, 32)
    shortlists = random_shortlists(3, 4, 9)
    matcher = FastMatcher(model).for_few_rows(model)
    projected = []
    for attention in matcher.image_attentions:
        attention.key_value.register_forward_hook(lambda *_: projected.append(1))
    # As one query after the other: its tokens meet each image alone.
    for query in range(3):
        own = EncodedTexts(
            *(part[query : query + 1] for part in (texts.embeds, texts.hidden_states)),
            texts.attention_mask[query : query + 1],
        )
        shortlist = shortlists[query : query + 1]
        assert_close(
            scores_of(matcher, images, own, shortlist), match_each_pair(model, images, own, shortlist)
        )
    assert not projected
    # All together an image meets more.
    same = torch.zeros(3, 1, dtype=torch.long)
    assert torch.equal(
        scores_of(matcher, images, texts, same), scores_of(FastMatcher(model), images, texts, same)
    )
    assert len(projected) == 2


def test_rounded_scores_err_as_bf16_does(build):
    model = build(3)
    texts, images = random_texts([7, 2, 23]), torch.randn(20, TOKENS, 32)
    shortlists = random_shortlists(3, 12, 20)
    expected = match_each_pair(model, images, texts, shortlists)
    errors = [
        (
            scores_of(FastMatcher(model, torch.bfloat16, rounds_scores=rounds), images, texts, shortlists)
            - expected
        )
        .abs()
        .mean()
        for rounds in (False, True)
    ]
    assert 0 < errors[1] < 2 * errors[0] < 0.1 * expected.std()
