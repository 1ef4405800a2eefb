"""A GGUF file's header, turned into a ModelConfig; no tensor library."""

from __future__ import annotations

from collections import Counter

import numpy as np

from chiplet.config import Dtype, ModelConfig, RopeScaling
from chiplet.errors import ModelError
from chiplet.formats.gguf_file import GgufFile, GgufTensor
from chiplet.formats.rope_factors import find_llama3_scaling

ROPE_FACTORS = "rope_freqs.weight"
"""Tensor of factors that divide the rotary frequencies, in Llama 3 files."""

_PLAIN = {
    "attn_logit_softcapping": 0.0,
    "final_logit_softcapping": 0.0,
    "attention.clamp_kqv": 0.0,
    "attention.max_alibi_bias": 0.0,
    "attention.scale": 0.0,
    "embedding_scale": 1.0,
    "logit_scale": 1.0,
    "residual_scale": 1.0,
}
"""Fields that change a model's numbers, and the value besides 0 that does not."""

_DTYPES = {"F16": Dtype.FLOAT16, "BF16": Dtype.BFLOAT16}
# Tokens that end a turn by their name, whichever of them the file calls its end token.
_TURN_ENDS = ("<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|im_end|>")


def read_gguf_config(file: GgufFile) -> ModelConfig:
    """Facts about the model in a GGUF file.

    Raises:
        ModelError: something is missing, or not supported.
    """
    _refuse_unsupported(file)
    tensors = {tensor.name: tensor for tensor in file.tensors}
    embedding = _embedding(file, tensors)
    num_heads = _count(file, "attention.head_count")
    hidden_size = _count(file, "embedding_length")
    head_dim = _head_dim(file, hidden_size // num_heads)
    rope_theta = _number(file, "rope.freq_base", 10000.0)
    return ModelConfig(
        architecture="LlamaForCausalLM",
        vocab_size=embedding.shape[0],
        hidden_size=hidden_size,
        intermediate_size=_count(file, "feed_forward_length"),
        num_layers=_count(file, "block_count"),
        num_heads=num_heads,
        num_kv_heads=_count(file, "attention.head_count_kv", num_heads),
        head_dim=head_dim,
        context_length=_count(file, "context_length"),
        rms_norm_eps=_number(file, "attention.layer_norm_rms_epsilon"),
        rope_theta=rope_theta,
        rope_scaling=_rope_scaling(file, tensors, rope_theta, head_dim),
        tie_word_embeddings="output.weight" not in tensors,
        attention_bias="blk.0.attn_q.bias" in tensors,
        mlp_bias="blk.0.ffn_gate.bias" in tensors,
        sliding_window=file.integer(_key(file, "attention.sliding_window")),
        eos_token_ids=_eos_token_ids(file),
        dtype=_dtype(file),
    )


def _key(file: GgufFile, name: str) -> str:
    return f"{file.text('general.architecture')}.{name}"


def _count(file: GgufFile, name: str, default: int | None = None) -> int:
    key = _key(file, name)
    value = file.integer(key)
    value = default if value is None else value
    if value is None or value <= 0:
        raise ModelError(
            f"{file.path}: {key} is {'missing' if value is None else value}; expected a positive "
            "integer.",
            remedy="Convert the model again with a current converter.",
        )
    return value


def _number(file: GgufFile, name: str, default: float | None = None) -> float:
    key = _key(file, name)
    value = file.number(key)
    value = default if value is None else value
    if value is None or not value > 0:
        raise ModelError(
            f"{file.path}: {key} is {'missing' if value is None else value}; expected a positive "
            "number.",
            remedy="Convert the model again with a current converter.",
        )
    return value


def _refuse_unsupported(file: GgufFile) -> None:
    architecture = file.text("general.architecture")
    if architecture != "llama":
        raise ModelError(
            f"{file.path}: architecture {architecture!r} is not supported; supported: llama.",
            remedy="Choose a model of the Llama family.",
        )
    if (file.integer("split.count") or 1) > 1:
        raise ModelError(
            f"{file.path} is one of {file.integer('split.count')} parts; supported: whole files.",
            remedy="Join the parts with 'llama-gguf-split --merge'.",
        )
    for name, plain in _PLAIN.items():
        value = file.number(_key(file, name))
        if value is not None and value not in (0.0, plain):
            raise ModelError(
                f"{file.path}: {_key(file, name)} is {value:g}; supported: {plain:g}.",
                remedy="Choose another model of the Llama family.",
            )
    num_experts = file.integer(_key(file, "expert_count")) or 0
    if num_experts:
        raise ModelError(
            f"{file.path}: a mixture of {num_experts} experts is not supported.",
            remedy="Choose a dense model of the Llama family.",
        )


def _embedding(file: GgufFile, tensors: dict[str, GgufTensor]) -> GgufTensor:
    embedding = tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise ModelError(
            f"{file.path} has no token_embd.weight: it holds no whole model.",
            remedy="Take the file with the model's weights.",
        )
    return embedding


def _head_dim(file: GgufFile, default: int) -> int:
    head_dim = _count(file, "attention.key_length", default)
    for name in ("attention.value_length", "rope.dimension_count"):
        other = _count(file, name, head_dim)
        if other != head_dim:
            raise ModelError(
                f"{file.path}: {_key(file, name)} is {other}; supported: the head dimension, "
                f"{head_dim}.",
                remedy="Choose a model of the Llama family.",
            )
    return head_dim


def _rope_scaling(
    file: GgufFile, tensors: dict[str, GgufTensor], rope_theta: float, head_dim: int
) -> RopeScaling:
    kind = file.text(_key(file, "rope.scaling.type")) or "none"
    factor = file.number(_key(file, "rope.scaling.factor"))
    older_factor = file.number(_key(file, "rope.scale_linear"))
    if kind not in ("none", "linear"):
        raise ModelError(
            f"{file.path}: rope scaling {kind!r} is not supported; supported: none, linear and "
            "the factors of Llama 3.",
            remedy="Choose another model of the Llama family.",
        )
    if ROPE_FACTORS in tensors:
        return _scaling_from_factors(file, tensors[ROPE_FACTORS], rope_theta, head_dim)
    factor = (factor if kind == "linear" else None) or older_factor or 1.0
    return RopeScaling() if factor == 1.0 else RopeScaling(kind="linear", factor=factor)


def _scaling_from_factors(
    file: GgufFile, tensor: GgufTensor, rope_theta: float, head_dim: int
) -> RopeScaling:
    scaling = None
    if tensor.type.name == "F32":
        factors = np.fromfile(
            file.path, np.dtype("<f4"), tensor.num_elements, offset=tensor.offset_bytes
        )
        scaling = find_llama3_scaling(factors.astype(np.float64), rope_theta, head_dim)
    if scaling is None:
        raise ModelError(
            f"{file.path}: the factors in {ROPE_FACTORS} are not those of Llama 3's rope scaling.",
            remedy="Take the model as a Hugging Face folder.",
        )
    return scaling


def _eos_token_ids(file: GgufFile) -> tuple[int, ...]:
    """End tokens by their keys and by their names, each once."""
    keys = ("eos_token_id", "eot_token_id", "eom_token_id")
    by_key = [file.integer(f"tokenizer.ggml.{key}") for key in keys]
    token_ids = {token_id: None for token_id in by_key if token_id is not None}
    tokens = file.texts("tokenizer.ggml.tokens")
    for name in _TURN_ENDS:
        if name in tokens:
            token_ids[tokens.index(name)] = None
    return tuple(token_ids)


def _dtype(file: GgufFile) -> Dtype:
    """The type that most elements were saved in; for quantised ones, the one that loses nothing.

    A quantised weight is a small integer times a float16 scale, plus an offset, which float32
    holds and bfloat16 would round once more.
    """
    elements: Counter[Dtype] = Counter()
    for tensor in file.tensors:
        elements[_DTYPES.get(tensor.type.name, Dtype.FLOAT32)] += tensor.num_elements
    return elements.most_common(1)[0][0]
