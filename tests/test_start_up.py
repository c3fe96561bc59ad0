"""What a command imports before it does anything: help and refusals answer without torch."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tpas import TPASModel, TPASProcessor
from tpas.__main__ import COMMANDS
from tpas.search.gallery import Gallery

MODEL = Path(__file__).parents[1] / "demo_start"
HEAVY = {"torch", "transformers", "accelerate", "datasets", "matplotlib", "pandas", "peft"}
# What a search has no use for, be it that transformers imports it for others.
NOT_FOR_A_SEARCH = {
    "torch._dynamo",
    "torch._inductor",
    "torch.distributed.tensor",
    "sympy",
    "scipy.optimize",
    "datasets",
    "evaluate",
    "faiss",
    "gradio",
    "matplotlib",
    "pandas",
    "peft",
    "pyarrow",
    "sklearn",
}
RUN_ALL = """
import json, sys
from tpas.__main__ import main

ended = []
for words in json.loads(sys.argv[1]):
    try:
        main(words)
        code = 0
    except SystemExit as end:
        code = end.code
    ended.append([words, code, sorted(set(json.loads(sys.argv[2])) & set(sys.modules))])
print(json.dumps(ended), file=sys.stderr)
"""
# After a quick import: has transformers all its names, and does what was put off work when it is called?
ASK_FOR_THE_REST = """
import json, sys
from importlib import import_module, reload
from pathlib import Path

from tpas.commands.quick_imports import quick_imports

with quick_imports():
    import tpas.search.gallery

import torch, transformers
from transformers.loss import loss_for_object_detection
from transformers.masking_utils import TransformGetItemToIndex

put_off = [name for name in ("torch._dynamo", "scipy.optimize") if name not in sys.modules]
shown = set(dir(transformers))
structure = reload(import_module("transformers.utils.import_utils")).define_import_structure(
    Path(transformers.__file__).parent / "models", prefix="models"
)
names = set().union(*(own for files in structure.values() for own in files.values()))
assigned = loss_for_object_detection.linear_sum_assignment([[2, 1], [1, 3]])
tensors = torch.distributed.tensor.DTensor.__name__  # as peft asks, which imports no such module
with TransformGetItemToIndex():
    compiler = torch._dynamo.is_compiling()
print(json.dumps([put_off, len(names), sorted(names - shown), [own.tolist() for own in assigned]]))
print(json.dumps([tensors, compiler, hasattr(torch.distributed, "nothing")]))
"""


def run_all(commands: list[list[str]], watched: set[str]) -> list[tuple[list[str], int | str, list[str]]]:
    """Runs commands in turn in a fresh process: the words of each, its exit code, and what is loaded then."""
    words = [sys.executable, "-c", RUN_ALL, json.dumps(commands), json.dumps(sorted(watched))]
    ended = subprocess.run(words, capture_output=True, text=True, check=True)
    return json.loads(ended.stderr.splitlines()[-1])


@pytest.fixture(scope="module")
def gallery(small_pab, tmp_path_factory) -> Path:
    model, processor = TPASModel.from_pretrained(MODEL), TPASProcessor.from_pretrained(MODEL)
    path = tmp_path_factory.mktemp("start_up") / "gallery"
    return Gallery.build(model, processor, small_pab / "test" / "imgs", path).path


def test_help_and_wrong_flags_load_no_torch():
    words = [[], ["--help"], ["--version"], ["--wrong"], ["wrong"]]
    words += [[name, flag] for name in COMMANDS for flag in ("--help", "--wrong")]
    for command, code, loaded in run_all(words, HEAVY):
        assert (code, loaded) == (2 if "wrong" in " ".join(command) else 0, []), command


def test_wrong_values_load_no_torch():
    words = [
        "demo --seed one",
        "convert model.th out --image_size large",
        "train --data_root PAB --batch_size few",
        "evaluate --model m --data_root PAB --shortlist few",
        "gallery build images --model m --path g --tokens float8",
        "gallery build images --model m --path g --shard_size 0",
        "gallery append images --model m --path g --batch_size 0",
        "gallery index g --index exakt",
        "gallery index g --index faiss --texts texts.txt",
        "gallery info nowhere",
        "search . text --model m --top_k 0",
        "search . text --model m --index exakt",
        "search . text --model m --cascade --bf16",
        "search . text --model m --images_root elsewhere",
        "search nowhere text --model m",
        "search . text --model m --open",
        "watch . text --model m --path g",
        "watch . text --model m --path g --reference nowhere",
        "watch . text --model m --path g --reference . --quiet noon",
        "watch . text --model m --path g --reference . --webhook ftp://host",
        "app --gallery g --model m --port 0",
        "serve nowhere",
        "serve . --tls_key key.pem",
        "serve . --host 0.0.0.0",
        "serve . --keys nowhere.json",
        "serve key add two/words --keys keys.json",
        "audit verify nowhere.jsonl",
        "compare a.json b.json --stage nothing",
        "compare a.json b.json --stage sca sca sca",
        "evaluate --model m --data_root PAB --validation_fraction 0.1",
        "evaluate --model m --data_root PAB --output .",
        "search . text --model m --sheet a.bmp",
        "train --model_name_or_path m --data_root PAB --output_dir out --batch_size 0",
        "report a.json --plot a.bmp",
        "report a.json --group (",
        "report a.json b.json",
        "compare a.npz b.npz",
        "evaluate --data_root PAB",
        "evaluate --scores a.npz --model m --data_root PAB",
        "evaluate --scores a.npz --data_root PAB --shortlist 3",
        "submit test_set --output answer.txt",
        "submit test_set --validate answer.txt --model m",
        "rerank scores.npz --method nothing --output out.npz",
        "fuse a.npz b.npz --output out.npz",
        "draw folder --train_pairs 1",
        "push m",
    ]
    for command, code, loaded in run_all([line.split() for line in words], HEAVY):
        assert code != 0, command
        assert loaded == [], command


def test_gallery_info_loads_no_torch(gallery):
    for command, code, loaded in run_all([["gallery", "info", str(gallery), "--verify"]], HEAVY):
        assert (code, loaded) == (0, []), command


def test_a_search_loads_only_what_it_needs(gallery):
    words = ["search", str(gallery), "A man falls.", "--model", str(MODEL)]
    ((_, code, loaded),) = run_all([words], NOT_FOR_A_SEARCH | {"torch"})
    assert (code, loaded) == (0, ["torch"])


def test_what_a_search_does_not_load_is_there_when_asked_for():
    ended = subprocess.run(
        [sys.executable, "-c", ASK_FOR_THE_REST], capture_output=True, text=True, check=True
    )
    put_off, names, lacking, assigned = json.loads(ended.stdout.splitlines()[0])
    assert put_off == ["torch._dynamo", "scipy.optimize"]
    assert names > 1000
    assert lacking == []
    assert assigned == [[0, 1], [1, 0]]  # the cheapest: 1 and 1
    assert json.loads(ended.stdout.splitlines()[1]) == ["DTensor", False, False]
