from chiplet import api


@api.hookimpl
def probe(host: api.HostFacts) -> list[api.DeviceProbe]:
    """One device; none would be an empty list."""
    return [
        api.DeviceProbe(
            device_type="fossil", index=0, name="Fossil One", total_memory_bytes=host.total_memory_bytes
        )
    ]


@api.hookimpl
def platform(device: api.DeviceProbe) -> api.Platform:
    """The platform of a device that `probe` found."""
    from fossil_device.platform import FossilPlatform

    return FossilPlatform(device)


@api.hookimpl
def config_proposals(config: api.EngineConfig, device: api.DeviceProbe) -> list[api.Proposal]:
    """A better default for this device; what the user set stays as it is."""
    if device.device_type != "fossil":
        return []
    return [api.Proposal("schedule.max_running_requests", 16, "the device has few cores")]


@api.hookimpl
def doctor(device: api.DeviceProbe | None) -> list[api.Check]:
    """A line for `chiplet doctor`."""
    if device is None:
        return [api.Check("fossil", api.CheckStatus.PROBLEM, "no device", "Plug it in.")]
    return [api.Check("fossil", api.CheckStatus.OK, f"{device.name} answers")]
