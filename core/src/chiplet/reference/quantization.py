"""Canonical tensors of quantized weights: what they are worth, and random ones.

The oracle for every scheme. Source: the table and the formulas of `chiplet.api.quantization`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from chiplet.api import Activations, Coding, Granularity, LinearWeights, WeightScheme
from chiplet.reference.gguf_blocks import dequantize as dequantize_blocks

FP8_MAX = 448.0
INT8_MAX = 127.0

_PIECE_BYTES = 1 << 20
"""Codes that are dequantized together where memory is to be saved."""

# E2M1 by code; the upper half has the sign bit.
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
# Where the half-precision numbers of a GGUF block stand, in bytes.
_HALVES: dict[Coding, tuple[int, ...]] = {
    Coding.Q4_1: (0, 2),
    Coding.Q5_1: (0, 2),
    Coding.Q4_K: (0, 2),
    Coding.Q5_K: (0, 2),
    Coding.Q6_K: (208,),
}
# Deviation of random blocks whose half-precision numbers are 1, to a factor of two.
_BLOCK_SPREAD = {
    Coding.Q4_0: 4.6,
    Coding.Q4_1: 4.6,
    Coding.Q5_0: 9.2,
    Coding.Q5_1: 9.2,
    Coding.Q8_0: 74.0,
    Coding.Q4_K: 250.0,
    Coding.Q5_K: 500.0,
    Coding.Q6_K: 1400.0,
}


def dequantize(weights: LinearWeights) -> Tensor:
    """The values of a weight.

    Shapes: `[N, K] float32`.
    """
    scheme = weights.scheme
    if scheme is None:
        return weights.weight.float()
    if scheme.coding.block is not None:
        return _from_blocks(weights.weight, scheme.coding)
    q = _numbers(weights.weight, scheme.coding)
    if scheme.has_zero_points:
        assert weights.zero_points is not None
        q = q - _spread(weights.zero_points.float(), q, scheme)
    elif scheme.coding is Coding.INT4:
        q = q - 8
    return q * _spread(_scales(weights), q, scheme)


def dequantize_to(weights: LinearWeights, dtype: torch.dtype) -> Tensor:
    """The values of a weight in another type, made a few rows at a time to save memory.

    Shapes: `[N, K]`.
    """
    parts = pieces(weights)
    first = dequantize(parts[0]).to(dtype)
    if len(parts) == 1:
        return first
    target = first.new_empty(weights.weight.shape[0], first.shape[1])
    begin = 0
    for part in parts:
        end = begin + part.weight.shape[0]
        target[begin:end] = dequantize(part)
        begin = end
    return target


def pieces(weights: LinearWeights) -> list[LinearWeights]:
    """The weight in runs of its rows, small enough to be dequantized beside much else, as views."""
    if weights.scheme is None or weights.scheme.granularity is Granularity.BLOCK:
        return [weights]
    num_rows, row_bytes = weights.weight.shape
    step = max(1, _PIECE_BYTES // max(1, row_bytes))
    starts = range(0, num_rows, step)
    return [rows(weights, begin, min(begin + step, num_rows)) for begin in starts] or [weights]


def rows(weights: LinearWeights, begin: int, end: int) -> LinearWeights:
    """Output features `[begin, end)` of a weight, as views; its scales are not of blocks."""
    num_rows = weights.weight.shape[0]

    def cut(tensor: Tensor | None) -> Tensor | None:
        is_by_row = tensor is not None and tensor.shape[0] == num_rows
        return tensor[begin:end] if tensor is not None and is_by_row else tensor

    return LinearWeights(
        scheme=weights.scheme,
        weight=weights.weight[begin:end],
        scales=cut(weights.scales),
        zero_points=cut(weights.zero_points),
        global_scales=cut(weights.global_scales),
        input_scale=weights.input_scale,
        bias=cut(weights.bias),
    )


def picked(weights: LinearWeights, row_ids: Tensor) -> LinearWeights:
    """Some output features of a weight; its scales are not of blocks.

    Shapes: row_ids `[n]`, whole numbers.
    """
    num_rows = weights.weight.shape[0]
    ids = row_ids.long()
    return weights.mapped(lambda tensor: tensor[ids] if tensor.shape[0] == num_rows else tensor)


def quantize_activations(
    x: Tensor, scheme: WeightScheme, input_scale: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Rounded activations, and the scale that each is to be multiplied with; both float32.

    Shapes: x `[num_tokens, K]`; returns `[num_tokens, K]` and one that broadcasts to it.
    """
    largest_code = INT8_MAX if scheme.coding is Coding.INT8 else FP8_MAX
    values = x.float()
    if scheme.activations is Activations.STATIC:
        assert input_scale is not None, "a static scheme comes with its input scale"
        scale = input_scale.float()
    elif scheme.activations is Activations.PER_TOKEN:
        scale = _dynamic_scale(values.abs().amax(-1, keepdim=True), largest_code)
    else:
        groups = _padded(values, scheme.group_size).unflatten(-1, (-1, scheme.group_size))
        scale = _dynamic_scale(groups.abs().amax(-1), largest_code)
        scale = scale.repeat_interleave(scheme.group_size, -1)[..., : values.shape[-1]]
    codes = values / scale
    if scheme.coding is Coding.INT8:
        return codes.round().clamp(-INT8_MAX, INT8_MAX), scale
    return codes.clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn).float(), scale


def random_weights(
    scheme: WeightScheme, shape: tuple[int, int], generator: torch.Generator, deviation: float
) -> LinearWeights:
    """Random canonical tensors, on the generator's device: values of about a given deviation.

    Args:
        scheme: of the weight.
        shape: output and input features; the scheme must fit it.
        generator: where the numbers come from.
        deviation: of the weight's values, roughly.
    """
    num_rows, num_columns = shape
    device = generator.device
    # Deviation of the codes themselves, taken as uniform.
    spread = {Coding.INT8: 74.0, Coding.INT4: 4.6, Coding.FP8_E4M3: 1.0}

    def random_bytes(*shape: int) -> Tensor:
        return torch.randint(0, 256, shape, generator=generator, device=device, dtype=torch.uint8)

    def random_scales(*shape: int) -> Tensor:
        factor = torch.rand(shape, generator=generator, device=device) + 0.5
        return factor * (deviation / spread.get(scheme.coding, 1.0))

    if scheme.coding.block is not None:
        weight = _random_blocks(random_bytes, scheme, shape, deviation)
        return LinearWeights(scheme=scheme, weight=weight)
    if scheme.coding in (Coding.MXFP4, Coding.NVFP4):
        return _random_microscaled(random_bytes, scheme, shape, deviation)
    if scheme.coding is Coding.FP8_E4M3:
        normal = torch.randn(shape, generator=generator, device=device)
        weight = normal.to(torch.float8_e4m3fn)
    elif scheme.coding is Coding.INT8:
        weight = random_bytes(num_rows, num_columns).view(torch.int8).clamp_(-127)
    else:
        weight = random_bytes(num_rows, num_columns // 2)
    scales = random_scales(*scales_shape(scheme, shape))
    zero_points = None
    if scheme.has_zero_points:
        zero_points = random_bytes(*scales.shape) & 15
        zero_points = zero_points.to(torch.int8 if scheme.coding is Coding.INT8 else torch.uint8)
    static = scheme.activations is Activations.STATIC
    code = INT8_MAX if scheme.coding is Coding.INT8 else FP8_MAX
    return LinearWeights(
        scheme=scheme,
        weight=weight,
        scales=scales,
        zero_points=zero_points,
        input_scale=torch.full((1,), 4.0 / code, device=device) if static else None,
    )


def scales_shape(scheme: WeightScheme, shape: tuple[int, int]) -> tuple[int, ...]:
    """Shape of the scales of a weight with `shape` output and input features."""
    num_rows, num_columns = shape
    size = scheme.group_size
    if scheme.granularity is Granularity.TENSOR:
        return (1,)
    if scheme.granularity is Granularity.CHANNEL:
        return (num_rows,)
    if scheme.granularity is Granularity.GROUP:
        return (num_rows, num_columns // size)
    return (-(-num_rows // size), -(-num_columns // size))


def unpack_halves(packed: Tensor) -> Tensor:
    """Low and high halves of each byte in turn: `[..., n] uint8` to `[..., 2 n] uint8`."""
    return torch.stack([packed & 15, packed >> 4], dim=-1).flatten(-2)


def pack_halves(codes: Tensor) -> Tensor:
    """The reverse of `unpack_halves`: values 0..15, `[..., 2 n] uint8` to `[..., n] uint8`."""
    pairs = codes.unflatten(-1, (-1, 2))
    return pairs[..., 0] | (pairs[..., 1] << 4)


def _from_blocks(weight: Tensor, coding: Coding) -> Tensor:
    assert coding.block is not None
    blocks = weight.reshape(-1, coding.block.size_bytes)
    return dequantize_blocks(blocks, coding.name).reshape(weight.shape[0], -1)


def _numbers(weight: Tensor, coding: Coding) -> Tensor:
    if coding in (Coding.MXFP4, Coding.NVFP4):
        magnitudes = torch.tensor(_E2M1, device=weight.device)
        return torch.cat([magnitudes, -magnitudes])[unpack_halves(weight).long()]
    if coding is Coding.INT4:
        return unpack_halves(weight).float()
    return weight.float()


def _scales(weights: LinearWeights) -> Tensor:
    assert weights.scales is not None
    assert weights.scheme is not None
    if weights.scheme.coding is Coding.MXFP4:
        return torch.exp2(weights.scales.float() - 127)
    scales = weights.scales.float()
    if weights.scheme.coding is Coding.NVFP4:
        assert weights.global_scales is not None
        scales = scales * weights.global_scales[:, None]
    return scales


def _spread(scales: Tensor, q: Tensor, scheme: WeightScheme) -> Tensor:
    """Scales repeated so that they broadcast over `[N, K]`."""
    if scheme.granularity is Granularity.TENSOR:
        return scales
    if scheme.granularity is Granularity.CHANNEL:
        return scales[:, None]
    wide = scales.repeat_interleave(scheme.group_size, 1)[:, : q.shape[1]]
    if scheme.granularity is Granularity.GROUP:
        return wide
    return wide.repeat_interleave(scheme.group_size, 0)[: q.shape[0]]


def _dynamic_scale(largest: Tensor, largest_code: float) -> Tensor:
    return torch.where(largest > 0, largest / largest_code, torch.ones_like(largest))


def _padded(values: Tensor, multiple: int) -> Tensor:
    return torch.nn.functional.pad(values, (0, -values.shape[-1] % multiple))


def _random_blocks(
    random_bytes: Callable[..., Tensor],
    scheme: WeightScheme,
    shape: tuple[int, int],
    deviation: float,
) -> Tensor:
    block = scheme.coding.block
    assert block is not None
    weight = random_bytes(shape[0], shape[1] // block.elements, block.size_bytes)
    # Random bits would make NaN and infinity of the half-precision numbers.
    scale = torch.tensor([deviation / _BLOCK_SPREAD[scheme.coding]]).half().view(torch.uint8)
    for begin in _HALVES.get(scheme.coding, (0,)):
        weight[..., begin : begin + 2] = scale.to(weight.device)
    return weight.flatten(1)


def _random_microscaled(
    random_bytes: Callable[..., Tensor],
    scheme: WeightScheme,
    shape: tuple[int, int],
    deviation: float,
) -> LinearWeights:
    weight = random_bytes(shape[0], shape[1] // 2)
    codes = random_bytes(shape[0], shape[1] // scheme.group_size) & 1
    if scheme.coding is Coding.MXFP4:
        exponent = round(math.log2(deviation / 3))
        return LinearWeights(scheme=scheme, weight=weight, scales=codes + (126 + exponent))
    scales = (codes.float() + 1).to(torch.float8_e4m3fn)
    level = torch.full((shape[0],), deviation / 4, device=weight.device)
    return LinearWeights(scheme=scheme, weight=weight, scales=scales, global_scales=level)
