"""Floors: the least time that a step can take, from bytes and operations it cannot do without."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch

from chiplet.api import Dtype, Platform
from chiplet.config import ModelConfig

_BYTES_PER_WEIGHT = {"int8": 1.0, "fp8": 1.0, "int4": 0.5 + 5 / 128}
"""By quantization format; of int4 a scale and a zero point for 128 weights are counted in."""

_ENOUGH_S = 0.01
"""A product or a copy that takes this long measures the device and not its launch."""

_REPEATS = 10


@dataclass(frozen=True, slots=True)
class Ceilings:
    """What the device does at best, measured through torch.

    Attributes:
        bytes_per_s: of a copy, bytes read and bytes written counted.
        flops_per_s: of a square matrix product of random numbers in the model's type.
    """

    bytes_per_s: float
    flops_per_s: float

    def of_ranks(self, num_ranks: int) -> Ceilings:
        """What so many ranks do together, each as fast as this one was while the others waited."""
        return Ceilings(self.bytes_per_s * num_ranks, self.flops_per_s * num_ranks)


@dataclass(frozen=True, slots=True)
class Work:
    """What a step cannot do without.

    Attributes:
        num_bytes: weights read once, and the keys and values of every context.
        flops: of products with weights and of attention, 2 for a multiplication and its sum.
    """

    num_bytes: float
    flops: float

    def floor_s(self, ceilings: Ceilings) -> float:
        """The larger of the time to move the bytes and the time to compute."""
        return max(self.num_bytes / ceilings.bytes_per_s, self.flops / ceilings.flops_per_s)


def measure_ceilings(platform: Platform, dtype: torch.dtype) -> Ceilings:
    """The device's rates now; takes a second and some memory, which it gives back."""
    device = platform.torch_device

    def copying(size: int) -> tuple[Callable[[], object], float]:
        source = torch.ones(size * size * 32, dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        return lambda: target.copy_(source), 2.0 * source.numel()

    def multiplying(size: int) -> tuple[Callable[[], object], float]:
        left, right = (torch.randn(size, size, dtype=dtype, device=device) for _ in range(2))
        out = torch.empty_like(left)
        return lambda: torch.mm(left, right, out=out), 2.0 * size**3

    # A copy is to miss every cache: half a gigabyte at least.
    return Ceilings(
        _rate(platform, copying, smallest=4096), _rate(platform, multiplying, smallest=512)
    )


def decode_work(
    model: ModelConfig,
    dtype: Dtype,
    quantization: str,
    *,
    num_requests: int,
    context: int,
    head: str = "none",
) -> Work:
    """One token for each request, each seeing `context` tokens; `head` is the head's format."""
    used_bytes = _body_weights(model, num_requests) * _bytes_per_weight(dtype, quantization)
    used_bytes += _head_weights(model) * _bytes_per_weight(dtype, head)
    kv_bytes = num_requests * context * kv_bytes_per_token(model, dtype)
    return Work(used_bytes + kv_bytes, num_requests * _token_flops(model, context, heads=1.0))


def prefill_work(
    model: ModelConfig,
    dtype: Dtype,
    quantization: str,
    *,
    num_requests: int,
    context: int,
    head: str = "none",
) -> Work:
    """Whole prompts, without cached prefixes; `head` is the head's format."""
    tokens = num_requests * context
    weights = _body_weights(model, tokens) * _bytes_per_weight(dtype, quantization)
    # A token sees half of its prompt on average, and one row of logits is computed for each.
    flops = tokens * _token_flops(model, context / 2, heads=1 / context)
    # Of the last layer all tokens but the one have keys and values only.
    needless = _layer_products(model, context / 2) - _key_weights(model)
    flops -= 2 * (tokens - num_requests) * needless
    return Work(weights + _head_weights(model) * _bytes_per_weight(dtype, head), flops)


def kv_bytes_per_token(model: ModelConfig, dtype: Dtype) -> int:
    """Keys and values of all layers."""
    return 2 * model.num_layers * model.num_kv_heads * model.head_dim * dtype.size_bytes


def _bytes_per_weight(dtype: Dtype, quantization: str) -> float:
    return _BYTES_PER_WEIGHT.get(quantization, float(dtype.size_bytes))


def _attention_weights(model: ModelConfig) -> int:
    return 2 * model.hidden_size * model.num_heads * model.head_dim + _key_weights(model)


def _key_weights(model: ModelConfig) -> int:
    """Of a layer's keys and values."""
    return 2 * model.hidden_size * model.num_kv_heads * model.head_dim


def _body_weights(model: ModelConfig, num_tokens: int) -> float:
    """Weights of all layers that so many tokens touch; of experts, those likely to be chosen."""
    width = 3.0 * model.hidden_size
    if model.experts is None:
        mlp = width * model.intermediate_size
    else:
        experts = model.experts
        left_out = (1 - experts.top_k / experts.num_experts) ** num_tokens
        mlp = width * experts.intermediate_size * experts.num_experts * (1 - left_out)
        mlp += model.hidden_size * experts.num_experts
    return model.num_layers * (_attention_weights(model) + mlp)


def _head_weights(model: ModelConfig) -> int:
    return model.hidden_size * model.vocab_size


def _token_flops(model: ModelConfig, seen: float, *, heads: float) -> float:
    """Of one token that sees some tokens, and of its share of logits."""
    return 2 * (model.num_layers * _layer_products(model, seen) + heads * _head_weights(model))


def _layer_products(model: ModelConfig, seen: float) -> float:
    """Multiplications of a layer for one token that sees some tokens."""
    width = 3.0 * model.hidden_size
    if model.experts is None:
        mlp = width * model.intermediate_size
    else:
        mlp = width * model.experts.intermediate_size * model.experts.top_k
        mlp += model.hidden_size * model.experts.num_experts
    scores = 2.0 * seen * model.num_heads * model.head_dim
    return _attention_weights(model) + mlp + scores


def _rate(
    platform: Platform, make: Callable[[int], tuple[Callable[[], object], float]], *, smallest: int
) -> float:
    """Amount per second of a piece of work, made larger until it takes long enough."""
    size = smallest
    while True:
        work, amount = make(size)
        _seconds(platform, work)  # the first call may load a library
        elapsed_s = _seconds(platform, work)
        if elapsed_s >= _ENOUGH_S or size >= 8192:
            return amount / median(_seconds(platform, work) for _ in range(_REPEATS))
        size *= 2


def _seconds(platform: Platform, work: Callable[[], object]) -> float:
    platform.record_event().wait()
    start_s = time.perf_counter()
    work()
    platform.record_event().wait()
    return time.perf_counter() - start_s
