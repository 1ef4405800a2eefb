"""Checks for `chiplet doctor`."""

from __future__ import annotations

from pathlib import Path

from chiplet.api import Check, CheckStatus, DeviceProbe, Dtype
from chiplet_nvidia.attention.modules import (
    HEAD_DIMS,
    TYPE_NAMES,
    find_latent_module,
    find_module,
)


def run_checks(device: DeviceProbe | None) -> list[Check]:
    """Whether FlashInfer can serve prompts, on GPUs that it serves."""
    if device is None or device.facts.get("capability") != "9.0":
        return []
    compiled = [
        f"{dtype} heads of {head_dim}"
        for dtype in TYPE_NAMES
        for head_dim in HEAD_DIMS
        if isinstance(find_module(dtype, head_dim), Path)
    ]
    compiled += [
        f"{each} latent rows" for each in TYPE_NAMES if isinstance(find_latent_module(each), Path)
    ]
    if compiled:
        return [Check("FlashInfer", CheckStatus.OK, f"compiled for {', '.join(compiled)}")]
    found = find_module(Dtype.BFLOAT16, 128)
    assert not isinstance(found, Path)
    (reason,) = found.reasons
    text = f"{reason.text}; Triton serves prompts"
    if reason.code == "not_installed":
        return [Check("FlashInfer", CheckStatus.OK, text)]
    return [Check("FlashInfer", CheckStatus.WARNING, text, reason.hint)]
