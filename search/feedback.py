"""What a person says of an answer: images that are like the one they look for or not, and phrases of it.

Images and what must not be there move the query's embedding by Rocchio's rule. A phrase that must be there is
read as a sentence of the text. Each phrase is also scored by itself, beside the whole text: that is shown,
and orders nothing (`benchmarks/feedback.py`: what these rules are worth, and others that are worth less).
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from .hits import PhraseScore, SearchHit

if TYPE_CHECKING:
    from torch import Tensor

# C. Manning, P. Raghavan, H. Schütze: Introduction to Information Retrieval, Cambridge 2008, section 9.1.1,
# after J. Rocchio 1971; the text itself counts 1.
LIKED_WEIGHT, DISLIKED_WEIGHT = 0.75, 0.15
MOST_PHRASES = 20  # of both kinds together: each is read with every image that is shown
Example = str | SearchHit  # an image of the gallery by its id, or any that was found


@dataclass(frozen=True)
class Feedback:
    """What is said of one search; see `Gallery.search`.

    Raises:
        TypeError, ValueError: something is of no such kind, empty, too much, or said both ways.
    """

    liked: tuple[Example, ...] = ()
    disliked: tuple[Example, ...] = ()
    must: tuple[str, ...] = ()
    must_not: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        liked: Iterable[Example] = (),
        disliked: Iterable[Example] = (),
        must: Iterable[str] = (),
        must_not: Iterable[str] = (),
    ) -> "Feedback":
        return cls(
            _listed("liked", liked, Example),
            _listed("disliked", disliked, Example),
            phrases("must", must),
            phrases("must_not", must_not),
        )

    def __post_init__(self) -> None:
        both = {*map(name_of, self.liked)} & {*map(name_of, self.disliked)}
        if both:
            raise ValueError(f"image {min(both)!r} is both liked and disliked: leave it out of one")
        wanted = {phrase.lower() for phrase in self.must}
        if said_twice := [phrase for phrase in self.must_not if phrase.lower() in wanted]:
            raise ValueError(f"{said_twice[0]!r} is both in must and in must_not: leave it out of one")
        if (count := len(self.must) + len(self.must_not)) > MOST_PHRASES:
            raise ValueError(
                f"{count} phrases are too many: at most {MOST_PHRASES}, must and must_not together"
            )

    @property
    def moves(self) -> bool:
        """Whether it moves the query, and more than match logits order."""
        return bool(self.liked or self.disliked or self.must_not)

    @property
    def settings(self) -> dict[str, Any]:
        """By the names of `Gallery.search`, what is said."""
        return {field.name: said for field in fields(self) if (said := getattr(self, field.name))}

    def check_order(self, sca: object, cascade: bool) -> None:
        """Raises ValueError where the query is moved, and what is asked for goes by match logits alone."""
        if self.moves and (sca or cascade):
            raise ValueError(
                "SCA and a cascade go by match logits alone: leave them out, or liked, disliked and must_not"
            )

    def phrase_scores(
        self, places: "Tensor", cosines: "Tensor", read: "Tensor", match_scores: "Tensor"
    ) -> dict[int, tuple[PhraseScore, ...]]:
        """By place (n,), of its cosines (P, n), and match scores (P, m) of the places (m,) that were read."""
        wanted = [(phrase, True) for phrase in self.must] + [(phrase, False) for phrase in self.must_not]
        scores = dict(zip(read.tolist(), match_scores.T.tolist(), strict=True))
        unread = [None] * len(wanted)
        return {
            place: tuple(
                PhraseScore(*one, cosine, score)
                for one, cosine, score in zip(wanted, own, scores.get(place, unread), strict=True)
            )
            for place, own in zip(places.tolist(), cosines.T.tolist(), strict=True)
        }

    def read_with(self, text: str) -> str:
        """The text with each phrase that must be there as a sentence, unless the text says it already."""
        for phrase in self.must:
            if phrase.lower() not in text.lower():
                ended = text.rstrip()
                ended += "" if ended.endswith((".", "!", "?")) else "."
                text = f"{ended} {phrase[0].upper()}{phrase[1:]}."
        return text


def phrases(name: str, given: Iterable[str]) -> tuple[str, ...]:
    """Each once, without space around it.

    Raises:
        TypeError, ValueError: one is no text, or empty.
    """
    kept = [phrase.strip() for phrase in _listed(name, given, str)]
    for phrase in kept:
        if not any(letter.isalnum() for letter in phrase):
            raise ValueError(f"{name}: {phrase!r} is empty, or punctuation alone")
    return tuple(dict.fromkeys(kept))


def name_of(example: Example) -> str:
    return example if isinstance(example, str) else example.id


def moved(
    embeds: "Tensor",
    liked: "Tensor | None" = None,
    disliked: "Tensor | None" = None,
    must_not: "Tensor | None" = None,
) -> "Tensor":
    """Texts' embeddings (Q, D) by Rocchio's rule, of unit norm again.

    Args:
        liked, disliked, must_not: (n, D), of images and of phrases, or None.
    """
    weighted = ((liked, LIKED_WEIGHT), (disliked, -DISLIKED_WEIGHT), (must_not, -DISLIKED_WEIGHT))
    for examples, weight in weighted:
        if examples is not None and len(examples):
            embeds = embeds + weight * examples.mean(dim=0)
    return embeds / embeds.norm(dim=1, keepdim=True)


def _listed(name: str, given: Iterable[Any], kind: Any) -> tuple[Any, ...]:
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise TypeError(f"{name} must be a list, got {given!r}")
    kept = tuple(given)
    for one in kept:
        if not isinstance(one, kind):
            wanted = "strings" if kind is str else "ids of images, or hits"
            raise TypeError(f"{name} must be {wanted}, got {one!r}")
    return kept


NO_FEEDBACK = Feedback()
