"""Checkpoints of FP8, ModelOpt and compressed-tensors, written here, become canonical tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from chiplet.api import (
    Activations,
    Coding,
    Granularity,
    StoredCheckpoint,
    StoredFormat,
    StoredTensor,
)
from chiplet.errors import ModelError
from chiplet.formats.checkpoint import open_checkpoint
from chiplet.formats.quantization.stored_numbers import (
    COMPRESSED_TENSORS,
    FP8,
    MODELOPT,
    MXFP4,
)
from chiplet.testing.formats import check_stored_format
from tests.unit.test_packed_checkpoint import write

STEM = "model.layers.0.self_attn.q_proj"
N, K = 160, 288
E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
E2M1 = torch.cat([E2M1, -E2M1])


def random() -> torch.Generator:
    return torch.Generator().manual_seed(5)


def named(**tensors: torch.Tensor) -> dict[str, torch.Tensor]:
    return {f"{STEM}.{part}": tensor for part, tensor in tensors.items()} | {
        "model.norm.weight": torch.ones(K)
    }


CODES = torch.randn(N, K, generator=random()).to(torch.float8_e4m3fn)
INTEGERS = torch.randint(-127, 128, (N, K), generator=random(), dtype=torch.int8)
SQUARES = torch.rand(2, 3, generator=random()) + 0.5
BY_ROW = torch.rand(N, 1, generator=random()) + 0.5
ONE, INPUT = torch.tensor(0.25), torch.tensor(0.01)
NIBBLES = torch.randint(0, 16, (N, K), generator=random())
PACKED = (NIBBLES[:, ::2] | (NIBBLES[:, 1::2] << 4)).to(torch.uint8)
GROUPS = (torch.rand(N, K // 16, generator=random()) * 8).to(torch.float8_e4m3fn)
FOUR_BITS = E2M1[NIBBLES] * GROUPS.float().repeat_interleave(16, 1)
POWERS = torch.randint(110, 140, (N, K // 32), generator=random(), dtype=torch.uint8)
SHARED_POWERS = E2M1[NIBBLES] * torch.exp2(POWERS.float() - 127).repeat_interleave(32, 1)
WIDE = SQUARES.repeat_interleave(128, 0)[:N].repeat_interleave(128, 1)[:, :K]
DYNAMIC = {"config_groups": {"group_0": {"input_activations": {"dynamic": True}}}}
CT = {"quant_method": "compressed-tensors"}


@pytest.mark.parametrize(
    ("subject", "facts", "tensors", "values", "kind"),
    [
        (
            FP8,
            {"quant_method": "fp8", "weight_block_size": [128, 128]},
            named(weight=CODES, weight_scale_inv=SQUARES),
            CODES.float() * WIDE,
            (Coding.FP8_E4M3, Granularity.BLOCK, Activations.PER_TOKEN_GROUP),
        ),
        (
            FP8,
            {"quant_method": "fp8", "activation_scheme": "static"},
            named(weight=CODES, weight_scale=ONE, input_scale=INPUT),
            CODES.float() * ONE,
            (Coding.FP8_E4M3, Granularity.TENSOR, Activations.STATIC),
        ),
        (
            FP8,
            {"quant_method": "fp8", "activation_scheme": "dynamic"},
            named(weight=CODES, weight_scale=ONE),
            CODES.float() * ONE,
            (Coding.FP8_E4M3, Granularity.TENSOR, Activations.PER_TOKEN),
        ),
        (
            MODELOPT,
            {"quant_method": "modelopt", "quant_algo": "FP8"},
            named(weight=CODES, weight_scale=ONE, input_scale=INPUT),
            CODES.float() * ONE,
            (Coding.FP8_E4M3, Granularity.TENSOR, Activations.STATIC),
        ),
        (
            MODELOPT,
            {"quant_method": "modelopt", "quant_algo": "NVFP4"},
            named(weight=PACKED, weight_scale=GROUPS, weight_scale_2=ONE, input_scale=INPUT),
            FOUR_BITS * ONE,
            (Coding.NVFP4, Granularity.GROUP, Activations.KEPT),
        ),
        (
            COMPRESSED_TENSORS,
            CT | DYNAMIC | {"format": "float-quantized"},
            named(weight=CODES, weight_scale=BY_ROW.bfloat16()),
            CODES.float() * BY_ROW.bfloat16().float(),
            (Coding.FP8_E4M3, Granularity.CHANNEL, Activations.PER_TOKEN),
        ),
        (
            COMPRESSED_TENSORS,
            CT | DYNAMIC | {"format": "int-quantized"},
            named(weight=INTEGERS, weight_scale=BY_ROW),
            INTEGERS.float() * BY_ROW,
            (Coding.INT8, Granularity.CHANNEL, Activations.PER_TOKEN),
        ),
        (
            COMPRESSED_TENSORS,
            CT | {"format": "int-quantized", "config_groups": {"a": {"input_activations": None}}},
            named(weight=INTEGERS, weight_scale=BY_ROW),
            INTEGERS.float() * BY_ROW,
            (Coding.INT8, Granularity.CHANNEL, Activations.KEPT),
        ),
        (
            COMPRESSED_TENSORS,
            CT | {"format": "nvfp4-pack-quantized"},
            named(weight_packed=PACKED, weight_scale=GROUPS, weight_global_scale=1 / ONE),
            FOUR_BITS * ONE,
            (Coding.NVFP4, Granularity.GROUP, Activations.KEPT),
        ),
        (
            COMPRESSED_TENSORS,
            CT | {"format": "mxfp4-pack-quantized"},
            named(weight_packed=PACKED, weight_scale=POWERS),
            SHARED_POWERS,
            (Coding.MXFP4, Granularity.GROUP, Activations.KEPT),
        ),
    ],
    ids=lambda value: value.name if hasattr(value, "matrices") else None,
)
def test_matrices_become_canonical_tensors(
    subject: StoredFormat,
    facts: dict[str, Any],
    tensors: dict[str, torch.Tensor],
    values: torch.Tensor,
    kind: tuple[Coding, Granularity, Activations],
) -> None:
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    check_stored_format(
        subject, quantization=facts, tensors=tensors, values={f"{STEM}.weight": values}
    )
    types = {torch.float8_e4m3fn: "F8_E4M3", torch.int8: "I8", torch.uint8: "U8"}
    stored = {
        name: StoredTensor(tuple(each.shape), types.get(each.dtype, "F32"))
        for name, each in tensors.items()
    }
    (matrix,) = subject.matrices(StoredCheckpoint(quantization=facts, tensors=stored)).values()
    assert matrix.scheme is not None
    assert (matrix.scheme.coding, matrix.scheme.granularity, matrix.scheme.activations) == kind
    # Whatever belongs to a matrix is taken: what is left is looked for in the model.
    assert set(matrix.parts.values()) == set(tensors) - {"model.norm.weight"}


@pytest.mark.parametrize("stacked", [(), (5,)], ids=["one matrix", "of five experts"])
def test_blocks_of_mxfp4_are_one_matrix_of_all_rows(stacked: tuple[int, ...]) -> None:
    rows = (*stacked, N // 5) if stacked else (N,)
    tensors = {
        "model.layers.0.mlp.experts.down_proj_blocks": PACKED.view(*rows, K // 32, 16),
        "model.layers.0.mlp.experts.down_proj_scales": POWERS.view(*rows, K // 32),
        "model.layers.0.mlp.experts.down_proj_bias": torch.zeros(rows),
    }
    name = "model.layers.0.mlp.experts.down_proj"
    facts = {"quant_method": "mxfp4"}
    check_stored_format(MXFP4, quantization=facts, tensors=tensors, values={name: SHARED_POWERS})
    stored = {
        each: StoredTensor(tuple(tensor.shape), "F32" if "bias" in each else "U8")
        for each, tensor in tensors.items()
    }
    found = MXFP4.matrices(StoredCheckpoint(quantization=facts, tensors=stored))
    assert list(found) == [name]
    assert len(found[name].parts) == 2


@pytest.mark.parametrize(
    ("facts", "tensors", "said"),
    [
        (
            {"quant_method": "fp8", "weight_block_size": [64, 64]},
            named(weight=CODES, weight_scale_inv=SQUARES),
            "quantized (fp8",
        ),
        (
            {"quant_method": "fp8"},
            named(weight=CODES, weight_scale=torch.ones(7)),
            "7 scales do not fit a matrix of 160 by 288",
        ),
        ({"quant_method": "fp8"}, named(weight=CODES), "has no scale"),
        (
            CT | {"format": "int-quantized"},
            named(weight=INTEGERS, weight_scale=BY_ROW, weight_zero_point=INTEGERS[:, :1].clone()),
            "has zero points",
        ),
        (
            CT
            | {
                "format": "int-quantized",
                "config_groups": {
                    "a": {"input_activations": None},
                    "b": {"input_activations": {"dynamic": True}},
                },
            },
            named(weight=INTEGERS, weight_scale=BY_ROW),
            "in different ways",
        ),
        (
            {"quant_method": "modelopt", "quant_algo": "NVFP4"},
            named(weight=PACKED, weight_scale=GROUPS),
            f"lacks tensor '{STEM}.weight_scale_2'",
        ),
        ({"quant_method": "mxfp4"}, {f"{STEM}_blocks": PACKED}, f"lacks tensor '{STEM}_scales'"),
        ({"quant_method": "mxfp4"}, named(weight=BY_ROW), "none of its tensors is"),
        ({"quant_method": "modelopt", "quant_algo": "W4A8"}, named(weight=CODES), "(modelopt"),
    ],
)
def test_what_does_not_fit_is_refused(
    tmp_path: Path, facts: dict[str, Any], tensors: dict[str, torch.Tensor], said: str
) -> None:
    with pytest.raises(ModelError) as caught:
        open_checkpoint(write(tmp_path, tensors, **facts))
    assert said in str(caught.value)
