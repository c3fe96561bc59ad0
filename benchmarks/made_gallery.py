"""A gallery of made embeddings as cameras would fill it, without a model: for benchmarks at size."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from tpas.data.moments import Moment
from tpas.search.manifest import SHARDS, GallerySettings, builder_lock, new_manifest
from tpas.search.shards import ShardRow, list_shards, shard_name, unlisted_shards, write_shard
from tpas.search.stored_gallery import StoredGallery

SIZE = 256
IMAGES_A_CLUSTER = 50
CAMERAS = 100
SPECTRUM = 16  # the variance of the n-th direction is 1 / (1 + n / SPECTRUM)
CLUSTERED = 0.8  # the rest is of no cluster
SPREAD = 0.7  # of a cluster: cosines of some 0.67 within one
SHARD_ROWS = 8_192
STARTED_AT = "2026-11-02T00:00:00+00:00"
SECONDS = 7 * 86_400  # of film from each camera


def make_gallery(directory: Path, images: int, shard_rows: int = SHARD_ROWS) -> StoredGallery:
    """Writes one, unless it is there; the same each time."""
    settings = GallerySettings("made", None, None)
    with builder_lock(directory):
        (directory / SHARDS).mkdir(exist_ok=True)
        if not (directory / "gallery.json").exists():
            for number, start in enumerate(range(0, images, shard_rows)):
                rows = _rows(number, start, min(shard_rows, images - start), images)
                write_shard(directory, shard_name(number, [row.id for row in rows]), settings, rows, {})
            manifest = new_manifest(settings)
            list_shards(directory, manifest, unlisted_shards(directory, manifest))
            StoredGallery(directory).renew_columns(None)
    return StoredGallery(directory)


def made_queries(count: int, images: int) -> Tensor:
    """(count, SIZE) unit vectors as texts are: each near a cluster, off it in a direction that all share."""
    generator = torch.Generator().manual_seed(1)
    centres = _centres(images)
    chosen = torch.randint(len(centres), (count,), generator=generator)
    off = F.normalize(torch.randn(SIZE, generator=generator), dim=0)
    return F.normalize(centres[chosen] + 0.5 * _directions(count, generator) + 0.5 * off, dim=1)


def _rows(number: int, start: int, count: int, images: int) -> list[ShardRow]:
    """As they are recorded: camera by camera, each in the order of time."""
    generator = torch.Generator().manual_seed(1_000 + number)
    centres, own = _centres(images), _directions(count, generator)
    chosen = torch.randint(len(centres), (count,), generator=generator)
    clustered = torch.rand(count, generator=generator) < CLUSTERED
    embeddings = F.normalize(torch.where(clustered[:, None], centres[chosen] + SPREAD * own, own), dim=1)
    rows = []
    for place in range(count):
        camera, of_camera = divmod((start + place) * CAMERAS, images)
        seconds = round(SECONDS * of_camera / images, 3)
        name = f"camera{camera:03d}"
        moment = Moment(
            name, seconds, seconds + 10, start + place, (9, 9, 50, 99), seconds, started_at=STARTED_AT
        )
        image = f"{name}/{start + place:09d}.jpg"
        rows.append(ShardRow(image, embeddings[place], None, None, None, None, moment=moment))
    return rows


def _centres(images: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return _directions(max(1, images // IMAGES_A_CLUSTER), generator)


def _directions(count: int, generator: torch.Generator) -> Tensor:
    """(count, SIZE) unit vectors, some directions more frequent than others, as of trained models."""
    scale = (1 + torch.arange(SIZE) / SPECTRUM).rsqrt()
    return F.normalize(scale * torch.randn(count, SIZE, generator=generator), dim=1)
