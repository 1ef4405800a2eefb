from collections.abc import Sequence

import torch

from chiplet.api import (
    BuildContext,
    CompilationRequest,
    DoneEvent,
    Event,
    Executable,
    Execution,
    Feature,
    HostInputs,
    MemoryInfo,
    ShapeBucket,
    Step,
    StepCompiler,
    StepLimits,
    StepOutputs,
    Tier,
    Verdict,
    Yes,
    doubling,
)

MEMORY = MemoryInfo(free_bytes=1 << 30, total_bytes=1 << 30)


class WholeStep:
    """Calls the step with inputs in one buffer, as a compiled program would be called."""

    def __init__(self, step: Step) -> None:
        self._step = step
        # A compiler makes these arguments, and runs the step on padding to record it.
        assert all(isinstance(each, torch.Tensor) for each in step.constants())
        self.launch(step.padding())

    @property
    def bucket(self) -> ShapeBucket:
        return self._step.bucket

    def launch(self, host: HostInputs) -> StepOutputs:
        buffer = torch.from_numpy(host.buffer.copy())
        return self._step(self._step.layout.split(buffer, torch.float32), self._step.state)


class PlainCompiler:
    torch_device = torch.device("cpu")

    def activate(self) -> None:
        torch.set_grad_enabled(False)

    def memory(self) -> MemoryInfo:
        return MEMORY

    def record_event(self) -> Event:
        return DoneEvent()

    def to_device_async(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.clone()

    def to_host_async(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.clone()

    def prepare(self, step: Step) -> Executable:
        return WholeStep(step)


class PlainCompilation:
    name = "fossil-plain"
    accepts: frozenset[Feature] = frozenset()

    def assess(self, request: CompilationRequest) -> Verdict:
        return Yes(Tier.VENDOR)

    def build(self, request: CompilationRequest, context: BuildContext) -> StepCompiler:
        return PlainCompiler()


class StepPlatform:
    name = "fossil-step"
    torch_device = torch.device("cpu")
    execution = Execution.STEP

    def __init__(self) -> None:
        self._compiler: StepCompiler | None = None

    def compile_with(self, compiler: StepCompiler) -> None:
        self._compiler = compiler

    @property
    def compiler(self) -> StepCompiler:
        assert self._compiler is not None
        return self._compiler

    def activate(self) -> None:
        if self._compiler is not None:
            self._compiler.activate()

    def memory(self) -> MemoryInfo:
        return self.compiler.memory()

    def supported_dtypes(self) -> tuple[str, ...]:
        return ("float32",)

    def record_event(self) -> Event:
        return self.compiler.record_event()

    def to_device_async(self, tensor: torch.Tensor) -> torch.Tensor:
        return self.compiler.to_device_async(tensor)

    def to_host_async(self, tensor: torch.Tensor) -> torch.Tensor:
        return self.compiler.to_host_async(tensor)

    def buckets(self, limits: StepLimits) -> Sequence[ShapeBucket]:
        decodes = [
            ShapeBucket(
                num_tokens=each, num_requests=each, num_decodes=each, max_pages=limits.max_pages
            )
            for each in doubling(1, limits.max_requests)
        ]
        return [*decodes, limits.largest_step]

    def prepare(self, step: Step) -> Executable:
        return self.compiler.prepare(step)
