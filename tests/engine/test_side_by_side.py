"""Batches side by side: their order, their threads, their errors, and the same numbers as one by one."""

import threading
import time

import pytest
import torch

from tpas.engine.encoding import EncodedTexts
from tpas.engine.fast_encoding import FastEncoder
from tpas.engine.fast_matching import FastMatcher
from tpas.engine.side_by_side import one_ahead, side_by_side
from tpas.modeling_tpas import TPASModel


@pytest.fixture
def threads():
    """A function that sets torch's number of threads until the test ends."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 9])
def test_every_batch_is_computed_once_in_order_with_all_threads(threads, count):
    threads(3)
    calls = []

    def compute(number):
        calls.append((number, torch.get_num_threads(), threading.current_thread().name))
        time.sleep(0.002 * (count - number))  # later ones are done earlier
        return 10 * number

    assert list(side_by_side(compute, range(count))) == [10 * number for number in range(count)]
    assert sorted(number for number, *_ in calls) == list(range(count))
    alone = count // 3 * 3
    for number, used, name in calls:
        assert used == (1 if number < alone else 3)
        assert name.startswith("batch") == (number < alone)
    assert torch.get_num_threads() == 3


def test_batches_run_at_the_same_time(threads):
    threads(2)
    both_are_here = threading.Barrier(2)
    assert len(list(side_by_side(lambda _: both_are_here.wait(timeout=10), range(4)))) == 4


def test_an_error_ends_the_batches_that_have_not_begun(threads):
    threads(2)
    begun = []

    def compute(number):
        begun.append(number)
        if number == 0:
            raise ValueError("pass 0 failed")
        time.sleep(0.05)

    with pytest.raises(ValueError, match="pass 0 failed"):
        list(side_by_side(compute, range(100)))
    assert len(begun) < 10
    assert torch.get_num_threads() == 2


def test_one_thread_stays_in_its_own(threads):
    threads(1)
    names = list(side_by_side(lambda _: threading.current_thread().name, range(3)))
    assert names == [threading.current_thread().name] * 3


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_one_batch_is_read_ahead_in_order(count):
    begun = []
    numbers = []
    for number in one_ahead(lambda number: begun.append(number) or number, range(count)):
        numbers.append(number)
        assert len(begun) <= number + 2
    assert numbers == list(range(count))
    with pytest.raises(ZeroDivisionError):
        list(one_ahead(lambda number: 1 // (count - number), range(count + 1)))


def test_features_and_logits_do_not_depend_on_the_threads(tiny_config, threads):
    model = TPASModel(tiny_config).eval()
    encoder, matcher = FastEncoder(model, images_per_batch=2, texts_per_batch=2), FastMatcher(model)
    pixels, input_ids = torch.randn(7, 3, 32, 32), torch.randint(64, (7, 9))
    texts = EncodedTexts(torch.randn(5, 16), torch.randn(5, 9, 32), torch.ones(5, 9, dtype=torch.long))
    tokens, shortlists = torch.randn(12, 17, 32), torch.stack([torch.randperm(12)[:8] for _ in range(5)])
    results = []
    for count in (1, 2, 3):
        threads(count)
        image, text = encoder.get_image_features(pixels), encoder.get_text_features(input_ids)
        logits = matcher.logits_of_shortlists(tokens, texts, shortlists, batch_size=4)
        results.append((image.pooler_output, image.last_hidden_state, text.pooler_output, logits))
        assert not image.pooler_output.requires_grad
    for other in results[1:]:
        assert all(torch.equal(*pair) for pair in zip(results[0], other, strict=True))


@torch.no_grad()
def test_autocast_around_the_engines_changes_nothing(tiny_config, threads):
    model = TPASModel(tiny_config).eval()
    encoder, matcher = FastEncoder(model), FastMatcher(model)
    pixels, input_ids = torch.randn(2, 3, 32, 32), torch.randint(64, (3, 9))
    texts = EncodedTexts(torch.randn(3, 16), torch.randn(3, 9, 32), torch.ones(3, 9, dtype=torch.long))

    def results() -> list[torch.Tensor]:
        shortlists = torch.arange(4).expand(3, 4)
        return [
            encoder.get_image_features(pixels).last_hidden_state,
            encoder.get_text_features(input_ids).last_hidden_state,
            matcher.logits_of_shortlists(torch.ones(4, 17, 32), texts, shortlists)[:, :, 1],
        ]

    expected = results()
    with torch.autocast("cpu"):
        assert all(torch.equal(*pair) for pair in zip(results(), expected, strict=True))
