"""One page that shows what an evaluation found, before and after fine-tuning.

`build_report` turns what `tpas evaluate` and `train_accelerate.py` wrote for a start and for the
model fine-tuned from it into one HTML page (`report.html`). The page needs nothing beside itself: it opens
from a disk, a mail or a CI artefact.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from PIL import Image

from ..evaluation.absent_people import AbsentPeople
from ..evaluation.result_files import Evaluation, RankedQuery
from ..evaluation.stages import Stage, final_stage
from ..evaluation.tables import StageRow, stage_rows
from ..processing_tpas import load_image
from ..search.hits import SearchHit
from .collisions import Collision, sca_outcome
from .examples import (
    IMAGES_SHOWN,
    choose_queries,
    collisions_by_outcome,
    is_answered,
    rank_of_right,
    shown_hits,
    take_in_turn,
    verdict,
)
from .pages import data_address, image_address, render
from .results import ResultRow
from .saving import svg_of
from .training import plot_panel, training_panels

CARDS, CARDS_OPEN = 12, 4
COLLISIONS, COLLISIONS_OPEN = 6, 2
THUMBNAIL_EDGE, FRAME_EDGE = 192, 480


def build_report(
    zero_shot: Evaluation,
    fine_tuned: Evaluation,
    *,
    training_log: Sequence[Mapping],
    arguments: Mapping[str, Any],
    versions: Mapping[str, str],
    durations: Mapping[str, float],
    commands: Sequence[str] = (),
    next_commands: Sequence[str] = (),
    absent: AbsentPeople | None = None,
    moments: ResultRow | None = None,
) -> str:
    """The page, as one string of HTML.

    `training_log` holds the lines of `training_log.jsonl`; `arguments`, `versions`, `durations` (seconds by
    step), `commands` and `next_commands` are printed as they are; `absent` is what was said of people who are
    not there, `moments` what was found in films. The queries that are shown are drawn with
    `arguments["seed"]`, so the same input gives the same page.
    Raises what `load_image` raises for an image that is absent or broken.
    """
    queries, seed = fine_tuned.queries, arguments.get("seed", 0)
    images = _Images(queries)
    at_start = {query.id: query for query in zero_shot.queries}
    by_outcome = collisions_by_outcome(queries)
    collisions = take_in_turn(by_outcome.values(), COLLISIONS, seed)
    tables = {"Zero-shot": stage_rows(zero_shot.results), "Fine-tuned": stage_rows(fine_tuned.results)}
    return render(
        "report.html",
        tables=tables,
        ladder=_ladder(*tables.values()),
        query_count=len(queries),
        gallery_count=fine_tuned.results["gallery"],
        shortlist=fine_tuned.results["shortlist"],
        matched=Stage.MATCHING in fine_tuned.results["stages"],
        fused=Stage.FUSED in fine_tuned.results["stages"],
        charts=_charts(training_log),
        first=_first(queries, images),
        cards_open=CARDS_OPEN,
        collisions_open=COLLISIONS_OPEN,
        cards=[
            _card(query, at_start.get(query.id), images)
            for query in choose_queries(queries, count=CARDS, seed=seed)
        ],
        moved={outcome: len(moved_so) for outcome, moved_so in by_outcome.items()},
        collisions=[_collision(collision, queries, images) for collision in collisions],
        sca_report=fine_tuned.results["sca_report"],
        absent=absent,
        nearest=[] if absent is None else [images.nearest(hit) for hit in absent.nearest],
        moments=None if moments is None else _moments(moments),
        arguments=arguments,
        versions=versions,
        seconds={name: f"{duration:.1f}" for name, duration in durations.items()},
        commands=commands,
        next_commands=next_commands,
    )


class _Images:
    """Images as the page shows them, each encoded once, with the text that it answers."""

    def __init__(self, queries: Sequence[RankedQuery]) -> None:
        self.texts = {name: query.text for query in queries for name in query.relevant}
        self.addresses: dict[str, str] = {}

    def tile(self, hit: SearchHit, query: RankedQuery) -> dict[str, Any]:
        """An image as an answer to one query."""
        right = hit.id in query.relevant
        words = f"Ranked {hit.rank}, {'the right image' if right else 'not the right image'}."
        return self._tile(hit.id, hit.image, words) | {"rank": hit.rank, "score": hit.score, "right": right}

    def nearest(self, hit: SearchHit) -> dict[str, Any]:
        """An image that was found for somebody who is not there."""
        tile = self._tile(hit.id, hit.image, f"Ranked {hit.rank}, not the one asked for.")
        return tile | {"rank": hit.rank, "score": hit.score, "right": False}

    def missed(self, name: str, query: RankedQuery) -> dict[str, Any]:
        """A right image that is not among those listed."""
        tile = self._tile(
            name, partial(load_image, query.relevant[name]), "Not in the first ten, the right image."
        )
        return tile | {"rank": None, "score": None, "right": True}

    def _tile(self, name: str, open_image: Callable[[], Image.Image], words: str) -> dict[str, Any]:
        if name not in self.addresses:
            self.addresses[name] = image_address(open_image(), THUMBNAIL_EDGE)
        own_text = f" Its own text: {self.texts[name]}" if name in self.texts else ""
        return {"address": self.addresses[name], "alternative": words + own_text}


def _first(queries: Sequence[RankedQuery], images: _Images) -> dict[str, Any] | None:
    """The shortest text about an anomaly that is answered, or else about anything, with its best images."""
    answered = [query for query in queries if is_answered(query, Stage.SCA)]
    if not answered:
        return None
    query = min(answered, key=lambda query: (query.behaviour != "anomaly", len(query.text)))
    return {
        "text": query.text,
        "tiles": [images.tile(hit, query) for hit in query.hits[Stage.SCA][:IMAGES_SHOWN]],
    }


def _card(query: RankedQuery, at_start: RankedQuery | None, images: _Images) -> dict[str, Any]:
    ranks = {"the start's embeddings": rank_of_right(at_start, Stage.EMBEDDINGS)} if at_start else {}
    ranks["fine-tuned embeddings"] = rank_of_right(query, Stage.EMBEDDINGS)
    if Stage.MATCHING in query.hits:
        ranks["matching"] = rank_of_right(query, final_stage(query.hits))
    ranks["SCA"] = rank_of_right(query, Stage.SCA)
    hits, missed = shown_hits(query)
    tiles = [images.tile(hit, query) for hit in hits]
    return {
        "text": query.text,
        "behaviour": query.behaviour,
        "verdict": verdict(query),
        "right": is_answered(query, Stage.SCA),
        "ranks": ranks,
        "tiles": tiles if missed is None else [*tiles, images.missed(missed, query)],
    }


def _collision(collision: Collision, queries: Sequence[RankedQuery], images: _Images) -> dict[str, Any]:
    query, holder = queries[collision.query], None
    if collision.holder is not None and collision.kept is not None:
        keeper = queries[collision.holder]
        holder = {"text": keeper.text, "tile": images.tile(collision.kept, keeper)}
    return {
        "outcome": sca_outcome(collision.claimed, collision.taken, query.relevant),
        "text": query.text,
        "before": images.tile(collision.claimed, query),
        "after": images.tile(collision.taken, query),
        "right_rank": rank_of_right(query, final_stage(query.hits)),
        "holder": holder,
    }


def _moments(found: ResultRow) -> dict[str, Any]:
    """The text, and the whole frame of each moment."""
    tiles = []
    for hit in found.hits:
        right = hit.id in (found.relevant or ())
        words = f"Ranked {hit.rank}, {hit.moment}, {'the right moment' if right else 'not the right moment'}."
        address = image_address(hit.image(), FRAME_EDGE)
        tiles.append({"address": address, "alternative": words, "moment": str(hit.moment), "right": right})
    return {"text": found.text, "tiles": tiles}


def _ladder(zero_shot: Sequence[StageRow], fine_tuned: Sequence[StageRow]) -> list[dict[str, Any]]:
    """Recall@1 from the start to the last stage; the gains are those of the table."""
    names = {
        Stage.EMBEDDINGS: "Fine-tuned",
        Stage.MATCHING: "+ matching",
        Stage.FUSED: "+ both fused",
        Stage.SCA: "+ SCA",
    }
    start = zero_shot[0].recalls[0]
    steps = [{"name": "Start, embeddings alone", "value": start, "gain": None}]
    for row in fine_tuned:
        if row.stage in names:
            value = row.recalls[0]
            gain = value - start if row.gain is None else row.gain
            steps.append({"name": names[row.stage], "value": value, "gain": gain})
    return steps


def _charts(training_log: Sequence[Mapping]) -> list[dict[str, str]]:
    """The curves of the training, each as an SVG in a data address."""
    return [
        {
            "title": panel.title,
            "address": data_address("image/svg+xml", svg_of(plot_panel(panel)).encode()),
            "alternative": panel.summary,
        }
        for panel in training_panels(training_log)
    ]
