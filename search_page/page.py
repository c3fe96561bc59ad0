"""The search page in Gradio: its layout and its handlers."""

import logging
from collections.abc import Callable
from typing import Any

import gradio as gr
from gradio.themes import Base
from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter

from ..data.image_files import image_suffixes
from .access import client_key
from .rendering import Renderer, page_script, page_style
from .requests import RequestError, SearchRequests, Session
from .uploads import Uploads

logger = logging.getLogger(__name__)

TITLE = "Find a person by what they wear, do, and where"
EXAMPLES = (
    "A man in a red jacket is lying on the ground in a street",
    "A woman in a black coat with a backpack is walking beside a swimming pool",
)
ANY = "any"
WHERE = [("the gallery", "gallery"), ("my images", "own"), ("both", "both")]
FAILED = "The server could not do this. Its log says why."
IMAGES_TO_ONE = 2  # as many images as a session holds may be decoded in a minute
SESSIONS = 200  # kept at a time; the one that was idle longest makes room
WAITING_REQUESTS = 128  # more are turned away; of one client, `request_limits` turns away far fewer


class SearchPage:
    """The page's handlers: what a person did in, what the page shows out."""

    def __init__(self, requests: SearchRequests, uploads: Uploads):
        self.requests, self.uploads = requests, uploads
        self.renderer = Renderer(requests)
        self.rate_limiter = MovingWindowRateLimiter(MemoryStorage())
        self.rate = RateLimitItemPerMinute(requests.limits.requests_a_minute)

    def search(
        self, session, texts, where, behaviour, scene, shown, rerank, resolve, request: gr.Request
    ) -> tuple[Session, str]:
        def answers() -> str:
            self.requests.search(
                session,
                str(texts or "").split("\n"),  # as the page numbers them; others are within a text
                shown=shown,
                where=where,
                behaviour=None if behaviour == ANY else behaviour,
                scene=None if scene == ANY else scene,
                rerank=bool(rerank),
                sca=bool(resolve),
            )
            return self.renderer.answers(session)

        return session, self._shown(answers, request)

    def explain(self, session, event: gr.EventData, request: gr.Request) -> str:
        def explanation() -> str:
            answer, place = _asked(event)
            return self.renderer.explanation(answer, place, *self.requests.explain(session, answer, place))

        return self._shown(explanation, request)

    def similar(self, session, shown, event: gr.EventData, request: gr.Request) -> tuple[Session, str]:
        def answers() -> str:
            self.requests.similar(session, *_asked(event), shown)
            return self.renderer.answers(session)

        return session, self._shown(answers, request)

    def sheet(self, session, request: gr.Request) -> str:
        """The answers as an image to save."""
        try:
            self._admit(request)
            if not any(self.requests.result(session)):
                raise RequestError("There is no image in this result.")
            return self.renderer.sheet(session)
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

        def own_images() -> str:
            if not paths:
                raise RequestError("These files are gone: add them again.")
            self._admit_images(request, len(paths))
            refused = self.requests.add_images(session, paths)
            return self.renderer.own_images(session, refused)

        taken = map(self.uploads.take, _said(event, "uploads", ()))
        paths = [path for path in taken if path is not None]
        try:
            shown = self._shown(own_images, request)
        finally:
            for path in paths:
                self.uploads.remove(path)
        return session, shown, "both" if where == "gallery" and session.own_images else where

    def remove(self, session) -> tuple[Session, str, str, str]:
        self.requests.remove_images(session)
        return session, self.renderer.own_images(session, {}), "gallery", self.welcome()

    def welcome(self) -> str:
        return self.renderer.welcome(self.requests.example_texts(3) or EXAMPLES)

    def _shown(self, render: Callable[[], str], request: gr.Request) -> str:
        """What `render` returns, or the reason why it cannot be shown."""
        try:
            self._admit(request)
            return render()
        except RequestError as error:
            return self.renderer.problem(str(error))
        except Exception:  # the page must say something; the log says what it was
            logger.exception("a request failed")
            return self.renderer.problem(FAILED)

    def _admit(self, request: gr.Request) -> None:
        """Raises RequestError where this address has asked too often."""
        if not self.rate_limiter.hit(self.rate, client_key(request.client.host)):
            per_minute = self.requests.limits.requests_a_minute
            raise RequestError(f"More than {per_minute} requests in a minute: wait a little.")

    def _admit_images(self, request: gr.Request, count: int) -> None:
        """Raises RequestError where this address has had too many images decoded."""
        per_minute = IMAGES_TO_ONE * self.requests.limits.own_images
        rate = RateLimitItemPerMinute(per_minute)
        if not self.rate_limiter.hit(rate, "images", client_key(request.client.host), cost=count):
            raise RequestError(f"More than {per_minute} images in a minute: wait a little.")


def build_page(requests: SearchRequests, uploads: Uploads) -> gr.Blocks:
    """The page, to be mounted with `page_settings`."""
    page, limits = SearchPage(requests, uploads), requests.limits
    # Nothing can be called but by the page itself, and what comes is checked here alone (preprocess).
    private = {"api_visibility": "private", "preprocess": False}
    # One at a time for all that needs the model; beside it one that decodes images, and needs it in between.
    modelled = private | {"concurrency_id": "model", "concurrency_limit": 1}
    decoding = private | {"concurrency_id": "images", "concurrency_limit": 1}
    # apply_default_css=False below: Gradio's would make every button and list in it its own.
    with gr.Blocks(title=TITLE, analytics_enabled=False) as blocks:
        session = gr.State(Session())
        gr.HTML(f"<h1 class='tpas-title'>{TITLE}</h1>", apply_default_css=False)
        with gr.Row(equal_height=False):
            with gr.Column(scale=1, min_width=300):
                texts = gr.Textbox(
                    label="What are you looking for?",
                    info="One text a line. Several are searched together, each for an image of its own.",
                    placeholder="A woman in a yellow raincoat is falling off her skateboard",
                    lines=4,
                    max_lines=12,
                    max_length=limits.texts * (limits.text_characters + 1),
                    elem_id="tpas-texts",
                )
                search = gr.Button("Search", variant="primary", elem_id="tpas-search")
                with gr.Accordion("Filter and settings", open=False):
                    behaviour = gr.Radio(
                        [ANY, *requests.behaviours],
                        value=ANY,
                        label="Behaviour",
                        visible=bool(requests.behaviours),
                        elem_id="tpas-behaviour",
                    )
                    scene = gr.Dropdown(
                        [ANY, *requests.scenes], value=ANY, label="Scene", visible=bool(requests.scenes)
                    )
                    shown = gr.Slider(1, limits.images_shown, value=12, step=1, label="Images for each text")
                    rerank = gr.Checkbox(
                        requests.can_rerank,
                        visible=requests.can_rerank,
                        label="Read the best again with the text",
                        info=f"{requests.shortlist} images for each text, or all where there are fewer.",
                    )
                    resolve = gr.Checkbox(True, label="Resolve collisions between texts (SCA)")
                with gr.Accordion("My own images", open=False):
                    own_images = gr.HTML(page.renderer.own_images(Session(), {}), apply_default_css=False)
                    upload = gr.UploadButton(
                        "Add images",
                        file_count="multiple",
                        file_types=sorted(image_suffixes()),
                        elem_id="tpas-upload",
                    )
                    where = gr.Radio(
                        WHERE,
                        value="gallery",
                        label="Search in",
                        info="Yours have no labels: a filter leaves them out.",
                    )
                    remove = gr.Button("Remove my images", size="sm")
            with gr.Column(scale=3, min_width=320):
                answers = gr.HTML(
                    page.welcome(), js_on_load=page_script("answers"), min_height=160, apply_default_css=False
                )
        # These two show nothing in their place: their scripts open a dialog, and save a file.
        saved = gr.HTML(html_template="", js_on_load=page_script("saving"))
        explanation = gr.HTML(html_template="", js_on_load=page_script("explanation"))

        inputs = [session, texts, where, behaviour, scene, shown, rerank, resolve]
        gr.on([search.click, texts.submit], page.search, inputs, [session, answers], **modelled)
        answers.example(_example_text, None, texts, **private).then(
            page.search, inputs, [session, answers], **modelled
        )
        answers.image(
            page.explain, session, explanation, show_progress="hidden", trigger_mode="multiple", **modelled
        )
        answers.sheet(page.sheet, session, saved, show_progress="hidden", **modelled)
        explanation.similar(page.similar, [session, shown], [session, answers], **modelled)
        upload.upload(page.upload, [session, upload, where], [session, own_images, where], **decoding)
        remove.click(page.remove, session, [session, own_images, where, answers], **private)
    blocks.state_session_capacity = SESSIONS
    blocks.queue(max_size=WAITING_REQUESTS, api_open=False)  # open, a direct call would pass by the queue
    return blocks


def _example_text(event: gr.EventData) -> str:
    return str(_said(event, "text", ""))


def _asked(event: gr.EventData) -> tuple[int, int]:
    """The numbers of an answer and of an image in it; they come from a browser, which may send anything."""
    return _said(event, "answer", -1), _said(event, "place", -1)


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
