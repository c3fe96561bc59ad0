"""The files of the text-based person anomaly search challenges: queries and gallery in, answers out.

Two editions share one layout, `name-masked_test-set/`: the WWW 2025 workshop's and AI City Challenge 2026,
Track 4, whose gallery has 34,795 distractors as well.

- `query.json` (2025) or `query_text.json` (2026): JSON Lines, or one JSON array, of objects with
  `query_index`, the query's id, and `caption`, whose other fields are not read; or one JSON object of all
  texts by id.
- `query_index.txt`: the ids, one a line; an answer file follows its order. Where it is absent, the query
  file's order counts.
- `gallery/`: images under masked names, at times one folder deeper, as they were unpacked.

An answer file has one line a query: the names, without suffix, of the ten best images, best first,
separated by spaces. Names and ids are text: zeros in front stay. The servers take it as `answer.txt` in a zip
archive, which is written and read here as well, by its suffix `.zip`.

**The rule of AI City 2026, Track 4**: any use of the test set's outputs to choose models, thresholds, weights
or post-processing is forbidden, with or without labels. SCA over all queries with constants that were fixed
elsewhere, such as on the validation split, was accepted.

What is certain and what is not: `query_index.txt` and an example `answer.txt` are published in
github.com/Shuyu-XJTU/WWW2025Workshop (1,978 lines each, ids of 15 letters and digits, lines ended by CR LF,
which the readers here accept; LF is written). The tracks' pages name `answer.txt` and its top ten, and mAP as
the measure of 2026. The fields of the query files are known from public code that reads them, not from the
files. What the evaluation servers themselves accept was not seen.
"""

import codecs
import json
import lzma
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .annotation_fields import has_a_word
from .image_folders import FolderRules, list_images
from .json_records import LARGEST_JSON
from .text_files import decoded, lines_of, read_bytes, read_text
from .whole_files import replacing, write_text

QUERY_FILES = ("query_text.json", "query.json")
ORDER_FILE = "query_index.txt"
GALLERY = "gallery"
ANSWERS = 10  # names a line
ARCHIVE, ARCHIVED = ".zip", "answer.txt"
# Of an archive that is broken, of an unknown kind, encrypted, or whose content is not what was packed.
ZIP_ERRORS = (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, zlib.error, lzma.LZMAError)
LARGEST_ANSWERS = 2**26  # bytes, once unpacked; those of the 1,978 queries have 0.3 million


@dataclass(frozen=True)
class Challenge:
    """Queries in the order of the answers, and the gallery.

    Attributes:
        query_ids, captions: Q.
        images: name without suffix to file.
    """

    query_ids: list[str]
    captions: list[str]
    images: dict[str, Path]


def read_challenge(folder: Path, rules: FolderRules | None = None) -> Challenge:
    """Reads a test set; `rules` say what of the gallery's folder is taken, `None`: the defaults.

    Raises:
        FileNotFoundError, ValueError: naming the file, and the line, that is missing or wrong.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; give the one that holds {GALLERY}/")
    query_file = next((folder / name for name in QUERY_FILES if (folder / name).is_file()), None)
    if query_file is None:
        raise FileNotFoundError(f"{folder}: neither {' nor '.join(QUERY_FILES)} in it")
    captions = _read_captions(query_file)
    query_ids = list(captions)
    if (folder / ORDER_FILE).is_file():
        query_ids = _read_order(folder / ORDER_FILE, captions, query_file)
    return Challenge(query_ids, [captions[query_id] for query_id in query_ids], read_gallery(folder, rules))


def read_gallery(folder: Path, rules: FolderRules | None = None) -> dict[str, Path]:
    """The images of a test set, by their names without suffix; what else is there is counted in the log.

    Raises:
        FileNotFoundError, ValueError: no gallery, no image in it, or two of one name.
    """
    gallery = folder / GALLERY
    if not gallery.is_dir():
        raise FileNotFoundError(f"{folder}: no folder {GALLERY}/ in it: unpack the gallery there")
    images: dict[str, Path] = {}
    content = list_images(gallery, rules)
    for path in (gallery / name for name in content.images):
        if path.stem in images:
            raise ValueError(f"{path}: the name {path.stem!r} is that of {images[path.stem]} as well")
        if path.stem.split() != [path.stem]:
            raise ValueError(f"{path}: a name with a space in it cannot stand in an answer file")
        images[path.stem] = path
    if len(images) < ANSWERS:
        why = f"; {content.left_out.line()}" if content.left_out else ""
        raise ValueError(f"{gallery}: {len(images)} images, but an answer names {ANSWERS}{why}")
    content.left_out.report(gallery)
    return images


def read_answers(path: Path) -> str:
    """The content of an answer file, or of the one that an archive holds; with what is before its first name.

    Raises:
        FileNotFoundError, ValueError: there is none, or the archive holds something else; names the file.
    """
    if path.suffix.lower() != ARCHIVE:
        return _as_it_is(read_bytes(path, LARGEST_ANSWERS), str(path))
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if names != [ARCHIVED]:
                held = ", ".join(map(repr, names[:3])) + ", ..." * (len(names) > 3)
                raise ValueError(
                    f"{path} holds {held or 'nothing'}: it must hold {ARCHIVED!r} alone, and in no folder"
                )
            if archive.getinfo(ARCHIVED).file_size > LARGEST_ANSWERS:
                raise ValueError(
                    f"{path}: {ARCHIVED} has more than {LARGEST_ANSWERS:,} bytes: no answer file"
                )
            content = archive.read(ARCHIVED)
    except ZIP_ERRORS as error:
        raise ValueError(f"{path}: not a zip archive that can be read: {error}") from error
    return _as_it_is(content, f"{path}, {ARCHIVED}")


def _as_it_is(content: bytes, name: str) -> str:
    """UTF-8, and a mark at its beginning as a mark: unlike our readers, a server may take it for a name's."""
    mark = "\ufeff" if content.startswith(codecs.BOM_UTF8) else ""
    text = decoded(content, name)
    if not mark and not content.startswith(text[:1].encode()):
        raise ValueError(f"{name}: it is UTF-16 or UTF-32, and an answer file is UTF-8: save it as that")
    return mark + text


def answer_lines(rankings: Sequence[Sequence[str]]) -> str:
    """An answer file's content, from each query's ranked names."""
    return "".join(f"{' '.join(names[:ANSWERS])}\n" for names in rankings)


def write_answers(path: Path, rankings: Sequence[Sequence[str]], challenge: Challenge) -> None:
    """Writes an answer file, or where the path ends in .zip, an archive with it.

    Raises:
        ValueError: it would not be a right one.
    """
    text = answer_lines(rankings)
    if mistakes := find_mistakes(text, challenge):
        raise ValueError(f"{path} is not written: {mistakes[0]}")
    if path.suffix.lower() != ARCHIVE:
        write_text(path, text)
        return
    entry = zipfile.ZipInfo(ARCHIVED)  # without the time of day: equal answers, equal archives
    entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
    with replacing(path) as unfinished, zipfile.ZipFile(unfinished, "w") as archive:
        archive.writestr(entry, text)


def find_mistakes(text: str, challenge: Challenge) -> list[str]:
    """What is wrong with the content of an answer file, one text each, none for a right file.

    Whether each line answers the query of its place cannot be seen from names: only their count is checked.
    """
    # As every reader splits them. CR LF is a line's end as well; what only some take for one is a mistake.
    lines = text.removesuffix("\n").split("\n") if text else []
    mistakes = []
    if len(lines) != len(challenge.query_ids):
        mistakes.append(
            f"{len(lines)} lines for {len(challenge.query_ids)} queries: "
            "one line a query, in the order of the query file"
        )
    without_zeros: dict[str, str] = {name.lstrip("0"): name for name in challenge.images}
    known_queries = set(challenge.query_ids)
    for number, line in enumerate(lines, start=1):
        line = line.removesuffix("\r")
        names = line.split()
        query_id = challenge.query_ids[number - 1] if number <= len(challenge.query_ids) else None
        where = f"line {number}" + (f" (query {query_id})" if query_id is not None else "")
        if strange := sorted({sign for sign in line if sign != " " and not sign.isprintable()}):
            found = ", ".join(
                f"{sign!r} ({unicodedata.name(sign, 'a control character')})" for sign in strange
            )
            mistakes.append(
                f"{where}: {found} stands in it: plain spaces part names, and a line ends with LF or CR LF"
            )
            continue
        if names and names[0] in known_queries and names[0] not in challenge.images:
            whose = "its own" if names[0] == query_id else "another"
            mistakes.append(f"{where}: begins with {whose} query id {names[0]!r}: a line holds names only")
            continue
        if len(names) != ANSWERS:
            mistakes.append(f"{where}: {len(names)} names, not {ANSWERS}")
        if repeated := next((name for name in names if names.count(name) > 1), None):
            mistakes.append(f"{where}: {repeated!r} stands {names.count(repeated)} times")
        for name in dict.fromkeys(names):
            if name in challenge.images:
                continue
            hint = ""
            if Path(name).stem in challenge.images:
                hint = f": write {Path(name).stem!r}, without suffix or folder"
            elif name.lstrip("0") in without_zeros:
                hint = f", but {without_zeros[name.lstrip('0')]!r} is: names are text, zeros in front count"
            mistakes.append(f"{where}: {name!r} is not in the gallery{hint}")
    return mistakes


def _read_captions(path: Path) -> dict[str, str]:
    """Query id to caption, in the file's order."""
    text = read_text(path, LARGEST_JSON)
    captions: dict[str, str] = {}
    for where, record in _records(path, text):
        query_id, caption = _fields(record, where)
        if query_id in captions:
            raise ValueError(f"{where}: the query_index {query_id!r} is there twice")
        captions[query_id] = caption
    if not captions:
        raise ValueError(f"{path}: no query in it")
    return captions


def _records(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    """Where it stands, and the object, of each query."""
    try:
        # An object as its pairs, to see a key that comes twice.
        whole = json.loads(text, object_pairs_hook=_Pairs)
    except RecursionError as error:
        raise ValueError(f"{path}: not JSON: {error}") from error
    except json.JSONDecodeError as error:
        lines = [(number, line) for number, line in enumerate(lines_of(text), start=1) if line.strip()]
        if lines and not _is_json(lines[0][1]):
            raise ValueError(f"{path}, line {error.lineno}: not JSON: {error}") from error
        for number, line in lines:
            yield f"{path}, line {number}", _parsed(line, path, number)
        return
    if not isinstance(whole, _Pairs):
        for number, item in enumerate(whole if isinstance(whole, list) else [whole], start=1):
            yield f"{path}, item {number}", dict(item) if isinstance(item, _Pairs) else item
    elif "query_index" in dict(whole):  # a single line
        yield f"{path}, line 1", dict(whole)
    else:
        for query_id, caption in whole:
            yield f"{path}, query {query_id!r}", {"query_index": query_id, "caption": caption}


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


class _Pairs(list[tuple[str, Any]]):
    """A JSON object's keys and values, in their order."""


def _parsed(line: str, path: Path, number: int) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}, line {number}: not a line of JSON: {error}") from error


def _fields(record: Any, where: str) -> tuple[str, str]:
    if not isinstance(record, dict):
        raise ValueError(f"{where}: expected an object with 'query_index' and 'caption', got {record!r:.80}")
    query_id, caption = record.get("query_index"), record.get("caption")
    if isinstance(caption, list) and len(caption) == 1:  # PAB's test annotations write it so
        caption = caption[0]
    if not isinstance(query_id, str) or query_id.split() != [query_id]:
        raise ValueError(f"{where}: 'query_index' must be text without spaces, got {query_id!r:.80}")
    if not isinstance(caption, str) or not has_a_word(caption):
        raise ValueError(f"{where}: 'caption' must be a text, got {caption!r:.80}")
    return query_id, caption


def _read_order(path: Path, captions: dict[str, str], query_file: Path) -> list[str]:
    seen: dict[str, int] = {}
    for number, line in enumerate(lines_of(read_text(path)), start=1):
        query_id = line.strip()
        if not query_id:
            continue
        if query_id in seen:
            raise ValueError(f"{path}, line {number}: {query_id!r} is that of line {seen[query_id]} again")
        if query_id not in captions:
            raise ValueError(f"{path}, line {number}: no query {query_id!r} in {query_file.name}")
        seen[query_id] = number
    if absent := next((query_id for query_id in captions if query_id not in seen), None):
        raise ValueError(f"{path}: the query {absent!r} of {query_file.name} is not in it")
    return list(seen)
