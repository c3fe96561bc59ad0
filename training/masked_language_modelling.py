"""Masked language modelling in the cross-modal encoder: words from the image and the other words."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..modeling_tpas import TPASModel

NO_TARGET = -100  # what torch.nn.functional.cross_entropy skips


class MaskedLanguageModelling(nn.Module):
    """BERT's prediction head, its output tied to the word embeddings, and the masking.

    The head is of use in training only and is not saved with a model.

    Args:
        width: of the text states.
        mask_token_id: of [MASK].
        maskable_ids: the words that may be masked.
        masked_share: of these words, each by chance.
        random_share, kept_share: of the masked words that become another of `maskable_ids`, or stay as they
            are, in place of [MASK] (BERT and X-VLM: 0.1 each).
    """

    maskable_ids: Tensor

    def __init__(
        self,
        width: int,
        mask_token_id: int,
        maskable_ids: list[int],
        masked_share: float,
        random_share: float = 0.0,
        kept_share: float = 0.0,
    ):
        super().__init__()
        self.transform = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width))
        self.mask_token_id = mask_token_id
        self.masked_share = masked_share
        self.random_share = random_share
        self.kept_share = kept_share
        self.register_buffer("maskable_ids", torch.tensor(maskable_ids), persistent=False)

    def mask(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Ids (B, L) with some masked, and the targets (B, L): the masked words, elsewhere `NO_TARGET`."""
        chance = torch.rand(input_ids.shape, device=input_ids.device)
        masked = torch.isin(input_ids, self.maskable_ids) & (chance < self.masked_share)
        ids = input_ids.masked_fill(masked, self.mask_token_id)
        if self.random_share or self.kept_share:
            chance = torch.rand(input_ids.shape, device=input_ids.device)
            others = torch.randint(len(self.maskable_ids), input_ids.shape, device=input_ids.device)
            ids = torch.where(masked & (chance < self.random_share), self.maskable_ids[others], ids)
            ids = torch.where(masked & (chance > 1 - self.kept_share), input_ids, ids)
        return ids, input_ids.masked_fill(~masked, NO_TARGET)

    def forward(
        self, model: TPASModel, image_states: Tensor, masked_ids: Tensor, targets: Tensor, text_mask: Tensor
    ) -> Tensor:
        """Mean cross-entropy over the masked words of B pairs, 0 where none is masked."""
        text = model.get_text_features(masked_ids, text_mask)
        hidden, _ = model.cross_modal_encoder(text.last_hidden_state, text_mask, image_states)
        predicted = targets != NO_TARGET
        words = model.text_model.embeddings.word_embeddings.weight
        logits = self.transform(hidden[predicted]) @ words.t()  # (masked words, vocabulary)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return F.cross_entropy(logits, targets[predicted], reduction="sum") / predicted.sum().clamp(min=1)
