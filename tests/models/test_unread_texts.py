"""What a model does not read of a text, by a tokenizer of words and by one of bytes."""

from types import SimpleNamespace

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import BertTokenizer, PreTrainedTokenizerFast

from tpas.models.unread_texts import UnreadText, unread_texts, unread_warnings
from tpas.processing_tpas import TPASProcessor

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "man", "in", "red", "run", "##s", "and"]


@pytest.fixture
def processor() -> TPASProcessor:
    tokenizer = BertTokenizer(vocab={word: index for index, word in enumerate(WORDS)})
    return TPASProcessor.build(tokenizer, image_size=32, max_text_length=6)


def byte_level_processor(longest: int):
    """As CLIP's, whose token for what is unknown is its last one."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: index for index, letter in enumerate([*alphabet, "<end>"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<end>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<end>", eos_token="<end>")
    return SimpleNamespace(tokenizer=fast, max_text_length=longest)


def test_a_text_that_is_read_whole_is_not_named(processor):
    # Four tokens beside [CLS] and [SEP].
    assert unread_texts(processor, ["A man, in red!", "runs"]) == []


@pytest.mark.parametrize(
    ("text", "unknown", "knows_none", "cut"),
    [
        ("一个人 in 红", ("一个人", "红"), False, "红"),  # each sign is a token
        ("🚶", ("🚶",), True, ""),
        ("A tall man, tall, runs", ("tall",), False, "runs"),
        ("a man in runs", (), False, "runs"),  # of which `run` still had room
        ("a man in red and a man", (), False, "and a man"),
    ],
)
def test_unknown_words_and_the_lost_end_are_named(processor, text, unknown, knows_none, cut):
    expected = UnreadText(1, unknown, knows_none, cut)
    assert unread_texts(processor, ["a man", text]) == [expected]
    # What the processor itself makes of it.
    ids = processor(text=[text]).input_ids[0].tolist()
    assert (WORDS.index("[UNK]") in ids) == bool(unknown)
    assert (len(ids) == 6) == bool(cut)


def test_a_tokenizer_of_bytes_knows_every_word(processor):
    assert unread_texts(byte_level_processor(100), ["一个人 🚶", "a man"]) == []
    (cut,) = unread_texts(byte_level_processor(8), ["a man 一个人"])
    assert (cut.unknown, cut.cut) == ((), "一个人")


def test_without_places_of_tokens_a_word_is_cut_as_a_whole():
    class Letters:
        """As open_clip's own, which splits words alone."""

        def encode(self, text: str) -> list[str]:
            return list(text)

    (cut,) = unread_texts(SimpleNamespace(tokenizer=Letters(), max_text_length=10), ["a man in red"])
    assert cut == UnreadText(0, (), False, "red")


def test_people_are_told_how_many_which_is_first_and_what_is_lost(processor):
    texts = ["a man", "人 in", "a man in red and", "🚶", "man in red and a", "red"]
    places = [f"texts.txt, line {number}" for number in range(1, 7)]
    assert unread_warnings(processor, texts, places) == [
        "the model does not know 2 words, '人', '🚶' (2 of 6 texts, the first: texts.txt, line 2); "
        "no word at all is known of texts.txt, line 4: what is found for it is chance",
        "2 of 6 texts are longer than the 6 tokens that the model reads: "
        "of the first, texts.txt, line 3, 'and' is lost",
    ]
    assert unread_warnings(processor, texts[2:3], places) == [
        "texts.txt, line 1 is longer than the 6 tokens that the model reads: 'and' is lost"
    ]
    assert unread_warnings(processor, texts[:1], places) == []
