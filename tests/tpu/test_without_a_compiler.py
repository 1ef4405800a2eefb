"""What of the TPU plugin holds where neither jax nor torch_xla is installed."""

from pathlib import Path

import pytest

from chiplet.config import DeviceOptions
from chiplet.errors import ConfigError
from chiplet.plugins import choose_device, discover
from chiplet_tpu.chips import find_chips
from tests.tpu.requirements import requirements

ROOT = Path(__file__).parents[2]


def test_a_host_without_chips_is_refused_and_emulation_is_named():
    if find_chips():
        pytest.skip("this host has a TPU")
    options = DeviceOptions(device="tpu")
    with pytest.raises(ConfigError, match="'tpu:0' is not there") as error:
        choose_device(discover(options), options)
    assert "--emulate" in error.value.remedy


def test_emulation_is_announced():
    options = DeviceOptions(device="tpu", emulate=True)
    chosen = choose_device(discover(options), options)
    assert any("EMULATED" in each for each in chosen.warnings)


def test_an_environment_whose_torch_is_given_asks_for_no_other():
    found = requirements([ROOT / "core", ROOT / "plugins" / "cpu", ROOT / "plugins" / "tpu"])
    assert not [each for each in found if each.startswith(("torch", "chiplet"))]
    assert any(each.startswith("numpy") for each in found)
    assert len(found) == len(set(found))
