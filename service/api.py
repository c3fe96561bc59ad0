"""The endpoints under /v1, and those that look after them; `serving.py` puts page and endpoints together."""

import logging
from collections.abc import Mapping
from html import escape
from typing import Annotated, Literal

import fastapi
from fastapi import Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, Response
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from ..search_page.clips import MEDIA_TYPES, Clips
from ..search_page.filters import CHOSEN
from ..search_page.questions import MissingError, RequestError, UnavailableError, UnloggedError, Visitor
from ..search_page.requests import CARD_EDGE, SearchRequests
from .audit import AuditLog
from .batches import Batches
from .metrics import Metrics
from .schemas import (
    MOST_VISITS,
    Answers,
    GalleryFacts,
    Name,
    RaisedAlarm,
    RaisedAlarms,
    Refusal,
    Search,
    SeenVisit,
    Visits,
    WantedVisits,
)

logger = logging.getLogger(__name__)

REFUSALS = {
    400: "what was asked cannot be read",
    401: "no key, or an unknown one",
    403: "a page of another web site, or a key that does not open all galleries where all are spoken of",
    404: "no such gallery of this key, no such image, or no clip of it",
    413: "too large",
    429: "too often: ask again later",
    503: "too many ask, or the gallery cannot be searched now",
    507: "the audit log cannot be written, so nothing is shown",
}
RESPONSES: dict[int | str, dict] = {
    code: {"model": Refusal, "description": about} for code, about in REFUSALS.items()
}
PAGES = "/page"  # below it those of several galleries


class Served:
    """The galleries of a service, by their names.

    Args:
        clips: of those whose clips are shown.
        log: as of `Service`.
    """

    def __init__(
        self,
        galleries: Mapping[str, SearchRequests],
        batches: Mapping[str, Batches],
        clips: Mapping[str, Clips],
        metrics: Metrics,
        log: AuditLog | None,
    ):
        self.galleries, self.batches, self.clips = galleries, batches, clips
        self.metrics, self.log = metrics, log

    def open_to(self, request: Request) -> dict[str, SearchRequests]:
        """What the request's key opens."""
        key = request.state.key
        return {name: each for name, each in self.galleries.items() if key is None or key.opens(name)}

    def chosen(self, request: Request, name: str | None) -> str:
        """Raises MissingError: nobody learns of a gallery that their key does not open."""
        names = list(self.open_to(request))
        if name is None and len(names) == 1:
            name = names[0]
        if name not in names:
            some = ", ".join(names) or "none"
            raise MissingError(f"Name a gallery of this key: {some}.")
        request.state.gallery = name
        return name


def build_api(served: Served) -> fastapi.FastAPI:
    """The endpoints, for `Gate` to stand before."""
    app = fastapi.FastAPI(
        title="tpas",
        description="Finds people in images and films by a text. A key: `Authorization: Bearer KEY`.",
        version="1",
        openapi_url="/v1/openapi.json",
        docs_url=None,  # their scripts would come from elsewhere
        redoc_url=None,
        redirect_slashes=False,  # to an address that a proxy would not know
    )
    app.include_router(_searches(served), responses=RESPONSES)
    app.include_router(_own_matters(served), include_in_schema=False)
    app.add_exception_handler(RequestError, _refused)
    app.add_exception_handler(RequestValidationError, _unreadable)
    app.add_exception_handler(HTTPException, _not_there)
    return app


def _searches(served: Served) -> fastapi.APIRouter:
    router = fastapi.APIRouter(prefix="/v1")

    @router.get("/galleries")
    async def galleries(request: Request) -> list[GalleryFacts]:
        """The galleries that the key opens."""
        return [_facts(name, each) for name, each in served.open_to(request).items()]

    @router.post("/search")
    async def search(request: Request, search: Search) -> Answers:
        """The best images for each text. Those of several clients go through the model together."""
        request.state.texts = search.texts
        name = served.chosen(request, search.gallery)
        answered = await served.batches[name].ask(search.asked(_visitor(request)))
        return Answers.of(answered.result, name, answered.unread, search.least_chance)

    @router.get("/images", response_class=Response, responses={200: {"content": {"image/jpeg": {}}}})
    async def images(
        request: Request,
        id: Annotated[Name, Query(description="as a hit names it")],
        gallery: str | None = None,
        size: Literal["thumbnail", "full"] = "thumbnail",
    ) -> Response:
        """An image as JPEG, encoded anew: what its file says beside the pixels stays."""
        requests = served.galleries[served.chosen(request, gallery)]
        edge = CARD_EDGE if size == "thumbnail" else None
        content = await run_in_threadpool(requests.image_file, id, edge, _visitor(request))
        return Response(content, media_type="image/jpeg")

    @router.get("/clips", response_class=FileResponse, responses={200: {"content": {"video/mp4": {}}}})
    async def clips(
        request: Request,
        id: Annotated[Name, Query(description="as a hit names it")],
        gallery: str | None = None,
    ) -> Response:
        """What the film shows around an image, 30 seconds at most: MP4, or where that cannot be made WebM."""
        name = served.chosen(request, gallery)
        if name not in served.clips:
            raise MissingError("This server makes no clips.")
        path = await served.clips[name].made(id)
        await run_in_threadpool(served.galleries[name].log, _visitor(request), "clip", image=id)
        return FileResponse(path, media_type=MEDIA_TYPES[path.suffix])

    @router.get("/moments")
    async def moments(request: Request, wanted: Annotated[WantedVisits, Query()]) -> Visits:
        """The visits in films: where, from when to when."""
        name = served.chosen(request, wanted.gallery)
        visitor = _visitor(request)
        total, found = await run_in_threadpool(
            served.galleries[name].moments, wanted.wanted(), wanted.first, wanted.count, visitor
        )
        return Visits(gallery=name, total=total, visits=[SeenVisit.shown(*each, name) for each in found])

    @router.get("/alarms")
    async def alarms(
        request: Request,
        gallery: str | None = None,
        first: Annotated[int, Query(ge=0, description="how many to pass over")] = 0,
        count: Annotated[int, Query(ge=1, le=MOST_VISITS)] = 100,
    ) -> RaisedAlarms:
        """What `tpas watch` has raised, the newest first."""
        name = served.chosen(request, gallery)
        total, found = await run_in_threadpool(served.galleries[name].alarms, first, count, _visitor(request))
        try:
            raised = [RaisedAlarm.of_line(line, name) for line in found]
        except ValueError as error:
            logger.warning("an alarm of %s is damaged: %s", name, error)
            raise UnavailableError("The file of alarms cannot be read. The server's log says why.") from error
        return RaisedAlarms(gallery=name, total=total, alarms=raised)

    return router


def _own_matters(served: Served) -> fastapi.APIRouter:
    router = fastapi.APIRouter()

    @router.get("/health")
    async def health() -> dict[str, str]:
        """Whether the process answers."""
        return {"status": "ok"}

    @router.get("/ready")
    async def ready(request: Request) -> Response:
        """Whether it takes questions: it stops not, each gallery can be searched, the audit log written."""
        if request.state.is_stopping:
            return JSONResponse({"error": "the server is stopping"}, 503)
        for requests in served.galleries.values():
            await run_in_threadpool(requests.refresh)
        try:
            if served.log is not None:
                await run_in_threadpool(served.log.check)
        except OSError as error:
            logger.error("not ready: %s", error)
            raise UnloggedError("The audit log cannot be written, so nothing is shown.") from error
        return JSONResponse({"status": "ready"})

    @router.get("/")
    async def pages(request: Request) -> Response:
        """Links to the pages that the key opens; of one gallery alone the page itself is here."""
        names = [escape(name) for name in served.open_to(request)]
        links = "".join(f'<li><a href="{PAGES[1:]}/{name}/">{name}</a></li>' for name in names)
        return HTMLResponse(f"<!doctype html><title>tpas</title><ul>{links}</ul>")

    @router.get("/metrics")
    async def metrics(request: Request) -> Response:
        """For Prometheus; it speaks of all galleries."""
        key = request.state.key
        if key is not None and not all(map(key.opens, served.galleries)):
            raise HTTPException(403, "The metrics are of all galleries, and this key does not open all.")
        return Response(served.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return router


def _visitor(request: Request) -> Visitor:
    key = request.state.key
    return Visitor(None if key is None else key.name, request.state.address)


def _facts(name: str, requests: SearchRequests) -> GalleryFacts:
    return GalleryFacts(
        name=name,
        images=len(requests.gallery),
        visits=requests.facts.visits,
        model=requests.model_name,
        can_rerank=requests.can_rerank,
        knows_chances=requests.gallery.calibration is not None,
        filters={each: found for each in CHOSEN if (found := requests.facts.choices(each))},
    )


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    headers = {"Retry-After": "1"} if error.status == 503 else None
    return JSONResponse({"error": str(error)}, error.status, headers)


async def _unreadable(request: Request, error: Exception) -> Response:
    """Which field is wrong and how; nothing of what was sent."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"][1:]) if first["type"] != "json_invalid" else ""
    return JSONResponse({"error": f"{place}: {first['msg']}".removeprefix(": ")}, 400)


async def _not_there(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": str(error.detail)}, error.status_code, error.headers)
