"""Markdown of Python: how the pages of docs/reference/ show classes, functions, docstrings."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from dataclasses import is_dataclass
from enum import Enum
from itertools import pairwise
from pathlib import Path
from typing import Any

from chiplet import api


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


def cell(text: str) -> str:
    """Text that a table can hold."""
    return " ".join(text.split()).replace("|", "\\|")


def _is_public_method(name: str, method: Any) -> bool:
    return not name.startswith("_") and inspect.isfunction(_plain(method))


def _plain(method: Any) -> Any:
    if isinstance(method, property):
        return method.fget
    return getattr(method, "__func__", method)
