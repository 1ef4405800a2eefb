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
from chiplet.models.base import CausalLM, Joining
from chiplet.models.lean_loading import lean_loading
from chiplet.models.registry import find_model, translated
from chiplet.models.weights import fill_with_random, load_weights, weight_bytes, without_adopted
from chiplet.parallel.group import RankGroup
from chiplet.plugins import (
    ChosenDevice,
    PendingDevice,
    PluginSet,
    Selector,
    apply_proposals,
    begin_choice,
    discover,
)
from chiplet.plugins.agreement import choose_together
from chiplet.plugins.autotune.session import tuning
from chiplet.plugins.foresight import foresee
from chiplet.plugins.self_check import SelfCheck
from chiplet.resolution import resolve
from chiplet.runner.batch_builder import BatchBuilder
from chiplet.runner.executables import Executables
from chiplet.runner.kv_pool import KvPool, allocate
from chiplet.runner.peers import ALONE, Peers
from chiplet.runner.runner import ModelRunner
from chiplet.runner.sampler import Sampler
from chiplet.runner.slots import SlotTables
from chiplet.runner.step_function import StepFunction
from chiplet.seats import (
    UNACCOMPANIED,
    Group,
    Muster,
    Seat,
    connected,
    gather,
    group_maker,
    take_seat,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Assembly:
    """A model made for a device.

    Attributes:
        seat: of this process among the ranks.
        share: the part of a shared device that it has, for people; empty if it is not shared.
        group: of all ranks, connected unless nobody was to be asked.
        make_parts: makes model and sampler once more, with what the selector answers then.
        model: without weights, until they are loaded.
    """

    config: EngineConfig
    plugins: PluginSet
    chosen: ChosenDevice
    checkpoint: Checkpoint
    selector: Selector
    seat: Seat
    share: str
    group: Group
    make_parts: Callable[[], tuple[CausalLM, Sampler]]
    model: CausalLM
    sampler: Sampler

    @property
    def platform(self) -> Platform:
        """The device."""
        return self.chosen.platform

    @property
    def is_host_free(self) -> bool:
        """Whether the device computes without this process; main memory never does."""
        return self.platform.torch_device.type != "cpu"

    @property
    def model_config(self) -> ModelConfig:
        """Facts about the checkpoint."""
        return self.checkpoint.config


def assemble(
    config: EngineConfig, choice: PendingDevice | None = None, muster: Muster = UNACCOMPANIED
) -> Assembly:
    """Find plugins, device and checkpoint, and make the model without weights.

    Args:
        config: all settings; of a rank other than 0, as rank 0 has resolved them.
        choice: of the device, if it has begun.
        muster: brings this process to its seat among the ranks, if there are several.

    Raises:
        ConfigError: a setting, the checkpoint or a plugin is wrong.
    """
    choice = choice or begin_choice(discover(config.device), config.device)
    plugins, chosen = choice.plugin_set, choice.finish()
    share = gather(muster, chosen.platform, config.device.tensor_parallel_size)
    chosen.platform.activate()
    path = resolve_model(config.model.model)
    checkpoint = open_checkpoint(path, config.model.load_format, plugin_readers(plugins))
    if muster.rank == 0:
        config = resolve(
            apply_proposals(config, plugins, chosen.probe),
            checkpoint.config,
            dtypes=chosen.platform.supported_dtypes(),
            states_dtype=not has_blocks(checkpoint),
        )
    seat = take_seat(muster, config, chosen, checkpoint.config)
    with tuning(plugins, chosen, config.device.autotune) as tuner:
        judge = SelfCheck(chosen.platform) if config.device.self_check else None
        selector = Selector(plugins, chosen, config.device, seat.topology, judge=judge, tuner=tuner)
        if isinstance(chosen.platform, CompilingPlatform):
            num_ranks = config.device.tensor_parallel_size
            compiler = selector.compiler(CompilationRequest(num_ranks=num_ranks))
            chosen.platform.compile_with(compiler)
        make_group = group_maker(
            seat, selector, chosen.platform, config, checkpoint.config, step_limits(config)
        )
        model_class = find_model(plugins.model_entries(), checkpoint.config.architecture)

        def make_parts(ranks: RankGroup, bindings: Selector = selector) -> tuple[CausalLM, Sampler]:
            context = _layer_context(config, plugins, checkpoint, bindings, chosen.platform, ranks)
            sampler = Sampler(bindings, Dtype(config.model.dtype), ranks)
            model = model_class(checkpoint.config, context)
            check_groups(model.attention_layers())
            return model, sampler

        group, (model, sampler) = _choose(seat, selector, chosen.platform, make_group, make_parts)
    return Assembly(
        config=config,
        plugins=plugins,
        chosen=chosen,
        checkpoint=checkpoint,
        selector=selector,
        seat=seat,
        share=share,
        group=group,
        make_parts=partial(make_parts, group.ranks),
        model=model,
        sampler=sampler,
    )


def _choose(
    seat: Seat,
    selector: Selector,
    platform: Platform,
    make_group: Callable[[], Group],
    make_parts: Callable[[RankGroup, Selector], tuple[CausalLM, Sampler]],
) -> tuple[Group, tuple[CausalLM, Sampler]]:
    """Group, model and sampler of what is chosen, by all ranks alike, and connected."""

    def make() -> tuple[Group, tuple[CausalLM, Sampler]]:
        group = make_group()
        foresee(selector, platform, partial(make_parts, group.ranks))
        return group, make_parts(group.ranks, selector)

    if seat.meeting is None:
        made = make()
        selector.check_plan_file()
        return made
    before, parts = choose_together(selector, seat.meeting, make)
    group = connected(before, seat, selector, platform)
    return group, parts if group is before else make_parts(group.ranks, selector)


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
    _join(parts.model)


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
    _join(model)
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


def make_runner(
    parts: Assembly, kv: KvPool, tables: SlotTables, peers: Peers = ALONE
) -> ModelRunner:
    """A runner on existing pages and tables; nothing is prepared yet.

    Raises:
        ConfigError: the device cannot run such steps.
    """
    builder = BatchBuilder(
        tables, page_size=parts.config.cache.page_size, padding_page=kv.padding_page
    )
    function = StepFunction(
        parts.model,
        parts.sampler,
        layouts=kv.layouts,
        state=tables.state,
        builder=builder,
        platform=parts.platform,
    )
    executables = Executables(
        function,
        parts.platform,
        step_limits(parts.config),
        is_eager=parts.config.device.eager or bool(parts.group.eager_because),
        peers=peers,
    )
    return ModelRunner(
        executables, platform=parts.platform, tables=tables, builder=builder, peers=peers
    )


def step_limits(config: EngineConfig) -> StepLimits:
    """The largest steps that the scheduler may ask for."""
    schedule = config.schedule
    return StepLimits(
        max_tokens=schedule.chunked_prefill_size + schedule.max_running_requests,
        max_requests=schedule.max_running_requests,
        max_pages=_max_pages(config),
        max_prompt_rows=schedule.chunked_prefill_size,
        page_size=config.cache.page_size,
    )


def _max_pages(config: EngineConfig) -> int:
    """Most pages of one request."""
    assert config.model.context_length is not None
    return -(-config.model.context_length // config.cache.page_size)


def _join(model: CausalLM) -> None:
    if isinstance(model, Joining):
        model.join()


def _fill(parts: Assembly, targets: WeightMap) -> None:
    dtype = torch_dtype(Dtype(parts.config.model.dtype))
    device = parts.platform.torch_device
    if parts.checkpoint.is_dummy:
        fill_with_random(parts.model, targets, dtype=dtype, device=device)
        return
    is_shown = parts.seat.topology.local_ranks[0] == 0
    progress = _progress_bar("Loading weights", weight_bytes(parts.model, dtype), is_shown=is_shown)
    with lean_loading(), progress as advance:
        load_weights(
            parts.model,
            parts.checkpoint,
            targets,
            dtype=dtype,
            device=device,
            advance=advance,
        )


@contextmanager
def _progress_bar(
    title: str, total_bytes: int, *, is_shown: bool
) -> Generator[Callable[[int], None]]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), disable=not is_shown) as progress:
        task = progress.add_task(title, total=total_bytes)
        yield lambda num_bytes: progress.advance(task, num_bytes)
