"""Panels: weights packed in the order in which the plugin's own kernels multiply them.

Sixteen output features form a panel; `kernels/blocks.h`, `kernels/word_linear.h` and
`kernels/linear.h` have the layouts. Weights stay in their checkpoint's coding, not a bit is lost.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from chiplet.api import (
    Activations,
    Coding,
    Granularity,
    LinearRequest,
    LinearWeights,
    No,
    WeightScheme,
)
from chiplet_cpu import native
from chiplet_cpu.linear.weight_memory import WeightMemory

PANEL = 16

# The coding words of kernels/table.h beyond those of plain types.
_BLOCK_CODES = {
    Coding.Q4_0: 3,
    Coding.Q4_1: 4,
    Coding.Q8_0: 5,
    Coding.Q4_K: 6,
    Coding.Q5_K: 7,
    Coding.Q6_K: 8,
}
_INT8_CHANNELS = WeightScheme(
    coding=Coding.INT8, granularity=Granularity.CHANNEL, activations=Activations.PER_TOKEN
)
_INT8_CHANNELS_CODE = 9
_INT4_CODES = {32: 10, 64: 11, 128: 12}  # by the size of a group

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


def code_of(scheme: WeightScheme) -> int | None:
    """The coding word of a scheme; None if the kernels do not know it."""
    if scheme == _INT8_CHANNELS:
        return _INT8_CHANNELS_CODE
    if scheme.activations is not Activations.KEPT:
        return None
    if scheme.coding is Coding.INT4 and scheme.granularity is Granularity.GROUP:
        return _INT4_CODES.get(scheme.group_size)
    return _BLOCK_CODES.get(scheme.coding)


def refusal(request: LinearRequest, *, is_rounded: bool) -> No | None:
    """Why a request for coded weights cannot be served from panels; None if it can.

    Args:
        request: for the layer.
        is_rounded: activations are to be rounded, as the scheme asks or as the kernel does.
    """
    scheme = request.scheme
    code = None if scheme is None else code_of(scheme)
    is_int8 = code == _INT8_CHANNELS_CODE
    if scheme is None or code is None or (is_int8 and not is_rounded):
        channels = f"{_INT8_CHANNELS}, " if is_rounded else ""
        served = f"{channels}int4 in groups of 32, 64 or 128, {', '.join(_BLOCK_CODES)}"
        return No.because("scheme", f"{scheme or 'plain'}; serves {served}")
    if is_int8:
        return None
    block = scheme.coding.block
    size = scheme.group_size if block is None else block.elements
    if request.in_features % size:
        return No.because("shape", f"{request.in_features} inputs; blocks have {size}")
    return None


def pack(weights: LinearWeights, memory: WeightMemory) -> Panels:
    """A packed copy, about as large as the weights were."""
    data, coding = _panels(weights, memory)
    bias = weights.bias
    bias_address = 0 if bias is None else bias.data_ptr()
    return Panels(data, bias, coding, data.data_ptr(), data.shape[1], bias_address)


def _panels(weights: LinearWeights, memory: WeightMemory) -> tuple[Tensor, int]:
    """`[num_panels, panel_bytes] uint8`, and the coding word."""
    scheme = weights.scheme
    if scheme is None:
        panels, code = _plain_panels(weights.weight)
        return memory.keep(panels), code
    code = code_of(scheme)
    assert code is not None, scheme
    if scheme.coding is Coding.INT8:
        return memory.keep(_channel_panels(weights)), code
    if scheme.coding is Coding.INT4:
        return memory.keep(_group_panels(weights)), code
    return _block_panels(weights.weight, scheme.coding, code, memory), code


def _plain_panels(weight: Tensor) -> tuple[Tensor, int]:
    """Panels of plain weights `[N, K]`, and their coding.

    float32 weights that came from a bfloat16 checkpoint are packed as bfloat16: not a bit is
    lost, and half of the bytes need not be read.
    """
    if weight.dtype is torch.float32:
        narrow = weight.bfloat16()
        weight = narrow if torch.equal(narrow.float(), weight) else weight
    code = _PLAIN_CODES[weight.dtype]
    if weight.dtype is torch.bfloat16:
        return _word_panels(weight, 2), code
    panels = _by_panel(weight).transpose(1, 2).contiguous()  # [num_panels, K, PANEL]
    return panels.view(torch.uint8).flatten(1), code


def _word_panels(weight: Tensor, per_word: int) -> Tensor:
    """Panels of `[N, K]`, so many neighbouring inputs in a word; the last word is filled up."""
    missing = -weight.shape[1] % per_word
    if missing:
        weight = torch.cat([weight, weight.new_zeros(weight.shape[0], missing)], dim=1)
    words = _by_panel(weight.contiguous()).view(torch.int32)  # [num_panels, PANEL, words]
    return words.transpose(1, 2).contiguous().view(torch.uint8).flatten(1)


def _channel_panels(weights: LinearWeights) -> Tensor:
    """Panels of int8 `[N, K]`: words of four inputs, 128 added, then float32 scales."""
    assert weights.scales is not None
    codes = _word_panels(weights.weight.view(torch.uint8) ^ 0x80, 4)
    scales = _by_panel(weights.scales[:, None]).contiguous().view(torch.uint8).flatten(1)
    return torch.cat([codes, scales], dim=1)


def _group_panels(weights: LinearWeights) -> Tensor:
    """Panels of int4 in groups: per group scales and minima, float32, then its codes."""
    scheme, scales = weights.scheme, weights.scales
    assert scheme is not None
    assert scales is not None
    zeros = 8.0 if weights.zero_points is None else weights.zero_points.float()
    heads = torch.stack([scales, -zeros * scales], dim=1)  # [N, 2, num_groups]
    heads = _by_panel(heads.flatten(1)).unflatten(2, (2, -1))  # [num_panels, PANEL, 2, num_groups]
    heads = heads.permute(0, 3, 2, 1).contiguous().view(torch.uint8).flatten(2)
    quads = _by_panel(_nibbles(weights.weight)).unflatten(2, (-1, 2, 4, 4))
    halves = quads[:, :, :, 0] | (quads[:, :, :, 1] << 4)  # [num_panels, PANEL, K / 32, 4, 4]
    codes = halves.permute(0, 2, 3, 1, 4).flatten(2)  # [num_panels, K / 32, bytes]
    codes = codes.unflatten(1, (heads.shape[1], -1)).flatten(2)
    return torch.cat([heads, codes], dim=2).flatten(1).contiguous()


def _block_panels(blocks: Tensor, coding: Coding, code: int, memory: WeightMemory) -> Tensor:
    """Panels of GGUF blocks `[N, num_blocks * block bytes] uint8`."""
    block = coding.block
    assert block is not None, coding
    num_rows, row_bytes = blocks.shape
    in_features = row_bytes // block.size_bytes * block.elements
    num_panels = -(-num_rows // PANEL)
    size_bytes = native.library.panel_bytes(code, in_features)
    panels = memory.empty(num_panels, size_bytes)
    blocks = blocks.contiguous()
    native.library.pack_panels(code, blocks.data_ptr(), num_rows, in_features, panels.data_ptr())
    return panels


def _nibbles(packed: Tensor) -> Tensor:
    """Low and high half of each byte in turn, `[N, K] uint8`."""
    return torch.stack([packed & 15, packed >> 4], dim=2).flatten(1)


def _by_panel(rows: Tensor) -> Tensor:
    """Rows of output features in panels, the last filled up with zeros."""
    missing = -rows.shape[0] % PANEL
    if missing:
        rows = torch.cat([rows, rows.new_zeros(missing, rows.shape[1])])
    return rows.unflatten(0, (-1, PANEL))
