"""One folder of images searched by five models: start-up, images a second, memory, and equal answers.

    OMP_NUM_THREADS=1 python benchmarks/photographs.py --output benchmarks/photographs.json

Each model is built at full size from its configuration with random weights, and a small tokenizer of the
captions' words: nothing is downloaded, and neither speed nor memory depends on the weights. What is found
does: it is chance, and only compared between ways to search. The images are drawn people as JPEG.

For each model a folder is searched by the command twice, in processes of their own: the first encodes the
images, the second does not, so its time is that of the start, and the difference that of the images. Then
Python opens the same folder's gallery, and the page's own function searches it. All three must give the same
images in the same order, with scores that differ by less than 1e-5.

Times are the processes' own, since other programs may run beside; medians of the repeats. `--quick` builds
small networks and only shows that the script runs.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measuring
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertTokenizer,
    BlipConfig,
    BlipForImageTextRetrieval,
    BlipImageProcessorPil,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    PreTrainedTokenizerFast,
    Siglip2Config,
    Siglip2ImageProcessorPil,
    Siglip2Model,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
)

from tpas.data.drawn.synthetic_pab import DEMO_WORLD, captions_vocabulary, draw_pab
from tpas.models.loading import load_model
from tpas.search.folder_gallery import open_folder
from tpas.search_page.requests import SearchRequests, Session

TEXTS = ["A man in a red coat is running on the street.", "A woman is lying on the grass."]
TOP_K = 10
TOLERANCE = 1e-5
SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
CLIP_WORDS, SIGLIP_2_WORDS, BLIP_WORDS = 49_408, 256_000, 30_522
QUICK_WORDS = 1_000  # and no more where everything is small


def filled(words: list[str], size: int) -> list[str]:
    """The words, and as many that nobody says as make them `size`: as many as the model has."""
    return [*words, *(f"unsaid{number}" for number in range(len(words), size))]


def word_tokenizer(length: int, size: int) -> PreTrainedTokenizerFast:
    """A word for a token, with the ids that CLIP's and SigLIP's configurations here know, `size` in all."""
    special = ["<pad>", "<s>", "</s>", "<unk>"]
    words = filled([*special, *captions_vocabulary(DEMO_WORLD)], size)
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    names = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), special, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=length, **names)


def build_clip(quick: bool) -> list[Any]:
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    small, words = (SMALL, QUICK_WORDS) if quick else ({}, CLIP_WORDS)
    text = {"vocab_size": words} | ids | small
    vision = {"patch_size": 32, "image_size": 224} | small
    network = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, **ids))
    size = {"height": 224, "width": 224}
    return [
        network,
        CLIPImageProcessorPil(size={"shortest_edge": 224}, crop_size=size),
        word_tokenizer(77, words),
    ]


def build_siglip_2(quick: bool) -> list[Any]:
    """A checkpoint of a fixed size: those have SigLIP's own architecture."""
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    small, words = (SMALL, QUICK_WORDS) if quick else ({}, SIGLIP_2_WORDS)
    text = {"vocab_size": words} | ids | small
    vision = {"patch_size": 16, "image_size": 224} | small
    network = SiglipModel(SiglipConfig(text_config=text, vision_config=vision))
    images = SiglipImageProcessorPil(size={"height": 224, "width": 224})
    return [network, images, word_tokenizer(64, words)]


def build_siglip_2_naflex(quick: bool) -> list[Any]:
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    small, words = (SMALL, QUICK_WORDS) if quick else ({}, SIGLIP_2_WORDS)
    text = {"vocab_size": words} | ids | small
    vision = {"patch_size": 16, "num_patches": 256} | small
    network = Siglip2Model(Siglip2Config(text_config=text, vision_config=vision))
    return [
        network,
        Siglip2ImageProcessorPil(patch_size=16, max_num_patches=256),
        word_tokenizer(64, words - 1),  # its class adds one
    ]


def build_blip(quick: bool) -> list[Any]:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = filled([*special, *captions_vocabulary(DEMO_WORLD)], QUICK_WORDS if quick else BLIP_WORDS)
    tokenizer = BertTokenizer(vocab={word: number for number, word in enumerate(words)})
    vision, text = {"patch_size": 16, "image_size": 384}, {"encoder_hidden_size": 768}
    if quick:
        vision, text = vision | SMALL, SMALL | {"encoder_hidden_size": SMALL["hidden_size"]}
        text["vocab_size"] = len(words)
    network = BlipForImageTextRetrieval(BlipConfig(text_config=text, vision_config=vision))
    return [network, BlipImageProcessorPil(size={"height": 384, "width": 384}), tokenizer]


def build_tpas(quick: bool) -> list[Any]:
    network = measuring.build_model(quick)
    return [network, measuring.build_processor(network.config.vision_config.image_size)]


BUILDERS: dict[str, Callable[[bool], list[Any]]] = {
    "CLIP, ViT-B/32": build_clip,
    "SigLIP 2, base, patch 16, 224": build_siglip_2,
    "SigLIP 2, base, patch 16, NaFlex": build_siglip_2_naflex,
    "BLIP, base, 384": build_blip,
    "TPAS (X-VLM), 384": build_tpas,
}


def build(name: str, folder: Path, quick: bool) -> int:
    """Writes the model with its processors; returns the number of its parameters."""
    torch.manual_seed(0)
    parts = BUILDERS[name](quick)
    for part in parts:
        part.save_pretrained(folder)
    return sum(parameter.numel() for parameter in parts[0].parameters())


def search_by_command(images: Path, model: Path) -> tuple[dict[str, float], list[Any]]:
    """Seconds and peak bytes of a search in a process of its own, and its answers."""
    words = [sys.executable, "-m", "tpas", "search", str(images), *TEXTS, "--model", str(model)]
    with tempfile.TemporaryFile() as printed, tempfile.TemporaryFile() as said:
        start = time.perf_counter()
        command = subprocess.Popen(
            [*words, "--json", "--top_k", str(TOP_K)], stdout=printed, stderr=said, env=os.environ
        )
        _, status, usage = os.wait4(command.pid, 0)
        wall = time.perf_counter() - start
        command.returncode = os.waitstatus_to_exitcode(status)
        for file in (printed, said):
            file.seek(0)
        if command.returncode:
            raise SystemExit(said.read().decode())
        answers = [answer["hits"] for answer in json.load(printed)]
    measured = {"seconds": usage.ru_utime + usage.ru_stime, "wall": wall, "bytes": usage.ru_maxrss * 1024}
    return measured, [[(hit["id"], hit["score"]) for hit in hits] for hits in answers]


def search_by_python_and_page(images: Path, model: Path) -> list[Any]:
    """The answers of both."""
    gallery = open_folder(images, *load_model(str(model)))
    python = gallery.search(TEXTS, top_k=TOP_K)
    page = SearchRequests(gallery).search(Session(), TEXTS, shown=TOP_K, sca=False)
    return [[[(hit.id, hit.score) for hit in hits] for hits in answers] for answers in (python, page)]


def difference(answers: list[Any], others: list[Any]) -> float:
    """The largest one between scores; raises ValueError where other images are found or it is too large."""
    pairs = [pair for row in zip(answers, others, strict=True) for pair in zip(*row, strict=True)]
    largest = max(abs(hit[1] - other[1]) for hit, other in pairs)
    if any(hit[0] != other[0] for hit, other in pairs) or largest >= TOLERANCE:
        raise ValueError(f"the answers differ: {pairs}")
    return largest


def measure(name: str, images: Path, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    parameters = measuring.in_fresh_process(build, name, folder, arguments.quick)
    beside = images.with_name(f"{images.name}.gallery")
    encoding, starting, answers = [], [], []
    for _ in range(arguments.repeats):
        shutil.rmtree(beside, ignore_errors=True)
        for runs in (encoding, starting):
            measured, found = search_by_command(images, folder)
            runs.append(measured)
            answers.append(found)
        print(
            f"{name}: {encoding[-1]['seconds']:.1f} s, then {starting[-1]['seconds']:.1f} s", file=sys.stderr
        )
    answers += measuring.in_fresh_process(search_by_python_and_page, images, folder)
    seconds = [first["seconds"] - later["seconds"] for first, later in zip(encoding, starting, strict=True)]
    return {
        "parameters": parameters,
        "bytes_on_disk": sum(path.stat().st_size for path in folder.iterdir()),
        "start_seconds": statistics.median(run["seconds"] for run in starting),
        "start_wall_seconds": statistics.median(run["wall"] for run in starting),
        "images_per_second": len(os.listdir(images)) / statistics.median(seconds),
        "peak_bytes_encoding": statistics.median(run["bytes"] for run in encoding),
        "peak_bytes_searching": statistics.median(run["bytes"] for run in starting),
        "largest_difference_of_scores": max(difference(answers[0], others) for others in answers[1:]),
    }


def markdown(result: dict[str, Any]) -> str:
    heads = (
        "model",
        "parameters",
        "files",
        "start-up, s",
        "images/s",
        "memory, encoding",
        "memory, searching",
    )
    rows = [
        [
            name,
            f"{row['parameters'] / 1e6:,.1f} M",
            f"{row['bytes_on_disk'] / 1e9:.2f} GB",
            f"{row['start_seconds']:.1f}",
            f"{row['images_per_second']:.2g}",
            f"{row['peak_bytes_encoding'] / 1e9:.1f} GB",
            f"{row['peak_bytes_searching'] / 1e9:.1f} GB",
        ]
        for name, row in result["rows"].items()
    ]
    largest = max(row["largest_difference_of_scores"] for row in result["rows"].values())
    agreement = f"differ by at most {largest:.0e}" if largest else "are equal to the bit"
    lines = ["# A folder of images, searched by five models", "", *measuring.markdown_table(heads, rows)]
    lines += [
        "",
        f"Of `tpas search` on {result['images']} drawn people of {result['image_size']} pixels as JPEG, with "
        f"{len(TEXTS)} texts, in fp32 and {result['threads']} thread on {result['machine']}; full size with "
        "random weights, and small tokenizers of the captions' words: the real ones take more "
        "(SigLIP 2's file has 34 MB). Times are the processes' own, medians of "
        f"{result['repeats']} runs, while other programs ran beside: start-up is a whole search of what is "
        "encoded already, with the loading and checking of the "
        "model. Command, page and Python found the same images in the same order with every model, and their "
        f"scores {agreement}. Searching, CLIP and SigLIP rank by cosine; BLIP and TPAS re-rank "
        f"all {result['images']} images for each text.",
    ]
    if result["quick"]:
        lines += ["", "Small networks: nothing of this is a measurement."]
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=12, help="default: 12")
    parser.add_argument("--repeats", type=int, default=3, help="default: 3")
    parser.add_argument("--models", nargs="+", default=list(BUILDERS), choices=list(BUILDERS))
    parser.add_argument("--machine", default="this machine", help="its name, for the table")
    measuring.add_output_arguments(parser)
    arguments = parser.parse_args(argv)
    image_size = 64 if arguments.quick else 384
    result: dict[str, Any] = {
        "rows": {},
        "images": arguments.images,
        "image_size": image_size,
        "repeats": arguments.repeats,
        "machine": arguments.machine,
        "quick": arguments.quick,
    }
    result |= measuring.machine(cpu_time=True)
    with tempfile.TemporaryDirectory() as folder:
        pairs = {"train_pairs": 2, "test_pairs": arguments.images}
        drawn = draw_pab(Path(folder) / "drawn", **pairs, image_size=image_size, workers=1)
        images = Path(shutil.copytree(drawn / "test" / "imgs", Path(folder) / "photographs"))
        for name in arguments.models:
            with tempfile.TemporaryDirectory(dir=folder) as model:  # one on the disk at a time
                result["rows"][name] = measure(name, images, Path(model), arguments)
            measuring.write_output(arguments.output, result, markdown(result))  # what there is so far
    print(markdown(result))


if __name__ == "__main__":
    main()
