"""Around every HTTP request: the API key is checked, the request counted and logged."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from chiplet.server.answer_stream import AnswerStream
from chiplet.server.errors import unauthorized
from chiplet.server.metrics import Metrics

logger = logging.getLogger("chiplet.requests")

POLLED_PATHS = frozenset({"/livez", "/readyz", "/metrics"})
"""Machines ask here every few seconds; the log is for what people want."""

OPEN_PATHS = frozenset({"/livez", "/readyz"})
"""Probes carry no key."""

STREAM_STATE = "answer_stream"
"""Where a route leaves its `AnswerStream` in the request's state, for the log."""


class RequireKey:
    """Answers 401 to every request without the key, but for probes."""

    def __init__(self, app: ASGIApp, *, api_key: str) -> None:
        self._app = app
        self._expected = f"Bearer {api_key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS:
            given = Headers(scope=scope).get("authorization", "").encode()
            if not secrets.compare_digest(given, self._expected):
                await unauthorized().response()(scope, receive, send)
                return
        await self._app(scope, receive, send)


class CountRequests:
    """Counts requests by path and status; logs each one when it has ended, if asked to."""

    def __init__(
        self, app: ASGIApp, *, metrics: Metrics, paths: Collection[str], logs: bool
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._paths = frozenset(paths)
        self._logs = logs

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started_s = time.monotonic()
        status = 500

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_and_note)
        finally:
            # A client could invent any number of paths; each label costs memory for ever.
            path = scope["path"] if scope["path"] in self._paths else "other"
            self._metrics.http_requests.labels(path, str(status)).inc()
            if self._logs and scope["path"] not in POLLED_PATHS:
                self._log(scope, status, time.monotonic() - started_s)

    def _log(self, scope: Scope, status: int, total_s: float) -> None:
        stream: AnswerStream | None = scope.get("state", {}).get(STREAM_STATE)
        details = "" if stream is None else f" {stream.describe()}"
        logger.info("%s %s %d %.3f s%s", scope["method"], scope["path"], status, total_s, details)
