"""Fine-tunes a TPAS model on PAB. The defaults are the paper's recipe.

    accelerate launch train_accelerate.py --data_root PAB --model_name_or_path MODEL --output_dir OUTPUT

The output directory receives `best/` (highest Recall@1 on the validation split, before SCA) and `last/`, each
a model with its processor (with `--lora_rank` the adapter alone); `training_log.jsonl`, an object for each
logged step and evaluation; `training_arguments.json`; the tracker's files; and `checkpoints/`, from which
a run that was stopped goes on with `--resume_from_checkpoint last` as if it had not been. SIGTERM writes a
checkpoint and ends the run.
"""

import hashlib
import json
import logging
import math
import os
import random
import shutil
import signal
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, set_seed
from datasets import Dataset
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm
from transformers import HfArgumentParser, get_linear_schedule_with_warmup
from transformers.trainer_pt_utils import get_parameter_names

from tpas.configuration_tpas import TPASConfig
from tpas.evaluation.pictures import open_picture
from tpas.evaluation.result_files import write_json
from tpas.evaluation.retrieval import EvaluationResult, evaluate
from tpas.evaluation.tables import format_table
from tpas.lora import add_lora, is_adapter, load_model
from tpas.modeling_tpas import TPASModel
from tpas.pab import RetrievalBenchmark, load_pab, retrieval_split, source_videos
from tpas.processing_tpas import TPASProcessor
from tpas.search import check_fusion_weight, resolve_shortlist
from tpas.training.checkpointing import Progress, find_checkpoints, read_progress, save_checkpoint
from tpas.training.image_augmentation import Augmentation

logger = logging.getLogger(__name__)

LOSSES = ("loss", "contrastive_loss", "matching_loss")
RUN_FILES = (
    "training_arguments.json",
    "training_log.jsonl",
    "best",
    "last",
    "merged",
    "tensorboard",
    "checkpoints",
)
# What may change when a run goes on: nothing of it reaches the weights.
FREE_TO_CHANGE = {
    "output_dir",
    "num_workers",
    "report_to",
    "overwrite_output_dir",
    "resume_from_checkpoint",
    "checkpoint_every",
    "checkpoints_kept",
}
ENDED_BY_SIGTERM = 143


def flag(default: Any, help: str, **settings: Any) -> Any:  # noqa: A002 - argparse's own name
    """A dataclass field that `HfArgumentParser` turns into a flag."""
    return field(default=default, metadata={"help": help} | settings)


@dataclass
class FineTuningArguments:
    """Every number of a fine-tuning run; each field is a flag."""

    data_root: str = field(metadata={"help": "PAB's folder, with annotation/ and train/ in it"})
    output_dir: str = field(metadata={"help": "folder for best/, last/ and the log"})
    model_name_or_path: str | None = flag(
        None, "model to start from, with its processor (convert_checkpoint.py makes one of X-VLM's .th file)"
    )
    config_name: str | None = flag(
        None, "in place of a model: folder with a config and a processor, to start from random weights"
    )

    pairs: int | None = flag(None, "train on this many pairs, drawn by the seed (paper: Table 3)")
    validation_fraction: float = flag(0.02, "share of the training pairs held out, by source video")
    max_validation_pairs: int = flag(1000, "pairs of the validation split that are evaluated")
    augmentation: bool = flag(True, "crop 0.5-1, mirror, RandAugment(2, 7) (X-VLM; the paper does not say)")
    on_bad_image: str = flag(
        "raise", "stop at an unreadable image, or leave its pair out and say so", choices=["raise", "skip"]
    )
    num_workers: int = flag(2, "processes that decode images, for each training process")

    num_train_epochs: int = flag(10, "passes over the pairs (paper: 10)")
    max_train_steps: int | None = flag(None, "number of steps, in place of the epochs")
    batch_size: int = flag(16, "pairs of each process in a step (paper: 16)")
    source_group_size: int = flag(
        1, "pairs of one source video that share a batch, as each other's hard negatives; 1: by chance"
    )
    gradient_accumulation_steps: int = flag(1, "batches to a step; each has its own negatives")
    learning_rate: float = flag(3e-5, "greatest learning rate (paper: 3e-5)")
    new_parameter_multiplier: float = flag(
        2.0, "learning rate of parameters that the start model lacks, relative to the others' (X-VLM: 2)"
    )
    warmup_ratio: float = flag(
        0.0, "share of the steps in which the rate rises; then it falls to 0 (paper: 0)"
    )
    weight_decay: float = flag(0.01, "AdamW's, except on biases and LayerNorms (paper: 0.01)")
    adam_beta1: float = flag(0.9, "AdamW's first beta (X-VLM: 0.9)")
    adam_beta2: float = flag(0.98, "AdamW's second beta (X-VLM: 0.98)")
    adam_epsilon: float = flag(1e-8, "AdamW's epsilon (X-VLM: 1e-8)")
    max_grad_norm: float = flag(0.0, "clip gradients to this norm; 0: do not (X-VLM does not)")
    gradient_checkpointing: bool = flag(False, "recompute activations going backwards: less memory, slower")
    mixed_precision: str | None = flag(None, "left out: accelerate's", choices=["no", "fp16", "bf16"])
    lora_rank: int = flag(
        0, "train low-rank updates of this rank in place of all weights (LoRA); 0: all weights"
    )
    lora_alpha: float = flag(32.0, "with LoRA: its updates are scaled by alpha / rank")
    lora_dropout: float = flag(0.0, "with LoRA: dropout before its updates")
    lora_targets: str | None = flag(
        None,
        "with LoRA: regular expression of the layers' names; left out: queries and values of all encoders",
    )
    merge: bool = flag(False, "with LoRA: also write merged/, the best model whole")
    seed: int = flag(42, "of subset, order, augmentation, dropout and new weights (X-VLM: 42)")

    evaluate_every: int = flag(1, "epochs from one evaluation to the next; 0: never, then there is no best/")
    evaluation_shortlist: int | None = flag(None, "pictures re-ranked for each query; left out: 128, or all")
    evaluation_batch_size: int = flag(64, "pictures that a process reads at once in an evaluation")
    fusion_weight: float = flag(0.0, "weight of the embeddings' score when evaluating; 0: matching alone")
    log_every: int = flag(50, "steps from one line of the log to the next, each the mean since the last")
    report_to: str = flag("tensorboard", "tracker of losses and metrics", choices=["tensorboard", "none"])
    overwrite_output_dir: bool = flag(False, "delete an earlier run that output_dir holds")
    resume_from_checkpoint: str | None = flag(
        None, "checkpoint to go on from; 'last': output_dir's newest, or the beginning if it has none"
    )
    checkpoint_every: int = flag(0, "steps from one checkpoint to the next; 0: one at the end of each epoch")
    checkpoints_kept: int = flag(2, "newest checkpoints that are kept")

    def __post_init__(self):
        if (self.model_name_or_path is None) == (self.config_name is None):
            raise ValueError(
                "give either --model_name_or_path, the model to start from (convert_checkpoint.py makes one "
                "of X-VLM's .th file), or --config_name, to start from random weights"
            )
        if self.batch_size < 2:
            raise ValueError(
                f"--batch_size must be at least 2, got {self.batch_size}: a pair's negatives are in its batch"
            )
        counts = (
            "num_train_epochs",
            "max_train_steps",
            "gradient_accumulation_steps",
            "max_validation_pairs",
            "source_group_size",
            "checkpoints_kept",
        )
        for name in (*counts, "evaluation_batch_size", "log_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name} must be at least 1, got {value}")
        check_fusion_weight(self.fusion_weight)
        if self.lora_rank < 0:
            raise ValueError(f"--lora_rank must be at least 1, or 0 for none, got {self.lora_rank}")
        if self.merge and not self.lora_rank:
            raise ValueError("--merge makes a whole model of an adapter: it needs --lora_rank")
        if self.resume_from_checkpoint and self.overwrite_output_dir:
            raise ValueError("--resume_from_checkpoint needs the run that --overwrite_output_dir deletes")
        if self.validation_fraction == 0 and self.evaluate_every > 0:
            raise ValueError("--validation_fraction 0 leaves nothing to evaluate: add --evaluate_every 0")


class TrainingPairs(torch.utils.data.Dataset):
    """The pairs of `load_pab` with their pictures read and augmented.

    A pair's augmentation depends on the seed, the epoch and its row, not on the worker or the process.
    An unreadable picture raises, or with `skip_bad_images` the next readable pair takes its place: so all
    batches keep their size, which the contrastive loss over all processes needs. An item's `unreadable`
    names the pairs that were passed over.
    """

    def __init__(
        self,
        dataset: Dataset,
        root: Path,
        *,
        augmentation: Augmentation | None,
        seed: int,
        skip_bad_images: bool,
    ):
        self.dataset = dataset
        self.root = root
        self.augmentation = augmentation
        self.seed = seed
        self.skip_bad_images = skip_bad_images
        self.epoch = 0

    def begin_epoch(self, epoch: int) -> None:  # accelerate would call a `set_epoch` with numbers of its own
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, row: int) -> dict[str, Any]:
        unreadable = []
        for candidate in chain(range(row, len(self)), range(row)):
            pair = self.dataset[candidate]
            try:
                image = open_picture(self.root, pair["image"], place_of(pair))
            except (FileNotFoundError, ValueError) as error:
                if not self.skip_bad_images:
                    raise
                unreadable.append(str(error))
                continue
            if self.augmentation is not None:
                image = self.augmentation(image, random.Random(f"{self.seed} {self.epoch} {candidate}"))
            return {
                "image": image,
                "caption": pair["caption"],
                "image_id": pair["image_id"],
                "unreadable": unreadable,
            }
        raise ValueError(f"none of the {len(self)} training pictures can be read: {unreadable[0]}")


class SourceGroupedSampler(torch.utils.data.Sampler[int]):
    """All rows once, in an order drawn anew for each pass, where `group_size` rows of a video stay together.

    A video's rows are dealt out to such groups anew each time; the last one may be smaller.

    Args:
        videos: (N,) what `pab.source_videos` returns.
    """

    def __init__(self, videos: np.ndarray, group_size: int, generator: torch.Generator):
        self.videos = videos
        self.group_size = group_size
        self.generator = generator

    def __len__(self) -> int:
        return len(self.videos)

    def __iter__(self) -> Iterator[int]:
        shuffled = torch.randperm(len(self.videos), generator=self.generator).numpy()
        rows = shuffled[np.argsort(self.videos[shuffled], kind="stable")]  # video by video
        opens_video = np.append(True, np.diff(self.videos[rows]) != 0)
        position = np.arange(len(rows))
        in_video = position - np.maximum.accumulate(np.where(opens_video, position, 0))
        group = np.cumsum(in_video % self.group_size == 0) - 1
        place = torch.randperm(int(group[-1]) + 1, generator=self.generator).numpy()
        yield from rows[np.argsort(place[group], kind="stable")].tolist()


def place_of(pair: dict[str, Any]) -> str:
    """Where a row of `load_pab` is written."""
    return f"{pair['file']}, line {pair['line']}"


@dataclass
class PairCollator:
    """Items of `TrainingPairs` to the model's inputs, and the list `unreadable`."""

    processor: TPASProcessor

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
        inputs = self.processor(
            images=[item["image"] for item in items], text=[item["caption"] for item in items]
        )
        return dict(inputs) | {
            "image_ids": torch.tensor([image_number(item["image_id"]) for item in items]),
            "unreadable": [message for item in items for message in item["unreadable"]],
        }


def image_number(image_id: str) -> int:
    """63 bits that stand for an image id, the same in every process (as `hash` of a string is not)."""
    return int.from_bytes(hashlib.blake2b(image_id.encode(), digest_size=8).digest()) >> 1


def validation_benchmark(dataset: Dataset, root: Path, *, skip_bad_images: bool) -> RetrievalBenchmark:
    """The validation split's benchmark. Reads each picture once, lest the first epoch end in an error.

    Raises:
        FileNotFoundError, ValueError: for an unreadable picture; with `skip_bad_images`, if all are.
    """
    readable = []
    for row, pair in enumerate(dataset):
        try:
            open_picture(root, pair["image"], place_of(pair))
        except (FileNotFoundError, ValueError) as error:
            if not skip_bad_images:
                raise
            logger.warning("left out of the validation split: %s", error)
        else:
            readable.append(row)
    if not readable:
        raise ValueError(f"none of the {len(dataset)} validation pictures can be read")
    return retrieval_split(dataset.select(readable))


def load_start(arguments: FineTuningArguments) -> tuple[TPASModel, TPASProcessor, set[str]]:
    """The start model in fp32, its processor, and the names of the parameters that its checkpoint lacks.

    With random weights no parameter is newer than another: the set is empty.
    """
    if arguments.model_name_or_path is None:
        model = TPASModel(TPASConfig.from_pretrained(arguments.config_name))
        return model, TPASProcessor.from_pretrained(arguments.config_name), set()
    name = arguments.model_name_or_path
    if is_adapter(name):
        return load_model(name, dtype=torch.float32), TPASProcessor.from_pretrained(name), set()
    model, loading = TPASModel.from_pretrained(name, output_loading_info=True, dtype=torch.float32)
    return model, TPASProcessor.from_pretrained(name), set(loading["missing_keys"])


def build_optimizer(
    model: nn.Module, new_parameters: set[str], arguments: FineTuningArguments
) -> torch.optim.AdamW:
    """AdamW with up to four groups: known and new parameters, each with and without weight decay.

    No decay on LayerNorms and on whatever has "bias" in its name, as in X-VLM: Swin's tables of relative
    position biases are among these.
    """
    decayed = set(get_parameter_names(model, [nn.LayerNorm], ["bias"]))
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        groups.setdefault((name in new_parameters, name in decayed), []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "lr": arguments.learning_rate * (arguments.new_parameter_multiplier if new else 1),
                "weight_decay": arguments.weight_decay if decay else 0.0,
            }
            for (new, decay), parameters in sorted(groups.items())
        ],
        lr=arguments.learning_rate,
        betas=(arguments.adam_beta1, arguments.adam_beta2),
        eps=arguments.adam_epsilon,
    )


def earlier_run(output_dir: Path, overwrite: bool) -> list[Path]:
    """What `output_dir` holds of an earlier run.

    Raises:
        FileExistsError: if there is something and it is not to be overwritten.
    """
    earlier = [output_dir / name for name in RUN_FILES if (output_dir / name).exists()]
    if earlier and not overwrite:
        raise FileExistsError(
            f"{output_dir} holds a run already ({', '.join(path.name for path in earlier)}): choose another "
            "--output_dir, go on with that run by --resume_from_checkpoint last, or delete it with "
            "--overwrite_output_dir"
        )
    return earlier


def refuse_another_run(arguments_file: Path, settings: dict[str, Any]) -> None:
    """Raises ValueError if `training_arguments.json` is of a run with other settings than these."""
    before, now = json.loads(arguments_file.read_text(encoding="utf-8")), json.loads(json.dumps(settings))
    changed = [name for name in now if before.get(name) != now[name]]
    if changed:
        raise ValueError(
            f"{arguments_file.parent} holds another run without a checkpoint, with other settings "
            f"({', '.join(changed)}): choose another --output_dir"
        )


def save_model(model: TPASModel | PeftModel, processor: TPASProcessor, directory: Path) -> None:
    """Writes both beside `directory` and renames: the folder of that name is always whole."""
    partial = directory.with_name(f".{directory.name}.partial")
    replaced = directory.with_name(f".{directory.name}.replaced")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(replaced, ignore_errors=True)
    model.save_pretrained(partial)
    processor.save_pretrained(partial)
    if directory.exists():
        os.replace(directory, replaced)
    os.replace(partial, directory)
    shutil.rmtree(replaced, ignore_errors=True)


def recover_models(output_dir: Path) -> None:
    """Puts back what `save_model` was replacing when the run was killed."""
    for name in ("best", "last"):
        replaced = output_dir / f".{name}.replaced"
        if replaced.exists() and not (output_dir / name).exists():
            os.replace(replaced, output_dir / name)
        for left in (replaced, output_dir / f".{name}.partial"):
            shutil.rmtree(left, ignore_errors=True)


class StopSignal:
    """Notes a SIGTERM, so that the run can end after the step it is in."""

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self.noted = False

    def __enter__(self) -> "StopSignal":
        self.before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        signal.signal(signal.SIGTERM, self.before)

    def _note(self, number: int, frame: Any) -> None:
        self.noted = True

    def came(self) -> bool:
        """Whether any process was told to stop; every process must ask."""
        if self.accelerator.num_processes == 1:
            return self.noted
        noted = torch.tensor(float(self.noted), device=self.accelerator.device)
        return self.accelerator.reduce(noted).item() > 0


class TrainingLog:
    """Sends figures to the terminal, `training_log.jsonl` and the tracker, all on the main process only."""

    def __init__(self, path: Path, accelerator: Accelerator):
        self.path = path
        self.accelerator = accelerator

    def step(self, step: int, epoch: float, figures: dict[str, float]) -> None:
        self._append({"step": step, "epoch": epoch} | figures)
        self.accelerator.log({f"train/{name}": value for name, value in figures.items()}, step=step)
        logger.info("step %d: %s", step, ", ".join(f"{name} {value:.4g}" for name, value in figures.items()))

    def evaluation(self, step: int, epoch: float, result: EvaluationResult) -> None:
        self._append({"step": step, "epoch": epoch, "evaluation": result.stages})
        figures = {
            f"validation/{stage}/{metric}": value
            for stage, groups in result.stages.items()
            for metric, value in groups["all"].items()
        }
        self.accelerator.log(figures, step=step)
        logger.info("validation after step %d\n%s", step, format_table(result))

    def _append(self, entry: dict[str, Any]) -> None:
        if self.accelerator.is_main_process:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")


class LossMeans:
    """Means of the losses, over batches and processes, since the last `take`."""

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self.batches: list[Tensor] = []

    def add(self, output: Any) -> None:
        self.batches.append(torch.stack([output[name].detach().float() for name in LOSSES]))

    def take(self) -> dict[str, float]:
        means = self.accelerator.reduce(torch.stack(self.batches).mean(dim=0), reduction="mean")
        self.batches.clear()
        return dict(zip(LOSSES, means.tolist(), strict=True))

    def check_finite(self, step: int) -> None:
        """Raises FloatingPointError, in every process, if a loss since the last `take` was not finite."""
        finite = torch.stack(self.batches).isfinite().all().float() if self.batches else torch.ones(())
        if self.accelerator.reduce(finite.to(self.accelerator.device), reduction="sum") < (
            self.accelerator.num_processes
        ):
            raise FloatingPointError(
                f"a loss is not a finite number by step {step}. Nothing was saved since: go on from the last "
                "checkpoint with --resume_from_checkpoint last if it was an accident, or start again with a "
                "lower --learning_rate, --max_grad_norm 1 or without --mixed_precision fp16"
            )

    def of_all_processes(self) -> list[list[list[float]]]:
        """By process, by batch: what `restore` takes. Every process must call it."""
        own = torch.stack(self.batches) if self.batches else torch.empty(0, len(LOSSES))
        return self.accelerator.gather(own[None].to(self.accelerator.device)).tolist()

    def restore(self, losses: list[list[list[float]]]) -> None:
        own = losses[self.accelerator.process_index] if losses else []
        self.batches = [torch.tensor(batch, device=self.accelerator.device) for batch in own]


def train(arguments: FineTuningArguments) -> None:
    """Runs the whole fine-tuning. What it writes: see the top of the file."""
    root, output_dir = Path(arguments.data_root), Path(arguments.output_dir)
    tracker = None if arguments.report_to == "none" else arguments.report_to
    skip_bad_images = arguments.on_bad_image == "skip"
    accelerator = Accelerator(
        gradient_accumulation_steps=arguments.gradient_accumulation_steps,
        mixed_precision=arguments.mixed_precision,
        log_with=tracker,
        project_dir=output_dir,
        step_scheduler_with_optimizer=False,  # one step of the schedule to a step, on any number of processes
    )
    level = logging.INFO if accelerator.is_main_process else logging.WARNING
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(message)s")
    resuming = arguments.resume_from_checkpoint is not None
    earlier = [] if resuming else earlier_run(output_dir, arguments.overwrite_output_dir)
    set_seed(arguments.seed, device_specific=True)

    # Build
    model, processor, new_parameters = load_start(arguments)
    cut = {name: getattr(arguments, name) for name in ("validation_fraction", "max_validation_pairs")}
    with accelerator.main_process_first():  # it fills the cache of annotations, the others find them there
        dataset = load_pab(root, "train", pairs=arguments.pairs, seed=arguments.seed, **cut)
    benchmark = None
    if arguments.evaluate_every > 0:
        held_out = load_pab(root, "validation", **cut)
        benchmark = validation_benchmark(held_out, root, skip_bad_images=skip_bad_images)
        shortlist = resolve_shortlist(arguments.evaluation_shortlist, len(benchmark.gallery_ids))
    batch_of_all = arguments.batch_size * accelerator.num_processes
    if len(dataset) < batch_of_all:
        raise ValueError(
            f"{len(dataset)} training pairs do not fill one batch of {batch_of_all} (--batch_size "
            f"{arguments.batch_size} on {accelerator.num_processes} processes): lower it, or take more pairs"
        )
    pairs = TrainingPairs(
        dataset,
        root,
        augmentation=Augmentation(processor.image_size) if arguments.augmentation else None,
        seed=arguments.seed,
        skip_bad_images=skip_bad_images,
    )
    # A generator of its own, so that the order does not depend on what else draws random numbers.
    generator = torch.Generator().manual_seed(arguments.seed)
    sampler = None
    if arguments.source_group_size > 1:
        sampler = SourceGroupedSampler(source_videos(dataset), arguments.source_group_size, generator)
    loader = accelerator.prepare(
        DataLoader(
            pairs,
            batch_size=arguments.batch_size,
            sampler=sampler,
            shuffle=sampler is None,
            drop_last=True,
            num_workers=arguments.num_workers,
            collate_fn=PairCollator(processor),
            generator=generator,
        )
    )
    steps_per_epoch = math.ceil(len(loader) / arguments.gradient_accumulation_steps)
    total_steps = arguments.max_train_steps or arguments.num_train_epochs * steps_per_epoch
    if arguments.lora_rank:
        model = add_lora(
            model,
            arguments.lora_rank,
            arguments.lora_alpha,
            arguments.lora_dropout,
            arguments.lora_targets,
        )
    if arguments.gradient_checkpointing:
        checkpointed = model.get_base_model() if arguments.lora_rank else model
        checkpointed.activation_checkpointing_enable({"use_reentrant": False})
    optimizer = build_optimizer(model, new_parameters, arguments)
    scheduler = get_linear_schedule_with_warmup(
        optimizer, round(arguments.warmup_ratio * total_steps), total_steps
    )
    model, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)
    saved = accelerator.unwrap_model(model)  # the same weights, without the wrapper that joins processes
    network = saved.get_base_model() if arguments.lora_rank else saved  # with LoRA's updates in its layers

    # Write. All that can be refused has been, and every process has looked for an earlier run by now.
    accelerator.wait_for_everyone()
    sizes = {
        "training_pairs": len(dataset),
        "num_processes": accelerator.num_processes,
        "steps_per_epoch": steps_per_epoch,
        "total_steps": total_steps,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "trained_parameters": sum(p.numel() for p in network.parameters() if p.requires_grad),
        "new_parameters": len(new_parameters),
    }
    every_setting = asdict(arguments) | sizes
    settings = {name: value for name, value in every_setting.items() if name not in FREE_TO_CHANGE}
    checkpoints, log_file = output_dir / "checkpoints", output_dir / "training_log.jsonl"
    checkpoint, progress = None, Progress()
    if resuming:
        found = find_checkpoints(checkpoints)
        if arguments.resume_from_checkpoint != "last":
            checkpoint = Path(arguments.resume_from_checkpoint)
        elif found:
            checkpoint = found[-1]
        elif (output_dir / "training_arguments.json").exists():
            refuse_another_run(output_dir / "training_arguments.json", settings)
        if checkpoint is not None:
            progress = read_progress(checkpoint, settings)
            if checkpoint.resolve().parent != checkpoints.resolve():
                raise ValueError(
                    f"{checkpoint} is of another run than {output_dir}: give its own --output_dir"
                )
            progress.restore_generator(generator)
            accelerator.load_state(str(checkpoint))
        where = "the beginning, there is no checkpoint" if checkpoint is None else str(checkpoint)
        logger.info("going on from %s", where)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        for path in earlier:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        recover_models(output_dir)
        write_json(output_dir / "training_arguments.json", every_setting)
        if log_file.exists():
            # What came after the checkpoint comes again.
            os.truncate(log_file, min(progress.log_bytes, log_file.stat().st_size))
    if tracker:
        shown = {name: "none" if value is None else value for name, value in asdict(arguments).items()}
        accelerator.init_trackers("tensorboard", config=shown)  # the name becomes the folder's
    logger.info(", ".join(f"{name} {value}" for name, value in sizes.items()))
    for name in sorted(new_parameters):
        logger.info("not in the start model: %s", name)

    # Run
    log = TrainingLog(log_file, accelerator)
    means = LossMeans(accelerator)
    means.restore(progress.losses)
    skipped = set(progress.skipped)

    def save_progress() -> None:
        means.check_finite(progress.step)
        progress.losses = means.of_all_processes()
        progress.skipped = sorted(set(gather_object(sorted(skipped))))
        progress.log_bytes = log_file.stat().st_size if log_file.exists() else 0
        path = save_checkpoint(accelerator, checkpoints, progress, settings, arguments.checkpoints_kept)
        logger.info("checkpoint %s", path)

    bar = tqdm(
        total=total_steps,
        initial=progress.step,
        disable=not accelerator.is_main_process,
        desc="fine-tuning",
        unit="step",
    )
    with logging_redirect_tqdm(), bar, StopSignal(accelerator) as stop:
        while progress.step < total_steps or progress.batches:
            epoch = progress.epoch
            pairs.begin_epoch(epoch)
            model.train()
            progress.keep_generator(generator)
            # A run that was stopped after its last step only has the evaluation left to do.
            complete = progress.step == total_steps
            remaining = (
                accelerator.skip_first_batches(loader, progress.batches) if progress.batches else loader
            )
            for batch in () if complete else remaining:
                for message in set(batch.pop("unreadable")) - skipped:
                    logger.warning("skipped: %s", message)
                    skipped.add(message)
                with accelerator.accumulate(model):
                    output = model(**batch, return_loss=True)
                    accelerator.backward(output.loss)
                    if accelerator.sync_gradients and arguments.max_grad_norm > 0:
                        accelerator.clip_grad_norm_(model.parameters(), arguments.max_grad_norm)
                    optimizer.step()
                    optimizer.zero_grad()
                means.add(output)
                progress.batches += 1
                if not accelerator.sync_gradients:
                    continue
                learning_rate = scheduler.get_last_lr()[0]
                scheduler.step()
                progress.step += 1
                bar.update()
                if progress.step % arguments.log_every == 0 or progress.step == total_steps:
                    means.check_finite(progress.step)
                    figures = means.take()
                    figures |= {"learning_rate": learning_rate, "temperature": network.temperature().item()}
                    log.step(progress.step, progress.step / steps_per_epoch, figures)
                stopping = stop.came()
                every = arguments.checkpoint_every
                if stopping or (every > 0 and progress.step % every == 0):
                    save_progress()
                if stopping:
                    logger.info("SIGTERM: stopped after step %d of %d", progress.step, total_steps)
                    accelerator.end_training()
                    raise SystemExit(ENDED_BY_SIGTERM)
                if progress.step == total_steps:
                    break

            means.check_finite(progress.step)
            due = progress.step == total_steps or (epoch + 1) % max(1, arguments.evaluate_every) == 0
            if benchmark is not None and due:
                result = evaluate(
                    network,
                    processor,
                    benchmark,
                    root,
                    shortlist=shortlist,
                    fusion_weight=arguments.fusion_weight,
                    batch_size=arguments.evaluation_batch_size,
                    accelerator=accelerator,
                )
                log.evaluation(progress.step, progress.step / steps_per_epoch, result)
                recall = result.stages[result.final_stage]["all"]["recall@1"]
                if recall > progress.best_recall:
                    progress.best_recall = recall
                    if accelerator.is_main_process:
                        save_model(saved, processor, output_dir / "best")
            if accelerator.is_main_process:
                save_model(saved, processor, output_dir / "last")
            accelerator.wait_for_everyone()
            progress.epoch, progress.batches = epoch + 1, 0
            if not arguments.checkpoint_every:
                progress.keep_generator(generator)
                save_progress()

    if arguments.merge and accelerator.is_main_process:
        chosen = output_dir / ("last" if benchmark is None else "best")
        save_model(load_model(str(chosen)), processor, output_dir / "merged")
    if skip_bad_images:
        everywhere = sorted(set(gather_object(sorted(skipped))))
        logger.info("%d of %d training pairs were skipped, unreadable", len(everywhere), len(dataset))
        for message in everywhere:
            logger.info("skipped: %s", message)
    accelerator.end_training()


def main(argv: Sequence[str] | None = None) -> None:
    parser = HfArgumentParser(FineTuningArguments, description=__doc__.partition("\n")[0])
    (arguments,) = parser.parse_args_into_dataclasses(argv, look_for_args_file=False)
    train(arguments)


if __name__ == "__main__":
    main()
