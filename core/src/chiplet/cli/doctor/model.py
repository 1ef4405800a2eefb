"""The model: files, architecture, tokenizer, and whether it fits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from chiplet.api import Check, MemoryInfo
from chiplet.assembly import plugin_readers
from chiplet.cli.doctor.installation import Installation
from chiplet.cli.doctor.report import fault, ok, problem, warning
from chiplet.config import EngineConfig
from chiplet.errors import ConfigError
from chiplet.formats.catalogue import find_entry, is_hub_name, resolve_model
from chiplet.formats.checkpoint import open_checkpoint
from chiplet.formats.model_files import ModelFiles, find_model_files
from chiplet.models.registry import find_model
from chiplet.text.tokenizer import load_tokenizer


def check_model(config: EngineConfig, installation: Installation) -> Iterator[Check]:
    """All that can be known of a model without reading its weights; fetches nothing."""
    name = config.model.model
    entry = find_entry(name)
    if not Path(name).expanduser().exists():
        if entry is not None and not entry.is_cached:
            yield warning(f"model {name}", "not in the cache", f"chiplet pull {entry.name}")
            return
        if entry is None and is_hub_name(name):
            yield ok(f"model {name}", "on the hub; looked at when it has been fetched")
            return
    try:
        path = resolve_model(name)
        files = find_model_files(path, config.model.load_format)
    except ConfigError as error:
        yield problem("model", error)
        return
    yield _checkpoint(config, installation, path)
    yield _tokenizer(config, path)
    if installation.chosen is not None:
        yield _memory(config, files, installation.chosen.platform.memory())


def _checkpoint(config: EngineConfig, installation: Installation, path: Path) -> Check:
    try:
        readers = plugin_readers(installation.plugins)
        facts = open_checkpoint(path, config.model.load_format, readers).config
        find_model(installation.plugins.model_entries(), facts.architecture)
    except ConfigError as error:
        return problem("model", error)
    except OSError as error:
        detail = f"{path} cannot be read: {error.strerror or error}"
        return fault("model", detail, "Give this user the right to read it.")
    return ok("model", f"{facts.architecture}, {facts.num_layers} layers, at {path}")


def _tokenizer(config: EngineConfig, path: Path) -> Check:
    try:
        tokenizer = load_tokenizer(path, config.model.tokenizer_path, config.model.chat_template)
    except ConfigError as error:
        return problem("tokenizer", error)
    return ok("tokenizer", f"{tokenizer.vocab_size} tokens")


def _memory(config: EngineConfig, files: ModelFiles, memory: MemoryInfo) -> Check:
    weight_bytes = sum(each.stat().st_size for each in files.weight_paths)
    share = config.cache.mem_fraction_static
    detail = (
        f"weights of {weight_bytes / 2**20:.0f} MiB; the device has "
        f"{memory.free_bytes / 2**20:.0f} of {memory.total_bytes / 2**20:.0f} MiB free, of which "
        f"{share:.0%} may be used"
    )
    if weight_bytes > memory.total_bytes * share:
        remedy = "Take a smaller or quantized model, or raise the limit of container or device."
        return fault("memory", detail, remedy)
    if weight_bytes > memory.free_bytes * share:
        remedy = "End other programs that use the device's memory."
        return fault("memory", detail, remedy)
    return ok("memory", detail)
