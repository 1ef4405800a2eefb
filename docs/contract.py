"""Pages on the contract with plugins: hooks, `chiplet.api`, and one page for each interface."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator, Mapping
from itertools import pairwise
from types import ModuleType

from rendering import entry, paragraphs, signature

from chiplet import api, forward_batch, hooks, modeling
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
    stretches,
)

INTERFACES: Mapping[str, tuple[ModuleType, ...]] = {
    "platform": (platform, executable),
    "attention": (attention, forward_batch),
    "linear": (linear, stretches),
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
    yield f'In a manifest: `{name} = ">={major}.{minor},<{major + 1}"`; see'
    yield "[compatibility](../compatibility.md) for what that promises. Fields, shapes,"
    yield "types, what is changed, what blocks and what is raised are as written in the code; where"
    yield "nothing is said of a change, nothing is changed.\n"
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
