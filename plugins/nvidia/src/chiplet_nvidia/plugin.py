"""Hooks of the NVIDIA plugin. What needs torch is imported inside them."""

from __future__ import annotations

import chiplet.api as api


@api.hookimpl
def probe(host: api.HostFacts) -> list[api.DeviceProbe]:
    """The GPUs that torch can use."""
    from chiplet_nvidia.gpus import probe_gpus  # noqa: PLC0415

    return probe_gpus()


@api.hookimpl
def platform(device: api.DeviceProbe) -> api.Platform:
    """The platform of one GPU."""
    from chiplet_nvidia.platform import CudaPlatform  # noqa: PLC0415

    return CudaPlatform(device)


@api.hookimpl
def attention(device: api.DeviceProbe) -> list[api.AttentionProvider]:
    """Prompts by FlashInfer, where it is installed."""
    from chiplet_nvidia.attention.flashinfer import FlashInferProvider  # noqa: PLC0415

    return [FlashInferProvider(device)] if device.device_type == "cuda" else []


@api.hookimpl
def linear(device: api.DeviceProbe) -> list[api.LinearProvider]:
    """Products by cuBLAS, and with weights of four bits."""
    from chiplet_nvidia.gpus import capability_of  # noqa: PLC0415
    from chiplet_nvidia.linear.cublas import CublasProvider  # noqa: PLC0415
    from chiplet_nvidia.linear.int4 import Int4Provider  # noqa: PLC0415
    from chiplet_nvidia.linear.stretch import StretchOnlyProvider  # noqa: PLC0415

    if device.device_type != "cuda":
        return []
    capability = capability_of(device)
    return [CublasProvider(), Int4Provider(capability), StretchOnlyProvider(device)]


@api.hookimpl
def config_proposals(config: api.EngineConfig, device: api.DeviceProbe) -> list[api.Proposal]:
    """Larger steps than a CPU takes."""
    from chiplet_nvidia.proposals import proposals_for  # noqa: PLC0415

    return proposals_for(device) if device.device_type == "cuda" else []


@api.hookimpl
def doctor(device: api.DeviceProbe | None) -> list[api.Check]:
    """Whether FlashInfer can serve prompts."""
    from chiplet_nvidia.checks import run_checks  # noqa: PLC0415

    return run_checks(device)
