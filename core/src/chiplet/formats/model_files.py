"""What a model path holds, and the model's facts; no tensor library."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from chiplet.config import ModelConfig
from chiplet.errors import ModelError
from chiplet.formats.gguf_config import read_gguf_config
from chiplet.formats.gguf_file import is_gguf, read_gguf
from chiplet.formats.hf_config import Translate, read_hf_config, read_json_object

INDEX_NAME = "model.safetensors.index.json"
_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_SHARD_NAME = re.compile(r"(?P<stem>.+)-(?P<index>\d{5})-of-(?P<count>\d{5})\.safetensors")


class Format(StrEnum):
    """How a checkpoint is stored."""

    SAFETENSORS = "safetensors"
    GGUF = "gguf"
    DUMMY = "dummy"


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """Files of a checkpoint.

    Attributes:
        config_path: config.json, or the GGUF file itself.
        weight_paths: files with tensors, in reading order; none for `Format.DUMMY`.
    """

    format: Format
    config_path: Path
    weight_paths: tuple[Path, ...]


def find_model_files(path: Path, load_format: str = "auto") -> ModelFiles:
    """The files of the checkpoint at a path: a folder, a GGUF file or a config.json.

    Raises:
        ModelError: nothing is there, a part is missing, or only pickles are there.
    """
    if not path.exists():
        raise ModelError(
            f"There is no model at {path}.", remedy="Check the path, or name a catalogue model."
        )
    if load_format == "dummy":
        return ModelFiles(Format.DUMMY, _find_config(path), ())
    gguf_path = None
    if load_format in ("auto", "gguf"):
        gguf_path = find_gguf(path, is_wanted=load_format == "gguf")
    if gguf_path is not None:
        return ModelFiles(Format.GGUF, gguf_path, (gguf_path,))
    if load_format == "gguf":
        raise ModelError(
            f"{path} is no GGUF file and holds none.", remedy="Use '--load-format auto'."
        )
    if path.suffix == ".json":
        raise ModelError(
            f"{path.stem} is a config alone, without weights.",
            remedy="Give '--load-format dummy' for random ones, or name the model's folder.",
        )
    if path.is_file():
        raise ModelError(
            f"{path} is no checkpoint; allowed: a GGUF file or a folder with config.json and "
            "*.safetensors." + (_PICKLE_REASON if path.suffix in _PICKLE_SUFFIXES else ""),
            remedy="Name the model's folder.",
        )
    return ModelFiles(Format.SAFETENSORS, _find_config(path), _find_safetensors(path))


def read_model_config(
    path: Path, load_format: str = "auto", translate: Translate = lambda values: values
) -> ModelConfig:
    """Facts about the model at a path, without reading its tensors.

    Raises:
        ModelError: as `find_model_files`, or the model is not supported.
    """
    files = find_model_files(path, load_format)
    if is_gguf(files.config_path):
        return read_gguf_config(read_gguf(files.config_path))
    return read_hf_config(files.config_path, translate)


def find_gguf(path: Path, *, is_wanted: bool = False) -> Path | None:
    """The GGUF file at a path: itself, or the only one in a folder.

    Args:
        path: a file or folder.
        is_wanted: find it beside safetensors too, which otherwise come first.

    Raises:
        ModelError: the folder holds several.
    """
    if is_gguf(path):
        return path
    if not path.is_dir() or (not is_wanted and any(path.glob("*.safetensors"))):
        return None
    found = sorted(path.glob("*.gguf"))
    if len(found) > 1:
        names = ", ".join(each.name for each in found[:4])
        raise ModelError(f"{path} holds {len(found)} GGUF files ({names}).", remedy="Name one.")
    return found[0] if found else None


_PICKLE_REASON = (
    " It is a pickle: loading one can run any code that its author put into it, so Chiplet never"
    " does."
)


def _find_config(path: Path) -> Path:
    if path.is_file():
        return path
    config_path = path / "config.json"
    if config_path.is_file():
        return config_path
    gguf_path = find_gguf(path)
    if gguf_path is not None:
        return gguf_path
    raise ModelError(
        f"{path} has no config.json.", remedy="Name a folder in Hugging Face format or a GGUF file."
    )


def _find_safetensors(path: Path) -> tuple[Path, ...]:
    names = _indexed_names(path)
    if not names and (path / "model.safetensors").is_file():
        names = ["model.safetensors"]
    if not names:
        names = _unindexed_names(path)
    missing = [name for name in names if not (path / name).is_file()]
    if missing:
        raise ModelError(
            f"{path} lacks {len(missing)} of {len(names)} files with weights: "
            f"{', '.join(missing[:3])}{' ...' if len(missing) > 3 else ''}.",
            remedy="Download the missing files.",
        )
    return tuple(path / name for name in names)


def _indexed_names(path: Path) -> list[str]:
    """Names in the index of a sharded checkpoint; empty if it has none."""
    index_path = path / INDEX_NAME
    if not index_path.is_file():
        return []
    weight_map = read_json_object(index_path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{index_path} has no weight_map.", remedy="Download it again.")
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        if Path(name).name != name:
            raise ModelError(f"{index_path} names {name!r}, which is no file of this folder.")
    return names


def _unindexed_names(path: Path) -> list[str]:
    names = sorted(each.name for each in path.glob("*.safetensors"))
    if not names:
        raise _no_weights(path)
    matches = [_SHARD_NAME.fullmatch(name) for name in names]
    first = next((match for match in matches if match), None)
    if first is None:
        return names
    count = int(first["count"])
    return [f"{first['stem']}-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]


def _no_weights(path: Path) -> ModelError:
    pickles = sorted(each.name for each in path.iterdir() if each.suffix in _PICKLE_SUFFIXES)
    if not pickles:
        return ModelError(
            f"{path} holds no *.safetensors and no GGUF file.",
            remedy="Download the weights, or use '--load-format dummy' for random ones.",
        )
    return ModelError(
        f"{path} holds its weights in {pickles[0]} only.{_PICKLE_REASON}",
        remedy="Convert the model to safetensors: save_pretrained(..., safe_serialization=True).",
    )
