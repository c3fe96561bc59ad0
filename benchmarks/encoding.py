"""How much faster `FastEncoder` encodes images and texts than the model's own forward, in one run.

    OMP_NUM_THREADS=2 python benchmarks/encoding.py --output encoding.json
    OMP_NUM_THREADS=2 python benchmarks/encoding.py --probe

A model of full size with random weights. The straightforward passes are `SwinModel`'s and `BertModel`'s as
`TPASModel` calls them: images in one batch, as `encode_images` makes them, texts of 40 to 60 words padded to
70 tokens, as upstream. All rows are run in turn, so that what else the machine does falls on all alike.
`--probe` adds the model with images one by one and texts padded to the longest, and the engine with other
numbers of items a batch, which is how the defaults of `fast_encoding.py` were found.

Shares of the GEMM limit count linear layers alone; "at limit" is how many times faster than the
straightforward pass an engine would be that did its linear layers at the limit, and the rest in no time.
The last line says how long Pillow takes for an image, which threads of a gallery's build do meanwhile.
`--quick` only shows that the script runs.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import measuring
import torch
from measuring import DTYPES

from tpas.engine.fast_encoding import FastEncoder

IMAGE = (192, 384)  # width and height
PROBED_IMAGES, PROBED_TEXTS = (1, 2, 8), (12, 48)


def seconds_to_decode(image_size: int) -> float:
    """Median time from a JPEG file to `pixel_values`."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image.jpg"
        measuring.noise_image(*IMAGE, seed=0).save(path)
        return measuring.seconds_to_read([path], measuring.build_processor(image_size), repeats=10)


@torch.inference_mode()
def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    images, texts = arguments.images, arguments.texts
    model = measuring.build_model(arguments.quick)
    size = model.config.vision_config.image_size
    pixels = torch.randn(images, 3, size, size)
    input_ids, mask = measuring.draw_token_ids(model, texts)
    longest = int(mask.sum(dim=1).max())

    def image_engine(dtype, **settings):
        encoder = FastEncoder(model, dtype, **settings)
        return lambda: encoder.get_image_features(pixels.to(dtype))

    def text_engine(dtype, **settings):
        encoder = FastEncoder(model, dtype, **settings)
        return lambda: encoder.get_text_features(input_ids[:, :longest], mask[:, :longest])

    programs = {
        ("image", "model"): lambda: model.get_image_features(pixels),
        ("text", "model"): lambda: model.get_text_features(input_ids, mask),
    }
    for name, dtype in DTYPES.items():
        programs["image", f"engine {name}"] = image_engine(dtype)
        programs["text", f"engine {name}"] = text_engine(dtype)
    if arguments.probe:
        short_ids, short_mask = input_ids[:, :longest], mask[:, :longest]
        programs["image", "model, one by one"] = lambda: [
            model.get_image_features(image[None]) for image in pixels
        ]
        programs["text", "model, longest"] = lambda: model.get_text_features(short_ids, short_mask)
        for count in PROBED_IMAGES:
            engine = image_engine(torch.float32, images_per_batch=count)
            programs["image", f"engine, {count} a batch"] = engine
        for count in PROBED_TEXTS:
            programs["text", f"engine, {count} a batch"] = text_engine(torch.float32, texts_per_batch=count)

    width = model.config.text_config.hidden_size
    compared = measuring.compare(programs, width, arguments.repeats, arguments.cpu_time)
    items = {"image": images, "text": texts}
    rows = {"image": {}, "text": {}}
    for kind, name in programs:
        precision = "bf16" if "bf16" in name else "fp32"
        counts = items[kind], precision, (kind, "model"), items[kind]
        rows[kind][name] = compared.row((kind, name), *counts)
    embeddings = {key: output.pooler_output for key, output in compared.outputs.items() if key[1] == "model"}
    differences = {
        kind: (embeds - compared.outputs[kind, "engine fp32"].pooler_output).abs().max().item()
        for (kind, _), embeds in embeddings.items()
    }
    return measuring.machine(arguments.cpu_time) | {
        "rows": rows,
        "largest_difference_of_embeddings": differences,
        "gemm_limit_gflops": {name: compared.gemm_limit(name) / 1e9 for name in DTYPES},
        "seconds_to_decode": seconds_to_decode(size),
        "parameters": model.num_parameters(),
    }


def format_result(result: dict[str, Any]) -> str:
    lines = [
        f"{result['parameters'] / 1e6:.0f} M parameters, {result['threads']} threads, {result['clock']} time"
        f", {measuring.limits_line(result['gemm_limit_gflops'])}"
    ]
    for kind, rows in result["rows"].items():
        lines.append(f"{kind + 's':24}{'a second':>9}{'x model':>9}{'of limit':>10}{'at limit':>10}")
        for name, row in rows.items():
            lines.append(
                f"  {name:22}{row['items_per_second']:9.2f}{row['times_faster']:9.2f}"
                f"{row['share_of_gemm_limit']:10.0%}{row['times_faster_at_the_limit']:10.2f}"
            )
        difference = result["largest_difference_of_embeddings"][kind]
        lines.append(f"  (embeddings differ by at most {difference:.1e})")
    decoding, encoding = result["seconds_to_decode"], result["rows"]["image"]["engine fp32"]
    share = decoding * encoding["items_per_second"]
    lines.append(f"decoding an image: {1e3 * decoding:.1f} ms in one thread, {share:.1%} of its encoding")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=16, help="in a batch (default: 16)")
    parser.add_argument("--texts", type=int, default=48, help="default: 48")
    parser.add_argument("--probe", action="store_true", help="other numbers of items a batch as well")
    measuring.add_timing_arguments(parser, repeats=3)
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.images, arguments.texts, arguments.repeats = 4, 4, 1
    result = measure(arguments)
    print(format_result(result))
    measuring.write_output(arguments.output, result)


if __name__ == "__main__":
    main()
