"""A retrieval model and its processor by one word: a folder or Hub name, alone or after the kind of model.

What a name may be:

    outputs/run/best                          ours, an adapter, or a folder whose files say what it is
    transformers:openai/clip-vit-base-patch16 CLIP, SigLIP, SigLIP 2, AltCLIP, ...; the kind may be left out
    blip:Salesforce/blip-itm-base-coco        with a stage 2; the kind may be left out
    open_clip:EVA02-B-16/merged2b_s8b_b131k   ARCHITECTURE/PRETRAINED of open_clip, a Hub name or a folder
    llm2clip:FOLDER_OR_HUB_NAME               LLM2CLIP's image tower and adapter, with its Llama
"""

import json
import re
from pathlib import Path

import torch

from ..configuration_tpas import TPASConfig
from ..processing_tpas import TPASProcessor
from .interface import ImageMatcher, RetrievalModel, RetrievalProcessor
from .lora import is_adapter, load_model, merge_adapter, read_config, start_of_adapter

KINDS = ("tpas", "transformers", "blip", "open_clip", "llm2clip")
OPEN_CLIP_CONFIG = "open_clip_config.json"
LLM2CLIP_CONFIG = "llm2clip.json"
COMMIT = "[0-9a-f]{40}"


def load_retrieval_model(
    name: str,
    *,
    dtype: torch.dtype | None = torch.float32,
    trust_remote_code: bool = False,
    revision: str | None = None,
) -> tuple[RetrievalModel, RetrievalProcessor]:
    """The model and its processor; see the top of the file for names.

    Args:
        dtype: of the weights; None: as they are kept.
        trust_remote_code: run the code that comes with the model. A Hub repository's must be pinned.
        revision: the Hub repository's commit.

    Raises:
        OSError: it is not there.
        ValueError: it is no retrieval model, needs code that is not trusted or not pinned, or a package that
            is not installed.
    """
    if is_adapter(name):
        start = start_of_adapter(name)
        try:
            model, processor = load_retrieval_model(
                start, dtype=dtype, trust_remote_code=trust_remote_code, revision=revision
            )
        except OSError as error:
            raise OSError(f"{name} is an adapter of {start}, which cannot be loaded: {error}") from error
        return merge_adapter(model, name), processor
    kind, place = kind_and_place(name, revision)
    if kind == "tpas":
        processor = TPASProcessor.from_pretrained(place, revision=revision)
        return load_model(place, dtype, revision), processor
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

    trusted = may_run_code(place, trust_remote_code, revision)
    return load_transformers_encoder(place, dtype, name, revision=revision, trust_remote_code=trusted)


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
    return {TPASConfig.model_type: "tpas", "blip": "blip"}.get(model_type, "transformers"), name


def is_tpas(name: str, revision: str | None = None) -> bool:
    """Whether the name is of `TPASModel`, or of an adapter of one."""
    return kind_and_place(start_of_adapter(name) if is_adapter(name) else name, revision)[0] == "tpas"


def may_run_code(
    name: str, trusted: bool, revision: str | None, how_to_pin: str = "--revision COMMIT"
) -> bool:
    """Whether code that comes with the model, or with its processor, may run.

    Code is run if it is trusted and cannot change by tomorrow: a folder's, or a Hub repository's at a commit.

    Raises:
        ValueError: the model cannot do without, and it may not run.
    """
    fixed = Path(name).is_dir() or re.fullmatch(COMMIT, revision or "") is not None
    classes = read_config(name, revision).get("auto_map")
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


def load_matcher(name: str, device: torch.device, *, trust_remote_code: bool = False) -> ImageMatcher:
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
    trusted = may_run_code(place, trust_remote_code, revision, f"--matcher vlm:{place}@COMMIT")
    return load_vision_language_matcher(place, device, revision, trusted)
