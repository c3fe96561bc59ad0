"""Stage 2 by a vision-language model: how surely it says that the caption describes the image.

The score is log P(yes) - log P(no) of the answer's first word, each summed over its spellings: with the prior
out of the way, pairs of different queries can be compared, as SCA and fusion do.
"""

import re
from collections.abc import Sequence
from inspect import signature
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    PreTrainedModel,
)

from .baselines_extra import missing_from_baselines
from .transformers_encoders import load_complete

PAIRS_PER_BATCH = 4
BESIDE = r"(^|\.)mtp\."  # heads that guess several tokens ahead, which transformers does not have
QUESTION = (
    "Does this description match the picture in every detail: person, clothes, action, place? "
    '"{caption}" Answer with yes or no.'
)


class VisionLanguageMatcher:
    """A `ImageMatcher`.

    Args:
        processor: a `ProcessorMixin` with a chat template that takes an image.
        question: with `{caption}` in it.

    Raises:
        ValueError: the processor has no chat template, or neither answer is one token.
    """

    pairs_per_batch = PAIRS_PER_BATCH

    def __init__(self, model: PreTrainedModel, processor: Any, question: str = QUESTION):
        if not getattr(processor, "chat_template", None):
            raise ValueError(f"{model.name_or_path} has no chat template: it cannot be asked")
        self.model, self.processor, self.question = model.eval(), processor, question
        tokenizer = processor.tokenizer
        tokenizer.padding_side = "left"  # so that every prompt ends where the answer begins
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token  # Llamas have none
        # Logits over the vocabulary at every position would be gigabytes.
        last_alone = "logits_to_keep" in signature(model.forward).parameters
        self.model_settings = {"use_cache": False} | ({"logits_to_keep": 1} if last_alone else {})
        self.yes, self.no = (self._spellings(word) for word in ("yes", "no"))
        control_words = self._control_words()
        self.control_word = re.compile("|".join(map(re.escape, control_words))) if control_words else None

    def _spellings(self, word: str) -> list[int]:
        tokenizer = self.processor.tokenizer
        variants = {form for form in (word, word.capitalize(), word.upper())}
        tokens = (
            tokenizer(before + variant, add_special_tokens=False)["input_ids"]
            for variant in sorted(variants)
            for before in ("", " ")
        )
        ids = sorted({ids[0] for ids in tokens if len(ids) == 1 and ids[0] != tokenizer.unk_token_id})
        if not ids:
            raise ValueError(f"{self.model.name_or_path}: no spelling of {word!r} is one token")
        return ids

    def _control_words(self) -> list[str]:
        """What is no text to the tokenizer or the processor, such as `<image>`; the longest first."""
        tokenizer = self.processor.tokenizer
        added = getattr(tokenizer, "added_tokens_decoder", {}).values()
        words = {*tokenizer.all_special_tokens, *(token.content for token in added if token.special)}
        # What a processor puts an image's tokens in place of need not be special to the tokenizer.
        own = (value for name, value in vars(self.processor).items() if name.endswith("_token"))
        words.update(value for value in own if isinstance(value, str))
        words = {word.strip() for word in words}
        return sorted((word for word in words if len(word) > 1), key=lambda word: (-len(word), word))

    def prompt(self, caption: str) -> str:
        """The question about an image, as the model's chat template has it.

        A control word in the caption, such as a placeholder of an image, is read as text: a space parts it.
        """
        while self.control_word is not None and self.control_word.search(caption):
            caption = self.control_word.sub(lambda found: f"{found[0][0]} {found[0][1:]}", caption)
        content = [{"type": "image"}, {"type": "text", "text": self.question.format(caption=caption)}]
        return self.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )

    @torch.inference_mode()
    def match_images(self, images: Sequence[Image.Image], captions: Sequence[str]) -> Tensor:
        """See `ImageMatcher`."""
        inputs = self.processor(
            images=[[image] for image in images],
            text=[self.prompt(caption) for caption in captions],
            padding=True,
            return_tensors="pt",
        ).to(self.model.device, self.model.dtype)
        last = self.model(**inputs, **self.model_settings).logits[:, -1].float()  # (B, vocabulary)
        return (last[:, self.yes].logsumexp(dim=1) - last[:, self.no].logsumexp(dim=1)).cpu()


def load_vision_language_matcher(
    name: str, device: torch.device, revision: str | None = None, trust_remote_code: bool = False
) -> VisionLanguageMatcher:
    """By folder or Hub name, in the precision that it is kept in.

    Raises:
        ValueError: it is no vision-language model, or damaged, or its processor needs a package that
            is not installed.
    """
    source = {"revision": revision, "trust_remote_code": trust_remote_code}
    config = AutoConfig.from_pretrained(name, **source)
    known = type(config) in AutoModelForImageTextToText._model_mapping
    if not known and not (trust_remote_code and hasattr(config, "auto_map")):
        raise ValueError(
            f"{name} is no vision-language model: transformers has none of type {config.model_type}"
        )
    try:
        processor = AutoProcessor.from_pretrained(name, **source)
    except ImportError as error:
        raise missing_from_baselines(f"{name}: its processor", error) from error
    model: Any = load_complete(AutoModelForImageTextToText, name, "auto", beside=BESIDE, **source)
    return VisionLanguageMatcher(model.to(device), processor)
