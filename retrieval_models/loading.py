"""A retrieval model and its processor by one word: a folder or Hub name, alone or after the kind of model.

What a name may be:

    outputs/run/best                          ours, an adapter, or a folder whose files say what it is
    transformers:openai/clip-vit-base-patch16 CLIP, SigLIP, SigLIP 2, AltCLIP, ...; the kind may be left out
    blip:Salesforce/blip-itm-base-coco        with a stage 2; the kind may be left out
    open_clip:EVA02-B-16/merged2b_s8b_b131k   ARCHITECTURE/PRETRAINED of open_clip, a Hub name or a folder
    llm2clip:FOLDER_OR_HUB_NAME               LLM2CLIP's picture tower and adapter, with its Llama
"""

from pathlib import Path
from typing import Any

import torch

from tpas.configuration_tpas import TPASConfig
from tpas.lora import is_adapter, load_model, merge_adapter, read_config, start_of_adapter
from tpas.processing_tpas import TPASProcessor
from tpas.retrieval_models.interface import PictureMatcher, RetrievalModel, RetrievalProcessor

KINDS = ("tpas", "transformers", "blip", "open_clip", "llm2clip")
OPEN_CLIP_CONFIG = "open_clip_config.json"
LLM2CLIP_CONFIG = "llm2clip.json"


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
        return load_model(place, dtype), TPASProcessor.from_pretrained(place)
    source: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    if kind == "open_clip":
        from tpas.retrieval_models.open_clip_encoders import load_open_clip

        return load_open_clip(place, dtype, name, revision)
    if kind == "llm2clip":
        from tpas.retrieval_models.llm2clip import load_llm2clip

        return load_llm2clip(place, dtype, name, **source)
    if kind == "blip":
        from tpas.retrieval_models.blip import load_blip

        return load_blip(place, dtype, name, revision=revision)
    from tpas.retrieval_models.transformers_encoders import load_transformers_encoder

    check_remote_code(place, trust_remote_code, revision)
    return load_transformers_encoder(place, dtype, name, **source)


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


def is_tpas(name: str) -> bool:
    """Whether the name is of `TPASModel`, or of an adapter of one."""
    return kind_and_place(start_of_adapter(name) if is_adapter(name) else name)[0] == "tpas"


def check_remote_code(name: str, trusted: bool, revision: str | None) -> None:
    """Raises ValueError if the model comes with code that is not trusted, or may change by tomorrow."""
    if not read_config(name, revision).get("auto_map"):
        return
    if not trusted:
        raise ValueError(
            f"{name} comes with code of its own, which would run here: read it, then add --trust_remote_code"
        )
    if revision is None and not Path(name).is_dir():
        raise ValueError(
            f"{name} comes with code of its own, which may change by tomorrow: pin what you have read with "
            "--revision COMMIT"
        )


def load_matcher(name: str, device: torch.device, *, trust_remote_code: bool = False) -> PictureMatcher:
    """The stage 2 that "vlm:NAME" names.

    Raises:
        OSError: it is not there.
        ValueError: it is no such name, or see `load_vision_language_matcher`.
    """
    kind, _, place = name.partition(":")
    if kind != "vlm" or not place:
        raise ValueError(f"--matcher {name}: give vlm:NAME, a vision-language model's folder or Hub name")
    from tpas.retrieval_models.vision_language_matcher import load_vision_language_matcher

    check_remote_code(place, trust_remote_code, None)
    return load_vision_language_matcher(place, device, trust_remote_code)
