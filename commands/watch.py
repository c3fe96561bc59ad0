"""Watches a camera, a folder into which a recorder writes, or a film: keeps a gallery, and raises alarms.

    tpas watch /recordings --model demo_start --path gallery
    tpas watch rtsp://camera/stream "a person is lying on the platform" --reference quiet_week --path gallery

Each person who comes is found, followed and encoded once, into a gallery that `tpas search` searches. With
texts, a visit that one of them speaks of is an alarm: printed, and a line of GALLERY/alarms/alarms.jsonl.

How sure it has to be is learnt from --reference, footage in which nothing of the kind happens: so that at
most --alarms_per_day false alarms come, of all texts together, in 24 hours of footage. One a day takes a day
of reference for each text. What this promises is in docs/trust.md.

    tpas watch old_films "a person is lying on the platform" --reference quiet_week --replay

says what would have been raised in old films or a gallery, and with --labels what would have been missed.
"""

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from ..data.image_folders import printable
from ..data.moments import clock
from ..data.text_files import PlacedText
from ..data.whole_files import AlreadyHeldError, held_alone
from ..footage.rules import FootageRules
from .command_line import CommandLine, CommandResult, WrongUsage, printer
from .footage import Camera, listed
from .model_choice import ModelChoice, warn_of_drawn_people
from .quick_imports import quick_imports
from .search import all_texts

if TYPE_CHECKING:
    from ..footage.alarms import QuietHours
    from ..footage.intake import Encoded
    from ..footage.replay import TrueMoment
    from ..footage.standing import Alarm, StandingQueries
    from ..search.gallery import Gallery
    from ..search.gallery_files import GalleryFiles

logger = logging.getLogger(__name__)

app = CommandLine("tpas watch", __doc__)


@dataclass(frozen=True)
class AlarmRules:
    """When alarms are raised, and where they go. Each field is a flag."""

    reference: list[str] | None = field(
        default=None,
        metadata={
            "help": "footage without events: galleries of `tpas footage build`, films, or folders of films"
        },
    )
    alarms_per_day: float = field(
        default=1.0,
        metadata={"help": "false alarms of all texts together in 24 hours of footage, at most, as expected"},
    )
    no_rerank: bool = field(default=False, metadata={"help": "score visits by the embeddings alone"})
    quiet: str | None = field(
        default=None, metadata={"help": "hours whose alarms are kept and not sent, such as 22:00-06:00"}
    )
    webhook: str | None = field(
        default=None,
        metadata={"help": "an address that each alarm is sent to as JSON", "envvar": "TPAS_WEBHOOK"},
    )
    blur_faces: bool = field(
        default=False, metadata={"help": "cover faces in the clips of alarms", "envvar": "TPAS_BLUR_FACES"}
    )

    def __post_init__(self) -> None:
        from ..footage.webhook import check_url

        _ = self.quiet_hours
        if self.webhook is not None:
            check_url(self.webhook)
        if not (self.alarms_per_day > 0 and math.isfinite(self.alarms_per_day)):
            raise ValueError(f"--alarms_per_day must be above 0, such as 1, got {self.alarms_per_day:g}")

    @property
    def quiet_hours(self) -> "QuietHours | None":
        from ..footage.alarms import QuietHours

        return None if self.quiet is None else QuietHours.read(self.quiet)


@app.command()
def watch(
    place: Annotated[
        str, Argument(help="a camera's address (rtsp://..., webcam:0), a folder of films, or a film")
    ],
    choice: ModelChoice,
    rules: FootageRules,
    alarms: AlarmRules,
    texts: Annotated[list[str] | None, Argument(help="standing queries, each in quotes")] = None,
    texts_file: Annotated[Path | None, Option(help="more of them, a text a line")] = None,
    path: Annotated[Path | None, Option(help="the gallery's directory")] = None,
    camera: Camera = None,
    every: Annotated[float, Option(help="seconds between two times that what was found is encoded")] = 60.0,
    replay: Annotated[
        bool, Option("--replay", help="of old films or a gallery: say what would have been raised, and end")
    ] = False,
    labels: Annotated[
        Path | None,
        Option(help="with --replay: true moments, as JSON Lines or CSV with camera, start_s, end_s, text"),
    ] = None,
) -> CommandResult | None:
    from ..footage.replay import read_truth
    from ..footage.standing import check_texts
    from ..search.gallery_files import GalleryFiles
    from ..search.manifest import MANIFEST

    # What can be refused is, before torch is loaded.
    asked = all_texts(texts or [], texts_file) if texts or texts_file else []
    asked = list({own.text: own for own in asked}.values())
    check_flags(place, asked, alarms, path, replay, labels, every)
    if asked:
        check_texts([own.text for own in asked])
    truth = None if labels is None else read_truth(labels)
    named = alarms.reference or []
    files_of = {name: gallery_at(name) for name in (*named, *([place] if replay else ()))}
    check_reference({name: files_of[name] for name in named}, len(asked), alarms.alarms_per_day)
    files = GalleryFiles(path) if path is not None and (path / MANIFEST).exists() else None
    files = files or next((found for found in files_of.values() if found is not None), None)
    choice.source(files)
    with quick_imports():
        from ..footage.intake import open_footage
        from ..footage.watching import watch as go_on
        from ..models.unread_texts import warn_of_unread
        from ..search.gallery import Gallery

    network, processor = choice.load(files)
    warn_of_drawn_people(network, Path(place))
    warn_of_unread(processor, [own.text for own in asked], [own.place for own in asked])

    def opened(name: str) -> Gallery:
        if files_of[name] is not None:
            return Gallery.open(name, network, processor)
        return open_footage(name, network, processor, rules=rules)

    def watched(**settings: Any) -> None:
        assert path is not None, "was looked at"
        go_on(place, path, network, processor, rules, camera=camera, every_s=every, **settings)

    learnt = {
        "texts": [own.text for own in asked],
        "references": [opened(name) for name in named],
        "alarms_per_day": alarms.alarms_per_day,
        "rerank": False if alarms.no_rerank else None,
    }
    if replay:
        return replayed(limits_of(None, **learnt), opened(place), truth)
    assert path is not None, "was looked at"
    if not asked:
        watched()
        return listed(path)
    with raising(alarms_folder(path, place, camera), path, rules, alarms, learnt) as judge:
        watched(encoded=judge)
    return None


def check_flags(
    place: str,
    texts: Sequence[PlacedText],
    alarms: AlarmRules,
    path: Path | None,
    replay: bool,
    labels: Path | None,
    every: float,
) -> None:
    """Raises WrongUsage for what does not go together, and as `find_films` for a place that is none."""
    from ..footage.sources import find_films, is_address
    from ..search.manifest import MANIFEST

    if not every > 0:
        raise WrongUsage(f"--every must be above 0, got {every}")
    reference, of_alarms = alarms.reference, alarms.webhook or alarms.quiet
    if not texts and (reference or replay or of_alarms or labels):
        raise WrongUsage("--reference, --replay, --labels, --webhook and --quiet are for texts: give one")
    if texts and not reference:
        raise WrongUsage(
            "how sure an alarm has to be is learnt from footage without events: --reference names some"
        )
    if labels is not None and not replay:
        raise WrongUsage("--labels is for --replay")
    if alarms.blur_faces:
        from ..footage.faces import center_face

        center_face()  # says what is missing
    if replay and (path is not None or of_alarms):
        raise WrongUsage("--replay raises nothing and keeps nothing: leave out --path, --webhook and --quiet")
    if replay and is_address(place):
        raise WrongUsage(f"--replay is of films that are there, and {place} is a stream")
    if not replay:
        if path is None:
            raise WrongUsage("--path names the gallery that is kept")
        if not is_address(place) and Path(place, MANIFEST).exists():
            raise WrongUsage(f"{place} is a gallery: --replay asks texts of what it holds")
        if texts and not is_address(place) and path.resolve().is_relative_to(Path(place).resolve()):
            raise WrongUsage(
                f"the gallery {path} lies in {place}, and the clips of its alarms would be watched: name "
                "another --path"
            )
        if is_address(place) or not Path(place).is_dir():  # a folder may be filled later
            find_films(place, camera=None)
        if any(Path(name).resolve() == path.resolve() for name in reference or ()):
            raise WrongUsage(
                f"the gallery {path} grows by what is watched, events as well: give another as --reference"
            )


def gallery_at(place: str) -> "GalleryFiles | None":
    """The gallery that a place is, or None of films; raises as `find_films` where it is neither."""
    from ..footage.sources import find_films, is_address
    from ..search.gallery_files import GalleryFiles
    from ..search.manifest import MANIFEST

    if is_address(place):
        raise WrongUsage(f"{place} is a stream: films that are there are looked through, or a gallery")
    if Path(place, MANIFEST).exists():
        return GalleryFiles(place)
    find_films(place)
    return None


def check_reference(references: "dict[str, GalleryFiles | None]", texts: int, alarms_per_day: float) -> None:
    """Raises ValueError for too little footage, where its length is known before it is looked through."""
    from ..footage.films import open_film
    from ..footage.sources import find_films
    from ..footage.standing import A_DAY, check_length, footage_of, seconds_watched

    seconds: list[float] = []
    for name, files in references.items():
        if files is not None:
            seconds += map(seconds_watched, footage_of(files.directory))
            continue
        for source in find_films(name):
            # One that cannot be read is named when it is looked through.
            with suppress(OSError, ValueError), open_film(source.film) as film:
                if film.duration_s is None:
                    return
                seconds.append(film.duration_s)
    if references:
        check_length(sum(seconds) / A_DAY, texts, alarms_per_day)


def alarms_folder(path: Path, place: str, camera: str | None) -> Path:
    """Of each camera that is watched alone its own, so that several may be watched into one gallery."""
    from ..footage.alarms import ALARMS
    from ..footage.sources import find_films, is_address

    if is_address(place):
        camera = find_films(place, camera)[0].camera
    folder = path / ALARMS / (camera or "")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def limits_of(folder: Path | None, **learnt: Any) -> "StandingQueries":
    """Those that were learnt before, of the same texts and reference, or new ones, which are kept there."""
    from ..footage.alarms import LIMITS
    from ..footage.standing import StandingQueries, key_of
    from ..footage.standing import hours as length

    queries = None
    if folder is not None and (folder / LIMITS).exists():
        queries = StandingQueries.load(folder / LIMITS)
        if queries.key != key_of(**learnt):
            queries = None
    if queries is None:
        queries = StandingQueries.learn(**learnt)
        if folder is not None:
            queries.save(folder / LIMITS)
    logger.info(
        "%g false alarms a day at most, as expected, by %d text%s: learnt from %d visits in %s hours",
        queries.alarms_per_day,
        len(queries.texts),
        "s" if len(queries.texts) > 1 else "",
        queries.visits,
        length(queries.days),
    )
    return queries


@contextmanager
def raising(
    folder: Path, path: Path, rules: FootageRules, alarms: AlarmRules, learnt: dict[str, Any]
) -> "Iterator[Encoded]":
    """What judges the visits of a gallery, and prints and sends the alarms.

    Raises:
        AlreadyHeldError: another process raises alarms there.
    """
    from ..footage.alarms import AlarmLog, Alarms
    from ..footage.faces import FaceCover
    from ..footage.records import records_of
    from ..footage.webhook import Webhook

    show = printer()

    def print_alarm(alarm: "Alarm") -> None:
        show(CommandResult(alarm.to_json(), line_of(alarm)))

    with ExitStack() as held:
        try:
            held.enter_context(held_alone(folder / "alarms.lock"))
        except AlreadyHeldError as error:
            held_by = f"{error} raises alarms in {folder}: --camera or --path names another"
            raise AlreadyHeldError(held_by) from None
        queries = limits_of(folder, **learnt)
        queries.check_settings(rules.settings)
        log, hook = AlarmLog(folder, records_of(path)), None
        if alarms.webhook is not None:
            hook = Webhook(alarms.webhook, log.mark_sent)
            held.callback(hook.close)
        faces = FaceCover(path) if alarms.blur_faces else None
        settings: dict[str, Any] = {"webhook": hook, "quiet": alarms.quiet_hours, "faces": faces}
        yield Alarms(queries, log, show=print_alarm, **settings).judge


def replayed(
    queries: "StandingQueries", gallery: "Gallery", truth: "list[TrueMoment] | None"
) -> CommandResult:
    from ..footage.replay import Replay
    from ..footage.standing import hours

    replay = Replay.of(queries, gallery, truth)
    content = replay.to_json()
    low, high = content["false_alarms_a_day_95"]
    lines = [line_of(alarm) for alarm in replay.alarms]
    lines += [f"missed: {clock(own.start_s)} to {clock(own.end_s)} {own.camera}" for own in replay.missed]
    for own in content["texts"]:
        false = "" if truth is None else f", {own['false_alarms']} false"
        lines.append(f"alarms: {own['alarms']}{false}: {printable(own['text'])}")
    kind = "alarms a day, right or false," if truth is None else "false alarms a day"
    lines.append(
        f"{rate(content['false_alarms'] / replay.days)} {kind} in {hours(replay.days)} hours of footage "
        f"(95 %: {rate(low)} to {rate(high)}); stated: at most {queries.alarms_per_day:g}"
    )
    if truth is not None:
        lines.append(f"{len(truth) - len(replay.missed)} of {len(truth)} true moments found")
    return CommandResult(content, "\n".join(lines))


def rate(a_day: float) -> str:
    """For people: 0.12, 3.4, and 940 in place of 9.4e+02."""
    return f"{a_day:.2g}" if a_day < 10 else f"{a_day:,.0f}"


def line_of(alarm: "Alarm") -> str:
    started = alarm.moment.started
    when = "" if started is None else f"{started:%Y-%m-%d %H:%M:%S} "
    rare = f"so high about {rate(alarm.false_alarms_a_day)} times a day by others"
    more = "".join([", quiet" if alarm.quiet else "", "" if alarm.clip is None else f", {alarm.clip}"])
    return (
        f"{when}{printable(str(alarm.moment))}: {printable(alarm.text)} "
        f"(score {alarm.score:.3f} above {alarm.limit:.3f}, {rare}{more})"
    )


def main(argv: Sequence[str] | None = None) -> None:
    app.run(argv)


if __name__ == "__main__":
    main()
