"""What a command searches: a gallery, a folder of images, or films; told apart in one place."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.image_folders import FolderRules
from ..footage.rules import FootageRules
from .command_line import WrongUsage
from .model_choice import ModelChoice, warn_of_drawn_people

if TYPE_CHECKING:
    from ..models.interface import RetrievalModel, RetrievalProcessor
    from ..search.calibration import Calibration
    from ..search.gallery import Gallery
    from ..search.gallery_files import GalleryFiles

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SearchedPlace:
    """A folder or a film, and what it is. Until it is opened nothing is imported that takes long.

    Attributes:
        path: of it.
        rules: what of a folder is taken.
        footage: how films are looked through.
        images_root: where a gallery's images lie now.
        is_gallery, is_film: if neither, it is a folder of images.
    """

    path: Path
    rules: FolderRules
    footage: FootageRules
    images_root: Path | None
    is_gallery: bool
    is_film: bool

    @classmethod
    def of(
        cls,
        path: Path,
        rules: FolderRules | None = None,
        footage: FootageRules | None = None,
        images_root: Path | None = None,
    ) -> "SearchedPlace":
        """Raises NotADirectoryError where nothing is, WrongUsage for a flag of another kind of place."""
        from ..footage.sources import holds_films

        is_gallery = path.is_dir() and holds_gallery(path)
        if images_root is not None and not is_gallery:
            raise WrongUsage(f"--images_root is for a gallery, and {path} is a folder of images")
        rules, footage = rules or FolderRules(), footage or FootageRules()
        if rules.exclude and is_gallery:
            raise WrongUsage(
                f"--exclude is for a folder of images, and {path} is a gallery, built without it"
            )
        is_film = not is_gallery and holds_films(path)
        if not is_gallery and not is_film:
            holds_gallery(path)  # says so where there is no folder
        return cls(path, rules, footage, images_root, is_gallery, is_film)

    def files(self, choice: ModelChoice) -> "GalleryFiles | None":
        """Of the gallery that it is, or that there is of its images already."""
        from ..search.gallery_files import GalleryFiles

        return GalleryFiles(self.path) if self.is_gallery else choice.gallery_of(self.path)

    def has_moments(self, files: "GalleryFiles | None") -> bool:
        """Whether what is found was seen in films; `files` as of `files`."""
        return files.has_moments if self.is_gallery and files is not None else self.is_film

    def open(
        self,
        model: "RetrievalModel",
        processor: "RetrievalProcessor",
        learnt: "Calibration | None" = None,
        **opened_as: Any,
    ) -> "Gallery":
        """The gallery; of images or films it is kept beside them, and brought up to date first.

        Raises:
            ValueError: there is nothing in it.
        """
        if self.is_gallery:
            from ..search.gallery import Gallery

            opened_as |= {"images_root": self.images_root, "follow_links": self.rules.follow_links}
            gallery = Gallery.open(self.path, model, processor, calibration=learnt, **opened_as)
            warn_of_drawn_people(model, gallery.root_of_images)
        elif self.is_film:
            from ..footage.intake import open_footage

            warn_of_drawn_people(model, self.path)
            gallery = open_footage(self.path, model, processor, rules=self.footage, **opened_as)
        else:
            from ..search.folder_gallery import open_folder

            warn_of_drawn_people(model, self.path)
            opened_as |= {"rules": self.rules, "calibration": learnt}
            gallery = open_folder(self.path, model, processor, **opened_as)
        if not len(gallery):
            raise ValueError(f"the gallery {self.path} is empty: `tpas gallery append` images first")
        if learnt is not None and (warning := learnt.warning_of_size(len(gallery))):
            logger.warning("%s", warning)
        return gallery


def holds_gallery(folder: Path) -> bool:
    """Whether a folder is a gallery, and not one of images.

    One whose first build was killed has no manifest yet: it is to be named so, not searched for images.

    Raises:
        NotADirectoryError: there is no such folder.
    """
    from ..search.manifest import LOCK, MANIFEST, SHARDS

    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is no folder of images, no gallery and no film")
    return (folder / MANIFEST).exists() or ((folder / LOCK).exists() and (folder / SHARDS).is_dir())
