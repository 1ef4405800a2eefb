"""Docstrings of the contract say what a reader cannot see: shapes, fields, what blocks."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any

import pytest

from chiplet import api, hooks, modeling
from chiplet.api import ops

CONTRACT = {
    name: value
    for module in (api, modeling, ops)
    for name, value in vars(module).items()
    if inspect.isclass(value)
    and value.__module__.startswith("chiplet")
    and (name in getattr(module, "__all__", ()) or value.__module__ == ops.__name__)
}
"""Every public class by name."""

ON_THE_DEVICE = ("Platform", "StepCompiler", "Event", "Executable", "PlanStorage", "Communicator")
"""Protocols whose methods may wait for a device or a peer."""


def methods(owner: type) -> Iterator[tuple[str, Any]]:
    for name, value in vars(owner).items():
        plain = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
        if inspect.isfunction(plain) and (not name.startswith("_") or name == "__call__"):
            yield name, plain


ALL_METHODS = [
    pytest.param(owner, method, id=f"{owner_name}.{name}")
    for owner_name, owner in CONTRACT.items()
    for name, method in methods(owner)
    if not (issubclass(owner, Enum) or owner is api.EngineConfig)
]


def takes_tensors(method: Any) -> bool:
    found = [str(each) for each in method.__annotations__.values()]
    return any(re.search(r"\bTensor\b", each) for each in found)


def told(owner: type, method: Any) -> str:
    """The method's docstring, with the rules that its class states for all of them."""
    general = owner.__doc__ or "" if owner.__name__ == "Communicator" else ""
    return (method.__doc__ or "") + general


@pytest.mark.parametrize(("owner", "method"), ALL_METHODS)
def test_a_method_says_what_it_gives(owner: type, method: Any) -> None:
    assert method.__doc__ or owner.__doc__, "no docstring"
    if takes_tensors(method):
        assert re.search(r"Shapes|`\[|[Ss]hape|\bsee `", told(owner, method)), "no shapes"


@pytest.mark.parametrize("name", CONTRACT)
def test_every_field_is_explained(name: str) -> None:
    owner = CONTRACT[name]
    if issubclass(owner, Enum) or owner is api.EngineConfig:
        return
    names = [each.name for each in fields(owner)] if is_dataclass(owner) else []
    if getattr(owner, "_is_protocol", False):
        names = list(owner.__annotations__)
    names += getattr(owner, "_fields", ())
    text = owner.__doc__ or ""
    assert [each for each in names if not re.search(rf"\b{each}\b", text)] == []


@pytest.mark.parametrize("name", CONTRACT)
def test_an_enumeration_says_what_it_lists(name: str) -> None:
    owner = CONTRACT[name]
    assert not issubclass(owner, Enum) or (owner.__doc__ or "").count(" ") >= 2


@pytest.mark.parametrize("owner", ON_THE_DEVICE)
def test_whether_it_blocks_is_said(owner: str) -> None:
    words = r"[Bb]lock|wait|[Nn]ever|at once|seconds|queue|[Pp]ure\b"
    silent = [
        name
        for name, method in methods(CONTRACT[owner])
        if not isinstance(vars(CONTRACT[owner])[name], property)
        and not re.search(words, told(CONTRACT[owner], method))
    ]
    assert silent == []


@pytest.mark.parametrize(
    "hook",
    [each for each in vars(hooks).values() if inspect.isfunction(each)],
    ids=lambda hook: hook.__name__,
)
def test_every_hook_has_a_text(hook: Any) -> None:
    if hook.__module__ == hooks.__name__:
        assert len((hook.__doc__ or "").split()) >= 4
