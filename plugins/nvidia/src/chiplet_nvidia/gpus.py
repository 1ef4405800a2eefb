"""Facts about the GPUs of this host."""

from __future__ import annotations

import ctypes
import sys

from chiplet.api import DeviceProbe

DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"


def probe_gpus() -> list[DeviceProbe]:
    """Every GPU that torch can use; none without a driver, or where torch has no CUDA."""
    try:
        ctypes.CDLL(DRIVER)
    except OSError:
        return []  # known in a millisecond, without the second that torch takes to import
    import torch  # noqa: PLC0415

    if not torch.version.cuda or not torch.cuda.is_available():
        return []
    return [_probe(index) for index in range(torch.cuda.device_count())]


def _probe(index: int) -> DeviceProbe:
    import torch  # noqa: PLC0415

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


def capability_of(device: DeviceProbe) -> tuple[int, int]:
    """Compute capability, like (9, 0)."""
    major, _, minor = device.facts["capability"].partition(".")
    return int(major), int(minor)
