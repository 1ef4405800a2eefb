"""Linear layers by cuBLAS, through torch, and of many rows by the algorithm that proves fastest."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from chiplet.api import (
    BuildContext,
    Dtype,
    Feature,
    LinearImpl,
    LinearRequest,
    LinearWeights,
    Tier,
    Verdict,
    Yes,
)
from chiplet_nvidia.linear.cublaslt import ALIGNMENT_BYTES, Algorithm, CublasLt, LtProduct
from chiplet_nvidia.linear.trials import Trials

_log = logging.getLogger(__name__)

_TRIED_ROWS = 2048
"""From so many rows on a product takes long enough to be timed among others."""

_TYPES = {Dtype.BFLOAT16: torch.bfloat16, Dtype.FLOAT16: torch.float16}


class Weights(NamedTuple):
    """Weight `[out_features, in_features]` and bias `[out_features]`."""

    weight: Tensor
    bias: Tensor | None


class CublasLinear:
    """y = x W^T + b."""

    def pack(self, weights: LinearWeights) -> Weights:
        """Keeps both tensors."""
        return Weights(weights.weight, weights.bias)

    def stored(self, packed: Weights) -> LinearWeights:
        """See `chiplet.api.StoredLinear`."""
        return LinearWeights(scheme=None, weight=packed.weight, bias=packed.bias)

    def run(self, x: Tensor, packed: Weights) -> Tensor:
        """The product; see `chiplet.api.LinearImpl.run`."""
        return F.linear(x, packed.weight, packed.bias)


class _Tried(NamedTuple):
    """Trials of torch's choice, number 0, and of algorithms."""

    trials: Trials
    algorithms: Sequence[Algorithm]


class TriedLinear:
    """y = x W^T; of many rows in the way that trials find, for each power of two of them."""

    def __init__(self, product: LtProduct) -> None:
        """Take what can run a given algorithm."""
        self._product = product
        self._tried: dict[int, _Tried] = {}

    def pack(self, weights: LinearWeights) -> Weights:
        """Keeps both tensors."""
        return Weights(weights.weight, weights.bias)

    def run(self, x: Tensor, packed: Weights) -> Tensor:
        """The product; see `chiplet.api.LinearImpl.run`."""
        num_rows, weight = x.shape[0], packed.weight
        if num_rows < _TRIED_ROWS or not _can_be_timed(x, weight):
            return F.linear(x, weight)
        tried = self._tried.get(num_rows.bit_length())
        if tried is None:
            algorithms = self._product.named(x)
            new_event = partial(torch.cuda.Event, enable_timing=True)
            tried = _Tried(Trials(1 + len(algorithms), new_event), algorithms)
            self._tried[num_rows.bit_length()] = tried
        trials, algorithms = tried

        def work(way: int) -> Tensor:
            if way == 0:
                return F.linear(x, weight)
            return self._product.run(x, weight, algorithms[way - 1])

        return trials.run(work)


class CublasProvider:
    """Serves every type that torch multiplies on a GPU, below kernels made for few rows."""

    name = "cublas"
    accepts = frozenset({Feature.BIAS})

    def __init__(self) -> None:
        self._lt: CublasLt | None = None

    def assess(self, request: LinearRequest) -> Verdict:
        """Always yes: weights in a coding are a feature that it does not list."""
        return Yes(Tier.GENERIC - 10, "weights as they came")

    def build(self, request: LinearRequest, context: BuildContext) -> LinearImpl:
        """The plain product, or one that chooses among algorithms in 16 bits without a bias."""
        dtype = _TYPES.get(request.dtype)
        if dtype is None or request.has_bias:
            return CublasLinear()
        try:
            lt = self._lt = self._lt or CublasLt(context.torch_device)
        except OSError as error:
            _log.info("Products of many rows are left to torch alone: %s", error)
            return CublasLinear()
        return TriedLinear(LtProduct(lt, dtype, request.out_features, request.in_features))


def _can_be_timed(x: Tensor, weight: Tensor) -> bool:
    """Whether algorithms serve the tensors, and nothing is being recorded."""
    is_aligned = _is_aligned(x) and _is_aligned(weight)
    return is_aligned and not torch.cuda.is_current_stream_capturing()


def _is_aligned(x: Tensor) -> bool:
    """Whether addresses are as heuristics assume, of rows too."""
    row_bytes = x.stride(0) * x.element_size()
    return x.data_ptr() % ALIGNMENT_BYTES == 0 and row_bytes % ALIGNMENT_BYTES == 0
