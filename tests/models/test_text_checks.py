"""Which words of a text a model reads, knows, and cuts off."""

import pytest
from transformers import BertTokenizer

from tpas.models.text_checks import words_of
from tpas.processing_tpas import TPASProcessor

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "man", "run", "##ning", "red", "coat"]


@pytest.mark.parametrize(
    ("text", "read", "unknown", "cut"),
    [
        ("A man, running", ["a", "man", "running"], [], []),
        ("A man 😀 in a red-coat", ["a", "man", "😀", "in", "a", "red", "coat"], ["😀", "in"], []),
        ("一个男人", ["一个男人"], ["一个男人"], []),
        ("runner a", ["runner", "a"], ["runner"], []),  # of which "run" alone is no word
        ("a man a man a running coat", ["a", "man", "a", "man", "a", "running"], [], ["coat"]),
        ("a man a man a 一 running coat", ["a", "man", "a", "man", "a", "一", "running"], ["一"], ["coat"]),
        ("\u0301 a", ["\u0301", "a"], ["\u0301"], []),  # an accent alone, which the tokenizer drops
        ("\u0301", [], ["\u0301"], []),
    ],
)
def test_words_are_read_known_or_cut(text, read, unknown, cut):
    tokenizer = BertTokenizer(vocab={word: index for index, word in enumerate(VOCABULARY)})
    processor = TPASProcessor.build(tokenizer, image_size=32, max_text_length=9)
    words = words_of(processor, text)
    assert (words.read, words.unknown, words.cut) == (read, unknown, cut)
