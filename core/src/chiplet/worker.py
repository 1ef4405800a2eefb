"""Worker: one rank assembles its parts, from plugins and a checkpoint to a running engine."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from chiplet.api import Dtype
from chiplet.assembly import Assembly, assemble, load, make_runner, make_tables
from chiplet.config import EngineConfig, ModelConfig
from chiplet.crash import InUse
from chiplet.engine import Engine
from chiplet.errors import ConfigError
from chiplet.formats.quantization.registry import NONE
from chiplet.memory.kv_manager import KvManager
from chiplet.models.own_mappings import large_tensors_in_own_mappings
from chiplet.plugins import PendingDevice, SelectionPlan, begin_choice, discover
from chiplet.plugins.blame import dispensable
from chiplet.recovery import Recovery
from chiplet.request import RequestLimits
from chiplet.runner.kv_pool import page_bytes
from chiplet.scheduler.scheduler import Scheduler

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
    """

    model_name: str
    device: str
    dtype: str
    limits: RequestLimits
    banner: tuple[str, ...]
    plan: dict[str, Any]
    in_use: tuple[InUse, ...] = ()


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
    # What the self-check makes is as large as weights, and goes again.
    with large_tensors_in_own_mappings():
        parts = assemble(config, choice)
    free_bytes = parts.platform.memory().free_bytes
    load(parts)
    num_pages = _num_pages(parts, free_bytes)
    kv_pool, tables = make_tables(parts, num_pages)
    runner = make_runner(parts, kv_pool, tables)
    parts.selector.seal()
    runner.prepare(in_background=not parts.config.device.prepare_first)
    kv = KvManager(
        num_pages=num_pages,
        page_size=parts.config.cache.page_size,
        radix_cache=parts.config.cache.radix_cache,
    )
    facts = _facts(parts, num_pages)
    scheduler = Scheduler(parts.config.schedule, kv, context_length=facts.limits.context_length)
    for line in facts.banner:
        _log.log(logging.WARNING if line in parts.chosen.warnings else logging.INFO, line)
    return Engine(scheduler, runner, Recovery(parts, kv_pool, tables, runner)), facts


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


def _num_pages(parts: Assembly, free_bytes: int) -> int:
    """Pages that fit beside the weights, as far as they are of any use.

    Args:
        parts: with weights loaded.
        free_bytes: of the device before the weights came.
    """
    cache, schedule = parts.config.cache, parts.config.schedule
    weight_bytes = max(0, free_bytes - parts.platform.memory().free_bytes)
    budget = int(free_bytes * cache.mem_fraction_static) - weight_bytes - _activation_bytes(parts)
    per_page = page_bytes(parts.model.attention_layers())
    fitting = budget // per_page - 1  # and the page of padding
    assert parts.config.model.context_length is not None
    pages_per_request = -(-parts.config.model.context_length // cache.page_size)
    if cache.max_total_tokens is not None:
        wanted = -(-cache.max_total_tokens // cache.page_size)
    else:
        wanted = min(fitting, schedule.max_running_requests * pages_per_request)
    if wanted > fitting or wanted < 1:
        raise ConfigError(
            f"A KV cache of {max(wanted, 1) * cache.page_size} tokens takes "
            f"{max(wanted, 1) * per_page / 2**20:.0f} MiB; {max(budget, 0) / 2**20:.0f} MiB are "
            f"left of {free_bytes / 2**20:.0f} MiB free (mem-fraction-static "
            f"{cache.mem_fraction_static}).",
            remedy="Lower --max-total-tokens, raise --mem-fraction-static or free some memory.",
        )
    return wanted


def _activation_bytes(parts: Assembly) -> int:
    """A generous guess at what one step needs beside weights and pages."""
    model, schedule = parts.model_config, parts.config.schedule
    num_tokens = schedule.chunked_prefill_size + schedule.max_running_requests
    requests = [each.request for each in parts.model.attention_layers()]
    widest = max((each.num_heads * each.head_dim for each in requests), default=0)
    wider = max(0, widest - model.hidden_size)  # of latent attention: each head asks whole rows
    per_token = 6 * model.hidden_size + 4 * (model.intermediate_size + wider)
    size_bytes = Dtype(parts.config.model.dtype).size_bytes
    layer_bytes = num_tokens * per_token * size_bytes
    # Sampling: logits twice, a sort and running sums; and what penalties keep per slot.
    per_logit = 48 + 10
    logit_bytes = schedule.max_running_requests * model.vocab_size * per_logit
    prompt_logit_bytes = schedule.chunked_prefill_size * model.vocab_size * size_bytes
    return layer_bytes + logit_bytes + prompt_logit_bytes


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


def _facts(parts: Assembly, num_pages: int) -> EngineFacts:
    config, probe = parts.config, parts.chosen.probe
    assert config.model.context_length is not None
    assert config.model.served_model_name is not None
    max_total_tokens = num_pages * config.cache.page_size
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
        plan=plan.to_json(),
        in_use=dispensable(parts.selector.bound),
    )
