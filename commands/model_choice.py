"""Which model a command on galleries works with: what its flags name, or what made the gallery."""

import logging
import os
import sys
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from ..models.photographs import FOR_PHOTOGRAPHS
from ..search.arguments import BASE_MODEL_HELP
from .command_line import WrongUsage

if TYPE_CHECKING:
    from ..models.interface import RetrievalModel, RetrievalProcessor
    from ..models.model_source import ModelSource
    from ..search.gallery_files import GalleryFiles

logger = logging.getLogger(__name__)

DEMO_START_FILE = "pretraining_arguments.json"  # beside what `tpas.commands.pretrain_start` made
OTHERS = "give --model or set TPAS_MODEL (demo_start: drawn people; others are in docs/models.md)"


@dataclass(frozen=True)
class ModelChoice:
    """The model. Each field is a flag."""

    model: str | None = field(
        default=None,
        metadata={
            "envvar": "TPAS_MODEL",
            "help": "a model or adapter: its folder, or its name on the Hub; of a gallery without it the one "
            f"that made it, of photographs {FOR_PHOTOGRAPHS}",
        },
    )
    revision: str | None = field(default=None, metadata={"help": "commit of the model's Hub repository"})
    base_model: str | None = field(default=None, metadata={"help": BASE_MODEL_HELP})
    trust_remote_code: bool = field(
        default=False,
        metadata={"help": "run the code that comes with the --model, from the Hub at a --revision"},
    )
    yes: bool = field(
        default=False, metadata={"help": "without --model: fetch the one for photographs, and do not ask"}
    )

    def gallery_of(self, folder: Path) -> "GalleryFiles | None":
        """The gallery that a folder of images has already, whose model is meant where no flag names one.

        Raises:
            WrongUsage: there are such of several models, and none is that for photographs.
        """
        from ..search.gallery_files import galleries_of_folder

        if self.model is not None:
            return None
        found = {each.model_source: each for each in galleries_of_folder(folder)}
        if len(found) == 1:
            return next(iter(found.values()))
        for source, gallery in found.items():
            if source is not None and source.name == FOR_PHOTOGRAPHS.name:
                return gallery
        if found:
            names = " or ".join(flags_of(source) for source in found if source is not None)
            raise WrongUsage(f"{folder} was searched by several models: {names}")
        return None

    def source(self, gallery: "GalleryFiles | None" = None) -> "ModelSource":
        """What is to be loaded; known before torch is.

        Without a model's name, here or by the gallery, that is the one for photographs, which the user agrees
        to have fetched.

        Raises:
            WrongUsage: the gallery names no model; or the user does not agree; or a flag is of a model that
                is not named.
            OSError: the one for photographs cannot be had.
        """
        from ..models.model_source import ModelSource

        if self.model is not None:
            return ModelSource(self.model, self.revision, self.base_model)
        for flag, given in (("--revision", self.revision), ("--trust_remote_code", self.trust_remote_code)):
            if given:
                raise WrongUsage(f"{flag} is of a --model, which was not given")
        if gallery is None:
            return self._for_photographs
        if gallery.model_source is None:
            raise WrongUsage(
                f"the gallery {gallery.directory} does not say which model made it: give --model or set "
                f"TPAS_MODEL, the one with the fingerprint {gallery.settings.model_fingerprint}"
            )
        own = gallery.model_source
        return own if self.base_model is None else replace(own, base_model=self.base_model)

    @cached_property
    def _for_photographs(self) -> "ModelSource":
        """The model for photographs, once it is here or the user has agreed to fetch it."""
        from huggingface_hub import constants

        from ..models.hub_repositories import check_hub
        from ..models.model_source import ModelSource

        name, what = FOR_PHOTOGRAPHS.name, f"{FOR_PHOTOGRAPHS} from the Hub"
        if FOR_PHOTOGRAPHS.is_here:
            logger.info("no --model was given: %s, which is for photographs", name)
            return ModelSource(name)
        if not self.yes and not constants.HF_HUB_OFFLINE:
            if "RANK" in os.environ or not (sys.stdin.isatty() and sys.stderr.isatty()):
                raise WrongUsage(
                    f"no --model was given: add --yes to fetch {what}, for photographs; or {OTHERS}"
                )
            if not typer.confirm(f"No --model was given. Fetch {what}, for photographs?", err=True):
                raise WrongUsage(f"no model, then: {OTHERS}")
        try:
            check_hub(name, files=FOR_PHOTOGRAPHS.files[-1:])
        except OSError as error:
            raise OSError(f"no --model was given, and for photographs {error}") from error
        return ModelSource(name)

    def load(self, gallery: "GalleryFiles | None" = None) -> "tuple[RetrievalModel, RetrievalProcessor]":
        """The model in fp32 and its processor.

        One that only the gallery names is loaded without its code and not fetched: anybody may have made it.

        Raises:
            ValueError, OSError: see `load_model`; of a gallery's model with the way out.
        """
        from transformers.utils.logging import disable_progress_bar

        from ..models.loading import is_on_this_machine, load_model

        if not sys.stderr.isatty():
            disable_progress_bar()  # of each weight, in somebody's log
        source = self.source(gallery)
        load = partial(load_model, source.name, revision=source.revision, base_model=source.base_model)
        if self.model is not None or gallery is None:
            return load(trust_remote_code=self.trust_remote_code)
        if not is_on_this_machine(source):
            raise ValueError(
                f"the gallery {gallery.directory} was made by {source}, which is not on this machine: "
                f"{flags_of(source)} fetches it"
            )
        logger.info("the gallery %s was made by %s, which is loaded", gallery.directory, source)
        try:
            return load()
        except (OSError, ValueError) as error:
            raise ValueError(
                f"the gallery {gallery.directory} was made by {source}, which cannot be loaded: {error}; "
                "--model says where it is now"
            ) from error


def flags_of(source: "ModelSource") -> str:
    return f"--model {source.name}" + ("" if source.revision is None else f" --revision {source.revision}")


def warn_of_drawn_people(model: "RetrievalModel", images: Path | None) -> None:
    """Says that the demo's model knows drawn people only, where the folder of images is none that we drew."""
    from ..data.drawn import is_drawn
    from ..models.loading import source_of

    source = source_of(model)
    if images is None or source is None or not (Path(source.name) / DEMO_START_FILE).is_file():
        return
    here = images.absolute()
    if not any(is_drawn(folder) for folder in (here, *here.parents)):
        logger.warning(
            "%s knows drawn people only: what it finds among photographs is chance; for these give "
            "--model %s, or another of docs/models.md",
            source.name,
            FOR_PHOTOGRAPHS.name,
        )
