"""Products with weights of four bits for many rows, on Hopper: `kernels/int4_wgmma.cu`."""

from __future__ import annotations

import ctypes
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from chiplet_nvidia.cuda_kernels import CudaKernel
from chiplet_nvidia.linear.int4_layout import TILE, UNIT
from chiplet_nvidia.linear.tiles import Problem, schedule_of, workspace
from chiplet_nvidia.tensor_maps import tensor_map

CAPABILITY = (9, 0)
"""The only one with these instructions."""

_SOURCE = "int4_wgmma.cu"
_FEATURES = 64  # of a warpgroup
_HALF = 64  # inputs that the copy engine brings as one tile
_PER_WORD = 8
_SHARED_BYTES = 232448  # of a block
_ALIGNED_BYTES = 1024
_BARRIER_BYTES = 16  # of a stage
_MAX_STAGES = 12
_LONG_STORE = 64
_SCALE_BYTES = 64  # of a tile's group


class WideTiling(NamedTuple):
    """How the kernel is cut.

    Attributes:
        rows: of x in a tile.
        consumers: warpgroups of a block, 64 features each.
    """

    rows: int
    consumers: int


class Int4Wgmma:
    """y = x W^T + b by one cut of the kernel."""

    def __init__(self, tiling: WideTiling, dtype: torch.dtype, group_size: int) -> None:
        """Know what to compile; nothing is compiled yet.

        Args:
            tiling: the cut.
            dtype: of x, bias and y.
            group_size: inputs that share a scale.
        """
        self._tiling, self._group_size = tiling, group_size
        self._store_rows = min(tiling.rows, _LONG_STORE)
        self._tiles = _FEATURES // TILE * tiling.consumers
        scale_bytes = self._tiles * (UNIT // group_size) * _SCALE_BYTES
        x_bytes = tiling.rows * UNIT * dtype.itemsize
        stage_bytes = x_bytes + self._tiles * TILE * UNIT // 2 + scale_bytes + _BARRIER_BYTES
        store_bytes = 2 * tiling.consumers * self._store_rows * _FEATURES * dtype.itemsize
        fixed_bytes = store_bytes + _ALIGNED_BYTES
        stages = min(_MAX_STAGES, (_SHARED_BYTES - fixed_bytes) // stage_bytes)
        defines = {
            "IS_BFLOAT16": int(dtype is torch.bfloat16),
            "GROUP": group_size,
            "ROWS": tiling.rows,
            "CONSUMERS": tiling.consumers,
            "STAGES": stages,
            "CHUNK": self._store_rows,
        }
        self.kernel = CudaKernel(
            _SOURCE,
            "int4_wgmma",
            capability=CAPABILITY,
            defines=defines,
            threads=128 * (tiling.consumers + 1),
            shared_bytes=fixed_bytes + stages * stage_bytes,
        )

    def run(self, x: Tensor, weight: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:
        """The product.

        Shapes: x `[rows, K]`, contiguous, its inputs in the kernel's order; weight, scales and bias
        as in `PackedInt4`; returns `[rows, N]`.

        Raises:
            KernelError: it does not compile, or the driver refuses it.
        """
        tiling, (num_rows, inputs) = self._tiling, x.shape
        features = weight.shape[0] * TILE
        y = torch.empty(num_rows, features, dtype=x.dtype, device=x.device)
        problem = Problem(
            row_tiles=-(-num_rows // tiling.rows),
            feature_tiles=-(-weight.shape[0] // self._tiles),
            steps=inputs // UNIT,
        )
        schedule, blocks = schedule_of(problem, self._most_blocks)
        shares, arrivals = workspace(x.device)
        words = weight.view(torch.int32).view(weight.shape[0], -1)
        self.kernel.launch(
            (blocks, 1),
            (
                tensor_map(words, rows=self._tiles, columns=TILE * UNIT // _PER_WORD),
                tensor_map(
                    scales.flatten(1), rows=self._tiles, columns=TILE * (UNIT // self._group_size)
                ),
                tensor_map(x, rows=tiling.rows, columns=_HALF),
                tensor_map(y, rows=self._store_rows, columns=_FEATURES),
                bias,
                shares,
                arrivals,
                schedule,
                ctypes.c_int(num_rows),
                ctypes.c_int(features),
            ),
        )
        return y

    @cached_property
    def _most_blocks(self) -> int:
        return self.kernel.most_clusters(1)
