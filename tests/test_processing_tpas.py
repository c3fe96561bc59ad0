"""Images and captions to tensors, against Pillow and arithmetic by hand."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from tiny_inputs import noise_image
from transformers import BertTokenizer, CLIPImageProcessorPil, SiglipImageProcessorPil

from tpas import processing_tpas
from tpas.processing_tpas import (
    IMAGE_FORMATS,
    TPASProcessor,
    clean_caption,
    load_image,
    resized_before,
    upright_rgb,
)

WORDS = ["a", "man", "in", "blue", "shorts", "bare", "chested", "diving", "arms", "raised"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
VOCABULARY = {word: index for index, word in enumerate([*SPECIAL, *WORDS])}


@pytest.fixture
def processor() -> TPASProcessor:
    return TPASProcessor.build(BertTokenizer(vocab=VOCABULARY), image_size=32)


@pytest.fixture
def image() -> Image.Image:
    return noise_image(0, width=70, height=45)


def test_images_are_squeezed_by_bicubic_and_normalised_as_clip(processor, image):
    resized = np.asarray(image.resize((32, 32), Image.Resampling.BICUBIC), dtype=np.float64) / 255
    mean, deviation = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    expected = torch.tensor((resized - mean) / deviation).permute(2, 0, 1)
    pixel_values = processor(images=[image, image.rotate(90)]).pixel_values
    assert pixel_values.shape == (2, 3, 32, 32)
    torch.testing.assert_close(pixel_values[0].double(), expected, atol=1e-6, rtol=0)


OTHER_STEPS = type("OtherSteps", (CLIPImageProcessorPil,), {"_preprocess": lambda self, images, **_: images})


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize(
    ("image_processor", "is_resized"),
    [
        (CLIPImageProcessorPil(size={"height": 9, "width": 40}, do_center_crop=False), True),
        (CLIPImageProcessorPil(size={"height": 40, "width": 9}, crop_size={"height": 20, "width": 20}), True),
        (SiglipImageProcessorPil(size={"height": 32, "width": 32}, resample=2), True),
        (CLIPImageProcessorPil(size={"shortest_edge": 32}), False),
        (CLIPImageProcessorPil(size={"height": 9, "width": 40}, do_resize=False), False),
        (OTHER_STEPS(size={"height": 9, "width": 40}), False),
    ],
)
def test_an_image_is_resized_before_only_where_its_pixels_stay_the_same(
    image, mode, image_processor, is_resized
):
    image = image.convert(mode)
    (before,) = resized_before(image_processor, [image])
    assert (before.size != image.size) == (is_resized and mode == "RGB")
    if type(image_processor) is not OTHER_STEPS:
        expected = image_processor([image], return_tensors="pt").pixel_values
        assert torch.equal(image_processor([before], return_tensors="pt").pixel_values, expected)


def test_the_default_size_is_384():
    assert TPASProcessor.build(BertTokenizer(vocab=VOCABULARY)).image_size == 384


@pytest.mark.parametrize(
    ("caption", "cleaned"),
    [
        ("A man, bare-chested, in T-shirt/shorts.", "a man bare chested in t shirt shorts"),
        ('He said: "Stop!" (twice); why?  #fall *now* ~', "he said stop twice why fall now"),
        ("  Two\n\nlines ", "two lines"),
        ("A <person> falls", "a person falls"),
    ],
)
def test_clean_caption_is_x_vlms(caption, cleaned):
    assert clean_caption(caption) == cleaned


def test_captions_are_cleaned_tokenised_and_padded_to_the_longest(processor):
    inputs = processor(text=["A MAN, in blue shorts!", "bare-chested"])
    ids = [VOCABULARY[word] for word in ["[CLS]", "a", "man", "in", "blue", "shorts", "[SEP]"]]
    short = [VOCABULARY[word] for word in ["[CLS]", "bare", "chested", "[SEP]"]] + [0, 0, 0]
    assert inputs.input_ids.tolist() == [ids, short]
    assert inputs.attention_mask.tolist() == [[1] * 7, [1] * 4 + [0] * 3]
    assert set(inputs) == {"input_ids", "attention_mask"}


def test_sixty_eight_words_stay_whole_and_more_are_cut_at_seventy_tokens(processor):
    whole = processor(text=" ".join(["man"] * 68)).input_ids[0]
    cut = processor(text=" ".join(["man"] * 100)).input_ids[0]
    assert len(whole) == len(cut) == 70
    assert (whole == VOCABULARY["man"]).sum() == 68
    assert cut[-1] == VOCABULARY["[SEP]"]


@pytest.mark.parametrize("caption", ["", "   ", "?!"])
def test_an_empty_caption_is_refused_by_its_position(processor, caption):
    with pytest.raises(ValueError, match="caption 1 is empty"):
        processor(text=["a man", caption])


def test_neither_images_nor_captions_is_refused(processor):
    with pytest.raises(ValueError, match="give images, text, or both"):
        processor()


def test_settings_and_outputs_survive_saving(tmp_path, image):
    settings = {"image_size": 48, "max_text_length": 5, "clean_captions": False}
    processor = TPASProcessor.build(BertTokenizer(vocab=VOCABULARY), **settings)
    processor.save_pretrained(tmp_path)
    loaded = TPASProcessor.from_pretrained(tmp_path)
    assert {name: getattr(loaded, name) for name in settings} == settings
    expected, inputs = (p(images=image, text="a man in blue shorts") for p in (processor, loaded))
    for name in ("pixel_values", "input_ids", "attention_mask"):
        assert torch.equal(inputs[name], expected[name])


def test_load_image_turns_an_image_upright_and_to_rgb(tmp_path):
    image = Image.new("L", (4, 2), 200)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held on its side
    image.save(tmp_path / "side.jpg", exif=exif)
    loaded = load_image(tmp_path / "side.jpg")
    assert (loaded.mode, loaded.size) == ("RGB", (2, 4))


def test_a_photograph_is_decoded_to_no_more_pixels_than_twice_what_is_enough(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.tile(np.linspace(0, 255, 800).astype(np.uint8), (600, 1))
    Image.fromarray(pixels).save(tmp_path / "wide.jpg", exif=exif)
    whole, few = (load_image(tmp_path / "wide.jpg", edge=edge) for edge in (None, 200))
    assert (whole.size, few.size) == ((600, 800), (150, 200))
    assert np.abs(np.asarray(whole.resize((150, 200))).astype(int) - np.asarray(few)).max() <= 3
    with pytest.raises(ValueError, match="800x600 pixels are more than 1000"):
        load_image(tmp_path / "wide.jpg", 1_000, edge=200)


def test_a_missing_a_foreign_and_a_cut_off_file_are_named(tmp_path, image):
    with pytest.raises(FileNotFoundError, match=r"gone\.jpg: no such image file"):
        load_image(tmp_path / "gone.jpg")
    (tmp_path / "text.jpg").write_text("not an image")
    with pytest.raises(ValueError, match=r"text\.jpg: not an image"):
        load_image(tmp_path / "text.jpg")
    encoded = io.BytesIO()
    image.save(encoded, format="JPEG")
    (tmp_path / "cut.jpg").write_bytes(encoded.getvalue()[: len(encoded.getvalue()) // 2])
    with pytest.raises(ValueError, match=r"cut\.jpg: broken image"):
        load_image(tmp_path / "cut.jpg")


def test_a_file_is_read_as_one_of_few_formats_whatever_its_name(tmp_path, image):
    """Pillow would hand PostScript to Ghostscript."""
    image.save(tmp_path / "postscript.eps")
    disguised = (tmp_path / "postscript.eps").rename(tmp_path / "holiday.jpg")
    with Image.open(disguised) as opened:
        assert opened.format == "EPS"
    with pytest.raises(ValueError, match=r"holiday\.jpg: not an image, or none of JPEG, PNG, WEBP"):
        load_image(disguised)
    for suffix in ("jpg", "png", "webp", "bmp", "gif", "tif", "ppm", "jp2"):
        image.save(tmp_path / f"image.{suffix}")
        assert load_image(tmp_path / f"image.{suffix}").size == image.size


@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_an_image_whose_exif_is_cut_off_is_broken(tmp_path, image, suffix):
    """Pillow raises struct.error there, which is neither an OSError nor a ValueError."""
    file = tmp_path / f"short.{suffix}"
    image.save(file, exif=b"II*\0")
    with pytest.raises(ValueError, match=rf"short\.{suffix}: broken image"):
        load_image(file)
    with pytest.raises(ValueError, match="^short: broken image"):
        upright_rgb(Image.open(io.BytesIO(file.read_bytes())), "short")


@pytest.mark.parametrize("image_format", IMAGE_FORMATS)
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_altered_bytes_make_an_image_or_a_value_error(tmp_path, image, image_format):
    exif = Image.Exif()
    exif[0x0112] = 6
    takes_exif = image_format in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF")
    encoded = io.BytesIO()
    image.resize((12, 10)).save(encoded, image_format, **{"exif": exif} if takes_exif else {})
    content = np.frombuffer(encoded.getvalue(), dtype=np.uint8)
    generator = np.random.default_rng(0)
    file = tmp_path / "altered"
    modes, reasons = [], []
    for _ in range(200):
        end = generator.choice([len(content), generator.integers(4, len(content))], p=[0.9, 0.1])
        altered = content[:end].copy()
        header = min(len(altered), generator.choice([100, len(content)]))
        altered[generator.integers(header, size=3)] = generator.choice([0, 255, generator.integers(256)])
        file.write_bytes(altered)
        try:
            modes.append(load_image(file).mode)
        except ValueError as error:
            reasons.append(str(error))
    assert set(modes) == {"RGB"}
    assert reasons
    assert all(reason.startswith(f"{file}: ") for reason in reasons)


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims this size and holds no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("width", [10_000, 100_000])
def test_a_decompression_bomb_is_refused_before_it_is_decoded(tmp_path, width):
    (tmp_path / "bomb.png").write_bytes(png_header(width, 10_000))
    assert width * 10_000 > processing_tpas.MAX_IMAGE_PIXELS
    with pytest.raises(ValueError, match=r"bomb\.png: .*pixels"):
        load_image(tmp_path / "bomb.png")


@pytest.mark.parametrize("size", [(1, 70_000), (70_000, 1)])
def test_a_strip_is_refused_before_it_is_decoded(tmp_path, size):
    """67,200,000 x 1 pixels in 10 KB took all memory when they were resized."""
    (tmp_path / "strip.png").write_bytes(png_header(*size))
    with pytest.raises(ValueError, match=r"strip\.png: .* no side may have more than 65535"):
        load_image(tmp_path / "strip.png")


@pytest.mark.parametrize("kind", ["folder", "pipe", "device"])
def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path, kind):
    path = tmp_path / "image.jpg"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(ValueError, match=r"image\.jpg: no file, but a folder, a pipe or a device"):
        load_image(path)


def of_many_comments(image):
    start = image.index(b",\0\0\0\0")  # of the pixels, after the colours
    return image[:start] + 20_000 * b"!\xfe\x01x\0" + image[start:]


def of_many_scans(image):
    return image[:-2] + 101 * image[image.rindex(b"\xff\xda") : -2] + image[-2:]


def of_many_layers(image):
    start = image.index(b"\xff\x52")
    return image[: start + 6] + b"\xff\xff" + image[start + 8 :]


def of_many_precincts(image):
    start = image.index(b"\xff\x51")
    return (
        image[: start + 6]
        + 2 * b"\0\0\x10\0"
        + image[start + 14 : start + 22]
        + 2 * b"\0\0\x10\0"
        + image[start + 30 :]
    )


def of_a_large_tag(image):
    entries = [
        (256, 4, 1, 8),
        (257, 4, 1, 8),
        (258, 3, 1, 8),
        (262, 3, 1, 1),
        (273, 4, 1, 8),
        (282, 5, 2**20, 0),
    ]
    packed = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + packed + bytes(2**23 + 100)


def of_many_tiles(image):
    entries = [(256, 4, 1, 400), (257, 4, 1, 400), (258, 3, 1, 8), (262, 3, 1, 1)]
    entries += [(322, 4, 1, 1), (323, 4, 1, 1), (324, 4, 160_000, 0)]
    packed = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + packed + bytes(640_100)


@pytest.mark.parametrize(
    ("image_format", "settings", "change", "reason"),
    [
        ("GIF", {}, of_many_comments, "in too many pieces"),
        ("JPEG", {"progressive": True}, of_many_scans, "more than 100 scans"),
        ("JPEG2000", {"precinct_size": (64, 64)}, of_many_layers, "packets"),
        ("JPEG2000", {"precinct_size": (4, 4), "num_resolutions": 1}, of_many_precincts, "packets"),
        ("TIFF", {}, of_a_large_tag, "more than 8388608 bytes before the pixels"),
        ("TIFF", {}, of_many_tiles, "160000 tiles or strips are more than 100000"),
        ("PPM", {}, lambda image: b"P3\n1 1\n255\n" + 1_000 * b"#\n" + b"1 2 3", "pixels as numbers in text"),
    ],
)
def test_what_would_take_hours_or_gigabytes_is_not_decoded(tmp_path, image_format, settings, change, reason):
    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, image_format, **settings)
    (tmp_path / "image").write_bytes(change(stream.getvalue()))
    with pytest.raises(ValueError, match=rf"image: .*{reason}"):
        load_image(tmp_path / "image")


def test_what_looks_like_scans_is_none_in_a_png(tmp_path, image):
    text = PngInfo()
    text.add_text("prompt", 101 * b"\xff\xda".decode("latin-1"))
    image.save(tmp_path / "image.png", pnginfo=text)
    assert load_image(tmp_path / "image.png").size == image.size


def test_a_file_of_gigabytes_is_refused_before_it_is_read(tmp_path):
    with open(tmp_path / "sparse.png", "wb") as file:
        file.write(png_header(4, 4))
        file.truncate(2**32)
    with pytest.raises(ValueError, match=r"sparse\.png: 4294967296 bytes are more than 268435456"):
        load_image(tmp_path / "sparse.png")


def png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


RAMP = np.array([[0, 256, 0x7FFF], [0x8000, 0xFF00, 0xFFFF]], dtype=np.uint16)


@pytest.mark.parametrize("byte_order", ["<", ">"])
def test_a_grey_of_16_bits_is_its_high_byte(tmp_path, byte_order):
    for file in (tmp_path / "grey.png", tmp_path / "grey.tif"):
        Image.fromarray(RAMP.astype(f"{byte_order}u2")).save(file)
        levels = np.asarray(load_image(file))
        assert levels.shape == (2, 3, 3)
        assert levels[..., 0].tolist() == levels[..., 2].tolist() == [[0, 1, 127], [128, 255, 255]]


def test_a_grey_of_32_bits_is_read_as_16_where_it_fits_and_refused_where_not(tmp_path):
    Image.fromarray(RAMP.astype(np.int32)).save(tmp_path / "fits.tif")
    assert np.asarray(load_image(tmp_path / "fits.tif"))[..., 0].tolist() == [[0, 1, 127], [128, 255, 255]]
    for name, value in [("high", 0x10000), ("low", -1)]:
        Image.fromarray(np.full((2, 2), value, dtype=np.int32)).save(tmp_path / f"{name}.tif")
        with pytest.raises(ValueError, match=rf"{name}\.tif: an image of mode I, .* 8 or 16 bits"):
            load_image(tmp_path / f"{name}.tif")


@pytest.mark.parametrize("mode", ["F", "LAB"])
def test_values_that_are_no_colours_are_refused_by_their_mode(tmp_path, mode):
    Image.new(mode, (4, 4)).save(tmp_path / "values.tif")
    with pytest.raises(ValueError, match=rf"values\.tif: an image of mode {mode}, .* 8 or 16 bits"):
        load_image(tmp_path / "values.tif")


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr", "HSV"])
def test_colours_of_8_bits_are_pillows(image, mode):
    of_mode = image.convert(mode)
    assert upright_rgb(of_mode, "colours").tobytes() == of_mode.convert("RGB").tobytes()


@pytest.mark.parametrize("mode", ["LA", "RGBA", "P", "L", "RGB", "I;16"])
def test_transparency_is_composed_on_white(tmp_path, mode):
    """Black, see-through on the left: what lies under it was never meant to be seen."""
    file = tmp_path / "half.png"
    if mode in ("LA", "RGBA"):
        half = Image.new("RGBA", (4, 2), (0, 0, 0, 255))
        half.paste((0, 0, 0, 0), (0, 0, 2, 2))
        half.convert(mode).save(file)
    else:
        levels = np.array([[9, 9, 0, 0]] * 2, dtype=np.uint16 if mode == "I;16" else np.uint8)
        see_through = (9, 9, 9) if mode == "RGB" else 9
        half = Image.fromarray(levels)
        (half if mode == "I;16" else half.convert(mode)).save(file, transparency=see_through)
    with Image.open(file) as stored:
        assert stored.mode == mode
        assert stored.has_transparency_data
    assert np.asarray(load_image(file)).tolist() == [[[255] * 3] * 2 + [[0] * 3] * 2] * 2


def test_a_fifth_of_red_on_white_is_pink():
    assert upright_rgb(Image.new("RGBA", (1, 1), (255, 0, 0, 51)), "pink").getpixel((0, 0)) == (255, 204, 204)


@pytest.mark.parametrize("place", ["before", "after"])
def test_a_png_keeps_its_pixels_beside_a_large_text(tmp_path, image, place):
    """Pillow raises over a text of more than a megabyte once decompressed."""
    saved = io.BytesIO()
    image.save(saved, "PNG")
    content = saved.getvalue()
    split = content.index(b"IDAT" if place == "before" else b"IEND") - 4
    text = png_chunk(b"zTXt", b"prompt\0\0" + zlib.compress(b"a" * 3_000_000))
    file = tmp_path / "prompt.png"
    file.write_bytes(content[:split] + text + content[split:])
    for source in (file, str(file), io.BytesIO(file.read_bytes())):
        assert load_image(source).tobytes() == image.tobytes()
    file.write_bytes((content[:split] + text + content[split:])[: 2 * len(content) // 3])
    with pytest.raises(ValueError, match=r"prompt\.png: "):
        load_image(file)
