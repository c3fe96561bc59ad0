"""What makes a training step on a CPU faster, with the same arithmetic up to rounding."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch

from ..modeling_tpas import TPASModel
from ..models.interface import RetrievalModel

logger = logging.getLogger(__name__)

HIGHEST = "highest"  # torch's default precision of products of fp32 matrices
ONEDNN = "medium"  # the one at which torch leaves them to oneDNN


@contextmanager
def fast_on_cpu(network: RetrievalModel, device: torch.device) -> Iterator[None]:
    """Meanwhile a `TPASModel` on a CPU trains by the kernels that are the fastest at it.

    Attention is written out: sdpa's way back is up to ten times slower in bf16 and beside oneDNN. Products of
    fp32 matrices are oneDNN's where these are fp32 for certain: on AMD's processors MKL, torch's own choice,
    is the slower one. What else a program has set is left as it is, and so are other models and devices.
    """
    if device.type != "cpu" or not isinstance(network, TPASModel):
        yield
        return
    attention, precision = network.config._attn_implementation, torch.get_float32_matmul_precision()
    if attention == "sdpa":
        network.set_attn_implementation("eager")
    if precision == HIGHEST and onednn_keeps_fp32():
        torch.set_float32_matmul_precision(ONEDNN)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)
        if attention == "sdpa":
            network.set_attn_implementation(attention)


@cache
def onednn_keeps_fp32() -> bool:
    """Whether oneDNN multiplies fp32 matrices as such here though torch allows it bf16 at that precision.

    It takes bf16 on processors with AMX, and on some of ARM's. Beside what torch says of the processor, an
    identity matrix tells: whatever is rounded on its way in does not come out again.
    """
    if not torch.backends.mkldnn.is_available() or torch.cpu._is_amx_tile_supported():
        return False
    identity = torch.eye(256)
    rows = torch.linspace(1, 2, identity.numel()).view_as(identity)
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(ONEDNN)
    try:
        products = (rows @ identity, identity @ rows, torch.nn.functional.linear(rows, identity, rows[0] * 0))
        return all(torch.equal(product, rows) for product in products)
    finally:
        torch.set_float32_matmul_precision(precision)


def suggest_bf16(device: torch.device, mixed_precision: str) -> None:
    """Logs that `--mixed_precision bf16` would be faster, where the CPU has it and the run does without."""
    if device.type == "cpu" and mixed_precision == "no" and has_bf16():
        logger.info(
            "this processor computes in bf16 too, about twice as fast: see --mixed_precision bf16 in "
            "docs/fine_tuning.md"
        )


def has_bf16() -> bool:
    """Whether the CPU has instructions for products in bf16, which are slower than fp32's without."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
