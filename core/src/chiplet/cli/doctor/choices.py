"""Who would serve each operation, and the plan file that says who should."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from chiplet.api import Check
from chiplet.cli.doctor.report import ok, problem, warning
from chiplet.config import DeviceOptions, EngineConfig
from chiplet.errors import ConfigError
from chiplet.plugins.pins import parse_denials, parse_pins
from chiplet.plugins.plan_lock import read_plan
from chiplet.worker import explain


def check_plan_file(options: DeviceOptions) -> Iterator[Check]:
    """Whether the plan file can be read, and names nobody who is denied."""
    if options.plan_lock is None:
        return
    try:
        content = read_plan(Path(options.plan_lock))
        denials = parse_denials(options, parse_pins(options))
    except ConfigError as error:
        yield problem("plan file", error)
        return
    denied = sorted(
        f"{choice.operation}={server.provider}"
        for choice in content.choices
        for server in choice.servers
        if denials.find(choice.operation, server.provider) is not None
    )
    if denied:
        yield warning(
            "plan file",
            f"{options.plan_lock} names what --deny denies: {', '.join(dict.fromkeys(denied))}",
            "Make it anew with 'chiplet explain MODEL --save FILE' and the same '--deny'.",
        )
        return
    yield ok("plan file", f"{options.plan_lock}, plan {content.hash}")


def check_choices(config: EngineConfig) -> Iterator[Check]:
    """Whether a start would find somebody for each operation, as pins and plan file wish."""
    try:
        plan = explain(config)
    except ConfigError as error:
        yield problem("choice of implementations", error)
        return
    yield ok("choice of implementations", f"{len(plan.choices)} operations, plan {plan.hash}")
