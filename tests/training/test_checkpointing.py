"""Runs that are killed, stopped or out of room go on as if nothing had happened."""

import json
import multiprocessing
import os
import re
import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
import training_runs
from accelerate import Accelerator, debug_launcher
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from training_runs import WatchedRun, losses_of, stopped_after, train, weights

from tpas.data.pab import load_pab
from tpas.data.whole_files import held_alone
from tpas.modeling_tpas import TPASModel
from tpas.training.checkpointing import (
    DamagedCheckpointError,
    Progress,
    check_whole,
    find_checkpoints,
    read_progress,
    save_checkpoint,
)
from tpas.training.fine_tuning import Run
from tpas.training.log import TrainingLog
from tpas.training.processes import main_process_first, of_main_process
from tpas.training.run_folder import recover_models

pytestmark = pytest.mark.usefixtures("fresh_accelerator")

# Three epochs of four steps of two batches, a checkpoint every second step, a log line every third.
settings = {"num_train_epochs": 3, "batch_size": 2, "gradient_accumulation_steps": 2}
flags = partial(training_runs.flags, **settings, checkpoint_every=2, log_every=3)


def train_until_killed(where: str, number: int, arguments: list[str]) -> None:
    """Ends its process without a word, as a power cut does: after a step, or with a file half written."""
    calls = 0

    def kill_at(function: Callable, counts: Callable[..., bool] = lambda *args: True) -> Callable:
        def killing(*args, **kwargs):
            nonlocal calls
            answer = function(*args, **kwargs)
            calls += counts(*args)
            if calls == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return answer

        return killing

    if where == "step":
        stopped_after(number, arguments, signal.SIGKILL).train()
    elif where == "checkpoint":
        Accelerator.save_state = kill_at(Accelerator.save_state)
    elif where == "model":
        os.replace = kill_at(os.replace, lambda source, target: os.path.basename(target) == "best")
    train(arguments)


def killed(where: str, number: int, arguments: list[str]) -> None:
    fork = multiprocessing.get_context("fork")  # spares the second import of everything
    process = fork.Process(target=train_until_killed, args=(where, number, arguments))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def assert_same_run(one: Path, other: Path, lines: int = 7) -> None:
    """To the bit: both models, and the log."""
    for name in ("best", "last"):
        expected, actual = weights(one / name), weights(other / name)
        assert all(torch.equal(tensor, actual[key]) for key, tensor in expected.items()), name
    log, other_log = ((run / "training_log.jsonl").read_text() for run in (one, other))
    assert log == other_log
    assert len(log.splitlines()) == lines  # by default four lines of losses, three evaluations
    assert not {path.name for path in other.iterdir()} - {path.name for path in one.iterdir()}


@pytest.fixture(scope="module")
def finished() -> list[Path]:
    """The run that nothing happened to, once there is one: `start` holds the same in every test."""
    return []


@pytest.fixture
def whole(small_pab, start, tmp_path, finished, tmp_path_factory) -> Path:
    """A copy of the run that nothing happened to."""
    if not finished:
        finished.append(tmp_path_factory.mktemp("finished") / "run")
        train(flags(small_pab, start, finished[0]))
    return shutil.copytree(finished[0], tmp_path / "whole")


@pytest.fixture
def stopped(small_pab, start, tmp_path) -> Path:
    """A run that was stopped after two of its twelve steps."""
    with pytest.raises(SystemExit, match="143"):
        stopped_after(3, flags(small_pab, start, tmp_path / "run")).train()
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("where", "number", "last_step"),
    [("step", 3, None), ("step", 13, 6), ("checkpoint", 3, 4), ("model", 1, 4)],
    ids=["before the first checkpoint", "in an epoch", "writing a checkpoint", "replacing a model"],
)
def test_a_killed_run_ends_bit_equal(small_pab, start, tmp_path, whole, where, number, last_step):
    arguments = flags(small_pab, start, tmp_path / "run")
    killed(where, number, arguments)
    found = find_checkpoints(tmp_path / "run" / "checkpoints")
    assert [int(path.name[5:]) for path in found][-1:] == ([] if last_step is None else [last_step])
    train([*arguments, "--resume_from_checkpoint", "last"])
    assert_same_run(whole, tmp_path / "run")
    kept = [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()]
    assert sorted(kept) == ["step_00000010", "step_00000012"]


@pytest.fixture
def signals_as_on_a_terminal():
    """Of tests that are run in the background, or by nohup, some are ignored."""
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("signals_as_on_a_terminal")
@pytest.mark.parametrize(("number", "code"), [("SIGTERM", 143), ("SIGHUP", 129), ("SIGINT", 130)])
def test_a_signal_saves_and_ends(small_pab, start, tmp_path, whole, number, code):
    arguments = flags(small_pab, start, tmp_path / "run", checkpoint_every=0)
    number = signal.Signals[number]
    before = signal.getsignal(number)
    run = stopped_after(5, arguments, number)
    with pytest.raises(SystemExit) as end:
        run.train()
    assert end.value.code == code
    assert run.batches_done == 6  # to the end of the step it was in
    assert signal.getsignal(number) is before
    assert [path.name for path in find_checkpoints(tmp_path / "run" / "checkpoints")] == ["step_00000003"]
    train([*arguments, "--resume_from_checkpoint", "last"])
    assert_same_run(whole, tmp_path / "run")


class StoppedWhileSaving(WatchedRun):
    def save_checkpoint(self):
        if self.progress.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        super().save_checkpoint()


def test_a_signal_while_a_checkpoint_is_written_leaves_it_whole(small_pab, start, tmp_path, whole):
    arguments = flags(small_pab, start, tmp_path / "run")
    with pytest.raises(SystemExit, match="143"):
        StoppedWhileSaving(arguments, lambda run, losses: None).train()
    found = find_checkpoints(tmp_path / "run" / "checkpoints")
    assert [path.name for path in found] == ["step_00000002", "step_00000003"]
    check_whole(found[0])
    train([*arguments, "--resume_from_checkpoint", "last"])
    assert_same_run(whole, tmp_path / "run")


@pytest.mark.usefixtures("signals_as_on_a_terminal")
def test_a_second_ctrl_c_ends_a_run_at_once(small_pab, start, tmp_path):
    run = stopped_after(1, flags(small_pab, start, tmp_path / "run"), signal.SIGINT)
    run.stop.one_press = -1.0

    def press_again(run, losses):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    run.after_batch = press_again
    with pytest.raises(KeyboardInterrupt):
        run.train()
    assert not find_checkpoints(tmp_path / "run" / "checkpoints")


def test_a_run_goes_on_ignoring_what_it_was_told_to_ignore(small_pab, start, tmp_path, whole):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as `nohup` does
    try:
        stopped_after(5, flags(small_pab, start, tmp_path / "run"), signal.SIGHUP).train()
    finally:
        signal.signal(signal.SIGHUP, before)
    assert_same_run(whole, tmp_path / "run")


def train_on_two_processes(arguments: list[str], stop_after: int | None) -> None:
    """A run of which a signal comes to the second process alone, after some batches."""
    accelerator = Accelerator()
    assert accelerator.num_processes == 2
    if stop_after is None:
        train(arguments)
        return
    with pytest.raises(SystemExit, match="143"):
        stopped_after(stop_after if accelerator.process_index == 1 else -1, arguments).train()


def test_two_processes_stop_together_and_go_on_bit_equal(small_pab, start, tmp_path):
    whole, run = (flags(small_pab, start, tmp_path / name) for name in ("whole", "run"))
    resumed = [*run, "--resume_from_checkpoint", "last"]
    for arguments, stop_after in ((whole, None), (run, 3), (resumed, None)):
        debug_launcher(train_on_two_processes, (arguments, stop_after), num_processes=2)
        if stop_after:
            found = find_checkpoints(tmp_path / "run" / "checkpoints")
            assert [path.name for path in found] == ["step_00000002"]
    assert_same_run(tmp_path / "whole", tmp_path / "run", lines=5)


def fail_on_one_of_two_processes(folder: Path) -> None:
    """Each process raises what the other one fails with, and none waits for ever."""
    accelerator = Accelerator()
    main = accelerator.is_main_process
    full = OSError(28, "No space left on device")
    for failing, method in ((1, "save_state"), (0, "save_state"), (0, "save_more")):
        step = len(find_checkpoints(folder)) + 1
        fails = Mock(side_effect=full if accelerator.process_index == failing else None)
        message = rf"step {step} could not be written \(.*No space left"
        with pytest.MonkeyPatch.context() as patch:
            if method == "save_state":
                patch.setattr(Accelerator, method, fails)
            with pytest.raises(RuntimeError, match=message):
                save_checkpoint(accelerator, folder, Progress(step=step), {}, 9, fails)
        save(folder, step, kept=9)
    assert len(find_checkpoints(folder)) == 3
    with pytest.raises(IsADirectoryError):
        TrainingLog(folder, accelerator).step(1, 0.1, {}, "")
    run = SimpleNamespace(accelerator=accelerator, processor=None, output_dir=folder)
    with pytest.raises(AttributeError, match="save_pretrained"):  # of a model that is none
        Run.keep(run, torch.nn.Identity(), "last")
    data = Mock(side_effect=ValueError("no data") if main else None)
    with pytest.raises(ValueError, match="no data"), main_process_first(accelerator):
        data()
    assert data.called == main
    assert of_main_process(accelerator, lambda: accelerator.process_index) == 0


def test_what_one_process_fails_with_ends_all(tmp_path):
    debug_launcher(fail_on_one_of_two_processes, (tmp_path,), num_processes=2)


def test_a_full_disk_leaves_the_last_good_checkpoint(small_pab, start, tmp_path, whole, monkeypatch):
    arguments = flags(small_pab, start, tmp_path / "run")
    save_state = Accelerator.save_state

    def run_out_of_room(self, folder):
        save_state(self, folder)
        if "step_00000006" in folder:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(Accelerator, "save_state", run_out_of_room)
    with pytest.raises(SystemExit, match=r"step 6 could not .*No space.*last good one is .*step_00000004"):
        train(arguments)
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == ["step_00000002", "step_00000004"]
    monkeypatch.undo()
    train([*arguments, "--resume_from_checkpoint", str(tmp_path / "run" / "checkpoints" / "step_00000002")])
    assert_same_run(whole, tmp_path / "run")


class RunOutOfMemory(WatchedRun):
    """Fails in the evaluation of its second epoch."""

    def validate(self, model, weights=None):
        if self.progress.epoch == 1:
            raise RuntimeError("out of memory")
        super().validate(model, weights)


def test_an_evaluation_that_fails_costs_no_step(small_pab, start, tmp_path, whole):
    arguments = flags(small_pab, start, tmp_path / "run", checkpoint_every=0)
    with pytest.raises(RuntimeError, match="out of memory"):
        RunOutOfMemory(arguments, lambda run, losses: None).train()
    run = WatchedRun([*arguments, "--resume_from_checkpoint", "last"], lambda run, losses: None)
    run.train()
    assert run.batches_done == 8  # those of the third epoch
    assert_same_run(whole, tmp_path / "run")


def test_a_full_disk_leaves_the_last_good_model(small_pab, start, tmp_path, whole, monkeypatch):
    arguments = flags(small_pab, start, tmp_path / "run", checkpoint_every=0)
    save, calls = TPASModel.save_pretrained, []

    def run_out_of_room(self, folder, *more, **settings):
        save(self, folder, *more, **settings)
        calls.append(folder.name)
        if calls.count("last") == 2:
            raise SafetensorError("No space left on device")

    monkeypatch.setattr(TPASModel, "save_pretrained", run_out_of_room)
    with pytest.raises(SystemExit, match=r"run/last could not be written \(.*No space.*untouched. Make room"):
        train(arguments)
    assert not list((tmp_path / "run").glob(".last.*"))
    TPASModel.from_pretrained(tmp_path / "run" / "last")
    monkeypatch.undo()
    train([*arguments, "--resume_from_checkpoint", "last"])
    assert_same_run(whole, tmp_path / "run")


def spoil_a_loss(run, losses):
    return {name: torch.tensor(float("nan")) for name in losses} if run.batches_done == 7 else None


@torch.no_grad()
def ruin_a_weight(run, losses):
    if run.batches_done == 8:  # the last one of step 4, where a checkpoint is due; the losses were finite
        run.plain_objective.model.image_projection.bias.fill_(float("inf"))


@pytest.mark.parametrize(("spoil", "evaluate_every"), [(spoil_a_loss, 1), (ruin_a_weight, 0)])
def test_what_is_no_finite_number_stops_before_it_is_saved(small_pab, start, tmp_path, spoil, evaluate_every):
    arguments = flags(small_pab, start, tmp_path / "run", evaluate_every=evaluate_every)
    message = r"a loss or weight is no finite number by step 4\. "
    message += ".*--resume_from_checkpoint last.*--learning_rate"
    with pytest.raises(FloatingPointError, match=message):
        WatchedRun(arguments, spoil).train()
    assert [path.name for path in find_checkpoints(tmp_path / "run" / "checkpoints")] == ["step_00000002"]


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(small_pab, start, tmp_path, whole, caplog):
    """Whichever of its files was altered, cut off or lost."""
    older, newest = find_checkpoints(whole / "checkpoints")
    check_whole(newest)
    files = [path for path in newest.rglob("*") if path.is_file()]
    assert {"checksums.json", "progress.json", "random_states_0.pkl"} < {path.name for path in files}
    for file in files:
        content = file.read_bytes()
        middle = len(content) // 2
        # A checksum that was altered is another than some file's.
        named = newest if file.name == "checksums.json" else file
        altered = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        for damaged in (altered, content[:middle], None):
            file.unlink() if damaged is None else file.write_bytes(damaged)
            with pytest.raises(DamagedCheckpointError, match=rf"{re.escape(str(named))}\S* is "):
                check_whole(newest)
            file.write_bytes(content)

    (newest / "random_states_0.pkl").write_bytes(b"")
    again = partial(flags, small_pab, start, whole)
    with pytest.raises(
        SystemExit, match=r"0\.pkl is damaged \(it has 0 bytes.*restore it, or take the newest"
    ):
        train(again(resume_from_checkpoint=newest))
    expected = weights(whole / "last")
    shutil.rmtree(whole / "last")
    train(again(resume_from_checkpoint="last"))
    assert "random_states_0.pkl is damaged (it has 0 bytes" in caplog.text
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(whole / "last").items())

    for checkpoint in (older, newest):
        (checkpoint / "model.safetensors").unlink()
    with pytest.raises(SystemExit, match=r"no checkpoint in \S* is whole: .*model\.safetensors is missing; "):
        train(again(resume_from_checkpoint="last"))


def test_a_damaged_checkpoint_of_an_earlier_version_is_named(small_pab, start, tmp_path, stopped):
    (checkpoint,) = find_checkpoints(stopped / "checkpoints")
    (checkpoint / "checksums.json").unlink()
    change_json(checkpoint / "progress.json", lambda content: content.pop("checksums"))
    check_whole(checkpoint)
    for name in ("random_states_0.pkl", "optimizer.bin", "model.safetensors"):
        content = (checkpoint / name).read_bytes()
        (checkpoint / name).write_bytes(content[: len(content) // 2])
        with pytest.raises(SystemExit, match=rf"no checkpoint in \S* is whole: \S*{name} is damaged"):
            train(flags(small_pab, start, stopped, resume_from_checkpoint="last"))
        (checkpoint / name).write_bytes(content)


def test_what_a_checkpoint_holds_is_not_run(small_pab, start, tmp_path, stopped):
    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "run by a pickle"),)

    (checkpoint,) = find_checkpoints(stopped / "checkpoints")
    (checkpoint / "checksums.json").unlink()
    change_json(checkpoint / "progress.json", lambda content: content.pop("checksums"))
    for name in ("random_states_0.pkl", "optimizer.bin", "scheduler.bin"):
        content = (checkpoint / name).read_bytes()
        torch.save(Payload(), checkpoint / name)
        with pytest.raises(SystemExit, match=f"{name} is damaged"):
            train(flags(small_pab, start, stopped, resume_from_checkpoint="last"))
        (checkpoint / name).write_bytes(content)
    assert not (tmp_path / "run by a pickle").exists()


def test_a_second_run_in_one_folder_is_refused(small_pab, start, tmp_path, stopped):
    def contents() -> dict[Path, bytes]:
        files = (path for path in stopped.rglob("*") if path.is_file() and path.name != "run.lock")
        return {path: path.read_bytes() for path in files}

    before = contents()
    run = WatchedRun(
        flags(small_pab, start, stopped, resume_from_checkpoint="last"), lambda run, losses: None
    )
    run.patience = 0.1
    message = rf"another run writes to {stopped} \(process {os.getpid()} on "
    with held_alone(stopped / "run.lock"), pytest.raises(RuntimeError, match=message):
        run.train()
    assert contents() == before
    fresh = WatchedRun(flags(small_pab, start, tmp_path / "new"), lambda run, losses: None)
    shutil.copytree(stopped, tmp_path / "new")  # as if another had begun, and ended, meanwhile
    with pytest.raises(FileExistsError, match="new holds a run already"):
        fresh.train()


def test_a_complete_run_stays_as_it_is_and_says_so(small_pab, start, tmp_path, whole, caplog):
    caplog.set_level("INFO")

    def contents() -> tuple[dict[Path, bytes], dict[str, object]]:
        files = {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()}
        return files, json.loads(files.pop(whole / "training_arguments.json"))

    before, arguments = contents()
    arguments |= {"output_dir": str(whole), "model_name_or_path": str(start)}  # of a copy
    train(flags(small_pab, start, whole, resume_from_checkpoint="last"))
    assert contents() == (before, arguments | {"resume_from_checkpoint": "last"})
    assert "steps are done, nothing is left to train" in caplog.text


def save(directory: Path, step: int, kept: int, **progress: object) -> None:
    save_checkpoint(Accelerator(), directory, Progress(step=step, **progress), {}, kept, lambda path: None)


def test_a_checkpoint_that_is_being_removed_is_found_no_more(tmp_path, monkeypatch):
    def killed(path, ignore_errors=False):
        raise KeyboardInterrupt

    def save_killed_while_removing(**progress: object) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "rmtree", killed)
            with pytest.raises(KeyboardInterrupt):
                save(tmp_path, 3, kept=1, **progress)

    for step in (1, 2):
        save(tmp_path, step, kept=2)
    save_killed_while_removing()
    assert [path.name for path in find_checkpoints(tmp_path)] == ["step_00000003"]
    save(tmp_path, 3, kept=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000003"]
    save_killed_while_removing(epoch=1)  # in its place
    (found,) = find_checkpoints(tmp_path)
    assert read_progress(found, {}).epoch == 1


def test_checkpoints_later_than_the_one_gone_back_to_are_replaced(tmp_path):
    for step in (1, 2, 3, 4):
        save(tmp_path, step, kept=4)
    save(tmp_path, 3, kept=2)
    assert [path.name for path in find_checkpoints(tmp_path)] == ["step_00000002", "step_00000003"]


def test_a_run_with_other_settings_is_refused_by_their_names(small_pab, start, tmp_path, whole):
    changes = {"learning_rate": 2e-3, "checkpoints_kept": 5, "resume_from_checkpoint": "last"}
    with pytest.raises(SystemExit, match=r"other settings: learning_rate 0\.001 \(now 0\.002\)\. Give"):
        train(flags(small_pab, start, whole, **changes))
    with pytest.raises(SystemExit, match=r"start is no checkpoint: there is no progress\.json"):
        train(flags(small_pab, start, whole, resume_from_checkpoint=start))
    last, elsewhere = whole / "checkpoints" / "step_00000012", start.with_name("elsewhere")
    with pytest.raises(SystemExit, match=r"step_00000012 is of another run than \S*elsewhere"):
        train(flags(small_pab, start, elsewhere, resume_from_checkpoint=last))
    assert not elsewhere.exists()
    deleting = flags(small_pab, start, whole, overwrite_output_dir=True, resume_from_checkpoint="last")
    with pytest.raises(SystemExit, match="needs the run that --overwrite_output_dir deletes"):
        train(deleting)


def change_json(path: Path, change: Callable[[dict], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_a_run_goes_on_wherever_its_data_and_its_start_lie(small_pab, start, tmp_path, whole, stopped):
    moved, elsewhere = tmp_path / "moved", tmp_path / "other start"
    shutil.copytree(small_pab, moved)
    shutil.copytree(start, elsewhere)
    image = moved / load_pab(small_pab, "train", validation_fraction=0.34)[0]["image"]
    image.write_bytes(image.read_bytes() + b"\0")  # repaired meanwhile, one of many
    named = {"dataset_name": "streets", "resume_from_checkpoint": "last"}
    train(flags(moved, elsewhere, stopped, **named))
    assert_same_run(whole, stopped)
    settings = json.loads((stopped / "training_arguments.json").read_text())
    assert settings["dataset_name"] == "streets"
    assert json.loads((whole / "training_arguments.json").read_text())["dataset_name"] == "pab (drawn)"


def test_other_data_or_another_start_are_refused_under_the_same_name(small_pab, start, tmp_path):
    data, run = tmp_path / "pab", tmp_path / "run"
    shutil.copytree(small_pab, data)
    with pytest.raises(SystemExit, match="143"):
        stopped_after(3, flags(data, start, run)).train()
    again = flags(data, start, run, resume_from_checkpoint="last")

    content = {path: path.read_bytes() for path in [start / "model.safetensors", *data.rglob("*.j*")]}
    tensors = load_file(start / "model.safetensors")
    save_file({name: tensor * 1.01 for name, tensor in tensors.items()}, start / "model.safetensors")
    with pytest.raises(
        SystemExit, match=r"the content of model_name_or_path '\S*start' \(now .* [0-9a-f]{16}"
    ):
        train(again)
    (start / "model.safetensors").write_bytes(content[start / "model.safetensors"])

    annotations = next((data / "annotation" / "train").glob("*.json"))
    annotations.write_bytes(content[annotations].replace(b"man", b"boy", 1))
    with pytest.raises(
        SystemExit, match=r"the content of data_root '\S*pab' \(now .*data_fingerprint [0-9a-f]{16}"
    ):
        train(again)
    annotations.write_bytes(content[annotations])

    for image in data.rglob("*.jpg"):
        image.write_bytes(content[image] + b"\0")
    with pytest.raises(SystemExit, match=r"the images of data_root '\S*pab' .*, 16 of 16 of another size"):
        train(again)
    for path, before in content.items():
        path.write_bytes(before)
    train(again)


def test_a_run_of_an_earlier_version_goes_on_where_it_lay(small_pab, start, tmp_path, whole, stopped):
    (checkpoint,) = find_checkpoints(stopped / "checkpoints")
    newer = ("data_fingerprint", "start_fingerprint", "image_sizes", "lr_scheduler_type", "equal_texts_match")

    def as_before(content: dict) -> None:
        for name in newer:
            del content["settings"][name]
        del content["progress"]["planned_steps"], content["checksums"]

    change_json(checkpoint / "progress.json", as_before)
    (checkpoint / "checksums.json").unlink()
    moved = tmp_path / "moved"
    shutil.copytree(small_pab, moved)
    with pytest.raises(SystemExit, match=rf"other settings: data_root '\S*pab' \(now '{moved}'\)\. Give"):
        train(flags(moved, start, stopped, resume_from_checkpoint="last"))
    train(flags(small_pab, start, stopped, resume_from_checkpoint="last"))
    assert_same_run(whole, stopped)


def learning_rates(run: Path) -> list[float]:
    entries = map(json.loads, (run / "training_log.jsonl").read_text().splitlines())
    return [entry["learning_rate"] for entry in entries if "learning_rate" in entry]


@pytest.mark.parametrize(
    "shorter",
    [
        {"num_train_epochs": 2},
        {"num_train_epochs": 2, "checkpoint_every": 0},
        {"max_train_steps": 5, "checkpoint_every": 0},
    ],
    ids=["epochs", "a checkpoint an epoch", "within an epoch"],
)
def test_a_finished_run_at_a_constant_rate_becomes_longer_bit_equal(
    small_pab, start, tmp_path, caplog, shorter
):
    constant = {"lr_scheduler_type": "constant", "log_every": 1}
    train(flags(small_pab, start, tmp_path / "whole", **constant))
    run = tmp_path / "run"
    train(flags(small_pab, start, run, **constant | shorter))
    longer = {"num_train_epochs": 3, "resume_from_checkpoint": "last"}
    caplog.set_level("INFO")
    train(flags(small_pab, start, run, **constant | longer))
    expected = weights(tmp_path / "whole" / "last")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(run / "last").items())
    assert losses_of(run) == losses_of(tmp_path / "whole")
    done = shorter.get("max_train_steps", 8)
    assert f"12 steps in place of {done}: from step {done} the learning rate stays 0.001 (it" in caplog.text


def test_a_longer_run_takes_the_schedule_of_its_new_length(small_pab, start, tmp_path, caplog):
    every_step = {"log_every": 1, "warmup_ratio": 0.25}
    train(flags(small_pab, start, tmp_path / "whole", **every_step))
    run = tmp_path / "run"
    train(flags(small_pab, start, run, num_train_epochs=2, **every_step))
    caplog.set_level("INFO")
    train(flags(small_pab, start, run, resume_from_checkpoint="last", **every_step))
    # As transformers' Trainer, but for its first step, which is still the old schedule's, of rate 0.
    assert learning_rates(run)[8:] == learning_rates(tmp_path / "whole")[8:]
    message = (
        "12 steps in place of 8: from step 8 the learning rate goes on at 0.000444 (it was 0) and falls to 0"
    )
    assert message in caplog.text


def test_a_run_cannot_become_shorter_than_it_is(small_pab, start, tmp_path, whole):
    shorter = flags(small_pab, start, whole, num_train_epochs=2, resume_from_checkpoint="last")
    message = (
        "has done 12 steps, 3 epochs, and --num_train_epochs 2 asks for 8 steps: give a greater --num_train"
    )
    with pytest.raises(SystemExit, match=message):
        train(shorter)
    averaged = {"average_last_epochs": 2, "num_train_epochs": 2}
    train(flags(small_pab, start, tmp_path / "run", **averaged))
    longer = averaged | {"num_train_epochs": 3, "resume_from_checkpoint": "last"}
    with pytest.raises(
        SystemExit, match="--average_last_epochs 2: which epochs are the last was settled for 8"
    ):
        train(flags(small_pab, start, tmp_path / "run", **longer))


def test_a_run_in_another_precision_of_accelerate_is_refused(small_pab, start, tmp_path, whole, monkeypatch):
    assert json.loads((whole / "training_arguments.json").read_text())["mixed_precision"] == "no"
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with pytest.raises(SystemExit, match=r"other settings: mixed_precision 'no' \(now 'bf16'\)"):
        train([*flags(small_pab, start, whole), "--resume_from_checkpoint", "last"])


def test_a_model_that_was_being_replaced_is_put_back(tmp_path):
    for name in (".best.replaced", ".last.replaced", "last", ".last.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "made").write_text(name)
    recover_models(tmp_path)
    left = {path.name: (path / "made").read_text() for path in tmp_path.iterdir()}
    assert left == {"best": ".best.replaced", "last": "last"}


def test_only_finished_checkpoints_are_found(tmp_path):
    for name in ("step_00000010", "step_00000009", ".step_00000011.partial", "other"):
        (tmp_path / name).mkdir()
    assert [path.name for path in find_checkpoints(tmp_path)] == ["step_00000009", "step_00000010"]
    assert not find_checkpoints(tmp_path / "absent")
