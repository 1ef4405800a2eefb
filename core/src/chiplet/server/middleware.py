"""Around every HTTP request: the API key is checked, the request counted and logged."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Collection
from contextlib import suppress

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from chiplet.server.answer_stream import AnswerStream
from chiplet.server.errors import too_large, unauthorized
from chiplet.server.metrics import Metrics

logger = logging.getLogger("chiplet.requests")

POLLED_PATHS = frozenset({"/livez", "/readyz", "/health", "/metrics"})
"""Machines ask here every few seconds; the log is for what people want."""

OPEN_PATHS = frozenset({"/livez", "/readyz", "/health"})
"""Probes carry no key."""

LINGER_S = 1.0
"""How long the rest of a body that is too large is read and dropped."""

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


class LimitBody:
    """Answers 413 to every request whose body is too large, as soon as that is known."""

    def __init__(self, app: ASGIApp, *, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = Headers(scope=scope).get("content-length", "")
        if announced.isdecimal() and int(announced) > self._max_bytes:
            await self._refuse(scope, receive, send)
            return
        num_bytes = 0

        async def receive_some() -> Message:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > self._max_bytes:
                raise _TooLargeError
            return message

        async def send_if_small(message: Message) -> None:
            # Whatever the route made of the error, it is this one.
            if num_bytes > self._max_bytes:
                raise _TooLargeError
            await send(message)

        try:
            await self._app(scope, receive_some, send_if_small)
        except _TooLargeError:
            await self._refuse(scope, receive, send)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_unfinished(message: Message) -> None:
            is_body = message["type"] == "http.response.body"
            await send({**message, "more_body": True} if is_body else message)

        await too_large(self._max_bytes >> 20).response()(scope, receive, send_unfinished)
        # Closing while the client still sends would reset the connection, and lose the answer.
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER_S):
                while (await receive()).get("more_body", False):
                    pass
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class _TooLargeError(Exception):
    """More of a body has come than is taken."""


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
