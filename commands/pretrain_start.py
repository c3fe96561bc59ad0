"""Trains the small model that the demo starts from, as the paper starts from a pre-trained X-VLM.

From scratch, on people drawn in other looks than the demo's, with X-VLM's pre-training
objectives that need no boxes: contrastive, matching and masked language modelling. The result and its log
are in `demo_start/`. On a GPU:

    python -m tpas.commands.pretrain_start --output_dir demo_start

and on two CPU cores, as two processes of one thread, which are faster than one process of two:

    OMP_NUM_THREADS=1 ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes 2 \\
        --num_machines 1 --mixed_precision bf16 --dynamo_backend no \\
        --module tpas.commands.pretrain_start --output_dir demo_start

In bf16 because a processor that has it (AVX512-BF16) is faster in it; one that has not needs
`--mixed_precision no`.
"""

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from PIL import Image
from torch import nn
from tqdm import tqdm
from transformers import BertTokenizer, get_cosine_schedule_with_warmup

from ..configuration_tpas import TPASConfig, height_and_width
from ..data.drawn.synthetic_pab import captions_vocabulary, draw_source, telling_words
from ..data.drawn.synthetic_worlds import DEMO_WORLD, PRETRAINING_WORLD
from ..data.whole_files import UNFINISHED, put_in_place
from ..modeling_tpas import TPASModel
from ..objectives import (
    MatchPairs,
    contrastive_loss,
    draw_match_pairs,
    gather_with_gradient,
    in_full_precision,
    matching_loss,
)
from ..processing_tpas import TPASProcessor
from ..training.masked_language_modelling import MaskedLanguageModelling
from ..training.on_cpu import fast_on_cpu
from ..training.run_folder import alone_in
from .command_line import CommandLine, CommandResult

IMAGE_SIZE = 144
SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@dataclass(frozen=True)
class PretrainingArguments:
    """What the shipped start was made with."""

    output_dir: str = "demo_start"
    sources: int = 60_000  # people, each drawn twice: behaving normally and abnormally
    longest_caption: int = 36  # words
    steps: int = 5_643
    batch_size: int = 256  # over all processes
    learning_rate: float = 1e-3
    warmup_steps: int = 300
    weight_decay: float = 0.01
    made_up_places_from: float = 0.25  # share of the steps without them, in which the people are learnt
    hard_negatives_from: float = 0.6  # share of the steps over which negatives get as hard as in fine-tuning
    masked_share: float = 0.4  # of the telling words, for masked language modelling
    unknown_share: float = 0.2  # of any words, at most, for the other objectives
    max_grad_norm: float = 1.0
    log_every: int = 50
    seed: int = 42


def start_config(vocabulary_size: int) -> TPASConfig:
    """X-VLM's shape at a size that two CPU cores can train: two Swin stages, 2 + 2 BERT layers."""
    return TPASConfig(
        vision_config={
            "image_size": IMAGE_SIZE,
            "patch_size": 12,
            "embed_dim": 80,
            "depths": [2, 2],
            "num_heads": [4, 8],
            "window_size": 6,
            "drop_path_rate": 0.0,
        },
        text_config={
            "vocab_size": vocabulary_size,
            "hidden_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 512,
            "max_position_embeddings": 70,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
        },
        num_cross_modal_layers=2,
        projection_dim=128,
    )


def start_processor() -> TPASProcessor:
    """One token a word: every word that a caption of either world can hold.

    The words that only the demo's world uses are unknown to the start: the demo has to learn them.
    """
    words = SPECIAL_TOKENS + captions_vocabulary(PRETRAINING_WORLD, DEMO_WORLD)
    tokenizer = BertTokenizer(vocab={word: index for index, word in enumerate(words)})
    return TPASProcessor.build(tokenizer, image_size=IMAGE_SIZE)


class DrawnPairs:
    """All images (P, H, W, 3) uint8 and tokenised captions of some sources, in memory.

    Attributes:
        families: (F, 4) rows of two people who may look alike, each normal and abnormal.
        made_up: (F,) whether any of them is in a made-up place.
    """

    def __init__(
        self,
        processor: TPASProcessor,
        sources: range,
        seed: int,
        longest_caption: int = PretrainingArguments.longest_caption,
        show_progress: bool = True,
        device: torch.device | str = "cpu",
    ):
        height, width = height_and_width(processor.image_size)
        size = width, height
        self.images = np.empty((2 * len(sources), height, width, 3), dtype=np.uint8)
        captions, made_up = [], []
        made_up_places = {scene.name for scene in PRETRAINING_WORLD.scenes if scene.made_up}
        for source in tqdm(sources, desc="drawing", disable=not show_progress):
            for example in draw_source(PRETRAINING_WORLD, seed, source, longest_caption=longest_caption):
                resized = example.image.resize(size, resample=Image.Resampling.BICUBIC)
                self.images[len(captions)] = np.asarray(resized)
                captions.append(example.caption)
                made_up.append(example.scene in made_up_places)
        self.families = np.arange(len(captions)).reshape(-1, 4)
        self.made_up = np.array(made_up)[self.families].any(axis=1)
        encoded = processor(text=captions)
        self.input_ids, self.attention_mask = encoded.input_ids, encoded.attention_mask
        self.device = device
        self.mean, self.deviation = (
            torch.tensor(values, device=device).view(3, 1, 1)
            for values in (processor.image_processor.image_mean, processor.image_processor.image_std)
        )

    def __len__(self):
        return len(self.images)

    def batch(self, rows: np.ndarray):
        """`pixel_values` (B, 3, H, W), `input_ids` and `attention_mask` (B, L) of the rows, cut to L."""
        mask = self.attention_mask[rows]
        length = int(mask.sum(dim=1).max())
        pixels = torch.from_numpy(self.images[rows]).to(self.device).permute(0, 3, 1, 2).float() / 255
        ids, mask = (tensor[:, :length].to(self.device) for tensor in (self.input_ids[rows], mask))
        return (pixels - self.mean) / self.deviation, ids, mask


def batches_of_families(families: np.ndarray, batch_size: int, generator: np.random.Generator):
    """Endless batches of whole families (4 rows), so that look-alikes are each other's hard negatives."""
    per_batch = batch_size // 4
    while True:
        order = generator.permutation(len(families))
        for start in range(0, len(order) - per_batch + 1, per_batch):
            yield families[order[start : start + per_batch]].reshape(-1)


def with_family_negatives(pairs: MatchPairs, batch_size: int) -> MatchPairs:
    """The pairs, and as more negatives every image with every other text of its family (4 rows in a row)."""
    families = torch.arange(batch_size, device=pairs.images.device).view(-1, 4)
    images, texts = families[:, :, None].expand(-1, 4, 4), families[:, None, :].expand(-1, 4, 4)
    others = images != texts
    return MatchPairs(
        torch.cat([pairs.images, images[others]]),
        torch.cat([pairs.texts, texts[others]]),
        torch.cat([pairs.labels, torch.zeros_like(images[others])]),
    )


class PretrainingObjective(nn.Module):
    """X-VLM's losses of a batch of pairs, but for the one that needs boxes.

    For contrastive and matching loss up to `unknown_share` of a caption's words, in every other caption none,
    read [MASK], as do the words that fine-tuning will bring: the start must be used to texts with gaps.
    """

    def __init__(
        self, model: TPASModel, masked_language_modelling: MaskedLanguageModelling, unknown_share: float
    ):
        super().__init__()
        self.model = model
        self.masked_language_modelling = masked_language_modelling
        self.unknown_share = unknown_share

    def with_gaps(self, input_ids):
        """The ids (B, L) with [MASK] for some words."""
        device = input_ids.device
        shares = self.unknown_share * (2 * torch.rand(len(input_ids), 1, device=device) - 1).clamp(min=0)
        chance = torch.rand(input_ids.shape, device=device)
        unknown = (input_ids >= len(SPECIAL_TOKENS)) & (chance < shares)
        return input_ids.masked_fill(unknown, self.masked_language_modelling.mask_token_id)

    def forward(self, pixel_values, input_ids, attention_mask, hardness: float) -> dict[str, torch.Tensor]:
        """The losses by name, of `pixel_values` (B, 3, H, W) and `input_ids`, `attention_mask` (B, L).

        The first two are those of `TPASModel.forward`, but that the matching loss has all pairs of a family
        too, and for `hardness`, which goes from 0 (any other pair is a negative) to 1 (as in fine-tuning):
        untrained, the cross-modal encoder learns nothing from look-alikes.
        """
        model = self.model
        image = model.get_image_features(pixel_values)
        text = model.get_text_features(self.with_gaps(input_ids), attention_mask)
        everyone = (
            gather_with_gradient(in_full_precision(image.pooler_output)),
            gather_with_gradient(in_full_precision(text.pooler_output)),
            model.temperature(),
        )
        pairs = with_family_negatives(draw_match_pairs(*everyone, hardness=hardness), len(input_ids))
        match_logits = model.match(
            image.last_hidden_state,
            text.last_hidden_state[pairs.texts],
            attention_mask[pairs.texts],
            image_rows=pairs.images,
        )
        return {
            "contrastive_loss": contrastive_loss(*everyone),
            "matching_loss": matching_loss(match_logits, pairs.labels),
            "masked_language_modelling_loss": self.masked_language_modelling(
                model,
                image.last_hidden_state,
                *self.masked_language_modelling.mask(input_ids),
                attention_mask,
            ),
        }


def make_ready_for_fine_tuning(model: TPASModel, processor: TPASProcessor) -> None:
    """Words that were never seen start as [MASK], a word unknown; the temperature starts anew.

    As outputs of masked language modelling the unseen words were pushed away from everything, so as inputs
    they would mislead. And by now the temperature is so sharp that what is new would overrule what is known.
    """
    vocabulary = processor.tokenizer.get_vocab()
    seen = {*SPECIAL_TOKENS, *captions_vocabulary(PRETRAINING_WORLD)}
    unseen = [index for word, index in vocabulary.items() if word not in seen]
    with torch.no_grad():
        embeddings = model.text_model.embeddings.word_embeddings.weight
        embeddings[unseen] = embeddings[processor.tokenizer.mask_token_id].clone()
        model.temperature.value.fill_(model.config.init_temperature)


def pretrain(arguments: PretrainingArguments, accelerator: Accelerator, directory: Path) -> None:
    """Trains from scratch and writes the model, the processor and the log into `directory`."""
    set_seed(arguments.seed)  # the same first weights in every process
    if accelerator.device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32
    started = time.monotonic()
    processor = start_processor()
    model = TPASModel(start_config(len(processor.tokenizer)))
    masked_language_modelling = MaskedLanguageModelling(
        model.config.text_config.hidden_size,
        processor.tokenizer.mask_token_id,
        processor.tokenizer.convert_tokens_to_ids(telling_words(PRETRAINING_WORLD)),
        arguments.masked_share,
    )
    objective = PretrainingObjective(model, masked_language_modelling, arguments.unknown_share)
    optimizer = torch.optim.AdamW(
        objective.parameters(),
        lr=arguments.learning_rate,
        betas=(0.9, 0.98),
        weight_decay=arguments.weight_decay,
        fused=True,  # one pass over the memory in place of ten
    )
    scheduler = get_cosine_schedule_with_warmup(optimizer, arguments.warmup_steps, arguments.steps)
    objective, optimizer = accelerator.prepare(objective, optimizer)

    rank, processes = accelerator.process_index, accelerator.num_processes
    set_seed(arguments.seed + rank)  # other masks and negatives in each
    share = arguments.sources // processes
    pairs = DrawnPairs(
        processor,
        range(rank * share, (rank + 1) * share),
        arguments.seed,
        arguments.longest_caption,
        accelerator.is_main_process,
        accelerator.device,
    )
    # In front of anything a person is hard to make out: who has not seen people yet learns nothing there.
    known_places, all_places = (
        batches_of_families(
            families, arguments.batch_size // processes, np.random.default_rng(arguments.seed + rank)
        )
        for families in (pairs.families[~pairs.made_up], pairs.families)
    )
    steps = tqdm(range(1, arguments.steps + 1), desc="pre-training", disable=not accelerator.is_main_process)
    with fast_on_cpu(model, accelerator.device):
        for step in steps:
            # Squared, because the temperature that the similarities are divided by falls meanwhile.
            hardness = min(1.0, step / (arguments.hard_negatives_from * arguments.steps)) ** 2
            batches = known_places if step <= arguments.made_up_places_from * arguments.steps else all_places
            losses = objective(*pairs.batch(next(batches)), hardness=hardness)
            optimizer.zero_grad()
            accelerator.backward(sum(losses.values()))
            accelerator.clip_grad_norm_(objective.parameters(), arguments.max_grad_norm)
            optimizer.step()
            scheduler.step()
            if step % arguments.log_every == 0 or step == arguments.steps:
                means = accelerator.reduce(torch.stack([loss.detach() for loss in losses.values()]), "mean")
                entry = {"step": step, **dict(zip(losses, cast(torch.Tensor, means).tolist(), strict=True))}
                rate, temperature = scheduler.get_last_lr()[0], model.temperature().item()
                entry |= {"learning_rate": rate, "temperature": temperature, "hardness": hardness}
                entry |= {"seconds": time.monotonic() - started}
                if accelerator.is_main_process:
                    with open(directory / "training_log.jsonl", "a") as log:
                        log.write(json.dumps({name: round(value, 6) for name, value in entry.items()}) + "\n")

    if accelerator.is_main_process:
        make_ready_for_fine_tuning(model, processor)
        model.save_pretrained(directory)
        processor.save_pretrained(directory)
        for code in directory.glob("*.py"):
            code.unlink()  # for the Hub; in the repository that holds the code it would be a second copy
        record = asdict(arguments) | {"processes": processes, "threads_each": torch.get_num_threads()}
        record["mixed_precision"] = accelerator.mixed_precision
        (directory / "pretraining_arguments.json").write_text(json.dumps(record, indent=2) + "\n")


app = CommandLine("pretrain_start.py", __doc__)


@app.command()
def pretrain_start(arguments: PretrainingArguments) -> CommandResult:
    accelerator = Accelerator()
    output = Path(arguments.output_dir)
    if output.exists():
        raise FileExistsError(f"{output} exists: remove it or choose another --output_dir")
    accelerator.wait_for_everyone()  # all have looked before the first one writes
    unfinished = output.with_name(f".{output.name}{UNFINISHED}")  # of all processes
    with alone_in(accelerator, output.with_name(f".{output.name}.lock"), patience=0):
        if accelerator.is_main_process:
            shutil.rmtree(unfinished, ignore_errors=True)  # of a run that was killed
            unfinished.mkdir()
        pretrain(arguments, accelerator, unfinished)
        if accelerator.is_main_process:
            put_in_place(unfinished, output)
    accelerator.end_training()
    return CommandResult({"output_dir": str(output)}, f"{output}: made in {arguments.steps:,} steps")


def main(argv: Sequence[str] | None = None) -> None:
    app.run(argv)


if __name__ == "__main__":
    main()
