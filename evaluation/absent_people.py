"""What a calibrated model says of people who are not in the gallery, as the demo shows."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset

from ..data.pab import source_videos
from ..models.interface import RetrievalModel, RetrievalProcessor
from ..search.arguments import LEAST_CHANCE
from ..search.calibration import Calibration
from ..search.hits import SearchHit
from .labelled_answers import gallery_of_pairs, labelled_answers

NEAREST = 5


@dataclass(frozen=True)
class AbsentPeople:
    """Searches for people who are in the gallery, and again with their images left out.

    Attributes:
        searches: of each kind.
        said_of_absent, said_of_present: in how many of them "no one like this" was said.
        text: that of the largest difference, so the clearest of all.
        chance_present, chance_absent: that its person is there, with the images of the person and without.
        nearest: what was found without.
    """

    searches: int
    said_of_absent: int
    said_of_present: int
    text: str
    chance_present: float
    chance_absent: float
    nearest: list[SearchHit]


def search_without_them(
    model: RetrievalModel,
    processor: RetrievalProcessor,
    calibration: Calibration,
    dataset: Dataset,
    image_root: Path,
    path: Path,
    count: int = 50,
) -> AbsentPeople:
    """Asks for `count` people by one text each, in a gallery of all the images, made in `path`.

    Args:
        dataset: rows as of `load_pab`.
    """
    gallery = gallery_of_pairs(model, processor, dataset, image_root, path)
    gallery.calibration = calibration
    persons = source_videos(dataset)
    asked = np.sort(np.unique(persons, return_index=True)[1])[:count].tolist()
    answers = labelled_answers(gallery, dataset, asked=asked, shortlist=calibration.shortlist)
    chances, there, _ = calibration.test(answers, np.random.default_rng(0))
    no_one = chances < LEAST_CHANCE
    place = int(np.argmax(chances[there] - chances[~there]))
    text = dataset["caption"][asked[place]]
    shows = dict(zip(dataset["image"], persons == persons[asked[place]], strict=True))
    others = torch.tensor([row for row, name in enumerate(gallery.ids) if not shows[name]])
    present, absent = (
        gallery.search([text], top_k=NEAREST, shortlist=calibration.shortlist, rows=rows)
        for rows in (None, others)
    )
    assert present.chances[0] is not None
    assert absent.chances[0] is not None
    return AbsentPeople(
        searches=len(asked),
        said_of_absent=int(no_one[~there].sum()),
        said_of_present=int(no_one[there].sum()),
        text=text,
        chance_present=present.chances[0],
        chance_absent=absent.chances[0],
        nearest=absent[0],
    )
