"""What training does on a CPU for speed: other kernels, the same numbers up to fp32's rounding."""

import logging

import pytest
import torch
import torch.nn.functional as F

from tpas.modeling_tpas import TPASModel
from tpas.models.lora import add_lora
from tpas.training.objective import FineTuningObjective
from tpas.training.on_cpu import fast_on_cpu, has_bf16, onednn_keeps_fp32, suggest_bf16
from tpas.training.optimizer import LearningRates, build_optimizer

CPU = torch.device("cpu")
PAIRS = 6


@pytest.fixture
def trained(without_dropout) -> TPASModel:
    torch.manual_seed(0)
    return TPASModel(without_dropout).train()


def batch_of(pairs: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "pixel_values": torch.randn(pairs, 3, 32, 32, generator=generator),
        "input_ids": torch.randint(5, 64, (pairs, 12), generator=generator),
        "attention_mask": (torch.arange(12) < torch.arange(pairs)[:, None] + 4).long(),
        "image_ids": torch.arange(pairs),
    }


def test_a_step_has_the_same_loss_and_gradients(trained):
    def step() -> list[torch.Tensor]:
        torch.manual_seed(2)
        trained.zero_grad()
        loss = FineTuningObjective(trained)(**batch_of(PAIRS))["loss"]
        loss.backward()
        return [loss.detach(), *(parameter.grad.clone() for parameter in trained.parameters())]

    plain = step()
    before = trained.config._attn_implementation, torch.get_float32_matmul_precision()
    assert before == ("sdpa", "highest")
    with fast_on_cpu(trained, CPU):
        assert trained.config._attn_implementation == "eager"
        assert (torch.get_float32_matmul_precision() == "medium") == onednn_keeps_fp32()
        fast = step()
    assert (trained.config._attn_implementation, torch.get_float32_matmul_precision()) == before
    for one, other in zip(plain, fast, strict=True):
        torch.testing.assert_close(other, one, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("rows", "width", "out"), [(96, 512, 256), (300, 128, 512), (64, 1024, 64), (36, 80, 320)]
)
def test_products_stay_fp32(trained, rows, width, out):
    """They keep the error bound of sums in fp32, which products of bf16 exceed by far."""
    torch.manual_seed(0)
    x, weight, gradient = torch.randn(rows, width), torch.randn(out, width), torch.randn(rows, out)
    products = ((x, weight.t()), (gradient, weight), (gradient.t(), x))  # forward, and both ways back
    with fast_on_cpu(trained, CPU):
        found = [F.linear(x, weight), *(one @ other for one, other in products[1:])]
    for (one, other), product in zip(products, found, strict=True):
        exact = one.double() @ other.double()
        bound = one.shape[1] * 2.0**-24 * (one.double().abs() @ other.double().abs())
        assert bool(((product - exact).abs() <= bound).all())
        rounded = one.bfloat16().double() @ other.bfloat16().double()
        assert bool(((rounded - exact).abs() > bound).any())


def test_settings_of_a_program_are_left_alone(trained):
    trained.set_attn_implementation("eager")
    torch.set_float32_matmul_precision("high")
    try:
        with fast_on_cpu(trained, CPU):
            assert torch.get_float32_matmul_precision() == "high"
        assert trained.config._attn_implementation == "eager"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_a_pass_over_the_memory_is_adamw_and_an_earlier_run_keeps_its_own(trained, tiny_config):
    settings = {"config": tiny_config, "weight_decay": 0.01, "betas": (0.9, 0.98), "epsilon": 1e-8}
    runs = {}
    for fused in (None, True):
        model = TPASModel(tiny_config)
        model.load_state_dict(trained.state_dict())
        optimizer = build_optimizer(model, LearningRates(0.1), new_parameters=set(), fused=fused, **settings)
        for seed in (3, 4):
            torch.manual_seed(seed)
            for parameter in model.parameters():
                parameter.grad = torch.randn_like(parameter)
            optimizer.step()
        runs[fused] = model, optimizer
    pairs = zip(*(model.parameters() for model, _ in runs.values()), strict=True)
    for plain, fused in pairs:
        torch.testing.assert_close(fused, plain, atol=1e-6, rtol=1e-5)
    new = runs[True][1]
    new.load_state_dict(runs[None][1].state_dict())
    assert {group["fused"] for group in new.param_groups} == {None}


def test_an_adapter_of_the_last_part_leaves_the_frozen_encoders_without_a_graph(trained):
    adapted = add_lora(trained, 2, 4.0, 0.0, targets=r"cross_modal_encoder.*\.(query|value)").train()
    objective, batch = FineTuningObjective(adapted), batch_of(PAIRS)
    _, images = objective.encode_images(pixel_values=batch["pixel_values"])
    _, texts = objective.encode_texts(batch["input_ids"], batch["attention_mask"])
    assert not images.requires_grad
    assert not texts.requires_grad
    assert objective(**batch)["loss"].requires_grad


def test_bf16_is_suggested_where_the_processor_has_it(caplog):
    with caplog.at_level(logging.INFO, logger="tpas.training.on_cpu"):
        suggest_bf16(CPU, "bf16")
        suggest_bf16(torch.device("cuda"), "no")
        assert not caplog.messages
        suggest_bf16(CPU, "no")
    assert any("--mixed_precision bf16" in message for message in caplog.messages) == has_bf16()
