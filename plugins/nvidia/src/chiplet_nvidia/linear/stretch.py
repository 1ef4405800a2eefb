"""What lies between two attentions, for one token, in one persistent kernel on Hopper GPUs."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, NoReturn

import torch
from torch import Tensor

from chiplet.api import (
    Activations,
    BuildContext,
    Coding,
    DeviceProbe,
    Dtype,
    Feature,
    Granularity,
    LinearRequest,
    No,
    Product,
    StoredLinear,
    Stretch,
    StretchRequest,
    WeightScheme,
)
from chiplet_nvidia.cuda_kernels import CudaKernel, KernelError, has_compiler
from chiplet_nvidia.gpus import capability_of
from chiplet_nvidia.linear.int4 import Int4Linear
from chiplet_nvidia.linear.int4_layout import TILE

CAPABILITY = (9, 0)
_SOURCE, _NAME = "stretch.cu", "stretch"

WARPS = 16
"""That multiply, of a block."""

_FINISHERS = 4  # warps beside them
_REGISTERS = 72
_STEP_BYTES = 1024  # of weights, of a warp
_MOST_STEPS = 8  # of a warp for one output; they are unrolled
_SHARED_BYTES = 227 * 1024
_ALIGNMENT_BYTES = 16


class Cut(NamedTuple):
    """How a coding's kernel is cut; see `kernels/stretch.cu`.

    Attributes:
        code: its name in the source.
        step_inputs: inputs of a warp's step.
        least_steps: of a warp for one output, if inputs are shared.
        depth: steps on their way to each warp.
    """

    code: int
    step_inputs: int
    least_steps: int
    depth: int


PLAIN = Cut(0, 256, 4, 10)
E4M3 = Cut(1, 512, 2, 8)
INT4 = Cut(2, 128, 1, 4)
"""Depths are the best of a sweep on an H200: benchmarks/nvidia_notes.md."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What the kernel is compiled for.

    Attributes:
        cut: of the weights' coding.
        is_bfloat16: activations are bfloat16, else float16.
        group: inputs that share a scale, of four bits.
        hidden, inner, heads: widths of the residual, within the feed-forward layer, of attention.
        following: outputs of the last product; 0 without it.
        blocks: multiprocessors.
    """

    cut: Cut
    is_bfloat16: bool
    group: int
    hidden: int
    inner: int
    heads: int
    following: int
    blocks: int

    @property
    def refusal(self) -> str:
        """Why the kernel does not serve it; empty if it does."""
        outputs = (self.hidden, self.inner, self.following)
        multiple = TILE if self.cut is INT4 else 2
        if any(each % multiple for each in outputs):
            return f"outputs {outputs} are no multiples of {multiple}"
        for inputs in (self.hidden, self.inner, self.heads):
            if inputs % self.cut.step_inputs or self._steps(inputs) > _MOST_STEPS:
                return f"{inputs} inputs are not dealt evenly to {WARPS} warps"
        if self.shared_bytes > _SHARED_BYTES:
            return f"a block needs {self.shared_bytes} bytes of shared memory"
        return ""

    def _steps(self, inputs: int) -> int:
        """Of a warp for one output."""
        steps, shares = inputs // self.cut.step_inputs, WARPS
        while shares > 1 and (steps % shares or steps // shares < self.cut.least_steps):
            shares //= 2
        return steps // shares

    @property
    def values(self) -> int:
        """Most sums that a block has in a product, gates and what they are for."""
        unit, gates = (TILE, TILE) if self.cut is INT4 else (2, 1)
        plain = max(self.hidden, self.following)
        return max(
            2 * gates * -(-self.inner // gates // self.blocks),
            unit * -(-plain // unit // self.blocks),
        )

    @property
    def shared_bytes(self) -> int:
        """Of a block: the ring of weights, then what the source's struct `Shared` has."""
        scales = self.cut.step_inputs // self.group * 64 if self.cut is INT4 else 0
        ring = WARPS * self.cut.depth * (_STEP_BYTES + scales)
        inputs = max(self.hidden, self.inner, self.heads)
        floats = WARPS * (self.values + 2) + (inputs // self.group if self.cut is INT4 else 1)
        return ring + -(-4 * floats // 16) * 16 + 2 * inputs

    @property
    def defines(self) -> dict[str, int]:
        """The source's constants."""
        return {
            "CODING": self.cut.code,
            "IS_BFLOAT16": int(self.is_bfloat16),
            "HIDDEN": self.hidden,
            "INNER": self.inner,
            "HEADS": self.heads,
            "QKV": self.following,
            "BLOCKS": self.blocks,
            "WARPS": WARPS,
            "DEPTH": self.cut.depth,
            "VALUES": self.values,
            "GROUP": self.group,
            "REGISTERS": _REGISTERS,
        }


class _Arguments(ctypes.Structure):
    """The source's struct of this name."""

    _fields_ = (
        ("weights", ctypes.c_void_p * 4),
        ("scales", ctypes.c_void_p * 4),
        ("attention", ctypes.c_void_p),
        ("residual", ctypes.c_void_p),
        ("norms", ctypes.c_void_p * 2),
        ("bias", ctypes.c_void_p),
        ("middle", ctypes.c_void_p),
        ("inner", ctypes.c_void_p),
        ("total", ctypes.c_void_p),
        ("following", ctypes.c_void_p),
        ("meeting", ctypes.c_void_p),
        ("epsilon", ctypes.c_float),
    )


class _Stored(NamedTuple):
    """Weights of a product in a form that the kernel reads."""

    scheme: WeightScheme | None
    weight: Tensor
    scales: Tensor | None
    bias: Tensor | None


class _Meeting(NamedTuple):
    """The kernel of a shape, and the number by which its blocks wait for one another.

    All stretches of a shape share it: they run one after another on one stream.
    """

    kernel: CudaKernel
    number: Tensor


class OneTokenStretch:
    """See `chiplet.api.Stretch`."""

    max_rows = 1

    def __init__(
        self, request: StretchRequest, shape: Shape, stored: Sequence[_Stored], meeting: _Meeting
    ) -> None:
        self._shape, self._meeting = shape, meeting
        # Whoever packed them may drop them; the kernel has addresses alone.
        self._kept = (request, stored)
        self._eps = request.eps
        self._weights = [each.weight.data_ptr() for each in stored]
        self._scales = [0 if each.scales is None else each.scales.data_ptr() for each in stored]
        norms = (request.norm, request.following_norm)
        self._norms = [0 if each is None else each.data_ptr() for each in norms]
        bias = stored[-1].bias if request.following is not None else None
        self._bias = 0 if bias is None else bias.data_ptr()

    def run(self, attended: Tensor, residual: Tensor) -> tuple[Tensor, Tensor | None]:
        """The total and the product that follows."""
        shape = self._shape
        middle, total = torch.empty_like(residual), torch.empty_like(residual)
        inner = residual.new_empty(1, shape.inner)
        following = residual.new_empty(1, shape.following) if shape.following else None
        arguments = _Arguments(
            weights=(ctypes.c_void_p * 4)(*self._weights),
            scales=(ctypes.c_void_p * 4)(*self._scales),
            attention=attended.data_ptr(),
            residual=residual.data_ptr(),
            norms=(ctypes.c_void_p * 2)(*self._norms),
            bias=self._bias,
            middle=middle.data_ptr(),
            inner=inner.data_ptr(),
            total=total.data_ptr(),
            following=0 if following is None else following.data_ptr(),
            meeting=self._meeting.number.data_ptr(),
            epsilon=self._eps,
        )
        self._meeting.kernel.launch((shape.blocks, 1), (arguments,))
        return total, following


class StretchOnlyProvider:
    """Serves no layer by itself, but what lies between two attentions: a `StretchProvider`."""

    name = "stretch"
    accepts: frozenset[Feature] = frozenset()

    def __init__(self, device: DeviceProbe) -> None:
        self._capability = capability_of(device)
        self._cores = int(device.facts["cores"])
        self._meetings: dict[Shape, _Meeting] = {}

    def assess(self, request: LinearRequest) -> No:
        """No: layers are served together."""
        return No.because("alone", "serves the layers between two attentions together")

    def build(self, request: LinearRequest, context: BuildContext) -> NoReturn:
        """Never called, since nothing is served alone."""
        raise NotImplementedError("serves the layers between two attentions together")

    def stretch(self, request: StretchRequest, context: BuildContext) -> Stretch | None:
        """One launch for one token; None unless all weights lie in a way that the kernel reads."""
        if self._capability != CAPABILITY or not has_compiler():
            return None
        stored = [_stored(each) for each in request.products]
        found = [each for each in stored if each is not None]
        if len(found) < len(stored):
            return None
        shape = shape_of(request, found, self._cores)
        if shape is None or shape.refusal or not _are_aligned(request, found):
            return None
        if shape not in self._meetings:
            # The last layer's has nothing after it; it is wanted soon.
            _kernel(replace(shape, following=0)).compile_soon()
            self._meetings[shape] = _meeting(shape, context.torch_device)
        return OneTokenStretch(request, shape, found, self._meetings[shape])


def shape_of(request: StretchRequest, stored: Sequence[_Stored], cores: int) -> Shape | None:
    """What to compile; None where weights, biases or types are others than the kernel's."""
    first, dtype = stored[0].scheme, request.out.request.dtype
    products = request.products
    if any(each.scheme != first or each.weight.device.type != "cuda" for each in stored):
        return None
    if dtype not in (Dtype.BFLOAT16, Dtype.FLOAT16):
        return None
    if any(each.bias is not None for each in stored[:3]) or not products[1].request.is_gated:
        return None
    cut = _cut_of(first)
    if cut is None:
        return None
    return Shape(
        cut=cut,
        is_bfloat16=dtype is Dtype.BFLOAT16,
        group=first.group_size if first is not None and cut is INT4 else 128,
        hidden=request.out.request.out_features,
        inner=request.down.request.in_features,
        heads=request.out.request.in_features,
        following=0 if request.following is None else request.following.request.out_features,
        blocks=cores,
    )


def _cut_of(scheme: WeightScheme | None) -> Cut | None:
    if scheme is None:
        return PLAIN
    if scheme.activations is not Activations.KEPT:
        return None
    if (scheme.coding, scheme.granularity) == (Coding.FP8_E4M3, Granularity.CHANNEL):
        return E4M3
    is_int4 = (scheme.coding, scheme.granularity) == (Coding.INT4, Granularity.GROUP)
    return INT4 if is_int4 and scheme.group_size in (32, 64, 128) else None


def _stored(product: Product) -> _Stored | None:
    """The weights as this plugin's int4 kernels have them, or as they came."""
    impl, packed = product.impl, product.packed
    if isinstance(impl, Int4Linear):
        return _Stored(product.request.scheme, packed.weight, packed.scales, packed.bias)
    weights = impl.stored(packed) if isinstance(impl, StoredLinear) else None
    if weights is None or _cut_of(weights.scheme) not in (PLAIN, E4M3):
        return None
    return _Stored(weights.scheme, weights.weight, weights.scales, weights.bias)


def _are_aligned(request: StretchRequest, stored: Sequence[_Stored]) -> bool:
    """Whether threads can load 16 bytes at a time of everything."""
    norms = (request.norm, request.following_norm)
    tensors = [*(t for each in stored for t in (each.weight, each.scales)), *norms]
    return all(
        each.is_contiguous() and each.data_ptr() % _ALIGNMENT_BYTES == 0
        for each in tensors
        if each is not None
    )


def _kernel(shape: Shape) -> CudaKernel:
    return CudaKernel(
        _SOURCE,
        _NAME,
        capability=CAPABILITY,
        defines=shape.defines,
        threads=32 * (WARPS + _FINISHERS),
        shared_bytes=shape.shared_bytes,
        is_cooperative=True,
    )


def _meeting(shape: Shape, device: torch.device) -> _Meeting:
    """The shape's kernel, compiled, whose blocks all fit on the device at once."""
    kernel = _kernel(shape)
    if kernel.most_blocks() < 1:
        raise KernelError(f"{_NAME}: a multiprocessor has no room for a block.")
    return _Meeting(kernel, torch.zeros(1, dtype=torch.int32, device=device))
