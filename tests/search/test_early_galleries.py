"""Galleries that earlier versions wrote are opened and searched by this one.

`data/early_gallery` was built by version 0.1.0, before its modules moved into rooms, of three drawn people
with `demo_start`; the answer below is the one that version gave.
"""

import shutil
from pathlib import Path

import pytest

from tpas.modeling_tpas import TPASModel
from tpas.processing_tpas import TPASProcessor
from tpas.search.gallery import Gallery

EARLY = Path(__file__).parent / "data" / "early_gallery"
START = Path(__file__).parents[2] / "demo_start"
ANSWER = {  # id: cosine, match logit
    "044358.jpg": (0.7299574017524719, -2.198577880859375),
    "021123.jpg": (0.3552091717720032, -4.679780006408691),
    "063971.jpg": (0.3124527931213379, -4.780092239379883),
}


@pytest.fixture(scope="module")
def encoders():
    return TPASModel.from_pretrained(START).eval(), TPASProcessor.from_pretrained(START)


def test_an_early_gallery_gives_the_answers_it_gave(encoders):
    gallery = Gallery.open(EARLY, *encoders)
    (hits,) = gallery.search(["A woman is lying on the ground."])
    assert [hit.id for hit in hits] == list(ANSWER)
    for hit, (cosine, logit) in zip(hits, ANSWER.values(), strict=True):
        assert hit.cosine == pytest.approx(cosine, abs=1e-5)
        assert hit.match_logit == pytest.approx(logit, abs=1e-4)
    gallery.verify()


def test_of_an_early_gallery_nothing_is_known_of_files_that_are_gone(encoders, tmp_path, images):
    """It kept no content: what is under an id stays, as it did."""
    path = shutil.copytree(EARLY, tmp_path / "gallery")
    images[0].save(tmp_path / "021123.png")
    gallery = Gallery.open(path, *encoders)
    gallery.append([("021123.jpg", tmp_path / "021123.png")])
    assert len(gallery) == 3


def test_an_early_gallery_can_be_written_to(encoders, tmp_path, images):
    path = shutil.copytree(EARLY, tmp_path / "gallery")
    gallery = Gallery.open(path, *encoders)
    gallery.append([("new", images[0])])
    gallery.delete(["021123.jpg"])
    assert Gallery.open(path).ids == ["044358.jpg", "063971.jpg", "new"]
