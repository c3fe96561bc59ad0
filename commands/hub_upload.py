"""What of a model directory goes to the Hugging Face Hub, and the model card that says what was measured.

The card is `model_card.md`, which says what is true of every model, and at its marks what the configuration,
the training arguments and the results say of this one, and no more.
"""

import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from ..models.fingerprints import model_fingerprint
from ..models.hub_code import HUB_CODE
from ..models.loading import is_adapter, load_tpas
from ..models.model_files import weights_files
from ..processing_tpas import TPASProcessor
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
)
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


def read_results(path: Path, fingerprint: str, processor: TPASProcessor) -> dict[str, Any]:
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
    model: TPASModel,
    processor: TPASProcessor,
    results: list[dict[str, Any]],
    training: dict[str, Any] | None,
) -> ModelCard:
    """`model_card.md` with what the model is, how it was trained, and what was measured.

    Args:
        results: what [`read_results`] returned.
        training: the arguments of the run that made it, if they are known.
    """
    card = ModelCard(NOTE_TO_READERS.sub("", CARD_TEMPLATE.read_text(encoding="utf-8")))
    metadata: Any = card.data  # of a type that takes whatever metadata there are
    metadata.model_name = repo_id.rpartition("/")[2]
    metadata.eval_results = [entry for result in results for entry in entries_of(result)] or None
    if results:
        metadata.metrics = ["recall"]
    text = card.text
    for mark, filling in (
        ("model", architecture_of(model, processor)),
        ("training", "Nothing was said about it." if training is None else training_of(training)),
        ("results", "\n".join(map(table_of, results)) or "None were given."),
    ):
        text = text.replace(f"<!-- {mark} -->", filling.rstrip("\n"), 1)
    card.text = text
    check_card(card)
    return card


def architecture_of(model: TPASModel, processor: TPASProcessor) -> str:
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


def training_of(training: dict[str, Any]) -> str:
    """What `training_arguments.json` says; of paths the last name alone."""
    data = training.get("dataset_name") or Path(training.get("data_root") or "").name
    start = Path(training.get("model_name_or_path") or "")
    start_name = start.name if start.is_absolute() or len(start.parts) > 2 else str(start)
    begin = f"from {start_name}" if training.get("model_name_or_path") else "from random weights"
    rank = training.get("lora_rank")
    how = f"by low-rank updates (LoRA, rank {rank}), merged into the weights" if rank else "all weights"
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


def prepare(directory: Path, repo_id: str, results: list[Path], arguments: Path | None) -> Upload:
    """Loads the model to see that it is whole, and collects what is to be uploaded.

    Args:
        results: see [`read_results`].
        arguments: `training_arguments.json` of the run; `None`: the one that the run left beside.

    Raises:
        FileNotFoundError, ValueError, OSError: the directory holds no whole model with its processor.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(str(error)) from error
    if is_adapter(str(directory)):
        raise ValueError(f"{directory}: an adapter, no whole model: train with --merge and push merged/")
    if not (directory / "config.json").is_file():
        raise FileNotFoundError(f"{directory}: no model directory, there is no config.json")
    model, processor = load_tpas(str(directory))
    fingerprint = model_fingerprint(model)
    training = arguments_of_run(directory) if arguments is None else read_object(arguments)
    measured = [read_results(path, fingerprint, processor) for path in results]
    card = build_card(repo_id, model, processor, measured, training)

    files = {name: directory / name for name in needed_files(directory)}
    files |= code_of(directory)
    for path in files.values():
        check_own_file(path, directory)
    report_other_code(files)
    left = [path.name for path in sorted(directory.iterdir()) if path.name not in files]
    return Upload(files, card, left)


def needed_files(directory: Path) -> list[str]:
    """The names of what is needed of a model and its processor, of what is there."""
    return [name for name in (*UPLOADED, *weights_files(directory)) if (directory / name).exists()]


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
    commit = api.create_commit(repo_id, operations, commit_message="Upload TPAS model", revision=revision)
    return commit.commit_url
