"""Encoding and matching in batches, against the model's own forward pass over one pair at a time."""

import numpy as np
import pytest
import torch
from tiny_inputs import WORDS, score_each_pair

from tpas.engine.encoding import collated, encode_images, encode_texts
from tpas.engine.fastest import matcher_for


@pytest.fixture
def texts() -> list[str]:
    generator = np.random.default_rng(1)
    return [" ".join(generator.choice(WORDS, length)) for length in (12, 3, 20, 7, 7, 1)]


@pytest.mark.parametrize("batch_size", [1, 4, 1000])
def test_encoding_and_matching_equal_the_model_on_single_pairs(model, processor, images, texts, batch_size):
    cosines, logits = score_each_pair(model, processor, images, texts)
    embeds, tokens = encode_images(model, collated([processor(images=[image]) for image in images]))
    encoded = encode_texts(model, processor, texts, batch_size=batch_size)
    torch.testing.assert_close(encoded.embeds @ embeds.t(), cosines, atol=1e-6, rtol=0)

    shortlists = torch.stack([torch.randperm(len(images))[:3] for _ in texts])
    found = matcher_for(model).logits_of_shortlists(tokens, encoded, shortlists, batch_size=batch_size)
    torch.testing.assert_close(found[:, :, 1], logits.gather(1, shortlists), atol=1e-5, rtol=0)


def test_image_tokens_are_kept_as_asked(model, processor, images):
    inputs = processor(images=images)
    assert encode_images(model, inputs)[1].dtype == torch.float32
    assert encode_images(model, inputs, torch.float16)[1].dtype == torch.float16
    assert encode_images(model, inputs, None)[1] is None


def test_inputs_are_collated_by_name_whatever_their_order():
    first = {"a": torch.zeros(1, 2), "b": torch.ones(1)}
    batch = collated([first, {"b": torch.ones(1) * 3, "a": torch.ones(1, 2)}])
    assert batch["a"].tolist() == [[0, 0], [1, 1]]
    assert batch["b"].tolist() == [1, 3]


def test_some_of_the_encoded_texts(model, processor, texts):
    encoded = encode_texts(model, processor, texts)
    some = encoded[[4, 1]]
    assert len(some) == 2
    assert torch.equal(some.embeds, encoded.embeds[[4, 1]])
    assert torch.equal(some.hidden_states, encoded.hidden_states[[4, 1]])
    assert torch.equal(some.attention_mask, encoded.attention_mask[[4, 1]])


def test_an_empty_text_is_named_by_its_place_in_the_caller_s_order(model, processor, texts):
    with pytest.raises(ValueError, match="caption 4 is empty, or punctuation alone"):
        encode_texts(model, processor, [*texts[:4], "?!", *texts[4:]], batch_size=2)


def test_a_batch_of_none_is_refused(model, processor, texts):
    with pytest.raises(ValueError, match="batch size must be at least 1, got 0"):
        encode_texts(model, processor, texts, batch_size=0)
