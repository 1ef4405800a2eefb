"""Settings that suit a TPU better than core's defaults."""

from __future__ import annotations

from chiplet.api import DeviceProbe, Proposal
from chiplet_tpu.chips import is_emulated
from chiplet_tpu.versions import JAX_LIBRARIES, missing


def propose(device: DeviceProbe) -> list[Proposal]:
    """Proposals for a TPU, none for another device; small steps for a stand-in."""
    if device.device_type != "tpu":
        return []
    return [*_sizes(device), *_preparation()]


def _preparation() -> list[Proposal]:
    """torch_xla, where it is all there is, cannot compile beside running steps."""
    if not missing(*JAX_LIBRARIES):
        return []
    reason = "torch_xla compiles a step by running it"
    return [Proposal("device.prepare_first", True, reason)]


def _sizes(device: DeviceProbe) -> list[Proposal]:
    if is_emulated(device):
        reason = "a stand-in computes padding as slowly as the rest"
        return [
            Proposal("schedule.max_running_requests", 8, reason),
            Proposal("schedule.chunked_prefill_size", 120, reason),
        ]
    reason = "a TPU is filled by large steps"
    return [
        Proposal("schedule.max_running_requests", 256, reason),
        Proposal("schedule.chunked_prefill_size", 2048, reason),
    ]
