"""The architecture of the text-based person anomaly search model, in numbers."""

import logging
import re
from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import fields
from typing import Any, cast

from transformers import BertConfig, PreTrainedConfig, SwinConfig
from transformers.configuration_utils import SubConfigSpec

logger = logging.getLogger(__name__)

# What a configuration may ask for before anything is built; the largest published models stay far below. A
# layer is a module, so that their number costs time even where their weights cost no memory.
MOST_LAYERS = 512
LARGEST_IMAGE_SIZE = 4_096  # pixels a side
LARGEST_WINDOW = 64  # patches a side; each layer keeps the fourth power of it as indices
MOST_WINDOW_INDICES = 2**27  # of all layers together, 8 bytes each
LARGEST_NUMBER = 2**26
COUNT_OF_MODULES = re.compile(
    r"(^|_)(depths?|n_?layers?|num_labels|(n|num)_.*(layers|blocks|stages|experts|groups|heads))$"
)

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

# Settings of no architecture, which a configuration is given or saved with.
ADDED_BY_TRANSFORMERS = {
    *("auto_map", "custom_pipelines", "torch_dtype", "name_or_path", "_name_or_path", "_commit_hash"),
    *("attn_implementation", "experts_implementation"),
}


def height_and_width(image_size: int | Sequence[int]) -> tuple[int, int]:
    """Both sides in pixels of an image size, which is one number for a square."""
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    return height, width


def number_if_square(image_size: int | Sequence[int]) -> int | tuple[int, int]:
    """An image size as it is written: one number for a square, (height, width) for other rectangles."""
    height, width = height_and_width(image_size)
    return height if height == width else (height, width)


def stage_maps(vision_config: SwinConfig) -> list[tuple[int, int]]:
    """Patches (down, across) in each Swin stage; of the last, the patches that an image is encoded to."""
    height, width = height_and_width(vision_config.image_size)
    patch = cast(int, vision_config.patch_size)
    maps = [(-(-height // patch), -(-width // patch))]
    while len(maps) < len(vision_config.depths):
        height, width = maps[-1]
        maps.append((-(-height // 2), -(-width // 2)))
    return maps


def stage_window(window_size: int, stage_map: tuple[int, int]) -> int:
    """Patches a side of a stage's windows, which shrink to a smaller map, as upstream's do."""
    return min(window_size, *stage_map)


class TPASConfig(PreTrainedConfig):
    """Configuration of a [`TPASModel`]. The defaults are X-VLM base at 384 pixels (214 M parameters).

    A setting that is none of these is kept, as transformers does, and a warning names it.

    Args:
        vision_config: the Swin image encoder, a `SwinConfig` or its fields; a dict is completed by
            `SwinConfig`'s own defaults, only `None` means X-VLM base. Its `image_size` is one number for
            squares, or (height, width).
        text_config: the BERT layers that read text alone, a `BertConfig` or its fields. The cross-modal
            encoder has the same width, heads, feed-forward size and dropout.
        num_cross_modal_layers: layers that read the text and look at the image (upstream: the layers
            from `fusion_layer` on).
        projection_dim: width of the image and text embeddings that stage 1 compares.
        init_temperature: the contrastive temperature before training; it is learned.
        max_text_length: tokens at which a caption is cut, [CLS] and [SEP] included.
        initializer_range: standard deviation of new weights.
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
        check_sizes(vars(self) | kwargs, type(self).__name__)
        warn_of("TPASConfig", unknown_settings(TPASConfig, kwargs))
        for name, kind in (("vision_config", SwinConfig), ("text_config", BertConfig)):
            if isinstance(settings := getattr(self, name), dict):
                warn_of(f"{kind.__name__} in {name}", unknown_settings(kind, settings))
        super().__post_init__(**kwargs)  # makes a SwinConfig and a BertConfig of these
        self.vision_config.image_size = number_if_square(self.vision_config.image_size)
        check_windows(self.vision_config)

    def set_image_size(self, image_size: int | Sequence[int]):
        """Changes the input to `image_size` pixels a side, or to (height, width).

        Of a square the windows change with it, as X-VLM does: there the window is the whole feature map of
        the last stage (224: 7, 384: 12, 480: 15), so that nothing is ever padded. For other rectangles the
        window stays. Weights for other windows have other relative position tables.

        Raises:
            ValueError: a side is no multiple of the pixels that one patch of the last stage covers, or the
                maps of a rectangle cannot be divided into whole windows.
        """
        resized = deepcopy(self.vision_config)
        reduction = cast(int, resized.patch_size) * 2 ** (len(resized.depths) - 1)
        for side in height_and_width(image_size):
            if side < reduction or side % reduction:
                raise ValueError(f"image_size must be a multiple of {reduction} pixels, got {image_size}")
        resized.image_size = number_if_square(image_size)
        if isinstance(resized.image_size, int):
            resized.window_size = resized.image_size // reduction
        check_whole_windows(resized)
        self.vision_config = resized


def check_sizes(settings: Any, whose: str, name: str = "") -> None:
    """Looks at the numbers of a configuration that is not built yet, whoever it is from.

    Args:
        settings: JSON, or configurations in it, of any model.
        whose: for the message.

    Raises:
        ValueError: one of them is of no model that could be run; names it.
    """
    if isinstance(settings, PreTrainedConfig):
        settings = vars(settings)
    if isinstance(settings, dict):
        for key, value in settings.items():
            # The numbers in a list are of what the list is of; labels by number have names of their own.
            if key not in ("id2label", "label2id"):
                check_sizes(value, whose, str(key))
    elif isinstance(settings, list | tuple):
        if COUNT_OF_MODULES.search(name):
            _check_size(len(settings), MOST_LAYERS, whose, f"the length of {name}")
        for value in settings:
            check_sizes(value, whose, name)
    elif isinstance(settings, int) and not isinstance(settings, bool):
        if COUNT_OF_MODULES.search(name):
            _check_size(settings, MOST_LAYERS, whose, name)
        elif name == "image_size":
            _check_size(settings, LARGEST_IMAGE_SIZE, whose, name)
        elif name == "window_size":
            _check_size(settings, LARGEST_WINDOW, whose, name)
        elif not name.endswith(("_id", "_ids", "seed")):
            _check_size(settings, LARGEST_NUMBER, whose, name)


def _check_size(value: int, largest: int, whose: str, name: str) -> None:
    if value > largest:
        raise ValueError(
            f"{whose}: {name} is {value:,}, and a model may have {largest:,} at most: the configuration is "
            "damaged, or of no model for here"
        )


def check_windows(vision_config: SwinConfig) -> None:
    """Raises ValueError for a Swin that cannot be built, or whose tables of positions would not fit."""
    depths, heads = list(vision_config.depths), list(vision_config.num_heads)
    sizes = [*depths, *heads, *height_and_width(vision_config.image_size)]
    sizes += [cast(int, vision_config.patch_size), vision_config.window_size, vision_config.embed_dim]
    if not depths or len(depths) != len(heads) or min(sizes) < 1:
        raise ValueError(
            f"vision_config: image_size, patch_size, window_size, embed_dim, depths and num_heads must be at "
            f"least 1, and there must be as many num_heads ({heads}) as depths ({depths})"
        )
    width = vision_config.embed_dim * 2 ** (len(depths) - 1)
    _check_size(width, LARGEST_NUMBER, "vision_config", "the width of its last stage")
    _check_size(sum(depths), MOST_LAYERS, "vision_config", "the sum of depths")
    indices = sum(depths) * cast(int, vision_config.window_size) ** 4
    _check_size(indices, MOST_WINDOW_INDICES, "vision_config", "depths times window_size to the 4th")


def check_whole_windows(vision_config: SwinConfig) -> None:
    """Raises ValueError where Swin would pad a map, which upstream's cannot."""
    height, width = height_and_width(vision_config.image_size)
    maps = stage_maps(vision_config)
    for stage, stage_map in enumerate(maps):
        which = f"h {height}, w {width}: the {stage_map[0]}x{stage_map[1]} patches of Swin stage {stage + 1}"
        window = stage_window(vision_config.window_size, stage_map)
        if stage_map[0] % window or stage_map[1] % window:
            raise ValueError(
                f"{which} cannot be divided into windows of {window}x{window} (window_size "
                f"{vision_config.window_size})"
            )
        if stage < len(maps) - 1 and (stage_map[0] % 2 or stage_map[1] % 2):
            raise ValueError(f"{which} cannot be halved")


def unknown_settings(kind: type[PreTrainedConfig], names: Iterable[str]) -> list[str]:
    """Those of the names that a configuration of this kind does not have, and transformers does not add."""
    known = {field.name for field in fields(kind)} | ADDED_BY_TRANSFORMERS
    known |= {"hidden_size", "num_layers", "stage_names"} if kind is SwinConfig else set()  # it derives them
    return sorted(name for name in names if name not in known and not hasattr(kind, name))


def warn_of(owner: str, unknown: list[str]) -> None:
    if unknown:
        logger.warning("%s has no setting %s: it has no effect", owner, " and no ".join(unknown))


TPASConfig.register_for_auto_class()
