"""Settles collisions or hubs in a score file of any system.

    tpas rerank scores.npz --method margin-sca --output settled.npz
    tpas rerank scores.npz --method qb-norm --bank bank.npz --temperature 0.05 --output normed.npz

A score file (`score_files.py` says what it holds) is dense or top-K lists; what is written are lists, best
first. Methods that only choose another first answer leave each image its own score, and say so in the file.
Nearly all are transductive: they look at all queries together, so they fit a benchmark or a batch, not a
single live query; qb-norm fits both. Which one a method is, is printed.
"""

import argparse
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tpas.rerankers.hubness import DEFAULT_TEMPERATURE, csls, dual_softmax, sinkhorn
from tpas.rerankers.one_to_one import bounded_assignment, greedy_matching
from tpas.rerankers.querybank import QueryBank, qb_norm
from tpas.sca import sca_rerank
from tpas.score_files import (
    ScoreFile,
    align_gallery,
    by_digest,
    check_suffix,
    read_score_file,
    write_score_file,
)


@dataclass(frozen=True)
class Method:
    """A re-ranker as the command offers it.

    Attributes:
        rerank: called with indices, scores and the options given.
        options: the names of those that it reads, beside `top_k`.
        puts_first: whether it only chooses another first answer, so that equal claims need query ids, and
            scores no longer descend.
    """

    rerank: Callable[..., Any]
    options: tuple[str, ...]
    puts_first: bool = False


METHODS = {
    "sca": Method(sca_rerank, ("confidence", "max_shift", "tau", "temperature", "capacity"), True),
    "margin-sca": Method(
        partial(sca_rerank, confidence="margin"), ("max_shift", "tau", "capacity"), puts_first=True
    ),
    "single-pass": Method(
        partial(sca_rerank, mode="single_pass"), ("confidence", "tau", "temperature", "capacity"), True
    ),
    "assignment": Method(bounded_assignment, ("max_loss", "capacity"), puts_first=True),
    "greedy": Method(greedy_matching, ("capacity",), puts_first=True),
    "dual-softmax": Method(dual_softmax, ("temperature",)),
    "sinkhorn": Method(sinkhorn, ("temperature", "iterations", "capacity")),
    "csls": Method(csls, ("neighbours",)),
    "qb-norm": Method(qb_norm, ("bank", "temperature", "activation")),
}


def rerank_score_file(content: ScoreFile, method: str, options: dict[str, Any]) -> tuple[ScoreFile, Any]:
    """The lists in their new order, and the re-ranker's report.

    The result does not depend on the order of the images, nor, but for rounding, on that of the queries.

    Args:
        options: of the method; `bank` is the score file of the bank's captions.

    Raises:
        ValueError: a method or option that does not fit the content.
    """
    if content.settled:
        raise ValueError("the file's first answers are settled already: its scores no longer say the order")
    chosen = METHODS[method]
    content = align_gallery(content, "the file", by_digest(content.gallery_ids), "the file")
    if method == "qb-norm":
        options = _with_query_bank(options, content.gallery_ids)
    if chosen.puts_first:
        options = options | {"query_ids": content.query_ids}
    result = chosen.rerank(content.indices, content.scores, **options)
    settled = ScoreFile(
        scores=result.scores,
        indices=result.indices,
        query_ids=content.query_ids,
        gallery_ids=content.gallery_ids,
        moved=result.moved if chosen.puts_first else None,
    )
    return settled, result.report


def _with_query_bank(options: dict[str, Any], gallery_ids: tuple[str, ...]) -> dict[str, Any]:
    """The options of `qb_norm`, those of the bank summed up in it."""
    bank = align_gallery(options["bank"], "the bank", gallery_ids, "the file")
    if bank.indices is not None:
        raise ValueError("the bank must be dense: every image's score for every caption, without indices")
    summed = {name: options[name] for name in ("temperature", "activation") if name in options}
    rest = {name: value for name, value in options.items() if name not in summed}
    return rest | {"bank": QueryBank.from_scores(bank.scores, **summed)}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tpas rerank",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("scores", type=Path, metavar="SCORES", help="a score file, .npz or .safetensors")
    parser.add_argument("--method", choices=METHODS, required=True)
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="a score file to write")
    parser.add_argument(
        "--top_k", type=int, metavar="K", help="images kept for each query (default: all that are given)"
    )
    options = parser.add_argument_group("options of some methods")

    def add(name: str, about: str, **settings: Any) -> None:
        readers = ", ".join(method for method, chosen in METHODS.items() if name in chosen.options)
        options.add_argument(f"--{name}", help=f"{about} ({readers})", **settings)

    add("confidence", "default score", choices=("score", "softmax", "margin"))
    add("max_shift", "places a query may move down, default 1", type=int, metavar="N")
    add("tau", "both stay if their confidences are so close, default 0", type=float, metavar="T")
    add(
        "temperature",
        f"in units of the score, default {DEFAULT_TEMPERATURE}, of sinkhorn 0.01, which suits cosines; of the"
        " confidence softmax 1",
        type=float,
        metavar="T",
    )
    add("capacity", "queries that an image may answer, default 1", type=int, metavar="N")
    add("max_loss", "the most that a query's score may fall, default any", type=float, metavar="LOSS")
    add("iterations", "default 50", type=int, metavar="N")
    add("neighbours", "best scores in a mean, default 10", type=int, metavar="N")
    add("bank", "a dense score file of training captions, same gallery", type=Path, metavar="FILE")
    add("activation", "an image among a caption's best N is a hub, default 1", type=int, metavar="N")
    return parser


def options_of_method(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options that were given; raises ValueError for one that the method does not read."""
    method = arguments.method
    given = {
        name: value
        for name, value in vars(arguments).items()
        if name not in ("scores", "method", "output") and value is not None
    }
    for name in given:
        if name != "top_k" and name not in METHODS[method].options:
            raise ValueError(f"--{name} has no effect with --method {method}")
    if "temperature" in given and METHODS[method].puts_first and given.get("confidence") != "softmax":
        raise ValueError(f"--temperature has no effect with --method {method} without --confidence softmax")
    if method == "qb-norm" and "bank" not in given:
        raise ValueError("--method qb-norm needs --bank, the scores of training captions")
    return given


def main(argv: list[str] | None = None) -> None:
    parser = build_parser()
    arguments = parser.parse_args(argv)
    try:
        options = options_of_method(arguments)
        check_suffix(arguments.output)
        content = read_score_file(arguments.scores)
        print(f"{arguments.scores}: {content.describe()}")
        if "bank" in options:
            options["bank"] = read_score_file(options["bank"])
            print(f"{arguments.bank}: {options['bank'].describe()}")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            settled, report = rerank_score_file(content, arguments.method, options)
        for warning in caught:
            print(f"{parser.prog}: warning: {warning.message} (--capacity)", file=sys.stderr)
        write_score_file(arguments.output, settled)
    except (OSError, ValueError, TypeError) as error:
        raise SystemExit(f"{parser.prog}: {error}") from error
    print(f"{arguments.method}: {'' if report.transductive else 'not '}transductive", end="")
    print(", it looks at all queries together" if report.transductive else ", each query by itself")
    print(f"collisions  {report.collisions_before:>9,} -> {report.collisions_after:>9,} queries")
    print(f"coverage    {report.coverage_before:>9.2%} -> {report.coverage_after:>9.2%} of the queries")
    print(f"moved       {report.moved:>9,} queries")
    print(f"{arguments.output}: {settled.describe()}")


if __name__ == "__main__":
    main()
