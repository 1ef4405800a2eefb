"""Which tensors a tree of objects holds: what a compiler must take as arguments."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any, cast

import torch

from chiplet.layers.context import LayerContext

_LEAVES = (
    str,
    bytes,
    int,
    float,
    complex,
    bool,
    type,
    type(None),
    Enum,
    torch.dtype,
    torch.device,
    ModuleType,
    BuiltinFunctionType,
    # What a layer was made with: from there the way goes on to the selection and the platform.
    LayerContext,
)


def reachable_tensors(root: object) -> tuple[torch.Tensor, ...]:
    """Every tensor in a tree, once, in a fixed order.

    Followed are lists, tuples, mappings, dataclasses, objects with attributes, bound methods to
    their object, and functions to what they close over.
    """
    seen: set[int] = set()
    found: list[torch.Tensor] = []
    waiting: list[object] = [root]
    while waiting:
        value = waiting.pop()
        if isinstance(value, _LEAVES) or id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, torch.Tensor):
            found.append(value)
        else:
            waiting += reversed(list(_children(value)))
    return tuple(each for each in found if each.numel())


def _children(value: Any) -> Iterator[object]:
    if isinstance(value, (list, tuple, set, frozenset)):
        yield from cast("list[object]", value)
    elif isinstance(value, Mapping):
        yield from cast("Mapping[object, object]", value).values()
    elif isinstance(value, MethodType):
        yield value.__self__
    elif isinstance(value, FunctionType):
        yield from (cell.cell_contents for cell in value.__closure__ or ())
    elif is_dataclass(value):
        yield from (getattr(value, each.name) for each in fields(value))
    else:
        yield from getattr(value, "__dict__", {}).values()
        for kind in type(value).__mro__:
            for name in getattr(kind, "__slots__", ()):
                if name != "__weakref__" and hasattr(value, name):
                    yield getattr(value, name)
