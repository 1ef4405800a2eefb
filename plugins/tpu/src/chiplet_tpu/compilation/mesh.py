"""The devices that one program spans, and tensors with another value on each.

Inside the program a tensor has the shape that one rank sees. Outside, an array over all devices is
the ranks' values side by side, along the first dimension; the tensor that stands for it shows the
first rank's part.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from torch.utils.weak import WeakIdKeyDictionary

from chiplet.api import DeviceState
from chiplet_tpu.compilation import arrays

RANKS = "ranks"
"""Name of the mesh's axis, for collectives."""

SPLIT = PartitionSpec(RANKS)
WHOLE = PartitionSpec()


class RankMesh:
    """One device per rank."""

    def __init__(self, devices: Sequence[jax.Device]) -> None:
        self.devices = list(devices)
        self.mesh = Mesh(np.array(self.devices), (RANKS,), axis_types=(AxisType.Auto,))
        self.replicated = NamedSharding(self.mesh, WHOLE)
        self.split = NamedSharding(self.mesh, SPLIT)
        self._joined = WeakIdKeyDictionary()
        self._replicated = WeakIdKeyDictionary()
        self._has_spread_state = False

    @property
    def size(self) -> int:
        """Number of ranks."""
        return len(self.devices)

    def join(self, shards: Sequence[torch.Tensor]) -> torch.Tensor:
        """One tensor of a value per rank. Shapes: one dimension or more, all alike."""
        parts = [
            jax.device_put(arrays.array_of(shard), device)
            for shard, device in zip(shards, self.devices, strict=True)
        ]
        shape = (self.size * parts[0].shape[0], *parts[0].shape[1:])
        whole = jax.make_array_from_single_device_arrays(shape, self.split, parts)
        tensor = arrays.wrap(parts[0])
        self._joined[tensor] = whole
        return tensor

    def spread(self, tensor: torch.Tensor) -> tuple[jax.Array, PartitionSpec]:
        """A constant's array over all devices, and how it lies there."""
        if tensor in self._joined:
            return self._joined[tensor], SPLIT
        if tensor not in self._replicated:
            array = jax.device_put(arrays.array_of(tensor), self.replicated)
            self._replicated[tensor] = array
        return self._replicated[tensor], WHOLE

    def spread_state(self, state: DeviceState) -> None:
        """Bring the state to all devices: tables alike, pages of each rank's own, empty.

        Done once, before the first step runs. Mutates: the state's tensors.
        """
        if self._has_spread_state:
            return
        self._has_spread_state = True
        for table in state[1:]:
            arrays.assign(table, jax.device_put(arrays.array_of(table), self.replicated))
        if self.size > 1:
            for pages in state.kv:
                local = arrays.array_of(pages)
                shape = (self.size * local.shape[0], *local.shape[1:])
                arrays.assign(pages, jnp.zeros(shape, local.dtype, device=self.split))
