"""Hooks of the Triton plugin. What needs torch or Triton is imported inside them."""

from __future__ import annotations

import chiplet.api as api


@api.hookimpl
def attention(device: api.DeviceProbe) -> list[api.AttentionProvider]:
    """Split decode and flash attention over pages."""
    from chiplet_triton.attention.paged import TritonAttentionProvider  # noqa: PLC0415
    from chiplet_triton.device import traits_of  # noqa: PLC0415

    return [TritonAttentionProvider(traits_of(device))]


@api.hookimpl
def linear(device: api.DeviceProbe) -> list[api.LinearProvider]:
    """Products of a few rows with a large weight, and of many."""
    from chiplet_triton.device import traits_of  # noqa: PLC0415
    from chiplet_triton.linear.many_rows import TorchLinearProvider  # noqa: PLC0415
    from chiplet_triton.linear.skinny import TritonLinearProvider  # noqa: PLC0415

    return [TritonLinearProvider(traits_of(device)), TorchLinearProvider()]


@api.hookimpl
def moe(device: api.DeviceProbe) -> list[api.MoeProvider]:
    """Grouped products of the experts."""
    from chiplet_triton.device import traits_of  # noqa: PLC0415
    from chiplet_triton.moe.grouped import TritonMoeProvider  # noqa: PLC0415

    return [TritonMoeProvider(traits_of(device))]


@api.hookimpl
def ops(device: api.DeviceProbe) -> list[api.OpProvider]:
    """Norms, rotation, activation, embedding, penalties and sampling."""
    from chiplet_triton.device import traits_of  # noqa: PLC0415
    from chiplet_triton.ops.provider import TritonOpsProvider  # noqa: PLC0415

    return [TritonOpsProvider(traits_of(device))]
