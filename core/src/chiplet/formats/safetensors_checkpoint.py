"""Checkpoints in safetensors files, whole or sharded.

Source: the safetensors format (header of JSON with dtype, shape and data_offsets per tensor).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from torch import Tensor

from chiplet.api import StoredTensor, WeightScheme
from chiplet.config import ModelConfig
from chiplet.errors import ModelError
from chiplet.formats.tensor_reading import fill_in_pieces, read_bytes_into

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
_STORED_ONLY = ("F8_E4M3", "F8_E5M2")
"""Types whose numbers mean little without the scales that some format knows of."""
_LENGTH_BYTES = 8
# The format's own limit; a larger number is noise.
_MAX_HEADER_BYTES = 100_000_000


@dataclass(frozen=True, slots=True)
class _Entry:
    """Where a tensor stands in its file; offsets are from the file's start."""

    name: str
    dtype_name: str
    shape: tuple[int, ...]
    begin_bytes: int
    end_bytes: int


class SafetensorsCheckpoint:
    """Tensors of a model in one or more safetensors files.

    Attributes:
        config: facts about the model.
        is_dummy: False; there are tensors to read.
    """

    is_dummy = False

    def __init__(self, config: ModelConfig, paths: tuple[Path, ...]) -> None:
        self.config = config
        self.schemes: Mapping[str, WeightScheme] = {}
        self._files = tuple((path, _read_header(path)) for path in paths)

    @property
    def stored(self) -> Mapping[str, StoredTensor]:
        """Shape and type of each tensor, by name."""
        return {
            entry.name: StoredTensor(entry.shape, entry.dtype_name)
            for _, entries in self._files
            for entry in entries
        }

    def check_types(self, is_known: Callable[[str], bool] = lambda _: False) -> None:
        """Refuse tensors that cannot be read as plain numbers, but for names that are known.

        Raises:
            ModelError: there is one.
        """
        for path, entries in self._files:
            for entry in entries:
                if entry.dtype_name in _STORED_ONLY and not is_known(entry.name):
                    raise _unknown_type(path, entry)

    def tensors(
        self, dtype: torch.dtype, *, as_stored: Callable[[str], bool] = lambda _: False
    ) -> Iterator[tuple[str, Tensor]]:
        """Names and tensors, one at a time in file order; floating-point ones as `dtype`, but for
        those of names that `as_stored` picks.
        """
        for path, entries in self._files:
            with path.open("rb", buffering=0) as file:
                for entry in entries:
                    wanted = _DTYPES[entry.dtype_name] if as_stored(entry.name) else dtype
                    yield entry.name, _read_tensor(cast(BinaryIO, file), path, entry, wanted)


def _read_header(path: Path) -> tuple[_Entry, ...]:
    size = path.stat().st_size
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        if not 2 <= header_bytes <= min(size - _LENGTH_BYTES, _MAX_HEADER_BYTES):
            raise _damaged(path, f"its header cannot have {header_bytes} bytes")
        raw = file.read(header_bytes)
    try:
        header: Any = json.loads(raw)
        start = _LENGTH_BYTES + header_bytes
        entries = [
            _entry(name, described, start)
            for name, described in header.items()
            if name != "__metadata__"
        ]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise _damaged(path, f"its header cannot be understood: {error}") from error
    for entry in entries:
        _check_entry(path, entry, size)
    return tuple(sorted(entries, key=lambda entry: entry.begin_bytes))


def _entry(name: str, described: dict[str, Any], start: int) -> _Entry:
    begin, end = described["data_offsets"]
    shape = tuple(int(length) for length in described["shape"])
    return _Entry(name, str(described["dtype"]), shape, start + int(begin), start + int(end))


def _check_entry(path: Path, entry: _Entry, size: int) -> None:
    dtype = _DTYPES.get(entry.dtype_name)
    if dtype is None:
        raise _unknown_type(path, entry)
    expected = math.prod(entry.shape) * dtype.itemsize
    if entry.end_bytes - entry.begin_bytes != expected or min(entry.shape, default=0) < 0:
        raise _damaged(path, f"tensor {entry.name} of shape {entry.shape} does not fit its bytes")
    if entry.end_bytes > size:
        raise _damaged(path, f"tensor {entry.name} reaches beyond the end of the file")


def _unknown_type(path: Path, entry: _Entry) -> ModelError:
    known = (each for each in _DTYPES if each not in _STORED_ONLY)
    return ModelError(
        f"{path}: tensor {entry.name} is of type {entry.dtype_name}; supported: "
        f"{', '.join(known)}.",
        remedy="Take the original checkpoint, or a plugin that reads this quantized one.",
    )


def _damaged(path: Path, why: str) -> ModelError:
    return ModelError(f"{path} is damaged or cut short: {why}.", remedy="Download it again.")


def _read_tensor(file: BinaryIO, path: Path, entry: _Entry, dtype: torch.dtype) -> Tensor:
    stored = _DTYPES[entry.dtype_name]
    target = torch.empty(entry.shape, dtype=dtype if stored.is_floating_point else stored)
    if target.dtype == stored:
        read_bytes_into(file, entry.begin_bytes, target, path)
        return target

    def read_elements(begin: int, end: int) -> Tensor:
        piece = torch.empty(end - begin, dtype=stored)
        read_bytes_into(file, entry.begin_bytes + begin * stored.itemsize, piece, path)
        return piece

    fill_in_pieces(target, 1, read_elements)
    return target
