"""Assembly: a model made for a device, filled with weights, and the runner around it."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from chiplet.api import CompilationRequest, CompilingPlatform, Dtype, KvCoding, Platform, StepLimits
from chiplet.config import EngineConfig, ModelConfig
from chiplet.formats.catalogue import resolve_model
from chiplet.formats.checkpoint import Checkpoint, Readers, has_blocks, open_checkpoint
from chiplet.formats.quantization.registry import formats_of
from chiplet.layers.attention import check_groups
from chiplet.layers.context import LayerContext, torch_dtype
from chiplet.layers.weights import WeightMap
from chiplet.models.base import CausalLM
from chiplet.models.own_mappings import large_tensors_in_own_mappings
from chiplet.models.registry import find_model, translated
from chiplet.models.weights import fill_with_random, load_weights, weight_bytes, without_adopted
from chiplet.parallel.group import RankGroup
from chiplet.parallel.one_program import one_program_topology, ranks_of_one_program
from chiplet.plugins import (
    ChosenDevice,
    PendingDevice,
    PluginSet,
    Selector,
    apply_proposals,
    begin_choice,
    discover,
)
from chiplet.plugins.agreement import Meeting, choose_together
from chiplet.plugins.autotune.session import tuning
from chiplet.plugins.self_check import SelfCheck
from chiplet.resolution import resolve
from chiplet.runner.batch_builder import BatchBuilder
from chiplet.runner.executables import Executables
from chiplet.runner.kv_pool import KvPool, allocate
from chiplet.runner.runner import ModelRunner
from chiplet.runner.sampler import Sampler
from chiplet.runner.slots import SlotTables
from chiplet.runner.step_function import StepFunction


@dataclass(frozen=True, slots=True, kw_only=True)
class Assembly:
    """A model made for a device.

    Attributes:
        make_parts: makes model and sampler once more, with what the selector answers then.
        model: without weights, until they are loaded.
    """

    config: EngineConfig
    plugins: PluginSet
    chosen: ChosenDevice
    checkpoint: Checkpoint
    selector: Selector
    make_parts: Callable[[], tuple[CausalLM, Sampler]]
    model: CausalLM
    sampler: Sampler

    @property
    def platform(self) -> Platform:
        """The device."""
        return self.chosen.platform

    @property
    def model_config(self) -> ModelConfig:
        """Facts about the checkpoint."""
        return self.checkpoint.config


def assemble(
    config: EngineConfig, choice: PendingDevice | None = None, meeting: Meeting | None = None
) -> Assembly:
    """Find plugins, device and checkpoint, and make the model without weights.

    Args:
        config: all settings.
        choice: of the device, if it has begun.
        meeting: with the other ranks, if there are any: all choose what rank 0 chooses.

    Raises:
        ConfigError: a setting, the checkpoint or a plugin is wrong.
    """
    choice = choice or begin_choice(discover(config.device), config.device)
    plugins, chosen = choice.plugin_set, choice.finish()
    chosen.platform.activate()
    path = resolve_model(config.model.model)
    checkpoint = open_checkpoint(path, config.model.load_format, plugin_readers(plugins))
    config = resolve(
        apply_proposals(config, plugins, chosen.probe),
        checkpoint.config,
        dtypes=chosen.platform.supported_dtypes(),
        states_dtype=not has_blocks(checkpoint),
    )
    num_ranks = config.device.tensor_parallel_size
    topology = one_program_topology(num_ranks)
    with tuning(plugins, chosen, config.device.autotune) as tuner:
        judge = SelfCheck(chosen.platform) if config.device.self_check else None
        selector = Selector(plugins, chosen, config.device, topology, judge=judge, tuner=tuner)
        if isinstance(chosen.platform, CompilingPlatform):
            compiler = selector.compiler(CompilationRequest(num_ranks=num_ranks))
            chosen.platform.compile_with(compiler)
        ranks = ranks_of_one_program(
            chosen.platform, topology, selector.communicator, Dtype(config.model.dtype)
        )
        context = _layer_context(config, plugins, checkpoint, selector, chosen.platform, ranks)
        model_class = find_model(plugins.model_entries(), checkpoint.config.architecture)

        def make_parts() -> tuple[CausalLM, Sampler]:
            sampler = Sampler(selector, Dtype(config.model.dtype))
            model = model_class(checkpoint.config, context)
            check_groups(model.attention_layers())
            return model, sampler

        if meeting is None:
            model, sampler = make_parts()
            selector.check_plan_file()
        else:
            model, sampler = choose_together(selector, meeting, make_parts)
    return Assembly(
        config=config,
        plugins=plugins,
        chosen=chosen,
        checkpoint=checkpoint,
        selector=selector,
        make_parts=make_parts,
        model=model,
        sampler=sampler,
    )


def plugin_readers(plugins: PluginSet) -> Readers:
    """What plugins, core's own among them, know of checkpoints."""
    return Readers(plugins.stored_formats(), partial(translated, plugins.model_entries()))


def _layer_context(
    config: EngineConfig,
    plugins: PluginSet,
    checkpoint: Checkpoint,
    selector: Selector,
    platform: Platform,
    ranks: RankGroup,
) -> LayerContext:
    assert config.model.context_length is not None
    dtype, cached = Dtype(config.model.dtype), config.cache.kv_cache_dtype
    coding = KvCoding(cached) if cached in frozenset(KvCoding) else None
    return LayerContext(
        bindings=selector,
        dtype=dtype,
        kv_dtype=Dtype(cached) if coding is None else dtype,
        kv_coding=coding,
        page_size=config.cache.page_size,
        max_positions=config.model.context_length,
        device=platform.torch_device,
        stored=checkpoint.schemes,
        ranks=ranks,
        quantization=formats_of(
            plugins.quantization_formats(),
            layers=config.model.quantization,
            head=config.model.head_quantization,
        ),
    )


def load(parts: Assembly) -> None:
    """Fill the model with the checkpoint's weights.

    Raises:
        ModelError: they do not fit the model.
    """
    _fill(parts, parts.model.weight_map())


def remake(parts: Assembly) -> Assembly:
    """The same with a new model, of what the selector answers now.

    Weights are taken over, packed as they are, by layers whose implementation is still the same;
    those of the others are read from the checkpoint again.

    Raises:
        ConfigError: the model cannot be made, or the checkpoint is gone.
    """
    model, sampler = parts.make_parts()
    anew = replace(parts, model=model, sampler=sampler)
    missing = without_adopted(model.weight_map(), parts.model.weight_map())
    if missing:
        _fill(anew, missing)
    return anew


def make_tables(parts: Assembly, num_pages: int) -> tuple[KvPool, SlotTables]:
    """The device's pages and what the runner remembers of running requests."""
    kv = allocate(parts.model.attention_layers(), num_pages, parts.platform.torch_device)
    tables = SlotTables(
        num_slots=parts.config.schedule.max_running_requests,
        max_pages=_max_pages(parts.config),
        vocab_size=parts.model_config.vocab_size,
        kv=kv.layers,
        platform=parts.platform,
    )
    return kv, tables


def make_runner(parts: Assembly, kv: KvPool, tables: SlotTables) -> ModelRunner:
    """A runner on existing pages and tables; nothing is prepared yet.

    Raises:
        ConfigError: the device cannot run such steps.
    """
    cache, schedule = parts.config.cache, parts.config.schedule
    builder = BatchBuilder(tables, page_size=cache.page_size, padding_page=kv.padding_page)
    function = StepFunction(
        parts.model,
        parts.sampler,
        layouts=kv.layouts,
        state=tables.state,
        builder=builder,
        platform=parts.platform,
    )
    limits = StepLimits(
        max_tokens=schedule.chunked_prefill_size + schedule.max_running_requests,
        max_requests=schedule.max_running_requests,
        max_pages=_max_pages(parts.config),
        max_prompt_rows=schedule.chunked_prefill_size,
        page_size=cache.page_size,
    )
    executables = Executables(function, parts.platform, limits, is_eager=parts.config.device.eager)
    return ModelRunner(executables, platform=parts.platform, tables=tables, builder=builder)


def _max_pages(config: EngineConfig) -> int:
    """Most pages of one request."""
    assert config.model.context_length is not None
    return -(-config.model.context_length // config.cache.page_size)


def _fill(parts: Assembly, targets: WeightMap) -> None:
    dtype = torch_dtype(Dtype(parts.config.model.dtype))
    device = parts.platform.torch_device
    if parts.checkpoint.is_dummy:
        fill_with_random(parts.model, targets, dtype=dtype, device=device)
        return
    progress = _progress_bar("Loading weights", weight_bytes(parts.model, dtype))
    with large_tensors_in_own_mappings(), progress as advance:
        load_weights(
            parts.model,
            parts.checkpoint,
            targets,
            dtype=dtype,
            device=device,
            advance=advance,
        )


@contextmanager
def _progress_bar(title: str, total_bytes: int) -> Generator[Callable[[int], None]]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(title, total=total_bytes)
        yield lambda num_bytes: progress.advance(task, num_bytes)
