"""How attention is cut into programs, for a request and a device."""

from __future__ import annotations

from typing import NamedTuple

from triton import next_power_of_2

from chiplet.api import AttentionRequest, Dtype, KvCoding
from chiplet_triton.device import DeviceTraits


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


def decode_tiling(request: AttentionRequest) -> DecodeTiling:
    """For requests with one new token."""
    return DecodeTiling(32 if _is_wide(request) else 64, 4, 3)


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
