"""Recovery: after a step has raised, find out what to do without, and go on.

An exception in a step fails the requests of that step and nobody else's. If an implementation was
to blame it is demoted: the next candidate takes its place, layers that packed weights in its form
load them anew, and the step's shapes are prepared again, on the same pages and tables. Each
implementation can be demoted once, so this ends. A device that does not work any more ends the
engine process; what was to blame is denied when it is started again.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch

from chiplet.api import KvSpec, Platform
from chiplet.assembly import Assembly, make_runner, remake
from chiplet.engine import Mended
from chiplet.errors import ConfigError, EngineError
from chiplet.layers.attention import PagedAttention
from chiplet.plugins.blame import blame, dispensable
from chiplet.plugins.selection import Bound
from chiplet.runner.kv_pool import KvPool, convert
from chiplet.runner.runner import ModelRunner
from chiplet.runner.slots import SlotTables

_log = logging.getLogger(__name__)

_NOBODYS_FAULT = (MemoryError, torch.OutOfMemoryError)
"""Another implementation would have met the same."""


class Recovery:
    """Mends one engine's runner; see `chiplet.engine.Recovery`."""

    def __init__(
        self, parts: Assembly, kv: KvPool, tables: SlotTables, runner: ModelRunner
    ) -> None:
        """Watch over a runner and what it is made of."""
        self._parts = parts
        self._kv = kv
        self._tables = tables
        self._runner = runner

    def recover(self, error: Exception) -> Mended | None:
        """Mend what a step's error shows to be broken; see `chiplet.engine.Recovery`."""
        failed = _failed(error, self._parts.selector.bound)
        if isinstance(error, EngineError):
            deny = error.deny or _denials(failed)
            raise EngineError(str(error), deny=deny, is_crash=error.is_crash) from error
        fault = _device_fault(self._parts.platform)
        if fault:
            raise EngineError(
                f"The device does not work any more: {fault}. Before that a step raised "
                f"{type(error).__name__}: {error}",
                deny=_denials(failed),
            ) from error
        if failed is None or failed.seat.candidate.plugin.is_core:
            return None
        return self._do_without(failed, f"raised {type(error).__name__}: {error}")

    def _do_without(self, failed: Bound, reason: str) -> Mended | None:
        what = f"{failed.operation}: provider {failed.seat.candidate.name}"
        try:
            self._parts.selector.demote(failed, f"{reason} in a step")
        except ConfigError as error:
            _log.error("%s %s and stays in use: %s", what, reason, error)
            return None
        try:
            self._rebuild()
        except Exception as error:
            raise EngineError(
                f"{what} {reason}, and the model cannot be made without it: {error}",
                deny=_denials(failed),
            ) from error
        message = f"{what} {reason}; it is not used any more."
        _log.warning("%s", message)
        selector = self._parts.selector
        plan = selector.plan().to_json()
        return Mended(self._runner, message, plan, dispensable(selector.bound))

    def _rebuild(self) -> None:
        """A new model and runner on the same pages and tables."""
        self._runner.retire()
        old_layers = self._parts.model.attention_layers()
        self._parts = remake(self._parts)
        new_layers = self._parts.model.attention_layers()
        self._kv = convert(self._kv, _specs(old_layers), new_layers)
        self._tables.state = self._tables.state._replace(kv=self._kv.layers)
        self._runner = make_runner(self._parts, self._kv, self._tables)
        self._runner.prepare(in_background=not self._parts.config.device.prepare_first)


def denials_of(error: BaseException, bound: Sequence[Bound]) -> tuple[str, ...]:
    """Whom a step's error shows to blame, as `--deny` takes them.

    Args:
        error: what the step raised.
        bound: the implementations in use.
    """
    return _denials(_failed(error, bound))


def _failed(error: BaseException, bound: Sequence[Bound]) -> Bound | None:
    """The implementation to blame, if it is anybody's fault."""
    if isinstance(error, _NOBODYS_FAULT):
        return None
    cause: BaseException | None = error
    while cause is not None:
        found = blame(cause, bound)
        if found is not None:
            return found
        cause = cause.__cause__
    return None


def _denials(failed: Bound | None) -> tuple[str, ...]:
    """What to pass to `--deny`; a pinned implementation stays, as the user wants it."""
    if failed is None or failed.is_pinned or failed.seat.candidate.plugin.is_core:
        return ()
    return (f"{failed.operation}={failed.seat.candidate.name}",)


def _specs(layers: Sequence[PagedAttention]) -> list[tuple[str, KvSpec]]:
    return [(layer.request.group, layer.request.kv) for layer in layers]


@torch.inference_mode()
def _device_fault(platform: Platform) -> str:
    """What is wrong with the device, or an empty text if it still computes."""
    try:
        there = platform.to_device_async(torch.ones(2))
        back = platform.to_host_async(there + there)
        platform.record_event().wait()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "" if back.tolist() == [2.0, 2.0] else f"1 + 1 gave {back.tolist()}"
