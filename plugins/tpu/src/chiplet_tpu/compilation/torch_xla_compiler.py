"""Steps compiled by torch_xla 2.9: lazy tensors, whose graph is compiled when it is synced.

torch_xla is at the end of its line; this is for those who cannot leave torch 2.9. What it lacks:
programs that span several devices, compilation beside running steps, and copies to the host that
tell when they are done. A step's tokens are therefore fetched when they are waited for.
"""

from __future__ import annotations

import os
import threading

import psutil
import torch

from chiplet.api import Event, Executable, HostInputs, MemoryInfo, Step, StepOutputs

_EMULATED_MEMORY_FRACTION = 0.5


class FetchedEvent:
    """Done once the tensors have been fetched."""

    def __init__(self, pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
        self._pairs = pairs

    def is_done(self) -> bool:
        """Whether they have been fetched: the lazy device does not tell more."""
        return not self._pairs

    def wait(self) -> None:
        """Fetch them."""
        with torch.inference_mode(False), torch.no_grad():
            for source, target in self._pairs:
                target.copy_(source)
        self._pairs = []


class TorchXlaExecutable:
    """A step that is traced anew each time, and compiled the first time."""

    def __init__(self, step: Step, compiler: TorchXlaCompiler) -> None:
        self.bucket = step.bucket
        self._step = step
        self._compiler = compiler

    def launch(self, host: HostInputs) -> StepOutputs:
        """Record the step and hand it to the device."""
        step, compiler = self._step, self._compiler
        # Lazy tensors have no views in inference mode.
        with torch.inference_mode(False), torch.no_grad():
            buffer = torch.from_numpy(host.buffer).to(compiler.torch_device)
            outputs = step(step.layout.split(buffer, torch.float32), step.state)
            compiler.sync()
        return outputs


class TorchXlaCompiler:
    """Compiles with torch_xla for one TPU, or for the host's processor.

    Attributes:
        torch_device: torch_xla's.
    """

    def __init__(self, *, is_emulated: bool) -> None:
        """Start the runtime.

        Raises:
            RuntimeError: torch_xla finds no TPU.
        """
        os.environ["PJRT_DEVICE"] = "CPU" if is_emulated else "TPU"
        import torch_xla  # noqa: PLC0415 - reads PJRT_DEVICE
        from torch_xla import runtime  # noqa: PLC0415

        self._library = torch_xla
        self.torch_device = torch_xla.device()
        self._is_emulated = is_emulated
        self._thread = threading.get_ident()
        self._started: list[tuple[torch.Tensor, torch.Tensor]] = []
        found = runtime.device_type()
        if found != os.environ["PJRT_DEVICE"]:
            raise RuntimeError(f"torch_xla finds no TPU and offers '{found}' instead")

    @property
    def num_compilations(self) -> int:
        """Graphs compiled so far in this process, those of single operations included."""
        from torch_xla.debug import metrics  # noqa: PLC0415

        data = metrics.metric_data("CompileTime")
        return data[0] if data else 0

    def activate(self) -> None:
        """Nothing to do: the device is the same in every thread."""

    def memory(self) -> MemoryInfo:
        """Memory of the device; of a stand-in, half of what the host has left."""
        if self._is_emulated:
            memory = psutil.virtual_memory()
            free_bytes = int(memory.available * _EMULATED_MEMORY_FRACTION)
            return MemoryInfo(free_bytes=free_bytes, total_bytes=memory.total)
        from torch_xla.core import xla_model  # noqa: PLC0415

        info = xla_model.get_memory_info(self.torch_device)
        total_bytes = info["bytes_limit"]
        return MemoryInfo(free_bytes=total_bytes - info["bytes_used"], total_bytes=total_bytes)

    def record_event(self) -> Event:
        """What is to be fetched since the last event."""
        pairs, self._started = self._started, []
        return FetchedEvent(pairs)

    def to_device_async(self, tensor: torch.Tensor) -> torch.Tensor:
        """A copy on the device."""
        return tensor.to(self.torch_device)

    def to_host_async(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor on the host that the next event fills."""
        with torch.inference_mode(False):
            target = torch.empty(tensor.shape, dtype=tensor.dtype)
        self._started.append((tensor, target))
        return target

    def prepare(self, step: Step) -> Executable:
        """The step; compiled now if the thread that launches asks, else at its first launch.

        Compiling means running it on padding, which must not happen beside other steps.
        """
        executable = TorchXlaExecutable(step, self)
        if threading.get_ident() == self._thread:
            executable.launch(step.padding())
        return executable

    def sync(self) -> None:
        """Compile what was recorded, unless it is known, and start it."""
        self._library.sync()
