"""Core's own model families, registered through the hook that outsiders use."""

from __future__ import annotations

from collections.abc import Sequence

from chiplet.api import ModelEntry, hookimpl


@hookimpl
def models() -> Sequence[ModelEntry]:
    """The families in this folder."""
    return [
        ModelEntry(
            architectures=(
                "LlamaForCausalLM",
                "MistralForCausalLM",
                "MixtralForCausalLM",
                "Qwen3ForCausalLM",
                "Qwen3MoeForCausalLM",
            ),
            target="chiplet.models.llama:LlamaForCausalLM",
        ),
        ModelEntry(
            architectures=("DeepseekV2ForCausalLM",),
            target="chiplet.models.deepseek:DeepseekV2ForCausalLM",
            read_config="chiplet.models.deepseek_config:read_config",
        ),
    ]
