"""Formats awq and gptq: matrices of four bits, eight numbers to a word, as checkpoints store them.

Legend: K inputs, N outputs, G inputs in a group; a
word is an int32 of eight numbers of four bits.

| tensor | AWQ | GPTQ |
|---|---|---|
| `X.qweight` | `[K, N / 8]`, a word has eight outputs | `[K / 8, N]`, a word has eight inputs |
| `X.qzeros` | `[K / G, N / 8]`, as above | `[K / G, N / 8]`, a word has eight outputs; one less \
than the zero point, except in files that say `gptq_v2` |
| `X.scales` | `[K / G, N]` | `[K / G, N]` |
| `X.g_idx` | - | `[K]`: the group of each input |

Numbers of a word are in order from its lowest bits, but for those of AWQ, where position i holds
output (0, 2, 4, 6, 1, 3, 5, 7)[i].

Source: WQLinear_GEMM of the AutoAWQ project, QuantLinear of the GPTQModel project.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from chiplet.api import (
    Coding,
    Granularity,
    LinearWeights,
    StoredCheckpoint,
    StoredMatrix,
    WeightScheme,
)
from chiplet.errors import ModelError
from chiplet.reference.quantization import pack_halves

_PARTS = ("qweight", "qzeros", "scales", "g_idx")
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


class Awq:
    """Words of eight outputs."""

    name = "awq"
    summary = "awq (version gemm) of 4 bits"

    def recognizes(self, checkpoint: StoredCheckpoint) -> bool:
        """By method, bits and version."""
        version = str(checkpoint.quantization.get("version") or "gemm").lower()
        return _is_packed(checkpoint, self.name) and version == "gemm"

    def matrices(self, checkpoint: StoredCheckpoint) -> Mapping[str, StoredMatrix]:
        """By their tensors 'X.qweight'."""
        return _matrices(checkpoint, inputs_in_row=1)

    def decode(
        self, checkpoint: StoredCheckpoint, matrix: StoredMatrix, parts: Mapping[str, Tensor]
    ) -> LinearWeights:
        """See `chiplet.api.StoredFormat.decode`."""
        codes = _in_order(_numbers(parts["qweight"])).flatten(1).t()
        return _weights(matrix, codes, _in_order(_numbers(parts["qzeros"])), parts)


class Gptq:
    """Words of eight inputs."""

    name = "gptq"
    summary = "gptq of 4 bits"

    def recognizes(self, checkpoint: StoredCheckpoint) -> bool:
        """By method and bits."""
        return _is_packed(checkpoint, self.name)

    def matrices(self, checkpoint: StoredCheckpoint) -> Mapping[str, StoredMatrix]:
        """By their tensors 'X.qweight'."""
        return _matrices(checkpoint, inputs_in_row=8)

    def decode(
        self, checkpoint: StoredCheckpoint, matrix: StoredMatrix, parts: Mapping[str, Tensor]
    ) -> LinearWeights:
        """See `chiplet.api.StoredFormat.decode`."""
        codes = _numbers(parts["qweight"]).transpose(1, 2).flatten(0, 1).t()
        is_old = checkpoint.quantization.get("checkpoint_format", "gptq") != "gptq_v2"
        assert matrix.scheme is not None
        _check_order(parts.get("g_idx"), codes.shape[1], matrix.scheme.group_size)
        return _weights(matrix, codes, _numbers(parts["qzeros"]) + int(is_old), parts)


def _is_packed(checkpoint: StoredCheckpoint, method: str) -> bool:
    facts = checkpoint.quantization
    return facts.get("quant_method") == method and facts.get("bits") == 4


def _matrices(checkpoint: StoredCheckpoint, *, inputs_in_row: int) -> Mapping[str, StoredMatrix]:
    size = checkpoint.quantization.get("group_size", 128)
    if not isinstance(size, int) or size < -1 or size == 0:
        raise ModelError(
            f"group_size is {size!r}; expected a positive integer, or -1 for all.",
            remedy="Check that config.json belongs to this model and is complete.",
        )
    found: dict[str, StoredMatrix] = {}
    for name, tensor in checkpoint.tensors.items():
        stem, _, part = name.rpartition(".")
        if part != "qweight":
            continue
        parts = {each: f"{stem}.{each}" for each in _PARTS[:-1]}
        if f"{stem}.g_idx" in checkpoint.tensors:
            parts["g_idx"] = f"{stem}.g_idx"
        scheme = WeightScheme(
            coding=Coding.INT4,
            granularity=Granularity.GROUP,
            group_size=inputs_in_row * tensor.shape[0] if size == -1 else size,
            has_zero_points=True,
        )
        found[f"{stem}.weight"] = StoredMatrix(parts=parts, scheme=scheme)
    return found


def _weights(
    matrix: StoredMatrix, codes: Tensor, zeros: Tensor, parts: Mapping[str, Tensor]
) -> LinearWeights:
    """Canonical tensors.

    Shapes: codes `[N, K]`; zeros `[K / G, N / 8, 8]`.
    """
    assert matrix.scheme is not None
    num_outputs, num_inputs = codes.shape
    size, scales = matrix.scheme.group_size, parts["scales"]
    if scales.shape != (num_inputs // size, num_outputs):
        raise ModelError(
            f"scales have shape {tuple(scales.shape)}, which do not fit {tuple(codes.shape)} "
            f"numbers in groups of {size}.",
            remedy="Check that config.json belongs to the weights.",
        )
    return LinearWeights(
        scheme=matrix.scheme,
        weight=pack_halves(codes.contiguous()),
        scales=scales.t().float().contiguous(),
        zero_points=zeros.flatten(1).t().contiguous(),
    )


def _numbers(words: Tensor) -> Tensor:
    """The eight numbers of each word, `[..., 8] uint8`."""
    shifts = torch.arange(0, 32, 4, dtype=torch.int32)
    return ((words.unsqueeze(-1) >> shifts) & 15).to(torch.uint8)


def _in_order(numbers: Tensor) -> Tensor:
    """Numbers of AWQ's words in the order of outputs."""
    positions = [_AWQ_ORDER.index(each) for each in range(8)]
    return numbers[..., positions]


def _check_order(groups: Tensor | None, num_inputs: int, group_size: int) -> None:
    if groups is None or torch.equal(groups.long(), torch.arange(num_inputs) // group_size):
        return
    raise ModelError(
        "inputs stand in another order than their groups (desc_act).",
        remedy="Take a checkpoint that was quantized without act-order.",
    )
