"""LayerContext: what every layer needs when it is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch

from chiplet.api import Dtype, KvCoding, KvSpec, OpImpl, OpRequest, QuantizationFormat, WeightScheme
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


def cache_dtype(spec: KvSpec) -> torch.dtype:
    """The torch type of a cache's tensors."""
    return torch.uint8 if spec.coding else _TORCH_DTYPES[spec.dtype]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerContext:
    """What every layer needs when it is made.

    Attributes:
        bindings: gives each layer its implementation.
        dtype: type of weights and activations.
        kv_dtype: type of cached keys and values, unless they are coded.
        kv_coding: how they are coded in eight bits; None keeps them in `kv_dtype`.
        page_size: tokens per KV page.
        max_positions: positions that a sequence may have.
        device: where weights go.
        ranks: those that share the model's layers.
        quantization: how linear layers are quantized while loading; None leaves them plain.
        stored: matrices that the checkpoint holds in a coding, by their tensors' names.
        prefix: what names of the layers made here begin with in the checkpoint.
        gives_rows: rows of the linear weights made here are read too.
        is_gated: the two parts of linear layers made here, equally wide, are a gate and what it is
            for; see `Linear.gated`.
    """

    bindings: Bindings
    dtype: Dtype
    kv_dtype: Dtype
    page_size: int
    max_positions: int
    device: torch.device
    kv_coding: KvCoding | None = None
    ranks: RankGroup = ONE_RANK
    quantization: QuantizationFormat | None = None
    stored: Mapping[str, WeightScheme] = field(default_factory=dict[str, WeightScheme])
    prefix: str = ""
    gives_rows: bool = False
    is_gated: bool = False

    def within(self, name: str) -> LayerContext:
        """The context of a part of the model."""
        return replace(self, prefix=self.name_of(name))

    def giving_rows(self) -> LayerContext:
        """The context of a linear layer whose weight is a table of embeddings too."""
        return replace(self, gives_rows=True)

    def gating(self) -> LayerContext:
        """The context of a linear layer that applies its gate."""
        return replace(self, is_gated=True)

    def name_of(self, name: str) -> str:
        """The whole name of what the context calls so."""
        return f"{self.prefix}.{name}" if self.prefix else name

    def op(self, op: Op, dtype: Dtype | None = None) -> OpImpl:
        """The callable that serves an operation on activations."""
        return self.bindings.op(OpRequest(op=op, dtype=dtype or self.dtype))

    def place(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor on the device in the model's type, contiguous; itself if it is so already.

        Shapes: any, and the same.
        """
        return tensor.to(self.device, torch_dtype(self.dtype)).contiguous()

    def empty(self, *shape: int) -> torch.Tensor:
        """Room for weights. Shapes: `[*shape]` in the model's type, on the device, unset."""
        return torch.empty(shape, dtype=torch_dtype(self.dtype), device=self.device)
