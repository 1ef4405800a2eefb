"""Discovery: a broken plugin is set aside with a reason, and disturbs nobody."""

import subprocess
import sys

import pytest

from chiplet.api import CheckStatus
from chiplet.config import DeviceOptions
from chiplet.errors import PluginError
from chiplet.plugins import discover
from chiplet.plugins.discovery import CORE_MODULES

OPTIONS = DeviceOptions()

MODELS = """
@hookimpl
def models():
    return [ModelEntry(architectures=("TinyForCausalLM",), target="tiny:Tiny")]
"""

BROKEN = {
    "raises": ("raise ValueError('out of order')", "raised ValueError: out of order"),
    "exits": ("raise SystemExit(3)", "raised SystemExit: 3"),
    "imports": ("import no_such_driver", "No module named 'no_such_driver'"),
    "misspells": ("@hookimpl\ndef atention(device): return []", "unknown hook 'atention'"),
    "misdeclares": ("@hookimpl\ndef attention(gadget): return []", "gadget"),
}


def names(plugins):
    return [plugin.distribution for plugin in plugins]


def test_core_comes_through_the_same_hooks(folder):
    found = discover(OPTIONS)
    assert names(found.loaded) == ["chiplet"] * len(CORE_MODULES)
    assert found.reference.manifest.device_types == ("reference",)
    assert "LlamaForCausalLM" in found.model_entries()[0].architectures
    assert not found.platforms


def test_a_sound_plugin_is_loaded(folder):
    folder.add("sound", MODELS)
    found = discover(OPTIONS)
    assert names(found.loaded)[len(CORE_MODULES) :] == ["chiplet-sound"]
    assert found.loaded[len(CORE_MODULES)].version == "1.2"
    assert found.model_entries()[-1].architectures == ("TinyForCausalLM",)


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_plugin_is_set_aside(folder, kind):
    hooks, reason = BROKEN[kind]
    folder.add("aaa", hooks)
    folder.add("sound", MODELS)
    found = discover(OPTIONS)
    assert names(found.loaded)[len(CORE_MODULES) :] == ["chiplet-sound"]
    (broken,) = found.quarantined
    assert broken.distribution == "chiplet-aaa"
    assert reason in broken.reason
    assert found.model_entries()[-1].architectures == ("TinyForCausalLM",)


def test_a_half_registered_plugin_leaves_nothing_behind(folder):
    folder.add("half", MODELS + "\n@hookimpl\ndef linear(gadget): return []")
    found = discover(OPTIONS)
    assert found.quarantined
    assert all(entry.target != "tiny:Tiny" for entry in found.model_entries())


@pytest.mark.parametrize(
    ("manifest", "reason"),
    [
        (None, "no chiplet_plugin.toml"),
        ("name = ", "cannot be read"),
        ('name = "x"\nkind = "provider"\n[api]\nattention = ">=7"', "needs interface attention"),
        (
            'name = "x"\nkind = "provider"\nrequires = ["nowhere"]\n[api]\nops = ">=1.0"',
            "not installed",
        ),
    ],
)
def test_nothing_is_imported_before_the_manifest_is_accepted(folder, manifest, reason):
    folder.add("early", MODELS, manifest)
    (broken,) = discover(OPTIONS).quarantined
    assert reason in broken.reason
    assert not folder.imported()


def test_a_platform_without_its_hooks(folder):
    folder.add_platform("bare", hooks="")
    (broken,) = discover(OPTIONS).quarantined
    assert "'probe', which is not implemented" in broken.reason


def test_allow_list(folder):
    folder.add("one", MODELS)
    folder.add("two", MODELS)
    found = discover(DeviceOptions(plugins=("Chiplet_One",)))
    assert names(found.loaded)[len(CORE_MODULES) :] == ["chiplet-one"]
    assert found.blocked == ("chiplet-two",)


def test_blocked_plugins_are_not_imported(folder):
    folder.add("one", BROKEN["raises"][0])
    found = discover(DeviceOptions(no_plugin=("chiplet-one",)))
    assert found.blocked == ("chiplet-one",)
    assert not found.quarantined
    assert not folder.imported()


@pytest.mark.parametrize("kind", BROKEN)
def test_an_explicitly_requested_plugin_must_load(folder, kind):
    hooks, _ = BROKEN[kind]
    folder.add("asked", hooks)
    with pytest.raises(PluginError, match=r"chiplet-asked 1\.2 cannot be used"):
        discover(DeviceOptions(plugins=("chiplet-asked",)))


@pytest.mark.parametrize(
    "options", [DeviceOptions(plugins=("nowhere",)), DeviceOptions(no_plugin=("nowhere",))]
)
def test_a_name_that_is_not_installed(folder, options):
    folder.add("one", MODELS)
    with pytest.raises(PluginError, match="'nowhere' is not installed; installed: chiplet-one"):
        discover(options)


def test_doctor_reports_quarantine_and_survives_a_raising_hook(folder):
    folder.add("aaa", BROKEN["raises"][0])
    folder.add("ill", "@hookimpl\ndef doctor(device): raise ValueError('ouch')")
    folder.add(
        "well", "@hookimpl\ndef doctor(device): return [Check('ok', CheckStatus.OK, str(device))]"
    )
    checks = {check.name: check for check in discover(OPTIONS).doctor(())}
    assert checks["chiplet-aaa"].status is CheckStatus.PROBLEM
    assert "out of order" in checks["chiplet-aaa"].detail
    assert "ouch" in checks["ill"].detail
    assert checks["ok"].detail == "None"


def test_discovery_imports_no_tensor_library():
    code = (
        "import sys; from chiplet.plugins import discover; from chiplet.config import "
        "DeviceOptions; discover(DeviceOptions()); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
