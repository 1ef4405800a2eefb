"""Selection: answers each request for a capability with one implementation, chosen once.

The order is: the user's denials and pins; a plan file; features that a provider has not heard of
(refused before it is asked); the provider's own verdict; its score. If the best cannot be built,
or computes something else than the reference, the next is taken.
"""

from __future__ import annotations

import logging
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from chiplet.api import (
    AttentionImpl,
    AttentionRequest,
    CommunicationRequest,
    Communicator,
    CompilationRequest,
    LinearImpl,
    LinearRequest,
    MoeImpl,
    MoeRequest,
    No,
    Op,
    OpImpl,
    OpRequest,
    StepCompiler,
    Topology,
)
from chiplet.api.communication import ONE_PROCESS
from chiplet.config import DeviceOptions
from chiplet.errors import ConfigError, PluginError
from chiplet.layers.bindings import StretchFinder
from chiplet.plugins.autotune.tuner import Tuner
from chiplet.plugins.candidates import (
    Candidate,
    Request,
    build_context,
    gather_candidates,
    operation_of,
    summary_of,
)
from chiplet.plugins.comparison import Built, Compared, Comparer, Judge
from chiplet.plugins.contest import Contest, Seat
from chiplet.plugins.device import ChosenDevice
from chiplet.plugins.dispatch import SizedLinear, sized_op
from chiplet.plugins.isolation import FAULTS
from chiplet.plugins.parts import common_layouts, parted_attention
from chiplet.plugins.pins import parse_denials, parse_pins
from chiplet.plugins.plan import Choice, SelectionPlan
from chiplet.plugins.plan_lock import PlanFile, PlanLock
from chiplet.plugins.plugin_set import PluginSet
from chiplet.plugins.request_key import request_key
from chiplet.plugins.stretches import offered

logger = logging.getLogger(__name__)

# Operations whose cost a user feels in every step; the others are rare or small.
HOT_OPERATIONS = frozenset(
    f"ops/{op}" for op in (Op.RMS_NORM, Op.ADD_RMS_NORM, Op.ROTARY, Op.SILU_MUL, Op.SAMPLE)
)


@dataclass(frozen=True, slots=True)
class Bound:
    """An implementation in use.

    Attributes:
        seat: who made it, for calls of which size.
        is_pinned: the user chose it.
    """

    request: Request
    seat: Seat
    impl: Any
    is_pinned: bool

    @property
    def operation(self) -> str:
        """The operation as `--use` names it."""
        return operation_of(self.request)


@dataclass(slots=True)
class _Binding:
    """The answer to a request; `num_uses` grows with every layer that asks."""

    impl: Any
    choice: Choice
    parts: tuple[Bound, ...]
    num_uses: int = 0


class Selector:
    """Answers requests with implementations; see `chiplet.layers.bindings.Bindings`.

    Attributes:
        comparer: compares what is built with the reference.
        foreseen: outcomes of comparisons to come, by request and provider; see
            `chiplet.plugins.foresight`.
    """

    def __init__(
        self,
        plugin_set: PluginSet,
        chosen: ChosenDevice,
        options: DeviceOptions,
        topology: Topology = ONE_PROCESS,
        *,
        judge: Judge | None = None,
        tuner: Tuner | None = None,
    ) -> None:
        """Ask every plugin for its providers.

        Args:
            plugin_set: who is asked.
            chosen: the device.
            options: pins, denials, plan file and strictness.
            topology: where the ranks are.
            judge: compares what is chosen with the reference; None to trust everybody.
            tuner: measures the best candidates; None to go by score.

        Raises:
            ConfigError: a pin or denial is malformed, the plan file is damaged, or two plugins
                offer a provider of the same name.
            PluginError: a pin or denial names a provider that nobody offers.
        """
        self._plugin_set = plugin_set
        self._chosen = chosen
        self._is_strict = options.strict
        self._tuner = tuner
        self._candidates = gather_candidates(
            plugin_set,
            chosen.probe,
            explicit=plugin_set.explicit,
            topology=topology,
        )
        self._context = build_context(chosen.platform, self._candidates)
        self._pins = parse_pins(options)
        self._denials = parse_denials(options, self._pins)
        self._lock = self._open_lock(options)
        self._bindings: dict[Request, _Binding] = {}
        self.comparer = Comparer(judge, self._context)
        self.foreseen: dict[tuple[Request, str], Compared] = {}
        self._known: set[Request] = set()
        self._warned: set[str] = set()
        self._is_sealed = False
        for key, provider in [*self._pins.providers.items(), *self._denials.reasons]:
            self._check_name(key, provider)

    def attention(self, request: AttentionRequest) -> AttentionImpl:
        """The implementation that serves a group of layers."""
        return self._answer(request)

    def linear(self, request: LinearRequest) -> LinearImpl:
        """The implementation that serves a linear layer."""
        return self._answer(request)

    def serves(self, request: LinearRequest | CommunicationRequest) -> bool:
        """Whether somebody would serve a request better than the reference does."""
        contest = self._open_contest(request)
        willing = contest.willing()
        if contest.pin is not None:
            return bool(willing)
        return any(not candidate.plugin.is_core for candidate, _ in willing)

    @property
    def stretch(self) -> StretchFinder:
        """Finds what runs between two attentions in one call, if somebody offers that."""
        return partial(
            offered,
            candidates=self._candidates["linear"],
            context=self._context,
            pin_of=self._pins.find,
            denial_of=self._denials.find,
            judge=self.comparer.judge,
        )

    def moe(self, request: MoeRequest) -> MoeImpl:
        """The implementation that serves a mixture of experts."""
        return self._answer(request)

    def op(self, request: OpRequest) -> OpImpl:
        """The callable that serves an operation."""
        return self._answer(request)

    def communicator(self, request: CommunicationRequest) -> Communicator:
        """The collectives of a group of ranks."""
        return self._answer(request)

    def compiler(self, request: CompilationRequest) -> StepCompiler:
        """The compiler of whole steps."""
        return self._answer(request)

    def follow(self, content: PlanFile, whose: str) -> None:
        """Choose as a plan says that another rank made, unless a plan file says already."""
        if self._lock is None:
            here = (self._chosen.probe.device_type, *self._platform_identity())
            self._lock = PlanLock.of(
                content,
                here,
                name=f"The plan of {whose}",
                remedy="Give all ranks the same plugins, drivers and settings.",
            )

    def check_plan_file(self) -> None:
        """Refuse to go on where choices made so far are not those of the plan file.

        Raises:
            ConfigError: with every difference.
        """
        if self._lock is not None:
            self._lock.check(is_complete=False)

    def seal(self) -> None:
        """End selection: a request not answered before is refused from now on.

        Raises:
            ConfigError: a pin applied to nothing, or the plan file cannot be followed.
        """
        self._is_sealed = True
        self._known.update(self._bindings)
        for key in self._pins.unused():
            asked = sorted({operation_of(request) for request in self._bindings})
            raise ConfigError(
                f"Pin '{key}={self._pins.providers[key]}' applies to nothing here; operations of "
                f"this model: {', '.join(asked)}.",
                remedy="Correct or remove the pin.",
            )
        if self._lock is not None:
            self._lock.check(is_complete=True)

    def plan(self) -> SelectionPlan:
        """Every choice made so far."""
        bindings = self._bindings.values()
        return SelectionPlan(
            self._chosen.label,
            self._chosen.probe.name,
            *self._platform_identity(),
            tuple(replace(each.choice, num_uses=each.num_uses) for each in bindings),
        )

    @property
    def scout(self) -> Selector:
        """One with the same candidates that trusts everybody: it shows what is asked for."""
        other = copy(self)  # warns of nothing that this one has warned of, and the other way round
        other.comparer = Comparer(None, self._context)
        other._tuner = None
        other._bindings = {}
        return other

    @property
    def bound(self) -> tuple[Bound, ...]:
        """Every implementation in use."""
        return tuple(part for binding in self._bindings.values() for part in binding.parts)

    def demote(self, failed: Bound, reason: str) -> None:
        """Take an implementation out; its request is answered anew when it is asked again.

        Whoever holds the old one must be made anew: uses are counted from zero.

        Raises:
            ConfigError: the user pinned it, or nobody else serves the request. It stays in use.
        """
        name = failed.seat.candidate.name
        if failed.is_pinned:
            raise PluginError(
                f"{failed.operation} is pinned to '{name}', which failed: {reason}.",
                remedy="Remove the pin, so that another may serve.",
            )
        self._denials.reasons[failed.operation, name] = reason
        try:
            anew = {
                request: self._select(request)
                for request, binding in self._bindings.items()
                if operation_of(request) == failed.operation
                and any(part.seat.candidate.name == name for part in binding.parts)
            }
        except ConfigError:
            del self._denials.reasons[failed.operation, name]
            raise
        self._bindings.update(anew)
        for binding in self._bindings.values():
            binding.num_uses = 0

    def _answer(self, request: Request) -> Any:
        binding = self._bindings.get(request)
        if binding is None:
            if self._is_sealed:
                raise RuntimeError(f"selection is sealed, and was never asked for {request}")
            binding = self._bindings[request] = self._select(request)
        binding.num_uses += 1
        return binding.impl

    def _select(self, request: Request) -> _Binding:
        """The best implementation that can be built and computes what the reference does.

        Raises:
            PluginError: the pinned provider refuses or fails, or nobody serves the request.
            ConfigError: only a reference kernel is left for a hot operation, and `strict` is set.
        """
        contest = self._open_contest(request)
        while True:
            basis, seats = self._seats(contest)
            if not seats:
                raise contest.refusal()
            is_sound = all(self._is_sound(contest, seat.candidate) for seat in seats)
            if is_sound and _share_layouts(contest, seats):
                break
        if any(s.candidate.plugin.is_core and s.candidate.name != contest.pin for s in seats):
            self._mind_reference(contest.operation)
        parts = tuple(
            Bound(
                request,
                seat,
                contest.impls[seat.candidate.name],
                seat.candidate.name == contest.pin,
            )
            for seat in seats
        )
        return _Binding(_joined(request, parts), _choice(contest, seats, basis), parts)

    def _open_contest(self, request: Request) -> Contest:
        operation = operation_of(request)
        contest = Contest(request, self._pins.find(operation), {})
        for candidate in self._candidates[operation.partition("/")[0]]:
            denial = self._denials.find(operation, candidate.name)
            verdict = No.because("denied", denial) if denial else candidate.assess(request)
            contest.verdicts[candidate.name] = (candidate, verdict)
        return contest

    def _seats(self, contest: Contest) -> tuple[str, tuple[Seat, ...]]:
        """What decides, and the table of who serves which sizes."""
        if self._lock is not None:
            seats = self._lock.seats(contest, request_key(contest.request))
            if seats:
                return "plan file", seats
        if contest.pin is not None:
            return "pin", contest.seats_by_score()
        if self._tuner is not None:
            measured = self._tuner.seats(contest, lambda each: self._is_sound(contest, each))
            if measured is not None:
                return "measured", contest.with_part(measured)
        return "score", contest.seats_by_score()

    def _is_sound(self, contest: Contest, candidate: Candidate) -> bool:
        """Build a candidate's implementation and compare it; False if it was refused for it."""
        name, operation = candidate.name, contest.operation
        if name in contest.impls:
            return True
        try:
            ready = self.foreseen.pop((contest.request, name), None)
            if ready is None:
                impl = candidate.build(contest.request, self._context)
                verdict = contest.verdicts[name][1]
                ready = self.comparer.compare(Built(contest.request, candidate, verdict, impl))
            contest.checks[name] = ready.outcome
        except FAULTS as error:
            text = f"build raised {type(error).__name__}: {error}"
            logger.warning("%s: provider %s: %s", operation, name, text)
            contest.refuse(name, No.because("build", text))
            return False
        if ready.fault:
            text = f"self-check: {ready.fault}"
            logger.warning("%s: provider %s is not used; %s", operation, name, text)
            contest.refuse(name, No.because("self-check", text))
            return False
        contest.impls[name] = ready.impl
        return True

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
        if self._chosen.plugin_name != self._plugin_set.reference.distribution:
            logger.warning(
                "%s is served by a slow reference kernel; 'chiplet explain' says why", operation
            )

    def _check_name(self, key: str, provider: str) -> None:
        family = key.partition("/")[0]
        names = sorted(each.name for each in self._candidates[family])
        if provider not in names:
            raise PluginError(
                f"'{key}={provider}': there is no {family} provider '{provider}' for device "
                f"{self._chosen.label}; there are: {', '.join(names)}.",
                remedy="Correct the name, or see 'chiplet doctor' for plugins that did not load.",
            )

    def _open_lock(self, options: DeviceOptions) -> PlanLock | None:
        if options.plan_lock is None:
            return None
        device_type = self._chosen.probe.device_type
        return PlanLock.open(Path(options.plan_lock), (device_type, *self._platform_identity()))

    def _platform_identity(self) -> tuple[str, str]:
        """Distribution and version of the platform plugin."""
        name = self._chosen.plugin_name
        version = next(
            each.version for each in self._plugin_set.loaded if each.distribution == name
        )
        return name, version


def _joined(request: Request, parts: tuple[Bound, ...]) -> Any:
    """One implementation of all parts."""
    if len(parts) == 1:
        return parts[0].impl
    if isinstance(request, AttentionRequest):
        return parted_attention(*(part.impl for part in parts))
    rows = [(part.seat.max_tokens, part.impl) for part in parts]
    return SizedLinear(rows) if isinstance(request, LinearRequest) else sized_op(rows)


def _share_layouts(contest: Contest, seats: tuple[Seat, ...]) -> bool:
    """Whether all can work on the same pages; if not, who serves a part is refused."""
    if len(seats) == 1 or not isinstance(contest.request, AttentionRequest):
        return True
    text = f"no KV layout in common with {seats[-1].candidate.name}, which serves the rest"
    try:
        if common_layouts(*(contest.impls[seat.candidate.name] for seat in seats)):
            return True
    except FAULTS as error:
        text = f"layouts raised {type(error).__name__}: {error}"
    contest.refuse(seats[0].candidate.name, No.because("layout", text))
    return False


def _choice(contest: Contest, seats: tuple[Seat, ...], basis: str) -> Choice:
    checks = {contest.checks[seat.candidate.name] for seat in seats}
    return Choice(
        operation=contest.operation,
        request=summary_of(contest.request),
        key=request_key(contest.request),
        num_uses=0,
        servers=tuple(seat.server() for seat in seats),
        is_pinned=contest.pin is not None,
        rejections=contest.rejections(seats),
        basis=basis,
        check=", ".join(sorted(checks)),
        timings_us=contest.timings or None,
    )
