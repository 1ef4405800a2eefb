"""Dequantization of GGUF tensors: bytes to float32, all groups at once.

Each function takes `[num_groups, group_bytes] uint8` and gives `[num_groups, group_elements]
float32`. Legend: d scale, m minimum, q quantised values.

Source: the layouts in ggml-common.h and the arithmetic in ggml-quants.c of the ggml project.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def dequantize(groups: Tensor, type_name: str) -> Tensor:
    """The values of stored groups.

    Shapes: `groups` is `[num_groups, group_bytes] uint8`, contiguous; the result is
        `[num_groups, group_elements] float32`.
    """
    return _DEQUANTIZERS[type_name](groups)


def _floats(groups: Tensor, dtype: torch.dtype) -> Tensor:
    return groups.contiguous().view(dtype).to(torch.float32)


def _half(groups: Tensor, begin: int) -> Tensor:
    """The half-precision number at byte `begin` of each group, `[num_groups, 1]`."""
    return _floats(groups[:, begin : begin + 2], torch.float16)


def _nibbles(packed: Tensor) -> Tensor:
    """Low halves of all bytes, then high halves, along the last dimension."""
    return torch.cat([packed & 0x0F, packed >> 4], dim=-1)


def _fifth_bits(packed: Tensor) -> Tensor:
    """Bit i of each group's four bytes as a value of 0 or 16, `[num_groups, 32]`."""
    shifts = torch.arange(8, dtype=torch.uint8, device=packed.device)
    bits = (packed.unsqueeze(-1) >> shifts) & 1
    return bits.flatten(1) << 4


def _q4_0(groups: Tensor) -> Tensor:
    q = _nibbles(groups[:, 2:]).to(torch.float32)
    return q.sub_(8).mul_(_half(groups, 0))


def _q4_1(groups: Tensor) -> Tensor:
    q = _nibbles(groups[:, 4:]).to(torch.float32)
    return q.mul_(_half(groups, 0)).add_(_half(groups, 2))


def _q5_0(groups: Tensor) -> Tensor:
    q = (_nibbles(groups[:, 6:]) | _fifth_bits(groups[:, 2:6])).to(torch.float32)
    return q.sub_(16).mul_(_half(groups, 0))


def _q5_1(groups: Tensor) -> Tensor:
    q = (_nibbles(groups[:, 8:]) | _fifth_bits(groups[:, 4:8])).to(torch.float32)
    return q.mul_(_half(groups, 0)).add_(_half(groups, 2))


def _q8_0(groups: Tensor) -> Tensor:
    q = _floats(groups[:, 2:], torch.int8)
    return q.mul_(_half(groups, 0))


def _k_scales(packed: Tensor) -> tuple[Tensor, Tensor]:
    """Six-bit scales and minima of eight subgroups out of twelve bytes, each `[num_groups, 8]`.

    Bytes 0-3 hold the first four scales, 4-7 the first four minima; bytes 8-11 hold the low
    four bits of the other scales and minima, whose high two bits top the earlier bytes.
    """
    first, second, third = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scales = torch.cat([first & 63, (third & 0x0F) | ((first >> 6) << 4)], dim=1)
    minima = torch.cat([second & 63, (third >> 4) | ((second >> 6) << 4)], dim=1)
    return scales.to(torch.float32), minima.to(torch.float32)


def _k_values(q: Tensor, groups: Tensor) -> Tensor:
    """Values of eight subgroups of 32: `d * scale * q - dmin * minimum`."""
    scales, minima = _k_scales(groups[:, 4:16])
    scales.mul_(_half(groups, 0))
    minima.mul_(_half(groups, 2))
    values = q.to(torch.float32).mul_(scales.unsqueeze(-1)).sub_(minima.unsqueeze(-1))
    return values.flatten(1)


def _q4_k(groups: Tensor) -> Tensor:
    # Each 32 bytes hold two subgroups: the first in the low halves, the second in the high ones.
    q = _nibbles(groups[:, 16:].unflatten(1, (4, 32)))
    return _k_values(q.reshape(-1, 8, 32), groups)


def _q5_k(groups: Tensor) -> Tensor:
    q = _nibbles(groups[:, 48:].unflatten(1, (4, 32))).reshape(-1, 8, 32)
    # Bit s of the 32 high bytes belongs to subgroup s.
    shifts = torch.arange(8, dtype=torch.uint8, device=groups.device).unsqueeze(-1)
    high = (groups[:, 16:48].unsqueeze(1) >> shifts) & 1
    return _k_values(q | (high << 4), groups)


def _q6_k(groups: Tensor) -> Tensor:
    # Two halves of 128 values: 64 bytes of low halves and 32 bytes of pairs of high bits each.
    low = _nibbles(groups[:, :128].unflatten(1, (2, 64))).unflatten(2, (4, 32))
    shifts = torch.arange(0, 8, 2, dtype=torch.uint8, device=groups.device).unsqueeze(-1)
    high = (groups[:, 128:192].unflatten(1, (2, 1, 32)) >> shifts) & 3
    q = (low | (high << 4)).to(torch.float32).sub_(32).reshape(-1, 16, 16)
    scales = _floats(groups[:, 192:208], torch.int8).mul_(_half(groups, 208))
    return q.mul_(scales.unsqueeze(-1)).flatten(1)


_DEQUANTIZERS: dict[str, Callable[[Tensor], Tensor]] = {
    "F32": lambda groups: _floats(groups, torch.float32),
    "F16": lambda groups: _floats(groups, torch.float16),
    "BF16": lambda groups: _floats(groups, torch.bfloat16),
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
}
