"""Checkpoints quantized with AWQ or GPTQ, written here word by word, become canonical tensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from chiplet.api import Coding, LinearWeights
from chiplet.errors import ModelError
from chiplet.formats.checkpoint import open_checkpoint
from chiplet.reference.quantization import dequantize
from tests.unit.test_checkpoint import CONFIG

K, N, G = 64, 32, 16
STEM = "model.layers.0.self_attn.q_proj"
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def word(numbers: list[int]) -> int:
    """Eight numbers, the first in the lowest bits, as a signed word."""
    value = sum(each << (4 * place) for place, each in enumerate(numbers))
    return value - (1 << 32) if value >> 31 else value


def words_by_column(numbers: list[list[int]], order: tuple[int, ...]) -> torch.Tensor:
    rows = [
        [word([row[8 * start + each] for each in order]) for start in range(len(row) // 8)]
        for row in numbers
    ]
    return torch.tensor(rows, dtype=torch.int32)


def write(folder: Path, tensors: dict[str, torch.Tensor], **quantization: Any) -> Path:
    folder.mkdir(exist_ok=True)
    config = CONFIG | {"quantization_config": {"bits": 4, "group_size": G} | quantization}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    return folder


class Matrix:
    """Random numbers `[K][N]`, and what they are worth."""

    def __init__(self) -> None:
        random = torch.Generator().manual_seed(3)
        self.q = torch.randint(0, 16, (K, N), generator=random)
        self.zeros = torch.randint(1, 16, (K // G, N), generator=random)
        self.scales = (torch.rand(K // G, N, generator=random) + 0.1).half()
        groups = torch.arange(K) // G
        self.values = self.scales.float()[groups] * (self.q - self.zeros[groups])

    def awq(self) -> dict[str, torch.Tensor]:
        return {
            f"{STEM}.qweight": words_by_column(self.q.tolist(), AWQ_ORDER),
            f"{STEM}.qzeros": words_by_column(self.zeros.tolist(), AWQ_ORDER),
            f"{STEM}.scales": self.scales,
        }

    def gptq(self, offset: int = 1) -> dict[str, torch.Tensor]:
        plain = tuple(range(8))
        return {
            f"{STEM}.qweight": words_by_column(self.q.t().tolist(), plain).t().contiguous(),
            f"{STEM}.qzeros": words_by_column((self.zeros - offset).tolist(), plain),
            f"{STEM}.scales": self.scales,
            f"{STEM}.g_idx": (torch.arange(K) // G).int(),
        }


@pytest.mark.parametrize(
    ("kind", "facts"),
    [
        ("awq", {"quant_method": "awq", "version": "gemm"}),
        ("gptq", {"quant_method": "gptq"}),
        ("gptq_v2", {"quant_method": "gptq", "checkpoint_format": "gptq_v2"}),
    ],
)
def test_matrices_become_canonical_tensors(tmp_path: Path, kind: str, facts: dict[str, str]):
    matrix = Matrix()
    offset = 0 if kind == "gptq_v2" else 1
    tensors = matrix.awq() if kind == "awq" else matrix.gptq(offset)
    norm = torch.rand(K)
    checkpoint = open_checkpoint(write(tmp_path, tensors | {"model.norm.weight": norm}, **facts))
    scheme = checkpoint.schemes[f"{STEM}.weight"]
    assert (scheme.coding, scheme.group_size, scheme.has_zero_points) == (Coding.INT4, G, True)
    # The type asked for must not reach the scales: it has fewer bits than they do.
    read = dict(checkpoint.tensors(torch.bfloat16))
    assert set(read) == {f"{STEM}.weight", "model.norm.weight"}
    weights = read[f"{STEM}.weight"]
    assert isinstance(weights, LinearWeights)
    assert weights.shape == (N, K)
    assert torch.equal(dequantize(weights), matrix.values.t())
    assert torch.equal(read["model.norm.weight"], norm.bfloat16())


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"quant_method": "hqq", "bits": 8}, "quantized (hqq, 8 bits)"),
        ({"quant_method": "gptq", "bits": 3}, "quantized (gptq, 3 bits)"),
        ({"quant_method": "awq", "version": "gemv"}, "quantized (awq, 4 bits, gemv)"),
        ({}, "quantized (of an unknown method, 4 bits)"),
        ({"quant_method": "awq", "group_size": 0}, "group_size is 0"),
        ({"quant_method": "awq", "group_size": "128"}, "group_size is '128'"),
    ],
)
def test_what_nobody_reads_is_refused(tmp_path: Path, facts: dict[str, Any], said: str):
    with pytest.raises(ModelError) as caught:
        open_checkpoint(write(tmp_path, Matrix().awq(), **facts))
    assert said in str(caught.value)
    if "quantized" in said:
        assert "awq (version gemm) of 4 bits; gptq of 4 bits" in str(caught.value)


def test_inputs_in_another_order_are_refused(tmp_path: Path):
    tensors = Matrix().gptq()
    tensors[f"{STEM}.g_idx"] = tensors[f"{STEM}.g_idx"].flip(0).contiguous()
    checkpoint = open_checkpoint(write(tmp_path, tensors, quant_method="gptq"))
    with pytest.raises(ModelError, match="another order"):
        list(checkpoint.tensors(torch.float32))


def test_a_matrix_that_lacks_a_part_is_refused(tmp_path: Path):
    tensors = Matrix().awq()
    del tensors[f"{STEM}.scales"]
    with pytest.raises(ModelError, match=rf"'{STEM}.weight' lacks tensor '{STEM}.scales'"):
        open_checkpoint(write(tmp_path, tensors, quant_method="awq"))


def test_a_config_that_belongs_to_other_weights_is_refused(tmp_path: Path):
    with pytest.raises(ModelError, match="quantized with awq, but none of its tensors"):
        open_checkpoint(write(tmp_path, {"x": torch.ones(2)}, quant_method="awq"))
    folder = write(tmp_path, Matrix().awq(), quant_method="awq", group_size=32)
    with pytest.raises(ModelError, match="do not fit"):
        list(open_checkpoint(folder).tensors(torch.float32))
