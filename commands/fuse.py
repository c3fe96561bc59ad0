"""Fuses the score files of several systems into one.

    tpas fuse a.npz b.npz --weights 0.7 0.3 --output fused.npz      weighted sum, z-normalised per query
    tpas fuse a.npz b.npz c.npz --rrf --output fused.npz            reciprocal rank fusion

The files are aligned by query and gallery id, never by position; other ids are refused. A file may be dense
or top-K lists; of a matrix that is filled up, say with -100, only what was scored counts. An image that one
file's list lacks is still a candidate if another file scores it. In the weighted sum it then counts with the
lowest score that the file gives the query; in reciprocal rank fusion that file adds nothing to it. For the
challenge choose files and weights on held-out data: it forbids any use of the test set's outputs for that.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from ..reranking.fusion import SystemScores, reciprocal_rank, weighted_sum
from ..reranking.ranked_lists import in_tie_order
from ..reranking.score_files import (
    ScoreFile,
    align,
    align_gallery,
    check_suffix,
    read_score_file,
    write_score_file,
)
from .command_line import CommandLine, CommandResult, WrongUsage, shown_warnings

app = CommandLine("tpas fuse", __doc__)


@app.command()
def fuse(
    scores: Annotated[list[Path], Argument(metavar="SCORES", help="two or more score files")],
    output: Annotated[Path, Option(help="a score file to write")],
    weights: Annotated[list[float] | None, Option(help="one for each file, >= 0")] = None,
    rrf: Annotated[bool, Option(help="reciprocal rank fusion, in place of weights")] = False,
    rrf_k: Annotated[int | None, Option(help="its constant, default 60")] = None,
    top_k: Annotated[
        int | None, Option(help="write lists of so many images (default: all that were scored)")
    ] = None,
) -> CommandResult:
    if (weights is None) != rrf:
        raise WrongUsage("give either --weights or --rrf")
    if rrf_k is not None and not rrf:
        raise WrongUsage("--rrf_k has no effect with --weights")
    if len(scores) < 2:
        raise WrongUsage("fusion needs two score files or more")
    check_suffix(output)
    files = [read_score_file(path) for path in scores]
    lines = []
    for path, content in zip(scores, files, strict=True):
        lines.append(f"{path}: {content.describe()}")
        if content.reranked:
            raise ValueError(f"{path}: first answers are resolved already: fuse first, resolve the result")
    names = list(map(str, scores))
    # Equal scores of a dense file are ranked by column, so columns must not follow names.
    files = align(files, names)
    in_order = in_tie_order(files[0].gallery_ids)
    files = [align_gallery(file, name, in_order, names[0]) for file, name in zip(files, names, strict=True)]
    first = files[0]
    systems = [SystemScores(content.scores, content.indices) for content in files]
    with shown_warnings("tpas fuse"):
        if weights is None:
            fused = reciprocal_rank(systems, constant=60 if rrf_k is None else rrf_k, top_k=top_k)
        else:
            fused = weighted_sum(systems, weights, top_k=top_k)
    content = ScoreFile(fused.scores, fused.indices, first.query_ids, first.gallery_ids)
    write_score_file(output, content)
    lines.append(f"{output}: {content.describe()}")
    written = {"output": str(output), "queries": len(first.query_ids), "images": len(first.gallery_ids)}
    return CommandResult(written, "\n".join(lines))


def main(argv: Sequence[str] | None = None) -> None:
    app.run(argv)


if __name__ == "__main__":
    main()
