from chiplet import api


@api.hookimpl
def attention(device: api.DeviceProbe) -> list[api.AttentionProvider]:
    """On devices that are the host, since masks are made there."""
    from fossil_attention.provider import PlanesProvider

    return [PlanesProvider()] if device.device_type in ("cpu", "reference") else []
