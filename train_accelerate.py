"""Fine-tunes a TPAS model on PAB: ``accelerate launch train_accelerate.py --data_root ... --output_dir ...``.

The defaults are the paper's recipe. The output directory receives ``best/`` (highest validation Recall@1 of the
last stage before SCA) and ``last/``, each a model with its processor, ``training_log.jsonl`` with one JSON object
for each logged step and each evaluation, ``training_arguments.json`` and the tracker's files.
"""

import hashlib
import json
import logging
import math
import os
import random
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import gather_object, set_seed
from datasets import Dataset
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm
from transformers import HfArgumentParser, get_linear_schedule_with_warmup
from transformers.trainer_pt_utils import get_parameter_names

from tpas.augmentation import Augmentation
from tpas.configuration_tpas import TPASConfig
from tpas.evaluate_retrieval import EvaluationResult, evaluate, format_table, write_json
from tpas.modeling_tpas import TPASModel
from tpas.pab import image_path, load_pab, retrieval_split
from tpas.processing_tpas import TPASProcessor, load_image

logger = get_logger(__name__)

LOSSES = ("loss", "contrastive_loss", "matching_loss")
RUN_FILES = ("training_arguments.json", "training_log.jsonl", "best", "last", "tensorboard")


@dataclass
class FineTuningArguments:
    """Every number of a fine-tuning run; each field is a flag. Defaults: the paper's recipe."""

    data_root: str = field(metadata={"help": "PAB's folder, with annotation/ and train/ in it"})
    output_dir: str = field(metadata={"help": "folder for best/, last/ and the log"})
    model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "the model to start from, with its processor (convert_checkpoint.py makes one of X-VLM's .th)"},
    )
    config_name: str | None = field(
        default=None,
        metadata={"help": "instead of a model: a folder with config.json and a processor, to start from random weights"},
    )
    pairs: int | None = field(
        default=None, metadata={"help": "train on a subset of this many pairs, drawn by the seed (paper, Table 3)"}
    )
    batch_size: int = field(default=16, metadata={"help": "pairs per process and step (paper: 16)"})
    gradient_accumulation_steps: int = field(
        default=1, metadata={"help": "batches whose gradients are summed before a step; negatives stay within a batch"}
    )
    learning_rate: float = field(default=3e-5, metadata={"help": "peak learning rate (paper: 3e-5)"})
    new_parameter_multiplier: float = field(
        default=2.0, metadata={"help": "learning-rate factor of parameters that the start model lacks (X-VLM's lr_mult)"}
    )
    weight_decay: float = field(
        default=0.01, metadata={"help": "AdamW's decay, none on biases and LayerNorms (paper: 0.01; X-VLM)"}
    )
    adam_beta1: float = field(default=0.9, metadata={"help": "AdamW's first beta (X-VLM)"})
    adam_beta2: float = field(default=0.98, metadata={"help": "AdamW's second beta (X-VLM)"})
    adam_epsilon: float = field(default=1e-8, metadata={"help": "AdamW's epsilon (X-VLM)"})
    warmup_ratio: float = field(
        default=0.0, metadata={"help": "share of the steps with rising learning rate; then linear decay to 0 (paper: 0)"}
    )
    max_grad_norm: float = field(default=0.0, metadata={"help": "clip gradients to this norm; 0 = do not (X-VLM)"})
    num_train_epochs: int = field(default=10, metadata={"help": "passes over the data (paper: 10)"})
    max_train_steps: int | None = field(default=None, metadata={"help": "stop after this many steps, overrides the epochs"})
    augmentation: bool = field(
        default=True, metadata={"help": "crop 0.5-1, flip, RandAugment(2, 7) as X-VLM; the paper does not say"}
    )
    mixed_precision: str | None = field(
        default=None, metadata={"help": "precision of the forward pass; left out: accelerate's", "choices": ["no", "fp16", "bf16"]}
    )
    seed: int = field(default=42, metadata={"help": "of subset, order, augmentation, dropout and new weights (X-VLM: 42)"})
    num_workers: int = field(default=2, metadata={"help": "processes that decode images, for each training process"})
    on_bad_image: str = field(
        default="raise",
        metadata={"help": "stop at an unreadable image, or use the next pair instead and say so", "choices": ["raise", "skip"]},
    )
    evaluate_every: int = field(
        default=1, metadata={"help": "epochs between evaluations on the validation split; 0 = never, then there is no best/"}
    )
    validation_fraction: float = field(
        default=0.02, metadata={"help": "share of the training pairs held out for validation, by source video"}
    )
    max_validation_pairs: int = field(default=1000, metadata={"help": "pairs of the validation split that are evaluated"})
    evaluation_shortlist: int | None = field(
        default=None, metadata={"help": "pictures re-ranked for each validation query; left out: 128 or all"}
    )
    fusion_weight: float = field(
        default=0.0, metadata={"help": "weight of the embeddings' score in the validation ranking; 0 = match logit alone"}
    )
    evaluation_batch_size: int = field(default=64, metadata={"help": "images, captions or pairs per evaluation batch"})
    log_every: int = field(default=50, metadata={"help": "steps between log lines; each gives means since the one before"})
    report_to: str = field(
        default="tensorboard", metadata={"help": "tracker for losses and metrics", "choices": ["tensorboard", "none"]}
    )
    overwrite_output_dir: bool = field(default=False, metadata={"help": "delete an earlier run in output_dir"})

    def __post_init__(self):
        if self.model_name_or_path is None and self.config_name is None:
            raise ValueError(
                "give --model_name_or_path, a folder or Hub name to start from (convert_checkpoint.py makes one of "
                "X-VLM's .th file), or --config_name to start from random weights"
            )
        if self.batch_size < 2:
            raise ValueError(f"--batch_size {self.batch_size}: at least 2, or a pair has no negative in its batch")
        if self.validation_fraction == 0 and self.evaluate_every > 0:
            raise ValueError("--validation_fraction 0 leaves nothing to evaluate on: add --evaluate_every 0")
        for name in ("gradient_accumulation_steps", "num_train_epochs", "log_every", "max_validation_pairs"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} must be at least 1, got {getattr(self, name)}")
        if self.max_train_steps is not None and self.max_train_steps < 1:
            raise ValueError(f"--max_train_steps must be at least 1, got {self.max_train_steps}")


class TrainingPairs(torch.utils.data.Dataset):
    """The pairs of ``load_pab`` with their pictures read and augmented.

    The augmentation of a pair depends on the seed, the epoch and its row only, not on the worker or the process.
    An unreadable picture raises with its annotation's file and line, or with ``skip_bad_images`` the next readable
    pair stands in: batches keep their size, which the processes' joint loss needs. Every such pair is named in
    the item's ``unreadable``.
    """

    def __init__(
        self,
        annotations: Dataset,
        root: Path,
        *,
        augmentation: Augmentation | None,
        seed: int,
        skip_bad_images: bool,
    ):
        self.annotations = annotations
        self.root = root
        self.augmentation = augmentation
        self.seed = seed
        self.skip_bad_images = skip_bad_images
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.annotations)

    def __getitem__(self, row: int) -> dict[str, Any]:
        unreadable = []
        for candidate in [*range(row, len(self)), *range(row)]:
            pair = self.annotations[candidate]
            try:
                image = load_image(image_path(self.root, pair["image"]))
            except (OSError, ValueError) as error:
                message = f"{pair['file']}, line {pair['line']}: {error}"
                if not self.skip_bad_images:
                    error_class = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
                    raise error_class(f"{message} (--on_bad_image skip trains without it)") from error
                unreadable.append(message)
                continue
            if self.augmentation is not None:
                image = self.augmentation(image, random.Random(f"{self.seed} {self.epoch} {candidate}"))
            return {
                "image": image,
                "caption": pair["caption"],
                "image_id": pair["image_id"],
                "unreadable": unreadable,
            }
        raise ValueError(f"none of the {len(self)} training images can be read; the last: {unreadable[-1]}")


@dataclass
class PairCollator:
    """Items of ``TrainingPairs`` to the model's inputs, image ids as integers, and the list ``unreadable``."""

    processor: TPASProcessor

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
        images: list[Image.Image] = [item["image"] for item in items]
        inputs = self.processor(images=images, text=[item["caption"] for item in items], return_tensors="pt")
        return {
            "pixel_values": inputs["pixel_values"],
            "input_ids": inputs["input_ids"],
            "attention_mask": inputs["attention_mask"],
            "image_ids": torch.tensor([image_number(item["image_id"]) for item in items]),
            "unreadable": [message for item in items for message in item["unreadable"]],
        }


def image_number(image_id: str) -> int:
    """63 bits that stand for the id, the same in every process (``hash`` of a str is not)."""
    return int.from_bytes(hashlib.blake2b(image_id.encode(), digest_size=8).digest()) >> 1


def load_start(arguments: FineTuningArguments) -> tuple[TPASModel, TPASProcessor, set[str]]:
    """The start model, its processor, and the names of the parameters that the checkpoint lacks.

    With random weights nothing is newer than the rest, so no name is returned.
    """
    if arguments.model_name_or_path is None:
        model = TPASModel(TPASConfig.from_pretrained(arguments.config_name))
        return model, TPASProcessor.from_pretrained(arguments.config_name), set()
    model, loading = TPASModel.from_pretrained(
        arguments.model_name_or_path, output_loading_info=True, dtype=torch.float32
    )
    return model, TPASProcessor.from_pretrained(arguments.model_name_or_path), set(loading["missing_keys"])


def build_optimizer(model: nn.Module, new_parameters: set[str], arguments: FineTuningArguments) -> torch.optim.AdamW:
    """AdamW with four groups: known or new parameters (learning rate times the multiplier), with or without decay.

    No decay on LayerNorms and on names with "bias" in them, Swin's relative position tables among them, as X-VLM.
    """
    decayed = set(get_parameter_names(model, [nn.LayerNorm], ["bias"]))
    groups = []
    for is_new in (False, True):
        for has_decay in (True, False):
            parameters = [
                parameter
                for name, parameter in model.named_parameters()
                if parameter.requires_grad and (name in new_parameters) == is_new and (name in decayed) == has_decay
            ]
            if parameters:
                groups.append(
                    {
                        "params": parameters,
                        "lr": arguments.learning_rate * (arguments.new_parameter_multiplier if is_new else 1),
                        "weight_decay": arguments.weight_decay if has_decay else 0.0,
                    }
                )
    return torch.optim.AdamW(
        groups, betas=(arguments.adam_beta1, arguments.adam_beta2), eps=arguments.adam_epsilon
    )


def prepare_output_dir(output_dir: Path, overwrite: bool, accelerator: Accelerator) -> None:
    """Refuses a folder that holds a run, or with ``overwrite`` deletes that run's files and nothing else."""
    earlier = [name for name in RUN_FILES if (output_dir / name).exists()]
    if earlier and not overwrite:
        raise FileExistsError(
            f"{output_dir} holds a run already ({', '.join(earlier)}): choose another --output_dir, "
            f"or delete that run with --overwrite_output_dir"
        )
    accelerator.wait_for_everyone()  # every process has looked before the first one writes
    if accelerator.is_main_process:
        for name in earlier:
            path = output_dir / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        output_dir.mkdir(parents=True, exist_ok=True)
    accelerator.wait_for_everyone()


def save_model(model: TPASModel, processor: TPASProcessor, directory: Path) -> None:
    """Writes model and processor beside ``directory`` and renames: never a half-written folder under that name."""
    partial = directory.with_name(f".{directory.name}.partial")
    replaced = directory.with_name(f".{directory.name}.replaced")
    for leftover in (partial, replaced):
        if leftover.exists():
            shutil.rmtree(leftover)
    model.save_pretrained(partial)
    processor.save_pretrained(partial)
    if directory.exists():
        os.replace(directory, replaced)
    os.replace(partial, directory)
    if replaced.exists():
        shutil.rmtree(replaced)


class TrainingLog:
    """Appends JSON lines to ``training_log.jsonl`` and sends the same numbers to the tracker; main process only."""

    def __init__(self, path: Path, accelerator: Accelerator):
        self.path = path
        self.accelerator = accelerator

    def write(self, entry: dict[str, Any], tracked: dict[str, float]) -> None:
        self.accelerator.log(tracked, step=entry["step"])
        if self.accelerator.is_main_process:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")


class LossMeans:
    """Means of the losses over batches and processes since the last ``take``."""

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self.sums: Tensor | None = None
        self.batches = 0

    def add(self, output: Any) -> None:
        losses = torch.stack([output[name].detach().float() for name in LOSSES])
        self.sums = losses if self.sums is None else self.sums + losses
        self.batches += 1

    def take(self) -> dict[str, float]:
        means = self.accelerator.reduce(self.sums / self.batches, reduction="mean").tolist()
        self.sums, self.batches = None, 0
        return dict(zip(LOSSES, means, strict=True))


def main(argv: Sequence[str] | None = None) -> None:
    parser = HfArgumentParser(FineTuningArguments, description=__doc__.partition("\n")[0])
    (arguments,) = parser.parse_args_into_dataclasses(argv, look_for_args_file=False)
    train(arguments)


def train(arguments: FineTuningArguments) -> None:
    """Runs the whole fine-tuning; see the module's docstring for what it writes."""
    root, output_dir = Path(arguments.data_root), Path(arguments.output_dir)
    tracker = None if arguments.report_to == "none" else arguments.report_to
    accelerator = Accelerator(
        gradient_accumulation_steps=arguments.gradient_accumulation_steps,
        mixed_precision=arguments.mixed_precision,
        log_with=tracker,
        project_dir=output_dir,
        step_scheduler_with_optimizer=False,  # a step is a step, on any number of processes
    )
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    set_seed(arguments.seed, device_specific=True)
    prepare_output_dir(output_dir, arguments.overwrite_output_dir, accelerator)

    model, processor, new_parameters = load_start(arguments)
    with accelerator.main_process_first():  # the first process fills the Arrow cache, the others find it
        held_out = {
            "validation_fraction": arguments.validation_fraction,
            "max_validation_pairs": arguments.max_validation_pairs,
        }
        annotations = load_pab(root, "train", pairs=arguments.pairs, seed=arguments.seed, **held_out)
        benchmark = None
        if arguments.evaluate_every:
            benchmark = retrieval_split(load_pab(root, "validation", **held_out))
    pairs = TrainingPairs(
        annotations,
        root,
        augmentation=Augmentation(model.config.vision_config.image_size) if arguments.augmentation else None,
        seed=arguments.seed,
        skip_bad_images=arguments.on_bad_image == "skip",
    )
    if len(pairs) < arguments.batch_size * accelerator.num_processes:
        raise ValueError(
            f"{len(pairs)} training pairs do not fill one batch of {arguments.batch_size} on each of "
            f"{accelerator.num_processes} processes: lower --batch_size or use more pairs"
        )
    loader = DataLoader(
        pairs,
        batch_size=arguments.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=arguments.num_workers,
        collate_fn=PairCollator(processor),
        # A generator of its own keeps the order apart from dropout's random numbers.
        generator=torch.Generator().manual_seed(arguments.seed),
    )
    optimizer = build_optimizer(model, new_parameters, arguments)
    loader = accelerator.prepare(loader)
    steps_per_epoch = math.ceil(len(loader) / arguments.gradient_accumulation_steps)
    total_steps = arguments.max_train_steps or arguments.num_train_epochs * steps_per_epoch
    scheduler = get_linear_schedule_with_warmup(
        optimizer, num_warmup_steps=round(arguments.warmup_ratio * total_steps), num_training_steps=total_steps
    )
    model, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)

    if accelerator.is_main_process:
        saved = asdict(arguments) | {"num_processes": accelerator.num_processes, "total_steps": total_steps}
        write_json(output_dir / "training_arguments.json", saved)
    if tracker:
        settings = {name: "none" if value is None else value for name, value in asdict(arguments).items()}
        accelerator.init_trackers("tensorboard", config=settings)
    logger.info(
        "%d pairs, batch %d x %d processes x %d accumulated, %d steps an epoch, %d steps; %d parameters, %d of them "
        "new with %g times the learning rate",
        len(pairs),
        arguments.batch_size,
        accelerator.num_processes,
        arguments.gradient_accumulation_steps,
        steps_per_epoch,
        total_steps,
        sum(parameter.numel() for parameter in model.parameters()),
        sum(p.numel() for name, p in accelerator.unwrap_model(model).named_parameters() if name in new_parameters),
        arguments.new_parameter_multiplier,
    )

    log = TrainingLog(output_dir / "training_log.jsonl", accelerator)
    means = LossMeans(accelerator)
    unreadable: set[str] = set()
    best_recall = -1.0
    step = 0
    progress = tqdm(total=total_steps, disable=not accelerator.is_main_process, desc="fine-tuning", unit="step")
    with logging_redirect_tqdm(), progress:
        for epoch in range(math.ceil(total_steps / steps_per_epoch)):
            pairs.set_epoch(epoch)
            model.train()
            for batch in loader:
                for message in batch.pop("unreadable"):
                    if message not in unreadable:
                        logger.warning("skipped: %s", message, main_process_only=False)
                        unreadable.add(message)
                with accelerator.accumulate(model):
                    output = model(**batch, return_loss=True)
                    accelerator.backward(output.loss)
                    if accelerator.sync_gradients and arguments.max_grad_norm > 0:
                        accelerator.clip_grad_norm_(model.parameters(), arguments.max_grad_norm)
                    learning_rate = scheduler.get_last_lr()[0]
                    optimizer.step()
                    if accelerator.sync_gradients:
                        scheduler.step()
                    optimizer.zero_grad()
                means.add(output)
                if not accelerator.sync_gradients:
                    continue
                step += 1
                progress.update()
                if step % arguments.log_every == 0 or step == total_steps:
                    losses = means.take()
                    temperature = accelerator.unwrap_model(model).temperature().item()
                    entry = {
                        "step": step,
                        "epoch": step / steps_per_epoch,
                        **losses,
                        "learning_rate": learning_rate,
                        "temperature": temperature,
                    }
                    log.write(entry, {f"train/{name}": value for name, value in entry.items() if name != "step"})
                    logger.info(
                        "step %d/%d: loss %.4f, contrastive %.4f, matching %.4f, learning rate %.2e, temperature %.4f",
                        step,
                        total_steps,
                        *(losses[name] for name in LOSSES),
                        learning_rate,
                        temperature,
                    )
                if step == total_steps:
                    break

            unwrapped = accelerator.unwrap_model(model)
            ended = step == total_steps
            if benchmark is not None and (ended or (epoch + 1) % arguments.evaluate_every == 0):
                result = evaluate(
                    unwrapped,
                    processor,
                    benchmark,
                    root,
                    shortlist=arguments.evaluation_shortlist,
                    fusion_weight=arguments.fusion_weight,
                    batch_size=arguments.evaluation_batch_size,
                    accelerator=accelerator,
                )
                log_evaluation(result, step, step / steps_per_epoch, log)
                recall = result.stages[result.final_stage]["all"]["recall@1"]
                if recall > best_recall:
                    best_recall = recall
                    if accelerator.is_main_process:
                        save_model(unwrapped, processor, output_dir / "best")
            if accelerator.is_main_process:
                save_model(unwrapped, processor, output_dir / "last")
            accelerator.wait_for_everyone()

    if arguments.on_bad_image == "skip":
        skipped = sorted(set(gather_object(sorted(unreadable))))
        logger.info("%d of %d training images could not be read and were skipped", len(skipped), len(pairs))
        for message in skipped:
            logger.info("skipped: %s", message)
    accelerator.end_training()


def log_evaluation(result: EvaluationResult, step: int, epoch: float, log: TrainingLog) -> None:
    log.write(
        {"step": step, "epoch": epoch, "evaluation": result.stages},
        {
            f"validation/{stage}/{metric}": value
            for stage, groups in result.stages.items()
            for metric, value in groups["all"].items()
        },
    )
    logger.info("validation after step %d\n%s", step, format_table(result))


if __name__ == "__main__":
    main()
