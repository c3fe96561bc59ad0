"""What of a model directory goes to the Hugging Face Hub, and the model card that says what was measured.

The card is `model_card.md`, which says what is true of every model of a kind, and at its marks what the
configuration, the training arguments and the results say of this one, and no more.
"""

import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import CommitOperationAdd, HfApi, ModelCard
from huggingface_hub.errors import HFValidationError
from huggingface_hub.repocard_data import EvalResult
from huggingface_hub.utils import validate_repo_id
from transformers.dynamic_module_utils import get_relative_import_files

from ..configuration_tpas import height_and_width, stage_maps
from ..data.json_records import read_json
from ..evaluation.measures import headline
from ..evaluation.stages import Stage
from ..modeling_tpas import TPASModel
from ..models.fingerprints import image_fingerprint, model_fingerprint, text_fingerprint
from ..models.hub_code import HUB_CODE
from ..models.hub_repositories import is_hub_name
from ..models.interface import RetrievalModel, RetrievalProcessor, can_match
from ..models.loading import (
    ADAPTER_CONFIG,
    ADAPTER_FILES,
    LLM2CLIP_CONFIG,
    OPEN_CLIP_CONFIG,
    base_of_adapter,
    is_adapter,
    kind_and_place,
    load_model,
    load_tpas,
    read_config,
)
from ..models.model_files import weights_files
from ..search.calibration import CALIBRATION, Calibration
from ..training.run_folder import arguments_of_run

ROOT = Path(__file__).resolve().parents[1]
CARD_TEMPLATE = ROOT / "model_card.md"
# By name, since a folder may hold whatever else; and the weights.
UPLOADED = (
    "config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
)
# What other formats than transformers' have beside, by the file that tells them.
OTHER_FORMATS = {
    ADAPTER_CONFIG: ADAPTER_FILES,
    OPEN_CLIP_CONFIG: (OPEN_CLIP_CONFIG, "open_clip_model.safetensors"),
    LLM2CLIP_CONFIG: (LLM2CLIP_CONFIG, "llm2clip.safetensors"),
}
LIBRARIES = {None: "transformers", OPEN_CLIP_CONFIG: "open_clip"}  # others are read by tpas alone
TRAINING_FACTS = (
    "training_pairs",
    "num_train_epochs",
    "total_steps",
    "batch_size",
    "num_processes",
    "gradient_accumulation_steps",
    "learning_rate",
    "warmup_ratio",
    "weight_decay",
    "augmentation",
    "mixed_precision",
    "seed",
)
logger = logging.getLogger(__name__)

NOTE_TO_READERS = re.compile(r"<!-- What is written here.*?-->\n\n", re.DOTALL)
OF_A_KIND = re.compile(r"<!-- of (\w+) models: -->\n")
USE = """```sh
tpas search IMAGES "A man in a red coat is lying on the pavement." --model {name}
```

```python
from tpas import Gallery, load_model

model, processor = load_model("{name}")
gallery = Gallery.build(model, processor, "images", "gallery")
hits = gallery.search(["A man in a red coat is lying on the pavement."])
```

{format}
"""


@dataclass(frozen=True)
class Upload:
    """What goes into the repository: paths by name, the card's text, and what stays behind."""

    files: dict[str, Path]
    card: ModelCard
    left_behind: list[str]


def read_object(path: Path) -> dict[str, Any]:
    """Raises ValueError for a file that is no JSON object."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds no JSON object")
    return content


def read_results(path: Path, fingerprint: str, processor: RetrievalProcessor) -> dict[str, Any]:
    """A JSON file of `tpas evaluate --output`.

    Raises:
        ValueError: it is none, or another model's, or not of the model as it is uploaded.
    """
    results = read_object(path)
    if "scores" in results:
        raise ValueError(f"{path}: of score files, not of a model: evaluate it with --model")
    needed = ("stages", "model_fingerprint", "data_fingerprint", "split", "queries", "gallery")
    absent = [name for name in needed if name not in results]
    if absent:
        raise ValueError(f"{path}: not written by tpas evaluate --output, which has {absent} in it")
    if results["model_fingerprint"] != fingerprint:
        raise ValueError(
            f"{path}: measured with another model (fingerprint {results['model_fingerprint']}) than the one "
            f"to upload ({fingerprint}): evaluate that one"
        )
    if "matcher" in results:
        raise ValueError(
            f"{path}: measured with {results['matcher']} as stage 2: evaluate the model alone, without "
            "--matcher"
        )
    for name in ("image_size", "max_text_length"):
        own = getattr(processor, name)
        own = list(own) if isinstance(own, tuple) else own  # as JSON has it
        if name in results and results[name] != own:
            raise ValueError(
                f"{path}: measured with --{name} {results[name]}, but the model is uploaded with "
                f"{own}: evaluate it without that flag"
            )
    return {"dataset_name": f"the data set of {path.name}"} | results


def build_card(
    repo_id: str,
    model: RetrievalModel,
    processor: RetrievalProcessor,
    results: list[dict[str, Any]],
    training: dict[str, Any] | None,
    *,
    of_format: str | None = None,
    base: str | None = None,
    licence: str | None = None,
    calibration: Calibration | None = None,
) -> ModelCard:
    """`model_card.md` with what the model is, how it was trained, and what was measured.

    Args:
        results: what [`read_results`] returned.
        training: the arguments of the run that made it, if they are known.
        of_format: of `OTHER_FORMATS`; None: transformers'.
        base: the Hub name of the model that it was made from, if it is known.
        licence: of the weights, by the Hub's word for it; None: that of a TPAS model's code, of others
            "other".
        calibration: that goes with it, if there is one.
    """
    template = NOTE_TO_READERS.sub("", CARD_TEMPLATE.read_text(encoding="utf-8"))
    ours = isinstance(model, TPASModel)
    everybodys, *parts = OF_A_KIND.split(template)
    wanted = ("all", "TPAS" if ours else "other")
    card = ModelCard(
        everybodys + "".join(part for kind, part in zip(*[iter(parts)] * 2, strict=True) if kind in wanted)
    )
    name = repo_id.rpartition("/")[2]
    metadata: Any = card.data  # of a type that takes whatever metadata there are
    metadata.model_name = name
    metadata.eval_results = [entry for result in results for entry in entries_of(result)] or None
    if results:
        metadata.metrics = ["recall"]
    if base is not None:
        metadata.base_model = base
    if licence is not None or not ours:
        metadata.license = licence or "other"
    text = card.text
    if not ours:
        metadata.library_name = LIBRARIES.get(of_format, "tpas")
        metadata.tags = [tag for tag in metadata.tags if tag != "x-vlm"]
        text = text.replace("# TPAS: text-based person anomaly search", f"# {name}", 1)
    worth = [*map(table_of, results), *([] if calibration is None else [worth_of_scores(calibration)])]
    trained = "Nothing was said about it." if training is None else training_of(training, of_format)
    for mark, filling in (
        ("model", architecture_of(model, processor) if ours else description_of(model, processor, base)),
        ("use", "" if ours else use_of(repo_id, model, of_format, base)),
        ("training", trained),
        ("results", "\n".join(worth) or "None were given."),
    ):
        text = text.replace(f"<!-- {mark} -->", filling.rstrip("\n"), 1)
    card.text = text
    check_card(card)
    return card


def architecture_of(model: TPASModel, processor: RetrievalProcessor) -> str:
    """A table of what the configuration says."""
    config = model.config
    vision, text = config.vision_config, config.text_config
    height, width = height_and_width(vision.image_size)
    down, across = stage_maps(vision)[-1]
    depths, window = " + ".join(map(str, vision.depths)), vision.window_size
    return markdown_rows(
        ("", ""),
        {
            "parameters": f"{sum(parameter.numel() for parameter in model.parameters()):,}",
            "images": f"{height} x {width} pixels (height x width), encoded to {down} x {across} tokens",
            "image encoder": f"Swin, {depths} layers, width {vision.embed_dim} to {vision.hidden_size}, "
            f"windows of {window} x {window}",
            "text encoder": f"{text.num_hidden_layers} layers of width {text.hidden_size}, "
            f"{text.vocab_size:,} words",
            "cross-modal encoder": f"{config.num_cross_modal_layers} layers",
            "embeddings": f"{config.projection_dim} numbers",
            "longest text": f"{processor.max_text_length} tokens",
        },
    )


@torch.inference_mode()
def description_of(model: RetrievalModel, processor: RetrievalProcessor, base: str | None) -> str:
    """The same of another model: what it says of itself, and what it does."""
    network = getattr(model, "network", model)
    height, width = height_and_width(processor.image_size)
    embeddings = model.get_text_features(**processor(text=["a"])).pooler_output
    made_from = {} if base is None else {"made from": f"[{base}](https://huggingface.co/{base})"}
    return markdown_rows(
        ("", ""),
        made_from
        | {
            "network": f"`{type(network).__name__}`",
            "parameters": f"{sum(parameter.numel() for parameter in network.parameters()):,}",
            "images": f"{height} x {width} pixels (height x width)",
            "embeddings": f"{embeddings.shape[-1]} numbers",
            "longest text": f"{processor.max_text_length} tokens",
            "stage 2": "its matching head" if can_match(model) else "none: embeddings alone",
        },
    )


def use_of(repo_id: str, model: RetrievalModel, of_format: str | None, base: str | None) -> str:
    """How others load it, by tpas and by its own library."""
    network = type(getattr(model, "network", model)).__name__
    formats = {
        None: f'Without tpas: `transformers.{network}.from_pretrained("{repo_id}")`.',
        ADAPTER_CONFIG: f"It is an adapter of peft, which tpas fetches and merges into {base}.",
        OPEN_CLIP_CONFIG: f'Without tpas: `open_clip.create_model_and_transforms("hf-hub:{repo_id}")`.',
        LLM2CLIP_CONFIG: "It holds the image tower and the adapter; tpas fetches the language model.",
    }
    before = {OPEN_CLIP_CONFIG: "open_clip:", LLM2CLIP_CONFIG: "llm2clip:"}.get(of_format or "", "")
    return USE.format(name=before + repo_id, format=formats[of_format])


def training_of(training: dict[str, Any], of_format: str | None = None) -> str:
    """What `training_arguments.json` says; of paths the last name alone."""
    data = training.get("dataset_name") or Path(training.get("data_root") or "").name
    start = Path(training.get("model_name_or_path") or "")
    start_name = start.name if start.is_absolute() or len(start.parts) > 2 else str(start)
    begin = f"from {start_name}" if training.get("model_name_or_path") else "from random weights"
    rank = training.get("lora_rank")
    merged = "" if of_format == ADAPTER_CONFIG else ", merged into the weights"
    how = f"by low-rank updates (LoRA, rank {rank}){merged}" if rank else "all weights"
    on = f" on {data}" if data else ""
    facts = {f"`{name}`": str(training[name]) for name in TRAINING_FACTS if name in training}
    return f"Trained with `train_accelerate.py`{on}, {begin}, {how}:\n\n" + markdown_rows(
        ("argument", "value"), facts
    )


def table_of(result: dict[str, Any]) -> str:
    """What was measured of one data set, Recall and mAP in percent, stage by stage."""
    metrics, heads = metrics_of(result)
    more = f", {result['distractors']:,} of them distractors" if result.get("distractors") else ""
    rows = {
        Stage(stage).alone: " | ".join(f"{100 * groups['all'][name]:.2f}" for name in metrics)
        for stage, groups in result["stages"].items()
    }
    return (
        f"Measured on {result['dataset_name']}, {result['split']} split, {result['queries']:,} queries, "
        f"{result['gallery']:,} images{more} (fingerprint {result['data_fingerprint']}), in percent:\n\n"
        + markdown_rows(("stage", *heads), rows)
    )


def worth_of_scores(calibration: Calibration) -> str:
    """What the calibration beside it was learnt from, and what it is worth."""
    found = calibration.measured
    return (
        f"`{CALIBRATION}`, learnt by `tpas calibrate` from {calibration.persons} persons and "
        f"{calibration.images} images, lets `tpas search` say how likely it is that the one asked for is "
        "there, and show as many images as a stated coverage takes. On persons not learnt from:\n\n"
        + markdown_rows(
            ("", ""),
            {
                "who is there has the higher chance than who is not (AUROC)": f"{found['auroc']:.3f}",
                "the same by the best score": f"{found['auroc_of_best_score']:.3f}",
                "a chance differs from what happens by (ECE)": f"{found['ece']:.3f}",
                "highest coverage it can promise": f"{calibration.highest_coverage():.3f}",
            },
        )
    )


def entries_of(result: dict[str, Any]) -> list[EvalResult]:
    """The same for the Hub's metadata."""
    name = result["dataset_name"]
    return [
        EvalResult(
            task_type="text-to-image-retrieval",
            dataset_type=re.sub(r"\W+", "-", name.lower()).strip("-"),
            dataset_name=name,
            dataset_split=result["split"],
            dataset_revision=result["data_fingerprint"],
            metric_type=metric,
            metric_name=f"{head} ({Stage(stage).alone})",
            metric_value=round(100 * groups["all"][metric], 2),
        )
        for stage, groups in result["stages"].items()
        for metric, head in zip(*metrics_of(result), strict=True)
    ]


def metrics_of(result: dict[str, Any]) -> tuple[list[str], list[str]]:
    """The figures that a card shows, and what it calls them."""
    metrics = list(headline(result["stages"]["embeddings"]["all"]))
    return metrics, [name.replace("recall", "Recall") for name in metrics]


def markdown_rows(heads: tuple[str, ...], rows: dict[str, str]) -> str:
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    return "\n".join([*lines, *(f"| {name} | {value} |" for name, value in rows.items())]) + "\n"


def check_card(card: ModelCard) -> None:
    """Raises ValueError unless the Hub could read the card: its metadata survive being written and read."""
    read = ModelCard(str(card))
    for name in ("license", "library_name", "pipeline_tag", "tags"):
        if not getattr(read.data, name, None):
            raise ValueError(f"the model card's metadata lack {name!r}")
    if read.data.to_dict() != card.data.to_dict():
        raise ValueError("the model card's metadata do not survive being written and read")


def prepare(
    directory: Path, repo_id: str, results: list[Path], arguments: Path | None, licence: str | None = None
) -> Upload:
    """Loads the model to see that it is whole, and collects what is to be uploaded.

    Args:
        results: see [`read_results`].
        arguments: `training_arguments.json` of the run; `None`: the one that the run left beside.
        licence: see [`build_card`].

    Raises:
        FileNotFoundError, ValueError, OSError: the directory holds no whole model with its processor, or
            what others could not load.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(str(error)) from error
    of_format = next((name for name in OTHER_FORMATS if (directory / name).is_file()), None)
    if of_format is None and not (directory / "config.json").is_file():
        raise FileNotFoundError(f"{directory}: no model directory, there is no config.json")
    base = needed_beside(directory, of_format)
    ours = of_format is None and kind_and_place(str(directory))[0] == "tpas"
    if of_format is None and not ours and read_config(str(directory)).get("auto_map"):
        raise ValueError(
            f"{directory}: it comes with code of its own, which nothing here has read: `hf upload` takes it"
        )
    model, processor = load_tpas(str(directory)) if ours else load_model(str(directory))
    if isinstance(model, TPASModel) and not ours:
        raise ValueError(f"{directory}: an adapter, no whole model: train with --merge and push merged/")
    fingerprint = model_fingerprint(model)
    training = arguments_of_run(directory) if arguments is None else read_object(arguments)
    start = (training or {}).get("model_name_or_path") or ""
    if base is None and is_hub_name(start):
        base = start
    measured = [read_results(path, fingerprint, processor) for path in results]
    files = {name: directory / name for name in needed_files(directory, of_format)}
    calibration = None
    if (path := directory / CALIBRATION).is_file():
        files[CALIBRATION] = path
        calibration = Calibration.load(path)
        try:
            own = fingerprint, image_fingerprint(model, processor), text_fingerprint(processor)
            calibration.check_model(*own)
        except ValueError as error:
            raise ValueError(f"{path}: {error}; or remove it") from error
    about = {"of_format": of_format, "base": base, "licence": licence, "calibration": calibration}
    card = build_card(repo_id, model, processor, measured, training, **about)
    if ours:
        files |= code_of(directory)
    for path in files.values():
        check_own_file(path, directory)
    report_other_code(files)
    left = [path.name for path in sorted(directory.iterdir()) if path.name not in files]
    return Upload(files, card, left)


def needed_files(directory: Path, of_format: str | None) -> list[str]:
    """The names of what is needed of a model and its processor, of what is there."""
    weights = weights_files(directory) if of_format is None else OTHER_FORMATS[of_format]
    return [name for name in (*UPLOADED, *weights) if (directory / name).exists()]


def needed_beside(directory: Path, of_format: str | None) -> str | None:
    """The Hub name of the model that an adapter, or LLM2CLIP's tower, is nothing without; None of others.

    Raises:
        ValueError: it is a folder, which only this machine has.
    """
    if is_adapter(str(directory)):
        base, way_out = base_of_adapter(str(directory))[0], "train with --merge and push merged/"
    elif of_format == LLM2CLIP_CONFIG:
        base = str(read_object(directory / LLM2CLIP_CONFIG).get("language_model"))
        way_out = "name it as the Hub does"
    else:
        return None
    base = base.removeprefix("transformers:").removeprefix("blip:")
    if not is_hub_name(base):
        raise ValueError(
            f"{directory}: no whole model, but what goes over {base}, which others do not have: {way_out}"
        )
    return base


def check_own_file(path: Path, directory: Path) -> None:
    """Raises ValueError for what is no file, or lies outside the model's folder and this package."""
    real, own = path.resolve(), directory.resolve()
    if not real.is_file():
        raise ValueError(f"{path}: no file, but a folder, a pipe or a device")
    if path.parent != ROOT and real.parent != own:
        raise ValueError(
            f"{path} is a link to {real}, out of the folder, and nothing from there is uploaded: put a copy "
            "of the file in its place, if it is the model's (cp -rL makes a folder without links)"
        )


def report_other_code(files: dict[str, Path]) -> None:
    """Logs each file of code that is not this package's: who loads the model runs it."""
    for name, path in files.items():
        if path.suffix != ".py" or path.parent == ROOT:
            continue
        ours = ROOT / name
        if name not in HUB_CODE:
            logger.warning("warning: %s is no code of this package: read it before others run it", path)
        elif path.read_bytes() != ours.read_bytes():
            logger.warning("warning: %s is not this package's: see diff %s %s", path, ours, path)


def code_of(directory: Path) -> dict[str, Path]:
    """The files of the model's code by name: its own, in however many files they came, or this package's."""
    model = directory / "modeling_tpas.py"
    if not model.is_file():
        return {name: ROOT / name for name in HUB_CODE}
    return {path.name: path for path in sorted([model, *map(Path, get_relative_import_files(model))])}


def push(upload: Upload, repo_id: str, *, private: bool, revision: str | None) -> str:
    """Sends everything as one commit and returns its address. Needs a token: `hf auth login` or HF_TOKEN."""
    api = HfApi()
    api.create_repo(repo_id, private=private, exist_ok=True)
    if revision is not None:
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    operations = [CommitOperationAdd(name, str(path)) for name, path in upload.files.items()]
    operations.append(CommitOperationAdd("README.md", str(upload.card).encode()))
    commit = api.create_commit(repo_id, operations, commit_message="Upload model", revision=revision)
    return commit.commit_url
