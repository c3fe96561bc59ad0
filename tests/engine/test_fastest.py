"""What encodes and matches: the engine's own code where it gives the model's values, else the model's."""

import pytest
import torch
from tiny_retrieval_models import save_tiny

from tpas.engine.fast_encoding import FastEncoder, FastTextEncoder
from tpas.engine.fast_matching import FastMatcher
from tpas.engine.fastest import encoder_for, matcher_for, text_encoder_for
from tpas.engine.matching import PlainMatcher
from tpas.modeling_tpas import TPASModel
from tpas.models.loading import load_model
from tpas.models.lora import add_lora


def test_ours_in_fp32_on_a_cpu_is_encoded_and_matched_fast(model):
    assert type(encoder_for(model)) is FastEncoder
    assert type(text_encoder_for(model)) is FastTextEncoder
    assert type(matcher_for(model)) is FastMatcher
    fixed = encoder_for(model, images_per_batch=3, texts_per_batch=5)
    assert (fixed.images_per_batch, fixed.texts_per_batch) == (3, 5)


def test_in_another_precision_the_model_encodes_and_the_matcher_has_its_own(model):
    model = model.to(torch.bfloat16)
    assert encoder_for(model) is text_encoder_for(model) is model
    assert matcher_for(model).dtype == torch.bfloat16
    assert matcher_for(model, torch.float32).dtype == torch.float32


def test_an_adapter_that_is_not_merged_is_the_models_own_affair(model):
    adapted: TPASModel = add_lora(model, rank=2, alpha=2, dropout=0.0).get_base_model().eval()
    assert encoder_for(adapted) is text_encoder_for(adapted) is adapted
    assert type(matcher_for(adapted)) is PlainMatcher
    with pytest.raises(ValueError, match="in its own precision alone, torch.float32, not in torch.b"):
        matcher_for(adapted, torch.bfloat16)


def test_a_model_of_another_library_is_used_as_it_is(tmp_path):
    other, _ = load_model(str(save_tiny("blip", tmp_path / "blip")))
    other.eval()
    assert encoder_for(other) is text_encoder_for(other) is other
    assert type(matcher_for(other)) is PlainMatcher


def test_a_model_in_training_is_refused(model):
    for choose in (encoder_for, text_encoder_for, matcher_for):
        with pytest.raises(ValueError, match="training mode"):
            choose(model.train())
