"""Which model is taken where none is named: that of the gallery, or the one for photographs."""

import contextlib
import json
import os
import pty
import re
import shutil
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from hub_stand_in import environment
from tiny_retrieval_models import cached_snapshot, noise_images

from tpas.commands.app import main as serve_page
from tpas.commands.gallery import main as manage_gallery
from tpas.commands.search import main as search_main
from tpas.models.photographs import FOR_PHOTOGRAPHS

TEXT = "a man in a red coat is running on the street"
NOBODY = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9"}  # a Hub that does not answer
QUESTION = f"Fetch {FOR_PHOTOGRAPHS.name} (Apache-2.0, 1.5 GB) from the Hub, for photographs? [y/N]"
TPAS = [sys.executable, "-m", "tpas"]


@pytest.fixture(autouse=True)
def _no_model_of_the_user(monkeypatch):
    monkeypatch.delenv("TPAS_MODEL", raising=False)


@pytest.fixture
def photographs(tmp_path) -> Path:
    folder = tmp_path / "photographs"
    folder.mkdir()
    for number, image in enumerate(noise_images(4)):
        image.save(folder / f"{number}.jpg")
    return folder


@pytest.fixture
def fetched(folders):
    """A tiny SigLIP in the cache, as if it were the model for photographs."""
    folder = cached_snapshot(FOR_PHOTOGRAPHS.name, "a" * 40, latest=True)
    shutil.copytree(folders["siglip"], folder, dirs_exist_ok=True)
    yield folder
    shutil.rmtree(folder.parents[1])


def hits_of(printed: str) -> list[tuple[str, float]]:
    (answer,) = json.loads(printed)
    return [(hit["id"], pytest.approx(hit["score"], abs=1e-5)) for hit in answer["hits"]]


def on_a_terminal(answer: str, *words: str, **settings: str) -> tuple[int, str, str]:
    """Exit code, standard output, and what the terminal shows, of a command there that is given an answer."""
    outside, inside = pty.openpty()
    termios.tcsetwinsize(inside, (24, 100))
    streams = {"stdin": inside, "stderr": inside, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([*TPAS, *words], env=os.environ | settings, **streams) as command:
        os.close(inside)
        os.write(outside, f"{answer}\n".encode())
        shown = b""
        with contextlib.suppress(OSError):  # which is how a terminal ends
            while read := os.read(outside, 1000):
                shown += read
        os.close(outside)
        printed = command.communicate()[0]
    return command.returncode, printed, shown.decode()


def test_it_is_fetched_over_a_line_that_breaks_once(photographs, folders, hub, tmp_path, capsys):
    files = {path.name: path.read_bytes() for path in folders["siglip"].iterdir()}
    hub.branches[FOR_PHOTOGRAPHS.name] = {"main": files}
    hub.cut_off = {"model.safetensors"}
    words = ["search", str(photographs), TEXT, "--json"]
    code, printed, shown = on_a_terminal("y", *words, **environment(hub, tmp_path, token=""))
    assert code == 0, shown
    assert shown.count(QUESTION) == 1
    assert re.search(r"model\.safetensors: +100%", shown)  # the Hub's own progress bar
    transfers = [each for each in hub.requests if re.match(r"GET .*/model\.safetensors", each)]
    assert len(transfers) == 2
    search_main([*words[1:], "--model", str(folders["siglip"])])
    assert hits_of(printed) == hits_of(capsys.readouterr().out)


def test_who_does_not_want_it_is_told_what_else_there_is(photographs):
    code, printed, shown = on_a_terminal("n", "search", str(photographs), TEXT, **NOBODY)
    assert (code, printed) == (2, "")
    assert shown.count(QUESTION) == 1
    assert "no model, then: give --model or set TPAS_MODEL (demo_start: drawn people" in shown


def test_without_a_terminal_or_a_network_it_says_at_once_what_to_type(photographs, tmp_path):
    def refused(*words: str, **settings: str) -> str:
        ended = subprocess.run(
            [*TPAS, *words],
            env=os.environ | settings,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
        )
        assert (ended.stdout, ended.stderr.count("\n")) == ("", 1)
        assert ended.returncode in (1, 2)
        return ended.stderr

    search, build = (
        ("search", str(photographs), TEXT),
        ("gallery", "build", str(photographs), "--path", "gallery"),
    )
    for words in (search, build):
        message = refused(*words, HF_HUB_OFFLINE="0")
        assert f"add --yes to fetch {FOR_PHOTOGRAPHS.name} (Apache-2.0, 1.5 GB) from the Hub" in message
        assert "give --model or set TPAS_MODEL (demo_start: drawn people" in message
    assert "is not on this machine, and HF_HUB_OFFLINE is set: unset it" in refused(
        *search, HF_HUB_OFFLINE="1"
    )
    nobody = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9"}
    message = refused(*search, "--yes", **nobody)
    assert "http://127.0.0.1:9 cannot be reached" in message
    assert f"`hf download {FOR_PHOTOGRAPHS.name} --local-dir FOLDER` on a machine with a network" in message


def test_once_it_is_here_nothing_is_asked(photographs, folders, fetched, tmp_path, capsys, caplog):
    search_main([str(photographs), TEXT, "--json"])
    by_default = capsys.readouterr().out
    assert f"no --model was given: {FOR_PHOTOGRAPHS.name}" in caplog.text
    manage_gallery(["build", str(photographs), "--path", str(tmp_path / "gallery"), "--json"])
    assert json.loads(capsys.readouterr().out)["model"]["name"] == FOR_PHOTOGRAPHS.name
    search_main([str(tmp_path / "gallery"), TEXT, "--json"])
    assert hits_of(capsys.readouterr().out) == hits_of(by_default)
    (fetched / "model.safetensors").unlink()  # as where it was cut off
    with pytest.raises(SystemExit, match="may not be all of it, and HF_HUB_OFFLINE is set"):
        search_main([str(photographs), TEXT, "--model", FOR_PHOTOGRAPHS.name])
    with pytest.raises(
        SystemExit, match=r"no --model was given, and for photographs .* HF_HUB_OFFLINE is set"
    ):
        manage_gallery(["build", str(photographs), "--path", str(tmp_path / "another")])


def test_what_is_here_needs_no_hub_that_answers(photographs, fetched, capsys):
    search_main([str(photographs), TEXT, "--json"])
    words = [*TPAS, "search", str(photographs), TEXT, "--json"]
    found = subprocess.run(words, env=os.environ | NOBODY, capture_output=True, text=True, timeout=100)
    assert hits_of(found.stdout) == hits_of(capsys.readouterr().out)
    assert "Retrying" not in found.stderr
    assert found.stderr.count("http://127.0.0.1:9 cannot be reached (") == 1


def test_a_folder_that_was_searched_is_searched_by_the_same_model(photographs, folders, fetched, capsys):
    search_main([str(photographs), TEXT, "--model", str(folders["clip"]), "--json"])
    by_clip = capsys.readouterr().out
    search_main([str(photographs), TEXT, "--json"])
    assert hits_of(capsys.readouterr().out) == hits_of(by_clip)
    search_main([str(photographs), TEXT, "--model", str(folders["blip"])])
    several = f"searched by several models: --model .*{folders['clip'].name}"
    for command in (search_main, serve_page):
        words = [str(photographs), TEXT] if command is search_main else [str(photographs)]
        with pytest.raises(SystemExit, match=several):
            command(words)
    capsys.readouterr()
    search_main([str(photographs), TEXT, "--model", FOR_PHOTOGRAPHS.name, "--json"])
    by_default = capsys.readouterr().out
    search_main([str(photographs), TEXT, "--json"])  # of several: the one for photographs
    assert hits_of(capsys.readouterr().out) == hits_of(by_default)
