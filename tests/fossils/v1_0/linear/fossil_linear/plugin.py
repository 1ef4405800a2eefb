from chiplet import api


@api.hookimpl
def linear(device: api.DeviceProbe) -> list[api.LinearProvider]:
    """Wherever torch multiplies."""
    from fossil_linear.provider import FossilProvider

    return [FossilProvider()]
