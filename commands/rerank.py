"""Resolves collisions or hubs in a score file of any system.

    tpas rerank scores.npz --method margin-sca --output reranked.npz
    tpas rerank scores.npz --method qb-norm --bank bank.npz --temperature 0.05 --output normed.npz

A score file (`score_files.py` says what it holds) is dense or top-K lists; what is written are lists, best
first. Methods that only choose another first answer leave each image its own score, and say so in the file.
Nearly all are transductive: they look at all queries together, so they fit a benchmark or a batch, not a
single live query; qb-norm fits both. Which one a method is, is printed. For the challenge choose method and
numbers on held-out data: it forbids any use of the test set's outputs for that.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from typer import Argument, Option

from ..reranking.hubness import DEFAULT_TEMPERATURE, csls, dual_softmax, sinkhorn
from ..reranking.one_to_one import bounded_assignment, greedy_matching
from ..reranking.querybank import QueryBank, qb_norm
from ..reranking.ranked_lists import in_tie_order
from ..reranking.score_files import (
    ScoreFile,
    align_gallery,
    check_suffix,
    read_score_file,
    write_score_file,
)
from ..sca import Confidence, sca_rerank
from .command_line import CommandLine, CommandResult, WrongUsage, shown_warnings

app = CommandLine("tpas rerank", __doc__)


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


MethodName = Literal[
    "sca", "margin-sca", "single-pass", "assignment", "greedy", "dual-softmax", "sinkhorn", "csls", "qb-norm"
]
METHODS: dict[MethodName, Method] = {
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


def rerank_score_file(
    content: ScoreFile, method: MethodName, options: dict[str, Any]
) -> tuple[ScoreFile, Any]:
    """The lists in their new order, and the re-ranker's report.

    The result does not depend on the order of the images, nor, but for rounding, on that of the queries.

    Args:
        options: of the method; `bank` is the score file of the bank's captions.

    Raises:
        ValueError: a method or option that does not fit the content.
    """
    if content.reranked:
        raise ValueError("the file's first answers are resolved already: its scores no longer say the order")
    chosen = METHODS[method]
    content = align_gallery(content, "the file", in_tie_order(content.gallery_ids), "the file")
    if method == "qb-norm":
        options = _with_query_bank(options, content.gallery_ids)
    if chosen.puts_first:
        options = options | {"query_ids": content.query_ids}
    result = chosen.rerank(content.indices, content.scores, **options)
    reranked = ScoreFile(
        scores=result.scores,
        indices=result.indices,
        query_ids=content.query_ids,
        gallery_ids=content.gallery_ids,
        moved=result.moved if chosen.puts_first else None,
    )
    return reranked, result.report


def _with_query_bank(options: dict[str, Any], gallery_ids: tuple[str, ...]) -> dict[str, Any]:
    """The options of `qb_norm`, those of the bank summed up in it."""
    bank = align_gallery(options["bank"], "the bank", gallery_ids, "the file")
    if bank.indices is not None:
        raise ValueError("the bank must be dense: every image's score for every caption, without indices")
    summed = {name: options[name] for name in ("temperature", "activation") if name in options}
    rest = {name: value for name, value in options.items() if name not in summed}
    return rest | {"bank": QueryBank.from_scores(bank.scores, **summed)}


def _of_methods(about: str, name: str) -> Any:
    """An option that the methods which read `name` have, and no other."""
    readers = ", ".join(method for method, chosen in METHODS.items() if name in chosen.options)
    return field(default=None, metadata={"help": f"{about} ({readers})"})


@dataclass
class MethodOptions:
    """Each `None`: the method's own default."""

    confidence: Confidence | None = _of_methods("default score", "confidence")
    max_shift: int | None = _of_methods("places a query may move down, default 1", "max_shift")
    tau: float | None = _of_methods("both stay if their confidences are so close, default 0", "tau")
    temperature: float | None = _of_methods(
        f"in units of the score, default {DEFAULT_TEMPERATURE}, of sinkhorn 0.01, which suits cosines; of "
        "the confidence softmax 1",
        "temperature",
    )
    capacity: int | None = _of_methods("queries that an image may answer, default 1", "capacity")
    max_loss: float | None = _of_methods("the most that a query's score may fall, default any", "max_loss")
    iterations: int | None = _of_methods("default 50", "iterations")
    neighbours: int | None = _of_methods("best scores in a mean, default 10", "neighbours")
    bank: Path | None = _of_methods("a dense score file of training captions, same gallery", "bank")
    activation: int | None = _of_methods(
        "an image among a caption's best N is a hub, default 1", "activation"
    )

    def given(self, method: MethodName) -> dict[str, Any]:
        """Those that are not None; raises WrongUsage for one that the method does not read, or lacks."""
        given = {name: value for name, value in vars(self).items() if value is not None}
        for name in given:
            if name not in METHODS[method].options:
                raise WrongUsage(f"--{name} has no effect with --method {method}")
        if "temperature" in given and METHODS[method].puts_first and given.get("confidence") != "softmax":
            raise WrongUsage(
                f"--temperature has no effect with --method {method} without --confidence softmax"
            )
        if method == "qb-norm" and "bank" not in given:
            raise WrongUsage("--method qb-norm needs --bank, the scores of training captions")
        return given


@app.command()
def rerank(
    scores: Annotated[Path, Argument(metavar="SCORES", help="a score file, .npz or .safetensors")],
    method: Annotated[MethodName, Option()],
    output: Annotated[Path, Option(help="a score file to write")],
    options: MethodOptions,
    top_k: Annotated[
        int | None, Option(help="images kept for each query (default: all that are given)")
    ] = None,
) -> CommandResult:
    given = options.given(method) | ({} if top_k is None else {"top_k": top_k})
    check_suffix(output)
    content = read_score_file(scores)
    lines = [f"{scores}: {content.describe()}"]
    if options.bank is not None:
        given["bank"] = read_score_file(options.bank)
        lines.append(f"{options.bank}: {given['bank'].describe()}")
    with shown_warnings("tpas rerank", capacity="--capacity"):
        try:
            reranked, report = rerank_score_file(content, method, given)
        except ValueError as error:
            raise ValueError(f"{scores}: {str(error).replace('pass top_k=', 'pass --top_k ')}") from error
    write_score_file(output, reranked)
    of_all = "it looks at all queries together" if report.transductive else "each query by itself"
    lines += [
        f"{method}: {'' if report.transductive else 'not '}transductive, {of_all}",
        f"collisions  {report.collisions_before:>9,} -> {report.collisions_after:>9,} queries",
        f"coverage    {report.coverage_before:>9.2%} -> {report.coverage_after:>9.2%} of the queries",
        f"moved       {report.moved:>9,} queries",
        f"{output}: {reranked.describe()}",
    ]
    written = {"output": str(output), "method": method, "transductive": report.transductive}
    return CommandResult(written | asdict(report), "\n".join(lines))


def main(argv: Sequence[str] | None = None) -> None:
    app.run(argv)


if __name__ == "__main__":
    main()
