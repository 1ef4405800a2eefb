"""Check of canonical tensors: shapes and types of quantized weights, before anybody packs them."""

from __future__ import annotations

import torch
from torch import Tensor

from chiplet.api import Activations, Coding, Granularity, LinearWeights, WeightScheme
from chiplet.reference.quantization import scales_shape

_HALVES = (Coding.INT4, Coding.MXFP4, Coding.NVFP4)
_SCALE_TYPES = {Coding.MXFP4: torch.uint8, Coding.NVFP4: torch.float8_e4m3fn}
_WEIGHT_TYPES = {Coding.INT8: torch.int8, Coding.FP8_E4M3: torch.float8_e4m3fn}


def fault_of(weights: LinearWeights, scheme: WeightScheme | None) -> str:
    """What is not as the scheme's canonical tensors are, in words; empty if all is well.

    Shapes, types and contiguity are looked at; no number is.
    """
    if weights.scheme != scheme:
        return f"its scheme is '{weights.scheme or 'plain'}', not '{scheme or 'plain'}'"
    weight = weights.weight
    if weight.ndim != 2:
        return f"weight has shape {list(weight.shape)}, not two dimensions"
    wanted: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}
    if scheme is None:
        if not weight.is_floating_point():
            return f"weight is of type {_name(weight.dtype)}, not floating-point"
    else:
        block = scheme.coding.block
        if block is not None and weight.shape[1] % block.size_bytes:
            return f"rows of {weight.shape[1]} bytes are no whole blocks of {block.size_bytes}"
        rows, columns = weights.shape
        if scheme.granularity is Granularity.GROUP and columns % scheme.group_size:
            return f"{columns} input features are no whole groups of {scheme.group_size}"
        wanted["weight"] = (tuple(weight.shape), _WEIGHT_TYPES.get(scheme.coding, torch.uint8))
        wanted |= _wanted(scheme, (rows, columns))
    for name in ("weight", "scales", "zero_points", "global_scales", "input_scale"):
        fault = _fault(name, getattr(weights, name), wanted.get(name))
        if fault and not (scheme is None and name == "weight"):
            return fault
    return "" if weight.is_contiguous() else "weight is not contiguous"


def _wanted(
    scheme: WeightScheme, shape: tuple[int, int]
) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shape and type of each tensor beside the weight."""
    if scheme.coding.block is not None:
        return {}
    scales = scales_shape(scheme, shape)
    wanted = {"scales": (scales, _SCALE_TYPES.get(scheme.coding, torch.float32))}
    if scheme.has_zero_points:
        kind = torch.uint8 if scheme.coding in _HALVES else torch.int8
        wanted["zero_points"] = (scales, kind)
    if scheme.coding is Coding.NVFP4:
        wanted["global_scales"] = ((shape[0],), torch.float32)
    if scheme.activations is Activations.STATIC:
        wanted["input_scale"] = ((1,), torch.float32)
    return wanted


def _fault(
    name: str, tensor: Tensor | None, wanted: tuple[tuple[int, ...], torch.dtype] | None
) -> str:
    if wanted is None:
        return "" if tensor is None else f"{name} is given, and the scheme has none"
    shape, dtype = wanted
    if tensor is None:
        return f"{name} is missing"
    if tuple(tensor.shape) != shape or tensor.dtype != dtype:
        found = f"{list(tensor.shape)} {_name(tensor.dtype)}"
        return f"{name} is {found}, not {list(shape)} {_name(dtype)}"
    return "" if tensor.is_contiguous() else f"{name} is not contiguous"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
