"""Descriptions of matrices in the device's memory, by which its copy engine moves tiles of them."""

from __future__ import annotations

import ctypes
from functools import lru_cache

import torch
from torch import Tensor

from chiplet_nvidia.cuda_kernels import KernelError, driver, driver_error

_TYPES = {torch.int32: 3, torch.float16: 6, torch.bfloat16: 9}  # CUtensorMapDataType
_PATTERN_OF_128_BYTES = 3  # CU_TENSOR_MAP_SWIZZLE_128B
_PROMOTION = 3  # CU_TENSOR_MAP_L2_PROMOTION_L2_256B
_ALIGNMENT_BYTES = 64


class TensorMap(ctypes.Structure):
    """CUtensorMap."""

    _fields_ = (("opaque", ctypes.c_uint64 * 16),)


def tensor_map(matrix: Tensor, *, rows: int, columns: int) -> TensorMap:
    """The description of a matrix that moves in tiles.

    Tiles of 16-bit numbers lie in the pattern that matrix units read without conflicts of banks,
    tiles of words row by row.

    Args:
        matrix: `[m, k]` in 16 bits or of int32, its last dimension contiguous; rows begin at
            multiples of 16 bytes. What a tile has beyond it is zero when it is read, and left
            alone when written.
        rows: of a tile, 256 at most.
        columns: of a tile: 64 of 16 bits, or as many as are wanted, at most 256.

    Raises:
        KernelError: the driver refuses it.
    """
    num_rows, num_columns = matrix.shape
    return _encoded(
        matrix.data_ptr(), matrix.dtype, num_rows, num_columns, matrix.stride(0), rows, columns
    )


@lru_cache(maxsize=4096)
def _encoded(
    address: int,
    dtype: torch.dtype,
    num_rows: int,
    num_columns: int,
    stride: int,
    rows: int,
    columns: int,
) -> TensorMap:
    memory = ctypes.create_string_buffer(ctypes.sizeof(TensorMap) + _ALIGNMENT_BYTES)
    found = TensorMap.from_buffer(memory, -ctypes.addressof(memory) % _ALIGNMENT_BYTES)
    code = driver().cuTensorMapEncodeTiled(
        ctypes.byref(found),
        _TYPES[dtype],
        2,
        ctypes.c_void_p(address),
        (ctypes.c_uint64 * 2)(num_columns, num_rows),
        (ctypes.c_uint64 * 1)(stride * dtype.itemsize),
        (ctypes.c_uint32 * 2)(columns, rows),
        (ctypes.c_uint32 * 2)(1, 1),
        0,
        0 if dtype is torch.int32 else _PATTERN_OF_128_BYTES,
        _PROMOTION,
        0,
    )
    if code:
        text = f"a matrix of {num_rows} x {num_columns}, rows {stride} apart, in {rows} x {columns}"
        raise KernelError(f"The driver cannot describe {text}: {driver_error(code)}.")
    return found
