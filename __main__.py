"""Text-based person anomaly search: a text in, the matching images out of a large gallery.

tpas search gallery "a woman in a red coat is lying on the pavement" --model demo_start
"""

from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from .commands.command_line import CommandLine

# Each module has an `app`; it is imported when its command is asked for.
COMMANDS = {
    "demo": ("commands.demo", "draw a small PAB, fine-tune on it, evaluate, and write a page"),
    "convert": ("commands.convert", "turn an X-VLM checkpoint into a model directory"),
    "train": (
        "train_accelerate",
        "fine-tune on PAB; for several processes: `accelerate launch train_accelerate.py`",
    ),
    "evaluate": ("commands.evaluate", "measure retrieval on PAB, stage by stage"),
    "gallery": ("commands.gallery", "encode images into a gallery; append to it, delete from it"),
    "search": ("commands.search", "find the images of a gallery that answer a text"),
    "app": ("commands.app", "open a web page to search a gallery, and to see why an image was found"),
    "compare": ("commands.compare", "test one evaluation against another, query by query"),
    "submit": ("commands.submit", "write or check a challenge's answer file"),
    "rerank": ("commands.rerank", "resolve collisions or hubs in a score file of any system"),
    "fuse": ("commands.fuse", "fuse score files of several systems"),
    "draw": ("commands.draw", "draw a small PAB"),
    "push": ("commands.push", "upload a model with its card to the Hugging Face Hub"),
}


class LazyGroup(TyperGroup):
    """Knows its commands by name and line of help; loads the one that is called or completed."""

    def __init__(self, **settings: Any):
        lines = [TyperCommand(name, short_help=about) for name, (_, about) in COMMANDS.items()]
        super().__init__(**settings | {"commands": lines})

    def resolve_command(self, ctx: typer.Context, args: list[str]) -> tuple:
        name, command, rest = super().resolve_command(ctx, args)
        if command is not None:
            module = import_module(f"tpas.{COMMANDS[name][0]}")
            command = typer.main.get_command(module.app)
            if isinstance(command, TyperGroup) and not rest:
                rest = ["--help"]
        return name, command, rest


app = CommandLine("tpas", __doc__, cls=LazyGroup, add_completion=True)


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
    """What stands before the command; `--debug` is read where errors are told."""


def main(argv: Sequence[str] | None = None) -> None:
    app.run(argv)


if __name__ == "__main__":
    main()
