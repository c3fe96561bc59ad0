"""Two-stage search: rank a gallery by embeddings, re-score each query's shortlist by cross-modal matching.

[`Gallery`] does so over a directory of encoded images, which may be far larger than the memory.
"""

import io
import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast, get_args

import torch
from PIL import Image
from torch import Tensor

from ..data.image_folders import FolderRules
from ..data.image_sources import find_images
from ..engine.encoding import EncodedTexts, encode_images, encode_texts
from ..engine.fastest import encoder_for, matcher_for, text_encoder_for
from ..engine.matching import Matcher
from ..engine.matching_cascade import CascadeReport, MatchingCascade
from ..modeling_tpas import TPASModel
from ..models.fingerprints import image_fingerprint, model_fingerprint
from ..models.interface import Encoder, TextEncoder
from ..processing_tpas import TPASProcessor, load_image
from ..sca import Confidence, sca_rerank
from .arguments import MatchingDtype, OnClash, check_cascade, check_index
from .building import build_shards, report_left_out
from .explanation import Explanation, explain_tokens
from .hits import EncodedImage, SearchHit, SearchResult
from .image_tokens import ImageTokens, RecomputedImageTokens
from .indexes import Index, open_index, write_index
from .manifest import GalleryChangedError, GallerySettings
from .ranking import DEFAULT_SHORTLIST, reorder, replace_head
from .selection import Selection
from .shards import jpeg_thumbnail
from .stored_gallery import StoredGallery, delete_images

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)

TEXTS_AT_ONCE = 4096  # whose hidden states are in memory together: some 2 GB at full size
SCA_READS = 3  # the best scores of a text that SCA reads when a query moves by one place: the margin of two


Search = TypeVar("Search", bound=Callable[..., SearchResult])


def _again_where_it_was_changed(search: Search) -> Search:
    """Opens the gallery again, once, where a deletion has come between; not for rows of what it was."""

    @wraps(search)
    def searched(gallery: "Gallery", texts: Iterable[str], *arguments: Any, **settings: Any) -> SearchResult:
        texts = _listed(texts)
        try:
            return search(gallery, texts, *arguments, **settings)
        except GalleryChangedError:
            if settings.get("rows") is not None:
                raise
            gallery._reopen(StoredGallery(gallery.path))
            return search(gallery, texts, *arguments, **settings)

    return cast(Search, searched)


class Gallery:
    """Images encoded once into a directory, then searched as often as asked.

        gallery = Gallery.build(model, processor, "images/", "gallery/")
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
        matching_dtype: MatchingDtype = "float32",
        follow_links: bool = True,
    ):
        self.stored = stored
        self.model = model
        self.processor = processor
        self.index = index
        self.images_root = images_root
        self.matching_dtype: MatchingDtype = matching_dtype
        self.follow_links = follow_links

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
        rules: FolderRules | None = None,
        id_prefix: str = "",
        on_clash: OnClash = "error",
        shard_size: int = 512,
        batch_size: int = 16,
        workers: int = 2,
        accelerator: "Accelerator | None" = None,
    ) -> "Gallery":
        """Encodes images into the directory `path`, and opens it.

        It may be repeated at any time, with the same images or more: those that are in the gallery are not
        encoded again, nor are those that a killed build had finished. An image that cannot be read is
        left out, and `unreadable` tells why; what else of a folder is not taken is counted in the log. The
        model is put into evaluation mode and left in it; in
        fp32 on a CPU a `FastEncoder` takes its place, with its values to 1e-5.

        Args:
            images: a folder (ids are relative paths), a `datasets.Dataset` with an Image column, or an
                iterable of (id, path or PIL image), which is read a few images at a time; PIL images that
                were opened lazily stay so.
            tokens: the type of the image tokens kept for re-ranking, 297 KB an image at full size in
                "float16"; `None`: they are computed again from the files when a query needs them.
            thumbnail_size: the longest side in pixels of a small copy to keep of each image; `None`: none.
            id_column: the dataset's column of ids; `None`: row numbers.
            rules: what of a folder is taken; `None`: also what links lead to, but nothing that
                `DEFAULT_EXCLUDED` names.
            id_prefix: what each id begins with, so that two sources with equal names can share a gallery.
            on_clash: what to do about an image whose id the gallery has for another image: a file of other
                content, wherever it lies. "error"; "skip": the gallery's stays; "replace": it is deleted, and
                this one encoded. PIL images are not compared, nor what an early version encoded from files
                that are gone: there the gallery's stays.
            shard_size: images in a shard. A kill loses what is done of one shard a process. A shard is one
                of the files that the system maps for a process, of which Linux by default allows 65,530: 33
                million images at 512. What a build keeps in memory, mostly tokens, grows with it.
            batch_size: images read and encoded together; a `FastEncoder` divides them into batches of its
                own fixed size.
            workers: threads that read images, in each process.
            accelerator: its processes share the work; each must call this, and gets the gallery.

        Raises:
            GalleryError: the gallery there is another model's or has other settings, another process writes
                to it, or the disk failed; what is there stays whole.
                So it is where an id is that of another image.
            ValueError, TypeError: for a folder without images, items that are no such pairs, an id that
                occurs twice, and a model whose adapter is not merged.
        """
        if tokens not in ("float16", "float32", None):
            raise ValueError(f"tokens must be 'float16', 'float32' or None, got {tokens!r}")
        if thumbnail_size is not None and thumbnail_size < 1:
            raise ValueError(f"thumbnail_size must be at least 1, got {thumbnail_size}")
        found = find_images(images, id_column, rules, id_prefix)
        build_shards(
            model.eval(),
            processor,
            found,
            Path(path),
            GallerySettings(
                model_fingerprint(model), tokens, thumbnail_size, image_fingerprint(model, processor)
            ),
            on_clash=on_clash,
            shard_size=shard_size,
            batch_size=batch_size,
            workers=workers,
            accelerator=accelerator,
        )
        gallery = cls.open(path, model, processor)
        if found is not images and (accelerator is None or accelerator.is_main_process):
            report_left_out(found, gallery.stored)  # who lists a folder's images reports of it as well
        return gallery

    @classmethod
    def open(
        cls,
        path: str | Path,
        model: TPASModel | None = None,
        processor: TPASProcessor | None = None,
        *,
        index: str = "exact",
        images_root: str | Path | None = None,
        follow_links: bool = True,
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
            follow_links: shows, and reads again, an image whose file is a link; otherwise only one inside the
                folder of the images. What a gallery says of its files, which may have come from anybody,
                cannot leave that folder by "..".
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
        gallery = cls(stored, model, processor, check_index(index), root, matching_dtype, follow_links)
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
        """Encodes the images that are new; `settings` are `build`'s that the gallery does not fix."""
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

    @_again_where_it_was_changed
    def search(
        self,
        texts: Iterable[str],
        top_k: int = 10,
        shortlist: int = DEFAULT_SHORTLIST,
        rerank: bool = True,
        sca: Confidence | None = None,
        *,
        cascade: bool = False,
        rows: Sequence[int] | Tensor | None = None,
        extra: Sequence[EncodedImage] = (),
        batch_size: int = 64,
        texts_at_once: int = TEXTS_AT_ONCE,
    ) -> SearchResult:
        """The best images for each text, best first.

        Where another process has deleted images since the gallery was opened, it is opened again, once.

        Args:
            texts: any iterable of strings; one string is refused.
            top_k: images in each answer, or all that are searched where these are fewer.
            shortlist: images that the cross-modal encoder reads for each text, or all that are searched. What
                follows them in a longer answer is ordered by cosine.
            rerank: whether it reads any.
            sca: resolves the texts' collisions by `tpas.sca.sca_rerank`, at this confidence; for texts that
                each look for an image of their own.
            cascade: lets bf16 read the shortlist first, and fp32 what can still be among the `top_k`: the
                same answer in less time, unless bf16 errs by more than it was seen to, see
                [`MatchingCascade`].
            rows: the gallery's rows to look through, such as those that pass a filter; `None`: all. Some of
                them are searched exactly, whatever the gallery's index.
            extra: images to look through beside them, from `encode_image`; exactly, as above.
            batch_size: texts in one forward pass.
            texts_at_once: whose hidden states are in memory together; all if the gallery keeps no tokens.

        Returns:
            A list of answers, with SCA's and the cascade's report.

        Raises:
            ValueError: a number below 1, an unknown confidence, or a cascade that would save nothing or
                change the answer: without re-ranking, in a gallery that matches in bf16 or keeps no tokens,
                with SCA by softmax.
        """
        numbers = {"top_k": top_k, "shortlist": shortlist, "texts_at_once": texts_at_once}
        for name, value in numbers.items():
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
        self._encoders()  # which says so if there are none
        selection = self._selection(rows, extra)
        if not texts or not len(selection):
            return SearchResult(([] for _ in texts), texts=texts, searched=len(selection))
        head = min(shortlist, len(selection)) if rerank or sca else 0
        asked = min(max(top_k, head), len(selection))
        read_in_fp32 = None
        if cascade:
            read_in_fp32 = max(top_k, SCA_READS) if sca else top_k
        matched = head if rerank else 0
        if matched and self.stored.settings.tokens is None:
            texts_at_once = len(texts)  # for each block the shortlisted images would be encoded again
        stages = self._ranked(selection, texts, asked, matched, read_in_fp32, batch_size, texts_at_once)

        ranking, before, sca_report = stages.candidates, None, None
        if head:
            scores = stages.cosines[:, :head] if stages.logits is None else stages.logits[:, :, 1]
            ranking, scores = reorder(stages.candidates[:, :head], scores)
            if sca:
                before = replace_head(stages.candidates, ranking)
                resolved = sca_rerank(ranking, scores, confidence=sca)
                ranking, sca_report = resolved.indices, resolved.report
            ranking = replace_head(stages.candidates, ranking)
        return SearchResult(
            (
                self._hits(selection, stages, query, ranking[query, :top_k], before)
                for query in range(len(texts))
            ),
            texts=texts,
            searched=len(selection),
            sca_report=sca_report,
            taken_by=() if before is None else _taken_by(before[:, 0], ranking[:, 0]),
            cascade_report=stages.cascade_report,
        )

    def similar(
        self,
        hit: SearchHit,
        top_k: int = 10,
        *,
        rows: Sequence[int] | Tensor | None = None,
        extra: Sequence[EncodedImage] = (),
    ) -> SearchResult:
        """The nearest neighbours of an image that was found, by the embeddings' cosine, without itself."""
        embedding = self._embedding_of(hit)[None]  # (1, D)
        selection = self._selection(rows, extra)
        count = min(top_k + 1, len(selection))  # itself is among them
        candidates, cosines = selection.index.search(embedding, count)
        stages = _Stages(candidates, cosines)
        found = self._hits(selection, stages, 0, candidates[0], None)
        others = [other for other in found if not other.is_same_image(hit)][:top_k]
        others = [
            replace(other, rank=rank, embedding_rank=rank) for rank, other in enumerate(others, start=1)
        ]
        searched = len(selection) - any(other.is_same_image(hit) for other in found)
        return SearchResult([others], texts=[f"Similar to {hit.id}"], searched=searched, similar_to=hit)

    def encode_image(self, image: Image.Image, image_id: str, thumbnail_size: int = 768) -> EncodedImage:
        """An image to be searched beside the gallery's, which it does not change; see `extra` of `search`."""
        _, processor = self._encoders()
        embeds, tokens = encode_images(self._image_encoder, processor(images=[image]), torch.float16)
        assert tokens is not None
        return EncodedImage(image_id, embeds[0], tokens[0].numpy(), jpeg_thumbnail(image, thumbnail_size))

    def explain(self, hit: SearchHit, text: str) -> Explanation:
        """Why an image was found: see [`tpas.search.explanation.explain`]."""
        model, processor = self._encoders()
        tokens = self._tokens[self._row_of(hit)] if hit.extra is None else hit.extra.tokens
        return explain_tokens(model, processor, torch.from_numpy(tokens)[None], text)

    def _embedding_of(self, hit: SearchHit) -> Tensor:
        """(D,)."""
        if hit.extra is not None:
            return hit.extra.embedding
        return self.stored.embedding_rows(torch.tensor([self._row_of(hit)]))[0]

    def _row_of(self, hit: SearchHit) -> int:
        (row,) = self.stored.rows_of([hit.id])
        return row

    def _selection(self, rows: Sequence[int] | Tensor | None, extra: Sequence[EncodedImage]) -> Selection:
        if rows is None and not extra:
            return self._whole
        return Selection(
            self._tokens, None if rows is None else torch.as_tensor(rows, dtype=torch.long), extra
        )

    def _ranked(
        self,
        selection: Selection,
        texts: list[str],
        count: int,
        shortlist: int,
        read_in_fp32: int | None,
        batch_size: int,
        texts_at_once: int,
    ) -> "_Stages":
        """The best `count` by cosine, and the match logits of the best `shortlist` of these, block by block.

        Args:
            read_in_fp32: what a cascade reads in fp32; `None`: no cascade.
        """
        parts: list[_Stages] = []
        for start in range(0, len(texts), texts_at_once):
            encoded = self._encode(texts[start : start + texts_at_once], batch_size)
            candidates, cosines = selection.index.search(encoded.embeds, count)  # (q, K)
            logits = report = None
            if shortlist and read_in_fp32 is not None:
                logits, report = self._cascade.logits_of_shortlists(
                    selection, encoded, candidates[:, :shortlist], read_in_fp32
                )
            elif shortlist:
                logits = self._matcher.logits_of_shortlists(selection, encoded, candidates[:, :shortlist])
            parts.append(_Stages(candidates, cosines, logits, report))
        stages = _Stages.joined(parts)
        if stages.cascade_report is not None:
            logger.info("cascade: %s", stages.cascade_report)
        return stages

    def _hits(
        self, selection: Selection, stages: "_Stages", query: int, ranking: Tensor, before: Tensor | None
    ) -> list[SearchHit]:
        """One text's answer: `ranking` (top_k,) of its candidates, and its ranking before SCA, of (Q, K)."""
        candidates = {place: number for number, place in enumerate(stages.candidates[query].tolist())}
        ranks_before = {}
        if before is not None:
            ranks_before = {place: rank for rank, place in enumerate(before[query].tolist(), start=1)}
        hits = []
        for rank, place in enumerate(ranking.tolist(), start=1):
            candidate = candidates[place]
            cosine = stages.cosines[query, candidate].item()
            logit = None
            if stages.logits is not None and candidate < stages.logits.shape[1]:
                logit = stages.logits[query, candidate, 1].item()
            hits.append(
                SearchHit(
                    rank=rank,
                    score=cosine if stages.logits is None else logit,
                    cosine=cosine,
                    match_logit=logit,
                    embedding_rank=candidate + 1,
                    rank_before_sca=ranks_before.get(place),
                    **self._image_of(selection, place),
                )
            )
        return hits

    def _image_of(self, selection: Selection, place: int) -> dict[str, Any]:
        """What a hit says of its image."""
        extra, row = selection.extra_of(place), selection.row_of(place)
        if extra is not None:
            return {"id": extra.id, "extra": extra, "_open": partial(load_image, io.BytesIO(extra.thumbnail))}
        assert row is not None
        record = self.stored.record(row)
        root = self.images_root or record["root"] or ""
        path = None if record["path"] is None else Path(root, record["path"])
        opened = partial(_image, self.stored, row, self.images_root, self.follow_links)
        return {"id": record["id"], "row": row, "path": path, "_open": opened}

    @cached_property
    def _whole(self) -> Selection:
        return Selection(self._tokens, index=self._opened_index)

    @cached_property
    def _opened_index(self) -> Index:
        return open_index(self.index, self.stored)

    @cached_property
    def _matcher(self) -> Matcher:
        return matcher_for(self._encoders()[0], getattr(torch, self.matching_dtype))

    @cached_property
    def _cascade(self) -> MatchingCascade:
        return MatchingCascade(self._encoders()[0], self._matcher)

    @cached_property
    def _text_encoder(self) -> TextEncoder:
        return text_encoder_for(self._encoders()[0])

    @cached_property
    def _image_encoder(self) -> Encoder:
        return encoder_for(self._encoders()[0])

    def _encode(self, texts: list[str], batch_size: int = 64) -> EncodedTexts:
        return encode_texts(self._text_encoder, self._encoders()[1], texts, batch_size=batch_size)

    @cached_property
    def _tokens(self) -> ImageTokens:
        if self.stored.settings.tokens is not None:
            return ImageTokens(self.stored)
        return RecomputedImageTokens(self.stored, *self._encoders(), self.images_root, self.follow_links)

    def _encoders(self) -> tuple[TPASModel, TPASProcessor]:
        if self.model is None or self.processor is None:
            raise ValueError(f"open the gallery {self.path} with its model and processor to search or append")
        return self.model.eval(), self.processor  # it may have been trained on since the gallery was opened

    def _reopen(self, stored: StoredGallery) -> None:
        self.stored = stored
        for name in ("_opened_index", "_tokens", "_whole"):
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


@dataclass(frozen=True)
class _Stages:
    """What the stages of a search say of Q texts.

    Attributes:
        candidates, cosines: (Q, K), places in the selection, best first, and their cosines.
        logits: (Q, n, 2) of the first n of them, or None.
    """

    candidates: Tensor
    cosines: Tensor
    logits: Tensor | None = None
    cascade_report: CascadeReport | None = None

    @classmethod
    def joined(cls, parts: Sequence["_Stages"]) -> "_Stages":
        """Of several blocks of texts, one after the other."""
        logits = [part.logits for part in parts if part.logits is not None]
        reports = [part.cascade_report for part in parts if part.cascade_report is not None]
        return cls(
            torch.cat([part.candidates for part in parts]),
            torch.cat([part.cosines for part in parts]),
            torch.cat(logits) if logits else None,
            sum(reports[1:], start=reports[0]) if reports else None,
        )


def _taken_by(before: Tensor, after: Tensor) -> list[int | None]:
    """Of first images (Q,) before and after SCA: for each query that lost its own, the query that has it."""
    holders = {place: query for query, place in reversed(list(enumerate(after.tolist())))}
    firsts = zip(before.tolist(), after.tolist(), strict=True)
    return [None if first == now else holders.get(first) for first, now in firsts]


def _image(stored: StoredGallery, row: int, images_root: str | None, follow_links: bool) -> Image.Image:
    thumbnail = stored.thumbnail(row)
    if thumbnail is not None:
        return load_image(io.BytesIO(thumbnail))
    if stored.record(row)["path"] is None:
        name = stored.record(row)["id"]
        raise FileNotFoundError(f"image {name!r} was no file, and the gallery keeps no thumbnails")
    return stored.open_file(row, images_root, follow_links)
