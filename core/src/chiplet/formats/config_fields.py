"""Fields of config.json that core's own families do not serve: refused, or named in the log.

Nothing that changes a model's numbers is ignored silently. A field that is known to do so and asks
for something else than the plain case is refused; one that nobody here has heard of is a warning.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from chiplet.errors import ModelError

logger = logging.getLogger(__name__)

PLAIN: Mapping[str, Collection[Any]] = {
    "alibi": (False,),
    "attention_chunk_size": (),
    "attention_multiplier": (),
    "attention_sinks": (False,),
    "attn_logit_softcapping": (0,),
    "attn_temperature_tuning": (False, 0),
    "clip_qkv": (),
    "dim_model_base": (),
    "embedding_multiplier": (1,),
    "final_logit_softcapping": (0,),
    "logit_scale": (1,),
    "logits_scaling": (1,),
    "n_group": (1,),
    "n_shared_experts": (0,),
    "no_rope_layer_interval": (),
    "no_rope_layers": ([],),
    "num_kv_shared_layers": (0,),
    "position_embedding_type": ("rope", "rotary", "absolute"),
    "qk_layernorm": (False,),
    "query_pre_attn_scalar": (),
    "residual_multiplier": (1,),
    "rope_interleaved": (False,),
    "routed_scaling_factor": (1,),
    "scale_depth": (),
    "scale_emb": (1,),
    "scoring_func": ("softmax",),
    "shared_expert_intermediate_size": (0,),
    "topk_group": (1,),
    "use_parallel_residual": (False,),
    "use_qk_norm": (False,),
}
"""Fields that change a model's numbers, and the values that do not; null never does."""

READ = frozenset(
    """architectures model_type vocab_size hidden_size intermediate_size num_hidden_layers
    num_attention_heads num_key_value_heads head_dim max_position_embeddings rms_norm_eps
    rope_theta rope_scaling rope_parameters tie_word_embeddings attention_bias mlp_bias
    sliding_window use_sliding_window eos_token_id dtype torch_dtype quantization_config
    hidden_act partial_rotary_factor num_experts num_local_experts num_experts_per_tok
    moe_intermediate_size norm_topk_prob decoder_sparse_step mlp_only_layers layer_types""".split()  # noqa: SIM905 - a list of words reads better as text
)
"""Fields that core reads."""

HARMLESS = frozenset(
    """_attn_implementation _attn_implementation_autoset _name_or_path add_cross_attention
    attention_dropout auto_map bad_words_ids begin_suppress_tokens bos_token_id
    chunk_size_feed_forward cross_attention_hidden_size decoder_start_token_id
    diversity_penalty do_sample early_stopping encoder_no_repeat_ngram_size
    exponential_decay_length_penalty finetuning_task forced_bos_token_id forced_eos_token_id
    id2label initializer_range is_decoder is_encoder_decoder is_llama_config
    keys_to_ignore_at_inference label2id length_penalty max_length max_window_layers
    min_length no_repeat_ngram_size num_beam_groups num_beams num_labels num_return_sequences
    original_max_position_embeddings output_attentions output_hidden_states
    output_router_logits output_scores pad_token_id prefix pretraining_tp problem_type
    pruned_heads remove_invalid_values repetition_penalty return_dict return_dict_in_generate
    rope_ratio router_aux_loss_coef router_jitter_noise sep_token_id suppress_tokens
    task_specific_params temperature tf_legacy_loss tie_encoder_decoder tokenizer_class top_k
    top_p torchscript transformers.js_config transformers_version typical_p unk_token_id
    unsloth_fixed unsloth_version use_bfloat16 use_cache""".split()  # noqa: SIM905 - a list of words reads better as text
)
"""Fields that say nothing of a model's numbers: of training, of generation, of the writer."""

_WINDOWED = ("MistralForCausalLM", "MixtralForCausalLM")


def refuse_other_numbers(path: Path, architecture: str, stated: Mapping[str, Any]) -> None:
    """Refuse what would change the numbers of one of core's own families.

    Raises:
        ModelError: a field asks for something that the family does not serve.
    """
    for name, plain in PLAIN.items():
        value = stated.get(name)
        if value is not None and value not in plain:
            allowed = ", ".join(map(repr, plain)) or "null"
            raise ModelError(
                f"{path}: {name} is {value!r}, which {architecture} is not served with; "
                f"supported: {allowed}.",
                remedy="Choose another model, or a plugin that serves this one.",
            )
    _check_layer_types(path, architecture, stated.get("layer_types"))


def warn_of_unread(path: Path, stated: Mapping[str, Any]) -> None:
    """Name the fields that nobody has heard of, and that say more than null or false."""
    unknown = sorted(
        name
        for name, value in stated.items()
        if value not in (None, False, [], {})
        if name not in READ and name not in HARMLESS and name not in PLAIN
    )
    if unknown:
        logger.warning(
            "%s: not known, and not read: %s. If one of them changes the model's numbers, its "
            "answers are wrong.",
            path,
            ", ".join(unknown),
        )


def _check_layer_types(path: Path, architecture: str, types: Any) -> None:
    """All layers attend alike: over everything, or over the family's window."""
    alike: tuple[set[str], ...] = (set(), {"full_attention"})
    if architecture in _WINDOWED:
        alike = (*alike, {"sliding_attention"})
    kinds = set(map(str, types)) if isinstance(types, list) else {str(types)} - {"None"}
    if kinds not in alike:
        raise ModelError(
            f"{path}: layer_types has {', '.join(sorted(kinds))}; supported: one kind for all "
            f"layers of {architecture}, full_attention"
            f"{' or sliding_attention' if architecture in _WINDOWED else ''}.",
            remedy="Choose another model, or a plugin that serves this one.",
        )
