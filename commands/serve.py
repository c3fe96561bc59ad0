"""Serves galleries to programs and people: endpoints under /v1, and a page of each gallery.

    tpas serve gallery
    tpas serve street=recordings.gallery shop=/data/shop.gallery --keys keys.json --audit audit.jsonl

`tpas serve key add NAME --keys FILE` makes a key; without a file of keys only this machine is served.
Questions of several clients go through the model together. What is asked and shown goes into the audit log
before it is shown; `tpas audit verify` looks through it. SIGTERM ends it once what was accepted is answered.
Its log is JSON, and says what was searched for only by --log_texts. docs/service.md has the rest.
"""

import re
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from .app import (
    NEEDED,
    AllowedHost,
    Audit,
    Cascade,
    Host,
    Port,
    Shortlist,
    TrustedProxy,
    audit_log,
    look_at,
)
from .command_line import CommandLine, WrongUsage
from .model_choice import ModelChoice
from .quick_imports import quick_imports
from .search import BlurFaces, calibration_of, check_faces, face_cover, fitting
from .searched_place import SearchedPlace, holds_gallery

if TYPE_CHECKING:
    from ..search_page.requests import SearchRequests

app = CommandLine("tpas serve", __doc__)

Annotations = Annotated[
    list[str] | None,
    Option(help="to filter by, as of `tpas app`: FILE, or NAME=FILE where there are several galleries"),
]
ImagesRoot = Annotated[
    list[str] | None,
    Option(help="the folder where a gallery's images lie now, if it was moved: FOLDER or NAME=FOLDER"),
]
Certificate = Annotated[
    Path | None, Option(help="speak HTTPS by this certificate, a PEM file with those above it")
]
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@app.command()
def serve(
    choice: ModelChoice,
    galleries: Annotated[
        list[str],
        Argument(help="each a gallery, as its folder is called or as NAME=FOLDER", show_default=False),
    ],
    keys: Annotated[
        Path | None,
        Option(envvar="TPAS_KEYS", help="the file of keys; without it only this machine is served"),
    ] = None,
    annotations: Annotations = None,
    images_root: ImagesRoot = None,
    audit: Audit = None,
    blur_faces: BlurFaces = False,
    shortlist: Shortlist = 128,
    cascade: Cascade = False,
    host: Host = None,
    port: Port = None,
    tls_certificate: Certificate = None,
    tls_key: Annotated[Path | None, Option(help="and its key, a PEM file")] = None,
    allowed_host: AllowedHost = None,
    trusted_proxy: TrustedProxy = None,
    requests_a_minute: Annotated[int, Option(help="of one key", min=1)] = 600,
    texts_a_pass: Annotated[
        int,
        Option(help="of several clients that go through the model together; 1: each question alone", min=1),
    ] = 64,
    log_texts: Annotated[bool, Option(help="let the log say what was searched for")] = False,
) -> None:
    try:
        from ..search_page.access import check_names, check_tls, is_loopback, serves_own_machine
    except ImportError as error:
        raise ImportError(NEEDED.format(error)) from error
    from ..service.keys import Keys

    places = named_places(galleries)
    given = {
        "annotations": of_galleries(annotations, places, "annotations"),
        "images_root": of_galleries(images_root, places, "images_root"),
    }
    names = {"allowed_hosts": allowed_host or [], "trusted_proxies": trusted_proxy or []}
    host = check_names(host, **names)
    if keys is None and not is_loopback(host):
        raise ValueError(
            f"--host {host} lets other machines reach the galleries: give --keys FILE, which "
            "`tpas serve key add NAME --keys FILE` makes"
        )
    if (tls_certificate is None) != (tls_key is None):
        raise WrongUsage("--tls_certificate and --tls_key go together")
    tls = None if tls_certificate is None or tls_key is None else (tls_certificate, tls_key)
    if tls is not None:
        check_tls(*tls)
    known = None if keys is None else Keys(keys)

    try:
        with quick_imports(page=True):
            from ..search_page.requests import Limits
            from ..search_page.serving import behind_proxies, hosts_of, run
            from ..service.gate import Rules
            from ..service.logs import show_as_json
            from ..service.serving import Service
    except ImportError as error:
        raise ImportError(NEEDED.format(error)) from error

    own = known is None and serves_own_machine(host, **names)
    with audit_log(audit) as log:
        limits = Limits(own_machine=own)
        show_as_json()
        settings = {"limits": limits, "shortlist": shortlist, "cascade": cascade}
        served = opened(places, choice, blur_faces, given, audit=log and log.write, **settings)
        names_of_server = hosts_of(host, names["allowed_hosts"])
        rules = Rules(names_of_server, known, None if own else requests_a_minute, log_texts)
        service: list[Service] = []

        def build(folder: Path) -> Any:
            service.append(Service(served, rules, folder, texts_a_pass, log))
            return behind_proxies(service[0], names["trusted_proxies"])

        what = f"{sum(len(each.gallery) for each in served.values())} images of {', '.join(served)}"
        run(build, host, port, what, tls=tls, drain=lambda: service[0].gate.drain())


def named_places(galleries: Sequence[str]) -> dict[str, Path]:
    """Galleries by their names: of `NAME=FOLDER`, or as the folder is called.

    Raises:
        WrongUsage: two have one name, or one is no name.
        NotADirectoryError, ValueError: there is no such folder, or it is no gallery.
    """
    places: dict[str, Path] = {}
    for given in galleries:
        name, equals, folder = given.partition("=")
        place = Path(folder) if equals and NAME.fullmatch(name) else Path(given)
        name = name if equals and NAME.fullmatch(name) else place.resolve().name
        if not holds_gallery(place):
            raise ValueError(f"{place} is no gallery: `tpas gallery build` or `tpas footage build` makes one")
        if not NAME.fullmatch(name):
            raise WrongUsage(f"{place}: name it in letters, digits or . _ -, as in street={place}")
        if name in places:
            raise WrongUsage(f"two galleries are called {name}: name them, as in other={place}")
        places[name] = place
    return places


def of_galleries(given: Sequence[str] | None, names: Iterable[str], flag: str) -> dict[str, list[Path]]:
    """What was given for each gallery, as `NAME=FILE`; of one gallery alone as `FILE`.

    Raises:
        WrongUsage: it is not said which of several galleries is meant.
    """
    found: dict[str, list[Path]] = {name: [] for name in names}
    for each in given or []:
        name, equals, file = each.partition("=")
        if not equals or name not in found:
            if len(found) > 1:
                raise WrongUsage(f"--{flag} {each}: say of which gallery, as in {next(iter(found))}={each}")
            (name,), file = found, each
        found[name].append(Path(file))
    return found


def opened(
    places: Mapping[str, Path],
    choice: ModelChoice,
    blur_faces: bool,
    given: Mapping[str, Mapping[str, list[Path]]],
    **settings: Any,
) -> "dict[str, SearchRequests]":
    """The galleries, each with its model; those of one model share it.

    Args:
        given: annotations and the root of the images, by flag and gallery.
        settings: of `SearchRequests`.
    """
    from ..search.gallery_files import GalleryFiles
    from ..search_page.labels import read_labels

    labels = {name: read_labels(files) for name, files in given["annotations"].items()}
    files = {name: GalleryFiles(place) for name, place in places.items()}
    for each in files.values():
        check_faces(blur_faces, each.directory, each.has_moments)
    sources = {name: choice.source(each) for name, each in files.items()}
    fetch = choice.model is not None
    learnt = {source: calibration_of(source, None, fetch) for source in set(sources.values())}

    from ..search_page.requests import SearchRequests

    loaded: dict[Any, tuple] = {}
    served = {}
    for name, place in places.items():
        source = sources[name]
        if source not in loaded:
            network, processor = choice.load(files[name])
            loaded[source] = network, processor, fitting(learnt[source], network, processor), threading.Lock()
        *model, lock = loaded[source]
        root = next(reversed(given["images_root"][name]), None)
        gallery = SearchedPlace.of(place, images_root=root).open(*model)
        look_at(gallery)
        faces = face_cover(gallery) if blur_faces else None
        own = {"name": name, "labels": labels[name], "model": lock, "faces": faces}
        served[name] = SearchRequests(gallery, **own, **settings)
        served[name].warm_up()  # before anybody can ask
    return served


def main(argv: Sequence[str] | None = None) -> None:
    app.run(argv)


if __name__ == "__main__":
    main()
