"""All settings, as values, grouped by the component that uses them; and the facts of a model.

Every field of an options class is one setting: the command-line flag, the YAML key, the help text
and the table in the docs are generated from it. Field `chunked_prefill_size` is flag
`--chunked-prefill-size` and YAML key `chunked_prefill_size`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from enum import StrEnum
from typing import Any, get_args, get_origin, get_type_hints

from chiplet.errors import ConfigError


class Dtype(StrEnum):
    """Floating-point types by the names that checkpoints use."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"

    @property
    def size_bytes(self) -> int:
        """Bytes of one element."""
        return 4 if self is Dtype.FLOAT32 else 2


@dataclass(frozen=True, slots=True)
class OptionInfo:
    """What the command line says of a field.

    Attributes:
        help: one sentence or two.
        choices: allowed values, if they are few.
        metavar: stands for the value in the help.
        minimum: smallest allowed number.
        maximum: largest allowed number.
    """

    help: str
    choices: tuple[str, ...] = ()
    metavar: str = ""
    minimum: float | None = None
    maximum: float | None = None


def _option(
    default: Any,
    help: str,
    *,
    choices: tuple[str, ...] = (),
    metavar: str = "",
    minimum: float | None = None,
    maximum: float | None = None,
) -> Any:
    info = OptionInfo(help, choices, metavar, minimum, maximum)
    return field(default=default, metadata={"option": info})


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOptions:
    """Model: which checkpoint, and how it is read."""

    model: str = _option(
        "smollm2-135m",
        "Model folder, GGUF file, catalogue name or hub name.",
        metavar="MODEL",
    )
    tokenizer_path: str | None = _option(
        None, "Folder or file of the tokenizer, if it is not the model's own.", metavar="PATH"
    )
    chat_template: str | None = _option(
        None, "Jinja file used instead of the model's own chat template.", metavar="FILE"
    )
    served_model_name: str | None = _option(
        None, "Name under which clients ask for the model.", metavar="NAME"
    )
    load_format: str = _option(
        "auto",
        "How weights are read; 'dummy' makes random ones from the config alone.",
        choices=("auto", "safetensors", "gguf", "dummy"),
    )
    dtype: str = _option(
        "auto",
        "Type of weights and activations; 'auto' takes what the checkpoint and device prefer.",
        choices=("auto", "float32", "float16", "bfloat16"),
    )
    quantization: str = _option(
        "none",
        "Quantize linear layers while loading: 'int8' (weights per output feature, activations "
        "per token), 'fp8' (weights alone, per output feature), 'fp8-dynamic' (and activations, "
        "per token), 'int4', 'mxfp4' and 'nvfp4' "
        "(weights alone, in groups) or what a plugin brings.",
        metavar="NAME",
    )
    head_quantization: str = _option(
        "none",
        "Quantize the head (lm_head) too, which 'quantization' leaves plain; the same names. Small "
        "errors there change answers most.",
        metavar="NAME",
    )
    context_length: int | None = _option(
        None, "Longest prompt and answer together; the model's own limit if not given.", minimum=2
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheOptions:
    """KV cache: where keys and values of past tokens stay."""

    page_size: int = _option(16, "Tokens in one page of the KV cache.", minimum=1, maximum=1024)
    kv_cache_dtype: str = _option(
        "auto",
        "Type of cached keys and values; 'auto' is that of the model, 'int8' has a scale for each "
        "token and head, 'fp8' (E4M3) has none.",
        choices=("auto", "float32", "float16", "bfloat16", "int8", "fp8"),
    )
    mem_fraction_static: float = _option(
        0.8,
        "Fraction of the device's free memory that weights and KV cache may take together.",
        minimum=0.01,
        maximum=1.0,
    )
    max_total_tokens: int | None = _option(
        None, "Tokens that the KV cache holds; from mem-fraction-static if not given.", minimum=1
    )
    radix_cache: bool = _option(True, "Keep pages of ended requests for others to share.")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleOptions:
    """Scheduling: who runs when."""

    schedule_policy: str = _option(
        "lpm",
        "Order of waiting requests: longest cached prefix first, or first come first served.",
        choices=("lpm", "fcfs"),
    )
    max_running_requests: int = _option(64, "Most requests in one step.", minimum=1, maximum=65536)
    max_queued_requests: int = _option(
        1024, "Most requests that wait; one more is answered 429.", minimum=0
    )
    chunked_prefill_size: int = _option(
        512, "Most prompt tokens computed in one step.", minimum=1, metavar="TOKENS"
    )
    mixed_prefill_size: int | None = _option(
        None,
        "Fewest prompt tokens of a step in which other requests decode: while few wait, such a "
        "step is filled up to a multiple of this, so that answers flow evenly. As many as "
        "--chunked-prefill-size if not given.",
        minimum=1,
        metavar="TOKENS",
    )
    random_seed: int | None = _option(
        None, "Seed from which requests without one draw theirs; fresh at each start if not given."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceOptions:
    """Device and plugins: what the work runs on."""

    device: str | None = _option(
        None,
        "Device type, like 'cpu', with an optional index, like 'cpu:0'; the only platform plugin "
        "installed if not given.",
        metavar="DEVICE",
    )
    attention_backend: str | None = _option(
        None, "Attention provider to use; short for '--use attention=NAME'.", metavar="NAME"
    )
    use: tuple[str, ...] = _option(
        (), "Pin a provider, like 'attention/global=reference'; may be repeated.", metavar="OP=NAME"
    )
    deny: tuple[str, ...] = _option(
        (), "Never choose a provider, like 'linear=torch'; may be repeated.", metavar="OP=NAME"
    )
    plan_lock: str | None = _option(
        None,
        "Choose as this file says, saved by 'chiplet explain --save'; refuse to start otherwise.",
        metavar="FILE",
    )
    autotune: str = _option(
        "off",
        "Measure the best candidates for attention and linear layers, and keep the times in the "
        "user's cache: 'fast' takes a few seconds at the first start, 'on' measures more of them "
        "at more sizes; 'off' goes by score.",
        choices=("off", "fast", "on"),
    )
    self_check: bool = _option(
        True, "Compare each chosen implementation with the reference at start."
    )
    plugins: tuple[str, ...] = _option(
        (), "Load these plugin distributions only; may be repeated.", metavar="NAME"
    )
    no_plugin: tuple[str, ...] = _option(
        (), "Do not load this plugin distribution; may be repeated.", metavar="NAME"
    )
    plugin_option: tuple[str, ...] = _option(
        (),
        "Set an option of a plugin, like 'chiplet-acme.memory=2'; may be repeated. 'chiplet "
        "doctor' lists the options of each.",
        metavar="NAME.KEY=VALUE",
    )
    strict: bool = _option(
        False, "Refuse to start where a reference kernel would serve a hot operation."
    )
    eager: bool = _option(
        False,
        "Run every step operation by operation; record no graphs. An error where the device can "
        "only run steps that are compiled whole.",
    )
    emulate: bool = _option(
        False,
        "Let the host's processor stand in for the device that --device names, where its plugin "
        "can: the same code, for development, and slow.",
    )
    tensor_parallel_size: int = _option(
        1,
        "Devices, or parts of one, that share the model, each with a slice of every layer.",
        minimum=1,
        maximum=4096,
    )
    prepare_first: bool = _option(
        False,
        "Record or compile all shapes before serving; otherwise it happens while requests run.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """HTTP server."""

    host: str = _option("127.0.0.1", "Address to listen on; loopback by default.")
    port: int = _option(8000, "Port to listen on; 0 picks a free one.", minimum=0, maximum=65535)
    api_key: str | None = _option(
        None, "Clients must send this key as 'Authorization: Bearer KEY'.", metavar="KEY"
    )
    max_body_mib: int = _option(
        32, "Largest body of a request, in MiB; a larger one is answered 413.", minimum=1
    )
    engine_timeout_s: float = _option(
        300.0,
        "Seconds that the engine may be silent while answers are open before it is started again; "
        "0 waits for ever.",
        minimum=0,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class LogOptions:
    """Logging."""

    log_level: str = _option(
        "info", "How much is logged.", choices=("debug", "info", "warning", "error")
    )
    log_requests: bool = _option(False, "Log one line for each request that ends.")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """All settings of an engine.

    Attributes:
        explicit: paths, like 'cache.page_size', that the user gave; no proposal changes them.
    """

    model: ModelOptions = field(default_factory=ModelOptions)
    cache: CacheOptions = field(default_factory=CacheOptions)
    schedule: ScheduleOptions = field(default_factory=ScheduleOptions)
    device: DeviceOptions = field(default_factory=DeviceOptions)
    log: LogOptions = field(default_factory=LogOptions)
    explicit: frozenset[str] = frozenset()

    @classmethod
    def from_options(cls, **options: Any) -> EngineConfig:
        """Settings by their field names alone, like `page_size=1`; they count as explicit.

        A path may be given for text, and a list for a tuple.

        Raises:
            ConfigError: a name is unknown, or a value has the wrong type or is not allowed.
        """
        paths = {
            name: (f"{group}.{name}", options_class)
            for group, options_class in GROUPS.items()
            for name, _ in option_fields(options_class)
        }
        config = cls(explicit=frozenset(paths[name][0] for name in options if name in paths))
        for name, value in options.items():
            if name not in paths:
                raise ConfigError(
                    f"There is no option '{name}'.", remedy=did_you_mean(name, tuple(paths))
                )
            path, options_class = paths[name]
            plain = _plain(value)
            check_option(options_class, name, plain)
            config = config.replacing(path, plain)
        return config

    def replacing(self, path: str, value: object) -> EngineConfig:
        """A copy in which `path`, like 'cache.page_size', has another value."""
        group_name, _, name = path.partition(".")
        group = replace(getattr(self, group_name), **{name: value})
        return replace(self, **{group_name: group})


GROUPS: dict[str, type] = {
    "model": ModelOptions,
    "cache": CacheOptions,
    "schedule": ScheduleOptions,
    "device": DeviceOptions,
    "log": LogOptions,
}
"""The groups of `EngineConfig`, by field name."""


def check_option(options: type, name: str, value: object) -> None:
    """Refuse a value of the wrong type, or outside its choices or limits.

    Args:
        options: the options class.
        name: one of its fields.
        value: what was given for it.

    Raises:
        ConfigError: with the value and what is allowed.
    """
    hint = get_type_hints(options)[name]
    if not _is_a(hint, value):
        remedy = ""
        if get_origin(hint) is tuple and isinstance(value, str):
            remedy = f"Write it like {name}=({value!r},)."
        raise ConfigError(f"{name} is {value!r}; allowed: {_in_words(hint)}.", remedy=remedy)
    info = dict(option_fields(options))[name]
    if info.choices and value not in info.choices:
        raise ConfigError(f"{name} is '{value}'; allowed: {', '.join(info.choices)}.")
    if isinstance(value, (int, float)):
        # Written so that NaN, which compares false everywhere, fails.
        if info.minimum is not None and not value >= info.minimum:
            raise ConfigError(f"{name} is {value}; allowed: {info.minimum:g} or more.")
        if info.maximum is not None and not value <= info.maximum:
            raise ConfigError(f"{name} is {value}; allowed: at most {info.maximum:g}.")


def _plain(value: object) -> object:
    if isinstance(value, os.PathLike):
        return str(value)
    return tuple(value) if isinstance(value, list) else value  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType] - checked next


def _is_a(hint: Any, value: object) -> bool:
    """Whether a value is of an option's type; a bool is no number here."""
    if get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(isinstance(each, str) for each in value)  # pyright: ignore[reportUnknownVariableType] - any type is looked at
    if get_args(hint):
        return any(_is_a(each, value) for each in get_args(hint))
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, (int, float) if hint is float else hint)


def _in_words(hint: Any) -> str:
    if get_origin(hint) is tuple:
        return "a list of texts"
    if get_args(hint):
        return " or ".join(_in_words(each) for each in get_args(hint))
    words: dict[type, str] = {
        str: "text",
        int: "a whole number",
        float: "a number",
        bool: "True or False",
        type(None): "None",
    }
    return words[hint]


def did_you_mean(name: str, known: tuple[str, ...]) -> str:
    """A remedy that names the closest known word, or all of them if they are few."""
    close = get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"Did you mean '{close[0]}'?"
    return f"Known: {', '.join(known)}." if len(known) <= 12 else ""


def option_fields(options: type) -> Iterator[tuple[str, OptionInfo]]:
    """Names of an options class's settings with what the command line says of them."""
    for each in fields(options):
        yield each.name, each.metadata["option"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeScaling:
    """How rotary frequencies are stretched beyond the trained context.

    Attributes:
        kind: 'linear' (all frequencies divided by `factor`), 'llama3' and 'yarn' (low ones divided,
            high ones kept, smooth between) or 'default' (no change).
        low_freq_factor, high_freq_factor: of 'llama3' only.
        original_context_length: of 'llama3' and 'yarn'.
        beta_fast, beta_slow: of 'yarn': turns in the original context from which frequencies are
            kept, and up to which they are divided.
        amplitude: factor on what is rotated.
    """

    kind: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context_length: int = 8192
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    amplitude: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertsConfig:
    """The mixture of experts in every layer of a model.

    Attributes:
        num_experts: in each layer.
        intermediate_size: width of each expert's middle.
        top_k: experts per token.
        renormalize: weights of a token's experts are made to sum to 1.
        num_groups: of neighbouring experts, equally many in each.
        num_kept_groups: a token picks among the experts of so many groups, those whose likeliest
            experts are likeliest.
        scale: factor on the sum of a token's experts.
    """

    num_experts: int
    intermediate_size: int
    top_k: int
    renormalize: bool
    num_groups: int = 1
    num_kept_groups: int = 1
    scale: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Facts about a checkpoint, the same whichever file format states them.

    Attributes:
        architecture: the name that a model file registers for, like 'LlamaForCausalLM'.
        vocab_size: tokens, and rows of embedding and head.
        hidden_size: width of what travels from layer to layer.
        intermediate_size: width of a feed-forward layer's middle.
        num_layers: blocks of attention and feed-forward.
        num_heads, num_kv_heads: heads of queries, and of keys and values.
        head_dim: elements per attention head.
        context_length: longest sequence the model was made for, in tokens.
        rms_norm_eps: added to the mean square before its root.
        rope_theta, rope_scaling: base of rotary frequencies, and how they are stretched.
        tie_word_embeddings: the head's weight is the embedding's.
        attention_bias, mlp_bias: linear layers of attention, of feed-forward, have a bias.
        qk_norm: each head of queries and keys is normed before its rotation.
        experts: instead of the feed-forward layers, if there are any.
        sliding_window: a token sees this many tokens, itself included; None sees all.
        eos_token_ids: tokens that end an answer.
        dtype: type the checkpoint was saved in.
        quantization: `quantization_config` of config.json as it stands there; a format makes sense
            of it. Empty if there is none.
        stated: config.json as it stands, or as the family's `ModelEntry.read_config` gave it: what
            a family has beyond the fields above is looked up here. Empty for GGUF files.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    context_length: int
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling = RopeScaling()
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    experts: ExpertsConfig | None = None
    sliding_window: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    dtype: Dtype = Dtype.BFLOAT16
    quantization: Mapping[str, Any] = field(default_factory=dict[str, Any], hash=False)
    stated: Mapping[str, Any] = field(default_factory=dict[str, Any], compare=False, repr=False)
