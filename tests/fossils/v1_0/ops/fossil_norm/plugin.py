from chiplet import api


@api.hookimpl
def ops(device: api.DeviceProbe) -> list[api.OpProvider]:
    """For any device: the kernel is torch's own."""
    from fossil_norm.norm import NormProvider

    return [NormProvider()]
