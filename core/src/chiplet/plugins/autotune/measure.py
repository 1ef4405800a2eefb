"""Measuring one call of an implementation on a device."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import cycle
from typing import Any

import torch

from chiplet.api import (
    AttentionImpl,
    AttentionRequest,
    LinearImpl,
    LinearRequest,
    Platform,
)
from chiplet.layers.context import cache_dtype, torch_dtype
from chiplet.layers.gated import gated_run
from chiplet.plugins.autotune.tuner import TunedRequest
from chiplet.plugins.self_check.attention import make_batch
from chiplet.plugins.self_check.linear import make_weights
from chiplet.reference.ops import silu_mul

MOST_DECODES = 64
"""More tokens than these are taken for a prompt, fewer for one new token each of many requests."""

DECODE_LENGTH = 512
"""Cached tokens of each request that decodes."""

_BATCH_S = 0.002
_NUM_BATCHES = 3
"""Each implementation is measured twice, with its rivals in between."""

_WEIGHTS_BYTES = 64 << 20
_MOST_COPIES = 8


class DeviceStopwatch:
    """Times calls on a platform; see `chiplet.plugins.autotune.tuner.Stopwatch`."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform

    @torch.inference_mode()
    def measure(self, request: TunedRequest, impl: Any, num_tokens: int) -> float:
        """Microseconds of one call: the best of some batches, so that others' work counts less."""
        device = self._platform.torch_device
        match request:
            case LinearRequest():
                call = _linear_call(request, impl, num_tokens, device)
            case AttentionRequest():
                call = _attention_call(request, impl, num_tokens, device)
        self._seconds(call, 1)
        num_calls = max(1, int(_BATCH_S / max(self._seconds(call, 1), 1e-7)))
        best_s = min(self._seconds(call, num_calls) for _ in range(_NUM_BATCHES))
        return best_s / num_calls * 1e6

    def _seconds(self, call: Callable[[], object], num_calls: int) -> float:
        started_s = time.perf_counter()
        for _ in range(num_calls):
            call()
        self._platform.record_event().wait()
        return time.perf_counter() - started_s


def _linear_call(
    request: LinearRequest, impl: LinearImpl, num_tokens: int, device: torch.device
) -> Callable[[], object]:
    """On several copies of the weights, so that none is found in a cache by the next call."""
    random = torch.Generator().manual_seed(1)
    dtype = torch_dtype(request.dtype)
    x = torch.randn(num_tokens, request.in_features, generator=random).to(dtype).to(device)
    size_bytes = request.in_features * request.out_features * request.dtype.size_bytes
    num_copies = min(_MOST_COPIES, 1 + _WEIGHTS_BYTES // size_bytes)
    weights = make_weights(request, random, device)
    copies = cycle([impl.pack(weights.mapped(torch.clone)) for _ in range(num_copies)])
    # Who has no such call is measured without its gate, which another provider may apply.
    run = (gated_run(impl, silu_mul) if request.is_gated else None) or impl.run
    return lambda: run(x, next(copies))


def _attention_call(
    request: AttentionRequest, impl: AttentionImpl, num_tokens: int, device: torch.device
) -> Callable[[], object]:
    """A whole step of one layer: its plan, and the run."""
    spec, layout, dtype = request.kv, impl.layouts()[0], torch_dtype(request.dtype)
    if num_tokens <= MOST_DECODES:
        starts, lengths = (DECODE_LENGTH,) * num_tokens, (1,) * num_tokens
    else:
        starts, lengths = (0,), (num_tokens,)
    pages = -(-(max(starts) + max(lengths)) // spec.page_size)
    num_pages = pages * len(lengths)
    table = torch.arange(num_pages, dtype=torch.int32).view(len(lengths), pages)
    shape = layout.shape(spec, num_pages + 1)
    kv = torch.zeros(shape, dtype=cache_dtype(spec), device=device)
    batch = make_batch(table, starts, lengths, spec.page_size, device)
    q, k, v = (
        torch.randn(num_tokens, heads, request.head_dim, device=device).to(dtype)
        for heads in (request.num_heads, request.num_kv_heads, request.num_kv_heads)
    )
    return lambda: impl.run(q, k, v, kv, impl.plan(batch, layout))
