"""Formats fp8, modelopt, compressed-tensors and mxfp4: matrices of numbers, and scales beside them.

| tensor | meaning |
|---|---|
| `X.weight` | `[N, K]`, E4M3 or int8; of NVFP4 by ModelOpt `[N, K / 2]`, two E2M1 in a byte |
| `X.weight_packed` | of NVFP4 and MXFP4 by compressed-tensors, the same |
| `X.weight_scale` | one number, or `[N, 1]`; NVFP4: `[N, K / 16]` E4M3, MXFP4: `[N, K / 32]` E8M0 |
| `X.weight_scale_inv` | of fp8, `[ceil(N / 128), ceil(K / 128)]`; a factor despite its name |
| `X.weight_scale_2` | of NVFP4 by ModelOpt: one number that multiplies all scales |
| `X.weight_global_scale` | of NVFP4 by compressed-tensors: one number that divides them |
| `X.input_scale`, `X.input_global_scale` | one number for inputs; NVFP4's are not used |
| `X_blocks`, `X_scales` | of mxfp4, `[.., N, K / 32, 16]` and `[.., N, K / 32]` E8M0: all rows |

Of a byte of two numbers the first stands in the low half. Inputs of four bits are kept: only what
has products of its own for four bits gains by rounding them.

Source: fine-grained fp8 and mxfp4 of Transformers, ModelOpt's exported checkpoints,
compressed-tensors 0.10 (MXFP4: 0.13).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
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
_NVFP4_PACKED, _MXFP4_PACKED = "nvfp4-pack-quantized", "mxfp4-pack-quantized"
_NVFP4 = WeightScheme(coding=Coding.NVFP4, granularity=Granularity.GROUP, group_size=16)
_MXFP4 = WeightScheme(coding=Coding.MXFP4, granularity=Granularity.GROUP, group_size=32)


class StoredNumbers:
    """A `chiplet.api.StoredFormat` whose matrices stand in tensors of their own, as numbers."""

    def __init__(
        self,
        name: str,
        summary: str,
        *,
        knows: Callable[[Mapping[str, Any]], bool],
        find: Callable[[StoredCheckpoint], Mapping[str, StoredMatrix]],
    ) -> None:
        """Take name and summary, and what this format has of its own.

        Args:
            name: its `quant_method`.
            summary: what a message says of it.
            knows: whether `quantization_config` is one that it reads.
            find: its matrices, by the names of plain ones.
        """
        self.name = name
        self.summary = summary
        self._knows = knows
        self._find = find

    def recognizes(self, checkpoint: StoredCheckpoint) -> bool:
        """See `chiplet.api.StoredFormat.recognizes`."""
        facts = checkpoint.quantization
        return facts.get("quant_method") == self.name and self._knows(facts)

    def matrices(self, checkpoint: StoredCheckpoint) -> Mapping[str, StoredMatrix]:
        """See `chiplet.api.StoredFormat.matrices`."""
        return self._find(checkpoint)

    def decode(
        self, checkpoint: StoredCheckpoint, matrix: StoredMatrix, parts: Mapping[str, Tensor]
    ) -> LinearWeights:
        """See `chiplet.api.StoredFormat.decode`."""
        return _decoded(matrix, parts)


def _in_known_blocks(facts: Mapping[str, Any]) -> bool:
    return list(facts.get("weight_block_size") or [_BLOCK, _BLOCK]) == [_BLOCK, _BLOCK]


def _of_fp8(checkpoint: StoredCheckpoint) -> Mapping[str, StoredMatrix]:
    is_static = checkpoint.quantization.get("activation_scheme") == "static"
    return _eight_bits(checkpoint, Activations.STATIC if is_static else Activations.PER_TOKEN)


def _of_modelopt(checkpoint: StoredCheckpoint) -> Mapping[str, StoredMatrix]:
    if _algorithm(checkpoint.quantization) == "NVFP4":
        return dict(_four_bits(checkpoint, "weight", "weight_scale_2"))
    return _eight_bits(checkpoint, Activations.STATIC)


def _of_compressed_tensors(checkpoint: StoredCheckpoint) -> Mapping[str, StoredMatrix]:
    kind = checkpoint.quantization["format"]
    if kind in _EIGHT_BITS:
        return _eight_bits(checkpoint, _activations(checkpoint.quantization))
    level = "weight_global_scale" if kind == _NVFP4_PACKED else None
    return dict(_four_bits(checkpoint, "weight_packed", level))


def _of_mxfp4(checkpoint: StoredCheckpoint) -> Mapping[str, StoredMatrix]:
    """Matrices in blocks, and scales beside them; of stacked ones, all rows."""
    found: dict[str, StoredMatrix] = {}
    for name in checkpoint.tensors:
        stem = name.removesuffix("_blocks")
        if stem != name:
            parts = {"blocks": name, "scales": f"{stem}_scales"}
            found[stem] = StoredMatrix(parts=parts, scheme=_MXFP4)
    return found


FP8 = StoredNumbers(
    "fp8",
    "fp8 (E4M3 per tensor or in blocks of 128)",
    knows=_in_known_blocks,
    find=_of_fp8,
)
"""E4M3 in blocks of 128 by 128, or with a scale for the whole matrix."""

MODELOPT = StoredNumbers(
    "modelopt",
    "modelopt of FP8 and NVFP4",
    knows=lambda facts: _algorithm(facts) in ("FP8", "NVFP4"),
    find=_of_modelopt,
)
"""E4M3 with one scale for weights and one for inputs, or NVFP4."""

COMPRESSED_TENSORS = StoredNumbers(
    "compressed-tensors",
    "compressed-tensors of float-quantized, int-quantized, nvfp4-pack-quantized and "
    "mxfp4-pack-quantized",
    knows=lambda facts: facts.get("format") in (*_EIGHT_BITS, _NVFP4_PACKED, _MXFP4_PACKED),
    find=_of_compressed_tensors,
)
"""E4M3 or int8 per tensor or output, NVFP4, or MXFP4."""

MXFP4 = StoredNumbers(
    "mxfp4",
    "mxfp4 (blocks and scales, as GPT-OSS has them)",
    knows=lambda facts: True,
    find=_of_mxfp4,
)
"""Matrices in MXFP4. Experts, stacked in one tensor, are one matrix of the rows of all."""


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


def _four_bits(
    checkpoint: StoredCheckpoint, weight: str, level: str | None
) -> Iterator[tuple[str, StoredMatrix]]:
    """Matrices of NVFP4, or of MXFP4 if there is no scale of scales, by the names of plain ones."""
    for stem, tensor in _stems(checkpoint, weight):
        parts = _parts(checkpoint, stem, weight)
        if tensor.dtype == "U8" and "weight_scale" in parts:
            if level is not None:
                # Named whether it is there or not, so that it is missed by its name.
                parts[level] = f"{stem}.{level}"
            scheme = _MXFP4 if level is None else _NVFP4
            yield f"{stem}.weight", StoredMatrix(parts=parts, scheme=scheme)


def _decoded(matrix: StoredMatrix, parts: Mapping[str, Tensor]) -> LinearWeights:
    """Canonical tensors of any of them."""
    scheme = matrix.scheme
    assert scheme is not None
    if scheme.coding is Coding.MXFP4:
        blocks = parts["blocks"] if "blocks" in parts else parts["weight_packed"]
        scales = parts["scales"] if "scales" in parts else parts["weight_scale"]
        rows = scales.flatten(0, -2)
        return LinearWeights(scheme=scheme, weight=blocks.reshape(len(rows), -1), scales=rows)
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
