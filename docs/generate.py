"""Writes the pages of docs/reference/ from the code: `python docs/generate.py`.

A test fails when a page is not what this script would write.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from contract import INTERFACES, hook_manual, interface, plugin_api
from pydantic.fields import FieldInfo
from rendering import cell, entry

import chiplet
from chiplet import errors, llm, request
from chiplet.cli.command import ENGINE_GROUPS, Command
from chiplet.cli.main import COMMANDS, load_command
from chiplet.cli.settings import Setting, settings_of, shown_default, title_of
from chiplet.config import ServerOptions
from chiplet.scheduler.stats import SchedulerStats
from chiplet.server import errors as http_errors
from chiplet.server.metrics import Metrics
from chiplet.server.openai.bodies import NO_EFFECT, REFUSED, ChatBody, CompletionBody

FOLDER = Path(__file__).parent / "reference"
NOTE = "<!-- Written by docs/generate.py; change the code, then run `make docs`. -->"


def pages() -> dict[str, str]:
    """All generated pages by file name."""
    makers: Mapping[str, Callable[[], Iterator[str]]] = {
        "configuration.md": configuration,
        "cli.md": command_line,
        "hooks.md": hook_manual,
        "plugin-api.md": plugin_api,
        "python-api.md": python_api,
        "errors.md": error_classes,
        "metrics.md": metrics,
        "http.md": http,
        **{f"interface-{name}.md": partial(interface, name) for name in INTERFACES},
    }
    return {name: NOTE + "\n" + "\n".join(make()) + "\n" for name, make in makers.items()}


def configuration() -> Iterator[str]:
    """Every setting of engine and server."""
    yield "# Configuration\n"
    yield "Each setting is a flag, and a key in the YAML file that `--config` names; flags win.\n"
    yield "```yaml\nmodel: smollm2-135m\npage_size: 16\nradix_cache: true\nplugins: [chiplet-cpu]"
    yield "```"
    for group, options in {**ENGINE_GROUPS, "server": ServerOptions}.items():
        yield f"\n## {title_of(options)}\n"
        yield f"Class `chiplet.config.{options.__name__}`.\n"
        yield "| Key | Flag | Default | Allowed | Meaning |\n|---|---|---|---|---|"
        for setting in settings_of(group, options):
            default = f"`{shown_default(setting)}`" if shown_default(setting) else "-"
            yield (
                f"| `{setting.name}` | `{flag_text(setting)}` | {default} "
                f"| {setting.allowed or '-'} | {cell(setting.info.help)} |"
            )


def command_line() -> Iterator[str]:
    """Every command with its flags."""
    yield "# Command line\n"
    yield "`chiplet --help` lists the commands, `chiplet --version` prints the version.\n"
    yield "Exit codes: 0 all went well; 1 a failure, or `doctor` found a problem; 2 a setting or"
    yield "request is wrong; 130 Ctrl-C.\n"
    engine = "Settings of the engine, the same for all commands: [configuration](configuration.md)."
    for name in COMMANDS:
        command = load_command(name)
        yield f"## chiplet {name}\n"
        yield f"{command.summary}\n"
        yield from _arguments(command)
        for group, options in command.groups.items():
            if group not in ENGINE_GROUPS:
                yield f"{title_of(options)}:\n"
                yield from _flags(command, group)
                yield ""
        if "model" in command.groups:
            yield engine + "\n"


def python_api() -> Iterator[str]:
    """Every public name of chiplet."""
    yield "# Python API\n"
    yield "```python\nfrom chiplet import LLM, SamplingParams\n```\n"
    for name in sorted(chiplet.__all__):
        yield from entry(name, getattr(chiplet, name))
    yield "# What LLM gives\n"
    for kind in (llm.Completion, llm.Answer, llm.StreamDelta):
        yield from entry(kind.__name__, kind)
    for kind in (request.FinishReason, request.TokenLogprobs):
        yield from entry(kind.__name__, kind)


def error_classes() -> Iterator[str]:
    """Every error class."""
    yield "# Errors\n"
    yield "In `chiplet.errors`. What HTTP clients see is in [HTTP API](../http-api.md#errors).\n"
    yield f"```text\n{inspect.cleandoc(errors.__doc__ or '')}\n```\n"
    for name, error in vars(errors).items():
        if inspect.isclass(error) and issubclass(error, errors.ChipletError):
            yield from entry(name, error)


def metrics() -> Iterator[str]:
    """Every metric."""
    yield "# Metrics\n"
    yield "At `/metrics`, for Prometheus.\n"
    yield "| Metric | Type | Meaning |\n|---|---|---|"
    shown = Metrics()
    shown.engine.update(SchedulerStats(**{each.name: 0 for each in fields(SchedulerStats)}))
    helps: dict[str, str] = {}
    for line in shown.render().decode().splitlines():
        mark, kind, name, text = (*line.split(" ", 3), "", "", "")[:4]
        if (mark, kind) == ("#", "HELP"):
            helps[name] = text
        elif (mark, kind) == ("#", "TYPE") and not name.endswith("_created"):
            yield f"| `{name}` | {text} | {cell(helps[name])} |"


def http() -> Iterator[str]:
    """Every field of a request's body, and every error."""
    yield "# HTTP: fields and errors\n"
    yield "An explicit `null` means the default, for every field. An unknown field is an error.\n"
    for title, body in (("chat/completions", ChatBody), ("completions", CompletionBody)):
        yield f"## POST /v1/{title}\n"
        yield "| Field | Default | Meaning |\n|---|---|---|"
        for name, info in body.model_fields.items():
            default = "required" if info.is_required() else f"`{json.dumps(_default_of(info))}`"
            meaning = info.description or f"See `{name}` of [SamplingParams](python-api.md)."
            yield f"| `{name}` | {default} | {cell(meaning)} |"
        yield ""
    yield "## Accepted, and without effect here\n"
    yield ", ".join(f"`{name}`" for name in sorted(NO_EFFECT)) + "\n"
    yield "## Refused, unless they ask for nothing\n"
    for name, neutral in sorted(REFUSED.items()):
        yield f"- `{name}`: allowed are {', '.join(f'`{json.dumps(v)}`' for v in (None, *neutral))}"
    yield "\n## Errors\n"
    yield inspect.cleandoc(http_errors.__doc__ or "")


def flag_text(setting: Setting) -> str:
    """A flag as it is written, with what follows it."""
    if setting.kind is bool:
        return f"{setting.flag}, --no-{setting.flag[2:]}"
    metavar = setting.flag[2:].upper() if setting.info.choices else setting.metavar
    return f"{setting.flag} {metavar}"


def _default_of(info: FieldInfo) -> Any:
    return info.get_default(call_default_factory=True, validated_data={})


def _arguments(command: Command) -> Iterator[str]:
    if command.positional is not None:
        yield f"- `{command.positional.name.upper()}`: {command.positional.help}"
    yield "- `--help`: Show the command's help and leave."
    if command.takes_config_file:
        yield "- `--config FILE`: YAML file of settings; keys are field names."
    yield ""


def _flags(command: Command, group: str) -> Iterator[str]:
    for setting in command.settings().values():
        if setting.group == group:
            default = f" Default: `{shown_default(setting)}`." if shown_default(setting) else ""
            choices = f" One of {setting.allowed}." if setting.info.choices else ""
            yield f"- `{flag_text(setting)}`: {setting.info.help}{choices}{default}"


def main() -> None:
    """Write all pages."""
    FOLDER.mkdir(exist_ok=True)
    for name, text in pages().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
        print(f"docs/reference/{name}")


if __name__ == "__main__":
    main()
