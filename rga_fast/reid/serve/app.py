"""The web application: one page, its searches, the pictures of the gallery."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rga_fast.reid.serve.searcher import Searcher
from rga_fast.reid.serve.upload import LIMITS, Limits, Refused, decode, read_body

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

PAGE = Path(__file__).parent / "page"
STATIC = {"page.css": "text/css", "page.js": "text/javascript"}
HEADERS = {
    # Nothing is loaded from elsewhere, nothing that was sent is run.
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")

_log = logging.getLogger(__name__)


def make_app(
    searcher: Searcher, *, hosts: Sequence[str] = LOOPBACK, limits: Limits = LIMITS
) -> Starlette:
    """The application that searches an index.

    GET / is the page, GET /images/PATH a picture of the gallery. POST /search?k=20&camera=1 with an
    image as its body answers in JSON: `matches` (path, distance, identity, camera, time, image,
    same), `verdict`, `query`, `attention`; or `error`, with status 400, 413, 415 or 422.

    Args:
        hosts: the names by which it may be called; others are refused, so that no page elsewhere
            reads the gallery through a name that leads to this machine.
        limits: of an upload.

    Raises:
        ImportError: without the extra `web`.
    """
    try:
        from jinja2 import Environment, FileSystemLoader
        from starlette.applications import Starlette
        from starlette.concurrency import run_in_threadpool
        from starlette.middleware import Middleware
        from starlette.middleware.trustedhost import TrustedHostMiddleware
        from starlette.responses import JSONResponse, Response
        from starlette.routing import Route
    except ImportError as error:
        raise ImportError(f"the page needs: pip install 'rga-fast[web]' ({error})") from error
    template = Environment(loader=FileSystemLoader(PAGE), autoescape=True).get_template("page.html")

    async def page(request: Request) -> Response:
        index = await run_in_threadpool(lambda: searcher.index)
        threshold = None if index.threshold is None else index.threshold.value
        text = template.render(
            name=index.folder.resolve().stem,
            images=len(index),
            cameras=index.cameras(),
            threshold=threshold,
        )
        return Response(text, media_type="text/html", headers=HEADERS)

    async def static(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in STATIC:
            return Response("not found", 404, headers=HEADERS)
        return Response((PAGE / name).read_bytes(), media_type=STATIC[name], headers=HEADERS)

    async def picture(request: Request) -> Response:
        content = await run_in_threadpool(searcher.picture, request.path_params["path"])
        if content is None:
            return Response("not found", 404, headers=HEADERS)
        return Response(content, media_type="image/jpeg", headers=HEADERS)

    async def search(request: Request) -> Response:
        try:
            declared = request.headers.get("content-length")
            body = await read_body(request.stream(), declared, limits)
            answer = await run_in_threadpool(_answer, searcher, body, limits, request.query_params)
        except Refused as refused:
            return JSONResponse({"error": str(refused)}, refused.status, headers=HEADERS)
        except Exception:  # its text may name files of this machine
            _log.exception("a search failed")
            sentence = "The search failed; the server's log says why."
            return JSONResponse({"error": sentence}, 500, headers=HEADERS)
        return JSONResponse(answer, headers=HEADERS)

    return Starlette(
        routes=[
            Route("/", page),
            Route("/static/{name}", static),
            Route("/images/{path:path}", picture),
            Route("/search", search, methods=["POST"]),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))],
    )


def _answer(searcher: Searcher, body: bytes, limits: Limits, query: Any) -> dict[str, Any]:
    pixels = decode(body, searcher.size, limits)
    number = query.get("k", "20")
    if not number.isdecimal():
        raise Refused(400, f"k must be a number, got {number!r}.")
    return searcher.search(pixels, int(number), query.getlist("camera"))
