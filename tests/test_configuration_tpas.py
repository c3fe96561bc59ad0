"""The architecture's numbers: X-VLM base unless told otherwise, and unchanged by saving."""

from pathlib import Path

import pytest
from transformers import BertConfig, SwinConfig

from tpas.configuration_tpas import TPASConfig, stage_maps, stage_window
from tpas.modeling_tpas import TPASModel

APTM = {"embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32]}
APTM |= {"image_size": [384, 128], "window_size": 8}


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


def test_windows_shrink_to_a_smaller_map_as_upstreams_do():
    """APTM's configuration, by hand: 384 x 128 pixels, patches of 4."""
    vision = TPASConfig(vision_config=APTM).vision_config
    assert stage_maps(vision) == [(96, 32), (48, 16), (24, 8), (12, 4)]
    assert [stage_window(vision.window_size, own) for own in stage_maps(vision)] == [8, 8, 8, 4]


def test_a_rectangle_is_kept_and_a_square_is_one_number(tmp_path):
    TPASConfig(vision_config=APTM).save_pretrained(tmp_path)
    assert TPASConfig.from_pretrained(tmp_path).vision_config.image_size == (384, 128)
    assert TPASConfig(vision_config=APTM | {"image_size": [96, 96]}).vision_config.image_size == 96


def test_another_rectangle_keeps_its_windows_or_is_refused_by_its_sides():
    config = TPASConfig(vision_config=APTM)
    config.set_image_size((256, 128))
    assert (config.vision_config.image_size, config.vision_config.window_size) == ((256, 128), 8)
    with pytest.raises(ValueError, match="h 352, w 128: the 88x32 patches of .* 1 cannot be .* 16x16"):
        TPASConfig(vision_config=APTM | {"window_size": 16}).set_image_size((352, 128))
    with pytest.raises(ValueError, match="multiple of 32 pixels, got .*100"):
        config.set_image_size((256, 100))
    assert config.vision_config.image_size == (256, 128)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"vision_config": {"imge_size": 96}}, "SwinConfig in vision_config has no setting imge_size"),
        (
            {"text_config": {"hidden": 3, "vocab": 4}},
            "has no setting hidden and no vocab",
        ),
        ({"max_length_of_texts": 9}, "TPASConfig has no setting max_length_of_texts"),
    ],
)
def test_an_unknown_setting_is_named(caplog, settings, named):
    TPASConfig(**settings)
    assert named in caplog.text


def test_what_is_saved_is_known(tiny_config, tmp_path, caplog):
    TPASModel(tiny_config).save_pretrained(tmp_path)
    TPASConfig.from_pretrained(tmp_path)
    TPASConfig.from_pretrained(Path(__file__).parents[1] / "demo_start")
    assert "no setting" not in caplog.text
