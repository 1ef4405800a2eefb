"""Times the CPU plugin's kernels against the machine's own limits, in one run.

    python benchmarks/cpu_kernels.py [--rows 1 8 64 512] [--threads 2] [--only linear gated ops]

Linear layers in every coding, some with their gate (in the product, and after it), and every other
operation but attention (cpu_attention.py). Beside
each time stands its floor: the larger of what its bytes take at the read bandwidth and what its
multiplications take at the rate of a large product in the same type, both measured in this run.
Candidates take turns, so that a noisy neighbour hurts all of them alike. Weights of many layers,
and many inputs of an operation, are cycled through: they come from memory, not cache.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from chiplet.api import (
    Activations,
    BuildContext,
    Coding,
    DeviceProbe,
    Dtype,
    Granularity,
    LinearProvider,
    LinearRequest,
    LinearWeights,
    No,
    Op,
    OpRequest,
    WeightScheme,
)
from chiplet.testing.conformance import random_weights
from chiplet_cpu import native
from chiplet_cpu.linear.native import NativeInt8Provider, NativeLinearProvider
from chiplet_cpu.linear.onednn import OneDnnProvider
from chiplet_cpu.ops.native import NativeOpsProvider
from chiplet_cpu.platform import CpuPlatform

SHAPE = (1536, 768)  # about a layer of SmolLM2-135M; blocks of 256 inputs fit in
LAYER_BYTES = 64 << 20  # of each candidate: more than any cache
INPUT_BYTES = 64 << 20
ROUNDS = 5
VOCAB = 49_152
HIDDEN, MLP, HEADS, KV_HEADS, HEAD_DIM = 576, 1536, 9, 3, 64

CONTEXT = BuildContext(
    CpuPlatform(DeviceProbe(device_type="cpu", index=0, name="A CPU", total_memory_bytes=1))
)
BLOCKS = (Coding.Q4_0, Coding.Q4_1, Coding.Q8_0, Coding.Q4_K, Coding.Q5_K, Coding.Q6_K)


class Case(NamedTuple):
    """What to time: `run` does its work `repeats` times; floors are of one."""

    name: str
    run: Callable[[], None]
    repeats: int
    size_bytes: int
    macs: int
    unit: str  # whose rate of multiplications is the limit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 64, 512])
    parser.add_argument("--threads", type=int, default=2)
    families = ("linear", "gated", "ops")
    parser.add_argument("--only", nargs="+", choices=families, default=families)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    native.set_threads(options.threads)
    bandwidth = read_bandwidth()
    rates = {unit: product_rate(unit) for unit in ("float32", "bfloat16", "int8")}
    print(f"{native.instruction_set()}, {options.threads} threads; reads {bandwidth:.1f} GB/s;")
    print("products:", ", ".join(f"{unit} {rate:.0f} GMAC/s" for unit, rate in rates.items()))
    makers = {"linear": linear_cases, "gated": gated_cases, "ops": op_cases}
    for family in options.only:
        print(f"\nrows  {family:32}        us  floor us  of floor")
        for rows in options.rows:
            cases = list(makers[family](rows))
            for case, seconds in zip(cases, alternate(cases), strict=True):
                memory_s = case.size_bytes / bandwidth / 1e9
                floor = max(memory_s, case.macs / rates[case.unit] / 1e9)
                times = f"{seconds * 1e6:8.1f}  {floor * 1e6:8.1f}  {floor / seconds:8.0%}"
                print(f"{rows:4}  {case.name:32}  {times}", flush=True)


def read_bandwidth() -> float:
    """GB/s of a sum over 512 MB, the best of several."""
    numbers = torch.ones(128 << 20)
    return max(numbers.nbytes / timed(numbers.sum) / 1e9 for _ in range(ROUNDS))


def product_rate(unit: str) -> float:
    """GMAC/s of a large product by oneDNN, the best of several."""
    size = 2048
    if unit == "int8":
        a = torch.ones(size, size, dtype=torch.int8)
        return max(size**3 / timed(lambda: torch._int_mm(a, a)) / 1e9 for _ in range(ROUNDS))
    a = torch.ones(size, size, dtype=getattr(torch, unit))
    return max(size**3 / timed(lambda: a @ a) / 1e9 for _ in range(ROUNDS))


def timed(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def alternate(cases: Sequence[Case]) -> list[float]:
    """Median seconds of each case, one after another in every round."""
    seconds: list[list[float]] = [[] for _ in cases]
    with torch.inference_mode():
        for _ in range(ROUNDS):
            for case, found in zip(cases, seconds, strict=True):
                found.append(timed(case.run) / case.repeats)
    return [statistics.median(each) for each in seconds]


def schemes() -> list[WeightScheme]:
    """Every coding that the kernels know."""
    packed = [WeightScheme(coding=each, granularity=Granularity.PACKED) for each in BLOCKS]
    groups = [
        WeightScheme(coding=Coding.INT4, granularity=Granularity.GROUP, group_size=size)
        for size in (32, 64, 128)
    ]
    channels = WeightScheme(
        coding=Coding.INT8, granularity=Granularity.CHANNEL, activations=Activations.PER_TOKEN
    )
    return [*packed, *groups, channels]


def linear_cases(rows: int) -> Sequence[Case]:
    """Each coding by each provider that serves it; beside coded weights x is bfloat16."""
    found: list[Case] = []
    for dtype in (Dtype.FLOAT32, Dtype.BFLOAT16):
        for provider in (OneDnnProvider(), NativeLinearProvider()):
            found += linear_case(provider, None, dtype, rows, str(dtype))
    for scheme in schemes():
        found += linear_case(NativeLinearProvider(), scheme, Dtype.BFLOAT16, rows, "float32")
        found += linear_case(NativeInt8Provider(), scheme, Dtype.BFLOAT16, rows, "int8")
    return found


def gated_cases(rows: int) -> Sequence[Case]:
    """silu(gate) * up in the product, and as an operation after it."""
    found: list[Case] = []
    chosen = (None, *(each for each in schemes() if each.coding in (Coding.Q4_1, Coding.INT8)))
    for scheme in chosen:
        provider = NativeLinearProvider() if scheme is None else NativeInt8Provider()
        unit = "bfloat16" if scheme is None else "int8"
        for gate in ("then silu_mul", "gated"):
            found += linear_case(provider, scheme, Dtype.BFLOAT16, rows, unit, gate)
    return found


def linear_case(
    provider: LinearProvider,
    scheme: WeightScheme | None,
    dtype: Dtype,
    rows: int,
    unit: str,
    gate: str = "",
) -> list[Case]:
    """None where the provider refuses."""
    request = LinearRequest(
        role="up_proj",
        in_features=SHAPE[1],
        out_features=SHAPE[0],
        dtype=dtype,
        scheme=scheme,
        is_gated=bool(gate),
    )
    if not request.features <= provider.accepts or isinstance(provider.assess(request), No):
        return []
    weights = weights_of(scheme, dtype)
    size_bytes = sum(
        each.nbytes
        for each in (weights.weight, weights.scales, weights.zero_points)
        if each is not None
    )
    impl = provider.build(request, CONTEXT)
    num_layers = max(2, LAYER_BYTES // size_bytes)
    layers = [impl.pack(weights) for _ in range(num_layers)]
    x = torch.randn(rows, SHAPE[1]).to(getattr(torch, dtype))

    silu_mul = NativeOpsProvider().build(OpRequest(op=Op.SILU_MUL, dtype=dtype), CONTEXT)
    calls: dict[str, Callable[[Any], object]] = {
        "": lambda packed: impl.run(x, packed),
        "then silu_mul": lambda packed: silu_mul(impl.run(x, packed)),
        "gated": lambda packed: impl.run_silu_mul(x, packed),
    }
    call = calls[gate]

    def run() -> None:
        for packed in layers:
            call(packed)

    outputs = SHAPE[0] // 2 if gate else SHAPE[0]
    moved = size_bytes + x.nbytes + rows * outputs * x.itemsize
    name = f"{provider.name} {scheme.coding if scheme else dtype}"
    if scheme is not None and scheme.group_size:
        name += f" of {scheme.group_size}"
    name += f" {gate}".rstrip()
    return [Case(name, run, num_layers, moved, rows * SHAPE[0] * SHAPE[1], unit)]


def weights_of(scheme: WeightScheme | None, dtype: Dtype) -> LinearWeights:
    random = torch.Generator().manual_seed(1)
    if scheme is None:
        weight = torch.randn(SHAPE, generator=random).to(getattr(torch, dtype))
        return LinearWeights(scheme=None, weight=weight)
    return random_weights(scheme, SHAPE, random, 0.05)


def op_cases(rows: int) -> Sequence[Case]:
    """Every operation; those on logits for at most 64 rows, as many as requests."""
    few = min(rows, 64)
    kinds = [
        *((op, dtype, rows) for dtype in (Dtype.FLOAT32, Dtype.BFLOAT16) for op in ELEMENTWISE),
        (Op.FEED, Dtype.FLOAT32, rows),
        (Op.ARGMAX, Dtype.BFLOAT16, few),
        (Op.ARGMAX, Dtype.FLOAT32, few),
        (Op.PENALIZE, Dtype.FLOAT32, few),
        (Op.MASK_TOKENS, Dtype.FLOAT32, few),
    ]
    found = [op_case(op, dtype, count, "", {}) for op, dtype, count in kinds]
    found += [
        op_case(Op.SAMPLE, Dtype.FLOAT32, few, f" {name}", filters)
        for name, filters in FILTERS.items()
    ]
    return found


ELEMENTWISE = (Op.RMS_NORM, Op.ADD_RMS_NORM, Op.ROTARY, Op.SILU_MUL, Op.EMBEDDING)
FILTERS: dict[str, dict[str, float]] = {
    "without filters": {},
    "top-k 50": {"top_k": 50},
    "top-p 0.9": {"top_p": 0.9},
    "min-p 0.05": {"min_p": 0.05},
}


def op_case(op: Op, dtype: Dtype, rows: int, what: str, filters: dict[str, float]) -> Case:
    provider = NativeOpsProvider()
    run_op = provider.build(OpRequest(op=op, dtype=dtype), CONTEXT)
    first = op_inputs(op, getattr(torch, dtype), rows, filters)
    read = sum(each.nbytes for each in first if isinstance(each, torch.Tensor) and each.dim() > 1)
    results = run_op(*first)
    written = sum(each.nbytes for each in (results if isinstance(results, tuple) else (results,)))
    if op in (Op.EMBEDDING, Op.ROTARY):  # of their tables they read some rows
        read = written
    copies = max(2, min(64, INPUT_BYTES // max(read, 1)))
    calls = [
        first,
        *(op_inputs(op, getattr(torch, dtype), rows, filters) for _ in range(copies - 1)),
    ]

    def run() -> None:
        for arguments in calls:
            run_op(*arguments)

    return Case(f"{op} {dtype}{what}, {rows} rows", run, len(calls), read + written, 0, "float32")


def op_inputs(op: Op, dtype: torch.dtype, rows: int, filters: dict[str, float]) -> tuple[Any, ...]:
    """Arguments of one call, of the sizes of SmolLM2-135M."""
    ids = torch.randint(VOCAB, (rows,), dtype=torch.int32)
    match op:
        case Op.RMS_NORM:
            return torch.randn(rows, HIDDEN).to(dtype), torch.ones(HIDDEN, dtype=dtype), 1e-5
        case Op.ADD_RMS_NORM:
            x, residual = (torch.randn(rows, HIDDEN).to(dtype) for _ in range(2))
            return x, residual, torch.ones(HIDDEN, dtype=dtype), 1e-5
        case Op.ROTARY:
            qkv = torch.randn(rows, HEADS + 2 * KV_HEADS, HEAD_DIM).to(dtype)
            q, k = qkv[:, :HEADS], qkv[:, HEADS : HEADS + KV_HEADS]
            return q, k, ids % 2048, torch.randn(2048, HEAD_DIM)
        case Op.SILU_MUL:
            return (torch.randn(rows, 2 * MLP).to(dtype),)
        case Op.EMBEDDING:
            return ids, _table(dtype)
        case Op.FEED:
            return ids, torch.zeros(256, dtype=torch.int32)
    logits = torch.randn(rows, VOCAB).mul(4).to(dtype)
    ones = torch.ones(rows)
    match op:
        case Op.ARGMAX:
            return (logits,)
        case Op.PENALIZE:
            counts = torch.zeros(rows, VOCAB, dtype=torch.int32)
            return logits, counts > 0, counts, ones * 1.1, ones * 0.1, ones * 0.1
        case Op.MASK_TOKENS:
            words = (rows, VOCAB // 32)
            return logits, torch.randint(-(2**31), 2**31, words, dtype=torch.int32)
        case _:
            top_k = (ones * filters.get("top_k", 0)).int()
            top_p, min_p = ones * filters.get("top_p", 1.0), ones * filters.get("min_p", 0.0)
            return logits, ones * 0.8, top_k, top_p, min_p, torch.rand(rows), bool(filters)


_TABLES: dict[torch.dtype, torch.Tensor] = {}


def _table(dtype: torch.dtype) -> torch.Tensor:
    if dtype not in _TABLES:
        _TABLES[dtype] = torch.randn(VOCAB, HIDDEN).to(dtype)
    return _TABLES[dtype]


if __name__ == "__main__":
    main()
