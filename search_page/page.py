"""The search page in Gradio: its layout and its handlers."""

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Any

import gradio as gr
from gradio.themes import Base
from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter

from ..data.image_files import image_suffixes
from ..search.feedback import MOST_PHRASES
from .access import client_key
from .filters import CHOSEN, TYPED, written
from .questions import ANY, MARKS, WHO, Question, RequestError, Visitor, wanted_of
from .rendering import Renderer, page_script, page_style
from .requests import SearchRequests, Session
from .uploads import Uploads

logger = logging.getLogger(__name__)

TITLE = "Find a person by what they wear, do, and where"
WHERE = [("the gallery", "gallery"), ("my images", "own"), ("both", "both")]
FAILED = "The server could not do this. Its log says why."
IMAGES_TO_ONE = 2  # as many images as a session holds may be decoded in a minute
SESSIONS = 200  # kept at a time; the one that was idle longest makes room
WAITING_REQUESTS = 128  # more are turned away; of one client, `request_limits` turns away far fewer
SECONDS_APART = 1.0  # of answers that come text by text: each is sent with all its images

FORM: tuple[str, ...] = (
    "q",
    "where",
    *CHOSEN,
    *TYPED,
    "shown",
    "rerank",
    "sca",
    "must",
    "must_not",
)  # as an address calls them
LINKED = ("q", "like", "own", "sca", "must", "must_not", *MARKS)  # of what a link asks


class SearchPage:
    """The page's handlers: what a person did in, what the page shows out."""

    def __init__(self, requests: SearchRequests, uploads: Uploads):
        self.requests, self.uploads = requests, uploads
        self.renderer = Renderer(requests)
        self.choices = {name: requests.facts.choices(name) for name in CHOSEN}
        self.rate_limiter = MovingWindowRateLimiter(MemoryStorage())
        self.rate = RateLimitItemPerMinute(requests.limits.requests_a_minute)

    def search(self, request: gr.Request, session, *form) -> Iterator[tuple[Session, str]]:
        """The answers to the form's texts, as they come."""
        said = dict(zip(FORM, form, strict=True))

        def answers() -> Iterator[str]:
            yield from self._answers(session, said, _still_marked(session, Question.of_address(said)))

        for shown in self._shown_each(answers, session, request):
            yield session, shown

    def filter(self, request: gr.Request, session, *form) -> Iterator[tuple[Session, Any]]:
        """The same question under another filter or setting; nothing where nothing was asked or is new."""
        said = dict(zip(FORM, form, strict=True))

        def answers() -> Iterator[str]:
            asked = Question.of_address(said)
            if session.question.image is not None:
                asked = Question(image=session.question.image, wanted=asked.wanted)
            asked = _still_marked(session, asked)
            if _settings(said, asked) != session.settings:
                yield from self._answers(session, said, asked)

        yield session, gr.skip()
        if session.question.image is not None or str(said["q"] or "").strip():
            for shown in self._shown_each(answers, session, request):
                yield session, shown

    def filter_times(self, request: gr.Request, session, *form) -> Iterator[tuple[Session, Any]]:
        """As `filter`, where days or times were changed; also an address that sets them calls this."""
        try:
            is_asked = wanted_of(dict(zip(FORM, form, strict=True))) == session.question.wanted
        except RequestError:
            is_asked = False
        yield from [(session, gr.skip())] if is_asked else self.filter(request, session, *form)

    def ask(self, event: gr.EventData, request: gr.Request, session, *form) -> Iterator[tuple]:
        """What an address or a link asks, which the form then says; without a question the first screen."""
        said = dict(zip(FORM, form, strict=True))
        linked = {name: _said(event, name, None) for name in LINKED}
        if _said(event, "whole", False):
            linked |= {name: _said(event, name, None) for name in (*CHOSEN, *TYPED)}
        said |= linked

        def answers() -> Iterator[str]:
            asked = Question.of_address(said)
            if asked.image is None and not any(text.strip() for text in asked.texts):
                session.result, session.question = None, Question()
                yield self.renderer.welcome()
            else:
                yield from self._answers(session, said, asked)

        known = {name: said[name] if said[name] in self.choices[name] else ANY for name in CHOSEN}
        typed = [str(said[name]) if said[name] else None for name in TYPED]
        phrases = [str(said[name] or "") for name in ("must", "must_not")]
        fields = [str(said["q"] or ""), *known.values(), *typed, bool(said["sca"]), *phrases]
        for shown in self._shown_each(answers, session, request):
            yield session, shown, *fields
            fields = len(fields) * [gr.skip()]

    def _answers(self, session: Session, said: Mapping[str, Any], asked: Question) -> Iterator[str]:
        """What is shown of the answers, stage by stage."""
        session.settings = _settings(said, asked)
        self.requests.turn(session, 0, said["shown"])
        found = self.requests.limits.images_found
        if asked.image is not None:
            self.requests.similar(session, asked.image, shown=found, wanted=asked.wanted)
            yield self.renderer.answers(session)
            return
        stages = self.requests.search_in_stages(
            session,
            asked.texts,
            shown=found,
            where=said["where"],
            wanted=asked.wanted,
            rerank=bool(said["rerank"]),
            sca=asked.sca,
            feedback=asked.feedback,
        )
        sent = -math.inf
        for waiting in stages:
            if not waiting or time.monotonic() - sent >= SECONDS_APART:
                yield self.renderer.answers(session, waiting)
                sent = time.monotonic()

    def explain(self, session, event: gr.EventData, request: gr.Request) -> Iterator[str]:
        """The image at once, then why it was found."""

        def explanation() -> Iterator[str]:
            answer, image = _said(event, "answer", -1), _said(event, "image", -1)
            text, hit = self.requests.hit(session, answer, image)
            shown = partial(self.renderer.explanation, session, answer, image, text, hit)
            yield shown(None, waiting=session.question.image is None)
            if session.question.image is None:
                yield shown(self.requests.explain(session, answer, image)[2])

        yield from self._shown_each(explanation, session, request)

    def turn(self, session, shown, event: gr.EventData, request: gr.Request) -> tuple[Session, Any]:
        """Another page of the answers, or another number of images on it."""

        def answers() -> str:
            self.requests.result(session)  # which may be gone
            self.requests.turn(session, _said(event, "page", 0), shown)
            return self.renderer.answers(session)

        return session, self._shown(answers, session, request) if session.result is not None else gr.skip()

    def download(self, session, event: gr.EventData, request: gr.Request) -> str:
        """One image to save."""
        image = _said(event, "image", -1)
        saving = self.renderer.saving
        return self._saved(lambda: saving(*self.requests.full_size(session, image)), session, request)

    def sheet(self, session, request: gr.Request) -> str:
        """The answers as an image to save."""

        def sheet() -> str:
            if not any(self.requests.result(session)):
                raise RequestError("There is no image in this result.")
            return self.renderer.sheet(session)

        return self._saved(sheet, session, request)

    def _saved(self, render: Callable[[], str], session: Session, request: gr.Request) -> str:
        try:
            self._admit(session, request)
            return render()
        except RequestError as error:
            raise gr.Error(str(error), print_exception=False) from error
        except Exception as error:
            logger.exception("a request failed")
            raise gr.Error(FAILED, print_exception=False) from error

    def upload(
        self, session, files, where, event: gr.EventData, request: gr.Request
    ) -> tuple[Session, str, str]:
        """Reads the files and removes them: what stays of them is in the session.

        Args:
            files: nothing; `request_limits` tells by the event which files they are.
        """

        shown = self._take(session, event, request)
        return session, shown, "both" if where == "gallery" and session.own_images else where

    def like_upload(
        self, event: gr.EventData, request: gr.Request, session, files, shown, *wanted
    ) -> Iterator[tuple]:
        """Images like one that is uploaded, which is one's own from then on; `files` as in `upload`."""
        before = len(session.own_images)
        own = self._take(session, event, request)
        if len(session.own_images) == before:
            yield session, own, gr.skip()  # which says why
            return
        said = {"shown": shown} | dict(zip((*CHOSEN, *TYPED), wanted, strict=True))

        def answers() -> Iterator[str]:
            asked = Question(image=len(session.own_images) - 1, wanted=wanted_of(said))
            yield from self._answers(session, said, asked)

        for answer in self._shown_each(answers, session, request, admit=False):
            yield session, own, answer

    def _take(self, session: Session, event: gr.EventData, request: gr.Request) -> str:
        """Reads the files of an event and removes them: what stays of them is in the session."""

        def own_images() -> str:
            if not paths:
                raise RequestError("These files are gone: add them again.")
            self._admit_images(request, len(paths))
            return self.renderer.own_images(session, self.requests.add_images(session, paths))

        taken = map(self.uploads.take, _said(event, "uploads", ()))
        paths = [path for path in taken if path is not None]
        try:
            return self._shown(own_images, session, request)
        finally:
            for path in paths:
                self.uploads.remove(path)

    def remove(self, session) -> tuple[Session, str, str, str]:
        self.requests.remove_images(session)
        return session, self.renderer.own_images(session, {}), "gallery", self.renderer.welcome()

    def _shown(self, render: Callable[[], str], session: Session, request: gr.Request) -> str:
        """What `render` returns, or the reason why it cannot be shown."""
        return next(self._shown_each(lambda: iter([render()]), session, request))

    def _shown_each(
        self, render: Callable[[], Iterator[str]], session: Session, request: gr.Request, admit: bool = True
    ) -> Iterator[str]:
        """What `render` yields, up to the reason why the rest cannot be shown."""
        try:
            if admit:
                self._admit(session, request)
            yield from render()
        except RequestError as error:
            yield self.renderer.problem(str(error))
        except Exception:  # the page must say something; the log says what it was
            logger.exception("a request failed")
            yield self.renderer.problem(FAILED)

    def _admit(self, session: Session, request: gr.Request) -> None:
        """Notes who asks; raises RequestError where this address has asked too often."""
        limits, client = self.requests.limits, client_key(request.client.host)
        session.visitor = Visitor(request.headers.get(WHO), client)
        if not limits.own_machine and not self.rate_limiter.hit(self.rate, client):
            raise RequestError(f"More than {limits.requests_a_minute} requests in a minute: wait a little.")

    def _admit_images(self, request: gr.Request, count: int) -> None:
        """Raises RequestError where this address has had too many images decoded."""
        limits, client = self.requests.limits, client_key(request.client.host)
        per_minute = IMAGES_TO_ONE * limits.own_images
        rate = RateLimitItemPerMinute(per_minute)
        if not limits.own_machine and not self.rate_limiter.hit(rate, "images", client, cost=count):
            raise RequestError(f"More than {per_minute} images in a minute: wait a little.")


class Form:
    """What a person sets, in the order of sight; made inside the page's layout."""

    def __init__(self, page: SearchPage):
        self.page, self.requests, self.limits = page, page.requests, page.requests.limits
        self._query()
        self._filters()
        self._settings()
        self._own_images()

    @property
    def wanted(self) -> list[Any]:
        return [*self.chosen.values(), self.since, self.until, self.seen_from, self.seen_to]

    def _query(self) -> None:
        self.texts = gr.Textbox(
            label="What are you looking for?",
            info="Enter searches, Shift+Enter makes a line: each is a text of its own.",
            placeholder="A man in a red jacket is running",
            lines=1,  # so that Enter searches
            max_lines=12,
            max_length=self.limits.texts * (self.limits.text_characters + 1),
            elem_id="tpas-texts",
        )
        with gr.Accordion("What must be seen, and what not", open=False, elem_id="tpas-phrases"):
            self.must, self.must_not = (
                gr.Textbox(
                    label=label,
                    info=info,
                    placeholder=example,
                    lines=1,
                    max_lines=4,
                    max_length=MOST_PHRASES * self.limits.text_characters,
                    elem_id=name,
                )
                for label, info, example, name in (
                    ("It must show", "Short phrases with commas between them.", "a red hat", "tpas-must"),
                    ("It must not show", "Each is scored by itself too.", "a bicycle", "tpas-must-not"),
                )
            )
        self.search = gr.Button("Search", variant="primary", elem_id="tpas-search")
        with gr.Row():
            self.another = gr.Button("Another text", size="sm", min_width=100)
            self.like_upload = gr.UploadButton(
                "Search by an image",
                size="sm",
                min_width=100,
                file_types=sorted(image_suffixes()),
                elem_id="tpas-like-upload",
            )

    def _filters(self) -> None:
        span = self.requests.facts.span
        first_sight, last_sight = self.requests.facts.first_sight, self.requests.facts.last_sight
        some = any(self.page.choices.values()) or span is not None or first_sight is not None
        with gr.Accordion("Filter", open=False, visible=some, elem_id="tpas-filter"):
            self.chosen = {
                name: gr.Dropdown(
                    [ANY, *((f"{value} ({count})", value) for value, count in found.items())],
                    value=ANY,
                    label=name.capitalize(),
                    visible=bool(found),
                    elem_id=f"tpas-{name}",
                )
                for name, found in self.page.choices.items()
            }
            with gr.Row(visible=span is not None):
                first, last = span or ("", "")
                self.since = gr.DateTime(
                    label="Day from",
                    info=f"{first} at first",
                    include_time=False,
                    type="string",
                    elem_id="tpas-since",
                )
                self.until = gr.DateTime(
                    label="Day to",
                    info=f"{last} at last",
                    include_time=False,
                    type="string",
                    elem_id="tpas-until",
                )
            with gr.Column(visible=first_sight is not None):
                example = "2026-01-31 08:00" if isinstance(first_sight, datetime) else "00:01:12"
                self.seen_from, self.seen_to = (
                    gr.Textbox(
                        label=label,
                        info=f"{written(sight or 0.0)} {at}",
                        placeholder=example,
                        max_lines=1,
                        max_length=40,
                        elem_id=f"tpas-{label.lower()}",
                    )
                    for label, sight, at in (
                        ("From", first_sight, "at first"),
                        ("To", last_sight, "at last"),
                    )
                )

    def _settings(self) -> None:
        with gr.Accordion("Settings", open=False):
            self.shown = gr.Slider(1, self.limits.images_shown, value=12, step=1, label="Images on a page")
            self.rerank = gr.Checkbox(
                self.requests.can_rerank,
                visible=self.requests.can_rerank,
                label="Read the best again with the text",
                info=f"{self.requests.shortlist} images for each text, or all where there are fewer.",
            )
            self.resolve = gr.Checkbox(
                False,
                label="Each of several texts looks for an image of its own",
                info="SCA: of texts with one first image, that with the highest score keeps it.",
            )

    def _own_images(self) -> None:
        with gr.Accordion("My own images", open=False):
            self.own_images = gr.HTML(self.page.renderer.own_images(Session(), {}), apply_default_css=False)
            self.upload = gr.UploadButton(
                "Add images",
                file_count="multiple",
                file_types=sorted(image_suffixes()),
                elem_id="tpas-upload",
            )
            self.where = gr.Radio(
                WHERE,
                value="gallery",
                label="Search in",
                info="A filter is for the gallery's images: yours are searched all the same.",
            )
            self.remove = gr.Button("Remove my images", size="sm")


def build_page(requests: SearchRequests, uploads: Uploads) -> gr.Blocks:
    """The page, to be mounted with `page_settings`."""
    page = SearchPage(requests, uploads)
    # apply_default_css=False below: Gradio's would make every button and list in it its own.
    with gr.Blocks(title=TITLE, analytics_enabled=False) as blocks:
        session = gr.State(Session())
        gr.HTML(f"<h1 class='tpas-title'>{TITLE}</h1>", apply_default_css=False)
        with gr.Row(equal_height=False):
            with gr.Column(scale=1, min_width=300):
                form = Form(page)
            with gr.Column(scale=3, min_width=320):
                answers = gr.HTML(
                    page.renderer.welcome(),
                    js_on_load=page_script("answers"),
                    min_height=160,
                    apply_default_css=False,
                )
        _connect(page, form, session, answers)
    blocks.state_session_capacity = SESSIONS
    blocks.queue(max_size=WAITING_REQUESTS, api_open=False)  # open, a direct call would pass by the queue
    return blocks


def _connect(page: SearchPage, form: Form, session: gr.State, answers: gr.HTML) -> None:
    """Which handler each part of the page calls."""
    # Nothing can be called but by the page itself, and what comes is checked here alone (preprocess).
    private: dict[str, Any] = {"api_visibility": "private", "preprocess": False}
    # One at a time for all that needs the model; beside it one that decodes images, and needs it in between.
    modelled = private | {"concurrency_id": "model", "concurrency_limit": 1}
    decoding = private | {"concurrency_id": "images", "concurrency_limit": 1}
    # These two show nothing in their place: their scripts open a dialog, and save a file.
    saved = gr.HTML(html_template="", js_on_load=page_script("saving"))
    explanation = gr.HTML(html_template="", js_on_load=page_script("explanation"))
    fields = [session, form.texts, form.where, *form.wanted, form.shown, form.rerank, form.resolve]
    fields += [form.must, form.must_not]
    shows = [session, answers]
    asking: dict[str, Any] = modelled | {"trigger_mode": "always_last"}
    typed = (form.texts.submit, form.must.submit, form.must_not.submit)
    gr.on([form.search.click, *typed], page.search, fields, shows, **asking)
    form.another.click(None, form.texts, form.texts, js=page_script("another"), **private)
    settings = [each.input for each in (*form.chosen.values(), form.where, form.rerank, form.resolve)]
    gr.on(settings, page.filter, fields, shows, **asking)
    times = [form.since.change, form.until.change]
    times += [event for box in (form.seen_from, form.seen_to) for event in (box.submit, box.blur)]
    gr.on(times, page.filter_times, fields, shows, **asking)
    set_by_address = [form.texts, *form.wanted, form.resolve, form.must, form.must_not]
    answers.ask(page.ask, fields, [*shows, *set_by_address], **asking)
    answers.image(
        page.explain, session, explanation, show_progress="hidden", trigger_mode="multiple", **modelled
    )
    turning: dict[str, Any] = private | {"concurrency_limit": 1}
    answers.turn(page.turn, [session, form.shown], shows, **turning)
    form.shown.release(page.turn, [session, form.shown], shows, **turning)
    answers.sheet(page.sheet, session, saved, show_progress="hidden", **modelled)
    answers.download(page.download, session, saved, show_progress="hidden", **turning)
    form.upload.upload(
        page.upload, [session, form.upload, form.where], [session, form.own_images, form.where], **decoding
    )
    form.like_upload.upload(
        page.like_upload,
        [session, form.like_upload, form.shown, *form.wanted],
        [session, form.own_images, answers],
        **modelled,
    )
    form.remove.click(page.remove, session, [session, form.own_images, form.where, answers], **private)


def _settings(said: Mapping[str, Any], asked: Question) -> tuple:
    """What a question is asked under: Gradio's lists say each choice twice, and it is asked once."""
    return asked.wanted, said.get("where"), bool(said.get("rerank")), asked.sca, asked.feedback


def _still_marked(session: Session, asked: Question) -> Question:
    """The question with the images that are liked or not, where it is about the same as the session's."""
    before = session.question
    if before.texts != tuple(text.strip() for text in asked.texts if text.strip()):
        return asked
    marks = {name: getattr(before.feedback, name) for name in MARKS}
    return replace(asked, feedback=replace(asked.feedback, **marks))


def _said(event: gr.EventData, name: str, otherwise: Any) -> Any:
    try:
        return getattr(event, name)
    except (AttributeError, TypeError):  # the latter where nothing at all came with the event
        return otherwise


def page_settings(requests: SearchRequests) -> dict:
    """How the page is mounted: its looks, and that nothing leaves it."""
    theme = Base(
        primary_hue="teal",
        neutral_hue="slate",
        font=["system-ui", "sans-serif"],  # Gradio's own choice asks Google for fonts
        font_mono=["ui-monospace", "monospace"],
    ).set(  # colours that can be read: at least 4.5 to 1
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        block_label_text_color="*neutral_800",
        block_title_text_color="*neutral_800",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_800",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_300",
    )
    return {
        "theme": theme,
        "head": f"<style>{page_style()}</style>",
        "app_kwargs": {"docs_url": None, "redoc_url": None, "openapi_url": None},
        "max_file_size": requests.limits.upload_megabytes * 2**20,  # said by the page before it sends one
        "footer_links": [],
        "run_history": False,
        "enable_monitoring": False,
        "mcp_server": False,
        "show_error": False,
        "ssr_mode": False,
    }
