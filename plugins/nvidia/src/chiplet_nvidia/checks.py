"""Checks for `chiplet doctor`."""

from __future__ import annotations

from pathlib import Path

from chiplet.api import Check, CheckStatus, DeviceProbe, Dtype
from chiplet_nvidia.attention.modules import HEAD_DIMS, TYPE_NAMES, find_module


def run_checks(device: DeviceProbe | None) -> list[Check]:
    """Whether FlashInfer can serve prompts, on GPUs that it serves."""
    if device is None or device.facts.get("capability") != "9.0":
        return []
    sizes = [(dtype, head_dim) for dtype in TYPE_NAMES for head_dim in HEAD_DIMS]
    compiled = [each for each in sizes if isinstance(find_module(*each), Path)]
    if compiled:
        names = ", ".join(f"{dtype} heads of {head_dim}" for dtype, head_dim in compiled)
        return [Check("FlashInfer", CheckStatus.OK, f"compiled for {names}")]
    found = find_module(Dtype.BFLOAT16, 128)
    assert not isinstance(found, Path)
    (reason,) = found.reasons
    text = f"{reason.text}; Triton serves prompts"
    if reason.code == "not_installed":
        return [Check("FlashInfer", CheckStatus.OK, text)]
    return [Check("FlashInfer", CheckStatus.WARNING, text, reason.hint)]
