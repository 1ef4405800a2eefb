"""Whose code is whose: what decorators put around a function shows nobody at work."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from chiplet.plugins.blame import blame, dispensable


@torch.no_grad()
def theirs(x: int) -> int:
    return x // 0


@torch.inference_mode()
def others(x: int) -> int:
    return x


class Module(torch.nn.Module):
    """Whose base is torch's."""

    def forward(self, x: int) -> int:
        return x


def bound(impl: Any, name: str = "acme") -> Any:
    plugin = SimpleNamespace(is_core=False, distribution=f"chiplet-{name}")
    seat = SimpleNamespace(candidate=SimpleNamespace(name=name, plugin=plugin))
    return SimpleNamespace(impl=impl, operation="ops/add", is_pinned=False, seat=seat)


def test_decorated_functions_are_told_apart() -> None:
    theirs_in_use, others_in_use = dispensable([bound(theirs), bound(others, "other")])
    assert {file for file, *_ in (*theirs_in_use.spans, *others_in_use.spans)} == {__file__}
    assert set(theirs_in_use.spans).isdisjoint(others_in_use.spans)


def test_what_a_base_class_of_another_package_does_is_not_theirs() -> None:
    (in_use,) = dispensable([bound(Module())])
    assert [file for file, *_ in in_use.spans] == [__file__]


def test_what_another_package_put_into_a_shared_class_is_not_theirs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.nn.Module, "put_there", others, raising=False)
    (in_use,) = dispensable([bound(Module())])
    assert len(in_use.spans) == 1


def test_an_error_within_a_decorated_function_is_its_own() -> None:
    first, second = bound(others, "other"), bound(theirs)
    with pytest.raises(ZeroDivisionError) as caught:
        theirs(1)
    assert blame(caught.value, [first, second]) is second
    assert blame(caught.value, [first]) is None
