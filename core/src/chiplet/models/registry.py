"""Registry: from a checkpoint's architecture to the class that runs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

from chiplet.api import ModelEntry
from chiplet.config import ModelConfig
from chiplet.errors import ModelError, PluginError
from chiplet.layers.context import LayerContext
from chiplet.models.base import CausalLM

ModelFactory = Callable[[ModelConfig, LayerContext], CausalLM]


def find_model(entries: Sequence[ModelEntry], architecture: str) -> ModelFactory:
    """The class that serves an architecture; the last entry that names it wins.

    Raises:
        ModelError: no entry names it.
        PluginError: the entry's target cannot be imported.
    """
    entry = _find(entries, architecture)
    if entry is not None:
        return _load(entry.target)
    served = sorted(name for entry in entries for name in entry.architectures)
    raise ModelError(
        f"Architecture '{architecture}' is not served; served: {', '.join(served)}.",
        remedy="Choose a model of one of these, or install a plugin that brings it.",
    )


def translated(entries: Sequence[ModelEntry], stated: Mapping[str, Any]) -> Mapping[str, Any]:
    """A config.json with the names that core reads: as the entry of its architecture gives it.

    Raises:
        ModelError: the entry refuses the config, or fails at it.
        PluginError: the entry's function cannot be imported.
    """
    named = stated.get("architectures") or [None]
    entry = _find(entries, named[0] if isinstance(named, list) else named)
    if entry is None or not entry.read_config:
        return stated
    read = _load(entry.read_config)
    try:
        return dict(read(stated))
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(
            f"'{entry.read_config}' cannot read the checkpoint's config.json: "
            f"{type(error).__name__}: {error}.",
            remedy="Check that the checkpoint is complete, or update the plugin that serves it.",
        ) from error


def _find(entries: Sequence[ModelEntry], architecture: object) -> ModelEntry | None:
    """The last entry that names an architecture."""
    named = (each for each in reversed(entries) if architecture in each.architectures)
    return next(named, None)


def _load(target: str) -> Any:
    module_name, _, name = target.partition(":")
    try:
        return getattr(import_module(module_name), name)
    # Whatever the module raises while it is imported.
    except (Exception, SystemExit) as error:
        raise PluginError(
            f"Model target '{target}' cannot be imported: {type(error).__name__}: {error}.",
            remedy="Mend or remove the plugin that names it.",
        ) from error
