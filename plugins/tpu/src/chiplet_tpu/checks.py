"""Checks for `chiplet doctor`."""

from __future__ import annotations

from chiplet.api import Check, CheckStatus, DeviceProbe
from chiplet_tpu.versions import installed


def run_checks(device: DeviceProbe | None) -> list[Check]:
    """One line each on chips and compilers."""
    return [_chips(device), _jax(), *_torch_xla()]


def _chips(device: DeviceProbe | None) -> Check:
    if device is None:
        remedy = "Nothing, unless this host should have one; --device tpu --emulate needs none."
        return Check("tpu chips", CheckStatus.WARNING, "no TPU on the PCI bus", remedy)
    return Check("tpu chips", CheckStatus.OK, f"{device.name} at {device.facts['pci']}")


def _jax() -> Check:
    versions = {each: installed(each) for each in ("jax", "torchax", "libtpu")}
    detail = ", ".join(f"{name} {version or 'missing'}" for name, version in versions.items())
    if versions["jax"] is None or versions["torchax"] is None:
        remedy = "pip install 'chiplet-tpu[tpu]'"
        return Check("tpu compiler jax", CheckStatus.WARNING, detail, remedy)
    if versions["libtpu"] is None:
        remedy = "pip install 'chiplet-tpu[tpu]'; without libtpu there is emulation only."
        return Check("tpu compiler jax", CheckStatus.WARNING, detail, remedy)
    return Check("tpu compiler jax", CheckStatus.OK, detail)


def _torch_xla() -> list[Check]:
    version = installed("torch-xla")
    if version is None:
        return []
    return [
        Check(
            "tpu compiler torch_xla",
            CheckStatus.WARNING,
            f"{version}; torch_xla is at the end of its line, 2.9 is the last release",
            "Move to jax: pip install 'chiplet-tpu[tpu]'.",
        )
    ]
