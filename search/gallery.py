"""Two-stage search: rank a gallery by embeddings, re-score each query's shortlist by cross-modal matching.

[`Gallery`] does so over a directory of encoded images, which may be far larger than the memory.
"""

import io
import logging
from collections.abc import Collection, Iterable
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor

from ..data.image_sources import find_images, load_inside
from ..engine.fast_encoding import FastTextEncoder, fastest_text_encoder
from ..engine.fast_matching import FastMatcher
from ..engine.matching_cascade import CascadeReport, MatchingCascade
from ..engine.retrieval_stages import (
    DEFAULT_SHORTLIST,
    EncodedTexts,
    encode_texts,
    image_fingerprint,
    model_fingerprint,
    reorder,
    replace_head,
)
from ..modeling_tpas import TPASModel
from ..processing_tpas import TPASProcessor
from ..sca import Confidence, sca_rerank
from .arguments import MatchingDtype, check_cascade, check_index
from .building import build_shards
from .hits import SearchHit
from .image_tokens import ImageTokens, RecomputedImageTokens
from .indexes import Index, open_index, write_index
from .manifest import GallerySettings
from .stored_gallery import StoredGallery, delete_images

logger = logging.getLogger(__name__)

TEXTS_AT_ONCE = 4096  # whose hidden states are in memory together: some 2 GB at full size
SCA_READS = 3  # the best scores of a text that SCA reads when a query moves by one place: the margin of two


class Gallery:
    """Images encoded once into a directory, then searched as often as asked.

        gallery = Gallery.build(model, processor, "images/", "gallery/")
        hits = Gallery.open("gallery/", model, processor).search(["a man in a red coat is lying on the road"])

    A gallery shows the directory as it was when it was opened; its own `append` and `delete` open it anew.

    Attributes:
        cascade_report: what the cascade of the last search saved; None if it had none.
    """

    def __init__(
        self,
        stored: StoredGallery,
        model: TPASModel | None,
        processor: TPASProcessor | None,
        index: str,
        images_root: str | None,
        matching_dtype: MatchingDtype = "float32",
    ):
        self.stored = stored
        self.model = model
        self.processor = processor
        self.index = index
        self.images_root = images_root
        self.matching_dtype = matching_dtype
        self.cascade_report: CascadeReport | None = None

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
        batch_size: int | Literal["auto"] = 16,
        workers: int = 2,
        accelerator: Accelerator | None = None,
    ) -> "Gallery":
        """Encodes images into the directory `path`, and opens it.

        It may be repeated at any time, with the same images or more: those whose ids are in the gallery are
        not encoded again, nor are those that a killed build had finished. An image that cannot be read is
        left out, and `unreadable` tells why. The model is put into evaluation mode and left in it; in
        fp32 on a CPU a `FastEncoder` takes its place, with its values to 1e-5.

        Args:
            images: a folder (ids are relative paths; links that lead out of it are left out), a
                `datasets.Dataset` with an Image column, or an iterable of (id, path or PIL image), which is
                read a few images at a time; PIL images that were opened lazily stay so.
            tokens: the type of the image tokens kept for re-ranking, 297 KB an image at full size in
                "float16"; `None`: they are computed again from the files when a query needs them.
            thumbnail_size: the longest side in pixels of a small copy to keep of each image; `None`: none.
            id_column: the dataset's column of ids; `None`: row numbers.
            shard_size: images in a shard. A kill loses what is done of one shard a process. A shard is one
                of the files that the system maps for a process, of which Linux by default allows 65,530: 33
                million images at 512. What a build keeps in memory, mostly tokens, grows with it.
            batch_size: images read and encoded together; a `FastEncoder` divides them into passes of its
                own fixed size. "auto": a probe of some seconds finds the quickest pass on this machine; the
                last digits of the features depend on it.
            workers: threads that read images, in each process.
            accelerator: its processes share the work; each must call this, and gets the gallery.

        Raises:
            GalleryError: the gallery there is another model's or has other settings, another process writes
                to it, or the disk failed; what is there stays whole.
            ValueError, TypeError: for a folder without images, items that are no such pairs, an id that
                occurs twice, and a model whose adapter is not merged.
        """
        if tokens not in ("float16", "float32", None):
            raise ValueError(f"tokens must be 'float16', 'float32' or None, got {tokens!r}")
        if thumbnail_size is not None and thumbnail_size < 1:
            raise ValueError(f"thumbnail_size must be at least 1, got {thumbnail_size}")
        build_shards(
            model.eval(),
            processor,
            find_images(images, id_column),
            Path(path),
            GallerySettings(
                model_fingerprint(model), tokens, thumbnail_size, image_fingerprint(model, processor)
            ),
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
        matching_dtype: MatchingDtype = "float32",
    ) -> "Gallery":
        """Opens the directory of a gallery: maps it, reads little of it, and writes nothing.

        Args:
            model, processor: those that built it, but for settings of the tokenizer, which may differ;
                without them it can be looked at, not searched. The model is put into evaluation mode and left
                in it.
            index: what ranks the embeddings: "exact"; "faiss", once `write_index` has built it; or the
                address of a Milvus database, "http://host:19530", or a file "*.db" for milvus-lite. It is
                opened at once where there is a model to search with.
            images_root: the folder where the images lie now, if they were moved since: of a gallery of a
                folder that folder; for files that were given one by one the folder that takes the place of
                "/", so that /data/1.jpg is looked for at images_root/data/1.jpg.
            matching_dtype: the precision of re-ranking. "bfloat16" is faster on a CPU that has
                it and on a GPU, and changes the places of images whose scores are close
                (`benchmarks/rerank.py`: what that does to Recall@1).

        Raises:
            FileNotFoundError, NotADirectoryError: there is no gallery, or no folder `images_root`.
            GalleryError: it is damaged, not finished, or was made by another model or with other settings of
                the images (both fingerprints are named), or its index is missing, damaged or older.
        """
        if matching_dtype not in get_args(MatchingDtype):
            raise ValueError(
                f"matching_dtype must be one of {get_args(MatchingDtype)}, got {matching_dtype!r}"
            )
        if images_root is not None and not Path(images_root).is_dir():
            raise NotADirectoryError(f"images_root {images_root} is no folder")
        stored = StoredGallery(path)
        if model is not None:
            model.eval()
            expected = stored.settings
            own = replace(
                expected,
                model_fingerprint=model_fingerprint(model),
                image_fingerprint=None if processor is None else image_fingerprint(model, processor),
            )
            own.check_equal(expected, stored.directory)
        root = None if images_root is None else str(images_root)
        gallery = cls(stored, model, processor, check_index(index), root, matching_dtype)
        if index != "exact" and model is not None and len(stored):
            # As of this change: it may be renewed before the first search. Exact search would read it all.
            gallery._opened_index = open_index(index, stored)
        return gallery

    def __len__(self) -> int:
        return len(self.stored)

    @property
    def path(self) -> Path:
        return self.stored.directory

    @property
    def ids(self) -> list[str]:
        """Every image's id, in the order of its rows."""
        return list(self.stored.ids())

    @property
    def unreadable(self) -> dict[str, str]:
        """By id, why an image that was to be encoded is not in the gallery."""
        return self.stored.unreadable

    def verify(self) -> None:
        """Compares every file with its checksum; raises GalleryError for the first that differs."""
        self.stored.verify()

    def append(self, images: Any, **settings: Any) -> None:
        """Encodes the images whose ids are new; `settings` are `build`'s that the gallery does not fix."""
        model, processor = self._encoders()
        fixed = {"tokens": self.stored.settings.tokens, "thumbnail_size": self.stored.settings.thumbnail_size}
        self._reopen(Gallery.build(model, processor, images, self.path, **fixed, **settings).stored)

    def delete(self, ids: Collection[str]) -> None:
        """Removes images and all that was computed from them; the image files themselves stay.

        A faiss index goes as well. A Milvus database forgets them with the next `write_index`.

        Raises:
            KeyError: an id is not there; then none is removed.
        """
        if isinstance(ids, str):
            raise TypeError(f"ids must be a collection of strings, got the string {ids!r}")
        delete_images(self.path, ids)
        self._reopen(StoredGallery(self.path))

    def write_index(self, index: str, texts: Iterable[str] | None = None) -> str:
        """Makes or renews the index "faiss", or a Milvus database's, for `open`; says what was done.

        Args:
            texts: such as will be asked; a faiss index is set by its recall on them (256 are plenty).

        Raises:
            GalleryError: the gallery was changed since it was opened, or the index cannot be written.
        """
        if index == "faiss" and not len(self):  # a Milvus database still has to forget the deleted ones
            raise ValueError(f"the gallery {self.path} has no images to make an index of")
        queries = None
        if texts is not None:
            texts = _listed(texts)
            if not texts:
                raise ValueError("there are no texts to measure the index's recall on")
            queries = self._encode(texts).embeds
        return write_index(index, self.stored, queries)

    def search(
        self,
        texts: Iterable[str],
        top_k: int = 10,
        shortlist: int = DEFAULT_SHORTLIST,
        rerank: bool = True,
        sca: Confidence | None = None,
        *,
        cascade: bool = False,
        batch_size: int = 64,
    ) -> list[list[SearchHit]]:
        """The best images for each text, best first.

        Args:
            texts: any iterable of strings; one string is refused. They go through the model in blocks of
                `TEXTS_AT_ONCE`, to bound the memory.
            top_k: images in each answer, or the whole gallery where that is smaller.
            shortlist: images that the cross-modal encoder reads for each text, or the whole gallery. What
                follows them in a longer answer is ordered by cosine.
            rerank: whether it reads any.
            sca: resolves the texts' collisions by `tpas.sca.sca_rerank`, at this confidence; for texts that
                each look for an image of their own.
            cascade: lets bf16 read the shortlist first, and fp32 what can still be among the `top_k`: the
                same answer in less time, unless bf16 errs by more than it was seen to, see
                [`MatchingCascade`]. `cascade_report` says what was saved.
            batch_size: texts in one forward pass.

        Raises:
            ValueError: a number below 1, an unknown confidence, or a cascade that would save nothing or
                change the answer: without re-ranking, in a gallery that matches in bf16 or keeps no tokens,
                with SCA by softmax.
        """
        for name, value in (("top_k", top_k), ("shortlist", shortlist)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if sca is not None and sca not in get_args(Confidence):
            raise ValueError(f"sca must be None or one of {get_args(Confidence)}, got {sca!r}")
        texts = _listed(texts)
        if cascade:
            check_cascade(rerank, sca, self.matching_dtype)
            if self.stored.settings.tokens is None:
                raise ValueError(
                    "the gallery keeps no tokens: to compute them twice takes longer than a cascade saves"
                )
        self.cascade_report = None
        self._encoders()  # which says so if there are none
        if not texts or not len(self):
            return [[] for _ in texts]
        head = min(shortlist, len(self)) if rerank or sca else 0
        asked = min(max(top_k, head), len(self))
        read_in_fp32 = max(top_k, SCA_READS) if sca else top_k  # by a cascade
        # For each block the shortlisted images are read, or without tokens encoded, again.
        at_once = len(texts) if rerank and self.stored.settings.tokens is None else TEXTS_AT_ONCE
        parts, reports = [], []
        for start in range(0, len(texts), at_once):
            encoded = self._encode(texts[start : start + at_once], batch_size)
            candidates, cosines = self._opened_index.search(encoded.embeds, asked)  # (q, K)
            shortlists, logits = candidates[:, :head], None
            if cascade:
                logits, report = self._cascade.logits_of_shortlists(
                    self._tokens, encoded, shortlists, read_in_fp32
                )
                reports.append(report)
            elif rerank:
                logits = self._matcher.logits_of_shortlists(self._tokens, encoded, shortlists)
            parts.append((candidates, cosines, logits))
        candidates = torch.cat([part[0] for part in parts])  # (Q, K)
        cosines = torch.cat([part[1] for part in parts])
        logits = torch.cat([part[2] for part in parts]) if rerank else None  # (Q, head, 2)
        if cascade:
            self.cascade_report = sum(reports[1:], start=reports[0])
            logger.info("cascade: %s", self.cascade_report)

        ranking = candidates
        if head:
            scores = cosines[:, :head] if logits is None else logits[:, :, 1]
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

    def _hits(
        self, ranking: Tensor, candidates: Tensor, cosines: Tensor, logits: Tensor | None
    ) -> list[SearchHit]:
        """One text's answer: `ranking` (top_k,) of `candidates` (K,), whose first have `logits` (n, 2)."""
        places = {row: place for place, row in enumerate(candidates.tolist())}
        hits = []
        for rank, row in enumerate(ranking.tolist(), start=1):
            place = places[row]
            cosine = cosines[place].item()
            logit = probability = None
            if logits is not None and place < len(logits):
                logit, probability = logits[place, 1].item(), logits[place].softmax(dim=0)[1].item()
            record = self.stored.record(row)
            root = self.images_root or record["root"]
            hits.append(
                SearchHit(
                    id=record["id"],
                    rank=rank,
                    score=cosine if logit is None else logit,
                    cosine=cosine,
                    match_logit=logit,
                    match_probability=probability,
                    embedding_rank=place + 1,
                    path=None if record["path"] is None else Path(root, record["path"]),
                    _open=partial(_image, self.stored, row, self.images_root),
                )
            )
        return hits

    @cached_property
    def _opened_index(self) -> Index:
        return open_index(self.index, self.stored)

    @cached_property
    def _matcher(self) -> FastMatcher:
        return FastMatcher(self._encoders()[0], getattr(torch, self.matching_dtype))

    @cached_property
    def _cascade(self) -> MatchingCascade:
        return MatchingCascade(self._encoders()[0], self._matcher)

    @cached_property
    def _text_encoder(self) -> TPASModel | FastTextEncoder:
        return fastest_text_encoder(self._encoders()[0])

    def _encode(self, texts: list[str], batch_size: int = 64) -> EncodedTexts:
        return encode_texts(self._text_encoder, self._encoders()[1], texts, batch_size=batch_size)

    @cached_property
    def _tokens(self) -> ImageTokens:
        if self.stored.settings.tokens is not None:
            return ImageTokens(self.stored)
        return RecomputedImageTokens(self.stored, self.model, self.processor, self.images_root)

    def _encoders(self) -> tuple[TPASModel, TPASProcessor]:
        if self.model is None or self.processor is None:
            raise ValueError(f"open the gallery {self.path} with its model and processor to search or append")
        return self.model.eval(), self.processor  # it may have been trained on since the gallery was opened

    def _reopen(self, stored: StoredGallery) -> None:
        self.stored = stored
        for name in ("_opened_index", "_tokens"):
            self.__dict__.pop(name, None)


def _listed(texts: Iterable[str]) -> list[str]:
    """Raises TypeError for anything but an iterable of strings, or for one string."""
    if isinstance(texts, str) or not isinstance(texts, Iterable):
        raise TypeError(f"texts must be an iterable of strings, got {texts!r}")
    texts = [str(text) if isinstance(text, str) else text for text in texts]  # numpy's strings as well
    for text in texts:
        if not isinstance(text, str):
            raise TypeError(f"each text must be a string, got {text!r}")
    return texts


def _image(stored: StoredGallery, row: int, images_root: str | None) -> Image.Image:
    thumbnail = stored.thumbnail(row)
    if thumbnail is not None:
        return Image.open(io.BytesIO(thumbnail)).convert("RGB")
    record = stored.record(row)
    if record["path"] is None:
        raise FileNotFoundError(f"image {record['id']!r} was no file, and the gallery keeps no thumbnails")
    return load_inside(images_root or record["root"], record["path"])
