"""What is written is whole, or what was there is untouched."""

import multiprocessing
import os
import resource
import signal
import stat
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tpas.data.whole_files import (
    AlreadyHeldError,
    check_readable,
    held_alone,
    holder_of,
    recover,
    replacing,
    write_text,
)


def test_two_writers_and_a_failed_one_leave_a_whole_file(tmp_path):
    path = tmp_path / "results.txt"
    with replacing(path) as unfinished:
        unfinished.write_text("first, ")
        write_text(path, "another")
        assert path.read_text() == "another"
        with unfinished.open("a") as file:
            file.write("second")
    assert path.read_text() == "first, second"

    def write_half():
        with replacing(path) as unfinished:
            unfinished.write_text("half")
            raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        write_half()
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "\udc80")
    assert path.read_text() == "first, second"
    assert list(tmp_path.iterdir()) == [path]


def write_tensors(path):
    save_file({"tensor": np.zeros(20_000)}, path)


def write_arrays(path):
    with path.open("wb") as file:
        np.savez(file, array=np.zeros(20_000))


@pytest.mark.parametrize(
    "write", [write_tensors, write_arrays, lambda path: path.write_bytes(bytes(160_000))]
)
def test_a_full_disk_is_said_with_the_file(tmp_path, write):
    """As a limit of file sizes, which anybody can set, with the errors of a full disk."""
    path = tmp_path / "results"
    path.write_text("before")

    def write_it():
        with replacing(path) as unfinished:
            write(unfinished)

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(OSError, match=f"{path} could not be written: the disk is full, or"):
            write_it()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def write_in_turn(path, word, times):
    for _ in range(times):
        write_text(path, word * 2000, durable=True)


def test_two_processes_that_write_one_file_leave_the_whole_of_one(tmp_path):
    path, context = tmp_path / "file", multiprocessing.get_context("fork")
    writers = [context.Process(target=write_in_turn, args=(path, word, 60)) for word in ("a", "b")]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        if path.exists():
            assert path.read_text() in ("a" * 2000, "b" * 2000)
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert list(tmp_path.iterdir()) == [path]


def write_folder(path, content):
    with replacing(path, durable=True) as unfinished:
        unfinished.mkdir()
        (unfinished / content).write_text(content)


def test_a_folder_is_replaced_whole(tmp_path):
    path = tmp_path / "new" / "folder"
    write_folder(path, "first")
    write_folder(path, "second")
    assert os.listdir(path) == ["second"]
    with pytest.raises(FileNotFoundError):
        write_folder(path, "no/such/folder")
    assert os.listdir(path) == ["second"]
    assert os.listdir(path.parent) == ["folder"]


def replace_and_die(path, renames):
    """Is killed when it has renamed so many times."""
    rename, done = os.replace, []

    def rename_or_die(source, target):
        if len(done) == renames:
            os.kill(os.getpid(), signal.SIGKILL)
        done.append(target)
        rename(source, target)

    os.replace = rename_or_die
    write_folder(path, "second")


@pytest.mark.parametrize("renames", [0, 1])
def test_a_folder_that_was_being_replaced_is_put_back(renames, tmp_path):
    path = tmp_path / "folder"
    write_folder(path, "first")
    process = multiprocessing.get_context("fork").Process(target=replace_and_die, args=(path, renames))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert path.exists() == (renames == 0)
    recover(path)
    assert os.listdir(path) == ["first"]
    assert os.listdir(tmp_path) == ["folder"]


def write_and_die(path: Path) -> None:
    with replacing(path) as unfinished:
        unfinished.mkdir()
        (unfinished / "large").write_bytes(b"0" * 1000)
        os.kill(os.getpid(), signal.SIGKILL)


def test_what_a_killed_process_left_goes_and_what_a_living_one_writes_stays(tmp_path):
    path = tmp_path / "model"
    process = multiprocessing.get_context("fork").Process(target=write_and_die, args=(path,))
    process.start()
    process.join()
    (left,) = tmp_path.iterdir()
    assert (left / "model" / "large").exists()
    with replacing(path) as living:
        assert not left.exists()
        living.mkdir()
        write_folder(path, "second")
        assert living.exists()
        write_folder(tmp_path / "other", "beside")
        (living / "made").write_text("third")
    assert sorted(os.listdir(tmp_path)) == ["model", "other"]
    assert os.listdir(path) == ["made"]


def test_what_was_begun_and_left_goes_when_it_is_a_day_old(tmp_path):
    for age in (0, 2):
        (tmp_path / f".model.{age}.begun").mkdir()
        os.utime(tmp_path / f".model.{age}.begun", 2 * (time.time() - age * 24 * 60 * 60,))
    write_folder(tmp_path / "model", "whole")
    assert sorted(os.listdir(tmp_path)) == [".model.0.begun", "model"]


def test_a_lock_names_who_holds_it_and_ends_with_it(tmp_path):
    lock = tmp_path / "lock"
    with held_alone(lock):
        with pytest.raises(AlreadyHeldError, match=rf"^process {os.getpid()} on \S+$"), held_alone(lock):
            pass
        assert holder_of(lock).startswith(f"process {os.getpid()} on ")
    with held_alone(lock):
        pass


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_the_umask_says_who_may_read(umask, tmp_path):
    before = os.umask(umask)
    try:
        with replacing(tmp_path / "folder") as unfinished:
            unfinished.mkdir()
            save_file({"weights": np.zeros(2)}, unfinished / "model.safetensors")
            (unfinished / "config.json").write_text("{}")
        with replacing(tmp_path / "scores.safetensors") as unfinished:
            save_file({"scores": np.zeros(2)}, unfinished)
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*.*")}
    assert modes == dict.fromkeys(("model.safetensors", "config.json", "scores.safetensors"), 0o666 & ~umask)
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o777 & ~umask


def check_as_another_user(folder):
    """Without the rights of root, to whom everything is readable."""
    os.chdir(folder.parent)  # while the folders above may be gone through
    if os.geteuid() == 0:
        os.setuid(65534)
    check_readable(Path("open"))
    for name, named in (("closed", "closed"), ("half", "half/weights")):
        message = f"^{named} may not be read by this user: its owner can allow it, by chmod -R a.rX {named},"
        with pytest.raises(PermissionError, match=message):
            check_readable(Path(name))


def test_what_a_user_may_not_read_is_named_with_the_way_out(tmp_path):
    for name, folder_mode, mode in (("open", 0o755, 0o644), ("half", 0o755, 0), ("closed", 0, 0o644)):
        (tmp_path / name).mkdir()
        for file in ("config", "weights"):
            (tmp_path / name / file).touch()
        (tmp_path / name / "weights").chmod(mode)
        (tmp_path / name).chmod(folder_mode)
    tmp_path.chmod(0o755)
    process = multiprocessing.get_context("fork").Process(
        target=check_as_another_user, args=(tmp_path / "open",)
    )
    process.start()
    process.join()
    (tmp_path / "closed").chmod(0o755)
    assert process.exitcode == 0
