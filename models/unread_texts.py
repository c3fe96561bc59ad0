"""What a model does not read of a text: words that its tokenizer does not know, and what is too long."""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..processing_tpas import clean_caption
from .interface import RetrievalProcessor

logger = logging.getLogger(__name__)

WORD = re.compile(r"\S+")
TEXTS_AT_ONCE = 4_096
SHOWN_WORDS = 10
SHOWN_LETTERS = 80


@dataclass(frozen=True)
class UnreadText:
    """What is not read of one text.

    Attributes:
        number: the text's place among those given, from 0.
        unknown: the words of which the tokenizer does not know a part, as they are without punctuation where
            the processor takes that out.
        knows_none: no word of it is known, so that its answer says nothing.
        cut: its end, from the first word that is not read whole; empty where all is read.
    """

    number: int
    unknown: tuple[str, ...]
    knows_none: bool
    cut: str


def as_read(processor: RetrievalProcessor, text: str) -> str:
    """The text as the tokenizer is given it."""
    return clean_caption(text) if getattr(processor, "clean_captions", False) else text


def unread_texts(processor: RetrievalProcessor, texts: Sequence[str]) -> list[UnreadText]:
    """Those of the texts that are not read whole, in their order.

    A tokenizer of bytes knows every word. Of one that says nothing of where its tokens lie, only what is cut
    is found.
    """
    found = []
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        given = [as_read(processor, text) for text in texts[start : start + TEXTS_AT_ONCE]]
        for number, (text, tokens) in enumerate(zip(given, _tokens(processor, given), strict=True), start):
            unread = _unread(number, text, *tokens)
            if unread.unknown or unread.cut:
                found.append(unread)
    return found


def warn_of_unread(processor: RetrievalProcessor, texts: Sequence[str], places: Sequence[str]) -> None:
    """Logs [`unread_warnings`]: a command does so once, before it shows anything else."""
    for line in unread_warnings(processor, texts, places):
        logger.warning("warning: %s", line)


def unread_warnings(processor: RetrievalProcessor, texts: Sequence[str], places: Sequence[str]) -> list[str]:
    """The same for people: a line of what is unknown and a line of what is cut, where there is such.

    Args:
        places: where its author finds each text, such as "texts.txt, line 4".
    """
    unread = unread_texts(processor, texts)
    lines = []
    if unknown := [text for text in unread if text.unknown]:
        words = list(dict.fromkeys(word for text in unknown for word in text.unknown))
        shown = ", ".join(map(repr, words[:SHOWN_WORDS])) + (", ..." if len(words) > SHOWN_WORDS else "")
        count = "the word" if len(words) == 1 else f"{len(words):,} words,"
        line = f"the model does not know {count} {shown} ({_where(unknown, len(texts), places)})"
        if empty := [text for text in unknown if text.knows_none]:
            where = _where(empty, len(texts), places)
            line += f"; no word at all is known of {where}: what is found for it is chance"
        lines.append(line)
    if cut := [text for text in unread if text.cut]:
        lost, first = cut[0].cut, places[cut[0].number]
        lost = lost if len(lost) <= SHOWN_LETTERS else f"{lost[:SHOWN_LETTERS]}..."
        who = f"{first} is" if len(cut) == 1 else f"{len(cut):,} of {len(texts):,} texts are"
        of_whom = "" if len(cut) == 1 else f"of the first, {first}, "
        lines.append(
            f"{who} longer than the {processor.max_text_length} tokens that the model reads: "
            f"{of_whom}{lost!r} is lost"
        )
    return lines


def _where(texts: Sequence[UnreadText], of: int, places: Sequence[str]) -> str:
    first = places[texts[0].number]
    return first if len(texts) == 1 else f"{len(texts):,} of {of:,} texts, the first: {first}"


def _tokens(
    processor: Any, texts: list[str]
) -> list[tuple[list[tuple[int, int]], list[tuple[int, int]], int]]:
    """Of each text where its tokens lie, where those that stand for unknown words lie, and how many tokens
    are read."""
    tokenizer = processor.tokenizer
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)  # open_clip's, around one of transformers
    if not getattr(tokenizer, "is_fast", False):
        return [_tokens_by_word(tokenizer, text, processor.max_text_length) for text in texts]
    settings = {"add_special_tokens": False, "return_attention_mask": False, "return_token_type_ids": False}
    encoded = tokenizer(texts, return_offsets_mapping=True, verbose=False, **settings)
    room = processor.max_text_length - tokenizer.num_special_tokens_to_add()
    unknown_id = tokenizer.unk_token_id
    return [
        (offsets, [place for place, token in zip(offsets, ids, strict=True) if token == unknown_id], room)
        for offsets, ids in zip(encoded["offset_mapping"], encoded["input_ids"], strict=True)
    ]


def _tokens_by_word(tokenizer: Any, text: str, longest: int) -> tuple[list[tuple[int, int]], list, int]:
    """The same of a tokenizer that does not say where tokens lie: each lies where its word does."""
    places = [match.span() for match in WORD.finditer(text) for _ in tokenizer.encode(match.group())]
    return places, [], longest - 2


def _unread(
    number: int, text: str, tokens: list[tuple[int, int]], unknown: list[tuple[int, int]], room: int
) -> UnreadText:
    words = [match.span() for match in WORD.finditer(text)]
    starts = {start for start, _ in unknown}
    strange = [(start, end) for start, end in words if any(place in starts for place in range(start, end))]
    cut = ""
    if len(tokens) > room:
        first = tokens[room][0]
        cut = text[next((start for start, end in words if first < end), first) :]
    return UnreadText(
        number,
        tuple(dict.fromkeys(text[start:end] for start, end in strange)),
        knows_none=bool(unknown) and len(unknown) == len(tokens),
        cut=cut,
    )
