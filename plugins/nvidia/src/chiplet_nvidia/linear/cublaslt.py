"""cuBLASLt through ctypes: products by an algorithm of the caller's choice.

torch takes the first that the library's heuristics name. Constants and structures are those of the
library's own header, which has kept them since version 11.

Source: https://docs.nvidia.com/cuda/cublas/#using-the-cublaslt-api
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

_COMPUTE_32F = 68
_TYPES = {torch.float32: 0, torch.float16: 2, torch.bfloat16: 14}
_TRANSPOSE_A = 3  # of a product's description
_COLUMNS, _LEADING = 3, 4  # of a matrix's
_WORKSPACE_BYTES = 1  # of a preference
_SPLIT_K = 2  # of an algorithm's configuration
_MOST_NAMED = 16
_WORKSPACE_SIZE = 32 << 20
ALIGNMENT_BYTES = 256
"""What heuristics assume of addresses unless they are told otherwise."""

_Pointer = ctypes.c_void_p


class Algorithm(ctypes.Structure):
    """Opaque; names a kernel and how it is cut."""

    _fields_ = (("data", ctypes.c_uint64 * 8),)


class _Named(ctypes.Structure):
    _fields_ = (
        ("algorithm", Algorithm),
        ("workspace_bytes", ctypes.c_size_t),
        ("state", ctypes.c_int),
        ("waves", ctypes.c_float),
        ("reserved", ctypes.c_int * 4),
    )


class CublasLt:
    """The library that torch has loaded, with a handle and workspace for the current device."""

    def __init__(self, device: torch.device) -> None:
        """Find the library.

        Raises:
            OSError: there is none of torch's version.
        """
        major = (torch.version.cuda or "0").partition(".")[0]
        self.library = ctypes.CDLL(f"libcublasLt.so.{major}")
        self.library.cublasLtMatmul.argtypes = [_Pointer] * 14 + [ctypes.c_size_t, _Pointer]
        self.handle = _Pointer()
        self.check(self.library.cublasLtCreate(ctypes.byref(self.handle)))
        # Shared by all products: they run one after another on one stream.
        self.workspace = torch.empty(_WORKSPACE_SIZE, dtype=torch.uint8, device=device)

    def check(self, status: int) -> None:
        """Raise for a status other than success.

        Raises:
            RuntimeError: with its number.
        """
        if status:
            raise RuntimeError(f"cuBLASLt answered with status {status}")


class LtProduct:
    """y = x W^T of one shape of weight, for any number of rows."""

    def __init__(self, lt: CublasLt, dtype: torch.dtype, out_features: int, in_features: int):
        """Describe the product; float32 is summed up."""
        self._lt = lt
        self._n, self._k = out_features, in_features
        self._one, self._zero = ctypes.c_float(1), ctypes.c_float(0)
        library, self._type = lt.library, _TYPES[dtype]
        self._product = _Pointer()
        lt.check(
            library.cublasLtMatmulDescCreate(
                ctypes.byref(self._product), _COMPUTE_32F, _TYPES[torch.float32]
            )
        )
        yes = ctypes.c_int32(1)
        lt.check(
            library.cublasLtMatmulDescSetAttribute(
                self._product, _TRANSPOSE_A, ctypes.byref(yes), ctypes.c_size_t(4)
            )
        )
        # To the library matrices lie by columns: W is [K, N] to be transposed, x [K, M], y [N, M].
        self._weight = self._matrix(in_features, out_features)
        self._x = self._matrix(in_features, 1)
        self._y = self._matrix(out_features, 1)

    def named(self, x: Tensor) -> Sequence[Algorithm]:
        """What the heuristics name for so many rows, the likeliest first; none that splits K."""
        self._describe(x)
        lt, preference = self._lt, _Pointer()
        lt.check(lt.library.cublasLtMatmulPreferenceCreate(ctypes.byref(preference)))
        size, count = ctypes.c_uint64(_WORKSPACE_SIZE), ctypes.c_int(0)
        lt.check(
            lt.library.cublasLtMatmulPreferenceSetAttribute(
                preference, _WORKSPACE_BYTES, ctypes.byref(size), ctypes.c_size_t(8)
            )
        )
        found = (_Named * _MOST_NAMED)()
        status = lt.library.cublasLtMatmulAlgoGetHeuristic(
            lt.handle,
            self._product,
            self._weight,
            self._x,
            self._y,
            self._y,
            preference,
            _MOST_NAMED,
            found,
            ctypes.byref(count),
        )
        lt.library.cublasLtMatmulPreferenceDestroy(preference)
        named = (
            [] if status else [each.algorithm for each in found[: count.value] if not each.state]
        )
        # Copies, since what an array gives is a view of it.
        return [Algorithm.from_buffer_copy(each) for each in named if self._splits(each) == 1]

    def run(self, x: Tensor, weight: Tensor, algorithm: Algorithm) -> Tensor:
        """The product.

        Shapes: x `[num_rows, K]`, last dimension contiguous; weight `[N, K]`, contiguous; returns
        `[num_rows, N]`. Both start at multiples of `ALIGNMENT_BYTES`.

        Raises:
            RuntimeError: the algorithm does not serve it.
        """
        self._describe(x)
        lt = self._lt
        y = torch.empty(x.shape[0], self._n, dtype=x.dtype, device=x.device)
        status = lt.library.cublasLtMatmul(
            lt.handle,
            self._product,
            ctypes.addressof(self._one),
            weight.data_ptr(),
            self._weight,
            x.data_ptr(),
            self._x,
            ctypes.addressof(self._zero),
            y.data_ptr(),
            self._y,
            y.data_ptr(),
            self._y,
            ctypes.addressof(algorithm),
            lt.workspace.data_ptr(),
            _WORKSPACE_SIZE,
            torch.cuda.current_stream(x.device).cuda_stream,
        )
        lt.check(status)
        return y

    def _matrix(self, num_rows: int, num_columns: int) -> ctypes.c_void_p:
        made = _Pointer()
        rows, columns = ctypes.c_uint64(num_rows), ctypes.c_uint64(num_columns)
        status = self._lt.library.cublasLtMatrixLayoutCreate(
            ctypes.byref(made), self._type, rows, columns, ctypes.c_int64(num_rows)
        )
        self._lt.check(status)
        return made

    def _describe(self, x: Tensor) -> None:
        """Tell the number of rows, and how far apart those of x lie."""
        columns, leading = ctypes.c_uint64(x.shape[0]), ctypes.c_int64(x.stride(0))
        eight, tell = ctypes.c_size_t(8), self._lt.library.cublasLtMatrixLayoutSetAttribute
        for matrix in (self._x, self._y):
            self._lt.check(tell(matrix, _COLUMNS, ctypes.byref(columns), eight))
        self._lt.check(tell(self._x, _LEADING, ctypes.byref(leading), eight))

    def _splits(self, algorithm: Algorithm) -> int:
        value, written = ctypes.c_uint32(0), ctypes.c_size_t(0)
        self._lt.check(
            self._lt.library.cublasLtMatmulAlgoConfigGetAttribute(
                ctypes.byref(algorithm),
                _SPLIT_K,
                ctypes.byref(value),
                ctypes.c_size_t(4),
                ctypes.byref(written),
            )
        )
        return value.value
