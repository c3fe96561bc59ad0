"""Uploading a model, and loading it back, against a stand-in of the Hub's HTTP interface on this machine."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hub_stand_in import environment
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results
from safetensors.torch import load_file, save_file
from tiny_retrieval_models import cached_snapshot
from transformers import BertTokenizer

from tpas.commands import hub_upload
from tpas.commands.evaluate import main as evaluate
from tpas.commands.hub_upload import build_card
from tpas.commands.push import main
from tpas.configuration_tpas import TPASConfig
from tpas.modeling_tpas import TPASModel
from tpas.models.hub_code import HUB_CODE
from tpas.models.loading import is_on_this_machine, load_model, source_of
from tpas.models.lora import add_lora
from tpas.models.model_source import ModelSource
from tpas.processing_tpas import TPASProcessor
from tpas.training.run_folder import MODELS, save_model

WEIGHTS_AND_SETTINGS = {
    "config.json",
    "model.safetensors",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
}
FRESH_PROCESS = """
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoProcessor

repo_id, revision, pixels, output = sys.argv[1:]
settings = {"trust_remote_code": True, "revision": revision}
model = AutoModel.from_pretrained(repo_id, **settings)
processor = AutoProcessor.from_pretrained(repo_id, **settings)
inputs = processor(text=["A man is falling on a lawn.", "A woman in red walks."])
with torch.no_grad():
    answer = model(**load_file(pixels), **inputs)
save_file({"match_logits": answer.match_logits, "text_embeds": answer.text_embeds}, output)
"""


@pytest.fixture
def model_dir(start, tmp_path) -> Path:
    """A model as a training run leaves it: with its arguments above, and a file that is nobody's business."""
    directory = tmp_path / "run" / "best"
    directory.parent.mkdir()
    start.rename(directory)
    arguments = {"training_pairs": 24, "learning_rate": 3e-5, "seed": 42, "data_root": "private/place"}
    (tmp_path / "run" / "training_arguments.json").write_text(json.dumps(arguments))
    (directory / "optimizer.pt").write_bytes(b"secret")
    return directory


@pytest.fixture
def results(model_dir, small_pab, tmp_path) -> Path:
    output = tmp_path / "results.json"
    evaluate(["--model", str(model_dir), "--data_root", str(small_pab), "--output", str(output)])
    output.write_text(json.dumps(json.loads(output.read_text()) | {"dataset_name": "Drawn people"}))
    return output


def files_listed(printed: str) -> set[str]:
    """The files that a dry run would upload, each with its size."""
    return set(re.findall(r"^ +[\d,]+  (\S+)$", printed, re.MULTILINE))


def push(*arguments: object, **settings: str) -> subprocess.CompletedProcess:
    words = [sys.executable, "-m", "tpas", "push", *map(str, arguments)]
    return subprocess.run(words, env=os.environ | settings, capture_output=True, text=True, timeout=300)


def test_a_pushed_model_comes_back_where_tpas_is_not_installed(
    model_dir, results, hub, tmp_path, run_without_tpas
):
    settings = environment(hub, tmp_path)
    options = ["--private", "--revision", "trial", "--results", results]
    pushed = push(model_dir, "user/tpas", *options, **settings)
    assert pushed.returncode == 0, pushed.stderr
    assert f"{hub.endpoint}/user/tpas/commit/{'c' * 40}" in pushed.stdout
    files = hub.branches["user/tpas"].pop("trial")
    assert hub.branches["user/tpas"] == {"main": {}}
    assert hub.visibility == {"user/tpas": "private"}
    assert files.keys() == WEIGHTS_AND_SETTINGS | set(HUB_CODE) | {"README.md"}
    for name in WEIGHTS_AND_SETTINGS | set(HUB_CODE):
        assert files[name] == (model_dir / name).read_bytes()
    assert sum(request.endswith("/commit/trial") for request in hub.requests) == 1

    hub.branches["user/tpas"] = {"trial": files}
    pixels, output = tmp_path / "pixels.safetensors", tmp_path / "answer.safetensors"
    save_file({"pixel_values": torch.randn(2, 3, 32, 32)}, pixels)
    run_without_tpas(FRESH_PROCESS, "user/tpas", "trial", pixels, output, cwd=tmp_path, **settings)
    model = TPASModel.from_pretrained(model_dir)
    processor = TPASProcessor.from_pretrained(model_dir)
    inputs = processor(text=["A man is falling on a lawn.", "A woman in red walks."])
    with torch.no_grad():
        expected = model(**load_file(pixels), **inputs)
    for name, tensor in load_file(output).items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-6, rtol=0)


def test_without_a_token_nothing_is_created(model_dir, hub, tmp_path):
    refused = push(model_dir, "user/tpas", **environment(hub, tmp_path, token=""))
    assert refused.returncode == 1
    assert "401" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not hub.branches


def test_a_dry_run_lists_all_files_and_needs_no_network(model_dir, capsys):
    main([str(model_dir), "user/tpas", "--dry_run"])  # the tests' environment is offline
    printed = capsys.readouterr().out
    assert files_listed(printed) >= WEIGHTS_AND_SETTINGS | set(HUB_CODE)
    assert re.search(r"^ +stays here  optimizer\.pt$", printed, re.MULTILINE)
    assert "license: apache-2.0" in printed


def printed_card(capsys) -> ModelCard:
    """Of a dry run."""
    return ModelCard(capsys.readouterr().out.partition("\n\n---\n")[2].join(["---\n", ""]))


def test_the_card_says_what_was_measured_and_how_the_model_was_trained(model_dir, results, capsys):
    main([str(model_dir), "user/tpas", "--dry_run", "--results", str(results)])
    card = printed_card(capsys)
    written = json.loads(results.read_text())
    name, entries = model_index_to_eval_results(card.data.to_dict()["model-index"])
    assert name == "tpas"
    by_metric = {entry.metric_name: entry for entry in entries}
    assert len(by_metric) == len(entries) == 4 * len(written["stages"])
    for stage, said in (("embeddings", "embeddings"), ("sca", "SCA on the stage before")):
        entry = by_metric[f"Recall@1 ({said})"]
        assert entry.metric_value == round(100 * written["stages"][stage]["all"]["recall@1"], 2)
        assert (entry.dataset_split, entry.dataset_revision) == ("test", written["data_fingerprint"])
        assert (entry.dataset_name, entry.dataset_type) == ("Drawn people", "drawn-people")
        assert f"| {said} | {entry.metric_value:.2f} |" in card.text
    assert "Trained with `train_accelerate.py` on place, from random weights, all weights:" in card.text
    assert "| `learning_rate` | 3e-05 |" in card.text
    assert "private" not in card.text
    for part in (
        "Measured on Drawn people, test split, 12 queries, 12 images",
        "BSD-3-Clause",
        "surveillance",
    ):
        assert part in card.text
    assert card.text.index("## Results") < card.text.index("Measured on Drawn people")
    assert "<!--" not in card.text


def test_data_without_a_name_is_called_by_the_result_file(model_dir, results, capsys):
    """Earlier result files call all data PAB."""
    written = json.loads(results.read_text()) | {"data_name": "PAB"}
    del written["dataset_name"]
    results.write_text(json.dumps(written))
    main([str(model_dir), "user/tpas", "--dry_run", "--results", str(results)])
    card = printed_card(capsys)
    _, entries = model_index_to_eval_results(card.data.to_dict()["model-index"])
    assert {entry.dataset_name for entry in entries} == {"the data set of results.json"}
    assert "Measured on the data set of results.json, test split" in card.text


def test_the_card_of_a_small_model_has_its_own_numbers_and_none_of_xvlms(model_dir, capsys):
    (model_dir.parent / "training_arguments.json").unlink()
    main([str(model_dir), "user/tpas", "--dry_run"])
    card = printed_card(capsys)
    numbers = sum(tensor.numel() for tensor in load_file(model_dir / "model.safetensors").values())
    for row in (
        f"| parameters | {numbers:,} |",
        "| images | 32 x 32 pixels (height x width), encoded to 4 x 4 tokens |",
        "| image encoder | Swin, 1 + 1 layers, width 16 to 32, windows of 4 x 4 |",
        "| cross-modal encoder | 1 layers |",
        "| longest text | 24 tokens |",
    ):
        assert row in card.text
    assert "## Training\n\nNothing was said about it." in card.text
    assert "## Results\n\nNone were given." in card.text
    assert card.data.eval_results is None
    about_it = card.text.partition("## Citation")[0]
    for foreign in ("214", "384", "Swin-B", "BERT-base", "HFUT", "fine-tuned", "PAB's", "77.86", "1,978"):
        assert foreign not in about_it


def test_the_card_of_the_full_size_has_its_own_numbers(processor):
    with torch.device("meta"):
        model = TPASModel(TPASConfig())
    processor.max_text_length = 70
    arguments = {"dataset_name": "PAB", "model_name_or_path": "/somewhere/secret/xvlm", "lora_rank": 16}
    text = build_card("user/tpas", model, processor, [], arguments).text
    for part in (
        "| parameters | 213,959,547 |",
        "| images | 384 x 384 pixels (height x width), encoded to 12 x 12 tokens |",
        "| image encoder | Swin, 2 + 2 + 18 + 2 layers, width 128 to 1024, windows of 12 x 12 |",
        "| text encoder | 6 layers of width 768, 30,522 words |",
        "on PAB, from xvlm, by low-rank updates (LoRA, rank 16), merged into the weights:",
    ):
        assert part in text
    assert "secret" not in text


def test_a_tokenizer_of_another_model_is_refused(model_dir):
    config = json.loads((model_dir / "config.json").read_text())
    words = config["text_config"]["vocab_size"]
    TPASProcessor.build(
        BertTokenizer(vocab={"[UNK]": 0} | {f"word{number}": number for number in range(1, words + 3)}),
        image_size=32,
    ).save_pretrained(model_dir)
    with pytest.raises(SystemExit, match=rf"best has \d+ words, the model {words}: it belongs to another"):
        main([str(model_dir), "user/tpas", "--dry_run"])
    with pytest.raises(ValueError, match=rf"best has \d+ words, the model {words}: it belongs to another"):
        load_model(str(model_dir))


def test_results_of_another_model_are_refused(model_dir, results):
    model = TPASModel.from_pretrained(model_dir)
    torch.nn.init.zeros_(model.image_projection.bias)
    model.image_projection.bias.data += 1
    model.save_pretrained(model_dir)
    with pytest.raises(SystemExit, match=r"results\.json: measured with another model"):
        main([str(model_dir), "user/tpas", "--dry_run", "--results", str(results)])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"matcher": "vlm:some/vlm"}, "measured with vlm:some/vlm as stage 2"),
        ({"max_text_length": 9}, "measured with --max_text_length 9, but the model is uploaded with"),
        ({"image_size": 64}, "measured with --image_size 64, but the model is uploaded with 32"),
    ],
)
def test_results_that_the_uploaded_model_does_not_give_are_refused(model_dir, results, changes, message):
    results.write_text(json.dumps(json.loads(results.read_text()) | changes))
    with pytest.raises(SystemExit, match=rf"results\.json: {message}"):
        main([str(model_dir), "user/tpas", "--dry_run", "--results", str(results)])


def test_every_model_of_a_run_is_found_with_its_arguments(model_dir, capsys):
    for name in MODELS:
        model_dir = model_dir.rename(model_dir.with_name(name))
        main([str(model_dir), "user/tpas", "--dry_run"])
        assert "| `learning_rate` | 3e-05 |" in capsys.readouterr().out, name


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "not a JSON file"), ("[]", "holds no JSON object"), ("{}", "not written by")],
)
def test_what_is_no_result_is_named(model_dir, tmp_path, content, message):
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(SystemExit, match=rf"results\.json: {message}"):
        main([str(model_dir), "user/tpas", "--dry_run", "--results", str(tmp_path / "results.json")])


def test_a_directory_that_is_no_whole_model_is_refused(model_dir, tmp_path):
    with pytest.raises(SystemExit, match="no model directory, there is no config.json"):
        main([str(tmp_path), "user/tpas", "--dry_run"])
    weights = load_file(model_dir / "model.safetensors")
    del weights["text_projection.bias"]
    save_file(weights, model_dir / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SystemExit, match=r"lacks 1 weights of the model, such as text_projection\.bias"):
        main([str(model_dir), "user/tpas", "--dry_run"])


def test_an_adapter_over_what_others_do_not_have_is_refused_with_the_way_out(model_dir, tmp_path):
    settings = {"base_model_name_or_path": str(tmp_path / "start"), "modules_to_save": []}
    (model_dir / "adapter_config.json").write_text(json.dumps(settings))
    message = r"no whole model, but what goes over \S*start, .*: train with --merge and push merged/"
    with pytest.raises(SystemExit, match=message):
        main([str(model_dir), "user/tpas", "--dry_run"])


@pytest.mark.parametrize("family", ["clip", "siglip2", "blip"])
def test_a_model_of_another_library_goes_by_name_with_a_card_of_its_own(folders, family, tmp_path, capsys):
    directory = tmp_path / "run" / "best"
    shutil.copytree(folders[family], directory)
    (directory / "optimizer.pt").write_bytes(b"secret")
    arguments = {"model_name_or_path": "google/siglip2-base-patch16-224", "learning_rate": 3e-5}
    (tmp_path / "run" / "training_arguments.json").write_text(json.dumps(arguments))
    main([str(directory), "user/mine", "--dry_run", "--licence", "apache-2.0"])
    printed = capsys.readouterr().out
    assert files_listed(printed) == {path.name for path in folders[family].iterdir()}
    assert re.search(r"^ +stays here  optimizer\.pt$", printed, re.MULTILINE)
    card = ModelCard(printed.partition("\n\n---\n")[2].join(["---\n", ""]))
    assert (card.data.license, card.data.library_name) == ("apache-2.0", "transformers")
    assert card.data.base_model == arguments["model_name_or_path"]
    model, _ = load_model(str(directory))
    network = type(model.network).__name__
    for part in (
        "# mine\n",
        f"| network | `{network}` |",
        f"| embeddings | {32 if family == 'siglip2' else 16} numbers |",
        "| stage 2 | its matching head |" if family == "blip" else "| stage 2 | none: embeddings alone |",
        "--model user/mine",
        f'transformers.{network}.from_pretrained("user/mine")',
        "Trained with `train_accelerate.py`, from google/siglip2-base-patch16-224, all weights:",
        "Disability, illness, play",
    ):
        assert part in card.text
    for foreign in ("<!--", "Swin", "X-VLM", "trust_remote_code", "BERT"):
        assert foreign not in card.text
    main([str(directory), "user/mine", "--dry_run"])
    assert "license: other" in capsys.readouterr().out
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "mine.Model"}}))
    with pytest.raises(SystemExit, match="code of its own, .* read: `hf upload` takes it"):
        main([str(directory), "user/mine", "--dry_run"])


@pytest.mark.filterwarnings("ignore:Could not find a config file:UserWarning")  # peft asks the Hub for it
def test_an_adapter_of_another_model_goes_alone_and_is_loaded_from_the_hub(folders, tmp_path, capsys):
    base, commit = "somebody/clip_of_adapters", "b" * 40
    shutil.copytree(folders["clip"], cached_snapshot(base, "a" * 40, latest=True), dirs_exist_ok=True)
    model, processor = load_model(base)
    adapted = add_lora(model, rank=2, alpha=4, dropout=0.0, revision="a" * 40)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    adapter = tmp_path / "adapter"
    save_model(adapted, processor, adapter)
    main([str(adapter), "user/adapter", "--dry_run"])
    printed = capsys.readouterr().out
    files = files_listed(printed)
    assert files >= {"adapter_config.json", "adapter_model.safetensors", "base_model.json"}
    assert "model.safetensors" not in files
    assert f"an adapter of peft, which tpas fetches and merges into {base}." in printed
    assert f"base_model: {base}" in printed

    uploaded = cached_snapshot("user/adapter", commit, latest=True)
    for name in files:
        shutil.copy(adapter / name, uploaded)
    inputs = processor(text=["a man in red", "a woman"])
    here, _ = load_model(str(adapter))
    there, _ = load_model("user/adapter")
    with torch.no_grad():
        expected = here.get_text_features(**inputs).pooler_output
        torch.testing.assert_close(there.get_text_features(**inputs).pooler_output, expected)
        before = load_model(base)[0].get_text_features(**inputs).pooler_output
    assert (before - expected).abs().max() > 1e-3
    assert source_of(there) == ModelSource("user/adapter", commit)
    assert is_on_this_machine(ModelSource("user/adapter", commit))
    assert not is_on_this_machine(ModelSource("user/adapter", "c" * 40))


def test_a_wrong_name_is_refused_before_anything_is_sent(model_dir):
    with pytest.raises(SystemExit, match="tpas push: .*a/b/c"):
        main([str(model_dir), "a/b/c", "--dry_run"])


def test_code_that_the_directory_lacks_is_taken_from_here(model_dir, capsys):
    for name in HUB_CODE:
        (model_dir / name).unlink()
    main([str(model_dir), "user/tpas", "--dry_run"])
    assert files_listed(capsys.readouterr().out) >= set(HUB_CODE)


def test_code_of_an_older_version_goes_whole(model_dir, capsys):
    """In however many files it was divided when the model was saved."""
    code = (model_dir / "objectives.py").read_text()
    (model_dir / "losses.py").write_text(code)
    (model_dir / "objectives.py").write_text("from .losses import *\n")
    main([str(model_dir), "user/tpas", "--dry_run"])
    assert files_listed(capsys.readouterr().out) >= {*HUB_CODE, "losses.py"}


def test_what_the_model_needs_goes_by_its_name_and_code_of_its_own_is_shown(model_dir, capsys):
    (model_dir / "tokenizer_secret.json").write_text("{}")
    (model_dir / "other.safetensors").touch()
    main([str(model_dir), "user/tpas", "--dry_run"])
    printed = capsys.readouterr()
    assert files_listed(printed.out) == WEIGHTS_AND_SETTINGS | set(HUB_CODE)
    assert "warning" not in printed.err
    changed = model_dir / "objectives.py"
    changed.write_text(changed.read_text() + "import os\n")
    main([str(model_dir), "user/tpas", "--dry_run"])
    ours = Path(hub_upload.__file__).parents[1] / "objectives.py"
    assert f"{changed} is not this package's: see diff {ours} {changed}" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["vocab.txt", "objectives.py"])
def test_a_link_out_of_the_folder_is_refused(model_dir, tmp_path, name):
    secret = tmp_path / "secret"
    secret.write_text("word\n")
    (model_dir / name).unlink(missing_ok=True)
    (model_dir / name).symlink_to(secret)
    with pytest.raises(SystemExit, match=f"{name} is a link to {secret}, out of the folder"):
        main([str(model_dir), "user/tpas", "--dry_run"])
