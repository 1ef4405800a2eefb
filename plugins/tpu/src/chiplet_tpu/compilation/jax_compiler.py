"""Steps compiled by jax: torchax lets core's torch code run on jax arrays, jax traces it."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path

import jax
import psutil
import torch

from chiplet.api import Event, Executable, MemoryInfo, Step
from chiplet_tpu.compilation import arrays
from chiplet_tpu.compilation.events import HostCopies
from chiplet_tpu.compilation.jax_program import compile_step
from chiplet_tpu.compilation.lowerings import environment
from chiplet_tpu.compilation.mesh import RankMesh

_EMULATED_MEMORY_FRACTION = 0.5


class JaxCompiler:
    """Compiles with jax for the TPUs of this host, or for its processor.

    Attributes:
        torch_device: torchax's.
        num_compilations: programs made so far.
    """

    def __init__(self, *, num_ranks: int, is_emulated: bool) -> None:
        """Start jax's runtime.

        Raises:
            RuntimeError: jax finds no TPU, or has started with fewer devices than are needed.
        """
        _start_runtime(num_ranks, is_emulated=is_emulated)
        self.torch_device = torch.device("jax")
        self.num_compilations = 0
        self._is_emulated = is_emulated
        self._environment = environment()
        self._mesh = RankMesh(jax.devices()[:1])
        self._copies = HostCopies()
        self._tracing = threading.Lock()
        self._active = threading.local()

    def activate(self) -> None:
        """Let torch's operations reach jax in the calling thread."""
        if not getattr(self._active, "is_on", False):
            self._environment.enable_torch_modes()
            self._active.is_on = True

    def memory(self) -> MemoryInfo:
        """Memory of the first device; of a stand-in, half of what the host has left."""
        if self._is_emulated:
            memory = psutil.virtual_memory()
            return MemoryInfo(
                free_bytes=int(memory.available * _EMULATED_MEMORY_FRACTION),
                total_bytes=memory.total,
            )
        stats = self._mesh.devices[0].memory_stats()
        total_bytes = stats["bytes_limit"]
        return MemoryInfo(free_bytes=total_bytes - stats["bytes_in_use"], total_bytes=total_bytes)

    def record_event(self) -> Event:
        """The copies to the host that were started before."""
        return self._copies.event()

    def to_device_async(self, tensor: torch.Tensor) -> torch.Tensor:
        """A copy on all devices."""
        array = self._environment.t2j_copy(tensor)
        return arrays.wrap(jax.device_put(array, self._mesh.replicated))

    def to_host_async(self, tensor: torch.Tensor) -> torch.Tensor:
        """A copy on the host, filled when a later event is done."""
        return self._copies.start(arrays.array_of(tensor), tensor.dtype)

    def prepare(self, step: Step) -> Executable:
        """The program of a step."""
        # Constants hold a tracer's values meanwhile.
        with self._tracing:
            executable = compile_step(step, self._mesh)
        self.num_compilations += 1
        return executable

    def span(self, num_ranks: int) -> None:
        """Take so many devices for one program.

        Raises:
            ValueError: there are not so many.
        """
        devices = jax.devices()
        if len(devices) < num_ranks:
            raise ValueError(f"this host has {len(devices)} TPU devices")
        self._mesh = RankMesh(devices[:num_ranks])

    def join_shards(self, shards: Sequence[torch.Tensor]) -> torch.Tensor:
        """One tensor that has another value on each device."""
        return self._mesh.join(shards)


HARMLESS_WARNINGS = (
    # Core's integers fit 32 bits; where it asks for 64, as torch's indices must, jax has 32.
    "Explicitly requested dtype",
    # torchax copies results that jax keeps read-only, and nobody writes to the copies.
    "The given NumPy array is not writable",
)
"""What jax and torch say of torchax's ways, by how it begins."""


def _start_runtime(num_ranks: int, *, is_emulated: bool) -> None:
    for message in HARMLESS_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    if is_emulated:
        jax.config.update("jax_platforms", "cpu")
        if jax.config.jax_num_cpu_devices < num_ranks:
            # An error once the runtime has started, with fewer.
            jax.config.update("jax_num_cpu_devices", num_ranks)
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(_cache_folder()))
        # By default what compiled within a second is forgotten; a start has many such programs.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    platform = jax.devices()[0].platform
    if platform != "tpu" and not is_emulated:
        # jax falls back silently where libtpu finds no chip.
        raise RuntimeError(
            f"jax finds no TPU and offers '{platform}' instead; is another process using the chip?"
        )


def _cache_folder() -> Path:
    """Where compiled programs are kept from one start to the next."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "chiplet" / "xla"
