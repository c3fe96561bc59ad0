"""A whole fine-tuning run, from the start model to best/ and last/; `train_accelerate.py` is its command."""

import copy
import logging
import math
import os
import shutil
import signal
import time
from collections.abc import Iterable
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, gather_object, set_seed
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.tensor import DTensor
from tqdm.auto import tqdm
from transformers import get_scheduler

from ..data.whole_files import write_json
from ..evaluation.retrieval import evaluate
from ..evaluation.significance import wilson_interval
from ..evaluation.tables import format_table
from ..modeling_tpas import TEMPERATURE_RANGE
from ..models.loading import load_model
from ..search.ranking import resolve_shortlist
from .arguments import FineTuningArguments
from .averaging import WeightAverages
from .batches import (
    build_loader,
    data_identity,
    load_training_pairs,
    load_validation_pairs,
    open_data,
    warn_of_unread_captions,
)
from .checkpointing import Progress, save_checkpoint
from .data import stable_number
from .gradient_cache import average_gradients, backward_in_chunks
from .log import Clock, LossMeans, TrainingLog, peak_memory, start_tracker
from .objective import FineTuningObjective, network_of
from .on_cpu import fast_on_cpu, suggest_bf16
from .optimizer import LearningRates, build_optimizer, describe_groups
from .processes import of_main_process, shared_errors
from .run_folder import (
    LOCK,
    PATIENCE,
    SUBSET_FILE,
    alone_in,
    earlier_run,
    find_progress,
    recover_models,
    save_model,
)
from .start import build_objective, load_start, new_names, refuse_with_fsdp, start_fingerprint

logger = logging.getLogger(__name__)

# Recall@1 of fewer queries is so uncertain (at 50 % by 14 points) that it cannot tell epochs from each other.
FEWEST_QUERIES = 50
ENDED_BY_SIGNAL = 128  # and its number: 143 by SIGTERM


class Run:
    """One fine-tuning run: all that it is made of, and how far it is. Every process has its own.

    To build it writes nothing and refuses whatever can be refused; `train` does the rest. What a run writes:
    see `train_accelerate.py`.

    Attributes:
        processor: makes the model's inputs.
        data: where the pairs come from.
        benchmark: the validation split, or None if nothing is evaluated.
        pairs: what is trained on, and `loader` its batches in this process.
        generator: draws the order of the pairs. It is the run's own, so that the order does not depend on
            what else draws random numbers.
        objective: the model with its losses, in the wrapper that joins processes; `plain_objective` without.
        optimizer, scheduler, averages: what a step changes beside the weights.
        whole: where FSDP has cut the model, a copy that its weights are collected in; otherwise None.
        sizes: how many pairs, steps and parameters there are.
        settings: all that the run is made with. A checkpoint is refused where one that counts has changed.
        progress: where the run is.
        patience: seconds to wait for another run in the same folder.
        means: of the losses since the last line of `log`.
        skipped: the messages about unreadable images.
    """

    def __init__(self, arguments: FineTuningArguments):
        self.arguments = arguments
        self.output_dir = Path(arguments.output_dir)
        self.accelerator = accelerator = start_accelerator(arguments)
        cut_weights = accelerator.distributed_type == DistributedType.FSDP
        if cut_weights:
            refuse_with_fsdp(arguments)
        resuming = arguments.resume_from_checkpoint is not None
        self.earlier = [] if resuming else earlier_run(self.output_dir, arguments.overwrite_output_dir)
        set_seed(arguments.seed, device_specific=True)

        # The start model, the pairs to evaluate it on, and those to train it on.
        model, self.processor, self.new_parameters = load_start(arguments)
        self.data = open_data(arguments, accelerator)
        self.benchmark = None
        if arguments.evaluate_every:
            self.benchmark = load_validation_pairs(arguments, self.data, accelerator)
        if self.benchmark is not None:
            warn_of_few_queries(len(self.benchmark.captions), arguments)
            images = len(self.benchmark.gallery_ids)
            self.shortlist = resolve_shortlist(arguments.evaluation_shortlist, images)
        dataset, self.subset_rows = load_training_pairs(
            arguments, self.data, model, self.processor, accelerator
        )

        def identity_of() -> dict[str, Any]:
            warn_of_unread_captions(dataset, self.processor)
            start = {"start_fingerprint": start_fingerprint(arguments, model, self.new_parameters)}
            return start | data_identity(self.data)

        identity = of_main_process(accelerator, identity_of)
        self.generator = torch.Generator().manual_seed(arguments.seed)
        self.pairs, self.loader = build_loader(
            arguments, dataset, self.data.image_root, self.processor, accelerator, self.generator
        )

        # The losses over the model, and what steps it.
        objective = build_objective(arguments, model, self.processor)
        self.whole = copy.deepcopy(objective.model).to(accelerator.device) if cut_weights else None
        optimizer = build_optimizer(
            objective,
            LearningRates(
                arguments.learning_rate,
                arguments.new_parameter_multiplier,
                arguments.multiplied_parameters,
                arguments.layer_decay,
            ),
            new_parameters=new_names(objective, self.new_parameters),
            config=model.config,
            weight_decay=arguments.weight_decay,
            betas=(arguments.adam_beta1, arguments.adam_beta2),
            epsilon=arguments.adam_epsilon,
            fused=True if accelerator.device.type == "cpu" else None,
        )
        self.learning_rates = describe_groups(optimizer)
        self.sizes = self._count(objective)
        self.steps_per_epoch = self.sizes["steps_per_epoch"]
        self.total_steps = self.sizes["total_steps"]
        scheduler = get_scheduler(
            {"linear": "linear", "constant": "constant_with_warmup"}[arguments.lr_scheduler_type],
            optimizer,
            round(arguments.warmup_ratio * self.total_steps),
            self.total_steps,
        )
        self.objective, self.optimizer, self.scheduler = accelerator.prepare(objective, optimizer, scheduler)
        self.plain_objective: FineTuningObjective = accelerator.unwrap_model(self.objective)
        self.averages = WeightAverages(
            self.plain_objective.model, arguments.ema_decay, arguments.average_last_epochs
        )

        # The precision may come from accelerate's configuration.
        precision = {"mixed_precision": accelerator.mixed_precision}
        name = {"dataset_name": arguments.dataset_name or self.data.name}
        self.settings = asdict(arguments) | name | self.sizes | precision | identity
        self.progress, self.patience = Progress(), PATIENCE
        self.log = TrainingLog(self.output_dir / "training_log.jsonl", accelerator)
        self.means = LossMeans(accelerator, self.plain_objective.loss_names)
        self.skipped: set[str] = set()
        self.stop = StopSignal(accelerator)

    def _count(self, objective: FineTuningObjective) -> dict[str, int]:
        """See `sizes`. A step sees the pairs of all processes and accumulated batches."""
        arguments, accumulated = self.arguments, self.arguments.gradient_accumulation_steps
        effective_batch = arguments.batch_size * self.accelerator.num_processes * accumulated
        steps_per_epoch = math.ceil(len(self.loader) / accumulated)
        steps = arguments.num_train_epochs * steps_per_epoch
        if arguments.steps_as_pairs is not None:
            steps = arguments.num_train_epochs * max(1, arguments.steps_as_pairs // effective_batch)
        if arguments.max_train_steps is not None:
            steps = arguments.max_train_steps
        parameters = list(network_of(objective.model).parameters())
        return {
            "training_pairs": len(self.pairs),
            "num_processes": self.accelerator.num_processes,
            "effective_batch": effective_batch,
            "steps_per_epoch": steps_per_epoch,
            "total_steps": steps,
            "parameters": sum(parameter.numel() for parameter in parameters),
            "trained_parameters": sum(p.numel() for p in parameters if p.requires_grad),
            "new_parameters": len(self.new_parameters),
        }

    def train(self) -> None:
        """Does the whole run, or what is left of it.

        Raises:
            SystemExit: after a SIGTERM, SIGHUP or SIGINT, with a checkpoint written.
            RuntimeError: another run writes to the folder.
            FloatingPointError: a loss or weight is no finite number any more.
        """
        # All that can be refused has been, and every process has looked for an earlier run by now.
        self.accelerator.wait_for_everyone()
        if not of_main_process(self.accelerator, self.output_dir.exists):
            self.find_progress()  # which may refuse, and leaves no folder behind
        with alone_in(self.accelerator, self.output_dir / LOCK, self.patience):
            self.train_alone()

    def train_alone(self) -> None:
        """See `train`. The folder is this run's alone."""
        if self.arguments.resume_from_checkpoint is not None:
            self.resume()
        else:  # there may be one by now
            again = self.output_dir, self.arguments.overwrite_output_dir
            self.earlier = of_main_process(self.accelerator, lambda: earlier_run(*again))
        self.accelerator.wait_for_everyone()
        self.open_folder()
        self.clock = Clock(self.progress.step, self.total_steps)
        self.bar = tqdm(
            total=self.total_steps,
            initial=self.progress.step,
            disable=not self.accelerator.is_main_process,
            desc="fine-tuning",
            unit="step",
        )
        with self.bar, self.stop:
            # A run can have been stopped between the end of an epoch's batches and its evaluation.
            while self.progress.batches or not (self.complete or self.stopped_early):
                self.train_epoch()
                self.end_epoch()
        self.finish()

    @property
    def complete(self) -> bool:
        return self.progress.step == self.total_steps

    @property
    def stopped_early(self) -> bool:
        return 0 < self.arguments.early_stopping_patience <= self.progress.evaluations_since_best

    def find_progress(self) -> tuple[Path | None, Progress]:
        """The checkpoint to go on from, if any, and how far it is."""
        resume_from = self.arguments.resume_from_checkpoint
        if resume_from is None:
            return None, Progress()
        place = resume_from, self.output_dir, self.settings
        return of_main_process(self.accelerator, lambda: find_progress(*place))

    def resume(self) -> None:
        """Brings everything to where it was at a checkpoint, every random state included."""
        checkpoint, self.progress = self.find_progress()
        if checkpoint is not None:
            self.progress.restore_generator(self.generator)
            with shared_errors(self.accelerator):
                self.accelerator.load_state(str(checkpoint))
                self.averages.load(checkpoint)
            if self.progress.planned_steps not in (0, self.total_steps):
                self.change_length()
        self.means.restore(self.progress.losses)
        self.skipped = set(self.progress.skipped)
        logger.info("going on from %s", checkpoint or "the beginning, there is no checkpoint")
        if self.complete:
            more = "more --num_train_epochs or --max_train_steps go on, --overwrite_output_dir starts anew"
            logger.info("all %d steps are done, nothing is left to train: %s", self.total_steps, more)

    def change_length(self) -> None:
        """Takes the schedule of the run's new length, as transformers' Trainer does, and says what that does.

        Raises:
            ValueError: the mean over the last epochs may hold others already.
        """
        planned, arguments = self.progress.planned_steps, self.arguments
        if arguments.average_last_epochs:
            raise ValueError(
                f"--average_last_epochs {arguments.average_last_epochs}: which epochs are the last was "
                f"settled for {planned} steps, now there are {self.total_steps}: give the epochs or steps of "
                "before, or start another run in another --output_dir"
            )
        schedule = self.scheduler.scheduler  # without accelerate's wrapper
        before = schedule.get_last_lr()[0]
        factors = (factor(schedule.last_epoch) for factor in schedule.lr_lambdas)
        rates = [base * factor for base, factor in zip(schedule.base_lrs, factors, strict=True)]
        schedule.load_state_dict(schedule.state_dict() | {"_last_lr": rates})
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        falls = arguments.lr_scheduler_type == "linear"
        logger.info(
            "%d steps in place of %d: from step %d the learning rate %s %.3g (it was %.3g)%s",
            *(self.total_steps, planned, self.progress.step),
            *("goes on at" if falls else "stays", rates[0], before),
            " and falls to 0 at the last step, as in transformers' Trainer" if falls else "",
        )

    def open_folder(self) -> None:
        """Makes the folder ready, and logs what kind of run this is."""
        with shared_errors(self.accelerator):
            if self.accelerator.is_main_process:
                for path in self.earlier:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
                recover_models(self.output_dir)
                write_json(self.output_dir / "training_arguments.json", self.settings)
                if self.subset_rows is not None:
                    write_json(self.output_dir / SUBSET_FILE, self.subset_rows)
                if self.log.path.exists():
                    # What came after the checkpoint comes again.
                    os.truncate(self.log.path, min(self.progress.log_bytes, self.log.length))
            if self.arguments.report_to != "none":
                start_tracker(self.accelerator, self.arguments)
        logger.info(", ".join(f"{name} {value}" for name, value in self.sizes.items()))
        share = self.sizes["trained_parameters"] / self.sizes["parameters"]
        logger.info("trained: %.2f%% of the numbers", 100 * share)
        suggest_bf16(self.accelerator.device, self.accelerator.mixed_precision)
        for line in self.learning_rates:
            logger.info(line)
        for name in sorted(self.new_parameters):
            logger.info("not in the start model: %s", name)

    def train_epoch(self) -> None:
        """The steps of an epoch that are still to be done."""
        self.pairs.begin_epoch(self.progress.epoch)
        self.objective.train()  # the evaluation has switched dropout off
        self.progress.keep_generator(self.generator)
        if self.complete:  # stopped after the last step: only the evaluation is left to do
            return
        remaining = self.loader
        if self.progress.batches:
            remaining = self.accelerator.skip_first_batches(self.loader, self.progress.batches)
        with fast_on_cpu(self.plain_objective.network, self.accelerator.device):
            for batch in cast(Iterable[dict[str, Any]], remaining):
                self.note_unreadable(batch.pop("unreadable"))
                losses = self.train_batch(batch)
                self.means.add(losses)
                self.progress.batches += 1
                if self.accelerator.sync_gradients:  # it was the last of the batches that make a step
                    self.end_step()
                    if self.complete:
                        break

    def train_batch(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Forward and backward, and with the last of the batches that make a step the optimizer's step.

        Returns:
            The losses by name.
        """
        arguments, accelerator = self.arguments, self.accelerator
        objective = self.plain_objective
        if objective.global_negatives:
            place = f"{arguments.seed} {self.progress.epoch} {self.progress.batches}"
            batch["draw_seed"] = stable_number(place)
        with accelerator.accumulate(self.objective):
            if arguments.cached_chunk_size:
                # Beside the wrapper, which counts on one backward a batch.
                losses = backward_in_chunks(objective, accelerator, arguments.cached_chunk_size, **batch)
                if accelerator.sync_gradients:
                    average_gradients(objective)
            else:
                losses = self.objective(**batch)
                accelerator.backward(losses["loss"])
            if accelerator.sync_gradients:
                # accelerate divided by the full number, of which an epoch's last step may have fewer.
                accumulated = self.progress.batches % arguments.gradient_accumulation_steps + 1
                multiply_gradients(self.objective, arguments.gradient_accumulation_steps / accumulated)
                if arguments.max_grad_norm > 0:
                    accelerator.clip_grad_norm_(self.objective.parameters(), arguments.max_grad_norm)
            self.optimizer.step()
            self.optimizer.zero_grad()
        return losses

    def end_step(self) -> None:
        """What follows an optimizer step: schedule, averages, log, checkpoint."""
        learning_rate = self.scheduler.get_last_lr()[0]
        self.scheduler.step()
        self.averages.after_step(self.plain_objective.model)
        self.progress.step += 1
        self.bar.update()
        if self.progress.step % self.arguments.log_every == 0 or self.complete:
            self.log_step(learning_rate)
        stopping = self.stop.came()  # the number of a signal, or 0
        if stopping or self.checkpoint_is_due():
            self.save_checkpoint()
        if stopping:
            name, step = signal.Signals(stopping).name, self.progress.step
            go_on = "the same command with --resume_from_checkpoint last goes on"
            logger.info("%s: stopped after step %d of %d; %s", name, step, self.total_steps, go_on)
            self.accelerator.end_training()
            raise SystemExit(ENDED_BY_SIGNAL + stopping)

    def log_step(self, learning_rate: float) -> None:
        """A line with the mean losses since the last one. Every process must call it."""
        step = self.progress.step
        self.means.check_finite(step)
        figures = self.means.take()
        figures |= {"learning_rate": learning_rate, "temperature": self.temperature()}
        self.log.step(step, step / self.steps_per_epoch, figures, self.clock.time_left(step))

    def checkpoint_is_due(self) -> bool:
        if self.arguments.checkpoint_every:
            return self.progress.step % self.arguments.checkpoint_every == 0
        # Before the evaluation, which may fail and must not take the epoch with it.
        return self.progress.batches == len(self.loader) or self.complete

    def save_checkpoint(self) -> None:
        """Writes all that it takes to go on from here. Every process must call it."""
        progress = self.progress
        self.means.check_finite(progress.step, self.plain_objective.parameters())
        progress.losses = self.means.of_all_processes()
        progress.skipped = self.skipped_by_all()
        progress.log_bytes = self.log.length
        path = save_checkpoint(
            self.accelerator,
            self.output_dir / "checkpoints",
            progress,
            self.settings,
            self.arguments.checkpoints_kept,
            self.averages.save,
        )
        logger.info("checkpoint %s", path)

    def end_epoch(self) -> None:
        """What follows the batches of an epoch: averages, evaluation, last/."""
        progress, arguments = self.progress, self.arguments
        self.means.check_finite(progress.step, self.plain_objective.parameters())
        epochs_left = math.ceil((self.total_steps - progress.step) / self.steps_per_epoch)
        self.averages.after_epoch(self.plain_objective.model, epochs_left)
        kept = self.model_to_keep()
        due = self.complete or (progress.epoch + 1) % max(1, arguments.evaluate_every) == 0
        if self.benchmark is not None and due:
            self.validate(kept)
        self.keep(kept, "last")
        # One that ended within the epoch keeps its place there, lest a longer run should leave the rest out.
        within = progress.batches < len(self.loader)
        progress.epoch, progress.batches = progress.epoch + 1, 0
        if not arguments.checkpoint_every and not within:
            progress.keep_generator(self.generator)
            self.save_checkpoint()

    def validate(self, model: nn.Module, weights: str | None = None) -> None:
        """Logs what a model is worth on the validation split; the best so far becomes best/.

        Args:
            weights: what they are called in the log, where they are not the run's own.
        """
        assert self.benchmark is not None, "there is nothing to evaluate on"
        progress = self.progress
        result = evaluate(
            network_of(model),
            self.processor,
            self.benchmark,
            self.data.image_root,
            shortlist=self.shortlist,
            fusion_weight=self.arguments.fusion_weight,
            batch_size=self.arguments.evaluation_batch_size,
            follow_links=self.arguments.follow_links,
            accelerator=self.accelerator,
        )
        epoch = progress.step / self.steps_per_epoch
        self.log.evaluation(progress.step, epoch, result.stages, format_table(result), weights)
        recall = result.stages[result.final_stage]["all"]["recall@1"]
        progress.evaluations_since_best += 1
        if recall > progress.best_recall:
            progress.best_recall, progress.evaluations_since_best = recall, 0
            self.keep(model, "best")

    def finish(self) -> None:
        """What follows the last epoch: averaged/, merged/ and a summary in the log."""
        if self.stopped_early:
            logger.info(
                "stopped after step %d of %d: no better Recall@1 in %d evaluations",
                *(self.progress.step, self.total_steps, self.progress.evaluations_since_best),
            )
        if self.averages.epochs is not None:
            if self.benchmark is not None:
                self.validate(self.averages.epochs.module, "averaged")
            self.keep(self.averages.epochs.module, "averaged")
        if self.arguments.merge:
            of_main_process(self.accelerator, self.merge)
        if self.arguments.on_bad_image == "skip":
            skipped = self.skipped_by_all()
            logger.info("%d of %d training pairs were skipped, unreadable", len(skipped), len(self.pairs))
            for message in skipped:
                logger.info("skipped: %s", message)
        logger.info("memory at most: %s", peak_memory())
        with shared_errors(self.accelerator):
            # Not `end_training`, which ends the process group as well: another seed may follow.
            for tracker in self.accelerator.trackers:
                tracker.finish()

    def merge(self) -> None:
        """Writes merged/, in fp32, as it was trained, whatever the start is kept in."""
        merged, _ = load_model(
            str(self.output_dir / ("last" if self.benchmark is None else "best")),
            trust_remote_code=self.arguments.trust_remote_code,
            revision=self.arguments.revision,
        )
        save_model(cast(nn.Module, merged), self.processor, self.output_dir / "merged")

    def model_to_keep(self) -> nn.Module:
        """The trained model, or the moving average of its weights. Every process must call it."""
        if self.averages.moving is not None:
            return self.averages.moving.module
        model = self.accelerator.unwrap_model(self.objective, keep_torch_compile=False).model
        if self.whole is None:
            return model
        self.whole.load_state_dict(
            get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
        )
        return self.whole

    def keep(self, model: nn.Module, name: str) -> None:
        """Writes the model into the run's folder, on the main process. Every process must call it."""
        with shared_errors(self.accelerator):
            if self.accelerator.is_main_process:
                save_model(model, self.processor, self.output_dir / name)

    def temperature(self) -> float:
        """Of the contrastive loss. Where FSDP has cut the model, every process must call it."""
        value = cast(Tensor, self.plain_objective.network.temperature.value).detach()
        value = value.full_tensor() if isinstance(value, DTensor) else value
        return value.clamp(*TEMPERATURE_RANGE).item()

    def note_unreadable(self, messages: Iterable[str]) -> None:
        """Warns of each unreadable image once."""
        for message in set(messages) - self.skipped:
            logger.warning("skipped: %s", message)
            self.skipped.add(message)

    def skipped_by_all(self) -> list[str]:
        """The messages about unreadable images of all processes. Every process must call it."""
        return sorted(set(gather_object(sorted(self.skipped))))


class StopSignal:
    """Notes a SIGTERM, SIGHUP (a closed terminal) or SIGINT (Ctrl-C), so that the run can end after its step.

    What the process was told to ignore, as by `nohup`, it goes on ignoring. A second Ctrl-C ends it at once.
    """

    # A launcher passes on what its processes have had from the terminal already.
    one_press = 2.0  # seconds

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self.noted, self.noted_at = 0, 0.0
        self.before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignal":
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            if signal.getsignal(number) != signal.SIG_IGN:
                self.before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        while self.before:
            signal.signal(*self.before.popitem())

    def _note(self, number: int, frame: Any) -> None:
        now = time.monotonic()
        if not self.noted:
            self.noted, self.noted_at = number, now
        elif number == self.noted == signal.SIGINT and now > self.noted_at + self.one_press:
            raise KeyboardInterrupt

    def came(self) -> int:
        """The number of the signal that came to any process, or 0; every process must ask."""
        if self.accelerator.num_processes == 1:
            return self.noted
        noted = torch.tensor([self.noted], device=self.accelerator.device)
        return int(cast(Tensor, self.accelerator.gather(noted)).max())


def start_accelerator(arguments: FineTuningArguments) -> Accelerator:
    """Raises ValueError if the tracker's package is not there."""
    tracker = None if arguments.report_to == "none" else arguments.report_to
    if tracker is not None and find_spec(tracker) is None:
        raise ValueError(f"--report_to {tracker} needs a package that is not there: pip install {tracker}")
    return Accelerator(
        gradient_accumulation_steps=arguments.gradient_accumulation_steps,
        mixed_precision=arguments.mixed_precision,
        log_with=tracker,
        project_dir=Path(arguments.output_dir),
        step_scheduler_with_optimizer=False,  # one step of the schedule to a step, on any number of processes
    )


def warn_of_few_queries(queries: int, arguments: FineTuningArguments) -> None:
    if queries >= FEWEST_QUERIES:
        return
    low, high = wilson_interval(0.5, queries)
    logger.warning(
        "best/ will be chosen by %d validation %s: a Recall@1 of 50 %% of so few may as well be %.0f or "
        "%.0f %% (95 %% interval), and the best of many epochs is chance. Hold out more "
        "(--validation_fraction, now %g, --max_validation_pairs, now %d), at least %d, or take last/ "
        "(--evaluate_every 0)",
        *(queries, "query" if queries == 1 else "queries", 100 * low, 100 * high),
        *(arguments.validation_fraction, arguments.max_validation_pairs, FEWEST_QUERIES),
    )


def multiply_gradients(module: nn.Module, factor: float) -> None:
    if factor == 1:
        return
    for parameter in module.parameters():
        if parameter.grad is not None:
            parameter.grad *= factor
