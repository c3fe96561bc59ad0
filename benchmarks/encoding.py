"""How much faster `FastEncoder` encodes images and texts than the model's own forward, in one run.

    OMP_NUM_THREADS=2 python benchmarks/encoding.py --output encoding.json

A model of full size with random weights. The straightforward passes are `SwinModel`'s and `BertModel`'s as
`TPASModel` calls them: images in one large batch, as `encode_images` makes them, and one by one; texts of 40
to 60 words padded to 70 tokens, as upstream, and to the longest. All rows are run in turn, so that what else
the machine does falls on all alike; those of the engine with several numbers of items a pass are the probe
behind the defaults of `fast_encoding.py`. Shares of the GEMM limit count linear layers alone.

The last line says how long Pillow takes for a picture, which threads of a gallery's build do meanwhile.
`--quick` only shows that the script runs.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from measuring import (
    DTYPES,
    GemmLimit,
    build_model,
    count_operations,
    draw_token_ids,
    median_ratio,
    time_in_turn,
)
from PIL import Image
from transformers import BertTokenizer

from tpas.evaluation.result_files import write_json
from tpas.fast_encoding import FastEncoder
from tpas.processing_tpas import TPASProcessor, load_image

PICTURE = (192, 384)  # width and height
FEW = 4  # images of the rows that take them one by one, or a few a pass


def seconds_to_decode(image_size: int) -> float:
    """Median time from a JPEG file to `pixel_values`."""
    processor = TPASProcessor.build(BertTokenizer(vocab={"[PAD]": 0, "[UNK]": 1}), image_size=image_size)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*PICTURE[::-1], 3), dtype=np.uint8))
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "picture.jpg"
        picture.save(path)
        for _ in range(10):
            start = time.perf_counter()
            processor(images=[load_image(path)])
            seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def measure(arguments: argparse.Namespace) -> dict:
    model = build_model(arguments.quick)
    size = model.config.vision_config.image_size
    pixels = torch.randn(arguments.images, 3, size, size)
    few = pixels[:FEW]
    input_ids, mask = draw_token_ids(model, arguments.texts)
    longest = int(mask.sum(dim=1).max())
    encoders = {name: FastEncoder(model, dtype) for name, dtype in DTYPES.items()}

    def engine_images(name, count):
        def run():
            encoders[name].images_per_pass = count
            return encoders[name].get_image_features(few.to(DTYPES[name]))

        return len(few), run

    def engine_texts(name, count):
        def run():
            encoders[name].texts_per_pass = count
            return encoders[name].get_text_features(input_ids[:, :longest], mask[:, :longest])

        return len(input_ids), run

    image_rows = {
        f"model, batch of {len(pixels)}": (len(pixels), lambda: model.get_image_features(pixels)),
        "model, one by one": (len(few), lambda: [model.get_image_features(image[None]) for image in few]),
        **{f"engine, {count} a pass": engine_images("fp32", count) for count in (1, 2, 4)},
        "engine bf16, 2 a pass": engine_images("bf16", 2),
    }
    text_rows = {
        f"model, padded to {mask.shape[1]}": (len(mask), lambda: model.get_text_features(input_ids, mask)),
        f"model, padded to {longest}": (
            len(mask),
            lambda: model.get_text_features(input_ids[:, :longest], mask[:, :longest]),
        ),
        **{f"engine, {count} a pass": engine_texts("fp32", count) for count in (12, 24, 48)},
        "engine bf16, 24 a pass": engine_texts("bf16", 24),
    }
    rows = {("image", name): row for name, row in image_rows.items()}
    rows |= {("text", name): row for name, row in text_rows.items()}
    width = model.config.text_config.hidden_size
    programs = {key: run for key, (_, run) in rows.items()}
    programs |= {("limit", name): GemmLimit(width, dtype) for name, dtype in DTYPES.items()}
    operations, outputs = {}, {}
    for key, program in programs.items():  # a first run, not timed
        with count_operations() as counted:
            outputs[key] = program()
        operations[key] = sum(counted)
    seconds = time_in_turn(programs, arguments.repeats, arguments.cpu_time)

    result = {}
    for (kind, name), (count, _) in rows.items():
        key, limit = (kind, name), ("limit", "bf16" if "bf16" in name else "fp32")
        baselines = [other for other in rows if other[0] == kind and other[1].startswith("model")]
        result.setdefault(kind, {})[name] = {
            "items_per_second": count / statistics.median(seconds[key]),
            "times_faster_than": {
                other[1]: median_ratio(seconds, other, key, count / rows[other][0]) for other in baselines
            },
            "share_of_gemm_limit": operations[key] / operations[limit] * median_ratio(seconds, limit, key),
            "seconds": seconds[key],
        }
    difference = {
        kind: (
            outputs[kind, next(iter(result[kind]))].pooler_output[: len(outputs[kind, engine].pooler_output)]
            - outputs[kind, engine].pooler_output
        )
        .abs()
        .max()
        .item()
        for kind, engine in (("image", "engine, 2 a pass"), ("text", "engine, 24 a pass"))
    }
    return {
        "rows": result,
        "largest_difference_of_embeddings": difference,
        "gemm_limit_gflops": {
            name: operations["limit", name] / statistics.median(seconds["limit", name]) / 1e9
            for name in DTYPES
        },
        "seconds_to_decode": seconds_to_decode(size),
        "threads": torch.get_num_threads(),
        "clock": "cpu" if arguments.cpu_time else "wall",
        "parameters": model.num_parameters(),
    }


def format_result(result: dict) -> str:
    limits = ", ".join(f"{name} {value:.0f}" for name, value in result["gemm_limit_gflops"].items())
    lines = [
        f"{result['parameters'] / 1e6:.0f} M parameters, {result['threads']} threads, {result['clock']} time"
        f", GEMM limit in GFLOP/s: {limits}"
    ]
    for kind, rows in result["rows"].items():
        heads = "".join(f"{f'x {name}':>26}" for name in next(iter(rows.values()))["times_faster_than"])
        lines.append(f"{kind + 's':28}{'a second':>9}{heads}{'of limit':>10}")
        for name, row in rows.items():
            ratios = "".join(f"{ratio:26.2f}" for ratio in row["times_faster_than"].values())
            lines.append(
                f"  {name:26}{row['items_per_second']:9.2f}{ratios}{row['share_of_gemm_limit']:10.0%}"
            )
        lines.append(
            f"  (embeddings differ by at most {result['largest_difference_of_embeddings'][kind]:.1e})"
        )
    decoding, encoding = result["seconds_to_decode"], result["rows"]["image"]["engine, 2 a pass"]
    share = decoding * encoding["items_per_second"]
    lines.append(f"decoding a picture: {1e3 * decoding:.1f} ms in one thread, {share:.1%} of its encoding")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=16, help="in the large batch (default: 16)")
    parser.add_argument("--texts", type=int, default=48, help="default: 48")
    parser.add_argument("--repeats", type=int, default=3, help="default: 3")
    parser.add_argument("--cpu_time", action="store_true", help="not wall time; with OMP_NUM_THREADS=1")
    parser.add_argument("--output", type=Path, help="write the figures to this JSON file")
    parser.add_argument("--quick", action="store_true", help="everything tiny, to show that the script runs")
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.images, arguments.texts, arguments.repeats = 4, 4, 1
    with torch.inference_mode():
        result = measure(arguments)
    print(format_result(result))
    if arguments.output:
        write_json(arguments.output, result)


if __name__ == "__main__":
    main()
