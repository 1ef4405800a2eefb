"""Fetching a model from the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub

from chiplet.errors import ModelError

_WANTED = ["*.safetensors", "*.json", "*.jinja"]
# The same weights in another layout.
_UNWANTED = ["original/*", "consolidated*", "onnx/*"]


def fetch_from_hub(name: str) -> Path:
    """The folder of a hub model's configuration, tokenizer and safetensors, fetched if needed.

    Raises:
        ModelError: there is no such model, it may not be read, or the hub cannot be reached.
    """
    # The package imports its parts, and an HTTP library with them, when they are first named; the
    # errors are there once the function is. A server of a local model does without all that.
    snapshot_download = huggingface_hub.snapshot_download
    errors = huggingface_hub.errors  # pyright: ignore[reportAttributeAccessIssue]
    try:
        return Path(snapshot_download(name, allow_patterns=_WANTED, ignore_patterns=_UNWANTED))
    except errors.GatedRepoError as error:
        raise ModelError(
            f"The hub gives {name} only to those who accepted its terms.",
            remedy="Accept them on the model's page, then log in with 'hf auth login'.",
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ModelError(
            f"The hub has no model {name}, or it is private.",
            remedy="Check the spelling, or log in with 'hf auth login'.",
        ) from error
    except Exception as error:  # whatever the HTTP library of the day raises without a network
        raise ModelError(
            f"The hub cannot be reached, and {name} is not in its cache ({_first_line(error)}).",
            remedy="Go online, or name a model folder, a GGUF file or a catalogue model.",
        ) from error


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:120] if lines else type(error).__name__
