"""Finds the images of a folder, or of a gallery, that answer a text.

    tpas search images "a woman in a red coat is lying on the pavement" --model demo_start
    tpas search images "a man falls" "a child runs" --model demo_start --sheet results.html --open
    tpas search images "a man in a red coat" --not "a hat" -k 5
    tpas search images --image somebody.jpg
    tpas search images --interactive

A film, or a folder of films, is searched for the people in it, and answers with moments:

    tpas search camera.mp4 "a man in black stands at a table" --model demo_start --clips found

A folder's images are encoded once, into IMAGES.gallery beside it; a later search encodes only what is new
or changed, and forgets what is gone. A gallery that `tpas gallery build` made is searched as it is.

Any retrieval model will do (docs/models.md); one without a stage 2 ranks by its embeddings alone. The model
of a gallery need not be named, nor the one for photographs, which is fetched after one question or by --yes.

`--interactive` loads the model once, and answers a text a line until the input ends: typed, or from a pipe,
with `--json` a document a line. Of a line that cannot be answered it says why, and reads the next one. An
image as query, `--image`, is ranked by the embeddings alone. `--not` takes the embedding of a text from that
of each other one; the re-ranking reads the texts without it.

An answer is ordered by its score: the match logit of the re-ranked, without re-ranking the cosine. Higher is
better; it is no probability, and is to be compared within one answer only. An image that SCA moved keeps it.
Where `tpas calibrate` has learnt what scores are worth, chances are shown beside them, and an answer says
first if there is likely no one like this (docs/trust.md).
"""

import logging
import os
import re
import sys
import webbrowser
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from ..data.image_folders import FolderRules, printable
from ..data.moments import Moment
from ..data.text_files import PlacedText, check_text, decoded, read_standard_input, read_texts, texts_in
from ..footage.rules import FootageRules
from ..sca import Confidence
from ..search.arguments import DEFAULT_MATCHER_SHORTLIST, LEAST_CHANCE
from ..search.hits import percent
from .command_line import CommandLine, CommandResult, WrongUsage, one_line, quick_imports
from .flags import IfBare
from .model_choice import ModelChoice, warn_of_drawn_people

if TYPE_CHECKING:
    from ..models.interface import RetrievalModel, RetrievalProcessor
    from ..search.calibration import Calibration
    from ..search.hits import SearchHit, SearchResult

logger = logging.getLogger(__name__)

app = CommandLine("tpas search", __doc__)


@app.command()
def search(
    folder: Annotated[
        Path,
        Argument(help="images, films, or a gallery that `tpas gallery build` or `tpas footage build` made"),
    ],
    rules: FolderRules,
    footage: FootageRules,
    choice: ModelChoice,
    texts: Annotated[
        list[str] | None,
        Argument(help="what to look for, each text in quotes; - reads the standard input, a text a line"),
    ] = None,
    texts_file: Annotated[Path | None, Option(help="more texts, a text a line")] = None,
    image: Annotated[Path | None, Option(help="an image to look for, in place of texts")] = None,
    without: Annotated[
        str | None, Option("--not", help="a text to take away from each of the others")
    ] = None,
    interactive: Annotated[
        bool, Option(help="read texts from the standard input, and answer each line as it comes")
    ] = False,
    top_k: Annotated[int, Option("--top_k", "-k", help="images shown for each query", min=1)] = 10,
    shortlist: Annotated[int, Option(help="images re-ranked for each text", min=1)] = 128,
    no_rerank: Annotated[bool, Option(help="rank by the embeddings alone")] = False,
    sca: Annotated[
        Confidence | None,
        Option(help="resolve collisions between the texts, by this confidence (bare: score)"),
        IfBare("score"),
    ] = None,
    bf16: Annotated[bool, Option(help="re-rank in bfloat16: faster, and close ones change places")] = False,
    cascade: Annotated[
        bool,
        Option(help="re-rank in bfloat16 first, then in float32 what may still be among --top_k"),
    ] = False,
    matcher: Annotated[
        str | None,
        Option(
            help="vlm:NAME or vlm:NAME@COMMIT: a vision-language model that says yes or no to a pair, in "
            "place of the model's stage 2"
        ),
    ] = None,
    matcher_shortlist: Annotated[
        int, Option(help="with it: images that it reads for each text", min=1)
    ] = DEFAULT_MATCHER_SHORTLIST,
    index: Annotated[str, Option(help="exact, faiss, or a Milvus address")] = "exact",
    camera: Annotated[
        str | None, Option(help="of films: this camera alone, a folder of cameras, or a pattern")
    ] = None,
    since: Annotated[
        str | None,
        Option("--from", help="of films: from this time on, 00:01:12 of a film or 2026-11-26T08:00"),
    ] = None,
    until: Annotated[str | None, Option("--to", help="of films: up to this time")] = None,
    clips: Annotated[Path | None, Option(help="of films: cut the moments found into this folder")] = None,
    images_root: Annotated[
        Path | None, Option(help="the folder where a gallery's images lie now, if it was moved")
    ] = None,
    calibration: Annotated[
        Path | None,
        Option(help="what `tpas calibrate` wrote (default: calibration.json in the model's folder)"),
    ] = None,
    coverage: Annotated[
        float | None,
        Option(help="in place of --top_k: as many images as hold the right one in this share of the cases"),
    ] = None,
    least_chance: Annotated[
        float,
        Option(help='with a calibration: below it the answer begins with "no one like this"', min=0, max=1),
    ] = LEAST_CHANCE,
    sheet: Annotated[
        Path | None, Option(help="write the images found as a page (.html) or a figure (.png, .pdf, ...)")
    ] = None,
    open_sheet: Annotated[bool, Option("--open", help="open the sheet in the browser")] = False,
) -> CommandResult | Iterator[CommandResult]:
    if open_sheet and sheet is None:
        raise WrongUsage("--open needs --sheet, the file to write")
    if interactive and (texts or texts_file or image or sheet or sca):
        raise WrongUsage(
            "--interactive reads its texts from the standard input and answers each by itself: leave out "
            "texts, --texts_file, --image, --sheet and --sca"
        )
    if image is not None:
        if texts or texts_file:
            raise WrongUsage("give texts, or an --image to look for, not both")
        if sca or cascade or bf16 or without or matcher:
            raise WrongUsage(
                "--image is ranked by the embeddings alone: leave out --sca, --cascade, --bf16, --matcher "
                "and --not"
            )
        if not image.is_file():
            raise FileNotFoundError(f"{image}: no such image file")
    asked = [] if interactive or image else all_texts(texts or [], texts_file)
    if without is not None:
        check_text(PlacedText(as_typed(without, "--not"), "--not"))
    wanted = [text.text for text in asked]

    # What can be refused is, before torch is loaded and images are encoded for hours.
    from ..footage.sources import holds_films
    from ..search.arguments import MatchingDtype, check_cascade, check_index
    from ..search.gallery_files import GalleryFiles

    if sheet is not None:
        from ..figures.contact_sheet import check_sheet

        check_sheet(sheet)
    is_gallery = folder.is_dir() and holds_gallery(folder)
    times = read_time(since, "--from"), read_time(until, "--to")
    if images_root is not None and not is_gallery:
        raise WrongUsage(f"--images_root is for a gallery, and {folder} is a folder of images")
    if rules.exclude and is_gallery:
        raise WrongUsage(f"--exclude is for a folder of images, and {folder} is a gallery, built without it")
    check_index(index)
    matching_dtype: MatchingDtype = "bfloat16" if bf16 else "float32"
    if cascade:
        check_cascade(not no_rerank, sca, matching_dtype)
    if matcher is not None and no_rerank:
        raise WrongUsage("--matcher re-ranks, and --no_rerank was given: leave one out")
    is_film = not is_gallery and holds_films(folder)
    if not is_gallery and not is_film:
        holds_gallery(folder)  # says so where there is no folder
    files = GalleryFiles(folder) if is_gallery else choice.gallery_of(folder)
    learnt = calibration_of(choice.source(files).name, calibration)
    if is_film:
        if coverage is not None or calibration is not None:
            raise WrongUsage(
                "--coverage and --calibration are of images: what they promise was not learnt of visits"
            )
        learnt = None
    if coverage is not None:
        if learnt is None:
            raise WrongUsage(
                "--coverage needs a calibration: `tpas calibrate` makes one, --calibration names it"
            )
        if sca or without or matcher or image:
            raise WrongUsage(
                "--coverage is of the model's own scores of texts: leave out --sca, --not, --matcher, --image"
            )
        learnt.least_share(coverage)  # refuses what it cannot promise

    with quick_imports():
        from ..models.interface import can_match
        from ..models.loading import load_matcher
        from ..models.unread_texts import warn_of_unread
        from ..search.folder_gallery import open_folder
        from ..search.gallery import Gallery, check_precision, check_stages

    network, processor = choice.load(files)
    check_precision(network, matching_dtype)
    rerank = False if no_rerank else None
    second = None
    if matcher is not None:
        second = load_matcher(matcher, network.device, trust_remote_code=choice.trust_remote_code)
    check_stages(network, rerank, cascade, second)
    learnt = fitting(learnt, network, processor, needed=calibration is not None or coverage is not None)
    taken_away = [] if without is None else [without]
    warn_of_unread(
        processor, [*wanted, *taken_away], [*(text.place for text in asked), *(["--not"] * len(taken_away))]
    )
    if is_gallery:
        gallery = Gallery.open(
            folder,
            network,
            processor,
            images_root=images_root,
            follow_links=rules.follow_links,
            index=index,
            matching_dtype=matching_dtype,
            calibration=learnt,
        )
        warn_of_drawn_people(network, gallery.root_of_images)
    elif is_film:
        from ..footage.intake import open_footage

        warn_of_drawn_people(network, folder)
        opened_as = {"index": index, "matching_dtype": matching_dtype}
        gallery = open_footage(folder, network, processor, rules=footage, **opened_as)
    else:
        warn_of_drawn_people(network, folder)
        opened_as = {"index": index, "matching_dtype": matching_dtype, "calibration": learnt}
        gallery = open_folder(folder, network, processor, rules=rules, **opened_as)
    if not len(gallery):
        raise ValueError(f"the gallery {folder} is empty: `tpas gallery append` images first")
    rows = None
    if camera is not None or times != (None, None):
        rows = gallery.rows_of_moments(camera, *times)
        if not len(rows):
            raise ValueError(f"nobody was seen in {folder} at that time")
    if learnt is not None and (warning := learnt.warning_of_size(len(gallery))):
        logger.warning("%s", warning)
    if without is not None and (second is not None or (rerank is None and can_match(network))):
        logger.info(
            "--not: stage 1 ranks by the difference; the re-ranking reads the texts alone (--no_rerank)"
        )

    def answers_to(queries: list[str]) -> "SearchResult":
        return gallery.search(
            queries,
            rows=rows,
            top_k=top_k,
            shortlist=shortlist,
            rerank=rerank,
            sca=sca,
            without=without,
            coverage=coverage,
            cascade=cascade,
            matcher=second,
            matcher_shortlist=matcher_shortlist,
        )

    def cut(answers: "SearchResult") -> dict[Moment, Path]:
        return {} if clips is None else cut_clips(clips, [hit.moment for hits in answers for hit in hits])

    def answer(placed: PlacedText) -> CommandResult:
        warn_of_unread(processor, [placed.text], [placed.place])
        gallery.refresh()
        answers = answers_to([placed.text])
        return shown([placed.text], answers, without, least_chance, cut(answers), of_one=True)

    if interactive:
        return answers_as_they_come(answer)
    if image is not None:
        from ..processing_tpas import load_image

        answers = gallery.similar(load_image(image), top_k, rows=rows)
        cuts = cut(answers)
        content = [{"image": str(image), "hits": [hit_fields(hit, cuts) for hit in answers[0]]}]
        result = CommandResult(content, f"{printable(str(image))}\n{table(answers[0])}")
    else:
        answers = answers_to(wanted)
        result = shown(wanted, answers, without, least_chance, cut(answers))
    if sheet is not None:
        from ..figures.contact_sheet import write_contact_sheet

        write_contact_sheet(sheet, answers)
        if open_sheet:
            webbrowser.open(sheet.resolve().as_uri())
    return result


def calibration_of(model: str, given: Path | None) -> "Calibration | None":
    """The one that is given, or that lies in the model's folder, if there is any."""
    from ..search.calibration import CALIBRATION, Calibration

    own = Path(model, CALIBRATION)
    return Calibration.load(given or own) if given is not None or own.is_file() else None


def fitting(
    calibration: "Calibration | None",
    model: "RetrievalModel",
    processor: "RetrievalProcessor",
    needed: bool = False,
) -> "Calibration | None":
    """The calibration if it is of the model; otherwise raises ValueError where it is needed, or warns."""
    from ..models.fingerprints import image_fingerprint, model_fingerprint, text_fingerprint

    if calibration is None:
        return None
    fingerprints = model_fingerprint(model), image_fingerprint(model, processor), text_fingerprint(processor)
    try:
        calibration.check_model(*fingerprints)
    except ValueError as error:
        if needed:
            raise
        logger.warning("no chances are said: %s", error)
        return None
    return calibration


def shown(
    texts: Sequence[str],
    answers: "SearchResult",
    without: str | None,
    least_chance: float,
    clips: Mapping[Moment, Path],
    of_one: bool = False,
) -> CommandResult:
    """The answers, or that of one text alone."""
    more = {} if without is None else {"without": without}
    content, tables = [], []
    for number, (text, hits) in enumerate(zip(texts, answers, strict=True)):
        chance, no_one = answers.chances[number], answers.no_one(number, least_chance)
        chances = {} if chance is None else {"no_one": no_one is not None, "chance": chance}
        content.append({"text": text, **chances, **more, "hits": [hit_fields(hit, clips) for hit in hits]})
        said = "" if chance is None else f"\nsomeone like this: chance {percent(chance)}"
        tables.append(
            f"{printable(text)}{said if no_one is None else f'{chr(10)}{no_one}; nearest:'}\n{table(hits)}"
        )
    if of_one:
        return CommandResult(content[0], f"{tables[0]}\n")
    return CommandResult(content, "\n\n".join(tables))


def answers_as_they_come(answer: Callable[[PlacedText], CommandResult]) -> Iterator[CommandResult]:
    """The answer to each line of the standard input; of one that has none what is wrong with it."""
    for number in count(1):
        if sys.stdin.isatty():
            print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.buffer.readline()
        if not line:
            if sys.stdin.isatty():
                print(file=sys.stderr)  # the shell's prompt begins a line of its own
            return
        place = f"line {number}"
        try:
            text = decoded(line, "the standard input", number).strip()
            if not text:
                continue
            placed = PlacedText(text, place)
            check_text(placed)
            yield answer(placed)
        except (ValueError, OSError, RuntimeError) as error:  # GalleryError and torch's are RuntimeErrors
            message = one_line(str(error))
            logger.error("%s", message if place in message else f"{place}: {message}")
            yield CommandResult({"line": number, "error": message}, "")


def holds_gallery(folder: Path) -> bool:
    """Whether a folder is a gallery, and not one of images.

    One whose first build was killed has no manifest yet: it is to be named so, not searched for images.

    Raises:
        NotADirectoryError: there is no such folder.
    """
    from ..search.manifest import LOCK, MANIFEST, SHARDS

    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is neither a folder of images nor a gallery")
    return (folder / MANIFEST).exists() or ((folder / LOCK).exists() and (folder / SHARDS).is_dir())


def read_time(text: str | None, flag: str) -> "float | datetime | None":
    """A time of a film in seconds, or of the wall clock, in this machine's zone where none is named."""
    from ..footage.films import read_clock

    if text is None:
        return None
    if re.match(r"\d{4}-\d\d-\d\d", text):
        try:
            time = datetime.fromisoformat(text)
        except ValueError:
            raise WrongUsage(f"{flag}: {text!r} is no time, such as 2026-11-26T08:00") from None
        return time if time.tzinfo else time.astimezone()
    try:
        return read_clock(text)
    except ValueError as error:
        raise WrongUsage(f"{flag}: {error}") from None


def cut_clips(folder: Path, moments: Sequence[Moment | None]) -> dict[Moment, Path]:
    """The clip of each moment; one that cannot be cut is named in the log, and left out."""
    from ..footage.clips import cut_clip

    cut = {}
    for moment in dict.fromkeys(moments):
        if moment is not None:
            try:
                cut[moment] = cut_clip(moment, folder)
            except (FileNotFoundError, ValueError) as error:
                logger.warning("no clip of visit %d: %s", moment.track, error)
    return cut


def all_texts(given: Sequence[str], file: Path | None) -> list[PlacedText]:
    """The texts of the command line, in place of a - those of the standard input, and those of the file.

    Raises:
        WrongUsage: there is none, or they are the words of one sentence.
        ValueError: one is no text, or punctuation alone; names its place.
    """
    if len(given) > 1 and all(text.isascii() and text != "-" and len(text.split()) == 1 for text in given):
        raise WrongUsage(
            f"{len(given)} texts of one word each: quote the sentence, as in {' '.join(given)!r}; "
            "or, if words are what you look for, give them as the lines of --texts_file"
        )
    texts: list[PlacedText] = []
    for number, text in enumerate(given, start=1):
        if text == "-":
            texts += texts_in(read_standard_input(), "the standard input")
        elif text.strip():
            placed = PlacedText(as_typed(text, f"text {number}").strip(), f"text {number}")
            check_text(placed)
            texts.append(placed)
    if file is not None:
        texts += read_texts(file)
    if not texts:
        raise WrongUsage("there is no text to look for")
    return texts


def as_typed(text: str, place: str) -> str:
    """What was typed in UTF-8, also where Python was told of another encoding; raises as `decoded`."""
    if text.isprintable():
        return text
    return decoded(os.fsencode(text), place)


def hit_fields(hit: "SearchHit", clips: Mapping[Moment, Path]) -> dict[str, Any]:
    names = ("id", "rank", "score", "cosine", "match_logit", "embedding_rank", "rank_before_sca")
    chance = {} if hit.chance is None else {"chance": hit.chance}
    fields = {name: getattr(hit, name) for name in names} | chance | {"path": hit.path and str(hit.path)}
    if hit.moment is None:
        return fields
    clip = clips.get(hit.moment)
    return fields | {"moment": hit.moment.to_json()} | ({} if clip is None else {"clip": str(clip)})


def table(hits: Sequence["SearchHit"]) -> str:
    by_sca = any(hit.rank_before_sca is not None for hit in hits)
    by_match = any(hit.match_logit is not None for hit in hits)  # otherwise the score is the cosine
    before = f" {'before SCA':>10}" if by_sca else ""
    cosine = f" {'cosine':>7} {'by cosine':>9}" if by_match else ""
    by_chance = any(hit.chance is not None for hit in hits)
    chance = f" {'chance':>7}" if by_chance else ""
    lines = [f"{'rank':>4}{chance} {'score':>8}{cosine}{before}  image"]
    for hit in hits:
        score = "" if hit.score is None else f"{hit.score:.3f}"
        cosine = f" {hit.cosine:>7.3f} {hit.embedding_rank:>9}" if by_match else ""
        before = f" {hit.rank_before_sca:>10}" if by_sca else ""
        if by_chance:
            chance = f" {'' if hit.chance is None else percent(hit.chance):>7}"
        image = printable(str(hit.moment or hit.path or hit.id))
        lines.append(f"{hit.rank:>4}{chance} {score:>8}{cosine}{before}  {image}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    app.run(argv)


if __name__ == "__main__":
    main()
