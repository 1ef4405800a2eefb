"""Checkpoints quantized with AWQ or GPTQ: safetensors that hold a matrix in several tensors.

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

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from chiplet.api import Coding, Granularity, LinearWeights, WeightScheme
from chiplet.config import ModelConfig, StoredQuantization
from chiplet.errors import ModelError
from chiplet.formats.safetensors_checkpoint import SafetensorsCheckpoint
from chiplet.reference.quantization import pack_halves

_PARTS = ("qweight", "qzeros", "scales", "g_idx")
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


class PackedCheckpoint:
    """A model of safetensors, some of whose matrices are quantized.

    Attributes:
        config: facts about the model.
        is_dummy: False; there are tensors to read.
        schemes: the quantized matrices, by the name that a plain one would have.
    """

    is_dummy = False

    def __init__(self, inner: SafetensorsCheckpoint, stored: StoredQuantization) -> None:
        """Find the quantized matrices.

        Raises:
            ModelError: there are none.
        """
        self.config: ModelConfig = inner.config
        self._inner = inner
        self._stored = stored
        shapes = inner.shapes
        self.schemes: Mapping[str, WeightScheme] = {
            f"{stem}.weight": self._scheme(stem, shapes)
            for stem, _, part in (name.rpartition(".") for name in shapes)
            if part == "qweight"
        }
        if not self.schemes:
            raise ModelError(
                f"The config says that the checkpoint is quantized with {stored.method}, but no "
                f"tensor is called '*.qweight'.",
                remedy="Check that config.json belongs to the weights.",
            )

    def tensors(self, dtype: torch.dtype) -> Iterator[tuple[str, Tensor | LinearWeights]]:
        """Names and tensors; a quantized matrix comes when the last of its tensors was read."""
        waiting: dict[str, dict[str, Tensor]] = {}
        for name, tensor in self._inner.tensors(dtype, as_stored=self._is_part):
            stem, _, part = name.rpartition(".")
            if not self._is_part(name):
                yield name, tensor
                continue
            parts = waiting.setdefault(stem, {})
            parts[part] = tensor
            if all(each in parts for each in self._part_names(stem)):
                yield f"{stem}.weight", self._decoded(stem, waiting.pop(stem))
        for stem, parts in waiting.items():
            missing = [each for each in self._part_names(stem) if each not in parts]
            raise ModelError(
                f"Matrix '{stem}' lacks {', '.join(missing)}.", remedy="Download the model again."
            )

    def _is_part(self, name: str) -> bool:
        stem, _, part = name.rpartition(".")
        return part in _PARTS and f"{stem}.weight" in self.schemes

    def _part_names(self, stem: str) -> tuple[str, ...]:
        return _PARTS if f"{stem}.g_idx" in self._inner.shapes else _PARTS[:-1]

    def _scheme(self, stem: str, shapes: Mapping[str, tuple[int, ...]]) -> WeightScheme:
        rows = shapes[f"{stem}.qweight"][0]
        num_inputs = rows if self._stored.method == "awq" else 8 * rows
        return WeightScheme(
            coding=Coding.INT4,
            granularity=Granularity.GROUP,
            group_size=self._stored.group_size or num_inputs,
            has_zero_points=True,
        )

    def _decoded(self, stem: str, parts: Mapping[str, Tensor]) -> LinearWeights:
        """Canonical tensors."""
        scheme = self.schemes[f"{stem}.weight"]
        is_awq = self._stored.method == "awq"
        zeros = _numbers(parts["qzeros"])  # [K / G, N / 8, 8]
        if is_awq:
            codes = _in_order(_numbers(parts["qweight"])).flatten(1).t()
            zeros = _in_order(zeros)
        else:
            codes = _numbers(parts["qweight"]).transpose(1, 2).flatten(0, 1).t()
            zeros = zeros + self._stored.zero_offset
        num_inputs, scales = codes.shape[1], parts["scales"]
        _check_order(stem, parts.get("g_idx"), num_inputs, scheme.group_size)
        zero_points = zeros.flatten(1).t().contiguous()
        if scales.shape != (num_inputs // scheme.group_size, codes.shape[0]):
            raise ModelError(
                f"Matrix '{stem}' has scales of shape {tuple(scales.shape)}, which do not fit "
                f"{tuple(codes.shape)} numbers in groups of {scheme.group_size}.",
                remedy="Check that config.json belongs to the weights.",
            )
        return LinearWeights(
            scheme=scheme,
            weight=pack_halves(codes.contiguous()),
            scales=scales.t().float().contiguous(),
            zero_points=zero_points,
        )


def _numbers(words: Tensor) -> Tensor:
    """The eight numbers of each word, `[..., 8] uint8`."""
    shifts = torch.arange(0, 32, 4, dtype=torch.int32)
    return ((words.unsqueeze(-1) >> shifts) & 15).to(torch.uint8)


def _in_order(numbers: Tensor) -> Tensor:
    """Numbers of AWQ's words in the order of outputs."""
    positions = [_AWQ_ORDER.index(each) for each in range(8)]
    return numbers[..., positions]


def _check_order(stem: str, groups: Tensor | None, num_inputs: int, group_size: int) -> None:
    if groups is None or torch.equal(groups.long(), torch.arange(num_inputs) // group_size):
        return
    raise ModelError(
        f"Matrix '{stem}' has its inputs in another order than its groups (desc_act).",
        remedy="Take a checkpoint that was quantized without act-order.",
    )
