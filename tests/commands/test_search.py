"""`tpas search` on a plain folder of images, and the sheets that it writes."""

import io
import json
import os
import re
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from accelerate import debug_launcher
from PIL import Image, ImageOps
from tiny_inputs import interrupted_before_the_manifest

from tpas.commands import gallery as manage_gallery
from tpas.commands.search import as_typed, main
from tpas.data.drawn.synthetic_pab import draw_pab
from tpas.modeling_tpas import TPASModel
from tpas.models.loading import load_model
from tpas.processing_tpas import TPASProcessor
from tpas.search.folder_gallery import open_folder
from tpas.search.gallery_files import place_of_gallery
from tpas.search.manifest import GalleryError

ROOT = Path(__file__).parents[2]
MODEL = str(ROOT / "demo_start")
TEXT = "A woman in a red coat is lying on the pavement."


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    """A folder of six images of drawn people, not to be changed."""
    root = draw_pab(tmp_path_factory.mktemp("drawn") / "pab", train_pairs=4, test_pairs=6, workers=1)
    return root / "test" / "imgs"


@pytest.fixture
def folder(drawn, tmp_path) -> Path:
    return Path(shutil.copytree(drawn, tmp_path / "images"))


@pytest.fixture
def encoded(caplog):
    """A function: of the searches since that had images to encode, how many each had."""
    caplog.set_level("INFO", "tpas.search.folder_gallery")

    def numbers() -> list[int]:
        said = (re.search(r"(\d+) of \d+ images to encode", text) for text in caplog.messages)
        return [int(number[1]) for number in said if number and number[1] != "0"]

    return numbers


@pytest.fixture
def found(folder, capsys):
    """Searches the folder and returns each hit's fields by id."""

    def search(*words: str) -> dict[str, dict]:
        main([str(folder), TEXT, "--model", MODEL, "--json", *words])
        (answer,) = json.loads(capsys.readouterr().out)
        assert answer["text"] == TEXT
        return {hit["id"]: hit for hit in answer["hits"]}

    return search


def test_a_folder_is_encoded_once_and_then_brought_up_to_date(drawn, folder, found, encoded):
    names = sorted(os.listdir(folder))
    first = found()
    assert sorted(first) == names
    assert [hit["rank"] for hit in first.values()] == [1, 2, 3, 4, 5, 6]
    assert all(Path(hit["path"]).samefile(folder / name) for name, hit in first.items())
    assert found() == first
    assert encoded() == [6]
    assert sorted(os.listdir(folder.parent)) == ["images", "images.gallery"]

    gone, mirrored, replaced = names[:3]
    (folder / gone).unlink()
    shutil.copy(drawn / mirrored, folder / "new.jpg")
    with Image.open(drawn / replaced) as image:
        turned = ImageOps.mirror(image)
    turned.save(folder / replaced)
    second = found()
    assert encoded() == [6, 2]
    assert sorted(second) == sorted({*names, "new.jpg"} - {gone})
    assert second["new.jpg"]["match_logit"] == pytest.approx(first[mirrored]["match_logit"], abs=1e-5)
    assert second[replaced]["match_logit"] != pytest.approx(first[replaced]["match_logit"], abs=1e-3)
    for name in names[3:]:
        assert second[name]["match_logit"] == pytest.approx(first[name]["match_logit"], abs=1e-5)


def test_a_folder_that_was_moved_with_its_gallery_is_not_encoded_again(drawn, tmp_path, capsys, encoded):
    before, after = tmp_path / "before", tmp_path / "after"
    shutil.copytree(drawn, before / "images" / "street")
    for parent in (before, after):
        main([str(parent / "images"), TEXT, "--model", MODEL, "--json"])
        (answer,) = json.loads(capsys.readouterr().out)
        for hit in answer["hits"]:
            assert Path(hit["path"]).samefile(parent / "images" / hit["id"])
        if parent == before:
            before.rename(after)
    assert encoded() == [6]


def test_an_image_that_was_swapped_for_one_of_equal_size_and_time_is_encoded_again(folder, found, encoded):
    large, small = sorted(folder.iterdir(), key=lambda path: -path.stat().st_size)[::5]
    first, before = found(), large.stat()
    large.write_bytes(small.read_bytes().ljust(before.st_size, b"\0"))
    os.utime(large, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = large.stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    hits = found()
    assert encoded() == [6, 1]
    assert hits[large.name]["match_logit"] == pytest.approx(first[small.name]["match_logit"], abs=1e-5)


@pytest.mark.parametrize("early", [False, True])
def test_files_that_are_new_entries_of_equal_content_are_read_and_not_encoded_again(
    folder, found, encoded, early
):
    """As after a copy or a restored backup; an early version's record has neither entries nor contents."""
    first = found()
    if early:
        (record,) = place_of_gallery(folder).glob("*/files.json")
        content = json.loads(record.read_text())
        content["files"] = {name: state[:2] for name, state in content["files"].items()}
        record.write_text(json.dumps(content))
    for path in folder.iterdir():
        copy = folder / "copy"
        (shutil.copy2 if early else shutil.copyfile)(path, copy)
        copy.replace(path)
    assert found() == first
    assert found() == first
    assert encoded() == [6]


def test_what_is_not_taken_is_said_at_each_search_in_one_line(folder, found, encoded, caplog):
    names = sorted(os.listdir(folder))
    (folder / "camera").symlink_to(folder.parent / "elsewhere")
    (folder.parent / "elsewhere").mkdir()
    (folder / names[0]).rename(folder.parent / "elsewhere" / "1.jpg")
    (folder / "night").mkdir()
    (folder / names[1]).rename(folder / "night" / names[1])
    (folder / names[2]).write_bytes(b"no image")
    for name in ("a.heic", "b.heic", "c.txt", ".DS_Store"):
        (folder / name).touch()
    reasons = f"2 .heic (pip install 'tpas[heic]'), 1 .txt, 1 no image but by name ({names[2]})"
    for _ in range(2):
        assert sorted(found("--exclude", "night")) == sorted(["camera/1.jpg", *names[3:]])
        assert caplog.messages[-1] == f"{folder}: 4 files not taken: {reasons}; 2 excluded (.DS_Store, night)"
    assert encoded() == [5]  # one of them in vain
    assert sorted(found("--no_follow_links")) == sorted([f"night/{names[1]}", *names[3:]])


def test_a_broken_image_is_left_out_and_tried_again_once_it_is_whole(folder, found, encoded, caplog):
    name, *others = sorted(os.listdir(folder))
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[:200])
    assert sorted(found()) == others
    assert f"left out {name}" in caplog.text
    assert sorted(found()) == others
    assert encoded() == [6]  # one of them in vain
    (folder / name).write_bytes(whole)
    assert sorted(found()) == [name, *others]
    assert encoded() == [6, 1]


def test_what_only_looks_like_images_is_left_out(folder, found, encoded):
    names = sorted(os.listdir(folder))
    os.mkfifo(folder / "pipe.jpg")
    (folder / "circle.jpg").symlink_to(folder / "circle.jpg")
    (folder / "folder.jpg").mkdir()
    assert sorted(found()) == names
    assert sorted(found()) == names
    assert encoded()[1:] == []


def test_a_search_that_was_stopped_is_gone_on_with_and_takes_no_old_image(
    folder, found, encoded, monkeypatch
):
    """The shard was finished, and then an image was changed, before the gallery was."""
    with interrupted_before_the_manifest(monkeypatch), pytest.raises(SystemExit) as ended:
        found()
    assert ended.value.code == 130
    changed, other, *_ = sorted(os.listdir(folder))
    shutil.copy(folder / other, folder / changed)
    hits = found()
    assert encoded() == [6, 1]
    assert len(hits) == 6
    assert hits[changed]["match_logit"] == pytest.approx(hits[other]["match_logit"], abs=1e-5)


def test_a_gallery_whose_build_was_killed_is_named(folder, tmp_path, monkeypatch, fresh_accelerator):
    path = str(tmp_path / "gallery")
    with interrupted_before_the_manifest(monkeypatch), pytest.raises(SystemExit):
        manage_gallery.main(["build", str(folder), "--model", MODEL, "--path", path])
    with pytest.raises(SystemExit, match="the gallery .* is not finished: do the same build again"):
        main([path, TEXT, "--model", MODEL])


def test_another_model_has_a_gallery_of_its_own(folder, found, encoded, tmp_path, capsys):
    found()
    other = TPASModel.from_pretrained(MODEL)
    other.matching_head.classifier.bias.data += 1
    shutil.copytree(MODEL, tmp_path / "other")
    other.save_pretrained(tmp_path / "other")
    main([str(folder), TEXT, "--model", str(tmp_path / "other"), "--json"])
    assert len(os.listdir(place_of_gallery(folder))) == 2


def test_another_image_processor_has_a_gallery_of_its_own(folder, found, encoded, tmp_path, capsys):
    first = found()
    shutil.copytree(MODEL, tmp_path / "other")
    processor = TPASProcessor.from_pretrained(MODEL)
    processor.image_processor.image_mean = [0.5, 0.5, 0.5]
    processor.save_pretrained(tmp_path / "other")
    main([str(folder), TEXT, "--model", str(tmp_path / "other"), "--json"])
    (answer,) = json.loads(capsys.readouterr().out)
    cosines = {hit["id"]: hit["cosine"] for hit in answer["hits"]}
    assert any(abs(cosines[name] - hit["cosine"]) > 1e-3 for name, hit in first.items())
    assert found() == first
    assert encoded() == [6, 6]


def test_beside_a_folder_that_cannot_be_written_to_nothing_is_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    beside = tmp_path / "images"
    assert place_of_gallery(beside) == tmp_path / "images.gallery"
    monkeypatch.setattr("os.access", lambda path, mode: False)
    kept = place_of_gallery(beside)
    assert kept.parent == tmp_path / "cache" / "tpas"
    assert kept != place_of_gallery(tmp_path / "other" / "images")
    assert place_of_gallery(Path("/")).parent == kept.parent


def test_a_damaged_record_is_named(folder, found):
    found()
    (record,) = place_of_gallery(folder).glob("*/files.json")
    record.write_text("{")
    with pytest.raises(SystemExit, match=r"tpas search: \S*files\.json is damaged .*: remove "):
        found()
    with pytest.raises(GalleryError):
        found("--debug")
    record.unlink()
    with pytest.raises(SystemExit, match=r"tpas search: \S*files\.json is missing: remove "):
        found()


def test_texts_come_from_the_command_a_file_and_the_standard_input(folder, tmp_path, monkeypatch, capsys):
    (tmp_path / "more.txt").write_text("from a file\n")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"piped\n\n twice \n")))
    monkeypatch.setenv("TPAS_MODEL", MODEL)
    main([str(folder), "first", "-", "--texts-file", str(tmp_path / "more.txt"), "--json", "--top_k", "1"])
    answers = json.loads(capsys.readouterr().out)
    assert [answer["text"] for answer in answers] == ["first", "piped", "twice", "from a file"]


def test_it_stays_open_and_survives_a_line(folder, monkeypatch, capsys, caplog):
    monkeypatch.setenv("TPAS_MODEL", MODEL)
    texts = ["a man falls", "a woman runs"]
    expected = []
    for text in texts:
        main([str(folder), text, "--json", "-k", "2"])
        expected += json.loads(capsys.readouterr().out)
    typed = f"{texts[0]}\n\n...\n".encode() + b"\xff\n" + texts[1].encode()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(typed)))
    main([str(folder), "--interactive", "--json", "-k", "2"])
    first, third, fourth, last = map(json.loads, capsys.readouterr().out.splitlines())
    assert [first, last] == expected
    assert third == {"line": 3, "error": "line 3: '...' is empty, or punctuation alone"}
    assert fourth["line"] == 4
    assert "line 4: not UTF-8" in fourth["error"]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(typed)))
    main([str(folder), "--interactive", "-k", "2"])
    printed = capsys.readouterr().out
    assert printed.count("rank    score") == 2
    assert printed.startswith("a man falls\nrank")


def test_an_image_is_a_query_and_feedback_is_said_beside_a_text(folder, monkeypatch, capsys):
    monkeypatch.setenv("TPAS_MODEL", MODEL)
    image = str(folder / sorted(os.listdir(folder))[2])
    main([str(folder), "--image", image, "--json", "-k", "2"])
    (answer,) = json.loads(capsys.readouterr().out)
    assert answer["image"] == image
    assert (answer["hits"][0]["id"], len(answer["hits"])) == (Path(image).name, 2)
    liked, disliked = sorted(os.listdir(folder))[:2]
    said = ["--must", "a hat", "--not", "a red coat", "--liked", liked, "--disliked", disliked]
    main([str(folder), TEXT, *said, "--json"])
    (answer,) = json.loads(capsys.readouterr().out)
    feedback = {"must": ["a hat"], "must_not": ["a red coat"], "liked": [liked], "disliked": [disliked]}
    assert {name: answer[name] for name in ("text", *feedback)} == {"text": TEXT} | feedback
    (hits,) = open_folder(folder, *load_model(MODEL)).search([TEXT], **feedback)
    assert [hit["id"] for hit in answer["hits"]] == [hit.id for hit in hits]
    assert disliked not in [hit.id for hit in hits]
    assert answer["hits"][0]["phrases"] == [asdict(score) for score in hits[0].phrases]
    main([str(folder), TEXT, *said])
    assert "+ a hat - a red coat  image" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message", "code"),
    [
        (["nowhere", TEXT], "nowhere is no folder of images, no gallery and no film", None),
        ([".", TEXT], r"\. holds no images \(\.apng, .*\)$", None),
        (["."], "there is no text to look for", 2),
        ([".", "text", "--interactive"], "--interactive reads its texts from the standard input", 2),
        ([".", "text", "--image", "a.jpg"], "give texts, or an --image to look for, not both", 2),
        ([".", "--image", "a.jpg", "--sca"], "--image is ranked by the embeddings alone", 2),
        ([".", "--image", "nowhere.jpg"], "nowhere.jpg: no such image file", None),
        ([".", "text", "--not", "..."], "--must_not: '...' is empty, or punctuation alone", None),
        (
            [".", TEXT, "--liked", "a.jpg", "--disliked", "a.jpg"],
            "image 'a.jpg' is both liked and disl",
            None,
        ),
        ([".", TEXT, "--liked", "a.jpg", "--sca"], "SCA and a cascade go by match logits alone", None),
        ([".", "--image", "a.jpg", "--must", "a hat"], "--image is ranked by the embeddings alone", 2),
        ([".", TEXT, "?!"], r"text 2: '\?!' is empty, or punctuation alone", None),
        ([".", "a", "man", "falls"], "3 texts of one word each: quote the sentence, as in 'a man fa", 2),
        ([".", TEXT, "--open"], "--open needs --sheet", 2),
        ([".", TEXT, "--sheet", "a.bmp"], r"a\.bmp: a sheet ends in \.html, \.png, .*, got '\.bmp'", None),
        ([".", TEXT, "--sheet", "/dev/null/a.html"], "no place for /dev/null/a.html: .*", None),
        ([".", TEXT, "--top_k", "0"], "Invalid value for '--top_k'", 2),
        ([".", TEXT, "--images_root", "x"], r"--images_root is for a gallery, and \. is a folder", 2),
        ([".", TEXT, "--index", "exakt"], "the index must be 'exact', 'faiss', or .*, got 'exakt'", None),
        ([".", TEXT, "--cascade", "--bf16"], "the gallery was opened to match in bfloat16", None),
    ],
)
def test_what_cannot_be_searched_is_refused(tmp_path, monkeypatch, words, message, code):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=f"tpas search: {message}") as ended:
        main([*words, "--model", MODEL])
    assert code in (None, ended.value.code)
    assert not os.listdir(tmp_path)


def test_what_the_model_does_not_read_is_said_before_any_image_is_encoded(folder, tmp_path, capsys, caplog):
    (tmp_path / "texts.txt").write_text("A man falls.\n\n人 falls.\n" + "A man and " * 40)
    main([str(folder), "A man falls.", "--texts_file", str(tmp_path / "texts.txt"), "--model", MODEL])
    said = [record.getMessage() for record in caplog.records]
    unknown, cut, *others = said
    place = f"{tmp_path}/texts.txt, line"
    assert unknown.startswith("warning: the model does not know 2 words, 'falls', '人' (3 of 4 texts, ")
    assert f"no word at all is known of {place} 3: what is found" in unknown
    assert cut.startswith(f"warning: {place} 4 is longer than the 70 tokens that the model reads: 'and a man")
    assert any("6 of 6 images to encode" in line for line in others)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_text_is_what_was_typed_whatever_python_takes_it_for(encoding):
    """In the C locale without Python's help a word that is typed in UTF-8 comes as half surrogates."""
    typed = "a man, 人".encode().decode(encoding, "surrogateescape")
    assert as_typed(typed, "text 1") == "a man, 人"
    with pytest.raises(ValueError, match="text 1, line 1: not UTF-8: after 'caf' comes the byte 0xe9"):
        as_typed(os.fsdecode(b"caf\xe9"), "text 1")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("demo_strat", "demo_strat: there is no such folder, and the Hub names models OWNER/NAME"),
        ("demo_start", rf"demo_start: there is no such folder \(did you mean {MODEL}\?\)"),
        ("./demo/start", r"\./demo/start: there is no such folder"),
        ("outputs/runs/best", "outputs/runs/best: there is no such folder"),
        ("images/best", "images/best: there is no such folder"),  # there is a folder `images`
        (f"{MODEL}/config.json", r".*/config\.json is a file: give the folder of the model"),
        ("nobody/knows", "the model nobody/knows cannot be loaded: .* HF_HUB_OFFLINE is set: unset it"),
    ],
)
def test_a_model_that_is_not_there_is_named(folder, monkeypatch, model, message):
    """The conftest keeps the Hub out of reach, so what is asked of it fails without a wait."""
    monkeypatch.chdir(folder.parent)
    with pytest.raises(SystemExit, match=f"tpas search: {message}"):
        main([str(folder), TEXT, "--model", model])


def test_a_name_cannot_steer_the_terminal(folder, capsys):
    (folder / sorted(os.listdir(folder))[0]).rename(folder / "\x1b[2Ja\nb é.jpg")
    main([str(folder), TEXT, "--model", MODEL])
    assert "\\x1b[2Ja\\nb é.jpg" in capsys.readouterr().out


def test_a_sheet_shows_the_images_in_their_order(folder, found, tmp_path, monkeypatch, capsys):
    opened = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    name = sorted(os.listdir(folder))[0]
    (folder / name).rename(folder / "<b>.jpg")
    page, figure = tmp_path / "sheets" / "page.html", tmp_path / "sheets" / "figure.png"
    hits = found("--sheet", str(page), "--open", "--top_k", "4")
    assert opened == [page.as_uri()]
    shown = page.read_text(encoding="utf-8")
    captions = re.findall(r"<b>(\d)</b> · ([-.\d]+)<br>(.*?)</figcaption>", shown)
    shown_as = {"<b>.jpg": "&lt;b&gt;.jpg"}
    expected = [(str(h["rank"]), f"{h['score']:.3f}", shown_as.get(name, name)) for name, h in hits.items()]
    assert captions == expected
    assert shown.count("data:image/jpeg;base64,") == 4
    assert "http" not in shown  # it needs no network
    found("--sheet", str(figure), "--top_k", "4")
    with Image.open(figure) as image:
        assert image.width > 500


def test_what_sca_moved_and_what_was_not_re_ranked_is_marked(folder, tmp_path, capsys):
    page = tmp_path / "page.html"
    words = ["--model", MODEL, "--shortlist", "2", "--top_k", "3", "--sca", "--sheet", str(page)]
    main([str(folder), TEXT, TEXT, *words])
    kept, moved = (answer.splitlines()[1:] for answer in capsys.readouterr().out.split("\n\n"))
    assert kept[0].split()[:6] == ["rank", "score", "cosine", "by", "cosine", "before"]
    (first, second, third), rows = ([row.split() for row in answer[1:]] for answer in (kept, moved))
    assert [row[0] for row in rows] == ["1", "2", "3"]
    assert [row[4] for row in (first, second)] == ["1", "2"]
    assert [row[4] for row in rows[:2]] == ["2", "1"]
    assert [row[1] for row in rows[:2]] == [second[1], first[1]]  # each keeps its score
    assert float(first[1]) > float(second[1])
    assert len(rows[2]) == len(third) == 5  # no score: its cosine is none beside match logits
    shown = page.read_text(encoding="utf-8")
    assert [shown.count(words) for words in ("SCA 2 → 1", "SCA 1 → 2", "not re-ranked")] == [1, 1, 2]
    assert "higher is better. It is no probability" in shown


def test_an_empty_gallery_is_refused(folder, found):
    found()
    (gallery,) = place_of_gallery(folder).iterdir()
    manage_gallery.main(["delete", str(gallery), *sorted(os.listdir(folder))])
    with pytest.raises(SystemExit, match="is empty: `tpas gallery append` images first"):
        main([str(gallery), TEXT, "--model", MODEL])


def build_in_a_process(words: list[str]) -> None:
    torch.set_num_threads(1)
    manage_gallery.main(words)


def test_two_processes_build_a_gallery_and_one_reports(folder, tmp_path, capfd):
    words = ["build", str(folder), "--model", MODEL, "--path", str(tmp_path / "gallery"), "--json"]
    debug_launcher(build_in_a_process, ([*words, "--shard_size", "2"],), num_processes=2)
    shown = capfd.readouterr().out
    assert shown.count('"shards"') == 1, shown  # one document
    report = json.loads(shown)
    assert (report["images"], report["shards"]) == (6, 3)


def test_an_image_that_is_gone_since_leaves_a_placeholder(folder, found, tmp_path, capsys):
    found()
    (gallery,) = place_of_gallery(folder).iterdir()
    name = sorted(os.listdir(folder))[0]
    (folder / name).unlink()
    main([str(gallery), TEXT, "--model", MODEL, "--sheet", str(tmp_path / "page.html")])
    assert (tmp_path / "page.html").read_text().count('class="absent"') == 1
