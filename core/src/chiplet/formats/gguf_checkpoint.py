"""Checkpoints in GGUF files: tensors under Hugging Face's names, in Hugging Face's order.

Matrices in blocks stay in them; see `chiplet.api.Coding`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import BinaryIO, cast

import torch
from torch import Tensor

from chiplet.api import Coding, Granularity, LinearWeights, WeightScheme
from chiplet.config import ModelConfig
from chiplet.errors import ModelError
from chiplet.formats.gguf_config import ROPE_FACTORS, read_gguf_config
from chiplet.formats.gguf_file import GgufFile, GgufTensor
from chiplet.formats.tensor_reading import fill_in_pieces, read_bytes_into
from chiplet.reference.gguf_blocks import dequantize

_TOP_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_TENSOR_NAME = re.compile(r"(?:blk\.(?P<layer>\d+)\.)?(?P<part>\w+)\.(?P<kind>weight|bias)")
# Not weights: the config has what they say, or nothing needs them.
_SKIPPED = re.compile(rf"{re.escape(ROPE_FACTORS)}|blk\.\d+\.attn_rot_embd\.weight")


class GgufCheckpoint:
    """Tensors of a model in a GGUF file.

    Attributes:
        config: facts about the model.
        is_dummy: False; there are tensors to read.
        schemes: matrices that are stored in blocks, by name.

    Raises:
        ModelError: the model, or the type of one of its tensors, is not supported.
    """

    is_dummy = False

    def __init__(self, file: GgufFile) -> None:
        self.config: ModelConfig = read_gguf_config(file)
        self._path = file.path
        self._tensors = tuple(
            (_hugging_face_name(file, tensor), tensor)
            for tensor in file.tensors
            if not _SKIPPED.fullmatch(tensor.name)
        )
        self.schemes: Mapping[str, WeightScheme] = {
            name: scheme
            for name, tensor in self._tensors
            if (scheme := _scheme(tensor)) is not None
        }

    def tensors(self, dtype: torch.dtype) -> Iterator[tuple[str, Tensor | LinearWeights]]:
        """Names and tensors, one at a time in file order: blocks as they are, others as `dtype`."""
        with self._path.open("rb", buffering=0) as file:
            for name, tensor in self._tensors:
                scheme = self.schemes.get(name)
                if scheme is None:
                    values = self._read(cast(BinaryIO, file), tensor, dtype)
                else:
                    values = self._read_blocks(cast(BinaryIO, file), tensor)
                num_heads = self._num_rotated_heads(name)
                values = _unpermuted(values, num_heads) if num_heads else values
                yield name, LinearWeights(scheme=scheme, weight=values) if scheme else values

    def _read_blocks(self, file: BinaryIO, tensor: GgufTensor) -> Tensor:
        num_rows, num_columns = tensor.shape
        row_bytes = num_columns // tensor.type.group_elements * tensor.type.group_bytes
        target = torch.empty(num_rows, row_bytes, dtype=torch.uint8)
        read_bytes_into(file, tensor.offset_bytes, target, self._path)
        return target

    def _read(self, file: BinaryIO, tensor: GgufTensor, dtype: torch.dtype) -> Tensor:
        kind = tensor.type
        target = torch.empty(tensor.shape, dtype=dtype)

        def read_groups(begin: int, end: int) -> Tensor:
            groups = torch.empty(end - begin, kind.group_bytes, dtype=torch.uint8)
            offset_bytes = tensor.offset_bytes + begin * kind.group_bytes
            read_bytes_into(file, offset_bytes, groups, self._path)
            return dequantize(groups, kind.name)

        fill_in_pieces(target, kind.group_elements, read_groups)
        return target

    def _num_rotated_heads(self, name: str) -> int:
        """Heads of a tensor whose rows the converter permuted; 0 for other tensors."""
        if ".q_proj." in name:
            return self.config.num_heads
        return self.config.num_kv_heads if ".k_proj." in name else 0


def _scheme(tensor: GgufTensor) -> WeightScheme | None:
    """How a matrix is coded; None for what is no matrix, or plain."""
    if len(tensor.shape) != 2 or tensor.type.name not in Coding.__members__:
        return None
    return WeightScheme(coding=Coding[tensor.type.name], granularity=Granularity.PACKED)


def _hugging_face_name(file: GgufFile, tensor: GgufTensor) -> str:
    match = _TENSOR_NAME.fullmatch(tensor.name)
    if match is not None:
        layer, part, kind = match["layer"], match["part"], match["kind"]
        if layer is None and part in _TOP_NAMES:
            return f"{_TOP_NAMES[part]}.{kind}"
        if layer is not None and part in _LAYER_NAMES:
            return f"model.layers.{layer}.{_LAYER_NAMES[part]}.{kind}"
    raise ModelError(
        f"{file.path}: tensor {tensor.name} belongs to no known part of a Llama model.",
        remedy="Choose a model of the Llama family.",
    )


def _unpermuted(values: Tensor, num_heads: int) -> Tensor:
    """Rows of a query or key projection in Hugging Face's order, made in one copy.

    Rotary embedding pairs element i of a head with element i + head_dim / 2 in Hugging Face's
    order, but neighbours with each other in GGUF's: the converter interleaves the two halves of
    each head's rows, and this takes them apart again.

    Source: `LlamaModel.permute` in convert_hf_to_gguf.py of the llama.cpp project.
    """
    pairs = values.unflatten(0, (num_heads, -1, 2))
    return pairs.transpose(1, 2).reshape(values.shape)
