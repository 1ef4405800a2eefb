"""Model families."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelEntry:
    """A model family.

    Attributes:
        architectures: names in checkpoints that it serves, like 'LlamaForCausalLM'.
        target: 'module:class' of the model, imported when it is needed.
    """

    architectures: tuple[str, ...]
    target: str
