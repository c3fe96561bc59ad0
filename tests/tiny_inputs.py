"""What tests of searching share beside conftest's fixtures: words, a processor, images, clear scores."""

import numpy as np
import torch
from PIL import Image
from transformers import BertTokenizer

from tpas.configuration_tpas import TPASConfig
from tpas.modeling_tpas import TPASModel
from tpas.processing_tpas import TPASProcessor

WORDS = ["a", "the", "person", "man", "woman", "wears", "red", "blue", "green"]
WORDS += ["shirt", "hat", "runs", "falls", "street"]


def tiny_processor(config: TPASConfig) -> TPASProcessor:
    """For 32 x 32 pixels and captions of `WORDS`."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    tokenizer = BertTokenizer(vocab={word: index for index, word in enumerate(words)})
    return TPASProcessor.build(tokenizer, image_size=32, max_text_length=config.max_text_length)


def noise_image(seed: int, width: int = 24, height: int = 40) -> Image.Image:
    generator = np.random.default_rng(seed)
    return Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))


def spread_match_logits(model: TPASModel) -> TPASModel:
    """The same model, with weights that make its match logits differ clearly."""
    for parameter in model.cross_modal_encoder.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.15)
    torch.nn.init.normal_(model.matching_head.classifier.weight)
    return model
