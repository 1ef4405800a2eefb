"""GGUF files: what stands before the tensors, read without a tensor library.

Source: the GGUF specification, versions 2 and 3 (docs/gguf.md of the ggml project).
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, cast, get_origin

import numpy as np
from numpy.typing import NDArray

from chiplet.errors import ModelError

GgufValue = bool | int | float | str | list[str] | NDArray[np.generic]
"""A value in a GGUF header: arrays of numbers are NumPy arrays, arrays of strings are lists."""

_Kind = TypeVar("_Kind")
_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_STRING, _ARRAY = 8, 9
_MAX_DIMENSIONS = 4
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_SCALARS = {
    0: np.dtype("<u1"),
    1: np.dtype("<i1"),
    2: np.dtype("<u2"),
    3: np.dtype("<i2"),
    4: np.dtype("<u4"),
    5: np.dtype("<i4"),
    6: np.dtype("<f4"),
    7: np.dtype("?"),
    10: np.dtype("<u8"),
    11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}


@dataclass(frozen=True, slots=True)
class TensorType:
    """How the elements of a tensor are stored: in groups that share their scales.

    Attributes:
        group_elements: elements in one group; 1 for plain floating-point types.
        group_bytes: bytes of one group.
    """

    name: str
    group_elements: int
    group_bytes: int


TENSOR_TYPES = {
    0: TensorType("F32", 1, 4),
    1: TensorType("F16", 1, 2),
    2: TensorType("Q4_0", 32, 18),
    3: TensorType("Q4_1", 32, 20),
    6: TensorType("Q5_0", 32, 22),
    7: TensorType("Q5_1", 32, 24),
    8: TensorType("Q8_0", 32, 34),
    12: TensorType("Q4_K", 256, 144),
    13: TensorType("Q5_K", 256, 176),
    14: TensorType("Q6_K", 256, 210),
    30: TensorType("BF16", 1, 2),
}
"""Tensor types that can be read, by their number in the file."""

_UNREADABLE_TYPES = {
    9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS",
    19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16",
    26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """Where a tensor stands in a GGUF file.

    Attributes:
        shape: slowest dimension first, as in PyTorch (the file has them the other way round).
        type_id: number of its type in the file, a key of `TENSOR_TYPES` if it can be read.
        offset_bytes: from the start of the file.
    """

    name: str
    shape: tuple[int, ...]
    type_id: int
    offset_bytes: int

    @property
    def type(self) -> TensorType:
        """How its elements are stored.

        Raises:
            ModelError: they are stored in a way that cannot be read.
        """
        if self.type_id in TENSOR_TYPES:
            return TENSOR_TYPES[self.type_id]
        name = _UNREADABLE_TYPES.get(self.type_id, f"number {self.type_id}")
        supported = ", ".join(each.name for each in TENSOR_TYPES.values())
        raise ModelError(
            f"Tensor {self.name} is of type {name}; supported: {supported}.",
            remedy="Take a file in another quantization, like Q4_K_M or Q8_0.",
        )

    @property
    def num_elements(self) -> int:
        """Elements in the tensor."""
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        """Bytes in the file."""
        return self.num_elements // self.type.group_elements * self.type.group_bytes


@dataclass(frozen=True, slots=True)
class GgufFile:
    """Header of a GGUF file.

    Attributes:
        facts: what the file says of its model and tokenizer, by key.
        tensors: in file order.
    """

    path: Path
    version: int
    facts: Mapping[str, GgufValue]
    tensors: tuple[GgufTensor, ...]

    def text(self, key: str) -> str | None:
        """The string under a key; None if the key is absent."""
        return self._typed(key, str, "a string")

    def integer(self, key: str) -> int | None:
        """The integer under a key; None if the key is absent."""
        return self._typed(key, int, "an integer")

    def number(self, key: str) -> float | None:
        """The number under a key; None if the key is absent."""
        value = self.facts.get(key)
        return self.integer(key) if isinstance(value, int) else self._typed(key, float, "a number")

    def flag(self, key: str, default: bool) -> bool:
        """The truth value under a key, or `default`."""
        value = self._typed(key, bool, "a truth value")
        return default if value is None else value

    def texts(self, key: str) -> list[str]:
        """The strings under a key; empty if the key is absent."""
        return self._typed(key, list[str], "an array of strings") or []

    def numbers(self, key: str) -> NDArray[np.generic]:
        """The numbers under a key; empty if the key is absent."""
        value = self._typed(key, np.ndarray, "an array of numbers")
        return np.empty(0) if value is None else value

    def _typed(self, key: str, kind: type[_Kind], wanted: str) -> _Kind | None:
        value = self.facts.get(key)
        is_stray_flag = isinstance(value, bool) and kind is not bool
        if value is None or (isinstance(value, get_origin(kind) or kind) and not is_stray_flag):
            return cast(_Kind | None, value)
        raise ModelError(f"{self.path}: {key} is {str(value)[:80]!r}; expected {wanted}.")


def is_gguf(path: Path) -> bool:
    """Whether a path is a file that begins like GGUF or is named so."""
    if not path.is_file():
        return False
    if path.suffix.lower() == ".gguf":
        return True
    with path.open("rb") as file:
        return file.read(4) == _MAGIC


def read_gguf(path: Path) -> GgufFile:
    """The header of a GGUF file.

    Raises:
        ModelError: the file is missing, cut short, damaged or of an unknown version.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Reader(path, data).read()
    except OSError as error:
        raise ModelError(
            f"Cannot read {path}: {error.strerror}.", remedy="Check path and permissions."
        ) from error
    except (ValueError, struct.error, _DamageError) as error:
        # An empty file cannot be mapped (ValueError); bad UTF-8 is a ValueError too.
        raise ModelError(
            f"{path} is damaged or cut short ({error}).", remedy="Download it again."
        ) from error


class _DamageError(Exception):
    """The header contradicts itself or the length of the file."""


class _Reader:
    """Walks once over the header."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self._path = path
        self._data = data
        self._size = len(data)
        self._offset = 0

    def read(self) -> GgufFile:
        version = self._check_version()
        num_tensors, num_facts = self._u64(), self._u64()
        facts: dict[str, GgufValue] = {}
        for _ in range(num_facts):
            key = self._string()
            facts[key] = self._value(self._u32())
        described = [self._tensor() for _ in range(num_tensors)]
        alignment = facts.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment <= 0:
            raise _DamageError(f"general.alignment is {alignment!r}")
        start = -(-self._offset // alignment) * alignment
        tensors = tuple(
            GgufTensor(name, shape, type_id, start + offset)
            for name, shape, type_id, offset in described
        )
        for tensor in tensors:
            self._check_tensor(tensor)
        return GgufFile(self._path, version, facts, tensors)

    def _check_version(self) -> int:
        magic = self._data[:4]
        if magic != _MAGIC:
            raise ModelError(
                f"{self._path} is not a GGUF file: it begins with {magic!r}, not {_MAGIC!r}.",
                remedy="Check the path, or download the file again.",
            )
        self._offset = 4
        version = self._u32()
        if version not in _VERSIONS:
            is_swapped = int.from_bytes(_U32.pack(version), "big") in _VERSIONS
            what = "a big-endian file" if is_swapped else f"version {version}"
            raise ModelError(
                f"{self._path} is {what}; supported: GGUF versions 2 and 3, little-endian.",
                remedy="Convert the model again with a current converter.",
            )
        return version

    def _take(self, num_bytes: int) -> int:
        begin = self._offset
        self._offset += num_bytes
        if self._offset > self._size:
            raise _DamageError(f"the header reaches beyond the {self._size} bytes of the file")
        return begin

    def _u32(self) -> int:
        return _U32.unpack_from(self._data, self._take(4))[0]

    def _u64(self) -> int:
        return _U64.unpack_from(self._data, self._take(8))[0]

    def _string(self) -> str:
        length = self._u64()
        begin = self._take(length)
        return str(self._data[begin : self._offset], "utf-8")

    def _value(self, type_id: int) -> GgufValue:
        if type_id == _STRING:
            return self._string()
        if type_id == _ARRAY:
            return self._array()
        return self._numbers(type_id, 1)[0].item()

    def _array(self) -> GgufValue:
        type_id, count = self._u32(), self._u64()
        return self._strings(count) if type_id == _STRING else self._numbers(type_id, count)

    def _numbers(self, type_id: int, count: int) -> NDArray[np.generic]:
        dtype = _SCALARS.get(type_id)
        if dtype is None:
            raise _DamageError(f"value type {type_id} is unknown")
        begin = self._take(count * dtype.itemsize)
        return np.frombuffer(self._data[begin : self._offset], dtype)

    def _strings(self, count: int) -> list[str]:
        # A vocabulary has 10^5 strings: this loop is most of the time of reading a header. Ends
        # are checked once after it; until then a bad length yields a short string or an
        # offset at which nothing can be unpacked.
        data, offset, length_at = self._data, self._offset, _U64.unpack_from
        texts: list[str] = []
        append: Callable[[str], None] = texts.append
        for _ in range(count):
            (length,) = length_at(data, offset)
            begin = offset + 8
            offset = begin + length
            append(str(data[begin:offset], "utf-8"))
        self._take(offset - self._offset)
        return texts

    def _tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        name, num_dimensions = self._string(), self._u32()
        if not 0 <= num_dimensions <= _MAX_DIMENSIONS:
            raise _DamageError(f"tensor {name!r} has {num_dimensions} dimensions")
        shape = tuple(self._u64() for _ in range(num_dimensions))[::-1]
        return name, shape, self._u32(), self._u64()

    def _check_tensor(self, tensor: GgufTensor) -> None:
        kind = TENSOR_TYPES.get(tensor.type_id)
        if kind is None:
            return  # said when somebody asks for the tensor; the tokenizer can still be read
        if tensor.shape and tensor.shape[-1] % kind.group_elements:
            raise _DamageError(
                f"rows of tensor {tensor.name!r} are no multiple of {kind.group_elements}"
            )
        if tensor.offset_bytes + tensor.size_bytes > self._size:
            raise _DamageError(f"tensor {tensor.name!r} reaches beyond the end of the file")
