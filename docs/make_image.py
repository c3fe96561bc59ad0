"""Draws the README's image from what `tpas demo` has written: `python docs/make_image.py outputs/demo`.

Three texts with the first five images that the fine-tuned model found, after the last stage. Which
texts is a rule, not a choice by eye: the shortest of those answered right at once by an anomaly, of those
answered right at once by normal behaviour, and of those whose right image is not first but among the five.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from tpas.evaluation.result_files import Evaluation, RankedQuery
from tpas.evaluation.stages import Stage
from tpas.figures.examples import is_answered, verdict
from tpas.figures.results import ResultRow, plot_result_rows
from tpas.figures.saving import save_figure

SHOWN = 5
DOTS_PER_INCH = 115  # about 1,000 pixels across, which a README is shown in


def shortest(queries: Sequence[RankedQuery], chosen: Callable[[RankedQuery], bool]) -> RankedQuery:
    """Raises ValueError if none is like that."""
    found = [query for query in queries if chosen(query)]
    if not found:
        raise ValueError("the demo has no query of each kind: run it at its full size, without --quick")
    return min(found, key=lambda query: (len(query.text), query.id))


def choose_queries(queries: Sequence[RankedQuery]) -> list[RankedQuery]:
    """The three queries of the image."""

    def at_once(behaviour: str) -> Callable[[RankedQuery], bool]:
        return lambda query: verdict(query) == "right at once" and query.behaviour == behaviour

    def nearly(query: RankedQuery) -> bool:
        shown = query.hits[Stage.SCA][:SHOWN]
        return not is_answered(query, Stage.SCA) and any(hit.id in query.relevant for hit in shown)

    return [shortest(queries, chosen) for chosen in (at_once("anomaly"), at_once("normal"), nearly)]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("demo", type=Path, help="the demo's folder, such as outputs/demo")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("search.jpg"))
    arguments = parser.parse_args(argv)
    written = arguments.demo / "evaluation" / "fine_tuned"
    files = written / "results.json", written / "rankings.json"
    evaluation = Evaluation.read(*files, image_root=arguments.demo / "pab")
    rows = [
        ResultRow(query.text, query.hits[Stage.SCA][:SHOWN], query.relevant)
        for query in choose_queries(evaluation.queries)
    ]
    save_figure(plot_result_rows(rows), arguments.output, DOTS_PER_INCH)


if __name__ == "__main__":
    main()
