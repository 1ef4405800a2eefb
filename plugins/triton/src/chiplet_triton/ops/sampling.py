"""One token per row, without sorting the vocabulary."""

from __future__ import annotations

import torch
from torch import Tensor

from chiplet_triton.device import DeviceTraits, launch_options
from chiplet_triton.kernels.sampling import argmax_kernel, sample_kernel

_PROGRAMS_PER_CORE = 2
_MAX_SPLITS = 64


class Argmax:
    """The likeliest token of each row; see `chiplet.api.ops.Argmax`."""

    def __init__(self, traits: DeviceTraits, device: torch.device) -> None:
        self._traits = traits
        self._launch = launch_options(traits)
        self._programs = _PROGRAMS_PER_CORE * traits.num_cores
        # Shared by all calls: they run one after another on one stream.
        self._best = torch.empty(self._programs, dtype=torch.float32, device=device)
        self._where = torch.empty(self._programs, dtype=torch.int32, device=device)
        self._arrivals = torch.zeros(self._programs, dtype=torch.int32, device=device)

    def __call__(self, logits: Tensor) -> Tensor:
        """Shapes: logits `[n, vocab]`; returns `[n] int32`."""
        num_rows, vocab_size = logits.shape
        out = torch.empty(num_rows, dtype=torch.int32, device=logits.device)
        if num_rows == 0:
            return out
        splits = _power_of_2(min(self._programs // num_rows, _MAX_SPLITS))
        argmax_kernel[(num_rows, splits)](
            logits,
            self._best,
            self._where,
            self._arrivals,
            out,
            vocab_size,
            logits.stride(0),
            SPLITS=splits,
            BLOCK=4096,
            OVERLAP=self._traits.can_overlap,
            num_warps=8,
            **self._launch,
        )
        return out


def sample(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    uniform: Tensor,
    has_filters: bool,
) -> Tensor:
    """One token per row; see `chiplet.api.ops.Sample`."""
    num_rows, vocab_size = logits.shape
    out = torch.empty(num_rows, dtype=torch.int32, device=logits.device)
    if num_rows:
        sample_kernel[(num_rows,)](
            logits,
            temperature,
            top_k,
            top_p,
            min_p,
            uniform,
            out,
            vocab_size,
            logits.stride(0),
            HAS_FILTERS=has_filters,
            BLOCK=2048,
            num_warps=8,
        )
    return out


def _power_of_2(most: int) -> int:
    """The largest one up to `most`, at least 1: kernels are compiled for few numbers."""
    return 1 << max(0, most.bit_length() - 1)
