"""Looks through the log that `tpas serve --audit FILE` and `tpas app --audit FILE` write.

    tpas audit verify audit.jsonl

Each line is bound to the one before it. The hash that it prints is that of the last line: noted elsewhere, as
in another's mailbox, `--head HASH` shows later that no line up to there was cut off or written anew.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from .command_line import CHECK_FAILED, DONE, CommandLine, CommandResult, WrongUsage

app = CommandLine("tpas audit", __doc__)


@app.callback()
def audit() -> None:
    """Has one command, which is named."""


@app.command()
def verify(
    file: Annotated[Path, Argument(help="the log")],
    head: Annotated[
        str | None, Option(help="the hash of what was the last line once: it has to be there still")
    ] = None,
) -> CommandResult:
    """Names the first line that was changed, taken out or put in.

    tpas audit verify audit.jsonl
    """
    from dataclasses import asdict

    from ..service.audit import is_hash
    from ..service.audit import verify as verified

    if head is not None and not is_hash(head):
        raise WrongUsage(f"--head takes a hash of 64 digits, as `tpas audit verify` prints it, got {head!r}")

    seen = verified(file, head)
    lines = f"{seen.lines} line{'' if seen.lines == 1 else 's'}"
    if seen.problem is not None:
        said = f"{file}: {seen.problem}; the {lines} before are as they were written"
        return CommandResult(asdict(seen), said, CHECK_FAILED)
    ended = "" if seen.is_closed else "\nNo server ended it: one runs, was killed, or lines were cut off."
    said = f"{file}: {lines}, as they were written; the last has the hash\n{seen.head}{ended}"
    return CommandResult(asdict(seen), said, DONE)


def main(argv: Sequence[str] | None = None) -> None:
    app.run(argv)


if __name__ == "__main__":
    main()
