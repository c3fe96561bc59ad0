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
What bf16 does to the answers is shown by the demo's model on people that it draws: the least cosine of an
image's embeddings in both, and Recall@1 by embeddings of either. The last line says how long Pillow takes
for an image, which threads of a gallery's build do meanwhile.
`--quick` only shows that the script runs.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import measuring
import torch
from drawn_people import DEMO_START
from measuring import DTYPES

from tpas.data.drawn.synthetic_pab import draw_pab
from tpas.data.pab import load_pab, retrieval_split
from tpas.data.pab_images import ImageFiles
from tpas.engine.encoding import encode_texts
from tpas.engine.fast_encoding import FastEncoder
from tpas.evaluation.recall_at_k import RecallAtK
from tpas.modeling_tpas import TPASModel
from tpas.processing_tpas import TPASProcessor
from tpas.search.ranking import rank_by_embeddings

IMAGE = (192, 384)  # width and height
PROBED_IMAGES, PROBED_TEXTS = (1, 2, 8), (12, 48)


def seconds_to_decode(image_size: int) -> float:
    """Median time from a JPEG file to `pixel_values`."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image.jpg"
        measuring.noise_image(*IMAGE, seed=0).save(path)
        return measuring.seconds_to_read([path], measuring.build_processor(image_size), repeats=10)


@torch.inference_mode()
def agreement_of_precisions(pairs: int) -> dict[str, Any]:
    """Of drawn people, encoded by the demo's model in each number format, by `FastEncoder`."""
    with tempfile.TemporaryDirectory(prefix="tpas-drawn-") as folder:
        root = draw_pab(Path(folder) / "pab", train_pairs=2, test_pairs=pairs)
        model, processor = TPASModel.from_pretrained(DEMO_START), TPASProcessor.from_pretrained(DEMO_START)
        benchmark = retrieval_split(load_pab(root, "test", cache_dir=Path(folder) / "cache"))
        files = ImageFiles(root, benchmark.gallery_ids)
        pixels = torch.cat([processor(images=[image])["pixel_values"] for image in files])
        texts = encode_texts(model, processor, benchmark.captions).embeds
    embeds, recall = {}, {}
    for name, dtype in DTYPES.items():
        features = FastEncoder(model, dtype).get_image_features(pixels.to(dtype))
        embeds[name] = features.pooler_output.float()
        ranking, _ = rank_by_embeddings(texts, embeds[name], benchmark.gallery_ids)
        first = [[benchmark.gallery_ids[row]] for row in ranking[:, 0].tolist()]
        recall[name] = RecallAtK().compute(predictions=first, references=benchmark.relevant, k=[1])[
            "recall@1"
        ]
    cosines = (embeds["fp32"] * embeds["bf16"]).sum(dim=1)
    return {"pairs": pairs, "least_cosine": cosines.min().item(), "recall_at_1": recall}


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
        "precisions": agreement_of_precisions(arguments.pairs),
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
    precisions = result["precisions"]
    recall = ", ".join(f"{100 * value:.1f} in {name}" for name, value in precisions["recall_at_1"].items())
    lines.append(
        f"{precisions['pairs']} drawn people, images in bf16: cosine at least "
        f"{precisions['least_cosine']:.5f}, Recall@1 {recall}"
    )
    decoding, encoding = result["seconds_to_decode"], result["rows"]["image"]["engine fp32"]
    share = decoding * encoding["items_per_second"]
    lines.append(f"decoding an image: {1e3 * decoding:.1f} ms in one thread, {share:.1%} of its encoding")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=16, help="in a batch (default: 16)")
    parser.add_argument("--texts", type=int, default=48, help="default: 48")
    parser.add_argument("--pairs", type=int, default=200, help="drawn people (default: 200)")
    parser.add_argument("--probe", action="store_true", help="other numbers of items a batch as well")
    measuring.add_timing_arguments(parser, repeats=3)
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.images, arguments.texts, arguments.pairs, arguments.repeats = 4, 4, 4, 1
    result = measure(arguments)
    print(format_result(result))
    measuring.write_output(arguments.output, result)


if __name__ == "__main__":
    main()
