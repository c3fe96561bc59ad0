import pytest
import torch
from PIL import Image
from transformers import BertTokenizer

from tpas.modeling_tpas import TPASModel
from tpas.processing_tpas import TPASProcessor
from tpas.search.explanation import explain, explain_tokens, heat_layer, heat_map

TEXT = "A man, in a red coat, is running."
WORDS = ["a", "man", "in", "a", "red", "coat", "is", "running"]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS[1:-1], "run", "##ning", "walk", "##ing"]


@pytest.fixture
def model(tiny_config):
    tiny_config.num_cross_modal_layers = 3
    model = TPASModel(tiny_config).double().eval()
    with torch.no_grad():  # freshly made, hardly anything in it depends on the attention
        for parameter in model.parameters():
            parameter.mul_(5 if parameter.ndim > 1 else 1)
    return model


@pytest.fixture
def processor():
    tokenizer = BertTokenizer(vocab={word: index for index, word in enumerate(VOCABULARY)})
    return TPASProcessor.build(tokenizer, image_size=32, max_text_length=24)


@pytest.fixture
def image():
    return Image.fromarray((torch.rand(40, 30, 3) * 255).byte().numpy())


def match_logit(model, processor, image, text, mask=None):
    inputs = processor(images=[image], text=[text])
    inputs["attention_mask"] = inputs["attention_mask"] if mask is None else mask
    inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
    with torch.inference_mode():
        return model(**inputs).match_logits[0, 1].item()


def grad_cam_by_finite_differences(model, processor, image, layer):
    """(L, 16): each attention probability of one layer moved a little, and the pair matched again."""
    model.set_attn_implementation("eager")
    chosen = model.cross_modal_encoder.layers[layer].cross_attention
    seen, step = {}, None

    def move(_, inputs):
        """What goes in are the sums of values, weighted by the probabilities."""
        (context,) = inputs  # (1, L, D)
        return context if step is None else context + (step @ seen["values"]).transpose(1, 2).flatten(2)

    chosen.value.register_forward_hook(lambda _, __, output: seen.update(values=chosen.split_heads(output)))
    chosen.dense.register_forward_pre_hook(move)
    chosen.register_forward_hook(lambda _, __, output: seen.update(probabilities=output[1]))
    inputs = processor(images=[image], text=[TEXT])
    with torch.inference_mode():
        pair = (
            model.get_image_features(inputs["pixel_values"].double()).last_hidden_state,
            model.get_text_features(inputs["input_ids"]).last_hidden_state,
            inputs["attention_mask"],
        )
        model.match(*pair)
    probabilities = seen["probabilities"]
    expected = torch.zeros(probabilities.shape, dtype=torch.double)  # (1, H, L, 17)
    for place in range(expected.numel()):
        logits = []
        for size in (1e-4, -1e-4):
            step = torch.zeros_like(expected)
            step.view(-1)[place] = size
            with torch.inference_mode():
                logits.append(model.match(*pair)[0, 1].item())
        expected.view(-1)[place] = (logits[0] - logits[1]) / 2e-4
    return (probabilities * expected.clamp(min=0))[0, :, :, 1:].mean(dim=0)


@pytest.mark.parametrize(("layer", "image_size"), [(0, 32), (1, 32), (1, (48, 16))])
def test_maps_are_grad_cam_of_the_attention(model, processor, image, layer, image_size):
    model.resize_image(image_size)
    processor.image_size = image_size
    grid = (4, 4) if image_size == 32 else (6, 2)
    explanation = explain(model, processor, image, TEXT, layer)
    tokens = grad_cam_by_finite_differences(model, processor, image, layer)
    assert len(tokens) == 11  # [CLS], seven words of one piece, run ##ning, [SEP]
    words = torch.cat([tokens[1:8], tokens[8:10].sum(dim=0, keepdim=True)]).view(8, *grid)
    assert words.max() > 1e-5
    torch.testing.assert_close(explanation.maps.double(), words, atol=1e-9, rtol=1e-3)
    text_map = tokens.sum(dim=0).view(grid)
    torch.testing.assert_close(explanation.text_map.double(), text_map, atol=1e-9, rtol=1e-3)


def test_the_middle_layer_is_the_default(model, processor, image):
    default, middle = (explain(model, processor, image, TEXT), explain(model, processor, image, TEXT, 1))
    assert torch.equal(default.maps, middle.maps)


def test_effects_are_what_hiding_the_word_costs(model, processor, image):
    """Each text on its own, through the whole model, with the word's columns masked by hand."""
    explanation = explain(model, processor, image, TEXT)
    assert explanation.words == WORDS
    whole = match_logit(model, processor, image, TEXT)
    assert explanation.match_logit == pytest.approx(whole)
    tokens_of_words = [[1], [2], [3], [4], [5], [6], [7], [8, 9]]  # behind [CLS]; run ##ning
    for tokens, effect in zip(tokens_of_words, explanation.effects.tolist(), strict=True):
        mask = torch.ones(1, 11, dtype=torch.long)
        mask[0, tokens] = 0
        hidden = match_logit(model, processor, image, TEXT, mask)
        assert abs(effect) > 1e-5
        assert effect == pytest.approx(whole - hidden, abs=1e-6)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_frozen_models_and_inference_mode_change_nothing(model, processor, image, implementation):
    expected = explain(model, processor, image, TEXT)
    model.requires_grad_(False).train().set_attn_implementation(implementation)
    with torch.inference_mode():
        explanation = explain(model, processor, image, TEXT)
    torch.testing.assert_close(explanation.maps, expected.maps)
    torch.testing.assert_close(explanation.effects, expected.effects)
    assert model.config.text_config._attn_implementation == implementation


def test_no_gradient_is_left_behind(model, processor, image):
    explain(model, processor, image, TEXT)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_image_tokens_of_a_gallery_explain_the_same(model, processor, image):
    pixels = processor(images=[image])["pixel_values"].double()
    with torch.inference_mode():
        tokens = model.get_image_features(pixels).last_hidden_state
    explanation = explain_tokens(model, processor, tokens, TEXT)
    assert torch.equal(explanation.maps, explain(model, processor, image, TEXT).maps)


def test_words_look_nowhere_in_the_last_layer(model, processor, image):
    """The score is read at [CLS], which after the last layer looks at no other token."""
    explanation = explain(model, processor, image, TEXT, layer=2)
    assert not explanation.maps.any()
    assert explanation.text_map.any()


def test_words_beyond_the_longest_text_are_named(model, processor, image):
    processor.max_text_length = 6
    explanation = explain(model, processor, image, TEXT)
    assert explanation.words == WORDS[:4]
    assert explanation.unread_words == WORDS[4:]
    assert len(explanation.maps) == len(explanation.effects) == 4


def test_uncleaned_captions_keep_their_punctuation_with_its_word(model, processor, image):
    processor.clean_captions = False
    explanation = explain(model, processor, image, "  a man,  in a red-coat ")
    assert explanation.words == ["a", "man,", "in", "a", "red-coat"]
    assert explanation.maps.flatten(1).any(dim=1).all()


def test_a_layer_that_is_not_there_is_refused(model, processor, image):
    with pytest.raises(ValueError, match="layers 0 to 2, got 3"):
        explain(model, processor, image, TEXT, layer=3)


def test_an_empty_text_is_refused(model, processor, image):
    with pytest.raises(ValueError, match="empty"):
        explain(model, processor, image, " ,. ")
    with pytest.raises(ValueError, match="has no words that the model reads"):
        explain(model, processor, image, "\u200b")  # a space of no width, as it is pasted from web pages


def test_heat_is_laid_where_the_map_is_high():
    grey = Image.new("RGB", (80, 120), (90, 90, 90))
    values = torch.zeros(6, 4)
    values[4, 1] = 3.0
    shown = heat_map(grey, values)
    assert shown.size == grey.size
    assert shown.getpixel((70, 10)) == (90, 90, 90)  # untouched
    hot = shown.getpixel((30, 90))  # the middle of patch (4, 1)
    assert hot[0] > 200
    assert hot[2] < 130


def test_a_common_scale_makes_maps_comparable():
    values = torch.tensor([[1.0, 0.5]])
    alone, beside = heat_layer(values), heat_layer(values, scale=2.0)
    assert alone.size == (2, 1)
    assert beside.getpixel((0, 0)) == alone.getpixel((1, 0))  # half of the scale
    assert not heat_layer(torch.zeros(2, 2)).getchannel("A").getextrema()[1]
