"""Every number of a fine-tuning run. Each field is a flag of `train_accelerate.py`."""

from dataclasses import dataclass, field
from math import inf
from typing import Any, ClassVar, Literal


def flag(default: Any, about: str) -> Any:
    """A dataclass field that becomes a flag."""
    return field(default=default, metadata={"help": about})


@dataclass
class FineTuningArguments:
    """The defaults are the paper's recipe; what the paper does not have is off, but for wrong labels' cure.

    That is `equal_texts_match`: without equal captions under other ids nothing changes, with them it was
    better in either stage (benchmarks/equal_texts.md).
    """

    # By the first field of each: what `--help` shows them under.
    HEADINGS: ClassVar = {
        "data_root": "Where from and where to",
        "pairs": "Pairs",
        "num_train_epochs": "Batches and steps",
        "negatives": "Objective",
        "augmentation": "Augmentation",
        "learning_rate": "Optimiser",
        "mixed_precision": "Memory and speed",
        "lora_rank": "LoRA",
        "seed": "Evaluation, log, checkpoints",
    }

    data_root: str = field(
        metadata={
            "help": "pairs of images and texts: a folder of PAB or in its layout, a table (.csv, .tsv, "
            ".jsonl, .json, .parquet), an imagefolder, CUHK-PEDES, ICFG-PEDES or RSTPReid, or hf:OWNER/NAME",
        }
    )
    output_dir: str = field(metadata={"help": "folder for best/, last/ and the log"})
    model_name_or_path: str | None = flag(
        None,
        "model to start from, with its processor (tpas convert makes one of X-VLM's .th file), or "
        "another retrieval model: a CLIP, SigLIP or BLIP, open_clip:ARCHITECTURE/PRETRAINED, ...",
    )
    config_name: str | None = flag(
        None, "in place of a model: folder with a config and a processor, to start from random weights"
    )
    dataset_name: str | None = flag(
        None, "what the data are called in what the run leaves (default: their own name)"
    )
    image_root: str | None = flag(
        None, "folder of the images, where they do not lie as data_root says (default: beside the table)"
    )
    trust_remote_code: bool = flag(False, "run the code that comes with the model")
    revision: str | None = flag(None, "commit of the model's Hub repository")
    base_model: str | None = flag(None, "to start from an adapter: where its base lies now, if it was moved")
    overwrite_output_dir: bool = flag(False, "delete an earlier run that output_dir holds")
    resume_from_checkpoint: str | None = flag(
        None,
        "checkpoint to go on from, later ones being replaced; 'last': output_dir's newest, or the beginning "
        "if it has none; with more epochs than before a run goes on beyond its end",
    )

    pairs: int | None = flag(None, "train on this many pairs (paper: Table 3)")
    subset: Literal["random", "first", "balanced", "diverse"] = flag(
        "random",
        "which: drawn by the seed; the first; half normal, half anomaly, drawn by the seed; or those whose "
        "captions lie furthest apart for the start model (k-center greedy, arXiv:1708.00489)",
    )
    validation_fraction: float = flag(
        0.02,
        "share of the training pairs held out, by source video or else by id, unless the data have a "
        "validation split of their own",
    )
    max_validation_pairs: int = flag(1000, "pairs of the validation split that are evaluated")
    on_bad_image: Literal["raise", "skip"] = flag(
        "raise", "stop at an unreadable image, or leave its pair out and say so"
    )
    follow_links: bool = flag(
        True, "read images that are links out of data_root, or lie in linked folders; otherwise refuse them"
    )
    num_workers: int = flag(2, "processes that decode images, for each training process")
    prefetch_factor: int = flag(2, "batches that each of them keeps ready")

    num_train_epochs: int = flag(10, "how often all pairs are seen (paper: 10)")
    max_train_steps: int | None = flag(None, "number of steps, in place of the epochs")
    steps_as_pairs: int | None = flag(
        None,
        "as many steps as the epochs would have over this many pairs, so that subsets are compared at equal "
        "steps (in the paper's Table 3 more pairs are also more steps)",
    )
    batch_size: int = flag(16, "pairs of each process in a batch (paper: 16)")
    cached_chunk_size: int = flag(
        0,
        "rows of a batch that are in memory with all their activations at a time, gradients staying those of "
        "the whole batch, at the cost of encoding twice (GradCache, arXiv:2101.06983); 0: the whole batch",
    )
    gradient_accumulation_steps: int = flag(1, "batches to a step; each has its own negatives")
    source_group_size: int = flag(
        1, "pairs of one source video that share a batch, as each other's hard negatives; 1: by chance"
    )
    group_by_length: bool = flag(False, "captions of similar length share a batch: less padding")

    negatives: Literal["local", "global"] = flag(
        "local",
        "hard negatives of the matching loss: from the process's own pairs (X-VLM), or from those of all "
        "processes, then drawn alike for any number of them",
    )
    hard_negatives: bool = flag(
        False,
        "PAB's hard_i and hard_c as two more negative pairs each (PAB's own baseline, arXiv:2411.17776)",
    )
    second_view_weight: float = flag(
        0.0, "weight of the losses of a second, perturbed caption, EDA (APTM, arXiv:2306.02898: 0.8); 0: none"
    )
    masked_language_modelling_weight: float = flag(
        0.0, "weight of the loss of masked words; its head starts anew (X-VLM's pre-training: 1); 0: none"
    )
    masked_share: float = flag(0.25, "with it: share of the words that are masked (X-VLM: 0.25)")
    equal_texts_match: bool = flag(
        True,
        "captions that read the same but for case and punctuation are right for each other's images, under "
        "whatever ids, and never negatives; without such captions nothing changes",
    )
    label_smoothing: float = flag(0.0, "of the contrastive loss (Inception-v3, arXiv:1512.00567: 0.1)")

    augmentation: bool = flag(True, "crop 0.5-1, mirror, RandAugment(2, 7) (X-VLM; the paper does not say)")
    crop_probability: float = flag(
        1.0, "with it: of cropping (local view); otherwise the whole image is squeezed (global view)"
    )
    swap_left_right: bool = flag(False, "with it: swap left and right in the caption of a mirrored image")
    erasing_probability: float = flag(
        0.0, "of erasing a rectangle of the image (random erasing, arXiv:1708.04896; APTM: 0.6)"
    )

    learning_rate: float = flag(3e-5, "greatest learning rate (paper: 3e-5)")
    new_parameter_multiplier: float = flag(
        2.0, "learning rate of parameters that the start model lacks, relative to the others' (X-VLM: 2)"
    )
    multiplied_parameters: str | None = flag(
        None,
        "regular expression of names that it holds for as well, such as '_projection|matching_head' (a start "
        "that lacks nothing has no new ones)",
    )
    layer_decay: float = flag(
        1.0,
        "factor of the learning rate from a layer to the one below (BEiT, arXiv:2106.08254: 0.65 to 0.95)",
    )
    warmup_ratio: float = flag(0.0, "share of the steps in which the rate rises (paper: 0)")
    lr_scheduler_type: Literal["linear", "constant"] = flag(
        "linear", "after that the rate falls to 0 at the last step (paper), or stays as it is"
    )
    weight_decay: float = flag(0.01, "AdamW's, except on biases and LayerNorms (paper: 0.01)")
    adam_beta1: float = flag(0.9, "AdamW's first beta (X-VLM: 0.9)")
    adam_beta2: float = flag(0.98, "AdamW's second beta (X-VLM: 0.98)")
    adam_epsilon: float = flag(1e-8, "AdamW's epsilon (X-VLM: 1e-8)")
    max_grad_norm: float = flag(0.0, "clip gradients to this norm; 0: do not (X-VLM does not)")
    ema_decay: float = flag(
        0.0,
        "evaluate and keep an exponential moving average of the weights with this decay to a step (such as "
        "0.999); 0: the weights themselves",
    )
    average_last_epochs: int = flag(
        0,
        "also write averaged/, the mean of the weights at the end of the last epochs (SWA, arXiv:1803.05407)",
    )

    mixed_precision: Literal["no", "fp16", "bf16"] | None = flag(None, "left out: accelerate's")
    gradient_checkpointing: bool = flag(False, "recompute activations going backwards: less memory, slower")
    torch_compile: bool = flag(
        False, "compile the three encoders (torch.compile): slow to start, then faster"
    )
    torch_compile_backend: str = flag("inductor", "with it: the compiler's backend")

    lora_rank: int = flag(
        0, "train low-rank updates of this rank in place of all weights (arXiv:2106.09685); 0: all weights"
    )
    lora_alpha: float = flag(32.0, "with LoRA: its updates are scaled by alpha / rank")
    lora_dropout: float = flag(0.0, "with LoRA: dropout before its updates")
    lora_targets: str | None = flag(
        None,
        "with LoRA: regular expression of the layers' names, or all-linear; left out: queries and values of "
        "all encoders",
    )
    merge: bool = flag(False, "with LoRA: also write merged/, the best model whole")

    seed: int = flag(42, "of subset, order, augmentation, dropout and new weights (X-VLM: 42)")
    seeds: int = flag(
        1, "runs one after the other, with this and the next seeds, and their mean and deviation"
    )
    evaluate_every: int = flag(1, "epochs from one evaluation to the next; 0: never, then there is no best/")
    early_stopping_patience: int = flag(
        0, "stop after this many evaluations without a better Recall@1; 0: never"
    )
    evaluation_shortlist: int | None = flag(None, "images re-ranked for each query; left out: 128, or all")
    evaluation_batch_size: int = flag(
        64, "images, captions or pairs that an evaluation puts through the model at once"
    )
    fusion_weight: float = flag(0.0, "weight of the embeddings' score when evaluating; 0: matching alone")
    log_every: int = flag(50, "steps from one line of the log to the next, each the mean since the last")
    report_to: Literal["tensorboard", "wandb", "trackio", "none"] = flag(
        "tensorboard", "tracker of losses and metrics"
    )
    checkpoint_every: int = flag(
        0, "steps from one checkpoint to the next; 0: one at the end of each epoch, before its evaluation"
    )
    checkpoints_kept: int = flag(2, "newest checkpoints that are kept")

    def __post_init__(self) -> None:
        """Raises ValueError for a number out of its range, and for settings that contradict each other."""
        if (self.model_name_or_path is None) == (self.config_name is None):
            raise ValueError(
                "give either --model_name_or_path, the model to start from (tpas convert makes one "
                "of X-VLM's .th file), or --config_name, to start from random weights"
            )
        self._check_ranges()
        self._check_steps_and_pairs()
        self._check_parts()
        self._check_evaluation_and_checkpoints()

    def _check_ranges(self) -> None:
        if self.batch_size < 2:
            raise ValueError(
                f"--batch_size must be at least 2, got {self.batch_size}: a pair's negatives are in its batch"
            )
        for least, most, names in RANGES:
            for name in names.split():
                value = getattr(self, name)
                if value is not None and not least <= value <= most:
                    bounds = f"at least {least}" if most == inf else f"between {least} and {most}"
                    raise ValueError(f"--{name} must be {bounds}, got {value}")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"--ema_decay must be at least 0 and below 1, got {self.ema_decay}")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"--layer_decay must be above 0 and at most 1, got {self.layer_decay}")

    def _check_steps_and_pairs(self) -> None:
        if self.max_train_steps and self.steps_as_pairs:
            raise ValueError("--max_train_steps and --steps_as_pairs both say how many steps: give one")
        if self.source_group_size > 1 and self.group_by_length:
            raise ValueError("--source_group_size and --group_by_length both fill the batches: choose one")
        if self.subset != "random" and self.pairs is None:
            raise ValueError(f"--subset {self.subset} needs --pairs, how many")
        if self.early_stopping_patience and self.average_last_epochs:
            raise ValueError(
                "--average_last_epochs must know which epochs are the last, --early_stopping_patience leaves "
                "that open: choose one"
            )

    def _check_parts(self) -> None:
        """What is only read beside another setting, and is given without it."""
        if self.masked_language_modelling_weight and not self.masked_share:
            raise ValueError("--masked_share 0 leaves --masked_language_modelling_weight nothing to predict")
        if not self.augmentation:
            for name in ("swap_left_right", "crop_probability"):
                if getattr(self, name) != getattr(FineTuningArguments, name):
                    raise ValueError(f"--{name} has no effect with --augmentation False")
        for name, whole in (
            ("masked_share", "masked_language_modelling_weight"),
            ("lora_alpha", "lora_rank"),
            ("lora_dropout", "lora_rank"),
            ("lora_targets", "lora_rank"),
        ):
            if getattr(self, name) != getattr(FineTuningArguments, name) and not getattr(self, whole):
                raise ValueError(f"--{name} has no effect without --{whole}")
        if self.merge and not self.lora_rank:
            raise ValueError("--merge makes a whole model of an adapter: it needs --lora_rank")
        if self.lora_rank and self.config_name is not None:
            raise ValueError(
                "--lora_rank keeps an adapter alone, which is worth nothing without the random weights of "
                "--config_name: give --model_name_or_path"
            )

    def _check_evaluation_and_checkpoints(self) -> None:
        if self.resume_from_checkpoint and self.overwrite_output_dir:
            raise ValueError("--resume_from_checkpoint needs the run that --overwrite_output_dir deletes")
        if self.seeds > 1 and self.resume_from_checkpoint not in (None, "last"):
            raise ValueError(
                f"--seeds {self.seeds} are several runs: --resume_from_checkpoint last is of each"
            )
        if self.evaluate_every == 0:
            for name in ("early_stopping_patience", "seeds"):
                if getattr(self, name) > (name == "seeds"):
                    raise ValueError(f"--{name} needs evaluations: --evaluate_every 0 leaves none")
        elif self.validation_fraction == 0:
            raise ValueError("--validation_fraction 0 leaves nothing to evaluate: add --evaluate_every 0")


RANGES = (
    (
        1,
        inf,
        "num_train_epochs max_train_steps steps_as_pairs gradient_accumulation_steps max_validation_pairs "
        "source_group_size checkpoints_kept seeds evaluation_batch_size log_every prefetch_factor",
    ),
    (
        0,
        inf,
        "cached_chunk_size second_view_weight masked_language_modelling_weight average_last_epochs "
        "max_grad_norm evaluate_every early_stopping_patience checkpoint_every lora_rank num_workers",
    ),
    (
        0,
        1,
        "crop_probability erasing_probability label_smoothing masked_share warmup_ratio lora_dropout "
        "fusion_weight",
    ),
)
