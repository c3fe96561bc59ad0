"""Which files are images, and that none outside a root is opened."""

import os
import subprocess
import sys
from unittest.mock import Mock

import pytest
from PIL import Image

from tpas.data.image_files import file_inside, image_suffixes, load_inside
from tpas.data.image_folders import list_images
from tpas.data.pab_images import open_image
from tpas.processing_tpas import load_image

MODES = {".pbm": "1", ".pgm": "L", ".pfm": "F"}  # of formats that hold no colours


@pytest.mark.parametrize("suffix", sorted(image_suffixes() | {".eps", ".ico", ".tga"}))
def test_a_suffix_is_an_images_where_the_decoder_reads_such_files(suffix, tmp_path):
    path = tmp_path / f"image{suffix.upper()}"
    image = Image.new("L" if suffix in MODES else "RGB", (16, 16), 200)
    image.convert(MODES.get(suffix, image.mode)).save(path)
    if suffix in image_suffixes():
        assert list_images(tmp_path).images == [path.name]
        if suffix == ".pfm":  # listed, so that it is named and not passed over
            with pytest.raises(ValueError, match="image.PFM: an image of mode F"):
                load_image(path)
        else:
            assert load_image(path).size == (16, 16)
    else:
        with pytest.raises(ValueError, match="not an image, or none of JPEG, "):
            load_image(path)
        assert list_images(tmp_path).images == []


def test_no_path_leaves_the_root_and_the_users_own_links_do(tmp_path):
    (tmp_path / "outside.jpg").touch()
    root = tmp_path / "root"
    root.mkdir()
    (root / "a.jpg").touch()
    (root / "link.jpg").symlink_to("a.jpg")
    (root / "out.jpg").symlink_to(tmp_path / "outside.jpg")
    os.mkfifo(root / "pipe.jpg")
    assert file_inside(root, "link.jpg", follow_links=False) == (root / "a.jpg").resolve()
    assert file_inside(str(root), "absent.jpg") == root.resolve() / "absent.jpg"
    assert file_inside(root, "out.jpg") == (tmp_path / "outside.jpg").resolve()
    with pytest.raises(ValueError, match="is a link that leads out of"):
        file_inside(root, "out.jpg", follow_links=False)
    for path in ("../outside.jpg", str(tmp_path / "outside.jpg"), str(root / "a.jpg"), "b/../a.jpg"):
        with pytest.raises(ValueError, match="leads out of"):
            file_inside(root, path)
    with pytest.raises(ValueError, match="is no file"):
        file_inside(root, "pipe.jpg")


HEIC = """
import sys
from tpas.data.image_files import image_suffixes, load_file
from tpas.data.image_folders import list_images
from pathlib import Path

sys.modules |= dict.fromkeys(sys.argv[2:])  # None: as where it is not installed
content = list_images(Path(sys.argv[1]))
print(content.images, content.left_out.line(), [load_file(Path(sys.argv[1], i)).size for i in content.images])
"""


def found_in(folder, *missing: str) -> str:
    """What a fresh process finds there without these packages."""
    words = [sys.executable, "-c", HEIC, str(folder), *missing]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()


def test_without_its_decoder_a_heic_file_is_counted_with_the_way_out(tmp_path):
    (tmp_path / "a.HEIC").touch()
    assert found_in(tmp_path, "pillow_heif") == ("[] 1 file not taken: 1 .heic (pip install 'tpas[heic]') []")


def test_with_its_decoder_a_heic_file_is_an_image(tmp_path):
    heif = pytest.importorskip("pillow_heif")
    heif.from_pillow(Image.new("RGB", (64, 32), "red")).save(tmp_path / "a.heic")
    assert found_in(tmp_path) == "['a.heic']  [(64, 32)]"


def test_an_image_that_may_not_be_read_is_named_with_the_way_out(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    Image.new("RGB", (8, 8)).save(path)
    monkeypatch.setattr("os.open", Mock(side_effect=PermissionError(13, "Permission denied", str(path))))
    message = f"{path} may not be read by this user: its owner can allow it, by chmod -R a.rX {path}"
    with pytest.raises(PermissionError, match=message):
        load_inside(tmp_path, "a.png")
    with pytest.raises(PermissionError, match=f"attr.json, line 3: {message}"):
        open_image(tmp_path, "a.png", "attr.json, line 3")
