"""One `tpas` command: its help, its flags, what it prints where, and the codes with which it ends."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Annotated

import numpy as np
import pytest
import torch
import typer
from torch._utils import ExceptionWrapper
from typer import Option

from tpas import __main__
from tpas.commands.command_line import CHECK_FAILED, CommandLine, CommandResult, WrongUsage
from tpas.reranking.score_files import ScoreFile, write_score_file
from tpas.training.arguments import FineTuningArguments

ROOT = Path(__file__).parents[2]
GROUPED = [["gallery", name] for name in ("build", "append", "delete", "index", "info")]
COMMANDS = [[name] for name in __main__.COMMANDS] + GROUPED


def command_of(words: list[str]):
    """The click command that `tpas WORDS` ends at."""
    found = typer.main.get_command(__main__.app_of(words[0]))
    return found if len(words) == 1 else found.commands[words[1]]


def run_tpas(*words: object, **settings) -> subprocess.CompletedProcess:
    environment = os.environ | settings.pop("environment", {})
    program = [sys.executable, "-m", "tpas", *map(str, words)]
    settings = {"env": environment, "text": True, "timeout": 120} | settings
    return subprocess.run(program, capture_output=True, **settings)


def parse(words: list[str]) -> typer.Context:
    """What follows `tpas`, read by the command that it names; raises where a word does not fit."""
    depth = 2 if words[0] == "gallery" else 1
    return command_of(words[:depth]).make_context("tpas", words[depth:])


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_help_names_an_example_that_parses(words, capsys):
    __main__.main([*words, "--help"])
    shown = capsys.readouterr()
    assert not shown.err
    assert f"Usage: tpas {' '.join(words)} " in shown.out
    examples = re.findall(r"^ {6}(tpas .*)$", shown.out, re.MULTILINE)
    assert examples
    for example in examples:
        given = shlex.split(example)[1:]
        assert given[: len(words)] == words
        parse(given)


def test_tpas_lists_its_commands_and_refuses_others(capsys):
    __main__.main([])
    usage = capsys.readouterr().out
    assert all(f"  {name} " in usage for name in __main__.COMMANDS)
    with pytest.raises(SystemExit, match="No such command 'fly'"):
        __main__.main(["fly"])


def test_a_group_without_a_command_shows_its_help(capsys):
    __main__.main(["gallery"])
    alone = capsys.readouterr().out
    __main__.main(["gallery", "--help"])
    assert alone == capsys.readouterr().out
    assert "append" in alone


def documented_commands() -> list[str]:
    """Every `tpas` line in a code block of the README and docs/."""
    found = []
    for file in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        blocks = re.findall(r"^```\w*\n(.*?)^```", file.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
        lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
        found += [line for line in lines if line.startswith("tpas ")]
    return found


def test_help_has_its_flags_under_headings_and_the_exit_codes_once(capsys):
    def sections(*words: str) -> dict[str, list[str]]:
        __main__.main([*words, "--help"])
        parts = re.split(r"^(\S.*):$", capsys.readouterr().out, flags=re.MULTILINE)[1:]
        return {
            name: re.findall(r"^  (--\w+)", body, re.M)
            for name, body in zip(parts[::2], parts[1::2], strict=True)
        }

    train = sections("train")
    assert train["LoRA"] == ["--lora_rank", "--lora_alpha", "--lora_dropout", "--lora_targets", "--merge"]
    assert train["Options"] == ["--json", "--debug"]
    assert sections("search")["What of films is searched, and made"][0] == "--camera"
    __main__.main(["--help"])
    assert "Exit codes: 0 done, 1 failed, 2 wrong usage" in capsys.readouterr().out


@pytest.mark.parametrize("line", documented_commands())
def test_documented_commands_parse(line):
    parse(shlex.split(line, comments=True)[1:])


def test_every_field_of_the_fine_tuning_is_a_flag_with_its_default():
    options = {option.name: option for option in command_of(["train"]).params}
    for field in fields(FineTuningArguments):
        option = options[field.name]
        assert f"--{field.name}" in option.opts
        assert option.help == field.metadata["help"]
        if not option.required:
            assert option.default == field.default
    assert options["data_root"].required
    assert options["augmentation"].secondary_opts == ["--no_augmentation"]


def test_completion_knows_commands_and_flags():
    def complete(line: str) -> set[str]:
        words = {"_TPAS_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
        return set(run_tpas(environment=words).stdout.split())

    assert complete("tpas s") == {"search", "submit"}
    assert complete("tpas train --sub") == {"--subset"}
    assert complete("tpas gallery build --") >= {"--model", "--path", "--tokens", "--json", "--debug"}
    assert complete("tpas rerank a.npz --method m") == {"margin-sca"}


# The flags


@pytest.fixture
def flags():
    """A command with a flag of each kind, and what it was given."""
    app, seen = CommandLine("tpas try", "Tries flags."), []

    @app.command()
    def try_flags(
        names: list[str],
        some_sizes: Annotated[list[float] | None, Option()] = None,
        deep: Annotated[bool, Option()] = False,
        shown: Annotated[bool, Option("--shown/--no_shown")] = True,
    ) -> None:
        seen.append((names, some_sizes, deep, shown))

    return app, seen


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("a b", (["a", "b"], None, False, True)),
        ("a --some_sizes 1 -2 3e-5 --deep b", (["a", "b"], [1, -2, 3e-5], True, True)),
        ("a --some-sizes 1 --some-sizes=2", (["a"], [1, 2], False, True)),
        ("a --deep True --shown False", (["a"], None, True, False)),
        ("a --deep=false --no-shown", (["a"], None, False, False)),
        ("-- --deep -x", (["--deep", "-x"], None, False, True)),
    ],
)
def test_flags_are_read_with_hyphens_several_values_and_truth_values(flags, words, expected):
    app, seen = flags
    app.run(words.split())
    assert seen == [expected]


@pytest.mark.parametrize(
    ("words", "sca"),
    [(["--sca"], "score"), (["--sca", "--json"], "score"), (["--sca", "margin"], "margin"), ([], None)],
)
def test_sca_may_be_given_without_a_confidence(words, sca):
    parameters = parse(["search", "gallery", "a man", "--model", "m", *words]).params
    assert (parameters["sca"], parameters["texts"]) == (sca, ["a man"])


# What is printed where


@pytest.fixture
def scores(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = ScoreFile(np.eye(3, dtype=np.float32), None, ("a", "b", "c"), ("x", "y", "z"))
    for name in ("one", "two"):
        write_score_file(tmp_path / f"{name}.npz", content)
    return tmp_path


def test_json_is_one_document_and_all_else_goes_to_the_standard_error(scores):
    fused = run_tpas("fuse", "one.npz", "two.npz", "--rrf", "--output", "fused.npz", "--json", cwd=scores)
    assert json.loads(fused.stdout) == {"output": "fused.npz", "queries": 3, "images": 3}
    words = ("rerank", "one.npz", "--method", "sca", "--output", "reranked.npz", "--json")
    assert json.loads(run_tpas(*words, cwd=scores).stdout)["collisions_after"] == 0


def test_what_a_library_prints_does_not_mix_with_the_result(capsys):
    app = CommandLine("tpas try", "Tries.")

    @app.command()
    def chatty() -> CommandResult:
        print("a library's chat")
        return CommandResult(lambda: {"made": "late"}, "for people")

    app.run([])
    assert capsys.readouterr() == ("for people\n", "a library's chat\n")
    app.run(["--json"])
    assert json.loads(capsys.readouterr().out) == {"made": "late"}


def ending_in_call(end: Callable[[], CommandResult]) -> CommandLine:
    """A command that makes this call."""
    app = CommandLine("tpas try", "Tries.")

    @app.command()
    def command() -> CommandResult:
        return end()

    return app


def ending_in(error: BaseException | None = None, result: CommandResult | None = None) -> CommandLine:
    """A command that raises the error, or else returns the result."""

    def end() -> CommandResult:
        if error:
            raise error
        return result

    return ending_in_call(end)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("no good:\n  x.npz"), "tpas try: no good: x.npz"),
        (KeyError("no image 'a'"), "tpas try: no image 'a'"),
    ],
)
def test_an_error_is_one_line_and_debug_shows_its_trace(error, message, capsys, monkeypatch):
    app = ending_in(error)
    with pytest.raises(SystemExit) as ended:
        app.run([])
    assert ended.value.code == message  # which Python prints, and ends with 1
    with pytest.raises(type(error)):
        app.run(["--debug"])
    monkeypatch.setenv("TPAS_DEBUG", "1")
    with pytest.raises(type(error)):
        app.run([])


def test_an_error_of_the_package_in_a_worker_is_the_same_line():
    try:
        raise ValueError("a.jpg, line 3: broken")
    except ValueError:
        in_worker = ExceptionWrapper(where="in DataLoader worker process 0")
    with pytest.raises(SystemExit) as ended:
        ending_in_call(in_worker.reraise).run([])
    assert ended.value.code == "tpas try: a.jpg, line 3: broken"


@pytest.mark.parametrize(
    ("fails", "named"),
    [
        (lambda: {}["key"], "KeyError: 'key'"),
        (lambda: [][0], "IndexError: list index out of range"),
        (lambda: int("one"), "ValueError: invalid literal for int"),
        (lambda: torch.ones(2) @ torch.ones(3), "RuntimeError: inconsistent tensor size"),
        (lambda: exec("assert False"), "AssertionError: "),
    ],
)
def test_an_unforeseen_error_says_so_and_where_its_trace_is(fails, named, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(SystemExit) as ended:
        ending_in_call(fails).run([])
    said = re.fullmatch(
        rf"tpas try: unforeseen {named}.* \(its trace is in (\S+); please report it.*\)", ended.value.code
    )
    trace = Path(said[1])
    assert trace.parent == tmp_path
    assert trace.stat().st_mode & 0o777 == 0o600
    text = trace.read_text(encoding="utf-8")
    assert text.startswith("tpas ")
    assert "Traceback (most recent call last)" in text
    assert named in text


def test_an_error_without_room_for_its_trace_says_how_to_see_it(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(SystemExit, match="unforeseen KeyError: 'key' .--debug shows its trace; please"):
        ending_in_call(lambda: {}["key"]).run([])


def test_memory_that_runs_out_is_no_mistake():
    for error in (MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried 2 GiB")):
        with pytest.raises(SystemExit, match="tpas try: out of memory: (no more|CUDA)"):
            ending_in(error).run([])


def test_a_library_that_fails_is_reported(tmp_path):
    """Its KeyError is not for the user."""
    shutil.copytree(ROOT / "demo_start", tmp_path / "model")
    (tmp_path / "transformers.py").write_text("{}['key']\n")  # where python is started
    words = ("search", ".", "a man", "--model", "model")
    failed = run_tpas(*words, cwd=tmp_path, environment={"TMPDIR": str(tmp_path)})
    assert (failed.returncode, failed.stdout) == (1, "")
    line = failed.stderr.splitlines()[-1]
    said = re.fullmatch(r"tpas search: unforeseen KeyError: 'key' .* in (\S+); please .*", line)
    assert said is not None, line
    assert "transformers.py" in Path(said[1]).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("app", "code", "printed"),
    [
        (ending_in(WrongUsage("--a needs --b")), 2, ("", "tpas try: --a needs --b (tpas try --help)\n")),
        (ending_in(KeyboardInterrupt()), 130, ("", "tpas try: interrupted\n")),
        (ending_in(result=CommandResult([], "two mistakes", CHECK_FAILED)), 3, ("two mistakes\n", "")),
    ],
    ids=["wrong usage", "an interruption", "a check that failed"],
)
def test_each_way_to_end_has_its_own_code(app, code, printed, capsys):
    with pytest.raises(SystemExit) as ended:
        app.run([])
    assert ended.value.code == code
    assert capsys.readouterr() == printed


def test_the_program_ends_with_these_codes(tmp_path):
    wrong = run_tpas("fuse", "a.npz", "--weight", "1")
    assert wrong.returncode == 2
    assert re.fullmatch(r"tpas fuse: No such option: --weight.*\n", wrong.stderr)
    failed = run_tpas("fuse", "a.npz", "b.npz", "--rrf", "--output", "c.npz", cwd=tmp_path)
    assert (failed.returncode, failed.stdout) == (1, "")
    assert failed.stderr == "tpas fuse: [Errno 2] No such file or directory: 'a.npz'\n"
    for words, environment in ((["--debug"], {}), ([], {"TPAS_DEBUG": "1"})):
        words += ["fuse", "a.npz", "b.npz", "--rrf", "--output", "c.npz"]
        traced = run_tpas(*words, cwd=tmp_path, environment=environment)
        assert traced.returncode == 1
        assert "Traceback" in traced.stderr
        assert traced.stderr.endswith("FileNotFoundError: [Errno 2] No such file or directory: 'a.npz'\n")


@pytest.mark.parametrize(
    "words", ["rerank one.npz --method sca --output s.npz", "rerank --help", "--help", "--version"]
)
def test_a_reader_that_leaves_early_is_no_error(words, scores):
    pipe = f"{sys.executable} -m tpas {words} | true; echo $PIPESTATUS"
    process = subprocess.run(["bash", "-c", pipe], capture_output=True, text=True, cwd=scores, check=True)
    assert process.stderr == ""
    assert process.stdout.strip() in ("0", "141")  # 0: all was written before the reader left


@pytest.mark.parametrize(
    ("environment", "shown"),
    [
        ({"PYTHONIOENCODING": "utf-8"}, "人 é"),
        ({"PYTHONIOENCODING": "cp1252"}, r"\u4eba é"),
        ({"PYTHONIOENCODING": "ascii"}, r"\u4eba \xe9"),
    ],
)
def test_what_a_terminal_cannot_show_costs_no_answer(environment, shown, tmp_path):
    """The result, an error, and JSON, which loses nothing."""
    write_score_file(tmp_path / "one.npz", ScoreFile(np.eye(2), None, ("a", "b"), ("x", "y")))
    words = ["rerank", "one.npz", "--method", "sca", "--output", "人 é.npz"]
    settings = {"environment": environment, "cwd": tmp_path, "encoding": environment["PYTHONIOENCODING"]}
    done = run_tpas(*words, **settings)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{shown}.npz: 2 queries" in done.stdout
    assert json.loads(run_tpas(*words, "--json", **settings).stdout)["output"].endswith("人 é.npz")
    failed = run_tpas("rerank", "人 é.npz", "--method", "sca", "--output", "é 人", **settings)
    assert failed.returncode == 1
    assert "a score file ends in .npz" in failed.stderr
