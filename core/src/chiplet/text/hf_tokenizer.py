"""The tokenizer in a Hugging Face folder: tokenizer.json and the files beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from chiplet.errors import ModelError
from chiplet.formats.hf_config import read_json_object
from chiplet.text.tokenizer_parts import TokenizerParts

_ROLES = (
    "bos_token",
    "eos_token",
    "unk_token",
    "pad_token",
    "sep_token",
    "cls_token",
    "mask_token",
)


def read_hf_tokenizer(tokenizer_path: Path) -> TokenizerParts:
    """The tokenizer in a tokenizer.json, with what the files beside it say.

    Its post-processor decides which special tokens stand around a text; 'add_bos_token' and its
    like in tokenizer_config.json were for making that post-processor.

    Raises:
        ModelError: a file is missing or damaged.
    """
    backend = _read_backend(tokenizer_path)
    folder = tokenizer_path.parent
    config = _read_optional(folder / "tokenizer_config.json")
    roles = _roles(_read_optional(folder / "special_tokens_map.json")) | _roles(config)
    roles = {role: text for role, text in roles.items() if backend.token_to_id(text) is not None}
    backend.add_special_tokens([AddedToken(text, normalized=False) for text in roles.values()])
    return TokenizerParts(backend, roles, _chat_template(folder, config))


def _read_backend(path: Path) -> Backend:
    if not path.is_file():
        raise ModelError(
            f"There is no tokenizer at {path}.",
            remedy="Name a folder with tokenizer.json or a GGUF file with '--tokenizer-path'; "
            "save_pretrained of a fast Transformers tokenizer writes tokenizer.json.",
        )
    try:
        backend = Backend.from_file(str(path))
    except Exception as error:  # the library raises nothing more precise
        raise ModelError(f"Cannot read {path}: {error}.", remedy="Download it again.") from error
    # Left over from training; a server cuts no prompts.
    backend.no_truncation()
    backend.no_padding()
    return backend


def _read_optional(path: Path) -> dict[str, Any]:
    return read_json_object(path) if path.is_file() else {}


def _roles(described: dict[str, Any]) -> dict[str, str]:
    roles: dict[str, str] = {}
    for role in _ROLES:
        value = described.get(role)
        if isinstance(value, dict):
            value = cast(dict[str, Any], value).get("content")
        if isinstance(value, str):
            roles[role] = value
    return roles


def _chat_template(folder: Path, config: dict[str, Any]) -> str | None:
    template_path = folder / "chat_template.jinja"
    if template_path.is_file():
        return template_path.read_text(encoding="utf-8")
    value = config.get("chat_template")
    if isinstance(value, list):
        named = {each["name"]: each["template"] for each in cast(list[dict[str, str]], value)}
        return named.get("default")
    return value if isinstance(value, str) else None
