"""Ranks a gallery for all queries, stage by stage, at bounded memory and to the same bit wherever it runs.

**The same bit.** The last digits of a score depend on the shape of the forward pass that computed it: an
image alone and the same image among eight differ by some 1e-7 (benchmarks/batch_noise.py), enough to swap
near neighbours. Rounding does not help, since a score may lie at a rounding boundary. So the shape is never
left to chance: images, captions and pairs go through the model in batches of fixed size and fixed content,
made from sorted ids and the lengths of captions (those of pairs by `batches_of_pairs`). Batch size, number of
processes, order of rows and the memory at hand decide who does a batch and when, never what is in it.
(Another machine, or a GPU in place of a CPU, may still give other last digits.)

**Bounded memory.** In memory at once: the embeddings, the captions' tokens (Q, L, width) and on a CPU what
`FastMatcher` reads of them, up to twice as much, lists (Q, K), and the images' tokens up to `token_memory`
a process. The shortlisted pairs are visited image by image, and tokens that were not kept are encoded
again, by the process and in the batch that encoded them before. Of the whole ranking (Q, G) only the ranks of
the `watched` images remain.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from ..engine.encoding import EncodedTexts, Encoder, encode_images, encode_texts
from ..engine.fastest import encoder_for, matcher_for
from ..engine.matching import Matcher, batches_of_pairs
from ..engine.side_by_side import side_by_side
from ..models.interface import (
    ImageMatcher,
    RetrievalModel,
    RetrievalProcessor,
    can_match,
)
from ..sca import SCAReport
from ..search.arguments import DEFAULT_MATCHER_SHORTLIST
from ..search.ranking import fuse, rank_by_embeddings, reorder
from .settings import SCASettings
from .stages import Stage

# Large enough to keep a GPU busy at full size, small enough for the memory of a laptop.
IMAGES_IN_A_BATCH = 16
CAPTIONS_IN_A_BATCH = 32
# Into which a `FastEncoder` divides them; its own defaults may come to depend on the machine.
FAST_IMAGES_IN_A_BATCH, FAST_CAPTIONS_IN_A_BATCH = 4, 16
QUERIES_IN_A_BATCH = 64  # of the product of embeddings
# Not the engine's defaults, for the same reason.
PAIRS_IN_A_BATCH, PAIRS_IN_A_BATCH_ON_A_GPU = 24, 256
TOKEN_MEMORY = 4 * 2**30  # bytes


@dataclass(frozen=True)
class Rankings:
    """Each stage's best K images of each query.

    Attributes:
        indices: stage to (Q, K) indices into the gallery, best first. "embeddings", "embeddings_sca",
            "matching", "fused" (with a fusion weight), "sca"; without a stage 2 "embeddings" and "sca". A
            matcher of its own has shorter lists than the embeddings.
        scores: stage to (Q, K), their scores; SCA leaves each image its own.
        watched_ranks: stage to, for each query, the ranks (W,) from 1 of its watched images in the whole
            gallery. Beyond the best K every stage keeps the order of the embeddings.
        final_stage: "fused", "matching" or "embeddings", the last stage, which "sca" resolves.
        moved: (Q,) bool, whether SCA changed the final stage's first answer.
        sca_report: SCA's counts on the final stage.
    """

    indices: dict[str, Tensor]
    scores: dict[str, Tensor]
    watched_ranks: dict[str, list[np.ndarray]]
    final_stage: str
    moved: Tensor
    sca_report: SCAReport


def rank_gallery(
    model: RetrievalModel,
    processor: RetrievalProcessor,
    captions: Sequence[str],
    query_ids: Sequence[str],
    images: Sequence[Image.Image],
    gallery_ids: Sequence[str],
    *,
    shortlist: int,
    matcher: ImageMatcher | None = None,
    matcher_shortlist: int = DEFAULT_MATCHER_SHORTLIST,
    fusion_weight: float = 0.0,
    sca: SCASettings | None = None,
    watched: Sequence[Sequence[int]] | None = None,
    batch_size: int = 64,
    token_memory: int = TOKEN_MEMORY,
    accelerator: Accelerator | None = None,
) -> Rankings:
    """Ranks the gallery for each query by embeddings, matching, their fusion, and SCA.

    The model is put into evaluation mode and left in it. The processes of `accelerator` share the work, and
    all return the same.

    Args:
        captions, query_ids: Q; the ids are distinct.
        images, gallery_ids: G, read one at a time and from several threads; the ids are distinct.
        shortlist: K, the images that are matched with each query.
        matcher: a stage 2 in place of the model's own, of which it reads the first `matcher_shortlist`,
            or the whole gallery where that is smaller.
        watched: for each query the images whose ranks are wanted, as indices into the gallery.
        batch_size: images that a process reads at once, rounded up to whole batches.
        token_memory: bytes of image tokens that a process may keep between the stages.
    """
    if batch_size < 1:
        raise ValueError(f"the batch size must be at least 1, got {batch_size}")
    if token_memory < 0:
        raise ValueError(f"the memory for tokens must be at least 0 bytes, got {token_memory}")
    matcher_shortlist = min(matcher_shortlist, len(gallery_ids))
    if matcher is not None and not 1 <= matcher_shortlist <= shortlist:
        raise ValueError(
            f"the matcher's shortlist must be between 1 and the shortlist's {shortlist} images, got "
            f"{matcher_shortlist}"
        )
    if matcher is None and not can_match(model) and fusion_weight != 0:
        raise ValueError(
            f"the fusion weight {fusion_weight} is of embeddings and matching, and {model.name_or_path} has "
            "embeddings alone"
        )
    model.eval()
    encoder = encoder_for(
        model, images_per_batch=FAST_IMAGES_IN_A_BATCH, texts_per_batch=FAST_CAPTIONS_IN_A_BATCH
    )
    texts = encode_texts(
        encoder, processor, captions, batch_size=CAPTIONS_IN_A_BATCH, accelerator=accelerator
    )
    gallery = _EncodedGallery(
        model, encoder, processor, images, gallery_ids, batch_size, token_memory, accelerator
    )
    embeds = gallery.encode(texts.embeds.shape[1])  # (G, projection_dim)
    _refuse_not_finite(texts.embeds, "query", query_ids)
    _refuse_not_finite(embeds, "image", gallery_ids)
    watched = [()] * len(captions) if watched is None else watched
    candidates, cosines, first_ranks = _rank_by_embeddings(
        texts.embeds, embeds, query_ids, gallery_ids, shortlist, watched
    )
    lists = {"embeddings": (candidates, cosines)}
    final_stage = "embeddings"
    if matcher is not None or can_match(model):
        final_stage = "matching"
        if matcher is None:
            match_scores = gallery.match(texts, query_ids, candidates)  # (Q, K)
        else:
            candidates, cosines = candidates[:, :matcher_shortlist], cosines[:, :matcher_shortlist]
            match_scores = gallery.match_images(matcher, captions, query_ids, candidates)
        lists["matching"] = reorder(candidates, match_scores)
        if fusion_weight != 0:
            final_stage = "fused"
            lists["fused"] = reorder(candidates, fuse(match_scores, cosines, fusion_weight))
    sca = sca or SCASettings()
    # Where the embeddings are the final stage, theirs is "sca".
    for stage, name in {"embeddings": "embeddings_sca", final_stage: "sca"}.items():
        reranked = sca.rerank(*lists[stage], texts.embeds, list(query_ids))
        lists[name] = (reranked.indices, reranked.scores)
    stages = [stage.value for stage in Stage if stage in lists]
    return Rankings(
        indices={name: lists[name][0] for name in stages},
        scores={name: lists[name][1] for name in stages},
        watched_ranks={name: _ranks_in(lists[name][0], watched, first_ranks) for name in stages},
        final_stage=final_stage,
        moved=reranked.moved,
        sca_report=reranked.report,
    )


def _refuse_not_finite(embeds: Tensor, kind: str, ids: Sequence[str]) -> None:
    """Raises ValueError for embeddings (N, D) that cannot be ranked, before hours of matching."""
    broken = (~embeds.isfinite().all(dim=1)).nonzero().flatten().tolist()
    if broken:
        raise ValueError(
            f"{len(broken)} of {len(ids)} embeddings are not finite, the first of {kind} {ids[broken[0]]!r}: "
            "the model's weights are broken, or too large for the precision that it runs in"
        )


def _rank_by_embeddings(
    text_embeds: Tensor,
    image_embeds: Tensor,
    query_ids: Sequence[str],
    gallery_ids: Sequence[str],
    shortlist: int,
    watched: Sequence[Sequence[int]],
) -> tuple[Tensor, Tensor, list[np.ndarray]]:
    """Stage 1: candidates (Q, K), their cosines (Q, K), and the ranks of the watched images."""
    queries, images = len(query_ids), len(gallery_ids)
    candidates = torch.empty(queries, shortlist, dtype=torch.long)
    cosines = torch.empty(queries, shortlist)
    ranks: list[np.ndarray] = [np.empty(0, dtype=np.int64)] * queries
    for rows in _slices(_by_id(query_ids), QUERIES_IN_A_BATCH):
        ranking, similarity = rank_by_embeddings(text_embeds[rows], image_embeds, gallery_ids)
        candidates[rows], cosines[rows] = ranking[:, :shortlist], similarity[:, :shortlist]
        rank = np.empty(images, dtype=np.int64)
        for row, order in zip(rows, ranking.numpy(), strict=True):
            rank[order] = np.arange(1, images + 1)
            ranks[row] = rank[list(watched[row])]
    return candidates, cosines, ranks


def _ranks_in(
    indices: Tensor, watched: Sequence[Sequence[int]], first_ranks: list[np.ndarray]
) -> list[np.ndarray]:
    """The ranks of the watched images in lists (Q, K) that go on as the embeddings' do."""
    ranks = []
    for head, images, first in zip(indices.numpy(), watched, first_ranks, strict=True):
        places = head[None, :] == np.asarray(images, dtype=np.int64)[:, None]  # (W, K)
        ranks.append(np.where(places.any(axis=1), places.argmax(axis=1) + 1, first))
    return ranks


class _EncodedGallery:
    """Images in batches, dealt to the processes in units of `batch_size`; a process keeps to its own."""

    def __init__(
        self,
        model: RetrievalModel,
        encoder: Encoder,
        processor: RetrievalProcessor,
        images: Sequence[Image.Image],
        gallery_ids: Sequence[str],
        batch_size: int,
        token_memory: int,
        accelerator: Accelerator | None,
    ):
        self.model, self.encoder, self.processor, self.images = model, encoder, processor, images
        self.accelerator = accelerator
        self.token_memory = token_memory
        self.order = np.array(sorted(range(len(gallery_ids)), key=gallery_ids.__getitem__))  # (G,)
        self.batches = list(_slices(self.order.tolist(), IMAGES_IN_A_BATCH))
        units = list(_slices(range(len(self.batches)), -(-batch_size // IMAGES_IN_A_BATCH)))
        index, count = (
            (0, 1) if accelerator is None else (accelerator.process_index, accelerator.num_processes)
        )
        self.own_units = units[index::count]
        self.kept: dict[int, Tensor] = {}  # batch to tokens (images, 1+N, width)

    def encode(self, width: int) -> Tensor:
        """The embeddings (G, width); as many tokens as the memory allows are kept, if there are any."""
        # Filled in place: small tensors kept among large freed ones break up the heap, at the size of the
        # challenge by gigabytes (benchmarks/evaluation_memory.py).
        embeds = torch.empty(len(self.order), width)
        filled, used = [], 0
        for unit in self._units("encoding images"):
            for number, batch_embeds, tokens in self._encode_batches(unit):
                embeds[self.batches[number]] = batch_embeds
                filled += self.batches[number]
                if tokens is None:
                    continue
                size = tokens.numel() * tokens.element_size()
                if used + size <= self.token_memory:
                    used += size
                    self.kept[number] = tokens
        return self._filled_by_all(embeds, torch.tensor(filled, dtype=torch.long))

    def match(self, texts: EncodedTexts, query_ids: Sequence[str], candidates: Tensor) -> Tensor:
        """The match logits of each query with its candidates, both (Q, K), by the model itself."""
        assert can_match(self.model), "asked of a model with a stage 2 alone"
        matcher = matcher_for(self.model)
        own_number = {row: number for number, row in enumerate(_by_id(query_ids))}
        in_order = texts[list(own_number)]
        texts_read = matcher.read_texts(in_order, CAPTIONS_IN_A_BATCH)
        number = np.array([own_number[row] for row in range(len(query_ids))])  # (Q,)

        def score(tokens: Tensor, places: np.ndarray, query: np.ndarray) -> Tensor:
            return _match_batches(matcher, texts_read, tokens, places, number[query])

        lengths = texts.attention_mask.sum(dim=1).numpy()
        return self._score_pairs(candidates, query_ids, lengths, self._tokens, score)

    def match_images(
        self,
        matcher: ImageMatcher,
        captions: Sequence[str],
        query_ids: Sequence[str],
        candidates: Tensor,
    ) -> Tensor:
        """The scores that `matcher` gives each query with its candidates, both (Q, K)."""
        lengths = np.array([len(caption) for caption in captions])

        def score(images: list[Image.Image], places: np.ndarray, text: np.ndarray) -> Tensor:
            size = matcher.pairs_per_batch
            scores = [
                matcher.match_images([images[place] for place in own], [captions[int(row)] for row in rows])
                for own, rows in zip(_slices(places, size), _slices(text, size), strict=True)
            ]
            return torch.cat(scores)

        return self._score_pairs(candidates, query_ids, lengths, self._read, score)

    def _score_pairs(
        self,
        candidates: Tensor,
        query_ids: Sequence[str],
        lengths: np.ndarray,
        content_of: Callable[[list[int]], Iterator[tuple[int, Any]]],
        score: Callable[[Any, np.ndarray, np.ndarray], Tensor],
    ) -> Tensor:
        """A score for each query with its candidates, both (Q, K), batch by batch of images.

        Args:
            lengths: (Q,) of the captions: similar ones follow each other.
            content_of: of some batches of images of one unit, what `score` reads of them.
            score: of the content of a batch, and of all pairs with its images the places of these in it (B,)
                and the queries (B,), to scores (B,); it divides them into batches of its own fixed size.
        """
        queries, shortlist = candidates.shape
        position = np.empty(len(self.order), dtype=np.int64)
        position[self.order] = np.arange(len(self.order))
        position = position[candidates.numpy().ravel()]  # (Q * K,) of the pair's image
        id_rank = np.empty(queries, dtype=np.int64)
        id_rank[_by_id(query_ids)] = np.arange(queries)
        query = np.arange(queries).repeat(shortlist)  # (Q * K,)
        # Within a batch of images captions of similar length follow each other, which saves padding.
        batch_number = position // IMAGES_IN_A_BATCH
        pairs = np.lexsort((position, id_rank[query], lengths[query], batch_number))
        starts = np.searchsorted(batch_number[pairs], np.arange(len(self.batches) + 1))

        scores = torch.empty(queries * shortlist)
        filled = []
        for unit in self._units("matching pairs"):
            wanted = [number for number in unit if starts[number] < starts[number + 1]]
            for number, content in content_of(wanted):
                own = pairs[starts[number] : starts[number + 1]]
                filled.append(own)
                scores[own] = score(content, position[own] - number * IMAGES_IN_A_BATCH, query[own])
        own = torch.from_numpy(np.concatenate(filled)) if filled else torch.empty(0, dtype=torch.long)
        return self._filled_by_all(scores, own).view(queries, shortlist)

    def _tokens(self, numbers: list[int]) -> Iterator[tuple[int, Tensor]]:
        """Batches of one unit with their tokens, encoded again where they were not kept."""
        absent = [number for number in numbers if number not in self.kept]
        for number, _, tokens in self._encode_batches(absent):
            assert tokens is not None, "a model with a stage 2 keeps image tokens"
            yield number, tokens
        for number in numbers:
            if number in self.kept:
                yield number, self.kept[number]

    def _read(self, numbers: Sequence[int]) -> Iterator[tuple[int, list[Image.Image]]]:
        """Number and images of each batch; all are read beforehand."""
        columns = [column for number in numbers for column in self.batches[number]]
        with ThreadPoolExecutor() as pool:
            images = iter(list(pool.map(self.images.__getitem__, columns)))
        for number in numbers:
            yield number, [next(images) for _ in self.batches[number]]

    def _encode_batches(self, numbers: Sequence[int]) -> Iterator[tuple[int, Tensor, Tensor | None]]:
        """Number, embeddings and tokens of each batch, fp32 on the CPU; without a stage 2 no tokens."""
        for number, images in self._read(numbers):
            yield number, *encode_images(self.encoder, self.processor(images=images))

    def _units(self, description: str) -> Iterator[Sequence[int]]:
        hidden = None if self.accelerator is None or self.accelerator.is_main_process else True
        return iter(tqdm(self.own_units, desc=description, unit="batch", leave=False, disable=hidden))

    def _filled_by_all(self, values: Tensor, own: Tensor) -> Tensor:
        """`values`, of which each process filled its own rows, with the rows of all."""
        if self.accelerator is not None and self.accelerator.num_processes > 1:
            for rows, filled in gather_object([(own, values[own])]):
                values[rows] = filled
        return values


def _match_batches(
    matcher: Matcher, texts_read: Any, tokens: Tensor, images: np.ndarray, queries: np.ndarray
) -> Tensor:
    """The match logits (P,) of pairs of images and queries, both (P,), in batches of fixed size."""

    def match(pairs: np.ndarray) -> Tensor:
        shown, counts = np.unique(images[pairs], return_counts=True)
        return matcher.match(texts_read, queries[pairs].tolist(), tokens[shown], counts.tolist())[:, 1]

    scores = torch.empty(len(images))
    on_cpu = matcher.device.type == "cpu"
    batches = batches_of_pairs(images, PAIRS_IN_A_BATCH if on_cpu else PAIRS_IN_A_BATCH_ON_A_GPU)
    run = side_by_side if on_cpu else map
    for pairs, own in zip(batches, run(match, batches), strict=True):
        scores[torch.from_numpy(pairs)] = own
    return scores


def _by_id(ids: Sequence[str]) -> list[int]:
    """The rows in the order of their ids."""
    return sorted(range(len(ids)), key=ids.__getitem__)


def _slices(rows: Any, size: int) -> Iterator[Any]:
    """Consecutive slices of at most `size`."""
    return (rows[start : start + size] for start in range(0, len(rows), size))
