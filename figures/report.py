"""One page that shows what an evaluation found: images in reports.

`build_report` turns what `tpas evaluate` and `train_accelerate.py` wrote for a start and for the
model fine-tuned from it into one HTML page. The page needs nothing beside itself: images are inside it,
it runs no script and asks no server, so it opens from a disk, a mail or a CI artefact.
"""

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2

from ..data.pab_images import image_path
from ..processing_tpas import load_image
from .examples import (
    Answer,
    Resolved,
    choose_collisions,
    choose_queries,
    is_right,
    moved_queries,
    rank_of_right,
    shown_answers,
    verdict,
)
from .saving import svg_of
from .training import plot_panel, training_panels

CUTOFFS = (1, 5, 10)
CARDS = 12
COLLISIONS = 6
THUMBNAIL_EDGE = 192

# (key in results.json, name in tables, the stage it builds on)
_STAGES = (
    ("embeddings", "Embeddings alone", ()),
    ("embeddings_sca", "Embeddings + SCA", ("embeddings",)),
    ("matching", "+ cross-modal matching", ("embeddings",)),
    ("fused", "+ matching, fused", ("embeddings",)),
    ("sca", "+ SCA", ("fused", "matching")),
)


@dataclass(frozen=True)
class Evaluation:
    """One model's `results.json` and `rankings.json`, as `tpas evaluate` wrote them."""

    results: Mapping
    rankings: Mapping

    @classmethod
    def read(cls, results_path: Path, rankings_path: Path) -> "Evaluation":
        """Read both files. Raises `ValueError` naming the file that is not what the evaluation writes."""
        contents = []
        expected = (
            (results_path, ("stages", "shortlist", "sca_report")),
            (rankings_path, ("queries", "gallery")),
        )
        for path, keys in expected:
            try:
                content = json.loads(Path(path).read_text(encoding="utf-8"))
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}: not JSON ({error}); run tpas evaluate again") from error
            missing = [key for key in keys if not isinstance(content, dict) or key not in content]
            if missing:
                raise ValueError(f"{path}: no {' or '.join(missing)} in it; run tpas evaluate again")
            contents.append(content)
        return cls(*contents)

    @property
    def stage_before_sca(self) -> str:
        """The stage whose collisions SCA reranked: "fused" where scores were fused, else "matching"."""
        return "fused" if "fused" in self.results["stages"] else "matching"


@dataclass(frozen=True)
class StageRow:
    """One row of the table, in fractions; `gain` is that in Recall@1 over the stage it builds on.

    What was not measured, because there is no such query or no stage before, is None.
    """

    stage: str
    name: str
    recalls: tuple[float, ...]
    mean_average_precision: float
    normal: float | None
    anomaly: float | None
    gain: float | None


def stage_rows(results: Mapping) -> list[StageRow]:
    """The stages of one `results.json` in the order in which they build on each other."""
    stages = results["stages"]
    rows = []
    for stage, name, builds_on in _STAGES:
        if stage not in stages:
            continue
        everything = stages[stage]["all"]
        before = next((key for key in builds_on if key in stages), None)
        rows.append(
            StageRow(
                stage=stage,
                name=name,
                recalls=tuple(everything[f"recall@{cutoff}"] for cutoff in CUTOFFS),
                mean_average_precision=everything["mAP"],
                normal=(stages[stage].get("normal") or {}).get("recall@1"),
                anomaly=(stages[stage].get("anomaly") or {}).get("recall@1"),
                gain=everything["recall@1"] - stages[before]["all"]["recall@1"] if before else None,
            )
        )
    return rows


def build_report(
    zero_shot: Evaluation,
    fine_tuned: Evaluation,
    *,
    training_log: Sequence[Mapping],
    image_root: Path,
    arguments: Mapping[str, object],
    versions: Mapping[str, str],
    durations: Mapping[str, float],
    commands: Sequence[str] = (),
) -> str:
    """The page, as one string of HTML.

    `training_log` holds the lines of `training_log.jsonl`; `image_root` is the folder to which the
    paths in the rankings' gallery are relative; `arguments`, `versions`, `durations` (seconds by step) and
    `commands` are printed as they are. The queries that are shown are drawn with `arguments["seed"]`, so
    the same input gives the same page. Raises what `image_path` and `load_image` raise for an image that
    lies outside `image_root`, is absent or broken.
    """
    before, seed = fine_tuned.stage_before_sca, arguments.get("seed", 0)
    images = _Images(image_root, fine_tuned.rankings)
    queries = fine_tuned.rankings["queries"]
    at_start = {query["query_id"]: query for query in zero_shot.rankings["queries"]}
    moved = moved_queries(queries, before)
    shown = choose_queries(queries, before, count=CARDS, seed=seed)
    shown_moves = choose_collisions(queries, before, count=COLLISIONS, seed=seed)
    page = _environment().get_template("page")
    return page.render(
        tables={"Zero-shot": stage_rows(zero_shot.results), "Fine-tuned": stage_rows(fine_tuned.results)},
        ladder=_ladder(zero_shot.results, fine_tuned.results, before),
        query_count=len(queries),
        gallery_count=len(images.paths),
        shortlist=fine_tuned.results["shortlist"],
        fused=before == "fused",
        charts=_charts(training_log),
        cards=[_card(query, at_start.get(query["query_id"]), before, images) for query in shown],
        moved={outcome: len(moved_so) for outcome, moved_so in moved.items()},
        collisions=[_collision(resolved, before, images) for resolved in shown_moves],
        sca_report=fine_tuned.results["sca_report"],
        arguments=arguments,
        versions=versions,
        seconds={name: f"{duration:.1f}" for name, duration in durations.items()},
        commands=commands,
    )


# ------------------------------------------------------------------------------------------- images, cards


class _Images:
    """The gallery's images as data addresses, with the text that each of them answers."""

    def __init__(self, root: Path, rankings: Mapping) -> None:
        self.root = root
        self.paths = rankings["gallery"]
        self.texts = {
            identifier: query["caption"] for query in rankings["queries"] for identifier in query["relevant"]
        }
        self.encoded: dict[str, str] = {}

    def address(self, identifier: str) -> str:
        if identifier not in self.encoded:
            image = load_image(image_path(self.root, self.paths[identifier]))
            image.thumbnail((THUMBNAIL_EDGE, THUMBNAIL_EDGE))
            buffer = io.BytesIO()
            image.save(buffer, format="JPEG", quality=85)
            self.encoded[identifier] = (
                "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
            )
        return self.encoded[identifier]

    def tile(self, answer: Answer) -> dict:
        """What the page shows of one image as an answer to one query."""
        alternative = f"Ranked {answer.rank}, " if answer.rank else "Not in the first ten, "
        alternative += "the right image." if answer.right else "not the right image."
        if answer.id in self.texts:
            alternative += f" Its own text: {self.texts[answer.id]}"
        return {
            "address": self.address(answer.id),
            "rank": answer.rank,
            "score": answer.score,
            "right": answer.right,
            "alternative": alternative,
        }


def _card(query: Mapping, at_start: Mapping | None, before: str, images: _Images) -> dict:
    ranks = {"the start's embeddings": rank_of_right(at_start, "embeddings")} if at_start else {}
    ranks["fine-tuned embeddings"] = rank_of_right(query, "embeddings")
    ranks["matching"] = rank_of_right(query, before)
    ranks["SCA"] = rank_of_right(query, "sca")
    return {
        "text": query["caption"],
        "behaviour": query["behaviour"],
        "verdict": verdict(query, before),
        "right": is_right(query, "sca"),
        "ranks": ranks,
        "tiles": [images.tile(answer) for answer in shown_answers(query)],
    }


def _collision(reranked: Resolved, before: str, images: _Images) -> dict:
    holder = None
    if reranked.holder is not None:
        holder = {"text": reranked.holder["caption"], "tile": images.tile(reranked.kept)}
    return {
        "outcome": reranked.outcome,
        "text": reranked.query["caption"],
        "before": images.tile(reranked.before),
        "after": images.tile(reranked.after),
        "right_rank": rank_of_right(reranked.query, before),
        "holder": holder,
    }


def _ladder(zero_shot: Mapping, fine_tuned: Mapping, before: str) -> list[dict]:
    """Recall@1 from the start to the last stage, one thing added at each step."""
    steps = [
        ("Start, embeddings alone", zero_shot["stages"]["embeddings"]),
        ("Fine-tuned", fine_tuned["stages"]["embeddings"]),
        ("+ matching", fine_tuned["stages"][before]),
        ("+ SCA", fine_tuned["stages"]["sca"]),
    ]
    values = [stage["all"]["recall@1"] for _, stage in steps]
    gains = [None, *(after - earlier for earlier, after in zip(values, values[1:], strict=False))]
    return [
        {"name": name, "value": value, "gain": gain}
        for (name, _), value, gain in zip(steps, values, gains, strict=True)
    ]


def _charts(training_log: Sequence[Mapping]) -> list[dict]:
    """The curves of the training, each as an SVG in a data address."""
    return [
        {
            "title": panel.title,
            "address": "data:image/svg+xml;base64,"
            + base64.b64encode(svg_of(plot_panel(panel)).encode()).decode(),
            "alternative": panel.summary,
        }
        for panel in training_panels(training_log)
    ]


# -------------------------------------------------------------------------------------------------- template


def _percent(fraction: float | None) -> str:
    return "–" if fraction is None else f"{100 * fraction:.1f}"


def _points(gain: float) -> str:
    """A gain in Recall@1 as points with their sign; what rounds to nothing has none."""
    return f"{100 * gain:+.1f}".replace("-", "−") if round(100 * gain, 1) else "0.0"


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.DictLoader({"page": _PAGE, "style": _STYLE}),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": _percent, "points": _points, "thousands": "{:,}".format}
    return environment


_STYLE = """\
:root {
  color-scheme: light dark;
  --page: #f6f6f3; --card: #fff; --text: #1d1f21; --quiet: #62666b; --rule: #dedfda; --soft: #eeefeb;
  --good: #17803d; --bad: #b3261e; --bar: #bcd3ee;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #141618; --card: #1e2124; --text: #e7e8e6; --quiet: #a2a7ac; --rule: #363a3e; --soft: #292d31;
    --good: #4cc274; --bad: #ff8f85; --bar: #2d4d73;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 2.5rem 1.25rem 4rem; max-width: 68rem;
  background: var(--page); color: var(--text); line-height: 1.5;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
h1 { font-size: clamp(1.6rem, 5vw, 2.3rem); line-height: 1.15; margin: 0 0 .75rem; letter-spacing: -.015em; }
h2 { font-size: 1.35rem; margin: 3rem 0 .5rem; letter-spacing: -.01em; }
h3 { font-size: 1rem; margin: 0; }
p { margin: .5rem 0; max-width: 46rem; }
.quiet { color: var(--quiet); }
.good { color: var(--good); }
.bad { color: var(--bad); }
.card { background: var(--card); border: 1px solid var(--rule); border-radius: .75rem; padding: 1rem 1.1rem; }
.stack { display: grid; gap: .9rem; margin-top: 1rem; }

.over { margin: 1.5rem 0 .5rem; }
.ladder {
  list-style: none; margin: 0; padding: 0;
  display: grid; gap: .75rem; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr));
}
.ladder .name { display: block; color: var(--quiet); }
.ladder .value { display: block; font-size: 2.1rem; font-weight: 650; line-height: 1.15; }
.ladder .value small { font-size: 1rem; font-weight: 400; }

.scroll { overflow-x: auto; padding: 0; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .45rem .8rem; text-align: right; white-space: nowrap; }
th:first-child { text-align: left; padding-left: 1rem; }
thead th { padding-top: .8rem; font-size: .85rem; color: var(--quiet); border-bottom: 1px solid var(--rule); }
tbody th { font-weight: 400; }
tbody th[scope=rowgroup] { font-weight: 650; padding-top: 1rem; }
tbody tr.last > * { font-weight: 650; }
tbody tr.aside { color: var(--quiet); }
tbody:last-child tr:last-child > * { padding-bottom: .8rem; }
td.bar {
  min-width: 7.5rem;
  background: linear-gradient(var(--bar), var(--bar)) no-repeat 0 50% / var(--share) 62%;
}

.charts { display: grid; gap: .75rem; grid-template-columns: repeat(auto-fit, minmax(17rem, 1fr)); }
.charts img { width: 100%; height: auto; display: block; margin-top: .4rem; }

.tags { display: flex; flex-wrap: wrap; gap: .4rem; margin: 0 0 .5rem; font-size: .8rem; font-weight: 600; }
.tag { border: 1px solid currentColor; border-radius: 1rem; padding: .05rem .6rem; color: var(--quiet); }
.tag.good { color: var(--good); }
.tag.bad { color: var(--bad); }
blockquote { margin: 0 0 .7rem; max-width: 58rem; }
.images {
  list-style: none; margin: 0; padding: 0;
  display: grid; gap: .6rem; grid-template-columns: repeat(6, minmax(0, 1fr));
}
figure { margin: 0; }
figure img { width: 100%; display: block; border-radius: .4rem; border: 1px solid var(--rule); }
figure.right img { outline: 4px solid var(--good); outline-offset: 1px; border-color: transparent; }
figure.missed img { outline-style: dashed; }
figcaption {
  margin-top: .4rem; font-size: .8rem; line-height: 1.35; color: var(--quiet);
  font-variant-numeric: tabular-nums;
}
figcaption strong { color: var(--good); }
.ranks { font-size: .8rem; color: var(--quiet); margin: .7rem 0 0; max-width: none; }
.ranks b { color: var(--text); white-space: nowrap; font-variant-numeric: tabular-nums; }

.duel { display: grid; gap: .9rem 1.1rem; grid-template-columns: repeat(2, minmax(0, 1fr)); }
.duel h4 { margin: 0 0 .35rem; font-size: .85rem; font-weight: 600; color: var(--quiet); }
.duel blockquote { font-size: .92rem; }
.alone { max-width: 9.6rem; }
.pair { display: grid; gap: .6rem; grid-template-columns: 1fr auto 1fr; max-width: 22rem; }
.arrow { align-self: center; font-size: 1.4rem; color: var(--quiet); }

footer { margin-top: 3.5rem; border-top: 1px solid var(--rule); padding-top: 1rem; font-size: .9rem; }
.facts { display: grid; gap: 1rem 2rem; grid-template-columns: repeat(auto-fit, minmax(15rem, 1fr)); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; margin: .5rem 0; }
dt { color: var(--quiet); }
dd { margin: 0; overflow-wrap: anywhere; }
pre {
  white-space: pre-wrap; overflow-wrap: anywhere; font-size: .82rem;
  background: var(--soft); padding: .8rem; border-radius: .5rem;
}
@media (max-width: 40rem) {
  .images { grid-template-columns: repeat(3, minmax(0, 1fr)); }
  .duel { grid-template-columns: 1fr; }
  th, td { padding: .4rem .45rem; font-size: .85rem; }
  th:first-child { padding-left: .8rem; }
  td.bar { min-width: 0; background: none; }
}
"""

_PAGE = """\
{% macro points(gain, unit="") %}
<span class="{{ "good" if gain > 0 else "bad" if gain < 0 }}">{{ gain | points }}{{ unit }}</span>
{% endmacro %}
{% macro image(tile, label="") %}
<figure class="{{ "right" if tile.right }}{{ " missed" if tile.right and tile.rank != 1 and not label }}">
  <img src="{{ tile.address }}" alt="{{ tile.alternative }}" title="{{ tile.alternative }}">
  <figcaption>
    {{ label or ("rank %d" % tile.rank if tile.rank else "not in the first ten") -}}
    {{ " · %.2f" % tile.score if tile.score is not none }}
    {% if tile.right %}
    <br><strong>✓ right image</strong>
    {% endif %}
  </figcaption>
</figure>
{% endmacro %}
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>Text-based person anomaly search: the demo</title>
<style>
{% include "style" %}
</style>
</head>
<body>
<header>
  <h1>One text in, the right person out</h1>
  <p>Text-based person anomaly search finds, for a text about a person's looks, action and surroundings,
    the one image that it describes. A small model that had learnt from drawn people of other looks in
    other places was fine-tuned on newly drawn ones, then searched {{ gallery_count | thousands }} images
    that it had never seen with {{ query_count | thousands }} texts. Every person is among them twice,
    behaving normally and not, and many have a lookalike, so that neither looks nor action alone give the
    answer.</p>
  <p class="quiet over">How often the first image is the right one (Recall@1):</p>
  <ol class="ladder">
{% for step in ladder %}
    <li class="card">
      <span class="name">{{ step.name }}</span>
      <span class="value">{{ step.value | percent }}<small> %</small></span>
{% if step.gain is none %}
      <span class="quiet">a guess: {{ (1 / gallery_count) | percent }} %</span>
{% else %}
      {{ points(step.gain, " points") }}
{% endif %}
    </li>
{% endfor %}
  </ol>
</header>
<main>

<section aria-labelledby="table">
  <h2 id="table">What each stage adds</h2>
  <p>Embeddings rank the whole gallery by cosine. Cross-modal matching reads text and image together and
    re-scores the best {{ shortlist }}. Similarity Coverage Analysis (SCA) looks at all queries at once and
    resolves collisions: where two texts claim the same image, the more confident one keeps it and the
    other takes its next one.</p>
  <p class="quiet" id="units">Recall@k and mean average precision over {{ query_count | thousands }} unseen
    texts, in %. The gain is in Recall@1, in points, over the stage that it builds on.</p>
  <div class="card scroll">
  <table aria-labelledby="table" aria-describedby="units">
    <thead>
      <tr>
        <th scope="col">Stage</th>
{% for column in ("R@1", "R@5", "R@10", "mAP", "R@1 normal", "R@1 anomaly", "Gain") %}
        <th scope="col">{{ column }}</th>
{% endfor %}
      </tr>
    </thead>
{% for model, rows in tables.items() %}
    <tbody>
      <tr><th scope="rowgroup" colspan="8">{{ model }}</th></tr>
{% for row in rows %}
      <tr class="{{ "last" if loop.last }}{{ "aside" if row.stage == "embeddings_sca" }}">
        <th scope="row">{{ row.name }}</th>
        <td class="bar" style="--share: {{ row.recalls[0] | percent }}%">{{ row.recalls[0] | percent }}</td>
{% for value in (row.recalls[1], row.recalls[2], row.mean_average_precision, row.normal, row.anomaly) %}
        <td>{{ value | percent }}</td>
{% endfor %}
        <td>{{ "–" if row.gain is none else points(row.gain) | trim }}</td>
      </tr>
{% endfor %}
    </tbody>
{% endfor %}
  </table>
  </div>
</section>

{% if charts %}
<section aria-labelledby="training">
  <h2 id="training">Fine-tuning</h2>
  <div class="charts">
{% for chart in charts %}
    <div class="card">
      <h3>{{ chart.title }}</h3>
      <img src="{{ chart.address }}" alt="{{ chart.alternative }}">
    </div>
{% endfor %}
  </div>
</section>
{% endif %}

<section aria-labelledby="queries">
  <h2 id="queries">{{ cards | length }} queries and what was found</h2>
  <p>The fine-tuned model's answers after the last stage, best first. The right image is framed in green; a
    dashed frame means that it was not the first answer. The number under an image is its score,
    {{ "match logit and cosine, each brought to one scale within the query, in a weighted mean" if fused
       else "the logit of a match" }}. The queries were picked so that every kind of success and failure is
    seen, so they say nothing about how often each happens: the table does. Point at an image to read its own
    text.</p>
  <div class="stack">
{% for card in cards %}
  <article class="card">
    <h3 class="tags">
      <span class="tag {{ "good" if card.right else "bad" }}">{{ card.verdict }}</span>
{% if card.behaviour %}
      <span class="tag">{{ card.behaviour }}</span>
{% endif %}
    </h3>
    <blockquote>{{ card.text }}</blockquote>
    <ol class="images">
{% for tile in card.tiles %}
      <li>{{ image(tile) }}</li>
{% endfor %}
    </ol>
    <p class="ranks">Rank of the right image by
{% for name, rank in card.ranks.items() %}
      {{ name }}: <b>{{ rank }}</b>{{ " → " if not loop.last }}
{% endfor %}
    </p>
  </article>
{% endfor %}
  </div>
</section>

<section aria-labelledby="collisions">
  <h2 id="collisions">Collisions resolved by SCA</h2>
{% if collisions %}
  <p>SCA moved {{ moved.values() | sum }} of {{ query_count | thousands }} queries to another image:
    <b class="good">{{ moved["corrected"] }} corrected</b>,
    <b class="bad">{{ moved["spoilt"] }} spoilt</b> (a right answer given up),
    {{ moved["wrong before and after"] }} wrong before and after.
    {{ "These are they:" if collisions | length == moved.values() | sum else "A few of each kind:" }}</p>
  <p class="quiet">Queries that share their first answer with another: {{ sca_report.collisions_before }}
    before, {{ sca_report.collisions_after }} after. Different images among the first answers:
    {{ sca_report.coverage_before | percent }} % of the queries before,
    {{ sca_report.coverage_after | percent }} % after; where each image answers one query, Recall@1 cannot
    be higher than that.</p>
  <div class="stack">
{% for collision in collisions %}
  <article class="card">
    <h3 class="tags">
      <span class="tag {{ {"corrected": "good", "spoilt": "bad"}[collision.outcome] | default("") }}">
        {{- collision.outcome }}</span>
    </h3>
    <div class="duel">
{% if collision.holder %}
      <div>
        <h4>This text keeps the image</h4>
        <blockquote>{{ collision.holder.text }}</blockquote>
        <div class="alone">{{ image(collision.holder.tile, "kept") }}</div>
      </div>
{% endif %}
      <div>
        <h4>This one wanted it too, and moves on</h4>
        <blockquote>{{ collision.text }}</blockquote>
        <div class="pair">
          {{ image(collision.before, "before") }}
          <span class="arrow" aria-hidden="true">→</span>
          {{ image(collision.after, "after") }}
        </div>
{% if not collision.after.right %}
        <p class="ranks">Its right image was at rank <b>{{ collision.right_rank }}</b> before SCA.</p>
{% endif %}
      </div>
    </div>
  </article>
{% endfor %}
  </div>
{% else %}
  <p>No two queries claimed the same image, or neither was the more confident: SCA moved nothing.</p>
{% endif %}
</section>

</main>
<footer>
  <p><strong>What this page does not show.</strong> All people here are drawn. The numbers say that the code
    learns and that its stages work together; they say nothing about performance on the real Pedestrian
    Anomaly Behavior set. SCA uses the whole query set and assumes that each image answers one query, which
    holds here by construction.</p>
  <div class="facts">
{% for title, facts in (("Arguments", arguments), ("Versions", versions), ("Seconds", seconds)) %}
    <section>
      <h3>{{ title }}</h3>
      <dl>
{% for name, value in facts.items() %}
        <dt>{{ name }}</dt><dd>{{ value }}</dd>
{% endfor %}
      </dl>
    </section>
{% endfor %}
  </div>
{% if commands %}
  <details>
    <summary>The commands that made it</summary>
    <pre>{{ commands | join("\n") }}</pre>
  </details>
{% endif %}
</footer>
</body>
</html>
"""
