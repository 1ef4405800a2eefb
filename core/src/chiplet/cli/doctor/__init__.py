"""`chiplet doctor`: what is installed, what was found, and how to mend what is wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from chiplet.api import Check, CheckStatus
from chiplet.cli.command import ENGINE_GROUPS, MODEL, Command, Given
from chiplet.cli.settings import command_option
from chiplet.config import ServerOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class DoctorOptions:
    """Output: for people or for programs."""

    json: bool = command_option(False, "Print JSON.")


def run(given: Given) -> int:
    """Print all checks; 1 if any of them is a problem."""
    from chiplet.cli.doctor.examination import examine
    from chiplet.cli.doctor.host import read_host

    checks = examine(
        given.engine_config(),
        given.options("server", ServerOptions()),
        read_host(),
        is_port_given="server.port" in given.values,
    )
    if given.options("output", DoctorOptions()).json:
        print(json.dumps([asdict(each) for each in checks], indent=2))
    else:
        print("\n".join(_lines(checks)))
    return int(any(each.status is CheckStatus.PROBLEM for each in checks))


def _lines(checks: Sequence[Check]) -> Iterator[str]:
    width = max(len(each.name) for each in checks)
    for each in checks:
        remedy = f"  fix: {each.remedy}" if each.remedy else ""
        detail = " ".join(each.detail.split())
        yield f"{each.status:<8} {each.name:<{width}}  {detail}{remedy}"


COMMAND = Command(
    name="doctor",
    summary="Check host, plugins, devices, model, port and caches; exit code 1 on a problem.",
    run=run,
    groups={"output": DoctorOptions, "server": ServerOptions, **ENGINE_GROUPS},
    positional=MODEL,
)
