"""Looks for the zero-shot checkpoint and settings of the paper's 77.86 / 98.28 / 99.24.

    python recipes/zero_shot_grid.py --data_root PAB --image_sizes 384 224 --max_text_lengths 30 70 \\
        --models 16m_base_finetune_coco.th 16m_base_model_state_step_199999.th xvlm-converted

Every checkpoint (converted folder, Hub id, or X-VLM's own .th or .pth file, which is converted first) is
evaluated at every image size, text length and shortlist, by its embeddings and by matching. Prints each
combination's Recall@1, @5 and @10 beside the paper's, the nearest first. A combination that a checkpoint
cannot take, such as an image size, is listed with the reason.
"""

import argparse
import hashlib
import itertools
import re
from dataclasses import asdict, dataclass
from pathlib import Path

import reproduction
from reproduction import PAPER, PAPER_ZERO_SHOT, Recalls, Run, Workplace, run_logged
from tpas.commands.demo import TPAS, DemoError, as_flags

RECIPE = "zero_shot_grid"
STAGES = ("embeddings", "matching")
PRINTED = 0.005  # the paper rounds to two digits


@dataclass(frozen=True)
class Measured:
    """One combination; `shortlist` is None for the embeddings, which need none. Recalls in percent."""

    checkpoint: str
    image_size: int
    max_text_length: int
    shortlist: int | None
    ranked_by: str
    recalls: Recalls

    @property
    def distance(self) -> float:
        """The sum of the three differences to the paper, in points."""
        return sum(abs(ours - papers) for ours, papers in zip(self.recalls, PAPER_ZERO_SHOT, strict=True))

    @property
    def equals_paper(self) -> bool:
        """Whether all three are the paper's to the last digit that it prints."""
        pairs = zip(self.recalls, PAPER_ZERO_SHOT, strict=True)
        return all(abs(ours - papers) <= PRINTED + 1e-9 for ours, papers in pairs)

    @property
    def name(self) -> str:
        shortlist = "" if self.shortlist is None else f", shortlist {self.shortlist}"
        settings = f"{self.image_size} pixels, {self.max_text_length} tokens{shortlist}"
        return f"{self.checkpoint}, {settings}, ranked by {self.ranked_by}"


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=RECIPE, description=__doc__.partition("\n")[0], allow_abbrev=False)
    add = parser.add_argument
    add("--models", nargs="+", default=[], help="folders, Hub ids, or X-VLM's .th and .pth files")
    sizes = "pixels a side (default: each model's own)"
    add("--image_sizes", type=int, nargs="+", default=[None], help=sizes)
    add("--max_text_lengths", type=int, nargs="+", default=[30, 70], help="tokens (default: 30 70)")
    add("--shortlists", type=int, nargs="+", default=[None], help="images re-ranked (default: 128, or all)")
    files = parser.add_argument_group("to convert files (see tpas convert)")
    files.add_argument("--tokenizer", help="folder or Hub id (default: bert-base-uncased)")
    files.add_argument("--vision_config", type=Path, help="upstream's configuration of Swin, JSON")
    files.add_argument("--text_config", type=Path, help="upstream's configuration of BERT, JSON")
    reproduction.add_common_arguments(parser, "tpas evaluate")
    arguments = parser.parse_args(argv)
    if not arguments.models and not arguments.miniature:
        parser.error("give --models (and --data_root), or --miniature")
    return arguments


def short_name(model: str | Path) -> str:
    """A name for the model's folders, of its own for each path."""
    stem = re.sub(r"[^\w.-]", "_", Path(model).stem if Path(model).is_file() else Path(model).name)
    return f"{stem}-{hashlib.blake2b(str(model).encode(), digest_size=3).hexdigest()}"


def converted(model: str | Path, place: Workplace, arguments: argparse.Namespace) -> str | Path:
    """The model itself, or the folder that X-VLM's file is converted to."""
    if not Path(model).is_file():
        return model
    name = short_name(model)
    folder = place.output_dir / "converted" / name
    flags: dict[str, object] = {
        flag: path.resolve()
        for flag in ("vision_config", "text_config")
        if (path := getattr(arguments, flag)) is not None
    }
    if arguments.tokenizer is not None:
        flags["tokenizer"] = reproduction.local_or_hub(arguments.tokenizer)
    command = [*TPAS, "convert", model, folder, *as_flags(flags)]
    reproduction.run_once(place, command, f"convert_{name}", folder, model)
    return folder


def measure(
    place: Workplace, arguments: argparse.Namespace
) -> tuple[list[Measured], dict[str, str], list[dict]]:
    """The combinations measured, those refused with the reason, and a results.json of each evaluation.

    Raises:
        DemoError: all were refused.
    """
    measured: dict[Measured, None] = {}  # a set in order: shortlists share the embeddings' figures
    refused: dict[str, str] = {}
    every_result, last_error = [], None
    for given in arguments.models or [str(place.model)]:
        model = reproduction.local_or_hub(given)
        try:
            folder = converted(model, place, arguments)
        except DemoError as error:
            refused[given], last_error = str(error), error
            continue
        names = ("image_size", "max_text_length", "shortlist")
        grid = itertools.product(arguments.image_sizes, arguments.max_text_lengths, arguments.shortlists)
        for values in grid:
            flags = {name: value for name, value in zip(names, values, strict=True) if value is not None}
            settings = "".join(f"-{name}_{value}" for name, value in flags.items())
            name = f"{short_name(model)}{settings}"
            try:
                results = reproduction.evaluate_once(place, folder, name, flags, arguments.extra)
            except DemoError as error:
                refused[f"{given}, {', '.join(f'{n} {v}' for n, v in flags.items())}"] = str(error)
                last_error = error
                continue
            every_result.append(results)
            sizes = (results["image_size"], results["max_text_length"])
            for stage in STAGES:
                shortlist = results["shortlist"] if stage == "matching" else None
                recalls = reproduction.recalls_of(results, stage)
                measured[Measured(given, *sizes, shortlist, stage, recalls)] = None
    if not measured:
        raise last_error
    return sorted(measured, key=lambda combination: combination.distance), refused, every_result


def grid_table(
    measured: list[Measured], refused: dict[str, str], every_result: list[dict], miniature: bool
) -> str:
    heads = ["checkpoint", "pixels", "tokens", "shortlist", "ranked by"]
    heads += ["measured", f"paper ({PAPER})", "off"]
    rows = []
    for one in measured:
        shortlist = "" if one.shortlist is None else one.shortlist
        recalls = [reproduction.shown_recalls(figures) for figures in (one.recalls, PAPER_ZERO_SHOT)]
        sizes = one.image_size, one.max_text_length, shortlist
        rows.append([one.checkpoint, *sizes, one.ranked_by, *recalls, f"{one.distance:.2f}"])
    lines = ["# Zero-shot: which checkpoint?", "", *reproduction.table_lines(heads, rows)]
    nearest = measured[0]
    verdict = "equals the paper's to its last digit" if nearest.equals_paper else "none equals the paper's"
    lines += [
        "",
        f"Recall@1 / @5 / @10 in %, {reproduction.shown_data(every_result[0])}; off: the sum of the "
        "three differences, in points.",
        "",
        f"Nearest to the paper's: {nearest.name}: {reproduction.shown_recalls(nearest.recalls)}, {verdict}.",
    ]
    if refused:
        lines += ["", *(f"- Not measured: {name}: {reason}" for name, reason in refused.items())]
    return "\n".join([*lines, *reproduction.notes(every_result, miniature)]) + "\n"


def main(argv: list[str] | None = None, run: Run = run_logged) -> None:
    arguments = parse_arguments(argv)
    with reproduction.one_line_errors(RECIPE):
        place = reproduction.prepare(arguments, None, run)
        measured, refused, every_result = measure(place, arguments)
        content = {
            "recipe": RECIPE,
            "unit": "percent",
            "miniature": place.miniature,
            "data_root": str(place.data_root),
            "paper": {"source": PAPER} | reproduction.by_name(PAPER_ZERO_SHOT),
            "nearest_first": [
                asdict(one) | {"recalls": reproduction.by_name(one.recalls), "distance": one.distance}
                for one in measured
            ],
            "refused": refused,
        }
        table = grid_table(measured, refused, every_result, place.miniature)
        reproduction.report(place, RECIPE, content, table)


if __name__ == "__main__":
    main()
