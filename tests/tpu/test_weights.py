"""Weights of a checkpoint on the device."""

import pytest

pytest.importorskip("torchax", reason="torchax is not installed; run 'make test-tpu'")

import numpy as np
import torch

from chiplet.api import Coding, Granularity, WeightScheme
from chiplet.reference.quantization import dequantize_to, random_weights
from chiplet_tpu.compilation.arrays import array_of
from chiplet_tpu.compilation.lowerings import environment


@pytest.mark.parametrize("coding", [each for each in Coding if each.block], ids=str)
def test_blocks_of_a_checkpoint_are_worth_the_same_on_the_device(coding):
    """Where no provider keeps them, they are dequantized there; that views bytes as numbers."""
    scheme = WeightScheme(coding=coding, granularity=Granularity.PACKED)
    generator = torch.Generator().manual_seed(0)
    weights = random_weights(scheme, (8, 512), generator, 0.02)
    expected = dequantize_to(weights, torch.float32).numpy()
    with environment(), torch.no_grad():
        moved = weights.mapped(lambda each: each.to(torch.device("jax")))
        got = np.asarray(array_of(dequantize_to(moved, torch.float32)))
    np.testing.assert_array_equal(got, expected)
