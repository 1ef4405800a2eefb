"""What runs on a device during steps, from torch's profiler."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch.profiler import profile, supported_activities

from chiplet.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Kernel:
    """One kernel: name, launches per step, and microseconds per step."""

    name: str
    calls: float
    us: float


@dataclass(frozen=True, slots=True)
class StepProfile:
    """Device time of a step.

    Attributes:
        step_us: from the first kernel's start to the last one's end, by the number of steps.
        busy_us: time in which at least one kernel ran, likewise.
        kernels: the longest first.
    """

    step_us: float
    busy_us: float
    kernels: tuple[Kernel, ...]


def profiled(work: Callable[[], object], num_steps: int) -> StepProfile:
    """The profile of some work that takes so many steps.

    Raises:
        ConfigError: torch's profiler sees no device here.
    """
    with profile(activities=supported_activities()) as seen:
        work()
    spans: list[tuple[float, float]] = []
    totals: dict[str, tuple[int, float]] = {}
    for event in seen.events() or ():
        if event.device_type.name == "CPU":
            continue
        start, end = event.time_range.start, event.time_range.end
        spans.append((start, end))
        calls, us = totals.get(event.name, (0, 0.0))
        totals[event.name] = calls + 1, us + end - start
    if not spans:
        raise ConfigError(
            "The profiler of torch sees no device at work here.",
            remedy="Leave --profile out, or choose another --device.",
        )
    kernels = [
        Kernel(name, calls / num_steps, us / num_steps) for name, (calls, us) in totals.items()
    ]
    span_us = max(end for _, end in spans) - min(start for start, _ in spans)
    return StepProfile(
        step_us=span_us / num_steps,
        busy_us=covered(spans) / num_steps,
        kernels=tuple(sorted(kernels, key=lambda kernel: -kernel.us)),
    )


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """Length of the union of spans `[start, end)`."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total
