"""`chiplet bench startup`: from starting the server to the first token over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median

from chiplet.cli.bench.http_client import stream
from chiplet.cli.bench.report import Report, ReportOptions, publish
from chiplet.cli.bench.server_process import ServerProcess, server_process
from chiplet.cli.command import ENGINE_GROUPS, MODEL, Command, Given
from chiplet.cli.settings import command_option
from chiplet.errors import EngineError


@dataclass(frozen=True, slots=True, kw_only=True)
class StartupOptions:
    """Start-up benchmark."""

    repeats: int = command_option(3, "How often the server is started.", minimum=1)


@dataclass(frozen=True, slots=True)
class _Times:
    """Seconds since the process was started."""

    port_s: float
    ready_s: float
    first_token_s: float


def run(given: Given) -> int:
    """Start servers one after another and report the median."""
    options = given.options("startup", StartupOptions())
    engine = {
        path: value for path, value in given.values.items() if path.split(".")[0] in ENGINE_GROUPS
    }
    times = [_once(engine) for _ in range(options.repeats)]
    figures = {
        "port_open_s": round(median(each.port_s for each in times), 2),
        "ready_s": round(median(each.ready_s for each in times), 2),
        "first_token_s": round(median(each.first_token_s for each in times), 2),
        "first_token_worst_s": round(max(each.first_token_s for each in times), 2),
    }
    report = Report(
        benchmark="startup",
        command_line=given.command_line,
        workload={"repeats": options.repeats},
        figures={"chiplet": figures},
    )
    publish(report, given.options("report", ReportOptions()))
    return 0


def _once(engine: Mapping[str, object]) -> _Times:
    with server_process(engine) as server:
        return asyncio.run(_measure(server))


async def _measure(server: ServerProcess) -> _Times:
    port_s = await server.wait_until_ok("/livez")
    ready_s = await server.wait_until_ok("/readyz")
    messages = [{"role": "user", "content": "What is gravity?"}]
    body = {"messages": messages, "max_tokens": 8, "temperature": 0}
    timeline = await stream(server.address, "/v1/chat/completions", body)
    if timeline.error or not timeline.arrivals_s:
        raise EngineError(f"The first request failed: {timeline.error or 'no text'}")
    start_s = server.started_s
    return _Times(port_s - start_s, ready_s - start_s, timeline.arrivals_s[0] - start_s)


COMMAND = Command(
    name="bench startup",
    summary="Time from 'chiplet serve' to the first token of a request, with files in cache.",
    run=run,
    groups={"startup": StartupOptions, "report": ReportOptions, **ENGINE_GROUPS},
    positional=MODEL,
)
