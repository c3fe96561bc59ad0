"""BLIP's retrieval model (https://arxiv.org/abs/2201.12086).

Its contrastive heads (ITC) give the embeddings, its matching head (ITM) is stage 2.
"""

import math
from typing import Any

import torch
from torch import Tensor
from transformers import BlipConfig, BlipForImageTextRetrieval, PreTrainedTokenizerBase

from .dual_encoder import DualEncoder, as_features
from .interface import Features
from .pair_processor import PairProcessor
from .transformers_encoders import check_pixels, check_tokenizer, load_complete

LONGEST_CAPTION = 512  # BLIP was trained on 35 tokens, but has positions for so many


class BlipRetriever(DualEncoder):
    """`BlipForImageTextRetrieval` in parts, so that an image is encoded once for all its pairs.

    BLIP's text encoder reads the image in every layer, so what `match` needs of a caption are its embedded
    words, before the first layer: these are the captions' `last_hidden_state`.

    Args:
        encoder_token: the id of [ENC], which stands in the place of [CLS] where an image is read; None:
            [CLS] stays.
    """

    network: BlipForImageTextRetrieval
    trained_with_lora = ("temperature", "vision_proj", "text_proj", "itm_head")

    def __init__(
        self, network: BlipForImageTextRetrieval, name_or_path: str, encoder_token: int | None = None
    ):
        # The model has no temperature of its own; its configuration keeps what it started from.
        super().__init__(network, name_or_path, math.exp(-network.config.logit_scale_init_value))
        self.encoder_token = encoder_token

    def get_image_features(self, pixel_values: Tensor) -> Features:
        """See `Encoder`."""
        states = self.network.vision_model(pixel_values=pixel_values).last_hidden_state  # (B, 1+N, Dv)
        return as_features(self.network.vision_proj(states[:, 0]), states)

    def get_text_features(self, input_ids: Tensor, attention_mask: Tensor) -> Features:
        """See `Encoder`."""
        words = self.network.text_encoder.embeddings(input_ids=input_ids)  # (B, L, D)
        words_to_match = words
        if self.encoder_token is not None:
            first = torch.full_like(input_ids[:, :1], self.encoder_token)
            matched_ids = torch.cat([first, input_ids[:, 1:]], dim=1)
            words_to_match = self.network.text_encoder.embeddings(input_ids=matched_ids)
        states = self.network.text_encoder(
            encoder_embeds=words, attention_mask=attention_mask
        ).last_hidden_state
        return as_features(self.network.text_proj(states[:, 0]), words_to_match)

    def match(
        self, image_hidden_states: Tensor, text_hidden_states: Tensor, text_attention_mask: Tensor
    ) -> Tensor:
        """See `MatchingModel`."""
        states = self.network.text_encoder(
            encoder_embeds=text_hidden_states,
            attention_mask=text_attention_mask,
            encoder_hidden_states=image_hidden_states,
        ).last_hidden_state
        return self.network.itm_head(states[:, 0])

    def keep_temperature(self) -> None:
        self.config.logit_scale_init_value = -math.log(self.trained_temperature())


def load_blip(
    name: str, dtype: torch.dtype | None, spec: str, **source: Any
) -> tuple[BlipRetriever, PairProcessor]:
    """BLIP by folder or Hub name, such as Salesforce/blip-itm-base-coco.

    Raises:
        ValueError: it is no BLIP, or the checkpoint has no matching or contrastive heads.
    """
    model_type = BlipConfig.get_config_dict(name, **source)[0].get("model_type")
    if model_type != BlipConfig.model_type:
        raise ValueError(
            f"{name} is a model of type {model_type!r}, and blip:{name} asks for {BlipConfig.model_type!r}"
        )
    network = load_complete(BlipForImageTextRetrieval, name, dtype, **source)
    vision, text = network.config.vision_config, network.config.text_config
    processor = PairProcessor.from_pretrained(
        name,
        image_size=vision.image_size,
        positions=min(text.max_position_embeddings, LONGEST_CAPTION),
        **source,
    )
    check_tokenizer(name, network.config, processor.tokenizer)
    model = BlipRetriever(network, spec, matching_token(text.vocab_size, processor.tokenizer))
    check_pixels(name, model, processor)
    return model, processor


def matching_token(vocabulary: int, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The id of [ENC], with which BLIP's matching head was trained and is evaluated (its train_retrieval.py).

    Checkpoints for transformers have it, the last of two words that their tokenizer does not know:
    [DEC] and [ENC]. None where these two are not there.
    """
    return vocabulary - 1 if vocabulary == len(tokenizer) + 2 else None
