"""Why a text and an image match: where each word looks, and which words speak for it or against it.

Where a word looks is Grad-CAM (https://arxiv.org/abs/1610.02391) on a cross-modal layer's attention, as in
ALBEF (https://arxiv.org/abs/2107.07651, section 6.3) and X-VLM. What a word does is measured by hiding it.
Neither says what an image shows, only what the model went by.
"""

import re
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..configuration_tpas import stage_maps
from ..modeling_tpas import CrossModalAttention, CrossModalLayer, TPASModel, eager_attention
from ..processing_tpas import TPASProcessor, clean_caption

# From low to high: violet, red, orange, yellow; brighter throughout, so that the colour-blind see the order.
HEAT_COLOURS = ((48, 18, 110), (160, 30, 110), (230, 70, 50), (252, 160, 30), (255, 240, 100))
MOST_OPACITY = 0.8
TEXTS_AT_ONCE = 32


@dataclass(frozen=True)
class Explanation:
    """What spoke for a match, and where the words looked.

    Attributes:
        words: the W words that the model read, as the processor cleans them.
        unread_words: those after its longest text, which had no influence.
        match_logit: of the whole text with the image; what a search ranks by.
        effects: (W,) in logits: `match_logit` less that with this one word hidden, its tokens masked out of
            every attention while the others keep their places. Above 0 the word speaks for the match,
            below 0 against it. (To write the text without it would move the words behind it, which
            alone changes the logit.)
        maps: (W, h, w), at least 0, over the grid of the image's patches, top left first. For each patch
            the mean over the heads of a max(0, d match_logit / d a), where a is the attention that the word
            pays to the patch; summed over the word's wordpieces. They are comparable between words.
        text_map: (h, w), the same for all tokens together, [CLS] and [SEP] included.
    """

    words: list[str]
    unread_words: list[str]
    match_logit: float
    effects: Tensor
    maps: Tensor
    text_map: Tensor


def explain(
    model: TPASModel, processor: TPASProcessor, image: Image.Image, text: str, layer: int | None = None
) -> Explanation:
    """Explains the match logit of one image and one text; the model is put into evaluation mode.

    Args:
        layer: the cross-modal layer whose attention is shown, from 0. `None`: ALBEF's and X-VLM's choice, the
            third of six, and in other models the middle one. In the last layer only [CLS] has an
            influence on the score, so the words' maps are all 0 there.

    Raises:
        ValueError: an empty text, or no such layer.
    """
    model.eval()
    pixel_values = processor(images=[image])["pixel_values"].to(model.device, model.dtype)
    with torch.no_grad():
        tokens = model.get_image_features(pixel_values).last_hidden_state  # (1, 1+N, Dv)
    assert tokens is not None
    return explain_tokens(model, processor, tokens, text, layer)


def explain_tokens(
    model: TPASModel, processor: TPASProcessor, image_tokens: Tensor, text: str, layer: int | None = None
) -> Explanation:
    """As `explain`, from the image tokens (1, 1+N, image width) that a gallery keeps."""
    model.eval()
    layers = len(model.cross_modal_encoder.layers)
    layer = (layers - 1) // 2 if layer is None else layer
    if not 0 <= layer < layers:
        raise ValueError(f"the model has cross-modal layers 0 to {layers - 1}, got {layer}")

    words, unread_words, input_ids, word_of_token = split_into_words(processor, text)
    input_ids = input_ids.to(model.device)
    with torch.no_grad():
        text_states = model.get_text_features(input_ids).last_hidden_state  # (1, L, D)
    assert text_states is not None
    with torch.inference_mode(False), torch.enable_grad():  # autograd refuses tensors of inference mode
        image_tokens = image_tokens.clone().to(model.device, model.dtype)
        logits, attention, gradient = _attention_and_gradient(model, image_tokens, text_states, layer)
    without = _logits_without_words(model, image_tokens, input_ids, word_of_token, len(words))
    # Token 0 is the image's mean, which lies nowhere in it.
    weighted = (attention * gradient.clamp(min=0))[0, :, :, 1:].mean(dim=0).float().cpu()  # (L, N)
    token_maps = weighted.unflatten(1, stage_maps(model.config.vision_config)[-1])  # (L, h, w)
    maps = torch.zeros(len(words), *token_maps.shape[1:])
    for token, word in enumerate(word_of_token):
        if word is not None:
            maps[word] += token_maps[token]
    return Explanation(
        words=words,
        unread_words=unread_words,
        match_logit=float(logits[0, 1]),
        effects=float(logits[0, 1]) - without,
        maps=maps,
        text_map=token_maps.sum(dim=0),
    )


def split_into_words(
    processor: TPASProcessor, text: str
) -> tuple[list[str], list[str], Tensor, list[int | None]]:
    """The words of a text that the model reads, those it does not, and the tokens of the former.

    Returns:
        words (W), words after the longest text, token ids (1, L), each token's word (None: [CLS] or [SEP]).
    """
    features = processor(text=[text], return_offsets_mapping=True)
    caption = clean_caption(text) if processor.clean_captions else text
    words = [(match.start(), match.group()) for match in re.finditer(r"\S+", caption)]
    word_of_token = [
        None if start == end else bisect_right(words, start, key=lambda word: word[0]) - 1
        for start, end in features["offset_mapping"][0].tolist()
    ]
    read = 1 + max((word for word in word_of_token if word is not None), default=-1)
    if not read:
        raise ValueError(f"{text!r} has no words that the model reads")
    words = [word for _, word in words]
    return words[:read], words[read:], features["input_ids"], word_of_token


def heat_map(image: Image.Image, values: Tensor, scale: float | None = None) -> Image.Image:
    """The image with a map (h, w) laid over it: bright where the map is high, untouched where it is 0.

    Args:
        scale: the value that is shown brightest; `None`: the map's own maximum. Give the maximum of several
            maps to compare them.
    """
    layer = heat_layer(values, scale).resize(image.size, Image.Resampling.BICUBIC)
    return Image.alpha_composite(image.convert("RGBA"), layer).convert("RGB")


def heat_layer(values: Tensor, scale: float | None = None) -> Image.Image:
    """A map (h, w) as a transparent RGBA image of w x h pixels, one a patch; `scale` as for `heat_map`."""
    scale = float(values.max()) if scale is None else scale
    share = (values.float().numpy() / scale if scale > 0 else np.zeros(values.shape)).clip(0, 1)
    stops = np.linspace(0, 1, len(HEAT_COLOURS))
    red, green, blue = (np.interp(share, stops, channel) for channel in zip(*HEAT_COLOURS, strict=True))
    opacity = 255 * MOST_OPACITY * share
    return Image.fromarray(np.stack([red, green, blue, opacity], axis=-1).round().astype(np.uint8), "RGBA")


def _attention_and_gradient(
    model: TPASModel, image_tokens: Tensor, text_states: Tensor, chosen: int
) -> tuple[Tensor, Tensor, Tensor]:
    """`model.match` of one pair, with one layer's attention to the image left open.

    Returns:
        logits (1, 2), the attention (1, H, L, 1+N), and the match logit's gradient with respect to it.
    """
    # One text without padding needs no mask. As a leaf with a gradient it serves frozen models as well.
    text_states = text_states.clone().requires_grad_()
    attention = None
    for number, layer in enumerate(cast(Iterable[CrossModalLayer], model.cross_modal_encoder.layers)):
        if number == chosen:
            text_states, _ = layer.self_attention(text_states, text_states)
            text_states, attention = _attend_openly(layer.cross_attention, text_states, image_tokens)
            text_states = layer.feed_forward(text_states)
        else:
            text_states, _ = layer(text_states, None, image_tokens, None)
    assert attention is not None, "one of the layers is the chosen one"
    logits = model.matching_head(text_states[:, 0])
    (gradient,) = torch.autograd.grad(logits[0, 1], attention)
    return logits.detach(), attention.detach(), gradient


def _attend_openly(
    attention: CrossModalAttention, text_states: Tensor, image_tokens: Tensor
) -> tuple[Tensor, Tensor]:
    """`attention` of text (1, L, D) to image tokens, written out whatever the model's implementation is."""
    context, weights = eager_attention(
        attention,
        attention.split_heads(attention.query(text_states)),
        attention.split_heads(attention.key(image_tokens)),
        attention.split_heads(attention.value(image_tokens)),
        attention_mask=None,
        scaling=attention.scaling,
    )
    context = context.reshape(text_states.shape)
    return attention.layer_norm(attention.dense(context) + text_states), weights


@torch.no_grad()
def _logits_without_words(
    model: TPASModel, image_tokens: Tensor, input_ids: Tensor, word_of_token: list[int | None], words: int
) -> Tensor:
    """(W,): the match logit with each of the words hidden in turn."""
    words_of_tokens = torch.tensor([-1 if word is None else word for word in word_of_token])  # (L,)
    logits = []
    for hidden in torch.arange(words).split(TEXTS_AT_ONCE):
        mask = (words_of_tokens != hidden[:, None]).long().to(model.device)  # (n, L)
        text = model.get_text_features(input_ids.expand(len(mask), -1), mask)
        assert text.last_hidden_state is not None
        logits.append(model.match(image_tokens.expand(len(mask), -1, -1), text.last_hidden_state, mask)[:, 1])
    return torch.cat(logits).float().cpu()
