"""How attention is cut into programs, for a request and a device."""

from __future__ import annotations

from typing import NamedTuple

from triton import cdiv, next_power_of_2

from chiplet.api import AttentionRequest, Dtype, KvCoding
from chiplet_triton.device import DeviceTraits

_MAX_SPLITS = 64
_PROGRAMS_PER_CORE = 4
_MANY_PROGRAMS_PER_CORE = 8


class DecodeTiling(NamedTuple):
    """How `decode_kernel` is cut.

    Attributes:
        keys: per step of the loop.
    """

    keys: int
    num_warps: int
    num_stages: int


class Tiling(NamedTuple):
    """How `extend_kernel` is cut.

    Attributes:
        rows: of queries, several heads of each token.
        keys: per step of the loop.
    """

    rows: int
    keys: int
    num_warps: int
    num_stages: int


def block_dim(request: AttentionRequest) -> int:
    """Elements of a head in a tile."""
    return max(16, next_power_of_2(request.head_dim))


def _is_wide(request: AttentionRequest) -> bool:
    return request.dtype is Dtype.FLOAT32 or block_dim(request) > 128


def block_keys(request: AttentionRequest) -> int:
    """Keys of a tile, where nothing else is better."""
    return 32 if _is_wide(request) else 64


def decode_tiling(
    request: AttentionRequest, traits: DeviceTraits, *, programs: int, longest: int
) -> DecodeTiling:
    """For requests with one new token.

    Args:
        request: what is asked for.
        traits: of the device.
        programs: requests times KV heads.
        longest: tokens that a request may have.

    Source: `benchmarks/nvidia_notes.md`, cuts of decode attention on an H200.
    """
    if traits.is_cuda and request.kv.coding is None and not _is_wide(request):
        if programs >= _MANY_PROGRAMS_PER_CORE * traits.num_cores:
            # Who reads few keys waits most of the time: as many programs at a time as fit.
            return DecodeTiling(32, 2, 2)
        if _PROGRAMS_PER_CORE * traits.num_cores >= programs * cdiv(longest, 32):
            # Each program has one block, so that its time is what that takes.
            return DecodeTiling(32, 4, 2)
    if traits.converts_pairs and in_pairs(request):
        # Two warps have fewer barriers than four, and a block of int8 has one more.
        if request.kv.coding is KvCoding.INT8:
            return DecodeTiling(64, 2, 3)
        if programs >= _MANY_PROGRAMS_PER_CORE * traits.num_cores:
            return DecodeTiling(32, 2, 3)
    return DecodeTiling(block_keys(request), 4, 3)


def prefix_tiling(request: AttentionRequest, traits: DeviceTraits) -> Tiling:
    """For keys that several decodes share: as many rows as fill a wide matrix instruction."""
    group = next_power_of_2(request.num_heads // request.num_kv_heads)
    if _is_wide(request) or not traits.is_cuda:
        return Tiling(max(32, group), 32, 4, 2)
    keys = 64 if traits.reads_operands_in_place else 32  # with more, registers spill
    return Tiling(max(64, group), keys, 4, 2)


def in_pairs(request: AttentionRequest) -> bool:
    """Whether decodes read codes two at a time, whose numbers are of half precision then."""
    is_even = request.head_dim % 2 == 0 and block_dim(request) >= 32
    return request.kv.coding is not None and request.dtype is not Dtype.FLOAT32 and is_even


def extend_tiling(request: AttentionRequest, traits: DeviceTraits) -> Tiling:
    """For chunks."""
    is_int8 = request.kv.coding is KvCoding.INT8
    if _is_wide(request):
        tiling = Tiling(64, 32, 4, 2)
    elif traits.is_cuda and traits.reads_operands_in_place:
        tiling = Tiling(128, 64, 8, 3)
    elif traits.is_cuda:
        # With 64 keys, or with codes in int8 and more rows, registers spill.
        rows, num_warps = (64, 4) if is_int8 else (128, 8)
        tiling = Tiling(rows, 32, num_warps, 3)
    else:
        has_more = request.softcap is not None or is_int8
        tiling = Tiling(128, 32 if has_more else 64, 4, 3)  # with 64 keys, registers spill
    group = request.num_heads // request.num_kv_heads
    return tiling._replace(rows=max(tiling.rows, next_power_of_2(group)))


def num_splits(*, programs: int, longest: int, num_cores: int, keys: int) -> int:
    """Programs that share the keys of a request: as many as fill the device and have work.

    Args:
        programs: that there are without splits.
        longest: tokens that a request may have.
        num_cores: of the device.
        keys: that are worth a program.
    """
    wanted = _PROGRAMS_PER_CORE * num_cores // max(1, programs)
    return max(1, min(wanted, cdiv(longest, keys), _MAX_SPLITS))
