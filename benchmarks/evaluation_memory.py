"""How much memory an evaluation takes as the gallery grows to the size of the challenge's.

    python benchmarks/evaluation_memory.py --galleries 2000 10000 36773

Each gallery is ranked in a fresh process with 1,978 queries and a shortlist of 128, by a model that is narrow
but gives each image 145 tokens, as the full one does. Images are made up when they are asked for. Prints
the growth of the peak resident memory over what the process held before, beside what all images' tokens and
one whole ranking (queries x gallery) would take.
"""

import argparse
import time
from collections.abc import Sequence

import measuring
import torch
from PIL import Image

from tpas.configuration_tpas import TPASConfig
from tpas.evaluation.ranking import rank_gallery
from tpas.modeling_tpas import TPASModel
from tpas.processing_tpas import TPASProcessor

MEBIBYTE = 2**20
IMAGE_SIZE, WIDTH = 48, 64


class NoiseImages(Sequence[Image.Image]):
    """Images of noise, each drawn when it is asked for."""

    def __init__(self, count: int):
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Image.Image:
        if index >= self.count:
            raise IndexError(index)
        return measuring.noise_image(IMAGE_SIZE, IMAGE_SIZE, seed=index)


def build_model() -> tuple[TPASModel, TPASProcessor]:
    torch.manual_seed(0)
    vision = {"image_size": IMAGE_SIZE, "patch_size": 4, "embed_dim": WIDTH, "depths": [1], "num_heads": [2]}
    vision["window_size"] = 12
    text = measuring.TINY_TEXT | {"num_hidden_layers": 1, "intermediate_size": 64}
    text["max_position_embeddings"] = 32
    configs = {"vision_config": vision, "text_config": text, "num_cross_modal_layers": 1}
    model = TPASModel(TPASConfig(**configs, projection_dim=256, max_text_length=16))
    for parameter in model.parameters():  # far from its start, where all queries want the same few images
        torch.nn.init.normal_(parameter, std=0.5) if parameter.ndim > 1 else None
    return model, measuring.build_processor(IMAGE_SIZE, max_text_length=16)


def measure(images: int, queries: int, shortlist: int, token_memory: int) -> tuple[int, float]:
    """Bytes of growth and seconds for one gallery, in a process of its own."""
    torch.set_num_threads(1)
    model, processor = build_model()
    captions = measuring.drawn_captions(queries, 12)
    settings = {"token_memory": token_memory, "watched": [[row] for row in range(queries)]}

    def rank(count: int, texts: list[str], **more) -> None:
        ids = [f"{number:06}" for number in range(count)]
        query_ids = [f"{number:06}" for number in range(len(texts))]
        rank_gallery(model, processor, texts, query_ids, NoiseImages(count), ids, **more)

    rank(200, captions[:32], shortlist=100)  # what the libraries allocate once
    before, started = measuring.peak_memory(), time.perf_counter()
    rank(images, captions, shortlist=shortlist, **settings)
    return measuring.peak_memory() - before, time.perf_counter() - started


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--galleries", type=int, nargs="+", default=[2000, 10000, 36773], help="default: 2000 10000 36773")
    add("--queries", type=int, default=1978, help="default: 1978")
    add("--shortlist", type=int, default=128, help="default: 128")
    add("--token_memory", type=int, default=64, metavar="MIB", help="of image tokens (default: 64)")
    arguments = parser.parse_args(argv)
    tokens = (IMAGE_SIZE // 4) ** 2 + 1
    print(f"{'images':>9}{'growth, MiB':>13}{'all tokens, MiB':>17}{'one ranking, MiB':>18}{'seconds':>9}")
    for images in arguments.galleries:
        job = images, arguments.queries, arguments.shortlist, arguments.token_memory * MEBIBYTE
        growth, seconds = measuring.in_fresh_process(measure, *job)
        all_tokens = images * tokens * WIDTH * 4
        ranking = images * arguments.queries * 8
        print(
            f"{images:9,}{growth / MEBIBYTE:13.0f}{all_tokens / MEBIBYTE:17.0f}"
            f"{ranking / MEBIBYTE:18.0f}{seconds:9.0f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
