"""Candidates: every provider that some plugin offers for the device, and its verdicts."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from chiplet.api import (
    AttentionRequest,
    BuildContext,
    CommunicationRequest,
    CompilationRequest,
    DeviceProbe,
    LinearRequest,
    MoeRequest,
    No,
    OpRequest,
    Part,
    Platform,
    Provider,
    Topology,
    Verdict,
    Yes,
)
from chiplet.api.communication import ONE_PROCESS
from chiplet.errors import ConfigError, PluginError
from chiplet.plugins.isolation import FAULTS, fault_of_provider, fault_of_verdict
from chiplet.plugins.manifest import normalized, serves
from chiplet.plugins.patience import patience
from chiplet.plugins.plugin_set import Plugin, PluginSet

logger = logging.getLogger(__name__)

FAMILIES = ("attention", "linear", "moe", "ops", "communication", "compilation")

Request = (
    AttentionRequest
    | LinearRequest
    | MoeRequest
    | OpRequest
    | CommunicationRequest
    | CompilationRequest
)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A provider and the plugin that offers it."""

    provider: Provider[Any, Any]
    plugin: Plugin

    @property
    def name(self) -> str:
        """The word that `--use` takes."""
        return self.provider.name

    def assess(self, request: Request) -> Verdict:
        """The provider's verdict; a refusal if it has not heard of a feature, or raises."""
        unheard = sorted(request.features - self.provider.accepts)
        if unheard:
            text = ", ".join(f"feature '{feature}' not accepted" for feature in unheard)
            return No.because("feature", text)
        try:
            with patience(f"assess of {self._label} for {operation_of(request)}"):
                verdict = self.provider.assess(request)
        except FAULTS as error:
            return No.because("raised", f"assess raised {type(error).__name__}: {error}")
        # An answer of another type is a plugin's fault and must not stop the others.
        if not isinstance(verdict, Yes | No):  # pyright: ignore[reportUnnecessaryIsInstance]
            return No.because("malformed", f"assess returned {verdict!r}, not a verdict")
        fault = fault_of_verdict(verdict)
        if fault:
            return No.because("malformed", f"assess gave no verdict to be taken: {fault}")
        is_limited = isinstance(verdict, Yes) and verdict.max_tokens is not None
        if is_limited and not isinstance(request, LinearRequest | OpRequest):
            text = "assess limits max_tokens; only linear layers and operations have tables"
            return No.because("malformed", text)
        is_part = isinstance(verdict, Yes) and verdict.part is not Part.ALL
        if is_part and not _has_parts(request):
            text = "assess speaks for a part; only attention without sinks and capture has parts"
            return No.because("malformed", text)
        return verdict

    def build(self, request: Request, context: BuildContext) -> Any:
        """The provider's implementation. Raises whatever the provider raises."""
        with patience(f"build of {self._label} for {operation_of(request)}"):
            return self.provider.build(request, context)

    @property
    def _label(self) -> str:
        return f"provider {self.name} of {self.plugin.distribution}"


def _has_parts(request: Request) -> bool:
    is_attention = isinstance(request, AttentionRequest)
    return is_attention and not (request.has_sinks or request.num_captured)


def operation_of(request: Request) -> str:
    """The operation as `--use` names it, like 'attention/global'."""
    match request:
        case AttentionRequest():
            return f"attention/{request.group}"
        case LinearRequest():
            return f"linear/{request.role}"
        case MoeRequest():
            return f"moe/{request.role}"
        case OpRequest():
            return f"ops/{request.op}"
        case CommunicationRequest():
            return f"communication/{request.group}"
        case CompilationRequest():
            return "compilation/step"


def summary_of(request: Request) -> str:
    """The request in a few words."""
    match request:
        case AttentionRequest():
            heads = f"{request.num_heads}/{request.num_kv_heads} heads of {request.head_dim}"
            window = f", window {request.window}" if request.window is not None else ""
            return f"{heads}, {request.dtype}, pages of {request.kv.page_size}{window}"
        case LinearRequest():
            bias = " + bias" if request.has_bias else ""
            scheme = f" ({request.scheme})" if request.scheme is not None else ""
            shape = f"{request.in_features} -> {request.out_features}"
            rows = ", gives rows" if request.gives_rows else ""
            gate = ", gated" if request.is_gated else ""
            return f"{shape}{bias}, {request.dtype}{scheme}{rows}{gate}"
        case MoeRequest():
            sizes = f"{request.hidden_size} -> {request.intermediate_size}"
            scheme = f" ({request.scheme})" if request.scheme is not None else ""
            return f"{request.top_k} of {request.num_experts}, {sizes}, {request.dtype}{scheme}"
        case OpRequest():
            return str(request.dtype)
        case CommunicationRequest():
            place = "in one program" if request.is_one_program else "a process each"
            return f"{request.world_size} ranks, {place}, {request.dtype}"
        case CompilationRequest():
            return f"one program for {request.num_ranks} devices"


def build_context(
    platform: Platform, candidates: Mapping[str, Sequence[Candidate]]
) -> BuildContext:
    """What providers build with: the platform, and the reference among the candidates."""

    def reference(request: Any) -> Any:
        family = operation_of(request).partition("/")[0]
        core = next(each for each in candidates[family] if each.plugin.is_core)
        return core.build(request, BuildContext(platform))

    return BuildContext(platform, reference)


def gather_candidates(
    plugin_set: PluginSet,
    device: DeviceProbe,
    *,
    explicit: frozenset[str],
    topology: Topology = ONE_PROCESS,
) -> Mapping[str, tuple[Candidate, ...]]:
    """Providers of every plugin for a device, by family.

    A plugin whose hook raises is left out with a warning, unless it is one of `explicit`, which
    has normalized names of distributions.

    Raises:
        ConfigError: two plugins offer a provider of the same name.
        PluginError: a hook of an explicitly requested plugin raises.
    """
    arguments: dict[str, dict[str, object]] = {family: {"device": device} for family in FAMILIES}
    arguments["communication"]["topology"] = topology
    return {
        family: _distinct(
            family,
            [
                candidate
                for plugin in plugin_set.loaded
                if serves(plugin.manifest, device.device_type)
                for candidate in _offers(plugin, family, arguments[family], explicit)
            ],
        )
        for family in FAMILIES
    }


def _offers(
    plugin: Plugin, family: str, arguments: Mapping[str, object], explicit: frozenset[str]
) -> Iterator[Candidate]:
    try:
        providers = tuple(plugin.call(family, **arguments) or ())
        # Looked at here, so that a malformed provider fails as its plugin's hook.
        fault = next(filter(None, map(fault_of_provider, providers)), "")
        if fault:
            raise TypeError(fault)
    except FAULTS as error:
        text = f"Hook {family} of {plugin.distribution} raised {type(error).__name__}: {error}."
        if normalized(plugin.distribution) in explicit:
            remedy = f"Update {plugin.distribution}, or do not ask for it."
            raise PluginError(text, remedy=remedy) from error
        logger.warning("%s Its providers are left out.", text)
        return
    for provider in providers:
        yield Candidate(provider, plugin)


def _distinct(family: str, candidates: list[Candidate]) -> tuple[Candidate, ...]:
    by_name: dict[str, Candidate] = {}
    for candidate in candidates:
        other = by_name.setdefault(candidate.name, candidate)
        if other is not candidate:
            raise ConfigError(
                f"{other.plugin.distribution} and {candidate.plugin.distribution} both offer "
                f"{family} provider '{candidate.name}'.",
                remedy=f"Pass --no-plugin {candidate.plugin.distribution}, or uninstall it.",
            )
    return tuple(candidates)
