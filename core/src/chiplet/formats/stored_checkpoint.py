"""Checkpoints of safetensors some of whose matrices are quantized already."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from chiplet.api import (
    LinearWeights,
    StoredCheckpoint,
    StoredFormat,
    StoredMatrix,
    WeightScheme,
)
from chiplet.config import ModelConfig
from chiplet.errors import ModelError
from chiplet.formats.safetensors_checkpoint import SafetensorsCheckpoint
from chiplet.reference.canonical import fault_of

_log = logging.getLogger(__name__)


class QuantizedCheckpoint:
    """A model of safetensors that a stored format reads.

    Attributes:
        config: facts about the model.
        is_dummy: False; there are tensors to read.
        schemes: the matrices that stay in a coding, by the name that a plain one would have.
    """

    is_dummy = False

    def __init__(
        self, inner: SafetensorsCheckpoint, facts: StoredCheckpoint, reader: StoredFormat
    ) -> None:
        """Find the quantized matrices.

        Raises:
            ModelError: there are none, or their tensors are missing.
        """
        self.config: ModelConfig = inner.config
        self._inner = inner
        self._facts = facts
        self._reader = reader
        self._matrices = _matrices(reader, facts)
        self._places = _places(self._matrices, facts, reader.name)
        inner.check_types(self._places.__contains__)
        self.schemes: Mapping[str, WeightScheme] = {
            name: each.scheme for name, each in self._matrices.items() if each.scheme is not None
        }

    def tensors(self, dtype: torch.dtype) -> Iterator[tuple[str, Tensor | LinearWeights]]:
        """Names and tensors; a quantized matrix comes when the last of its tensors was read."""
        waiting: dict[str, dict[str, Tensor]] = {}
        for name, tensor in self._inner.tensors(dtype, as_stored=self._places.__contains__):
            place = self._places.get(name)
            if place is None:
                yield name, tensor
                continue
            matrix_name, part = place
            parts = waiting.setdefault(matrix_name, {})
            parts[part] = tensor
            if len(parts) == len(self._matrices[matrix_name].parts):
                del tensor
                weights = self._decoded(matrix_name, waiting.pop(matrix_name))
                is_plain = weights.scheme is None
                yield matrix_name, weights.weight.to(dtype) if is_plain else weights

    def _decoded(self, name: str, parts: Mapping[str, Tensor]) -> LinearWeights:
        matrix = self._matrices[name]
        try:
            weights = self._reader.decode(self._facts, matrix, parts)
        except ModelError as error:
            raise ModelError(f"Matrix '{name}': {error.problem}", remedy=error.remedy) from error
        except Exception as error:
            raise _broken(self._reader.name, f"decode of '{name}'", error) from error
        fault = fault_of(weights, matrix.scheme)
        if fault:
            raise ModelError(
                f"Format {self._reader.name} decoded '{name}' wrongly: {fault}.",
                remedy="Report it to the author of the format.",
            )
        return weights


def find_reader(
    facts: StoredCheckpoint, formats: Sequence[StoredFormat], *, what: str
) -> StoredFormat | None:
    """The format that reads a checkpoint; None if it is a plain one.

    Raises:
        ModelError: it is quantized, and nobody reads it.
    """
    unknowing: list[str] = []
    for each in reversed(formats):
        try:
            if each.recognizes(facts):
                return each
        except Exception as error:
            unknowing.append(_broken(each.name, "recognizes", error).problem)
            _log.warning("%s It is passed over.", unknowing[-1])
    if not facts.quantization:
        return None
    known = "; ".join([each.summary for each in formats] + unknowing)
    raise ModelError(
        f"{what}: the checkpoint is quantized ({_in_words(facts.quantization)}); supported: "
        f"{known or 'none'}, and plain float32, float16 and bfloat16 weights.",
        remedy="Take the original checkpoint, a GGUF file of the model, or a plugin that reads it.",
    )


def _matrices(reader: StoredFormat, facts: StoredCheckpoint) -> Mapping[str, StoredMatrix]:
    try:
        found = reader.matrices(facts)
    except ModelError:
        raise
    except Exception as error:
        raise _broken(reader.name, "matrices", error) from error
    if not found:
        raise ModelError(
            f"The checkpoint says that it is quantized with {reader.name}, but none of its tensors "
            "is.",
            remedy="Check that config.json belongs to the weights.",
        )
    return found


def _places(
    matrices: Mapping[str, StoredMatrix], facts: StoredCheckpoint, reader: str
) -> dict[str, tuple[str, str]]:
    """Of each tensor that is part of a matrix: which one, and as what."""
    places: dict[str, tuple[str, str]] = {}
    for name, matrix in matrices.items():
        if not matrix.parts:
            raise ModelError(
                f"Format {reader} gives matrix '{name}' no tensor.",
                remedy="Report it to the author of the format.",
            )
        for part, tensor in matrix.parts.items():
            if tensor not in facts.tensors:
                raise ModelError(
                    f"Matrix '{name}' lacks tensor '{tensor}'.", remedy="Download the model again."
                )
            if tensor in places:
                raise ModelError(
                    f"Format {reader} gives tensor '{tensor}' to '{places[tensor][0]}' and to "
                    f"'{name}'.",
                    remedy="Report it to the author of the format.",
                )
            places[tensor] = (name, part)
    return places


def _broken(reader: str, where: str, error: Exception) -> ModelError:
    return ModelError(
        f"Format {reader} cannot read the checkpoint: {where} raised {type(error).__name__}: "
        f"{error}.",
        remedy="Report it to the author of the format.",
    )


def _in_words(quantization: Mapping[str, Any]) -> str:
    words = [str(quantization.get("quant_method", "of an unknown method"))]
    if "bits" in quantization:
        words.append(f"{quantization['bits']} bits")
    if "version" in quantization:
        words.append(str(quantization["version"]))
    return ", ".join(words)
