"""Makes and keeps a gallery: images encoded once into a directory, which `tpas search` then searches.

    tpas gallery build images --model demo_start --path gallery

`accelerate launch -m tpas gallery build ...` shares the encoding out over processes and machines.
"""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from typer import Argument, Option

from ..data.image_folders import FolderRules
from ..data.text_files import read_texts
from ..search.arguments import OnClash
from .command_line import CHECK_FAILED, DONE, CommandLine, CommandResult, WrongUsage
from .model_choice import ModelChoice, warn_of_drawn_people
from .quick_imports import quick_imports

if TYPE_CHECKING:
    from accelerate import Accelerator

    from ..models.interface import RetrievalModel, RetrievalProcessor
    from ..search.gallery_files import GalleryFiles

app = CommandLine("tpas gallery", __doc__)

Images = Annotated[Path, Argument(help="the folder of images; ids are paths below it")]
Directory = Annotated[Path, Option("--path", help="the gallery's directory")]
Existing = Annotated[Path, Argument(help="the gallery's directory")]
Prefix = Annotated[
    str, Option("--id_prefix", help="what each id begins with, such as camera1/, where names repeat")
]
Clash = Annotated[
    OnClash,
    Option("--on_clash", help="about an id that the gallery has for another image; replace: encode this one"),
]
ShardSize = Annotated[int, Option("--shard_size", help="images in a file", min=1)]
BatchSize = Annotated[int, Option("--batch_size", help="images encoded together", min=1)]
Workers = Annotated[int, Option("--workers", help="threads that read images", min=1)]


@app.command()
def build(
    images: Images,
    choice: ModelChoice,
    path: Directory,
    rules: FolderRules,
    tokens: Annotated[
        Literal["float16", "float32", "none"],
        Option(help="the type of the stored image tokens; none: computed again for each search"),
    ] = "float16",
    thumbnail_size: Annotated[
        int | None, Option(help="keep small copies, this many pixels wide or high at most", min=1)
    ] = None,
    bf16: Annotated[
        bool, Option(help="encode in bfloat16: faster on a processor that has it, not the same to the bit")
    ] = False,
    id_prefix: Prefix = "",
    on_clash: Clash = "error",
    shard_size: ShardSize = 512,
    batch_size: BatchSize = 16,
    workers: Workers = 2,
) -> CommandResult:
    """Encodes a folder of images; goes on where a killed build stopped.

    tpas gallery build images --model demo_start --path gallery
    """
    from ..search.gallery_files import GalleryFiles
    from ..search.manifest import MANIFEST

    files = GalleryFiles(path) if (path / MANIFEST).exists() else None
    choice.source(files)
    with quick_imports():
        from ..search.gallery import Gallery

    encoders, accelerator = load_encoders(choice, files)
    warn_of_drawn_people(encoders[0], images)
    gallery = Gallery.build(
        *encoders,
        images,
        path,
        tokens=None if tokens == "none" else tokens,
        thumbnail_size=thumbnail_size,
        bf16=bf16,
        rules=rules,
        id_prefix=id_prefix,
        on_clash=on_clash,
        shard_size=shard_size,
        batch_size=batch_size,
        workers=workers,
        accelerator=accelerator,
    )
    accelerator.end_training()
    return description(gallery.stored)


@app.command()
def append(
    images: Images,
    choice: ModelChoice,
    path: Directory,
    rules: FolderRules,
    id_prefix: Prefix = "",
    on_clash: Clash = "error",
    shard_size: ShardSize = 512,
    batch_size: BatchSize = 16,
    workers: Workers = 2,
) -> CommandResult:
    """Encodes the images that a gallery lacks.

    tpas gallery append more_images --path gallery --id_prefix more/
    """
    from ..search.gallery_files import GalleryFiles

    files = GalleryFiles(path)
    choice.source(files)
    with quick_imports():
        from ..search.gallery import Gallery

    encoders, accelerator = load_encoders(choice, files)
    warn_of_drawn_people(encoders[0], images)
    gallery = Gallery.open(path, *encoders)
    work = {"shard_size": shard_size, "batch_size": batch_size, "workers": workers}
    ids = {"rules": rules, "id_prefix": id_prefix, "on_clash": on_clash}
    gallery.append(images, **ids, **work, accelerator=accelerator)
    accelerator.end_training()
    return description(gallery.stored)


@app.command()
def delete(
    path: Existing,
    ids: Annotated[list[str] | None, Argument(metavar="ID")] = None,
    older_than: Annotated[
        str | None, Option(help="of films: visits that ended so long ago, such as 30d, 12h or 2w")
    ] = None,
) -> CommandResult:
    """Removes images and what was computed from them; the image files stay, but not what was cut from films.

    tpas gallery delete gallery 0001.jpg street/0002.jpg
    """
    if (ids is None) == (older_than is None):
        raise WrongUsage("name the images to remove, or give --older_than")
    if older_than is not None:
        from ..footage.retention import forget, older_visits, read_age

        try:
            age = read_age(older_than)
        except ValueError as error:
            raise WrongUsage(f"--older_than: {error}") from None
        older = older_visits(path, age, datetime.now().astimezone())
        removed, visits = forget(path, older), sum(len(own) for _, own in older)
        return CommandResult(
            {"path": str(path), "removed": removed, "visits": visits},
            f"{visits:,} visits removed, with {len(removed):,} images; the films stay",
        )
    assert ids is not None
    with quick_imports():
        from ..footage.retention import forget_images
        from ..search.gallery import Gallery
        from ..search.manifest import FOOTAGE

    gallery = Gallery.open(path)
    if (path / FOOTAGE).is_dir():
        forget_images(path, ids)
        gallery.refresh()
    else:
        gallery.delete(ids)
    return CommandResult(
        {"path": str(path), "removed": ids, "images": len(gallery)},
        f"{len(ids)} images removed, {len(gallery):,} left",
    )


@app.command()
def index(
    path: Existing,
    choice: ModelChoice,
    index: Annotated[
        str, Option(help="faiss, or a Milvus address (http://host:19530; *.db for milvus-lite)")
    ],
    texts: Annotated[
        Path | None, Option(help="file of texts, one a line, that a faiss index is set by")
    ] = None,
) -> CommandResult:
    """Builds or renews an index for large galleries.

    tpas gallery index gallery --index faiss
    """
    from ..search.arguments import check_index, without_password

    check_index(index)
    files = None
    if texts is not None:  # which the model encodes
        from ..search.gallery_files import GalleryFiles

        files = GalleryFiles(path)
        choice.source(files)
    asked = None if texts is None else read_texts(texts)
    if asked == []:
        raise ValueError(f"{texts}: no text in it")
    with quick_imports():
        from ..search.gallery import Gallery

    encoders, lines = (None, None), None
    if asked is not None:
        from ..models.unread_texts import warn_of_unread

        encoders, lines = load_encoders(choice, files)[0], [text.text for text in asked]
        warn_of_unread(encoders[1], lines, [text.place for text in asked])
    done = Gallery.open(path, *encoders).write_index(index, lines)
    return CommandResult({"path": str(path), "index": without_password(index), "message": done}, done)


@app.command()
def info(
    path: Existing,
    verify: Annotated[
        bool, Option(help="compare every file with its checksum; exit code 3 if one differs")
    ] = False,
    unreadable: Annotated[bool, Option(help="list the images that could not be read")] = False,
) -> CommandResult:
    """Says what is in a gallery.

    tpas gallery info gallery --verify
    """
    from ..search.gallery_files import GalleryFiles
    from ..search.manifest import GalleryError

    gallery = GalleryFiles(path)
    result = description(gallery)
    lines, exit_code = [result.text], DONE
    if unreadable:
        lines += [f"{name}: {reason}" for name, reason in gallery.unreadable.items()]
    if verify:
        damage = None
        try:
            gallery.verify()
        except GalleryError as error:
            damage, exit_code = str(error), CHECK_FAILED
        result.content["damage"] = damage
        lines.append(damage or "every file agrees with its checksum")
    return CommandResult(result.content, "\n".join(lines), exit_code)


def load_encoders(
    choice: ModelChoice, files: "GalleryFiles | None"
) -> tuple[tuple["RetrievalModel", "RetrievalProcessor"], "Accelerator"]:
    """A model with its processor, and the processes that share the work, on whose device it is."""
    from accelerate import Accelerator, InitProcessGroupKwargs

    from ..search.building import SILENCE

    accelerator = Accelerator(kwargs_handlers=[InitProcessGroupKwargs(timeout=SILENCE)])
    network, processor = choice.load(files)
    return (network.to(accelerator.device), processor), accelerator


def description(gallery: "GalleryFiles") -> CommandResult:
    """Counts, sizes and settings."""
    settings = gallery.settings
    content = {
        "path": str(gallery.directory),
        "images": len(gallery),
        "shards": len(gallery.shards),
        "bytes": gallery.size_on_disk,
        "model_fingerprint": settings.model_fingerprint,
        "model": gallery.model_source and gallery.model_source.to_json(),
        "tokens": settings.tokens,
        "thumbnail_size": settings.thumbnail_size,
        "bf16": settings.bf16,
        "faiss_index": gallery.has_faiss_index,
        "unreadable": gallery.unreadable,
    }
    lines = (
        f"{gallery.directory}: {len(gallery):,} images in {len(gallery.shards)} shards, "
        f"{gallery.size_on_disk / 1e6:,.1f} MB",
        f"made by {gallery.model_source or 'a model that it does not name'}",
        f"model {settings.model_fingerprint}{' in bf16' if settings.bf16 else ''}, "
        f"tokens {settings.tokens or 'left out'}, "
        f"thumbnails {settings.thumbnail_size or 'none'}, "
        f"faiss index {'there' if gallery.has_faiss_index else 'none'}",
        f"{len(gallery.unreadable)} images could not be read",
    )
    return CommandResult(content, "\n".join(lines))


def main(argv: Sequence[str] | None = None) -> None:
    app.run(argv)


if __name__ == "__main__":
    main()
