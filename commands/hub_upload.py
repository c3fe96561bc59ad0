"""What of a model directory goes to the Hugging Face Hub, and the model card that says what was measured.

The card is written from `model_card.md`: what `tpas evaluate --output` measured stage by stage, and how the
model was trained.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import CommitOperationAdd, HfApi, ModelCard
from huggingface_hub.errors import HFValidationError
from huggingface_hub.repocard_data import EvalResult
from huggingface_hub.utils import validate_repo_id
from transformers.dynamic_module_utils import get_relative_import_files

from ..evaluation.measures import headline
from ..evaluation.stages import Stage
from ..modeling_tpas import TPASModel
from ..models.hub_code import HUB_CODE
from ..models.loading import is_adapter
from ..models.transformers_encoders import load_complete
from ..processing_tpas import TPASProcessor
from ..search.fingerprints import model_fingerprint

ROOT = Path(__file__).resolve().parents[1]
CARD_TEMPLATE = ROOT / "model_card.md"
UPLOADED = (
    "config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "processor_config.json",
    "preprocessor_config.json",
    "tokenizer*.json",
    "special_tokens_map.json",
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
MODELS_OF_A_RUN = ("best", "last", "averaged", "merged")
RESULTS_HEADING, TRAINING_HEADING = "## Results\n", "## Training\n"


@dataclass(frozen=True)
class Upload:
    """What goes into the repository: paths by name, the card's text, and what stays behind."""

    files: dict[str, Path]
    card: ModelCard
    left_behind: list[str]


def read_results(path: Path, fingerprint: str, processor: TPASProcessor) -> dict[str, Any]:
    """A JSON file of `tpas evaluate --output`.

    Raises:
        ValueError: it is none, or another model's, or not of the model as it is uploaded.
    """
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not a JSON file: {error}") from error
    needed = (
        "stages",
        "model_fingerprint",
        "dataset_name",
        "data_fingerprint",
        "split",
        "queries",
        "gallery",
    )
    absent = [name for name in needed if not isinstance(results, dict) or name not in results]
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
        if name in results and results[name] != getattr(processor, name):
            raise ValueError(
                f"{path}: measured with --{name} {results[name]}, but the model is uploaded with "
                f"{getattr(processor, name)}: evaluate it without that flag"
            )
    return results


def build_card(repo_id: str, results: list[dict[str, Any]], training: dict[str, Any] | None) -> ModelCard:
    """`model_card.md` with the measured results (Recall and mAP in percent) and the training arguments."""
    card = ModelCard(CARD_TEMPLATE.read_text(encoding="utf-8"))
    measured, entries = "", []
    for result in results:
        metrics = list(headline(result["stages"]["embeddings"]["all"]))
        heads = [name.replace("recall", "Recall") for name in metrics]
        measured += (
            f"\nMeasured on {result['dataset_name']}, {result['split']} split, {result['queries']:,} "
            f"queries, {result['gallery']:,} images (fingerprint {result['data_fingerprint']}), in "
            f"percent:\n\n| stage | {' | '.join(heads)} |\n|---{'|---' * len(metrics)}|\n"
        )
        for stage, groups in result["stages"].items():
            figures = [100 * groups["all"][name] for name in metrics]
            measured += f"| {Stage(stage).alone} | {' | '.join(f'{figure:.2f}' for figure in figures)} |\n"
            entries += [
                EvalResult(
                    task_type="text-to-image-retrieval",
                    dataset_type=result["dataset_name"].lower(),
                    dataset_name=result["dataset_name"],
                    dataset_split=result["split"],
                    dataset_revision=result["data_fingerprint"],
                    metric_type=name,
                    metric_name=f"{head} ({Stage(stage).alone})",
                    metric_value=round(figure, 2),
                )
                for name, head, figure in zip(metrics, heads, figures, strict=True)
            ]
    metadata: Any = card.data  # of a type that takes whatever metadata there are
    metadata.model_name = repo_id.rpartition("/")[2]
    metadata.eval_results = entries or None
    text = card.text
    if measured:
        text = text.replace(RESULTS_HEADING, RESULTS_HEADING + measured, 1)
    if training is not None:
        facts = [name for name in TRAINING_FACTS if name in training]
        table = "".join(f"| `{name}` | {training[name]} |\n" for name in facts)
        text = text.replace(
            TRAINING_HEADING,
            f"{TRAINING_HEADING}\nThis model was fine-tuned with `train_accelerate.py`:\n\n"
            f"| argument | value |\n|---|---|\n{table}\n",
            1,
        )
    card.text = text
    check_card(card)
    return card


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
    model = load_complete(TPASModel, directory, torch.float32)
    processor = TPASProcessor.from_pretrained(directory)
    fingerprint = model_fingerprint(model)
    if arguments is None and directory.resolve().name in MODELS_OF_A_RUN:
        beside = directory.resolve().parent / "training_arguments.json"
        arguments = beside if beside.is_file() else None
    training = None if arguments is None else json.loads(arguments.read_text(encoding="utf-8"))
    card = build_card(repo_id, [read_results(path, fingerprint, processor) for path in results], training)

    present = [path for path in sorted(directory.iterdir()) if path.is_file()]
    files = {path.name: path for path in present if any(path.match(pattern) for pattern in UPLOADED)}
    files |= code_of(directory)
    left = [path.name for path in sorted(directory.iterdir()) if path.name not in files]
    return Upload(files, card, left)


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
