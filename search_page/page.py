"""The search page in Gradio: its layout, its handlers, and the server that it runs on."""

import logging
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import gradio as gr
from gradio.themes import Base
from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter
from starlette.middleware import Middleware

from ..data.image_files import image_suffixes
from .rendering import Renderer, page_script, page_style
from .request_limits import RequestLimits
from .requests import RequestError, SearchRequests, Session

logger = logging.getLogger(__name__)

TITLE = "Find a person by what they wear, do, and where"
EXAMPLES = (
    "A man in a red jacket is lying on the ground in a street",
    "A woman in a black coat with a backpack is walking beside a swimming pool",
)
ANY = "any"
WHERE = [("the gallery", "gallery"), ("my images", "own"), ("both", "both")]
SESSIONS = 200  # kept at a time; the one that was idle longest makes room
WAITING_REQUESTS = 32  # more are turned away
FORM_BYTES = 2**16  # that names and boundaries add to the files of an upload
LEFTOVERS_SECONDS = 600  # after which a file that was uploaded, but never read, is removed


class SearchPage:
    """The page's handlers: what a person did in, what the page shows out."""

    def __init__(self, requests: SearchRequests):
        self.requests = requests
        self.renderer = Renderer(requests)
        self.rate_limiter = MovingWindowRateLimiter(MemoryStorage())
        self.rate = RateLimitItemPerMinute(requests.limits.requests_a_minute)

    def search(
        self, session, texts, where, behaviour, scene, shown, rerank, resolve, request: gr.Request
    ) -> tuple[Session, str]:
        def answers() -> str:
            self.requests.search(
                session,
                texts.split("\n"),  # as the page numbers them; other separators are within a text
                shown=shown,
                where=where,
                behaviour=None if behaviour == ANY else behaviour,
                scene=None if scene == ANY else scene,
                rerank=rerank,
                sca=resolve,
            )
            return self.renderer.answers(session)

        return session, self._shown(answers, request)

    def explain(self, session, event: gr.EventData, request: gr.Request) -> str:
        def explanation() -> str:
            answer, place = event.answer, event.place
            return self.renderer.explanation(answer, place, *self.requests.explain(session, answer, place))

        return self._shown(explanation, request)

    def similar(self, session, shown, event: gr.EventData, request: gr.Request) -> tuple[Session, str]:
        def answers() -> str:
            self.requests.similar(session, event.answer, event.place, shown)
            return self.renderer.answers(session)

        return session, self._shown(answers, request)

    def sheet(self, session, request: gr.Request) -> str:
        """The answers as an image to save."""
        try:
            self._admit(request)
            if session.result is None:
                raise RequestError("This result is gone: search again.")
            if not any(session.result):
                raise RequestError("There is no image in this result.")
        except RequestError as error:
            raise gr.Error(str(error), print_exception=False) from error
        return self.renderer.sheet(session)

    def upload(self, session, files, where, request: gr.Request) -> tuple[Session, str, str]:
        """Reads the files and removes them: what stays of them is in the session."""

        def own_images() -> str:
            refused = self.requests.add_images(session, paths)
            return self.renderer.own_images(session, refused)

        paths = [Path(file) for file in files or []]
        try:
            shown = self._shown(own_images, request)
        finally:
            for path in paths:
                path.unlink(missing_ok=True)
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
            return self.renderer.problem("The server could not do this. Its log says why.")

    def _admit(self, request: gr.Request) -> None:
        """Raises RequestError where this address has asked too often."""
        if not self.rate_limiter.hit(self.rate, request.client.host):
            per_minute = self.requests.limits.requests_a_minute
            raise RequestError(f"More than {per_minute} requests in a minute: wait a little.")


def build_page(requests: SearchRequests) -> gr.Blocks:
    """The page, to be launched with `launch_settings`."""
    page, limits = SearchPage(requests), requests.limits
    # One at a time for all that needs the model; nothing can be called but by the page itself.
    modelled = {"concurrency_id": "model", "concurrency_limit": 1, "api_visibility": "private"}
    # apply_default_css=False below: Gradio's would make every button and list in it its own.
    with gr.Blocks(
        title=TITLE, analytics_enabled=False, delete_cache=(LEFTOVERS_SECONDS, LEFTOVERS_SECONDS)
    ) as blocks:
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
        answers.example(_example_text, None, texts, queue=False, api_visibility="private").then(
            page.search, inputs, [session, answers], **modelled
        )
        answers.image(
            page.explain, session, explanation, show_progress="hidden", trigger_mode="multiple", **modelled
        )
        answers.sheet(page.sheet, session, saved, show_progress="hidden", **modelled)
        explanation.similar(page.similar, [session, shown], [session, answers], **modelled)
        upload.upload(page.upload, [session, upload, where], [session, own_images, where], **modelled)
        remove.click(page.remove, session, [session, own_images, where, answers], api_visibility="private")
    blocks.queue(max_size=WAITING_REQUESTS, api_open=False)  # open, a direct call would pass by the queue
    return blocks


def _example_text(event: gr.EventData) -> str:
    return event.text


def launch_settings(requests: SearchRequests) -> dict:
    """How the page is launched: its looks, its limits, and that nothing leaves it."""
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
    limits = requests.limits
    request_limits = Middleware(
        RequestLimits,
        most_upload_bytes=limits.own_images * limits.upload_megabytes * 2**20 + FORM_BYTES,
        uploads_a_minute=limits.requests_a_minute,
    )
    return {
        "theme": theme,
        "head": f"<style>{page_style()}</style>",
        "app_kwargs": {"middleware": [request_limits], "docs_url": None, "redoc_url": None},
        "max_file_size": limits.upload_megabytes * 2**20,
        "state_session_capacity": SESSIONS,
        "footer_links": [],
        "run_history": False,
        "enable_monitoring": False,
        "share": False,
        "ssr_mode": False,
        "quiet": True,
    }


def serve(requests: SearchRequests, host: str | None = None, port: int | None = None) -> None:
    """Serves the page until it is interrupted.

    Args:
        host: the address to listen on; `None`: $GRADIO_SERVER_NAME, which Spaces set, or this machine only.
        port: `None`: the first free one from $GRADIO_SERVER_PORT, or from 7860.

    Raises:
        OSError: the port is taken, or the address is not this machine's.
    """
    host = host or os.environ.get("GRADIO_SERVER_NAME") or "127.0.0.1"
    _check_address(host, port)
    # Uploads pass through a folder of this process, which goes with it, also where it is asked to end.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with tempfile.TemporaryDirectory(prefix="tpas-app-") as uploads:
        os.environ["GRADIO_TEMP_DIR"] = uploads
        page = build_page(requests)
        _, address, _ = page.launch(
            server_name=host, server_port=port, prevent_thread_lock=True, **launch_settings(requests)
        )
        logger.info("%d images at %s (Ctrl+C ends it)", len(requests.gallery), address)
        page.block_thread()


def _check_address(host: str, port: int | None) -> None:
    """Raises OSError where nobody can listen there; Gradio would name its own settings in its error."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host.strip("[]"), port or 0), family=family).close()
    except OSError as error:
        at = host if port is None else f"{host}, port {port}"
        raise OSError(f"cannot listen at {at}: {error.strerror}; choose another --port or --host") from error
