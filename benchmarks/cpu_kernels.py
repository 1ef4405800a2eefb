"""Times the CPU plugin's linear layers against the machine's own limits, in one run.

    python benchmarks/cpu_kernels.py [--rows 1 8 64 512] [--threads 2]

For each coding: the time of one layer, what share of the read bandwidth it reaches, and its rate
of multiplications. Providers take turns, so that a noisy neighbour hurts all of them alike.
Weights of many layers are cycled through, as in a decode step: they come from memory, not cache.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from chiplet.api import (
    BuildContext,
    Coding,
    DeviceProbe,
    Dtype,
    Granularity,
    LinearProvider,
    LinearRequest,
    LinearWeights,
    WeightScheme,
)
from chiplet_cpu import native
from chiplet_cpu.linear.native import NativeLinearProvider
from chiplet_cpu.linear.onednn import OneDnnProvider
from chiplet_cpu.platform import CpuPlatform

SHAPE = (1536, 576)  # of a layer of SmolLM2-135M, output features first
NUM_LAYERS = 96  # 340 MB of float32: more than any cache
ROUNDS = 7

Case = tuple[str, Callable[[torch.Tensor], None], int]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 64, 512])
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    native.set_threads(options.threads)
    bandwidth = read_bandwidth()
    print(f"{native.instruction_set()}, {options.threads} threads; reads {bandwidth:.1f} GB/s")
    print("rows  coding             us/layer  GB/s  of read  GMAC/s")
    cases = make_cases()
    for rows in options.rows:
        x = torch.randn(rows, SHAPE[1])
        seconds = alternate(cases, x)
        for (name, _, size_bytes), each in zip(cases, seconds, strict=True):
            rate = size_bytes / each / 1e9
            macs = rows * SHAPE[0] * SHAPE[1] / each / 1e9
            share = rate / bandwidth
            print(f"{rows:4}  {name:17}  {each * 1e6:8.1f}  {rate:4.1f}  {share:7.0%}  {macs:6.1f}")


def read_bandwidth() -> float:
    """GB/s of a sum over 512 MB, the best of several."""
    numbers = torch.ones(128 << 20)
    best = 0.0
    for _ in range(ROUNDS):
        start = time.perf_counter()
        numbers.sum()
        best = max(best, numbers.nbytes / (time.perf_counter() - start) / 1e9)
    return best


def make_cases() -> list[Case]:
    """What to time: a name, a run of one after another layer, bytes of a layer's weights."""
    exact = torch.randn(SHAPE)
    blocks = {
        coding: torch.randint(0, 60, (SHAPE[0], SHAPE[1] // 32 * coding.block.size_bytes))
        for coding in (Coding.Q4_0, Coding.Q4_1, Coding.Q8_0)
        if coding.block is not None
    }
    cases = [
        make_case("onednn float32", OneDnnProvider(), None, exact),
        make_case("native float32", NativeLinearProvider(), None, exact),
        make_case("native bfloat16", NativeLinearProvider(), None, exact.bfloat16().float()),
    ]
    for coding, weight in blocks.items():
        provider, stored = NativeLinearProvider(), weight.to(torch.uint8)
        cases.append(make_case(f"native {coding}", provider, coding, stored))
    return cases


def make_case(
    name: str, provider: LinearProvider, coding: Coding | None, weight: torch.Tensor
) -> Case:
    scheme = coding and WeightScheme(coding=coding, granularity=Granularity.PACKED)
    request = LinearRequest(
        role="up_proj",
        in_features=SHAPE[1],
        out_features=SHAPE[0],
        dtype=Dtype.FLOAT32,
        scheme=scheme,
    )
    device = DeviceProbe(device_type="cpu", index=0, name="A CPU", total_memory_bytes=1)
    impl = provider.build(request, BuildContext(CpuPlatform(device)))
    layers = [
        impl.pack(LinearWeights(scheme=scheme, weight=weight.clone())) for _ in range(NUM_LAYERS)
    ]
    is_short = name == "native bfloat16"

    def run(x: torch.Tensor) -> None:
        for packed in layers:
            impl.run(x, packed)

    return name, run, weight.nbytes // (2 if is_short else 1)


def alternate(cases: list[Case], x: torch.Tensor) -> list[float]:
    """Median seconds per layer of each case, one after another in every round."""
    seconds: list[list[float]] = [[] for _ in cases]
    with torch.inference_mode():
        for _ in range(ROUNDS):
            for (_, run, _), found in zip(cases, seconds, strict=True):
                start = time.perf_counter()
                run(x)
                found.append((time.perf_counter() - start) / NUM_LAYERS)
    return [statistics.median(each) for each in seconds]


if __name__ == "__main__":
    main()
