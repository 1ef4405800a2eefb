"""`fake` as a device type of torch: tensors that no kernel of the host can read.

Each operation is queued: what it returns has a shape at once and values later. Shapes come from
torch's meta device; an operation whose shape depends on values waits for them, as on any device.
"""

# What torch has for devices written in Python is private and not typed.
# pyright: reportPrivateUsage=false, reportPrivateImportUsage=false, reportAttributeAccessIssue=false
# pyright: reportUntypedBaseClass=false, reportIncompatibleMethodOverride=false

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any

import torch
from torch._C import _acc

from chiplet_fake.hardware.memory import MEMORY, Block
from chiplet_fake.hardware.stream import STREAM

_HOST, _META = torch.device("cpu"), torch.device("meta")


class _Module:
    """What torch asks of `torch.fake`."""

    is_initialized = is_available = staticmethod(lambda: True)
    _is_in_bad_fork = staticmethod(lambda: False)
    current_device = staticmethod(lambda: 0)
    device_count = staticmethod(lambda: 1)

    @staticmethod
    def manual_seed_all(seed: int) -> None:
        """Nothing is drawn by the device itself: its operations draw as the host's do."""


class _Guard(_acc.DeviceGuard):
    """Says which device is current: there is one."""

    def type_(self) -> Any:
        """The device type that torch keeps for backends from outside."""
        return torch._C._autograd.DeviceType.PrivateUse1


def _register() -> torch.device:
    torch.utils.rename_privateuse1_backend("fake")
    torch._register_device_module("fake", _Module)
    _acc.register_python_privateuseone_device_guard(_Guard())
    return torch.device("fake", 0)


DEVICE = _register()
"""The only device."""


class DeviceTensor(torch.Tensor):
    """A tensor on the device.

    Attributes:
        memory: the same tensor as the device sees it; only queued work may touch it.
        block: what it lies in.
    """

    memory: torch.Tensor
    block: Block

    __torch_function__ = torch._C._disabled_torch_function_impl  # pyright: ignore[reportAssignmentType]

    @classmethod
    def wrap(cls, memory: torch.Tensor, block: Block) -> DeviceTensor:
        """A tensor that lies in a block."""
        tensor: DeviceTensor = torch.Tensor._make_wrapper_subclass(
            cls,
            memory.shape,
            strides=memory.stride(),
            storage_offset=memory.storage_offset(),
            dtype=memory.dtype,
            device=DEVICE,
        )
        tensor.memory, tensor.block = memory, block
        return tensor

    @classmethod
    def allocate(
        cls, shape: Sequence[int], stride: Sequence[int], dtype: torch.dtype
    ) -> DeviceTensor:
        """A tensor that holds anything."""
        num_elements = 1 + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
        num_bytes = dtype.itemsize * (0 if 0 in shape else num_elements)
        block = MEMORY.allocate(num_bytes, STREAM.pool)
        with torch.inference_mode():
            memory = torch.empty(0, dtype=dtype).set_(block.storage, 0, tuple(shape), tuple(stride))
        return cls.wrap(memory, block)

    def __repr__(self, **_: Any) -> str:
        """The values; waits for them."""
        return f"fake:0 {self.cpu()!r}"

    def tolist(self) -> Any:
        """Plain numbers, which torch gives of its own classes only."""
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run an operation of torch."""
        return _run(func, args, kwargs or {})


def _run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    kind = _kind(func)
    if kind == "composite":
        return func.decompose(*args, **kwargs)
    if func is torch.ops.aten.copy_.default:
        return _copy(*args, **kwargs)
    if func is torch.ops.aten._to_copy.default and kwargs.get("device", DEVICE) == _HOST:
        return _to_host(*args, **kwargs)
    inside = (
        _each(args, _in_memory),
        {name: _each(each, _in_memory) for name, each in kwargs.items()},
    )
    call = partial(func, *inside[0], **inside[1])
    if kind == "view":
        return _view(call, args[0])
    if kind == "write":
        STREAM.queue(call)
        return _written(func, args, kwargs)
    return _compute(call)


@lru_cache(maxsize=4096)
def _kind(func: Any) -> str:
    """How an operation is run."""
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    if has_kernel(func.name(), "CompositeImplicitAutograd"):
        return "composite"
    if any(each.alias_info and each.alias_info.is_write for each in func._schema.arguments):
        return "write"
    return "view" if any(each.alias_info for each in func._schema.returns) else "compute"


def _view(call: partial[Any], base: DeviceTensor) -> Any:
    """Another look at the same memory: nothing to queue."""
    # A view of a plain tensor must be a plain one, for torch counts its versions.
    with torch.inference_mode(base.is_inference()):
        return _each(call(), lambda each: DeviceTensor.wrap(each, base.block))


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What an operation returns that writes into its arguments: these."""
    arguments = func._schema.arguments
    values = dict(zip((each.name for each in arguments), args, strict=False)) | kwargs
    written = [
        values[each.name] for each in arguments if each.alias_info and each.alias_info.is_write
    ]
    return written[0] if len(written) == 1 else tuple(written)


def _compute(call: partial[Any]) -> Any:
    """Fresh tensors, whose values come when the queue has got there."""
    keywords = {name: _each(each, _without_values) for name, each in call.keywords.items()}
    try:
        shapes = call.func(*_each(call.args, _without_values), **keywords)
    except (NotImplementedError, RuntimeError):
        shapes = None  # it depends on values, or is wrong and says so below
    if not (torch.is_tensor(shapes) or (isinstance(shapes, tuple | list) and shapes)):
        STREAM.wait()
        with torch.inference_mode():
            return _each(call(), _moved)
    outputs = _each(shapes, _allocated)
    STREAM.queue(partial(_fill, _each(outputs, _in_memory), call))
    return outputs


def _fill(memory: Any, call: Callable[[], Any]) -> None:
    results = call()
    if torch.is_tensor(memory):
        memory, results = [memory], [results]
    for target, result in zip(memory, results, strict=True):
        target.copy_(result)


def _copy(target: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    """Between host and device, or within it; a copy that may not lag waits."""
    is_within = isinstance(target, DeviceTensor) and isinstance(source, DeviceTensor)
    to, origin = (
        each.memory if isinstance(each, DeviceTensor) else each for each in (target, source)
    )
    STREAM.queue(lambda: to.copy_(origin))
    if not (non_blocking or is_within):
        STREAM.wait()
    return target


def _to_host(tensor: DeviceTensor, *, non_blocking: bool = False, **options: Any) -> torch.Tensor:
    if not non_blocking:
        STREAM.wait()
        return torch.ops.aten._to_copy.default(tensor.memory, **options)
    dtype = options.get("dtype") or tensor.dtype
    # Garbage until the copy has run: whoever reads too early shall see it.
    host = torch.full(tensor.shape, -77 if dtype.is_signed else 77, dtype=dtype)
    STREAM.queue(lambda: host.copy_(tensor.memory))
    return host


def _each(values: Any, change: Callable[[Any], Any]) -> Any:
    """Arguments or results with every tensor and device changed."""
    if isinstance(values, torch.Tensor | torch.device):
        return change(values)
    if isinstance(values, tuple | list):
        return type(values)([_each(each, change) for each in values])
    return values


def _in_memory(value: Any) -> Any:
    """A tensor as the device sees it, which is a host here.

    Raises:
        RuntimeError: the tensor is on the host, where the device cannot read.
    """
    if isinstance(value, DeviceTensor):
        return value.memory
    # A number without dimensions travels with the launch, as everywhere in torch.
    if isinstance(value, torch.Tensor) and value.dim():
        raise RuntimeError(
            f"A host tensor of shape {tuple(value.shape)} was given to fake:0, which cannot read "
            "the host's memory. Bring it over with Platform.to_device_async."
        )
    return value if isinstance(value, torch.Tensor) else _HOST


def _without_values(value: Any) -> Any:
    """Shape and type of a tensor; its values are of no concern."""
    if not isinstance(value, torch.Tensor):
        return _META
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=_META)


def _allocated(shape: torch.Tensor) -> DeviceTensor:
    return DeviceTensor.allocate(shape.shape, shape.stride(), shape.dtype)


def _moved(host: Any) -> DeviceTensor:
    tensor = _allocated(host)
    STREAM.queue(lambda: tensor.memory.copy_(host))
    return tensor


def _empty(size: Sequence[int], dtype: torch.dtype | None = None, **_: Any) -> DeviceTensor:
    return _allocated(torch.empty(size, dtype=dtype, device=_META))


def _empty_strided(
    size: Sequence[int], stride: Sequence[int], dtype: torch.dtype | None = None, **_: Any
) -> DeviceTensor:
    return DeviceTensor.allocate(size, stride, dtype or torch.get_default_dtype())


def _copy_from(
    source: torch.Tensor, target: torch.Tensor, non_blocking: bool = False
) -> torch.Tensor:
    return _copy(target, source, non_blocking)


def _made_on_host(make: Any, *args: Any, **options: Any) -> DeviceTensor:
    return _moved(make(*args, **(options | {"device": _HOST})))


_LIBRARY = torch.library.Library("aten", "IMPL")
_LIBRARY.impl("empty.memory_format", _empty, "PrivateUse1")
_LIBRARY.impl("empty_strided", _empty_strided, "PrivateUse1")
_LIBRARY.impl("_copy_from", _copy_from, "PrivateUse1")
for _name in ("default", "start", "start_step"):
    _make = getattr(torch.ops.aten.arange, _name)
    _LIBRARY.impl(_make.name(), partial(_made_on_host, _make), "PrivateUse1")
