"""evaluation/ranking.py: the same bit for any batch size, memory, order and number of processes; memory."""

import gc
import itertools
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from accelerate import Accelerator, debug_launcher
from accelerate.state import AcceleratorState
from PIL import Image
from tiny_inputs import WORDS, tiny_processor

from tpas.configuration_tpas import TPASConfig
from tpas.engine.fast_matching import FastMatcher
from tpas.evaluation.ranking import IMAGES_IN_A_BATCH, PAIRS_IN_A_BATCH, Rankings, rank_gallery
from tpas.evaluation.settings import SCASettings
from tpas.modeling_tpas import TPASModel
from tpas.models.lora import add_lora
from tpas.processing_tpas import TPASProcessor

IMAGES, QUERIES, SHORTLIST = 70, 15, 20  # five batches of images, the last not full
BATCH_OF_TOKENS = IMAGES_IN_A_BATCH * 17 * 32 * 4  # bytes, of the tiny model


def alike_images() -> list[Image.Image]:
    """Images that differ in one pixel by one step, so that scores differ in their last digits only."""
    generator = np.random.default_rng(0)
    pixels = generator.integers(1, 255, (32, 32, 3), dtype=np.uint8)
    images = []
    for _ in range(IMAGES):
        other = pixels.copy()
        other[tuple(generator.integers(0, 32, 2))] += 1
        images.append(Image.fromarray(other))
    return images


def build(config: TPASConfig) -> tuple[TPASModel, TPASProcessor]:
    torch.manual_seed(0)
    return TPASModel(config), tiny_processor(config)


def made_up_captions() -> list[str]:
    generator = np.random.default_rng(1)
    return [" ".join(generator.choice(WORDS, 3 + row % 7)) for row in range(QUERIES)]


def rank(config: TPASConfig, query_order=None, gallery_order=None, model=None, **settings) -> Rankings:
    """The alike images, ranked; the orders permute what is given, not what is asked."""
    built, processor = build(config)
    captions, images = made_up_captions(), alike_images()
    query_order = range(QUERIES) if query_order is None else query_order
    gallery_order = range(IMAGES) if gallery_order is None else gallery_order
    return rank_gallery(
        model or built,
        processor,
        [captions[row] for row in query_order],
        [f"query {row:02}" for row in query_order],
        [images[column] for column in gallery_order],
        [f"image {column:02}" for column in gallery_order],
        watched=[[gallery_order.index(row), gallery_order.index(69 - row)] for row in query_order],
        **{"shortlist": SHORTLIST, "fusion_weight": 0.4, "sca": SCASettings(max_shift=3)} | settings,
    )


def assert_equal(one: Rankings, other: Rankings) -> None:
    assert one.indices.keys() == other.indices.keys()
    for stage in one.indices:
        assert torch.equal(one.indices[stage], other.indices[stage]), stage
        assert torch.equal(one.scores[stage], other.scores[stage]), stage
        np.testing.assert_array_equal(one.watched_ranks[stage], other.watched_ranks[stage])
    assert torch.equal(one.moved, other.moved)
    assert one.sca_report == other.sca_report


@pytest.fixture
def reference(tiny_config) -> Rankings:
    return rank(tiny_config)


def test_neighbours_are_close_enough_for_the_last_digit_to_matter(reference):
    """Else the tests below would show nothing: a batch of another shape moves scores by about 1e-7."""
    gaps = -reference.scores["matching"].diff(dim=1)
    assert (gaps < 1e-7).float().mean() > 0.5


@pytest.mark.parametrize("batch_size", [1, 3, 64])
@pytest.mark.parametrize("batches_kept", [0, 2.5, 100])
def test_batch_size_and_memory_change_nothing(tiny_config, reference, batch_size, batches_kept):
    memory = int(batches_kept * BATCH_OF_TOKENS)
    assert_equal(rank(tiny_config, batch_size=batch_size, token_memory=memory), reference)


def test_the_order_of_queries_and_gallery_changes_nothing(tiny_config, reference):
    generator = np.random.default_rng(2)
    query_order, gallery_order = (generator.permutation(count).tolist() for count in (QUERIES, IMAGES))
    permuted = rank(tiny_config, query_order, gallery_order, batch_size=20)
    restored = torch.tensor(gallery_order)
    for stage in reference.indices:
        assert torch.equal(restored[permuted.indices[stage]], reference.indices[stage][query_order]), stage
        assert torch.equal(permuted.scores[stage], reference.scores[stage][query_order]), stage
        watched = np.array(reference.watched_ranks[stage])[query_order]
        np.testing.assert_array_equal(permuted.watched_ranks[stage], watched)
    assert permuted.sca_report == reference.sca_report


def test_scores_are_those_of_single_pairs_and_ranks_those_of_whole_rankings(tiny_config, reference):
    model, processor = build(tiny_config)
    model.eval()
    with torch.no_grad():
        features = model.get_image_features(processor(images=alike_images())["pixel_values"])
        for row in (0, 7, 14):
            inputs = processor(text=[made_up_captions()[row]])
            text = model.get_text_features(**inputs)
            cosines = (features.pooler_output @ text.pooler_output[0])[reference.indices["embeddings"][row]]
            torch.testing.assert_close(reference.scores["embeddings"][row], cosines, atol=1e-6, rtol=0)
            tokens = features.last_hidden_state[reference.indices["matching"][row]]
            hidden, mask = text.last_hidden_state, inputs["attention_mask"]
            logits = model.match(tokens, hidden.expand(SHORTLIST, -1, -1), mask.expand(SHORTLIST, -1))[:, 1]
            torch.testing.assert_close(reference.scores["matching"][row], logits, atol=1e-6, rtol=0)

    # With a shortlist of all, each stage's list is the whole ranking.
    first = rank(tiny_config, shortlist=IMAGES).indices["embeddings"]
    assert torch.equal(first[:, :SHORTLIST], reference.indices["embeddings"])
    for stage, head in reference.indices.items():
        order = torch.cat([head, first[:, SHORTLIST:]], dim=1).tolist()  # the embeddings' beyond the head
        for row in range(QUERIES):
            expected = [order[row].index(row) + 1, order[row].index(69 - row) + 1]
            assert reference.watched_ranks[stage][row].tolist() == expected, stage


def rank_on_two_processes(folder: Path, config: TPASConfig) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator()
    ranked = rank(config, batch_size=3, token_memory=2 * BATCH_OF_TOKENS, accelerator=accelerator)
    name = f"{accelerator.process_index}_of_{accelerator.num_processes}.pt"
    torch.save([ranked.indices, ranked.scores, ranked.watched_ranks, ranked.moved], folder / name)


def test_two_processes_give_the_bits_of_one(tiny_config, reference, tmp_path):
    debug_launcher(rank_on_two_processes, (tmp_path, tiny_config), num_processes=2)
    for name in ("0_of_2.pt", "1_of_2.pt"):
        indices, scores, watched_ranks, moved = torch.load(tmp_path / name, weights_only=False)  # ours
        both = Rankings(indices, scores, watched_ranks, "fused", moved, reference.sca_report)
        assert_equal(both, reference)


@pytest.mark.parametrize("fast", [True, False])
def test_no_more_tokens_are_in_memory_than_allowed_and_one_unit(tiny_config, monkeypatch, fast):
    width = tiny_config.vision_config.hidden_size
    in_memory, calls = [], itertools.count()
    matcher, model = FastMatcher, build(tiny_config)[0]
    if not fast:  # as with an adapter, whose matcher is the model itself
        matcher, model = TPASModel, add_lora(model, 2, 4, 0.0).base_model.model

    def bytes_of_tokens():
        everything = [item for item in gc.get_objects() if type(item) is torch.Tensor]
        storages = {
            item.untyped_storage().data_ptr(): item.untyped_storage().nbytes()
            for item in everything
            if item.ndim == 3 and item.shape[1:] == (17, width)
        }
        return sum(storages.values())

    def count(*arguments):
        if next(calls) % 8 == 0:  # to look at every object takes long
            in_memory.append(bytes_of_tokens() - before)
        return match(*arguments)

    before = bytes_of_tokens()  # other tests may have left some
    match = matcher.match
    monkeypatch.setattr(matcher, "match", count)
    copied = 1 if fast else PAIRS_IN_A_BATCH / IMAGES_IN_A_BATCH  # batches of images, for pairs
    for batches_kept, bounded in ((0, True), (2, True), (100, False)):
        in_memory.clear()
        settings = {"batch_size": IMAGES_IN_A_BATCH, "token_memory": batches_kept * BATCH_OF_TOKENS}
        rank(tiny_config, model=model, **settings)
        # The kept batches, the one being matched, and the pairs' copy of their images' tokens.
        bound = (min(batches_kept, 2) + 1 + copied) * BATCH_OF_TOKENS
        assert max(in_memory) > 0
        assert (max(in_memory) <= bound) == bounded


def test_a_model_with_an_adapter_is_asked_itself_and_gives_the_scores_of_the_fast_way(tiny_config):
    plain, processor = build(tiny_config)
    adapted = add_lora(build(tiny_config)[0], 2, 4, 0.0).base_model.model  # a new adapter changes nothing
    given = ["a man", "red hat"], ["1", "2"], alike_images()[:3], ["a", "b", "c"]
    ranked = []
    for model, asked in ((plain, []), (adapted, [6])):
        model.match = Mock(wraps=model.match)
        ranked.append(rank_gallery(model, processor, *given, shortlist=3).scores["matching"])
        assert [len(call.args[1]) for call in model.match.call_args_list] == asked
    torch.testing.assert_close(*ranked, atol=1e-5, rtol=0)


def test_impossible_numbers_are_refused(tiny_config):
    with pytest.raises(ValueError, match="batch size must be at least 1, got 0"):
        rank(tiny_config, batch_size=0)
    with pytest.raises(ValueError, match="memory for tokens must be at least 0 bytes, got -1"):
        rank(tiny_config, token_memory=-1)
    with pytest.raises(ValueError, match="max_shift must be at least 0, got -1"):
        SCASettings(max_shift=-1)


@torch.no_grad()
@pytest.mark.parametrize(
    ("broken", "of_all", "first"),
    [("image", "70 of 70", "image 'image 00'"), ("text", "4 of 15", "query 'query 11'")],
)
def test_an_embedding_that_is_not_finite_is_named_before_the_matching(tiny_config, broken, of_all, first):
    model, processor = build(tiny_config)
    if broken == "image":
        model.image_projection.bias[0] = torch.nan
    else:  # a word of four captions
        green = processor.tokenizer.vocab["green"]
        model.text_model.embeddings.word_embeddings.weight[green] = torch.nan
    matcher = Mock(pairs_per_batch=8, match_images=Mock(side_effect=AssertionError("it matched")))
    with pytest.raises(ValueError, match=f"^{of_all} embeddings are not finite, the first of {first}"):
        rank(tiny_config, model=model, matcher=matcher)
