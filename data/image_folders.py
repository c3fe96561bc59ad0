"""What a folder of images holds: which of its files are taken, and what is not, counted by reason.

The one rule of every command that walks a folder. Nothing heavy is imported for it, so that its settings can
be flags.
"""

import logging
import os
import re
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

logger = logging.getLogger(__name__)

# Hidden files, and what storage boxes, systems and archives leave beside images: thumbnails and rubbish.
DEFAULT_EXCLUDED = (
    *(".*", "@eaDir", "#recycle", "#snapshot", "$RECYCLE.BIN", "System Volume Information"),
    *("__MACOSX", "lost+found", "Thumbs.db", "desktop.ini"),
)
# By which a gallery is known (`tpas.search.manifest`): one may lie among the images.
GALLERY_FILES = ("gallery.json", "builder.lock")
GALLERY_SHARDS = "shards"

HEIF_SUFFIXES = (".heic", ".heics", ".heif", ".heifs", ".hif")
# How the errors of `tpas.processing_tpas.load_image` and `tpas.data.image_files` are counted; the rest is
# "unreadable".
REASONS = (
    ("may not be read", "not for this user to read"),
    ("pixels are more than", "too large"),
    ("exceeds limit", "too large"),
    ("no such image file", "gone, or a link to nowhere"),
    ("is no file", "no file"),
    ("not an image", "no image but by name"),
    ("an image of mode", "whose values are no colours"),
    ("broken image", "broken"),
)


@dataclass(frozen=True)
class FolderRules:
    """What of a folder is taken. Each field is a flag.

    Attributes:
        exclude: patterns of names, or of paths below the folder, that are left out beside `DEFAULT_EXCLUDED`;
            "!PATTERN" takes what it matches all the same. `None`: the defaults alone.
        follow_links: takes what links lead to, be it out of the folder.
    """

    exclude: list[str] | None = field(
        default=None,
        metadata={
            "help": "names, or paths below the folder, to leave out as well, such as night/* or *_mask.png; "
            f"'!PATTERN' takes one back of those always left out: {' '.join(DEFAULT_EXCLUDED)}"
        },
    )
    follow_links: bool = field(
        default=True,
        metadata={
            "help": "take what links in the folder lead to; otherwise no linked folder, and no file outside"
        },
    )

    def excludes(self, path: str) -> bool:
        """Whether a file or folder at this POSIX path below the root is left out; the last pattern wins."""
        name, excluded = path.rpartition("/")[2], False
        for pattern in (*DEFAULT_EXCLUDED, *(self.exclude or ())):
            wanted = pattern.removeprefix("!").rstrip("/")
            if fnmatchcase(name, wanted) or fnmatchcase(path, wanted):
                excluded = wanted == pattern.rstrip("/")
        return excluded


class LeftOut:
    """What a folder holds beside the images that are taken: counts by reason, with an example of each."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, str] = {}
        self.excluded: Counter[str] = Counter()

    def __bool__(self) -> bool:
        return bool(self.counts or self.excluded)

    def add(self, reason: str, path: str) -> None:
        self.counts[reason] += 1
        self.examples.setdefault(reason, path)

    def with_unreadable(self, unreadable: Mapping[str, str]) -> "LeftOut":
        """The same and images that could not be read: the error of each by its id."""
        both = LeftOut()
        both.counts, both.excluded = self.counts.copy(), self.excluded
        both.examples = dict(self.examples)
        for name, error in unreadable.items():
            both.add(next((reason for words, reason in REASONS if words in error), "unreadable"), name)
        return both

    def line(self) -> str:
        """All of it in one line; empty where there is nothing.

        >>> left_out = LeftOut()
        >>> left_out.add(".heic", "a.heic")
        >>> left_out.add("broken", "b.jpg")
        >>> left_out.line()
        "2 files not taken: 1 .heic (pip install 'tpas[heic]'), 1 broken (b.jpg)"
        """
        parts = []
        if total := self.counts.total():
            counted = ", ".join(map(self._counted, sorted(self.counts, key=lambda r: (-self.counts[r], r))))
            parts.append(f"{total:,} {'file' if total == 1 else 'files'} not taken: {counted}")
        if total := self.excluded.total():
            names = ", ".join(printable(name) for name, _ in self.excluded.most_common(5))
            more = ", ..." if len(self.excluded) > 5 else ""
            parts.append(f"{total:,} excluded ({names}{more})")
        return "; ".join(parts)

    def report(self, folder: object) -> None:
        """Logs the line, if there is something to say: a warning, unless all was to be excluded."""
        if self:
            level = logging.WARNING if self.counts else logging.INFO
            logger.log(level, "%s: %s", folder, self.line())

    def _counted(self, reason: str) -> str:
        detail = "pip install 'tpas[heic]'" if reason in HEIF_SUFFIXES else ""
        if not reason.startswith("."):
            detail = printable(self.examples[reason])
        count = self.counts[reason]
        words = re.sub(r"^(link|folder)\b", r"\1s", reason) if count > 1 else reason
        return f"{count:,} {words}" + (f" ({detail})" if detail else "")


@dataclass
class FolderContent:
    """The images below a folder, as sorted paths relative to it in POSIX form, and what was left out."""

    images: list[str]
    left_out: LeftOut


def list_images(folder: Path, rules: FolderRules | None = None) -> FolderContent:
    """Every image below a folder, by its suffix; a folder that links lead to more than once is taken once.

    Nothing is opened. Of a gallery that lies there, its own files are passed over.

    Args:
        rules: `None`: the defaults.
    """
    from .image_files import image_suffixes  # which imports the decoder

    rules, suffixes = rules or FolderRules(), image_suffixes()
    root = os.path.realpath(folder)
    images: list[str] = []
    left_out = LeftOut()
    seen: set[str] = set()
    # Links last: a folder that lies below the root itself is taken under its own name.
    folders, links = deque([""]), deque[str]()
    while folders or links:
        path = folders.popleft() if folders else links.popleft()
        place = os.path.realpath(os.path.join(root, path))
        if place in seen:
            left_out.add("link to a folder taken already", path)
            continue
        seen.add(place)
        try:
            with os.scandir(os.path.join(root, path)) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            denied = isinstance(error, PermissionError)
            left_out.add("folder not for this user to read" if denied else "unreadable folder", path or ".")
            continue
        of_a_gallery = any(entry.name in GALLERY_FILES for entry in found)
        for entry in found:
            name = f"{path}/{entry.name}" if path else entry.name
            if rules.excludes(name):
                left_out.excluded[entry.name] += 1
            elif _is_folder(entry):
                if of_a_gallery and entry.name == GALLERY_SHARDS:
                    continue
                if not entry.is_symlink():
                    folders.append(name)
                elif not rules.follow_links:
                    left_out.add("link not followed", name)
                elif _is_within(place, os.path.realpath(entry.path)):
                    left_out.add("link leading back", name)
                else:
                    links.append(name)
            elif (suffix := PurePosixPath(name).suffix.lower()) not in suffixes:
                if not of_a_gallery:
                    left_out.add(suffix if re.fullmatch(r"\.\w{1,8}", suffix) else "of no suffix", name)
            elif not _is_unicode(name):
                left_out.add("whose name is not UTF-8", name)
            elif (
                not rules.follow_links
                and entry.is_symlink()
                and not _is_within(os.path.realpath(entry.path), root)
            ):
                left_out.add("link not followed", name)
            else:
                images.append(name)
    return FolderContent(sorted(images), left_out)


def no_images(folder: Path, left_out: LeftOut, suffixes: Iterable[str]) -> str:
    """What to say of a folder in which no image is taken."""
    why = f"; {left_out.line()}" if left_out else ""
    return f"{folder} holds no images ({', '.join(sorted(suffixes))}){why}"


def _is_folder(entry: os.DirEntry[str]) -> bool:
    # Of a link in a circle the entry's own `is_dir` raises; of all others it need not ask the disk.
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


def _is_within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def _is_unicode(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def printable(name: str) -> str:
    """The name on one line, and with nothing in it that a terminal would obey."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in name)
