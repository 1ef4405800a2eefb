"""Keys of requests: the same text for the same request, in every process and on every rank."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from typing import Any

from chiplet.plugins.candidates import Request


def request_key(request: Request) -> str:
    """Kind and every field of a request, as text; plan files and measurements go by it."""
    fields = json.dumps(asdict(request), sort_keys=True, default=_plain)
    return f"{type(request).__name__} {fields}"


def digest(text: str) -> str:
    """A short name of a text: 16 hexadecimal digits of its SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _plain(value: Any) -> Any:
    # A set has no order of its own, and another one in every process.
    return sorted(value) if isinstance(value, frozenset | set) else str(value)
