"""Finds the pictures of a gallery that answer a text.

tpas search GALLERY "a man in a red coat is lying on the road" --model MODEL
"""

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from typing import get_args

import torch

from tpas.gallery.manifest import GalleryError
from tpas.lora import load_model
from tpas.processing_tpas import TPASProcessor
from tpas.retrieval_stages import DEFAULT_SHORTLIST
from tpas.sca import Confidence
from tpas.search import Gallery, SearchHit


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Find the pictures of a gallery that answer a text.")
    add = parser.add_argument
    add("gallery", help="the directory that `tpas gallery build` made")
    add("texts", nargs="+", metavar="text")
    add("--model", required=True, help="the model that built it: its folder, or its name on the Hub")
    add("--top_k", type=int, default=10, help="pictures shown for each text (default: 10)")
    add(
        "--shortlist",
        type=int,
        default=DEFAULT_SHORTLIST,
        help=f"pictures re-ranked for each text (default: {DEFAULT_SHORTLIST})",
    )
    add("--no_rerank", action="store_true", help="rank by the embeddings alone")
    add(
        "--sca",
        choices=get_args(Confidence),
        nargs="?",
        const="score",
        help="settle collisions between the texts (default confidence: score)",
    )
    precision = parser.add_mutually_exclusive_group()
    precision.add_argument(
        "--bf16", action="store_true", help="re-rank in bfloat16: faster, and close ones change places"
    )
    precision.add_argument(
        "--cascade",
        action="store_true",
        help="re-rank in bfloat16 first, and in float32 what can still be among the --top_k: the same answer",
    )
    add("--index", default="exact", help="exact, faiss, or a Milvus address (default: exact)")
    add("--images_root", help="the folder where the pictures lie now, if it was moved since the build")
    add("--json", action="store_true", help="print JSON")
    return parser.parse_args(argv)


def hit_fields(hit: SearchHit) -> dict[str, object]:
    names = ("id", "rank", "score", "cosine", "match_logit", "match_probability", "embedding_rank")
    return {name: getattr(hit, name) for name in names} | {"path": hit.path and str(hit.path)}


def table(hits: Sequence[SearchHit]) -> str:
    lines = [f"{'rank':>4} {'match':>8} {'cosine':>7} {'by cosine':>9}  picture"]
    for hit in hits:
        match = "" if hit.match_logit is None else f"{hit.match_logit:.3f}"
        lines.append(
            f"{hit.rank:>4} {match:>8} {hit.cosine:>7.3f} {hit.embedding_rank:>9}  {hit.path or hit.id}"
        )
    return "\n".join(lines)


def search(arguments: argparse.Namespace) -> list[list[SearchHit]]:
    model = load_model(arguments.model, dtype=torch.float32).eval()
    processor = TPASProcessor.from_pretrained(arguments.model)
    gallery = Gallery.open(
        arguments.gallery,
        model,
        processor,
        index=arguments.index,
        images_root=arguments.images_root,
        matching_dtype="bfloat16" if arguments.bf16 else "float32",
    )
    answers = gallery.search(
        arguments.texts,
        top_k=arguments.top_k,
        shortlist=arguments.shortlist,
        rerank=not arguments.no_rerank,
        sca=arguments.sca,
        cascade=arguments.cascade,
    )
    if gallery.cascade_report:
        print(f"cascade: {gallery.cascade_report}", file=sys.stderr)
    return answers


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse_arguments(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        answers = search(arguments)
    except (GalleryError, OSError, ValueError, ImportError) as error:
        raise SystemExit(f"tpas search: {error}") from error
    if arguments.json:
        pairs = zip(arguments.texts, answers, strict=True)
        content = [{"text": text, "hits": [hit_fields(hit) for hit in hits]} for text, hits in pairs]
        print(json.dumps(content, indent=1))
        return
    for text, hits in zip(arguments.texts, answers, strict=True):
        print(text)
        print(table(hits), end="\n\n")


if __name__ == "__main__":
    main()
