"""`TPASModel.match` over shortlists with less than half of the arithmetic, and the same scores.

X-VLM's own schedule goes query by query, padded, and computes everything for every pair. Here

- pairs are visited image by image: an image's tokens are read once, and its cross-attention keys and values
  projected once, for all queries whose shortlist holds it;
- the first cross-modal layer's self-attention, which has not seen an image yet, is computed once a query;
- the last layer is computed for [CLS] only, the one row that the matching head reads, and for so few rows
  its key and value projections are absorbed into query and output;
- texts are packed without padding, and linear layers run on the fast path of `packed_layers.py`;
- on a CPU each thread takes a batch of its own (`side_by_side.py`).

`TPASModel.match` stays the readable definition of these scores; the tests compare with it. The speed is
measured by `benchmarks/rerank.py`; beyond the arithmetic it depends on how much of the CPU torch's own
GEMM leaves unused.
"""

from collections.abc import Sequence
from copy import copy, deepcopy
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from ..modeling_tpas import CrossModalAttention, CrossModalLayer, MatchingHead, TPASModel
from .encoding import EncodedTexts
from .matching import Matcher
from .packed_layers import (
    PackedFeedForward,
    PackedLinear,
    PackedSelfAttention,
    pad_rows,
    ragged_attention,
    require_linear,
    without_autocast,
)

# On a CPU some 1,000 rows of text, so that what a layer writes stays in the cache.
CPU_PAIRS_PER_BATCH = 24
GPU_PAIRS_PER_BATCH = 1024
FEW_ROWS = 16  # of text that meet an image: with more, to project the image takes less time


class ImageAttention(nn.Module):
    """A layer's cross-attention for all rows of text."""

    def __init__(self, attention: CrossModalAttention, dtype: torch.dtype, rounds_scores: bool = False):
        """`rounds_scores`: see [`attend_on_cpu`]."""
        super().__init__()
        self.rounds_scores = rounds_scores
        self.query = PackedLinear(attention.query, dtype=dtype)
        self.key_value = PackedLinear(attention.key, attention.value, dtype=dtype)
        self.dense = PackedLinear(attention.dense, dtype=dtype)
        self.layer_norm = deepcopy(attention.layer_norm).to(dtype)
        self.head_size = attention.head_size
        self.scaling = attention.scaling

    def forward(self, hidden_states, query, image_states, text_lengths, image_lengths):
        """Rows of text (T, D) with their `query` (T, D), image tokens (S, Dv); rows of each image's texts."""
        projected = self.key_value(image_states).unflatten(-1, (2, -1, self.head_size))
        key, value = projected.unbind(1)  # each (S, H, d)
        query = query.unflatten(-1, (-1, self.head_size))  # (T, H, d)
        context = ragged_attention(
            query, key, value, text_lengths, image_lengths, self.scaling, self.rounds_scores
        )
        return self.layer_norm(self.dense(context.flatten(1)).add_(hidden_states))


class AbsorbedAttention(nn.Module):
    """Attention of a few rows to many, without projecting the many to keys and values.

    With one head's parts of the weights, q . (W_k x + b_k) is (W_k^T q) . x plus a constant that softmax
    ignores, and the sum of a_j (W_v x_j + b_v) is W_v (the sum of a_j x_j) + b_v. So the heads attend to x.
    """

    def __init__(self, attention: CrossModalAttention, dtype: torch.dtype, rounds_scores: bool = False):
        """`rounds_scores`: see [`attend_on_cpu`]."""
        super().__init__()
        require_linear(attention.key, attention.value)
        self.rounds_scores = rounds_scores
        self.query = PackedLinear(attention.query, dtype=dtype)
        by_head = (-1, attention.head_size)
        key_weight = attention.key.weight.detach().to(dtype)  # (D, Dk)
        value_weight = attention.value.weight.detach().to(dtype)
        self.key_weight = key_weight.unflatten(0, by_head).clone()  # (H, d, Dk)
        self.value_weight = value_weight.unflatten(0, by_head).transpose(1, 2).contiguous()  # (H, Dk, d)
        self.value_bias = attention.value.bias.detach().to(dtype).clone()  # (D,)
        self.dense = PackedLinear(attention.dense, dtype=dtype)
        self.layer_norm = deepcopy(attention.layer_norm).to(dtype)
        self.head_size = attention.head_size
        self.scaling = attention.scaling

    def forward(self, hidden_states, key_value_states, counts, key_lengths):
        """Rows (B, D), the first `counts[0]` of which attend to the first `key_lengths[0]` of the (T, Dk)."""
        context = self.attend(self.query(hidden_states), key_value_states, counts, key_lengths)
        return self.layer_norm(self.dense(context).add_(hidden_states))

    def attend(self, query, key_value_states, counts, key_lengths):
        """What the rows of `query` (B, D) get from the others: (B, D)."""
        query = query.unflatten(-1, (-1, self.head_size)).transpose(0, 1)  # (H, B, d)
        heads = len(query)
        query = (query @ self.key_weight).transpose(0, 1).flatten(0, 1)  # (B * H, Dk)
        many = key_value_states[:, None]  # (T, 1, Dk), as of one wide head
        rows = [count * heads for count in counts]
        context = ragged_attention(
            query[:, None], many, many, rows, key_lengths, self.scaling, self.rounds_scores
        )
        context = context.view(-1, heads, context.shape[-1]).transpose(0, 1)  # (H, B, Dk)
        return (context @ self.value_weight).transpose(0, 1).flatten(1) + self.value_bias


class UnprojectedAttention(AbsorbedAttention):
    """In place of an [`ImageAttention`], whose weights it shares, for images that meet few rows of text."""

    def __init__(self, attention: CrossModalAttention, dtype: torch.dtype, projecting: ImageAttention):
        super().__init__(attention, dtype, projecting.rounds_scores)
        self.query, self.dense, self.layer_norm = projecting.query, projecting.dense, projecting.layer_norm

    def forward(self, hidden_states, query, image_states, text_lengths, image_lengths):
        """As [`ImageAttention`]'s."""
        context = self.attend(query, image_states, text_lengths, image_lengths)
        return self.layer_norm(self.dense(context).add_(hidden_states))


class FewRowsAttention(ImageAttention):
    """Attention of a few rows to many as [`AbsorbedAttention`] has it, by projecting the many.

    For a GPU, whose kernels of attention take no head as wide as the model.
    """

    def forward(self, hidden_states, key_value_states, counts, key_lengths):
        query = self.query(hidden_states)
        return super().forward(hidden_states, query, key_value_states, counts, key_lengths)


def pack_self_attention(
    attention: CrossModalAttention, dtype: torch.dtype, rounds_scores: bool = False
) -> PackedSelfAttention:
    parts = (attention.query, attention.key, attention.value, attention.dense, attention.layer_norm)
    return PackedSelfAttention(*parts, attention.head_size, dtype, rounds_scores)


def pack_feed_forward(layer: CrossModalLayer, activation: str, dtype: torch.dtype) -> PackedFeedForward:
    return PackedFeedForward(layer.intermediate, layer.output, layer.layer_norm, activation, dtype)


@dataclass(frozen=True)
class ReadTexts:
    """What [`FastMatcher.read_texts`] made of Q texts.

    Attributes:
        rows: of each (length, 2 D) hidden states and cross-attention queries; where the first layer is the
            last as well, the hidden state (1, D) of [CLS] alone.
        lengths: tokens of each.
    """

    rows: list[Tensor]
    lengths: list[int]


class FastMatcher(Matcher):
    """A copy of a model's cross-modal encoder and matching head, prepared for scoring many pairs.

    Later changes of the model do not reach it. Weights and arithmetic are in `dtype`, on the model's device.
    In fp32 the scores are those of `model.match` but for rounding (1e-5); in bf16 close ones change places.

    Args:
        rounds_scores: in bf16 on a CPU rounds attention's scores as well, which is faster.

    Raises:
        ValueError: the model is in training mode, where `match` would be random.
        TypeError: a layer carries an adapter that is not merged.
    """

    def __init__(self, model: TPASModel, dtype: torch.dtype = torch.float32, *, rounds_scores: bool = False):
        if model.training:
            raise ValueError("the model is in training mode, and dropout is left out here: call model.eval()")
        self.device, self.dtype, self.rounds_scores = model.device, dtype, rounds_scores
        self.pairs_per_batch = CPU_PAIRS_PER_BATCH if model.device.type == "cpu" else GPU_PAIRS_PER_BATCH
        activation = model.config.text_config.hidden_act
        layers = cast(list[CrossModalLayer], list(model.cross_modal_encoder.layers))
        first, last = layers[0], layers[-1]
        whole = layers[:-1]  # those that are computed for all rows of text
        kind = dtype, rounds_scores
        self.first_self_attention = pack_self_attention(first.self_attention, *kind)
        self.self_attentions = [pack_self_attention(layer.self_attention, *kind) for layer in whole[1:]]
        self.image_attentions = [ImageAttention(layer.cross_attention, *kind) for layer in whole]
        self.feed_forwards = [pack_feed_forward(layer, activation, dtype) for layer in whole]
        few_rows = AbsorbedAttention if self.device.type == "cpu" else FewRowsAttention
        self.last_self_attention = few_rows(last.self_attention, *kind)
        self.last_image_attention = few_rows(last.cross_attention, *kind)
        self.last_feed_forward = pack_feed_forward(last, activation, dtype)
        self.matching_head: MatchingHead = deepcopy(model.matching_head).to(dtype)
        self.unprojected: list[UnprojectedAttention] = []  # one for each of `image_attentions`, or none

    def for_few_rows(self, model: TPASModel) -> "FastMatcher":
        """A matcher of the same weights in which no layer projects images that meet few rows of text.

        On a CPU that takes a third off one short text, which meets each image alone, and changes no more than
        rounding. The keys and values of an image that meets more than `FEW_ROWS` are projected.

        Args:
            model: the one that this is a copy of, as it was then.
        """
        other = copy(self)
        if self.device.type == "cpu":
            layers = cast(list[CrossModalLayer], list(model.cross_modal_encoder.layers))[:-1]
            other.unprojected = [
                UnprojectedAttention(layer.cross_attention, self.dtype, projecting)
                for layer, projecting in zip(layers, self.image_attentions, strict=True)
            ]
        return other

    @torch.inference_mode()
    @without_autocast
    def read_texts(self, texts: EncodedTexts, batch_size: int | None = None) -> ReadTexts:
        """All that the first layer computes of each text before it meets an image; for [`logits_of_pairs`].

        Beside its input it holds 8 D bytes for each token of the texts, in fp32: 0.6 GB for 1,978 captions.

        Args:
            batch_size: texts in one batch; `None`: what suits the device.

        Raises:
            ValueError: a text without tokens, or a batch size below 1.
        """
        batch_size = self.checked_batch_size(batch_size)
        for query in (texts.attention_mask[:, 0] == 0).nonzero():
            raise ValueError(f"text {query.item()} has no [CLS]: its attention mask begins with 0")
        lengths = texts.attention_mask.sum(dim=1).tolist()
        assert texts.hidden_states is not None, "a model with a stage 2 keeps the texts' hidden states"
        texts_read = []
        for start in range(0, len(lengths), batch_size):
            batch = slice(start, start + batch_size)
            rows = texts.hidden_states[batch][texts.attention_mask[batch].bool()]  # (T, D)
            rows = pad_rows(rows.to(self.device, self.dtype))
            rows = self.first_self_attention(rows, lengths[batch])
            if self.image_attentions:
                rows = torch.cat([rows, self.image_attentions[0].query(rows)], dim=1)  # (T, 2 D)
            of_text = rows[: sum(lengths[batch])].split(lengths[batch])
            texts_read += of_text if self.image_attentions else [rows[:1].clone() for rows in of_text]
        return ReadTexts(texts_read, lengths)

    @torch.inference_mode()
    @without_autocast
    def match(
        self, texts: ReadTexts, queries: Sequence[int], image_states: Tensor, counts: Sequence[int]
    ) -> Tensor:
        """One batch: logits (B, 2), fp32 on the CPU, of the texts numbered `queries` (B,) with images
        (n, 1+N, Dv), the first `counts[0]` of them with the first image, and so on.
        """
        texts_read = [texts.rows[query] for query in queries]
        lengths = [texts.lengths[query] for query in queries]
        image_states = image_states.to(self.device, self.dtype)
        image_lengths = [image_states.shape[1]] * len(image_states)
        image_states = image_states.flatten(0, 1)  # (n * (1+N), Dv)
        rows = torch.cat(texts_read)  # (T, 2 D), or (B, D) without whole layers
        if self.image_attentions:
            starts = np.cumsum([0, *lengths[:-1]])
            text_lengths = np.add.reduceat(lengths, np.cumsum([0, *counts[:-1]])).tolist()  # of each image
            meet_few = self.unprojected and sum(lengths) <= FEW_ROWS * len(image_lengths)
            hidden_states, query = pad_rows(rows).chunk(2, dim=1)
            for number, image_attention in enumerate(self.unprojected if meet_few else self.image_attentions):
                if number > 0:
                    hidden_states = self.self_attentions[number - 1](hidden_states, lengths)
                    query = image_attention.query(hidden_states)
                hidden_states = image_attention(
                    hidden_states, query, image_states, text_lengths, image_lengths
                )
                hidden_states = self.feed_forwards[number](hidden_states)  # (T, D)
            rows = hidden_states[torch.from_numpy(starts).to(self.device)]  # (B, D), [CLS] of each text
            rows = self.last_self_attention(rows, hidden_states, [1] * len(rows), lengths)
        rows = self.last_image_attention(rows, image_states, counts, image_lengths)
        return self.matching_head(self.last_feed_forward(rows)).float().cpu()
