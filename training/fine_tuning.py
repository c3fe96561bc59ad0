"""A whole fine-tuning run, from the start model to best/ and last/; `train_accelerate.py` is its command."""

import copy
import json
import logging
import math
import os
import shutil
import signal
import statistics
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, broadcast_object_list, gather_object, set_seed
from datasets import Dataset
from peft import PeftModel
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, Sampler
from tqdm.auto import tqdm
from transformers import get_linear_schedule_with_warmup
from transformers.trainer_pt_utils import LengthGroupedSampler

from ..configuration_tpas import TPASConfig
from ..data.pab import load_pab, source_videos
from ..data.whole_files import write_json
from ..engine.retrieval_stages import encode_texts, resolve_shortlist
from ..evaluation.retrieval import evaluate
from ..evaluation.tables import format_table
from ..modeling_tpas import TEMPERATURE_RANGE, TPASModel
from ..models.interface import RetrievalModel, RetrievalProcessor, can_match
from ..models.loading import is_adapter, is_tpas, load_model, load_tpas
from ..models.lora import add_lora
from ..processing_tpas import TPASProcessor
from .arguments import FineTuningArguments
from .averaging import WeightAverages
from .caption_augmentation import eda_view
from .checkpointing import Progress, save_checkpoint
from .data import (
    PairCollator,
    SourceGroupedSampler,
    TrainingPairs,
    stable_number,
    validation_benchmark,
)
from .gradient_cache import average_gradients, backward_in_chunks
from .image_augmentation import Augmentation
from .log import Clock, LossMeans, TrainingLog, peak_memory
from .masked_language_modelling import MaskedLanguageModelling
from .objective import FineTuningObjective
from .optimizer import LearningRates, build_optimizer, describe_groups
from .run_folder import SUBSET_FILE, earlier_run, find_progress, recover_models, save_model
from .subsets import diverse_subset

logger = logging.getLogger(__name__)

# What may change when a run goes on: nothing of it reaches the weights.
FREE_TO_CHANGE = {
    "output_dir",
    "num_workers",
    "prefetch_factor",
    "report_to",
    "overwrite_output_dir",
    "resume_from_checkpoint",
    "checkpoint_every",
    "checkpoints_kept",
}
ENDED_BY_SIGTERM = 143
POOL_OF_A_DIVERSE_SUBSET = 20  # times its size


def load_start(arguments: FineTuningArguments) -> tuple[RetrievalModel, RetrievalProcessor, set[str]]:
    """The start model in fp32, its processor, and the names of the parameters that its checkpoint lacks.

    With random weights no parameter is newer than another: the set is empty.

    Raises:
        ValueError: the checkpoint is of another architecture, or its processor is of another image size, or
            it is an adapter and another one is asked for.
    """
    name, missing = arguments.model_name_or_path, set()
    if name is not None and is_adapter(name) and arguments.lora_rank:
        raise ValueError(
            f"--lora_rank would make an adapter over what the adapter {name} makes of its start, which is in "
            "no folder: start from the whole model that --merge writes"
        )
    if name is not None and not is_tpas(name, arguments.revision):
        model, processor = load_model(
            name, trust_remote_code=arguments.trust_remote_code, revision=arguments.revision
        )
        refuse_with_other_models(arguments, model)
        model.train_all()
        return model, processor, missing
    if name is None:
        name = arguments.config_name
        model = TPASModel(TPASConfig.from_pretrained(name))
    elif is_adapter(name):
        model, _ = load_tpas(name, revision=arguments.revision)
        model.requires_grad_(True)  # peft left it frozen
    else:
        model, loading = TPASModel.from_pretrained(
            name, dtype=torch.float32, output_loading_info=True, revision=arguments.revision
        )
        missing = set(loading["missing_keys"])
    processor = TPASProcessor.from_pretrained(name, revision=arguments.revision)
    image_size = model.config.vision_config.image_size
    if processor.image_size != image_size:
        raise ValueError(
            f"{name}: the model takes images of {image_size} pixels a side, its processor makes them "
            f"{processor.image_size}: convert the checkpoint again with one --image_size"
        )
    return model, processor, missing


def refuse_with_other_models(arguments: FineTuningArguments, model: RetrievalModel) -> None:
    """Raises ValueError for what TPAS models alone have, or matching models alone, and this one has not."""
    standard = FineTuningArguments(data_root="", output_dir="", model_name_or_path="")
    of_ours = ("masked_language_modelling_weight", "layer_decay", "torch_compile")
    of_matching = () if can_match(model) else ("hard_negatives", "negatives", "fusion_weight")
    for names, models in ((of_ours, "TPAS models"), (of_matching, "models with a stage 2 of their own")):
        for name in names:
            if (value := getattr(arguments, name)) != getattr(standard, name):
                raise ValueError(f"--{name} {value} is for {models}, and {model.name_or_path} is none")


def load_training_pairs(
    arguments: FineTuningArguments,
    model: RetrievalModel,
    processor: RetrievalProcessor,
    accelerator: Accelerator,
) -> tuple[Dataset, list[int] | None]:
    """The pairs to train on, all but the held-out ones or the subset that is asked for.

    Beside them a diverse subset's rows among those it was chosen from. They are kept with the run, because
    another number of threads rounds otherwise and might choose others.
    """
    cut = {name: getattr(arguments, name) for name in ("validation_fraction", "max_validation_pairs")}

    def load(pairs: int | None, subset: str = "random") -> Dataset:
        with (
            accelerator.main_process_first()
        ):  # it fills the cache of annotations, the others find them there
            return load_pab(arguments.data_root, "train", pairs, arguments.seed, subset=subset, **cut)

    if arguments.subset != "diverse":
        return load(arguments.pairs, arguments.subset), None
    everything = load(None)
    if arguments.pairs > len(everything):
        raise ValueError(f"--pairs {arguments.pairs} asked for, but there are {len(everything)} to train on")
    # To choose from all of PAB would take hours; the seed draws a pool of it.
    pool = load(min(len(everything), POOL_OF_A_DIVERSE_SUBSET * arguments.pairs))
    kept = Path(arguments.output_dir) / SUBSET_FILE
    if arguments.resume_from_checkpoint is not None and kept.exists():
        rows = json.loads(kept.read_text(encoding="utf-8"))
    else:
        on_device = model.to(accelerator.device).eval()
        embeds = encode_texts(on_device, processor, pool["caption"], accelerator=accelerator).embeds
        chosen = [
            diverse_subset(embeds, arguments.pairs, arguments.seed) if accelerator.is_main_process else None
        ]
        rows = sorted(broadcast_object_list(chosen)[0].tolist())
    return pool.select(rows), rows


def build_loader(
    arguments: FineTuningArguments,
    dataset: Dataset,
    processor: RetrievalProcessor,
    accelerator: Accelerator,
    generator: torch.Generator,
) -> tuple[TrainingPairs, DataLoader]:
    """The pairs, and the batches of this process, in an order that `generator` draws anew for each epoch.

    Raises:
        ValueError: the pairs do not fill a batch of all processes.
    """
    batch_of_all = arguments.batch_size * accelerator.num_processes
    if len(dataset) < batch_of_all:
        raise ValueError(
            f"{len(dataset)} training pairs do not fill one batch of {batch_of_all} (--batch_size "
            f"{arguments.batch_size} on {accelerator.num_processes} processes): lower it, or take more pairs"
        )
    augmentation = None
    if arguments.augmentation or arguments.erasing_probability:
        upstream = {"crop_probability": arguments.crop_probability}
        erasing_alone = {"crop_probability": 0.0, "flip_probability": 0.0, "operations": 0}
        augmentation = Augmentation(
            processor.image_size,
            erasing_probability=arguments.erasing_probability,
            **(upstream if arguments.augmentation else erasing_alone),
        )
    pairs = TrainingPairs(
        dataset,
        Path(arguments.data_root),
        seed=arguments.seed,
        augmentation=augmentation,
        swap_left_right=arguments.swap_left_right,
        second_view=eda_view if arguments.second_view_weight else None,
        hard_negatives=arguments.hard_negatives,
        skip_bad_images=arguments.on_bad_image == "skip",
    )
    sampler: Sampler | None = None
    if arguments.source_group_size > 1:
        sampler = SourceGroupedSampler(source_videos(dataset), arguments.source_group_size, generator)
    elif arguments.group_by_length:
        lengths = [len(caption.split()) for caption in dataset["caption"]]
        sampler = LengthGroupedSampler(batch_of_all, lengths=lengths, generator=generator)
    loader = DataLoader(
        pairs,
        batch_size=arguments.batch_size,
        sampler=sampler,
        shuffle=sampler is None,
        drop_last=True,
        num_workers=arguments.num_workers,
        prefetch_factor=arguments.prefetch_factor if arguments.num_workers else None,
        pin_memory=accelerator.device.type == "cuda",
        collate_fn=PairCollator(processor),
        generator=generator,
    )
    return pairs, accelerator.prepare(loader)


def build_objective(
    arguments: FineTuningArguments, model: RetrievalModel, processor: RetrievalProcessor
) -> FineTuningObjective:
    """The model, or a new adapter over it, with the losses that are switched on."""
    network = model
    if arguments.lora_rank:
        targets = arguments.lora_targets
        model = add_lora(model, arguments.lora_rank, arguments.lora_alpha, arguments.lora_dropout, targets)
    if arguments.gradient_checkpointing:
        network.activation_checkpointing_enable({"use_reentrant": False})
    if arguments.torch_compile:
        for encoder in (network.vision_model, network.text_model, network.cross_modal_encoder):
            encoder.compile(backend=arguments.torch_compile_backend)
    masked_language_modelling = None
    if arguments.masked_language_modelling_weight:
        tokenizer = processor.tokenizer
        masked_language_modelling = MaskedLanguageModelling(
            network.config.text_config.hidden_size,
            tokenizer.mask_token_id,
            sorted(set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids)),
            arguments.masked_share,
            random_share=0.1,
            kept_share=0.1,
        )
    return FineTuningObjective(
        model,
        label_smoothing=arguments.label_smoothing,
        global_negatives=arguments.negatives == "global",
        second_view_weight=arguments.second_view_weight,
        masked_language_modelling=masked_language_modelling,
        masked_language_modelling_weight=arguments.masked_language_modelling_weight,
    )


def new_names(objective: FineTuningObjective, missing: set[str]) -> set[str]:
    """The objective's names of the parameters that no checkpoint has: those `missing`, and its own heads."""

    def plain(name: str) -> str:  # as the start model calls it, without the wrappers of an adapter
        return (
            name.removeprefix("model.")
            .removeprefix("base_model.model.")
            .replace(".modules_to_save.default", "")
        )

    names = (name for name, _ in objective.named_parameters())
    return {name for name in names if plain(name) in missing or not name.startswith("model.")}


def number_of_steps(arguments: FineTuningArguments, batch_of_step: int, steps_per_epoch: int) -> int:
    """`batch_of_step`: pairs that a step sees, over all processes and accumulated batches."""
    if arguments.max_train_steps is not None:
        return arguments.max_train_steps
    if arguments.steps_as_pairs is not None:
        steps_per_epoch = max(1, arguments.steps_as_pairs // batch_of_step)
    return arguments.num_train_epochs * steps_per_epoch


def refuse_with_fsdp(arguments: FineTuningArguments) -> None:
    """Raises ValueError for what needs whole weights where FSDP has cut them, and for models of others."""
    name = arguments.model_name_or_path
    if name is not None and not is_tpas(name, arguments.revision):
        raise ValueError(
            f"FSDP is for TPAS models, and {name} is none: use recipes/accelerate/multi_gpu.yaml"
        )
    for name in ("cached_chunk_size", "ema_decay", "average_last_epochs", "masked_language_modelling_weight"):
        if getattr(arguments, name):
            raise ValueError(
                f"--{name} does not work with FSDP, which cuts the weights: use "
                "recipes/accelerate/multi_gpu.yaml"
            )


def whole_model(
    accelerator: Accelerator, objective: nn.Module, template: nn.Module | None
) -> RetrievalModel | PeftModel:
    """The trained model; where FSDP has cut it, `template` with its weights. Every process must ask."""
    model = accelerator.unwrap_model(objective, keep_torch_compile=False).model
    if template is None:
        return model
    template.load_state_dict(get_model_state_dict(model, options=StateDictOptions(full_state_dict=True)))
    return template


def temperature_of(network: RetrievalModel) -> float:
    """The contrastive temperature, also where FSDP has cut it; then every process must ask."""
    value = network.temperature.value.detach()
    value = value.full_tensor() if isinstance(value, DTensor) else value
    return value.clamp(*TEMPERATURE_RANGE).item()


def multiply_gradients(module: nn.Module, factor: float) -> None:
    if factor == 1:
        return
    for parameter in module.parameters():
        if parameter.grad is not None:
            parameter.grad *= factor


def network_of(model: RetrievalModel | PeftModel) -> RetrievalModel:
    return model.get_base_model() if isinstance(model, PeftModel) else model


def start_tracker(accelerator: Accelerator, arguments: FineTuningArguments) -> None:
    """Tells the tracker of the run; one that is resumed goes on there as well."""
    shown = {name: "none" if value is None else value for name, value in asdict(arguments).items()}
    if arguments.report_to == "tensorboard":
        accelerator.init_trackers("tensorboard", config=shown)  # the name becomes the folder's
        return
    output_dir = Path(arguments.output_dir).resolve()
    name = f"{output_dir.name}-{stable_number(str(output_dir)):016x}"
    of_run = {
        "wandb": {"id": name, "name": output_dir.name, "resume": "allow", "dir": str(output_dir)},
        "trackio": {"name": name, "resume": "allow"},
    }
    accelerator.init_trackers("tpas", config=shown, init_kwargs=of_run)


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


def train(arguments: FineTuningArguments) -> None:
    """Runs the whole fine-tuning. What it writes: see `train_accelerate.py`."""
    output_dir = Path(arguments.output_dir)
    tracker = None if arguments.report_to == "none" else arguments.report_to
    if tracker is not None and find_spec(tracker) is None:
        raise ValueError(f"--report_to {tracker} needs a package that is not there: pip install {tracker}")
    accelerator = Accelerator(
        gradient_accumulation_steps=arguments.gradient_accumulation_steps,
        mixed_precision=arguments.mixed_precision,
        log_with=tracker,
        project_dir=output_dir,
        step_scheduler_with_optimizer=False,  # one step of the schedule to a step, on any number of processes
    )
    cut_weights = accelerator.distributed_type == DistributedType.FSDP
    if cut_weights:
        refuse_with_fsdp(arguments)
    resuming = arguments.resume_from_checkpoint is not None
    earlier = [] if resuming else earlier_run(output_dir, arguments.overwrite_output_dir)
    set_seed(arguments.seed, device_specific=True)

    # Build
    root, skip_bad_images = Path(arguments.data_root), arguments.on_bad_image == "skip"
    model, processor, new_parameters = load_start(arguments)
    benchmark = None
    if arguments.evaluate_every > 0:
        cut = {name: getattr(arguments, name) for name in ("validation_fraction", "max_validation_pairs")}
        with accelerator.main_process_first():
            held_out = load_pab(root, "validation", **cut)
        benchmark = validation_benchmark(held_out, root, skip_bad_images=skip_bad_images)
        shortlist = resolve_shortlist(arguments.evaluation_shortlist, len(benchmark.gallery_ids))
    dataset, subset_rows = load_training_pairs(arguments, model, processor, accelerator)
    # A generator of its own, so that the order does not depend on what else draws random numbers.
    generator = torch.Generator().manual_seed(arguments.seed)
    pairs, loader = build_loader(arguments, dataset, processor, accelerator, generator)
    effective_batch = arguments.batch_size * accelerator.num_processes * arguments.gradient_accumulation_steps
    steps_per_epoch = math.ceil(len(loader) / arguments.gradient_accumulation_steps)
    total_steps = number_of_steps(arguments, effective_batch, steps_per_epoch)

    objective = build_objective(arguments, model, processor)
    template = copy.deepcopy(objective.model).to(accelerator.device) if cut_weights else None
    optimizer = build_optimizer(
        objective,
        LearningRates(
            arguments.learning_rate,
            arguments.new_parameter_multiplier,
            arguments.multiplied_parameters,
            arguments.layer_decay,
        ),
        new_parameters=new_names(objective, new_parameters),
        config=model.config,
        weight_decay=arguments.weight_decay,
        betas=(arguments.adam_beta1, arguments.adam_beta2),
        epsilon=arguments.adam_epsilon,
    )
    learning_rates = describe_groups(optimizer)
    sizes = {
        "training_pairs": len(dataset),
        "num_processes": accelerator.num_processes,
        "effective_batch": effective_batch,
        "steps_per_epoch": steps_per_epoch,
        "total_steps": total_steps,
        "parameters": sum(parameter.numel() for parameter in objective.network.parameters()),
        "trained_parameters": sum(p.numel() for p in objective.network.parameters() if p.requires_grad),
        "new_parameters": len(new_parameters),
    }
    scheduler = get_linear_schedule_with_warmup(
        optimizer, round(arguments.warmup_ratio * total_steps), total_steps
    )
    objective, optimizer, scheduler = accelerator.prepare(objective, optimizer, scheduler)
    own_objective = accelerator.unwrap_model(objective)  # without the wrapper that joins processes
    averages = WeightAverages(own_objective.model, arguments.ema_decay, arguments.average_last_epochs)

    # Write. All that can be refused has been, and every process has looked for an earlier run by now.
    accelerator.wait_for_everyone()
    # The precision may come from accelerate's configuration.
    every_setting = asdict(arguments) | sizes | {"mixed_precision": accelerator.mixed_precision}
    settings = {name: value for name, value in every_setting.items() if name not in FREE_TO_CHANGE}
    checkpoints, log_file = output_dir / "checkpoints", output_dir / "training_log.jsonl"
    progress = Progress()
    if resuming:
        checkpoint, progress = find_progress(arguments.resume_from_checkpoint, output_dir, settings)
        if checkpoint is not None:
            progress.restore_generator(generator)
            accelerator.load_state(str(checkpoint))
            averages.load(checkpoint)
        logger.info("going on from %s", checkpoint or "the beginning, there is no checkpoint")
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        for path in earlier:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        recover_models(output_dir)
        write_json(output_dir / "training_arguments.json", every_setting)
        if subset_rows is not None:
            write_json(output_dir / SUBSET_FILE, subset_rows)
        if log_file.exists():
            # What came after the checkpoint comes again.
            os.truncate(log_file, min(progress.log_bytes, log_file.stat().st_size))
    if tracker:
        start_tracker(accelerator, arguments)
    logger.info(", ".join(f"{name} {value}" for name, value in sizes.items()))
    logger.info("trained: %.2f%% of the numbers", 100 * sizes["trained_parameters"] / sizes["parameters"])
    for line in learning_rates:
        logger.info(line)
    for name in sorted(new_parameters):
        logger.info("not in the start model: %s", name)

    # Run
    log = TrainingLog(log_file, accelerator)
    means = LossMeans(accelerator, own_objective.loss_names)
    means.restore(progress.losses)
    skipped = set(progress.skipped)

    def save_progress() -> None:
        means.check_finite(progress.step, own_objective.parameters())
        progress.losses = means.of_all_processes()
        progress.skipped = sorted(set(gather_object(sorted(skipped))))
        progress.log_bytes = log_file.stat().st_size if log_file.exists() else 0
        kept = arguments.checkpoints_kept
        path = save_checkpoint(accelerator, checkpoints, progress, settings, kept, averages.save)
        logger.info("checkpoint %s", path)

    def evaluate_and_keep(model: RetrievalModel | PeftModel, weights: str | None = None) -> None:
        """Logs what the model is worth; the best so far becomes best/."""
        result = evaluate(
            network_of(model),
            processor,
            benchmark,
            root,
            shortlist=shortlist,
            fusion_weight=arguments.fusion_weight,
            batch_size=arguments.evaluation_batch_size,
            accelerator=accelerator,
        )
        table = format_table(result)
        log.evaluation(progress.step, progress.step / steps_per_epoch, result.stages, table, weights)
        recall = result.stages[result.final_stage]["all"]["recall@1"]
        progress.evaluations_since_best += 1
        if recall > progress.best_recall:
            progress.best_recall, progress.evaluations_since_best = recall, 0
            if accelerator.is_main_process:
                save_model(model, processor, output_dir / "best")

    def stopped_early() -> bool:
        patience = arguments.early_stopping_patience
        return 0 < patience <= progress.evaluations_since_best

    bar = tqdm(
        total=total_steps,
        initial=progress.step,
        disable=not accelerator.is_main_process,
        desc="fine-tuning",
        unit="step",
    )
    clock = Clock(progress.step, total_steps)
    with bar, StopSignal(accelerator) as stop:
        while (progress.step < total_steps and not stopped_early()) or progress.batches:
            epoch = progress.epoch
            pairs.begin_epoch(epoch)
            objective.train()
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
                if own_objective.global_negatives:
                    batch["draw_seed"] = stable_number(f"{arguments.seed} {epoch} {progress.batches}")
                with accelerator.accumulate(objective):
                    if arguments.cached_chunk_size:
                        losses = backward_in_chunks(
                            own_objective, batch, arguments.cached_chunk_size, accelerator
                        )
                        if accelerator.sync_gradients:
                            average_gradients(own_objective)
                    else:
                        losses = objective(**batch)
                        accelerator.backward(losses["loss"])
                    if accelerator.sync_gradients:
                        # accelerate divided by the full number, of which an epoch's last step may have fewer.
                        accumulated = progress.batches % arguments.gradient_accumulation_steps + 1
                        multiply_gradients(objective, arguments.gradient_accumulation_steps / accumulated)
                    if accelerator.sync_gradients and arguments.max_grad_norm > 0:
                        accelerator.clip_grad_norm_(objective.parameters(), arguments.max_grad_norm)
                    optimizer.step()
                    optimizer.zero_grad()
                means.add(losses)
                progress.batches += 1
                if not accelerator.sync_gradients:
                    continue
                learning_rate = scheduler.get_last_lr()[0]
                scheduler.step()
                averages.after_step(own_objective.model)
                progress.step += 1
                bar.update()
                if progress.step % arguments.log_every == 0 or progress.step == total_steps:
                    means.check_finite(progress.step)
                    figures = means.take()
                    temperature = temperature_of(own_objective.network)
                    figures |= {"learning_rate": learning_rate, "temperature": temperature}
                    time_left = clock.time_left(progress.step)
                    log.step(progress.step, progress.step / steps_per_epoch, figures, time_left)
                stopping = stop.came()
                if arguments.checkpoint_every:
                    due = progress.step % arguments.checkpoint_every == 0
                else:  # before the evaluation, which may fail and must not take the epoch with it
                    due = progress.batches == len(loader) or progress.step == total_steps
                if stopping or due:
                    save_progress()
                if stopping:
                    logger.info("SIGTERM: stopped after step %d of %d", progress.step, total_steps)
                    accelerator.end_training()
                    raise SystemExit(ENDED_BY_SIGTERM)
                if progress.step == total_steps:
                    break

            means.check_finite(progress.step, own_objective.parameters())
            averages.after_epoch(
                own_objective.model, math.ceil((total_steps - progress.step) / steps_per_epoch)
            )
            kept = whole_model(accelerator, objective, template)
            if averages.moving is not None:
                kept = averages.moving.module
            due = progress.step == total_steps or (epoch + 1) % max(1, arguments.evaluate_every) == 0
            if benchmark is not None and due:
                evaluate_and_keep(kept)
            if accelerator.is_main_process:
                save_model(kept, processor, output_dir / "last")
            accelerator.wait_for_everyone()
            progress.epoch, progress.batches = epoch + 1, 0
            if not arguments.checkpoint_every:
                progress.keep_generator(generator)
                save_progress()

    if stopped_early():
        logger.info(
            "stopped after step %d of %d: no better Recall@1 in %d evaluations",
            *(progress.step, total_steps, progress.evaluations_since_best),
        )
    if averages.epochs is not None:
        if benchmark is not None:
            evaluate_and_keep(averages.epochs.module, "averaged")
        if accelerator.is_main_process:
            save_model(averages.epochs.module, processor, output_dir / "averaged")
    if arguments.merge and accelerator.is_main_process:
        chosen = output_dir / ("last" if benchmark is None else "best")
        # In fp32, as it was trained, whatever the start is kept in.
        merged, _ = load_model(
            str(chosen), trust_remote_code=arguments.trust_remote_code, revision=arguments.revision
        )
        save_model(merged, processor, output_dir / "merged")
    if skip_bad_images:
        everywhere = sorted(set(gather_object(sorted(skipped))))
        logger.info("%d of %d training pairs were skipped, unreadable", len(everywhere), len(dataset))
        for message in everywhere:
            logger.info("skipped: %s", message)
    logger.info("memory at most: %s", peak_memory())
    # Not `end_training`, which ends the process group as well: another seed may follow.
    for running in accelerator.trackers:
        running.finish()
    accelerator.wait_for_everyone()


def train_on_seeds(arguments: FineTuningArguments) -> None:
    """A run for each seed, in `seed_<seed>/`, and over all of them `seeds.json`: mean and deviation."""
    output_dir = Path(arguments.output_dir)
    seeds = range(arguments.seed, arguments.seed + arguments.seeds)
    folders = [output_dir / f"seed_{seed}" for seed in seeds]
    if arguments.resume_from_checkpoint is None:
        for folder in (output_dir, *folders):  # lest the last one be refused after days
            earlier_run(folder, arguments.overwrite_output_dir)
    results = []
    for seed, folder in zip(seeds, folders, strict=True):
        train(replace(arguments, seed=seed, seeds=1, output_dir=str(folder)))
        results.append(best_evaluation(folder / "training_log.jsonl"))
    summary = {
        stage: {
            metric: summarise([result[stage]["all"][metric] for result in results])
            for metric in metrics["all"]
        }
        for stage, metrics in results[0].items()
    }
    if PartialState().is_main_process:
        write_json(output_dir / "seeds.json", {"seeds": list(seeds), "stages": summary})
    for stage, metrics in summary.items():
        shown = (
            f"{metric} {100 * m['mean']:.2f} ± {100 * m['deviation']:.2f}" for metric, m in metrics.items()
        )
        logger.info("%d seeds, %s: %s", len(results), stage, ", ".join(shown))


def best_evaluation(log_file: Path) -> dict[str, Any]:
    """The stages of the evaluation by which best/ was chosen: the first with the greatest Recall@1."""
    entries = map(json.loads, log_file.read_text(encoding="utf-8").splitlines())
    evaluations = [entry["evaluation"] for entry in entries if "evaluation" in entry]
    final_stage = next(stage for stage in ("fused", "matching", "embeddings") if stage in evaluations[0])
    return max(evaluations, key=lambda stages: stages[final_stage]["all"]["recall@1"])


def summarise(values: list[float]) -> dict[str, Any]:
    return {"mean": statistics.fmean(values), "deviation": statistics.stdev(values), "values": values}
