"""How long PAB's annotations take to open, the first time and later, and in how much memory.

    python benchmarks/pab_loading.py                      # the whole size: 1,013,605 pairs in 75 files
    python benchmarks/pab_loading.py --pairs 20000 --files 4

Writes invented annotations of PAB's size and shape into a temporary folder, opens them in a fresh process
each time, and removes them. Memory is the peak resident size beyond that of the imports; pages of the mapped
Arrow file count in it, though the system may take them back at any time.
"""

import argparse
import json
import multiprocessing
import random
import resource
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

PAIRS_PER_SOURCE_VIDEO = 200
ACTIONS = {"goal": ("normal", "Performing"), "wentrong": ("anomaly", "Falling"), "full": ("anomaly", "Lying")}


def write_annotations(root: Path, pairs: int, files: int, seed: int = 0) -> None:
    """`pairs` rows with every field of attr_*.json and captions of 50 words, spread evenly over `files`."""
    random_source = random.Random(seed)
    letters = "aeioubcdfglmnprst"
    words = ["".join(random_source.choices(letters, k=2 + number % 8)) for number in range(2000)]
    videos = max(2, pairs // PAIRS_PER_SOURCE_VIDEO)
    folder = root / "annotation" / "train"
    folder.mkdir(parents=True)
    for number in range(files):
        rows = pairs // files + (number < pairs % files)
        with (folder / f"attr_{number}.json").open("w", encoding="utf-8") as stream:
            for row in range(rows):
                kind = random_source.choice(list(ACTIONS))
                behaviour, action = ACTIONS[kind]
                record = {
                    "image": f"train/imgs_{number}/{kind}/{row}.jpg",
                    "caption": " ".join(random_source.choices(words, k=50)),
                    "image_id": f"{number}_{row}",
                    "hard_i": f"imgs_{number}/full/{row}.jpg",
                    "hard_c": " ".join(random_source.choices(words, k=50)),
                    "hard_i_id": f"{number}_{row + rows}",
                    "source_id": f"{random_source.randrange(videos)}_{random_source.randrange(3)}",
                    "source_caption": " ".join(random_source.choices(words, k=9)),
                    behaviour: action,
                    "scene": "Lawn",
                }
                stream.write(json.dumps(record) + "\n")


def measure(root: Path, cache_dir: Path, split: str, pairs: int | None, read: bool) -> dict[str, Any]:
    """Seconds and peak memory (MiB beyond the imports) of one opening; `read` also visits every row."""
    from tpas.data.pab import load_pab

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    dataset = load_pab(root, split, pairs=pairs, cache_dir=cache_dir)
    rows = len(dataset)
    words = sum(row["caption"].count(" ") + 1 for row in dataset) if read else None
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"rows": rows, "words": words, "seconds": seconds, "memory": (peak - before) / 1024}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Time and memory of opening a PAB-sized set of annotations.")
    parser.add_argument("--pairs", type=int, default=1_013_605)
    parser.add_argument("--files", type=int, default=75)
    parser.add_argument("--folder", type=Path, help="where the temporary folder is made (needs about 3 GB)")
    arguments = parser.parse_args(argv)

    steps = [
        ("train, first opening", "train", None, False),
        ("train, later", "train", None, False),
        ("train, a tenth of the pairs", "train", arguments.pairs // 10, False),
        ("validation", "validation", None, False),
        ("train, every row read", "train", None, True),
    ]
    with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
        root, cache_dir = Path(temporary) / "pab", Path(temporary) / "cache"
        write_annotations(root, arguments.pairs, arguments.files)
        size = sum(path.stat().st_size for path in root.rglob("*.json")) / 2**20
        print(f"{arguments.pairs:,} pairs in {arguments.files} files, {size:,.0f} MiB of JSON")
        # One process per step, spawned: nothing of the step before is left in its memory.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as executor:
            for name, split, pairs, read in steps:
                result = executor.submit(measure, root, cache_dir, split, pairs, read).result()
                figures = f"{result['seconds']:8.2f} s {result['memory']:7.0f} MiB"
                print(f"{name:28} {result['rows']:>9,} rows {figures}")
        size = sum(path.stat().st_size for path in cache_dir.rglob("*.arrow")) / 2**20
        print(f"{size:,.0f} MiB of Arrow in the cache")


if __name__ == "__main__":
    main()
