"""One page that shows what an evaluation found: pictures in reports.

`build_report` turns what `evaluate_retrieval.py` and `train_accelerate.py` wrote for a start and for the
model fine-tuned from it into one HTML page. The page needs nothing beside itself: pictures are inside it,
it runs no script and asks no server, so it opens from a disk, a mail or a CI artefact.
"""

import base64
import io
import json
import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
from markupsafe import Markup

from tpas.pab import image_path
from tpas.processing_tpas import load_image

CUTOFFS = (1, 5, 10)
CARDS = 12
COLLISIONS = 6
PICTURES_PER_CARD = 6
SCA_OUTCOMES = ("corrected", "spoilt", "wrong before and after")
THUMBNAIL_EDGE = 192

# (key in results.json, name in tables, the stage it builds on)
_STAGES = (
    ("embeddings", "Embeddings alone", ()),
    ("embeddings_sca", "Embeddings + SCA", ("embeddings",)),
    ("matching", "+ cross-modal matching", ("embeddings",)),
    ("fused", "+ matching, fused", ("embeddings",)),
    ("sca", "+ SCA", ("fused", "matching")),
)
_NAMES = {key: name for key, name, _ in _STAGES}


@dataclass(frozen=True)
class Evaluation:
    """One model's `results.json` and `rankings.json`, as `evaluate_retrieval.py` wrote them."""

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
                raise ValueError(f"{path}: not JSON ({error}); run evaluate_retrieval.py again") from error
            missing = [key for key in keys if not isinstance(content, dict) or key not in content]
            if missing:
                raise ValueError(f"{path}: no {' or '.join(missing)} in it; run evaluate_retrieval.py again")
            contents.append(content)
        return cls(*contents)

    @property
    def stage_before_sca(self) -> str:
        """The stage whose collisions SCA settled: "fused" where scores were fused, else "matching"."""
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
    picture_root: Path,
    arguments: Mapping[str, object],
    versions: Mapping[str, str],
    durations: Mapping[str, float],
    commands: Sequence[str] = (),
) -> str:
    """The page, as one string of HTML.

    `training_log` holds the lines of `training_log.jsonl`; `picture_root` is the folder to which the
    paths in the rankings' gallery are relative; `arguments`, `versions`, `durations` (seconds by step) and
    `commands` are printed as they are. The queries that are shown are drawn with `arguments["seed"]`, so
    the same input gives the same page. Raises what `image_path` and `load_image` raise for a picture that
    lies outside `picture_root`, is absent or broken.
    """
    before, seed = fine_tuned.stage_before_sca, arguments.get("seed", 0)
    pictures = _Pictures(picture_root, fine_tuned.rankings)
    queries = fine_tuned.rankings["queries"]
    at_start = {query["query_id"]: query for query in zero_shot.rankings["queries"]}
    moved: dict[str, list[Mapping]] = {outcome: [] for outcome in SCA_OUTCOMES}
    for query in queries:
        if query["moved"]:
            moved[sca_outcome(query, before)].append(query)
    shown = choose_queries(queries, before, count=CARDS, seed=seed)
    shown_moves = _take_in_turn(moved.values(), COLLISIONS, seed)
    page = _environment().get_template("page")
    return page.render(
        tables={"Zero-shot": stage_rows(zero_shot.results), "Fine-tuned": stage_rows(fine_tuned.results)},
        ladder=_ladder(zero_shot.results, fine_tuned.results, before),
        query_count=len(queries),
        gallery_count=len(pictures.paths),
        shortlist=fine_tuned.results["shortlist"],
        fused=before == "fused",
        charts=training_charts(training_log),
        cards=[_card(query, at_start.get(query["query_id"]), before, pictures) for query in shown],
        moved={outcome: len(moved_so) for outcome, moved_so in moved.items()},
        collisions=[_collision(query, queries, before, pictures) for query in shown_moves],
        sca_report=fine_tuned.results["sca_report"],
        arguments=arguments,
        versions=versions,
        seconds={name: f"{duration:.1f}" for name, duration in durations.items()},
        commands=commands,
    )


# ---------------------------------------------------------------------------------- which queries are shown


def is_right(query: Mapping, stage: str) -> bool:
    """Whether the query's first answer at that stage is a relevant picture."""
    return query["stages"][stage]["ids"][0] in query["relevant"]


def sca_outcome(query: Mapping, before: str) -> str:
    """What SCA did to a query that it moved, one of `SCA_OUTCOMES`; `before` is the stage that it settled.

    Where a query has several relevant pictures and SCA moved it from one to another, nothing is lost:
    that counts as "corrected".
    """
    if is_right(query, "sca"):
        return "corrected"
    return "spoilt" if is_right(query, before) else "wrong before and after"


def verdict(query: Mapping, before: str) -> str:
    """In a few words, how the query fared."""
    if query["moved"]:
        return f"moved by SCA: {sca_outcome(query, before)}"
    if not is_right(query, "sca"):
        return "wrong"
    return "right at once" if is_right(query, "embeddings") else "found by matching"


def choose_queries(queries: Sequence[Mapping], before: str, *, count: int, seed: int) -> list[Mapping]:
    """Up to `count` queries in which every kind of success and failure is seen.

    The verdicts, each once for normal and once for anomalous behaviour, take turns; among those of one kind
    `seed` draws.
    """
    groups: dict[tuple[str, str], list[Mapping]] = {}
    for query in queries:
        groups.setdefault((verdict(query, before), query["behaviour"] or ""), []).append(query)
    return _take_in_turn([groups[kind] for kind in sorted(groups)], count, seed)


def _take_in_turn(groups: Iterable[Sequence[Mapping]], count: int, seed: int) -> list[Mapping]:
    """Up to `count` in all: one of each group, then another of each, in an order drawn by `seed`."""
    generator = random.Random(seed)
    shuffled = [generator.sample(group, len(group)) for group in groups]
    rounds = max(map(len, shuffled), default=0)
    return [group[turn] for turn in range(rounds) for group in shuffled if turn < len(group)][:count]


# ------------------------------------------------------------------------------------------- pictures, cards


class _Pictures:
    """The gallery's pictures as data addresses, with the sentence that each of them answers."""

    def __init__(self, root: Path, rankings: Mapping) -> None:
        self.root = root
        self.paths = rankings["gallery"]
        self.sentences = {
            identifier: query["caption"] for query in rankings["queries"] for identifier in query["relevant"]
        }
        self.encoded: dict[str, str] = {}

    def address(self, identifier: str) -> str:
        if identifier not in self.encoded:
            picture = load_image(image_path(self.root, self.paths[identifier]))
            picture.thumbnail((THUMBNAIL_EDGE, THUMBNAIL_EDGE))
            buffer = io.BytesIO()
            picture.save(buffer, format="JPEG", quality=85)
            self.encoded[identifier] = (
                "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
            )
        return self.encoded[identifier]

    def tile(self, query: Mapping, stage: str, identifier: str) -> dict:
        """What the page shows of one picture as an answer to one query at one stage."""
        rank, score = _place(query, stage, identifier)
        right = identifier in query["relevant"]
        alternative = f"Ranked {rank}, " if rank else "Not in the first ten, "
        alternative += "the right picture." if right else "not the right picture."
        if identifier in self.sentences:
            alternative += f" Its own sentence: {self.sentences[identifier]}"
        return {
            "address": self.address(identifier),
            "rank": rank,
            "score": score,
            "right": right,
            "alternative": alternative,
        }


def _place(query: Mapping, stage: str, identifier: str) -> tuple[int, float] | tuple[None, None]:
    """Rank, from 1, and score of a picture among the ten that are listed, or twice None."""
    ids, scores = query["stages"][stage]["ids"], query["stages"][stage]["scores"]
    return next(
        (
            (rank, score)
            for rank, (name, score) in enumerate(zip(ids, scores, strict=True), 1)
            if name == identifier
        ),
        (None, None),
    )


def _rank_of_right(query: Mapping, stage: str) -> str:
    ids = query["stages"][stage]["ids"]
    ranks = [str(rank) for rank, name in enumerate(ids, start=1) if name in query["relevant"]]
    return ranks[0] if ranks else f"> {len(ids)}"


def _card(query: Mapping, at_start: Mapping | None, before: str, pictures: _Pictures) -> dict:
    ids = query["stages"]["sca"]["ids"]
    answers = ids[:PICTURES_PER_CARD]
    if not set(answers) & set(query["relevant"]):
        # The reader wants to see what was missed: the right picture takes the last place, marked as such.
        missed = [name for name in ids if name in query["relevant"]] or query["relevant"]
        answers = [*answers[: PICTURES_PER_CARD - 1], missed[0]]
    ranks = {"the start's embeddings": _rank_of_right(at_start, "embeddings")} if at_start else {}
    ranks["fine-tuned embeddings"] = _rank_of_right(query, "embeddings")
    ranks["matching"] = _rank_of_right(query, before)
    ranks["SCA"] = _rank_of_right(query, "sca")
    return {
        "sentence": query["caption"],
        "behaviour": query["behaviour"],
        "verdict": verdict(query, before),
        "right": is_right(query, "sca"),
        "ranks": ranks,
        "tiles": [pictures.tile(query, "sca", name) for name in answers],
    }


def _collision(query: Mapping, queries: Sequence[Mapping], before: str, pictures: _Pictures) -> dict:
    """A moved query beside the one that kept the picture which both had claimed."""
    claimed, taken = query["stages"][before]["ids"][0], query["stages"]["sca"]["ids"][0]
    holders = []
    for other in queries:
        rank, score = _place(other, before, claimed)
        if rank and other["stages"]["sca"]["ids"][0] == claimed:
            holders.append((score, other))
    collision = {
        "outcome": sca_outcome(query, before),
        "sentence": query["caption"],
        "before": pictures.tile(query, before, claimed),
        "after": pictures.tile(query, before, taken),
        "right_rank": _rank_of_right(query, before),
        "holder": None,
    }
    if holders:
        # Several can hold it where claims were left standing; the best score is the one that won.
        _, holder = max(holders, key=lambda scored: scored[0])
        collision["holder"] = {
            "sentence": holder["caption"],
            "tile": pictures.tile(holder, before, claimed),
        }
    return collision


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


# ---------------------------------------------------------------------------------------------------- charts


def training_charts(training_log: Sequence[Mapping]) -> list[dict]:
    """The charts of a training log: both losses by step and, where it was measured, validation Recall@1."""
    charts = []
    for key, title in (("contrastive_loss", "Contrastive loss"), ("matching_loss", "Matching loss")):
        points = [(line["step"], line[key]) for line in training_log if line.get(key) is not None]
        if points:
            charts.append(
                {"title": title, "svg": line_chart(title, "step", [("each step", points)], smooth=True)}
            )
    recalls: dict[str, list[tuple[float, float]]] = {}
    for line in training_log:
        for stage, groups in line.get("evaluation", {}).items():
            if stage == "embeddings_sca":  # beside the path to the last stage; the table has it
                continue
            recalls.setdefault(_NAMES[stage], []).append((line["step"], 100 * groups["all"]["recall@1"]))
    if recalls:
        title = "Recall@1 on validation, %"
        charts.append({"title": title, "svg": line_chart(title, "step", list(recalls.items()), markers=True)})
    return charts


def line_chart(
    title: str,
    x_label: str,
    lines: Sequence[tuple[str, Sequence[tuple[float, float]]]],
    *,
    smooth: bool = False,
    markers: bool = False,
) -> Markup:
    """An SVG of named lines of (x, y) points, x from 0 on, coloured by the page's style.

    `smooth` draws the points faintly and their moving mean over them. Raises `ValueError` when a line has
    no point or one that is not finite.
    """
    width, height, left, right, top, bottom = 360, 220, 44, 12, 10, 34
    points = [point for _, line in lines for point in line]
    if not all(line for _, line in lines) or not all(
        math.isfinite(x) and math.isfinite(y) for x, y in points
    ):
        raise ValueError(f"chart {title!r}: every line needs points, and finite ones")
    x_ticks = _ticks(0, max(x for x, _ in points))
    y_ticks = _ticks(min(y for _, y in points), max(y for _, y in points))
    x_low, x_high, y_low, y_high = x_ticks[0], x_ticks[-1], y_ticks[0], y_ticks[-1]

    def place(point: tuple[float, float]) -> tuple[float, float]:
        x = left + (point[0] - x_low) / (x_high - x_low) * (width - left - right)
        y = height - bottom - (point[1] - y_low) / (y_high - y_low) * (height - top - bottom)
        return round(x, 1), round(y, 1)

    drawn = []
    for number, (name, line) in enumerate(lines):
        placed = [place(point) for point in line]
        layers = [(placed, "faint" if smooth else "line")]
        if smooth:
            layers.append(([place(point) for point in _moving_mean(line)], "line"))
        drawn.append(
            {"name": name, "layers": layers, "dots": placed if markers else [], "colour": number % 4}
        )
    summary = "; ".join(f"{name}: from {line[0][1]:.3g} to {line[-1][1]:.3g}" for name, line in lines)
    return Markup(
        _environment()
        .get_template("chart")
        .render(
            summary=f"{title} by {x_label}. {summary}.",
            width=width,
            height=height,
            left=left,
            right=width - right,
            bottom=height - bottom,
            x_ticks=[(f"{tick:g}", place((tick, y_low))[0]) for tick in x_ticks],
            y_ticks=[(f"{tick:g}", place((x_low, tick))[1]) for tick in y_ticks],
            x_label=x_label,
            lines=drawn,
        )
    )


def _ticks(low: float, high: float) -> list[float]:
    """Three to seven round numbers, the first at or below `low`, the last at or above `high`."""
    span = (high - low) or abs(high) or 1.0
    raw = span / 4
    magnitude = 10.0 ** math.floor(math.log10(raw))
    spacing = next(step * magnitude for step in (1, 2, 2.5, 5, 10) if step * magnitude >= raw * 0.999)
    first, last = math.floor(low / spacing + 1e-9), math.ceil(high / spacing - 1e-9)
    return [round(index * spacing, 12) for index in range(first, max(last, first + 1) + 1)]


def _moving_mean(line: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The mean of each point and its neighbours, over about a twelfth of the line."""
    reach = len(line) // 24
    windows = [line[max(0, index - reach) : index + reach + 1] for index in range(len(line))]
    return [
        (point[0], sum(y for _, y in window) / len(window))
        for point, window in zip(line, windows, strict=True)
    ]


# -------------------------------------------------------------------------------------------------- template


def _percent(fraction: float | None) -> str:
    return "–" if fraction is None else f"{100 * fraction:.1f}"


def _points(gain: float) -> str:
    """A gain in Recall@1 as points with their sign; what rounds to nothing has none."""
    return f"{100 * gain:+.1f}".replace("-", "−") if round(100 * gain, 1) else "0.0"


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.DictLoader({"page": _PAGE, "style": _STYLE, "chart": _CHART}),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": _percent, "points": _points, "thousands": "{:,}".format}
    return environment


_CHART = """\
<svg viewBox="0 0 {{ width }} {{ height }}" role="img" aria-label="{{ summary }}">
{% for label, y in y_ticks %}
  <line class="grid" x1="{{ left }}" x2="{{ right }}" y1="{{ y }}" y2="{{ y }}"/>
  <text x="{{ left - 6 }}" y="{{ y + 4 }}" text-anchor="end">{{ label }}</text>
{% endfor %}
{% for label, x in x_ticks %}
  <line class="axis" x1="{{ x }}" x2="{{ x }}" y1="{{ bottom }}" y2="{{ bottom + 4 }}"/>
  <text x="{{ x }}" y="{{ bottom + 16 }}" text-anchor="middle">{{ label }}</text>
{% endfor %}
  <line class="axis" x1="{{ left }}" x2="{{ right }}" y1="{{ bottom }}" y2="{{ bottom }}"/>
  <text x="{{ (left + right) / 2 }}" y="{{ bottom + 30 }}" text-anchor="middle">{{ x_label }}</text>
{% for line in lines %}
{% for points, kind in line.layers %}
  <polyline class="{{ kind }} colour{{ line.colour }}"
    points="{% for x, y in points %}{{ x }},{{ y }}{{ " " if not loop.last }}{% endfor %}"/>
{% endfor %}
{% for x, y in line.dots %}
  <circle class="colour{{ line.colour }}" cx="{{ x }}" cy="{{ y }}" r="3"/>
{% endfor %}
{% endfor %}
</svg>
{% if lines | length > 1 %}
<p class="legend">
{% for line in lines %}
  <span class="colour{{ line.colour }}">{{ line.name }}</span>
{% endfor %}
</p>
{% endif %}
"""

_STYLE = """\
:root {
  color-scheme: light dark;
  --page: #f6f6f3; --card: #fff; --text: #1d1f21; --quiet: #62666b; --rule: #dedfda; --soft: #eeefeb;
  --good: #17803d; --bad: #b3261e; --bar: #bcd3ee;
  --line0: #1f5fae; --line1: #c2570c; --line2: #17803d; --line3: #7b3fb5;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #141618; --card: #1e2124; --text: #e7e8e6; --quiet: #a2a7ac; --rule: #363a3e; --soft: #292d31;
    --good: #4cc274; --bad: #ff8f85; --bar: #2d4d73;
    --line0: #86b7f3; --line1: #f0a062; --line2: #4cc274; --line3: #c49bef;
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
svg { width: 100%; height: auto; display: block; margin-top: .4rem; }
svg text { font-size: 11px; fill: var(--quiet); }
svg .grid { stroke: var(--rule); }
svg .axis { stroke: var(--quiet); }
polyline { fill: none; stroke-width: 2; stroke-linejoin: round; }
polyline.faint { stroke-width: 1; opacity: .35; }
circle { fill: currentColor; stroke: none; }
.colour0 { stroke: var(--line0); color: var(--line0); }
.colour1 { stroke: var(--line1); color: var(--line1); }
.colour2 { stroke: var(--line2); color: var(--line2); }
.colour3 { stroke: var(--line3); color: var(--line3); }
.legend { font-size: .8rem; margin: .4rem 0 0; display: flex; flex-wrap: wrap; gap: 0 .9rem; }
.legend span::before { content: "●\\00a0"; }

.tags { display: flex; flex-wrap: wrap; gap: .4rem; margin: 0 0 .5rem; font-size: .8rem; font-weight: 600; }
.tag { border: 1px solid currentColor; border-radius: 1rem; padding: .05rem .6rem; color: var(--quiet); }
.tag.good { color: var(--good); }
.tag.bad { color: var(--bad); }
blockquote { margin: 0 0 .7rem; max-width: 58rem; }
.pictures {
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
  .pictures { grid-template-columns: repeat(3, minmax(0, 1fr)); }
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
{% macro picture(tile, label="") %}
<figure class="{{ "right" if tile.right }}{{ " missed" if tile.right and tile.rank != 1 and not label }}">
  <img src="{{ tile.address }}" alt="{{ tile.alternative }}" title="{{ tile.alternative }}">
  <figcaption>
    {{ label or ("rank %d" % tile.rank if tile.rank else "not in the first ten") -}}
    {{ " · %.2f" % tile.score if tile.score is not none }}
    {% if tile.right %}
    <br><strong>✓ right picture</strong>
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
  <h1>One sentence in, the right person out</h1>
  <p>Text-based person anomaly search finds, for a sentence about a person's looks, action and surroundings,
    the one picture that it describes. A small model that had learnt from drawn people of other looks in
    other places was fine-tuned on newly drawn ones, then searched {{ gallery_count | thousands }} pictures
    that it had never seen with {{ query_count | thousands }} sentences. Every person is among them twice,
    behaving normally and not, and many have a lookalike, so that neither looks nor action alone give the
    answer.</p>
  <p class="quiet over">How often the first picture is the right one (Recall@1):</p>
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
  <p>Embeddings rank the whole gallery by cosine. Cross-modal matching reads sentence and picture together and
    re-scores the best {{ shortlist }}. Similarity Coverage Analysis (SCA) looks at all queries at once and
    settles collisions: where two sentences claim the same picture, the more confident one keeps it and the
    other takes its next one.</p>
  <p class="quiet" id="units">Recall@k and mean average precision over {{ query_count | thousands }} unseen
    sentences, in %. The gain is in Recall@1, in points, over the stage that it builds on.</p>
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
      {{ chart.svg }}
    </div>
{% endfor %}
  </div>
</section>
{% endif %}

<section aria-labelledby="queries">
  <h2 id="queries">{{ cards | length }} queries and what was found</h2>
  <p>The fine-tuned model's answers after the last stage, best first. The right picture is framed in green; a
    dashed frame means that it was not the first answer. The number under a picture is its score,
    {{ "match logit and cosine, each brought to one scale within the query, in a weighted mean" if fused
       else "the logit of a match" }}. The queries were picked so that every kind of success and failure is
    seen, so they say nothing about how often each happens: the table does. Point at a picture to read its own
    sentence.</p>
  <div class="stack">
{% for card in cards %}
  <article class="card">
    <h3 class="tags">
      <span class="tag {{ "good" if card.right else "bad" }}">{{ card.verdict }}</span>
{% if card.behaviour %}
      <span class="tag">{{ card.behaviour }}</span>
{% endif %}
    </h3>
    <blockquote>{{ card.sentence }}</blockquote>
    <ol class="pictures">
{% for tile in card.tiles %}
      <li>{{ picture(tile) }}</li>
{% endfor %}
    </ol>
    <p class="ranks">Rank of the right picture by
{% for name, rank in card.ranks.items() %}
      {{ name }}: <b>{{ rank }}</b>{{ " → " if not loop.last }}
{% endfor %}
    </p>
  </article>
{% endfor %}
  </div>
</section>

<section aria-labelledby="collisions">
  <h2 id="collisions">Collisions settled by SCA</h2>
{% if collisions %}
  <p>SCA moved {{ moved.values() | sum }} of {{ query_count | thousands }} queries to another picture:
    <b class="good">{{ moved["corrected"] }} corrected</b>,
    <b class="bad">{{ moved["spoilt"] }} spoilt</b> (a right answer given up),
    {{ moved["wrong before and after"] }} wrong before and after.
    {{ "These are they:" if collisions | length == moved.values() | sum else "A few of each kind:" }}</p>
  <p class="quiet">Queries that share their first answer with another: {{ sca_report.collisions_before }}
    before, {{ sca_report.collisions_after }} after. Different pictures among the first answers:
    {{ sca_report.coverage_before | percent }} % of the queries before,
    {{ sca_report.coverage_after | percent }} % after; where each picture answers one query, Recall@1 cannot
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
        <h4>This sentence keeps the picture</h4>
        <blockquote>{{ collision.holder.sentence }}</blockquote>
        <div class="alone">{{ picture(collision.holder.tile, "kept") }}</div>
      </div>
{% endif %}
      <div>
        <h4>This one wanted it too, and moves on</h4>
        <blockquote>{{ collision.sentence }}</blockquote>
        <div class="pair">
          {{ picture(collision.before, "before") }}
          <span class="arrow" aria-hidden="true">→</span>
          {{ picture(collision.after, "after") }}
        </div>
{% if not collision.after.right %}
        <p class="ranks">Its right picture was at rank <b>{{ collision.right_rank }}</b> before SCA.</p>
{% endif %}
      </div>
    </div>
  </article>
{% endfor %}
  </div>
{% else %}
  <p>No two queries claimed the same picture, or neither was the more confident: SCA moved nothing.</p>
{% endif %}
</section>

</main>
<footer>
  <p><strong>What this page does not show.</strong> All people here are drawn. The numbers say that the code
    learns and that its stages work together; they say nothing about performance on the real Pedestrian
    Anomaly Behavior set. SCA uses the whole query set and assumes that each picture answers one query, which
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
