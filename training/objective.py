"""What a fine-tuning step minimises: X-VLM's two losses, and what is switched on beside them."""

from typing import Any, NamedTuple, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor, nn

from ..modeling_tpas import TPASModel
from ..models.interface import MatchingModel, RetrievalModel, can_match
from ..objectives import (
    IGNORED_LABEL,
    MatchPairs,
    contrastive_loss,
    draw_match_pairs,
    gather_with_gradient,
    in_full_precision,
    matching_loss,
    pair_weights,
    several_processes,
)
from .masked_language_modelling import MaskedLanguageModelling


class WeightedPairs(NamedTuple):
    """`MatchPairs` whose rows are those of `FineTuningObjective.candidates`, and what each of them counts.

    Attributes:
        weights: (P,) from `pair_weights`.
    """

    images: Tensor
    texts: Tensor
    labels: Tensor
    weights: Tensor

    def split(self, size: int) -> list["WeightedPairs"]:
        return [WeightedPairs(*chunk) for chunk in zip(*(column.split(size) for column in self), strict=True)]


class FineTuningObjective(nn.Module):
    """The losses of `TPASModel.forward` for a batch of B pairs, and each addition by its argument.

    A model without a stage 2 has the contrastive loss (the paper's Eq. 5-7) alone.

    A batch holds the images of the pairs, then those of their hard negatives; the captions, then their second
    views, then the captions of the hard negatives (`training.data.PairCollator` makes it). A pair's hard
    negative is the same person behaving the other way, PAB's `hard_i` and `hard_c`.

    Args:
        model: the network, or the adapter over it.
        label_smoothing: of the contrastive loss.
        global_negatives: draw hard negatives from the batches of all processes, by `draw_seed`: see
            `draw_match_pairs`.
        second_view_weight: what the losses of the captions' second views count; 0: there are none. As in APTM
            (https://arxiv.org/abs/2306.02898), where it is 0.8.
        masked_language_modelling: the head that predicts masked words from image and caption, or None.
        masked_language_modelling_weight: what its loss counts.
    """

    # Where FSDP cuts the model.
    _no_split_modules = TPASModel._no_split_modules

    def __init__(
        self,
        model: RetrievalModel | nn.Module,
        *,
        label_smoothing: float = 0.0,
        global_negatives: bool = False,
        second_view_weight: float = 0.0,
        masked_language_modelling: MaskedLanguageModelling | None = None,
        masked_language_modelling_weight: float = 1.0,
    ):
        super().__init__()
        self.model = cast(nn.Module, model)
        self.masked_language_modelling = masked_language_modelling
        self.label_smoothing = label_smoothing
        self.global_negatives = global_negatives
        self.view_weights = (1.0, second_view_weight) if second_view_weight else (1.0,)
        self.masked_language_modelling_weight = masked_language_modelling_weight

    @property
    def network(self) -> RetrievalModel:
        return network_of(self.model)

    @property
    def matches(self) -> bool:
        """Whether there is a matching loss."""
        return can_match(self.network)

    @property
    def loss_names(self) -> tuple[str, ...]:
        """The keys of what `forward` returns."""
        names = ("loss", "contrastive_loss", *(["matching_loss"] if self.matches else []))
        return names if self.masked_language_modelling is None else (*names, "masked_language_modelling_loss")

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        image_ids: Tensor,
        text_ids: Tensor | None = None,
        has_hard_negative: Tensor | None = None,
        draw_seed: int | None = None,
        **image_inputs: Tensor,
    ) -> dict[str, Tensor]:
        """The losses by name, "loss" being their weighted sum.

        Args:
            input_ids, attention_mask: (B, 2B or 3B, L).
            image_ids: (B,) integers; pairs of equal id show the same image, so none is another's negative.
            text_ids: (B,) integers; the same of pairs whose captions read the same. None: all differ.
            has_hard_negative: (B,) bool, or None if the batch holds no hard negatives. Where it is false, the
                hard negative's rows are anything.
            draw_seed: of the hard negatives, the same in every process; needed for `global_negatives`.
            image_inputs: (B or 2B, ...) what the model reads of images, by the processor's names:
                `pixel_values`, for some models more.
        """
        input_ids, attention_mask = self.equal_length(input_ids, attention_mask)
        image_embeds, image_states = self.encode_images(**image_inputs)
        text_embeds, text_states = self.encode_texts(input_ids, attention_mask)
        contrastive, pairs = self.compare(
            image_embeds, text_embeds, image_ids, has_hard_negative, draw_seed, text_ids
        )
        losses = {"contrastive_loss": contrastive}
        if pairs is not None:
            candidates = self.candidates(image_states, text_states, attention_mask, len(image_ids))
            losses["matching_loss"] = self.match(*candidates, pairs)
        if self.masked_language_modelling is not None:
            captions = slice(len(image_ids))
            masked = self.masked_language_modelling.mask(input_ids[captions])
            losses["masked_language_modelling_loss"] = self.masked_language_modelling(
                cast(TPASModel, self.network), image_states[captions], *masked, attention_mask[captions]
            )
        return losses | {"loss": self.total(losses)}

    def total(self, losses: dict[str, Tensor]) -> Tensor:
        weights = {"masked_language_modelling_loss": self.masked_language_modelling_weight}
        return cast(Tensor, sum(weights.get(name, 1.0) * loss for name, loss in losses.items()))

    def equal_length(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Both (T, L), padded to the longest of all processes where captions are exchanged between them."""
        if not (self.matches and self.global_negatives and several_processes()):
            return input_ids, attention_mask
        longest = torch.tensor(input_ids.shape[1], device=input_ids.device)
        dist.all_reduce(longest, dist.ReduceOp.MAX)
        padding = (0, int(longest) - input_ids.shape[1])
        padding_id = self.network.config.text_config.pad_token_id
        return F.pad(input_ids, padding, value=padding_id), F.pad(attention_mask, padding)

    def encode_images(self, **inputs: Tensor) -> tuple[Tensor, Any]:
        """Embeddings (I, D) in fp32 at least, and states (I, 1+N, Dv), None without a stage 2."""
        image = self.network.get_image_features(**inputs)
        return in_full_precision(image.pooler_output), image.last_hidden_state

    def encode_texts(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Any]:
        """Embeddings (T, D) in fp32 at least, and states (T, L, Dt) or None."""
        text = self.network.get_text_features(input_ids, attention_mask)
        return in_full_precision(text.pooler_output), text.last_hidden_state

    def compare(
        self,
        image_embeds: Tensor,
        text_embeds: Tensor,
        image_ids: Tensor,
        has_hard_negative: Tensor | None,
        draw_seed: int | None,
        text_ids: Tensor | None = None,
    ) -> tuple[Tensor, WeightedPairs | None]:
        """The contrastive loss over the batches of all processes, and this process's pairs to match.

        There are none without a stage 2. They are those of `draw_match_pairs` for the captions, the
        hard negatives of the batch, and those of `draw_match_pairs` for the captions' second views.
        """
        batch = len(image_ids)
        images, ids = gather_with_gradient(image_embeds[:batch]), gather_with_gradient(image_ids)
        text_ids = None if text_ids is None else gather_with_gradient(text_ids)
        temperature = self.network.temperature()
        losses, pairs = [], []
        for view, weight in enumerate(self.view_weights):
            texts = gather_with_gradient(text_embeds[view * batch : (view + 1) * batch])
            everyone = (images, texts, temperature, ids)
            losses.append(weight * contrastive_loss(*everyone, self.label_smoothing, text_ids))
            if not self.matches:
                continue
            drawn = draw_match_pairs(
                *everyone,
                text_ids=text_ids,
                from_all_processes=self.global_negatives,
                seed=None if draw_seed is None else draw_seed + view,
            )
            candidates = len(ids) if self.global_negatives else batch
            drawn = drawn._replace(texts=drawn.texts + view * candidates)
            if view == 0 and has_hard_negative is not None:
                drawn = self.with_hard_negatives(drawn, has_hard_negative, candidates)
            pairs.append(WeightedPairs(*drawn, pair_weights(drawn.labels, weight)))
        together = WeightedPairs(*map(torch.cat, zip(*pairs, strict=True))) if pairs else None
        return cast(Tensor, sum(losses)), together

    def with_hard_negatives(
        self, drawn: MatchPairs, has_hard_negative: Tensor, candidates: int
    ) -> MatchPairs:
        """Adds each caption with its hard negative's image, and each image with its hard negative's caption.

        Args:
            candidates: how many images, and captions of each view, come before the hard negatives.
        """
        hard = torch.arange(len(has_hard_negative), device=has_hard_negative.device)
        own = drawn.images[: len(hard)]
        return MatchPairs(
            torch.cat([drawn.images, hard + candidates, own]),
            torch.cat([drawn.texts, own, hard + len(self.view_weights) * candidates]),
            torch.cat([drawn.labels, torch.where(has_hard_negative, 0, IGNORED_LABEL).repeat(2)]),
        )

    def candidates(
        self, image_states: Tensor, text_states: Tensor, text_mask: Tensor, batch: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The states and masks that pairs count in: with global negatives, those of all processes."""
        if not self.global_negatives:
            return image_states, text_states, text_mask
        captions = len(self.view_weights) * batch

        def joined(rows: Tensor, own: int) -> Tensor:
            shared = [gather_with_gradient(rows[start : start + batch]) for start in range(0, own, batch)]
            return torch.cat([*shared, rows[own:]])

        return joined(image_states, batch), joined(text_states, captions), joined(text_mask, captions)

    def match(
        self, image_states: Tensor, text_states: Tensor, text_mask: Tensor, pairs: WeightedPairs
    ) -> Tensor:
        """The matching loss of the pairs, which go through the cross-modal encoder together."""
        network, texts = cast(MatchingModel, self.network), pairs.texts
        text_states, text_mask = text_states[texts], text_mask[texts]
        if isinstance(network, TPASModel) and len(image_states) < len(texts):
            # Most images are in several pairs: what a layer makes of them is made once.
            logits = network.match(image_states, text_states, text_mask, image_rows=pairs.images)
        else:
            logits = network.match(image_states[pairs.images], text_states, text_mask)
        return matching_loss(logits, pairs.labels, pairs.weights)


def network_of(model: nn.Module) -> RetrievalModel:
    """The model without the wrapper of an adapter, the adapter's updates in its layers."""
    return cast(RetrievalModel, model.get_base_model() if isinstance(model, PeftModel) else model)
