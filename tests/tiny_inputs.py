"""What tests of searching share beside conftest's fixtures: words, a processor, images, scores."""

import numpy as np
import torch
from PIL import Image
from transformers import BertTokenizer

from tpas.configuration_tpas import TPASConfig
from tpas.modeling_tpas import TPASModel
from tpas.processing_tpas import TPASProcessor
from tpas.search import building

WORDS = ["a", "the", "person", "man", "woman", "wears", "red", "blue", "green", "shirt"]
WORDS += ["hat", "runs", "falls", "street"]


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


@torch.no_grad()
def score_each_pair(
    model: TPASModel, processor: TPASProcessor, images, texts
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and match logits (Q, G) from the model's forward pass over one pair at a time."""
    cosines, logits = torch.empty(2, len(texts), len(images))
    for query, text in enumerate(texts):
        for row, image in enumerate(images):
            output = model(**processor(images=[image], text=[text]))
            cosines[query, row] = output.text_embeds[0] @ output.image_embeds[0]
            logits[query, row] = output.match_logits[0, 1]
    return cosines, logits


def counted_batches(monkeypatch) -> list[int]:
    """How many images each batch holds that is encoded for a gallery from now on."""
    sizes, encode = [], building.encode_images

    def counted(encoder, inputs, tokens):
        sizes.append(len(inputs["pixel_values"]))
        return encode(encoder, inputs, tokens)

    monkeypatch.setattr(building, "encode_images", counted)
    return sizes
