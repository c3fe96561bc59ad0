"""Makes one table of many evaluations, with mean and deviation over seeds.

    tpas report a.json b.json c.json --markdown table.md --csv table.csv --plot table.png

Reads what `tpas evaluate --output` wrote: a line a stage. Runs that differ in their seed alone become one, as
mean ± sample deviation: by the arguments of their training, or where the names of models or files differ in
the number after "seed". `--group` puts others together, by their paths: --group '(.*)_run[0-9]'. What was
measured on other data, by its content, is a table of its own.
"""

import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from ..data.whole_files import check_place, write_text
from ..evaluation.many_runs import csv_of, markdown_of, tables_of_runs
from .command_line import CommandLine, CommandResult, WrongUsage

app = CommandLine("tpas report", __doc__)


@app.command()
def report(
    results: Annotated[list[Path], Argument(metavar="RESULTS", help="files of tpas evaluate --output")],
    group: Annotated[
        str | None,
        Option(
            help="a regular expression: runs in whose path it matches the same, its first group or all of "
            "it, are averaged"
        ),
    ] = None,
    markdown: Annotated[Path | None, Option(help="write the table as Markdown")] = None,
    csv: Annotated[
        Path | None, Option(help="write every figure as comma-separated values, fractions")
    ] = None,
    plot: Annotated[Path | None, Option(help="draw one figure of all (.png, .pdf, .svg, ...)")] = None,
    figure: Annotated[str, Option(help="with it: which, such as recall@1 or mAP")] = "recall@1",
) -> CommandResult:
    try:
        pattern = None if group is None else re.compile(group)
    except re.error as error:
        raise WrongUsage(f"--group {group!r} is no regular expression: {error}") from error
    if plot is not None:
        from ..figures.saving import check_format

        check_format(plot)
    for path in (markdown, csv, plot):
        if path is not None:
            check_place(path)
    tables = tables_of_runs(results, pattern)
    drawn = None
    if plot is not None:
        from ..figures.runs import plot_runs  # matplotlib takes a second to import

        drawn = plot_runs(tables, figure)
    text = markdown_of(tables)
    if markdown is not None:
        write_text(markdown, text)
    if csv is not None:
        write_text(csv, csv_of(tables))
    if drawn is not None and plot is not None:
        from ..figures.saving import save_figure

        save_figure(drawn, plot)
    return CommandResult([asdict(table) for table in tables], text.rstrip("\n"))


def main(argv: Sequence[str] | None = None) -> None:
    app.run(argv)


if __name__ == "__main__":
    main()
