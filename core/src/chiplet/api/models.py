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
        read_config: 'module:function' that is given the checkpoint's config.json as a mapping and
            returns one with the names that core reads ('hidden_size', 'num_hidden_layers' and so
            on) and whatever else the model wants to find in `ModelConfig.stated`. It raises
            `ModelError` for what the family does not serve. Empty where the names are those.
    """

    architectures: tuple[str, ...]
    target: str
    read_config: str = ""

    def __post_init__(self) -> None:
        assert not isinstance(self.architectures, str), "architectures are several texts, not one"
