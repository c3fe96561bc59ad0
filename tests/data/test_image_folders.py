"""Which of a folder's files are taken, and that all others are counted by reason."""

import os

import pytest

from tpas.data.image_folders import FolderRules, LeftOut, list_images


def make(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    return root


def test_what_is_no_image_is_counted_by_reason_in_one_line(tmp_path):
    make(tmp_path, "b.JPG", "camera 1/a.avif", "1.heic", "2.HEIC", "notes.txt", "README", "camera 1/x.tar.gz")
    os.symlink(tmp_path / "nowhere", tmp_path / "lost.txt")
    content = list_images(tmp_path)
    assert content.images == ["b.JPG", "camera 1/a.avif"]
    assert content.left_out.line() == (
        "6 files not taken: 2 .heic (pip install 'tpas[heic]'), 2 .txt, 1 .gz, 1 of no suffix (README)"
    )
    assert list_images(tmp_path / "camera 1" / "absent").images == []


def test_hidden_files_and_rubbish_are_excluded_and_said(tmp_path):
    rubbish = ["@eaDir/a.jpg", ".trash/a.jpg", "#recycle/a.jpg", "__MACOSX/a.jpg", "lost+found/a.jpg"]
    make(tmp_path, "a.jpg", "deep/.b.jpg", "night/a.jpg", "day/night/c.jpg", "a_mask.png", "b.txt", *rubbish)
    names = "#recycle, .trash, @eaDir, __MACOSX, lost+found, ..."
    content = list_images(tmp_path)
    assert content.images == ["a.jpg", "a_mask.png", "day/night/c.jpg", "night/a.jpg"]
    assert content.left_out.line() == f"1 file not taken: 1 .txt; 6 excluded ({names})"

    def taken(*patterns):
        return list_images(tmp_path, FolderRules(list(patterns))).images

    assert taken("*_mask.png", "night/") == ["a.jpg"]  # a name, wherever it is
    assert taken("night/*", "*_mask.*") == ["a.jpg", "day/night/c.jpg"]  # a path from the root on
    assert taken("*", "!a.jpg") == ["a.jpg"]
    assert taken("!.*", "!@eaDir", "night") == [
        *(".trash/a.jpg", "@eaDir/a.jpg", "a.jpg", "a_mask.png", "deep/.b.jpg")
    ]


def test_links_are_followed_everywhere_but_round_and_round(tmp_path):
    """A Hub snapshot, whose files are links out of it, and the folder of a camera on another disk."""
    make(tmp_path, "blobs/1f", "disk/camera/b.jpg", "disk/camera/more/c.jpg")
    root = make(tmp_path / "snapshots" / "rev" / "test", "own/d.png")
    (root / "a.jpg").symlink_to("../../../blobs/1f")
    (root / "camera").symlink_to(tmp_path / "disk" / "camera")
    (root / "again").symlink_to("own")
    (root / "own" / "up").symlink_to("..")
    (root / "own" / "e.png").symlink_to("d.png")
    (tmp_path / "disk" / "camera" / "round").symlink_to(root)
    content = list_images(root)
    assert content.images == ["a.jpg", "camera/b.jpg", "camera/more/c.jpg", "own/d.png", "own/e.png"]
    assert content.left_out.line() == (
        "3 files not taken: 2 links to a folder taken already (again), 1 link leading back (own/up)"
    )
    content = list_images(root, FolderRules(follow_links=False))
    assert content.images == ["own/d.png", "own/e.png"]
    assert content.left_out.line() == "4 files not taken: 4 links not followed (a.jpg)"
    (tmp_path / "link").symlink_to(root)  # that it is named is enough
    assert list_images(tmp_path / "link", FolderRules(follow_links=False)).images == content.images


def test_the_files_of_a_gallery_are_no_rubbish(tmp_path):
    own = ["gallery.json", "builder.lock", "faiss.index", "shards/000000-0123456789abcdef/thumbnails.zip"]
    make(tmp_path, *own, "a.jpg", "shards.txt", *(f"images.gallery/prints/{name}" for name in own))
    content = list_images(tmp_path)
    assert (content.images, bool(content.left_out)) == (["a.jpg"], False)


def test_a_folder_that_may_not_be_read_and_a_name_of_no_encoding_are_counted(tmp_path, monkeypatch):
    make(tmp_path, "a.jpg", "closed/b.jpg")
    os.close(os.open(os.fsencode(tmp_path) + b"/\xff.jpg", os.O_CREAT))
    scan = os.scandir

    def refusing(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", refusing)
    content = list_images(tmp_path)
    assert content.images == ["a.jpg"]
    assert content.left_out.line() == (
        "2 files not taken: 1 folder not for this user to read (closed), "
        "1 whose name is not UTF-8 (\\udcff.jpg)"
    )


def test_excluded_alone_is_no_warning(tmp_path, caplog):
    make(tmp_path, "a.jpg", ".DS_Store")
    with caplog.at_level("WARNING"):
        list_images(tmp_path).left_out.report(tmp_path)
        assert not caplog.records
        make(tmp_path, "b.txt")
        list_images(tmp_path).left_out.report(tmp_path)
    assert caplog.messages == [f"{tmp_path}: 1 file not taken: 1 .txt; 1 excluded (.DS_Store)"]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        ("a.jpg: 50x50 pixels are more than 2000", "too large"),
        ("a.jpg: Image size (9 pixels) exceeds limit of 8 pixels, could be decompression bomb", "too large"),
        ("a.jpg may not be read by this user: its owner", "not for this user to read"),
        ("something new", "unreadable"),
    ],
)
def test_an_unreadable_image_is_counted_by_its_error(error, reason):
    assert LeftOut().with_unreadable({"a.jpg": error}).line() == f"1 file not taken: 1 {reason} (a.jpg)"
