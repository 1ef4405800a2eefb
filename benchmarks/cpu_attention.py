"""Times the CPU plugin's attention against the machine's own limits, in one run.

    python benchmarks/cpu_attention.py [--threads 2] [--rounds 7]

Layers of SmolLM2-135M: 9 query heads share 3 key heads of 64. Decoding is given as a share of the
read bandwidth (keys and values once for each request that has them), prompts as a share of the
rate of a bfloat16 product. Layers are taken in turn, so that pages come from memory, not cache;
cases take turns too, so that a noisy neighbour hurts all of them alike. With one thread the clock
is that of the processor, which a neighbour does not stop.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch

from chiplet.api import (
    AttentionProvider,
    AttentionRequest,
    BuildContext,
    DeviceProbe,
    Dtype,
    KvCoding,
    KvSpec,
)
from chiplet.layers.context import cache_dtype
from chiplet.testing.conformance.attention_inputs import AttentionCase, make_batch
from chiplet_cpu import native
from chiplet_cpu.attention.native import NativeAttentionProvider
from chiplet_cpu.attention.paged import PagedSdpaProvider
from chiplet_cpu.platform import CpuPlatform

HEADS, KV_HEADS, HEAD_DIM, PAGE_SIZE = 9, 3, 64, 16
Clock = Callable[[], float]
CACHE_BYTES = 256 << 20
"""Layers are added until their pages take more than any cache."""


class Timed(NamedTuple):
    """One call of one layer, what it reads, and what it multiplies."""

    name: str
    run: Callable[[int], object]
    num_layers: int
    read_bytes: int
    flops: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    native.set_threads(options.threads)
    clock = time.process_time if options.threads == 1 else time.perf_counter
    bandwidth, rate = read_bandwidth(options.rounds, clock), product_rate(options.rounds, clock)
    print(f"{native.instruction_set()}, {options.threads} threads; ", end="")
    print(f"reads {bandwidth:.1f} GB/s, multiplies {rate:.0f} GFLOP/s in bfloat16")
    print("case                                     us/layer   GB/s  of read  GFLOP/s  of product")
    cases = make_cases()
    for case, seconds in zip(cases, alternate(cases, options.rounds, clock), strict=True):
        reads, flops = case.read_bytes / seconds / 1e9, case.flops / seconds / 1e9
        print(
            f"{case.name:40} {seconds * 1e6:8.1f} {reads:6.1f} {reads / bandwidth:8.0%}"
            f" {flops:8.1f} {flops / rate:11.0%}"
        )


def read_bandwidth(rounds: int, clock: Clock) -> float:
    """GB/s of a sum over 512 MB, the best of several."""
    numbers = torch.ones(128 << 20)
    return max(numbers.nbytes / timed(numbers.sum, clock) / 1e9 for _ in range(rounds))


def product_rate(rounds: int, clock: Clock) -> float:
    """GFLOP/s of oneDNN's bfloat16 product, the best of several."""
    x = torch.randn(1024, 1024).bfloat16()
    return max(2 * 1024**3 / timed(lambda: x @ x, clock) / 1e9 for _ in range(rounds))


def timed(call: Callable[[], object], clock: Clock) -> float:
    start = clock()
    call()
    return clock() - start


def make_cases() -> list[Timed]:
    own, sdpa = NativeAttentionProvider(), PagedSdpaProvider()
    shared = AttentionCase("32 x (1,024 shared + 48)", (1,) * 32, (1072,) * 32, 64)
    return [
        make_case(own, AttentionCase("1 x 1,024", (1,), (1024,))),
        make_case(own, AttentionCase("8 x 200", (1,) * 8, (200,) * 8)),
        make_case(own, AttentionCase("64 x 200", (1,) * 64, (200,) * 64)),
        make_case(own, AttentionCase("64 x 1,024", (1,) * 64, (1024,) * 64)),
        make_case(own, AttentionCase("64 x 1,024", (1,) * 64, (1024,) * 64), KvCoding.INT8),
        make_case(own, AttentionCase("64 x 1,024", (1,) * 64, (1024,) * 64), KvCoding.FP8),
        make_case(own, AttentionCase("32 x 1,072, none shared", (1,) * 32, (1072,) * 32)),
        make_case(own, shared),
        make_case(own, AttentionCase("prompt of 128", (128,), (128,))),
        make_case(own, AttentionCase("prompt of 1,024", (1024,), (1024,))),
        make_case(own, AttentionCase("chunk of 512 behind 2,048", (512,), (2560,))),
        make_case(sdpa, AttentionCase("64 x 200", (1,) * 64, (200,) * 64)),
        make_case(sdpa, AttentionCase("prompt of 1,024", (1024,), (1024,))),
    ]


def make_case(
    provider: AttentionProvider, case: AttentionCase, coding: KvCoding | None = None
) -> Timed:
    spec = KvSpec(
        num_kv_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        page_size=PAGE_SIZE,
        dtype=Dtype.BFLOAT16,
        coding=coding,
    )
    request = AttentionRequest(
        group="global",
        num_heads=HEADS,
        num_kv_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        scale=HEAD_DIM**-0.5,
        dtype=Dtype.BFLOAT16,
        kv=spec,
    )
    device = DeviceProbe(device_type="cpu", index=0, name="A CPU", total_memory_bytes=1)
    impl = provider.build(request, BuildContext(CpuPlatform(device)))
    (layout,) = impl.layouts()
    batch, num_pages = make_batch(case, PAGE_SIZE, torch.Generator().manual_seed(0))
    plan = impl.plan(batch, layout)
    layers = make_layers(layout.shape(spec, num_pages), cache_dtype(spec))
    q, k, v = (
        torch.randn(batch.num_tokens, heads, HEAD_DIM).bfloat16()
        for heads in (HEADS, KV_HEADS, KV_HEADS)
    )
    prefix = case.num_shared_pages * PAGE_SIZE
    tokens = sum(case.kv_lengths) - prefix * (len(case.kv_lengths) - 1) * bool(prefix)
    # A causal chunk sees its own tokens by half.
    seen = sum(
        queries * (length - queries / 2 + 0.5)
        for queries, length in zip(case.query_lengths, case.kv_lengths, strict=True)
    )
    return Timed(
        f"{provider.name} {coding or 'bfloat16'}, {case.name}",
        lambda layer: impl.run(q, k, v, layers[layer], plan),
        len(layers),
        tokens * 2 * KV_HEADS * spec.row_bytes,
        int(seen * HEADS * HEAD_DIM * 4),
    )


def make_layers(shape: tuple[int, ...], dtype: torch.dtype) -> list[torch.Tensor]:
    """Zeros, in huge pages where the system grants them."""
    size = torch.Size(shape).numel() * dtype.itemsize
    layers: list[torch.Tensor] = []
    while len(layers) * size < CACHE_BYTES:
        kv = torch.empty(shape, dtype=dtype)
        native.library.use_huge_pages(kv.data_ptr(), size)
        layers.append(kv.zero_())
    return layers


def run_layers(case: Timed, num_layers: int) -> None:
    for layer in range(num_layers):
        case.run(layer)


def alternate(cases: list[Timed], rounds: int, clock: Clock) -> list[float]:
    """Median seconds per layer of each case, one after another in every round."""
    seconds: list[list[float]] = [[] for _ in cases]
    with torch.inference_mode():
        for _ in range(rounds):
            for case, found in zip(cases, seconds, strict=True):
                num = min(case.num_layers, 16)
                found.append(timed(partial(run_layers, case, num), clock) / num)
    return [statistics.median(each) for each in seconds]


if __name__ == "__main__":
    main()
