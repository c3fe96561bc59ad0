"""The flags of every command that ranks a gallery, and what they say."""

import argparse
import sys
from dataclasses import fields
from typing import Any, get_args

import torch

from tpas.evaluation.ranking import DEFAULT_MATCHER_SHORTLIST, SCASettings
from tpas.modeling_tpas import TPASModel
from tpas.retrieval_models.interface import PictureMatcher, RetrievalModel, RetrievalProcessor
from tpas.retrieval_models.loading import load_matcher, load_retrieval_model
from tpas.sca import Confidence, Mode


def add_ranking_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that say how a gallery is ranked; `load_for_ranking` and `ranking_settings` read them."""
    add = parser.add_argument
    add(
        "--shortlist", type=int, help="pictures re-ranked for each query (default: 128, or the whole gallery)"
    )
    add("--trust_remote_code", action="store_true", help="run the code that comes with the model")
    add("--revision", help="commit of the model's Hub repository")
    add(
        "--matcher",
        metavar="vlm:NAME",
        help="a vision-language model that says yes or no to a pair, as stage 2 in place of the model's own",
    )
    add(
        "--matcher_shortlist",
        type=int,
        default=DEFAULT_MATCHER_SHORTLIST,
        help=f"with it: pictures that it reads for each query (default: {DEFAULT_MATCHER_SHORTLIST})",
    )
    add("--fusion_weight", type=float, default=0.0, help="weight of the embeddings' score (default: 0, none)")
    add("--max_text_length", type=int, help="tokens at which a caption is cut (default: the processor's)")
    add("--image_size", type=int, help="pixels a side, the model is resized to it (default: the model's)")
    add(
        "--sca_confidence", choices=get_args(Confidence), default="score", help="default: score, as the paper"
    )
    add("--sca_mode", choices=get_args(Mode), default="deferred", help="default: deferred")
    add("--sca_max_shift", type=int, default=1, help="places a query may move down (default: 1)")
    add("--sca_tau", type=float, default=0.0, help="confidences so close are left alone (default: 0)")
    add("--sca_capacity", type=int, default=1, help="queries that a picture may answer (default: 1)")
    add(
        "--batch_size",
        type=int,
        default=64,
        help="pictures that a process reads at once (default: 64); changes memory and speed, never a figure",
    )
    add(
        "--token_memory",
        type=float,
        default=4.0,
        metavar="GIB",
        help="of the pictures' tokens that a process keeps between the stages (default: 4); shortlisted "
        "pictures beyond it are encoded twice",
    )


def ranking_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments of `rank_gallery` and `evaluate`, but the shortlist."""
    return {
        "matcher_shortlist": arguments.matcher_shortlist,
        "fusion_weight": arguments.fusion_weight,
        "sca": SCASettings(**{f.name: getattr(arguments, f"sca_{f.name}") for f in fields(SCASettings)}),
        "batch_size": arguments.batch_size,
        "token_memory": int(min(arguments.token_memory * 2**30, sys.maxsize)),  # inf: keep all
    }


def load_for_ranking(
    arguments: argparse.Namespace, device: torch.device
) -> tuple[RetrievalModel, RetrievalProcessor]:
    """The model in fp32 and its processor, at the size and length asked for.

    Raises:
        ValueError: for a text length that the model cannot take, or an image size that does not fit it.
    """
    model, processor = load_retrieval_model(
        arguments.model, trust_remote_code=arguments.trust_remote_code, revision=arguments.revision
    )
    is_ours = isinstance(model, TPASModel)
    if arguments.image_size is not None:
        if not is_ours:
            raise ValueError(f"--image_size {arguments.image_size}: only TPAS models are resized")
        model.resize_image(arguments.image_size)
        processor.image_size = arguments.image_size
    if arguments.max_text_length is not None:
        longest = model.config.text_config.max_position_embeddings if is_ours else processor.max_text_length
        if not 3 <= arguments.max_text_length <= longest:
            raise ValueError(
                f"--max_text_length must be between 3 and the model's {longest} positions, "
                f"got {arguments.max_text_length}"
            )
        processor.max_text_length = arguments.max_text_length
    return model.to(device), processor


def load_matcher_for_ranking(arguments: argparse.Namespace, device: torch.device) -> PictureMatcher | None:
    """The stage 2 that is asked for in place of the model's own."""
    if arguments.matcher is None:
        return None
    return load_matcher(arguments.matcher, device, trust_remote_code=arguments.trust_remote_code)
