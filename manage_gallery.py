"""Makes and keeps a gallery: pictures encoded once into a directory, which `tpas search` then searches.

    tpas gallery build PICTURES --model MODEL --path GALLERY
    tpas gallery append MORE_PICTURES --model MODEL --path GALLERY
    tpas gallery delete GALLERY ID [ID ...]
    tpas gallery index GALLERY --index faiss
    tpas gallery info GALLERY --verify

`accelerate launch manage_gallery.py build ...` shares the encoding out over processes and machines.
"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator

from tpas.gallery.faiss_index import has_faiss_index
from tpas.gallery.manifest import GalleryError
from tpas.lora import load_model
from tpas.processing_tpas import TPASProcessor
from tpas.search import Gallery


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Make and keep a gallery of pictures.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, about in (
        ("build", "encode a folder of pictures; goes on where a killed build stopped"),
        ("append", "encode the pictures whose ids a gallery lacks"),
    ):
        command = commands.add_parser(name, help=about)
        add = command.add_argument
        add("images", help="the folder of pictures; ids are paths below it")
        add("--model", required=True, help="a model or adapter: its folder, or its name on the Hub")
        add("--path", required=True, help="the gallery's directory")
        add("--shard_size", type=int, default=512, help="pictures in a file (default: 512)")
        add(
            "--batch_size",
            type=_count_or_auto,
            default=16,
            help="pictures encoded together; auto: a probe finds the quickest pass (default: 16)",
        )
        add("--workers", type=int, default=2, help="threads that read pictures (default: 2)")
        if name == "build":
            add(
                "--tokens",
                choices=["float16", "float32", "none"],
                default="float16",
                help="how the image tokens are kept; none: computed again for each search (default: float16)",
            )
            add("--thumbnail_size", type=int, help="keep small copies, this many pixels wide or high at most")
    command = commands.add_parser("delete", help="remove pictures and what was computed from them")
    command.add_argument("path", help="the gallery's directory")
    command.add_argument("ids", nargs="+", metavar="ID")
    command = commands.add_parser("index", help="build or renew an index for large galleries")
    command.add_argument("path", help="the gallery's directory")
    command.add_argument(
        "--index", required=True, help="faiss, or a Milvus address (http://host:19530; *.db for milvus-lite)"
    )
    command.add_argument("--texts", help="file of texts, one a line, that a faiss index is set by")
    command.add_argument("--model", help="the gallery's model; only --texts needs it")
    command = commands.add_parser("info", help="say what a gallery holds")
    command.add_argument("path", help="the gallery's directory")
    command.add_argument("--verify", action="store_true", help="compare every file with its checksum")
    command.add_argument("--unreadable", action="store_true", help="list the pictures that could not be read")
    return parser.parse_args(argv)


def _count_or_auto(text: str) -> int | str:
    return text if text == "auto" else int(text)


def encode(arguments: argparse.Namespace) -> None:
    accelerator = Accelerator()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    model = load_model(arguments.model, dtype=torch.float32).to(accelerator.device)
    processor = TPASProcessor.from_pretrained(arguments.model)
    work = {name: getattr(arguments, name) for name in ("shard_size", "batch_size", "workers")}
    work["accelerator"] = accelerator
    if arguments.command == "append":
        gallery = Gallery.open(arguments.path, model, processor)
        gallery.append(arguments.images, **work)
    else:
        tokens = None if arguments.tokens == "none" else arguments.tokens
        kept = {"tokens": tokens, "thumbnail_size": arguments.thumbnail_size}
        gallery = Gallery.build(model, processor, arguments.images, arguments.path, **kept, **work)
    if accelerator.is_main_process:
        print(description(gallery))
    accelerator.end_training()


def description(gallery: Gallery) -> str:
    """A few lines on what a gallery holds."""
    stored = gallery.stored
    return "\n".join(
        (
            f"{gallery.path}: {len(gallery):,} pictures in {len(stored.shards)} shards, "
            f"{stored.size_on_disk / 1e6:,.1f} MB",
            f"model {stored.settings.model_fingerprint}, tokens {stored.settings.tokens or 'left out'}, "
            f"thumbnails {stored.settings.thumbnail_size or 'none'}, "
            f"faiss index {'there' if has_faiss_index(gallery.path) else 'none'}",
            f"{len(gallery.unreadable)} pictures could not be read",
        )
    )


def run(arguments: argparse.Namespace) -> None:
    if arguments.command in ("build", "append"):
        encode(arguments)
        return
    gallery = Gallery.open(arguments.path)
    if arguments.command == "delete":
        gallery.delete(arguments.ids)
        print(f"{len(arguments.ids)} pictures removed, {len(gallery):,} left")
    elif arguments.command == "index":
        texts = None
        if arguments.texts is not None:
            if arguments.model is None:
                raise ValueError("--texts needs --model to encode them")
            texts = Path(arguments.texts).read_text(encoding="utf-8").splitlines()
            model = load_model(arguments.model, dtype=torch.float32)
            gallery = Gallery.open(arguments.path, model, TPASProcessor.from_pretrained(arguments.model))
        print(gallery.write_index(arguments.index, texts))
    else:
        print(description(gallery))
        if arguments.unreadable:
            for name, reason in gallery.unreadable.items():
                print(f"{name}: {reason}")
        if arguments.verify:
            gallery.verify()
            print("every file agrees with its checksum")


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse_arguments(argv)
    try:
        run(arguments)
    except KeyError as error:
        raise SystemExit(f"tpas gallery: {error.args[0]}") from error
    except (GalleryError, OSError, ValueError, ImportError) as error:
        raise SystemExit(f"tpas gallery: {error}") from error


if __name__ == "__main__":
    main()
