"""HostPacker: many small host arrays, one copy to the device."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from chiplet.api import Platform

_ALIGNMENT_BYTES = 16

_TORCH_DTYPES = {
    np.dtype(np.int32): torch.int32,
    np.dtype(np.int64): torch.int64,
    np.dtype(np.float32): torch.float32,
    np.dtype(np.bool_): torch.bool,
}


class HostPacker:
    """Collects arrays under names, then sends them to the device in one copy."""

    def __init__(self) -> None:
        self._arrays: dict[str, NDArray[Any]] = {}

    def put(self, name: str, array: NDArray[Any]) -> None:
        """Add an array of int32, int64, float32 or bool."""
        self._arrays[name] = np.ascontiguousarray(array)

    def send(self, platform: Platform) -> dict[str, torch.Tensor]:
        """The arrays as device tensors of the same names, shapes and types."""
        offsets: dict[str, int] = {}
        size = 0
        for name, array in self._arrays.items():
            offsets[name] = size
            size += -(-array.nbytes // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
        staging = np.empty(size, dtype=np.uint8)
        for name, array in self._arrays.items():
            start = offsets[name]
            staging[start : start + array.nbytes] = array.reshape(-1).view(np.uint8)
        on_device = platform.to_device_async(torch.from_numpy(staging))
        return {
            name: on_device[offsets[name] : offsets[name] + array.nbytes]
            .view(_TORCH_DTYPES[array.dtype])
            .view(array.shape)
            for name, array in self._arrays.items()
        }
