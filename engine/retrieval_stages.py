"""The stages of a search on tensors in memory: encode, rank by embeddings, match the shortlists, fuse.

A query's ranking depends on its caption, the images and their ids, not on the order of the gallery or the
number of processes. Ties are resolved by a hash of the gallery id: PAB's file names say which images are
normal, and rows follow file names, so neither may resolve them.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from ..modeling_tpas import TPASModel
from ..models.interface import RetrievalModel, RetrievalProcessor
from ..processing_tpas import TPASProcessor
from ..reranking.fusion import SystemScores, weighted_sum
from ..reranking.ranked_lists import tie_order

logger = logging.getLogger(__name__)

DEFAULT_SHORTLIST = 128  # images that are re-ranked for each query
# What decides an image's features beside the weights; by name, since new versions of transformers add more.
VISION_SETTINGS = (
    *("image_size", "patch_size", "num_channels", "embed_dim", "depths", "num_heads", "window_size"),
    *("mlp_ratio", "qkv_bias", "hidden_act", "use_absolute_embeddings", "layer_norm_eps"),
)
IMAGE_PROCESSOR_SETTINGS = (
    *("do_convert_rgb", "do_resize", "size", "resample", "do_center_crop", "crop_size", "do_pad", "pad_size"),
    *("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std"),
)


def model_fingerprint(model: torch.nn.Module) -> str:
    """16 hexadecimal digits that stand for the weights, as fp32: equal wherever the model lies."""
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy())
    return digest.hexdigest()


def image_fingerprint(model: TPASModel, processor: TPASProcessor) -> str:
    """16 hexadecimal digits for what decides images' features beside the weights.

    That is the image encoder's configuration and the image processor's settings. A tokenizer's are left out:
    texts are encoded anew for each search, so it may change.
    """
    vision, pixels = model.config.vision_config.to_dict(), processor.image_processor.to_dict()
    deciding = [
        {name: settings[name] for name in names if settings.get(name) is not None}
        for settings, names in ((vision, VISION_SETTINGS), (pixels, IMAGE_PROCESSOR_SETTINGS))
    ]
    text = json.dumps(deciding, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


@dataclass(frozen=True)
class EncodedImages:
    """G images, fp32 on the CPU.

    Attributes:
        embeds: (G, projection_dim), unit norm.
        hidden_states: (G, 1+N, image width).
    """

    embeds: Tensor
    hidden_states: Tensor


@dataclass(frozen=True)
class EncodedTexts:
    """Q captions, fp32 on the CPU.

    Attributes:
        embeds: (Q, projection_dim), unit norm.
        hidden_states: (Q, L, text width), zeros where padded; None of a model without a stage 2.
        attention_mask: (Q, L).
    """

    embeds: Tensor
    hidden_states: Tensor | None
    attention_mask: Tensor


def encode_images(
    model: TPASModel,
    processor: TPASProcessor,
    images: Sequence[Image.Image],
    *,
    batch_size: int = 64,
    accelerator: Accelerator | None = None,
) -> EncodedImages:
    """Encodes the images, rows in the order given.

    `images` is asked for one image at a time, so it may read them from disk. The processes of
    `accelerator` share the work, and each gets the whole result.
    """

    def encode(rows: list[int]) -> tuple[Tensor, Tensor]:
        pixel_values = processor(images=[images[row] for row in rows])["pixel_values"]
        output = model.get_image_features(pixel_values.to(model.device, model.dtype))
        return output.pooler_output.float().cpu(), output.last_hidden_state.float().cpu()

    batches = _batches(range(len(images)), batch_size)
    outputs = map_batches(encode, batches, accelerator, "encoding images")
    return EncodedImages(
        embeds=torch.cat([embeds for embeds, _ in outputs]),
        hidden_states=torch.cat([hidden_states for _, hidden_states in outputs]),
    )


def encode_texts(
    model: RetrievalModel,
    processor: RetrievalProcessor,
    captions: Sequence[str],
    *,
    batch_size: int = 64,
    accelerator: Accelerator | None = None,
) -> EncodedTexts:
    """Encodes the captions, rows in the order given, padded to the longest; otherwise as `encode_images`."""

    def encode(rows: list[int]) -> tuple[Tensor, Tensor | None, Tensor]:
        inputs = processor(text=[captions[row] for row in rows]).to(model.device)
        output = model.get_text_features(inputs["input_ids"], inputs["attention_mask"])
        states = output.last_hidden_state
        return (
            output.pooler_output.float().cpu(),
            None if states is None else states.float().cpu(),
            inputs["attention_mask"].cpu(),
        )

    # Captions of similar length share a batch, which saves padding.
    by_length = sorted(range(len(captions)), key=lambda row: (len(captions[row]), captions[row]))
    batches = _batches(by_length, batch_size)
    outputs = map_batches(encode, batches, accelerator, "encoding captions")

    embeds, hidden_states, _ = outputs[0]
    longest = max(mask.shape[1] for _, _, mask in outputs)
    texts = EncodedTexts(
        embeds=embeds.new_empty(len(captions), embeds.shape[1]),
        hidden_states=None
        if hidden_states is None
        else hidden_states.new_zeros(len(captions), longest, hidden_states.shape[2]),
        attention_mask=torch.zeros(len(captions), longest, dtype=torch.long),
    )
    for rows, (embeds, hidden_states, mask) in zip(batches, outputs, strict=True):
        length = mask.shape[1]
        texts.embeds[rows] = embeds
        if hidden_states is not None:
            texts.hidden_states[rows, :length] = hidden_states * mask[:, :, None]
        texts.attention_mask[rows, :length] = mask
    return texts


def rank_by_embeddings(
    text_embeds: Tensor, image_embeds: Tensor, gallery_ids: Sequence[str]
) -> tuple[Tensor, Tensor]:
    """Stage 1: the gallery for each query, best first.

    Returns:
        Indices (Q, G) into the gallery and their cosines (Q, G), descending.
    """
    ties = torch.tensor(tie_order(gallery_ids))  # (G,)
    # Summed in double and rounded, so that equal images get equal scores wherever they lie in the matrix.
    cosines = (text_embeds.double() @ image_embeds[ties].double().t()).float()  # (Q, G)
    cosines, order = cosines.sort(dim=1, descending=True, stable=True)
    return ties[order], cosines


def resolve_shortlist(shortlist: int | None, gallery_size: int) -> int:
    """The shortlist asked for (`None`: the default), or the whole gallery where that is smaller.

    Raises:
        ValueError: for a shortlist below 1.
    """
    shortlist = DEFAULT_SHORTLIST if shortlist is None else shortlist
    if shortlist < 1:
        raise ValueError(f"the shortlist must be at least 1, got {shortlist}")
    if gallery_size < shortlist:
        logger.info("the gallery has %d images: all of them are re-ranked", gallery_size)
    return min(shortlist, gallery_size)


def match_shortlists(
    model: TPASModel,
    images: EncodedImages,
    texts: EncodedTexts,
    shortlists: Tensor,
    *,
    batch_size: int = 64,
    accelerator: Accelerator | None = None,
) -> Tensor:
    """Stage 2: the match logit of each query with the images of its shortlist.

    Args:
        shortlists: (Q, K) indices into the gallery.
        batch_size: pairs in one forward pass.

    Returns:
        (Q, K) logits of class 1 of `model.match`.
    """
    lengths = texts.attention_mask.sum(dim=1)
    queries = lengths.argsort(stable=True)  # as above: captions of similar length share a batch
    text_rows = queries.repeat_interleave(shortlists.shape[1])  # (Q * K,)
    image_rows = shortlists[queries].flatten()  # (Q * K,)

    def match(pairs: list[int]) -> Tensor:
        text, image = text_rows[pairs], image_rows[pairs]
        length = int(lengths[text].max())
        logits = model.match(
            images.hidden_states[image].to(model.device, model.dtype),
            texts.hidden_states[text, :length].to(model.device, model.dtype),
            texts.attention_mask[text, :length].to(model.device),
        )
        return logits[:, 1].float().cpu()

    batches = _batches(range(len(text_rows)), batch_size)
    logits = torch.cat(map_batches(match, batches, accelerator, "matching pairs"))  # (Q * K,)
    scores = torch.empty(shortlists.shape)
    scores[queries] = logits.view(shortlists.shape)
    return scores


def fuse(matching: Tensor, embedding: Tensor, fusion_weight: float) -> Tensor:
    """(1 - w) z(matching) + w z(embedding) of scores (Q, K); z brings a query's K to mean 0 and deviation 1.

    Weight 0 returns the match logits as they are. Where all K scores of a query are equal, z is 0.
    """
    check_fusion_weight(fusion_weight)
    if fusion_weight == 0:
        return matching
    systems = [SystemScores(matching.numpy()), SystemScores(embedding.numpy())]
    return torch.from_numpy(weighted_sum(systems, [1 - fusion_weight, fusion_weight]).scores)


def check_fusion_weight(fusion_weight: float) -> None:
    """Raises ValueError for a weight that is not between 0 and 1."""
    if not 0 <= fusion_weight <= 1:
        raise ValueError(f"the fusion weight must be between 0 (matching alone) and 1, got {fusion_weight}")


def reorder(shortlists: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """Shortlists (Q, K) by their new scores (Q, K), best first, and these; equal scores keep their order."""
    scores, order = scores.sort(dim=1, descending=True, stable=True)
    return shortlists.gather(1, order), scores


def replace_head(ranking: Tensor, head: Tensor) -> Tensor:
    """A full ranking (Q, G) with its first K images in the new order `head` (Q, K)."""
    return torch.cat([head, ranking[:, head.shape[1] :]], dim=1)


def _batches(rows: Sequence[int], batch_size: int) -> list[list[int]]:
    if batch_size < 1:
        raise ValueError(f"the batch size must be at least 1, got {batch_size}")
    return [list(rows[start : start + batch_size]) for start in range(0, len(rows), batch_size)]


def map_batches(
    compute: Callable[[list[int]], Any],
    batches: list[list[int]],
    accelerator: Accelerator | None,
    description: str,
    run: Callable[[Callable[[list[int]], Any], list[list[int]]], Iterable[Any]] = map,
) -> list[Any]:
    """`compute` of each batch, in order, on every process; the processes share the batches out.

    The batches are the same for any number of processes, and with them the arithmetic.

    Args:
        run: how a process goes through its own, such as `tpas.engine.passes.side_by_side`.
    """
    progress = {
        "desc": description,
        "unit": "batch",
        "leave": False,
        "disable": None,
    }  # None: only on a terminal
    with torch.inference_mode():
        if accelerator is None or accelerator.num_processes == 1:
            return list(tqdm(run(compute, batches), total=len(batches), **progress))
        if not accelerator.is_main_process:
            progress["disable"] = True
        with accelerator.split_between_processes(list(enumerate(batches))) as share:
            own = tqdm(run(compute, [batch for _, batch in share]), total=len(share), **progress)
            own = [(position, output) for (position, _), output in zip(share, own, strict=True)]
    outputs = dict(gather_object(own))
    return [outputs[position] for position in range(len(batches))]
