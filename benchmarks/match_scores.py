"""Which number of the matching head ranks best: its match logit, or the softmax over both of its logits.

    python benchmarks/match_scores.py --seeds 0 2 3

Each seed draws a PAB, fine-tunes the demo's start on it and lets the best model read each test text with its
shortlist. Prints the texts whose own image comes first by either number, for the start as well, and for how
many texts the one does not descend among the best 12 by the other, as a page showed it that ranks by one and
prints the other. `--output` writes it as JSON and as Markdown beside it; `--quick` only shows that it runs.
"""

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from demo_runs import captioned_table, draw_people, seeds_parser, settings_of
from drawn_people import DEMO_START, EncodedPeople, encode_test_pairs
from measuring import write_output

from tpas.commands.demo import DemoSettings, fine_tuning_command, run_logged
from tpas.engine.fastest import matcher_for
from tpas.search.ranking import reorder

SHOWN = 12  # images of an answer on the search page
COLUMNS = ["match logit", "softmax of both", f"orders that differ in the best {SHOWN}"]


def counts_of(people: EncodedPeople, shortlist: int) -> list[int]:
    """Of all texts: right by the match logit, right by the softmax, and whose best show the two at odds."""
    shortlists = people.ranking[:, :shortlist]
    logits = matcher_for(people.model).logits_of_shortlists(people.images, people.texts, shortlists)
    match, difference = logits[:, :, 1], logits[:, :, 1] - logits[:, :, 0]  # the softmax is monotone in it
    relevant = torch.tensor([people.benchmark.gallery_ids.index(own) for (own,) in people.benchmark.relevant])
    right = [int((reorder(shortlists, score)[0][:, 0] == relevant).sum()) for score in (match, difference)]
    best = difference.gather(1, match.sort(dim=1, descending=True, stable=True).indices[:, :SHOWN])
    return [*right, int((best.diff(dim=1) > 0).any(dim=1).sum())]


def written(settings: DemoSettings, rows: dict[str, list[int]]) -> tuple[dict[str, Any], str]:
    """The figures, and a table of them."""
    caption = f"Of {settings.test_pairs} texts each; right: the text's own image comes first."
    heads = ["", *(f"right by the {column}" for column in COLUMNS[:2]), COLUMNS[2]]
    table = captioned_table(caption, heads, [[name, *map(str, row)] for name, row in rows.items()])
    return {"settings": asdict(settings), "columns": COLUMNS, "rows": rows}, table


def main(argv: list[str] | None = None) -> None:
    arguments = seeds_parser(__doc__, seeds=[0, 2, 3]).parse_args(argv)
    settings = settings_of(arguments)
    rows = {}
    for seed in arguments.seeds:
        with tempfile.TemporaryDirectory(prefix="tpas-match-") as created:
            folder = Path(created)
            data_root = draw_people(folder, settings, seed)
            run_logged(fine_tuning_command(settings, DEMO_START, seed), folder, "fine_tune")
            for name, model in (("start", DEMO_START), ("fine-tuned", folder / "fine_tuned" / "best")):
                people = encode_test_pairs(model, data_root, folder / "cache")
                rows[f"{name}, seed {seed}"] = counts_of(people, settings.shortlist)
                print(f"{name}, seed {seed}: {rows[f'{name}, seed {seed}']}", flush=True)
    content, table = written(settings, rows)
    print(f"\n{table}")
    write_output(arguments.output, content, table)


if __name__ == "__main__":
    main()
