"""Checkpoint: a model's tensors on disk, whichever format holds them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from chiplet.api import LinearWeights, StoredCheckpoint, StoredFormat, WeightScheme
from chiplet.config import ModelConfig
from chiplet.errors import ModelError
from chiplet.formats.gguf_checkpoint import GgufCheckpoint
from chiplet.formats.gguf_file import read_gguf
from chiplet.formats.hf_config import Translate
from chiplet.formats.model_files import Format, find_model_files, read_model_config
from chiplet.formats.quantization.packed_words import Awq, Gptq
from chiplet.formats.quantization.stored_numbers import (
    COMPRESSED_TENSORS,
    FP8,
    MODELOPT,
    MXFP4,
)
from chiplet.formats.safetensors_checkpoint import SafetensorsCheckpoint
from chiplet.formats.stored_checkpoint import QuantizedCheckpoint, find_reader


class Checkpoint(Protocol):
    """A model on disk."""

    @property
    def config(self) -> ModelConfig:
        """Facts about the model."""
        ...

    @property
    def is_dummy(self) -> bool:
        """There are no tensors: the loader makes random ones from the config."""
        ...

    @property
    def schemes(self) -> Mapping[str, WeightScheme]:
        """Matrices that are stored in a coding, by name; `tensors` gives them as they are."""
        ...

    def tensors(self, dtype: torch.dtype) -> Iterator[tuple[str, Tensor | LinearWeights]]:
        """Names and tensors, one at a time in file order.

        Names are Hugging Face's, like 'model.layers.0.self_attn.q_proj.weight'. Floating-point
        tensors come as `dtype`, those in `schemes` as canonical tensors. Mutates nothing; blocks
        while reading. The caller owns each tensor, and keeps memory low by dropping it before
        asking for the next.

        Raises:
            ModelError: the file is damaged, or this is a dummy.
        """
        ...


def has_blocks(checkpoint: Checkpoint) -> bool:
    """Whether matrices are stored in blocks of codes, as in most GGUF files."""
    return any(each.coding.block is not None for each in checkpoint.schemes.values())


class DummyCheckpoint:
    """A model of which there is only the config.

    Attributes:
        config: facts about the model.
        is_dummy: True.
        schemes: empty.
    """

    is_dummy = True

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        self.schemes: Mapping[str, WeightScheme] = {}

    def tensors(self, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
        """Raises ModelError: there are none."""
        raise ModelError("A dummy checkpoint has no tensors.", remedy="Make them at random.")


@dataclass(frozen=True, slots=True)
class Readers:
    """What plugins know of checkpoints.

    Attributes:
        formats: of quantized ones; the last that recognizes a checkpoint reads it.
        translate: a config.json of theirs with the names that core reads.
    """

    formats: Sequence[StoredFormat] = (
        Awq(),
        Gptq(),
        FP8,
        MODELOPT,
        COMPRESSED_TENSORS,
        MXFP4,
    )
    translate: Translate = lambda values: values


def open_checkpoint(
    path: Path, load_format: str = "auto", readers: Readers = Readers()
) -> Checkpoint:
    """The checkpoint at a path: a folder, a GGUF file, or a config.json for 'dummy'.

    Args:
        path: where the model is.
        load_format: 'auto', 'safetensors', 'gguf' or 'dummy'.
        readers: what is read beside core's own.

    Raises:
        ModelError: it is missing, damaged, refused or not supported.
    """
    files = find_model_files(path, load_format)
    if files.format is Format.GGUF:
        return GgufCheckpoint(read_gguf(files.config_path))
    config = read_model_config(path, load_format, readers.translate)
    if files.format is Format.DUMMY:
        return DummyCheckpoint(config)
    plain = SafetensorsCheckpoint(config, files.weight_paths)
    facts = StoredCheckpoint(quantization=config.quantization, tensors=plain.stored)
    reader = find_reader(facts, readers.formats, what=str(files.config_path))
    if reader is None:
        plain.check_types()
        return plain
    return QuantizedCheckpoint(plain, facts, reader)
