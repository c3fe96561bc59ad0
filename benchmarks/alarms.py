"""Alarms at a stated rate: what was stated against what came, and how many events are found, on drawn people.

    python benchmarks/alarms.py --output benchmarks/alarms.json

A seed's camera sees people who come at random times and do nothing unusual, first in the reference and then
while it is watched; there events are planted. To draw so many hours as films would take days: each visit is
one drawn image, kept with its times as `tpas footage build` keeps what it finds, so that everything after the
finding is the real thing; the last table is of films, from `tpas watch` itself. The model is demo_start as it
comes, which knows other scenes (or `--model`); nothing was tuned on any seed. Prints tables; `--output`
writes every figure as JSON and the tables as Markdown beside it; `--quick` only shows that it runs.
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from demo_runs import captioned_table
from drawn_people import DEMO_START
from measuring import add_output_arguments, write_output

from tpas.data.drawn.drawn_footage import draw_footage
from tpas.data.drawn.synthetic_pab import draw_source
from tpas.data.drawn.synthetic_worlds import DEMO_WORLD, PRETRAINING_WORLD, World
from tpas.footage.following import Visit
from tpas.footage.intake import encode_visits
from tpas.footage.records import FOOTAGE, FilmRecord
from tpas.footage.replay import Replay, TrueMoment
from tpas.footage.standing import A_DAY, StandingQueries, interval_a_day, scores_of_visits
from tpas.footage.views import View
from tpas.models.loading import load_model
from tpas.search.gallery import Gallery

TEXTS = {  # the planted act that each speaks of
    "A person is lying on the ground.": "lying on the ground",
    "A person is falling forward.": "falling forward",
    "Somebody is falling backwards.": "falling backwards",
}
RATES = (0.5, 1.0, 2.0, 5.0)
DIVISIONS = 200
VISIT_S = 8.0


@dataclass(frozen=True)
class Size:
    days: int = 12  # of reference, and as many that are watched
    visits_a_day: int = 40
    events: int = 10  # of each text


def drawn_visits(
    folder: Path, name: str, size: Size, world: World, seed: int, first: int, events: bool, model: Any
) -> tuple[Gallery, list[TrueMoment]]:
    """A gallery of the visits of some days before one camera, which come one by one at a steady rate.

    Args:
        first: of the world's people: others for each gallery.
    """
    generator = np.random.default_rng([seed, first])
    seconds = size.days * A_DAY
    images, truth = [], []
    for number in range(generator.poisson(size.days * size.visits_a_day)):
        # Every other one: two that follow each other may be alike.
        images.append((draw_source(world, seed, first + 2 * number, 96)[0].image, None))
    wanted = {act: size.events if events else 0 for act in TEXTS.values()}
    number = first
    while any(wanted.values()):
        number += 2
        example = draw_source(world, seed, number + 1_000_000, 96)[1]
        if wanted.get(example.action):
            wanted[example.action] -= 1
            images.append((example.image, example.action))
    times = generator.uniform(0, seconds - VISIT_S, len(images))
    record = FilmRecord(folder / FOOTAGE / name, name)
    settings = {"detector": "drawn", "views": 1}
    record.begin({"film": "drawn", "started_at": None, "is_live": False, "settings": settings})
    for place in np.argsort(times):
        image, act = images[place]
        content = io.BytesIO()
        image.save(content, "JPEG", quality=92)
        box = (0.0, 0.0, 96.0, 96.0)
        crop = content.getvalue()
        small = np.zeros((24, 12, 3))
        view = View(times[place] + 1, box, crop, crop, 1.0, small, True, (96, 96), (0, 0, 96, 96))
        record.add([Visit(times[place], times[place] + VISIT_S, (view,))])
        if act is not None:
            text = next(text for text, own in TEXTS.items() if own == act)
            truth.append(TrueMoment(name, times[place], times[place] + VISIT_S, text))
    record.mark_end(seconds, None)
    encode_visits(folder, [record], *model)
    return Gallery.open(folder, *model), truth


def divided(scores: np.ndarray, days: float, rate: float, times: int, seed: int) -> float:
    """The false alarms a day of one text, on average over divisions of the visits (1, visits) into halves, a
    reference and the others.

    Args:
        times: that everybody comes, always looking the same, in the reference or not at all.
    """
    generator = np.random.default_rng(seed)
    found = 0
    people = scores[:, ::times]  # as many visits a day as before
    for _ in range(DIVISIONS):
        is_known = generator.random(people.shape[1]) < 0.5
        known, new = (np.repeat(people[:, rows], times, axis=1) for rows in (is_known, ~is_known))
        queries = StandingQueries.from_scores(list(TEXTS)[:1], known, days / 2, rate)
        found += int((new > queries.limits[:, None]).sum())
    return found / DIVISIONS / (days / 2)


def measure_seed(folder: Path, seed: int, size: Size, model: Any) -> dict[str, Any]:
    """By "match logit" and "cosine", number of texts and stated rate: alarms, and events found."""
    places = {"reference": (DEMO_WORLD, 0, False), "watched": (DEMO_WORLD, 100_000, True)}
    places["other scenes"] = (PRETRAINING_WORLD, 200_000, False)
    galleries, truths = {}, {}
    for name, (world, first, events) in places.items():
        galleries[name], truths[name] = drawn_visits(
            folder / name, name, size, world, seed, first, events, model
        )
    found: dict[str, Any] = {"stated": [], "divisions": [], "returning": []}
    for by, rerank in (("match logit", None), ("cosine", False)):
        for texts in (list(TEXTS)[:1], list(TEXTS)):
            for rate in RATES:
                if rate * size.days < len(texts):
                    continue
                references = [galleries["reference"]]
                queries = StandingQueries.learn(texts, references, rate, rerank=rerank)
                truth = [moment for moment in truths["watched"] if moment.text in texts]
                # What is planted and asked by no text is an event, and no false alarm.
                others = [
                    TrueMoment(moment.camera, moment.start_s, moment.end_s) for moment in truths["watched"]
                ]
                replay = Replay.of(queries, galleries["watched"], truth)
                missed = len(replay.missed)
                false = len(replace(replay, truth=others).false_alarms)
                of_others = StandingQueries.learn(texts, [galleries["other scenes"]], rate, rerank=rerank)
                drift = len(replace(Replay.of(of_others, galleries["watched"]), truth=others).false_alarms)
                found["stated"].append(
                    {
                        "by": by,
                        "texts": len(texts),
                        "rate": rate,
                        "false": false,
                        "drift": drift,
                        "events": len(truth),
                        "found": len(truth) - missed,
                    }
                )
    scores = scores_of_visits(galleries["reference"], list(TEXTS)[:1])
    for rate in RATES:
        rate = max(rate, 2 / size.days)
        found["divisions"].append(divided(scores, size.days, rate, 1, seed))
        found["returning"].append(divided(scores, size.days, rate, 5, seed))
    return found


def watch_films(folder: Path, seeds: list[int], model: str, quick: bool) -> dict[str, Any]:
    """`tpas watch` over drawn films in which one person lies, with films of others as the reference."""
    width, text = 160 if quick else 320, next(iter(TEXTS))
    for number in range(2 if quick else 6):  # without anybody lying
        draw_footage(
            folder / "reference" / f"{number}", cameras=1, visits=3, seed=10_000 + number, width=width
        )
    row: dict[str, Any] = {"films": len(seeds), "visits": 0, "events": 0, "found": 0, "false": 0}
    row["expected"] = 0.0
    for seed in seeds:
        films = folder / f"films {seed}"
        truth = draw_footage(films, cameras=1, visits=4, seed=20_000 + seed, width=width)
        words = [str(films / "cam1.mp4"), text, "--model", model, "--reference", str(folder / "reference")]
        words += ["--path", str(folder / f"gallery {seed}"), "--alarms_per_day", "1500", "--json"]
        words += ["--no_rerank"]
        command = [sys.executable, "-m", "tpas", "watch", *words]
        ended = subprocess.run(command, capture_output=True, text=True)
        if ended.returncode:
            raise RuntimeError(ended.stderr)
        alarms = [json.loads(line) for line in ended.stdout.splitlines()]
        events = [visit for visit in truth if visit.pose == "lying"]
        shown = [
            [a["start_s"] < visit.end_s - 1 and visit.start_s + 1 < a["end_s"] for visit in events]
            for a in alarms
        ]
        row["visits"] += len(truth)
        row["expected"] += 1500 * truth[-1].end_s / A_DAY
        row["events"] += len(events)
        row["found"] += sum(map(any, zip(*shown, strict=True)))
        row["false"] += sum(not any(own) for own in shown)
    return row


def summed(of_seeds: list[dict[str, Any]], size: Size) -> list[dict[str, Any]]:
    """The rows of all seeds together, with intervals."""
    rows = []
    for own in zip(*(found["stated"] for found in of_seeds), strict=True):
        days = size.days * len(own)
        counts = [row["false"] for row in own]
        low, high = interval_a_day(sum(counts), days)
        expected_low, expected_high = interval_of_promise(own[0], size, len(own))
        rows.append(
            {name: own[0][name] for name in ("by", "texts", "rate")}
            | {
                "false_a_day": sum(counts) / days,
                "interval": [low, high],
                "promised": [expected_low, expected_high],
                "of_seeds": [count / size.days for count in counts],
                "drift_a_day": sum(row["drift"] for row in own) / days,
                "events": sum(row["events"] for row in own),
                "found": sum(row["found"] for row in own),
            }
        )
    return rows


def interval_of_promise(row: dict[str, Any], size: Size, seeds: int) -> tuple[float, float]:
    """Where 95 % of such experiments lie if the promise holds: the references are drawn, too."""
    from scipy.stats import nbinom

    places = int(row["rate"] * size.days + 1e-9) * seeds  # of all texts: sums of negative binomials
    low, high = nbinom.interval(0.95, places, 0.5)
    return float(low) / (size.days * seeds), float(high) / (size.days * seeds)


def tables(found: dict[str, Any], size: Size, seeds: list[int]) -> str:
    hours = 24 * size.days
    rows = [
        [
            row["by"],
            str(row["texts"]),
            f"{row['rate']:g}",
            f"{row['false_a_day']:.2f}",
            f"{row['interval'][0]:.2f} to {row['interval'][1]:.2f}",
            f"{row['promised'][0]:.2f} to {row['promised'][1]:.2f}",
            f"{min(row['of_seeds']):.2f} to {max(row['of_seeds']):.2f}",
            f"{row['found']} of {row['events']}",
            f"{row['drift_a_day']:.2f}",
        ]
        for row in found["rows"]
    ]
    heads = ["score", "texts", "stated a day", "came a day", "95 % of what came"]
    heads += [
        "95 % if the promise holds",
        "of single seeds",
        "planted events found",
        "came, learnt in other scenes",
    ]
    parts = [
        captioned_table(
            f"False alarms a day, of all texts together; {len(seeds)} seeds, each {hours} hours of reference "
            f"and {hours} hours that are watched, {size.visits_a_day} visits a day, one image a visit.",
            heads,
            rows,
        )
    ]
    rows = []
    for number, rate in enumerate(found["rates_of_divisions"]):
        own = [of_seed["divisions"][number] for of_seed in found["seeds_of"]]
        again = [of_seed["returning"][number] for of_seed in found["seeds_of"]]
        rows.append(
            [
                f"{rate:g}",
                f"{np.mean(own):.3f} ± {np.std(own, ddof=1) if len(own) > 1 else 0:.3f}",
                f"{np.mean(again):.2f}",
            ]
        )
    parts.append(
        captioned_table(
            f"One text, {DIVISIONS} divisions of each seed's reference into halves, one to learn from and "
            "one to test: the mean that is promised. Beside it what comes if everybody comes five times, and "
            "always looks the same: there the promise does not hold.",
            ["stated a day", "came a day, mean ± deviation over seeds", "if everybody comes five times"],
            rows,
        )
    )
    films = found["films"]
    parts.append(
        captioned_table(
            "`tpas watch` over films, by cosine, against a reference of other films (a few minutes, so "
            f"that the rate is a high one: 1,500 a day, {films['expected']:.1f} in these).",
            ["films", "visits", "lying there", "found", "false alarms"],
            [[str(films[name]) for name in ("films", "visits", "events", "found", "false")]],
        )
    )
    return "\n".join(parts) + f"\n{found['minutes']:.1f} minutes of one processor.\n"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Alarms: stated against observed rates, and events found.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[301, 302, 303, 304, 305, 306])
    parser.add_argument("--model", default=str(DEMO_START), help="default: demo_start, as it comes")
    add_output_arguments(parser)
    arguments = parser.parse_args(argv)
    size = Size(days=6, visits_a_day=20, events=1) if arguments.quick else Size()
    seeds = arguments.seeds[:1] if arguments.quick else arguments.seeds
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="tpas-alarms-") as created:
        folder, model = Path(created), load_model(arguments.model)
        of_seeds = []
        for seed in seeds:
            of_seeds.append(measure_seed(folder / str(seed), seed, size, model))
            print(f"seed {seed}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
        films = watch_films(
            folder, list(range(1 if arguments.quick else 6)), arguments.model, arguments.quick
        )
    found = {
        "seeds": seeds,
        "size": vars(size),
        "rows": summed(of_seeds, size),
        "rates_of_divisions": [max(rate, 2 / size.days) for rate in RATES],
        "seeds_of": of_seeds,
        "films": films,
        "minutes": sum(os.times()[:4]) / 60,  # of the films' processes, too
    }
    table = tables(found, size, seeds)
    print(f"\n{table}")
    write_output(arguments.output, found, table)


if __name__ == "__main__":
    main()
