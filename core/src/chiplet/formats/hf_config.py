"""Hugging Face's config.json, turned into a ModelConfig; no tensor library."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from chiplet.config import Dtype, ExpertsConfig, ModelConfig, RopeScaling
from chiplet.errors import ModelError
from chiplet.formats.config_fields import refuse_other_numbers, warn_of_unread

_ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
}
_QK_NORMED = ("Qwen3ForCausalLM", "Qwen3MoeForCausalLM")
_ROPE_KINDS = ("default", "linear", "llama3")
_ACTIVATIONS = ("silu", "swish")
# What the model type assumes where its config.json is silent.
_DEFAULT_CONTEXT_LENGTH = {
    "LlamaForCausalLM": 2048,
    "MistralForCausalLM": 131072,
    "MixtralForCausalLM": 131072,
    "Qwen3ForCausalLM": 32768,
    "Qwen3MoeForCausalLM": 32768,
}
_DEFAULT_MISTRAL_WINDOW = 4096


Translate = Callable[[Mapping[str, Any]], Mapping[str, Any]]
"""A config.json with the names that this module reads."""


def read_hf_config(path: Path, translate: Translate = lambda values: values) -> ModelConfig:
    """Facts about the model whose config.json this is.

    A generation_config.json beside it names the tokens that end an answer. What the file asks of a
    family that core does not serve is that family's business.

    Raises:
        ModelError: the file is missing or damaged, or asks for something that is not supported.
    """
    facts = _Facts(path, translate(read_json_object(path)))
    architecture = _architecture(facts)
    is_ours = architecture in _ARCHITECTURES.values()
    if is_ours:
        _refuse_unsupported(facts)
        refuse_other_numbers(path, architecture, facts.values)
        warn_of_unread(path, facts.values)
    hidden_size, num_heads = facts.count("hidden_size"), facts.count("num_attention_heads")
    rope_theta, rope_scaling = _rope(facts, is_ours=is_ours)
    default_context = _DEFAULT_CONTEXT_LENGTH.get(architecture)
    return ModelConfig(
        architecture=architecture,
        vocab_size=facts.count("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=facts.count("intermediate_size"),
        num_layers=facts.count("num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=facts.count("num_key_value_heads", num_heads),
        head_dim=facts.count("head_dim", hidden_size // num_heads),
        context_length=facts.count("max_position_embeddings", default_context),
        rms_norm_eps=facts.number("rms_norm_eps", 1e-6),
        rope_theta=rope_theta,
        rope_scaling=rope_scaling,
        tie_word_embeddings=facts.flag("tie_word_embeddings"),
        attention_bias=facts.flag("attention_bias"),
        mlp_bias=facts.flag("mlp_bias"),
        qk_norm=architecture in _QK_NORMED,
        experts=_experts(facts, architecture),
        sliding_window=_sliding_window(facts, architecture),
        eos_token_ids=_eos_token_ids(facts),
        dtype=_dtype(facts),
        quantization=facts.table("quantization_config").values,
        stated=facts.values,
    )


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        ModelError: the file is missing, unreadable or holds something else.
    """
    try:
        value: object = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(
            f"Cannot read {path}: {error.strerror}.",
            remedy="Check that the model folder is complete.",
        ) from error
    except ValueError as error:
        raise ModelError(
            f"{path} is not valid JSON ({error}).", remedy="Download it again."
        ) from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} holds no JSON object.", remedy="Download it again.")
    return cast(dict[str, Any], value)


@dataclass(frozen=True, slots=True)
class _Facts:
    """Typed access to a JSON object; a null counts as absent."""

    path: Path
    values: Mapping[str, Any]

    def count(self, key: str, default: int | None = None) -> int:
        value = self._given(key, default)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
        raise self._error(key, value, "a positive integer")

    def number(self, key: str, default: float | None = None) -> float:
        value = self._given(key, default)
        if isinstance(value, int | float) and not isinstance(value, bool) and value > 0:
            return float(value)
        raise self._error(key, value, "a positive number")

    def flag(self, key: str) -> bool:
        value = self._given(key, False)
        if isinstance(value, bool):
            return value
        raise self._error(key, value, "true or false")

    def table(self, key: str) -> _Facts:
        value = self._given(key, {})
        if isinstance(value, dict):
            return _Facts(self.path, cast(dict[str, Any], value))
        raise self._error(key, value, "an object")

    def token_ids(self, key: str) -> tuple[int, ...]:
        value = self._given(key, [])
        items: list[object] = cast(list[object], value) if isinstance(value, list) else [value]
        if all(isinstance(item, int) and item >= 0 for item in items):
            return tuple(cast(list[int], items))
        raise self._error(key, value, "a token id or a list of token ids")

    def _given(self, key: str, default: object) -> Any:
        value = self.values.get(key)
        return default if value is None else value

    def _error(self, key: str, value: object, wanted: str) -> ModelError:
        found = "missing" if value is None else repr(value)
        return ModelError(
            f"{self.path}: {key} is {found}; expected {wanted}.",
            remedy="Check that the file belongs to this model and is complete.",
        )


def _architecture(facts: _Facts) -> str:
    named = facts.values.get("architectures") or []
    model_type = facts.values.get("model_type")
    names = cast(list[object], named) if isinstance(named, list) else [named]
    name = names[0] if names else _ARCHITECTURES.get(str(model_type), model_type)
    # One that core does not serve may be a plugin's: who makes the model knows.
    if isinstance(name, str) and (names or name in _ARCHITECTURES.values()):
        return name
    supported = ", ".join(_ARCHITECTURES.values())
    raise ModelError(
        f"{facts.path}: architecture {name!r} is not supported; supported: {supported}.",
        remedy="Choose a model of a supported family.",
    )


def _refuse_unsupported(facts: _Facts) -> None:
    """Says no to what would silently change the model's answers."""
    activation = facts.values.get("hidden_act") or "silu"
    if activation not in _ACTIVATIONS:
        raise ModelError(
            f"{facts.path}: hidden_act {activation!r} is not supported; supported: silu.",
            remedy="Choose a model of a supported family.",
        )
    if facts.number("partial_rotary_factor", 1.0) != 1.0:
        raise ModelError(
            f"{facts.path}: partial_rotary_factor other than 1 is not supported.",
            remedy="Choose a model of a supported family.",
        )


def _rope(facts: _Facts, *, is_ours: bool) -> tuple[float, RopeScaling]:
    """Base and scaling; `rope_parameters` is the newer spelling of both together."""
    newer = facts.table("rope_parameters")
    table = newer if newer.values else facts.table("rope_scaling")
    theta = newer.number("rope_theta", facts.number("rope_theta", 10000.0))
    kind = table.values.get("rope_type") or table.values.get("type") or "default"
    if kind not in _ROPE_KINDS and not is_ours:
        return theta, RopeScaling()
    if kind not in _ROPE_KINDS:
        raise ModelError(
            f"{facts.path}: rope type {kind!r} is not supported; supported: "
            f"{', '.join(_ROPE_KINDS)}.",
            remedy="Choose a model of a supported family.",
        )
    if is_ours and table.number("partial_rotary_factor", 1.0) != 1.0:
        raise ModelError(f"{facts.path}: partial_rotary_factor other than 1 is not supported.")
    if kind == "default":
        return theta, RopeScaling()
    if kind == "linear":
        return theta, RopeScaling(kind="linear", factor=table.number("factor"))
    scaling = RopeScaling(
        kind="llama3",
        factor=table.number("factor"),
        low_freq_factor=table.number("low_freq_factor"),
        high_freq_factor=table.number("high_freq_factor"),
        original_context_length=table.count("original_max_position_embeddings"),
    )
    if scaling.high_freq_factor <= scaling.low_freq_factor:
        raise ModelError(
            f"{facts.path}: high_freq_factor is {scaling.high_freq_factor}; it must be above "
            f"low_freq_factor ({scaling.low_freq_factor})."
        )
    return theta, scaling


def _experts(facts: _Facts, architecture: str) -> ExpertsConfig | None:
    if architecture == "MixtralForCausalLM":
        return ExpertsConfig(
            num_experts=facts.count("num_local_experts"),
            intermediate_size=facts.count("intermediate_size"),
            top_k=facts.count("num_experts_per_tok"),
            renormalize=True,
        )
    if architecture != "Qwen3MoeForCausalLM":
        return None
    if facts.count("decoder_sparse_step", 1) != 1 or facts.values.get("mlp_only_layers"):
        raise ModelError(
            f"{facts.path}: decoder_sparse_step and mlp_only_layers leave some layers without "
            "experts, which is not supported; supported: experts in every layer.",
            remedy="Choose another model.",
        )
    return ExpertsConfig(
        # Newer writers say num_local_experts, as Mixtral always did.
        num_experts=facts.count("num_experts", facts.values.get("num_local_experts")),
        intermediate_size=facts.count("moe_intermediate_size"),
        top_k=facts.count("num_experts_per_tok"),
        renormalize=facts.flag("norm_topk_prob"),
    )


def _sliding_window(facts: _Facts, architecture: str) -> int | None:
    # Llama has none, whatever its config.json says; Mistral's has a default, and null means none.
    if architecture in _QK_NORMED and facts.flag("use_sliding_window"):
        raise ModelError(
            f"{facts.path}: use_sliding_window is true; supported for this model type: false.",
            remedy="Choose a model of a supported family.",
        )
    if architecture == "MixtralForCausalLM" and facts.values.get("sliding_window") is None:
        return None
    if architecture not in ("MistralForCausalLM", "MixtralForCausalLM"):
        return None
    if "sliding_window" in facts.values and facts.values["sliding_window"] is None:
        return None
    return facts.count("sliding_window", _DEFAULT_MISTRAL_WINDOW)


def _eos_token_ids(facts: _Facts) -> tuple[int, ...]:
    generation_path = facts.path.with_name("generation_config.json")
    if facts.path.name == "config.json" and generation_path.is_file():
        generation = _Facts(generation_path, read_json_object(generation_path))
        token_ids = generation.token_ids("eos_token_id")
        if token_ids:
            return token_ids
    return facts.token_ids("eos_token_id")


def _dtype(facts: _Facts) -> Dtype:
    name = facts.values.get("dtype") or facts.values.get("torch_dtype") or "float32"
    if name not in set(Dtype):
        raise ModelError(
            f"{facts.path}: dtype {name!r} is not supported; supported: {', '.join(Dtype)}.",
            remedy="Choose a checkpoint in one of these types.",
        )
    return Dtype(name)
