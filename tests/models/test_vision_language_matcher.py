"""A vision-language model as stage 2: real classes, at toy size, with random weights."""

import json
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator, debug_launcher
from accelerate.state import AcceleratorState
from safetensors.torch import load_file, save_file
from tiny_retrieval_models import SIZE, cached_snapshot, needs, noise_images, save_tiny
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from tpas.commands.evaluate import main as evaluate_main
from tpas.data.drawn.synthetic_pab import DEMO_WORLD, captions_vocabulary
from tpas.evaluation.ranking import rank_gallery
from tpas.models.loading import load_matcher, load_model
from tpas.models.vision_language_matcher import QUESTION

pytestmark = pytest.mark.usefixtures("fresh_accelerator")
CPU = torch.device("cpu")
CAPTIONS = ["a man in a red coat is running", "a woman is lying on the grass", "a woman in a blue shirt"]
IMAGES = 18
QWEN_WORDS = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"]
QWEN_WORDS += ["<|image_pad|>", "<|video_pad|>"]
QWEN_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}"
    "{% endif %}{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% endif %}"
)
LLAVA_TEMPLATE = (
    "{% for message in messages %}USER: {% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "<image>\n{% else %}{{ part['text'] }}{% endif %}{% endfor %} {% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def word_tokenizer(special: list[str]) -> PreTrainedTokenizerFast:
    split = pre_tokenizers.Whitespace()
    asked = [word for word, _ in split.pre_tokenize_str(QUESTION.format(caption="") + " USER ASSISTANT")]
    words = dict.fromkeys(["<pad>", "<unk>", *special, "yes", "no", "Yes", "No", *asked])
    words |= dict.fromkeys(captions_vocabulary(DEMO_WORLD))
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, "<unk>"))
    tokenizer.pre_tokenizer = split
    settings = {"pad_token": "<pad>", "unk_token": "<unk>", "additional_special_tokens": special}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=512, **settings)


def save_llava(folder: Path) -> Path:
    tokenizer = word_tokenizer(["<image>"])
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(image_size=32, patch_size=8, projection_dim=16, **SIZE),
        text_config=LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=512, **SIZE),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    images = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    tokens = {"vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    processor = LlavaProcessor(images, tokenizer, patch_size=8, chat_template=LLAVA_TEMPLATE, **tokens)
    return save(LlavaForConditionalGeneration(config), processor, folder)


def save_qwen(folder: Path) -> Path:
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessorPil,
        Qwen2VLVideoProcessor,
    )

    tokenizer = word_tokenizer(QWEN_WORDS)
    rope = {"type": "mrope", "mrope_section": [2, 1, 1]}
    positions = {"max_position_embeddings": 512, "rope_scaling": rope}
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 4, "patch_size": 4}
    names = {"image_token_id": "image_pad", "video_token_id": "video_pad"}
    names |= {"vision_start_token_id": "vision_start", "vision_end_token_id": "vision_end"}
    config = Qwen2_5_VLConfig(
        text_config=SIZE | {"vocab_size": len(tokenizer), "num_key_value_heads": 2} | positions,
        vision_config=vision | {"out_hidden_size": 32, "window_size": 16, "fullatt_block_indexes": [1]},
        **{name: tokenizer.convert_tokens_to_ids(f"<|{word}|>") for name, word in names.items()},
    )
    images = Qwen2VLImageProcessorPil(patch_size=4, merge_size=2, min_pixels=256, max_pixels=1024)
    videos = Qwen2VLVideoProcessor(patch_size=4, merge_size=2)
    processor = Qwen2_5_VLProcessor(images, tokenizer, videos, chat_template=QWEN_TEMPLATE)
    return save(Qwen2_5_VLForConditionalGeneration(config), processor, folder)


def save(model: torch.nn.Module, processor, folder: Path) -> Path:
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and "embed" not in name:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["llava", pytest.param("qwen", marks=needs("torchvision"))])
def vlm(request, tmp_path_factory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("vlm") / request.param
    return save_llava(folder) if request.param == "llava" else save_qwen(folder)


def test_the_score_is_how_much_surer_yes_is_than_no(vlm):
    matcher = load_matcher(f"vlm:{vlm}", CPU)
    scores = matcher.match_images(noise_images(3), CAPTIONS)
    model, processor = (AutoModelForImageTextToText.from_pretrained(vlm), AutoProcessor.from_pretrained(vlm))
    for image, caption, score in zip(noise_images(3), CAPTIONS, scores, strict=True):
        inputs = processor(images=[[image]], text=[matcher.prompt(caption)], return_tensors="pt")
        with torch.no_grad():
            chances = model(**inputs).logits[0, -1].softmax(dim=0)
        known = processor.tokenizer.convert_tokens_to_ids
        yes, no = (chances[known(words)].sum() for words in (["yes", "Yes"], ["no", "No"]))
        assert score.item() == pytest.approx((yes.log() - no.log()).item(), abs=1e-4)
    assert scores.std() > 1e-3
    assert CAPTIONS[0] in matcher.prompt(CAPTIONS[0])


def match(clip: Path, vlm: Path, **settings):
    model, processor = load_model(str(clip))
    ids = [f"image {column:02}" for column in range(IMAGES)]
    matcher = {"matcher": load_matcher(f"vlm:{vlm}", CPU), "matcher_shortlist": 5}
    inputs = (model, processor, CAPTIONS, ["b", "a", "c"], noise_images(IMAGES), ids)
    return rank_gallery(*inputs, shortlist=8, **matcher, **settings)


def test_it_reorders_the_first_few_of_any_model(vlm, tmp_path):
    clip = save_tiny("clip", tmp_path / "clip")
    settings = {"watched": [list(range(IMAGES))] * 3, "fusion_weight": 0.5}
    ranked = match(clip, vlm, **settings)
    assert list(ranked.indices) == ["embeddings", "embeddings_sca", "matching", "fused", "sca"]
    assert ranked.indices["matching"].shape == (3, 5)
    first, second = ranked.indices["embeddings"], ranked.indices["matching"]
    assert torch.equal(first[:, :5].sort(dim=1).values, second.sort(dim=1).values)
    assert not torch.equal(first[:, :5], second)
    for row in range(3):  # beyond its few, the embeddings' order
        ranks = ranked.watched_ranks["matching"][row]
        assert sorted(ranks) == list(range(1, IMAGES + 1))
        assert [ranks[column] for column in first[row, 5:].tolist()] == [6, 7, 8]
    other = match(clip, vlm, batch_size=1, token_memory=0, **settings)
    assert torch.equal(other.scores["matching"], ranked.scores["matching"])


@pytest.mark.parametrize(
    ("word", "read"), [("<image>", "< image>"), ("<pad>", "< pad>"), ("<<image>image>", "<< image>image>")]
)
def test_a_caption_with_the_models_own_words_is_read_as_text(tmp_path, word, read):
    torch.manual_seed(0)
    matcher = load_matcher(f"vlm:{save_llava(tmp_path / 'llava')}", CPU)
    captions = [CAPTIONS[0], f"a man {word} in a red coat", CAPTIONS[1]]
    scores = matcher.match_images(noise_images(3), captions)
    assert scores.isfinite().all()
    alone = matcher.match_images(noise_images(1), captions[:1])
    torch.testing.assert_close(scores[:1], alone, atol=1e-4, rtol=0)  # the other two as without it
    prompt = matcher.prompt(captions[1])
    assert f"a man {read} in a red coat" in prompt
    assert prompt.count("<image>") == 1  # the image's own


def match_on_two_processes(output: Path, clip: Path, vlm: Path) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator()
    assert accelerator.num_processes == 2
    ranked = match(clip, vlm, accelerator=accelerator)
    torch.save(ranked.scores["matching"], output / f"{accelerator.process_index}.pt")


def test_two_processes_match_to_the_bits_of_one(tmp_path):
    torch.manual_seed(0)
    clip, llava = save_tiny("clip", tmp_path / "clip"), save_llava(tmp_path / "llava")
    debug_launcher(match_on_two_processes, (tmp_path, clip, llava), num_processes=2)
    expected = match(clip, llava).scores["matching"]
    for process in range(2):
        assert torch.equal(torch.load(tmp_path / f"{process}.pt", weights_only=True), expected)


@pytest.mark.filterwarnings("ignore:.*queries share .* candidate images")  # as those of random weights do
def test_the_command_takes_a_matcher(vlm, start, small_pab, tmp_path):
    output = tmp_path / "results.json"
    arguments = ["--model", str(start), "--data_root", str(small_pab), "--output", str(output)]
    evaluate_main([*arguments, "--matcher", f"vlm:{vlm}", "--matcher_shortlist", "3"])
    results = json.loads(output.read_text())
    assert (results["matcher"], results["final_stage"]) == (f"vlm:{vlm}", "matching")
    ranks = results["outcomes"]["relevant_ranks"]
    top_3 = {stage: sum(rank <= 3 for query in ranks[stage] for rank in query) for stage in ranks}
    assert top_3["embeddings"] == top_3["matching"]  # it only reorders them
    evaluate_main([*arguments, "--matcher", f"vlm:{vlm}", "--matcher_shortlist", "1000"])
    whole = json.loads(output.read_text())  # the gallery's 12, which is no more than the shortlist
    evaluate_main([*arguments, "--matcher", f"vlm:{vlm}", "--matcher_shortlist", "12", "--shortlist", "500"])
    assert json.loads(output.read_text())["outcomes"] == whole["outcomes"]
    assert whole["shortlist"] == whole["gallery"] == 12


def test_what_cannot_be_asked_is_refused_in_one_line(start, small_pab, tmp_path):
    def refusal(*more: str) -> str:
        with pytest.raises(SystemExit) as stopped:
            evaluate_main(["--model", str(start), "--data_root", str(small_pab), *more])
        assert "\n" not in str(stopped.value)
        return str(stopped.value)

    clip = save_tiny("clip", tmp_path / "clip")
    assert "--matcher_shortlist 3 has no effect without --matcher" in refusal("--matcher_shortlist", "3")
    assert "give vlm:NAME" in refusal("--matcher", str(clip))
    message = "is no vision-language model: transformers has none of type clip"
    assert message in refusal("--matcher", f"vlm:{clip}")
    silent = save_llava(tmp_path / "silent")
    (silent / "chat_template.jinja").unlink()
    assert "has no chat template" in refusal("--matcher", f"vlm:{silent}")
    message = refusal("--matcher", f"vlm:{save_llava(tmp_path / 'llava')}", "--matcher_shortlist", "0")
    assert "the matcher's shortlist must be between 1 and the shortlist's 12 images, got 0" in message


def test_a_commit_is_asked_for_by_its_name():
    """Of a repository with code of its own."""
    commit, latest = "0123456789" * 4, "f" * 40
    folders = [cached_snapshot("some/vlm", name, latest=name == latest) for name in (commit, latest)]
    for folder in map(save_llava, folders):
        config = json.loads((folder / "config.json").read_text())
        own = {"AutoModelForImageTextToText": "mine.LlavaForConditionalGeneration"}
        (folder / "config.json").write_text(json.dumps(config | {"auto_map": own}))
        code = "from transformers import LlavaForConditionalGeneration as Theirs\n"
        (folder / "mine.py").write_text(f"{code}class LlavaForConditionalGeneration(Theirs):\n    pass\n")
        weights = load_file(folder / "model.safetensors")  # an old name, which is known for theirs alone
        weights["lm_head.weight"] = weights.pop("language_model.lm_head.weight")
        save_file(weights, folder / "model.safetensors", {"format": "pt"})

    with pytest.raises(ValueError, match="pin what you have read with --matcher vlm:some/vlm@COMMIT"):
        load_matcher("vlm:some/vlm", CPU, trust_remote_code=True)
    pinned = load_matcher(f"vlm:some/vlm@{commit}", CPU, trust_remote_code=True)
    (folder / "config.json").write_text(json.dumps(config))  # the latest has no code any more
    unpinned = load_matcher("vlm:some/vlm", CPU)
    for matcher, folder, has_code in zip((pinned, unpinned), folders, (True, False), strict=True):
        model = LlavaForConditionalGeneration.from_pretrained(folder)
        assert isinstance(matcher.model, LlavaForConditionalGeneration)
        assert (type(matcher.model) is not LlavaForConditionalGeneration) == has_code
        theirs, ours = (own.model.multi_modal_projector.linear_1.weight for own in (model, matcher.model))
        assert torch.equal(theirs, ours)


def test_a_tokenizer_without_padding_can_be_asked(tmp_path):
    folder = save_llava(tmp_path / "llava")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["eos_token"] = config.pop("pad_token")
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    matcher = load_matcher(f"vlm:{folder}", CPU)
    together = matcher.match_images(noise_images(3), CAPTIONS)
    pairs = zip(noise_images(3), CAPTIONS, strict=True)
    alone = [matcher.match_images([image], [caption]) for image, caption in pairs]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-4, rtol=0)
