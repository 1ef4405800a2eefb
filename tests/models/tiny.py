"""Tiny random checkpoints, made and judged by Transformers, and an engine run on token ids."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    DeepseekV2Config,
    DeepseekV2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from chiplet.config import EngineConfig
from chiplet.request import RequestOutput
from chiplet.sampling_params import SamplingParams
from chiplet.worker import start

VOCAB_SIZE = 32
"""No more than the most alternatives one may ask for: logprobs show the whole distribution."""

SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 1,
}

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}

QWEN3_EXPERTS = {
    "head_dim": 16,
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "norm_topk_prob": False,
}

DEEPSEEK = {
    "num_key_value_heads": 6,
    "kv_lora_rank": 32,
    "q_lora_rank": None,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8,
    "v_head_dim": 10,
    "first_k_dense_replace": 1,
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 24,
    "routed_scaling_factor": 1.0,
}

DEEPSEEK_LARGE = DEEPSEEK | {
    "q_lora_rank": 20,
    "attention_bias": True,
    "topk_method": "group_limited_greedy",
    "n_group": 4,
    "topk_group": 2,
    "routed_scaling_factor": 2.5,
    "rope_parameters": {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 8.0,
        "original_max_position_embeddings": 64,
        "beta_fast": 8,
        "beta_slow": 1,
        "mscale": 0.9,
        "mscale_all_dim": 0.7,
    },
}

KINDS: dict[str, tuple[type, type, dict[str, Any]]] = {
    "llama-untied": (LlamaConfig, LlamaForCausalLM, {"tie_word_embeddings": False}),
    "llama-tied": (LlamaConfig, LlamaForCausalLM, {"tie_word_embeddings": True}),
    "llama-bias": (LlamaConfig, LlamaForCausalLM, {"attention_bias": True, "mlp_bias": True}),
    "llama3-rope": (LlamaConfig, LlamaForCausalLM, {"rope_parameters": LLAMA3_ROPE}),
    "linear-rope": (
        LlamaConfig,
        LlamaForCausalLM,
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}},
    ),
    "mistral": (MistralConfig, MistralForCausalLM, {"sliding_window": None, "head_dim": 16}),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"head_dim": 16}),
    "qwen3-moe": (Qwen3MoeConfig, Qwen3MoeForCausalLM, QWEN3_EXPERTS | {"norm_topk_prob": True}),
    "qwen3-moe-plain": (Qwen3MoeConfig, Qwen3MoeForCausalLM, QWEN3_EXPERTS),
    "mixtral": (
        MixtralConfig,
        MixtralForCausalLM,
        {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
    ),
    "deepseek": (DeepseekV2Config, DeepseekV2ForCausalLM, DEEPSEEK),
    "deepseek-large": (DeepseekV2Config, DeepseekV2ForCausalLM, DEEPSEEK_LARGE),
    "mistral-window": (MistralConfig, MistralForCausalLM, {"sliding_window": 9}),
}


def make_checkpoint(kind: str, folder: Path) -> torch.nn.Module:
    """Save a random model as safetensors and return Transformers' own copy of it."""
    config_class, model_class, changes = KINDS[kind]
    torch.manual_seed(len(kind))
    config = config_class(**(SHAPE | changes))
    model = model_class(config).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # Larger than usual, so that attention is far from uniform and errors show.
            parameter.normal_(std=0.2) if parameter.dim() > 1 else parameter.uniform_(0.5, 1.5)
    model.save_pretrained(folder)
    return model


@dataclass
class Collected:
    """All outputs of one request."""

    token_ids: list[int] = field(default_factory=list)
    outputs: list[RequestOutput] = field(default_factory=list)

    @property
    def logprobs(self) -> np.ndarray:
        """Distribution at each answer position, `[num_tokens, vocab]`."""
        return dense([each for out in self.outputs for each in out.logprobs or ()])

    @property
    def prompt_logprobs(self) -> np.ndarray:
        """Distribution at prompt positions 1 onwards."""
        return dense(self.outputs[0].prompt_logprobs or ())


def dense(rows: Any) -> np.ndarray:
    """Rows of top tokens as full distributions."""
    result = np.full((len(rows), VOCAB_SIZE), np.nan)
    for row, each in enumerate(rows):
        result[row, list(each.top_token_ids)] = each.top_logprobs
        assert result[row, each.token_id] == each.logprob
    return result


def run_engine(
    config: EngineConfig, prompts: list[list[int]], params: list[SamplingParams]
) -> list[Collected]:
    """Serve prompts of token ids, all at once."""
    engine, facts = start(config)
    collected = {f"r{index}": Collected() for index in range(len(prompts))}
    for name, prompt, sampling in zip(collected, prompts, params, strict=True):
        array = np.array(prompt, dtype=np.int32)
        facts.limits.check(array, sampling)
        engine.add(facts.limits.request(name, array, sampling, seed=0, arrival_s=time.monotonic()))
    while engine.has_work:
        for output in engine.step():
            assert output.error is None
            collected[output.request_id].outputs.append(output)
            collected[output.request_id].token_ids += output.token_ids
    return list(collected.values())
