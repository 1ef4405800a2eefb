"""Choice of the device, and probes that fail; a device is never changed silently."""

import pytest

from chiplet.config import DeviceOptions
from chiplet.errors import ConfigError, PluginError
from chiplet.plugins import choose_device, discover
from chiplet.plugins.device import parse_device
from chiplet.plugins.probe import probe_all
from tests.unit.plugins.conftest import PLATFORM_HOOKS


def before_answering(code):
    """Hooks whose probe runs `code` first."""
    return PLATFORM_HOOKS.replace("def probe(host):\n", f"def probe(host):\n    {code}\n")


RAISES = before_answering("raise OSError('no driver')")
CRASHES = before_answering("import os; os.abort()")
HANGS = before_answering("import time; time.sleep(60)")
PRINTS = before_answering("import os; os.write(1, b'x' * 300000)")
FINDS_NONE = PLATFORM_HOOKS.replace("range(2)", "range(0)")
LIES = PLATFORM_HOOKS.replace('device_type="{name}"', 'device_type="other"')


def choose(**options):
    options = DeviceOptions(**options)
    return choose_device(discover(options), options)


def probe(name="tiny", **options):
    return probe_all(discover(DeviceOptions()).platforms, **options)


def test_without_a_platform_plugin_the_reference_runs_with_a_warning(folder):
    chosen = choose()
    assert chosen.label == "reference:0"
    assert chosen.plugin_name == "chiplet"
    assert "correct and slow" in chosen.warnings[0]


def test_the_only_kind_is_chosen(folder):
    folder.add_platform("tiny")
    chosen = choose()
    assert chosen.label == "tiny:0"
    assert chosen.plugin_name == "chiplet-tiny"
    assert not chosen.warnings


def test_by_name_and_index(folder):
    folder.add_platform("tiny")
    folder.add_platform("other")
    assert choose(device="other").label == "other:0"
    assert choose(device="tiny:1").label == "tiny:1"
    assert choose(device="reference").label == "reference:0"


def test_several_kinds_must_be_told_apart(folder):
    folder.add_platform("tiny")
    folder.add_platform("other")
    with pytest.raises(ConfigError, match=r"Several kinds.*other.*tiny.*'--device other'"):
        choose()


@pytest.mark.parametrize("text", ["", ":0", "tiny:", "tiny:x", "tiny:-1"])
def test_malformed_names(text):
    with pytest.raises(ConfigError, match="Write it like"):
        parse_device(text)


def test_unknown_type_and_absent_index(folder):
    folder.add_platform("tiny")
    with pytest.raises(ConfigError, match=r"'elsewhere' is served by no plugin.*reference, tiny"):
        choose(device="elsewhere")
    with pytest.raises(ConfigError, match=r"'tiny:7' is not there.*tiny:0, tiny:1"):
        choose(device="tiny:7")
    with pytest.raises(ConfigError, match=r"'reference:1' is not there"):
        choose(device="reference:1")


def test_no_other_device_in_place_of_a_quarantined_platform(folder):
    folder.add_platform("broken", hooks="raise OSError('no runtime')")
    with pytest.raises(ConfigError, match=r"chiplet-broken cannot be used.*no runtime"):
        choose()
    folder.add_platform("tiny")
    with pytest.raises(ConfigError, match=r"chiplet-broken cannot be used.*'--device tiny'"):
        choose()
    assert choose(device="tiny").label == "tiny:0"
    assert choose(device="reference").label == "reference:0"
    with pytest.raises(PluginError, match=r"'broken' is served by chiplet-broken.*no runtime"):
        choose(device="broken")
    assert choose(no_plugin=("chiplet-broken",)).label == "tiny:0"


def test_a_broken_provider_plugin_does_not_matter_for_the_device(folder):
    folder.add_platform("tiny")
    folder.add("kernels", "raise OSError('no kernels')")
    assert choose().label == "tiny:0"


def test_installed_platform_without_device_is_not_replaced(folder):
    folder.add_platform("tiny", hooks=FINDS_NONE)
    with pytest.raises(ConfigError, match=r"No device found.*chiplet-tiny.*'--device reference'"):
        choose()


def test_a_platform_hook_that_raises(folder):
    folder.add_platform("tiny", PLATFORM_HOOKS.replace("return Ref", "1 / 0\n    return Ref"))
    with pytest.raises(PluginError, match="ZeroDivisionError"):
        choose()


@pytest.mark.parametrize(
    ("hooks", "failure"),
    [
        (RAISES, "it raised OSError: no driver"),
        (CRASHES, "signal 6"),
        (LIES, "device type 'other', which is not in its manifest"),
    ],
)
def test_failed_probes_count_as_absent(folder, hooks, failure):
    folder.add_platform("tiny", hooks=hooks)
    (result,) = probe()
    assert not result.devices
    assert failure in result.failure
    with pytest.raises(ConfigError, match="No device found"):
        choose()
    with pytest.raises(PluginError, match="probe of chiplet-tiny failed"):
        choose(device="tiny")


def test_a_hanging_probe_is_killed_and_holds_nobody_up(folder):
    folder.add_platform("hangs", hooks=HANGS)
    folder.add_platform("tiny")
    # So long, as the limit is the sound one's too, and a busy machine takes seconds to start it.
    hanging, sound = probe(time_limit_s=12.0)
    assert hanging.failure == "no answer within 12 s"
    assert len(sound.devices) == 2


def test_the_other_device_is_taken_with_a_warning_when_a_probe_crashes(folder):
    folder.add_platform("crashes", hooks=CRASHES)
    folder.add_platform("tiny")
    chosen = choose()
    assert chosen.label == "tiny:0"
    assert "chiplet-crashes failed" in chosen.warnings[0]


def test_what_a_probe_prints_does_no_harm(folder):
    folder.add_platform("tiny", hooks=PRINTS)
    assert len(probe()[0].devices) == 2


EMULATING = (
    PLATFORM_HOOKS
    + """
@hookimpl
def emulated(host):
    return DeviceProbe(device_type="{name}", index=0, name="on the host", total_memory_bytes=1)
"""
)


def test_the_host_stands_in_for_a_device_that_is_not_there(folder):
    folder.add_platform("tiny", EMULATING.replace("range(2)", "range(0)"))
    chosen = choose(device="tiny", emulate=True)
    assert chosen.probe.name == "on the host"
    assert "EMULATED" in chosen.warnings[0]


def test_a_device_that_is_not_there_is_refused_and_emulation_is_named(folder):
    folder.add_platform("tiny", EMULATING.replace("range(2)", "range(0)"))
    with pytest.raises(ConfigError, match="not there") as error:
        choose(device="tiny")
    assert "--emulate" in error.value.remedy


def test_emulation_needs_a_device_that_can_be_emulated(folder):
    folder.add_platform("tiny", EMULATING)
    folder.add_platform("other")
    with pytest.raises(ConfigError, match="names no device") as error:
        choose(emulate=True)
    assert "--device tiny" in error.value.remedy
    with pytest.raises(ConfigError, match="'other:0' cannot be emulated"):
        choose(device="other", emulate=True)
    with pytest.raises(ConfigError, match="served by no plugin"):
        choose(device="nothing", emulate=True)
