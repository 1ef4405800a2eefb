"""The contract of a frozen version: nothing of it is gone, and what is new has a newer version."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from chiplet import api
from tests.fossils.signatures import Changes, changes, contract

FROZEN = {
    path.parent.name: json.loads(path.read_text("utf-8"))
    for path in sorted(Path(__file__).parent.glob("v*/contract.json"))
}
"""Contracts by the version at which they were frozen."""

DOCS = Path(__file__).parents[2] / "docs"


def interfaces_of(name: str) -> set[str]:
    """Interfaces whose version an addition to a name concerns; all, if it is common to several."""
    sys.path.insert(0, str(DOCS))
    try:
        names_of: Callable[[str], list[str]] = import_module("contract").names_of
    finally:
        sys.path.remove(str(DOCS))
    short = name.rpartition(".")[2]
    return {each for each in api.INTERFACE_VERSIONS if short in names_of(each)} or set(
        api.INTERFACE_VERSIONS
    )


@pytest.mark.parametrize("version", FROZEN)
def test_nothing_that_was_promised_has_changed(version: str) -> None:
    """A change here breaks plugins that people have installed: see docs/compatibility.md."""
    assert changes(FROZEN[version], contract()).breaks == []


def test_what_is_new_has_a_newer_minor_version() -> None:
    newest = FROZEN[max(FROZEN, key=lambda each: [int(part) for part in each[1:].split("_")])]
    unversioned = {
        name: what
        for name, what in changes(newest, contract()).additions.items()
        if all(
            api.INTERFACE_VERSIONS[each] <= tuple(newest["versions"][each])
            for each in interfaces_of(name)
        )
    }
    assert unversioned == {}, "raise the minor version of the interface, and name the addition"


def test_versions_only_rise() -> None:
    assert FROZEN
    for frozen in FROZEN.values():
        for interface, version in frozen["versions"].items():
            major, minor = version
            now = api.INTERFACE_VERSIONS[interface]
            assert now[0] == major, (
                "a new major version needs an adapter for plugins of the old one"
            )
            assert now[1] >= minor


BEFORE: dict[str, Any] = {
    "versions": {},
    "hooks": {"linear": [[["device", "POSITIONAL_OR_KEYWORD", "DeviceProbe", False]], "Seq"]},
    "names": {
        "api.Request": {
            "kind": "dataclass",
            "is_frozen": True,
            "methods": {
                "features": ["property", "frozenset"],
                "of": [[["x", "P", "int", False]], ""],
            },
            "fields": [["size", "int", False, True], ["more", "int", "None", True]],
        },
        "api.Pair": {"kind": "dataclass", "methods": {}, "fields": [["a", "int", False, False]]},
        "api.Impl": {
            "kind": "protocol",
            "methods": {"run": [[["self", "P", "", False], ["x", "P", "Tensor", False]], "Tensor"]},
            "fields": [["name", "str", False, True]],
        },
        "api.Step": {"kind": "protocol", "methods": {"layout": ["property", "L"]}, "fields": []},
        "api.StepInputs": {"kind": "tuple", "methods": {}, "fields": [["a", "T", False, False]]},
        "api.Target": {"kind": "tuple", "methods": {}, "fields": [["a", "T", False, False]]},
        "api.Feature": {"kind": "enumeration", "methods": {}, "members": {"BIAS": "bias"}},
        "modeling.Linear": {
            "kind": "class",
            "methods": {"__init__": [[["self", "P", "", False]], "None"]},
        },
    },
}


def after(change: Callable[[dict[str, Any]], Any]) -> Changes:
    now = copy.deepcopy(BEFORE)
    change(now["names"])
    return changes(BEFORE, now)


FIELD = ["new", "int", False, True]
OPTIONAL = ["new", "int", True, True]
LAST = ["new", "int", True, False]
PARAMETER = ["y", "P", "int", True]

BREAKS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "name gone": lambda names: names.pop("api.Feature"),
    "kind": lambda names: names["api.Feature"].update(kind="class"),
    "field gone": lambda names: names["api.Request"]["fields"].pop(),
    "field without default": lambda names: names["api.Request"]["fields"].append(FIELD),
    "default gone": lambda names: names["api.Request"]["fields"][1].__setitem__(2, False),
    "another default": lambda names: names["api.Request"]["fields"][1].__setitem__(2, "5.0"),
    "frozen no more": lambda names: names["api.Request"].update(is_frozen=False),
    "field's type": lambda names: names["api.Request"]["fields"][0].__setitem__(1, "str"),
    "field before others": lambda names: names["api.Pair"]["fields"].insert(0, LAST),
    "property": lambda names: names["api.Request"]["methods"].pop("features"),
    "method gone": lambda names: names["api.Impl"]["methods"].pop("run"),
    "method's parameters": lambda names: names["api.Impl"]["methods"]["run"][0].append(PARAMETER),
    "method's result": lambda names: names["api.Impl"]["methods"]["run"].__setitem__(1, "int"),
    "method to implement": lambda names: names["api.Impl"]["methods"].update(go=[[], ""]),
    "attribute to implement": lambda names: names["api.Impl"]["fields"].append(OPTIONAL),
    "field of a tuple that plugins make": lambda names: names["api.Target"]["fields"].append(
        ["b", "T", False, False]
    ),
    "member gone": lambda names: names["api.Feature"]["members"].pop("BIAS"),
    "member's value": lambda names: names["api.Feature"]["members"].update(BIAS="b"),
    "argument of a class": lambda names: names["modeling.Linear"]["methods"]["__init__"][0].append(
        ["y", "P", "int", False]
    ),
}

ADDITIONS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "name": lambda names: names.update({"api.New": {"kind": "value", "text": ""}}),
    "optional field": lambda names: names["api.Request"]["fields"].append(OPTIONAL),
    "optional last field": lambda names: names["api.Pair"]["fields"].append(LAST),
    "method of a value": lambda names: names["api.Request"]["methods"].update(go=[[], ""]),
    "method of core's": lambda names: names["api.Step"]["methods"].update(go=[[], ""]),
    "last field of a tuple of core's": lambda names: names["api.StepInputs"]["fields"].append(
        ["b", "T", False, False]
    ),
    "member": lambda names: names["api.Feature"]["members"].update(SINKS="sinks"),
    "optional argument": lambda names: names["api.Request"]["methods"]["of"][0].append(PARAMETER),
    "optional argument of a class": lambda names: names["modeling.Linear"]["methods"]["__init__"][
        0
    ].append(PARAMETER),
}


def test_the_same_is_no_change() -> None:
    found = after(lambda names: None)
    assert found == Changes()


@pytest.mark.parametrize("kind", BREAKS)
def test_a_break_is_seen(kind: str) -> None:
    assert len(after(BREAKS[kind]).breaks) == 1


@pytest.mark.parametrize("kind", ADDITIONS)
def test_an_addition_is_no_break(kind: str) -> None:
    found = after(ADDITIONS[kind])
    assert found.breaks == []
    assert len(found.additions) == 1


def test_hooks_may_gain_arguments_and_lose_none() -> None:
    wider = copy.deepcopy(BEFORE)
    wider["hooks"]["linear"][0].append(["topology", "POSITIONAL_OR_KEYWORD", "Topology", False])
    wider["hooks"]["tune"] = [[], "None"]
    assert changes(BEFORE, wider).breaks == []
    assert set(changes(BEFORE, wider).additions) == {"hook linear", "hook tune"}
    assert changes(wider, BEFORE).breaks == [
        "hook linear has another signature",
        "hook tune is gone",
    ]
