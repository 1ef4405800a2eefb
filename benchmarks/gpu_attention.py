"""What attention of the Triton plugin costs on a GPU with all that may be asked of it.

    python benchmarks/gpu_attention.py

Shapes are those of Llama-3.1-8B in bfloat16, one layer; timing as in gpu_kernels.py. The floor is
the bytes of keys and values by the bandwidth of a copy, or operations by the rate of a product.
Variants that the sources at hand do not accept are left out, so that older ones can be compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from gpu_kernels import DIM, HEADS, KV_HEADS, PAGE, decode_batch, graph_us, normal, prompt_batch

from chiplet.api import AttentionRequest, BuildContext, Dtype, ForwardBatch, KvCoding, KvSpec
from chiplet.cli.bench.floors import measure_ceilings
from chiplet_nvidia.gpus import probe_gpus
from chiplet_nvidia.platform import CudaPlatform
from chiplet_triton.attention.paged import TritonAttentionProvider
from chiplet_triton.device import traits_of

CAPTURED = 16
TREE = 8
"""New tokens of each request in a step with trees: two chains of four."""


def plain_request() -> AttentionRequest:
    """Of a layer like Llama's."""
    spec = KvSpec(num_kv_heads=KV_HEADS, head_dim=DIM, page_size=PAGE, dtype=Dtype.BFLOAT16)
    return AttentionRequest(
        group="global",
        num_heads=HEADS,
        num_kv_heads=KV_HEADS,
        head_dim=DIM,
        scale=DIM**-0.5,
        dtype=Dtype.BFLOAT16,
        kv=spec,
    )


def shared_prefix_batch(num_requests: int, context: int) -> ForwardBatch:
    """Requests that have all but their last page in common."""
    batch = decode_batch(num_requests, context)
    pages = context // PAGE - 1
    batch.page_table[:, :pages] = batch.page_table[0, :pages]
    return batch


def tree_batch(num_requests: int, context: int, *, has_tree: bool) -> ForwardBatch:
    """Eight new tokens for each request behind `context - 8` cached ones."""
    batch = decode_batch(num_requests, context)
    at = torch.arange(context - TREE, context, device=batch.positions.device)
    rows = batch.page_table[:, at // PAGE] * PAGE + at.int() % PAGE
    words = [0b1, 0b11, 0b111, 0b1111, 0b10000, 0b110000, 0b1110000, 0b11110000]
    bits = torch.tensor([[each, 0] for each in words] * num_requests, dtype=torch.int32)
    depths = torch.arange(4).repeat(2 * num_requests)
    device, places = rows.device, at.repeat(num_requests).int()
    positions = (context - TREE + depths).int().to(device) if has_tree else places
    starts = TREE * torch.arange(num_requests + 1, dtype=torch.int32, device=device)
    return replace(
        batch,
        num_decodes=0,
        token_ids=torch.zeros(TREE * num_requests, dtype=torch.int32, device=device),
        positions=positions,
        kv_rows=rows.flatten().int().contiguous(),
        query_starts=starts,
        logit_rows=starts[1:] - 1,
        tree_bits=bits.to(device) if has_tree else None,
    )


def variants() -> Iterator[tuple[str, AttentionRequest]]:
    """What models and users ask for."""
    plain = plain_request()
    yield "plain", plain
    yield "window 256", replace(plain, window=256, group="window")
    yield "softcap", replace(plain, softcap=30.0)
    yield "sinks", replace(plain, has_sinks=True)
    for coding in KvCoding:
        yield f"{coding} cache", replace(plain, kv=replace(plain.kv, coding=coding))


class Bench:
    """Times one layer of a provider."""

    def __init__(self, platform: CudaPlatform) -> None:
        (probe, *_) = probe_gpus()
        self.provider = TritonAttentionProvider(traits_of(probe))
        self.context = BuildContext(platform)

    def serves(self, request: AttentionRequest) -> bool:
        """Whether the sources at hand know all that it needs."""
        return request.features <= self.provider.accepts

    def us(self, request: AttentionRequest, batch: ForwardBatch, *, copies: int) -> float:
        """Microseconds of attention, or of the capture alone if the request captures."""
        impl: Any = self.provider.build(request, self.context)
        (layout,) = impl.layouts()
        plan = impl.plan(batch, layout)
        pages, device = int(batch.page_table.max()) + 1, batch.page_table.device
        qkv = normal(batch.num_tokens, HEADS + 2 * KV_HEADS, DIM)
        q, k, v = qkv.split([HEADS, KV_HEADS, KV_HEADS], dim=1)
        shape = layout.shape(request.kv, pages)
        if request.kv.coding is None:
            caches = [normal(*shape) for _ in range(copies)]
        else:
            # Codes and scales of some size; every byte below 0x40 is a number in both codings.
            draw = torch.randint(0, 0x3F, (copies, *shape), device=device, dtype=torch.uint8)
            caches = list(draw)
        sinks = torch.randn(HEADS, device=device) if request.has_sinks else None

        def call(kv: torch.Tensor) -> Callable[[], object]:
            if request.num_captured:
                return lambda: impl.capture(q, kv, plan, sinks)
            if sinks is not None:
                return lambda: impl.run_with_sinks(q, k, v, kv, plan, sinks)
            return lambda: impl.run(q, k, v, kv, plan)

        return graph_us([call(each) for each in caches])


def main() -> None:
    """Measure and print."""
    platform = CudaPlatform(probe_gpus()[0])
    platform.activate()
    ceilings = measure_ceilings(platform, torch.bfloat16)
    bandwidth, flops = ceilings.bytes_per_s, ceilings.flops_per_s
    bench = Bench(platform)
    print("work, variant: microseconds a layer, floor")
    for num_requests, context in ((64, 1024), (256, 192), (1, 2048)):
        batch = decode_batch(num_requests, context)
        for name, request in variants():
            if bench.serves(request):
                seen = min(context, request.window or context)
                size = 2 * num_requests * seen * KV_HEADS * request.kv.row_bytes
                us = bench.us(request, batch, copies=4 if num_requests > 1 else 16)
                floor = size / bandwidth * 1e6
                print(f"decode {num_requests}x{context}, {name}: {us:.1f}, {floor:.1f}")
    for num_tokens in (1024, 8192):
        batch = prompt_batch(num_tokens)
        for name, request in variants():
            if bench.serves(request) and request.window is None:
                work = 2 * num_tokens**2 * HEADS * DIM
                us = bench.us(request, batch, copies=2)
                print(f"prompt {num_tokens}, {name}: {us:.1f}, {work / flops * 1e6:.1f}")
    plain = plain_request()
    size = 2 * 64 * 1024 * KV_HEADS * plain.kv.row_bytes / bandwidth * 1e6
    for has_tree in (False, True):
        request = replace(plain, has_tree=has_tree)
        if bench.serves(request):
            us = bench.us(request, tree_batch(64, 1024, has_tree=has_tree), copies=4)
            print(f"64 requests with {TREE} new tokens, {has_tree=}: {us:.1f}, {size:.1f}")
    us = bench.us(plain, shared_prefix_batch(64, 1024), copies=4)
    print(f"decode 64x1024, all but the last page shared: {us:.1f}")
    us = bench.us(plain, shared_prefix_batch(256, 1024), copies=4)
    print(f"decode 256x1024, all but the last page shared: {us:.1f}")
    request = replace(plain, num_captured=CAPTURED)
    if bench.serves(request):
        us = bench.us(request, decode_batch(64, 1024), copies=4)
        print(f"capture of {CAPTURED}, 64x1024: {us:.1f}, {size / 2:.1f}")
        us = bench.us(request, prompt_batch(2048), copies=2)
        print(f"capture of {CAPTURED}, prompt of 2048: {us:.1f}")


if __name__ == "__main__":
    main()
