"""Selection: answers each request for a capability with one implementation, chosen once.

The order is: the user's pin; features that a provider has not heard of (refused before it is
asked); the provider's own verdict; its score. If the best cannot be built, the next is taken.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from chiplet.api import (
    AttentionImpl,
    AttentionRequest,
    CommunicationRequest,
    Communicator,
    LinearImpl,
    LinearRequest,
    MoeImpl,
    MoeRequest,
    No,
    Op,
    OpImpl,
    OpRequest,
    Topology,
    Verdict,
    Yes,
)
from chiplet.api.communication import ONE_PROCESS
from chiplet.config import DeviceOptions
from chiplet.errors import ConfigError, PluginError
from chiplet.plugins.candidates import (
    Candidate,
    Request,
    build_context,
    gather_candidates,
    operation_of,
    summary_of,
)
from chiplet.plugins.device import ChosenDevice
from chiplet.plugins.discovery import normalized
from chiplet.plugins.pins import parse_pins
from chiplet.plugins.plan import Choice, Rejection, SelectionPlan
from chiplet.plugins.plugin_set import PluginSet

logger = logging.getLogger(__name__)

# Operations whose cost a user feels in every step; the others are rare or small.
HOT_OPERATIONS = frozenset(
    f"ops/{op}" for op in (Op.RMS_NORM, Op.ADD_RMS_NORM, Op.ROTARY, Op.SILU_MUL, Op.SAMPLE)
)


@dataclass(slots=True)
class _Binding:
    """The answer to a request; `num_uses` grows with every layer that asks."""

    impl: Any
    choice: Choice
    num_uses: int = 0


class Selector:
    """Answers requests with implementations; see `chiplet.layers.bindings.Bindings`."""

    def __init__(
        self,
        plugin_set: PluginSet,
        chosen: ChosenDevice,
        options: DeviceOptions,
        topology: Topology = ONE_PROCESS,
    ) -> None:
        """Ask every plugin for its providers.

        Raises:
            ConfigError: a pin is malformed, or two plugins offer a provider of the same name.
            PluginError: a pin names a provider that nobody offers.
        """
        self._chosen = chosen
        self._is_strict = options.strict
        self._is_reference_platform = chosen.plugin_name == plugin_set.reference.distribution
        self._candidates = gather_candidates(
            plugin_set,
            chosen.probe,
            explicit=frozenset(map(normalized, options.plugins)),
            topology=topology,
        )
        self._context = build_context(chosen.platform, self._candidates)
        self._pins = parse_pins(options)
        self._bindings: dict[Request, _Binding] = {}
        self._warned: set[str] = set()
        self._is_sealed = False
        for key, provider in self._pins.providers.items():
            self._check_pin(key, provider)

    def attention(self, request: AttentionRequest) -> AttentionImpl:
        """The implementation that serves a group of layers."""
        return self._answer(request)

    def linear(self, request: LinearRequest) -> LinearImpl:
        """The implementation that serves a linear layer."""
        return self._answer(request)

    def moe(self, request: MoeRequest) -> MoeImpl:
        """The implementation that serves a mixture of experts."""
        return self._answer(request)

    def op(self, request: OpRequest) -> OpImpl:
        """The callable that serves an operation."""
        return self._answer(request)

    def communicator(self, request: CommunicationRequest) -> Communicator:
        """The collectives of a group of ranks."""
        return self._answer(request)

    def seal(self) -> None:
        """End selection: a request not answered before is refused from now on.

        Raises:
            ConfigError: a pin applied to nothing.
        """
        self._is_sealed = True
        for key in self._pins.unused():
            asked = sorted({operation_of(request) for request in self._bindings})
            raise ConfigError(
                f"Pin '{key}={self._pins.providers[key]}' applies to nothing here; operations of "
                f"this model: {', '.join(asked)}.",
                remedy="Correct or remove the pin.",
            )

    def plan(self) -> SelectionPlan:
        """Every choice made so far."""
        bindings = self._bindings.values()
        return SelectionPlan(
            self._chosen.label,
            self._chosen.probe.name,
            self._chosen.plugin_name,
            tuple(replace(each.choice, num_uses=each.num_uses) for each in bindings),
        )

    def _answer(self, request: Request) -> Any:
        binding = self._bindings.get(request)
        if binding is None:
            if self._is_sealed:
                raise RuntimeError(f"selection is sealed, and was never asked for {request}")
            binding = self._bindings[request] = self._select(request)
        binding.num_uses += 1
        return binding.impl

    def _select(self, request: Request) -> _Binding:
        """The best implementation that can be built.

        Raises:
            PluginError: the pinned provider refuses or cannot be built.
            ConfigError: only a reference kernel is left for a hot operation, and `strict` is set.
        """
        operation = operation_of(request)
        candidates = self._candidates[operation.partition("/")[0]]
        pin = self._pins.find(operation)
        verdicts = [(each, each.assess(request)) for each in candidates]
        for candidate, verdict in _ranked(verdicts, pin):
            try:
                impl = candidate.provider.build(request, self._context)
            except Exception as error:
                text = f"build raised {type(error).__name__}: {error}"
                logger.warning("%s: provider %s: %s", operation, candidate.name, text)
                failure = No.because("build", text)
                verdicts = [(c, failure if c is candidate else v) for c, v in verdicts]
                continue
            if pin is None and candidate.plugin.is_core:
                self._mind_reference(operation)
            return _Binding(impl, _choice(request, (candidate, verdict), verdicts, pin))
        raise _refusal(request, verdicts, pin)

    def _mind_reference(self, operation: str) -> None:
        """Warn, once per operation, that core's own kernel serves a hot operation."""
        is_hot = operation in HOT_OPERATIONS or not operation.startswith("ops/")
        if not is_hot or operation in self._warned:
            return
        self._warned.add(operation)
        if self._is_strict:
            raise ConfigError(
                f"{operation} would be served by a slow reference kernel, and --strict is set.",
                remedy=f"See 'chiplet explain' for why, or pin it: --use {operation}=reference.",
            )
        if not self._is_reference_platform:
            logger.warning(
                "%s is served by a slow reference kernel; 'chiplet explain' says why", operation
            )

    def _check_pin(self, key: str, provider: str) -> None:
        family = key.partition("/")[0]
        names = sorted(each.name for each in self._candidates[family])
        if provider not in names:
            raise PluginError(
                f"Pin '{key}={provider}': there is no {family} provider '{provider}' for device "
                f"{self._chosen.label}; there are: {', '.join(names)}.",
                remedy="Correct the name, or see 'chiplet doctor' for plugins that did not load.",
            )


def _ranked(
    verdicts: Sequence[tuple[Candidate, Verdict]], pin: str | None
) -> list[tuple[Candidate, Yes]]:
    """Candidates that may serve, best first; only the pinned one if there is a pin."""
    willing = [
        (candidate, verdict)
        for candidate, verdict in verdicts
        if isinstance(verdict, Yes) and pin in (None, candidate.name)
    ]
    # Sorting is stable: of equal scores, the one found first stays first.
    return sorted(willing, key=lambda pair: -pair[1].score)


def _choice(
    request: Request,
    winner: tuple[Candidate, Yes],
    verdicts: Sequence[tuple[Candidate, Verdict]],
    pin: str | None,
) -> Choice:
    candidate, verdict = winner
    return Choice(
        operation=operation_of(request),
        request=summary_of(request),
        num_uses=0,
        provider=candidate.name,
        distribution=candidate.plugin.distribution,
        version=candidate.plugin.version,
        score=verdict.score,
        note=verdict.note,
        is_pinned=pin is not None,
        rejections=tuple(
            _rejection(request, each, other, verdict.score, is_pinned=pin is not None)
            for each, other in verdicts
            if each is not candidate
        ),
    )


def _rejection(
    request: Request, loser: Candidate, verdict: Verdict, winning_score: int, *, is_pinned: bool
) -> Rejection:
    if isinstance(verdict, No):
        return Rejection(loser.name, _texts(verdict))
    sign = "<" if verdict.score < winning_score else "=" if verdict.score == winning_score else ">"
    reason = f"score {verdict.score} {sign} {winning_score}"
    if is_pinned:
        reason = f"score {verdict.score}, another is pinned"
    elif verdict.score == winning_score:
        reason += ", found later"
    return Rejection(loser.name, (reason,), f"--use {operation_of(request)}={loser.name}")


def _refusal(
    request: Request, verdicts: Sequence[tuple[Candidate, Verdict]], pin: str | None
) -> PluginError:
    operation = operation_of(request)
    willing = ", ".join(each.name for each, verdict in verdicts if isinstance(verdict, Yes))
    refused = [
        f"{each.name}: {'; '.join(_texts(verdict))}"
        for each, verdict in verdicts
        if isinstance(verdict, No) and pin in (None, each.name)
    ]
    what = f"Pin '{operation}={pin}' cannot be kept" if pin else f"Nobody serves {operation}"
    return PluginError(
        f"{what} ({summary_of(request)}). {' | '.join(refused)}.",
        remedy=f"Providers that serve it: {willing or 'none'}.",
    )


def _texts(verdict: No) -> tuple[str, ...]:
    return tuple(
        f"{reason.text} ({reason.hint})" if reason.hint else reason.text
        for reason in verdict.reasons
    )
