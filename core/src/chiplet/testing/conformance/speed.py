"""Speed of a provider beside the reference, as a first orientation; nothing is judged by it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from math import log10
from statistics import median
from typing import Any

import torch

from chiplet.api import (
    AttentionImpl,
    AttentionRequest,
    Dtype,
    LinearImpl,
    LinearRequest,
    LinearWeights,
    Platform,
)
from chiplet.testing.conformance.attention import GuardedKv
from chiplet.testing.conformance.attention_cases import Shape, attention_request
from chiplet.testing.conformance.attention_inputs import (
    AttentionCase,
    PlacedTensors,
    make_inputs,
    on_device,
)
from chiplet.testing.conformance.case import Subject
from chiplet.testing.conformance.guards import Placement
from chiplet.testing.conformance.tolerance import TORCH_DTYPES
from chiplet.testing.conformance.verdict import is_served

_REPEATS = 7

_ATTENTION = (
    AttentionCase("decode of 8 requests at 512 tokens", (1,) * 8, (512,) * 8),
    AttentionCase("prompt of 256 tokens", (256,), (256,)),
)
_SHAPE = Shape(9, 3, 64, 16)
_LINEAR = ((576, 1536, 1), (576, 1536, 64))


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """One comparison, in microseconds."""

    provider: str
    what: str
    provider_us: float
    reference_us: float

    @property
    def ratio(self) -> float:
        """How many times as fast as the reference."""
        return self.reference_us / self.provider_us

    @property
    def bar_percent(self) -> float:
        """Length of its bar: logarithmic, from a tenth of the reference's speed to 100 times it."""
        return 100 * min(1.0, max(0.02, (log10(self.ratio) + 1) / 3))

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self) | {"ratio": round(self.ratio, 2)}


def measure(subjects: Sequence[Subject]) -> Iterator[Timing]:
    """Timings of every provider of attention and linear layers, the reference left out."""
    for subject in subjects:
        if subject.name == "reference":
            continue
        for dtype in Dtype:
            if subject.family == "attention":
                yield from _attention(subject, attention_request(_SHAPE, dtype))
            elif subject.family == "linear":
                for k, n, num_tokens in _LINEAR:
                    request = LinearRequest(
                        role="speed", in_features=k, out_features=n, dtype=dtype
                    )
                    yield from _linear(subject, request, num_tokens)


def _attention(subject: Subject, request: AttentionRequest) -> Iterator[Timing]:
    if not is_served(subject.provider, request):
        return
    for case in _ATTENTION:
        impls: tuple[AttentionImpl, AttentionImpl] = (
            subject.provider.build(request, subject.context),
            subject.context.reference(request),
        )
        mine, reference = (
            _median_us(_attention_run(each, request, case, subject), subject.context.platform)
            for each in impls
        )
        yield Timing(
            provider=subject.name,
            what=f"attention, {case.name}, {request.dtype}",
            provider_us=mine,
            reference_us=reference,
        )


def _attention_run(
    impl: AttentionImpl, request: AttentionRequest, case: AttentionCase, subject: Subject
) -> Callable[[], object]:
    device, layout = subject.context.torch_device, impl.layouts()[0]
    inputs = make_inputs(request, case, 1.0)
    placed = PlacedTensors(inputs, Placement.STACKED, device)
    kv = GuardedKv(layout, request.kv, inputs.canonical, device)
    page_size = request.kv.page_size
    batch = on_device(inputs.batch, device, first_page=0, page_size=page_size)
    plan = impl.plan(batch, layout)
    return lambda: impl.run(placed.q, placed.k, placed.v, kv.tensor, plan)


def _linear(subject: Subject, request: LinearRequest, num_tokens: int) -> Iterator[Timing]:
    if not is_served(subject.provider, request):
        return
    impls: tuple[LinearImpl, LinearImpl] = (
        subject.provider.build(request, subject.context),
        subject.context.reference(request),
    )
    mine, reference = (
        _median_us(_linear_run(each, request, num_tokens, subject), subject.context.platform)
        for each in impls
    )
    yield Timing(
        provider=subject.name,
        what=f"linear {request.in_features}->{request.out_features} of {num_tokens} tokens, "
        f"{request.dtype}",
        provider_us=mine,
        reference_us=reference,
    )


def _linear_run(
    impl: LinearImpl, request: LinearRequest, num_tokens: int, subject: Subject
) -> Callable[[], object]:
    dtype, device = TORCH_DTYPES[request.dtype], subject.context.torch_device
    weight = torch.randn(request.out_features, request.in_features).to(dtype).to(device)
    x = torch.randn(num_tokens, request.in_features).to(dtype).to(device)
    packed = impl.pack(LinearWeights(scheme=None, weight=weight, bias=None))
    return lambda: impl.run(x, packed)


def _median_us(run: Callable[[], object], platform: Platform) -> float:
    times: list[float] = []
    for _ in range(_REPEATS + 2):
        start = time.perf_counter()
        run()
        platform.record_event().wait()
        times.append(time.perf_counter() - start)
    return median(times[2:]) * 1e6  # the first runs may still be preparing
