"""Dequantisation agrees with the gguf library to the last bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize

from chiplet.formats.gguf_file import TENSOR_TYPES
from chiplet.reference.gguf_blocks import dequantize as dequantize_blocks

# Where the half-precision numbers stand; random bits there would make NaN and infinity.
HALVES = {
    "F16": (0,),
    "Q4_0": (0,),
    "Q4_1": (0, 2),
    "Q5_0": (0,),
    "Q5_1": (0, 2),
    "Q8_0": (0,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
}


@pytest.mark.parametrize("type_id", TENSOR_TYPES)
def test_random_groups(type_id: int) -> None:
    kind = TENSOR_TYPES[type_id]
    rng = np.random.default_rng(type_id)
    groups = rng.integers(0, 256, (257, kind.group_bytes), dtype=np.uint8)
    for begin in HALVES.get(kind.name, ()):
        numbers = rng.standard_normal((257, 1)).astype(np.float16)
        groups[:, begin : begin + 2] = numbers.view(np.uint8)
    if kind.name in ("F32", "BF16"):
        groups[:, -1] = 0x3F  # keeps the exponent finite
    expected = dequantize(groups.reshape(-1), GGMLQuantizationType(type_id))
    got = dequantize_blocks(torch.from_numpy(groups), kind.name)
    assert got.dtype == torch.float32
    assert got.shape == (257, kind.group_elements)
    np.testing.assert_array_equal(got.numpy().reshape(-1), expected.reshape(-1))
