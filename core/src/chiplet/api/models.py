"""Model families."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelEntry:
    """A model family.

    Attributes:
        architectures: names in checkpoints that it serves, like 'LlamaForCausalLM'; of two entries
            with one name, the one found later serves it.
        target: 'module:class' of the model, imported when such a checkpoint is loaded. It is made
            as `target(config, context)` from a `chiplet.modeling.ModelConfig` and a
            `LayerContext`, and is a `chiplet.modeling.CausalLM`.
    """

    architectures: tuple[str, ...]
    target: str
