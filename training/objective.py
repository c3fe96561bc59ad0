"""What a fine-tuning step minimises: X-VLM's two losses, and what is switched on beside them."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor, nn

from ..modeling_tpas import TPASModel
from ..models.interface import RetrievalModel, can_match
from ..objectives import (
    IGNORED_LABEL,
    contrastive_loss,
    gather_with_gradient,
    matching_labels,
    sample_hard_negatives,
)
from .masked_language_modelling import MaskedLanguageModelling


@dataclass(frozen=True)
class MatchPairs:
    """P image-caption pairs for the cross-modal encoder; the matching loss is their weighted sum.

    Attributes:
        images, texts: (P,) rows of what `FineTuningObjective.candidates` returns.
        labels: (P,) 1 for a match, 0 for none.
        weights: (P,) what a pair's cross-entropy counts, 0 for a pair that is left out.
    """

    images: Tensor
    texts: Tensor
    labels: Tensor
    weights: Tensor

    def split(self, size: int) -> list["MatchPairs"]:
        columns = (self.images, self.texts, self.labels, self.weights)
        return [MatchPairs(*chunk) for chunk in zip(*(column.split(size) for column in columns), strict=True)]


class FineTuningObjective(nn.Module):
    """The losses of a batch of B pairs: the paper's Eq. 5-8 by default, each addition by its argument.

    A model without a stage 2 has the contrastive loss (Eq. 5-7) alone.

    A batch holds the images of the pairs, then those of their hard negatives; the captions, then their second
    views, then the captions of the hard negatives (`training.data.PairCollator` makes it). A pair's hard
    negative is the same person behaving the other way, PAB's `hard_i` and `hard_c`.

    Args:
        model: the network, or the adapter over it.
        label_smoothing: of the contrastive loss.
        global_negatives: draw hard negatives from the batches of all processes, by `draw_seed`, so that the
            draw does not depend on how many processes share a batch. Otherwise from the process's own, by
            torch's generator, as upstream.
        second_view_weight: what the losses of the captions' second views count; 0: there are none. As in APTM
            (https://arxiv.org/abs/2306.02898), where it is 0.8.
        masked_language_modelling: the head that predicts masked words from image and caption, or None.
        masked_language_modelling_weight: what its loss counts.
    """

    # Where FSDP cuts the model.
    _no_split_modules = TPASModel._no_split_modules

    def __init__(
        self,
        model: RetrievalModel | PeftModel,
        *,
        label_smoothing: float = 0.0,
        global_negatives: bool = False,
        second_view_weight: float = 0.0,
        masked_language_modelling: MaskedLanguageModelling | None = None,
        masked_language_modelling_weight: float = 1.0,
    ):
        super().__init__()
        self.model = model
        self.masked_language_modelling = masked_language_modelling
        self.label_smoothing = label_smoothing
        self.global_negatives = global_negatives
        self.view_weights = (1.0, second_view_weight) if second_view_weight else (1.0,)
        self.masked_language_modelling_weight = masked_language_modelling_weight

    @property
    def network(self) -> RetrievalModel:
        """The model without the wrapper of an adapter, the adapter's updates in its layers."""
        return self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model

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
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        image_ids: Tensor,
        has_hard_negative: Tensor | None = None,
        draw_seed: int | None = None,
        **more_of_images: Tensor,
    ) -> dict[str, Tensor]:
        """The losses by name, "loss" being their weighted sum.

        Args:
            pixel_values: (B or 2B, 3, H, W).
            input_ids, attention_mask: (B, 2B or 3B, L).
            image_ids: (B,) integers; pairs of equal id show the same image, so none is another's negative.
            has_hard_negative: (B,) bool, or None if the batch holds no hard negatives. Where it is false, the
                hard negative's rows are anything.
            draw_seed: of the hard negatives, the same in every process; needed for `global_negatives`.
            more_of_images: what the model reads of images beside `pixel_values`, in its order.
        """
        input_ids, attention_mask = self.equal_length(input_ids, attention_mask)
        image_embeds, image_states = self.encode_images(pixel_values=pixel_values, **more_of_images)
        text_embeds, text_states = self.encode_texts(input_ids, attention_mask)
        contrastive, pairs = self.compare(image_embeds, text_embeds, image_ids, has_hard_negative, draw_seed)
        losses = {"contrastive_loss": contrastive}
        if self.matches:
            candidates = self.candidates(image_states, text_states, attention_mask, len(image_ids))
            losses["matching_loss"] = self.match(*candidates, pairs)
        if self.masked_language_modelling is not None:
            captions = slice(len(image_ids))
            masked = self.masked_language_modelling.mask(input_ids[captions])
            losses["masked_language_modelling_loss"] = self.masked_language_modelling(
                self.network, image_states[captions], *masked, attention_mask[captions]
            )
        return losses | {"loss": self.total(losses)}

    def total(self, losses: dict[str, Tensor]) -> Tensor:
        weights = {"masked_language_modelling_loss": self.masked_language_modelling_weight}
        return sum(weights.get(name, 1.0) * loss for name, loss in losses.items())

    def equal_length(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Both (T, L), padded to the longest of all processes where captions are exchanged between them."""
        if not (self.matches and self.global_negatives and several_processes()):
            return input_ids, attention_mask
        longest = torch.tensor(input_ids.shape[1], device=input_ids.device)
        dist.all_reduce(longest, dist.ReduceOp.MAX)
        padding = (0, int(longest) - input_ids.shape[1])
        padding_id = self.network.config.text_config.pad_token_id
        return F.pad(input_ids, padding, value=padding_id), F.pad(attention_mask, padding)

    def encode_images(self, **inputs: Tensor) -> tuple[Tensor, Tensor | None]:
        """Embeddings (I, D) in fp32, since a sharp temperature needs all digits, and states (I, 1+N, Dv).

        There are no states without a stage 2.
        """
        image = self.network.get_image_features(**inputs)
        return in_full_precision(image.pooler_output), image.last_hidden_state

    def encode_texts(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor | None]:
        """Embeddings (T, D) in fp32 and states (T, L, Dt), or None."""
        text = self.network.get_text_features(input_ids, attention_mask)
        return in_full_precision(text.pooler_output), text.last_hidden_state

    def compare(
        self,
        image_embeds: Tensor,
        text_embeds: Tensor,
        image_ids: Tensor,
        has_hard_negative: Tensor | None,
        draw_seed: int | None,
    ) -> tuple[Tensor, MatchPairs | None]:
        """The contrastive loss over the batches of all processes, and this process's pairs to match.

        There are none without a stage 2. These are, for the captions and again for their second views: the B
        pairs, each caption with another image, each image with another caption; then each caption with
        its hard negative's image and each image with its hard negative's caption, as two more negatives.
        """
        batch, device = len(image_ids), image_ids.device
        images = gather_with_gradient(image_embeds[:batch])  # (W * B, D) of W processes
        ids = gather_with_gradient(image_ids)
        # The rows that negatives are drawn from: those of all processes, or the own.
        drawn_from = len(ids) if self.global_negatives else batch
        rank = dist.get_rank() if several_processes() else 0
        own = torch.arange(batch, device=device) + (rank * batch if self.global_negatives else 0)

        contrastive, pairs = 0.0, []
        with torch.autocast(device.type, enabled=False):
            temperature = in_full_precision(self.network.temperature())
            for view, weight in enumerate(self.view_weights):
                own_texts = text_embeds[view * batch : (view + 1) * batch]
                texts = gather_with_gradient(own_texts)
                contrastive = contrastive + weight * contrastive_loss(
                    images, texts, temperature, ids, self.label_smoothing
                )
                if not self.matches:
                    continue
                if self.global_negatives:
                    generator = torch.Generator(device).manual_seed(draw_seed + view)
                    similarity = images.detach() @ texts.detach().t() / temperature
                    negatives = sample_hard_negatives(similarity, ids, generator)
                    labels = matching_labels(*negatives, ids)
                else:
                    similarity = image_embeds[:batch].detach() @ own_texts.detach().t() / temperature
                    negatives = sample_hard_negatives(similarity, image_ids)
                    labels = matching_labels(*negatives, image_ids)
                image_negatives, text_negatives = (rows[own] for rows in negatives)
                labels = labels.view(3, -1)[:, own].flatten()  # (3B,)
                first_text = view * drawn_from
                rows_of_images = [own, image_negatives, own]
                rows_of_texts = [own + first_text, own + first_text, text_negatives + first_text]
                if view == 0 and has_hard_negative is not None:
                    hard_negatives = torch.arange(batch, device=device)
                    rows_of_images += [hard_negatives + drawn_from, own]
                    rows_of_texts += [own, hard_negatives + len(self.view_weights) * drawn_from]
                    labels = torch.cat([labels, torch.where(has_hard_negative, 0, IGNORED_LABEL).repeat(2)])
                counted = (labels != IGNORED_LABEL).float()
                mean_count = gather_with_gradient(counted.sum()[None]).mean()  # over the processes
                pairs.append(
                    (
                        torch.cat(rows_of_images),
                        torch.cat(rows_of_texts),
                        labels.clamp(min=0),
                        weight * counted / mean_count,
                    )
                )
        if not self.matches:
            return contrastive, None
        return contrastive, MatchPairs(*map(torch.cat, zip(*pairs, strict=True)))

    def candidates(
        self, image_states: Tensor, text_states: Tensor, text_mask: Tensor, batch: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The states and masks that `MatchPairs` counts in: with global negatives, those of all processes."""
        if not self.global_negatives:
            return image_states, text_states, text_mask
        captions = len(self.view_weights) * batch

        def joined(rows: Tensor, own: int) -> Tensor:
            shared = [gather_with_gradient(rows[start : start + batch]) for start in range(0, own, batch)]
            return torch.cat([*shared, rows[own:]])

        return joined(image_states, batch), joined(text_states, captions), joined(text_mask, captions)

    def match(
        self, image_states: Tensor, text_states: Tensor, text_mask: Tensor, pairs: MatchPairs
    ) -> Tensor:
        """The matching loss of the pairs, in one pass of the cross-modal encoder."""
        texts = pairs.texts
        logits = self.network.match(image_states[pairs.images], text_states[texts], text_mask[texts])
        losses = F.cross_entropy(in_full_precision(logits), pairs.labels, reduction="none")  # (P,)
        return (pairs.weights * losses).sum()


def several_processes() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def in_full_precision(tensor: Tensor) -> Tensor:
    """In fp32 at least."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
