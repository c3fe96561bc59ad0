"""Keys: what the file keeps, who they open what for, and that one that is revoked opens nothing more."""

import hashlib
import json
import stat

import pytest

from tpas.__main__ import main
from tpas.service.keys import Keys, add_key, revoke_key


def test_the_file_keeps_a_hash_and_opens_the_galleries_of_a_key(tmp_path):
    file = tmp_path / "keys.json"
    desk, gate = add_key(file, "desk"), add_key(file, "gate", ["street"])
    assert len(desk) == 48
    assert desk != gate
    written = file.read_text()
    assert desk not in written
    assert json.loads(written)["keys"][0]["sha256"] == hashlib.sha256(desk.encode()).hexdigest()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    keys = Keys(file)
    known = [keys.key_of(secret) for secret in (desk, gate, desk[:-1], "")]
    assert [key and key.name for key in known] == ["desk", "gate", None, None]
    assert [key.opens("street") for key in known[:2]] == [True, True]
    assert [key.opens("shop") for key in known[:2]] == [True, False]


def test_what_is_revoked_opens_nothing_from_then_on(tmp_path):
    file = tmp_path / "keys.json"
    desk, gate = add_key(file, "desk"), add_key(file, "gate")
    keys = Keys(file)
    revoke_key(file, "desk")
    assert keys.key_of(desk) is None
    assert keys.key_of(gate).name == "gate"
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"keys\.json"):
        keys.key_of(gate)


def test_the_command_says_a_key_once(tmp_path, capsys):
    file = str(tmp_path / "keys.json")
    main(["serve", "key", "add", "gate", "--keys", file, "--gallery", "street", "--json"])
    added = json.loads(capsys.readouterr().out)
    assert Keys(tmp_path / "keys.json").key_of(added["key"]).galleries == ("street",)
    main(["serve", "key", "list", "--keys", file])
    listed = capsys.readouterr().out
    assert "gate" in listed
    assert "street" in listed
    assert added["key"] not in listed
    main(["serve", "key", "revoke", "gate", "--keys", file])
    assert capsys.readouterr().out == "gate is revoked\n"
    main(["serve", "key", "list", "--keys", file, "--json"])
    assert json.loads(capsys.readouterr().out) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("add desk", "there is a key desk already"),
        ("add two/words", "a key's name has 1 to 64 letters"),
        ("revoke gate", "there is no key gate"),
    ],
)
def test_what_cannot_be_done_is_said(tmp_path, words, message):
    add_key(tmp_path / "keys.json", "desk")
    with pytest.raises(SystemExit, match=message):
        main(["serve", "key", *words.split(), "--keys", str(tmp_path / "keys.json")])


def test_a_file_of_something_else_is_named(tmp_path):
    file = tmp_path / "keys.json"
    file.write_text('{"keys": [{"name": "desk"}]}')
    with pytest.raises(ValueError, match="keys.json: this is no file of keys"):
        Keys(file)
    with pytest.raises(FileNotFoundError, match=r"nowhere.json: no such file: `tpas serve key add NAME"):
        Keys(tmp_path / "nowhere.json")
    with pytest.raises(ValueError, match="this is no file"):
        Keys(tmp_path)
