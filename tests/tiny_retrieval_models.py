"""Real classes of transformers at toy size, with random weights, saved as their own libraries save them."""

import importlib
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub.constants import HF_HUB_CACHE
from PIL import Image
from tiny_inputs import noise_image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AltCLIPConfig,
    AltCLIPModel,
    BertTokenizer,
    BlipConfig,
    BlipForImageTextRetrieval,
    BlipImageProcessorPil,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    PreTrainedTokenizerFast,
    Siglip2Config,
    Siglip2ImageProcessorPil,
    Siglip2Model,
    Siglip2Tokenizer,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
)

from tpas.data.drawn.synthetic_pab import DEMO_WORLD, captions_vocabulary

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
SIZE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
IMAGES = {"image_size": 32, "patch_size": 8}
FAMILIES = ("clip", "siglip", "siglip2", "altclip", "blip")


def needs(library: str) -> pytest.MarkDecorator:
    """Skips where a library is missing that needs torchvision."""
    try:
        importlib.import_module(library)
        missing = False
    except (ImportError, RuntimeError):
        missing = True
    reason = f"{library} needs torchvision, which cannot be imported beside the CPU build of torch"
    return pytest.mark.skipif(missing, reason=reason)


def noise_images(count: int) -> list[Image.Image]:
    """Of several shapes, no two alike."""
    shapes = np.random.default_rng(0).integers(33, 60, (count, 2)).tolist()
    return [noise_image(number, *shape) for number, shape in enumerate(shapes)]


def word_tokenizer(length: int) -> PreTrainedTokenizerFast:
    """A word for a token, <s> before and </s> after, as CLIP's and RoBERTa's."""
    words = [*SPECIAL, *captions_vocabulary(DEMO_WORLD)]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=length, **names)


def save_tiny(family: str, folder: Path) -> Path:
    """A model of the family with its processors."""
    torch.manual_seed(0)
    size = {"height": 32, "width": 32}
    length = 24
    tokenizer = word_tokenizer(length)
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    text = SIZE | {"vocab_size": len(tokenizer), "max_position_embeddings": length} | ids
    if family == "clip":
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=SIZE | IMAGES, projection_dim=16, **ids))
        images = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=size)
    elif family == "siglip":
        model = SiglipModel(SiglipConfig(text_config=text, vision_config=SIZE | IMAGES))
        images = SiglipImageProcessorPil(size=size)
    elif family == "siglip2":
        # Byte pairs, as its class has them; the last token of a caption is pooled, so padding comes first.
        tokenizer = Siglip2Tokenizer().train_new_from_iterator([captions_vocabulary(DEMO_WORLD)], 300)
        tokenizer.model_max_length = length
        text["vocab_size"] = len(tokenizer)
        model = Siglip2Model(
            Siglip2Config(text_config=text, vision_config=SIZE | {"patch_size": 8, "num_patches": 16})
        )
        images = Siglip2ImageProcessorPil(patch_size=8, max_num_patches=16)
    elif family == "altclip":
        text |= {"max_position_embeddings": length + 1, "project_dim": 32, "type_vocab_size": 1}
        model = AltCLIPModel(AltCLIPConfig(text_config=text, vision_config=SIZE | IMAGES, projection_dim=16))
        images = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=size)
    else:
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *captions_vocabulary(DEMO_WORLD)]
        tokenizer = BertTokenizer(vocab={word: number for number, word in enumerate(words)})
        tokenizer.model_max_length = length
        text |= {"vocab_size": len(words) + 2, "encoder_hidden_size": 32}  # [DEC] and [ENC], as on the Hub
        model = BlipForImageTextRetrieval(
            BlipConfig(text_config=text, vision_config=SIZE | IMAGES, image_text_hidden_size=16)
        )
        images = BlipImageProcessorPil(size=size)
    for name, parameter in model.named_parameters():  # far from the start, where all captions look alike
        if parameter.ndim > 1 and "embedding" not in name:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    images.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def cached_snapshot(name: str, commit: str, kind: str = "models", *, latest: bool = False) -> Path:
    """A new folder for a Hub repository's files at a commit, in the cache as if they had been downloaded."""
    repository = Path(HF_HUB_CACHE) / f"{kind}--{name.replace('/', '--')}"
    folder = repository / "snapshots" / commit
    folder.mkdir(parents=True)
    if latest:
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(commit)
    return folder
