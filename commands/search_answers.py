"""What a search writes: each answer as a table and as the fields of `--json`."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.image_folders import printable
from ..data.moments import Moment
from ..search.hits import percent
from .command_line import CommandResult

if TYPE_CHECKING:
    from ..footage.faces import FaceCover
    from ..search.feedback import Feedback
    from ..search.hits import PhraseScore, SearchHit, SearchResult

logger = logging.getLogger(__name__)

PHRASE_LETTERS = 20  # of a phrase that head a column


def shown(
    texts: Sequence[str],
    answers: "SearchResult",
    feedback: "Feedback",
    least_chance: float,
    clips: Mapping[Moment, Path],
    of_one: bool = False,
) -> CommandResult:
    """The answers, or that of one text alone."""
    more = {name: list(given) for name, given in feedback.settings.items()}
    content, tables = [], []
    for number, (text, hits) in enumerate(zip(texts, answers, strict=True)):
        chance, no_one = answers.chances[number], answers.no_one(number, least_chance)
        chances = {} if chance is None else {"no_one": no_one is not None, "chance": chance}
        content.append({"text": text, **chances, **more, "hits": [hit_fields(hit, clips) for hit in hits]})
        said = "" if chance is None else f"\nsomeone like this: chance {percent(chance)}"
        tables.append(
            f"{printable(text)}{said if no_one is None else f'{chr(10)}{no_one}; nearest:'}\n{table(hits)}"
        )
    if of_one:
        return CommandResult(content[0], f"{tables[0]}\n")
    return CommandResult(content, "\n\n".join(tables))


def shown_of_image(image: Path, hits: Sequence["SearchHit"], clips: Mapping[Moment, Path]) -> CommandResult:
    """The answer to an image as query."""
    content = [{"image": str(image), "hits": [hit_fields(hit, clips) for hit in hits]}]
    return CommandResult(content, f"{printable(str(image))}\n{table(hits)}")


def cut_clips(
    folder: Path, moments: Sequence[Moment | None], faces: "FaceCover | None" = None
) -> dict[Moment, Path]:
    """The clip of each moment; one that cannot be cut is named in the log, and left out."""
    from ..footage.clips import cut_clip

    cut = {}
    for moment in dict.fromkeys(moments):
        if moment is not None:
            try:
                cut[moment] = cut_clip(moment, folder, faces)
            except (OSError, ValueError) as error:  # of PyAV's errors each is one of these
                logger.warning("no clip of visit %d: %s", moment.track, error)
    return cut


def hit_fields(hit: "SearchHit", clips: Mapping[Moment, Path]) -> dict[str, Any]:
    names = ("id", "rank", "score", "cosine", "match_logit", "embedding_rank", "rank_before_sca")
    chance = {} if hit.chance is None else {"chance": hit.chance}
    fields = {name: getattr(hit, name) for name in names} | chance | {"path": hit.path and str(hit.path)}
    if hit.phrases:
        fields["phrases"] = [asdict(score) for score in hit.phrases]
    if hit.moment is None:
        return fields
    clip = clips.get(hit.moment)
    return fields | {"moment": hit.moment.to_json()} | ({} if clip is None else {"clip": str(clip)})


def table(hits: Sequence["SearchHit"]) -> str:
    by_sca = any(hit.rank_before_sca is not None for hit in hits)
    by_match = any(hit.match_logit is not None for hit in hits)  # otherwise the score is the cosine
    before = f" {'before SCA':>10}" if by_sca else ""
    cosine = f" {'cosine':>7} {'by cosine':>9}" if by_match else ""
    by_chance = any(hit.chance is not None for hit in hits)
    chance = f" {'chance':>7}" if by_chance else ""
    heads = [phrase_head(score) for score in hits[0].phrases] if hits else []
    phrases = "".join(f" {head:>8}" for head in heads)
    lines = [f"{'rank':>4}{chance} {'score':>8}{cosine}{before}{phrases}  image"]
    for hit in hits:
        score = "" if hit.score is None else f"{hit.score:.3f}"
        cosine = f" {hit.cosine:>7.3f} {hit.embedding_rank:>9}" if by_match else ""
        before = f" {hit.rank_before_sca:>10}" if by_sca else ""
        if by_chance:
            chance = f" {'' if hit.chance is None else percent(hit.chance):>7}"
        phrases = "".join(
            f" {score.score:>{max(8, len(head))}.3f}" for head, score in zip(heads, hit.phrases, strict=True)
        )
        image = printable(str(hit.moment or hit.path or hit.id))
        lines.append(f"{hit.rank:>4}{chance} {score:>8}{cosine}{before}{phrases}  {image}")
    return "\n".join(lines)


def phrase_head(score: "PhraseScore") -> str:
    """What heads the column of a phrase."""
    phrase = printable(score.phrase)
    short = phrase if len(phrase) <= PHRASE_LETTERS else f"{phrase[: PHRASE_LETTERS - 1]}…"
    return f"{'+' if score.wanted else '-'} {short}"
