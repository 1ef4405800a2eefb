"""Recorder: writes a step down while core's own code runs it once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from chiplet_cpu import native
from chiplet_cpu.recording.arena import Arena
from chiplet_cpu.recording.native_forms import write_natively

Entry = Callable[[], object]
"""Repeats a part of a step."""

_EMPTY = frozenset(
    {
        torch.ops.aten.empty.memory_format,
        torch.ops.aten.empty_like.default,
        torch.ops.aten.new_empty.default,
    }
)
# Beside pointwise operations, whose results have the shape of their broadcast tensors.
_OF_THE_SAME_SHAPE = frozenset(
    {
        torch.ops.aten._log_softmax.default,
        torch.ops.aten._softmax.default,
        torch.ops.aten.empty_like.default,
        torch.ops.aten.full_like.default,
        torch.ops.aten.ones_like.default,
        torch.ops.aten.zeros_like.default,
    }
)
_CREATION = frozenset({"dtype", "layout", "device", "pin_memory"})
_TENSORS = ("Tensor", "List[Tensor]")
_READS = frozenset({Tensor.numpy, Tensor.tolist, Tensor.__array__, Tensor.__dlpack__})
_VALUE_DEPENDENT = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)


class CannotRecord(Exception):
    """A step does what no recording can repeat; the text names the operation."""


class Recorder:
    """Sees every operation of torch, and has the plugin's kernels write down their calls.

    Nothing is run, except what only looks at memory in another shape. All memory that kernels and
    operations ask for comes from the arena.

    Attributes:
        entries: what repeats the step, in order; complete when the recorder is left.
        tape: the number of the tape with all calls of kernels.
        torch_operations: names of the operations of torch among the entries.
    """

    def __init__(self, arena: Arena) -> None:
        self.entries: list[Entry] = []
        self.torch_operations: list[str] = []
        self.tape = 0
        self._arena = arena
        self._watch = _Watch(self.see)
        self._guard = _Guard()
        # Calls on the tape that belong to a part already. A part knows the tape's number at last.
        self._taped = 0
        self._parts: list[tuple[int, int, int]] = []

    def __enter__(self) -> Recorder:
        """Begin."""
        self._arena.begin()
        native.library.tape_begin()
        self._guard.__enter__()
        self._watch.__enter__()
        return self

    def __exit__(self, *failure: object) -> None:
        """End. The tape exists, whether all went well or not."""
        self._watch.__exit__(*failure)
        self._guard.__exit__(*failure)
        self._end_part()
        self.tape = native.library.tape_end()
        replay = native.library.tape_replay
        for index, first, last in self._parts:
            self.entries[index] = _bind(replay, self.tape, first, last)

    def see(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Write one operation of torch down, if it computes, and give memory for its results."""
        with self._watch:
            parts = func.decompose(*args, **kwargs)
        if parts is not NotImplemented:  # its parts have been seen one by one
            return parts
        if write_natively(func, args, kwargs):
            return args[0]
        kind = _kind(func)
        if kind == "value" or (kind == "indexed" and _has_mask(args)):
            raise CannotRecord(f"{func} reads a value, or the shape of its result depends on one")
        if kind == "view":
            return func(*args, **kwargs)
        is_in_place = kind == "in place"
        if is_in_place:
            result = _written(func, args, kwargs)
        else:
            result = tree_map_only(Tensor, self._arena.like, _outline(func, args, kwargs))
        if func in _EMPTY:
            return result
        self._end_part()
        self.torch_operations.append(str(func))
        # What an entry holds must not keep the step's tensors from being dropped.
        args, kwargs, kept = tree_map_only(Tensor, self._arena.lasting, (args, kwargs, result))
        repeat = _bind(func, *args, **kwargs) if is_in_place else _again(func, args, kwargs, kept)
        self.entries.append(repeat)
        return result

    def _end_part(self) -> None:
        """Close the run of kernels that went before."""
        length = native.library.tape_length()
        if length > self._taped:
            self._parts.append((len(self.entries), self._taped, length))
            self.entries.append(_unfinished)
            self._taped = length


class _Watch(TorchDispatchMode):
    """Shows operations to a recorder."""

    def __init__(self, see: Callable[[Any, Sequence[Any], Mapping[str, Any]], Any]) -> None:
        super().__init__()
        self._see = see

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: torch would import its compiler to be told so, 900 modules and 70 MB."""
        return False

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """One operation."""
        return self._see(func, args, kwargs or {})


class _Guard(TorchFunctionMode):
    """Refuses what hands a tensor's values to the host without an operation of torch."""

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """One function."""
        if func in _READS:
            raise CannotRecord(f"Tensor.{func.__name__} reads values")
        return func(*args, **(kwargs or {}))


def _outline(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Results of an operation without values.

    Torch's meta device knows them, and for many operations asks torch's compiler, which it imports
    for that: 900 modules, 130 MB, and a second and a half in which no step is taken. So it is asked
    only for what is not known here.
    """
    tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
    shape: Sequence[int] | None = None
    if torch.Tag.pointwise in func.tags or func in _OF_THE_SAME_SHAPE:
        shape = np.broadcast_shapes(*(each.shape for each in tensors))
    elif func is torch.ops.aten.gather.default:
        shape = args[2].shape
    elif func is torch.ops.aten.topk.default:
        shape = list(args[0].shape)
        shape[args[2] if len(args) > 2 else -1] = args[1]
        args = (args[0], 0, *args[2:])
    if shape is not None:
        args, kwargs = tree_map_only(Tensor, _without_elements, (args, kwargs))
        return tree_map_only(Tensor, partial(_spread, shape=shape), func(*args, **kwargs))
    if all(each.layout is torch.strided for each in tensors):
        args, kwargs = tree_map_only(Tensor, _on_meta, (args, kwargs))
        if _created(func):
            kwargs = {**kwargs, "device": "meta"}
    return func(*args, **kwargs)


def _without_elements(tensor: Tensor) -> Tensor:
    return tensor.new_ones((0,) * tensor.ndim)


def _spread(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    return torch.empty(shape, dtype=tensor.dtype, device="meta")


def _on_meta(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def _written(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """What an operation in place returns: the tensors that it writes to."""
    if torch.Tag.inplace_view in func.tags:
        raise CannotRecord(f"{func} changes the shape of a tensor in place")
    written = [
        kwargs[each.name] if each.name in kwargs else args[index]
        for index, each in enumerate(func._schema.arguments)
        if each.alias_info is not None and each.alias_info.is_write
    ]
    return written[0] if len(func._schema.returns) == 1 else tuple(written)


def _unfinished() -> None:
    raise AssertionError("the recording has not ended")


def _bind(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Entry:
    return lambda: function(*args, **kwargs)


def _again(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> Entry:
    """Compute once more, into the tensors that the result is in."""
    results: tuple[Tensor | None, ...]
    results = (result,) if isinstance(result, Tensor) else tuple(result)
    form = _into(func)
    if form is not None:
        given = {name: value for name, value in kwargs.items() if name in form.kept}
        return _bind(form.overload, *args, **given, **dict(zip(form.outs, results, strict=True)))

    def repeat() -> None:
        for old, new in zip(results, tree_leaves(func(*args, **kwargs)), strict=True):
            if old is not None:  # a result that the operation left undefined
                old.copy_(new)

    return repeat


class _Into(NamedTuple):
    """The form of an operation that writes into given tensors.

    Attributes:
        kept: keywords of the plain form that it takes too.
        outs: names of the tensors that it writes.
    """

    overload: Any
    kept: frozenset[str]
    outs: tuple[str, ...]


@lru_cache(maxsize=1024)
def _kind(func: Any) -> str:
    """'view', 'in place', 'new', 'value', or 'indexed', which is one of the last two."""
    if func is torch.ops.aten.index.Tensor:
        return "indexed"
    if any(tag in func.tags for tag in _VALUE_DEPENDENT):
        return "value"
    schema = func._schema
    if any(each.alias_info is not None and each.alias_info.is_write for each in schema.arguments):
        return "in place"
    if not any(str(each.type) in _TENSORS for each in schema.returns):
        return "value"
    if any(each.alias_info is not None for each in schema.returns):
        return "view"
    return "new"


def _has_mask(args: Sequence[Any]) -> bool:
    """Whether an index is a mask, so that the number of results depends on it."""
    tensors = [each for each in tree_leaves(args[1]) if isinstance(each, Tensor)]
    return any(each.dtype in (torch.bool, torch.uint8) for each in tensors)


@lru_cache(maxsize=1024)
def _into(func: Any) -> _Into | None:
    """The form that writes into given tensors, if there is one."""
    wanted = [each for each in _arguments(func) if each[0] not in _created(func)]
    packet = func.overloadpacket
    for name in packet.overloads():
        overload = getattr(packet, name)
        outs = tuple(each.name for each in overload._schema.arguments if each.is_out)
        if outs and _arguments(overload) == wanted:
            return _Into(overload, frozenset(name for name, _ in wanted), outs)
    return None


def _arguments(func: Any) -> list[tuple[str, str]]:
    """Names and types, without tensors that are only written."""
    return [(each.name, str(each.type)) for each in func._schema.arguments if not each.is_out]


def _created(func: Any) -> frozenset[str]:
    """Arguments that say what kind of tensor to make; the form with a given tensor lacks them."""
    names = {each.name for each in func._schema.arguments}
    return _CREATION if names >= _CREATION else frozenset()
