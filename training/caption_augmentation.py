"""Captions that follow a mirrored image, and a second view of a caption: EDA (Wei and Zou 2019).

Two of EDA's four operations need no thesaurus and are here, deletion and swap. Synonym replacement and
insertion are not: no maintained library brings its thesaurus inside the package (nltk, wn, nlpaug and
textaugment download theirs). Every random choice comes from the `random.Random` that is handed in.
"""

import random
import re

OTHER_SIDE = {"left": "right", "right": "left"}
SIDE = re.compile(r"\b(left|right)(-\w+|most|handed|hand|wards|ward)?\b", re.IGNORECASE)
WORD_BEFORE = re.compile(r"(\w+)\s+$")
WORD_AFTER = re.compile(r"\s+(\w+)")

# Where the bare word means no side: the past of "leave", and "exactly" or "at once".
NO_SIDE_AFTER = {"left": {"has", "have", "had", "having", "he", "she", "they", "it", "who"}, "right": {"all"}}
NO_SIDE_BEFORE = {
    "left": {"alone", "behind", "over", "unattended"},
    "right": {"after", "away", "before", "behind", "beside", "here", "next", "now", "there"},
}
# After one of these it is a side all the same: "on the left behind the car".
SIDE_AFTER = {"the", "a", "his", "her", "their", "its", "to", "on", "far"}


def swap_left_right(caption: str) -> str:
    """The caption of the mirrored image: each left becomes right and each right left, their case kept.

    Whole words only ("bright" and "upright" stay), with what hangs on them: "leftmost", "right-hand",
    "leftward". A bare word stays where its neighbour says that it is no side: "left" after has, have, had,
    having or a pronoun ("has left the room", "who left") and before alone, behind, over or unattended;
    "right" after all and before after, away, before, behind, beside, here, next, now or there. It is a side
    all the same after an article, a possessive, to, on or far ("on the left behind the car"). That is a rule
    of thumb: "the man left the room" is swapped as well.

    >>> swap_left_right("Left of the tree, a man who left his bag raises his right-hand glove.")
    'Right of the tree, a man who left his bag raises his left-hand glove.'
    """

    def other(match: re.Match[str]) -> str:
        word, attached = match[1], match[2] or ""
        side = word.lower()
        before = WORD_BEFORE.search(caption[: match.start()])
        after = WORD_AFTER.match(caption[match.end() :])
        before, after = (found[1].lower() if found else "" for found in (before, after))
        no_side = before in NO_SIDE_AFTER[side] or after in NO_SIDE_BEFORE[side]
        if no_side and not attached and before not in SIDE_AFTER:
            return match[0]
        swapped = OTHER_SIDE[side]
        if word.isupper():
            swapped = swapped.upper()
        elif word[0].isupper():
            swapped = swapped.capitalize()
        return swapped + attached

    return SIDE.sub(other, caption)


def eda_view(caption: str, rng: random.Random, alpha: float = 0.1) -> str:
    """A second view of a caption that is not blank: by even chance, words swapped or deleted. Never empty.

    Words are what stands between spaces, so punctuation moves and goes with its word; no word is protected,
    neither "left" nor "not". The result has a letter or digit if the caption has one.

    Args:
        alpha: share of the words that change (the paper's 0.1): swaps in relation to the words, at least
            one, or the probability with which each word is deleted.
    """
    words = caption.split()
    if rng.random() < 0.5:
        words = random_swap(words, max(1, int(alpha * len(words))), rng)
    else:
        words = random_deletion(words, alpha, rng)
    return " ".join(words)


def random_swap(words: list[str], swaps: int, rng: random.Random) -> list[str]:
    """The words after `swaps` times two of them, drawn anew, have changed places."""
    words = list(words)
    for _ in range(swaps if len(words) > 1 else 0):
        first, second = rng.sample(range(len(words)), 2)
        words[first], words[second] = words[second], words[first]
    return words


def random_deletion(words: list[str], probability: float, rng: random.Random) -> list[str]:
    """The words that are left when each is deleted with this probability; one of them if none would be.

    Punctuation by itself does not count as a word that is left.
    """
    kept = [word for word in words if rng.random() >= probability]
    if any(map(_is_word, kept)):
        return kept
    return [rng.choice([word for word in words if _is_word(word)] or words)]


def _is_word(text: str) -> bool:
    return any(character.isalnum() for character in text)
