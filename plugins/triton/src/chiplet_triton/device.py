"""What kernels need to know of a device, read from its probe."""

from __future__ import annotations

from dataclasses import dataclass

from chiplet.api import DeviceProbe

DOT_PRECISION = "ieee"
"""float32 products are computed in float32; shorter types have one way only."""


@dataclass(frozen=True, slots=True)
class DeviceTraits:
    """What kernels need to know of a device.

    Attributes:
        is_cuda: warps have 32 threads and 255 registers each, not 64 and 512.
        can_overlap: a kernel may be launched before its predecessor has ended.
        reads_operands_in_place: matrix units take operands from shared memory, so that they need no
            registers.
        sums_in_registers: matrix units leave sums in registers, not in a memory of their own.
        converts_pairs: two numbers of half precision are made of bytes by single instructions.
        num_cores: multiprocessors or compute units.
        shared_bytes: shared memory that one program may use.
        has_fp8: it converts numbers of the kind E4M3.
    """

    is_cuda: bool
    can_overlap: bool
    reads_operands_in_place: bool
    sums_in_registers: bool
    converts_pairs: bool
    num_cores: int
    shared_bytes: int
    has_fp8: bool


def traits_of(device: DeviceProbe) -> DeviceTraits:
    """Traits by the probe's facts 'capability' (like '9.0') and 'cores'; modest without them."""
    capability = tuple(map(int, device.facts.get("capability", "0.0").split(".")))
    major = capability[0]
    is_cuda = device.device_type == "cuda"
    # Data centre GPUs since 8.0 give a block 163 KiB or more; a CDNA3 workgroup has 64 KiB.
    shared_bytes = (160 if is_cuda and major >= 8 else 64) << 10
    num_cores = int(device.facts.get("cores", "64"))
    return DeviceTraits(
        is_cuda=is_cuda,
        can_overlap=is_cuda and major >= 9,
        reads_operands_in_place=is_cuda and major >= 9,
        sums_in_registers=is_cuda and major < 10,
        converts_pairs=is_cuda and major >= 9,
        num_cores=num_cores,
        shared_bytes=shared_bytes,
        has_fp8=capability >= (8, 9) if is_cuda else True,
    )


def launch_options(traits: DeviceTraits) -> dict[str, bool]:
    """Options of a launch that may overlap its predecessor."""
    return {"launch_pdl": True} if traits.can_overlap else {}
