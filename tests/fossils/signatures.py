"""Public signatures of the contract as data, and what changed between two of them.

`python -m tests.fossils.signatures FOLDER` writes `contract.json` of the code as it is now: part of
a freeze, and of nothing else.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Any, ForwardRef

from chiplet import api, hooks, modeling
from chiplet.api import ops

CORE_MADE = frozenset({"Step", "Reference", "StepInputs", "DeviceState", "StepOutputs", "Logprobs"})
"""Protocols that core implements, and tuples that core makes: more members harm nobody."""

OPAQUE = frozenset({"EngineConfig"})
"""Names that are promised, and whose fields are not: settings come and go."""

Described = dict[str, Any]


def contract() -> Described:
    """Every public name with its signature, every hook with its arguments, every version."""
    places = {name: value for name, value in _public() if not inspect.ismodule(value)}
    return {
        "versions": {name: list(each) for name, each in api.INTERFACE_VERSIONS.items()},
        "names": {name: _describe(name, value) for name, value in sorted(places.items())},
        "hooks": {
            name: _signature(hook)
            for name, hook in sorted(vars(hooks).items())
            if inspect.isfunction(hook) and hook.__module__ == hooks.__name__
        },
    }


def _public() -> Iterator[tuple[str, Any]]:
    for name in api.__all__:
        if name != "INTERFACE_VERSIONS":
            yield f"api.{name}", getattr(api, name)
    for name in modeling.__all__:
        yield f"modeling.{name}", getattr(modeling, name)
    for name, value in vars(ops).items():
        # Signatures of single operations, which `OpRequest.op` names.
        if inspect.isclass(value) and value.__module__ == ops.__name__ and name not in api.__all__:
            yield f"api.ops.{name}", value


def _describe(name: str, value: Any) -> Described:
    if name.rpartition(".")[2] in OPAQUE:
        return {"kind": "opaque"}
    if inspect.isfunction(value):
        return {"kind": "function", "signature": _signature(value)}
    if not inspect.isclass(value) or value is Any:
        is_plain = isinstance(value, (int, str, tuple)) and not isinstance(value, Enum)
        return {"kind": "value", "text": repr(value) if is_plain else ""}
    found: Described = {"kind": _kind(value), "methods": dict(_methods(value))}
    if issubclass(value, Enum):
        found["members"] = {each.name: each.value for each in value}
    elif dataclasses.is_dataclass(value):
        found["is_frozen"] = vars(value)["__dataclass_params__"].frozen
        found["fields"] = [
            [each.name, _text(each.type), _default(each.default), each.kw_only]
            for each in dataclasses.fields(value)
        ]
    elif found["kind"] == "tuple":
        defaults: Mapping[str, Any] = getattr(value, "_field_defaults", {})
        hints = value.__annotations__
        names: tuple[str, ...] = getattr(value, "_fields", ())
        found["fields"] = [
            [each, _text(hints[each]), _default(defaults.get(each, dataclasses.MISSING)), False]
            for each in names
        ]
    elif found["kind"] == "protocol":
        hints = value.__annotations__
        found["fields"] = [[each, _text(kind), False, True] for each, kind in hints.items()]
    return found


def _kind(value: type) -> str:
    if issubclass(value, Enum):
        return "enumeration"
    if dataclasses.is_dataclass(value):
        return "dataclass"
    if getattr(value, "_is_protocol", False):
        return "protocol"
    return "tuple" if issubclass(value, tuple) else "class"


def _methods(owner: type) -> Iterator[tuple[str, Any]]:
    is_made = _kind(owner) == "class"
    for name, value in vars(owner).items():
        is_public = (
            not name.startswith("_") or name == "__call__" or (name == "__init__" and is_made)
        )
        if not is_public:
            continue
        if isinstance(value, property):
            yield name, ["property", _text(value.fget.__annotations__.get("return", ""))]
        elif inspect.isfunction(getattr(value, "__func__", value)):
            yield name, _signature(getattr(value, "__func__", value))


def _signature(function: Callable[..., Any]) -> list[Any]:
    """Parameters as [name, kind, type, default], and the type of the result."""
    signature = inspect.signature(function)
    parameters = [
        [each.name, each.kind.name, _text(each.annotation), _default(each.default)]
        for each in signature.parameters.values()
    ]
    return [parameters, _text(signature.return_annotation)]


def _default(value: Any) -> bool | str:
    """Whether there is a default; and which, where its text is the same in every process."""
    if value is dataclasses.MISSING or value is inspect.Parameter.empty:
        return False
    is_plain = value is None or isinstance(value, (bool, int, float, str, Enum)) or value == ()
    return repr(value) if is_plain else True


def _text(annotation: Any) -> str:
    if annotation is inspect.Parameter.empty:
        return ""
    if isinstance(annotation, ForwardRef):
        return annotation.__forward_arg__
    return annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "")


@dataclasses.dataclass
class Changes:
    """What is different in a newer contract.

    Attributes:
        breaks: what a plugin of the older one cannot live with.
        additions: what it need not know, by the name that it belongs to.
    """

    breaks: list[str] = dataclasses.field(default_factory=list[str])
    additions: dict[str, list[str]] = dataclasses.field(default_factory=dict[str, list[str]])

    def add(self, name: str, text: str) -> None:
        """Note an addition."""
        self.additions.setdefault(name, []).append(text)


def changes(old: Described, new: Described) -> Changes:
    """What happened to every name and hook of an older contract."""
    found = Changes()
    for name, before in old["names"].items():
        now = new["names"].get(name)
        if now is None:
            found.breaks.append(f"{name} is gone")
        else:
            _compare(name, before, now, found)
    for name in sorted(new["names"].keys() - old["names"].keys()):
        found.add(name, "is new")
    for name, before in old["hooks"].items():
        now = new["hooks"].get(name)
        if now is None:
            found.breaks.append(f"hook {name} is gone")
            continue
        # A hook's implementation may leave arguments out, so that more of them harm nobody.
        missing = [each for each in before[0] if each not in now[0]]
        if missing or before[1] != now[1]:
            found.breaks.append(f"hook {name} has another signature")
        elif len(now[0]) > len(before[0]):
            found.add(f"hook {name}", "has more arguments")
    for name in sorted(new["hooks"].keys() - old["hooks"].keys()):
        found.add(f"hook {name}", "is new")
    return found


def _compare(name: str, before: Described, now: Described, found: Changes) -> None:
    if before["kind"] != now["kind"]:
        found.breaks.append(f"{name} was a {before['kind']} and is a {now['kind']}")
        return
    for key in ("text", "signature", "is_frozen"):
        if before.get(key) != now.get(key):
            found.breaks.append(f"{name} was {before[key]} and is {now[key]}")
    is_implemented_outside = now["kind"] == "protocol" and name.rpartition(".")[2] not in CORE_MADE
    _compare_members(name, before, now, found)
    _compare_fields(name, before, now, found, is_implemented_outside)
    old_methods, new_methods = before.get("methods", {}), now.get("methods", {})
    for method, signature in old_methods.items():
        if new_methods.get(method) != signature:
            _compare_method(f"{name}.{method}", signature, new_methods.get(method), now, found)
    for method in new_methods.keys() - old_methods.keys():
        if is_implemented_outside:
            found.breaks.append(f"{name}.{method} is new, and implementations of before lack it")
        else:
            found.add(name, f"method {method} is new")


def _compare_members(name: str, before: Described, now: Described, found: Changes) -> None:
    members = now.get("members", {})
    for member, value in before.get("members", {}).items():
        if members.get(member) != value:
            found.breaks.append(f"{name}.{member} was {value!r} and is {members.get(member)!r}")
    for member in members.keys() - before.get("members", {}).keys():
        found.add(name, f"member {member} is new")


def _compare_fields(
    name: str, before: Described, now: Described, found: Changes, is_implemented_outside: bool
) -> None:
    old_fields, new_fields = before.get("fields", []), now.get("fields", [])
    by_name = {each[0]: each for each in new_fields}
    for field in old_fields:
        if by_name.get(field[0]) != field:
            found.breaks.append(f"{name}.{field[0]} was {field} and is {by_name.get(field[0])}")
    added = [each for each in new_fields if each[0] not in {field[0] for field in old_fields}]
    positional = [each for each in new_fields if not each[3]]
    is_last = positional[: sum(not each[3] for each in old_fields)] == [
        each for each in old_fields if not each[3]
    ]
    for field in added:
        is_optional = field[2] or name.rpartition(".")[2] in CORE_MADE
        if is_implemented_outside or not is_optional or not is_last:
            found.breaks.append(f"{name}.{field[0]} is new, and not optional")
        else:
            found.add(name, f"field {field[0]} is new")


def _compare_method(
    name: str, before: list[Any], now: list[Any] | None, owner: Described, found: Changes
) -> None:
    if now is None or before[0] == "property" or now[0] == "property":
        found.breaks.append(f"{name} was {before} and is {now}")
        return
    more = now[0][len(before[0]) :]
    is_wider = now[0][: len(before[0])] == before[0] and all(each[3] for each in more)
    if is_wider and now[1] == before[1] and owner["kind"] != "protocol":
        found.add(name.rpartition(".")[0], f"{name} takes more")
    else:
        found.breaks.append(f"{name} has another signature")


if __name__ == "__main__":
    path = Path(sys.argv[1]) / "contract.json"
    path.write_text(json.dumps(contract(), indent=1) + "\n", "utf-8")
