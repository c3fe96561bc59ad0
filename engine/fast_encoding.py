"""`TPASModel`'s image and text features, faster, with the same values: for encoding galleries and query sets.

The linear layers run on the machine's fastest GEMM with the activation fused in, texts are packed without
padding (`packed_layers.py`), images lie in the order of their windows (`packed_swin.py`), and inputs go
through in small batches, so that more of what a layer writes stays in the cache; on a CPU each thread takes
one (`side_by_side.py`). `fastest.py` says where it stands in for the model.
"""

from collections.abc import Callable, Iterable
from copy import deepcopy
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertModel, SwinModel
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPooling
from transformers.models.bert.modeling_bert import BertLayer

from ..modeling_tpas import TPASModel
from .packed_layers import (
    PackedFeedForward,
    PackedLinear,
    PackedSelfAttention,
    pad_rows,
    without_autocast,
)
from .packed_swin import PackedSwinModel
from .side_by_side import side_by_side

# benchmarks/encoding.py compares a few of them on a CPU; another one may prefer others. It does not run on a
# GPU, whose numbers were not measured. Fixed, because another number rounds otherwise.
CPU_IMAGES_PER_BATCH = 4
CPU_TEXTS_PER_BATCH = 24
GPU_IMAGES_PER_BATCH = 64
GPU_TEXTS_PER_BATCH = 512


class PackedTextModel(nn.Module):
    """BERT's embeddings and layers over packed rows."""

    def __init__(self, text_model: BertModel, dtype: torch.dtype):
        super().__init__()
        self.embeddings = deepcopy(text_model.embeddings).to(dtype)
        self.self_attentions, self.feed_forwards = nn.ModuleList(), nn.ModuleList()
        for layer in cast(Iterable[BertLayer], text_model.encoder.layer):
            attention, output = layer.attention.self, layer.attention.output
            parts = (attention.query, attention.key, attention.value, output.dense, output.LayerNorm)
            self.self_attentions.append(PackedSelfAttention(*parts, attention.attention_head_size, dtype))
            parts = (layer.intermediate.dense, layer.output.dense, layer.output.LayerNorm)
            self.feed_forwards.append(PackedFeedForward(*parts, text_model.config.hidden_act, dtype))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> BaseModelOutput:
        """Token ids and mask (B, L) to `last_hidden_state` (B, L, D), zeros where padded."""
        is_token = attention_mask.bool()
        lengths = is_token.sum(dim=1).tolist()
        embedded = self.embeddings(input_ids)  # (B, L, D)
        rows = pad_rows(embedded[is_token])  # (T, D)
        for attend, feed_forward in zip(self.self_attentions, self.feed_forwards, strict=True):
            rows = feed_forward(attend(rows, lengths))
        hidden_states = torch.zeros_like(embedded)
        hidden_states[is_token] = rows[: sum(lengths)]
        return BaseModelOutput(last_hidden_state=hidden_states)


class FastTextEncoder:
    """A copy of a model's text encoder, prepared for encoding many texts.

    Later changes of the model do not reach it. Weights and arithmetic are in `dtype`, on the model's device.
    In fp32 the outputs are those of the model but for rounding (1e-5), and zero for padded tokens; embeddings
    are always fp32.

    Args:
        texts_per_batch: how what it is given is divided; `None`: what suits the device.

    Raises:
        ValueError: the model is in training mode.
        TypeError: a layer carries an adapter that is not merged.
    """

    def __init__(
        self, model: TPASModel, dtype: torch.dtype = torch.float32, texts_per_batch: int | None = None
    ):
        if model.training:
            raise ValueError("the model is in training mode, and dropout is left out here: call model.eval()")
        self.device, self.dtype, self.config = model.device, dtype, model.config
        on_cpu = self.device.type == "cpu"
        self.texts_per_batch = texts_per_batch or (CPU_TEXTS_PER_BATCH if on_cpu else GPU_TEXTS_PER_BATCH)
        self.text_model = PackedTextModel(model.text_model, dtype)
        self.text_projection = PackedLinear(model.text_projection, dtype=dtype)

    # The model's own method over this object's `text_model`, projection and `config`; below likewise.

    @torch.inference_mode()
    @without_autocast
    def get_text_features(
        self, input_ids: Tensor, attention_mask: Tensor | None = None
    ) -> BaseModelOutputWithPooling:
        """As [`TPASModel.get_text_features`], with zeros for padded tokens."""
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        batches = zip(
            input_ids.split(self.texts_per_batch), attention_mask.split(self.texts_per_batch), strict=True
        )
        return _encode(
            partial(TPASModel.get_text_features, cast(TPASModel, self)), list(batches), self.device
        )


class FastEncoder(FastTextEncoder):
    """The same with the image encoder beside it; outputs and errors are as those of the text encoder.

    Args:
        images_per_batch, texts_per_batch: how what it is given is divided; `None`: what suits the device.
    """

    def __init__(
        self,
        model: TPASModel,
        dtype: torch.dtype = torch.float32,
        images_per_batch: int | None = None,
        texts_per_batch: int | None = None,
    ):
        super().__init__(model, dtype, texts_per_batch)
        on_cpu = self.device.type == "cpu"
        self.images_per_batch = images_per_batch or (CPU_IMAGES_PER_BATCH if on_cpu else GPU_IMAGES_PER_BATCH)
        self.vision_model = PackedSwinModel(cast(SwinModel, model.vision_model), dtype)
        self.image_projection = PackedLinear(model.image_projection, dtype=dtype)

    @torch.inference_mode()
    @without_autocast
    def get_image_features(self, pixel_values: Tensor) -> BaseModelOutputWithPooling:
        """As [`TPASModel.get_image_features`]."""
        batches = [(pixels,) for pixels in pixel_values.split(self.images_per_batch)]
        return _encode(partial(TPASModel.get_image_features, cast(TPASModel, self)), batches, self.device)


def _encode(
    encode: Callable[..., BaseModelOutputWithPooling], batches: list[tuple[Tensor, ...]], device: torch.device
) -> BaseModelOutputWithPooling:
    """The features of the batches' inputs, one after the other."""

    @torch.inference_mode()
    def compute(inputs: tuple[Tensor, ...]) -> BaseModelOutputWithPooling:
        return encode(*inputs)

    outputs = list((side_by_side if device.type == "cpu" else map)(compute, batches))
    embeds = torch.cat([cast(Tensor, output.pooler_output) for output in outputs])
    return BaseModelOutputWithPooling(
        last_hidden_state=torch.cat([cast(Tensor, output.last_hidden_state) for output in outputs]),
        pooler_output=F.normalize(embeds.float(), dim=-1),  # in bf16 their norm is off by some thousandths
    )
