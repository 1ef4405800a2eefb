"""The HTTP application: all routes, and what happens around them."""

from __future__ import annotations

import msgspec
from fastapi import FastAPI
from starlette.responses import Response
from starlette.types import ASGIApp

from chiplet import __version__
from chiplet.config import LogOptions, ServerOptions
from chiplet.server.errors import install_error_handlers
from chiplet.server.health import EngineStatus
from chiplet.server.metrics import CONTENT_TYPE
from chiplet.server.middleware import CountRequests, LimitBody, RequireKey
from chiplet.server.openai.routes import openai_router
from chiplet.server.service import Service
from chiplet.server.tokenizing import DetokenizeBody, TokenizeBody, detokenize, tokenize

API_PATHS = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/models",
    "/tokenize",
    "/detokenize",
    "/livez",
    "/readyz",
    "/health",
    "/metrics",
    "/debug/plan",
    "/docs",
)
"""Where to find what; `/docs` describes the rest."""


def build_app(service: Service, options: ServerOptions, log: LogOptions) -> ASGIApp:
    """The HTTP application of one server."""
    app = FastAPI(
        title="Chiplet",
        version=__version__,
        description="Language models over HTTP, in the manner of the OpenAI API.",
    )
    install_error_handlers(app)
    app.include_router(openai_router(service))
    _add_text_routes(app, service)
    _add_watch_routes(app, service)
    limited = LimitBody(app, max_bytes=options.max_body_mib << 20)
    guarded = limited if options.api_key is None else RequireKey(limited, api_key=options.api_key)
    return CountRequests(guarded, metrics=service.metrics, paths=API_PATHS, logs=log.log_requests)


def _add_text_routes(app: FastAPI, service: Service) -> None:
    async def post_tokenize(body: TokenizeBody) -> Response:
        """Turn a text or a conversation into token ids."""
        return _json(await tokenize(service, body))

    async def post_detokenize(body: DetokenizeBody) -> Response:
        """Turn token ids into text."""
        return _json(await detokenize(service, body))

    for path, route in {"/tokenize": post_tokenize, "/detokenize": post_detokenize}.items():
        app.add_api_route(path, route, methods=["POST"], response_model=None, tags=["Text"])


def _add_watch_routes(app: FastAPI, service: Service) -> None:
    async def get_livez() -> Response:
        """Whether the server process is alive; always 200."""
        return Response("ok\n", media_type="text/plain")

    async def get_readyz() -> Response:
        """Whether requests are served now: 200, or 503 while the engine starts."""
        service.engine_for(None)
        return Response("ready\n", media_type="text/plain")

    async def get_health() -> Response:
        """How the engine is, what failed and what is done without: 200, or 503 without engine."""
        report = service.health.report(is_busy=service.client.num_open > 0)
        return _json(report, 200 if report.status is EngineStatus.OK else 503)

    async def get_metrics() -> Response:
        """Metrics for Prometheus."""
        return Response(service.metrics.render(), media_type=CONTENT_TYPE)

    async def get_plan() -> Response:
        """Who serves each operation, and why."""
        return _json(service.engine_for(None).plan)

    routes = {
        "/livez": get_livez,
        "/readyz": get_readyz,
        "/health": get_health,
        "/metrics": get_metrics,
        "/debug/plan": get_plan,
    }
    for path, route in routes.items():
        app.add_api_route(path, route, methods=["GET"], response_model=None, tags=["Watching"])


def _json(body: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(body), status, media_type="application/json")
