"""LayerContext: what every layer needs when it is made."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from chiplet.api import Dtype, OpImpl, OpRequest, QuantizationFormat
from chiplet.api.ops import Op
from chiplet.layers.bindings import Bindings
from chiplet.parallel.group import ONE_RANK, RankGroup

_TORCH_DTYPES = {
    Dtype.FLOAT32: torch.float32,
    Dtype.FLOAT16: torch.float16,
    Dtype.BFLOAT16: torch.bfloat16,
}


def torch_dtype(dtype: Dtype) -> torch.dtype:
    """The torch name of a type."""
    return _TORCH_DTYPES[dtype]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerContext:
    """What every layer needs when it is made.

    Attributes:
        bindings: gives each layer its implementation.
        dtype: type of weights and activations.
        kv_dtype: type of cached keys and values.
        page_size: tokens per KV page.
        max_positions: positions that a sequence may have.
        device: where weights go.
        ranks: those that share the model's layers.
        quantization: how linear layers are quantized while loading; None leaves them plain.
    """

    bindings: Bindings
    dtype: Dtype
    kv_dtype: Dtype
    page_size: int
    max_positions: int
    device: torch.device
    ranks: RankGroup = ONE_RANK
    quantization: QuantizationFormat | None = None

    def op(self, op: Op, dtype: Dtype | None = None) -> OpImpl:
        """The callable that serves an operation on activations."""
        return self.bindings.op(OpRequest(op=op, dtype=dtype or self.dtype))

    def place(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor on the device in the model's type, contiguous; itself if it is so already."""
        return tensor.to(self.device, torch_dtype(self.dtype)).contiguous()

    def empty(self, *shape: int) -> torch.Tensor:
        """Room for weights."""
        return torch.empty(shape, dtype=torch_dtype(self.dtype), device=self.device)
