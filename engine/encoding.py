"""Images and texts to features in batches; `fastest.py` says by what."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..models.interface import Encoder, RetrievalProcessor, TextEncoder
from ..models.unread_texts import as_read
from ..processing_tpas import check_captions

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class EncodedTexts:
    """Q texts, fp32 on the CPU.

    Attributes:
        embeds: (Q, D), unit norm.
        hidden_states: (Q, L, text width), zeros where padded; None of a model without a stage 2.
        attention_mask: (Q, L).
    """

    embeds: Tensor
    hidden_states: Tensor | None
    attention_mask: Tensor

    def __len__(self) -> int:
        return len(self.embeds)

    def __getitem__(self, rows: Any) -> "EncodedTexts":
        """Some of them, by a slice or by row numbers."""
        states = None if self.hidden_states is None else self.hidden_states[rows]
        return EncodedTexts(self.embeds[rows], states, self.attention_mask[rows])


@torch.inference_mode()
def encode_images(
    encoder: Encoder, inputs: Mapping[str, Tensor], tokens_dtype: torch.dtype | None = torch.float32
) -> tuple[Tensor, Tensor | None]:
    """One batch of images to what a search keeps of them, on the CPU.

    Args:
        inputs: what the processor makes of images, by name, each (B, ...).
        tokens_dtype: of the image tokens; `None`: none are wanted.

    Returns:
        Embeddings (B, D) fp32, and image tokens (B, 1+N, image width); None of a model without a stage 2.
    """
    moved = {
        name: tensor.to(encoder.device, encoder.dtype if tensor.is_floating_point() else None)
        for name, tensor in inputs.items()
    }
    output = encoder.get_image_features(**moved)
    tokens = output.last_hidden_state
    if tokens is not None:
        tokens = None if tokens_dtype is None else tokens.to("cpu", tokens_dtype)
    return output.pooler_output.float().cpu(), tokens


def collated(items: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """What a processor made of images one by one, each (1, ...), as one batch (B, ...), by name."""
    return {name: torch.cat([item[name] for item in items]) for name in items[0]}


def encode_texts(
    encoder: TextEncoder,
    processor: RetrievalProcessor,
    texts: Sequence[str],
    *,
    batch_size: int = 64,
    accelerator: "Accelerator | None" = None,
) -> EncodedTexts:
    """Encodes the texts, rows in the order given, padded to the longest.

    The processes of `accelerator` share the work, and each gets the whole result.

    Raises:
        ValueError: a batch size below 1, or an empty text; names its position.
    """

    def encode(rows: Sequence[int]) -> tuple[Tensor, Tensor | None, Tensor]:
        inputs = processor(text=[texts[row] for row in rows]).to(encoder.device)
        output = encoder.get_text_features(inputs["input_ids"], inputs["attention_mask"])
        states = output.last_hidden_state
        return (
            output.pooler_output.float().cpu(),
            None if states is None else states.float().cpu(),
            inputs["attention_mask"].cpu(),
        )

    if batch_size < 1:
        raise ValueError(f"the batch size must be at least 1, got {batch_size}")
    check_captions([as_read(processor, text) for text in texts])  # in the caller's order
    # Texts of similar length share a batch, which saves padding.
    by_length = sorted(range(len(texts)), key=lambda row: (len(texts[row]), texts[row]))
    batches = [by_length[start : start + batch_size] for start in range(0, len(texts), batch_size)]
    outputs = _computed_by_all(encode, batches, accelerator)

    width = outputs[0][0].shape[1]
    longest = max(mask.shape[1] for _, _, mask in outputs)
    embeds = torch.empty(len(texts), width)
    masks = torch.zeros(len(texts), longest, dtype=torch.long)
    first_states = outputs[0][1]
    states = None if first_states is None else torch.zeros(len(texts), longest, first_states.shape[2])
    for rows, (own_embeds, own_states, mask) in zip(batches, outputs, strict=True):
        length = mask.shape[1]
        embeds[rows] = own_embeds
        masks[rows, :length] = mask
        if states is not None and own_states is not None:
            states[rows, :length] = own_states * mask[:, :, None]
    return EncodedTexts(embeds, states, masks)


def _computed_by_all(
    compute: Callable[[Sequence[int]], Any], batches: list[list[int]], accelerator: "Accelerator | None"
) -> list[Any]:
    """`compute` of each batch, in order, on every process; the processes share the batches out.

    The batches are the same for any number of processes, and with them the arithmetic.
    """
    bar = {"desc": "encoding texts", "unit": "batch", "leave": False}
    with torch.inference_mode():
        if accelerator is None or accelerator.num_processes == 1:
            # None: on a terminal only.
            return [compute(batch) for batch in tqdm(batches, disable=None, **bar)]
        from accelerate.utils import gather_object

        own = []
        numbers = list(range(len(batches)))
        hidden = None if accelerator.is_main_process else True
        with accelerator.split_between_processes(numbers) as share:
            for number in tqdm(share, disable=hidden, **bar):
                own.append((number, compute(batches[number])))
    outputs = dict(gather_object(own))
    return [outputs[number] for number in range(len(batches))]
