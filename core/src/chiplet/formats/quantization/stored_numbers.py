"""Formats fp8, modelopt and compressed-tensors: matrices of numbers, and scales beside them.

| tensor | meaning |
|---|---|
| `X.weight` | `[N, K]`, E4M3 or int8; of NVFP4 by ModelOpt `[N, K / 2]`, two E2M1 in a byte |
| `X.weight_packed` | of NVFP4 by compressed-tensors, the same |
| `X.weight_scale` | one number, `[N, 1]`, or of NVFP4 `[N, K / 16]` in E4M3 |
| `X.weight_scale_inv` | of fp8, `[ceil(N / 128), ceil(K / 128)]`; a factor despite its name |
| `X.weight_scale_2` | of NVFP4 by ModelOpt: one number that multiplies all scales |
| `X.weight_global_scale` | of NVFP4 by compressed-tensors: one number that divides them |
| `X.input_scale`, `X.input_global_scale` | one number for inputs; NVFP4's are not used |

Of a byte of two numbers the first stands in the low half. Inputs of NVFP4 are kept: only what has
products of its own for four bits gains by rounding them.

Source: fine-grained fp8 of Transformers, ModelOpt's exported checkpoints, compressed-tensors 0.10.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from typing import Any, cast

from torch import Tensor

from chiplet.api import (
    Activations,
    Coding,
    Granularity,
    LinearWeights,
    StoredCheckpoint,
    StoredMatrix,
    StoredTensor,
    WeightScheme,
)
from chiplet.errors import ModelError

_BLOCK = 128
_CODINGS = {"F8_E4M3": Coding.FP8_E4M3, "I8": Coding.INT8}
_BESIDE = (
    "weight_scale",
    "weight_scale_inv",
    "weight_scale_2",
    "weight_global_scale",
    "input_scale",
    "input_global_scale",
)
_EIGHT_BITS = frozenset({"float-quantized", "int-quantized"})
_NVFP4 = WeightScheme(coding=Coding.NVFP4, granularity=Granularity.GROUP, group_size=16)


class Fp8:
    """E4M3 in blocks of 128 by 128, or with a scale for the whole matrix."""

    name = "fp8"
    summary = "fp8 (E4M3 per tensor or in blocks of 128)"

    def recognizes(self, checkpoint: StoredCheckpoint) -> bool:
        """By method and size of blocks."""
        facts = checkpoint.quantization
        blocks = facts.get("weight_block_size") or [_BLOCK, _BLOCK]
        return facts.get("quant_method") == self.name and list(blocks) == [_BLOCK, _BLOCK]

    def matrices(self, checkpoint: StoredCheckpoint) -> Mapping[str, StoredMatrix]:
        """By their scales."""
        is_static = checkpoint.quantization.get("activation_scheme") == "static"
        return _eight_bits(checkpoint, Activations.STATIC if is_static else Activations.PER_TOKEN)

    def decode(
        self, checkpoint: StoredCheckpoint, matrix: StoredMatrix, parts: Mapping[str, Tensor]
    ) -> LinearWeights:
        """See `chiplet.api.StoredFormat.decode`."""
        return _decoded(matrix, parts)


class Modelopt:
    """E4M3 with one scale for weights and one for inputs, or NVFP4."""

    name = "modelopt"
    summary = "modelopt of FP8 and NVFP4"

    def recognizes(self, checkpoint: StoredCheckpoint) -> bool:
        """By method and algorithm."""
        facts = checkpoint.quantization
        return facts.get("quant_method") == self.name and _algorithm(facts) in ("FP8", "NVFP4")

    def matrices(self, checkpoint: StoredCheckpoint) -> Mapping[str, StoredMatrix]:
        """By their scales."""
        if _algorithm(checkpoint.quantization) == "NVFP4":
            return dict(_four_bits(checkpoint, "weight"))
        return _eight_bits(checkpoint, Activations.STATIC)

    def decode(
        self, checkpoint: StoredCheckpoint, matrix: StoredMatrix, parts: Mapping[str, Tensor]
    ) -> LinearWeights:
        """See `chiplet.api.StoredFormat.decode`."""
        return _decoded(matrix, parts)


class CompressedTensors:
    """E4M3 or int8 per tensor or output, or NVFP4."""

    name = "compressed-tensors"
    summary = "compressed-tensors of float-quantized, int-quantized and nvfp4-pack-quantized"

    def recognizes(self, checkpoint: StoredCheckpoint) -> bool:
        """By method and format."""
        facts = checkpoint.quantization
        known = facts.get("format") in (*_EIGHT_BITS, "nvfp4-pack-quantized")
        return facts.get("quant_method") == self.name and known

    def matrices(self, checkpoint: StoredCheckpoint) -> Mapping[str, StoredMatrix]:
        """By their scales."""
        if checkpoint.quantization["format"] not in _EIGHT_BITS:
            return dict(_four_bits(checkpoint, "weight_packed"))
        return _eight_bits(checkpoint, _activations(checkpoint.quantization))

    def decode(
        self, checkpoint: StoredCheckpoint, matrix: StoredMatrix, parts: Mapping[str, Tensor]
    ) -> LinearWeights:
        """See `chiplet.api.StoredFormat.decode`."""
        return _decoded(matrix, parts)


def _algorithm(facts: Mapping[str, Any]) -> str:
    return str(facts.get("quant_algo", "")).upper()


def _activations(facts: Mapping[str, Any]) -> Activations:
    """How the one group of layers treats its inputs.

    Raises:
        ModelError: there are several that treat them differently.
    """
    groups = cast("Mapping[str, Mapping[str, Any]]", facts.get("config_groups") or {})
    inputs = [each.get("input_activations") for each in groups.values()]
    found = {
        Activations.KEPT
        if each is None
        else Activations.PER_TOKEN
        if each.get("dynamic")
        else Activations.STATIC
        for each in inputs
    }
    if len(found) > 1:
        raise ModelError(
            "config_groups treat inputs in different ways.",
            remedy="Take a checkpoint whose layers are quantized alike, or a GGUF file.",
        )
    return next(iter(found), Activations.KEPT)


def _parts(checkpoint: StoredCheckpoint, stem: str, weight: str) -> dict[str, str]:
    names = {part: f"{stem}.{part}" for part in (weight, *_BESIDE)}
    return {part: name for part, name in names.items() if name in checkpoint.tensors}


def _stems(checkpoint: StoredCheckpoint, weight: str) -> Iterator[tuple[str, StoredTensor]]:
    for name, tensor in checkpoint.tensors.items():
        stem, _, part = name.rpartition(".")
        if part == weight:
            yield stem, tensor


def _eight_bits(
    checkpoint: StoredCheckpoint, activations: Activations
) -> Mapping[str, StoredMatrix]:
    """Matrices of E4M3 and int8, by the names of plain ones."""
    found: dict[str, StoredMatrix] = {}
    for stem, tensor in _stems(checkpoint, "weight"):
        coding, parts = _CODINGS.get(tensor.dtype), _parts(checkpoint, stem, "weight")
        if coding is None:
            continue
        scale = parts.get("weight_scale") or parts.get("weight_scale_inv")
        if scale is None or f"{stem}.weight_zero_point" in checkpoint.tensors:
            raise ModelError(
                f"Matrix '{stem}.weight' has {'no scale' if scale is None else 'zero points'}.",
                remedy="Take another checkpoint of the model, or a GGUF file.",
            )
        size = prod(checkpoint.tensors[scale].shape)
        scheme = _scheme(coding, tensor, size, activations, has_input="input_scale" in parts)
        found[f"{stem}.weight"] = StoredMatrix(parts=parts, scheme=scheme)
    return found


def _scheme(
    coding: Coding, tensor: StoredTensor, num_scales: int, activations: Activations, *,
    has_input: bool,
) -> WeightScheme:  # fmt: skip
    """What the number of scales means.

    Raises:
        ModelError: it fits nothing that is known.
    """
    num_rows, num_columns = tensor.shape
    if activations is Activations.STATIC and not has_input:
        activations = Activations.KEPT
    if num_scales in (1, num_rows):
        granularity = Granularity.TENSOR if num_scales == 1 else Granularity.CHANNEL
        return WeightScheme(coding=coding, granularity=granularity, activations=activations)
    if num_scales == -(-num_rows // _BLOCK) * -(-num_columns // _BLOCK):
        return WeightScheme(
            coding=coding,
            granularity=Granularity.BLOCK,
            group_size=_BLOCK,
            activations=Activations.PER_TOKEN_GROUP,
        )
    raise ModelError(
        f"{num_scales} scales do not fit a matrix of {num_rows} by {num_columns}.",
        remedy="Check that config.json belongs to the weights.",
    )


def _four_bits(checkpoint: StoredCheckpoint, weight: str) -> Iterator[tuple[str, StoredMatrix]]:
    """Matrices of NVFP4, by the names of plain ones."""
    for stem, tensor in _stems(checkpoint, weight):
        parts = _parts(checkpoint, stem, weight)
        if tensor.dtype == "U8" and "weight_scale" in parts:
            # Named whether it is there or not, so that it is missed by its name.
            level = "weight_scale_2" if weight == "weight" else "weight_global_scale"
            parts[level] = f"{stem}.{level}"
            yield f"{stem}.weight", StoredMatrix(parts=parts, scheme=_NVFP4)


def _decoded(matrix: StoredMatrix, parts: Mapping[str, Tensor]) -> LinearWeights:
    """Canonical tensors of any of them."""
    scheme = matrix.scheme
    assert scheme is not None
    if scheme.coding is Coding.NVFP4:
        weight = parts["weight_packed"] if "weight_packed" in parts else parts["weight"]
        if "weight_global_scale" in parts:
            level = 1 / parts["weight_global_scale"].float()
        else:
            level = parts["weight_scale_2"].float()
        return LinearWeights(
            scheme=scheme,
            weight=weight,
            scales=parts["weight_scale"],
            global_scales=level.reshape(1).repeat(len(weight)),
        )
    weight = parts["weight"]
    scales = parts["weight_scale" if "weight_scale" in parts else "weight_scale_inv"].float()
    if scheme.granularity is not Granularity.BLOCK:
        scales = scales.flatten()
    is_static = scheme.activations is Activations.STATIC
    input_scale = parts["input_scale"].float().reshape(1) if is_static else None
    return LinearWeights(
        scheme=scheme,
        weight=weight,
        scales=scales.contiguous(),
        input_scale=input_scale,
    )
