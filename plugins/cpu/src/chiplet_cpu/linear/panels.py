"""Panels: weights packed in the order in which the plugin's own kernels multiply them.

Sixteen output features form a panel; `kernels/blocks.h` and `kernels/linear.h` have the layouts.
Weights stay in their checkpoint's coding, not a bit is lost.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from chiplet.api import Activations, Coding, LinearRequest, LinearWeights, No
from chiplet_cpu import native

PANEL = 16

# The coding words of kernels/table.h beyond those of plain types.
CODING_CODES = {
    Coding.Q4_0: 3,
    Coding.Q4_1: 4,
    Coding.Q8_0: 5,
    Coding.Q4_K: 6,
    Coding.Q5_K: 7,
    Coding.Q6_K: 8,
}

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


def pack(weights: LinearWeights) -> Panels:
    """A packed copy, about as large as the weights were."""
    if weights.scheme is None:
        data, coding = _plain_panels(weights.weight)
    else:
        coding = CODING_CODES[weights.scheme.coding]
        data = _block_panels(weights.weight, weights.scheme.coding)
    bias = weights.bias
    bias_address = 0 if bias is None else bias.data_ptr()
    return Panels(data, bias, coding, data.data_ptr(), data.shape[1], bias_address)


def refusal(request: LinearRequest) -> No | None:
    """Why a request for coded weights cannot be served from panels; None if it can."""
    scheme = request.scheme
    if (
        scheme is None
        or scheme.coding not in CODING_CODES
        or scheme.activations is not Activations.KEPT
    ):
        served = ", ".join(CODING_CODES)
        return No.because("scheme", f"{scheme or 'plain'}; serves {served}, activations kept")
    block = scheme.coding.block
    assert block is not None
    if request.in_features % block.elements:
        text = f"{request.in_features} inputs; blocks have {block.elements}"
        return No.because("shape", text)
    return None


def _plain_panels(weight: Tensor) -> tuple[Tensor, int]:
    """Panels of plain weights `[N, K]`, and their coding.

    float32 weights that came from a bfloat16 checkpoint are packed as bfloat16: not a bit is
    lost, and half of the bytes need not be read.
    """
    if weight.dtype is torch.float32:
        narrow = weight.bfloat16()
        weight = narrow if torch.equal(narrow.float(), weight) else weight
    panels = _by_panel(weight).transpose(1, 2).contiguous()  # [num_panels, K, PANEL]
    return panels.view(torch.uint8).flatten(1), _PLAIN_CODES[weight.dtype]


def _block_panels(blocks: Tensor, coding: Coding) -> Tensor:
    """Panels of GGUF blocks `[N, num_blocks * block bytes] uint8`."""
    block = coding.block
    assert block is not None, coding
    num_rows, row_bytes = blocks.shape
    in_features = row_bytes // block.size_bytes * block.elements
    code = CODING_CODES[coding]
    num_panels = -(-num_rows // PANEL)
    size_bytes = native.library.panel_bytes(code, in_features)
    panels = torch.empty(num_panels, size_bytes, dtype=torch.uint8)
    blocks = blocks.contiguous()
    native.library.pack_panels(code, blocks.data_ptr(), num_rows, in_features, panels.data_ptr())
    return panels


def _by_panel(rows: Tensor) -> Tensor:
    """Rows of output features in panels, the last filled up with zeros."""
    missing = -rows.shape[0] % PANEL
    if missing:
        rows = torch.cat([rows, rows.new_zeros(missing, rows.shape[1])])
    return rows.unflatten(0, (-1, PANEL))
