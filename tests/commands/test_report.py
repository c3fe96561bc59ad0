"""One table of many results: what is averaged, what never is, and files that are none."""

import csv
import json
import statistics
from pathlib import Path

import pytest
from matplotlib import pyplot
from PIL import Image

from tpas.commands.report import main as report

FIGURES = ("recall@1", "recall@5", "mAP", "median_rank")


def results(folder: Path, name: str, first: float, fingerprint: str = "f", **changes: object) -> Path:
    """A results file whose every figure follows from one."""
    stages = {
        stage: {
            group: dict(zip(FIGURES, (first + shift, 0.75, first / 2, 4.0), strict=True))
            for group in ("all", "normal")
        }
        for stage, shift in (("embeddings", 0.0), ("sca", 0.125))
    }
    content = {
        "model": "model",
        "model_fingerprint": f"weights of {name}",
        "dataset_name": "mine",
        "split": "test",
        "queries": 8,
        "gallery": 9,
        "data_fingerprint": fingerprint,
        "shortlist": 8,
        "stages": stages,
    }
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content | changes))
    return path


def rows_of(markdown: str) -> list[list[str]]:
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_runs_that_differ_in_their_seed_are_averaged(tmp_path, capsys):
    training = {"learning_rate": 1e-4, "output_dir": "out"}
    files = [
        results(tmp_path, f"{name}.json", first, model=f"{name}/best", training=training | {"seed": seed})
        for seed, (name, first) in enumerate((("a", 0.25), ("b", 0.5), ("c", 0.375)))
    ]
    other = results(
        tmp_path, "d.json", 0.5, model="d/best", training=training | {"learning_rate": 1, "seed": 0}
    )
    named = [
        results(tmp_path, name, 0.5, model=f"runs/seed_{name[0]}/best", shortlist=3)
        for name in ("1.json", "2.json")
    ]
    files += [
        other,
        *named,
        results(tmp_path, "x_seed_1.json", 0.25),
        results(tmp_path, "x_seed_2.json", 0.75),
    ]
    table = tmp_path / "table.csv"
    report([*map(str, files), "--csv", str(table)])
    heads, _, *rows = rows_of(capsys.readouterr().out)
    assert heads[3:] == ["Recall@1", "Recall@5", "mAP", "Recall@1, normal"]
    together = ", ".join(str(path.with_suffix("")) for path in files[:3])
    assert [row[:3] for row in rows[::2]] == [
        [together, "3", "embeddings"],
        [str(tmp_path / "d"), "1", "embeddings"],
        ["runs/best", "2", "embeddings"],
        [str(tmp_path / "x"), "2", "embeddings"],
    ]
    shown = ["37.50 ± 12.50", "50.00 ± 12.50", "50.00", "62.50", "50.00 ± 0.00", "62.50 ± 0.00"]
    assert [row[3] for row in rows] == [*shown, "50.00 ± 35.36", "62.50 ± 35.36"]
    assert rows[0][4] == "75.00 ± 0.00"
    with table.open() as stream:
        written = list(csv.DictReader(stream))
    line = next(row for row in written if (row["n"], row["stage"], row["group"]) == ("3", "sca", "normal"))
    values = [0.375, 0.625, 0.5]
    assert float(line["recall@1"]) == statistics.fmean(values)
    assert float(line["recall@1_deviation"]) == statistics.stdev(values)
    assert (line["dataset_name"], line["queries"], line["data_fingerprint"]) == ("mine", "8", "f")


def test_what_differs_in_more_than_the_seed_is_not_averaged(tmp_path, capsys):
    first = results(tmp_path, "seed_1.json", 0.25)
    files = [
        first,
        results(tmp_path, "seed_2.json", 0.5, shortlist=4),
        results(tmp_path, "seed_3.json", 0.5, model="other"),
        results(tmp_path, "seed_4.json", 0.5, fingerprint="g"),
        results(tmp_path, "again/seed_1.json", 0.25, model_fingerprint="weights of seed_1.json"),
        results(tmp_path, "again/seed_2.json", 0.25, model_fingerprint="weights of seed_1.json"),
    ]
    report(list(map(str, files)))
    printed = capsys.readouterr().out
    assert printed.count("## mine, test: 8 queries, 9 images") == 2  # one of other data under the same name
    assert "±" not in printed
    with pytest.raises(SystemExit, match="but their shortlist is 8 and 4: evaluate them alike"):
        report([*map(str, files[:2]), "--group", "seed"])


def test_score_files_are_averaged_by_name_and_a_group_by_its_pattern(tmp_path, capsys):
    of_file = {"all": {"recall@1": 0.5, "median_rank": None}}
    files = [
        results(tmp_path, f"fused_seed{seed}.json", 0, scores={}, stages={f"fused_seed{seed}.npz": of_file})
        for seed in (1, 2)
    ]
    report(list(map(str, files)))
    assert rows_of(capsys.readouterr().out)[2] == [str(tmp_path / "fused"), "2", "fused.npz", "50.00 ± 0.00"]
    files = [results(tmp_path, f"{name}.json", 0.25) for name in ("p_a", "q_a", "p_b")]
    report([*map(str, files), "--group", r"([^/]*)_\w\.json"])
    assert [row[:2] for row in rows_of(capsys.readouterr().out)[2::2]] == [["p", "2"], ["q", "1"]]


def test_the_figure_has_a_panel_for_each_data_set(tmp_path, capsys):
    files = [results(tmp_path, "a_seed_1.json", 0.25), results(tmp_path, "a_seed_2.json", 0.5)]
    sizes = []
    for more in ([], [results(tmp_path, "b.json", 0.5, fingerprint="g")]):
        plot, markdown = tmp_path / "p.png", tmp_path / "t.md"
        report([*map(str, [*files, *more]), "--plot", str(plot), "--markdown", str(markdown)])
        assert markdown.read_text() == capsys.readouterr().out
        with Image.open(plot) as image:
            sizes.append(image.height)
            assert len(image.convert("L").getcolors()) > 20
    assert sizes[1] > 1.5 * sizes[0]
    assert pyplot.get_fignums() == []


WHOLE = {"stages": {"sca": {"all": {}}}, "data_fingerprint": "f", "split": "test", "queries": 1, "gallery": 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "a.json: not a JSON file"),
        ("[]", "a.json: not written by tpas evaluate --output: it holds no JSON object"),
        ('{"gallery": {}, "queries": []}', "a.json: .*: the rankings that tpas evaluate --rankings writes"),
        ('{"seeds": [1], "stages": {}}', "a.json: .*: the summary of a training on several seeds"),
        (
            '{"stages": {}}',
            "a.json: .* it has no data_fingerprint and no split and no queries and no gallery",
        ),
        (json.dumps(WHOLE | {"split": 1}), "a.json: its split must be a text, got 1"),
        (json.dumps(WHOLE | {"dataset_name": []}), r"a.json: its dataset_name must be a text, got \[\]"),
        (
            json.dumps(WHOLE | {"gallery": float("nan")}),
            "a.json: its gallery must be a number",
        ),
        (json.dumps(WHOLE | {"stages": {"sca": {"all": {"mAP": 10**400}}}}), "a.json: stage 'sca' must have"),
        ("[" * 100_000, "a.json: not a JSON file"),
    ],
)
def test_what_is_no_result_is_called_what_it_is(tmp_path, content, message):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(SystemExit, match=message):
        report([str(tmp_path / "a.json")])


def test_what_cannot_be_reported_is_refused(tmp_path):
    path = results(tmp_path, "a_seed_1.json", 0.25)
    one_stage = {"embeddings": {"all": {"recall@1": 0.5}}}
    other = results(tmp_path, "a_seed_2.json", 0.25, stages=one_stage)
    for words, message in (
        ([path, path], "a_seed_1.json is given twice"),
        ([path, other], "a_seed_2.json: no stage 'sca', which others of .*a have"),
        ([path, "--group", "zzz"], "a_seed_1.json: --group 'zzz' matches nothing in it"),
        ([path, "--group", "("], "no regular expression"),
        ([path, "--plot", tmp_path / "a.bmp"], "a.bmp: a figure is written as one of png"),
        (
            [path, "--plot", tmp_path / "a.png", "--figure", "none"],
            "there is no 'none' to draw of mine, test",
        ),
        ([tmp_path / "s.npz"], "s.npz: a score file, which has no labels: tpas evaluate --scores"),
    ):
        with pytest.raises(SystemExit, match=message):
            report(list(map(str, words)))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a_seed_1.json", "a_seed_2.json"]
