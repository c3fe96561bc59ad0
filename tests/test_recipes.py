"""Every recipe in miniature, its commands in this process, and what its table says is whose."""

import importlib
import json
import re
import shutil
import statistics
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_retrieval_models import cached_snapshot, save_tiny
from transformers import BertTokenizer, HfArgumentParser

from tpas.commands.demo import ACCELERATE_LAUNCH, REPOSITORY, TPAS, DemoError, as_flags
from tpas.data.drawn import MANIFEST
from tpas.evaluation.stages import Stage
from tpas.training.arguments import FineTuningArguments

RECIPES = REPOSITORY / "recipes"
REFERENCE = Path(__file__).parent / "data" / "xvlm_reference"
ZERO_SHOT = "77.86 / 98.28 / 99.24"
TABLE_3 = ["85.49 / 99.29 / 99.80", "84.98 / 99.29 / 99.80", "84.43 / 98.89 / 99.44", "83.52 / 98.58 / 99.54"]
# The paper's Tables 2 to 4: name, title, what the paper prints, and beside which stages it stands.
ROWS = [
    ("table_2_zero_shot", "Table 2: X-VLM, zero-shot", ZERO_SHOT, {"matching"}),
    ("table_2_fine_tuned", "Table 2: X-VLM, fine-tuned", "79.98 / 98.94 / 99.44", {"matching"}),
    ("table_2_eva_clip_zero_shot", "Table 2: EVA-CLIP, zero-shot", "60.01 / 90.14 / 94.54", {"embeddings"}),
    ("table_2_eva_clip_fine_tuned", "Table 2: EVA-CLIP, fine-tuned", "77.81 / 98.03 / 99.39", {"embeddings"}),
    ("table_2_llm2clip_zero_shot", "Table 2: LLM2CLIP, zero-shot", "73.61 / 96.97 / 98.58", {"embeddings"}),
    ("table_2_llm2clip_fine_tuned", "Table 2: LLM2CLIP, fine-tuned", "79.93 / 99.09 / 99.75", {"embeddings"}),
    *(
        (f"table_3_{count}k_pairs", f"Table 3: X-VLM, {count},000 training pairs", paper, {"matching", "sca"})
        for count, paper in zip((10, 20, 30, 40), TABLE_3, strict=True)
    ),
    ("table_3_all_pairs", "Table 3: X-VLM, all training pairs", "83.52 / 98.84 / 99.54", {"matching", "sca"}),
    ("table_4_without_sca", "Table 4: X-VLM without SCA", ZERO_SHOT, {"matching"}),
    ("table_4_with_sca", "Table 4: X-VLM with SCA", "80.54 / 98.28 / 99.24", {"sca"}),
]
TRAINING_PAIRS = {"10k": 5, "20k": 10, "30k": 15, "40k": 20}  # of small_pab, for the paper's


@pytest.fixture(autouse=True)
def _recipes_on_the_path(monkeypatch):
    monkeypatch.syspath_prepend(str(RECIPES))  # as `python recipes/name.py` does


@pytest.fixture
def reproduction() -> ModuleType:
    return importlib.import_module("reproduction")


@pytest.fixture
def calls() -> list[str]:
    """The names of the commands that were run."""
    return []


@pytest.fixture
def run_recipe(calls, run_here, fresh_accelerator):
    """A function that runs a recipe, its commands here and not in processes; the one named `fails` does."""

    def run_recipe(recipe: str, *flags: str, fails: str | None = None) -> None:
        def run(command, folder, name, **settings):
            if name == fails:
                raise DemoError("no space", folder / "logs" / f"{name}.log")
            calls.append(name)
            fresh_accelerator()
            run_here(command, folder, name, **settings)

        reproduce = importlib.import_module("reproduce")
        if recipe in reproduce.ROWS:
            reproduce.main([recipe, *flags], run)
        else:
            importlib.import_module(recipe).main(list(flags), run)

    return run_recipe


@pytest.fixture
def miniature(start, small_pab, tmp_path) -> list[str]:
    """Flags that run a recipe on the smallest model and data."""
    output = ["--output_dir", str(tmp_path / "output")]
    return ["--miniature", "--model", str(start), "--data_root", str(small_pab), *output]


def figures(results: dict, stage: str) -> str:
    recalls = (100 * results["stages"][stage]["all"][f"recall@{k}"] for k in (1, 5, 10))
    return " / ".join(f"{recall:.2f}" for recall in recalls)


def table_rows(text: str) -> list[list[str]]:
    """The cells of a Markdown table without its rule."""
    lines = [line for line in text.splitlines() if line.startswith("|") and not line.startswith("|---")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.mark.parametrize(("name", "title", "paper", "stages"), ROWS, ids=[row[0] for row in ROWS])
def test_a_row_in_miniature(name, title, paper, stages, run_recipe, calls, miniature, tmp_path, capsys):
    # A model without a stage 2 in the place of those that have none.
    other = ["--model", str(save_tiny("clip", tmp_path / "clip"))] if "clip" in name else []
    run_recipe(name, *miniature, *other)
    printed, output = capsys.readouterr().out, tmp_path / "output"
    assert (output / f"{name}.md").read_text(encoding="utf-8") in printed
    assert f"# {title}\n" in printed
    assert "In miniature" in printed

    (written,) = output.glob("evaluation/*/results.json")
    results = json.loads(written.read_text(encoding="utf-8"))
    head, *rows = table_rows(printed)
    assert head == ["stage", "measured", "paper (arXiv:2502.03230)"]  # no difference to drawn people
    assert rows == [
        [Stage(stage).label, figures(results, stage), paper if stage in stages else ""]
        for stage in results["stages"]
    ]
    content = json.loads((output / f"{name}.json").read_text(encoding="utf-8"))
    assert content["miniature"]
    assert " / ".join(f"{content['paper'][f'recall@{k}']:.2f}" for k in (1, 5, 10)) == paper
    for stage, measured in content["measured"].items():
        for k in (1, 5, 10):
            recall = results["stages"][stage]["all"][f"recall@{k}"]
            assert measured[f"recall@{k}"] == {"mean": pytest.approx(100 * recall)}

    fine_tuned = name.startswith("table_3") or name.endswith("fine_tuned")
    assert [call.partition("_")[0] for call in calls] == ["fine"] * fine_tuned + ["evaluate"]
    if fine_tuned:
        (run,) = output.glob("fine_tuned/*/training_arguments.json")
        pairs = json.loads(run.read_text())["training_pairs"]
        assert pairs == TRAINING_PAIRS.get(name.split("_")[2], 22)  # all but a held-out video's two
        settings = f"steps: {pairs // 4}, batch: 4; seed 42; best weights."
        assert f"Fine-tuned on {pairs} pairs, {settings}" in printed
        assert results["model"].endswith("/best")


def test_a_recipe_that_was_stopped_goes_on(run_recipe, calls, miniature, tmp_path, capsys):
    """With two seeds, whose mean and deviation are those of the two files."""
    flags = [*miniature, "--seeds", "1", "2"]
    with pytest.raises(SystemExit) as caught:
        run_recipe("table_3_10k_pairs", *flags, fails="evaluate_10000_pairs_seed_2_best")
    assert str(caught.value).startswith("table_3_10k_pairs: no space (the whole output: ")
    assert not (tmp_path / "output" / "table_3_10k_pairs.md").exists()

    calls.clear()
    run_recipe("table_3_10k_pairs", *flags)
    assert calls == ["evaluate_10000_pairs_seed_2_best"]
    capsys.readouterr()
    calls.clear()
    run_recipe("table_3_10k_pairs", *flags)
    assert calls == []

    folders = (tmp_path / f"output/evaluation/10000_pairs_seed_{seed}_best" for seed in (1, 2))
    both = [json.loads((folder / "results.json").read_text()) for folder in folders]
    recalls = [100 * results["stages"]["matching"]["all"]["recall@1"] for results in both]
    printed = capsys.readouterr().out
    shown = f"{statistics.fmean(recalls):.2f} ± {statistics.stdev(recalls):.2f} / "
    assert table_rows(printed)[3][1].startswith(shown)
    assert "mean of seeds 1, 2, ± their standard deviation; best weights." in printed

    # Other settings in the same folder are another run: the training refuses to mix them.
    with pytest.raises(SystemExit, match="other settings: learning_rate 3e-05"):
        run_recipe("table_3_10k_pairs", *flags, "--", "--learning_rate", "1e-3")


def test_the_ladder_beyond_the_paper_is_what_its_score_files_say(
    run_recipe, calls, miniature, tmp_path, capsys
):
    flags = [*miniature, "--seeds", "1", "2", "--fusion_weight", "0.4"]
    run_recipe("stronger_than_the_paper", *flags)
    printed, output = capsys.readouterr().out, tmp_path / "output"
    assert calls.count("fuse_two_models") == 1
    head, *rows = table_rows(printed)
    assert len(rows) == 9
    run = output / "evaluation" / "stronger_than_the_paper_recipe_1"
    results = json.loads((run / "results.json").read_text())
    for row, stage in enumerate(("embeddings", "matching", "fused")):
        assert " / ".join(rows[row][1:4]) == figures(results, stage)
    settings = output.glob("fine_tuned/*/training_arguments.json")
    trained = {path.parent.name: json.loads(path.read_text())["hard_negatives"] for path in settings}
    assert sorted(trained.values()) == [False, True, True]
    assert all(("hard_negatives" in name) == hard_negatives for name, hard_negatives in trained.items())
    assert float(rows[2][4]) == pytest.approx(float(rows[2][1]) - float(rows[1][1]), abs=0.011)
    calls.clear()
    run_recipe("stronger_than_the_paper", *flags)
    assert all(name.startswith(("fuse", "rerank")) for name in calls)  # the models are made once
    with pytest.raises(SystemExit):
        run_recipe("stronger_than_the_paper", *miniature, "--seeds", "1", "1")
    assert "two models need two seeds, got 1 twice" in capsys.readouterr().err


def test_equal_steps_are_another_run_of_their_own(run_recipe, miniature, tmp_path, capsys):
    run_recipe("table_3_40k_pairs", *miniature, "--equal_steps", "--weights", "last")
    printed = capsys.readouterr().out
    assert "Fine-tuned on 20 pairs, steps: 1, batch: 4; seed 42; last weights." in printed
    assert "As many steps as over 5 pairs: not the paper's recipe." in printed
    files = {path.name for path in (tmp_path / "output").glob("table*")}
    assert files == {"table_3_40k_pairs_steps_as_10000.json", "table_3_40k_pairs_steps_as_10000.md"}


def test_what_has_ended_well_is_shared_and_done_again_when_it_must(
    run_recipe, calls, miniature, start, tmp_path
):
    run_recipe("table_4_without_sca", *miniature)
    run_recipe("table_4_with_sca", *miniature)
    run_recipe("table_2_zero_shot", *miniature)
    assert calls == ["evaluate_zero_shot"]

    (tmp_path / "output/evaluation/zero_shot/results.json").unlink()
    run_recipe("table_4_with_sca", *miniature)
    assert len(calls) == 2
    (tmp_path / "output/finished/evaluate_zero_shot.json").write_text("{")  # a disk that was full
    run_recipe("table_4_with_sca", *miniature)
    assert len(calls) == 3
    run_recipe("table_4_with_sca", *miniature, "--", "--sca_mode", "single_pass")
    assert len(calls) == 4
    weights = load_file(start / "model.safetensors")
    save_file({name: tensor * 1.01 for name, tensor in weights.items()}, start / "model.safetensors")
    run_recipe("table_4_with_sca", *miniature, "--", "--sca_mode", "single_pass")
    assert len(calls) == 5


def test_an_evaluation_is_known_by_what_was_evaluated_wherever_it_lies(
    run_recipe, calls, start, small_pab, reproduction, tmp_path
):
    moved, elsewhere = tmp_path / "moved", tmp_path / "other start"
    shutil.copytree(small_pab, moved)
    shutil.copytree(start, elsewhere)

    def run(model: Path, data: Path) -> int:
        flags = ["--model", str(model), "--data_root", str(data), "--output_dir", str(tmp_path / "output")]
        run_recipe("table_4_with_sca", *flags)
        return len(calls)

    assert run(start, small_pab) == run(elsewhere, moved) == 1
    marker = tmp_path / "output" / "finished" / "evaluate_zero_shot.json"
    of_earlier_versions = {"model": start, "data_root": small_pab, "split": "test"}
    of_earlier_versions["output"] = Path("evaluation", "zero_shot", "results.json")
    words = list(map(str, [*TPAS, "evaluate", *as_flags(of_earlier_versions)]))
    weights = reproduction.weights_digest(start)
    marker.write_text(json.dumps({"command": words[1:], "model": weights}))
    assert run(start, small_pab) == 1

    annotations = moved / "annotation" / "test" / "attr.json"
    annotations.write_text(annotations.read_text().replace("man", "person"))
    assert run(start, moved) == 2


def test_only_pab_itself_is_compared(
    run_recipe, start, small_pab, reproduction, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(reproduction, "PAB_TEST_QUERIES", 12)  # as many as the drawn ones
    flags = ["--model", str(start), "--output_dir", str(tmp_path / "output")]
    run_recipe("table_4_with_sca", *flags, "--data_root", str(small_pab))
    printed = capsys.readouterr().out
    assert "Not PAB's 12 test queries" in printed
    assert "measured - paper" not in printed

    pab = tmp_path / "PAB"
    shutil.copytree(small_pab, pab, ignore=shutil.ignore_patterns(MANIFEST))
    run_recipe("table_4_with_sca", *flags, "--data_root", str(pab))
    head, *rows = table_rows(printed := capsys.readouterr().out)
    assert "Not PAB's" not in printed
    assert "in %, PAB, test, 12 queries" in printed
    assert head[3] == "measured - paper"
    *others, sca = rows
    assert all(row[2:] == ["", ""] for row in others)
    measured, paper, difference = ([float(value) for value in cell.split(" / ")] for cell in sca[1:])
    assert paper == [80.54, 98.28, 99.24]
    expected = [ours - papers for ours, papers in zip(measured, paper, strict=True)]
    assert difference == pytest.approx(expected, abs=0.011)


@pytest.mark.parametrize(
    ("flags", "equal_steps"), [([], None), (["--equal_steps"], 10_000), (["--equal_steps", "40000"], 40_000)]
)
def test_the_real_training_is_the_papers(flags, equal_steps, reproduction, tmp_path):
    row = importlib.import_module("reproduce").ROWS["table_3_20k_pairs"]
    words = ["--model", "m", *flags, "--config_file", "a.yaml", "--", "--batch_size", "8"]
    arguments = reproduction.parse_row_arguments(row, words)
    place = reproduction.Workplace("org/xvlm", Path("/pab"), tmp_path, miniature=False)
    words = [str(word) for word in reproduction.fine_tuning_command(row, place, 7, Path("run"), arguments)]
    script = words.index(str(REPOSITORY / "train_accelerate.py"))
    assert words[:script] == [*ACCELERATE_LAUNCH, "--config_file", str(Path("a.yaml").resolve())]
    (parsed,) = HfArgumentParser(FineTuningArguments).parse_args_into_dataclasses(words[script + 1 :])
    default = FineTuningArguments(data_root="/pab", output_dir="run", model_name_or_path="org/xvlm")
    given = vars(parsed).items()
    changed = {name: value for name, value in given if value != getattr(default, name, object())}
    expected = {"pairs": 20_000, "seed": 7, "resume_from_checkpoint": "last", "batch_size": 8}
    expected |= {"checkpoint_every": reproduction.CHECKPOINT_EVERY}
    assert changed == expected | ({} if equal_steps is None else {"steps_as_pairs": equal_steps})


def test_the_grid_converts_measures_and_names_the_nearest(
    run_recipe, calls, start, small_pab, tmp_path, capsys
):
    parts = [load_file(part) for part in sorted(REFERENCE.glob("checkpoint_*.safetensors"))]
    checkpoint = tmp_path / "checkpoint_9.th"
    torch.save({"model": {name: tensor for part in parts for name, tensor in part.items()}}, checkpoint)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "man", "woman", "falls", "red", "blue"]
    tokenizer = tmp_path / "tokenizer"
    BertTokenizer(vocab={word: index for index, word in enumerate(words)}).save_pretrained(tokenizer)
    output = tmp_path / "output"
    flags = ["--models", str(checkpoint), str(start), "--max_text_lengths", "12", "70", "--shortlists", "8"]
    flags += ["12", "--tokenizer", str(tokenizer), "--vision_config", str(REFERENCE / "swin.json")]
    flags += ["--text_config", str(REFERENCE / "bert.json"), "--data_root", str(small_pab), "--miniature"]
    run_recipe("zero_shot_grid", *flags, "--output_dir", str(output))
    assert len([call for call in calls if call.startswith("convert")]) == 1

    expected = set()
    for path in output.glob("evaluation/*/results.json"):
        results = json.loads(path.read_text(encoding="utf-8"))
        of = str(checkpoint) if "converted" in results["model"] else str(start)
        sizes = (of, str(results["image_size"]), str(results["max_text_length"]))
        expected.add((*sizes, "", "embeddings", figures(results, "embeddings"), ZERO_SHOT))
        expected.add((*sizes, str(results["shortlist"]), "matching", figures(results, "matching"), ZERO_SHOT))
    printed = capsys.readouterr().out
    assert (output / "zero_shot_grid.md").read_text(encoding="utf-8") in printed
    head, *rows = table_rows(printed)
    assert head[-3:] == ["measured", "paper (arXiv:2502.03230)", "off"]
    assert {tuple(row[:-1]) for row in rows} == expected
    # Two models at two lengths, each with the embeddings and two shortlists; the start has 32 positions.
    assert len(rows) == len(expected) == 2 * 3 + 3
    distances = []
    for row in rows:
        ours, papers = ([float(value) for value in cell.split(" / ")] for cell in row[5:7])
        distances.append(sum(abs(a - b) for a, b in zip(ours, papers, strict=True)))
        assert float(row[7]) == pytest.approx(distances[-1], abs=0.03)
    assert distances == sorted(distances)
    assert f"Nearest to the paper's: {rows[0][0]}, {rows[0][1]} pixels, {rows[0][2]} tokens" in printed
    assert "none equals the paper's" in printed
    refused = re.findall(r"^- Not measured: (.*)$", printed, flags=re.MULTILINE)
    assert len(refused) == 2
    for line in refused:
        assert line.startswith(f"{start}, max_text_length 70, shortlist ")
        assert "the model's 32 positions" in line

    # What was measured and converted is there; only what was refused is tried again.
    calls.clear()
    run_recipe("zero_shot_grid", *flags, "--output_dir", str(output))
    assert len(calls) == 2


def test_a_grid_of_which_nothing_runs_says_why(run_recipe, miniature, start):
    grid = ["--models", str(start), *(flag for flag in miniature if flag not in ("--model", str(start)))]
    with pytest.raises(SystemExit, match="^zero_shot_grid: .*the model's 32 positions, got 70"):
        run_recipe("zero_shot_grid", *grid, "--max_text_lengths", "70")


def test_equal_to_the_last_digit_that_the_paper_prints():
    grid = importlib.import_module("zero_shot_grid")

    def measured(*found: int):  # of 1,978 queries
        recalls = tuple(100 * count / 1978 for count in found)
        return grid.Measured("a", 384, 70, 128, "matching", recalls)

    assert measured(1540, 1944, 1963).equals_paper
    assert not measured(1541, 1944, 1963).equals_paper
    assert not measured(1540, 1944, 1962).equals_paper
    assert measured(1541, 1944, 1963).distance == pytest.approx(0.0470 + 0.0011 + 0.0017, abs=1e-3)


def test_data_may_be_on_the_hub(reproduction, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="--data_root org/pab: no such folder, nor a data set"):
        reproduction.find_data("org/pab")
    folder = cached_snapshot("org/pab", "0123456789" * 4, "datasets", latest=True)
    assert reproduction.find_data("org/pab") == folder


@pytest.mark.parametrize(
    ("name", "flags", "message"),
    [
        ("table_4_with_sca", [], "give --model (and --data_root), or --miniature"),
        ("table_4_with_sca", ["--seeds", "1"], "unrecognized arguments"),
        ("table_2_fine_tuned", ["--miniature", "--equal_steps"], "unrecognized arguments"),
        ("table_3_10k_pairs", ["--miniature", "--seeds", "1", "1"], "each only once, got 1 1"),
        ("zero_shot_grid", [], "give --models (and --data_root), or --miniature"),
    ],
)
def test_flags_that_cannot_work_are_refused(run_recipe, name, flags, message, capsys):
    with pytest.raises(SystemExit) as caught:
        run_recipe(name, *flags)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_without_data_a_recipe_says_so(run_recipe, tmp_path):
    with pytest.raises(SystemExit, match="^table_4_with_sca: give --data_root"):
        run_recipe("table_4_with_sca", "--model", "m", "--output_dir", str(tmp_path))


def test_every_row_is_listed_and_in_the_readme(capsys):
    reproduce = importlib.import_module("reproduce")
    papers = {name: paper for name, _, paper, _ in ROWS}
    assert reproduce.ROWS.keys() == papers.keys()
    readme = (RECIPES / "README.md").read_text(encoding="utf-8")
    listed = {cells[0]: cells[-1] for cells in table_rows(readme) if cells[-1].count(" / ") == 2}
    assert listed == {f"`{name}`": paper for name, paper in papers.items()} | {
        "`zero_shot_grid.py`": ZERO_SHOT
    }
    reproduce.main([])
    shown = [line.split() for line in capsys.readouterr().out.splitlines()]
    for name, title, paper, _ in ROWS:
        assert [name, *title.split(), *paper.split()] in shown


def test_an_unknown_row_is_refused(capsys):
    with pytest.raises(SystemExit) as caught:
        importlib.import_module("reproduce").main(["table_1"])
    assert caught.value.code == 2
    assert "no row 'table_1'" in capsys.readouterr().err
