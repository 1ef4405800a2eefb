"""Errors as clients see them: one envelope for all, in the manner of the OpenAI API.

    {"error": {"message": ..., "type": ..., "param": ..., "code": ...}}

Status, type, code, and when:

    400  invalid_request_error  invalid_value               a value is out of range
    400  invalid_request_error  invalid_type                a value is of another type
    400  invalid_request_error  missing_required_parameter  a field must be there
    400  invalid_request_error  unknown_parameter           a field that nobody knows
    400  invalid_request_error  unsupported_parameter       known, but not served
    400  invalid_request_error  invalid_json                the body is no JSON
    400  invalid_request_error  context_length_exceeded     prompt and answer do not fit
    401  invalid_request_error  invalid_api_key             the key is missing or wrong
    404  invalid_request_error  model_not_found             another model is served
    404  invalid_request_error  not_found                   no such path
    405  invalid_request_error  method_not_allowed          the path has other methods
    413  invalid_request_error  request_too_large           the body is larger than is taken
    429  rate_limit_error       queue_full                  too many requests wait; Retry-After
    500  engine_error           engine_error                the engine failed at this request
    500  server_error           internal_error              a defect of the server
    503  engine_error           engine_starting             not ready yet; Retry-After
    503  engine_error           engine_restarted            the engine died; Retry-After
    503  engine_error           server_stopping             cut off by the server's end; Retry-After
"""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus

import msgspec
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from chiplet.errors import ChipletError, EngineError, EngineRestarted, QueueFull, RequestError
from chiplet.server.body_errors import InvalidJson, explain_invalid_body

RETRY_AFTER_START_S = 2
"""What clients are told to wait while an engine starts."""


class UnknownModel(RequestError):
    """The request names a model that is not served here."""

    code = "model_not_found"


class EngineStarting(EngineError):
    """The engine has not been ready yet."""

    code = "engine_starting"


class EngineStopping(EngineError):
    """The server was told to stop, and this request took too long to end by itself."""

    code = "server_stopping"


class ClientGone(ChipletError):
    """The client closed its connection; nobody reads the answer."""


class ErrorBody(msgspec.Struct, frozen=True):
    """What stands in the envelope."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorEnvelope(msgspec.Struct, frozen=True):
    """The body of every answer that is an error."""

    error: ErrorBody


@dataclass(frozen=True, slots=True)
class HttpError:
    """An error ready to be sent.

    Attributes:
        closes: the connection ends with it.
    """

    status: int
    body: ErrorBody
    retry_after_s: int | None = None
    closes: bool = False

    def response(self) -> Response:
        """As an HTTP answer."""
        headers: dict[str, str] = {}
        if self.retry_after_s is not None:
            headers["Retry-After"] = str(self.retry_after_s)
        if self.closes:
            headers["Connection"] = "close"
        return Response(self.json(), self.status, headers, media_type="application/json")

    def json(self) -> bytes:
        """As a JSON envelope."""
        return msgspec.json.encode(ErrorEnvelope(self.body))


def http_error(error: ChipletError) -> HttpError:
    """How a deliberate error is told to the client."""
    match error:
        case QueueFull():
            body = ErrorBody(str(error), "rate_limit_error", error.param, error.code)
            return HttpError(429, body, error.retry_after_s)
        case RequestError():
            body = ErrorBody(str(error), "invalid_request_error", error.param, error.code)
            return HttpError(404 if isinstance(error, UnknownModel) else 400, body)
        case EngineRestarted() | EngineStarting() | EngineStopping():
            body = ErrorBody(str(error), "engine_error", None, error.code)
            return HttpError(503, body, RETRY_AFTER_START_S)
        case EngineError():
            return HttpError(500, ErrorBody(str(error), "engine_error", None, error.code))
        case ClientGone():
            return HttpError(499, ErrorBody(str(error), "client_error", None, "client_gone"))
        case _:
            return HttpError(500, ErrorBody(str(error), "server_error", None, "internal_error"))


def too_large(max_mib: int) -> HttpError:
    """The answer to a body that is too large; the connection is of no use afterwards."""
    message = (
        f"The body has more than {max_mib} MiB, which is the most that this server takes. "
        "Send less, or start the server with a larger --max-body-mib."
    )
    body = ErrorBody(message, "invalid_request_error", None, "request_too_large")
    return HttpError(413, body, closes=True)


def unauthorized() -> HttpError:
    """The answer to a missing or wrong API key."""
    message = "The API key is missing or wrong; send the header 'Authorization: Bearer KEY'."
    return HttpError(401, ErrorBody(message, "invalid_request_error", None, "invalid_api_key"))


def install_error_handlers(app: FastAPI) -> None:
    """Make every error leave the application in the envelope."""

    async def on_chiplet_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, ChipletError)
        return http_error(error).response()

    async def on_invalid_body(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return http_error(explain_invalid_body(error)).response()

    async def on_http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return _plain_http_error(request, error)

    async def on_defect(request: Request, error: Exception) -> Response:
        # The HTTP server logs the traceback.
        message = f"The server failed at this request: {type(error).__name__}."
        return HttpError(500, ErrorBody(message, "server_error", None, "internal_error")).response()

    app.add_exception_handler(ChipletError, on_chiplet_error)
    app.add_exception_handler(RequestValidationError, on_invalid_body)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(Exception, on_defect)


def _plain_http_error(request: Request, error: HTTPException) -> Response:
    phrase = HTTPStatus(error.status_code).phrase
    code = phrase.lower().replace(" ", "_").replace("-", "_")
    if error.status_code == HTTPStatus.BAD_REQUEST:
        code = InvalidJson.code  # the framework says so of a body that it cannot decode, only
    message = f"{phrase}: {request.method} {request.url.path}"
    if error.detail != phrase:
        message += f" ({error.detail})"
    kind = "invalid_request_error" if error.status_code < 500 else "server_error"
    response = HttpError(error.status_code, ErrorBody(message, kind, None, code)).response()
    response.headers.update(error.headers or {})
    return response
