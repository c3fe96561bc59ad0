"""The network: equal to upstream X-VLM, and a well-behaved member of transformers.

`data/xvlm_reference` holds what upstream's own code answered (see the README there).
"""

import json
import math
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertTokenizer
from transformers.models.swin.modeling_swin import SwinDropPath, SwinLayer

from tpas.configuration_tpas import TPASConfig
from tpas.modeling_tpas import TEMPERATURE_RANGE, Temperature, TPASModel, interpolate_table
from tpas.models.checkpoint_conversion import build_config, convert_state_dict, upstream_name
from tpas.models.hub_code import HUB_CODE
from tpas.objectives import contrastive_loss, match_pairs, matching_loss
from tpas.processing_tpas import TPASProcessor

REFERENCE = Path(__file__).parent / "data" / "xvlm_reference"
TOLERANCE = 1e-5
OUTPUTS = ("image_embeds", "text_embeds", "match_logits")

FRESH_PROCESS = """
from pathlib import Path
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoProcessor

model_dir, inputs, outputs = sys.argv[1:]
inputs = load_file(inputs)
answers = {}

def load(name, directory, **settings):
    model = AutoModel.from_pretrained(directory, trust_remote_code=True, **settings)
    with torch.no_grad():
        pixels = inputs["pixel_values"].to(model.dtype)
        output = model(pixels, inputs["input_ids"], inputs["attention_mask"])
    for key in ("image_embeds", "text_embeds", "match_logits"):
        answers[f"{name} {key}"] = output[key].contiguous()
    return model

assert AutoConfig.from_pretrained(model_dir, trust_remote_code=True).model_type == "tpas"
model = load("as saved", model_dir)
load("eager", model_dir, attn_implementation="eager")
load("device map", model_dir, device_map={"": "cpu"})
assert load("bf16", model_dir, dtype=torch.bfloat16).dtype == torch.bfloat16
assert type(model).__module__.startswith("transformers_modules.")
larger = AutoModel.from_pretrained(model_dir, trust_remote_code=True, image_size=160)
assert larger.config.vision_config.window_size == 5

again = Path(model_dir).with_name("again")
model.save_pretrained(again, max_shard_size="1MB")
assert len(list(again.glob("model-*.safetensors"))) > 1
load("saved again, sharded", again)
model.to(torch.bfloat16).save_pretrained(again.with_name("half"))
assert load("saved in bf16", again.with_name("half")).dtype == torch.bfloat16

processor = AutoProcessor.from_pretrained(model_dir, trust_remote_code=True)
processor.save_pretrained(again)
processors = processor, AutoProcessor.from_pretrained(again, trust_remote_code=True)
features = [p(images=[Image.new("RGB", (50, 40), "red")], text=["A man, falls!"]) for p in processors]
for key in ("pixel_values", "input_ids"):
    assert torch.equal(features[0][key], features[1][key])
assert features[0]["input_ids"].tolist() == [[2, 5, 6, 7, 3]]
assert not any(name.partition(".")[0] == "tpas" for name in sys.modules)
save_file(answers, outputs)
"""


@pytest.fixture(scope="module")
def reference() -> dict[str, torch.Tensor]:
    return load_file(REFERENCE / "retrieval_io.safetensors")


@pytest.fixture(scope="module")
def build():
    """A function from an attention implementation to a new model with upstream's weights, in eval mode."""
    weights = {}
    for part in sorted(REFERENCE.glob("checkpoint_*.safetensors")):
        weights |= load_file(part)
    config = build_config(weights, REFERENCE / "swin.json", REFERENCE / "bert.json")

    def build(attention: str = "sdpa") -> TPASModel:
        model = TPASModel._from_config(config, attn_implementation=attention)
        model.load_state_dict(convert_state_dict(weights, model).state_dict)
        return model.eval()

    return build


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def upstream_model(request, build) -> TPASModel:
    return build(request.param)


@pytest.fixture(scope="module")
def model(build) -> TPASModel:
    return build()


@pytest.fixture
def pairs(reference) -> dict[str, torch.Tensor]:
    """The reference's first pairs as arguments of the model."""
    batch = int(reference["loss_batch"])
    names = {"pixel_values": "image", "input_ids": "text_ids", "attention_mask": "text_atts"}
    return {name: reference[theirs][:batch] for name, theirs in names.items()}


def assert_close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = TOLERANCE):
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=0)


def every_pair(reference):
    """Text and image index (T * I,) of every pair, text by text."""
    texts, images = len(reference["text_ids"]), len(reference["image"])
    return torch.arange(texts).repeat_interleave(images), torch.arange(images).repeat(texts)


@torch.no_grad()
def test_image_features_equal_upstream(upstream_model, reference):
    image = upstream_model.get_image_features(reference["image"])
    assert_close(image.last_hidden_state, reference["image_embeds"])
    assert_close(image.pooler_output, reference["image_feat"])
    assert_close(image.last_hidden_state[:, 0], image.last_hidden_state[:, 1:].mean(dim=1))
    assert_close(image.pooler_output.norm(dim=-1), torch.ones(4))


@torch.no_grad()
def test_text_features_equal_upstream(upstream_model, reference):
    text = upstream_model.get_text_features(reference["text_ids"], reference["text_atts"])
    words = reference["text_atts"].bool()
    assert_close(text.last_hidden_state[words], reference["text_embeds"][words])
    assert_close(text.pooler_output, reference["text_feat"])
    assert_close(text.pooler_output.norm(dim=-1), torch.ones(6))


@torch.no_grad()
def test_cross_modal_encoder_equals_upstream_on_every_pair(upstream_model, reference):
    # Given upstream's own hidden states, so that this encoder stands alone.
    texts, images = every_pair(reference)
    masks = reference["text_atts"][texts]
    text_states, image_states = reference["text_embeds"][texts], reference["image_embeds"][images]
    hidden, _ = upstream_model.cross_modal_encoder(text_states, masks, image_states)
    assert_close(hidden[:, 0].view_as(reference["cross_cls_t2i"]), reference["cross_cls_t2i"])
    words = reference["text_atts"][1].bool()
    assert_close(hidden[texts == 1][:, words], reference["cross_hidden_text1"][:, words])
    logits = upstream_model.match(image_states, text_states, masks)
    assert_close(logits.view_as(reference["itm_logits_t2i"]), reference["itm_logits_t2i"])


@torch.no_grad()
def test_similarities_and_match_logits_equal_upstream_end_to_end(upstream_model, reference):
    output = upstream_model(reference["image"], reference["text_ids"], reference["text_atts"])
    assert_close(output.logits_per_image * upstream_model.temperature(), reference["sims_i2t"])
    texts, images = every_pair(reference)
    by_pair = reference["image"][images], reference["text_ids"][texts], reference["text_atts"][texts]
    output = upstream_model(*by_pair)
    assert_close(output.match_logits.view_as(reference["itm_logits_t2i"]), reference["itm_logits_t2i"])


def losses(model, reference, suffix):
    """Contrastive and matching loss with upstream's negatives; `suffix` "idx" or "noidx"."""
    batch = int(reference["loss_batch"])
    mask = reference["text_atts"][:batch]
    image_ids = reference["idx"] if suffix == "idx" else None
    pairs = match_pairs(reference[f"image_neg_{suffix}"], reference[f"text_neg_{suffix}"], image_ids)
    image = model.get_image_features(reference["image"][:batch])
    text = model.get_text_features(reference["text_ids"][:batch], mask)
    contrastive = contrastive_loss(image.pooler_output, text.pooler_output, model.temperature(), image_ids)
    image_states, text_states = image.last_hidden_state[pairs.images], text.last_hidden_state[pairs.texts]
    logits = model.match(image_states, text_states, mask[pairs.texts])
    return contrastive, matching_loss(logits, pairs.labels)


@pytest.mark.parametrize("suffix", ["noidx", "idx"])
def test_losses_equal_upstream(upstream_model, reference, suffix):
    contrastive, matching = losses(upstream_model, reference, suffix)
    assert_close(contrastive.detach(), reference[f"loss_itc_{suffix}"])
    assert_close(matching.detach(), reference[f"loss_itm_{suffix}"])


@pytest.mark.parametrize("suffix", ["noidx", "idx"])
def test_forward_draws_upstreams_negatives_and_gives_its_losses(upstream_model, reference, pairs, suffix):
    image_ids = reference["idx"] if suffix == "idx" else None
    torch.manual_seed(1234)  # what upstream drew after
    output = upstream_model(**pairs, image_ids=image_ids, return_loss=True)
    assert_close(output.contrastive_loss.detach(), reference[f"loss_itc_{suffix}"])
    assert_close(output.matching_loss.detach(), reference[f"loss_itm_{suffix}"])
    assert_close(output.loss, output.contrastive_loss + output.matching_loss, 0)


def test_every_gradient_equals_upstream(upstream_model, reference):
    upstream_model.zero_grad()
    sum(losses(upstream_model, reference, "idx")).backward()
    gradients = defaultdict(list)  # by upstream's name; query, key and value follow each other
    for name, parameter in upstream_model.named_parameters():
        gradients[upstream_name(name, num_text_layers=2)].append(parameter.grad)
    gradients = {name: torch.cat(parts) if len(parts) > 1 else parts[0] for name, parts in gradients.items()}

    expected = {name[5:]: tensor for name, tensor in reference.items() if name.startswith("grad.")}
    word_embeddings = gradients.pop("text_encoder.embeddings.word_embeddings.weight")
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        recorded = gradient.flatten()[::13] if gradient.numel() > 1024 else gradient
        assert_close(recorded.flatten(), expected[name].flatten())
    # Upstream's was not recorded, but words and their (single) type are added, so that they share one sum.
    types = expected["text_encoder.embeddings.token_type_embeddings.weight"]
    assert_close(word_embeddings.sum(dim=0), types[0])


@torch.no_grad()
def test_padding_changes_nothing(upstream_model, reference):
    ids, mask = reference["text_ids"][:4], reference["text_atts"][:4]
    images = upstream_model.get_image_features(reference["image"])
    text = upstream_model.get_text_features(ids, mask)
    logits = upstream_model.match(images.last_hidden_state, text.last_hidden_state, mask)

    rubbish = torch.where(mask.bool(), ids, torch.randint_like(ids, 1, 1200))
    longer_ids = torch.cat([rubbish, torch.randint(1, 1200, (4, 7))], dim=1)
    longer_mask = torch.cat([mask, torch.zeros(4, 7, dtype=mask.dtype)], dim=1)
    padded = upstream_model.get_text_features(longer_ids, longer_mask)
    assert_close(padded.pooler_output, text.pooler_output)
    padded_logits = upstream_model.match(images.last_hidden_state, padded.last_hidden_state, longer_mask)
    assert_close(padded_logits, logits)

    unmasked = upstream_model.match(images.last_hidden_state, padded.last_hidden_state, None)
    assert (unmasked - logits).abs().max() > 100 * TOLERANCE  # so the mask is what did it


@torch.no_grad()
def test_without_a_mask_every_word_counts(upstream_model, reference):
    ids = reference["text_ids"][:2, :8]
    ones = torch.ones_like(ids)
    with_mask, without = (upstream_model.get_text_features(ids, mask) for mask in (ones, None))
    assert_close(with_mask.last_hidden_state, without.last_hidden_state)
    images = reference["image_embeds"][:2]
    states = with_mask.last_hidden_state
    assert_close(upstream_model.match(images, states, ones), upstream_model.match(images, states, None))


@torch.no_grad()
def test_masked_image_tokens_are_as_if_not_there(upstream_model, reference):
    images, texts, mask = reference["image_embeds"], reference["text_embeds"][:4], reference["text_atts"][:4]
    kept = [0, 1, 2, 5, 6, 11]  # the mean and a region
    region = torch.zeros(images.shape[:2], dtype=torch.long)
    region[:, kept] = 1
    masked = upstream_model.match(images, texts, mask, image_attention_mask=region)
    assert_close(masked, upstream_model.match(images[:, kept], texts, mask))
    unmasked = upstream_model.match(images, texts, mask)
    assert (masked - unmasked).abs().max() > 100 * TOLERANCE
    everything = upstream_model.match(images, texts, mask, image_attention_mask=torch.ones_like(region))
    assert_close(everything, unmasked)


@torch.no_grad()
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_training_matches_shared_images_as_each_pair_alone(build, reference, attention):
    """In training the last layer is of [CLS] alone, and each image's keys and values are made once."""
    model = build(attention)
    rows, texts = torch.tensor([0, 2, 2, 1, 0]), torch.tensor([1, 1, 0, 3, 2])
    states, mask = reference["text_embeds"][texts], reference["text_atts"][texts]
    images = reference["image_embeds"]
    expected = model.match(images[rows], states, mask)
    for part in model.train().modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
        elif hasattr(part, "attention_dropout"):
            part.attention_dropout = 0.0
    assert_close(model.match(images, states, mask, image_rows=rows), expected)
    assert_close(model.match(images[rows], states, mask), expected)


@torch.no_grad()
def test_only_eager_attention_shows_where_it_looked(build, reference):
    images, texts, mask = reference["image_embeds"], reference["text_embeds"][:4], reference["text_atts"][:4]
    region = torch.ones(images.shape[:2], dtype=torch.long)
    region[:, 10:] = 0
    _, attentions = build("eager").cross_modal_encoder(texts, mask, images, region)
    assert [attention.shape for attention in attentions] == [(4, 4, 24, 17)] * 2
    for attention in attentions:
        assert_close(attention.sum(dim=-1), torch.ones(4, 4, 24))
        assert attention[..., 10:].max() == 0
    _, attentions = build("sdpa").cross_modal_encoder(texts, mask, images, region)
    assert attentions == (None, None)


@torch.no_grad()
def test_a_batch_is_its_items_one_by_one(model, reference):
    images = model.get_image_features(reference["image"])
    texts = model.get_text_features(reference["text_ids"], reference["text_atts"])
    for item in range(4):
        only = slice(item, item + 1)
        image = model.get_image_features(reference["image"][only])
        assert_close(image.last_hidden_state, images.last_hidden_state[only])
        text = model.get_text_features(reference["text_ids"][only], reference["text_atts"][only])
        assert_close(text.pooler_output, texts.pooler_output[only])
        logits = model.match(image.last_hidden_state, text.last_hidden_state, reference["text_atts"][only])
        assert_close(logits, reference["itm_logits_t2i"][item, item][None])


@torch.no_grad()
def test_as_many_images_and_texts_as_you_like(model, reference):
    output = model(reference["image"][:3], reference["text_ids"][:2], reference["text_atts"][:2])
    assert output.logits_per_image.shape == (3, 2)
    assert torch.equal(output.logits_per_text, output.logits_per_image.t())
    assert (output.image_embeds.shape, output.text_embeds.shape) == ((3, 32), (2, 32))
    assert output.loss is output.contrastive_loss is output.matching_loss is output.match_logits is None
    assert_close(output.vision_model_output.last_hidden_state, reference["image_embeds"][:3])
    assert_close(output.text_model_output.pooler_output, reference["text_feat"][:2])


@pytest.mark.parametrize(
    ("with_ids", "return_loss", "expected"),
    [
        *((False, None, False), (False, True, True), (False, False, False)),
        *((True, None, True), (True, True, True), (True, False, False)),
    ],
)
def test_losses_come_where_asked_for(model, reference, pairs, with_ids, return_loss, expected):
    image_ids = reference["idx"] if with_ids else None
    output = model(**pairs, image_ids=image_ids, return_loss=return_loss)
    losses = {"loss", "contrastive_loss", "matching_loss"}
    assert losses & output.keys() == (losses if expected else set())
    assert all(output[name].shape == () for name in output if name.endswith("loss"))
    # Asked for a loss or not, the match logits are those of the pairs themselves.
    assert_close(output.match_logits, reference["itm_logits_t2i"][:4].diagonal().t())


def test_a_loss_needs_pairs(model, reference, pairs):
    pairs["pixel_values"] = reference["image"][:3]
    with pytest.raises(ValueError, match="pairs, got 3 images and 4 texts"):
        model(**pairs, return_loss=True)


def test_the_temperature_stays_in_its_range():
    for start, expected in [(-1.0, TEMPERATURE_RANGE[0]), (0.07, 0.07), (9.0, TEMPERATURE_RANGE[1])]:
        temperature = Temperature(start)
        value = temperature()
        assert value.item() == pytest.approx(expected)
        value.backward()
        assert temperature.value.grad == 1.0  # outside the range too, or it could never come back


@torch.no_grad()
def test_dropout_and_drop_path_belong_to_training(build, pairs):
    model = build()
    evaluated = [model(**pairs) for _ in range(2)]
    trained = [model.train()(**pairs) for _ in range(2)]
    for name in OUTPUTS:
        assert torch.equal(evaluated[0][name], evaluated[1][name])
        assert not torch.equal(trained[0][name], trained[1][name])


def test_stochastic_depth_is_on_both_branches_of_each_block_as_upstream(build, pairs):
    model = build()
    assert model.config.vision_config.drop_path_rate == 0.1
    rates = {
        name: [m.drop_prob for m in layer.modules() if isinstance(m, SwinDropPath)]
        for name, layer in model.vision_model.named_modules()
        if isinstance(layer, SwinLayer)
    }
    # Rising linearly from 0 at the first of seven blocks to 0.1 at the last.
    for index, found in enumerate(rates.values()):
        assert found == pytest.approx([0.1 * index / 6] if index else [])
    assert len(rates) == 7
    calls = []
    for module in {m for m in model.modules() if isinstance(m, SwinDropPath)}:
        module.register_forward_hook(lambda module, args, output: calls.append(module.drop_prob))
    model.train().get_image_features(pairs["pixel_values"])
    assert sorted(calls) == pytest.approx(sorted(2 * [0.1 * index / 6 for index in range(1, 7)]))
    # A block whose both branches are dropped hands on what it got.
    layers = (module for module in model.modules() if isinstance(module, SwinLayer))
    layer = next(layer for layer in layers if isinstance(layer.drop_path, SwinDropPath))
    layer.drop_path.drop_prob = 1 - 1e-7
    hidden = torch.randn(2, 16 * 16, layer.layernorm_before.normalized_shape[0])
    output = layer(hidden, (16, 16))
    assert torch.equal(output[0] if isinstance(output, tuple) else output, hidden)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_gradient_checkpointing_changes_no_gradient(build, reference, pairs, attention):
    gradients = []
    for checkpointing in (False, True):
        model = build(attention).train()
        if checkpointing:
            model.activation_checkpointing_enable()
            assert model.is_activation_checkpointing
        torch.manual_seed(3)  # dropout and negatives
        model(**pairs, image_ids=reference["idx"]).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert_close(gradients[1][name], gradient, 1e-6)


class Part(torch.nn.Module):
    """One of the three encoders, as a module of its own."""

    def __init__(self, model: TPASModel, part: str):
        super().__init__()
        self.model, self.part = model, part

    def forward(self, *inputs):
        if self.part == "match":
            return self.model.match(*inputs)
        features = getattr(self.model, f"get_{self.part}_features")(*inputs)
        return features.last_hidden_state, features.pooler_output


@pytest.fixture(params=["image", "text", "match"])
def part_and_inputs(request, tiny_config) -> tuple[Part, tuple[torch.Tensor, ...]]:
    model = TPASModel(tiny_config).eval()
    pixels, ids = torch.randn(3, 3, 32, 32), torch.randint(64, (3, 10))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    inputs = {"image": (pixels,), "text": (ids, mask)}
    if request.param == "match":
        with torch.no_grad():
            images, texts = model.get_image_features(pixels), model.get_text_features(ids, mask)
        inputs["match"] = (images.last_hidden_state, texts.last_hidden_state, mask)
    return Part(model, request.param), inputs[request.param]


@torch.no_grad()
def test_each_encoder_compiles_into_one_graph(part_and_inputs):
    part, inputs = part_and_inputs
    torch.compiler.reset()
    # Whole and without breaks; the default backend then needs a C++ compiler, this one none.
    compiled = torch.compile(part, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(*inputs), part(*inputs), atol=1e-6, rtol=0)


@torch.no_grad()
def test_each_encoder_exports_for_any_batch_and_length(part_and_inputs):
    part, inputs = part_and_inputs
    batch, length = torch.export.Dim("batch", min=2, max=64), torch.export.Dim("length", min=2, max=24)
    text = ({0: batch, 1: length},)
    shapes = {"image": ({0: batch},), "text": 2 * text, "match": ({0: batch}, *2 * text)}[part.part]
    exported = torch.export.export(part, inputs, dynamic_shapes={"inputs": shapes}).module()
    larger = [torch.cat([tensor, tensor[:2]]) for tensor in inputs]
    for arguments in (inputs, larger):
        torch.testing.assert_close(exported(*arguments), part(*arguments), atol=1e-6, rtol=0)


def test_what_is_saved_comes_back_to_the_bit(build, pairs, tmp_path):
    model = build()
    model.save_pretrained(tmp_path)
    usual = (tmp_path / "config.json").stat().st_mode
    assert (tmp_path / "model.safetensors").stat().st_mode == usual  # whoever reads one may read the other
    loaded, report = TPASModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    for kind in ("named_parameters", "named_buffers"):
        saved, back = dict(getattr(model, kind)()), dict(getattr(loaded, kind)())
        assert saved.keys() == back.keys()
        assert all(torch.equal(saved[name], back[name]) for name in saved)
    with torch.no_grad():
        expected, answer = model(**pairs), loaded.eval()(**pairs)
    assert all(torch.equal(answer[name], expected[name]) for name in OUTPUTS)


@pytest.fixture
def uninitialised_memory_is_nan():
    torch.use_deterministic_algorithms(True)  # fills what torch.empty returns
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("uninitialised_memory_is_nan")
def test_what_a_checkpoint_lacks_is_initialised(build, tmp_path):
    # from_pretrained builds on the meta device: what neither the file nor _init_weights sets stays as it was.
    model = build()
    model.save_pretrained(tmp_path)
    kept = "text_projection.weight"
    save_file({kept: model.state_dict()[kept]}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded, _ = TPASModel.from_pretrained(tmp_path, output_loading_info=True)
    assert torch.equal(loaded.text_projection.weight, model.text_projection.weight)
    fresh = {name: tensor for name, tensor in loaded.named_parameters() if name != kept}
    for name, tensor in fresh.items():
        if name == "temperature.value":
            assert tensor.item() == pytest.approx(0.07)
        elif "norm" in name.lower() and name.endswith("weight"):
            assert (tensor == 1).all(), name
        elif name.endswith(("bias", "relative_position_bias_table")):
            assert (tensor == 0).all(), name
        else:
            assert 0.01 < tensor.std() < 0.03, name
    buffers = dict(model.named_buffers())
    assert buffers.keys() == dict(loaded.named_buffers()).keys()
    assert all(torch.equal(tensor, buffers[name]) for name, tensor in loaded.named_buffers())


def test_weights_are_taken_while_they_are_finite_though_their_sum_is_not(tiny_config, tmp_path):
    model = TPASModel(tiny_config)
    weight = model.image_projection.weight
    torch.nn.init.constant_(weight, 3e38)
    model.save_pretrained(tmp_path)
    assert torch.equal(TPASModel.from_pretrained(tmp_path).image_projection.weight, weight)
    with torch.no_grad():
        weight.view(-1)[:2] = torch.tensor([math.inf, -math.inf])
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"the weight image_projection\.weight is not finite"):
        TPASModel.from_pretrained(tmp_path)


def test_xvlm_base_has_its_214_million_parameters():
    with torch.device("meta"):
        model = TPASModel(TPASConfig())
    assert model.num_parameters() == 213_959_547
    by_module = {name: sum(p.numel() for p in child.parameters()) for name, child in model.named_children()}
    assert by_module == {
        "vision_model": 86_878_584,  # Swin-B, window 12
        "text_model": 66_364_416,  # BERT base: embeddings and 6 layers, without pooler
        "cross_modal_encoder": 59_069_952,  # 6 layers with attention to the 1024 wide image
        **{"image_projection": 262_400, "text_projection": 196_864},
        **{"matching_head": 1_187_330, "temperature": 1},
    }


def test_loading_at_another_size_interpolates_the_tables(tiny_config, tmp_path):
    model = TPASModel(tiny_config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("relative_position_bias_table"):
            torch.nn.init.normal_(parameter)
    model.save_pretrained(tmp_path)
    loaded, info = TPASModel.from_pretrained(tmp_path, image_size=48, output_loading_info=True)
    assert not info["missing_keys"]
    vision = loaded.config.vision_config
    assert (vision.image_size, vision.window_size) == (48, 6)
    assert loaded.vision_model.config is vision
    before, after = model.state_dict(), loaded.state_dict()
    tables = [name for name in before if name.endswith("relative_position_bias_table")]
    assert len(tables) == 2
    for name in before:
        expected = interpolate_table(before[name], 11) if name in tables else before[name]
        assert torch.equal(after[name], expected), name
    loaded.save_pretrained(tmp_path / "large")
    again = TPASModel.from_pretrained(tmp_path / "large")
    images = torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        features = loaded.eval().get_image_features(images)
        assert features.last_hidden_state.shape == (2, 1 + 36, 32)
        assert_close(again.get_image_features(images).pooler_output, features.pooler_output, 1e-6)


def test_the_size_it_has_changes_nothing(tiny_config, tmp_path):
    TPASModel(tiny_config).save_pretrained(tmp_path)
    plain, sized = TPASModel.from_pretrained(tmp_path), TPASModel.from_pretrained(tmp_path, image_size=32)
    sizes = sized.state_dict()
    assert all(torch.equal(tensor, sizes[name]) for name, tensor in plain.state_dict().items())


def test_images_of_another_size_are_refused(tiny_config):
    with pytest.raises(ValueError, match="takes images of 32x32 pixels, got 48x32"):
        TPASModel(tiny_config).get_image_features(torch.zeros(1, 3, 48, 32))
    with pytest.raises(ValueError, match="multiple of 8 pixels, got 36"):
        TPASModel(tiny_config).resize_image(36)


def test_a_saved_model_brings_its_code(build, pairs, tmp_path, run_without_tpas):
    """A fresh process in which `tpas` cannot be imported loads it with trust_remote_code, in every way."""
    model = build()
    model_dir = tmp_path / "model"
    model.save_pretrained(model_dir)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "man", "falls"]
    tokenizer = BertTokenizer(vocab={word: index for index, word in enumerate(words)})
    TPASProcessor.build(tokenizer, image_size=128).save_pretrained(model_dir)
    assert {path.name for path in model_dir.glob("*.py")} == set(HUB_CODE)
    auto_map = {"AutoConfig": "configuration_tpas.TPASConfig", "AutoModel": "modeling_tpas.TPASModel"}
    assert json.loads((model_dir / "config.json").read_text())["auto_map"] == auto_map
    inputs, outputs = tmp_path / "inputs.safetensors", tmp_path / "outputs.safetensors"
    save_file(pairs, inputs)
    run_without_tpas(FRESH_PROCESS, model_dir, inputs, outputs, cwd=tmp_path)
    with torch.no_grad():
        expected = model(**pairs)
    answers = load_file(outputs)
    assert len(answers) == 6 * len(OUTPUTS)
    for name, answer in answers.items():
        tolerance = 0.02 if "bf16" in name else 1e-6
        assert_close(answer.float(), expected[name.rpartition(" ")[2]], tolerance)
