"""Four-bit weights in the order in which `kernels/int4_linear.cu` reads them.

Legend: a tile is 16 output features, a block 64 inputs of a tile, 512 bytes of it: 16 for each lane
of a warp, a word for each of its four products. Output feature 8 * h + r of a tile and input
32 * b + 8 * j + 4 * s + 2 * p + e of a block are in lane 4 * r + j, word 2 * b + s, four bits at
4 * (4 * e + 2 * p + h).
"""

from __future__ import annotations

import torch
from torch import Tensor

TILE = 16
UNIT = 128
"""Inputs that a warp takes at a time; their number must be a multiple of it."""

_ZERO_BITS = 31


def pack_codes(codes: Tensor) -> Tensor:
    """Weights as the kernel reads them.

    Shapes: codes `[N, K / 2] uint8`, element 2i in the low half of byte i, N a multiple of 16 and K
    of 128; returns `[N / 16, K / 64, 32, 16] uint8`.
    """
    num_features, row_bytes = codes.shape
    # N is tile, h, r; a row is block, b, j, s, p and the bytes' halves e.
    places = codes.view(num_features // TILE, 2, 8, row_bytes // 32, 2, 4, 2, 2)
    low, high = places & 15, places >> 4
    # To tile, block, r, j, b, s and p, h of the numbers of one word.
    low, high = (each.permute(0, 3, 2, 5, 4, 6, 7, 1) for each in (low, high))
    # Low halves of bytes: h = 0, high ones: h = 1; bytes by e, then p.
    words = torch.stack([low[..., 0] | low[..., 1] << 4, high[..., 0] | high[..., 1] << 4], dim=-2)
    return words.flatten(4).flatten(2, 3).contiguous()


def pack_scales(scales: Tensor, zero_points: Tensor | None) -> Tensor:
    """Scales whose lowest five bits are the zero points, 8 where there are none.

    That is as exact as 19 bits of a float32.

    Shapes: scales `[N, G] float32`, zero_points `[N, G] uint8`, 0 to 16; returns `[N / 16, G, 16]
    int32`.
    """
    zeros = torch.full_like(scales, 8) if zero_points is None else zero_points
    half = (_ZERO_BITS + 1) // 2
    rounded = (scales.view(torch.int32) + half) & ~_ZERO_BITS
    both = rounded | zeros.to(torch.int32)
    return both.unflatten(0, (-1, TILE)).transpose(1, 2).contiguous()
