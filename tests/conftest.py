"""What every test shares: no network, a cache of its own, one thread, fixed seeds, one tiny architecture."""

import contextlib
import gc
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import warnings
from pathlib import Path

CACHE = tempfile.mkdtemp(prefix="tpas-tests-")

# Before any library reads its environment; subprocesses that tests start inherit it.
os.environ |= {
    "HF_HOME": CACHE,
    **dict.fromkeys(("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_EVALUATE_OFFLINE"), "1"),
    "TOKENIZERS_PARALLELISM": "false",
    # Tensors are tiny here, and a forked process may hang on its parent's OpenMP threads.
    "OMP_NUM_THREADS": "1",
}
for name in ("HF_HUB_CACHE", "HF_DATASETS_CACHE", "HF_MODULES_CACHE", "HF_EVALUATE_CACHE"):
    os.environ.pop(name, None)  # set by the user, they would win over HF_HOME

import numpy as np
import pytest
import torch
from accelerate.commands.launch import launch_command_parser
from hub_stand_in import StandIn
from hypothesis import HealthCheck, settings
from PIL import Image
from tiny_inputs import noise_image, tiny_processor
from tiny_retrieval_models import FAMILIES, save_tiny
from training_runs import reset_accelerator
from transformers import BertTokenizer

from tpas import train_accelerate
from tpas.__main__ import main as tpas_command
from tpas.commands.demo import ACCELERATE_LAUNCH, TPAS, DemoError
from tpas.configuration_tpas import TPASConfig
from tpas.data.drawn.synthetic_pab import DEMO_WORLD, captions_vocabulary, draw_pab
from tpas.modeling_tpas import TPASModel
from tpas.processing_tpas import TPASProcessor

# The beginning of a program that must do without this package, as where it is not installed.
BLOCK_TPAS = """
import sys
from importlib.abc import MetaPathFinder

class Blocked(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "tpas":
            raise ModuleNotFoundError(f"{name} is blocked here")

sys.meta_path.insert(0, Blocked())
"""


# Random instances are the same in every run, and however slow the machine.
settings.register_profile(
    "tpas", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("tpas")


def pytest_unconfigure():
    shutil.rmtree(CACHE, ignore_errors=True)


@pytest.fixture(autouse=True)
def _seeds():
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def pages_loops():
    """Building and leaving pages leaves Gradio's event loops open: they are collected here, unremarked."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gc.collect()


@pytest.fixture
def tiny_config() -> TPASConfig:
    """Two Swin stages on 32 x 32 pixels (16 tokens of width 32), one text and one cross-modal layer."""
    vision = {"image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [1, 1], "num_heads": [1, 2]}
    text = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = TPASConfig(
        vision_config=vision | {"window_size": 4},
        text_config=text | {"intermediate_size": 64, "max_position_embeddings": 32},
        **{"num_cross_modal_layers": 1, "projection_dim": 16, "max_text_length": 24},
    )
    assert config.text_config.hidden_dropout_prob == config.vision_config.drop_path_rate == 0.1
    return config


@pytest.fixture
def without_dropout(tiny_config) -> TPASConfig:
    """`tiny_config` without it and stochastic depth, so that runs on other processes can be compared."""
    tiny_config.text_config.hidden_dropout_prob = tiny_config.text_config.attention_probs_dropout_prob = 0.0
    tiny_config.vision_config.drop_path_rate = 0.0
    return tiny_config


@pytest.fixture
def model(tiny_config) -> TPASModel:
    return TPASModel(tiny_config).eval()


@pytest.fixture
def processor(tiny_config) -> TPASProcessor:
    return tiny_processor(tiny_config)


@pytest.fixture
def images() -> list[Image.Image]:
    return [noise_image(seed) for seed in range(7)]


@pytest.fixture(scope="session")
def small_pab(tmp_path_factory) -> Path:
    """The root of 24 training and 12 test pairs, not to be changed."""
    folder = tmp_path_factory.mktemp("drawn") / "pab"
    return draw_pab(folder, train_pairs=24, test_pairs=12, image_size=48, workers=1)


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> dict[str, Path]:
    """By the names of `FAMILIES` saved models with their processors, not to be changed."""
    root = tmp_path_factory.mktemp("models")
    return {family: save_tiny(family, root / family) for family in FAMILIES}


@pytest.fixture
def hub():
    server = StandIn()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def start(tiny_config, tmp_path) -> Path:
    """A saved model of `tiny_config`, with the demo's words."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *captions_vocabulary(DEMO_WORLD)]
    tiny_config.text_config.vocab_size = len(words)
    TPASModel(tiny_config).save_pretrained(tmp_path / "start")
    tokenizer = BertTokenizer(vocab={word: index for index, word in enumerate(words)})
    TPASProcessor.build(tokenizer, image_size=32, max_text_length=24).save_pretrained(tmp_path / "start")
    return tmp_path / "start"


@pytest.fixture
def fresh_accelerator():
    """Lets a test begin as a process does that has no accelerator yet; yields a function for more of that."""
    reset_accelerator()
    yield reset_accelerator
    reset_accelerator()


@pytest.fixture
def run_here():
    """In place of `demo.run_logged`: the same command line in this process, to spare the imports."""

    def run(command, folder, name, meanwhile=None, offline=True):
        words = [str(word) for word in command]
        if command[:3] == ACCELERATE_LAUNCH:
            launched = launch_command_parser().parse_args(words[3:])
            assert os.path.isfile(launched.training_script)
            main, arguments = train_accelerate.main, launched.training_script_args
        else:
            assert command[:3] == TPAS
            main, arguments = tpas_command, words[3:]
        (folder / "logs").mkdir(exist_ok=True)
        try:
            with contextlib.chdir(folder):
                main(arguments)
        except (SystemExit, ValueError) as error:
            raise DemoError(str(error)) from error
        if meanwhile:
            meanwhile()

    return run


@pytest.fixture
def run_without_tpas():
    """A function that runs a program, with arguments, in a process that cannot import this package."""

    def run(program: str, *arguments: object, cwd: Path, **environment: str) -> None:
        command = [sys.executable, "-c", BLOCK_TPAS + program, *map(str, arguments)]
        settings = {"cwd": cwd, "env": os.environ | environment, "timeout": 600}
        process = subprocess.run(command, capture_output=True, text=True, **settings)
        assert process.returncode == 0, process.stderr

    return run
