"""Blame: which implementation was running when a step raised."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from traceback import walk_tb
from types import CodeType, FrameType, FunctionType, MethodType
from typing import Any

from chiplet.plugins.selection import Bound


def blame(error: BaseException, bound: Sequence[Bound]) -> Bound | None:
    """The implementation in use that the innermost frame of an error's traceback belongs to.

    None if no frame is one's: the error is core's own, comes from work that was queued earlier, or
    from a function of a compiled extension that was bound without any Python around it.
    """
    frames = [frame for frame, _ in walk_tb(error.__traceback__)]
    for frame in reversed(frames):
        for each in bound:
            if _is_of(frame, each.impl):
                return each
    return None


def _is_of(frame: FrameType, impl: Any) -> bool:
    first = _first_argument(frame)
    owner = impl.__self__ if isinstance(impl, MethodType) else impl
    return first is owner or frame.f_code in set(_codes(impl))


def _first_argument(frame: FrameType) -> object:
    """`self`, where there is one."""
    code = frame.f_code
    return frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None


def _codes(impl: Any) -> Iterator[CodeType]:
    """Code of a function; that of a method is its class's, and many objects share it."""
    called: Callable[..., Any] = impl
    while isinstance(called, partial):
        called = called.func
    if isinstance(called, FunctionType):
        yield called.__code__
