"""The architecture's numbers: X-VLM base unless told otherwise, and unchanged by saving."""

import pytest
from transformers import BertConfig, SwinConfig

from tpas.configuration_tpas import TPASConfig


def test_defaults_are_xvlm_base_at_384():
    config = TPASConfig()
    vision, text = config.vision_config, config.text_config
    assert (vision.image_size, vision.patch_size, vision.window_size) == (384, 4, 12)
    assert (vision.embed_dim, vision.depths, vision.num_heads) == (128, [2, 2, 18, 2], [4, 8, 16, 32])
    assert (vision.hidden_size, vision.drop_path_rate) == (1024, 0.1)
    assert (text.vocab_size, text.hidden_size, text.num_attention_heads) == (30522, 768, 12)
    assert (text.intermediate_size, text.num_hidden_layers, text.hidden_dropout_prob) == (3072, 6, 0.1)
    assert (config.num_cross_modal_layers, config.projection_dim) == (6, 256)
    assert (config.init_temperature, config.max_text_length) == (0.07, 70)


def test_two_configurations_share_nothing():
    first = TPASConfig()
    first.vision_config.depths.append(1)
    first.text_config.vocab_size = 7
    assert TPASConfig().vision_config.depths == [2, 2, 18, 2]
    assert TPASConfig().text_config.vocab_size == 30522


def test_json_round_trip_keeps_every_number(tiny_config, tmp_path):
    tiny_config.init_temperature = 0.05
    tiny_config.save_pretrained(tmp_path)
    loaded = TPASConfig.from_pretrained(tmp_path)
    assert loaded.to_diff_dict() == tiny_config.to_diff_dict()
    assert isinstance(loaded.vision_config, SwinConfig)
    assert isinstance(loaded.text_config, BertConfig)
    assert loaded.vision_config.to_dict() == tiny_config.vision_config.to_dict()
    assert loaded.text_config.to_dict() == tiny_config.text_config.to_dict()
    assert (loaded.init_temperature, loaded.max_text_length, loaded.projection_dim) == (0.05, 24, 16)


def test_sub_configurations_are_accepted_as_objects():
    vision, text = SwinConfig(image_size=224, window_size=7), BertConfig(num_hidden_layers=3)
    config = TPASConfig(vision_config=vision, text_config=text)
    assert config.vision_config.image_size == 224
    assert config.text_config.num_hidden_layers == 3


@pytest.mark.parametrize(("image_size", "fits"), [(384, True), (383, False), (224, False)])
def test_a_window_larger_than_the_last_feature_map_is_refused(image_size, fits):
    settings = {"image_size": image_size, "window_size": 12}
    if fits:
        assert TPASConfig(vision_config=settings).vision_config.window_size == 12
    else:
        with pytest.raises(ValueError, match=f"image_size {image_size} leaves .* one window of 12"):
            TPASConfig(vision_config=settings)
