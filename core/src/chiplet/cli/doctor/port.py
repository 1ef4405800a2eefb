"""The port that a server would take."""

from __future__ import annotations

import socket
from collections.abc import Iterator

from chiplet.api import Check
from chiplet.cli.doctor.report import fault, ok, warning
from chiplet.config import ServerOptions


def check_port(server: ServerOptions, *, is_given: bool) -> Iterator[Check]:
    """Whether a server could listen; the default port in use may be a server that runs well."""
    where = f"{server.host}:{server.port}"
    family = socket.AF_INET6 if ":" in server.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((server.host, server.port))
        except OSError as error:
            report = fault if is_given else warning
            detail = f"cannot listen on {where}: {error.strerror or error}"
            yield report("port", detail, "Give another '--port' (0 picks a free one) or '--host'.")
            return
    yield ok("port", f"{where} is free")
