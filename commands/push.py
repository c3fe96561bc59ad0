"""Uploads a model directory to the Hugging Face Hub, with a model card that says what was measured.

    tpas push MODEL_DIR user/name --results results.json --dry_run

The files of the model and the processor go up in one commit, by name, together with a card written from
`model_card.md`: what the model is, how it was trained, and what `tpas evaluate --output` measured stage by
stage; of a TPAS model also the code that `from_pretrained(..., trust_remote_code=True)` needs. Whatever
`--model` takes goes: CLIP, SigLIP, BLIP and others in their own library's format, and their adapters over a
model of the Hub. With `--dry_run` nothing is sent, and no network is needed.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from .command_line import CommandLine, CommandResult

app = CommandLine("tpas push", __doc__)


@app.command()
def push(
    directory: Annotated[Path, Argument(metavar="DIR", help="model with its processor")],
    repo_id: Annotated[str, Argument(metavar="REPO_ID", help="such as user/name")],
    private: Annotated[bool, Option(help="create the repository private")] = False,
    revision: Annotated[str | None, Option(help="upload to this branch, created if need be")] = None,
    results: Annotated[
        list[Path] | None, Option(help="what `tpas evaluate --output` wrote for this model")
    ] = None,
    training_arguments: Annotated[
        Path | None,
        Option(help="of the run that made it (default: the one that the run left beside its models)"),
    ] = None,
    licence: Annotated[
        str | None,
        Option(
            help="of the weights, by the Hub's word, such as apache-2.0 (default: a TPAS model's is that of "
            "its code, another's is 'other')"
        ),
    ] = None,
    dry_run: Annotated[bool, Option(help="list what would go, print the card, send nothing")] = False,
) -> CommandResult:
    from .hub_upload import prepare, push

    if not dry_run and os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "ON", "YES", "TRUE"):
        raise ValueError("HF_HUB_OFFLINE is set: unset it to upload, or add --dry_run")
    upload = prepare(directory, repo_id, results or [], training_arguments, licence)
    card = str(upload.card)
    sizes = {name: path.stat().st_size for name, path in upload.files.items()}
    sizes["README.md"] = len(card.encode())
    lines = [f"{size:>13,}  {name}" for name, size in sizes.items()]
    lines[-1] += ", the model card"
    lines += [f"{'stays here':>13}  {name}" for name in upload.left_behind]
    address = None if dry_run else push(upload, repo_id, private=private, revision=revision)
    lines.append(address or f"\n{card}")
    content = {"files": sizes, "left_behind": upload.left_behind, "card": card, "url": address}
    return CommandResult(content, "\n".join(lines))


def main(argv: Sequence[str] | None = None) -> None:
    app.run(argv)


if __name__ == "__main__":
    main()
