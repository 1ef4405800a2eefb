"""Proposals: applied, overruled by the user, refused when plugins disagree."""

import pytest

from chiplet.api import DeviceProbe, EngineConfig
from chiplet.config import DeviceOptions
from chiplet.errors import ConfigError, PluginError
from chiplet.plugins import apply_proposals, discover

DEVICE = DeviceProbe(device_type="tiny", index=0, name="Tiny", total_memory_bytes=1)


def proposing(path, value):
    return (
        "@hookimpl\ndef config_proposals(config, device):\n"
        f"    return [Proposal({path!r}, {value!r}, 'it suits ' + device.name)]\n"
    )


def applied(config=None, plugins=()):
    found = discover(DeviceOptions(plugins=plugins))
    return apply_proposals(config or EngineConfig(), found, DEVICE)


def test_applied(folder):
    folder.add("one", proposing("cache.page_size", 64))
    assert applied().cache.page_size == 64


def test_what_the_user_gave_stands(folder):
    folder.add("one", proposing("cache.page_size", 64))
    config = EngineConfig(explicit=frozenset({"cache.page_size"}))
    assert applied(config).cache.page_size == 16


def test_agreement_and_conflict(folder):
    folder.add("one", proposing("cache.page_size", 64))
    folder.add("two", proposing("cache.page_size", 64))
    assert applied().cache.page_size == 64
    folder.add("three", proposing("cache.page_size", 32))
    with pytest.raises(ConfigError, match=r"disagree on cache\.page_size.*64.*32|32.*64"):
        applied()
    config = EngineConfig(explicit=frozenset({"cache.page_size"}))
    assert applied(config).cache.page_size == 16


@pytest.mark.parametrize("path", ["cache.colour", "kitchen.page_size", "cache", "explicit.x", ""])
def test_no_such_setting(folder, path, caplog):
    folder.add("one", proposing(path, 1))
    folder.add("two", proposing("cache.page_size", 64))
    assert applied().cache.page_size == 64
    assert "which is no setting" in caplog.text
    with pytest.raises(PluginError, match="which is no setting"):
        applied(plugins=("chiplet-one",))


def test_no_such_value(folder, caplog):
    folder.add("one", proposing("cache.page_size", "wide"))
    assert applied().cache.page_size == 16
    assert "page_size is 'wide'; allowed: a whole number" in caplog.text


@pytest.mark.parametrize("body", ["raise ValueError('ouch')", "return ['ouch']", "return 7"])
def test_a_hook_that_raises_or_returns_something_else(folder, body, caplog):
    folder.add("one", f"@hookimpl\ndef config_proposals(config, device): {body}")
    folder.add("two", proposing("cache.page_size", 64))
    assert applied().cache.page_size == 64
    assert "Hook config_proposals of chiplet-one raised" in caplog.text
    with pytest.raises(PluginError, match="Hook config_proposals of chiplet-one raised"):
        applied(plugins=("chiplet-one",))
