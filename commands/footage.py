"""Finds the people in films, and keeps each visit in a gallery that `tpas search` searches.

    tpas footage build recordings --model demo_start --path gallery

`tpas search gallery "..." --camera cam1.mp4` answers with moments. A film or a folder of films can be
searched as it is, too: `tpas search camera.mp4 "..."`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from ..data.image_folders import printable
from ..footage.rules import FootageRules
from .command_line import CommandLine, CommandResult
from .model_choice import ModelChoice, warn_of_drawn_people
from .quick_imports import quick_imports

app = CommandLine("tpas footage", __doc__)

Directory = Annotated[Path, Option("--path", help="the gallery's directory")]
Existing = Annotated[Path, Argument(help="the gallery's directory")]
Camera = Annotated[
    str | None,
    Option(
        help="the camera's name, for a folder what its films' names begin with; otherwise the file's name"
    ),
]


@app.command()
def build(
    films: Annotated[str, Argument(help="a film, a folder of films, or one of images with times in names")],
    choice: ModelChoice,
    rules: FootageRules,
    path: Directory,
    camera: Camera = None,
) -> CommandResult:
    """Looks through films, and encodes the people found; goes on where it was stopped.

    tpas footage build recordings --model demo_start --path gallery
    """
    from ..footage.sources import find_films
    from ..search.gallery_files import GalleryFiles
    from ..search.manifest import MANIFEST

    sources = find_films(films, camera)
    files = GalleryFiles(path) if (path / MANIFEST).exists() else None
    choice.source(files)
    with quick_imports():
        from ..footage.intake import build_footage

    network, processor = choice.load(files)
    warn_of_drawn_people(network, Path(films))
    build_footage(sources, path, network, processor, rules)
    return listed(path)


@app.command("list")
def list_visits(path: Existing) -> CommandResult:
    """Says who was seen where, and when: every visit in a gallery, and what its films do not show.

    tpas footage list gallery --json
    """
    return listed(path)


def listed(path: Path) -> CommandResult:
    from ..data.moments import clock
    from ..footage.records import visits_of

    content = visits_of(path)
    lines = [
        f"{clock(visit['start_s'])} to {clock(visit['end_s'])} {printable(visit['camera'])}, {visit['track']}"
        for visit in content["visits"]
    ]
    for film in content["films"]:
        lines.append(f"{printable(film['camera'])}: {film['visits']} visits")
        lines += [
            f"  nothing from {clock(gap['start_s'])} to {clock(gap['end_s'])}: {gap['reason']}"
            for gap in film["gaps"]
        ]
    return CommandResult(content, "\n".join(lines))


def main(argv: Sequence[str] | None = None) -> None:
    app.run(argv)


if __name__ == "__main__":
    main()
