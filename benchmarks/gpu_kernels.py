"""Kernels of the Triton and NVIDIA plugins on a GPU, one by one, beside their floors.

    python benchmarks/gpu_kernels.py [attention] [linear]

Shapes are those of Llama-3.1-8B in bfloat16. Each kernel is recorded in a graph of several calls
over inputs that together do not fit the cache; the median of replays counts. The floor is bytes by
the bandwidth of a copy, or operations by the rate of a large product, both measured first.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from statistics import median

import torch

from chiplet.api import (
    AttentionRequest,
    BuildContext,
    Dtype,
    ForwardBatch,
    KvSpec,
    LinearRequest,
    LinearWeights,
)
from chiplet.cli.bench.floors import measure_ceilings
from chiplet_nvidia.gpus import probe_gpus
from chiplet_nvidia.platform import CudaPlatform
from chiplet_triton.attention.paged import TritonAttentionProvider
from chiplet_triton.attention.tiling import Tiling
from chiplet_triton.device import traits_of
from chiplet_triton.linear.skinny import TritonLinearProvider

HEADS, KV_HEADS, DIM, PAGE = 32, 8, 128, 16
LINEAR = {
    "qkv": (4096, 6144),
    "o": (4096, 4096),
    "gate_up": (4096, 28672),
    "down": (14336, 4096),
    "head": (4096, 128256),
}
ROWS = (1, 4, 16, 64, 128, 256)
TILINGS = (
    Tiling(128, 64, 8, 3),
    Tiling(128, 64, 8, 2),
    Tiling(128, 128, 8, 2),
    Tiling(64, 64, 4, 2),
    Tiling(64, 64, 4, 3),
    Tiling(64, 128, 4, 2),
)
DEVICE = torch.device("cuda", 0)


def graph_us(calls: Sequence[Callable[[], object]], replays: int = 12) -> float:
    """Median microseconds of one call."""
    for call in calls:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(replays + 1)]
    graph.replay()
    for mark in marks:
        mark.record()
        graph.replay()
    torch.cuda.synchronize()
    times = [before.elapsed_time(after) for before, after in pairwise(marks)]
    return median(times) * 1e3 / len(calls)


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.bfloat16, device=DEVICE)


def decode_batch(num_requests: int, context: int) -> ForwardBatch:
    pages = -(-context // PAGE)
    table = torch.randperm(num_requests * pages, device=DEVICE).int().view(num_requests, pages)
    last = table[:, (context - 1) // PAGE] * PAGE + (context - 1) % PAGE
    return ForwardBatch(
        num_decodes=num_requests,
        token_ids=torch.zeros(num_requests, dtype=torch.int32, device=DEVICE),
        positions=torch.full((num_requests,), context - 1, dtype=torch.int32, device=DEVICE),
        kv_rows=last.contiguous(),
        query_starts=torch.arange(num_requests + 1, dtype=torch.int32, device=DEVICE),
        kv_lengths=torch.full((num_requests,), context, dtype=torch.int32, device=DEVICE),
        # As in a bucket for 2,048 tokens.
        page_table=torch.nn.functional.pad(table, (0, 2048 // PAGE - pages)).contiguous(),
        logit_rows=torch.arange(num_requests, dtype=torch.int32, device=DEVICE),
        lengths_host=None,
    )


def prompt_batch(num_tokens: int) -> ForwardBatch:
    pages = -(-num_tokens // PAGE)
    table = torch.randperm(pages, device=DEVICE).int().view(1, pages)
    at = torch.arange(num_tokens, device=DEVICE)
    return ForwardBatch(
        num_decodes=0,
        token_ids=torch.zeros(num_tokens, dtype=torch.int32, device=DEVICE),
        positions=at.int(),
        kv_rows=(table[0, at // PAGE] * PAGE + at % PAGE).int(),
        query_starts=torch.tensor([0, num_tokens], dtype=torch.int32, device=DEVICE),
        kv_lengths=torch.tensor([num_tokens], dtype=torch.int32, device=DEVICE),
        page_table=table,
        logit_rows=torch.zeros(1, dtype=torch.int32, device=DEVICE),
        lengths_host=None,
    )


def attention(platform: CudaPlatform, bandwidth: float, flops: float) -> None:
    spec = KvSpec(num_kv_heads=KV_HEADS, head_dim=DIM, page_size=PAGE, dtype=Dtype.BFLOAT16)
    request = AttentionRequest(
        group="global",
        num_heads=HEADS,
        num_kv_heads=KV_HEADS,
        head_dim=DIM,
        scale=DIM**-0.5,
        dtype=Dtype.BFLOAT16,
        kv=spec,
    )
    (probe, *_) = probe_gpus()
    impl = TritonAttentionProvider(traits_of(probe)).build(request, BuildContext(platform))
    (layout,) = impl.layouts()

    def calls(batch: ForwardBatch, copies: int) -> list[Callable[[], object]]:
        pages = int(batch.page_table.max()) + 1
        plan = impl.plan(batch, layout)
        qkv = normal(batch.num_tokens, HEADS + 2 * KV_HEADS, DIM)
        q, k = qkv[:, :HEADS].contiguous(), qkv[:, HEADS : HEADS + KV_HEADS].contiguous()
        v = qkv[:, HEADS + KV_HEADS :]
        caches = [normal(*layout.shape(spec, pages)) for _ in range(copies)]
        return [lambda kv=kv: impl.run(q, k, v, kv, plan) for kv in caches]

    print("attention: work, microseconds a layer, share of the floor")
    for num_requests, context in ((1, 1024), (1, 8192), (16, 1024), (64, 1024), (256, 192)):
        batch = decode_batch(num_requests, min(context, 2048))
        kv_bytes = 2 * num_requests * min(context, 2048) * KV_HEADS * DIM * 2
        copies = max(2, int(200e6 // kv_bytes)) if kv_bytes < 100e6 else 2
        us = graph_us(calls(batch, min(copies, 24)))
        print(f"  decode {num_requests} x {min(context, 2048)}: {us:.1f} us, "
              f"{kv_bytes / bandwidth * 1e6 / us:.2f}", flush=True)  # fmt: skip
    for num_tokens in (8192, 1024):
        batch = prompt_batch(num_tokens)
        floor_us = 2.0 * num_tokens**2 * HEADS * DIM / flops * 1e6
        for tiling in TILINGS:
            impl._tiling = tiling
            us = graph_us(calls(batch, 4), 5)
            print(f"  prompt of {num_tokens}, {tuple(tiling)}: {us:.0f} us, {floor_us / us:.2f}",
                  flush=True)  # fmt: skip


def linear(platform: CudaPlatform, bandwidth: float, flops: float) -> None:
    (probe, *_) = probe_gpus()
    provider, context = TritonLinearProvider(traits_of(probe)), BuildContext(platform)
    print("linear: rows, microseconds by torch and by Triton, their shares of the floor")
    for name, (k, n) in LINEAR.items():
        weights = [normal(n, k) for _ in range(max(2, int(300e6 // (2 * n * k))))]
        request = LinearRequest(role=name, in_features=k, out_features=n, dtype=Dtype.BFLOAT16)
        impl = provider.build(request, context)
        packed = [impl.pack(LinearWeights(scheme=None, weight=each)) for each in weights]
        for rows in ROWS:
            x = normal(rows, k)
            torch_us = graph_us(
                [lambda w=w: torch.nn.functional.linear(x, w) for w in weights]  # noqa: B023
            )
            own_us = graph_us([lambda w=w: impl.run(x, w) for w in packed])  # noqa: B023
            floor_us = max(2 * n * k / bandwidth, 2 * n * k * rows / flops) * 1e6
            print(f"  {name:8} {rows:4}: {torch_us:8.1f} {own_us:8.1f}   "
                  f"{floor_us / torch_us:.2f} {floor_us / own_us:.2f}", flush=True)  # fmt: skip


def main() -> None:
    wanted = sys.argv[1:] or ["attention", "linear"]
    (probe, *_) = probe_gpus()
    platform = CudaPlatform(probe)
    platform.activate()
    ceilings = measure_ceilings(platform, torch.bfloat16)
    print(f"{probe.name}, torch {torch.__version__}: copy {ceilings.bytes_per_s / 1e12:.2f} TB/s, "
          f"product {ceilings.flops_per_s / 1e12:.0f} TFLOP/s", flush=True)  # fmt: skip
    with torch.inference_mode():
        for name in wanted:
            {"attention": attention, "linear": linear}[name](
                platform, ceilings.bytes_per_s, ceilings.flops_per_s
            )


if __name__ == "__main__":
    main()
