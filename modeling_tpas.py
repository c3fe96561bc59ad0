"""X-VLM for text-based person anomaly search.

An image encoder (Swin), a text encoder (the lower half of BERT) and a cross-modal encoder (BERT layers
that also look at the image). Search compares the embeddings of the first two, then scores the best
images again with the third. Paper: https://arxiv.org/abs/2111.08276 (X-VLM).
"""

import re
from collections.abc import Sequence
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import BertModel, PreTrainedModel, SwinModel
from transformers.activations import ACT2FN
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.swin.modeling_swin import SwinMLP, SwinRelativePositionBias
from transformers.utils.generic import ModelOutput

from .configuration_tpas import TPASConfig, height_and_width, stage_maps, stage_window
from .objectives import contrastive_loss, draw_match_pairs, gather_with_gradient, matching_loss
from .pipeline_tpas import ImageTextMatchingPipeline

# What models compute, and earlier versions of transformers, or of X-VLM, saved nevertheless.
COMPUTED_BUFFERS = r"(^|\.)(position_ids|relative_position_index|attn_mask|inv_freq|relative_coords_table)$"

TEMPERATURE_RANGE = (0.001, 0.5)  # ALBEF's bounds; a temperature of 0 or less would turn the ranking round


def eager_attention(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
    """Attention written out, for `attn_implementation="eager"`: the one that returns its weights.

    query (B, H, L, d), key and value (B, H, K, d), additive mask (B, 1, L, K) or None to
    output (B, L, H, d) and weights (B, H, L, K).
    """
    scores = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(dim=-1)
    weights = F.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2), weights


def take_rows(states, rows):
    """`states[rows]`, by what goes back quickly on a CPU, and on a GPU by what adds up in a fixed order."""
    return states[rows] if states.is_cuda else states.index_select(0, rows)


class LaidOut(TorchFunctionMode):
    """For building a model on the meta device, where its weights are none yet, without torch's compiler.

    By it torch computes what Swin and BERT count, and draws weights, where there is nothing to compute; its
    import takes longer than all else of loading a small model. So counts are numbers, and no weight is drawn.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        settings = dict(kwargs or {})
        if func is nn.init.normal_ and settings["tensor"].is_meta:
            return settings["tensor"]
        if func is torch.arange or (func is torch.zeros and settings.get("dtype") is torch.long):
            settings.setdefault("device", "cpu")
        return func(*args, **settings)


class SwinFeedForward(SwinMLP):
    """Swin's feed-forward under stochastic depth, as upstream; transformers has that on attention alone."""

    def __init__(self, config, width, drop_path):
        super().__init__(config, width)
        self.drop_path = drop_path

    def forward(self, hidden_states):
        return self.drop_path(super().forward(hidden_states))


def build_vision_model(config):
    """The image encoder, a `SwinModel` without its pooling.

    Where a stage's map is smaller than a window, its position tables shrink with the window, as upstream's
    do; transformers shrinks the window alone, which then does not fit.
    """
    vision_model = SwinModel(config, add_pooling_layer=False)
    stages: Any = vision_model.encoder.layers
    for stage, stage_map in zip(stages, stage_maps(config), strict=True):
        window = stage_window(config.window_size, stage_map)
        for layer in stage.blocks:
            layer.mlp = SwinFeedForward(config, layer.mlp.fc1.in_features, layer.drop_path)
            if window != config.window_size:
                heads = layer.attention.num_attention_heads
                layer.attention.relative_position_bias = SwinRelativePositionBias(heads, (window, window))
    return vision_model


class CrossModalAttention(nn.Module):
    """Multi-head attention of text over text, or of text over the image, with BERT's residual and norm."""

    def __init__(self, config, key_value_width):
        super().__init__()
        self.config = config
        self.head_size = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_size**-0.5
        self.attention_dropout = config.attention_probs_dropout_prob
        self.is_causal = False  # read by the sdpa interface
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(key_value_width, config.hidden_size)
        self.value = nn.Linear(key_value_width, config.hidden_size)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def split_heads(self, hidden_states):
        batch, length, _ = hidden_states.shape
        return hidden_states.view(batch, length, -1, self.head_size).transpose(1, 2)  # (B, H, length, d)

    def forward(self, hidden_states, key_value_states, attention_mask=None, key_value_rows=None):
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)
        keys, values = self.key(key_value_states), self.value(key_value_states)
        if key_value_rows is not None:
            keys, values = take_rows(keys, key_value_rows), take_rows(values, key_value_rows)
        context, weights = attend(
            self,
            self.split_heads(self.query(hidden_states)),
            self.split_heads(keys),
            self.split_heads(values),
            attention_mask,
            scaling=self.scaling,
            dropout=self.attention_dropout if self.training else 0.0,
        )
        context = context.reshape(hidden_states.shape)  # (B, L, D)
        return self.layer_norm(self.dropout(self.dense(context)) + hidden_states), weights


class CrossModalLayer(GradientCheckpointingLayer):
    """Self-attention over the text, cross-attention to the image, feed-forward.

    With `cls_only`, of [CLS] alone: text (B, L, D) to (B, 1, D), at a small part of the cost.
    """

    def __init__(self, config, image_width):
        super().__init__()
        self.self_attention = CrossModalAttention(config, config.hidden_size)
        self.cross_attention = CrossModalAttention(config, image_width)
        self.intermediate = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACT2FN[config.hidden_act]
        self.output = nn.Linear(config.intermediate_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def feed_forward(self, hidden_states):
        expanded = self.activation(self.intermediate(hidden_states))
        return self.layer_norm(self.dropout(self.output(expanded)) + hidden_states)

    def forward(self, text_states, text_mask, image_states, image_mask, image_rows=None, cls_only=False):
        rows = slice(1 if cls_only else None)
        if text_mask is not None:
            text_mask = text_mask[:, :, rows]
        text_states, _ = self.self_attention(text_states[:, rows], text_states, text_mask)
        text_states, image_attention = self.cross_attention(text_states, image_states, image_mask, image_rows)
        return self.feed_forward(text_states), image_attention


class CrossModalEncoder(nn.Module):
    """The upper half of X-VLM's text encoder: text hidden states in, image-grounded hidden states out."""

    def __init__(self, config, image_width, num_layers):
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(CrossModalLayer(config, image_width) for _ in range(num_layers))

    def forward(
        self,
        text_hidden_states,
        text_attention_mask,
        image_hidden_states,
        image_attention_mask=None,
        image_rows=None,
        cls_only=False,
    ):
        """Text (B, L, D), its mask (B, L), image (B, 1+N, Dv) and its mask (B, 1+N) or None.

        Masks are 1 where there is something to look at. With `image_rows` (B,) the images are (I, 1+N, Dv),
        text b looks at that of row `image_rows[b]`, and an image's keys and values are computed once. With
        `cls_only` the last layer leaves out the rows of the other words: L is 1 in what it returns.

        Returns:
            hidden states (B, L, D), and each layer's attention to the image (B, H, L, 1+N), or None
            under an attention implementation that does not give its weights (all but eager).
        """
        text_mask = create_bidirectional_mask(self.config, text_hidden_states, text_attention_mask)
        image_mask = create_bidirectional_mask(
            self.config, text_hidden_states, image_attention_mask, encoder_hidden_states=image_hidden_states
        )
        attentions = []
        for number, layer in enumerate(self.layers, start=1):
            last = cls_only and number == len(self.layers)
            text_hidden_states, attention = layer(
                text_hidden_states, text_mask, image_hidden_states, image_mask, image_rows, cls_only=last
            )
            attentions.append(attention)
        return text_hidden_states, tuple(attentions)


class MatchingHead(nn.Module):
    """Two classes from the cross-modal [CLS]: 0 = another image, 1 = the pair matches."""

    def __init__(self, width):
        super().__init__()
        self.dense = nn.Linear(width, 2 * width)
        self.layer_norm = nn.LayerNorm(2 * width)
        self.classifier = nn.Linear(2 * width, 2)

    def forward(self, cls_states):
        return self.classifier(F.gelu(self.layer_norm(self.dense(cls_states))))


class Temperature(nn.Module):
    """The learned contrastive temperature; a module, so that peft can keep it trainable."""

    def __init__(self, initial_value):
        super().__init__()
        self.initial_value = initial_value
        self.value = nn.Parameter(torch.tensor([float(initial_value)]))  # FSDP shards no scalar

    def forward(self):
        """The temperature, a scalar, within [`TEMPERATURE_RANGE`]; the gradient passes as if not clamped.

        (With the clamp's own gradient, a temperature that has left the range could never come back.)
        """
        value = self.value.squeeze(0)
        return value.detach().clamp(*TEMPERATURE_RANGE) + (value - value.detach())


class TPASFeatures(BaseModelOutputWithPooling):
    """What an encoder returns for B images or texts; of transformers' fields these two, always.

    Attributes:
        last_hidden_state: (B, N, width), what [`~TPASModel.match`] reads.
        pooler_output: (B, projection_dim), unit norm.
    """

    if TYPE_CHECKING:
        last_hidden_state: torch.Tensor
        pooler_output: torch.Tensor


@dataclass
class TPASOutput(ModelOutput):
    """What [`TPASModel`] returns for I images and T texts.

    Attributes:
        loss: scalar, `contrastive_loss + matching_loss`; with the three losses only where asked for.
        contrastive_loss: scalar (paper, Eq. 5-7).
        matching_loss: scalar (paper, Eq. 8).
        logits_per_image: (I, T) cosine over temperature.
        logits_per_text: (T, I), its transpose.
        image_embeds: (I, projection_dim), unit norm.
        text_embeds: (T, projection_dim), unit norm.
        match_logits: (I, 2) for the pairs (image i, text i), class 1 = match; None where I and T differ.
        vision_model_output: what `get_image_features` returned.
        text_model_output: what `get_text_features` returned.
    """

    loss: torch.Tensor | None = None
    contrastive_loss: torch.Tensor | None = None
    matching_loss: torch.Tensor | None = None
    logits_per_image: torch.Tensor | None = None
    logits_per_text: torch.Tensor | None = None
    image_embeds: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None
    match_logits: torch.Tensor | None = None
    vision_model_output: TPASFeatures | None = None
    text_model_output: TPASFeatures | None = None


def check_loaded(name, model, loading=None, beside=None):
    """Refuses a model that is not what its checkpoint says: transformers draws what is missing at random.

    Args:
        name: of the checkpoint, for the message.
        loading: what `from_pretrained` gave with `output_loading_info=True`; None: names are not compared.
        beside: a regular expression of what a checkpoint may hold that the model has no use for.

    Raises:
        ValueError: a parameter is missing, unexpected or not finite; counts them and names the first.
    """
    missing = sorted(loading["missing_keys"]) if loading else []
    allowed = re.compile(f"{COMPUTED_BUFFERS}|{beside}" if beside else COMPUTED_BUFFERS)
    unexpected = (
        sorted(key for key in loading["unexpected_keys"] if not allowed.search(key)) if loading else []
    )
    if missing:
        more = f", and has {len(unexpected)} others, such as {unexpected[0]}" if unexpected else ""
        raise ValueError(
            f"{name} lacks {len(missing)} weights of the model, such as {missing[0]}{more}: it is cut off, "
            "or a checkpoint of another task; get its files again"
        )
    if unexpected:
        raise ValueError(
            f"{name} has {len(unexpected)} weights that are not the model's, such as {unexpected[0]}: its "
            "config.json is of another model; get its files again"
        )
    for key, tensor in model.state_dict().items():
        if not tensor.is_floating_point() or tensor.is_meta or bool(tensor.sum().isfinite()):
            continue  # what is not finite makes the sum so, which is quicker than to look at each number
        if not bool(tensor.isfinite().all()):
            raise ValueError(
                f"{name}: the weight {key} is not finite, so every score would be nan: its training "
                "diverged, or the file is damaged; take an earlier checkpoint, or get it again"
            )


class TPASModel(PreTrainedModel):
    """X-VLM's retrieval model: embeddings for stage 1, [`~TPASModel.match`] for stage 2."""

    config: TPASConfig
    config_class = TPASConfig
    base_model_prefix = "tpas"
    main_input_name = "pixel_values"
    input_modalities = ["image", "text"]
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["SwinStage", "BertEmbeddings", "BertLayer", "CrossModalLayer"]
    _keys_to_ignore_on_load_unexpected = [COMPUTED_BUFFERS]

    def __init__(self, config: TPASConfig):
        super().__init__(config)
        # Saved with the configuration, and the pipeline's code, being imported here, with the model's.
        config.custom_pipelines = ImageTextMatchingPipeline.registration()
        image_width = config.vision_config.hidden_size
        text_width = config.text_config.hidden_size
        with LaidOut() if torch.get_default_device().type == "meta" else nullcontext():
            self.vision_model = build_vision_model(config.vision_config)
            self.text_model = BertModel(config.text_config, add_pooling_layer=False)
        self.cross_modal_encoder = CrossModalEncoder(
            config.text_config, image_width, config.num_cross_modal_layers
        )
        self.image_projection = nn.Linear(image_width, config.projection_dim)
        self.text_projection = nn.Linear(text_width, config.projection_dim)
        self.temperature = Temperature(config.init_temperature)
        self.matching_head = MatchingHead(text_width)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, Temperature):
            nn.init.constant_(module.value, module.initial_value)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, image_size=None, **kwargs) -> Any:
        """As `PreTrainedModel.from_pretrained`; with `image_size`, [`~TPASModel.resize_image`] follows.

        With `output_loading_info=True` the caller decides on what the checkpoint lacks or has beside, as
        fine-tuning does; otherwise see [`check_loaded`].

        Raises:
            ValueError: the checkpoint and the model do not have the same parameters, or one is not finite.
        """
        asked = kwargs.pop("output_loading_info", False)
        loaded: Any = super().from_pretrained(
            pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs
        )
        model, loading = loaded
        check_loaded(pretrained_model_name_or_path, model, None if asked else loading)
        if image_size is not None:
            model.resize_image(image_size)
        return (model, loading) if asked else model

    def resize_image(self, image_size: int | Sequence[int]):
        """Makes the model take images of `image_size` pixels a side, or (height, width), interpolating the
        position tables as X-VLM does.

        Raises:
            ValueError: see [`TPASConfig.set_image_size`].
        """
        weights = self.vision_model.state_dict()
        config = deepcopy(self.config)
        config.set_image_size(image_size)
        resized = build_vision_model(config.vision_config)
        for name, wanted in resized.state_dict().items():
            if is_other_window(weights[name], wanted):
                weights[name] = interpolate_table(weights[name], round(len(wanted) ** 0.5))
        resized.load_state_dict(weights)
        self.config.vision_config = config.vision_config
        # Not `resized.to`, whose signature transformers hides from type checkers.
        self.vision_model = nn.Module.to(resized, self.device, self.dtype).train(self.training)

    def save_pretrained(self, save_directory, *args, **kwargs):
        """As in transformers, but the weights may be read by whoever may read the configuration.

        safetensors writes them for the owner alone, whatever the umask.
        """
        super().save_pretrained(save_directory, *args, **kwargs)
        config = Path(save_directory) / "config.json"
        for weights in Path(save_directory).glob("*.safetensors"):
            if config.is_file():  # the main process's
                weights.chmod(config.stat().st_mode & 0o777)

    def get_image_features(self, pixel_values: torch.Tensor) -> TPASFeatures:
        """Encodes images (B, 3, H, W), H and W being the configuration's `image_size`.

        Returns:
            `last_hidden_state` (B, 1+N, Dv): the mean of the N patch tokens, then the tokens;
            `pooler_output` (B, projection_dim): the embedding, unit norm.
        """
        height, width = height_and_width(self.config.vision_config.image_size)
        given = pixel_values.shape[-2:]
        if given != (height, width):  # Swin would pad its windows and give other features
            raise ValueError(
                f"the model takes images of {height}x{width} pixels, got {given[0]}x{given[1]}: set the "
                f"processor's image_size, or the model's with resize_image or "
                f"from_pretrained(..., image_size=...)"
            )
        patches = self.vision_model(pixel_values).last_hidden_state  # (B, N, Dv)
        mean = patches.mean(dim=1, keepdim=True)  # (B, 1, Dv)
        embeds = F.normalize(self.image_projection(mean[:, 0]), dim=-1)  # (B, projection_dim)
        return TPASFeatures(last_hidden_state=torch.cat([mean, patches], dim=1), pooler_output=embeds)

    def get_text_features(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> TPASFeatures:
        """Encodes captions (B, L) with their mask (B, L), 1 for a token and 0 for padding.

        Returns:
            `last_hidden_state` (B, L, D); `pooler_output` (B, projection_dim): from [CLS], unit norm.
        """
        hidden = self.text_model(input_ids, attention_mask=attention_mask).last_hidden_state  # (B, L, D)
        embeds = F.normalize(self.text_projection(hidden[:, 0]), dim=-1)  # (B, projection_dim)
        return TPASFeatures(last_hidden_state=hidden, pooler_output=embeds)

    def match(
        self,
        image_hidden_states: torch.Tensor,
        text_hidden_states: torch.Tensor,
        text_attention_mask: torch.Tensor | None,
        image_attention_mask: torch.Tensor | None = None,
        image_rows: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Scores pairs with the cross-modal encoder.

        Args:
            image_hidden_states: (B, 1+N, Dv) from `get_image_features`; with `image_rows` (I, 1+N, Dv).
            text_hidden_states: (B, L, D) from `get_text_features`, row i to be matched with image i.
            text_attention_mask: (B, L).
            image_attention_mask: (B, 1+N), 0 for image tokens to leave out (a region), or None for all.
            image_rows: (B,) the row of the image that row i of the texts is to be matched with; None: row i.

        Returns:
            Logits (B, 2), class 1 = the pair matches.
        """
        hidden, _ = self.cross_modal_encoder(
            text_hidden_states,
            text_attention_mask,
            image_hidden_states,
            image_attention_mask,
            image_rows,
            cls_only=self.training,  # otherwise in the rows that it always had, for the same bits as ever
        )
        return self.matching_head(hidden[:, 0])

    def forward(
        self,
        pixel_values: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        image_ids: torch.Tensor | None = None,
        return_loss: bool | None = None,
    ) -> TPASOutput:
        """Embeds and compares images and texts; with `return_loss`, the training losses over B pairs.

        Args:
            pixel_values: (I, 3, H, W).
            input_ids, attention_mask: (T, L).
            image_ids: (B,) integers; pairs of equal id show the same image, so none is another's negative.
            return_loss: `None` means: if `image_ids` are given. Needs I = T, row i of the images
                belonging to row i of the texts.

        The contrastive loss is over the batch of all processes, the hard negatives of the matching
        loss are drawn from the process's own (both as upstream).
        """
        if return_loss is None:
            return_loss = image_ids is not None
        paired = len(pixel_values) == len(input_ids)
        if return_loss and not paired:
            raise ValueError(f"a loss needs pairs, got {len(pixel_values)} images and {len(input_ids)} texts")

        image = self.get_image_features(pixel_values)
        text = self.get_text_features(input_ids, attention_mask)
        temperature = self.temperature()
        logits_per_image = image.pooler_output @ text.pooler_output.t() / temperature  # (I, T)
        output = TPASOutput(
            logits_per_image=logits_per_image,
            logits_per_text=logits_per_image.t(),
            image_embeds=image.pooler_output,
            text_embeds=text.pooler_output,
            vision_model_output=image,
            text_model_output=text,
        )

        if return_loss:
            everyone = (
                gather_with_gradient(image.pooler_output),  # (W * B, D) of W processes
                gather_with_gradient(text.pooler_output),
                temperature,
                None if image_ids is None else gather_with_gradient(image_ids),
            )
            contrastive = contrastive_loss(*everyone)
            pairs = draw_match_pairs(*everyone)
            match_logits = self.match(
                image.last_hidden_state,
                text.last_hidden_state[pairs.texts],
                None if attention_mask is None else attention_mask[pairs.texts],
                image_rows=pairs.images,
            )  # (3B, 2)
            matching = matching_loss(match_logits, pairs.labels)
            output.loss = contrastive + matching
            output.contrastive_loss, output.matching_loss = contrastive, matching
            output.match_logits = match_logits[: len(pixel_values)]
        elif paired:
            output.match_logits = self.match(image.last_hidden_state, text.last_hidden_state, attention_mask)
        return output


# Other image sizes have other windows; Swin's relative position tables are brought to them as X-VLM does it.


def spline_basis(positions: torch.Tensor, knots: torch.Tensor) -> torch.Tensor:
    """The cubic splines with the given knots, as powers and truncated powers: (P,), (K,) to (P, 4 + K)."""
    powers = positions[:, None] ** torch.arange(4)
    truncated = (positions[:, None] - knots[None, :]).clamp(min=0) ** 3
    return torch.cat([powers, truncated], dim=1)


def interpolation_matrix(source: int, target: int) -> torch.Tensor:
    """The linear map (target, source) by which upstream resizes one axis of a relative position table.

    As upstream's `interpolate_relative_pos_embed`: the source's positions grow geometrically from the
    centre, with the ratio (at most 1.5, found by the same bisection) at which they end where the
    target's unit steps end; through them goes a not-a-knot cubic spline, held constant beyond its ends.
    """
    if source < 4:
        raise ValueError(f"a relative position table of {source}x{source} is too small for a cubic spline")
    low, high = 1.01, 1.5
    while high - low > 1e-6:
        ratio = (low + high) / 2
        if (1 - ratio ** (source // 2)) / (1 - ratio) > target // 2:
            high = ratio
        else:
            low = ratio
    half = (ratio ** torch.arange(source // 2, dtype=torch.float64)).cumsum(0)
    positions = torch.cat([-half.flip(0), half.new_zeros(1), half])  # (source,)
    steps = torch.arange(target, dtype=torch.float64) - target // 2  # (target,)
    end = half[-1]
    knots = positions[2:-2] / end  # not-a-knot: the outermost inner points are none
    values_of_basis = spline_basis(positions / end, knots)  # (source, source)
    return torch.linalg.solve(values_of_basis, spline_basis((steps / end).clamp(-1, 1), knots), left=False)


def interpolate_table(table: torch.Tensor, target: int) -> torch.Tensor:
    """A relative position table (source * source, heads) to (target * target, heads), exactly as upstream."""
    source = round(len(table) ** 0.5)
    matrix = interpolation_matrix(source, target)
    grid = table.double().view(source, source, -1)
    resized = torch.einsum("ai,ijh,bj->abh", matrix, grid, matrix)
    return resized.reshape(target * target, -1).to(table.dtype)


def is_other_window(table: torch.Tensor, wanted: torch.Tensor) -> bool:
    """Whether both are relative position tables of the same heads, for windows of different size."""
    if table.dim() != 2 or table.shape[1:] != wanted.shape[1:]:
        return False
    side = round(len(table) ** 0.5)
    return side % 2 == 1 and side**2 == len(table) != len(wanted)


TPASModel.register_for_auto_class("AutoModel")
