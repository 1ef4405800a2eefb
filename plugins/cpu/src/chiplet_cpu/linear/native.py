"""Linear layers by the plugin's own kernels, on weights that stay in their checkpoint's coding.

Sixteen output features form a panel, whose weights lie in the order in which they are multiplied;
`kernels/linear.h` has the layouts. Activations are kept: weights are widened in registers, and
sums are float32.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from chiplet.api import (
    Activations,
    BuildContext,
    Coding,
    Dtype,
    Feature,
    LinearRequest,
    LinearWeights,
    No,
    Tier,
    Verdict,
    Yes,
)
from chiplet_cpu import native

_PANEL = 16
_GROUP = 32

# The coding words of kernels/table.h beyond those of plain types.
_CODING_CODES = {Coding.Q4_0: 3, Coding.Q4_1: 4, Coding.Q8_0: 5}

_PLAIN_CODES = {
    torch.float32: native.DTYPE_CODES["float32"],
    torch.bfloat16: native.DTYPE_CODES["bfloat16"],
    torch.float16: native.DTYPE_CODES["float16"],
}


class Panels(NamedTuple):
    """Packed weights.

    Attributes:
        data: `[num_panels, panel_bytes] uint8`.
        address, panel_bytes, bias_address: of the tensors, which are kept alive here.
    """

    data: Tensor
    bias: Tensor | None
    coding: int
    address: int
    panel_bytes: int
    bias_address: int


class NativeLinear:
    """y = x W^T + b on panels."""

    def __init__(self, request: LinearRequest) -> None:
        self._run = native.library.linear
        self._code = native.DTYPE_CODES[request.dtype]
        self._in_features = request.in_features
        self._out_features = request.out_features

    def pack(self, weights: LinearWeights) -> Panels:
        """A packed copy, of the same size as the checkpoint's coding."""
        if weights.scheme is None:
            data, coding = _plain_panels(weights.weight)
        else:
            data = _block_panels(weights.weight, weights.scheme.coding)
            coding = _CODING_CODES[weights.scheme.coding]
        bias = weights.bias
        bias_address = 0 if bias is None else bias.data_ptr()
        return Panels(data, bias, coding, data.data_ptr(), data.shape[1], bias_address)

    def run(self, x: Tensor, packed: Panels) -> Tensor:
        """The product; see `chiplet.api.LinearImpl.run`."""
        rows = x.shape[0]
        out = torch.empty((rows, self._out_features), dtype=x.dtype)
        self._run(
            self._code,
            x.data_ptr(),
            x.stride(0),
            rows,
            packed.coding,
            packed.address,
            packed.panel_bytes,
            self._in_features,
            self._out_features,
            packed.bias_address,
            out.data_ptr(),
        )
        return out


def _plain_panels(weight: Tensor) -> tuple[Tensor, int]:
    """Panels of plain weights `[N, K]`, and their coding.

    float32 weights that came from a bfloat16 checkpoint are packed as bfloat16: not a bit is
    lost, and half of the bytes need not be read.
    """
    if weight.dtype is torch.float32:
        narrow = weight.bfloat16()
        weight = narrow if torch.equal(narrow.float(), weight) else weight
    panels = _by_panel(weight).transpose(1, 2).contiguous()  # [num_panels, K, _PANEL]
    return panels.view(torch.uint8).flatten(1), _PLAIN_CODES[weight.dtype]


def _block_panels(blocks: Tensor, coding: Coding) -> Tensor:
    """Panels of GGUF blocks `[N, num_groups * block bytes] uint8`."""
    block = coding.block
    assert block is not None, coding
    groups = _by_panel(blocks).unflatten(2, (-1, block.size_bytes)).transpose(1, 2)
    head_bytes = 4 if coding is Coding.Q4_1 else 2  # scale, and minimum where there is one
    head = groups[..., :head_bytes].unflatten(3, (-1, 2)).transpose(2, 3).flatten(2)
    values = groups[..., head_bytes:]  # [num_panels, num_groups, _PANEL, bytes]
    if coding is not Coding.Q8_0:
        values = torch.cat([values & 15, values >> 4], dim=-1)
    values = values.transpose(2, 3)  # [num_panels, num_groups, _GROUP, _PANEL]
    if coding is not Coding.Q8_0:
        half = _PANEL // 2
        values = values[..., :half] | (values[..., half:] << 4)
    return torch.cat([head, values.flatten(2)], dim=-1).flatten(1).contiguous()


def _by_panel(rows: Tensor) -> Tensor:
    """Rows of output features in panels, the last filled up with zeros."""
    missing = -rows.shape[0] % _PANEL
    if missing:
        rows = torch.cat([rows, rows.new_zeros(missing, rows.shape[1])])
    return rows.unflatten(0, (-1, _PANEL))


def _plain_score(dtype: Dtype) -> int:
    """Before oneDNN where it was measured to be faster: `benchmarks/cpu_notes.md`."""
    is_measured = dtype is Dtype.FLOAT32 and native.instruction_set() == "avx2"
    return Tier.VENDOR + 10 if is_measured else Tier.VENDOR - 10


class NativeLinearProvider:
    """Serves plain weights, and GGUF's Q4_0, Q4_1 and Q8_0 as they are."""

    name = "native"
    accepts = frozenset({Feature.BIAS, Feature.BLOCK_WEIGHTS})

    def assess(self, request: LinearRequest) -> Verdict:
        """Yes where the kernels could be built and know the coding."""
        if not native.is_available():
            return No.because("build", native.explanation(), native.remedy())
        scheme = request.scheme
        if scheme is None:
            return Yes(_plain_score(request.dtype), f"plain panels, {native.instruction_set()}")
        if scheme.coding not in _CODING_CODES or scheme.activations is not Activations.KEPT:
            served = ", ".join(_CODING_CODES)
            return No.because("scheme", f"{scheme}; serves {served}, activations kept")
        if request.in_features % _GROUP:
            return No.because("shape", f"{request.in_features} inputs; groups have {_GROUP}")
        return Yes(Tier.VENDOR, f"{scheme} in panels, {native.instruction_set()}")

    def build(self, request: LinearRequest, context: BuildContext) -> NativeLinear:
        """The product on panels."""
        return NativeLinear(request)
