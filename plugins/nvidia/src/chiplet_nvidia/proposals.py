"""Settings that suit a GPU, where the user has given none."""

from __future__ import annotations

from chiplet.api import DeviceProbe, Proposal

_LARGE_MEMORY_BYTES = 120 << 30


def proposals_for(device: DeviceProbe) -> list[Proposal]:
    """Larger steps than a CPU takes, and more requests where memory keeps their contexts."""
    reason = "a GPU is filled by large steps"
    num_requests = 512 if device.total_memory_bytes >= _LARGE_MEMORY_BYTES else 256
    return [
        Proposal("schedule.max_running_requests", num_requests, reason),
        Proposal("schedule.chunked_prefill_size", 8192, reason),
        Proposal("schedule.mixed_prefill_size", 128, "rows of a tile of its products"),
    ]
