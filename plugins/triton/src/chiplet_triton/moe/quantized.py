"""Experts whose weights have eight or four bits."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from chiplet.api import ExpertWeights, MoeRequest
from chiplet_triton.device import DeviceTraits, launch_options
from chiplet_triton.kernels.grouped_linear import quantized_experts_kernel
from chiplet_triton.linear.rows import CodedRows
from chiplet_triton.linear.schemes import QuantizedWeights, coding_of, packed
from chiplet_triton.moe.cut import Cut, Pairs, Tiling


class PackedExperts(NamedTuple):
    """Both matrices of all experts, one above the other."""

    gate_up: QuantizedWeights
    down: QuantizedWeights


class QuantizedExperts:
    """The two products, of weights as they are stored."""

    def __init__(self, request: MoeRequest, traits: DeviceTraits) -> None:
        assert request.scheme is not None
        self._request = request
        self._overlap = traits.can_overlap
        self._in_place = traits.reads_operands_in_place
        self._launch = launch_options(traits)
        self._coding = coding_of(request.scheme)
        self._group = request.scheme.group_size
        self._rows = CodedRows.of(request.scheme, traits)

    def pack(self, weights: ExpertWeights) -> PackedExperts:
        """See `chiplet_triton.linear.schemes.packed`."""
        assert weights.gate_up_coded is not None
        assert weights.down_coded is not None
        return PackedExperts(packed(weights.gate_up_coded), packed(weights.down_coded))

    def tiling(self, average: float) -> Tiling:
        """By how many pairs an expert has on average."""
        block_k = self._group if self._coding == "int4" else 128
        if self._coding == "eight" and self._rows is None and self._request.dtype.size_bytes == 4:
            block_k = 64
        # Operands in registers leave no room for more pairs of what must be unpacked.
        is_tight = self._coding != "eight" and not self._in_place
        pairs = 16 if average <= 8 else 32 if average <= 32 or is_tight else 64
        return Tiling(pairs, 64, block_k, 4, 3)

    def gate_up(self, x: Tensor, packed: PackedExperts, pairs: Pairs, cut: Cut) -> Tensor:
        """The middle of each pair, in sorted order: `[num_pairs, intermediate_size]`."""
        width = self._request.intermediate_size
        middle = torch.empty(len(pairs.order), width, dtype=x.dtype, device=x.device)
        self._product(x, packed.gate_up, pairs, middle, cut, is_gated=True)
        return middle

    def down(self, middle: Tensor, packed: PackedExperts, pairs: Pairs, cut: Cut) -> Tensor:
        """What each pair adds to its token, in the order of tokens.

        Shapes: `[num_pairs, hidden_size] float32`.
        """
        hidden = self._request.hidden_size
        added = torch.empty(len(middle), hidden, dtype=torch.float32, device=middle.device)
        self._product(middle, packed.down, pairs, added, cut, is_gated=False)
        return added

    def _product(
        self,
        x: Tensor,
        packed: QuantizedWeights,
        pairs: Pairs,
        out: Tensor,
        cut: Cut,
        *,
        is_gated: bool,
    ) -> None:
        request, num_inputs = self._request, x.shape[1]
        num_outputs = 2 * request.intermediate_size if is_gated else request.hidden_size
        codes, scales = (
            (x, packed.scales) if self._rows is None else self._rows.coded(x, packed.beside)
        )
        quantized_experts_kernel[cut.grid(num_outputs)](
            codes,
            scales,
            packed.weight,
            packed.scales,
            packed.beside,
            pairs.order,
            pairs.starts,
            pairs.weights,
            out,
            request.num_experts,
            request.top_k,
            codes.stride(0),
            K=num_inputs,
            N=num_outputs,
            GROUP=self._group,
            CODING=self._coding,
            IS_CODED=self._rows is not None,
            IS_GATED=is_gated,
            OVERLAP=self._overlap,
            **cut.constants(),
            **self._launch,
        )
