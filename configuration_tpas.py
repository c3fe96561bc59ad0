"""The architecture of the text-based person anomaly search model, in numbers."""

from copy import deepcopy
from typing import Any

from transformers import BertConfig, PreTrainedConfig, SwinConfig
from transformers.configuration_utils import SubConfigSpec

# X-VLM base at 384 pixels: Swin-B with windows of 12, and BERT-base cut after its sixth layer.
XVLM_BASE_VISION = {
    "image_size": 384,
    "patch_size": 4,
    "embed_dim": 128,
    "depths": [2, 2, 18, 2],
    "num_heads": [4, 8, 16, 32],
    "window_size": 12,
}
XVLM_BASE_TEXT = {"num_hidden_layers": 6}


class TPASConfig(PreTrainedConfig):
    """Configuration of a [`TPASModel`]. The defaults are X-VLM base at 384 pixels (214 M parameters).

    Args:
        vision_config: the Swin image encoder, a `SwinConfig` or its fields; a dict is completed by
            `SwinConfig`'s own defaults, only `None` means X-VLM base.
        text_config: the BERT layers that read text alone, a `BertConfig` or its fields. The cross-modal
            encoder has the same width, heads, feed-forward size and dropout.
        num_cross_modal_layers: layers that read the text and look at the image (upstream: the layers
            from `fusion_layer` on).
        projection_dim: width of the image and text embeddings that stage 1 compares.
        init_temperature: the contrastive temperature before training; it is learned.
        max_text_length: tokens at which a caption is cut, [CLS] and [SEP] included.
        initializer_range: standard deviation of new weights.

    Raises:
        ValueError: when the last Swin stage has fewer patches a side than a window.
    """

    model_type = "tpas"
    sub_configs_defaults = {
        "vision_config": SubConfigSpec(SwinConfig),
        "text_config": SubConfigSpec(BertConfig),
    }

    vision_config: Any = None  # once made, a SwinConfig
    text_config: Any = None  # and a BertConfig
    num_cross_modal_layers: int = 6
    projection_dim: int = 256
    init_temperature: float = 0.07
    max_text_length: int = 70
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs):
        if self.vision_config is None:
            self.vision_config = deepcopy(XVLM_BASE_VISION)  # it holds lists
        if self.text_config is None:
            self.text_config = dict(XVLM_BASE_TEXT)
        super().__post_init__(**kwargs)  # makes a SwinConfig and a BertConfig of these
        self._check_windows()

    def set_image_size(self, image_size: int):
        """Changes the input to `image_size` pixels a side, and the windows with it, as X-VLM does.

        There the window is the whole feature map of the last stage (224: 7, 384: 12, 480: 15), so that
        nothing is ever padded. Weights for other windows have other relative position tables.

        Raises:
            ValueError: the size is no multiple of the pixels that one patch of the last stage covers.
        """
        vision = self.vision_config
        reduction = vision.patch_size * 2 ** (len(vision.depths) - 1)
        if image_size < reduction or image_size % reduction:
            raise ValueError(f"image_size must be a multiple of {reduction} pixels, got {image_size}")
        vision.image_size, vision.window_size = image_size, image_size // reduction

    def _check_windows(self):
        # Swin shrinks a window to a smaller feature map, but not its position table: it would crash later.
        vision = self.vision_config
        last_resolution = vision.image_size // (vision.patch_size * 2 ** (len(vision.depths) - 1))
        if last_resolution < vision.window_size:
            raise ValueError(
                f"image_size {vision.image_size} leaves {last_resolution}x{last_resolution} patches at the "
                f"last of {len(vision.depths)} Swin stages, fewer than one window of {vision.window_size}: "
                f"use a larger image, a smaller window or fewer stages"
            )


TPASConfig.register_for_auto_class()
