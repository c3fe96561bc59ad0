"""One table of many evaluations: runs that differ only in their seed become a mean and a deviation.

Runs are put together where it is known that they differ in the seed alone: by the arguments of their
training, which `tpas evaluate` writes into its results, or where the names of their models, or else of the
files, differ in a number after "seed" alone. What was measured on other data stands in a table of its own.
Nothing heavy is imported for it.
"""

import csv
import io
import json
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data.json_records import read_json
from .stages import Stage, is_stage, label_of

SEED = re.compile(r"[-_. ]*(?<![a-z])seed[-_=. ]*\d+", re.IGNORECASE)
RECALL = re.compile("recall@([0-9]{1,9})")
# How the ranking was made, beyond the model: runs that differ in one of these are never averaged.
SETTINGS = (
    "matcher",
    "matcher_shortlist",
    "image_size",
    "max_text_length",
    "shortlist",
    "fusion_weight",
    "sca",
)
# What of a run's arguments says where it lies and how it was started, not what it computes.
NOT_OF_A_RUN = {
    "seed",
    "seeds",
    "output_dir",
    "overwrite_output_dir",
    "resume_from_checkpoint",
    "num_workers",
    "prefetch_factor",
    "report_to",
}
# What other files of this package hold, so that one of them is called what it is.
OTHER_KINDS = {
    ("gallery", "queries"): "the rankings that tpas evaluate --rankings writes",
    ("figures", "first", "second"): "a comparison of tpas compare",
    ("seeds", "stages"): "the summary of a training on several seeds",
    ("measured", "paper", "runs"): "the table of a recipe",
}
REQUIRED = ("stages", "data_fingerprint", "split", "queries", "gallery")
LARGEST_COUNT = 2**53  # beyond it a float does not count
GROUPS = ("all", "normal", "anomaly")
Results = Mapping[str, Any]


def read_results(path: Path) -> dict[str, Any]:
    """What `tpas evaluate --output` wrote.

    Raises:
        FileNotFoundError, ValueError: there is none, or it is something else; says what, where that is known.
    """
    from ..reranking.score_files import SUFFIXES

    if path.suffix in SUFFIXES:
        raise ValueError(
            f"{path}: a score file, which has no labels: tpas evaluate --scores {path} --output makes results"
        )
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path}: not written by tpas evaluate --output: it holds no JSON object")
    lacking = [name for name in REQUIRED if name not in content]
    if lacking or not are_counts([content["queries"]]):
        kinds = (kind for keys, kind in OTHER_KINDS.items() if content.keys() >= set(keys))
        what = next(kinds, f"it has no {' and no '.join(lacking)}")
        raise ValueError(f"{path}: not written by tpas evaluate --output: {what}")
    for name in ("split", "data_fingerprint", "dataset_name", "model_fingerprint"):
        value = content.get(name)
        if not isinstance(value, str) and (value is not None or name in REQUIRED):
            raise ValueError(f"{path}: its {name} must be a text, got {value!r:.60}")
    if not are_counts([content["gallery"]]):
        raise ValueError(f"{path}: its gallery must be a number of images, got {content['gallery']!r:.60}")
    stages = content["stages"]
    if not isinstance(stages, dict) or not stages:
        raise ValueError(f"{path}: its stages must be an object with a stage at least, got {stages!r:.60}")
    for stage, groups in stages.items():
        if not isinstance(groups, dict) or "all" not in groups or not all(map(_are_figures, groups.values())):
            raise ValueError(f"{path}: stage {stage!r} must have figures, numbers by name, of all queries")
    return content


def are_counts(values: Any, least: int = 0) -> bool:
    """Whether `values` is a list of something, all of it whole numbers from `least` on."""
    return (
        isinstance(values, list)
        and bool(values)
        and all(type(value) is int and least <= value < LARGEST_COUNT for value in values)
    )


def _are_figures(figures: Any) -> bool:
    return isinstance(figures, dict) and all(
        value is None or isinstance(value, float) or (type(value) is int and abs(value) < LARGEST_COUNT)
        for value in figures.values()
    )


@dataclass(frozen=True)
class Figure:
    """A figure of one run or several.

    Attributes:
        mean: None where a run has none, as a median rank beyond what was ranked.
        deviation: the sample's, over the runs; None of a single one.
    """

    mean: float | None
    deviation: float | None


@dataclass(frozen=True)
class RunRow:
    """A stage of a run, or of several that differ in their seed.

    Attributes:
        run: what they are called.
        paths: the files.
        stage: see `label_of`.
        figures: by "all", "normal" and "anomaly" and by name.
    """

    run: str
    paths: tuple[Path, ...]
    stage: str
    figures: Mapping[str, Mapping[str, Figure]]


@dataclass(frozen=True)
class RunTable:
    """The runs that were measured on the same queries, images and relevance."""

    dataset_name: str
    split: str
    queries: int
    gallery: int
    data_fingerprint: str
    rows: list[RunRow]

    @property
    def title(self) -> str:
        return (
            f"{self.dataset_name}, {self.split}: {self.queries:,} queries, {self.gallery:,} images "
            f"(fingerprint {self.data_fingerprint})"
        )

    def names(self) -> list[tuple[str, str]]:
        """Group and name of the figures shown: Recall@k and mAP, and Recall@1 of either behaviour."""
        known = {name for row in self.rows for name in row.figures["all"]}
        cutoffs = sorted(int(found[1]) for name in known if (found := RECALL.fullmatch(name)))
        shown = [("all", f"recall@{cutoff}") for cutoff in cutoffs]
        shown += [("all", "mAP")] if "mAP" in known else []
        if 1 in cutoffs:
            groups = {group for row in self.rows for group in row.figures}
            shown += [(group, "recall@1") for group in GROUPS[1:] if group in groups]
        return shown


def tables_of_runs(paths: Sequence[Path], group: re.Pattern[str] | None = None) -> list[RunTable]:
    """The runs of these results files, in the order given, a table for each data set.

    Args:
        group: puts those runs together in whose path it matches the same: its first group, or all of it.

    Raises:
        FileNotFoundError, ValueError: see [`read_results`]; a file is given twice, or `group` does not match.
    """
    contents: dict[Path, dict[str, Any]] = {}
    for path in paths:
        if path in contents:
            raise ValueError(f"{path} is given twice")
        contents[path] = read_results(path)
    by_data: dict[tuple[str, str], dict[Path, dict[str, Any]]] = {}
    for path, results in contents.items():
        by_data.setdefault((results["data_fingerprint"], results["split"]), {})[path] = results
    return [_table(of_data, group) for of_data in by_data.values()]


def _table(contents: Mapping[Path, Results], group: re.Pattern[str] | None) -> RunTable:
    members: dict[tuple[str, ...], list[Path]] = {}
    for path, results in contents.items():
        key = _key(path, results) if group is None else ("group", _matched(group, path))
        members.setdefault(key, []).append(path)
    if group is None:
        members = {
            path_key: paths for key, own in members.items() for path_key, paths in _apart(key, own, contents)
        }
    else:
        for own in members.values():
            _check_alike(own, contents)
    names = {key: _name(key, own, contents) for key, own in members.items()}
    rows = []
    for key, own in members.items():
        alike = [other for other, name in names.items() if name == names[key]]
        name = names[key] if len(alike) == 1 else ", ".join(map(str, own))
        rows += _rows(name, own, [contents[path] for path in own])
    first = next(iter(contents.values()))
    called: dict[str, None] = dict.fromkeys(
        results.get("dataset_name") or "data without a name" for results in contents.values()
    )
    return RunTable(
        dataset_name=" or ".join(called),
        split=first["split"],
        queries=first["queries"],
        gallery=first["gallery"],
        data_fingerprint=first["data_fingerprint"],
        rows=rows,
    )


def without_seed(name: str) -> str:
    """`runs/best` of `runs/seed_42/best`."""
    return str(Path(SEED.sub("", name)))


def _key(path: Path, results: Results) -> tuple[str, ...]:
    """Equal for runs that are known to differ in their seed alone."""
    settings = json.dumps({name: results.get(name) for name in SETTINGS}, sort_keys=True)
    training, model = results.get("training"), str(results.get("model", ""))
    if isinstance(training, dict) and "seed" in training:
        kept = {name: value for name, value in training.items() if name not in NOT_OF_A_RUN}
        # best/ and last/ of a run are not the same, whatever their arguments.
        return "training", json.dumps(kept, sort_keys=True), Path(model).name, settings
    if SEED.search(model):
        return "model", without_seed(model), settings
    if SEED.search(str(path)):
        return "path", without_seed(str(path)), "" if "scores" in results else model, settings
    return "alone", str(path)


def _apart(
    key: tuple[str, ...], paths: list[Path], contents: Mapping[Path, Results]
) -> list[tuple[tuple[str, ...], list[Path]]]:
    """Each by itself where two measured the same weights, which are not two seeds."""
    weights = [contents[path].get("model_fingerprint") for path in paths]
    known = [fingerprint for fingerprint in weights if fingerprint is not None]
    if len(set(known)) < len(known):
        return [(("alone", str(path)), [path]) for path in paths]
    return [(key, paths)]


def _matched(group: re.Pattern[str], path: Path) -> str:
    match = group.search(str(path))
    if match is None:
        raise ValueError(f"{path}: --group {group.pattern!r} matches nothing in it")
    return str(match[1] if group.groups else match[0])


def _check_alike(paths: Sequence[Path], contents: Mapping[Path, Results]) -> None:
    """Raises ValueError for runs that are to be averaged, but were ranked by other settings."""
    first = contents[paths[0]]
    for path in paths[1:]:
        for name in SETTINGS:
            if contents[path].get(name) != first.get(name):
                raise ValueError(
                    f"--group puts {paths[0]} and {path} together, but their {name} is {first.get(name)} and "
                    f"{contents[path].get(name)}: evaluate them alike, or group them apart"
                )


def _name(key: tuple[str, ...], paths: Sequence[Path], contents: Mapping[Path, Results]) -> str:
    """What runs are called: as their files, or else their models, but for the seed, where these then have one
    name; otherwise as all their files."""
    if key[0] == "group":
        return key[1]
    if len(paths) == 1:
        return str(paths[0].with_suffix(""))
    files = [str(path.with_suffix("")) for path in paths]
    for names in (files, [str(contents[path].get("model", "")) for path in paths]):
        without = {without_seed(name) for name in names}
        if len(without) == 1 and "." not in without:  # which nothing is left of
            return without.pop()
    return ", ".join(files)


def _rows(name: str, paths: Sequence[Path], runs: Sequence[Results]) -> list[RunRow]:
    stages: dict[str, list[Mapping[str, Any]]] = {}
    for run in runs:
        of_run: dict[str, Mapping[str, Any]] = run["stages"]
        own = {stage: stage if is_stage(stage) else without_seed(stage) for stage in of_run}
        if len(runs) == 1 or len(set(own.values())) < len(own):
            own = {stage: stage for stage in of_run}
        for stage, groups in of_run.items():
            stages.setdefault(own[stage], []).append(groups)
    order: list[str] = [stage.value for stage in Stage]
    rows = []
    for stage in sorted(stages, key=lambda stage: order.index(stage) if stage in order else len(order)):
        measured = stages[stage]
        if len(measured) < len(runs):
            lacking = next(path for path, run in zip(paths, runs, strict=True) if stage not in run["stages"])
            raise ValueError(
                f"{lacking}: no stage {stage!r}, which others of {name} have: evaluate them alike"
            )
        figures = {
            group: {
                figure: _over_runs([groups[group].get(figure) for groups in measured])
                for figure in measured[0][group]
            }
            for group in GROUPS
            if all(group in groups for groups in measured)
        }
        rows.append(RunRow(name, tuple(paths), stage, figures))
    return rows


def _over_runs(values: Sequence[float | None]) -> Figure:
    known = [value for value in values if value is not None and math.isfinite(value)]
    if len(known) < len(values):
        return Figure(None, None)
    return Figure(statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None)


def markdown_of(tables: Sequence[RunTable]) -> str:
    """The tables in Markdown, in percent."""
    parts = []
    for table in tables:
        shown = table.names()
        heads = ["run", "n", "stage"] + [
            name.replace("recall", "Recall") + ("" if group == "all" else f", {group}")
            for group, name in shown
        ]
        lines = [heads, ["---"] * 3 + ["---:"] * len(shown)]
        before = ""
        for row in table.rows:
            cells = [_shown(row.figures.get(group, {}).get(name)) for group, name in shown]
            run = [row.run, str(len(row.paths))] if row.run != before else ["", ""]
            lines.append([*run, label_of(row.stage), *cells])
            before = row.run
        body = "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines)
        parts.append(f"## {table.title}\n\n{body}")
    if any(len(row.paths) > 1 for table in tables for row in table.rows):
        parts.append("In percent; mean ± sample deviation over the n runs.")
    else:
        parts.append("In percent.")
    return "\n\n".join(parts) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _shown(figure: Figure | None) -> str:
    if figure is None or figure.mean is None:
        return "–"
    deviation = "" if figure.deviation is None else f" ± {100 * figure.deviation:.2f}"
    return f"{100 * figure.mean:.2f}{deviation}"


def csv_of(tables: Sequence[RunTable]) -> str:
    """Every figure of every row and group, as fractions, in comma-separated values."""
    names = list(
        dict.fromkeys(
            name for table in tables for row in table.rows for of in row.figures.values() for name in of
        )
    )
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    about = ["dataset_name", "split", "queries", "gallery", "data_fingerprint", "run", "n", "stage", "group"]
    writer.writerow([*about, *(column for name in names for column in (name, f"{name}_deviation"))])
    for table in tables:
        data = [table.dataset_name, table.split, table.queries, table.gallery, table.data_fingerprint]
        for row in table.rows:
            for group, figures in row.figures.items():
                line = [*data, row.run, len(row.paths), row.stage, group]
                for name in names:
                    figure = figures.get(name, Figure(None, None))
                    line += [figure.mean, figure.deviation]  # None is written as nothing
                writer.writerow(line)
    return stream.getvalue()
