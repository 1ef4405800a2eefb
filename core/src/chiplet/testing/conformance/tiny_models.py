"""Tiny checkpoints with random weights, one for each way in which the families of models differ."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from chiplet.assembly import assemble
from chiplet.config import EngineConfig

VOCAB_SIZE = 32
"""No more than the most alternatives that one may ask for: log-probabilities show all of them."""

CONTEXT_LENGTH = 256

_SHAPE: Mapping[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "head_dim": 32,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT_LENGTH,
    "rms_norm_eps": 1e-5,
    "torch_dtype": "float32",
    "eos_token_id": 1,
}

_LLAMA3_ROPE: Mapping[str, Any] = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}

_QWEN3_EXPERTS: Mapping[str, Any] = {
    "model_type": "qwen3_moe",
    "architectures": ["Qwen3MoeForCausalLM"],
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "norm_topk_prob": True,
}

_LLAMA: Mapping[str, Any] = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
_MISTRAL: Mapping[str, Any] = {"model_type": "mistral", "architectures": ["MistralForCausalLM"]}

_MIXTRAL: Mapping[str, Any] = {
    "model_type": "mixtral",
    "architectures": ["MixtralForCausalLM"],
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "sliding_window": None,
}

_DEEPSEEK: Mapping[str, Any] = {
    "model_type": "deepseek_v2",
    "architectures": ["DeepseekV2ForCausalLM"],
    "kv_lora_rank": 32,
    "q_lora_rank": 24,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "v_head_dim": 20,
    "first_k_dense_replace": 1,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "topk_method": "group_limited_greedy",
    "n_group": 4,
    "topk_group": 2,
}

KINDS: Mapping[str, Mapping[str, Any]] = {
    "llama": _LLAMA | {"rope_scaling": _LLAMA3_ROPE, "tie_word_embeddings": True},
    "llama with biases": _LLAMA | {"attention_bias": True, "mlp_bias": True},
    "mistral with a window": _MISTRAL | {"sliding_window": 9},
    "qwen3": {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]},
    "qwen3 of experts": _QWEN3_EXPERTS,
    "mixtral": _MIXTRAL,
    "deepseek": _DEEPSEEK,
}
"""What config.json says beside the shape, by a name for the report."""

OF_EXPERTS = frozenset({"qwen3 of experts", "mixtral", "deepseek"})


def write_checkpoint(kind: str, folder: Path) -> None:
    """Write config.json and model.safetensors, the same ones each time."""
    config = json.dumps({**_SHAPE, **KINDS[kind]})
    (folder / "config.json").write_text(config, "utf-8")
    random = torch.Generator().manual_seed(len(kind))
    tensors = {
        name: _random(name, shape, random) for name, shape in sorted(_shapes(folder).items())
    }
    _write_safetensors(folder / "model.safetensors", tensors)


def _shapes(folder: Path) -> Mapping[str, tuple[int, ...]]:
    """What the model with this config.json asks a checkpoint for."""
    parts = assemble(
        EngineConfig.from_options(
            model=str(folder), load_format="dummy", device="reference", self_check=False
        )
    )
    places = {name: each[0] for name, each in parts.model.weight_map().items()}
    return {name: each.holder.part_shapes[each.part] for name, each in places.items()}


def _random(name: str, shape: tuple[int, ...], random: torch.Generator) -> Tensor:
    """Larger than usual, so that attention is far from uniform and errors show."""
    if len(shape) > 1 or name.endswith(".bias"):
        return torch.randn(shape, generator=random) * 0.2
    return torch.rand(shape, generator=random) + 0.5


def _write_safetensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write float32 tensors. Source: https://github.com/huggingface/safetensors, "Format"."""
    header: dict[str, Any] = {}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.nbytes
        shape = [*tensor.shape]
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            file.write(tensor.numpy().tobytes())
