"""Compilation providers: who may compile the steps of a TPU."""

from __future__ import annotations

from chiplet.api import (
    BuildContext,
    CompilationProvider,
    CompilationRequest,
    DeviceProbe,
    Feature,
    No,
    StepCompiler,
    Tier,
    Verdict,
    Yes,
)
from chiplet_tpu.chips import is_emulated
from chiplet_tpu.versions import JAX_LIBRARIES, installed, missing

JAX = "jax"
TORCH_XLA = "torch_xla"
_MATCHING_TORCH = "2.9"


def compilers(device: DeviceProbe) -> list[CompilationProvider]:
    """Both, for a TPU."""
    if device.device_type != "tpu":
        return []
    return [JaxProvider(device), TorchXlaProvider(device)]


class JaxProvider:
    """torchax over jax, and libtpu."""

    name = JAX
    accepts = frozenset({Feature.ONE_PROGRAM})

    def __init__(self, device: DeviceProbe) -> None:
        self._is_emulated = is_emulated(device)

    def assess(self, request: CompilationRequest) -> Verdict:
        """Yes where its libraries are installed."""
        lacking = missing(*JAX_LIBRARIES, *(() if self._is_emulated else ("libtpu",)))
        if lacking:
            text = f"not installed: {', '.join(lacking)}"
            return No.because("missing", text, "pip install 'chiplet-tpu[tpu]'")
        return Yes(Tier.VENDOR, f"torchax over jax {installed('jax')}")

    def build(self, request: CompilationRequest, context: BuildContext) -> StepCompiler:
        """The compiler; starts jax's runtime."""
        from chiplet_tpu.compilation.jax_compiler import JaxCompiler  # noqa: PLC0415

        return JaxCompiler(num_ranks=request.num_ranks, is_emulated=self._is_emulated)


class TorchXlaProvider:
    """torch_xla 2.9, with the torch that it was built for."""

    name = TORCH_XLA
    accepts = frozenset()

    def __init__(self, device: DeviceProbe) -> None:
        self._is_emulated = is_emulated(device)

    def assess(self, request: CompilationRequest) -> Verdict:
        """Yes where torch_xla and torch are of the same version."""
        version, torch_version = installed("torch_xla"), installed("torch") or ""
        if version is None:
            hint = "needs torch 2.9: pip install 'chiplet-tpu[xla]' torch==2.9.0"
            return No.because("missing", "not installed: torch_xla", hint)
        if not torch_version.startswith(_MATCHING_TORCH):
            text = f"torch {torch_version}; torch_xla {version} needs {_MATCHING_TORCH}"
            return No.because("version", text)
        return Yes(Tier.GENERIC, f"torch_xla {version}, the last of its line")

    def build(self, request: CompilationRequest, context: BuildContext) -> StepCompiler:
        """The compiler; starts its runtime."""
        from chiplet_tpu.compilation.torch_xla_compiler import TorchXlaCompiler  # noqa: PLC0415

        return TorchXlaCompiler(is_emulated=self._is_emulated)
