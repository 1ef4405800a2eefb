"""Facts about the GPUs of this host."""

from __future__ import annotations

import torch

from chiplet.api import DeviceProbe


def probe_gpus() -> list[DeviceProbe]:
    """Every GPU that torch can use; none where torch was built without CUDA."""
    if not torch.version.cuda or not torch.cuda.is_available():
        return []
    return [_probe(index) for index in range(torch.cuda.device_count())]


def _probe(index: int) -> DeviceProbe:
    properties = torch.cuda.get_device_properties(index)
    return DeviceProbe(
        device_type="cuda",
        index=index,
        name=properties.name,
        total_memory_bytes=properties.total_memory,
        facts={
            "capability": f"{properties.major}.{properties.minor}",
            "cores": str(properties.multi_processor_count),
            "cuda": str(torch.version.cuda),
        },
    )
