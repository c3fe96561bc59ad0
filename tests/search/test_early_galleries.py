"""Galleries that earlier versions wrote are opened and searched by this one.

`data/early_gallery` was built by version 0.1.0, before its modules moved into rooms, of three drawn people
with the random weights in `data/early_model`; the answer below is the one that version gave.
"""

import shutil
from pathlib import Path

import pytest

from tpas.modeling_tpas import TPASModel
from tpas.processing_tpas import TPASProcessor
from tpas.search.gallery import Gallery

EARLY = Path(__file__).parent / "data" / "early_gallery"
MODEL = Path(__file__).parent / "data" / "early_model"
ANSWER = {  # id: cosine, match logit
    "515160.jpg": (0.055147551000118256, 0.2759588360786438),
    "702641.jpg": (0.07169779390096664, 0.19179123640060425),
    "170342.jpg": (0.17292536795139313, 0.1604260802268982),
}


@pytest.fixture(scope="module")
def encoders():
    return TPASModel.from_pretrained(MODEL).eval(), TPASProcessor.from_pretrained(MODEL)


def test_an_early_gallery_gives_the_answers_it_gave(encoders):
    gallery = Gallery.open(EARLY, *encoders)
    (hits,) = gallery.search(["a woman is lying on the ground ."])
    assert [hit.id for hit in hits] == list(ANSWER)
    for hit, (cosine, logit) in zip(hits, ANSWER.values(), strict=True):
        assert hit.cosine == pytest.approx(cosine, abs=1e-5)
        assert hit.match_logit == pytest.approx(logit, abs=1e-4)
    gallery.verify()


def test_of_an_early_gallery_nothing_is_known_of_files_that_are_gone(encoders, tmp_path, images):
    """It kept no content: what is under an id stays, as it did."""
    path = shutil.copytree(EARLY, tmp_path / "gallery")
    images[0].save(tmp_path / "170342.png")
    gallery = Gallery.open(path, *encoders)
    gallery.append([("170342.jpg", tmp_path / "170342.png")])
    assert len(gallery) == 3


def test_an_early_gallery_can_be_written_to(encoders, tmp_path, images):
    path = shutil.copytree(EARLY, tmp_path / "gallery")
    gallery = Gallery.open(path, *encoders)
    gallery.append([("new", images[0])])
    gallery.delete(["170342.jpg"])
    assert Gallery.open(path).ids == ["515160.jpg", "702641.jpg", "new"]
