"""Kernels in CUDA C++: compiled by NVRTC for the GPU at hand, launched through the driver."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property, lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from chiplet_nvidia.gpus import DRIVER

_NVRTC = ("libnvrtc.so.13", "libnvrtc.so.12", "nvrtc64_130_0.dll", "nvrtc64_120_0.dll")
_OVERLAP_ATTRIBUTE = 6  # CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
_COOPERATIVE_ATTRIBUTE = 2  # CU_LAUNCH_ATTRIBUTE_COOPERATIVE
_CLUSTER_ATTRIBUTE = 4  # CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
_SHARED_BYTES_ATTRIBUTE = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES

_COMPILERS = 4
"""Threads: a start with many kernels compiles some of them at once."""

Argument = torch.Tensor | ctypes.c_int | ctypes.c_longlong | ctypes.Structure | None


class KernelError(RuntimeError):
    """A kernel does not compile, or cannot be loaded or launched."""


class _Attribute(ctypes.Structure):
    """CUlaunchAttribute: a number, and a value of 64 bytes whose first four are used."""

    _fields_ = (
        ("id", ctypes.c_int),
        ("padding", ctypes.c_int),
        ("value", ctypes.c_int),
        ("rest", ctypes.c_byte * 60),
    )


class _Launch(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared_bytes", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(_Attribute)),
        ("num_attributes", ctypes.c_uint),
    )


class CudaKernel:
    """One kernel of a source file of this plugin; compiled at its first launch on a device."""

    def __init__(
        self,
        source: str,
        name: str,
        *,
        capability: tuple[int, int],
        defines: Mapping[str, int],
        threads: int,
        shared_bytes: int = 0,
        is_cooperative: bool = False,
    ) -> None:
        """Know what to compile; nothing is compiled yet.

        Args:
            source: file in the folder `kernels`.
            name: of the kernel in it, declared `extern "C"`.
            capability: of the GPU, like (9, 0).
            defines: the source's constants.
            threads: of a block.
            shared_bytes: of a block, beyond what the source declares.
            is_cooperative: blocks wait for one another; a launch of which not all of them fit on
                the device at once is refused.
        """
        self._source, self._name = source, name
        # Machine code of Hopper's own instructions runs on no later GPU, so that it has a name.
        kind = "a" if capability == (9, 0) else ""
        self._options = (
            f"-arch=sm_{capability[0]}{capability[1]}{kind}",
            *(f"-D{key}={value}" for key, value in defines.items()),
        )
        self._block = (ctypes.c_uint * 3)(threads, 1, 1)
        self._shared_bytes = shared_bytes
        kinds = [_COOPERATIVE_ATTRIBUTE] * is_cooperative
        if capability >= (9, 0):
            kinds.append(_OVERLAP_ATTRIBUTE)
        self._attributes = (_Attribute * len(kinds))(
            *(_Attribute(id=kind, value=1) for kind in kinds)
        )

    @property
    def options(self) -> tuple[str, ...]:
        """What the compiler is told."""
        return self._options

    def launch(self, grid: tuple[int, int], arguments: Sequence[Argument]) -> None:
        """Launch in torch's current stream; where the GPU can, before what runs there has ended.

        Raises:
            KernelError: it does not compile, or the driver refuses it.
        """
        values = [_c_value(each) for each in arguments]
        pointers = (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))
        launch = self._configuration(grid)
        launch.stream = torch.cuda.current_stream().cuda_stream
        code = driver().cuLaunchKernelEx(ctypes.byref(launch), self._function, pointers, None)
        if code:
            raise KernelError(f"{self._name} cannot be launched: {driver_error(code)}.")

    def most_clusters(self, cluster: int) -> int:
        """Clusters of so many blocks that fit on the device at once.

        Raises:
            KernelError: it does not compile, or the driver does not say.
        """
        launch, number = self._configuration((cluster, 1)), ctypes.c_int()
        size = _Attribute(id=_CLUSTER_ATTRIBUTE, value=cluster)
        size.rest[0] = size.rest[4] = 1
        launch.attributes, launch.num_attributes = ctypes.pointer(size), 1
        ask = driver().cuOccupancyMaxActiveClusters
        code = ask(ctypes.byref(number), self._function, ctypes.byref(launch))
        if code:
            raise KernelError(f"{self._name} has no clusters: {driver_error(code)}.")
        return number.value

    def most_blocks(self) -> int:
        """Blocks that fit on a multiprocessor at once.

        Raises:
            KernelError: it does not compile, or the driver does not say.
        """
        number, size = ctypes.c_int(), ctypes.c_size_t(self._shared_bytes)
        ask = driver().cuOccupancyMaxActiveBlocksPerMultiprocessor
        code = ask(ctypes.byref(number), self._function, int(self._block[0]), size)
        if code:
            raise KernelError(f"{self._name} has no blocks: {driver_error(code)}.")
        return number.value

    def compile_soon(self) -> None:
        """Begin to compile in another thread, unless it has begun."""
        _compiling(self._source, self._options)

    def _configuration(self, grid: tuple[int, int]) -> _Launch:
        return _Launch(
            grid=(ctypes.c_uint * 3)(*grid, 1),
            block=self._block,
            shared_bytes=self._shared_bytes,
            attributes=ctypes.cast(self._attributes, ctypes.POINTER(_Attribute)),
            num_attributes=len(self._attributes),
        )

    @cached_property
    def _function(self) -> ctypes.c_void_p:
        function = _load(compiled(self._source, self._options), self._name)
        if self._shared_bytes:
            set_attribute = driver().cuFuncSetAttribute
            code = set_attribute(function, _SHARED_BYTES_ATTRIBUTE, self._shared_bytes)
            if code:
                raise KernelError(f"{self._name} cannot be loaded: {driver_error(code)}.")
        return function


def _c_value(argument: Argument) -> Any:
    if argument is None:
        return ctypes.c_void_p(0)
    if isinstance(argument, torch.Tensor):
        return ctypes.c_void_p(argument.data_ptr())
    return argument


def compiled(source: str, options: tuple[str, ...]) -> bytes:
    """Machine code of a source file in the folder `kernels`; blocks until it is compiled.

    Raises:
        KernelError: no compiler is installed, or it refuses the source.
    """
    return _compiling(source, options).result()


@lru_cache(maxsize=256)
def _compiling(source: str, options: tuple[str, ...]) -> Future[bytes]:
    return _compilers().submit(_compile, source, options)


@lru_cache(maxsize=1)
def _compilers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_COMPILERS, thread_name_prefix="nvrtc")


def _compile(source: str, options: tuple[str, ...]) -> bytes:
    nvrtc = _nvrtc()
    if nvrtc is None:
        raise KernelError(f"No NVRTC is installed; looked for {', '.join(_NVRTC)}.")
    text = files("chiplet_nvidia").joinpath("kernels", source).read_bytes()
    program = ctypes.c_void_p()
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), text, source.encode(), 0, None, None)
    try:
        array = (ctypes.c_char_p * len(options))(*(each.encode() for each in options))
        if nvrtc.nvrtcCompileProgram(program, len(options), array):
            log = _taken(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog, program)
            raise KernelError(f"{source} does not compile: {log.decode(errors='replace')}")
        return _taken(nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN, program)
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def has_compiler() -> bool:
    """Whether NVRTC is installed; CUDA builds of torch bring it along."""
    return _nvrtc() is not None


def _taken(ask_size: Any, ask_text: Any, program: ctypes.c_void_p) -> bytes:
    size = ctypes.c_size_t()
    ask_size(program, ctypes.byref(size))
    text = ctypes.create_string_buffer(size.value)
    ask_text(program, text)
    return text.raw


@lru_cache(maxsize=1)
def _nvrtc() -> ctypes.CDLL | None:
    """The library by its name, or from the packages beside torch's."""
    packages = Path(torch.__file__).parents[1] / "nvidia"
    beside = sorted(packages.glob("*/lib/libnvrtc.so.*"))
    for name in (*_NVRTC, *map(str, beside)):
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None


@lru_cache(maxsize=1)
def driver() -> ctypes.CDLL:
    """The driver's library."""
    return ctypes.CDLL(DRIVER)


def driver_error(code: int) -> str:
    """What the driver calls an error."""
    text = ctypes.c_char_p()
    driver().cuGetErrorString(code, ctypes.byref(text))
    return f"{(text.value or b'unknown error').decode()} ({code})"


def _load(code: bytes, name: str) -> ctypes.c_void_p:
    """The kernel in the current context."""
    module, function = ctypes.c_void_p(), ctypes.c_void_p()
    error = driver().cuModuleLoadData(ctypes.byref(module), code)
    error = error or driver().cuModuleGetFunction(ctypes.byref(function), module, name.encode())
    if error:
        raise KernelError(f"{name} cannot be loaded: {driver_error(error)}.")
    return function
