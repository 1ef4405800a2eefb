"""Worker: one rank assembles its parts, from plugins and a checkpoint to a running engine."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from chiplet.assembly import Assembly, assemble, make_runner, make_tables
from chiplet.config import EngineConfig, ModelConfig
from chiplet.crash import InUse
from chiplet.engine import Engine
from chiplet.formats.quantization.registry import NONE
from chiplet.memory.kv_manager import KvManager
from chiplet.models.lean_loading import lean_loading
from chiplet.plugins import PendingDevice, SelectionPlan, begin_choice, discover
from chiplet.plugins.blame import dispensable
from chiplet.ranks.company import Company
from chiplet.ranks.leading import LeadingRunner
from chiplet.recovery import Recovery
from chiplet.request import RequestLimits
from chiplet.runner.peers import ALONE
from chiplet.scheduler.scheduler import Scheduler
from chiplet.seats import UNACCOMPANIED, Unaccompanied
from chiplet.stock import Stock, take_stock

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFacts:
    """What the outside needs to know of a started engine.

    Attributes:
        model_name: name under which clients ask for it.
        device: type, index and product name.
        dtype: of weights and activations.
        limits: what requests it can take.
        banner: lines for people: device, plugins, warnings.
        plan: the selection plan, ready for JSON.
        in_use: whom another start may do without.
        ranks: where each rank is, for people; empty if there is one.
    """

    model_name: str
    device: str
    dtype: str
    limits: RequestLimits
    banner: tuple[str, ...]
    plan: dict[str, Any]
    in_use: tuple[InUse, ...] = ()
    ranks: tuple[str, ...] = ()


def start(config: EngineConfig, choice: PendingDevice | None = None) -> tuple[Engine, EngineFacts]:
    """A running engine with its weights loaded, and the facts about it.

    Args:
        config: all settings.
        choice: of the device, begun for `config.device` before this module was imported: probes
            then run beside the import of the tensor library. Who began it tells its plugins the
            end; without it nobody does.

    Raises:
        ConfigError: a setting, the checkpoint or a plugin is wrong.
    """
    num_ranks = config.device.tensor_parallel_size
    if num_ranks == 1:
        return _start(config, choice, UNACCOMPANIED)
    company = Company(num_ranks)
    with ExitStack() as at_failure:
        at_failure.callback(company.end)
        engine, facts = _start(config, choice, company)
        at_failure.pop_all()
    # Who drops an engine without closing it leaves no process behind.
    weakref.finalize(engine, company.end)
    return engine, facts


def _start(
    config: EngineConfig, choice: PendingDevice | None, muster: Company | Unaccompanied
) -> tuple[Engine, EngineFacts]:
    # What the self-check makes is as large as weights, and goes again.
    with lean_loading():
        parts = assemble(config, choice, muster)
    stock = take_stock(parts)
    kv_pool, tables = make_tables(parts, stock.num_pages)
    company = parts.seat.meeting if isinstance(parts.seat.meeting, Company) else None
    runner = make_runner(parts, kv_pool, tables, company or ALONE)
    parts.selector.seal()
    if company is not None:
        communicator = parts.group.ranks.communicator
        assert communicator is not None
        company.settle(communicator)
    runner.prepare(in_background=not parts.config.device.prepare_first)
    kv = KvManager(
        num_pages=stock.num_pages,
        page_size=parts.config.cache.page_size,
        radix_cache=parts.config.cache.radix_cache,
    )
    facts = _facts(parts, stock)
    scheduler = Scheduler(parts.config.schedule, kv, context_length=facts.limits.context_length)
    for line in facts.banner:
        _log.log(logging.WARNING if line in parts.chosen.warnings else logging.INFO, line)
    recovery = Recovery(parts, kv_pool, tables, runner)
    is_free = parts.is_host_free
    if company is None:
        return Engine(scheduler, runner, recovery, is_host_free=is_free), facts
    leading = LeadingRunner(runner, company)
    return Engine(scheduler, leading, recovery, company, is_host_free=is_free), facts


def explain(config: EngineConfig) -> SelectionPlan:
    """Who would serve each operation, and why; no weights are loaded.

    Raises:
        ConfigError: a setting, the checkpoint or a plugin is wrong.
    """
    plugins = discover(config.device)
    try:
        parts = assemble(config, begin_choice(plugins, config.device))
        make_runner(parts, *make_tables(parts, num_pages=1))
        parts.selector.seal()
        return parts.selector.plan()
    finally:
        plugins.shut_down()


def _end_tokens(model: ModelConfig) -> tuple[int, ...]:
    """The model's end tokens that its vocabulary has."""
    outside = [each for each in model.eos_token_ids if not 0 <= each < model.vocab_size]
    if outside:
        _log.warning(
            "The checkpoint names end tokens %s outside its vocabulary of %d; they are left out.",
            outside,
            model.vocab_size,
        )
    return tuple(each for each in model.eos_token_ids if each not in outside)


def _facts(parts: Assembly, stock: Stock) -> EngineFacts:
    config, probe = parts.config, parts.chosen.probe
    assert config.model.context_length is not None
    assert config.model.served_model_name is not None
    max_total_tokens = stock.num_pages * config.cache.page_size
    device = f"{probe.device_type}:{probe.index} ({probe.name})"
    model, plan = parts.model_config, parts.selector.plan()
    quantization = config.model.quantization
    quantized = "" if quantization == NONE else f", linear layers in {quantization}"
    head = config.model.head_quantization
    quantized += "" if head == NONE else f", head in {head}"
    banner = (
        f"Device {device} by plugin {parts.chosen.plugin_name}",
        f"{model.architecture}, {model.num_layers} layers, {config.model.dtype}"
        f"{quantized}; "
        f"KV cache of {max_total_tokens} tokens, pages of {config.cache.page_size}",
        *_rank_lines(parts, stock),
        *parts.chosen.warnings,
        *(
            f"Plugin {each.distribution} {each.version} is not loaded: {each.reason}"
            for each in parts.plugins.quarantined
        ),
        *plan.failures(),
    )
    return EngineFacts(
        model_name=config.model.served_model_name,
        device=device,
        dtype=config.model.dtype,
        limits=RequestLimits(
            context_length=config.model.context_length,
            max_total_tokens=max_total_tokens,
            vocab_size=model.vocab_size,
            eos_token_ids=_end_tokens(model),
        ),
        banner=banner,
        plan=plan.to_json() | ({"ranks": list(stock.ranks)} if stock.ranks else {}),
        in_use=dispensable(parts.selector.bound),
        ranks=stock.ranks,
    )


def _rank_lines(parts: Assembly, stock: Stock) -> Iterator[str]:
    if stock.ranks:
        size = parts.seat.topology.world_size
        yield f"{size} ranks share the model, a process each: {'; '.join(stock.ranks)}"
    if parts.group.eager_because:
        yield f"Steps are not recorded: {parts.group.eager_because}"
