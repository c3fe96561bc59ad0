"""Why a text and an image match: where each word looks, and which words speak for it or against it.

Where a word of a TPAS model looks is Grad-CAM (https://arxiv.org/abs/1610.02391) on a cross-modal layer's
attention, as in ALBEF (https://arxiv.org/abs/2107.07651, section 6.3) and X-VLM. Of other models it is what
hiding a region of the image costs (occlusion, https://arxiv.org/abs/1311.2901, section 4.2). What a word does
is measured by hiding it. Neither says what an image shows, only what the model went by.
"""

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice, pairwise
from typing import cast

import numpy as np
import torch
from PIL import Image, ImageStat
from torch import Tensor

from ..configuration_tpas import stage_maps
from ..engine.encoding import collated, encode_images, encode_texts
from ..engine.matching import PlainMatcher
from ..modeling_tpas import CrossModalAttention, CrossModalLayer, TPASModel, eager_attention
from ..models.interface import RetrievalModel, RetrievalProcessor, can_match
from ..models.unread_texts import as_read, unread_texts
from ..processing_tpas import TPASProcessor, clean_caption

# From low to high: violet, red, orange, yellow; brighter throughout, so that the colour-blind see the order.
HEAT_COLOURS = ((48, 18, 110), (160, 30, 110), (230, 70, 50), (252, 160, 30), (255, 240, 100))
MOST_OPACITY = 0.8
TEXTS_AT_ONCE = 32
GRID = 7  # regions a side that are hidden one at a time; each costs an image's encoding
IMAGES_AT_ONCE = 8


@dataclass(frozen=True)
class Explanation:
    """What spoke for a match, and where the words looked.

    Attributes:
        words: the W words that the model read, as the processor cleans them.
        unread_words: those after its longest text, which had no influence.
        match_logit: of the whole text with the image; what a search ranks by. None of a model without a
            stage 2.
        effects: (W,): the score less that with this one word hidden, its tokens masked out of every attention
            while the others keep their places. Above 0 the word speaks for the match, below 0 against it. (To
            write the text without it would move the words behind it, which alone changes the logit.)
        maps: (W, h, w), at least 0, over the grid of the image's patches, top left first. For each patch
            the mean over the heads of a max(0, d match_logit / d a), where a is the attention that the word
            pays to the patch; summed over the word's wordpieces. They are comparable between words.
        text_map: (h, w), the same for all tokens together, [CLS] and [SEP] included.
        cosine: of the embeddings, where it was needed.
        by_hiding: of another than a TPAS model. There `effects` are what the score loses when the text is
            written without the word; `text_map` what it loses, 0 where it gains, when a region of the image
            is painted over in the image's mean colour; and `maps` how much less of the cosine the region
            costs when the word is left out as well.
    """

    words: list[str]
    unread_words: list[str]
    match_logit: float | None
    effects: Tensor
    maps: Tensor
    text_map: Tensor
    cosine: float | None = None
    by_hiding: bool = False

    @property
    def score(self) -> float:
        """What a search ranks by, and what is explained: the match logit, or without a stage 2 the cosine."""
        score = self.cosine if self.match_logit is None else self.match_logit
        assert score is not None, "there is one of the two"
        return score


def explain(
    model: RetrievalModel,
    processor: RetrievalProcessor,
    image: Image.Image,
    text: str,
    layer: int | None = None,
) -> Explanation:
    """Explains the score of one image and one text; the model is put into evaluation mode.

    Args:
        layer: of a TPAS model: the cross-modal layer whose attention is shown, from 0. `None`: ALBEF's and
            X-VLM's choice, the third of six, and in other models the middle one. In the last layer only [CLS]
            has an influence on the score, so the words' maps are all 0 there.

    Raises:
        ValueError: an empty text, or no such layer.
        TypeError: the processor is that of another kind of model.
    """
    model.eval()
    if not isinstance(model, TPASModel):
        if layer is not None:
            raise ValueError(
                f"layer={layer} is of TPAS models, and {model.name_or_path} is none: leave it out"
            )
        return _explain_by_hiding(model, processor, image, text)
    if not isinstance(processor, TPASProcessor):
        raise TypeError(f"a {type(processor).__name__} is the processor of another model than a TPASModel")
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


@torch.inference_mode()
def _explain_by_hiding(
    model: RetrievalModel, processor: RetrievalProcessor, image: Image.Image, text: str
) -> Explanation:
    words, unread_words = words_read(processor, text)
    # Of a single word nothing would be left to read.
    shorter = [" ".join(words[:left] + words[left + 1 :]) or "." for left in range(len(words))]
    texts = encode_texts(model, processor, [text, *shorter], batch_size=TEXTS_AT_ONCE)
    views = chain([image], _with_hidden_regions(image))  # a large one is not in memory fifty times
    features = []
    while batch := [processor(images=[view]) for view in islice(views, IMAGES_AT_ONCE)]:
        features.append(encode_images(model, collated(batch)))
    embeds = torch.cat([own for own, _ in features])  # (1 + h w, D)
    cosines = embeds @ texts.embeds.t()  # (1 + h w, 1 + W)
    of_views, of_texts = cosines[:, 0], cosines[0]
    match_logit = None
    if can_match(model):
        tokens = torch.cat([own for _, own in features if own is not None])
        matcher = PlainMatcher(model)
        of_views = torch.cat(
            [
                matcher.match(texts, [0] * len(own), own, [1] * len(own))[:, 1]
                for own in tokens.split(IMAGES_AT_ONCE)
            ]
        )
        of_texts = matcher.match(texts, [*range(len(texts))], tokens[:1], [len(texts)])[:, 1]
        match_logit = float(of_texts[0])
    needed = cosines[:1] - cosines[1:]  # (h w, 1 + W), what hiding a region costs each text
    maps = (needed[:, :1] - needed[:, 1:]).clamp(min=0).t()  # (W, h w)
    return Explanation(
        words=words,
        unread_words=unread_words,
        match_logit=match_logit,
        effects=of_texts[0] - of_texts[1:],
        maps=maps.reshape(len(words), GRID, GRID),
        text_map=(of_views[0] - of_views[1:]).clamp(min=0).view(GRID, GRID),
        cosine=float(cosines[0, 0]),
        by_hiding=True,
    )


def words_read(processor: RetrievalProcessor, text: str) -> tuple[list[str], list[str]]:
    """The words of a text that the model reads whole, and those that follow.

    Raises:
        ValueError: it reads none.
    """
    read = as_read(processor, text)
    cut = "".join(unread.cut for unread in unread_texts(processor, [text]))
    words, unread_words = read.removesuffix(cut).split(), cut.split()
    if not words:
        raise ValueError(f"{text!r} has no words that the model reads")
    return words, unread_words


def _with_hidden_regions(image: Image.Image) -> Iterator[Image.Image]:
    """The image with each cell of a grid, top left first, in the mean colour of the whole."""
    mean = tuple(round(channel) for channel in ImageStat.Stat(image).mean)
    columns, rows = (
        [round(side * place / GRID) for place in range(GRID + 1)] for side in (image.width, image.height)
    )
    for top, bottom in pairwise(rows):
        for left, right in pairwise(columns):
            hidden = image.copy()
            hidden.paste(mean, (left, top, right, bottom))
            yield hidden


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
