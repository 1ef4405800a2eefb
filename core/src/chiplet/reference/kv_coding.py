"""Keys and values in eight bits, as `chiplet.api.KvCoding` says."""

from __future__ import annotations

import torch
from torch import Tensor

from chiplet.api import KvCoding

_LARGEST_FP8 = 448.0
_SMALLEST = 1e-30


def encode(x: Tensor, coding: KvCoding) -> Tensor:
    """Rows as bytes.

    Shapes: x `[..., head_dim]`; returns `[..., row_width] uint8`.
    """
    wide = x.float()
    if coding is KvCoding.FP8:
        bounded = wide.clamp(-_LARGEST_FP8, _LARGEST_FP8)
        return bounded.to(torch.float8_e4m3fn).view(torch.uint8)
    largest = wide.abs().amax(dim=-1, keepdim=True)
    # Divided by a number, or a number itself, a tensor may become a product with a reciprocal.
    most = torch.full_like(largest, 127)
    inverse = most / largest
    inverse = inverse.where(largest >= _SMALLEST, 0.0)
    codes = (wide * inverse).round().nan_to_num().to(torch.int8).view(torch.uint8)
    return torch.cat([codes, (largest / most).contiguous().view(torch.uint8)], dim=-1)


def decode(rows: Tensor, coding: KvCoding) -> Tensor:
    """What bytes stand for.

    Shapes: rows `[..., row_width] uint8`; returns `[..., head_dim] float32`.
    """
    if coding is KvCoding.FP8:
        return rows.view(torch.float8_e4m3fn).float()
    codes, scales = rows[..., :-4], rows[..., -4:]
    return codes.contiguous().view(torch.int8).float() * scales.contiguous().view(torch.float32)
