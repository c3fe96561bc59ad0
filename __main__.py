"""Text-based person anomaly search: a text in, the matching images out of a large gallery.

tpas search photographs "a woman in a red coat is lying on the pavement"
"""

from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from .commands.command_line import EXIT_CODES, CommandLine

# Each lies in commands/ under its name, and is imported when it is called or completed.
COMMANDS = {
    "demo": "draw a small PAB, fine-tune on it, evaluate, and write a page",
    "convert": "turn an X-VLM checkpoint into a model directory",
    "train": "fine-tune on PAB or own data; for several processes: `accelerate launch train_accelerate.py`",
    "evaluate": "measure retrieval on PAB or own data, or the scores of any system",
    "gallery": "encode images into a gallery; append to it, delete from it",
    "footage": "find the people in films, and keep each visit in a gallery",
    "calibrate": "learn what scores are worth: chances, and answers of a stated coverage",
    "search": "find the images of a gallery that answer a text",
    "app": "open a web page to search a gallery, and to see why an image was found",
    "compare": "test one evaluation against another, query by query",
    "report": "make one table of many evaluations, with mean and deviation over seeds",
    "submit": "write or check a challenge's answer file",
    "rerank": "resolve collisions or hubs in a score file of any system",
    "fuse": "fuse score files of several systems",
    "draw": "draw a small PAB",
    "push": "upload a model with its card to the Hugging Face Hub",
}
ELSEWHERE = {"train": "train_accelerate"}  # at the root, for `accelerate launch`


def app_of(command: str) -> CommandLine:
    """The `app` of a command's module, which is imported for it."""
    return import_module(f".{ELSEWHERE.get(command, f'commands.{command}')}", __package__).app


class LazyGroup(TyperGroup):
    """Knows its commands by name and line of help; loads the one that is called or completed."""

    def __init__(self, **settings: Any):
        super().__init__(**settings)
        self.commands = {name: TyperCommand(name, short_help=about) for name, about in COMMANDS.items()}

    def resolve_command(self, ctx: typer.Context, args: list[str]) -> tuple:
        name, command, rest = super().resolve_command(ctx, args)
        if name in COMMANDS:
            command = typer.main.get_command(app_of(name))
            if isinstance(command, TyperGroup) and not rest:
                rest = ["--help"]
        return name, command, rest


app = CommandLine("tpas", __doc__, cls=LazyGroup, add_completion=True, epilog=EXIT_CODES)


def show_version(wanted: bool) -> None:
    if wanted:
        print(f"tpas {version('tpas')}")
        raise typer.Exit


@app.callback()
def tpas(
    debug: Annotated[bool, typer.Option("--debug", help="show the trace of an error")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="show the version", callback=show_version, is_eager=True)
    ] = False,
) -> None:
    """The flags before the command; `--debug` is read where errors are reported."""


def main(argv: Sequence[str] | None = None) -> None:
    app.run(argv)


if __name__ == "__main__":
    main()
