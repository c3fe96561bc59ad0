"""How much memory a search of a PAB-sized gallery takes: embeddings, tokens on disk, shortlist 128.

    python benchmarks/gallery_memory.py --folder /a/disk/with/12GB        # 36,773 images, 10.9 GB of tokens
    python benchmarks/gallery_memory.py --full_size --queries 32          # with the whole model's arithmetic
    python benchmarks/gallery_memory.py --quick

Writes made embeddings and tokens of X-VLM base's true shape (145 x 1024, fp16) as a gallery, then opens and
searches it in a fresh process, and removes it. The model is narrow unless `--full_size` is given: then it
has X-VLM base's size and random weights, and a search takes what it takes with the real ones.
Memory is the peak resident size, mapped pages included, though the system may take those back at any time.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import measuring
import torch
import torch.nn.functional as F

from tpas.configuration_tpas import TPASConfig
from tpas.modeling_tpas import TPASModel
from tpas.models.fingerprints import model_fingerprint
from tpas.processing_tpas import TPASProcessor
from tpas.search.gallery import Gallery
from tpas.search.manifest import GallerySettings, new_manifest
from tpas.search.shards import ShardRow, list_shards, shard_name, write_shard

TOKENS, WIDTH = 145, 1024  # X-VLM base at 384 pixels
SHARD_ROWS = 512


def build_model(full_size: bool) -> tuple[TPASModel, TPASProcessor]:
    """X-VLM base, or its interface with hardly any arithmetic; equal whenever it is called."""
    torch.manual_seed(0)
    processor = measuring.build_processor(384)
    if full_size:
        return TPASModel(TPASConfig()).eval(), processor
    text = measuring.TINY_TEXT | {"num_hidden_layers": 1, "intermediate_size": 64}
    vision = {"image_size": 384, "embed_dim": 128, "depths": [1, 1, 1, 1], "num_heads": [4, 8, 16, 32]}
    vision["window_size"] = 12
    config = TPASConfig(vision_config=vision, text_config=text, num_cross_modal_layers=1)
    return TPASModel(config).eval(), processor


def write_gallery(directory: Path, images: int, full_size: bool) -> int:
    """A gallery of made embeddings; its tokens repeat those of 512 images. Returns its bytes on disk."""
    model, _ = build_model(full_size)
    settings = GallerySettings(model_fingerprint(model), "float16", None)
    (directory / "shards").mkdir(parents=True)
    tokens = torch.randn(SHARD_ROWS, TOKENS, WIDTH).half()
    names = []
    for first in range(0, images, SHARD_ROWS):
        embeddings = F.normalize(torch.randn(min(SHARD_ROWS, images - first), 256), dim=1)
        ids = [f"image {first + row}" for row in range(len(embeddings))]
        parts = zip(ids, embeddings, tokens, strict=False)
        rows = [ShardRow(name, embedding, own, None, None, None) for name, embedding, own in parts]
        names.append(shard_name(first // SHARD_ROWS, ids))
        write_shard(directory, names[-1], settings, rows, {})
    manifest = new_manifest(settings)
    list_shards(directory, manifest, names)
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def measure(directory: Path, queries: int, full_size: bool) -> dict[str, Any]:
    """Peak memory (MiB) before opening, and after searches, and their seconds."""

    def peak() -> float:
        return measuring.peak_memory() / 2**20

    model, processor = build_model(full_size)
    texts = measuring.drawn_captions(queries, 50)
    figures = {"imports_and_model": peak()}
    gallery = Gallery.open(directory, model, processor)
    figures["opened"] = peak()
    start = time.perf_counter()
    gallery.search(texts, rerank=False)
    figures["embedding_seconds"], figures["embeddings"] = time.perf_counter() - start, peak()
    start = time.perf_counter()
    answers = gallery.search(texts, shortlist=128)
    figures["search_seconds"], figures["search"] = time.perf_counter() - start, peak()
    figures["images"], figures["hits"] = len(gallery), sum(map(len, answers))
    return figures


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Peak memory of searching a PAB-sized gallery.")
    parser.add_argument("--images", type=int, default=36_773)
    parser.add_argument("--queries", type=int, default=64)
    parser.add_argument("--full_size", action="store_true", help="the model's: 214 M parameters")
    parser.add_argument("--folder", type=Path, help="where the temporary gallery is written")
    measuring.add_output_arguments(parser)
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.images, arguments.queries = 600, 4
    with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
        directory = Path(temporary) / "gallery"
        # Fresh processes' peaks begin at that of the one that starts them: this one stays small.
        full_size = arguments.full_size
        disk = measuring.in_fresh_process(write_gallery, directory, arguments.images, full_size)
        figures = measuring.in_fresh_process(measure, directory, arguments.queries, full_size)
    figures |= {"disk_bytes": disk, "queries": arguments.queries}
    print(f"{figures['images']:,} images, {disk / 1e9:.1f} GB on disk, {arguments.queries} queries at once")
    for name in ("imports_and_model", "opened", "embeddings", "search"):
        print(f"peak memory, {name.replace('_', ' '):18}{figures[name]:8.0f} MiB")
    print(
        f"{figures['embedding_seconds']:.1f} s by embeddings, {figures['search_seconds']:.1f} s with matching"
    )
    measuring.write_output(arguments.output, figures)


if __name__ == "__main__":
    main()
