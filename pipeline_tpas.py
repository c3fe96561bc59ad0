"""`transformers.pipeline` for TPAS models: how well do an image and a text belong together?"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from transformers import Pipeline

from .processing_tpas import TPASProcessor, load_image, upright_rgb


class ImageTextMatchingPipeline(Pipeline):
    """Scores images against texts.

        match = pipeline("image-text-matching", model="user/name", trust_remote_code=True)
        match({"image": "street.jpg", "text": "A man in a red coat is lying on the pavement."})
        match([{"image": image, "text": [one, another]} for image in images], batch_size=8)

    An item has an image (`image`: a PIL image or the path of a file) and a text or several (`text`). For
    one text the answer is a dictionary, for several a list of them in the order of the texts:

    - `text`: the text.
    - `match_logit`: of the cross-modal encoder, what search ranks by: higher is better. Not a probability.
    - `cosine`: of the embeddings, what search draws its shortlist by.

    A list of items gives a list of answers; a generator or a data set (torch's, or a `datasets.Dataset` with
    these two columns, also streamed) gives an iterator of them, each answer as soon as it is ready.
    `batch_size` is in images. Nothing is downloaded: an address in place of a path is refused.
    """

    TASK = "image-text-matching"
    pairs_at_once = 64  # in the cross-modal encoder, which bounds the memory that many texts take

    model: Any  # a `TPASModel`, whose module imports this one
    processor: TPASProcessor

    _load_processor = True
    _load_tokenizer = False
    _load_image_processor = False
    _load_feature_extractor = False

    @classmethod
    def registration(cls):
        """What `config.json` says in `custom_pipelines`, for `transformers.pipeline` to find the class."""
        implementation = f"{cls.__module__.rpartition('.')[2]}.{cls.__name__}"
        return {cls.TASK: {"impl": implementation, "pt": ["AutoModel"], "type": "multimodal"}}

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if self.processor is None:
            raise ValueError(f"{type(self).__name__} needs a processor: processor=TPASProcessor...")
        self.model.eval()

    def _sanitize_parameters(self, **kwargs):
        if kwargs:
            raise TypeError(f"{type(self).__name__} takes no {', '.join(sorted(kwargs))}")
        return {}, {}, {}

    def __call__(self, inputs, **kwargs):
        if isinstance(inputs, list) and not inputs:
            return []
        if not isinstance(inputs, (dict, str, list, tuple, torch.utils.data.Dataset)):
            # transformers takes a `datasets.Dataset`, which is none of torch's, for a single item.
            if hasattr(inputs, "__getitem__") and hasattr(inputs, "__len__"):
                inputs = Rows(inputs)
            elif isinstance(inputs, Iterable):
                inputs = (item for item in inputs)
        return super().__call__(inputs, **kwargs)

    def preprocess(self, item):
        """An item's image (1, 3, H, W), and the tokens of its T texts, (T, L)."""
        if not isinstance(item, dict) or not {"image", "text"} <= item.keys():
            given = sorted(item) if isinstance(item, dict) else type(item).__name__
            raise ValueError(f'an item is {{"image": image or path, "text": text or several}}, got {given}')
        one = isinstance(item["text"], str)
        strings = [item["text"]] if one else list(item["text"])
        if not strings:
            raise ValueError("an item's text is an empty list: give a text or several")
        pixels = self.processor(images=[open_image(item["image"])]).pixel_values
        tokens = self.processor(text=strings)
        texts = {"strings": strings, "one": one, "tokens": dict(tokens)}
        return {"pixel_values": pixels.to(self.model.dtype), "texts": [texts]}

    def _forward(self, inputs):
        # Collated from several items each is a list of its own; a single item comes as preprocess left it.
        texts = [text[0] if isinstance(text, list) else text for text in inputs["texts"]]
        counts = torch.tensor([len(text["strings"]) for text in texts], device=self.device)
        images = torch.arange(len(texts), device=self.device).repeat_interleave(counts)  # (pairs,)
        input_ids = pad_together(
            [text["tokens"]["input_ids"] for text in texts], self.processor.tokenizer.pad_token_id
        )
        masks = pad_together([text["tokens"]["attention_mask"] for text in texts], 0)

        image = self.model.get_image_features(inputs["pixel_values"])
        cosines, logits = [], []
        for pairs in torch.arange(len(images), device=self.device).split(self.pairs_at_once):
            rows, mask = images[pairs], masks[pairs]
            text = self.model.get_text_features(input_ids[pairs], mask)
            cosines.append((text.pooler_output * image.pooler_output[rows]).sum(dim=-1))
            logits.append(self.model.match(image.last_hidden_state[rows], text.last_hidden_state, mask))
        cosines = torch.cat(cosines).split(counts.tolist())  # of each image, (T,)
        logits = torch.cat(logits).split(counts.tolist())  # of each image, (T, 2)
        each = zip(texts, cosines, logits, strict=True)
        return {"answers": [{**text, "cosine": cosine, "logits": logit} for text, cosine, logit in each]}

    def postprocess(self, outputs):
        answers = outputs["answers"]
        answer = answers[0] if isinstance(answers, list) else answers  # as in _forward
        logits = answer["logits"].float()  # (T, 2)
        columns = (logits[:, 1], answer["cosine"].float())
        scored = [
            {"text": text, "match_logit": logit, "cosine": cosine}
            for text, logit, cosine in zip(
                answer["strings"], *(column.tolist() for column in columns), strict=True
            )
        ]
        return scored[0] if answer["one"] else scored

    def save_pretrained(self, save_directory, **kwargs):
        """Writes model, processor and their code; `Pipeline.save_pretrained` leaves out the processor's."""
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory)


class Rows(torch.utils.data.Dataset):
    """A data set of another library as one of torch's."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, number):
        return self.rows[number]


def open_image(image):
    """A PIL image, or the file of that path, upright and in RGB.

    Raises:
        FileNotFoundError, ValueError, TypeError: it is neither, cannot be read, or is an address.
    """
    if isinstance(image, Image.Image):
        return upright_rgb(image, "the image")
    if isinstance(image, str) and image.startswith(("http://", "https://")):
        raise ValueError(f"{image}: nothing is downloaded, give the path of a file or a PIL image")
    if isinstance(image, (str, Path)):
        return load_image(image)
    raise TypeError(f"image is a PIL image or the path of a file, got {type(image).__name__}")


def pad_together(parts, value):
    """Tensors (T, L) of different T and L as one (sum of T, longest L), with `value` on the right."""
    longest = max(part.shape[1] for part in parts)
    return torch.cat([F.pad(part, (0, longest - part.shape[1]), value=value) for part in parts])
