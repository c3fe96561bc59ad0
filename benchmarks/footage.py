"""How fast films are looked through, what that takes of memory and disk, and how well visits are found.

    python benchmarks/footage.py                        # a drawn film of 768 x 576 pixels, 10 frames a second
    python benchmarks/footage.py --film vtest.avi       # one of yours
    python benchmarks/footage.py --detector motion FastestDet.onnx

"times real time" is the film's length by the time that a step takes, each with the steps before it: decoding,
finding what moves, following people and keeping their views. Encoding is by image. Memory is that of the
peak after the first tenth of an hour of film, and at its end. The table of visits is of drawn films, whose
truth is known: two cameras, people who act, cross each other's way, two or six at once, and lie still. Ten
minutes on two idle processors.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import av
import measuring
import numpy as np
import torch

from tpas.data.drawn.drawn_footage import draw_footage
from tpas.engine.encoding import encode_images
from tpas.engine.fastest import encoder_for
from tpas.footage.comparison import compare_visits
from tpas.footage.detectors import detector_of
from tpas.footage.films import open_film
from tpas.footage.following import Follower
from tpas.footage.intake import build_footage, frames_at
from tpas.footage.rules import FootageRules
from tpas.footage.sources import find_films
from tpas.models.loading import load_model

DEMO_START = Path(__file__).parents[1] / "demo_start"
RATE = 10.0  # frames a second
FIRST_SEED = 2001  # of drawn films on which nothing was tuned
CROWDS = (2, 6)  # how many come together


def looped(film: Path, target: Path, seconds: float) -> Path:
    """The film again and again, by its packets as they are, for so long."""
    with av.open(str(film)) as source, av.open(str(target), "w", format="matroska") as written:
        stream = source.streams.video[0]
        copy = written.add_stream_from_template(stream)
        packets = [packet for packet in source.demux(stream) if packet.size]
        step = int(1 / float(stream.average_rate) / float(stream.time_base))
        content = [(bytes(packet), packet.is_keyframe) for packet in packets]
        for number in range(int(seconds * float(stream.average_rate))):
            packet_bytes, is_keyframe = content[number % len(content)]
            packet = av.Packet(packet_bytes)
            packet.stream, packet.time_base = copy, stream.time_base
            packet.pts = packet.dts = number * step
            packet.is_keyframe = is_keyframe
            written.mux(packet)
    return target


def seconds_of(work: Callable[[], object]) -> dict[str, float]:
    wall, busy = time.perf_counter(), time.process_time()
    work()
    return {"wall": time.perf_counter() - wall, "processor": time.process_time() - busy}


def measure_speed(film: Path, detector: str, rate: float = RATE) -> dict[str, Any]:
    """Seconds of each step with those before it, and the film's length."""

    def frames() -> Iterator[tuple[float, Any]]:
        with open_film(film) as opened:
            yield from frames_at(opened, rate)

    def decode() -> None:
        for _, frame in frames():
            frame.image(400)

    def find() -> None:
        finder = detector_of(detector)
        for _, frame in frames():
            finder.find(frame)

    visits = []

    def follow() -> None:
        finder = detector_of(detector)
        people = Follower(rate if finder.by_motion else 2.0, must_move=finder.by_motion)
        for _, frame in frames():
            found = finder.find(frame)
            if found is not None:
                visits.extend(people.update(frame, *found))
        visits.extend(people.finish())

    length = [time_s for time_s, _ in frames()][-1]
    with open_film(film) as opened:
        frame = next(iter(opened))
    steps = {"decoding": decode, "finding": find, "following": follow}
    figures: dict[str, Any] = {name: seconds_of(work) for name, work in steps.items()}
    views = [view for visit in visits for view in visit.views]
    figures |= {"seconds": length, "size": [frame.width, frame.height], "visits": len(visits)}
    return figures | {
        "views": len(views),
        "bytes_a_view": np.mean([len(v.crop) + len(v.frame) for v in views]),
    }


def measure_memory(film: Path, seconds: float) -> dict[str, float]:
    """Peak resident MiB after a tenth of a film and at its end."""
    finder, people, peaks = detector_of("motion"), Follower(RATE, must_move=True), []
    with open_film(film) as opened:
        for time_s, frame in frames_at(opened, RATE):
            people.update(frame, *finder.find(frame))
            if not peaks and time_s > seconds / 10:
                peaks.append(measuring.peak_memory() / 2**20)
    return {"after_a_tenth": peaks[0], "at_the_end": measuring.peak_memory() / 2**20, "seconds": seconds}


def measure_encoding(quick: bool) -> dict[str, dict[str, float]]:
    """Seconds an image of the shipped small model, and of one of X-VLM base's size with random weights."""
    models = {"small (demo_start)": load_model(str(DEMO_START))}
    full = measuring.build_model(quick)
    models["full size (random weights)"] = (
        full,
        measuring.build_processor(full.config.vision_config.image_size),
    )
    figures = {}
    for name, (model, processor) in models.items():
        encoder, inputs = (
            encoder_for(model.eval()),
            processor(images=[measuring.noise_image(200, 300, 0)] * 8),
        )
        with torch.inference_mode():
            encode_images(encoder, inputs, torch.float16)
            taken = seconds_of(lambda e=encoder, i=inputs: encode_images(e, i, torch.float16))
            tokens = encode_images(encoder, inputs, torch.float16)[1]
        figures[name] = {clock: seconds / 8 for clock, seconds in taken.items()}
        figures[name]["bytes_an_image"] = tokens[0].numel() * 2 + model.config.projection_dim * 4
    return figures


def measure_visits(
    folder: Path, detectors: list[str], seeds: int, width: int, crowd: int
) -> dict[str, dict[str, Any]]:
    """What of the visits of drawn films is found, by detector, and how often a text finds its visit first."""
    model, processor = load_model(str(DEMO_START))
    sums: dict[str, dict[str, Any]] = {}
    for seed in range(FIRST_SEED, FIRST_SEED + seeds):
        films = folder / f"films{seed}-{crowd}"
        truth = draw_footage(films, seed=seed, visits=3 + crowd, width=width, crowd=crowd)
        for detector in detectors:
            gallery = build_footage(
                find_films(films),
                folder / f"gallery{seed}-{crowd}-{Path(detector).name}",
                model,
                processor,
                FootageRules(detector=detector),
            )
            found = list({moment.visit: moment for _, moment in gallery.stored.moments()}.values())
            compared = compare_visits(found, truth)
            names = {true: found[one].visit for true, one in compared.matches}
            answers = gallery.search([visit.text for visit in truth], top_k=1) if len(gallery) else []
            own = {name: getattr(compared, name) for name in ("visits", "found", "split", "made_up")}
            own["right"] = sum(
                bool(hits) and hits[0].moment.visit == names.get(number)
                for number, hits in enumerate(answers)
            )
            row = sums.setdefault(Path(detector).name, {"overlap": [], "latest_s": 0.0})
            row |= {name: row.get(name, 0) + count for name, count in own.items()}
            row["overlap"] += [compared.overlap] * compared.found
            row["latest_s"] = max(row["latest_s"], compared.latest_s)
    return sums


def markdown(
    speed: dict[str, Any], memory: dict, encoding: dict, visits: dict, threads: int, load: float
) -> str:
    width, height = speed["size"]
    rows = [
        [name, *(f"{speed['seconds'] / speed[name][clock]:.1f}" for clock in ("wall", "processor"))]
        for name in ("decoding", "finding", "following")
    ]
    heads = [f"{width} x {height}, {RATE:g} frames/s", "times real time", "by one busy processor"]
    lines = measuring.markdown_table(heads, rows)
    a_day = speed["views"] / speed["seconds"] * 86_400
    lines += [
        "",
        *measuring.markdown_table(
            ["encoding", "s an image", "disk a camera-day of this film"],
            [
                [
                    name,
                    f"{own['wall']:.3f}",
                    f"{a_day * (own['bytes_an_image'] + speed['bytes_a_view']) / 1e9:.1f} GB",
                ]
                for name, own in encoding.items()
            ],
        ),
    ]
    lines += [
        "",
        *measuring.markdown_table(
            ["drawn films", "visits", "found", "split", "made up", "overlap in time", "latest", "Recall@1"],
            [
                [
                    f"{detector}, {crowd} at once",
                    *(str(own[count]) for count in ("visits", "found", "split", "made_up")),
                    f"{np.mean(own['overlap'] or [0]):.3f}",
                    f"{own['latest_s']:.1f} s",
                    f"{100 * own['right'] / own['visits']:.0f}",
                ]
                for crowd, by_detector in visits.items()
                for detector, own in by_detector.items()
            ],
        ),
    ]
    lines += [
        "",
        f"{speed['visits']} visits with {speed['views']} views in {speed['seconds']:.0f} s of film; "
        f"{threads} processors, on which {load:.0f} processes wanted to run at once. "
        f"Peak memory after {memory['seconds'] / 10:.0f} s of film "
        f"{memory['after_a_tenth']:.0f} MiB, after {memory['seconds']:.0f} s {memory['at_the_end']:.0f} MiB. "
        f"Drawn films of seeds from {FIRST_SEED}, on which nothing was tuned. Recall@1 of the texts over all "
        "visits of both cameras of a film, with demo_start, which was never trained on films; by chance 10, "
        "with 6 at once 6.",
    ]
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Films: speed, memory, disk, and visits found.")
    parser.add_argument("--film", type=Path, help="measured in place of a drawn one")
    parser.add_argument("--detector", nargs="+", default=["motion"], help="of the table of visits")
    parser.add_argument("--seeds", type=int, default=3, help="pairs of drawn films (default: 3)")
    parser.add_argument("--hours", type=float, default=1.0, help="of film for the memory (default: 1)")
    measuring.add_output_arguments(parser)
    arguments = parser.parse_args(argv)
    width, seeds = (160, 1) if arguments.quick else (768, arguments.seeds)
    with tempfile.TemporaryDirectory() as temporary:
        folder, film = Path(temporary), arguments.film
        if film is None:
            draw_footage(folder / "drawn", cameras=1, visits=4 if arguments.quick else 8, width=width, seed=1)
            film = folder / "drawn" / "cam1.mp4"
        load = os.getloadavg()[0]
        speed = measure_speed(film, "motion")
        encoding = measure_encoding(arguments.quick)
        seconds = 40.0 if arguments.quick else 3600 * arguments.hours
        long = looped(film, folder / "long.mkv", seconds)
        with ThreadPoolExecutor(1) as beside:  # neither of the two is timed
            waiting = beside.submit(measuring.in_fresh_process, measure_memory, long, seconds)
            visits = {
                crowd: measure_visits(
                    folder, arguments.detector, seeds, 160 if arguments.quick else 320, crowd
                )
                for crowd in CROWDS
            }
            memory = waiting.result()
    threads = os.cpu_count() or 1
    table = markdown(speed, memory, encoding, visits, threads, load)
    print(table, end="")
    content = {
        "threads": threads,
        "load": load,
        "speed": speed,
        "memory": memory,
        "encoding": encoding,
        "visits": visits,
    }
    measuring.write_output(arguments.output, content, table)


if __name__ == "__main__":
    main()
