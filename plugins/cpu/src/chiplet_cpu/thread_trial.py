"""A short trial of how many threads multiply fastest, where cores run several threads each."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from chiplet_cpu import native
from chiplet_cpu.linear.panels import PANEL

_WIDTH = 4096
_FEW, _MANY = 1, 64
_READ_BYTES = 96 << 20
"""Of weights; beyond a processor's outer cache, or most of it."""

_ROUNDS = 5
_MARGIN = 1.03
"""By how much more threads must be faster: they take time that others could use."""


def faster(fewer: int, more: int) -> tuple[int, str]:
    """Which number of threads is faster: as products of a decode and of a prompt show.

    Takes a quarter of a second. Without kernels of the plugin's own it is the smaller one.
    """
    if not native.is_available():
        return fewer, "one for each core, as nothing could be measured"
    decode, prompt = _product(_FEW, _READ_BYTES), _product(_MANY, _READ_BYTES // 8)
    gains = [_gain(work, fewer, more) for work in (decode, prompt)]
    figures = (
        f"with {more}, decodes run at {gains[0]:.2f} of the speed with {fewer}, "
        f"prompts at {gains[1]:.2f}"
    )
    return (more if min(gains) > 1 / _MARGIN and max(gains) > _MARGIN else fewer), figures


def _product(rows: int, weight_bytes: int) -> Callable[[], None]:
    """Multiplies rows by a weight in bfloat16."""
    coding, code = native.DTYPE_CODES["bfloat16"], native.DTYPE_CODES["float32"]
    panel_bytes = PANEL * _WIDTH * 2
    num_panels = weight_bytes // panel_bytes
    outputs = num_panels * PANEL
    # Written to, so that each page has memory of its own.
    weights = torch.ones(num_panels * panel_bytes, dtype=torch.uint8)
    x = torch.ones(rows, _WIDTH)
    out = torch.empty(rows, outputs)

    def multiply() -> None:
        native.library.linear(
            code,
            x.data_ptr(),
            x.stride(0),
            rows,
            coding,
            weights.data_ptr(),
            panel_bytes,
            _WIDTH,
            outputs,
            0,
            0,
            out.data_ptr(),
        )

    return multiply


def _gain(work: Callable[[], None], fewer: int, more: int) -> float:
    """Speed with more threads, of that with fewer; measured in turn, the best of each."""
    best = {fewer: float("inf"), more: float("inf")}
    for _ in range(_ROUNDS):
        for count in best:
            native.set_threads(count)
            work()  # threads start or wake
            begin = time.perf_counter()
            work()
            best[count] = min(best[count], time.perf_counter() - begin)
    return best[fewer] / best[more]
