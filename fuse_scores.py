"""Fuses the score files of several systems into one.

    tpas fuse a.npz b.npz --weights 0.7 0.3 --output fused.npz      weighted sum, z-normalised per query
    tpas fuse a.npz b.npz c.npz --rrf --output fused.npz            reciprocal rank fusion

The files are aligned by query and gallery id, never by position; other ids are refused. A file may be dense
or top-K lists. An image that one file's list lacks is still a candidate if another file scores it. In the
weighted sum it then counts with the lowest score that the file gives the query; in reciprocal rank fusion
that file adds nothing to it.
"""

import argparse
from pathlib import Path

from tpas.fusion import SystemScores, reciprocal_rank, weighted_sum
from tpas.score_files import (
    ScoreFile,
    align,
    align_gallery,
    by_digest,
    check_suffix,
    read_score_file,
    write_score_file,
)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="tpas fuse",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("scores", type=Path, nargs="+", metavar="SCORES", help="two or more score files")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="a score file to write")
    rule = parser.add_mutually_exclusive_group(required=True)
    rule.add_argument("--weights", type=float, nargs="+", metavar="W", help="one for each file, >= 0")
    rule.add_argument("--rrf", action="store_true", help="reciprocal rank fusion")
    parser.add_argument("--rrf_k", type=int, metavar="K", help="its constant, default 60")
    parser.add_argument(
        "--top_k", type=int, metavar="K", help="write lists of so many images (default: all that were scored)"
    )
    arguments = parser.parse_args(argv)
    try:
        if len(arguments.scores) < 2:
            raise ValueError("fusion needs two score files or more")
        if arguments.rrf_k is not None and not arguments.rrf:
            raise ValueError("--rrf_k has no effect with --weights")
        check_suffix(arguments.output)
        files = [read_score_file(path) for path in arguments.scores]
        for path, content in zip(arguments.scores, files, strict=True):
            print(f"{path}: {content.describe()}")
            if content.settled:
                raise ValueError(f"{path}: first answers are settled already: fuse first, settle the result")
        names = list(map(str, arguments.scores))
        # Equal scores of a dense file are ranked by column, so columns must not follow names.
        first = align_gallery(files[0], names[0], by_digest(files[0].gallery_ids), names[0])
        files = align([first, *files[1:]], names)
        systems = [SystemScores(content.scores, content.indices) for content in files]
        if arguments.rrf:
            constant = 60 if arguments.rrf_k is None else arguments.rrf_k
            fused = reciprocal_rank(systems, constant=constant, top_k=arguments.top_k)
        else:
            fused = weighted_sum(systems, arguments.weights, top_k=arguments.top_k)
        content = ScoreFile(fused.scores, fused.indices, first.query_ids, first.gallery_ids)
        write_score_file(arguments.output, content)
    except (OSError, ValueError, TypeError) as error:
        raise SystemExit(f"{parser.prog}: {error}") from error
    print(f"{arguments.output}: {content.describe()}")


if __name__ == "__main__":
    main()
