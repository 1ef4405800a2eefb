"""Suite: every case for the providers of a device, and who is checked by them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from chiplet.api import (
    BuildContext,
    CommunicationProvider,
    QuantizationFormat,
    StoredFormat,
    Topology,
)
from chiplet.config import DeviceOptions
from chiplet.errors import ConfigError
from chiplet.plugins import ChosenDevice, PluginSet, choose_device, discover
from chiplet.plugins.candidates import Candidate, build_context, gather_candidates
from chiplet.testing.conformance.attention_cases import attention_cases
from chiplet.testing.conformance.case import Case, Skipped, Subject
from chiplet.testing.conformance.communication_cases import communication_cases
from chiplet.testing.conformance.engines import EngineMaker
from chiplet.testing.conformance.format_cases import QUANTIZATION, STORED, format_cases
from chiplet.testing.conformance.honesty import honesty_cases
from chiplet.testing.conformance.linear_cases import linear_cases
from chiplet.testing.conformance.model_cases import model_cases
from chiplet.testing.conformance.moe_cases import moe_cases
from chiplet.testing.conformance.op_cases import op_cases
from chiplet.testing.conformance.package_cases import package_cases
from chiplet.testing.conformance.platform_cases import platform_cases
from chiplet.testing.conformance.ranks import Ranks
from chiplet.testing.conformance.replay_cases import replay_cases


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Which part of the kit is run.

    Attributes:
        provider: only the providers of this name.
        quick: only the quick tier.
        only: only cases with this in their names.
    """

    provider: str | None = None
    quick: bool = False
    only: str | None = None


def all_cases(*, quick: bool = False) -> list[Case]:
    """All cases of all families, or those of the quick tier."""
    cases = (
        *package_cases(),
        *platform_cases(),
        *op_cases(),
        *linear_cases(),
        *moe_cases(),
        *attention_cases(),
        *replay_cases(),
        *communication_cases(),
        *format_cases(),
        *honesty_cases(),
        *model_cases(),
    )
    return [case for case in cases if case.is_quick or not quick]


def find_subjects(
    options: DeviceOptions, provider: str | None = None, plugins: PluginSet | None = None
) -> Sequence[Subject]:
    """Who is checked on a device: its platform, its plugins' packages and its providers.

    Args:
        options: the device and the plugins, as for a start.
        provider: only the providers of this name.
        plugins: found for the options already; who found them tells them the end.

    Raises:
        ConfigError: no such device, or no such provider.
    """
    plugins = plugins or discover(options)
    chosen = choose_device(plugins, options)
    chosen.platform.activate()
    candidates = gather_candidates(plugins, chosen.probe, explicit=frozenset())
    context = build_context(chosen.platform, candidates)
    engines = EngineMaker(plugins, chosen, options)
    found = [
        Subject(
            family=family,
            name=each.name,
            distribution=each.plugin.distribution,
            version=each.plugin.version,
            target=each.provider
            if family != "communication"
            else _ranks(plugins, options, chosen, each),
            context=context,
            engines=engines,
        )
        for family, offered in candidates.items()
        for each in offered
    ]
    found.extend(_formats(plugins, context))
    if provider is None:
        return (*_others(plugins, chosen, found), *found)
    named = [each for each in found if each.name == provider]
    if not named:
        names = ", ".join(sorted({each.name for each in found}))
        raise ConfigError(
            f"Device {chosen.label} has no provider '{provider}'; it has: {names}.",
            remedy="Correct the name, or see 'chiplet doctor' for plugins that did not load.",
        )
    distributions = {each.distribution for each in named}
    others = _others(plugins, chosen, named)
    return (
        *(each for each in others if each.distribution in distributions),
        *named,
    )


def _formats(plugins: PluginSet, context: BuildContext) -> Iterator[Subject]:
    """Quantization formats of all plugins; they know of no device."""
    offers: tuple[tuple[str, str, type[Any]], ...] = (
        (QUANTIZATION, "quantization_formats", QuantizationFormat),
        (STORED, "stored_formats", StoredFormat),
    )
    for family, hook, kind in offers:
        for plugin, target in plugins.offers(hook, kind):
            yield Subject(
                family=family,
                name=target.name,
                distribution=plugin.distribution,
                version=plugin.version,
                target=target,
                context=context,
            )


def pair(cases: Sequence[Case], subjects: Sequence[Subject]) -> Iterator[tuple[Case, Subject]]:
    """Each case with each subject that it is for; a case's subjects follow one another."""
    for case in cases:
        for subject in subjects:
            if subject.family == case.family:
                yield case, subject


def choose_pairs(subjects: Sequence[Subject], choice: Choice) -> list[tuple[Case, Subject]]:
    """What to run, the quick tier first: a run that is stopped has seen something of everything.

    Raises:
        ConfigError: no case has the wanted name.
    """
    only = choice.only
    wanted = [case for case in all_cases(quick=choice.quick) if only is None or case.matches(only)]
    if not wanted:
        raise ConfigError(
            f"--only {only}: no case has this in its name.",
            remedy="Try 'attention', 'linear', 'moe', 'ops/rotary', 'window' or 'bfloat16'.",
        )
    return list(pair(sorted(wanted, key=lambda case: not case.is_quick), subjects))


def _ranks(
    plugins: PluginSet, options: DeviceOptions, chosen: ChosenDevice, candidate: Candidate
) -> Ranks:
    """A communication provider on any rank; where it runs on main memory, ranks share it."""

    @cache
    def device_of(rank: int) -> ChosenDevice | ConfigError:
        if not rank or chosen.platform.torch_device.type == "cpu":
            return chosen
        try:
            label = f"{chosen.probe.device_type}:{rank}"
            return choose_device(plugins, replace(options, device=label))
        except ConfigError as error:
            return error

    def make(rank: int, size: int, rendezvous: str) -> tuple[CommunicationProvider, BuildContext]:
        # Every rank looks at all devices: one that is skipped alone would leave its peers waiting.
        for device in map(device_of, range(size)):
            if isinstance(device, ConfigError):
                raise Skipped(f"needs {size} devices: {device}")
        own = device_of(rank)
        assert isinstance(own, ChosenDevice)
        own.platform.activate()
        topology = Topology(world_size=size, local_ranks=(rank,), rendezvous=rendezvous)
        candidates = gather_candidates(plugins, own.probe, explicit=frozenset(), topology=topology)
        named = [each for each in candidates["communication"] if each.name == candidate.name]
        assert named, f"rank {rank} of {size} is not offered '{candidate.name}'"
        return named[0].provider, build_context(own.platform, candidates)

    return Ranks(make)


def _others(
    plugins: PluginSet, chosen: ChosenDevice, providers: Sequence[Subject]
) -> Iterator[Subject]:
    """The platform of a device, and the packages that offer something for it."""
    context = providers[0].context
    for plugin in plugins.loaded:
        spec = find_spec(plugin.module.partition(".")[0])
        if plugin.is_core or spec is None or spec.origin is None:
            continue
        offers = {each.distribution for each in providers} | {chosen.plugin_name}
        if plugin.distribution in offers:
            yield Subject(
                family="package",
                name=plugin.name,
                distribution=plugin.distribution,
                version=plugin.version,
                target=Path(spec.origin).parent,
                context=context,
            )
    version = next(
        each.version for each in plugins.loaded if each.distribution == chosen.plugin_name
    )
    yield Subject(
        family="platform",
        name=chosen.label,
        distribution=chosen.plugin_name,
        version=version,
        target=chosen.platform,
        context=context,
    )
