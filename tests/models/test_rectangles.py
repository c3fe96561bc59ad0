"""Images that are no squares, as APTM and most of person search have them: equal to upstream's arithmetic.

The oracle is Swin by its definition, without windows cut out or rolled: each patch attends to the patches
that share its window, in a map that was shifted or not.
"""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import training_runs
from PIL import Image
from safetensors.torch import load_file
from tiny_inputs import noise_image, score_each_pair, spread_match_logits, tiny_processor

from tpas.commands.convert import main as convert
from tpas.engine.fast_encoding import FastEncoder
from tpas.modeling_tpas import TPASModel, interpolate_table
from tpas.models.checkpoint_conversion import convert_checkpoint
from tpas.models.loading import load_model
from tpas.processing_tpas import TPASProcessor
from tpas.search.gallery import Gallery
from tpas.search.manifest import GalleryError

REFERENCE = Path(__file__).parents[1] / "data" / "xvlm_reference"
HEIGHT, WIDTH, WINDOW = 192, 64, 4  # maps of 48x16, 24x8, 12x4 (one window wide: no shift) and 6x2
LAST_TABLE = "vision_encoder.layers.3.blocks.0.attn.relative_position_bias_table"


@pytest.fixture(scope="module")
def square_weights() -> dict[str, torch.Tensor]:
    """Upstream's state dict of the reference model, for 128 x 128 pixels and windows of 4."""
    parts = sorted(REFERENCE.glob("checkpoint_*.safetensors"))
    return {name: tensor for part in parts for name, tensor in load_file(part).items()}


@pytest.fixture(scope="module")
def weights(square_weights) -> dict[str, torch.Tensor]:
    """As upstream has them for the rectangle: in its last stage windows, and so their tables, are smaller."""
    heads = square_weights[LAST_TABLE].shape[1]
    table = torch.randn(3 * 3, heads, generator=torch.Generator().manual_seed(0))
    buffers = ("relative_position_index", "attn_mask")
    kept = {name: tensor for name, tensor in square_weights.items() if not name.endswith(buffers)}
    return kept | {LAST_TABLE: table}


@pytest.fixture
def vision_config(tmp_path) -> Path:
    """Upstream's file with APTM's two keys; its `image_res` says nothing then."""
    settings = json.loads((REFERENCE / "swin.json").read_text()) | {"h": HEIGHT, "w": WIDTH}
    (tmp_path / "swin.json").write_text(json.dumps(settings))
    return tmp_path / "swin.json"


def convert_into(folder: Path, weights, vision_config: Path, **more):
    torch.save({"model": weights, **more}, folder / "checkpoint.pth")
    files = {"vision_config": vision_config, "text_config": REFERENCE / "bert.json", "tokenizer": None}
    return convert_checkpoint(folder / "checkpoint.pth", folder / "model", **files)


def by_definition(weights: dict[str, torch.Tensor], pixels: torch.Tensor) -> torch.Tensor:
    """Upstream's image tokens (B, 1+N, D), the mean first."""

    def named(prefix: str, *names: str) -> list[torch.Tensor]:
        return [weights[f"vision_encoder.{prefix}.{name}"].double() for name in names]

    def norm(prefix: str, states: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(states, [states.shape[-1]], *named(prefix, "weight", "bias"))

    def linear(prefix: str, states: torch.Tensor) -> torch.Tensor:
        return F.linear(states, *named(prefix, "weight", "bias"))

    patches = F.conv2d(pixels.double(), *named("patch_embed.proj", "weight", "bias"), stride=4)
    height, width = patches.shape[2:]
    states = norm("patch_embed.norm", patches.flatten(2).transpose(1, 2))  # (B, N, C)
    for stage, depth in enumerate([2, 2, 2, 1]):
        window = min(WINDOW, height, width)
        for number in range(depth):
            shift = window // 2 if number % 2 and min(height, width) > WINDOW else 0
            block = f"layers.{stage}.blocks.{number}"
            heads = 2**stage
            normed = norm(f"{block}.norm1", states)
            qkv = linear(f"{block}.attn.qkv", normed).unflatten(-1, (3, heads, -1))
            query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (B, H, N, d)
            (table,) = named(f"{block}.attn", "relative_position_bias_table")
            scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
            scores = scores + biases(table, height, width, window, shift)
            context = (scores.softmax(dim=-1) @ value).transpose(1, 2).flatten(2)
            states = states + linear(f"{block}.attn.proj", context)
            hidden = F.gelu(linear(f"{block}.mlp.fc1", norm(f"{block}.norm2", states)))
            states = states + linear(f"{block}.mlp.fc2", hidden)
        if stage < 3:
            grid = states.unflatten(1, (height, width))
            quarters = [grid[:, row::2, column::2] for column in range(2) for row in range(2)]
            merged = norm(f"layers.{stage}.downsample.norm", torch.cat(quarters, dim=-1).flatten(1, 2))
            states = merged @ named(f"layers.{stage}.downsample.reduction", "weight")[0].t()
            height, width = height // 2, width // 2
    states = norm("norm", states)
    return torch.cat([states.mean(dim=1, keepdim=True), states], dim=1)


def biases(table: torch.Tensor, height: int, width: int, window: int, shift: int) -> torch.Tensor:
    """(H, N, N): what is added to the score of two patches; minus infinity where one does not see the other.

    In a shifted map a window holds patches of up to four corners, which see their own corner alone.
    """
    rows, columns = (torch.arange(height) - shift) % height, (torch.arange(width) - shift) % width
    row, column = (axis.flatten() for axis in torch.meshgrid(rows, columns, indexing="ij"))  # each (N,)
    came_round = torch.stack([row >= height - shift, column >= width - shift]) if shift else torch.zeros(2, 1)
    place = torch.stack([row // window, column // window])
    together = (place[:, :, None] == place[:, None, :]).all(dim=0)
    together &= (came_round[:, :, None] == came_round[:, None, :]).all(dim=0)
    down = row[:, None] % window - row[None, :] % window + window - 1
    across = column[:, None] % window - column[None, :] % window + window - 1
    bias = table[down * (2 * window - 1) + across].permute(2, 0, 1)
    return bias.masked_fill(~together, -torch.inf)


@torch.no_grad()
def test_the_oracle_is_upstream_on_its_own_square_case(square_weights):
    reference = load_file(REFERENCE / "retrieval_io.safetensors")
    answer = by_definition(square_weights, reference["image"]).float()
    torch.testing.assert_close(answer, reference["image_embeds"], atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_rectangle_is_encoded_as_upstream_does_it(weights, vision_config, tmp_path):
    conversion = convert_into(tmp_path, weights, vision_config)
    assert conversion.interpolated == []
    model = TPASModel.from_pretrained(tmp_path / "model")
    assert model.config.vision_config.image_size == (HEIGHT, WIDTH)
    pixels = torch.randn(2, 3, HEIGHT, WIDTH)
    expected = by_definition(weights, pixels).float()
    assert expected.std() > 0.3
    for encoder in (model, FastEncoder(model)):
        states = encoder.get_image_features(pixels).last_hidden_state
        torch.testing.assert_close(states, expected, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="images of 192x64 pixels, got 64x192"):
        model.get_image_features(pixels.transpose(2, 3))


def test_tables_of_another_window_are_interpolated_stage_by_stage(square_weights, vision_config, tmp_path):
    conversion = convert_into(tmp_path, square_weights, vision_config)
    assert conversion.interpolated == [LAST_TABLE]
    state = TPASModel.from_pretrained(tmp_path / "model").state_dict()
    name = "vision_model.encoder.layers.3.blocks.0.attention.relative_position_bias."
    expected = interpolate_table(square_weights[LAST_TABLE], 3)
    assert torch.equal(state[f"{name}relative_position_bias_table"], expected)


def test_rectangles_that_upstream_could_not_run_are_refused_by_h_and_w(weights, vision_config, tmp_path):
    settings = json.loads(vision_config.read_text())
    for changed, message in (
        ({"w": 96}, r"swin\.json: h 192, w 96: the 12x6 patches of Swin stage 3 cannot be .* 4x4"),
        ({"h": 180}, "h 180, w 64: the 45x16 patches of Swin stage 1 cannot be"),
        ({"window_size": 3}, "h 192, w 64: the 48x16 patches of Swin stage 1 cannot be divided .* 3x3"),
        ({"vision_width": 64}, "vision_width 64, but embed_dim 16 becomes 128"),
    ):
        vision_config.write_text(json.dumps(settings | changed))
        with pytest.raises(ValueError, match=message):
            convert_into(tmp_path, weights, vision_config)
    del settings["w"]
    vision_config.write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=r"swin\.json: gives only one of h and w"):
        convert_into(tmp_path, weights, vision_config)


def test_a_checkpoint_of_rectangles_is_not_converted_to_squares(square_weights, tmp_path):
    """Its settings lie beside the weights; --vision_config is of another size."""
    settings = {"image_res": 128, "h": 128, "w": 64}
    with pytest.raises(ValueError, match="trained on images of h 128, w 64 .* is of 128 x 128: give its own"):
        convert_into(tmp_path, square_weights, REFERENCE / "swin.json", config=settings)


def test_settings_that_are_not_used_are_named(weights, vision_config, tmp_path, capsys):
    settings = json.loads(vision_config.read_text()) | {"ape": True, "drop_path_rate": 0.3}
    vision_config.write_text(json.dumps(settings))
    text = json.loads((REFERENCE / "bert.json").read_text()) | {"hiden_act": "relu"}
    (tmp_path / "bert.json").write_text(json.dumps(text))
    torch.save({"model": weights, "epoch": 3}, tmp_path / "x.pth")
    files = ["--vision_config", str(vision_config), "--text_config", str(tmp_path / "bert.json")]
    convert([str(tmp_path / "x.pth"), str(tmp_path / "model"), *files, "--tokenizer", "none"])
    printed = capsys.readouterr().out
    assert f"not used, of {vision_config}: ape, drop_path_rate\n" in printed
    assert f"not used, of {tmp_path / 'bert.json'}: hiden_act\n" in printed
    assert "in the file beside the weights, not read: epoch\n" in printed
    assert "hiden_act" not in (tmp_path / "model" / "config.json").read_text()


@pytest.fixture
def rectangular(tiny_config) -> tuple[TPASModel, TPASProcessor]:
    """48 x 16 pixels, 6 x 2 patches."""
    tiny_config.set_image_size((48, 16))
    model, processor = TPASModel(tiny_config).eval(), tiny_processor(tiny_config)
    processor.image_size = (48, 16)
    return spread_match_logits(model), processor


def test_the_processor_squeezes_to_the_rectangle_and_keeps_it(rectangular, tmp_path):
    rectangular[1].save_pretrained(tmp_path)
    processor = TPASProcessor.from_pretrained(tmp_path)
    assert processor.image_size == (48, 16)
    image = noise_image(0)
    small = image.resize((16, 48), Image.Resampling.BICUBIC)
    squeezed, alone = processor(images=[image, small]).pixel_values
    assert squeezed.shape == (3, 48, 16)
    torch.testing.assert_close(squeezed, alone, atol=1e-6, rtol=0)


def test_a_size_that_the_tables_cannot_take_leaves_the_model_as_it_is(rectangular):
    model, processor = rectangular
    pixels = processor(images=[noise_image(0)]).pixel_values
    with pytest.raises(ValueError, match="3x3 is too small"):  # the last stage's, of windows of 2
        model.resize_image(32)
    assert model.get_image_features(pixels).last_hidden_state.shape == (1, 1 + 6 * 2, 32)


def test_a_gallery_of_rectangles_is_searched_as_the_model_scores(rectangular, images, tmp_path):
    model, processor = rectangular
    for number, image in enumerate(images):
        (tmp_path / "images").mkdir(exist_ok=True)
        image.save(tmp_path / "images" / f"{number}.png")
    gallery = Gallery.build(model, processor, tmp_path / "images", tmp_path / "gallery")
    texts = ["a man wears a red hat", "the woman runs"]
    _, logits = score_each_pair(model, processor, images, texts)
    for text, own, hits in zip(texts, logits, gallery.search(texts, top_k=3), strict=True):
        order = own.argsort(descending=True)[:3]
        assert [hit.id for hit in hits] == [f"{number}.png" for number in order.tolist()]
        assert [hit.match_logit for hit in hits] == pytest.approx(own[order].tolist(), abs=1e-3)
        assert gallery.explain(hits[0], text).text_map.shape == (6, 2)
    model.resize_image((64, 16))
    processor.image_size = (64, 16)
    with pytest.raises(GalleryError, match="made with the image settings"):
        Gallery.open(tmp_path / "gallery", model, processor)


@pytest.mark.usefixtures("fresh_accelerator")
def test_a_rectangular_model_is_fine_tuned_as_one(small_pab, start, tmp_path):
    model, processor = TPASModel.from_pretrained(start), TPASProcessor.from_pretrained(start)
    model.resize_image((48, 16))
    processor.image_size = (48, 16)
    model.save_pretrained(start)
    processor.save_pretrained(start)
    words = partial(training_runs.flags, batch_size=4, max_train_steps=1)
    training_runs.train(words(small_pab, start, tmp_path / "run"))
    tuned, processor = load_model(str(tmp_path / "run" / "best"))
    assert tuned.config.vision_config.image_size == processor.image_size == (48, 16)
