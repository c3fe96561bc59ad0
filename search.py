"""Two-stage search: rank a gallery by embeddings, re-score each query's shortlist by cross-modal matching.

[`Gallery`] does so over a directory of encoded pictures; the functions are its stages, on tensors in memory.

A query's ranking depends on its caption, the pictures and their ids. Neither the order of the gallery, nor
the batch size, nor the number of processes takes part. Ties are settled by a hash of the gallery id: PAB's
file names say which pictures are normal, and rows follow file names, so neither may settle them.
"""

import hashlib
import io
import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from tpas.fusion import SystemScores, weighted_sum
from tpas.gallery.building import build_shards
from tpas.gallery.image_tokens import ImageTokens, RecomputedImageTokens
from tpas.gallery.indexes import Index, check_index, open_index, write_index
from tpas.gallery.manifest import GallerySettings
from tpas.gallery.pictures import find_pictures, load_inside
from tpas.gallery.stored_gallery import StoredGallery, delete_pictures
from tpas.modeling_tpas import TPASModel
from tpas.processing_tpas import TPASProcessor
from tpas.sca import Confidence, sca_rerank

logger = logging.getLogger(__name__)

DEFAULT_SHORTLIST = 128  # pictures that are re-ranked for each query
IMAGES_AT_ONCE, PAIRS_AT_ONCE = 64, 1024  # whose tokens re-ranking holds in memory


def model_fingerprint(model: TPASModel) -> str:
    """16 hexadecimal digits that stand for the weights, as fp32: equal wherever the model lies."""
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy())
    return digest.hexdigest()


@dataclass(frozen=True)
class EncodedImages:
    """G pictures, fp32 on the CPU.

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
        hidden_states: (Q, L, text width), zeros where padded.
        attention_mask: (Q, L).
    """

    embeds: Tensor
    hidden_states: Tensor
    attention_mask: Tensor


@dataclass(frozen=True)
class SearchHit:
    """A picture that answers a query.

    Attributes:
        id: the picture's name in the gallery.
        rank: its place in the answer, from 1.
        score: what the answer is ordered by: the match logit where there is one, otherwise the cosine. With
            SCA a picture keeps its score, so the first one's may be lower than the second one's.
        cosine: of the embeddings of text and picture.
        match_logit: of the cross-modal encoder; None where it did not read the pair.
        embedding_rank: its place by cosine alone, from 1.
        path: where its file was when the gallery was built; None for a picture that was no file.
    """

    id: str
    rank: int
    score: float
    cosine: float
    match_logit: float | None
    embedding_rank: int
    path: Path | None
    _open: Callable[[], Image.Image] = field(repr=False, compare=False)

    def picture(self) -> Image.Image:
        """The picture's thumbnail, or without one the file itself.

        Raises:
            FileNotFoundError, ValueError: there is neither, or it cannot be read.
        """
        return self._open()


class Gallery:
    """Pictures encoded once into a directory, then searched as often as asked.

        gallery = Gallery.build(model, processor, "pictures/", "gallery/")
        hits = Gallery.open("gallery/", model, processor).search(["a man in a red coat is lying on the road"])

    A gallery shows the directory as it was when it was opened; its own `append` and `delete` open it anew.
    """

    def __init__(
        self,
        stored: StoredGallery,
        model: TPASModel | None,
        processor: TPASProcessor | None,
        index: str,
        images_root: str | None,
    ):
        self.stored = stored
        self.model = model
        self.processor = processor
        self.index = index
        self.images_root = images_root

    @classmethod
    def build(
        cls,
        model: TPASModel,
        processor: TPASProcessor,
        images: Any,
        path: str | Path,
        *,
        tokens: Literal["float16", "float32"] | None = "float16",
        thumbnail_size: int | None = None,
        id_column: str | None = None,
        shard_size: int = 512,
        batch_size: int = 16,
        workers: int = 2,
        accelerator: Accelerator | None = None,
    ) -> "Gallery":
        """Encodes pictures into the directory `path`, and opens it.

        It may be repeated at any time, with the same pictures or more: those whose ids are in the gallery are
        not encoded again, nor are those that a killed build had finished. A picture that cannot be read is
        left out, and `unreadable` tells why. The model is put into evaluation mode and left in it.

        Args:
            images: a folder (ids are relative paths; links that lead out of it are left out), a
                `datasets.Dataset` with an Image column, or an iterable of (id, path or PIL image).
            tokens: the type of the image tokens kept for re-ranking, 297 KB a picture at full size in
                "float16"; `None`: they are computed again from the files when a query needs them.
            thumbnail_size: the longest side in pixels of a small copy to keep of each picture; `None`: none.
            id_column: the dataset's column of ids; `None`: row numbers.
            shard_size: pictures in a shard. A kill loses what is done of one shard a process.
            batch_size: pictures in one forward pass.
            workers: threads that read pictures, in each process.
            accelerator: its processes share the work; each must call this, and gets the gallery.

        Raises:
            GalleryError: the gallery there is another model's or has other settings, another process writes
                to it, or the disk failed; what is there stays whole.
            ValueError, TypeError: for a folder without pictures, and an id that occurs twice.
        """
        if tokens not in ("float16", "float32", None):
            raise ValueError(f"tokens must be 'float16', 'float32' or None, got {tokens!r}")
        if thumbnail_size is not None and thumbnail_size < 1:
            raise ValueError(f"thumbnail_size must be at least 1, got {thumbnail_size}")
        build_shards(
            model.eval(),
            processor,
            find_pictures(images, id_column),
            Path(path),
            GallerySettings(model_fingerprint(model), tokens, thumbnail_size),
            shard_size=shard_size,
            batch_size=batch_size,
            workers=workers,
            accelerator=accelerator,
        )
        return cls.open(path, model, processor)

    @classmethod
    def open(
        cls,
        path: str | Path,
        model: TPASModel | None = None,
        processor: TPASProcessor | None = None,
        *,
        index: str = "exact",
        images_root: str | Path | None = None,
    ) -> "Gallery":
        """Opens the directory of a gallery: maps it, reads little of it, and writes nothing.

        Args:
            model, processor: those that built it; without them it can be looked at, not searched. The model
                is put into evaluation mode and left in it.
            index: what ranks the embeddings: "exact"; "faiss", once `write_index` has built it; or the
                address of a Milvus database, "http://host:19530", or a file "*.db" for milvus-lite.
            images_root: the folder where the pictures lie now, if it was moved since.

        Raises:
            FileNotFoundError: there is no gallery.
            GalleryError: it is damaged, not finished, or another model's; both fingerprints are named.
        """
        stored = StoredGallery(path)
        if model is not None:
            model.eval()
            expected = stored.settings
            own = GallerySettings(model_fingerprint(model), expected.tokens, expected.thumbnail_size)
            own.check_equal(expected, stored.directory)
        root = None if images_root is None else str(images_root)
        return cls(stored, model, processor, check_index(index), root)

    def __len__(self) -> int:
        return len(self.stored)

    @property
    def path(self) -> Path:
        return self.stored.directory

    @property
    def ids(self) -> list[str]:
        """Every picture's id, in the order of its rows."""
        return list(self.stored.ids())

    @property
    def unreadable(self) -> dict[str, str]:
        """By id, why a picture that was to be encoded is not in the gallery."""
        return dict(self.stored.manifest["unreadable"])

    def verify(self) -> None:
        """Compares every file with its checksum; raises GalleryError for the first that differs."""
        self.stored.verify()

    def append(self, images: Any, **settings: Any) -> None:
        """Encodes the pictures whose ids are new; `settings` are `build`'s that the gallery does not fix."""
        model, processor = self._encoders()
        fixed = {"tokens": self.stored.settings.tokens, "thumbnail_size": self.stored.settings.thumbnail_size}
        self._reopen(Gallery.build(model, processor, images, self.path, **fixed, **settings).stored)

    def delete(self, ids: Collection[str]) -> None:
        """Removes pictures and all that was computed from them; the picture files themselves stay.

        A faiss index goes as well. A Milvus database forgets them with the next `write_index`.

        Raises:
            KeyError: an id is not there; then none is removed.
        """
        delete_pictures(self.path, ids)
        self._reopen(StoredGallery(self.path))

    def write_index(self, index: str, texts: Sequence[str] | None = None) -> str:
        """Makes or renews the index "faiss", or a Milvus database's, for `open`; says what was done.

        Args:
            texts: such as will be asked; a faiss index is set by its recall on them (256 are plenty).
        """
        queries = None if texts is None else encode_texts(*self._encoders(), texts).embeds
        return write_index(index, self.stored, queries)

    def search(
        self,
        texts: Sequence[str],
        top_k: int = 10,
        shortlist: int = DEFAULT_SHORTLIST,
        rerank: bool = True,
        sca: Confidence | None = None,
        *,
        batch_size: int = 64,
    ) -> list[list[SearchHit]]:
        """The best pictures for each text, best first.

        Args:
            top_k: pictures in each answer, or the whole gallery where that is smaller.
            shortlist: pictures that the cross-modal encoder reads for each text, or the whole gallery. What
                follows them in a longer answer is ordered by cosine.
            rerank: whether it reads any.
            sca: settles the texts' collisions by `tpas.sca.sca_rerank`, at this confidence; for texts that
                each look for a picture of their own.
            batch_size: texts or pairs in one forward pass.
        """
        for name, value in (("top_k", top_k), ("shortlist", shortlist)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        model, processor = self._encoders()
        if isinstance(texts, str):
            raise TypeError("texts must be a sequence of strings, got one string")
        if not texts or not len(self):
            return [[] for _ in texts]
        encoded = encode_texts(model, processor, texts, batch_size=batch_size)
        head = min(shortlist, len(self)) if rerank or sca else 0
        candidates, cosines = self._opened_index.search(
            encoded.embeds, min(max(top_k, head), len(self))
        )  # (Q, K)

        logits = None
        ranking = candidates
        if head:
            scores = cosines[:, :head]
            if rerank:
                scores = logits = self._match(encoded, candidates[:, :head], batch_size)
            ranking, scores = reorder(candidates[:, :head], scores)
            if sca:
                ranking = sca_rerank(ranking, scores, confidence=sca).indices
            ranking = replace_head(candidates, ranking)
        return [
            self._hits(
                ranking[query, :top_k],
                candidates[query],
                cosines[query],
                None if logits is None else logits[query],
            )
            for query in range(len(texts))
        ]

    def _match(self, texts: EncodedTexts, shortlists: Tensor, batch_size: int) -> Tensor:
        """The match logits (Q, K) of the gallery's rows (Q, K): the one place that says what computes them.

        Goes over the pictures in the order of their rows, so that each one's tokens are read once.
        """
        rows, image = shortlists.unique(return_inverse=True)  # (R,) and (Q, K) of what to read
        logits = torch.empty(shortlists.shape)
        for start in range(0, len(rows), IMAGES_AT_ONCE):
            hidden_states = torch.from_numpy(self._tokens[rows[start : start + IMAGES_AT_ONCE]])
            images = EncodedImages(embeds=hidden_states.new_empty(0), hidden_states=hidden_states)
            here = ((image >= start) & (image < start + IMAGES_AT_ONCE)).nonzero()  # (pairs, 2)
            for pairs in here.split(PAIRS_AT_ONCE):
                query, place = pairs.unbind(dim=1)
                own = EncodedTexts(
                    texts.embeds[query], texts.hidden_states[query], texts.attention_mask[query]
                )
                chosen = (image[query, place] - start)[:, None]
                matched = match_shortlists(self.model, images, own, chosen, batch_size=batch_size)
                logits[query, place] = matched[:, 0]
        return logits

    def _hits(
        self, ranking: Tensor, candidates: Tensor, cosines: Tensor, logits: Tensor | None
    ) -> list[SearchHit]:
        """One text's answer: `ranking` (top_k,) of its `candidates` (K,), whose first have `logits`."""
        places = {row: place for place, row in enumerate(candidates.tolist())}
        hits = []
        for rank, row in enumerate(ranking.tolist(), start=1):
            place = places[row]
            cosine = cosines[place].item()
            logit = logits[place].item() if logits is not None and place < len(logits) else None
            record = self.stored.record(row)
            root = self.images_root or record["root"]
            hits.append(
                SearchHit(
                    id=record["id"],
                    rank=rank,
                    score=cosine if logit is None else logit,
                    cosine=cosine,
                    match_logit=logit,
                    embedding_rank=place + 1,
                    path=None if record["path"] is None else Path(root, record["path"]),
                    _open=partial(_picture, self.stored, row, self.images_root),
                )
            )
        return hits

    @cached_property
    def _opened_index(self) -> Index:
        return open_index(self.index, self.stored)

    @cached_property
    def _tokens(self) -> ImageTokens:
        if self.stored.settings.tokens is not None:
            return ImageTokens(self.stored)
        return RecomputedImageTokens(self.stored, self.model, self.processor, self.images_root)

    def _encoders(self) -> tuple[TPASModel, TPASProcessor]:
        if self.model is None or self.processor is None:
            raise ValueError(f"open the gallery {self.path} with its model and processor to search or append")
        return self.model, self.processor

    def _reopen(self, stored: StoredGallery) -> None:
        self.stored = stored
        for name in ("_opened_index", "_tokens"):
            self.__dict__.pop(name, None)


def _picture(stored: StoredGallery, row: int, images_root: str | None) -> Image.Image:
    thumbnail = stored.thumbnail(row)
    if thumbnail is not None:
        return Image.open(io.BytesIO(thumbnail)).convert("RGB")
    record = stored.record(row)
    if record["path"] is None:
        raise FileNotFoundError(f"picture {record['id']!r} was no file, and the gallery keeps no thumbnails")
    return load_inside(images_root or record["root"], record["path"])


def encode_images(
    model: TPASModel,
    processor: TPASProcessor,
    images: Sequence[Image.Image],
    *,
    batch_size: int = 64,
    accelerator: Accelerator | None = None,
) -> EncodedImages:
    """Encodes the pictures, rows in the order given.

    `images` is asked for one picture at a time, so it may read them from disk. The processes of
    `accelerator` share the work, and each gets the whole result.
    """

    def encode(rows: list[int]) -> tuple[Tensor, Tensor]:
        pixel_values = processor(images=[images[row] for row in rows])["pixel_values"]
        output = model.get_image_features(pixel_values.to(model.device, model.dtype))
        return output.pooler_output.float().cpu(), output.last_hidden_state.float().cpu()

    batches = _batches(range(len(images)), batch_size)
    outputs = map_batches(encode, batches, accelerator, "encoding pictures")
    return EncodedImages(
        embeds=torch.cat([embeds for embeds, _ in outputs]),
        hidden_states=torch.cat([hidden_states for _, hidden_states in outputs]),
    )


def encode_texts(
    model: TPASModel,
    processor: TPASProcessor,
    captions: Sequence[str],
    *,
    batch_size: int = 64,
    accelerator: Accelerator | None = None,
) -> EncodedTexts:
    """Encodes the captions, rows in the order given, padded to the longest; otherwise as `encode_images`."""

    def encode(rows: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        inputs = processor(text=[captions[row] for row in rows]).to(model.device)
        output = model.get_text_features(inputs["input_ids"], inputs["attention_mask"])
        return (
            output.pooler_output.float().cpu(),
            output.last_hidden_state.float().cpu(),
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
        hidden_states=hidden_states.new_zeros(len(captions), longest, hidden_states.shape[2]),
        attention_mask=torch.zeros(len(captions), longest, dtype=torch.long),
    )
    for rows, (embeds, hidden_states, mask) in zip(batches, outputs, strict=True):
        length = mask.shape[1]
        texts.embeds[rows] = embeds
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
    digests = [hashlib.blake2b(gallery_id.encode()).digest() for gallery_id in gallery_ids]
    by_digest = torch.tensor(sorted(range(len(digests)), key=digests.__getitem__))  # (G,)
    # Summed in double and rounded, so that equal pictures get equal scores wherever they lie in the matrix.
    cosines = (text_embeds.double() @ image_embeds[by_digest].double().t()).float()  # (Q, G)
    cosines, order = cosines.sort(dim=1, descending=True, stable=True)
    return by_digest[order], cosines


def resolve_shortlist(shortlist: int | None, gallery_size: int) -> int:
    """The shortlist asked for; for `None` the default, or the whole gallery where that is smaller.

    Raises:
        ValueError: for a shortlist below 1 or above the gallery's size.
    """
    default = min(DEFAULT_SHORTLIST, gallery_size)
    if shortlist is None:
        if gallery_size < DEFAULT_SHORTLIST:
            logger.info("the gallery has %d pictures: all of them are re-ranked", gallery_size)
        return default
    if not 1 <= shortlist <= gallery_size:
        raise ValueError(
            f"the shortlist must be between 1 and the gallery's {gallery_size} pictures, got {shortlist}; "
            f"leave it out to re-rank the best {default}"
        )
    return shortlist


def match_shortlists(
    model: TPASModel,
    images: EncodedImages,
    texts: EncodedTexts,
    shortlists: Tensor,
    *,
    batch_size: int = 64,
    accelerator: Accelerator | None = None,
) -> Tensor:
    """Stage 2: the match logit of each query with the pictures of its shortlist.

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
    """A full ranking (Q, G) with its first K pictures in the new order `head` (Q, K)."""
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
) -> list[Any]:
    """`compute` of each batch, in order, on every process; the processes share the batches out.

    The batches are the same for any number of processes, and with them the arithmetic.
    """
    progress = {
        "desc": description,
        "unit": "batch",
        "leave": False,
        "disable": None,
    }  # None: only on a terminal
    with torch.inference_mode():
        if accelerator is None or accelerator.num_processes == 1:
            return [compute(batch) for batch in tqdm(batches, **progress)]
        if not accelerator.is_main_process:
            progress["disable"] = True
        with accelerator.split_between_processes(list(enumerate(batches))) as share:
            own = [(position, compute(batch)) for position, batch in tqdm(share, **progress)]
    outputs = dict(gather_object(own))
    return [outputs[position] for position in range(len(batches))]
