"""What every test shares: no network, a cache of its own, one thread, fixed seeds, one tiny architecture."""

import os
import random
import shutil
import tempfile

CACHE = tempfile.mkdtemp(prefix="tpas-tests-")

# Before any library reads its environment; subprocesses that tests start inherit it.
os.environ.update(
    {
        "HF_HOME": CACHE,
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_EVALUATE_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        # Tensors are tiny here, and a forked process may hang on its parent's OpenMP threads.
        "OMP_NUM_THREADS": "1",
    }
)
for name in ("HF_HUB_CACHE", "HF_DATASETS_CACHE", "HF_MODULES_CACHE", "HF_EVALUATE_CACHE"):
    os.environ.pop(name, None)  # set by the user, they would win over HF_HOME

import numpy as np
import pytest
import torch

from tpas.configuration_tpas import TPASConfig


def pytest_unconfigure():
    shutil.rmtree(CACHE, ignore_errors=True)


@pytest.fixture(autouse=True)
def _seeds():
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def tiny_config() -> TPASConfig:
    """Two Swin stages on 32 x 32 pixels (16 tokens of width 32), one text and one cross-modal layer."""
    return TPASConfig(
        vision_config={
            "image_size": 32,
            "patch_size": 4,
            "embed_dim": 16,
            "depths": [1, 1],
            "num_heads": [1, 2],
            "window_size": 4,
        },
        text_config={
            "vocab_size": 64,
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "max_position_embeddings": 32,
        },
        num_cross_modal_layers=1,
        projection_dim=16,
        max_text_length=24,
    )
