"""The fast encoder against the model itself."""

import pytest
import torch

from tpas.engine.encoding import encode_images, encode_texts
from tpas.engine.fast_encoding import FastEncoder
from tpas.modeling_tpas import TPASModel


@pytest.fixture(params=["gelu", "relu"])
def model(request, tiny_config) -> TPASModel:
    tiny_config.text_config.num_hidden_layers = 2
    tiny_config.text_config.hidden_act = tiny_config.vision_config.hidden_act = request.param
    model = TPASModel(tiny_config).eval()
    for parameter in model.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.15)
    return model


def assert_close(actual, expected, tolerance=1e-5):
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("images_per_batch", [None, 1, 100])
def test_image_features_are_the_models(model, images_per_batch):
    pixels = torch.randn(5, 3, 32, 32)
    expected = model.get_image_features(pixels)
    actual = FastEncoder(model, images_per_batch=images_per_batch).get_image_features(pixels)
    assert_close(actual.last_hidden_state, expected.last_hidden_state)
    assert_close(actual.pooler_output, expected.pooler_output)


@torch.no_grad()
@pytest.mark.parametrize("texts_per_batch", [None, 2])
def test_text_features_are_the_models_and_zero_where_padded(model, texts_per_batch):
    lengths = torch.tensor([9, 2, 24, 2, 17])
    mask = (torch.arange(24) < lengths[:, None]).long()
    input_ids = torch.randint(64, mask.shape)
    expected = model.get_text_features(input_ids, mask)
    actual = FastEncoder(model, texts_per_batch=texts_per_batch).get_text_features(input_ids, mask)
    assert_close(actual.last_hidden_state, expected.last_hidden_state * mask[:, :, None])
    assert_close(actual.pooler_output, expected.pooler_output)


@torch.no_grad()
def test_without_a_mask_every_token_counts(model):
    input_ids = torch.randint(64, (3, 6))
    actual = FastEncoder(model).get_text_features(input_ids)
    assert_close(actual.last_hidden_state, model.get_text_features(input_ids).last_hidden_state)


def test_it_stands_in_for_the_model_in_search(model, processor, images):
    encoder, captions = FastEncoder(model), ["a person runs", "red shirt", "a a a a street"]
    inputs = processor(images=images)
    for actual, expected in zip(encode_images(encoder, inputs), encode_images(model, inputs), strict=True):
        assert_close(actual, expected)
    expected, actual = (encode_texts(m, processor, captions) for m in (model, encoder))
    assert_close(actual.hidden_states, expected.hidden_states)
    assert torch.equal(actual.attention_mask, expected.attention_mask)


def test_bf16_is_close(model, processor, images):
    expected, _ = encode_images(model, processor(images=images))
    actual, _ = encode_images(FastEncoder(model, torch.bfloat16), processor(images=images))
    assert actual.dtype == torch.float32
    assert (actual * expected).sum(dim=1).min() > 0.999
    assert not torch.equal(actual, expected)


@torch.no_grad()
def test_the_model_is_left_as_it_is_and_later_changes_do_not_count(model):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pixels = torch.randn(2, 3, 32, 32)
    encoder = FastEncoder(model, torch.bfloat16)
    first = encoder.get_image_features(pixels.bfloat16()).pooler_output
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == before[name].dtype
        assert torch.equal(tensor, before[name])
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    assert torch.equal(encoder.get_image_features(pixels.bfloat16()).pooler_output, first)


def test_a_model_in_training_and_another_image_size_are_refused(model):
    with pytest.raises(ValueError, match="images of 32x32 pixels, got 48x48"):
        FastEncoder(model).get_image_features(torch.zeros(1, 3, 48, 48))
    with pytest.raises(ValueError, match="training mode.*call model.eval()"):
        FastEncoder(model.train())
