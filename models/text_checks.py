"""What a model does not take from a text: words that it does not know, and those beyond its cut."""

import re
from bisect import bisect_right
from dataclasses import dataclass

from torch import Tensor

from ..processing_tpas import TPASProcessor, clean_caption


@dataclass(frozen=True)
class WordsOfText:
    """A text as a model reads it.

    Attributes:
        read, cut: the words, as the processor cleans them, up to the longest text of the model and beyond it.
        unknown: those of `read` of which the tokenizer knows a part or nothing.
        input_ids: (1, L), of `read`.
        word_of_token: each token's number in `read`; None: [CLS] or [SEP].
    """

    read: list[str]
    cut: list[str]
    unknown: list[str]
    input_ids: Tensor
    word_of_token: list[int | None]


def words_of(processor: TPASProcessor, text: str) -> WordsOfText:
    """Raises ValueError for an empty text."""
    features = processor(text=[text], return_offsets_mapping=True)
    caption = clean_caption(text) if processor.clean_captions else text
    places = [(match.start(), match.group()) for match in re.finditer(r"\S+", caption)]
    word_of_token = [
        None if start == end else bisect_right(places, start, key=lambda place: place[0]) - 1
        for start, end in features["offset_mapping"][0].tolist()
    ]
    words = [word for _, word in places]
    count = 1 + max((word for word in word_of_token if word is not None), default=-1)
    ids = features["input_ids"]
    unknown_id = processor.tokenizer.unk_token_id
    tokens = list(zip(word_of_token, ids[0].tolist(), strict=True))
    known = {word for word, _ in tokens} - {word for word, token in tokens if token == unknown_id}
    # Where nothing is read, nothing was cut: the tokenizer drops all of it.
    unknown = [word for number, word in enumerate(words[:count] or words) if number not in known]
    return WordsOfText(words[:count], words[count:] if count else [], unknown, ids, word_of_token)
