from chiplet import api


@api.hookimpl
def probe(host: api.HostFacts) -> list[api.DeviceProbe]:
    return [
        api.DeviceProbe(
            device_type="fossil-step",
            index=0,
            name=f"steps on {host.machine}",
            total_memory_bytes=1 << 30,
        )
    ]


@api.hookimpl
def platform(device: api.DeviceProbe) -> api.Platform:
    from fossil_step.platform import StepPlatform

    return StepPlatform()


@api.hookimpl
def compilation(device: api.DeviceProbe) -> list[api.CompilationProvider]:
    from fossil_step.platform import PlainCompilation

    return [PlainCompilation()] if device.device_type == "fossil-step" else []


@api.hookimpl
def config_proposals(
    config: api.EngineConfig, device: api.DeviceProbe
) -> list[api.Proposal]:
    if device.device_type != "fossil-step":
        return []
    return [api.Proposal("cache.page_size", 8, "small pages are as good")]
