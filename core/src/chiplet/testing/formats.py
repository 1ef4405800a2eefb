"""Checks of quantization formats, for their authors' tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from chiplet.api import (
    LayerFacts,
    QuantizationFormat,
    StoredCheckpoint,
    StoredFormat,
    StoredTensor,
)
from chiplet.reference.canonical import fault_of
from chiplet.reference.quantization import dequantize

_TYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}


def check_stored_format(
    subject: StoredFormat,
    *,
    quantization: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    values: Mapping[str, Tensor],
) -> None:
    """Hold a format of quantized checkpoints against what a small checkpoint is known to mean.

    Args:
        subject: the format.
        quantization: `quantization_config` of the checkpoint.
        tensors: all tensors of the checkpoint, as they are stored.
        values: what each of its quantized matrices is worth, `[N, K] float32`, by the name of the
            plain matrix.

    Raises:
        AssertionError: the format does not recognize the checkpoint, or recognizes a plain one;
            finds other matrices; gives a tensor twice; decodes to tensors that are not canonical;
            or to other numbers.
    """
    facts = StoredCheckpoint(
        quantization=quantization,
        tensors={
            name: StoredTensor(tuple(each.shape), _TYPE_NAMES[each.dtype])
            for name, each in tensors.items()
        },
    )
    assert subject.recognizes(facts), f"{subject.name} does not recognize the checkpoint"
    plain = StoredCheckpoint(
        quantization={}, tensors={"model.norm.weight": StoredTensor((64,), "BF16")}
    )
    assert not subject.recognizes(plain), f"{subject.name} recognizes a plain checkpoint"
    matrices = subject.matrices(facts)
    assert set(matrices) == set(values), f"it finds {sorted(matrices)}, not {sorted(values)}"
    places = [name for each in matrices.values() for name in each.parts.values()]
    assert len(places) == len(set(places)), "a tensor is given twice"
    for name, matrix in matrices.items():
        # Copies, since the format may take them over.
        parts = {part: tensors[place].clone() for part, place in matrix.parts.items()}
        weights = subject.decode(facts, matrix, parts)
        fault = fault_of(weights, matrix.scheme)
        assert not fault, f"{name}: {fault}"
        torch.testing.assert_close(
            dequantize(weights), values[name].float(), msg=lambda text, name=name: f"{name}: {text}"
        )


def check_quantization_format(
    subject: QuantizationFormat, *, out_features: int = 32, in_features: int = 256
) -> None:
    """Hold a format that quantizes while loading against its own schemes.

    Args:
        subject: the format.
        out_features: N of the weight that is tried.
        in_features: K.

    Raises:
        AssertionError: its tensors are not canonical, it changes the weight, its numbers are
            farther from the weight than half of the weight is from nothing, or it takes NaN.
    """
    random = torch.Generator().manual_seed(0)
    weight = torch.randn(out_features, in_features, generator=random)
    layers = [
        LayerFacts(
            name=f"model.layers.0.{role}",
            role=role,
            in_features=in_features,
            out_features=out_features,
        )
        for role in ("qkv_proj", "down_proj")
    ]
    schemes = {layer.role: subject.scheme(layer) for layer in layers}
    assert any(schemes.values()), f"{subject.name} leaves qkv_proj and down_proj plain"
    for scheme in filter(None, schemes.values()):
        before = weight.clone()
        weights = subject.quantize(weight, scheme)
        assert torch.equal(weight, before), "the weight was changed"
        fault = fault_of(weights, scheme)
        assert not fault, fault
        error = (dequantize(weights) - weight).square().mean() / weight.square().mean()
        assert float(error) < 0.25, f"normalised mean square error {float(error):.3f}"
