"""Makes, lists and revokes the keys of those who may ask `tpas serve`.

    tpas serve key add desk --keys keys.json
    tpas serve key add gate --keys keys.json --gallery street
    tpas serve key revoke gate --keys keys.json

A key is said once; its file keeps a hash. A running server takes a new one, and refuses one that is revoked,
from the next request on.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from .command_line import CommandLine, CommandResult

app = CommandLine("tpas serve key", __doc__)

Name = Annotated[str, Argument(help="of who has the key, as logs say it")]
File = Annotated[Path, Option("--keys", envvar="TPAS_KEYS", help="the file of keys")]


@app.command()
def add(
    name: Name,
    keys: File,
    gallery: Annotated[
        list[str] | None, Option(help="the name of one that it opens, and no other; repeat for more")
    ] = None,
) -> CommandResult:
    """Makes a key and says it, once; makes the file if need be.

    tpas serve key add desk --keys keys.json
    """
    from ..service.keys import add_key

    key = add_key(keys, name, gallery)
    return CommandResult({"name": name, "key": key, "galleries": gallery}, key)


@app.command("list")
def list_keys(keys: File) -> CommandResult:
    """Who has a key, and to what.

    tpas serve key list --keys keys.json
    """
    from ..service.keys import read_keys

    known = [{"name": key.name, "made": key.made, "galleries": key.galleries} for key in read_keys(keys)]
    lines = [
        f"{each['name']:<20} {each['made']}  {', '.join(each['galleries'] or ['all galleries'])}"
        for each in known
    ]
    return CommandResult(known, "\n".join(lines) or "no keys")


@app.command()
def revoke(name: Name, keys: File) -> CommandResult:
    """Takes a key out: it opens nothing from then on.

    tpas serve key revoke gate --keys keys.json
    """
    from ..service.keys import revoke_key

    revoke_key(keys, name)
    return CommandResult({"revoked": name}, f"{name} is revoked")


def main(argv: Sequence[str] | None = None) -> None:
    app.run(argv)


if __name__ == "__main__":
    main()
