"""Writes the pages of docs/reference/ from the code: `python docs/generate.py`.

A test fails when a page is not what this script would write.
"""

from __future__ import annotations

import ast
import inspect
import json
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic.fields import FieldInfo

import chiplet
from chiplet import api, errors, forward_batch, hooks, llm, modeling, request
from chiplet.api import (
    attention,
    communication,
    compilation,
    executable,
    features,
    linear,
    models,
    moe,
    ops,
    platform,
    quantization,
    stored,
)
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


INTERFACES: Mapping[str, tuple[ModuleType, ...]] = {
    "platform": (platform, executable),
    "attention": (attention, forward_batch),
    "linear": (linear,),
    "moe": (moe,),
    "ops": (ops,),
    "quantization": (quantization, stored),
    "communication": (communication,),
    "compilation": (compilation,),
    "models": (models, modeling),
}
"""Modules that each interface consists of; the names in them stand on its page."""

HOOKS: Mapping[str, tuple[str, ...]] = {
    "platform": ("probe", "emulated", "platform", "config_proposals", "doctor"),
    "quantization": ("quantization_formats", "stored_formats"),
}
"""Hooks of an interface, where they have another name."""


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


def hook_manual() -> Iterator[str]:
    """Every hook with its true signature."""
    yield "# Hooks\n"
    yield from paragraphs(hooks)
    yield "\nThe manual with examples is [Writing a plugin](../plugins.md).\n"
    for name, hook in vars(hooks).items():
        if inspect.isfunction(hook) and hook.__module__ == hooks.__name__:
            yield f"## {name}\n\n```python\n{signature(hook)}\n```\n"
            yield from paragraphs(hook)
            yield ""


def plugin_api() -> Iterator[str]:
    """Every public name of chiplet.api that belongs to no single interface."""
    yield "# chiplet.api\n"
    yield "All that a plugin may import from Chiplet; models import `chiplet.modeling` too.\n"
    yield "| Interface | Version | Names |\n|---|---|---|"
    placed: set[str] = set()
    for interface_name, (major, minor) in api.INTERFACE_VERSIONS.items():
        names = [each for each in names_of(interface_name) if each in api.__all__]
        placed.update(names)
        page = f"[{interface_name}](interface-{interface_name}.md)"
        yield f"| {page} | {major}.{minor} | {', '.join(f'`{each}`' for each in names)} |"
    yield "\nWhat follows is common to several interfaces.\n"
    for name in sorted(set(api.__all__) - placed):
        yield from entry(name, getattr(api, name))


def interface(name: str) -> Iterator[str]:
    """One interface: its version, hooks and features, and every name that belongs to it."""
    major, minor = api.INTERFACE_VERSIONS[name]
    yield f"# Interface {name} {major}.{minor}\n"
    yield f'In a manifest: `{name} = ">={major}.{minor},<{major}.{minor + 1}"`.'
    yield "Fields, shapes, types, what is changed, what blocks and what is raised are as written in"
    yield "the code; where nothing is said of a change, nothing is changed.\n"
    for hook in HOOKS.get(name, (name,)):
        yield f"```python\n{signature(getattr(hooks, hook))}\n```\n"
        yield from paragraphs(getattr(hooks, hook))
        yield ""
    if own := [
        f"- `{key}`: {text}" for key, text in feature_docs() if text.lower().startswith(name)
    ]:
        yield "Features that a request may need:\n"
        yield from own
        yield ""
    for module in INTERFACES[name]:
        yield from paragraphs(module)
        yield ""
    for public in names_of(name):
        owner = next(each for each in INTERFACES[name] if hasattr(each, public))
        yield from entry(public, getattr(owner, public))


def names_of(name: str) -> list[str]:
    """Public names of an interface, in the order of the code."""
    found: list[str] = []
    for module in INTERFACES[name]:
        listed = [*api.__all__, *getattr(module, "__all__", ())]
        for node in ast.parse(inspect.getsource(module)).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                names = [node.name]
            elif isinstance(node, ast.Assign):
                names = [each for each in listed if each == ast.unparse(node.targets[0])]
            else:
                names = []
            found += [each for each in names if not each.startswith("_")]
        if module is modeling:
            found += modeling.__all__
    return found


def feature_docs() -> Iterator[tuple[str, str]]:
    """Every feature with the text below it."""
    (kind,) = [
        node
        for node in ast.parse(inspect.getsource(features)).body
        if isinstance(node, ast.ClassDef)
    ]
    for node, after in pairwise(kind.body):
        if isinstance(node, ast.Assign) and isinstance(after, ast.Expr):
            text = " ".join(ast.literal_eval(after.value).split())
            yield ast.literal_eval(node.value), text


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


def entry(name: str, value: Any) -> Iterator[str]:
    """A section on one public name."""
    yield f"## {name}\n"
    is_opaque = value is Any
    if inspect.isfunction(value):
        yield f"```python\n{signature(value)}\n```\n"
        yield from paragraphs(value)
        yield ""
        return
    # `Any` is a class where it stands for something opaque.
    if is_opaque or not inspect.isclass(value):
        yield alias_doc(name) or f"`{value!r}`"
        yield ""
        return
    yield from paragraphs(value)
    yield ""
    if issubclass(value, Enum):
        yield from (f"- `{each.name}`: `{each.value}`" for each in value)
        yield ""
    elif is_dataclass(value):
        yield "```python\n" + "\n".join(class_fields(value)) + "\n```\n"
    for method_name, method in vars(value).items():
        if _is_public_method(method_name, method):
            mark = f"@{type(method).__name__}\n" if not inspect.isfunction(method) else ""
            yield f"```python\n{mark}{signature(method)}\n```\n"
            yield from paragraphs(method)
            yield ""


def class_fields(kind: type) -> Iterator[str]:
    """Fields of a dataclass as they stand in the source."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
    assert isinstance(tree, ast.ClassDef)
    for node in tree.body:
        if isinstance(node, ast.AnnAssign):
            yield ast.unparse(node)


def alias_doc(name: str) -> str:
    """The text below an alias or constant of the contract; empty if there is none."""
    for path in sorted(Path(api.__file__).parent.glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node, after in pairwise(tree.body):
            if (
                isinstance(node, ast.Assign)
                and ast.unparse(node.targets[0]) == name
                and isinstance(after, ast.Expr)
                and isinstance(after.value, ast.Constant)
            ):
                return str(after.value.value)
    return {
        "__version__": "The version installed.",
        "hookimpl": "Marks a function as the implementation of the hook of its name.",
        "Verdict": "`Yes` or `No`.",
        "WeightMap": "From a checkpoint's tensor name to every `WeightTarget` that takes it.",
        "INTERFACE_VERSIONS": "Version of each plugin interface, as (major, minor).",
    }.get(name, "")


def paragraphs(value: Any) -> Iterator[str]:
    """A docstring as Markdown: sections like 'Attributes' become lists."""
    is_list = False
    for line in inspect.cleandoc(value.__doc__ or "").splitlines():
        is_heading = line.endswith(":") and line[:-1].isalpha() and not line.startswith(" ")
        if is_heading:
            is_list = True
            yield f"{line}\n"
        elif is_list and line.startswith("    ") and not line.startswith("     "):
            yield f"- {line.strip()}"
        elif is_list and line.startswith("     "):
            yield f"  {line.strip()}"
        else:
            is_list = is_list and bool(line.startswith(" "))
            yield line


def signature(function: Any) -> str:
    """The signature as it stands in the source, on one line."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(_plain(function))))
    node = tree.body[0]
    assert isinstance(node, ast.FunctionDef)
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"def {node.name}({ast.unparse(node.args)}){returns}"


def flag_text(setting: Setting) -> str:
    """A flag as it is written, with what follows it."""
    if setting.kind is bool:
        return f"{setting.flag}, --no-{setting.flag[2:]}"
    metavar = setting.flag[2:].upper() if setting.info.choices else setting.metavar
    return f"{setting.flag} {metavar}"


def cell(text: str) -> str:
    """Text that a table can hold."""
    return " ".join(text.split()).replace("|", "\\|")


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


def _is_public_method(name: str, method: Any) -> bool:
    return not name.startswith("_") and inspect.isfunction(_plain(method))


def _plain(method: Any) -> Any:
    if isinstance(method, property):
        return method.fget
    return getattr(method, "__func__", method)


def main() -> None:
    """Write all pages."""
    FOLDER.mkdir(exist_ok=True)
    for name, text in pages().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
        print(f"docs/reference/{name}")


if __name__ == "__main__":
    main()
