"""data/challenge.py and `tpas submit` on drawn test sets of the challenges' layout."""

import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from tiny_inputs import spoil
from tiny_retrieval_models import save_tiny

from tpas.commands.evaluate import main as evaluate
from tpas.commands.submit import main as submit
from tpas.data.challenge import find_mistakes, read_challenge, write_answers
from tpas.data.pab import load_pab
from tpas.reranking.score_files import ScoreFile, write_score_file

pytestmark = pytest.mark.usefixtures("fresh_accelerator")


@pytest.fixture
def test_set(small_pab, tmp_path) -> Path:
    """The drawn test split under masked names, with zeros in front, and the rows in another order."""
    folder = tmp_path / "name-masked_test-set"
    (folder / "gallery").mkdir(parents=True)
    rows = load_pab(small_pab, "test")
    lines = []
    for number, row in enumerate(rows):
        shutil.copy(small_pab / row["image"], folder / "gallery" / f"{number:05}.jpg")
        query = {"query_index": f"Q{number:03}", "caption": row["caption"], "change": "not read"}
        lines.append(json.dumps(query) + "\n")
    (folder / "query_text.json").write_text("".join(lines))
    order = [f"Q{number:03}" for number in range(len(rows) - 1, -1, -1)]
    (folder / "query_index.txt").write_bytes("\r\n".join([*order, ""]).encode())  # as published
    return folder


@pytest.fixture
def right_lines(test_set) -> list[str]:
    names = sorted(read_challenge(test_set).images)
    return [" ".join((names[row:] + names[:row])[:10]) for row in range(12)]


def test_the_order_is_that_of_the_index_file(test_set, small_pab):
    challenge = read_challenge(test_set)
    captions = load_pab(small_pab, "test")["caption"]
    assert challenge.query_ids == [f"Q{number:03}" for number in range(11, -1, -1)]
    assert challenge.captions == list(captions)[::-1]
    assert challenge.images["00003"] == test_set / "gallery" / "00003.jpg"

    (test_set / "query_index.txt").unlink()
    assert read_challenge(test_set).query_ids == [f"Q{number:03}" for number in range(12)]


def test_the_older_layout_and_a_gallery_one_folder_deeper(test_set):
    whole = read_challenge(test_set)
    records = [json.loads(line) for line in (test_set / "query_text.json").read_text().splitlines()]
    for record in records:
        record["caption"] = [record["caption"]]
    (test_set / "query_text.json").unlink()
    (test_set / "query.json").write_text("\ufeff" + json.dumps(records), encoding="utf-8")
    (test_set / "gallery").rename(test_set / "unpacked")
    (test_set / "gallery").mkdir()
    (test_set / "unpacked").rename(test_set / "gallery" / "gallery")
    challenge = read_challenge(test_set)
    assert (challenge.query_ids, challenge.captions) == (whole.query_ids, whole.captions)
    assert challenge.images.keys() == whole.images.keys()


def test_the_texts_may_be_one_object_by_id(test_set):
    whole, path = read_challenge(test_set), test_set / "query_text.json"
    (test_set / "query_index.txt").unlink()
    texts = {f"{number:04}": caption for number, caption in enumerate(whole.captions)}
    for indent in (None, 1):
        path.write_bytes(json.dumps(texts, indent=indent).replace("\n", "\r\n").encode())
        challenge = read_challenge(test_set)
        assert dict(zip(challenge.query_ids, challenge.captions, strict=True)) == texts
    (test_set / "query_index.txt").write_bytes(b"\r\n".join(sorted(map(str.encode, texts), reverse=True)))
    assert read_challenge(test_set).query_ids == sorted(texts, reverse=True)

    path.write_text('{"0001": "a man", "0001": "a woman"}')
    with pytest.raises(
        ValueError, match="query_text.json, query '0001': the query_index '0001' is there twice"
    ):
        read_challenge(test_set)
    path.write_text('{"0001": "a man",\n "0002": 5}')
    with pytest.raises(ValueError, match="query_text.json, query '0002': 'caption' must be a text, got 5"):
        read_challenge(test_set)
    path.write_text('{"0001": "a man",\n "0002" "a woman"}')
    with pytest.raises(ValueError, match="query_text.json, line 2: not JSON"):
        read_challenge(test_set)
    path.write_text('{"query_index": "0001", "caption": "one line alone"}')
    (test_set / "query_index.txt").unlink()
    assert read_challenge(test_set).query_ids == ["0001"]


def test_an_archive_holds_the_answers_and_is_checked(test_set, right_lines, tmp_path, capsys):
    challenge, path = read_challenge(test_set), tmp_path / "answers" / "answer.zip"
    write_answers(path, [line.split() for line in right_lines], challenge)
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == ["answer.txt"]
        assert archive.read("answer.txt").decode() == "".join(f"{line}\n" for line in right_lines)
    content = path.read_bytes()
    write_answers(path, [line.split() for line in right_lines], challenge)
    assert path.read_bytes() == content  # equal answers, equal bytes
    submit([str(test_set), "--validate", str(path)])
    assert "12 lines as they should be" in capsys.readouterr().out

    def refused(entries: dict[str, str], message: str) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            for name, text in entries.items():
                archive.writestr(name, text)
        with pytest.raises(SystemExit, match=message):
            submit([str(test_set), "--validate", str(path)])

    good = "\r\n".join([*right_lines, ""])
    refused({"answers/answer.txt": good}, "holds 'answers/answer.txt': it must hold 'answer.txt' alone")
    refused(
        {"answer.txt": good, "__MACOSX/._answer.txt": ""}, "holds 'answer.txt', '__MACOSX/._answer.txt': it"
    )
    refused({"answer.txt": good + "more"}, "3")  # the exit code: a mistake was found
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("answer.txt", good)
    submit([str(test_set), "--validate", str(path)])
    path.write_bytes(content[:100])
    with pytest.raises(SystemExit, match="answer.zip: not a zip archive that can be read"):
        submit([str(test_set), "--validate", str(path)])


def test_the_rule_of_the_challenge_stands_beside_what_could_be_tuned(capsys):
    submit(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    rule = "the challenge forbids any use of the test set's outputs"
    assert text.count(rule) == 3  # of the weight, tau and the texts' threshold
    for flag in ("--fusion_weight", "--sca_tau", "--sca_text_threshold"):
        assert rule in text[text.index(f"{flag} ") :][:260]


def test_a_linked_gallery_is_that_gallery_and_what_else_is_there_is_counted(test_set, tmp_path, caplog):
    whole = read_challenge(test_set)
    (test_set / "gallery").rename(tmp_path / "disk")
    (test_set / "gallery").mkdir()
    (test_set / "gallery" / "part").symlink_to(tmp_path / "disk")
    (test_set / "gallery" / "1.heic").touch()
    assert read_challenge(test_set).images.keys() == whole.images.keys()
    assert caplog.messages == [f"{test_set}/gallery: 1 file not taken: 1 .heic (pip install 'tpas[heic]')"]
    with pytest.raises(SystemExit, match="0 images, but an answer names 10; 2 files not taken: .*1 link not"):
        submit([str(test_set), "--validate", "a.txt", "--no_follow_links"])


@pytest.mark.parametrize("stage", ["embeddings", "sca"])
def test_answers_are_the_evaluation_s_best_images(
    start, small_pab, test_set, tmp_path, capsys, caplog, stage
):
    answer = tmp_path / "answers" / "answer.txt"
    flags = ["--model", str(start), "--fusion_weight", "0.3", "--max_text_length", "5"]
    scores = tmp_path / "answers" / "s.npz"
    submit([str(test_set), *flags, "--output", str(answer), "--stage", stage, "--write_scores", str(scores)])
    assert "12 answers of 10 names among 12" in capsys.readouterr().out
    assert caplog.text.count("12 of 12 texts are longer than the 5 tokens") == 1
    assert "of the first, query Q011, '" in caplog.text
    files = ["answer.txt", "s.embeddings.npz", "s.fused.npz", "s.matching.npz"]
    assert sorted(path.name for path in answer.parent.iterdir()) == files
    evaluate([*flags, "--data_root", str(small_pab), "--rankings", str(tmp_path / "rankings.json")])
    masked = {image: f"{n:05}" for n, image in enumerate(load_pab(small_pab, "test")["image"])}
    ranked = json.loads((tmp_path / "rankings.json").read_text())["queries"]
    expected = [[masked[name] for name in query["stages"][stage]["ids"]] for query in ranked]
    assert [line.split(" ") for line in answer.read_text().splitlines()] == expected[::-1]

    submit([str(test_set), "--validate", str(answer)])
    assert "12 lines as they should be" in capsys.readouterr().out


@pytest.mark.parametrize("lists", [False, True])
def test_answers_from_a_score_file_are_its_best(test_set, tmp_path, capsys, lists):
    challenge = read_challenge(test_set)
    generator = np.random.default_rng(0)
    query_ids = tuple(generator.permutation(challenge.query_ids).tolist())
    names = tuple(generator.permutation(sorted(challenge.images)).tolist())
    scores = generator.standard_normal((12, 12))
    order = np.argsort(-scores, axis=1)
    path, answer = tmp_path / "theirs.npz", tmp_path / "answer.txt"
    best_first = np.take_along_axis(scores, order, 1)
    content = ScoreFile(*((best_first, order) if lists else (scores, None)), query_ids, names)
    write_score_file(path, content)
    submit([str(test_set), "--scores", str(path), "--output", str(answer)])
    assert "12 answers of 10 names among 12" in capsys.readouterr().out
    best = {name: [names[column] for column in row[:10]] for name, row in zip(query_ids, order, strict=True)}
    expected = [best[name] for name in challenge.query_ids]
    assert [line.split(" ") for line in answer.read_text().splitlines()] == expected

    write_score_file(path, ScoreFile(content.scores[:, :1], order[:, :1], query_ids, names))
    with pytest.raises(SystemExit, match="names 10 images, but .* has 1 scored for query 'Q011'"):
        submit([str(test_set), "--scores", str(path), "--output", str(answer)])
    filled = np.where(scores < np.sort(scores, axis=1)[:, 3, None], -100, scores)  # 9 images of each
    write_score_file(path, ScoreFile(filled, None, query_ids, names))
    with pytest.raises(SystemExit, match="names 10 images, but .* has 9 scored for query 'Q011'"):
        submit([str(test_set), "--scores", str(path), "--output", str(answer)])
    write_score_file(path, ScoreFile(scores[:11], None, query_ids[:11], names))
    with pytest.raises(SystemExit, match="are not about the same queries"):
        submit([str(test_set), "--scores", str(path), "--output", str(answer)])


def test_a_right_file_has_no_mistake(test_set, right_lines, tmp_path, capsys):
    answer = tmp_path / "mine.txt"
    for text in ("\n".join(right_lines), "\r\n".join([*right_lines, ""])):
        answer.write_bytes(text.encode())
        submit([str(test_set), "--validate", str(answer)])
        assert "12 lines as they should be" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "content", "message"),
    [
        (3, "00000 00001", "line 3 (query Q009): 2 names, not 10"),
        (12, "", "line 12 (query Q000): 0 names, not 10"),
        (1, "00001 00001 {8 more}", "line 1 (query Q011): '00001' stands 2 times"),
        (2, "0 {9 more}", "'0' is not in the gallery, but '00000' is: names are text, zeros in front count"),
        (2, "1 {9 more}", "'1' is not in the gallery, but '00001' is: names are text, zeros in front count"),
        (4, "00001.jpg {9 more}", "'00001.jpg' is not in the gallery: write '00001', without suffix"),
        (4, "else {9 more}", "line 4 (query Q008): 'else' is not in the gallery"),
        (5, "Q007 {9 more}", "line 5 (query Q007): begins with its own query id 'Q007'"),
        (5, "Q006 {9 more}", "line 5 (query Q007): begins with another query id 'Q006'"),
    ],
)
def test_mistakes_are_named_with_their_line(test_set, right_lines, line, content, message):
    more = [f"{number:05}" for number in range(11, 1, -1)]
    for count in (8, 9):
        content = content.replace(f"{{{count} more}}", " ".join(more[:count]))
    right_lines[line - 1] = content
    mistakes = find_mistakes("\n".join(right_lines) + "\n", read_challenge(test_set))
    assert len(mistakes) == 1
    assert message in mistakes[0]


@pytest.mark.parametrize(
    ("sign", "name"),
    [("\r", "a control character"), ("\v", "a control character"), ("\t", "a control character")]
    + [("\ufeff", "ZERO WIDTH NO-BREAK SPACE"), ("\xa0", "NO-BREAK SPACE"), ("\u2028", "LINE SEPARATOR")],
)
def test_what_only_some_readers_take_for_a_space_or_a_lines_end_is_a_mistake(
    test_set, right_lines, tmp_path, capsys, sign, name
):
    """In the place of a space, of a line's end, and before the first name."""
    text, answer = "\n".join(right_lines), tmp_path / "mine.txt"
    for content in (text.replace(" ", sign, 1), text.replace("\n", sign), sign + text):
        answer.write_bytes(content.encode())
        with pytest.raises(SystemExit) as error:
            submit([str(test_set), "--validate", str(answer)])
        assert error.value.code == 3
        assert f"line 1 (query Q011): {sign!r} ({name}) stands in it" in capsys.readouterr().out
    answer.write_bytes(text.encode("utf-16"))
    with pytest.raises(SystemExit, match=r"mine.txt: it is UTF-16 or UTF-32, and an answer file is UTF-8"):
        submit([str(test_set), "--validate", str(answer)])


def test_the_command_lists_mistakes_and_ends_with_a_code_of_its_own(test_set, tmp_path, capsys):
    answer = tmp_path / "mine.txt"
    answer.write_text("\n".join(["wrong"] * 30))
    with pytest.raises(SystemExit) as error:
        submit([str(test_set), "--validate", str(answer)])
    assert error.value.code == 3
    lines = capsys.readouterr().out.splitlines()
    counted = "30 lines for 12 queries: one line a query, in the order of the query file"
    assert lines[0] == f"{answer}: {counted}"
    assert lines[1] == f"{answer}: line 1 (query Q011): 1 names, not 10"
    assert lines[-1] == "... and 41 more mistakes"
    with pytest.raises(SystemExit, match="No such file"):
        submit([str(test_set), "--validate", str(tmp_path / "nothing.txt")])
    answer.write_bytes(b"\xe4\n")
    with pytest.raises(SystemExit, match="mine.txt, line 1: not UTF-8"):
        submit([str(test_set), "--validate", str(answer)])


def change(path: Path, line: int, content: str) -> None:
    lines = path.read_text().splitlines()
    lines[line - 1] = content
    path.write_text("\n".join(lines))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "query_text.json, line 2: not a line of JSON"),
        ("[1]", "query_text.json, line 2: expected an object with 'query_index' and 'caption'"),
        ('{"query_index": 7, "caption": "a man"}', "line 2: 'query_index' must be text .*, got 7"),
        ('{"query_index": "a b", "caption": "x"}', "line 2: 'query_index' must be text without spaces"),
        ('{"query_index": "Q001", "caption": " "}', "line 2: 'caption' must be a text, got ' '"),
        ('{"query_index": "Q001", "caption": "?!"}', "line 2: 'caption' must be a text, got '\\?!'"),
        ('{"query_index": "Q001"}', "line 2: 'caption' must be a text, got None"),
        ('{"query_index": "Q000", "caption": "x"}', "line 2: the query_index 'Q000' is there twice"),
        ('{"query_index": "Q999", "caption": "x"}', "query_index.txt, line 11: no query 'Q001'"),
    ],
)
def test_a_broken_query_file_is_named_with_its_line(test_set, content, message):
    change(test_set / "query_text.json", 2, content)
    with pytest.raises(ValueError, match=message):
        read_challenge(test_set)


def test_a_text_may_hold_other_ends_of_a_line(test_set):
    caption = "a man\u2028runs\x85away"
    record = json.dumps({"query_index": "Q001", "caption": caption}, ensure_ascii=False)
    path = test_set / "query_text.json"
    lines = path.read_text().split("\n")
    path.write_text("\n".join([lines[0], record, *lines[2:]]), encoding="utf-8")
    challenge = read_challenge(test_set)
    assert challenge.captions[challenge.query_ids.index("Q001")] == caption


@pytest.mark.parametrize("name", ["query_text.json", "query_index.txt"])
def test_a_file_in_another_encoding_is_named(test_set, name):
    (test_set / name).write_bytes("Q000 fährt".encode("latin-1"))
    with pytest.raises(ValueError, match=f"{name}, line 1: not UTF-8: .*iconv"):
        read_challenge(test_set)


def test_a_broken_layout_is_named(test_set, tmp_path):
    change(test_set / "query_index.txt", 2, "Q011")
    with pytest.raises(ValueError, match="query_index.txt, line 2: 'Q011' is that of line 1 again"):
        read_challenge(test_set)
    change(test_set / "query_index.txt", 2, "")
    with pytest.raises(ValueError, match="query_index.txt: the query 'Q010' of query_text.json is not in it"):
        read_challenge(test_set)
    (test_set / "query_index.txt").unlink()

    shutil.copy(test_set / "gallery" / "00001.jpg", test_set / "gallery" / "00001.png")
    with pytest.raises(ValueError, match=r"00001.png: the name '00001' is that of .*00001.jpg as well"):
        read_challenge(test_set)
    (test_set / "gallery" / "00001.png").rename(test_set / "gallery" / "a name.png")
    with pytest.raises(ValueError, match="a name.png: a name with a space"):
        read_challenge(test_set)
    (test_set / "gallery" / "a name.png").unlink()

    for number in range(3):
        (test_set / "gallery" / f"{number:05}.jpg").unlink()
    with pytest.raises(ValueError, match="gallery: 9 images, but an answer names 10"):
        read_challenge(test_set)
    shutil.rmtree(test_set / "gallery")
    with pytest.raises(FileNotFoundError, match="no folder gallery/ in it"):
        read_challenge(test_set)
    (test_set / "query_text.json").write_text("\n")
    with pytest.raises(ValueError, match="query_text.json: no query in it"):
        read_challenge(test_set)
    (test_set / "query_text.json").unlink()
    with pytest.raises(FileNotFoundError, match="neither query_text.json nor query.json"):
        read_challenge(test_set)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        read_challenge(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--shortlist", "9"], "an answer names 10 images, but --shortlist is 9"),
        (["--stage", "fused"], "--stage fused needs a --fusion_weight above 0"),
        (["--max_text_length", "2"], "--max_text_length must be between 3"),
        (["--write_scores", "s.csv"], "s.csv: a score file ends in .npz, .safetensors, .trec or .run"),
    ],
)
def test_impossible_flags_are_refused(start, test_set, tmp_path, flags, message):
    with pytest.raises(SystemExit, match=f"tpas submit: {message}"):
        submit([str(test_set), "--model", str(start), "--output", str(tmp_path / "a.txt"), *flags])
    assert not (tmp_path / "a.txt").exists()


def test_what_would_be_refused_after_the_ranking_is_refused_before(test_set, tmp_path):
    spoil((test_set / "gallery").iterdir())  # which a ranking would stumble over
    clip, output = save_tiny("clip", tmp_path / "clip"), tmp_path / "a.txt"
    with pytest.raises(SystemExit, match="^tpas submit: --stage matching: .*clip has embeddings alone"):
        submit([str(test_set), "--model", str(clip), "--output", str(output), "--stage", "matching"])
    with pytest.raises(SystemExit, match="is a folder: name a file"):
        submit([str(test_set), "--model", str(clip), "--output", str(tmp_path)])


def test_half_a_command_is_refused(test_set, capsys):
    for flags in (["--model", "m"], ["--validate", "a.txt", "--model", "m"]):
        with pytest.raises(SystemExit):
            submit([str(test_set), *flags])
    assert "give --output and --model or --scores" in capsys.readouterr().err
