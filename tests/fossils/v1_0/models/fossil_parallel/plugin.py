from chiplet import api


@api.hookimpl
def models() -> list[api.ModelEntry]:
    """One family."""
    return [
        api.ModelEntry(
            architectures=("FossilParallelForCausalLM",),
            target="fossil_parallel.model:FossilParallelForCausalLM",
            read_config="fossil_parallel.config:read_config",
        )
    ]
