"""Opens a web page to search images with texts, and to see why each was found.

    tpas app photographs
    tpas app --gallery gallery
    tpas app recordings

A folder's images are encoded first, into the gallery beside it that `tpas search` keeps as well; what the
folder gets meanwhile is found once the page is started again. Films are looked through for people likewise,
and answer with moments and their clips. The model of a gallery need not be named, nor the one for
photographs, which is fetched after one question or by --yes.

As a Hugging Face Space (search_page/space/README.md) the variables TPAS_GALLERY, TPAS_MODEL and
TPAS_ANNOTATIONS say the same. It sends nothing anywhere: no analytics, no fonts or
scripts from elsewhere, and it fetches no address that a visitor gives. Other machines reach it with
`--host` and a password alone; docs/SECURITY.md says what is promised.
"""

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from ..data.image_folders import FolderRules
from ..data.whole_files import check_place
from ..footage.rules import FootageRules
from .command_line import CommandLine, WrongUsage
from .model_choice import ModelChoice
from .quick_imports import quick_imports
from .search import BlurFaces, calibration_of, check_faces, face_cover, fitting
from .searched_place import SearchedPlace

if TYPE_CHECKING:
    from ..search.gallery import Gallery
    from ..service.audit import AuditLog

logger = logging.getLogger(__name__)

NEEDED = "the page needs the extra `app`: pip install -e '.[app]' ({})"
FIRST_IMAGES = 20  # of a gallery, looked for before the page opens

app = CommandLine("tpas app", __doc__)

PasswordFile = Annotated[
    Path | None,
    Option(
        help="its first line is the password that visitors give, under any user name; or TPAS_PASSWORD. "
        "Other machines are not served without one, but in a Space"
    ),
]
# Flags of `tpas serve` as well.
Shortlist = Annotated[int, Option(help="images re-ranked for each text", min=1)]
Cascade = Annotated[
    bool,
    Option(
        help="re-rank in bfloat16 first, then in float32 what may still be among the best: those that a "
        "program asks for, or the first page"
    ),
]
Host = Annotated[
    str | None, Option(help="the address to listen on; without it this machine only, in a Space all")
]
Port = Annotated[int | None, Option(help="without it the first free one from 7860", min=1, max=65535)]
AllowedHost = Annotated[
    list[str] | None,
    Option(envvar="TPAS_ALLOWED_HOST", help="a name by which it is reached beside its own; repeat for more"),
]
TrustedProxy = Annotated[
    list[str] | None,
    Option(
        envvar="TPAS_TRUSTED_PROXY",
        help="the address or network of a proxy before it, whose X-Forwarded-For says who visits; "
        "repeat for more",
    ),
]
Audit = Annotated[
    Path | None,
    Option(help="put who searched for what and was shown what into this file, before it is shown"),
]


@app.command()
def serve_page(
    rules: FolderRules,
    footage: FootageRules,
    choice: ModelChoice,
    folder: Annotated[Path | None, Argument(help="images, films, or a gallery", show_default=False)] = None,
    gallery: Annotated[Path | None, Option(envvar="TPAS_GALLERY", help="the same, by a flag")] = None,
    annotations: Annotated[
        list[Path] | None,
        Option(
            envvar="TPAS_ANNOTATIONS",
            help="to filter by: PAB's annotation files, metadata.jsonl or .csv, or a folder of such",
        ),
    ] = None,
    images_root: Annotated[
        Path | None, Option(help="the folder where a gallery's images lie now, if it was moved")
    ] = None,
    blur_faces: BlurFaces = False,
    shortlist: Shortlist = 128,
    cascade: Cascade = False,
    host: Host = None,
    port: Port = None,
    password_file: PasswordFile = None,
    allowed_host: AllowedHost = None,
    trusted_proxy: TrustedProxy = None,
    audit: Audit = None,
) -> None:
    try:
        from ..search_page.access import check_access, serves_own_machine
    except ImportError as error:
        raise ImportError(NEEDED.format(error)) from error
    access = {"allowed_hosts": allowed_host or [], "trusted_proxies": trusted_proxy or []}
    host, password = check_access(host, password_file, **access)

    path = folder or gallery
    if path is None:
        raise WrongUsage("name a folder of images, or a gallery by --gallery")

    # What can be refused is, before torch is loaded.
    from ..search_page.labels import read_labels

    if audit is not None:
        check_place(audit)
    labels = read_labels(annotations) if annotations else None
    place = SearchedPlace.of(path, rules, footage, images_root)
    files = place.files(choice)
    check_faces(blur_faces, path, place.has_moments(files))
    learnt = None if place.is_film else calibration_of(choice.source(files), None, choice.model is not None)

    try:
        with quick_imports(page=True):
            from ..search_page.requests import Limits, SearchRequests
            from ..search_page.serving import serve
    except ImportError as error:
        raise ImportError(NEEDED.format(error)) from error
    network, processor = choice.load(files)
    opened = place.open(network, processor, fitting(learnt, network, processor))
    if place.is_gallery:
        look_at(opened)
    limits = Limits(own_machine=serves_own_machine(host, **access))
    faces = face_cover(opened) if blur_faces else None
    name = path.resolve().name
    with audit_log(audit) as log:
        shown = {"name": name, "faces": faces, "audit": log and log.write, "cascade": cascade}
        requests = SearchRequests(opened, labels, limits, shortlist, **shown)
        # Who opens the page writes a question first: by then it is warm.
        threading.Thread(target=requests.warm_up, name="warm-up").start()
        serve(requests, host, port, password=password, **access)


@contextmanager
def audit_log(file: Path | None) -> "Iterator[AuditLog | None]":
    """The audit log, where there is to be one; refuses a file that cannot be one."""
    from ..service.audit import AuditLog

    if file is None:
        yield None
        return
    log = AuditLog(file)
    try:
        yield log
    finally:
        log.close()


def look_at(gallery: "Gallery") -> None:
    """Says at the start what is not right with a gallery that is to be shown.

    Raises:
        FileNotFoundError: its images are gone, and it can rank nothing without them.
    """
    from ..search.building import report_left_out

    look_for_images(gallery)
    report_left_out([], gallery.stored)


def look_for_images(gallery: "Gallery") -> None:
    """Says at the start, and not at the first search, that a gallery's images were moved away.

    Raises:
        FileNotFoundError: it can rank nothing without them.
    """
    stored = gallery.stored
    records = map(stored.record, range(min(len(stored), FIRST_IMAGES)))
    files = [
        Path(gallery.images_root or each["root"] or "", each["path"]) for each in records if each["path"]
    ]
    if not files or any(file.exists() for file in files):
        return
    message = f"{files[0]} is gone, as others are: --images_root names the folder where they lie now"
    if stored.settings.tokens is None:
        raise FileNotFoundError(f"{message}; the gallery {gallery.path} keeps no tokens to do without")
    if stored.settings.thumbnail_size is None:
        logger.warning("%s; the gallery keeps no thumbnails to show instead", message)


def main(argv: Sequence[str] | None = None) -> None:
    app.run(argv)


if __name__ == "__main__":
    main()
