from chiplet import api

CONFIGURED: list[api.PluginContext] = []


@api.hookimpl
def configure(context: api.PluginContext) -> None:
    """Remember what was told."""
    CONFIGURED.append(context)


@api.hookimpl
def shutdown(context: api.PluginContext) -> None:
    """Forget it."""
    CONFIGURED.remove(context)


@api.hookimpl
def moe(device: api.DeviceProbe) -> list[api.MoeProvider]:
    """On devices that are the host."""
    from fossil_moe.provider import LoopProvider

    return [LoopProvider()] if device.device_type in ("cpu", "reference") else []


@api.hookimpl
def doctor(device: api.DeviceProbe | None) -> list[api.Check]:
    """One line."""
    return [api.Check("fossil-moe", api.CheckStatus.OK, "as it was")]
