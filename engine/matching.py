"""Match logits of many pairs, by the quickest way to what `model.match` gives."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..models.interface import MatchingModel
from .encoding import EncodedTexts
from .side_by_side import one_ahead, side_by_side


class Matcher(ABC):
    """Scores pairs of encoded texts and image tokens, batch by batch.

    Attributes:
        pairs_per_batch: pairs in one batch where a caller asks for no other number. A pair's last digits
            depend on its batch.
    """

    device: torch.device
    pairs_per_batch: int

    @abstractmethod
    def read_texts(self, texts: EncodedTexts, batch_size: int | None = None) -> Any:
        """What all pairs of a text share, computed once; for the calls below.

        Args:
            batch_size: texts in one batch; `None`: `pairs_per_batch`.

        Raises:
            ValueError: a text without tokens, or a batch size below 1.
        """

    @abstractmethod
    def match(
        self, texts: Any, queries: Sequence[int], image_states: Tensor, counts: Sequence[int]
    ) -> Tensor:
        """One batch: logits (B, 2), class 1 = the pair matches, fp32 on the CPU.

        Args:
            texts: what `read_texts` made of them.
            queries: (B,) numbers of texts.
            image_states: (n, 1+N, image width); the first `counts[0]` texts meet the first image, and so on.
        """

    def logits_of_shortlists(
        self, image_states: Any, texts: EncodedTexts, shortlists: Tensor, *, batch_size: int | None = None
    ) -> Tensor:
        """The logits of each query with the images of its shortlist (Q, K): (Q, K, 2).

        The other arguments, and what is promised and raised, are as in [`logits_of_pairs`].
        """
        texts_read = self.read_texts(texts, batch_size)
        queries = np.arange(len(shortlists)).repeat(shortlists.shape[1])  # (Q * K,)
        images = shortlists.flatten().numpy()
        logits = self.logits_of_pairs(image_states, texts_read, queries, images, batch_size=batch_size)
        return logits.view(*shortlists.shape, 2)

    def logits_of_pairs(
        self,
        image_states: Any,
        texts: Any,
        queries: np.ndarray,
        images: np.ndarray,
        *,
        batch_size: int | None = None,
    ) -> Tensor:
        """The logits of the texts numbered `queries` (P,) with the images numbered `images` (P,): (P, 2).

        Pairs are visited image by image: each image's tokens are read once, or, where an image is in more
        pairs than a batch has room for, once for each batch.

        Args:
            image_states: the gallery's (G, 1+N, image width), a tensor or an array such as a mapped file, in
                any floating precision; sorted rows of it are taken with an integer array.
            texts: what `read_texts` made of them.
            batch_size: pairs in one batch; `None`: `pairs_per_batch`.

        Returns:
            Logits, fp32 on the CPU. A pair's last digits depend on `batch_size` and on the other pairs.

        Raises:
            ValueError: a batch size below 1.
            IndexError: an image outside the gallery.
        """
        gallery_size = len(image_states)
        if images.size and not 0 <= images.min() <= images.max() < gallery_size:
            raise IndexError(
                f"shortlists point to images {images.min()} to {images.max()} of {gallery_size}, from 0"
            )

        def read(pairs: np.ndarray) -> tuple[list[int], Tensor, list[int]]:
            rows, counts = np.unique(images[pairs], return_counts=True)
            tokens = image_states[rows]  # (n, 1+N, image width)
            tokens = tokens if isinstance(tokens, Tensor) else torch.from_numpy(np.asarray(tokens))
            if self.device.type == "cuda" and not tokens.is_cuda:
                tokens = tokens.pin_memory().to(self.device, non_blocking=True)
            return queries[pairs].tolist(), tokens, counts.tolist()

        def match(batch: tuple[list[int], Tensor, list[int]]) -> Tensor:
            return self.match(texts, *batch)

        batches = batches_of_pairs(images, self.checked_batch_size(batch_size))
        if self.device.type == "cpu":
            outputs = side_by_side(lambda pairs: match(read(pairs)), batches)
        else:
            outputs = map(match, one_ahead(read, batches))
        logits = torch.empty(len(images), 2)
        bar = tqdm(
            zip(batches, outputs, strict=True),
            desc="matching pairs",
            unit="batch",
            total=len(batches),
            leave=False,
            disable=None,  # shown on a terminal only
        )
        for pairs, output in bar:
            logits[torch.from_numpy(pairs)] = output
        return logits

    def checked_batch_size(self, asked: int | None) -> int:
        """The batch size asked for, or `pairs_per_batch`; raises ValueError for one below 1."""
        if asked is None:
            return self.pairs_per_batch
        if asked < 1:
            raise ValueError(f"the batch size must be at least 1, got {asked}")
        return asked


class PlainMatcher(Matcher):
    """Any model's own `match`, padded to the longest text of a batch."""

    pairs_per_batch = 64  # keeps a GPU busy at full size

    def __init__(self, model: MatchingModel):
        self.model = model
        self.device = model.device

    def read_texts(self, texts: EncodedTexts, batch_size: int | None = None) -> EncodedTexts:
        """The texts as they are: the model reads them again with each image."""
        self.checked_batch_size(batch_size)
        return texts

    @torch.inference_mode()
    def match(
        self, texts: EncodedTexts, queries: Sequence[int], image_states: Tensor, counts: Sequence[int]
    ) -> Tensor:
        assert texts.hidden_states is not None, "a model with a stage 2 keeps the texts' hidden states"
        rows = torch.tensor(queries)
        images = torch.arange(len(image_states)).repeat_interleave(torch.tensor(counts))  # (B,)
        length = int(texts.attention_mask[rows].sum(dim=1).max())
        logits = self.model.match(
            image_states.to(self.device, self.model.dtype)[images.to(self.device)],
            texts.hidden_states[rows, :length].to(self.device, self.model.dtype),
            texts.attention_mask[rows, :length].to(self.device),
        )
        return logits.float().cpu()


def batches_of_pairs(images: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Pairs by their `images` (P,), sorted by these and cut into at most `batch_size`, between images where
    possible; those of one image keep their order.
    """
    order = np.argsort(images, kind="stable")
    _, starts = np.unique(images[order], return_index=True)
    batches = []
    start = 0
    for stop in [*starts[1:], len(order)]:  # one image after the other
        if batches and len(batches[-1]) + stop - start <= batch_size:
            batches[-1] = order[start - len(batches[-1]) : stop]
        else:
            batches += [order[row : min(row + batch_size, stop)] for row in range(start, stop, batch_size)]
        start = stop
    return batches
