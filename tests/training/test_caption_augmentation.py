import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpas.processing_tpas import clean_caption
from tpas.training.caption_augmentation import eda_view, random_deletion, random_swap, swap_left_right

TEXT = "A man in a red coat falls off his bicycle beside the left lane of a wide, wet street"


@pytest.mark.parametrize(
    ("caption", "mirrored"),
    [
        ("His left arm, not the right.", "His right arm, not the left."),
        ("Left RIGHT left", "Right LEFT right"),
        ("the leftmost person and the rightmost", "the rightmost person and the leftmost"),
        ("a left-handed man in the right-hand lane", "a right-handed man in the left-hand lane"),
        ("leans leftward, then rightwards", "leans rightward, then leftwards"),
        ("a righthand turn", "a lefthand turn"),
        ("left/right", "right/left"),
        ("bright upright copyright lefty", "bright upright copyright lefty"),
        ("to the left\nright foot", "to the right\nleft foot"),
        # No side: the past of "leave", "exactly", "at once".
        ("He has left the room.", "He has left the room."),
        ("a woman who left her bag", "a woman who left her bag"),
        ("Somebody left behind", "Somebody left behind"),
        ("a bag left unattended on the left", "a bag left unattended on the right"),
        ("standing right next to a car", "standing right next to a car"),
        ("All right, right now", "All right, right now"),
        # A side all the same.
        ("on the left behind a car", "on the right behind a car"),
        ("his right beside him", "his left beside him"),
        ("she has left-hand gloves", "she has right-hand gloves"),
        # Beyond the rule, and documented so.
        ("the man left the room", "the man right the room"),
        ("", ""),
    ],
)
def test_left_and_right_change_places(caption, mirrored):
    assert swap_left_right(caption) == mirrored


@given(st.lists(st.sampled_from(["a", "left", "right", "Left", "leftmost", "arm", "bright"]), max_size=12))
def test_without_doubtful_words_a_second_swap_undoes_the_first(words):
    caption = " ".join(words)
    swapped = swap_left_right(caption)
    assert swap_left_right(swapped) == caption
    other = {"left": "right", "right": "left", "Left": "Right", "leftmost": "rightmost"}
    assert swapped.split() == [other.get(word, word) for word in words]


def test_a_view_depends_on_the_generator_alone_and_has_no_new_word():
    words = Counter(TEXT.split())
    views = [eda_view(TEXT, random.Random(seed)) for seed in range(200)]
    assert views == [eda_view(TEXT, random.Random(seed)) for seed in range(200)]
    assert len(set(views)) > 100
    swapped = [view for view in views if Counter(view.split()) == words]
    assert 60 < len(swapped) < 160  # some deletions delete nothing
    assert all(Counter(view.split()) <= words for view in views)


def test_a_tenth_of_the_words_changes():
    words = [str(number) for number in range(50)]
    swaps = (random_swap(words, 5, random.Random(seed)) for seed in range(100))
    moved = [sum(a != b for a, b in zip(words, swapped, strict=True)) for swapped in swaps]
    assert max(moved) == 10  # five swaps move at most ten words
    assert min(moved) >= 5
    orders = [list(map(int, random_deletion(words, 0.1, random.Random(seed)))) for seed in range(400)]
    assert sum(map(len, orders)) / 400 == pytest.approx(45, abs=0.5)
    assert all(order == sorted(order) for order in orders)


def test_one_swap_in_a_short_caption_exchanges_two_words():
    for seed in range(20):
        swapped = random_swap(["one", "two", "three"], 1, random.Random(seed))
        assert sum(a != b for a, b in zip(swapped, ["one", "two", "three"], strict=True)) == 2


@given(
    caption=st.text(alphabet="ab1 .,-—!", min_size=1).filter(lambda text: clean_caption(text)),
    alpha=st.sampled_from([0.1, 0.9, 1.0]),
    seed=st.integers(0, 10),
)
def test_a_view_is_never_empty_not_even_once_cleaned(caption, alpha, seed):
    assert clean_caption(eda_view(caption, random.Random(seed), alpha))
