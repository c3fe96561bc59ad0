"""Conversion of X-VLM checkpoints: total or refused, and nothing half-written."""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.interpolate import make_interp_spline
from torch import nn
from transformers import BertConfig, BertModel, BertTokenizer

from tpas.commands.convert import main
from tpas.data.whole_files import WRITER
from tpas.modeling_tpas import TPASModel, interpolate_table, interpolation_matrix
from tpas.models.checkpoint_conversion import (
    build_config,
    convert_checkpoint,
    convert_state_dict,
    read_checkpoint,
)
from tpas.models.hub_code import HUB_CODE
from tpas.processing_tpas import TPASProcessor

REFERENCE = Path(__file__).parents[1] / "data" / "xvlm_reference"
CONFIGURATIONS = {"vision_config": REFERENCE / "swin.json", "text_config": REFERENCE / "bert.json"}
PRETRAINING = CONFIGURATIONS | {"vision_config": REFERENCE / "swin_pretraining.json"}
NO_TOKENIZER = CONFIGURATIONS | {"tokenizer": None}
ZEROS = torch.zeros(2)


def flags_of(configurations: dict[str, Path]) -> list[str]:
    return [word for name, path in configurations.items() for word in (f"--{name}", str(path))]


FLAGS = flags_of(CONFIGURATIONS)


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    """Upstream's state dict of the reference model."""
    parts = sorted(REFERENCE.glob("checkpoint_*.safetensors"))
    assert len(parts) == 2
    return {name: tensor for part in parts for name, tensor in load_file(part).items()}


def write_checkpoint(path: Path, weights: dict[str, torch.Tensor], **options) -> Path:
    """A file as upstream's fine-tuning writes it."""
    config = json.loads((REFERENCE / "checkpoint_config.json").read_text())
    torch.save({"model": weights, "config": config}, path, **options)
    return path


@pytest.fixture(scope="module")
def upstream_pretraining() -> dict[str, torch.Tensor]:
    """Upstream's state dict of the reference pre-training model, as released ones look."""
    parts = sorted(REFERENCE.glob("pretraining_checkpoint_*.safetensors"))
    assert len(parts) == 2
    return {name: tensor for part in parts for name, tensor in load_file(part).items()}


@pytest.fixture
def checkpoint(tmp_path, weights) -> Path:
    return write_checkpoint(tmp_path / "checkpoint_9.pth", weights)


@pytest.fixture(scope="module")
def tokenizer_dir(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("tokenizer")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "man", "falls"]
    BertTokenizer(vocab={word: index for index, word in enumerate(words)}).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def pretraining_weights(weights) -> dict[str, torch.Tensor]:
    """The same weights as upstream's pre-training names them, with the two heads that only it has."""
    renamed = {re.sub(r"^text_encoder\.", "text_encoder.bert.", name): own for name, own in weights.items()}
    masked_language = (f"text_encoder.cls.predictions.{name}" for name in ("bias", "decoder.weight"))
    return renamed | {name: torch.randn(4, 3) for name in (*masked_language, "bbox_head.0.weight")}


def assert_equals_upstream(directory: Path):
    """The model in the directory gives upstream's features and match logits."""
    reference = load_file(REFERENCE / "retrieval_io.safetensors")
    model = TPASModel.from_pretrained(directory)
    with torch.no_grad():
        output = model(reference["image"], reference["text_ids"][:4], reference["text_atts"][:4])
    for actual, expected in (
        (output.image_embeds, reference["image_feat"]),
        (output.text_embeds, reference["text_feat"][:4]),
        (output.match_logits, reference["itm_logits_t2i"][:4].diagonal().t()),
    ):
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


# The two kinds


def test_the_command_converts_a_fine_tuned_checkpoint(checkpoint, tokenizer_dir, tmp_path, capsys):
    output_dir = tmp_path / "models" / "xvlm"
    main([str(checkpoint), str(output_dir), *FLAGS, "--tokenizer", str(tokenizer_dir)])
    assert_equals_upstream(output_dir)
    printed = capsys.readouterr().out
    assert "fine-tuned retrieval checkpoint, 750,985 parameters" in printed
    assert re.search(
        r"left out, buffers that the model computes: 11 \(.*relative_position_index.*\.{3}\)", printed
    )
    assert "interpolated" not in printed

    processor = TPASProcessor.from_pretrained(output_dir)
    assert processor.image_size == 128
    assert processor(text="A man, falls!").input_ids.tolist() == [[2, 5, 6, 7, 3]]
    assert [path.name for path in output_dir.parent.iterdir()] == ["xvlm"]  # nothing left beside it


def test_what_a_whole_but_killed_conversion_left_goes_with_the_next(checkpoint, tokenizer_dir, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").touch()
    left = tmp_path / ".out.killed.partial"
    left.mkdir()
    (left / WRITER).touch()
    with pytest.raises(FileExistsError):
        convert_checkpoint(checkpoint, tmp_path / "out", tokenizer=tokenizer_dir)
    assert not left.exists()


def test_a_pretraining_checkpoint_is_recognised(pretraining_weights, tmp_path):
    checkpoint = write_checkpoint(tmp_path / "4m_base.th", pretraining_weights)
    conversion = convert_checkpoint(checkpoint, tmp_path / "model", **NO_TOKENIZER)
    assert_equals_upstream(tmp_path / "model")
    assert conversion.kind == "pre-training"
    assert {reason: len(names) for reason, names in conversion.left_out.items()} == {
        "buffers that the model computes": 11,
        "the masked-language head": 2,
        "the box head": 1,
    }


def test_every_parameter_is_filled_and_every_weight_used(weights):
    model = TPASModel(build_config(weights, **CONFIGURATIONS))
    conversion = convert_state_dict(weights, model)
    assert conversion.state_dict.keys() == model.state_dict().keys()
    left_out = {name for names in conversion.left_out.values() for name in names}
    assert all(name.endswith(("relative_position_index", "attn_mask", "position_ids")) for name in left_out)
    # As many numbers go in as come out, so that no weight is used twice or forgotten.
    used = sum(tensor.numel() for name, tensor in weights.items() if name not in left_out)
    assert sum(tensor.numel() for tensor in conversion.state_dict.values()) == used


def test_a_bare_state_dict_and_the_format_before_torch_1_6_are_read(weights, tmp_path):
    torch.save(weights, tmp_path / "bare.pth")
    old = write_checkpoint(tmp_path / "old.pth", weights, _use_new_zipfile_serialization=False)
    for path in (tmp_path / "bare.pth", old):
        read = read_checkpoint(path)
        assert read.weights.keys() == weights.keys()
        assert all(torch.equal(read.weights[name], tensor) for name, tensor in weights.items())


# What trainers put around a state dict


@pytest.mark.parametrize(
    ("around", "prefix", "taken_off"),
    [
        (lambda weights: {"state_dict": weights, "epoch": 1}, "model.", "model."),
        (lambda weights: {"model_state_dict": weights}, "module.", "module."),
        (lambda weights: {"state_dict": {"model": weights}}, "module._orig_mod.", "module._orig_mod."),
        (lambda weights: weights, "_orig_mod.", "_orig_mod."),
    ],
)
def test_wrapped_weights_are_found_under_their_own_names(weights, tmp_path, around, prefix, taken_off):
    wrapped = {prefix + name: tensor for name, tensor in weights.items()}
    torch.save(around(wrapped), tmp_path / "x.pth")
    read = read_checkpoint(tmp_path / "x.pth")
    assert read.weights.keys() == weights.keys()
    assert all(torch.equal(read.weights[name], tensor) for name, tensor in weights.items())
    assert read.notes[0] == f"taken off the names of the weights: {taken_off}"


def test_parts_that_were_compiled_are_found_too(weights, tmp_path):
    parts = {name.replace("_encoder.", "_encoder._orig_mod."): tensor for name, tensor in weights.items()}
    torch.save(parts, tmp_path / "x.pth")
    assert read_checkpoint(tmp_path / "x.pth").weights.keys() == weights.keys()


def test_what_is_ambiguous_is_refused(weights, tmp_path):
    torch.save({"model": weights, "state_dict": weights}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match="several state dicts, under 'model' and 'state_dict'"):
        read_checkpoint(tmp_path / "x.pth")
    torch.save({"model": weights | {"module.temp": weights["temp"]}}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"x\.pth: holds temp more than once, one of them as module\.temp"):
        read_checkpoint(tmp_path / "x.pth")


# All three cases of the reference, as a user without this package loads them

FRESH_PROCESS = """
import json, sys
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

for directory, inputs, outputs in json.loads(sys.argv[1]):
    reference = load_file(inputs)
    model = AutoModel.from_pretrained(directory, trust_remote_code=True)
    with torch.no_grad():
        image = model.get_image_features(reference["image"])
        text = model.get_text_features(reference["text_ids"], reference["text_atts"])
        texts, images = len(reference["text_ids"]), len(reference["image"])
        t, i = torch.arange(texts).repeat_interleave(images), torch.arange(images).repeat(texts)
        pairs = (text.last_hidden_state[t], reference["text_atts"][t], image.last_hidden_state[i])
        cross, _ = model.cross_modal_encoder(*pairs)
        logits = model.match(pairs[2], pairs[0], pairs[1])
    save_file(
        {
            "image_embeds": image.last_hidden_state,
            "image_feat": image.pooler_output,
            "text_embeds": text.last_hidden_state,
            "text_feat": text.pooler_output,
            "cross_cls_t2i": cross[:, 0].unflatten(0, (texts, images)).contiguous(),
            "cross_hidden_text1": cross.unflatten(0, (texts, images))[1].contiguous(),
            "itm_logits_t2i": logits.unflatten(0, (texts, images)),
        },
        outputs,
    )
assert not any(name.partition(".")[0] == "tpas" for name in sys.modules)
"""


def test_all_cases_equal_upstream_where_tpas_is_not_installed(
    weights, upstream_pretraining, tmp_path, run_without_tpas
):
    fine_tuned = write_checkpoint(tmp_path / "checkpoint_9.pth", weights)
    torch.save({"model": upstream_pretraining}, tmp_path / "4m_base.th")
    jobs = []
    for case, checkpoint, configurations, interpolated in (
        ("retrieval", fine_tuned, CONFIGURATIONS, 0),
        ("pretraining", tmp_path / "4m_base.th", PRETRAINING, 0),
        ("pretraining_resized", tmp_path / "4m_base.th", CONFIGURATIONS, 7),
    ):
        conversion = convert_checkpoint(checkpoint, tmp_path / case, **configurations, tokenizer=None)
        assert len(conversion.interpolated) == interpolated
        inputs, outputs = REFERENCE / f"{case}_io.safetensors", tmp_path / f"{case}.safetensors"
        jobs.append([str(tmp_path / case), str(inputs), str(outputs)])
    run_without_tpas(FRESH_PROCESS, json.dumps(jobs), cwd=tmp_path)
    for _, inputs, outputs in jobs:
        expected, actual = load_file(inputs), load_file(outputs)
        read = expected["text_atts"].bool()  # upstream's states of padding mean nothing
        assert len(actual) == 7
        for name, tensor in actual.items():
            wanted = expected[name]
            if name == "text_embeds":
                tensor, wanted = tensor[read], wanted[read]
            elif name == "cross_hidden_text1":
                tensor, wanted = tensor[:, read[1]], wanted[:, read[1]]
            torch.testing.assert_close(tensor, wanted, atol=1e-5, rtol=0, msg=lambda m, n=name: f"{n}: {m}")


# Other kinds of checkpoints


@pytest.fixture
def cmp_weights(upstream_pretraining) -> dict[str, torch.Tensor]:
    """As CMP saves it: pose blocks, and BatchNorm and Linear over three pooled parts for each projection."""
    kept = {
        name: tensor
        for name, tensor in upstream_pretraining.items()
        if not name.startswith(("vision_proj", "text_proj", "bbox_head"))
    }
    for modality, width in (("vision", 3 * 128), ("text", 4 * 64)):
        projection = nn.Sequential(nn.BatchNorm1d(width), nn.Dropout(), nn.Linear(width, 32))
        kept |= {f"{modality}_proj.{name}": tensor for name, tensor in projection.state_dict().items()}
    pose = {"pose_block.attn.proj.weight": torch.zeros(8, 8), "pose_conv.expand.0.bias": torch.zeros(8)}
    return kept | pose


def test_a_cmp_checkpoint_is_refused_and_its_rest_converted_where_asked_for(
    cmp_weights, upstream_pretraining, tmp_path, capsys
):
    torch.save({"model": cmp_weights}, tmp_path / "cmp.pth")
    words = [
        str(tmp_path / "cmp.pth"),
        str(tmp_path / "model"),
        *flags_of(PRETRAINING),
        "--tokenizer",
        "none",
    ]
    with pytest.raises(SystemExit, match="a CMP checkpoint has parts that this model has not") as refusal:
        main(words)
    message = str(refusal.value)
    for name in ("pose_block.attn.proj.weight", "pose_conv.expand.0.bias", "vision_proj.0.running_mean"):
        assert f" {name} " in message
    assert "--drop_cmp_parts" in message
    assert not (tmp_path / "model").exists()

    main([*words, "--drop_cmp_parts"])
    printed = capsys.readouterr().out
    assert "CMP checkpoint" in printed
    assert "left out, CMP's pose blocks: 2 (" in printed
    assert re.search(r"left out, CMP's projections of pooled parts: 14 \(", printed)
    assert "drawn at random: 4\n  vision_proj.weight\n  vision_proj.bias\n  text_proj.weight" in printed
    ours = TPASModel.from_pretrained(tmp_path / "model").state_dict()
    model = TPASModel(build_config(upstream_pretraining, **PRETRAINING))
    whole = convert_state_dict(upstream_pretraining, model).state_dict
    projections = {name for name in ours if "projection." in name and "patch_embeddings" not in name}
    assert len(projections) == 4
    assert all(torch.equal(ours[name], whole[name]) for name in whole.keys() - projections)
    assert build_config({}, **PRETRAINING).projection_dim == 256 == len(ours["image_projection.weight"])


def test_a_fine_tuned_checkpoint_may_not_lack_what_a_joined_start_may(weights, tmp_path):
    broken = {name: tensor for name, tensor in weights.items() if not name.startswith("itm_head")}
    checkpoint = write_checkpoint(tmp_path / "x.pth", broken)
    with pytest.raises(ValueError, match=r"missing \(6\):\n  itm_head"):
        convert_checkpoint(checkpoint, tmp_path / "model", **NO_TOKENIZER)


def test_swin_and_bert_are_joined_into_a_start(weights, tmp_path, capsys):
    prefix = "vision_encoder."
    swin = {name.removeprefix(prefix): own for name, own in weights.items() if name.startswith(prefix)}
    torch.save({"model": swin | {"head.weight": torch.zeros(10, 128)}}, tmp_path / "swin.pth")
    settings = json.loads((REFERENCE / "bert.json").read_text())
    text_model = BertModel(BertConfig(**settings), add_pooling_layer=True)
    text_model.save_pretrained(tmp_path / "bert")
    sources = ["--swin", str(tmp_path / "swin.pth"), "--bert", str(tmp_path / "bert")]
    for output in ("start", "again"):
        main([*sources, str(tmp_path / output), *FLAGS, "--tokenizer", "none"])
    printed = capsys.readouterr().out
    assert "Swin and BERT checkpoint" in printed
    assert "left out, the ImageNet classifier: 1 (vision_encoder.head.weight)" in printed
    assert "  text_encoder.encoder.layer.2.crossattention.self.query.weight\n" in printed
    ours = TPASModel.from_pretrained(tmp_path / "start").state_dict()
    theirs = text_model.state_dict()
    for name, source in (
        ("text_model.encoder.layer.1.output.dense.weight", "1.output.dense.weight"),
        ("cross_modal_encoder.layers.0.self_attention.query.weight", "2.attention.self.query.weight"),
        ("cross_modal_encoder.layers.1.output.bias", "3.output.dense.bias"),
    ):
        assert torch.equal(ours[name], theirs[f"encoder.layer.{source}"])
    assert torch.equal(ours["vision_model.layernorm.weight"], swin["norm.weight"])
    assert ours["temperature.value"].item() == pytest.approx(0.07)
    new = ours["cross_modal_encoder.layers.0.cross_attention.query.weight"]
    assert 0.015 < new.std() < 0.025
    again = TPASModel.from_pretrained(tmp_path / "again").state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in ours.items())


@pytest.mark.parametrize(
    "sources", [[], ["--swin", "s.pth"], ["--bert", "b"], ["c.pth", "--swin", "s.pth", "--bert", "b"]]
)
def test_a_checkpoint_or_swin_with_bert_but_not_both(sources, tmp_path):
    with pytest.raises(SystemExit, match="either a checkpoint, or --swin and --bert together"):
        main([*sources, str(tmp_path / "model")])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_weights_are_written_in_the_type_asked_for(checkpoint, tmp_path, dtype):
    main([str(checkpoint), str(tmp_path / "model"), *FLAGS, "--tokenizer", "none", "--dtype", dtype])
    written = load_file(tmp_path / "model" / "model.safetensors")
    assert {tensor.dtype for tensor in written.values()} == {getattr(torch, dtype)}
    assert TPASModel.from_pretrained(tmp_path / "model").dtype == getattr(torch, dtype)


# Relative position tables


@pytest.mark.parametrize(("source", "target"), [(13, 23), (5, 7)])
def test_tables_are_interpolated_as_upstream_does(source, target):
    with np.load(REFERENCE / "relative_position_interpolation.npz") as cases:
        table, expected = torch.from_numpy(cases[f"in_{source}"]), cases[f"out_{source}_{target}"]
        matrix = cases[f"A_{source}_{target}"]
    assert np.abs(interpolation_matrix(source, target).numpy() - matrix).max() < 1e-9
    assert np.abs(interpolate_table(table, target).numpy() - expected).max() < 1e-6


@pytest.mark.parametrize(("source", "target"), [(13, 29), (23, 29), (23, 13)])
def test_other_windows_follow_the_same_spline(source, target):
    # Upstream's positions by their definition: a geometric series from the centre to the target's end,
    # its ratio found by bisection to 1e-6.
    low, high = 1.01, 1.5
    while high - low > 1e-6:
        ratio = (low + high) / 2
        too_far = sum(ratio**n for n in range(source // 2)) > target // 2
        low, high = (low, ratio) if too_far else (ratio, high)
    half = np.cumsum(ratio ** np.arange(source // 2))
    positions = np.concatenate([-half[::-1], [0], half])
    steps = np.clip(np.arange(target) - target // 2, positions[0], positions[-1])
    expected = make_interp_spline(positions, np.eye(source), k=3)(steps)  # scipy's ends are not-a-knot, too
    assert np.abs(interpolation_matrix(source, target).numpy() - expected).max() < 1e-9


def test_a_table_too_small_for_a_spline_is_refused():
    with pytest.raises(ValueError, match="3x3 is too small"):
        interpolate_table(torch.zeros(9, 2), 7)


def test_another_image_size_means_another_window(checkpoint, weights, tmp_path):
    conversion = convert_checkpoint(checkpoint, tmp_path / "model", **NO_TOKENIZER, image_size=224)
    tables = {name: tensor for name, tensor in weights.items() if name.endswith("bias_table")}
    assert sorted(conversion.interpolated) == sorted(tables)
    model = TPASModel.from_pretrained(tmp_path / "model")
    vision = model.config.vision_config
    assert (vision.image_size, vision.window_size) == (224, 7)
    state = model.state_dict()
    for name, table in tables.items():
        ours = name.replace("vision_encoder.", "vision_model.encoder.")
        ours = ours.replace("attn.", "attention.relative_position_bias.")
        assert torch.equal(state[ours], interpolate_table(table, 13))


@pytest.mark.parametrize(("image_size", "window"), [(224, 7), (384, 12), (480, 15)])
def test_xvlm_base_takes_upstreams_windows(image_size, window):
    config = build_config({}, image_size=image_size)
    assert (config.vision_config.image_size, config.vision_config.window_size) == (image_size, window)
    assert (config.vision_config.depths, config.text_config.num_hidden_layers) == ([2, 2, 18, 2], 6)
    assert (config.num_cross_modal_layers, config.projection_dim) == (6, 256)


@pytest.mark.parametrize("image_size", [0, 16, 225])
def test_an_image_size_upstream_could_not_run_is_refused(image_size):
    with pytest.raises(ValueError, match=f"multiple of 32 pixels, got {image_size}"):
        build_config({}, image_size=image_size)


# Refusals


def test_one_error_names_every_key_that_does_not_fit(weights, tmp_path):
    broken = dict(weights)
    del broken["itm_head.3.bias"], broken["vision_encoder.layers.0.blocks.0.attn.qkv.weight"]
    broken["vision_encoder_m.norm.weight"] = torch.zeros(1)
    broken["text_proj.weight"] = torch.zeros(32, 63)
    broken["vision_encoder.layers.1.blocks.0.attn.relative_position_bias_table"] = torch.zeros(25, 3)
    broken["text_proj.bias"] = torch.full((32,), float("nan"))
    checkpoint = write_checkpoint(tmp_path / "broken.th", broken)
    with pytest.raises(ValueError, match="does not fit") as refusal:
        convert_checkpoint(checkpoint, tmp_path / "model", **NO_TOKENIZER)
    assert str(refusal.value).startswith(f"{checkpoint}: ")
    assert str(refusal.value).partition("Keys ")[2].splitlines() == [
        "missing (2):",
        "  itm_head.3.bias",
        "  vision_encoder.layers.0.blocks.0.attn.qkv.weight",
        "Keys unexpected (1):",
        "  vision_encoder_m.norm.weight",
        "Keys of another shape (2):",
        "  text_proj.weight: (32, 63) in the checkpoint, (32, 64) in the model",
        "  vision_encoder.layers.1.blocks.0.attn.relative_position_bias_table: "
        "(25, 3) in the checkpoint, (49, 2) in the model",
        "Keys not finite (1):",
        "  text_proj.bias",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["broken.th"]


def test_a_configuration_with_other_layers_is_refused(weights, tmp_path):
    settings = json.loads((REFERENCE / "bert.json").read_text())
    path = tmp_path / "bert.json"
    path.write_text(json.dumps(settings | {"fusion_layer": 1}))
    model = TPASModel(build_config(weights, REFERENCE / "swin.json", path))
    with pytest.raises(ValueError, match=r"missing \(10\):\n  text_encoder.encoder.layer.1.crossattention"):
        convert_state_dict(weights, model)


@pytest.mark.parametrize("old_format", [False, True])
@pytest.mark.parametrize("share", [0.01, 0.5, 0.999])
def test_a_truncated_checkpoint_is_refused(weights, tmp_path, old_format, share):
    path = write_checkpoint(tmp_path / "x.pth", weights, _use_new_zipfile_serialization=not old_format)
    os.truncate(path, int(path.stat().st_size * share))
    with pytest.raises(ValueError, match=r"x\.pth: damaged, cut off, or no torch checkpoint"):
        read_checkpoint(path)


def test_a_damaged_checkpoint_is_refused(weights, tmp_path):
    path = write_checkpoint(tmp_path / "x.pth", weights)
    content = bytearray(path.read_bytes())
    content[content.index(weights["itm_head.0.weight"].numpy().tobytes()) + 2] ^= 1  # one bit of one weight
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.pth: damaged, .*BadZipFile.*; get the file again"):
        read_checkpoint(path)


@pytest.mark.parametrize("content", [b"", b"<!DOCTYPE html>", b"\x80\x02abc"])
def test_what_is_no_checkpoint_is_refused(tmp_path, content):
    path = tmp_path / "x.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.pth: damaged, cut off, or no torch checkpoint"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    "content", [{"model": {}}, {"model": ZEROS}, {"model": {1: ZEROS}}, {"epoch": 3}, [ZEROS], ZEROS]
)
def test_a_file_without_a_state_dict_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"x\.pth: holds no state dict"):
        read_checkpoint(tmp_path / "x.pth")


def test_a_pickle_that_needs_more_is_refused_by_name(weights, tmp_path):
    torch.save({"model": weights, "args": argparse.Namespace(epoch=1)}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"x\.pth: refused, because it holds a argparse\.Namespace"):
        read_checkpoint(tmp_path / "x.pth")


def test_a_pickle_is_not_executed(tmp_path):
    class Dangerous:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    torch.save({"model": Dangerous()}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"refused, because it holds a \S*mkdir"):
        read_checkpoint(tmp_path / "x.pth")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "not a JSON file"), ("[1]", "fusion_layer"), ('{"num_hidden_layers": 4}', "fusion_layer")],
)
def test_a_wrong_configuration_file_is_named(tmp_path, content, message):
    path = tmp_path / "bert.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=rf"bert\.json: .*{message}"):
        build_config({}, text_config=path)


@pytest.mark.parametrize("fusion_layer", [0, 4])
def test_both_text_encoders_need_a_layer(tmp_path, fusion_layer):
    settings = json.loads((REFERENCE / "bert.json").read_text()) | {"fusion_layer": fusion_layer}
    (tmp_path / "bert.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=f"between 1 and 3, got {fusion_layer}"):
        build_config({}, text_config=tmp_path / "bert.json")


def test_a_tokenizer_with_fewer_words_than_the_model_is_said(checkpoint, tokenizer_dir, tmp_path):
    conversion = convert_checkpoint(
        checkpoint, tmp_path / "model", **CONFIGURATIONS, tokenizer=str(tokenizer_dir)
    )
    assert conversion.notes[-2:] == [
        "images are squeezed to 128 x 128 pixels (height x width), by CLIP's mean and deviation; "
        "texts are cut at 70 tokens",
        "the tokenizer has 8 words, the model 1,200: the others are not used",
    ]


def test_a_tokenizer_with_more_words_than_the_model_is_refused(checkpoint, tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"word{n}" for n in range(1200))]
    large = str(tmp_path / "large")
    BertTokenizer(vocab={word: index for index, word in enumerate(words)}).save_pretrained(large)
    with pytest.raises(ValueError, match="has 1205 words, the model 1200"):
        convert_checkpoint(checkpoint, tmp_path / "model", **CONFIGURATIONS, tokenizer=large)
    assert not (tmp_path / "model").exists()


# The real size

FULL_SIZE = """
import os, sys
from pathlib import Path
import torch
from tpas.configuration_tpas import TPASConfig
from tpas.models.checkpoint_conversion import convert_checkpoint, upstream_name
from tpas.modeling_tpas import TPASModel

def make(path):
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in TPASModel(TPASConfig()).state_dict().items()}
    weights = {}
    for name, shape in shapes.items():
        source = upstream_name(name, 6)
        fused = (3 * shape[0], *shape[1:]) if ".attn.qkv." in source else shape
        if source not in weights:
            weights[source] = torch.empty(fused).uniform_(-0.05, 0.05) if fused else torch.tensor(0.07)
    torch.save({"model": weights}, path)

def peak_memory():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))

folder = Path(sys.argv[1])
if not os.fork():  # what it takes to make it is not measured
    make(folder / "checkpoint.pth")
    os._exit(0)
os.wait()
before = peak_memory()
convert_checkpoint(folder / "checkpoint.pth", folder / "model", tokenizer=None)
print(peak_memory() - before)
"""


def test_the_real_size_converts_in_3_gigabytes_above_the_checkpoint(tmp_path):
    words = [sys.executable, "-c", FULL_SIZE, str(tmp_path)]
    process = subprocess.run(words, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    size = (tmp_path / "checkpoint.pth").stat().st_size
    assert size > 850_000_000
    assert (tmp_path / "model" / "model.safetensors").stat().st_size > 850_000_000
    assert int(process.stdout) < 3_000_000_000 + size
    shutil.rmtree(tmp_path / "model")  # pytest keeps the folders of the last runs
    (tmp_path / "checkpoint.pth").unlink()


# The output directory


def test_without_a_tokenizer_there_is_no_processor(checkpoint, tmp_path):
    output_dir = tmp_path / "model"
    output_dir.mkdir()  # an empty one may be there
    (tmp_path / "link").symlink_to(output_dir)
    main([str(checkpoint), str(tmp_path / "link"), *FLAGS, "--tokenizer", "none"])
    assert {path.name for path in output_dir.iterdir()} == {"config.json", "model.safetensors", *HUB_CODE}


def test_an_existing_directory_is_left_alone(checkpoint, tmp_path):
    output_dir = tmp_path / "model"
    output_dir.mkdir()
    (output_dir / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="not an empty directory"):
        convert_checkpoint(checkpoint, output_dir, **NO_TOKENIZER)
    assert [path.name for path in output_dir.iterdir()] == ["notes.txt"]


def test_a_failure_while_writing_leaves_nothing(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("os.replace", Mock(side_effect=OSError("no space left on device")))
    with pytest.raises(OSError, match="no space left"):
        convert_checkpoint(checkpoint, tmp_path / "model", **NO_TOKENIZER)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint_9.pth"]


def test_a_model_that_comes_back_different_is_not_delivered(checkpoint, tmp_path, monkeypatch):
    load = TPASModel.from_pretrained

    def load_wrongly(directory, **options):
        model = load(directory, **options)
        torch.nn.init.zeros_(model.matching_head.classifier.weight)
        return model

    monkeypatch.setattr(TPASModel, "from_pretrained", load_wrongly)
    with pytest.raises(RuntimeError, match="match_logits differ"):
        convert_checkpoint(checkpoint, tmp_path / "model", **NO_TOKENIZER)
    assert not (tmp_path / "model").exists()


def test_the_command_says_what_is_wrong_without_a_traceback(tmp_path):
    with pytest.raises(SystemExit, match=r"absent\.pth: no such checkpoint file"):
        main([str(tmp_path / "absent.pth"), str(tmp_path / "model")])


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.complex64])
def test_a_weight_that_is_no_floating_point_number_is_named(weights, tmp_path, dtype):
    name = "vision_proj.weight"
    path = write_checkpoint(tmp_path / "checkpoint.pth", weights | {name: weights[name].to(dtype)})
    with pytest.raises(ValueError, match=f"the weight {name} is of type {dtype}"):
        convert_checkpoint(path, tmp_path / "out", **NO_TOKENIZER)


def test_a_tokenizer_s_own_code_is_not_run_and_nobody_is_asked(
    checkpoint, tokenizer_dir, tmp_path, monkeypatch
):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on the terminal"))
    folder = shutil.copytree(tokenizer_dir, tmp_path / "tokenizer")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'it ran')!r}, 'w')")
    with pytest.raises(SystemExit, match=f"tpas convert: {folder} cannot be loaded"):
        main([str(checkpoint), str(tmp_path / "out"), *FLAGS, "--tokenizer", str(folder)])
    assert not (tmp_path / "it ran").exists()


def test_a_billion_layers_are_refused_at_once(checkpoint, tmp_path):
    settings = json.loads(CONFIGURATIONS["text_config"].read_text()) | {"num_hidden_layers": 10**9}
    (tmp_path / "bert.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=r"bert.json: num_hidden_layers is 1,000,000,000, and a model may"):
        convert_checkpoint(
            checkpoint,
            tmp_path / "out",
            CONFIGURATIONS["vision_config"],
            tmp_path / "bert.json",
            tokenizer=None,
        )
