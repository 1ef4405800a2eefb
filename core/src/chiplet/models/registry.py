"""Registry: from a checkpoint's architecture to the class that runs it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module

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
    for entry in reversed(entries):
        if architecture in entry.architectures:
            return _load(entry)
    served = sorted(name for entry in entries for name in entry.architectures)
    raise ModelError(
        f"Architecture '{architecture}' is not served; served: {', '.join(served)}.",
        remedy="Choose a model of one of these, or install a plugin that brings it.",
    )


def _load(entry: ModelEntry) -> ModelFactory:
    module_name, _, class_name = entry.target.partition(":")
    try:
        return getattr(import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise PluginError(
            f"Model target '{entry.target}' cannot be imported: {error}.",
            remedy="Mend or remove the plugin that names it.",
        ) from error
