"""A retrieval model and its processor by one word: a folder or Hub name, alone or after the kind of model.

What a name may be:

    outputs/run/best                          ours, an adapter, or a folder whose files say what it is
    transformers:openai/clip-vit-base-patch16 CLIP, SigLIP, SigLIP 2, AltCLIP, ...; the kind may be left out
    blip:Salesforce/blip-itm-base-coco        with a stage 2; the kind may be left out
    open_clip:EVA02-B-16/merged2b_s8b_b131k   ARCHITECTURE/PRETRAINED of open_clip, a Hub name or a folder
    llm2clip:FOLDER_OR_HUB_NAME               LLM2CLIP's image tower and adapter, with its Llama
"""

import json
import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from ..configuration_tpas import check_sizes, height_and_width
from ..data.json_records import read_json
from ..data.whole_files import check_readable
from ..processing_tpas import check_knows_words
from .hub_repositories import HUB_NAME, check_hub, hub_or_cache, is_fetched, is_hub_name
from .model_files import PACKAGE, check_settings, explained_damage
from .model_source import ModelSource

# What only some models need is imported where one of these is loaded.
if TYPE_CHECKING:
    from ..modeling_tpas import TPASModel
    from ..processing_tpas import TPASProcessor
    from .blip import BlipRetriever
    from .interface import ImageMatcher, MatchingModel, RetrievalModel, RetrievalProcessor
    from .llm2clip import LLM2CLIPEncoder, LLM2CLIPProcessor
    from .open_clip_encoders import OpenClipEncoder, OpenClipProcessor
    from .pair_processor import PairProcessor
    from .transformers_encoders import TransformersDualEncoder
    from .vision_language_matcher import VisionLanguageMatcher

    # pyright compares each of these with the interface.
    _models: list[type[RetrievalModel]]
    _models = [TPASModel, TransformersDualEncoder, BlipRetriever, OpenClipEncoder, LLM2CLIPEncoder]
    _with_stage_2: list[type[MatchingModel]] = [TPASModel, BlipRetriever]
    _processors: list[type[RetrievalProcessor]]
    _processors = [TPASProcessor, PairProcessor, OpenClipProcessor, LLM2CLIPProcessor]
    _matchers: list[type[ImageMatcher]] = [VisionLanguageMatcher]

KINDS = ("tpas", "transformers", "blip", "open_clip", "llm2clip")
ADAPTER_CONFIG = "adapter_config.json"  # peft's name for it
BASE_FILE = "base_model.json"  # beside it: which weights the adapter belongs to
ADAPTER_FILES = (ADAPTER_CONFIG, "adapter_model.safetensors", BASE_FILE)
OPEN_CLIP_CONFIG = "open_clip_config.json"
LLM2CLIP_CONFIG = "llm2clip.json"
OTHER_TOKENIZER = "it belongs to another model; put the one into the folder that it was trained with"
MODEL_FILES = "config.json, weights and processor's files"
PROCESSOR_FILES = "processor_config.json, tokenizer.json and tokenizer_config.json"
SHORTEST_TEXT = 3  # tokens: a word, [CLS] and [SEP]
COMMIT = "[0-9a-f]{40}"


def load_model(
    name: str,
    *,
    dtype: torch.dtype | None = torch.float32,
    revision: str | None = None,
    trust_remote_code: bool = False,
    base_model: str | None = None,
) -> "tuple[RetrievalModel, RetrievalProcessor]":
    """The model, in evaluation mode, and its processor; see the top of the file for names.

    An adapter's updates are merged into the weights of its base, whose processor comes with it.

    Args:
        dtype: of the weights; None: as they are kept.
        revision: the Hub repository's commit.
        trust_remote_code: run the code that comes with the model. A Hub repository's must be pinned.
        base_model: of an adapter: where its base lies now, if not where it was trained.

    Raises:
        OSError: it is not there, or this user may not read it.
        ValueError: it is no retrieval model, needs code that is not trusted or not pinned, or a package that
            is not installed; or an adapter's base has other weights than those it was trained over.
    """
    here = adapter_folder(name, revision)
    of_hub = here != name
    # Whose adapter it is says which base, and so whose code: that is more than who calls this has read.
    load = partial(_load_whole, trust_remote_code=trust_remote_code and not of_hub)
    model, processor = _adapted(here, load, dtype, None if of_hub else revision, base_model)
    base = None if base_model is None else lasting_name(base_model)
    # "main" may be another one by tomorrow
    commit = Path(here).name if of_hub else revision or getattr(model.config, "_commit_hash", None)
    cast(Any, model).loaded_from = ModelSource(lasting_name(name), commit, base)
    return model, processor


def source_of(model: "RetrievalModel") -> ModelSource | None:
    """What the model was loaded from, or None where it says nothing of it."""
    kept = getattr(model, "loaded_from", None)
    if kept is not None or not model.name_or_path:
        return kept
    return ModelSource(lasting_name(model.name_or_path), getattr(model.config, "_commit_hash", None))


def is_on_this_machine(source: ModelSource) -> bool:
    """Whether nothing that a stranger named has to be fetched to load it."""
    kind, colon, place = source.name.partition(":")
    place = place if colon and kind in KINDS else source.name
    if Path(place).exists():
        return True
    if kind == "open_clip":
        from .open_clip_encoders import is_known_to_open_clip

        if is_known_to_open_clip(place):
            return True
    if not HUB_NAME.fullmatch(place):
        return os.path.isabs(place)  # a folder that is gone; loading says so
    if is_fetched(place, ADAPTER_CONFIG, source.revision):
        base, commit = base_of_adapter(adapter_folder(place, source.revision))
        return is_on_this_machine(ModelSource(source.base_model or base, commit))
    return any(is_fetched(place, file, source.revision) for file in ("config.json", OPEN_CLIP_CONFIG))


def load_tpas(
    name: str,
    *,
    dtype: torch.dtype | None = torch.float32,
    revision: str | None = None,
    base_model: str | None = None,
) -> "tuple[TPASModel, TPASProcessor]":
    """As `load_model`, for what takes TPAS models alone.

    Raises:
        ValueError: it is a model of another architecture.
    """

    def load(
        whole: str, dtype: torch.dtype | None, revision: str | None
    ) -> "tuple[RetrievalModel, RetrievalProcessor]":
        if not is_tpas(whole, revision):
            raise ValueError(
                f"{whole} is no TPAS model, as is needed here; tpas convert makes one of X-VLM's files"
            )
        return _load_whole(whole, dtype, revision, trust_remote_code=False)

    here = adapter_folder(name, revision)
    revision = revision if here == name else None
    return cast("tuple[TPASModel, TPASProcessor]", _adapted(here, load, dtype, revision, base_model))


def _adapted(
    name: str,
    load: "Callable[[str, torch.dtype | None, str | None], tuple[RetrievalModel, RetrievalProcessor]]",
    dtype: torch.dtype | None,
    revision: str | None,
    base_model: str | None,
) -> "tuple[RetrievalModel, RetrievalProcessor]":
    """What `load` makes of a whole model, in evaluation mode; for an adapter, of its base, and merged."""
    kind, _, place = name.partition(":")
    check_readable(Path(place if kind in KINDS else name))
    if not is_adapter(name):
        if base_model is not None:
            raise ValueError(f"--base_model {base_model} is for adapters, and {name} is none")
        place = place if kind in KINDS else name
        with hub_or_cache(place, revision), explained_damage(place, MODEL_FILES):
            model, processor = load(name, dtype, revision)
        return model.eval(), processor
    from .lora import check_base, merge_adapter

    trained, commit = base_of_adapter(name)
    base, revision = (base_model, revision) if base_model else (trained, commit or revision)
    # Rounded to half precision, weights could not be told from others any more.
    loaded_as = None if dtype is None else torch.float32
    try:
        model, processor = _adapted(base, load, loaded_as, revision, None)
    except OSError as error:
        raise OSError(
            f"{name} is an adapter of {base}, which cannot be loaded: {error}; --base_model says where it is"
        ) from error
    with explained_damage(name, "adapter's files"):
        check_base(cast(torch.nn.Module, model), name, trained, base)
        model = model if dtype is None else model.to(dtype)
        return merge_adapter(model, name).eval(), processor


def _load_whole(
    name: str, dtype: torch.dtype | None, revision: str | None, trust_remote_code: bool
) -> "tuple[RetrievalModel, RetrievalProcessor]":
    kind, place = kind_and_place(name, revision)
    if kind in ("tpas", "blip"):
        read_config(place, revision)  # says what is not there
    if kind == "tpas":
        from ..modeling_tpas import TPASModel
        from .transformers_encoders import load_complete

        processor = load_processor(place, revision)
        model = load_complete(TPASModel, place, dtype, revision=revision)
        check_vocabulary(processor.tokenizer, model.config, f"the tokenizer of {place}", OTHER_TOKENIZER)
        return model, processor
    if kind == "open_clip":
        from .open_clip_encoders import load_open_clip

        return load_open_clip(place, dtype, name, revision)
    if kind == "llm2clip":
        from .llm2clip import load_llm2clip

        return load_llm2clip(place, dtype, name, revision)
    if kind == "blip":
        from .blip import load_blip

        return load_blip(place, dtype, name, revision=revision, trust_remote_code=False)
    from .transformers_encoders import load_transformers_encoder

    classes = read_config(place, revision).get("auto_map")
    trusted = may_run_code(place, classes, trust_remote_code, revision)
    return load_transformers_encoder(place, dtype, name, revision=revision, trust_remote_code=trusted)


def load_processor(place: str, revision: str | None = None) -> "TPASProcessor":
    """The processor of a TPAS model.

    Raises:
        OSError: it is not there.
        ValueError: it is damaged, or makes no tensors of an image; names its files.
    """
    from PIL import Image

    from ..processing_tpas import TPASProcessor

    with explained_damage(place, PROCESSOR_FILES):
        # None is not every part's default.
        processor = TPASProcessor.from_pretrained(place, **({"revision": revision} if revision else {}))
        size = height_and_width(processor.image_size)
        check_sizes({"image_size": list(size)}, f"{place}, processor_config.json")
        if not isinstance(processor.max_text_length, int) or processor.max_text_length < SHORTEST_TEXT:
            raise ValueError(
                f"{place}, processor_config.json: max_text_length is {processor.max_text_length!r}, not "
                f"a number of tokens from {SHORTEST_TEXT} on"
            )
        processor(text=["a"])
        pixels = processor(images=[Image.new("RGB", (8, 8))])["pixel_values"]
        if tuple(pixels.shape) != (1, 3, *size) or not pixels.isfinite().all():
            raise ValueError(
                f"{place}: by its processor_config.json an image becomes {tuple(pixels.shape)}, and not "
                f"finite numbers of (1, 3, {size[0]}, {size[1]}): get it again"
            )
    return processor


def is_adapter(name: str) -> bool:
    """Whether a folder holds an adapter and not a whole model."""
    return (Path(name) / ADAPTER_CONFIG).is_file()


def adapter_folder(name: str, revision: str | None = None) -> str:
    """Where in the cache the files of an adapter of the Hub lie, fetched if need be; else the name itself.

    Raises:
        OSError: see `check_hub`.
    """
    if not is_hub_name(name) or check_hub(name, revision, ("config.json", ADAPTER_CONFIG)) != ADAPTER_CONFIG:
        return name
    from huggingface_hub import snapshot_download

    return snapshot_download(name, revision=revision, allow_patterns=list(ADAPTER_FILES))


def base_of_adapter(name: str) -> tuple[str, str | None]:
    """The folder or Hub name of the model that an adapter was trained over, and the Hub's commit."""
    check_settings(Path(name))
    settings = read_json(Path(name) / ADAPTER_CONFIG)
    base = settings.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise ValueError(f"{name}: its {ADAPTER_CONFIG} names no base model: --base_model says where it is")
    return base, settings.get("revision")


def lasting_name(name: str) -> str:
    """The name of a model as it is understood in every folder: a path in it made absolute."""
    kind, colon, place = name.partition(":")
    before = f"{kind}:" if colon and kind in KINDS else ""
    place = name.removeprefix(before)
    if before == "open_clip:" and not Path(place).exists():  # ARCHITECTURE/FILE
        architecture, slash, place = place.partition("/")
        before += architecture + slash
    return before + (os.path.abspath(place) if place and Path(place).exists() else place)


def check_vocabulary(tokenizer: Any, config: Any, whose: str, way_out: str) -> None:
    """Raises ValueError for a tokenizer that knows no words, or more than the model has embeddings.

    Fewer are well: BLIP's and others' embeddings have room left.
    """
    check_knows_words(tokenizer, whose)
    embeddings = config.text_config.vocab_size
    words = max(len(tokenizer), 1 + max(tokenizer.get_vocab().values()))
    if words > embeddings:
        raise ValueError(f"{whose} has {words} words, the model {embeddings}: {way_out}")


def kind_and_place(name: str, revision: str | None = None) -> tuple[str, str]:
    """The kind of model, and its folder or Hub name.

    Raises:
        OSError: the name says no kind, and there is no configuration to ask.
    """
    kind, colon, place = name.partition(":")
    if colon and kind in KINDS:
        return kind, place
    for file, kind in ((OPEN_CLIP_CONFIG, "open_clip"), (LLM2CLIP_CONFIG, "llm2clip")):
        if (Path(name) / file).is_file():
            return kind, name
    model_type = read_config(name, revision).get("model_type")
    return model_type if model_type in ("tpas", "blip") else "transformers", name


def read_config(name: str, revision: str | None = None) -> dict[str, Any]:
    """What the config.json of a folder or a Hub repository holds.

    What can only be a folder that is not there is refused at once: without a network, half a minute would go
    in asking the Hub for it.

    Raises:
        OSError: there is none; the message names the model.
    """
    from transformers import PretrainedConfig

    place = Path(name)
    if not place.is_dir():
        if place.exists():
            raise NotADirectoryError(f"{name} is a file: give the folder of the model")
        if not is_hub_name(name):
            own = PACKAGE / name  # demo_start, from outside the clone
            hint = f" (did you mean {own}?)" if (own / "config.json").is_file() else ""
            raise FileNotFoundError(
                f"{name}: there is no such folder{hint}, and the Hub names models OWNER/NAME"
            )
        check_hub(name, revision)
    check_settings(place)
    try:
        with hub_or_cache(name, revision):
            config = PretrainedConfig.get_config_dict(name, revision=revision)[0]
    except OSError as error:
        raise OSError(f"the model {name} cannot be loaded: {error}") from error
    if not config:
        raise OSError(f"{name} is neither a model's folder nor its Hub name: it has no config.json")
    check_sizes(config, f"{name}, config.json")
    return config


def is_tpas(name: str, revision: str | None = None, base_model: str | None = None) -> bool:
    """Whether the name is of `TPASModel`, or of an adapter of one."""
    if is_adapter(name := adapter_folder(name, revision)):
        trained, commit = base_of_adapter(name)
        name, revision = (base_model, revision) if base_model else (trained, commit or revision)
    return kind_and_place(name, revision)[0] == "tpas"


def may_run_code(
    name: str,
    classes: dict[str, Any] | None,
    trusted: bool,
    revision: str | None,
    how_to_pin: str = "--revision COMMIT",
) -> bool:
    """Whether code that comes with the model, or with its processor, may run.

    Code is run if it is trusted and cannot change by tomorrow: a folder's, or a Hub repository's at a commit.

    Args:
        classes: the model's own, which its configuration names under "auto_map".

    Raises:
        ValueError: the model cannot do without, and it may not run.
    """
    fixed = Path(name).is_dir() or re.fullmatch(COMMIT, revision or "") is not None
    if not classes:
        return trusted and fixed
    if not trusted:
        raise ValueError(
            f"{name} comes with code of its own, which would run here: read it, then add --trust_remote_code"
        )
    if not fixed:
        raise ValueError(
            f"{name} comes with code of its own, which may change by tomorrow: pin what you have read with "
            f"{how_to_pin}, its 40 digits"
        )
    if elsewhere := re.findall(r"([\w./-]+)--", json.dumps(classes)):
        raise ValueError(
            f"{name}: its code lies in another repository, {elsewhere[0]}, whose commit is not pinned: put "
            f"its files into the model's folder, and take '{elsewhere[0]}--' out of config.json"
        )
    return True


def load_matcher(name: str, device: torch.device, *, trust_remote_code: bool = False) -> "ImageMatcher":
    """The stage 2 that "vlm:NAME" or "vlm:NAME@COMMIT" names.

    Raises:
        OSError: it is not there.
        ValueError: it is no such name, or see `load_vision_language_matcher`.
    """
    kind, _, place = name.partition(":")
    if kind != "vlm" or not place:
        raise ValueError(f"--matcher {name}: give vlm:NAME, a vision-language model's folder or Hub name")
    from .vision_language_matcher import load_vision_language_matcher

    revision = None
    if not Path(place).is_dir() and "@" in place:
        place, _, revision = place.rpartition("@")
    with hub_or_cache(place, revision):
        classes = read_config(place, revision).get("auto_map")
        how_to_pin = f"--matcher vlm:{place}@COMMIT"
        trusted = may_run_code(place, classes, trust_remote_code, revision, how_to_pin)
        return load_vision_language_matcher(place, device, revision, trusted)
