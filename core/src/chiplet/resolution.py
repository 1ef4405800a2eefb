"""Resolution: every open setting gets a value, and the log says why."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from chiplet.config import EngineConfig, ModelConfig
from chiplet.errors import ConfigError

_log = logging.getLogger(__name__)


def resolve(
    config: EngineConfig,
    model: ModelConfig,
    *,
    dtypes: Sequence[str],
    states_dtype: bool = True,
) -> EngineConfig:
    """A copy without 'auto' or None where the engine needs a value; logs each decision.

    Args:
        config: as the user gave it, with the plugins' proposals.
        model: facts about the checkpoint.
        dtypes: that the device serves, best first.
        states_dtype: the checkpoint's matrices are numbers of the model's dtype. Those of blocks
            are not, and the dtype is that of activations alone.

    Raises:
        ConfigError: a setting does not suit the model or the device.
    """
    config = _resolve_dtype(config, model if states_dtype else None, dtypes)
    if config.cache.kv_cache_dtype == "auto":
        config = _decide(config, "cache.kv_cache_dtype", config.model.dtype, "that of the model")
    config = _resolve_context(config, model)
    if config.model.served_model_name is None:
        config = _decide(
            config, "model.served_model_name", model_name(config), "the name of its file"
        )
    return config


def model_name(config: EngineConfig) -> str:
    """Name under which clients ask for the model."""
    given = config.model.served_model_name
    if given is not None:
        return given
    path = Path(config.model.model)
    return path.resolve().name if path.exists() else config.model.model


def _resolve_dtype(
    config: EngineConfig, model: ModelConfig | None, dtypes: Sequence[str]
) -> EngineConfig:
    """The type of activations; `model` is None where the checkpoint states none."""
    if config.model.dtype == "auto":
        if model is None:
            reason = "the device's best, since the checkpoint's matrices are in blocks"
            return _decide(config, "model.dtype", dtypes[0], reason)
        if model.dtype.value in dtypes:
            return _decide(config, "model.dtype", model.dtype.value, "that of the checkpoint")
        reason = f"the device's best, since it does not serve {model.dtype.value}"
        return _decide(config, "model.dtype", dtypes[0], reason)
    if config.model.dtype not in dtypes:
        raise ConfigError(
            f"The device does not serve dtype '{config.model.dtype}'; it serves "
            f"{', '.join(dtypes)}.",
            remedy="Give --dtype one of these, or leave it out.",
        )
    return config


def _resolve_context(config: EngineConfig, model: ModelConfig) -> EngineConfig:
    asked = config.model.context_length
    if asked is None:
        return _decide(
            config, "model.context_length", model.context_length, "what the model was made for"
        )
    if asked > model.context_length:
        raise ConfigError(
            f"context-length is {asked}; the model was made for {model.context_length}.",
            remedy="Give --context-length a value up to that, or leave it out.",
        )
    return config


def _decide(config: EngineConfig, path: str, value: object, reason: str) -> EngineConfig:
    _log.debug("%s = %s: %s", path, value, reason)
    return config.replacing(path, value)
