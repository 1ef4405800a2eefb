"""`chiplet explain`: who serves each operation, and why the others do not."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from chiplet.cli.command import ENGINE_GROUPS, MODEL, Command, Given
from chiplet.cli.settings import command_option


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainOptions:
    """Output: for people or for programs."""

    json: bool = command_option(False, "Print JSON, as at /debug/plan.")
    save: str | None = command_option(
        None, "Write the choices to this file, for '--plan-lock'.", metavar="FILE"
    )


def run(given: Given) -> int:
    """Make the choices that a start would make, without loading weights, and show them."""
    from chiplet.plugins.explain import render
    from chiplet.plugins.plan_lock import save_plan
    from chiplet.worker import explain

    options = given.options("output", ExplainOptions())
    plan = explain(given.engine_config())
    if options.save is not None:
        save_plan(plan, Path(options.save))
    if options.json:
        print(json.dumps(plan.to_json(), indent=2))
    else:
        print(render(plan))
    return 0


COMMAND = Command(
    name="explain",
    summary="Show who serves each operation, and why others do not; no weights are loaded.",
    run=run,
    groups={"output": ExplainOptions, **ENGINE_GROUPS},
    positional=MODEL,
)
