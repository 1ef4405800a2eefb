"""Trees: packed weights as tuples, lists, dicts and dataclasses with tensors as leaves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

from torch import Tensor


def join_trees(trees: Sequence[Any], join: Callable[[Sequence[Tensor]], Tensor]) -> Any:
    """One tree whose tensors are joined from those at the same place in each tree.

    Raises:
        TypeError: the trees differ in something that is no tensor.
    """
    first = trees[0]
    if isinstance(first, Tensor):
        return join(trees)
    if isinstance(first, tuple | list):
        joined = [join_trees(each, join) for each in zip(*trees, strict=True)]
        # A named tuple takes its fields one by one.
        return type(first)(*joined) if hasattr(first, "_fields") else type(first)(joined)
    if isinstance(first, dict):
        return {key: join_trees([tree[key] for tree in trees], join) for key in first}
    if is_dataclass(first) and not isinstance(first, type):
        joined_fields = {
            each.name: join_trees([getattr(tree, each.name) for tree in trees], join)
            for each in fields(first)
        }
        return replace(first, **joined_fields)
    if any(tree != first for tree in trees[1:]):
        raise TypeError(
            f"Packed weights of ranks differ in a {type(first).__name__}; only tensors may differ."
        )
    return first
