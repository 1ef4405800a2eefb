"""A linear layer on panels."""

from __future__ import annotations

import torch
from torch import Tensor

from chiplet.api import LinearRequest, LinearWeights
from chiplet_cpu import native
from chiplet_cpu.linear.panels import PANEL, Panels, pack
from chiplet_cpu.linear.weight_memory import WeightMemory
from chiplet_cpu.ops.native import make_silu_mul

_FEW_ROWS = 2
"""So few are bound by reading panels, which is fastest one after another: the panels of a gate and
of what it is for lie apart. Measured: `benchmarks/cpu_notes.md`."""


class PanelLinear:
    """y = x W^T + b on panels.

    Attributes:
        is_rounded: activations are rounded to eight bits.
    """

    def __init__(self, request: LinearRequest, memory: WeightMemory, *, is_rounded: bool) -> None:
        """Take the layer, and memory for what is packed.

        Args:
            request: for the layer.
            memory: shared with other layers.
            is_rounded: activations are rounded to eight bits.
        """
        self.is_rounded = is_rounded
        self._run = native.library.int8_linear if is_rounded else native.library.linear
        self._memory = memory
        self._code = native.DTYPE_CODES[request.dtype]
        self._dtype: torch.dtype = getattr(torch, request.dtype)
        self._in_features = request.in_features
        self._out_features = request.out_features
        self._silu_mul = make_silu_mul(self._code)

    def pack(self, weights: LinearWeights) -> Panels:
        """A packed copy; see `chiplet.api.LinearImpl.pack`."""
        return pack(weights, self._memory)

    def run(self, x: Tensor, packed: Panels) -> Tensor:
        """The product; see `chiplet.api.LinearImpl.run`."""
        return self._multiply(x, packed, self._out_features, 0)

    def run_silu_mul(self, x: Tensor, packed: Panels) -> Tensor:
        """The product with its gate; see `chiplet.api.GatedLinear.run_silu_mul`."""
        width = self._out_features // 2
        is_mixed = width % PANEL != 0  # a panel holds gates and others
        if is_mixed or x.shape[0] <= _FEW_ROWS:
            return self._silu_mul(self.run(x, packed))
        return self._multiply(x, packed, width, 1)

    def _multiply(self, x: Tensor, packed: Panels, width: int, is_gated: int) -> Tensor:
        """Shapes: returns `[rows, width]`."""
        rows = x.shape[0]
        out = torch.empty((rows, width), dtype=x.dtype)
        self._run(
            self._code,
            x.data_ptr(),
            x.stride(0),
            rows,
            packed.coding,
            packed.address,
            packed.panel_bytes,
            self._in_features,
            width,
            packed.bias_address,
            is_gated,
            out.data_ptr(),
        )
        return out

    def rows(self, row_ids: Tensor, packed: Panels) -> Tensor:
        """Rows of the weight; see `chiplet.api.RowSource.rows`."""
        count = row_ids.shape[0]
        out = torch.empty((count, self._in_features), dtype=self._dtype)
        native.library.panel_rows(
            self._code,
            row_ids.data_ptr(),
            count,
            packed.coding,
            packed.address,
            packed.panel_bytes,
            self._in_features,
            out.data_ptr(),
        )
        return out
