"""Hook specifications: the extension manual.

A plugin is a module named by an entry point in group `chiplet.plugins`, beside a manifest
`chiplet_plugin.toml` in its package. It implements any of these hooks with
`chiplet.api.hookimpl`. Hooks are called at start-up only, one plugin at a time.
"""

from __future__ import annotations

from collections.abc import Sequence

import pluggy

from chiplet.api import (
    AttentionProvider,
    Check,
    CommunicationProvider,
    CompilationProvider,
    DeviceProbe,
    EngineConfig,
    HostFacts,
    LinearProvider,
    ModelEntry,
    MoeProvider,
    OpProvider,
    Platform,
    PluginContext,
    Proposal,
    QuantizationFormat,
    StoredFormat,
    Topology,
)

hookspec = pluggy.HookspecMarker("chiplet")


@hookspec
def configure(context: PluginContext) -> None:
    """Take the options that the user gave, before every other hook.

    Called once for each engine, probe and command that uses plugins, in its process and in a thread
    of its own; `shutdown` ends what it began. A plugin that raises here, or does not return within
    ten seconds, is not loaded, with the reason; if it was given an option or named with
    `--plugins`, the start ends. For a value that it cannot use it raises a `ValueError` that says
    what is allowed.
    """


@hookspec
def shutdown(context: PluginContext) -> None:
    """The plugin is used no more, unless `configure` is called again; given what that was given.

    Called once for each `configure` that returned, in a thread of its own, when the engine, probe
    or command has ended. What it raises is logged; after five seconds it is left alone, after half
    a second if another plugin has hung before. A process that is killed calls nothing: `chiplet
    serve` kills an engine that has not ended eight seconds after it was told to.
    """


@hookspec
def probe(host: HostFacts) -> Sequence[DeviceProbe]:  # pyright: ignore[reportReturnType]
    """Devices of this plugin's kind on this host.

    Called in a subprocess with a time limit: a hang or a crash here counts as no device.
    """


@hookspec
def emulated(host: HostFacts) -> DeviceProbe:  # pyright: ignore[reportReturnType]
    """A device of this plugin's kind that the host's processor stands in for, for `--emulate`.

    The other hooks are then called with it. It runs the same code as a device that is there,
    for development; nobody expects speed. Only a plugin that can do so implements the hook.
    """


@hookspec
def platform(device: DeviceProbe) -> Platform:  # pyright: ignore[reportReturnType]
    """The platform of a device that this plugin's `probe` found."""


@hookspec
def attention(device: DeviceProbe) -> Sequence[AttentionProvider]:  # pyright: ignore[reportReturnType]
    """Attention providers for a device; empty for a device they do not know."""


@hookspec
def linear(device: DeviceProbe) -> Sequence[LinearProvider]:  # pyright: ignore[reportReturnType]
    """Linear providers for a device; empty for a device they do not know."""


@hookspec
def moe(device: DeviceProbe) -> Sequence[MoeProvider]:  # pyright: ignore[reportReturnType]
    """Providers of mixtures of experts for a device."""


@hookspec
def ops(device: DeviceProbe) -> Sequence[OpProvider]:  # pyright: ignore[reportReturnType]
    """Providers of other operations for a device."""


@hookspec
def communication(device: DeviceProbe, topology: Topology) -> Sequence[CommunicationProvider]:  # pyright: ignore[reportReturnType]
    """Providers of collectives for a device among the ranks of the engine."""


@hookspec
def compilation(device: DeviceProbe) -> Sequence[CompilationProvider]:  # pyright: ignore[reportReturnType]
    """Compilers of whole steps for a device; see `chiplet.api.CompilingPlatform`."""


@hookspec
def models() -> Sequence[ModelEntry]:  # pyright: ignore[reportReturnType]
    """Model families, by the architectures of the checkpoints that they serve."""


@hookspec
def quantization_formats() -> Sequence[QuantizationFormat]:  # pyright: ignore[reportReturnType]
    """Ways to quantize weights while they are loaded, for `--quantization`."""


@hookspec
def stored_formats() -> Sequence[StoredFormat]:  # pyright: ignore[reportReturnType]
    """Formats of checkpoints whose matrices are quantized already."""


@hookspec
def config_proposals(config: EngineConfig, device: DeviceProbe) -> Sequence[Proposal]:  # pyright: ignore[reportReturnType]
    """Better defaults for a device. Settings that the user gave are never changed; two plugins
    that propose different values for one setting are an error.
    """


@hookspec
def doctor(device: DeviceProbe | None) -> Sequence[Check]:  # pyright: ignore[reportReturnType]
    """Checks for `chiplet doctor`; `device` is None where the plugin's probe found nothing."""
