"""Opens a web page to search a gallery with texts, and to see why each image was found.

    tpas app --gallery gallery

As a Hugging Face Space (search_page/space/README.md) the variables TPAS_GALLERY, TPAS_MODEL and
TPAS_ANNOTATIONS say the same. It sends nothing anywhere: no analytics, no fonts or
scripts from elsewhere, and it fetches no address that a visitor gives. Other machines reach it with
`--host` and a password alone; docs/SECURITY.md says what is promised.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Option

from .command_line import CommandLine
from .model_choice import ModelChoice, warn_of_drawn_people

if TYPE_CHECKING:
    from ..search.gallery import Gallery

logger = logging.getLogger(__name__)

NEEDED = "the page needs the extra `app`: pip install -e '.[app]' ({})"
FIRST_IMAGES = 20  # of a gallery, looked for before the page opens

app = CommandLine("tpas app", __doc__)


@app.command()
def serve_page(
    gallery: Annotated[
        Path, Option(envvar="TPAS_GALLERY", help="the directory that `tpas gallery build` made")
    ],
    choice: ModelChoice,
    annotations: Annotated[
        list[Path] | None,
        Option(
            envvar="TPAS_ANNOTATIONS",
            help="to filter by: PAB's annotation files, metadata.jsonl or .csv, or a folder of such",
        ),
    ] = None,
    images_root: Annotated[
        Path | None, Option(help="the folder where the images lie now, if it was moved since the build")
    ] = None,
    follow_links: Annotated[
        bool, Option(help="show images that are links, also such as lead out of their folder")
    ] = True,
    shortlist: Annotated[int, Option(help="images re-ranked for each text", min=1)] = 128,
    host: Annotated[
        str | None, Option(help="the address to listen on; without it this machine only, in a Space all")
    ] = None,
    port: Annotated[
        int | None, Option(help="without it the first free one from 7860", min=1, max=65535)
    ] = None,
    password_file: Annotated[
        Path | None,
        Option(
            help="its first line is the password that visitors give, under any user name; or TPAS_PASSWORD. "
            "Other machines are not served without one, but in a Space"
        ),
    ] = None,
    allowed_host: Annotated[
        list[str] | None,
        Option(
            envvar="TPAS_ALLOWED_HOST", help="a name by which it is reached beside its own; repeat for more"
        ),
    ] = None,
    trusted_proxy: Annotated[
        list[str] | None,
        Option(
            envvar="TPAS_TRUSTED_PROXY",
            help="the address or network of a proxy before it, whose X-Forwarded-For says who visits; "
            "repeat for more",
        ),
    ] = None,
) -> None:
    try:
        from ..search_page.access import check_access
    except ImportError as error:
        raise ImportError(NEEDED.format(error)) from error
    access = {"allowed_hosts": allowed_host or [], "trusted_proxies": trusted_proxy or []}
    host, password = check_access(host, password_file, **access)

    from ..search.building import report_left_out
    from ..search.gallery import Gallery
    from ..search.gallery_files import GalleryFiles
    from ..search_page.labels import read_labels
    from ..search_page.requests import SearchRequests

    try:
        from ..search_page.serving import serve
    except ImportError as error:
        raise ImportError(NEEDED.format(error)) from error
    labels = read_labels(annotations) if annotations else None
    opened_as = {"images_root": images_root, "follow_links": follow_links}
    network, processor = choice.load(GalleryFiles(gallery))
    opened = Gallery.open(gallery, network, processor, **opened_as)
    if not len(opened):
        raise ValueError(f"the gallery {gallery} is empty: `tpas gallery append` images first")
    look_for_images(opened)
    warn_of_drawn_people(network, opened.root_of_images)
    report_left_out([], opened.stored)
    serve(SearchRequests(opened, labels, shortlist=shortlist), host, port, password=password, **access)


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
