"""Hooks of the plugin. What needs torch is imported inside them."""

from __future__ import annotations

from chiplet import api


@api.hookimpl
def attention(device: api.DeviceProbe) -> list[api.AttentionProvider]:
    """For devices that are the host; the manifest names them."""
    from chiplet_sliced.provider import SlicedProvider  # noqa: PLC0415

    return [SlicedProvider()]
