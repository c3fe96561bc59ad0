"""Two-stage search: rank a gallery by embeddings, re-score each query's shortlist by cross-modal matching.

[`Gallery`] does so over a directory of encoded images, which may be far larger than the memory.
"""

import io
import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from fnmatch import fnmatchcase
from functools import cached_property, partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast, get_args

import torch
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from ..data.image_folders import FolderRules
from ..data.image_sources import find_images
from ..engine.encoding import EncodedTexts, encode_images, encode_texts
from ..engine.fastest import encoder_for, matcher_for, text_encoder_for
from ..engine.matching import Matcher, batches_of_pairs
from ..engine.matching_cascade import MatchingCascade
from ..modeling_tpas import TPASModel
from ..models.fingerprints import image_fingerprint, model_fingerprint, text_fingerprint
from ..models.interface import (
    Encoder,
    ImageMatcher,
    MatchingModel,
    RetrievalModel,
    RetrievalProcessor,
    TextEncoder,
    can_match,
)
from ..processing_tpas import TPASProcessor, load_image
from ..sca import Confidence
from .arguments import DEFAULT_MATCHER_SHORTLIST, MatchingDtype, OnClash, check_cascade, check_index
from .building import build_shards, report_left_out
from .calibration import Calibration
from .columns import NONE
from .exact_index import ROUNDED_FROM, ExactIndex
from .explanation import Explanation, explain, explain_tokens
from .feedback import Example, Feedback, moved, name_of
from .hits import Cover, EncodedImage, PhraseScore, SearchHit, SearchResult
from .image_tokens import ImageTokens, RecomputedImageTokens
from .indexes import Index, index_of_rows, open_index, write_index
from .manifest import GalleryChangedError, GalleryError, GallerySettings
from .ranking import DEFAULT_SHORTLIST, fuse
from .selection import Selection
from .shards import jpeg_thumbnail
from .stages import Stages, best_views, check_precision, check_stages, ordered, taken_by
from .stored_gallery import StoredGallery, delete_images

if TYPE_CHECKING:
    import numpy as np
    from accelerate import Accelerator

logger = logging.getLogger(__name__)

TEXTS_AT_ONCE = 4096  # whose hidden states are in memory together: some 2 GB at full size
WARM_TEXT, WARM_PAIRS = "a person", 8  # few: who comes meanwhile waits for it
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

    Attributes:
        cover: what covers faces in all that is shown of its images, thumbnails too; None: they are shown.
            What is searched stays as it is.
    """

    def __init__(
        self,
        stored: StoredGallery,
        model: RetrievalModel | None,
        processor: RetrievalProcessor | None,
        index: str,
        images_root: str | None,
        matching_dtype: MatchingDtype = "float32",
        follow_links: bool = True,
        calibration: Calibration | None = None,
    ):
        self.stored = stored
        self.model = model
        self.processor = processor
        self.index = index
        self.images_root = images_root
        self.matching_dtype: MatchingDtype = matching_dtype
        self.follow_links = follow_links
        self.calibration = calibration
        self.cover: Cover | None = None

    @classmethod
    def build(
        cls,
        model: RetrievalModel,
        processor: RetrievalProcessor,
        images: Any,
        path: str | Path,
        *,
        tokens: Literal["float16", "float32"] | None = "float16",
        thumbnail_size: int | None = None,
        bf16: bool = False,
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
            model, processor: any pair that `load_model` gives.
            images: a folder (ids are relative paths), a `datasets.Dataset` with an Image column, or an
                iterable of (id, path or PIL image), which is read a few images at a time; PIL images that
                were opened lazily stay so.
            tokens: the type of the image tokens kept for re-ranking, 297 KB an image at full size in
                "float16"; `None`: they are computed again from the files when a query needs them. A model
                without a stage 2 has none to keep.
            thumbnail_size: the longest side in pixels of a small copy to keep of each image; `None`: none.
            bf16: encode in bfloat16, which is faster on a processor that has it, and not the same to the bit;
                of TPAS models.
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
        if bf16:
            check_precision(model, "bfloat16")
        found = find_images(images, id_column, rules, id_prefix)
        build_shards(
            model.eval(),
            processor,
            found,
            Path(path),
            GallerySettings(
                model_fingerprint(model),
                tokens if can_match(model) else None,
                thumbnail_size,
                image_fingerprint(model, processor),
                text_fingerprint(processor),
                bf16,
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
        model: RetrievalModel | None = None,
        processor: RetrievalProcessor | None = None,
        *,
        index: str = "exact",
        images_root: str | Path | None = None,
        follow_links: bool = True,
        matching_dtype: MatchingDtype = "float32",
        calibration: Calibration | None = None,
    ) -> "Gallery":
        """Opens the directory of a gallery: maps it, reads little of it, and writes nothing.

        Args:
            model, processor: those that built it, but for how texts are cut and cleaned, which may differ;
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
            calibration: of the model: answers then say how likely it is that the one asked for is there.

        Raises:
            FileNotFoundError, NotADirectoryError: there is no gallery, or no folder `images_root`.
            GalleryError: it is damaged, not finished, or was made by another model, with other settings of
                the images or beside a tokenizer of other words (both fingerprints are named), or its index
                is missing, damaged or older.
            ValueError: the model does not match in this precision, or the calibration is of another one.
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
                text_fingerprint=None if processor is None else text_fingerprint(processor),
            )
            own.check_equal(expected, stored.directory, stored.model_source)
            check_precision(model, matching_dtype)
            if calibration is not None:
                calibration.check_model(own.model_fingerprint, own.image_fingerprint, own.text_fingerprint)
        root = None if images_root is None else str(images_root)
        gallery = cls(
            stored, model, processor, check_index(index), root, matching_dtype, follow_links, calibration
        )
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

    @property
    def root_of_images(self) -> Path | None:
        """The folder where its images lie, as the first one says; None of images that were no files."""
        root = self.stored.root_of(0, self.images_root) if len(self) else self.images_root
        return None if root is None else Path(root)

    def file_of(self, row: int) -> Path | None:
        """Where an image's file is, or was when it was encoded; None of what was no file."""
        path = self.stored.record(row)["path"]
        return None if path is None else Path(self.stored.root_of(row, self.images_root) or "", path)

    def covered(self, image: Image.Image, row: int) -> Image.Image:
        """What may be shown of a row's image, or of a copy: as `cover` says."""
        if self.cover is None:
            return image
        return self.cover(image, self.stored.moment(row), self.file_of(row))

    def rows_of_moments(
        self,
        camera: str | None = None,
        since: float | datetime | None = None,
        until: float | datetime | None = None,
    ) -> Tensor:
        """The rows of what films show, for `rows` of `search`: of a camera, and of a time.

        Args:
            camera: its name, a folder of cameras, or a pattern such as "entrance*"; `None`: all.
            since, until: a visit that lasts into this time is taken; seconds since the film's beginning, or
                the wall clock's time, with its zone, of films of which it is known.

        Raises:
            ValueError: there is no such camera; the cameras are named. Or no film says when it began.
        """
        columns = self.stored.columns
        rows = columns.of_cameras(lambda name: True)
        if camera is not None:
            wanted = camera.rstrip("/")
            rows = columns.of_cameras(lambda name: fnmatchcase(name, wanted) or name.startswith(f"{wanted}/"))
            if not len(rows):
                some = ", ".join(sorted(columns.cameras)[:10]) or "none"
                raise ValueError(f"the gallery {self.path} has no camera {camera!r}; it has {some}")
        by_clock = isinstance(since, datetime) or isinstance(until, datetime)
        if by_clock and len(rows) and (columns.began[rows] == NONE).all():
            raise ValueError(
                f"no film of the gallery {self.path} says when it began: give times of the film, such as "
                "00:01:12, or --started_at when it is read"
            )
        return torch.from_numpy(columns.lasting_into(rows, since, until))

    def verify(self) -> None:
        """Compares every file with its checksum; raises GalleryError for the first that differs."""
        self.stored.verify()

    def append(self, images: Any, **settings: Any) -> None:
        """Encodes the images that are new; `settings` are `build`'s that the gallery does not fix."""
        model, processor = self._encoders()
        fixed = {name: getattr(self.stored.settings, name) for name in ("tokens", "thumbnail_size", "bf16")}
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

    def refresh(self) -> bool:
        """Opens the directory anew where another process has changed it since, and says whether it has.

        It looks at one file, so a service can afford it before each answer. An index other than "exact" has
        to be as new as the images.

        Raises:
            FileNotFoundError, GalleryError: as of `open`, a gallery of another model included; then this one
                still shows the directory as it was.
        """
        if self.stored.current_file_state() == self.stored.file_state:
            return False
        stored, before = StoredGallery(self.path), self.stored.settings
        own = replace(
            stored.settings,
            model_fingerprint=before.model_fingerprint,
            image_fingerprint=before.image_fingerprint,
        )
        own.check_equal(stored.settings, stored.directory)
        self._reopen(stored)
        return True

    def check_cascade(self, rerank: bool = True, sca: Confidence | None = None) -> None:
        """Raises ValueError where a cascade would save nothing or change the answer; see `search`."""
        check_stages(self._encoders()[0], rerank, cascade=True)
        check_cascade(rerank, sca, self.matching_dtype)
        if self.stored.settings.tokens is None:
            raise ValueError(
                "the gallery keeps no tokens: to compute them twice takes longer than a cascade saves"
            )

    def warm_up(self, shortlist: int = DEFAULT_SHORTLIST, cascade: bool = False) -> None:
        """Does now what the first search would have to do first, so that none waits for it.

        Embeddings are read and checked, weights laid out, kernels compiled. Where stage 2 would read the
        images' files for it, only stage 1 is made ready.
        """
        if not len(self):
            return
        rerank = can_match(self._encoders()[0]) and self.stored.settings.tokens is not None
        self.search([WARM_TEXT], 1, min(shortlist, WARM_PAIRS), rerank, cascade=cascade)
        if isinstance(self._opened_index, ExactIndex):  # which waits for many questions before it rounds
            self._opened_index.search(self._encode([WARM_TEXT]).embeds.expand(ROUNDED_FROM + 1, -1), 1)

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
        rerank: bool | None = None,
        sca: Confidence | None = None,
        *,
        liked: Iterable[Example] = (),
        disliked: Iterable[Example] = (),
        must: Iterable[str] = (),
        must_not: Iterable[str] = (),
        coverage: float | None = None,
        each_behaviour: bool = False,
        cascade: bool = False,
        exact_top: int | None = None,
        matcher: ImageMatcher | None = None,
        matcher_shortlist: int = DEFAULT_MATCHER_SHORTLIST,
        rows: "Sequence[int] | np.ndarray | Tensor | None" = None,
        extra: Sequence[EncodedImage] = (),
        batch_size: int = 64,
        texts_at_once: int = TEXTS_AT_ONCE,
    ) -> SearchResult:
        """The best images for each text, best first. For an image in a text's place see `similar`.

        Where another process has deleted images since the gallery was opened, it is opened again, once.

        Args:
            texts: any iterable of strings; one string is refused.
            top_k: images in each answer, or all that are searched where these are fewer.
            shortlist: images that the cross-modal encoder reads for each text, or all that are searched. What
                follows them in a longer answer is ordered by cosine.
            rerank: whether it reads any; `None`: where the model has a stage 2, or there is a `matcher`.
            sca: resolves the texts' collisions by `tpas.sca.sca_rerank`, at this confidence; for texts that
                each look for an image of their own.
            liked, disliked: images that are like the one looked for, or not: ids, or hits. They move each
                text's embedding by Rocchio's rule; the re-ranked are ordered by match logit and this cosine
                together. What is disliked is not shown any more, nor another view of its visit.
            must: phrases of it, "a red hat": each is read as a sentence of each text that does not say it.
            must_not: phrases of what it has not; they move the embeddings as what is disliked does. Of each
                phrase, of both kinds, an answer says how well it fits an image by itself:
                `SearchHit.phrases`.
            coverage: in place of `top_k`: as many images as are needed so that the right one is among them in
                this share of the cases, if it is there at all; by the gallery's calibration, whose
                `least_share` says when that holds. Ordered by their chance.
            each_behaviour: with it: in that share of the normal and of the anomalous texts alike.
            cascade: lets bf16 read the shortlist first, and fp32 what can still be among the `top_k`: the
                same answer in less time, unless bf16 errs by more than it was seen to, see
                [`MatchingCascade`].
            exact_top: with it: how many of the best are to be those of fp32; `None`: the `top_k`. The others
                follow, of the shortlist by what bf16 says.
            matcher: reads images and texts themselves in place of the model's own stage 2, such as
                `load_matcher` gives: the best `matcher_shortlist` by cosine, or all where these are fewer.
            rows: the gallery's rows to look through, such as those that pass a filter; `None`: all. They are
                searched exactly, whatever the gallery's index; by a database where they are very many.
            extra: images to look through beside them, from `encode_image`; exactly, as above.
            batch_size: texts in one forward pass.
            texts_at_once: whose hidden states are in memory together; all if the gallery keeps no tokens.

        Returns:
            A list of answers, with SCA's and the cascade's report.

        Raises:
            ValueError: a number below 1, an unknown confidence, or a cascade that would save nothing or
                change the answer: without re-ranking, in a gallery that matches in bf16 or keeps no tokens,
                with SCA by softmax, by another than a TPAS model. Or the model has no stage 2 to re-rank by.
                Or feedback contradicts itself, has an empty phrase or too many, or moves a query with SCA or
                a cascade. Or a coverage is asked for that the calibration, if there is one, cannot promise,
                or of a search that it was not learnt from.
            KeyError: an image that is liked or disliked is not there.
        """
        numbers = {"top_k": top_k, "shortlist": shortlist, "texts_at_once": texts_at_once}
        numbers["exact_top"] = top_k if exact_top is None else exact_top
        _check_numbers(sca, **numbers, matcher_shortlist=matcher_shortlist)
        feedback = Feedback.of(liked, disliked, must, must_not)
        feedback.check_order(sca, cascade)
        texts = [feedback.read_with(text) for text in _listed(texts)]
        model, _ = self._encoders()  # which says so if there are none
        rerank = check_stages(model, rerank, cascade, matcher)
        if cascade:
            self.check_cascade(rerank, sca)
        shortlist = shortlist if matcher is None else matcher_shortlist
        selection = self._selection(rows, extra)
        visits = selection.visits()
        changed = matcher is not None or feedback.moves or visits is not None
        calibration = self._fitting_calibration(coverage, rerank, shortlist, len(selection), changed, sca)
        least_share = None
        if coverage is not None and calibration is not None:
            least_share = calibration.least_share(coverage, each_behaviour=each_behaviour)
        if not texts or not len(selection):
            return SearchResult(([] for _ in texts), texts=texts, searched=len(selection))
        head = min(shortlist, len(selection)) if rerank or sca else 0
        hidden = selection.places_of(*self._found(feedback.disliked))
        views = selection.most_views
        images = top_k * views + len(hidden)
        asked = min(max(images, head, calibration.shortlist if calibration else 0), len(selection))
        read_in_fp32 = None
        if cascade:
            best = images if exact_top is None else min(images, exact_top * views + len(hidden))
            read_in_fp32 = max(best, SCA_READS) if sca else best
        matched = head if rerank else 0
        if matched and (self.stored.settings.tokens is None or matcher is not None):
            texts_at_once = len(texts)  # for each block the shortlisted images would be encoded again
        stages = self._ranked(
            selection,
            texts,
            self._move(feedback),
            asked,
            matched,
            read_in_fp32,
            matcher,
            batch_size,
            texts_at_once,
        )

        ranking, before, sca_report = stages.candidates, None, None
        chances = shares = None
        if calibration is not None:
            shortlists = stages.shortlists(calibration.shortlist)
            shares = torch.from_numpy(calibration.shares(shortlists))  # (Q, S)
            chances = calibration.chances(shortlists, len(selection))
        if head:
            ranking, before, sca_report = ordered(stages, head, sca, visits)
        kept = [row[~torch.isin(row, hidden)] for row in ranking]
        shown = [best_views(row, visits)[:top_k] for row in kept]
        if least_share is not None and shares is not None:
            order = shares.argsort(dim=1, descending=True, stable=True)
            counts = (shares >= least_share).sum(dim=1).clamp(min=1).tolist()
            shown = [row[own[:n]] for row, own, n in zip(stages.candidates, order, counts, strict=True)]
        said = self._phrase_scores(selection, feedback, torch.cat(shown), stages, matcher)
        of_images = [None] * len(texts) if chances is None else chances[1]
        ranked = [None] * len(texts) if before is None else [best_views(row, visits) for row in before]
        return SearchResult(
            (
                self._hits(selection, stages, query, shown[query], ranked[query], of_images[query], said)
                for query in range(len(texts))
            ),
            chances=() if chances is None else chances[0].tolist(),
            coverage=coverage,
            texts=texts,
            searched=len(selection),
            sca_report=sca_report,
            taken_by=() if before is None else taken_by(before[:, 0], ranking[:, 0]),
            cascade_report=stages.cascade_report,
            by_matcher=matched > 0 and matcher is not None,
            moved=feedback.moves,
        )

    def stage_scores(
        self, texts: Iterable[str], count: int, rerank: bool | None = None
    ) -> tuple[Tensor, Tensor]:
        """What the stages say of the best `count` by cosine, or of all where these are fewer.

        Returns:
            Rows (Q, K), and of each cosine and, if there is a stage 2, match logit: (Q, K, 1 or 2).
        """
        texts = _listed(texts)
        rerank = check_stages(self._encoders()[0], rerank, False)
        count = min(count, len(self))
        settings = (count, count if rerank else 0, None, None, 64, TEXTS_AT_ONCE)
        stages = self._ranked(self._whole, texts, None, *settings)
        return stages.candidates, torch.from_numpy(stages.shortlists(count))

    def _fitting_calibration(
        self,
        coverage: float | None,
        rerank: bool,
        shortlist: int,
        searched: int,
        changed: bool,
        sca: Confidence | None,
    ) -> Calibration | None:
        """The calibration where it is of such a search; raises ValueError for a coverage without one."""
        try:
            if self.calibration is None:
                raise ValueError("there is no calibration: `tpas calibrate` makes one of the model")
            if changed:
                raise ValueError(
                    "a calibration is of the model's own stages, of texts that no feedback moves, and of "
                    "images that are no visits in films"
                )
            self.calibration.check_stages(2 if rerank else 1, shortlist if rerank else None, searched)
            if coverage is not None and sca is not None:
                raise ValueError("SCA takes images from one answer for another: leave out sca")
        except ValueError as error:
            if coverage is not None:
                raise ValueError(f"coverage {coverage:g}: {error}") from error
            if self.calibration is not None:
                logger.info("no chances are said: %s", error)
            return None
        return self.calibration

    def similar(
        self,
        image: SearchHit | EncodedImage | Image.Image,
        top_k: int = 10,
        *,
        rows: "Sequence[int] | np.ndarray | Tensor | None" = None,
        extra: Sequence[EncodedImage] = (),
    ) -> SearchResult:
        """An image as a query: its nearest neighbours by the embeddings' cosine, without itself.

        Of films: the other visits that look most like the one that was found.

        Args:
            image: one that was found; or any other, in memory, which need not be of the gallery. One of the
                gallery that is given so is found again.
            top_k, rows, extra: as of `search`.
        """
        if isinstance(image, Image.Image):
            image = self.encode_image(image, "the image")
        hit = image
        if isinstance(image, EncodedImage):
            opened = partial(load_image, io.BytesIO(image.thumbnail))
            hit = SearchHit(image.id, 1, None, extra=image, _open=opened)
        assert isinstance(hit, SearchHit), "of the three kinds"
        embedding = self._embedding_of(hit)[None]  # (1, D)
        selection = self._selection(rows, extra)
        visits = selection.visits()
        count = min((top_k + 1) * selection.most_views, len(selection))  # itself is among them
        candidates, cosines = selection.index.search(embedding, count)
        stages = Stages(candidates, cosines)
        found = self._hits(selection, stages, 0, best_views(candidates[0], visits), None)
        others = [other for other in found if not other.is_same_image(hit)]
        if hit.moment is not None:
            own = hit.moment.visit
            others = [other for other in others if other.moment is None or other.moment.visit != own]
        others = others[:top_k]
        others = [
            replace(other, rank=rank, embedding_rank=rank) for rank, other in enumerate(others, start=1)
        ]
        searched = len(selection) - any(other.is_same_image(hit) for other in found)
        texts = [f"Similar to {hit.moment or hit.id}"]
        return SearchResult([others], texts=texts, searched=searched, similar_to=hit)

    def encode_image(self, image: Image.Image, image_id: str, thumbnail_size: int = 768) -> EncodedImage:
        """An image to be searched beside the gallery's, which it does not change; see `extra` of `search`."""
        _, processor = self._encoders()
        embeds, tokens = encode_images(self._image_encoder, processor(images=[image]), torch.float16)
        kept = None if tokens is None else tokens[0].numpy()
        return EncodedImage(image_id, embeds[0], kept, jpeg_thumbnail(image, thumbnail_size))

    def explain(self, hit: SearchHit, text: str) -> Explanation:
        """Why an image was found: see [`tpas.search.explanation.explain`].

        Raises:
            GalleryError: of another than a TPAS model: the image's file, which is read for it, is gone.
        """
        model, processor = self._encoders()
        if not (isinstance(model, TPASModel) and isinstance(processor, TPASProcessor)):
            row = None if hit.extra is not None else self._row_of(hit)
            return explain(model, processor, self._read_image(row, hit.extra, "to explain it"), text)
        tokens = self._tokens[self._row_of(hit)] if hit.extra is None else hit.extra.tokens
        assert tokens is not None, "every image of a TPAS model has tokens"
        return explain_tokens(model, processor, torch.from_numpy(tokens)[None], text)

    def _read_image(self, row: int | None, extra: EncodedImage | None, what_for: str) -> Image.Image:
        """The whole image of a row, or what was kept of an image beside the gallery."""
        if row is None:
            assert extra is not None
            return load_image(io.BytesIO(extra.thumbnail))
        try:
            return self.stored.open_file(row, self.images_root, self.follow_links)
        except (OSError, ValueError) as error:
            name = self.stored.record(row)["id"]
            raise GalleryError(
                f"image {name!r} of the gallery {self.path} cannot be read {what_for}: {error}; where images "
                "were moved, images_root names the folder where they lie now"
            ) from error

    def _embedding_of(self, hit: Example) -> Tensor:
        """(D,)."""
        if isinstance(hit, SearchHit) and hit.extra is not None:
            return hit.extra.embedding
        return self.stored.embedding_rows(torch.tensor([self._row_of(hit)]))[0]

    def _row_of(self, hit: Example) -> int:
        (row,) = self.stored.rows_of([name_of(hit)])
        return row

    def _selection(
        self, rows: "Sequence[int] | np.ndarray | Tensor | None", extra: Sequence[EncodedImage]
    ) -> Selection:
        if rows is None and not extra:
            return self._whole
        index = None
        if rows is not None:
            rows = torch.as_tensor(rows, dtype=torch.long)
            if not extra and self.index not in ("exact", "faiss"):
                index = index_of_rows(self._opened_index, rows, len(self))
        return Selection(self._tokens, rows, extra, index)

    def _ranked(
        self,
        selection: Selection,
        texts: list[str],
        move: Callable[[Tensor], Tensor] | None,
        count: int,
        shortlist: int,
        read_in_fp32: int | None,
        matcher: ImageMatcher | None,
        batch_size: int,
        texts_at_once: int,
    ) -> Stages:
        """The best `count` by cosine, and the match scores of the best `shortlist` of these, block by block.

        Args:
            move: the texts' embeddings (Q, D), as feedback has it; then both scores together order.
            read_in_fp32: what a cascade reads in fp32; `None`: no cascade.
            matcher: in place of the model's own stage 2.
        """
        parts: list[Stages] = []
        for start in range(0, len(texts), texts_at_once):
            encoded = self._encode(texts[start : start + texts_at_once], batch_size)
            embeds = encoded.embeds if move is None else move(encoded.embeds)
            candidates, cosines = selection.index.search(embeds, count)  # (q, K)
            scores = logits = report = None
            if shortlist and matcher is not None:
                own = texts[start : start + texts_at_once]
                scores = self._scores_by(matcher, selection, own, candidates[:, :shortlist])
            elif shortlist and read_in_fp32 is not None:
                logits, report = self._cascade.logits_of_shortlists(
                    selection, encoded, candidates[:, :shortlist], read_in_fp32
                )
            elif shortlist:
                logits = self._matcher.logits_of_shortlists(selection, encoded, candidates[:, :shortlist])
            scores = scores if logits is None else logits[:, :, 1]
            fused = None if move is None or scores is None else fuse(scores, cosines[:, :shortlist], 0.5)
            parts.append(Stages(candidates, cosines, scores, report, fused))
        stages = Stages.joined(parts)
        if stages.cascade_report is not None:
            logger.info("cascade: %s", stages.cascade_report)
        return stages

    def _move(self, feedback: Feedback) -> Callable[[Tensor], Tensor] | None:
        """How feedback moves texts' embeddings (Q, D), if it does."""
        if not feedback.moves:
            return None
        liked, disliked = (
            torch.stack([self._embedding_of(example) for example in examples]) if examples else None
            for examples in (feedback.liked, feedback.disliked)
        )
        must_not = self._encode(list(feedback.must_not)).embeds if feedback.must_not else None
        return partial(moved, liked=liked, disliked=disliked, must_not=must_not)

    def _found(self, examples: Sequence[Example]) -> tuple[list[int], list[EncodedImage]]:
        """The rows of examples of the gallery, and those beside it."""
        beside = [example.extra for example in examples if isinstance(example, SearchHit) and example.extra]
        names = [
            name_of(example) for example in examples if isinstance(example, str) or example.extra is None
        ]
        return self.stored.rows_of(names), beside

    def _phrase_scores(
        self,
        selection: Selection,
        feedback: Feedback,
        shown: Tensor,
        stages: Stages,
        matcher: ImageMatcher | None,
    ) -> dict[int, tuple[PhraseScore, ...]]:
        """What each phrase says of the places that are shown; a match score of those that were re-ranked."""
        asked = [*feedback.must, *feedback.must_not]
        if not asked:
            return {}
        places, encoded = shown.unique(), self._encode(asked)
        read, scores = places[:0], torch.empty(len(asked), 0)
        if stages.match_scores is not None:
            read = places[torch.isin(places, stages.candidates[:, : stages.match_scores.shape[1]])]
            each = read[None].expand(len(asked), -1)
            if matcher is not None:
                scores = self._scores_by(matcher, selection, asked, each)
            else:
                scores = self._matcher.logits_of_shortlists(selection, encoded, each)[:, :, 1]
        cosines = encoded.embeds @ selection.embeddings(places.tolist()).T  # (P, n)
        return feedback.phrase_scores(places, cosines, read, scores)

    def _scores_by(
        self, matcher: ImageMatcher, selection: Selection, texts: list[str], shortlists: Tensor
    ) -> Tensor:
        """The matcher's scores of each text with the images of its shortlist, (Q, K) both."""
        places = shortlists.flatten().numpy()
        scores = torch.empty(len(places))
        for pairs in tqdm(
            batches_of_pairs(places, matcher.pairs_per_batch),
            desc="matching pairs",
            unit="batch",
            leave=False,
            disable=None,  # shown on a terminal only
        ):
            images = {
                place: self._read_image(selection.row_of(place), selection.extra_of(place), "by the matcher")
                for place in {*places[pairs].tolist()}
            }
            asked = [texts[pair // shortlists.shape[1]] for pair in pairs.tolist()]
            shown = [images[place] for place in places[pairs].tolist()]
            scores[torch.from_numpy(pairs)] = matcher.match_images(shown, asked)
        return scores.view(shortlists.shape)

    def _hits(
        self,
        selection: Selection,
        stages: Stages,
        query: int,
        ranking: Tensor,
        before: Tensor | None,
        chances: "np.ndarray | None" = None,
        said: Mapping[int, tuple[PhraseScore, ...]] | None = None,
    ) -> list[SearchHit]:
        """One text's answer: `ranking` (top_k,) of its candidates, and its ranking `before` SCA, (k,).

        Args:
            chances: (S,) of the first of its candidates.
            said: what phrases say of a place.
        """
        candidates = {place: number for number, place in enumerate(stages.candidates[query].tolist())}
        ranks_before = {}
        if before is not None:
            ranks_before = {place: rank for rank, place in enumerate(before.tolist(), start=1)}
        hits = []
        for rank, place in enumerate(ranking.tolist(), start=1):
            candidate = candidates[place]
            cosine = stages.cosines[query, candidate].item()
            match_score = score = None
            if stages.match_scores is None:
                score = cosine
            elif stages.scores is not None and candidate < stages.scores.shape[1]:
                match_score = stages.match_scores[query, candidate].item()
                score = stages.scores[query, candidate].item()
            hits.append(
                SearchHit(
                    rank=rank,
                    score=score,
                    cosine=cosine,
                    match_logit=match_score,
                    embedding_rank=candidate + 1,
                    rank_before_sca=ranks_before.get(place),
                    phrases=() if said is None else said.get(place, ()),
                    chance=None
                    if chances is None or candidate >= len(chances)
                    else float(chances[candidate]),
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
        opened = partial(_image, self.stored, row, self.images_root, self.follow_links)
        return {
            "id": self.stored.record(row)["id"],
            "row": row,
            "path": self.file_of(row),
            "moment": self.stored.moment(row),
            "cover": self.cover,
            "_open": opened,
        }

    @cached_property
    def _whole(self) -> Selection:
        return Selection(self._tokens, index=self._opened_index)

    @cached_property
    def _opened_index(self) -> Index:
        return open_index(self.index, self.stored)

    @cached_property
    def _matcher(self) -> Matcher:
        model = self._matching_model
        dtype = getattr(torch, self.matching_dtype) if isinstance(model, TPASModel) else None
        return matcher_for(model, dtype)

    @cached_property
    def _cascade(self) -> MatchingCascade:
        model = self._encoders()[0]
        assert isinstance(model, TPASModel), "others were refused"
        return MatchingCascade(model, self._matcher)

    @property
    def _matching_model(self) -> MatchingModel:
        model = self._encoders()[0]
        assert can_match(model), "others were refused"
        return model

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

    def _encoders(self) -> tuple[RetrievalModel, RetrievalProcessor]:
        if self.model is None or self.processor is None:
            raise ValueError(f"open the gallery {self.path} with its model and processor to search or append")
        return self.model.eval(), self.processor  # it may have been trained on since the gallery was opened

    def _reopen(self, stored: StoredGallery) -> None:
        self.stored = stored
        for name in ("_opened_index", "_tokens", "_whole"):
            self.__dict__.pop(name, None)


def _check_numbers(sca: str | None, **numbers: int) -> None:
    """Raises ValueError for a number below 1, or an unknown confidence."""
    for name, value in numbers.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if sca is not None and sca not in get_args(Confidence):
        raise ValueError(f"sca must be None or one of {get_args(Confidence)}, got {sca!r}")


def _listed(texts: Iterable[str]) -> list[str]:
    """Raises TypeError for anything but an iterable of strings, or for one string."""
    if isinstance(texts, str) or not isinstance(texts, Iterable):
        raise TypeError(f"texts must be an iterable of strings, got {texts!r}")
    texts = [str(text) if isinstance(text, str) else text for text in texts]  # numpy's strings as well
    for text in texts:
        if not isinstance(text, str):
            raise TypeError(f"each text must be a string, got {text!r}")
    return texts


def _image(stored: StoredGallery, row: int, images_root: str | None, follow_links: bool) -> Image.Image:
    thumbnail = stored.thumbnail(row)
    if thumbnail is not None:
        return load_image(io.BytesIO(thumbnail))
    if stored.record(row)["path"] is None:
        name = stored.record(row)["id"]
        raise FileNotFoundError(f"image {name!r} was no file, and the gallery keeps no thumbnails")
    return stored.open_file(row, images_root, follow_links)
