"""Draws the README's image from what `tpas demo` has written: `python docs/make_image.py outputs/demo`.

Three texts with the first five images that the fine-tuned model found, after the last stage. Which
texts is a rule, not a choice by eye: the shortest of those answered right at once by an anomaly, of those
answered right at once by normal behaviour, and of those whose right image is not first but among the five.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tpas.data.pab_images import image_path
from tpas.figures.examples import Answer, answer, is_right, verdict
from tpas.figures.report import Evaluation
from tpas.figures.results import ResultRow, plot_result_rows
from tpas.figures.saving import save_figure
from tpas.figures.sheet import RankedImage

SHOWN = 5
DOTS_PER_INCH = 115  # about 1,000 pixels across, which a README is shown in


def shortest(queries: Sequence[Mapping], chosen: Callable[[Mapping], bool]) -> Mapping:
    """Raises ValueError if none is like that."""
    found = [query for query in queries if chosen(query)]
    if not found:
        raise ValueError("the demo has no query of each kind: run it at its full size, without --quick")
    return min(found, key=lambda query: (len(query["caption"]), query["query_id"]))


def choose_rows(evaluation: Evaluation) -> list[Mapping]:
    """The three queries of the image."""
    queries, before = evaluation.rankings["queries"], evaluation.stage_before_sca

    def at_once(behaviour: str) -> Callable[[Mapping], bool]:
        return lambda query: verdict(query, before) == "right at once" and query["behaviour"] == behaviour

    def nearly(query: Mapping) -> bool:
        listed = query["stages"]["sca"]["ids"][:SHOWN]
        return not is_right(query, "sca") and bool(set(listed) & set(query["relevant"]))

    return [shortest(queries, chosen) for chosen in (at_once("anomaly"), at_once("normal"), nearly)]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("demo", type=Path, help="the demo's folder, such as outputs/demo")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("search.jpg"))
    arguments = parser.parse_args(argv)
    written = arguments.demo / "evaluation" / "fine_tuned"
    evaluation = Evaluation.read(written / "results.json", written / "rankings.json")

    def ranked(one: Answer) -> RankedImage:
        image = image_path(arguments.demo / "pab", evaluation.rankings["gallery"][one.id])
        return RankedImage(image, one.score, one.right, one.rank)

    rows = [
        ResultRow(
            query["caption"],
            [ranked(answer(query, "sca", name)) for name in query["stages"]["sca"]["ids"][:SHOWN]],
        )
        for query in choose_rows(evaluation)
    ]
    save_figure(plot_result_rows(rows), arguments.output, DOTS_PER_INCH)


if __name__ == "__main__":
    main()
