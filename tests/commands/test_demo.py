"""The demo end to end at toy size, and what it does when something fails or is in its way."""

import importlib
import importlib.util
import json
import os
import shlex
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from accelerate.commands.launch import launch_command_parser

from tpas.commands import demo
from tpas.commands.demo import DemoError, DemoSettings
from tpas.evaluation.result_files import Evaluation

TOY = replace(demo.QUICK, train_pairs=120, test_pairs=12, max_train_steps=3, batch_size=4, num_workers=0)


def test_the_demo_from_the_drawing_to_the_page(start, run_here, tmp_path, capsys):
    output_dir = tmp_path / "demo"
    result = demo.run_demo(TOY, start, 3, output_dir, run_here)

    printed = capsys.readouterr().out
    for number in range(1, 8):
        assert f"[{number}/7] " in printed
    assert "step 3/3, loss " in printed
    assert (output_dir / "index.html").as_uri() in result.text
    assert {path.name for path in output_dir.iterdir()} == demo.OUTPUT_NAMES
    assert sorted(os.listdir(tmp_path)) == ["demo", "start"]
    page = (output_dir / "index.html").read_text(encoding="utf-8")
    for name in ("zero_shot", "fine_tuned"):
        files = (output_dir / "evaluation" / name / file for file in ("results.json", "rankings.json"))
        evaluation = Evaluation.read(*files, image_root=output_dir / "pab")
        assert evaluation.results["queries"] == evaluation.results["gallery"] == 12
        assert evaluation.results["fusion_weight"] == TOY.fusion_weight
        figures = evaluation.results["stages"]["sca"]["all"]
        recalls = [f"{100 * figures[f'recall@{k}']:.1f}" for k in (1, 5, 10)]
        assert all(f">{recall}<" in page for recall in recalls)
        assert any(line.split()[:5] == ["+", "SCA", *recalls] for line in result.text.splitlines())
        assert evaluation.results["data_root"] == "pab"  # true wherever the folder is
    assert "Contrastive loss" in page
    assert "Recall@1 on validation" in page
    assert "Moments of films" in page
    assert ".partial" not in page
    assert f"--data_root {output_dir}/pab" in page
    assert "accelerate launch --num_processes 1" in page

    # Once more into the same folder: an earlier demo gives way, and the same seed measures the same.
    demo.run_demo(TOY, start, 3, output_dir, run_here)
    again = json.loads((output_dir / "evaluation" / "fine_tuned" / "results.json").read_text())
    assert again["stages"] == evaluation.results["stages"]
    assert sorted(os.listdir(tmp_path)) == ["demo", "start"]


def test_the_fine_tuning_command_is_one_that_accelerate_takes(monkeypatch):
    def parse():
        command = demo.fine_tuning_command(DemoSettings(), Path("/start"), 5)
        assert command[:3] == [sys.executable, "-m", "accelerate.commands.launch"]
        return launch_command_parser().parse_args([str(word) for word in command[3:]])

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    parsed = parse()
    assert parsed.num_processes == 1
    assert 1 <= parsed.num_cpu_threads_per_process <= 8
    flags = dict(zip(parsed.training_script_args[::2], parsed.training_script_args[1::2], strict=True))
    assert flags["--seed"] == "5"
    assert flags["--model_name_or_path"] == "/start"
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert parse().num_cpu_threads_per_process == 3


def python(code):
    return [sys.executable, "-c", code]


def test_a_command_runs_in_the_folder_with_its_output_in_the_log(tmp_path):
    calls = []
    code = "import os, time; print(os.getcwd()); time.sleep(1.2)"
    demo.run_logged(python(code), tmp_path, "a", lambda: calls.append(1))
    assert (tmp_path / "logs" / "a.log").read_text() == f"{tmp_path}\n"
    assert calls


def test_a_failed_command_says_why(tmp_path):
    with pytest.raises(DemoError, match="^ValueError: attr_0.json, line 3: broken$") as caught:
        demo.run_logged(python("raise ValueError('attr_0.json, line 3: broken')"), tmp_path, "a")
    assert caught.value.log == tmp_path / "logs" / "a.log"
    with pytest.raises(DemoError, match="^a ended with status 7$"):
        demo.run_logged(python("raise SystemExit(7)"), tmp_path, "a")


# What a launcher does: starts another process, which tells through a pipe that it lives, and waits for it.
LAUNCHER = """
import subprocess, sys
work = "import time; pipe = open('pipe', 'wb', 0); pipe.write(b'begun'); time.sleep(30); pipe.write(b'done')"
subprocess.run([sys.executable, "-c", work])
"""


def test_an_interrupted_demo_leaves_nothing_running(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    pipe = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)

    def interrupt():
        if os.read(pipe, 5) == b"begun":
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt), demo.ending_tidily():
        demo.run_logged(python(LAUNCHER), tmp_path, "a", interrupt)
    os.set_blocking(pipe, True)
    assert os.read(pipe, 5) == b""  # closed by the end of the process, which did not come to its "done"
    os.close(pipe)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ("Traceback (most recent call last):\nFileNotFoundError: x.jpg\n", "FileNotFoundError: x.jpg"),
        ("torch.OutOfMemoryError: no\nsubprocess.CalledProcessError: ['a']\n", "torch.OutOfMemoryError: no"),
        ("usage: a.py\na.py: error: unrecognized: --b\n", "a.py: error: unrecognized: --b"),
        ("no such model\n\n", "no such model"),
        ("", ""),
    ],
)
def test_reason_of_failure(output, reason):
    assert demo.reason_of_failure(output) == reason


def test_progress_reads_finished_lines_only_and_speaks_ten_times_at_most(tmp_path, capsys):
    path = tmp_path / "training_log.jsonl"
    progress = demo.TrainingProgress(path, 100)
    progress.show()
    for step in range(1, 101):
        with path.open("a") as log:
            log.write(json.dumps({"step": step, "loss": 1.0}) + "\n")
        progress.show()
    with path.open("a") as log:
        log.write('{"step": 101, "lo')
    assert len(progress.read()) == 100
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 10
    assert lines[-1].split() == ["step", "100/100,", "loss", "1.000"]


MADE = json.dumps({"made_by": demo.MADE_BY})


def test_a_failing_step_leaves_the_earlier_demo_and_its_log(tmp_path):
    output_dir = tmp_path / "demo"
    output_dir.mkdir()
    (output_dir / "index.html").write_text("earlier")
    (output_dir / demo.MARKER).write_text(MADE)

    def fail(command, folder, name):
        demo.run_logged(python("print('much'); raise OSError('no space')"), folder, name)

    with pytest.raises(DemoError) as caught:
        demo.run_demo(TOY, Path("/start"), 0, output_dir, fail)
    kept = tmp_path / "demo.failed.log"
    assert str(caught.value) == f"step 2 of 7 failed: OSError: no space (the whole output: {kept})"
    assert kept.read_text().startswith("much\n")
    assert (output_dir / "index.html").read_text() == "earlier"
    assert sorted(os.listdir(tmp_path)) == ["demo", "demo.failed.log"]


def make_model_folder(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    return tmp_path / "model"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is a file"),
        ({"thesis.txt": "mine"}, "was not made by this demo"),
        ({demo.MARKER: "{"}, "was not made by this demo"),
        ({demo.MARKER: '{"made_by": "somebody"}'}, "was not made by this demo"),
        ({demo.MARKER: MADE, "thesis.txt": "mine"}, r"more .*\(thesis.txt\)"),
    ],
)
def test_what_is_not_a_demo_is_not_replaced(tmp_path, content, message):
    output_dir = tmp_path / "demo"
    if content is None:
        output_dir.write_text("")
    else:
        output_dir.mkdir()
        for name, text in content.items():
            (output_dir / name).write_text(text)
    with pytest.raises(DemoError, match=message):
        demo.run_demo(TOY, Path("/start"), 0, output_dir)
    assert os.listdir(tmp_path) == ["demo"]


def test_an_absent_or_empty_folder_may_be_used(tmp_path):
    demo.check_output_dir(tmp_path / "absent")
    demo.check_output_dir(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model_name_or_path", "nowhere"], "no model in nowhere"),
        (["--seed", "-1"], "'--seed': Input should be greater than or equal to 0"),
        (["--train_pairs", "0"], "'--train_pairs': Input should be greater than or equal to 2"),
        (["--test_pairs", "8"], "'--test_pairs': Input should be greater than or equal to 10"),
        (["--max_train_steps", "many"], "Invalid value"),
    ],
)
def test_arguments_that_cannot_work_are_refused(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:  # a flag given twice has its last value
        demo.main(["--model_name_or_path", str(make_model_folder(tmp_path)), *arguments])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["model"]


def test_flags_override_the_settings_and_quick_makes_them_small(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(demo, "run_demo", lambda *arguments: seen.append(arguments))
    model = make_model_folder(tmp_path)
    words = ["--model_name_or_path", str(model)]
    demo.main([*words, "--train_pairs", "50", "--output_dir", str(tmp_path / "out"), "--seed", "4"])
    demo.main([*words, "--quick", "--max_train_steps", "2"])
    assert seen[0] == (replace(DemoSettings(), train_pairs=50), model, 4, tmp_path / "out")
    assert seen[1][0] == replace(demo.QUICK, max_train_steps=2)


def test_a_drawing_that_fails_names_its_step(tmp_path):
    with pytest.raises(DemoError, match="^step 1 of 7 failed: train_pairs must be an even number"):
        demo.run_demo(replace(TOY, train_pairs=7), Path("/start"), 0, tmp_path / "demo")
    assert os.listdir(tmp_path) == []


def test_the_shown_command_can_be_typed(tmp_path):
    command = demo.fine_tuning_command(DemoSettings(), demo.REPOSITORY / "demo_start", 5)
    words = shlex.split(demo.shown_command(command, tmp_path / "the demo"))
    assert words[:2] == ["accelerate", "launch"]
    assert words[words.index("train_accelerate.py") + 1] == "--data_root"
    assert words[words.index("--data_root") + 1] == f"{tmp_path}/the demo/pab"
    assert words[words.index("--model_name_or_path") + 1] == "demo_start"
    command = demo.evaluation_command(DemoSettings(), Path("fine_tuned/best"), "fine_tuned")
    shown = demo.shown_command(command, demo.REPOSITORY / "outputs" / "demo")
    assert shown.startswith("tpas evaluate --model outputs/demo/fine_tuned/best --data_root ")


@pytest.fixture
def demo_seeds(monkeypatch):
    path = demo.REPOSITORY / "benchmarks" / "demo_seeds.py"
    monkeypatch.syspath_prepend(path.parent)
    spec = importlib.util.spec_from_file_location("demo_seeds", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def results(**recall_at_1):
    figures = {"recall@5": 0.9, "recall@10": 1.0, "mAP": 0.6}
    return {"stages": {stage: {"all": {"recall@1": value} | figures} for stage, value in recall_at_1.items()}}


def test_seeds_are_averaged_figure_by_figure(demo_seeds):
    mean = demo_seeds.mean_results([results(matching=0.2, sca=0.5), results(matching=0.6, sca=0.5)])
    assert mean["stages"]["matching"]["all"]["recall@1"] == pytest.approx(0.4)
    assert mean["stages"]["sca"] == results(sca=0.5)["stages"]["sca"]


def test_each_seed_has_a_row(demo_seeds):
    run = {"seed": 3, "zero_shot": results(embeddings=0.1), "fine_tuned": results(embeddings=0.4)}
    assert "| 3 | 10.0 → 40.0 |" in demo_seeds.markdown([run], DemoSettings())


@pytest.mark.parametrize(
    ("worse", "failing"),
    [
        ({}, []),
        ({"sca": 0.5}, ["fine-tuned: fused < with SCA"]),
        ({"embeddings": 0.5}, ["fine-tuned: embeddings < fused"]),
        ({"matching": 0.1}, ["zero-shot < fine-tuned, cross-modal matching"]),
        ({"embeddings": 0.3, "fused": 0.39}, ["fine-tuned, after matching: at least 40 %"]),
    ],
)
def test_every_step_is_judged(demo_seeds, worse, failing):
    zero_shot = results(embeddings=0.1, embeddings_sca=0.1, matching=0.2, fused=0.2, sca=0.25)
    tuned = {"embeddings": 0.4, "embeddings_sca": 0.45, "matching": 0.3, "fused": 0.5, "sca": 0.6}
    judged = demo_seeds.checks(zero_shot, results(**(tuned | worse)))
    assert [what for what, _, _, holds in judged if not holds] == failing
