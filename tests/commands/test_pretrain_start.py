"""The pre-training of the demo's start, and the start that the repository ships."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tpas.commands.pretrain_start import (
    DrawnPairs,
    PretrainingObjective,
    batches_of_families,
    main,
    start_config,
    start_processor,
    with_family_negatives,
)
from tpas.data.drawn.synthetic_pab import captions_vocabulary, draw_source
from tpas.data.drawn.synthetic_worlds import DEMO_WORLD, PRETRAINING_WORLD
from tpas.modeling_tpas import TPASModel
from tpas.objectives import MatchPairs
from tpas.processing_tpas import TPASProcessor
from tpas.training.masked_language_modelling import MaskedLanguageModelling

REPOSITORY = Path(__file__).resolve().parents[2]
SHIPPED = REPOSITORY / "demo_start"


def test_a_short_run_writes_a_model_its_processor_and_its_log(tmp_path):
    output = tmp_path / "start"
    arguments = ["--sources", "8", "--steps", "2", "--batch_size", "8", "--log_every", "1"]
    main(["--output_dir", str(output), *arguments])
    trained = TPASModel.from_pretrained(output)
    processor = TPASProcessor.from_pretrained(output)
    assert trained.config.text_config.vocab_size == len(processor.tokenizer)
    log = [json.loads(line) for line in (output / "training_log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in log] == [1, 2]
    assert all(np.isfinite(entry["masked_language_modelling_loss"]) for entry in log)
    assert json.loads((output / "pretraining_arguments.json").read_text())["sources"] == 8
    assert not list(output.glob("*.py"))
    assert [path.name for path in tmp_path.iterdir()] == ["start"]
    with pytest.raises(SystemExit, match="exists"):
        main(["--output_dir", str(output), *arguments])


def test_batches_are_of_whole_families_and_use_each_row_once_a_pass():
    families = np.arange(40).reshape(-1, 4)
    batches = list(itertools.islice(batches_of_families(families, 8, np.random.default_rng(0)), 5))
    for batch in batches:
        assert (batch.reshape(2, 4) == batch.reshape(2, 4)[:, :1] + np.arange(4)).all()
        assert (batch.reshape(2, 4)[:, 0] % 4 == 0).all()
    assert sorted(np.concatenate(batches)) == list(range(40))


def test_every_image_of_a_family_is_told_from_every_other_text_of_it():
    drawn = MatchPairs(*(torch.tensor(values) for values in ([0, 7], [0, 2], [1, 0])))
    pairs = with_family_negatives(drawn, batch_size=8)
    families = (range(4), range(4, 8))
    others = [(i, t, 0) for rows in families for i in rows for t in rows if i != t]
    assert list(zip(*(part.tolist() for part in pairs), strict=True)) == [(0, 0, 1), (7, 2, 0), *others]


def test_drawn_pairs_are_what_the_processor_makes_of_the_images():
    processor = start_processor()
    pairs = DrawnPairs(processor, range(2, 6), seed=7, longest_caption=24, show_progress=False)
    sources = (draw_source(PRETRAINING_WORLD, 7, index, longest_caption=24) for index in range(2, 6))
    examples = list(itertools.chain.from_iterable(sources))
    scenes = {scene.name for scene in PRETRAINING_WORLD.scenes if scene.made_up}
    made_up = [example.scene in scenes for example in examples]
    assert pairs.families.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert pairs.made_up.tolist() == [any(made_up[:4]), any(made_up[4:])]
    expected = processor(images=[e.image for e in examples], text=[e.caption for e in examples])
    pixel_values, input_ids, attention_mask = pairs.batch(np.arange(8))
    torch.testing.assert_close(pixel_values, expected.pixel_values, atol=1e-6, rtol=0)
    assert torch.equal(input_ids, expected.input_ids)
    assert torch.equal(attention_mask, expected.attention_mask)


def test_masked_words_are_hidden_from_the_model_and_predicted_from_the_image():
    torch.manual_seed(0)
    processor = start_processor()
    model = TPASModel(start_config(len(processor.tokenizer)))
    every_word = list(range(5, len(processor.tokenizer)))
    modelling = MaskedLanguageModelling(128, processor.tokenizer.mask_token_id, every_word, 1.0)
    objective = PretrainingObjective(model, modelling, unknown_share=0.0)
    inputs = DrawnPairs(processor, range(2), seed=0, show_progress=False).batch(np.arange(4))
    pixel_values, input_ids, attention_mask = inputs

    def masked_loss(ids, pixels):
        return objective(pixels, ids, attention_mask, hardness=1.0)["masked_language_modelling_loss"]

    # With all words masked the model sees none of them: it predicts the same whatever they were.
    words = (input_ids >= 5) & attention_mask.bool()
    seen = []
    model.text_model.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    masked_loss(input_ids, pixel_values).backward()
    assert (seen[-1][words] == processor.tokenizer.mask_token_id).all()
    assert (seen[-1][~words] == input_ids[~words]).all()
    assert model.vision_model.embeddings.patch_embeddings.projection.weight.grad.abs().sum() > 0


def test_only_words_that_tell_something_are_masked():
    processor = start_processor()
    vocabulary = processor.tokenizer.get_vocab()
    model = TPASModel(start_config(len(vocabulary)))
    maskable = [vocabulary["red"], vocabulary["lying"]]
    modelling = MaskedLanguageModelling(128, vocabulary["[MASK]"], maskable, 1.0)
    ids = processor(text=["a man in a red coat is lying there"]).input_ids
    seen = []
    model.text_model.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    modelling(model, torch.zeros(1, 37, 160), *modelling.mask(ids), torch.ones_like(ids))
    words = processor.tokenizer.convert_ids_to_tokens(seen[0][0])
    assert " ".join(words) == "[CLS] a man in a [MASK] coat is [MASK] there [SEP]"


def test_gaps_are_left_in_somewhat_less_than_half_of_the_captions():
    processor = start_processor()
    vocabulary = processor.tokenizer.get_vocab()
    model = TPASModel(start_config(len(vocabulary)))
    modelling = MaskedLanguageModelling(128, vocabulary["[MASK]"], [5], 0.4)
    objective = PretrainingObjective(model, modelling, unknown_share=0.2)
    ids = torch.randint(5, len(vocabulary), (400, 40))
    ids[:, 30:] = 0
    with_gaps = objective.with_gaps(ids)
    gaps = with_gaps != ids
    assert (with_gaps[gaps] == vocabulary["[MASK]"]).all()
    assert not gaps[:, 30:].any()
    share = gaps[:, :30].float().mean(dim=1)
    assert 0.3 < (share > 0).float().mean() < 0.5
    assert 0.035 < share.mean() < 0.065


def test_the_shipped_start_is_small_and_reads_every_word_of_the_demo():
    assert (SHIPPED / "model.safetensors").stat().st_size <= 8_000_000
    model = TPASModel.from_pretrained(SHIPPED)
    processor = TPASProcessor.from_pretrained(SHIPPED)
    built = TPASModel(start_config(len(processor.tokenizer))).state_dict()
    shapes = {name: weight.shape for name, weight in model.state_dict().items()}
    assert shapes == {name: weight.shape for name, weight in built.items()}
    unknown = processor.tokenizer.unk_token_id
    for world in (DEMO_WORLD, PRETRAINING_WORLD):
        captions = [example.caption for index in range(30) for example in draw_source(world, 5, index)]
        assert unknown not in processor(text=captions).input_ids


def test_words_of_the_demo_alone_are_unknown_to_the_shipped_start():
    model, processor = TPASModel.from_pretrained(SHIPPED), TPASProcessor.from_pretrained(SHIPPED)
    vocabulary = processor.tokenizer.get_vocab()
    embeddings = model.text_model.embeddings.word_embeddings.weight
    unknown = set(captions_vocabulary(DEMO_WORLD)) - set(captions_vocabulary(PRETRAINING_WORLD))
    mask = embeddings[processor.tokenizer.mask_token_id]
    assert len(unknown) > 50
    assert all(torch.equal(embeddings[vocabulary[word]], mask) for word in unknown)
    assert not torch.equal(embeddings[vocabulary["man"]], mask)


def test_the_shipped_log_is_of_the_shipped_arguments():
    arguments = json.loads((SHIPPED / "pretraining_arguments.json").read_text())
    last = json.loads((SHIPPED / "training_log.jsonl").read_text().splitlines()[-1])
    assert 0.9 * arguments["steps"] < last["step"] <= arguments["steps"]  # README.md there: its time was up
