"""Does the encoder wait for images while a gallery is built?

    OMP_NUM_THREADS=2 python benchmarks/gallery_decoding.py --output gallery_decoding.json

Builds galleries of JPEG files with a model of full size and random weights, as `tpas gallery build` does:
threads read the next batch while the encoder is at work. What it waits is the time between two of its
batches, which includes writing the shard; the first batch, which nobody could have read ahead, is left out.
Images are read at three sizes: such as PAB's, of a film and of a camera's photographs.

Beside it stands what would be gained if a JPEG were decoded to fewer pixels, twice as many a side as the
model takes, and how far the answer would move: the largest difference of a pixel as the model takes it, of
255, and the least cosine of the embeddings, by the demo's model. A gallery is built from whole images: for
such as PAB's nothing would be gained, for photographs some percent beside the encoding of a model of full
size, and their embeddings would not be those that the model's processor gives elsewhere any more.
`--quick` only shows that the script runs.
"""

import argparse
import tempfile
import time
from pathlib import Path
from unittest import mock

import measuring
import torch
from drawn_people import DEMO_START
from PIL import Image

from tpas.configuration_tpas import height_and_width
from tpas.modeling_tpas import TPASModel
from tpas.processing_tpas import TPASProcessor, load_image
from tpas.search import building
from tpas.search.gallery import Gallery

SIZES = {"as PAB's": (192, 384), "a film's": (1080, 1920), "a camera's": (3000, 4000)}  # width and height
QUICK = 8  # times smaller
ENOUGH = 2  # times the model's side
BATCH_SIZE = 4


def save_images(folder: Path, size: tuple[int, int], count: int) -> Path:
    """Noise enlarged four times, which makes JPEG files of the length of photographs'."""
    folder.mkdir()
    for number in range(count):
        small = measuring.noise_image(size[0] // 4, size[1] // 4, seed=number)
        small.resize(size, Image.Resampling.BICUBIC).save(folder / f"{number:03}.jpg")
    return folder


def measure_waiting(model, processor, images: Path, workers: int) -> dict[str, float]:
    spans = []
    encode = building.encode_images

    def timed(*arguments):
        start = time.perf_counter()
        output = encode(*arguments)
        spans.append((start, time.perf_counter()))
        return output

    with tempfile.TemporaryDirectory() as path, mock.patch.object(building, "encode_images", timed):
        Gallery.build(model, processor, images, path, batch_size=BATCH_SIZE, workers=workers)
    spans = spans[1:]  # before the first of these the second batch could be read
    encoding = sum(stop - start for start, stop in spans)
    return {
        "seconds_an_image": encoding / (BATCH_SIZE * len(spans)),
        "waited_share": 1 - encoding / (spans[-1][1] - spans[0][0]),
    }


@torch.inference_mode()
def reduced(images: Path, processor: TPASProcessor) -> dict[str, float]:
    """What decoding to fewer pixels would gain and change."""
    model, own = TPASModel.from_pretrained(DEMO_START), TPASProcessor.from_pretrained(DEMO_START)

    def read(file: Path, processor: TPASProcessor, whole: bool) -> torch.Tensor:
        edge = None if whole else ENOUGH * max(height_and_width(processor.image_size))
        return processor(images=[load_image(file, edge=edge)])["pixel_values"]

    files = sorted(images.iterdir())
    programs = {
        whole: lambda whole=whole: [read(file, processor, whole) for file in files] for whole in (True, False)
    }
    pixels = [torch.cat(program()) for program in programs.values()]
    steps = 255 * torch.tensor(processor.image_processor.image_std)[:, None, None]
    embeds = [
        model.get_image_features(torch.cat([read(file, own, whole) for file in files])).pooler_output
        for whole in programs
    ]
    seconds = measuring.time_in_turn(programs, repeats=3, cpu_time=True)
    return {
        "times_faster_to_read": measuring.median_ratio(seconds, True, False),
        "largest_difference_of_pixels": ((pixels[0] - pixels[1]).abs() * steps).max().item(),
        "least_cosine": (embeds[0] * embeds[1]).sum(dim=1).min().item(),
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=16, help="in a gallery (default: 16)")
    measuring.add_output_arguments(parser)
    arguments = parser.parse_args(argv)
    if arguments.images < 3 * BATCH_SIZE or arguments.images % BATCH_SIZE:
        parser.error(f"--images must be a multiple of {BATCH_SIZE}, and at least {3 * BATCH_SIZE}")
    model = measuring.build_model(arguments.quick)
    processor = measuring.build_processor(model.config.vision_config.image_size)
    rows = {}
    with tempfile.TemporaryDirectory(prefix="tpas-decoding-") as folder:
        for number, (name, (width, height)) in enumerate(SIZES.items()):
            image_size = (width // QUICK, height // QUICK) if arguments.quick else (width, height)
            images = save_images(Path(folder) / str(number), image_size, arguments.images)
            rows[name] = {"seconds_to_read": measuring.seconds_to_read(images.iterdir(), processor)}
            rows[name]["reduced"] = reduced(images, processor)
            for workers in (1, 2):
                rows[name][f"{workers} threads"] = measure_waiting(model, processor, images, workers)
    for name, row in rows.items():
        print(f"images {name}: {1e3 * row['seconds_to_read']:.1f} ms to read one in one thread")
        fewer = row["reduced"]
        print(
            f"  to fewer pixels {fewer['times_faster_to_read']:.2f} times as fast; pixels differ by up to "
            f"{fewer['largest_difference_of_pixels']:.1f} of 255, cosine at least {fewer['least_cosine']:.5f}"
        )
        for workers in (1, 2):
            waiting = row[f"{workers} threads"]
            seconds, share = waiting["seconds_an_image"], waiting["waited_share"]
            print(f"  {workers} threads: {seconds:.3f} s to encode one; it waited {share:.1%} of the time")
    print(f"{torch.get_num_threads()} threads of the encoder")
    measuring.write_output(arguments.output, {"rows": rows, "threads": torch.get_num_threads()})


if __name__ == "__main__":
    main()
