"""Blame: which implementation was running when a step raised."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from traceback import walk_tb
from types import CodeType, FrameType, FunctionType, MethodType
from typing import Any

from chiplet.crash import InUse, Span
from chiplet.plugins.selection import Bound

_SHARED = sys.stdlib_module_names | {"torch", "chiplet"}
"""Packages whose code runs for everybody, so that it shows nobody at work."""


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


def dispensable(bound: Sequence[Bound]) -> tuple[InUse, ...]:
    """What another start may do without: implementations in use, neither core's nor pinned.

    One implementation may serve several requests of an operation; it is listed once.
    """
    found: dict[str, InUse] = {}
    for each in bound:
        candidate = each.seat.candidate
        if each.is_pinned or candidate.plugin.is_core:
            continue
        denial = f"{each.operation}={candidate.name}"
        before = found[denial].spans if denial in found else ()
        found[denial] = InUse(
            denial=denial,
            family=each.operation.partition("/")[0],
            distribution=candidate.plugin.distribution,
            spans=tuple(dict.fromkeys((*before, *_spans(each.impl)))),
        )
    return tuple(found.values())


def _spans(impl: Any) -> Iterator[Span]:
    """Where an implementation's own code is written: its function, or the methods of its class."""
    owner = impl.__self__ if isinstance(impl, MethodType) else impl
    functions = [*_functions(owner)]
    if not functions:
        # Others may have put functions of their own into a shared class, such as torch.nn.Module.
        classes = [each for each in type(owner).__mro__ if not _is_shared(each)]
        members = [member for each in classes for member in vars(each).values()]
        functions = [function for each in members for function in _functions(each)]
    for function in functions:
        if _is_shared(function):
            continue
        code = function.__code__
        lines = [line for *_, line in code.co_lines() if line is not None]
        yield code.co_filename, code.co_firstlineno, max(lines, default=code.co_firstlineno)


def _is_shared(code: FunctionType | type) -> bool:
    return (code.__module__ or "").partition(".")[0] in _SHARED


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
    return (each.__code__ for each in _functions(impl))


def _functions(impl: Any) -> Iterator[FunctionType]:
    """The function itself, and not what a decorator put around it, which is everybody's."""
    called: Callable[..., Any] = impl
    while isinstance(called, partial):
        called = called.func
    if isinstance(called, FunctionType):
        inner = inspect.unwrap(called)
        if isinstance(inner, FunctionType):
            yield inner
