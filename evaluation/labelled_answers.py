"""A gallery's answers to texts whose right images are known: what a calibration is learnt from."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from datasets import Dataset

from ..data.pab import retrieval_split, source_videos
from ..data.pab_images import image_path
from ..models.interface import RetrievalModel, RetrievalProcessor
from ..search.calibration import SIZES, LabelledAnswers, check_persons
from ..search.gallery import Gallery

SPARE = 1.25  # images left out at random differ in number from text to text


def gallery_of_pairs(
    model: RetrievalModel,
    processor: RetrievalProcessor,
    dataset: Dataset,
    image_root: Path,
    path: Path,
    distractors: Mapping[str, Path] | None = None,
) -> Gallery:
    """A gallery of the images of some pairs, rows as of `load_pab`, and of others that nobody asks for.

    Raises:
        ValueError: an image cannot be read; names it.
    """
    images = {name: image_path(image_root, name) for name in dataset["image"]} | dict(distractors or {})
    gallery = Gallery.build(model, processor, images.items(), path)
    if gallery.unreadable:
        name, reason = next(iter(gallery.unreadable.items()))
        raise ValueError(f"{len(gallery.unreadable)} images cannot be read, the first {name}: {reason}")
    return gallery


def labelled_answers(
    gallery: Gallery,
    dataset: Dataset,
    *,
    asked: Sequence[int] | None = None,
    shortlist: int = 128,
    rerank: bool | None = None,
) -> LabelledAnswers:
    """The gallery's answers to the texts of pairs whose images it holds.

    Images of one source video, or where none is known of one `image_id`, show one person.

    Args:
        asked: the rows whose texts are asked; `None`: all.

    Raises:
        ValueError: there are too few persons to learn from.
    """
    videos = source_videos(dataset)
    queries = np.arange(len(videos)) if asked is None else np.asarray(asked)
    check_persons(videos[queries])
    ids = gallery.ids
    benchmark = retrieval_split(dataset, gallery=ids)
    # As many as leave a whole shortlist of the smallest gallery that is made by leaving out images.
    count = round(SPARE * shortlist / min(SIZES))
    rows, stages = gallery.stage_scores([benchmark.captions[query] for query in queries], count, rerank)
    places = rows.numpy()
    row_of = {name: row for row, name in enumerate(ids)}
    right = [[row_of[name] for name in benchmark.relevant[query]] for query in queries]
    is_right = np.array([np.isin(own, rows_of) for own, rows_of in zip(places, right, strict=True)])
    video_of = dict(zip(dataset["image"], videos.tolist(), strict=True))
    video = np.array([video_of.get(name, -1) for name in ids])
    shows_person = is_right | (video[places] == videos[queries, None])
    behaviours = [benchmark.query_behaviours[query] for query in queries]
    return LabelledAnswers(stages.numpy(), is_right, shows_person, videos[queries], behaviours, len(ids))
