"""Finds the images of a folder, or of a gallery, that answer a text.

    tpas search images "a woman in a red coat is lying on the pavement" --model demo_start
    tpas search images "a man falls" "a child runs" --model demo_start --sheet results.html --open
    tpas search images "a man in a red coat" --must "a hat" --must_not "a bag" -k 5
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
image as query, `--image`, is ranked by the embeddings alone.

A phrase that must be seen is read as a sentence of each text. What must not be seen, and images that are
liked or disliked, move the query (Rocchio's rule): the match logit and the cosine with it order together.
Each phrase is also scored by itself, which is shown, and orders nothing (docs/walkthrough.md).

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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from ..data.image_folders import FolderRules
from ..data.moments import Moment
from ..data.text_files import PlacedText, check_text, decoded, read_standard_input, read_texts, texts_in
from ..data.whole_files import check_place
from ..footage.rules import FootageRules
from ..sca import Confidence
from ..search.arguments import DEFAULT_MATCHER_SHORTLIST, LEAST_CHANCE
from .command_line import CommandLine, CommandResult, WrongUsage, one_line
from .flags import IfBare
from .model_choice import ModelChoice
from .quick_imports import quick_imports
from .search_answers import cut_clips, shown, shown_of_image
from .searched_place import SearchedPlace

if TYPE_CHECKING:
    from torch import Tensor

    from ..footage.faces import FaceCover
    from ..models.interface import ImageMatcher, RetrievalModel, RetrievalProcessor
    from ..models.model_source import ModelSource
    from ..search.arguments import MatchingDtype
    from ..search.calibration import Calibration
    from ..search.feedback import Feedback
    from ..search.gallery import Gallery
    from ..search.hits import SearchResult

logger = logging.getLogger(__name__)

app = CommandLine("tpas search", __doc__)


BlurFaces = Annotated[
    bool,
    Option(
        "--blur_faces",
        envvar="TPAS_BLUR_FACES",
        help="of films: cover faces in all that is shown and exported (docs/footage.md: what that promises)",
    ),
]


@dataclass(frozen=True)
class Asked:
    """What is looked for. Each field is a flag, here and in the classes below."""

    texts: Annotated[
        list[str] | None,
        Argument(help="what to look for, each text in quotes; - reads the standard input, a text a line"),
    ] = None
    texts_file: Annotated[Path | None, Option(help="more texts, a text a line")] = None
    image: Annotated[Path | None, Option(help="an image to look for, in place of texts")] = None
    interactive: Annotated[
        bool, Option(help="read texts from the standard input, and answer each line as it comes")
    ] = False

    def all_texts(self) -> list[PlacedText]:
        """The texts; none where they come later, or an image in their place.

        Raises:
            WrongUsage, ValueError: see `all_texts`; FileNotFoundError: the image is none.
        """
        if self.image is not None and not self.image.is_file():
            raise FileNotFoundError(f"{self.image}: no such image file")
        later = self.interactive or self.image is not None
        return [] if later else all_texts(self.texts or [], self.texts_file)


@dataclass(frozen=True)
class Said:
    """What is said beside the texts. Each flag may be given several times."""

    must: Annotated[
        list[str] | None,
        Option(help="a phrase of what must be seen, read with each text and scored by itself"),
    ] = None
    must_not: Annotated[
        list[str] | None, Option("--must_not", "--not", help="a phrase of what must not be seen")
    ] = None
    liked: Annotated[
        list[str] | None, Option(help="an image like the one looked for, by its id as --json says it")
    ] = None
    disliked: Annotated[list[str] | None, Option(help="likewise one unlike it, which is not shown")] = None

    @property
    def phrases(self) -> list[PlacedText]:
        flags = (("--must", self.must), ("--must_not", self.must_not))
        return [PlacedText(as_typed(phrase, flag), flag) for flag, said in flags for phrase in said or ()]

    def check(self, ranking: "Ranking") -> "Feedback":
        """Raises ValueError for what says nothing, contradicts itself or the ranking."""
        from ..search.feedback import Feedback

        for phrase in self.phrases:
            check_text(phrase)
        feedback = Feedback.of(self.liked or (), self.disliked or (), self.must or (), self.must_not or ())
        feedback.check_order(ranking.sca, ranking.cascade)
        return feedback


def warn_of_unread(processor: "RetrievalProcessor", texts: Sequence[PlacedText]) -> None:
    from ..models import unread_texts

    unread_texts.warn_of_unread(processor, [text.text for text in texts], [text.place for text in texts])


@dataclass(frozen=True)
class Ranking:
    """How the images are ranked."""

    top_k: Annotated[int, Option("--top_k", "-k", help="images shown for each query", min=1)] = 10
    shortlist: Annotated[int, Option(help="images re-ranked for each text", min=1)] = 128
    no_rerank: Annotated[bool, Option(help="rank by the embeddings alone")] = False
    sca: Annotated[
        Confidence | None,
        Option(help="resolve collisions between the texts, by this confidence (bare: score)"),
        IfBare("score"),
    ] = None
    bf16: Annotated[bool, Option(help="re-rank in bfloat16: faster, and close ones change places")] = False
    cascade: Annotated[
        bool,
        Option(help="re-rank in bfloat16 first, then in float32 what may still be among --top_k"),
    ] = False
    matcher: Annotated[
        str | None,
        Option(
            help="vlm:NAME or vlm:NAME@COMMIT: a vision-language model that says yes or no to a pair, in "
            "place of the model's stage 2"
        ),
    ] = None
    matcher_shortlist: Annotated[int, Option(help="with it: images that it reads for each text", min=1)] = (
        DEFAULT_MATCHER_SHORTLIST
    )
    index: Annotated[str, Option(help="exact, faiss, or a Milvus address")] = "exact"

    @property
    def rerank(self) -> bool | None:
        """None: where the model can."""
        return False if self.no_rerank else None

    @property
    def matching_dtype(self) -> "MatchingDtype":
        return "bfloat16" if self.bf16 else "float32"

    @property
    def settings(self) -> dict[str, Any]:
        """What `Gallery.search` takes of it."""
        names = ("top_k", "shortlist", "rerank", "sca", "cascade", "matcher_shortlist")
        return {name: getattr(self, name) for name in names}

    def check(self) -> None:
        """Raises ValueError or WrongUsage for what no model could do."""
        from ..search.arguments import check_cascade, check_index

        check_index(self.index)
        if self.cascade:
            check_cascade(not self.no_rerank, self.sca, self.matching_dtype)
        if self.matcher is not None and self.no_rerank:
            raise WrongUsage("--matcher re-ranks, and --no_rerank was given: leave one out")

    def check_model(self, model: "RetrievalModel", trust_remote_code: bool) -> "ImageMatcher | None":
        """Raises ValueError for what this model cannot do; returns the --matcher."""
        from ..models.loading import load_matcher
        from ..search.stages import check_precision, check_stages

        check_precision(model, self.matching_dtype)
        second = None
        if self.matcher is not None:
            second = load_matcher(self.matcher, model.device, trust_remote_code=trust_remote_code)
        check_stages(model, self.rerank, self.cascade, second)
        return second


@dataclass(frozen=True)
class OfFilms:
    """What of films is searched, and made."""

    camera: Annotated[
        str | None, Option(help="of films: this camera alone, a folder of cameras, or a pattern")
    ] = None
    since: Annotated[
        str | None,
        Option("--from", help="of films: from this time on, 00:01:12 of a film or 2026-11-26T08:00"),
    ] = None
    until: Annotated[str | None, Option("--to", help="of films: up to this time")] = None
    clips: Annotated[Path | None, Option(help="of films: cut the moments found into this folder")] = None

    blur_faces: BlurFaces = False

    def check(self, folder: Path, has_films: bool) -> None:
        """Refuses what cannot be done before anything is searched.

        Raises:
            WrongUsage: for what is no time, and for images.
            OSError, ImportError: clips cannot be written, or faces not be found.
        """
        self.times()
        if self.clips is not None:
            if not has_films:
                raise WrongUsage(f"--clips is of films, and {folder} holds images")
            if self.clips.resolve().is_relative_to(folder.resolve()):
                raise WrongUsage(
                    f"--clips {self.clips} lies in {folder}, whose films are searched: name another"
                )
            check_place(self.clips / "clip.mp4")
        check_faces(self.blur_faces, folder, has_films)

    def times(self) -> "tuple[float | datetime | None, float | datetime | None]":
        """From when to when."""
        return read_time(self.since, "--from"), read_time(self.until, "--to")

    def rows_of(self, gallery: "Gallery", folder: Path) -> "Tensor | None":
        """Those of the gallery that are meant, None for all; raises ValueError where there is none."""
        times = self.times()
        if self.camera is None and times == (None, None):
            return None
        rows = gallery.rows_of_moments(self.camera, *times)
        if not len(rows):
            raise ValueError(f"nobody was seen in {folder} at that time")
        return rows

    def cut(self, answers: "SearchResult", faces: "FaceCover | None") -> dict[Moment, Path]:
        """The clips of what was found, if they are asked for."""
        if self.clips is None:
            return {}
        return cut_clips(self.clips, [hit.moment for hits in answers for hit in hits], faces)


@dataclass(frozen=True)
class Chances:
    """What scores are worth."""

    calibration: Annotated[
        Path | None,
        Option(help="what `tpas calibrate` wrote (default: calibration.json in the model's folder)"),
    ] = None
    coverage: Annotated[
        float | None,
        Option(help="in place of --top_k: as many images as hold the right one in this share of the cases"),
    ] = None
    least_chance: Annotated[
        float,
        Option(help='with a calibration: below it the answer begins with "no one like this"', min=0, max=1),
    ] = LEAST_CHANCE
    each_behaviour: Annotated[
        bool, Option(help="with --coverage: in that share of the normal and of the anomalous texts alike")
    ] = False
    presence: Annotated[
        float | None,
        Option(
            help="in what share of your searches the one asked for is there (default: what the calibration "
            "says, 0.5 unless it was told)"
        ),
    ] = None

    def learnt_for(
        self, source: "ModelSource", fetch: bool, is_film: bool, of_model: bool
    ) -> "Calibration | None":
        """What is given, or lies in the model's folder or repository.

        Args:
            fetch: of a repository also what is not on this machine yet.
            of_model: texts are ranked by the model's own scores, as the calibration has learnt them.

        Raises:
            WrongUsage, ValueError: it cannot promise what is asked.
        """
        given = {"--coverage": self.coverage, "--presence": self.presence}
        asked = next((flag for flag, value in given.items() if value is not None), None)
        if self.each_behaviour and self.coverage is None:
            raise WrongUsage("--each_behaviour is of a --coverage, which was not given")
        if is_film:
            if asked or self.calibration is not None:
                raise WrongUsage(
                    f"{asked or '--calibration'} is of images: what it promises was not learnt of visits"
                )
            return None
        learnt = calibration_of(source, self.calibration, fetch)
        if learnt is None and asked:
            raise WrongUsage(
                f"{asked} needs a calibration: `tpas calibrate` makes one, --calibration names it"
            )
        if learnt is not None and self.presence is not None:
            learnt = replace(learnt, presence=self.presence)
        if learnt is not None and self.coverage is not None:
            if not of_model:
                raise WrongUsage(
                    "--coverage is of the model's own scores of texts: leave out --sca, --must_not, --liked, "
                    "--disliked, --matcher and --image"
                )
            # Refuses what it cannot promise.
            learnt.least_share(self.coverage, each_behaviour=self.each_behaviour)
        return learnt

    @property
    def needed(self) -> bool:
        return (self.calibration, self.coverage, self.presence) != (None, None, None)


@dataclass(frozen=True)
class Sheet:
    """A page or figure of what was found."""

    sheet: Annotated[
        Path | None, Option(help="write the images found as a page (.html) or a figure (.png, .pdf, ...)")
    ] = None
    open_sheet: Annotated[bool, Option("--open", help="open the sheet in the browser")] = False

    def check(self) -> None:
        """Raises ValueError for a file that is no page or figure."""
        if self.sheet is not None:
            from ..figures.contact_sheet import check_sheet

            check_sheet(self.sheet)

    def write(self, answers: "SearchResult") -> None:
        """Writes it, if it is asked for."""
        if self.sheet is None:
            return
        from ..figures.contact_sheet import write_contact_sheet

        write_contact_sheet(self.sheet, answers)
        if self.open_sheet:
            webbrowser.open(self.sheet.resolve().as_uri())


@app.command()
def search(
    folder: Annotated[
        Path,
        Argument(help="images, films, or a gallery that `tpas gallery build` or `tpas footage build` made"),
    ],
    asked: Asked,
    said: Said,
    choice: ModelChoice,
    ranking: Ranking,
    chances: Chances,
    sheet: Sheet,
    of_films: OfFilms,
    rules: FolderRules,
    footage: FootageRules,
    images_root: Annotated[
        Path | None, Option(help="the folder where a gallery's images lie now, if it was moved")
    ] = None,
) -> CommandResult | Iterator[CommandResult]:
    # What can be refused is, before torch is loaded and images are encoded for hours.
    check_together(asked, said, ranking, sheet)
    texts = asked.all_texts()
    feedback = said.check(ranking)
    sheet.check()
    ranking.check()
    place = SearchedPlace.of(folder, rules, footage, images_root)
    files = place.files(choice)
    of_films.check(folder, place.has_moments(files))
    of_model = not (ranking.sca or ranking.matcher or feedback.moves or asked.image)
    learnt = chances.learnt_for(choice.source(files), choice.model is not None, place.is_film, of_model)

    with quick_imports():
        model, processor = choice.load(files)
    second = ranking.check_model(model, choice.trust_remote_code)
    learnt = fitting(learnt, model, processor, needed=chances.needed)
    warn_of_unread(processor, [*texts, *said.phrases])
    opened = {"index": ranking.index, "matching_dtype": ranking.matching_dtype}
    gallery = place.open(model, processor, learnt, **opened)
    gallery.cover = faces = face_cover(gallery) if of_films.blur_faces else None
    rows = of_films.rows_of(gallery, folder)
    find = partial(
        gallery.search,
        rows=rows,
        **feedback.settings,
        coverage=chances.coverage,
        each_behaviour=chances.each_behaviour,
        matcher=second,
        **ranking.settings,
    )
    say = partial(shown, feedback=feedback, least_chance=chances.least_chance)

    def answer(placed: PlacedText) -> CommandResult:
        warn_of_unread(processor, [placed])
        gallery.refresh()
        answers = find([placed.text], rows=of_films.rows_of(gallery, folder))  # which may be others by now
        return say([placed.text], answers, clips=of_films.cut(answers, faces), of_one=True)

    if asked.interactive:
        return answers_as_they_come(answer)
    if asked.image is not None:
        from ..processing_tpas import load_image

        answers = gallery.similar(load_image(asked.image), ranking.top_k, rows=rows)
        result = shown_of_image(asked.image, answers[0], of_films.cut(answers, faces))
    else:
        wanted = [text.text for text in texts]
        answers = find(wanted)
        result = say(wanted, answers, clips=of_films.cut(answers, faces))
    sheet.write(answers)
    return result


def check_together(asked: Asked, said: Said, ranking: Ranking, sheet: Sheet) -> None:
    """Raises WrongUsage for flags that exclude each other."""
    if sheet.open_sheet and sheet.sheet is None:
        raise WrongUsage("--open needs --sheet, the file to write")
    texts = asked.texts or asked.texts_file
    if asked.interactive and (texts or asked.image or sheet.sheet or ranking.sca):
        raise WrongUsage(
            "--interactive reads its texts from the standard input and answers each by itself: leave out "
            "texts, --texts_file, --image, --sheet and --sca"
        )
    if asked.image is not None:
        if texts:
            raise WrongUsage("give texts, or an --image to look for, not both")
        if ranking.sca or ranking.cascade or ranking.bf16 or ranking.matcher or said != Said():
            raise WrongUsage(
                "--image is ranked by the embeddings alone: leave out --sca, --cascade, --bf16, --matcher, "
                "--must, --must_not, --liked and --disliked"
            )


def check_faces(blur_faces: bool, folder: Path, has_films: bool) -> None:
    """Raises WrongUsage or ImportError where faces are to be covered, and cannot be."""
    if not blur_faces:
        return
    if not has_films:
        raise WrongUsage(
            f"--blur_faces is of films, and {folder} holds images: where people are in them is not known, "
            "and a face that is not seen would be shown"
        )
    from ..footage.faces import center_face

    center_face()


def face_cover(gallery: "Gallery") -> "FaceCover":
    """What covers faces in a gallery of films."""
    from ..footage.faces import FaceCover

    return FaceCover(gallery.path)


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


def calibration_of(source: "ModelSource", given: Path | None, fetch: bool) -> "Calibration | None":
    """The one that is given, or that lies in the model's folder or Hub repository, if there is any.

    Args:
        fetch: of a repository also what is not on this machine yet.
    """
    from ..models.hub_repositories import file_of, is_hub_name
    from ..search.calibration import CALIBRATION, Calibration

    own: Path | None = given or Path(source.name, CALIBRATION)
    if given is None and is_hub_name(name := source.name.rpartition(":")[2]):
        own = file_of(name, CALIBRATION, source.revision, fetch)
    return Calibration.load(own) if own is not None and (given is not None or own.is_file()) else None


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


def main(argv: Sequence[str] | None = None) -> None:
    app.run(argv)


if __name__ == "__main__":
    main()
