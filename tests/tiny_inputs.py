"""What tests share beside conftest's fixtures: words, a processor, images, scores, faults."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import BertTokenizer

from tpas.configuration_tpas import TPASConfig
from tpas.modeling_tpas import TPASModel
from tpas.processing_tpas import TPASProcessor
from tpas.search.manifest import MANIFEST

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


def spoil(files: Iterable[Path]) -> None:
    """Leaves nothing to read in files, and lets them look as before: who reads one again shows it."""
    for file in files:
        status = file.stat()
        file.write_bytes(bytes(status.st_size))
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


@contextmanager
def interrupted_before_the_manifest(monkeypatch) -> Iterator[None]:
    """Stops what is done meanwhile when a gallery's manifest is to be put in its place, as Ctrl+C would."""
    replace = os.replace

    def interrupt(source, target):
        if Path(target).name == MANIFEST:
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", interrupt)
        yield
