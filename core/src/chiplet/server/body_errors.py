"""What is wrong with a body, in words that the client can act on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from fastapi.exceptions import RequestValidationError

from chiplet.errors import RequestError


class InvalidJson(RequestError):
    """The body is no JSON."""

    code = "invalid_json"


class MissingParameter(RequestError):
    """A field that must be there is not."""

    code = "missing_required_parameter"


class InvalidType(RequestError):
    """A field holds another kind of value than it should."""

    code = "invalid_type"


class UnknownParameter(RequestError):
    """The body has a field that nobody knows."""

    code = "unknown_parameter"


class UnsupportedParameter(RequestError):
    """The body asks for something that is known but not served."""

    code = "unsupported_parameter"


def explain_invalid_body(error: RequestValidationError) -> RequestError:
    """The first thing that is wrong with a body."""
    problems = error.errors()
    first = problems[0]
    location: Sequence[str | int] = first["loc"][1:]
    if first["type"] == "json_invalid":
        return InvalidJson(f"The body is no JSON: {first['ctx']['error']}.")
    if not location and first["type"] == "value_error":
        return RequestError(f"{first['msg'].removeprefix('Value error, ')}.")
    if not location:
        return InvalidType(
            "The body must be a JSON object, sent with 'Content-Type: application/json'."
        )
    param = _path(location, error.body)
    if first["type"] == "missing":
        name = str(location[-1])
        # A field that is there and null stands in the path already.
        if param != name and not param.endswith(f".{name}"):
            param = f"{param}.{name}" if param else name
        return MissingParameter(f"Missing required parameter: '{param}'.", param=param)
    if first["type"] == "extra_forbidden":
        return UnknownParameter(f"Unknown parameter: '{param}'.", param=param)
    # A field that takes several types has a problem for each of them, there or within.
    paths = [_path(each["loc"][1:], error.body) for each in problems]
    reasons = dict.fromkeys(
        each["msg"] if path == param else f"{path}: {each['msg']}"
        for path, each in zip(paths, problems, strict=True)
        if path.startswith(param)
    )
    message = f"{param}: {'; or '.join(reasons)}."
    if first["type"].endswith("_type") or first["type"].endswith("_parsing"):
        return InvalidType(message, param=param)
    return RequestError(message, param=param)


def unknown_parameter(name: str, known: Sequence[str]) -> UnknownParameter:
    """The error for a field that nobody knows, with the one that was probably meant."""
    near = get_close_matches(name, known, n=1)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return UnknownParameter(f"Unknown parameter: '{name}'.{hint}", param=name)


def _path(location: Sequence[str | int], body: Any) -> str:
    """Where a problem is, like 'messages[0].content'.

    The validator's own path also names the alternative of a union that it tried: what the body
    does not hold is left out.
    """
    path = ""
    here: Any = body
    for part in location:
        if isinstance(here, Mapping) and part in here:
            path += f".{part}" if path else str(part)
            here = here[part]
        elif isinstance(here, list) and isinstance(part, int) and part < len(here):
            path += f"[{part}]"
            here = here[part]
    return path
