"""Which files are images, and that none outside a root is opened."""

import os

import pytest
from PIL import Image

from tpas.data.image_files import file_inside, image_suffixes, images_in
from tpas.processing_tpas import load_image

MODES = {".pbm": "1", ".pgm": "L", ".pfm": "F"}  # of formats that hold no colours


@pytest.mark.parametrize("suffix", sorted(image_suffixes() | {".eps", ".ico", ".tga"}))
def test_a_suffix_is_an_images_where_the_decoder_reads_such_files(suffix, tmp_path):
    path = tmp_path / f"image{suffix.upper()}"
    image = Image.new("L" if suffix in MODES else "RGB", (16, 16), 200)
    image.convert(MODES.get(suffix, image.mode)).save(path)
    if suffix in image_suffixes():
        assert images_in(tmp_path) == [path.name]
        if suffix == ".pfm":  # listed, so that it is named and not passed over
            with pytest.raises(ValueError, match="image.PFM: an image of mode F"):
                load_image(path)
        else:
            assert load_image(path).size == (16, 16)
    else:
        with pytest.raises(ValueError, match="not an image, or none of JPEG, "):
            load_image(path)
        assert images_in(tmp_path) == []


def test_all_folders_below_are_searched_and_links_to_folders_are_not(tmp_path):
    (tmp_path / "inside" / "camera 1").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    inside = [f"inside/{name}" for name in ("b.JPG", "camera 1/a.avif", "notes.txt", ".png")]
    for name in [*inside, "outside/c.jpg"]:
        (tmp_path / name).touch()
    (tmp_path / "inside" / "linked").symlink_to(tmp_path / "outside")
    (tmp_path / "inside" / "d.png").symlink_to(tmp_path / "outside" / "c.jpg")
    assert images_in(tmp_path / "inside") == ["b.JPG", "camera 1/a.avif", "d.png"]
    assert images_in(tmp_path / "absent") == []


def test_what_lies_outside_a_root_or_is_no_file_is_refused(tmp_path):
    (tmp_path / "outside.jpg").touch()
    root = tmp_path / "root"
    root.mkdir()
    (root / "a.jpg").touch()
    (root / "link.jpg").symlink_to("a.jpg")
    (root / "out.jpg").symlink_to(tmp_path / "outside.jpg")
    os.mkfifo(root / "pipe.jpg")
    assert file_inside(root, "link.jpg") == (root / "a.jpg").resolve()
    assert file_inside(str(root), "absent.jpg") == root.resolve() / "absent.jpg"
    for path in ("out.jpg", "../outside.jpg", str(tmp_path / "outside.jpg")):
        with pytest.raises(ValueError, match="leads out of"):
            file_inside(root, path)
    with pytest.raises(ValueError, match="is no file"):
        file_inside(root, "pipe.jpg")
