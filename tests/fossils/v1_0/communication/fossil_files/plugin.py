from chiplet import api


@api.hookimpl
def communication(
    device: api.DeviceProbe, topology: api.Topology
) -> list[api.CommunicationProvider]:
    """Where each rank is a process of its own."""
    from fossil_files.communicator import FilesProvider

    return [FilesProvider(topology)]
