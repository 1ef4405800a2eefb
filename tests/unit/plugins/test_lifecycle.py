"""Hooks configure and shutdown: told once, isolated when they raise or hang."""

import os
import sys
import threading

import pytest

from chiplet import LLM
from chiplet.api import DeviceProbe
from chiplet.cli.main import main
from chiplet.config import DeviceOptions, EngineConfig
from chiplet.errors import ConfigError, PluginError
from chiplet.plugins import discover, lifecycle, patience
from chiplet.plugins.discovery import CORE_MODULES
from chiplet.plugins.probe import probe_all
from chiplet.server import processes
from tests.models.tiny import make_checkpoint
from tests.server.server_process import eventually, write_byte_tokenizer

MANIFEST = """
name = "{name}"
kind = "provider"
[api]
ops = ">=1.0,<2"
models = ">=1.0,<2"
[options]
memory_gib = "Memory for workspaces."
label = "For people."
"""

RECORDER = """
CALLS = []

@hookimpl
def configure(context):
    CALLS.append(("configure", dict(context.options), "/".join(context.cache_folder.parts[-2:])))

@hookimpl
def ops(device):
    CALLS.append(("ops",))
    return []

@hookimpl
def shutdown(context):
    CALLS.append(("shutdown", dict(context.options)))
"""

DEVICE = DeviceProbe(device_type="tiny", index=0, name="Tiny", total_memory_bytes=1)


def find(**options):
    return discover(DeviceOptions(**options))


def outsiders(plugins):
    return list(plugins.loaded[len(CORE_MODULES) :])


def calls_of(plugin):
    return sys.modules[plugin.module].CALLS


def test_told_its_options_before_and_the_end_after(folder):
    folder.add("one", RECORDER, MANIFEST)
    plugins = find(plugin_option=("chiplet-ONE.memory_gib=2", "chiplet-one.label=a=b"))
    (plugin,) = outsiders(plugins)
    plugin.call("ops", device=DEVICE)
    plugins.shut_down()
    given = {"memory_gib": "2", "label": "a=b"}
    assert calls_of(plugin) == [
        ("configure", given, "chiplet-one/one"),
        ("ops",),
        ("shutdown", given),
    ]


def test_without_options_there_are_none(folder):
    folder.add("one", RECORDER, MANIFEST)
    (plugin,) = outsiders(find())
    assert calls_of(plugin) == [("configure", {}, "chiplet-one/one")]


def test_two_plugins_of_a_distribution_have_their_own_options_and_folders(folder):
    folder.add("one", RECORDER, MANIFEST)
    other = MANIFEST.replace("memory_gib", "colour")
    folder.add("more", RECORDER, other, part_of="one")
    options = ("memory_gib=2", "label=a", "colour=red")
    first, second = outsiders(find(plugin_option=[f"chiplet-one.{each}" for each in options]))
    assert calls_of(first) == [("configure", {"memory_gib": "2", "label": "a"}, "chiplet-one/one")]
    assert calls_of(second) == [("configure", {"label": "a", "colour": "red"}, "chiplet-one/more")]
    with pytest.raises(PluginError, match=r"no option 'color'\. .*'colour'"):
        find(plugin_option=("chiplet-one.color=red",))


def test_an_option_beside_a_broken_manifest(folder):
    folder.add("one", RECORDER, MANIFEST)
    folder.add("more", RECORDER, "name = 1", part_of="one")
    with pytest.raises(PluginError, match="cannot be used: field 'api' is missing"):
        find(plugin_option=("chiplet-one.label=a",))


def test_an_engine_tells_the_end(folder, tmp_path):
    folder.add("one", RECORDER, MANIFEST)
    make_checkpoint("llama-tied", tmp_path / "model")
    write_byte_tokenizer(tmp_path / "model")
    config = EngineConfig.from_options(model=str(tmp_path / "model"), device="reference")
    llm = LLM(config)
    (name,) = folder.imported()
    calls = sys.modules[name].CALLS
    assert [each[0] for each in calls] == ["configure", "ops"]
    llm.close()
    llm.close()
    assert [each[0] for each in calls] == ["configure", "ops", "shutdown"]


def test_a_start_that_fails_tells_the_end(folder, tmp_path):
    folder.add("one", RECORDER, MANIFEST)
    make_checkpoint("llama-tied", tmp_path / "model")
    write_byte_tokenizer(tmp_path / "model")
    with pytest.raises(ConfigError):
        LLM(str(tmp_path / "model"), device="reference", use=("ops=nobody",))
    (name,) = folder.imported()
    assert sys.modules[name].CALLS[-1][0] == "shutdown"


def test_those_loaded_are_told_when_another_ends_the_start(folder):
    folder.add("one", RECORDER, MANIFEST)
    folder.add("two", RAISING.replace("{error}", "ValueError('ouch')"), MANIFEST)
    with pytest.raises(PluginError, match="ouch"):
        find(plugins=("chiplet-one", "chiplet-two"))
    name = next(each for each in folder.imported() if "tiny_one" in each)
    told = ["configure", "shutdown"]
    assert [each[0] for each in sys.modules[name].CALLS] == told
    # An option that nobody takes is found before anybody is told anything.
    with pytest.raises(PluginError, match="has no option 'colour'"):
        find(plugin_option=("chiplet-two.colour=red",))
    assert [each[0] for each in sys.modules[name].CALLS] == told


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("chiplet-one.colour=red", "has no option 'colour'"),
        ("chiplet-two.memory_gib=2", "'chiplet-two' is not installed"),
        ("memory_gib=2", "allowed: a distribution, a key and a value"),
        ("chiplet-one.memory_gib", "allowed: a distribution, a key and a value"),
        (".memory_gib=2", "allowed: a distribution, a key and a value"),
    ],
)
def test_an_option_that_nobody_takes(folder, option, message):
    folder.add("one", RECORDER, MANIFEST)
    with pytest.raises(ConfigError, match=message):
        find(plugin_option=(option,))


def test_two_values_for_one_option(folder):
    folder.add("one", RECORDER, MANIFEST)
    with pytest.raises(ConfigError, match="twice: '2' and '3'"):
        find(plugin_option=("chiplet-one.memory_gib=2", "chiplet_one.memory_gib=3"))


def test_an_option_of_a_plugin_that_is_left_out(folder):
    folder.add("one", RECORDER, MANIFEST)
    with pytest.raises(PluginError, match="is given an option and left out"):
        find(plugin_option=("chiplet-one.label=a",), no_plugin=("chiplet-one",))


def test_options_need_the_hook(folder):
    folder.add("one", "", MANIFEST)
    (broken,) = find().quarantined
    assert "needs hook 'configure'" in broken.reason


RAISING = """
@hookimpl
def configure(context):
    raise {error}
"""

HANGING = """
import threading
LET_GO = threading.Event()

@hookimpl
def {hook}(context):
    LET_GO.wait()
"""


@pytest.mark.parametrize("error", ["ValueError('ouch')", "SystemExit('ouch')"])
def test_configure_raises(folder, error):
    folder.add("one", RAISING.replace("{error}", error), MANIFEST)
    folder.add("two", RECORDER, MANIFEST)
    plugins = find()
    assert [each.distribution for each in outsiders(plugins)] == ["chiplet-two"]
    (broken,) = plugins.quarantined
    assert broken.reason == f"hook configure raised {error.partition('(')[0]}: ouch"
    # Given an option, it is wanted: the start ends with what the plugin says.
    with pytest.raises(PluginError, match="ouch"):
        find(plugin_option=("chiplet-one.label=a",))


@pytest.fixture
def let_go():
    """Lets plugins that hang go on, after the test."""
    yield
    for name, module in list(sys.modules.items()):
        if name.startswith("tiny_") and hasattr(module, "LET_GO"):
            module.LET_GO.set()


def test_configure_hangs(folder, monkeypatch, let_go):
    folder.add("one", HANGING.replace("{hook}", "configure"), MANIFEST)
    monkeypatch.setattr(lifecycle, "CONFIGURE_LIMIT_S", 0.05)
    (broken,) = find().quarantined
    assert broken.reason == "hook configure gave no answer within 0.05 s"


def test_shutdown_hangs(folder, monkeypatch, caplog, let_go):
    folder.add("one", HANGING.replace("{hook}", "shutdown"), MANIFEST.partition("[options]")[0])
    monkeypatch.setattr(lifecycle, "SHUTDOWN_LIMIT_S", 0.05)
    find().shut_down()
    assert "Plugin chiplet-one: hook shutdown gave no answer within 0.05 s" in caplog.text


def test_an_engine_is_left_time_for_hooks_that_hang():
    three_s = lifecycle.SHUTDOWN_LIMIT_S + 2 * lifecycle.LATE_SHUTDOWN_LIMIT_S
    assert three_s < processes.STOP_LIMIT_S


def test_others_are_told_the_end_though_several_hang(folder, monkeypatch, caplog, let_go):
    hanging = HANGING.replace("{hook}", "shutdown")
    folder.add("one", RECORDER, MANIFEST)
    folder.add("two", hanging, MANIFEST.partition("[options]")[0])
    folder.add("zoo", hanging, MANIFEST.partition("[options]")[0])
    monkeypatch.setattr(lifecycle, "SHUTDOWN_LIMIT_S", 0.05)
    monkeypatch.setattr(lifecycle, "LATE_SHUTDOWN_LIMIT_S", 0.01)
    plugins = find()
    plugins.shut_down()
    assert "Plugin chiplet-zoo: hook shutdown gave no answer within 0.05 s" in caplog.text
    assert "Plugin chiplet-two: hook shutdown gave no answer within 0.01 s" in caplog.text
    assert calls_of(outsiders(plugins)[0])[-1][0] == "shutdown"


def test_shutdown_raises(folder, caplog):
    folder.add("one", RECORDER, MANIFEST)
    folder.add("two", RECORDER + "    raise OSError('ouch')\n", MANIFEST)
    plugins = find()
    plugins.shut_down()
    for each in outsiders(plugins):
        assert [name for name, *_ in calls_of(each)] == ["configure", "shutdown"]
    assert "Plugin chiplet-two: hook shutdown raised OSError: ouch" in caplog.text


PROBE = """
import threading

@hookimpl
def configure(context):
    global DEVICES
    DEVICES = int(context.options.get("devices", 1))

@hookimpl
def probe(host):
    assert threading.current_thread() is threading.main_thread()
    return [DeviceProbe(device_type="one", index=i, name="x", total_memory_bytes=1)
            for i in range(DEVICES)]

@hookimpl
def platform(device):
    return None

@hookimpl
def shutdown(context):
    if context.options["ending"] == "raise":
        raise OSError("ouch")
    if context.options["ending"] == "hang":
        threading.Event().wait()
"""

PROBE_MANIFEST = """
name = "one"
kind = "platform"
device_types = ["one"]
[api]
platform = ">=1.0,<2"
[options]
devices = "How many there are."
ending = "How it ends."
"""


@pytest.mark.parametrize("ending", ["well", "raise", "hang"])
def test_the_probe_is_told_too(folder, ending):
    folder.add("one", PROBE, PROBE_MANIFEST)
    options = ("chiplet-one.devices=3", f"chiplet-one.ending={ending}")
    (result,) = probe_all(find(plugin_option=options).platforms)
    assert result.failure == ""
    assert len(result.devices) == 3


def test_a_probe_that_could_not_be_configured_is_not_told_the_end(folder, tmp_path):
    told = tmp_path / "told"
    source = PROBE.replace(
        "global DEVICES\n",
        f"global DEVICES\n    import os\n    if os.getpid() != {os.getpid()}:\n"
        "        raise OSError('ouch')\n",
    ).replace("def shutdown(context):", f"def shutdown(context):\n    open({str(told)!r}, 'w')")
    folder.add("one", source, PROBE_MANIFEST)
    (result,) = probe_all(find().platforms)
    assert result.failure == "it raised OSError: ouch"
    assert not told.exists()


def test_what_hangs_at_the_start_is_named(folder, monkeypatch, caplog, let_go):
    monkeypatch.setattr(patience, "PATIENCE_S", 0.01)
    hook = HANGING.replace("{hook}(context)", "ops(device)")
    folder.add("one", hook, MANIFEST.partition("[options]")[0])
    plugins = find()
    (plugin,) = outsiders(plugins)
    hung = threading.Thread(target=plugin.call, args=("ops",), kwargs={"device": DEVICE})
    hung.start()
    text = "Still waiting for hook ops of chiplet-one, after 0.01 s."
    assert eventually(lambda: text in caplog.text, limit_s=60)
    sys.modules[plugin.module].LET_GO.set()
    hung.join()


def test_hooks_that_list_things_are_isolated(folder, caplog):
    folder.add("one", "@hookimpl\ndef models(): raise OSError('ouch')", MANIFEST.partition("[o")[0])
    folder.add("two", "@hookimpl\ndef models(): return ['gpt']", MANIFEST.partition("[o")[0])
    assert "LlamaForCausalLM" in find().model_entries()[0].architectures
    assert "Hook models of chiplet-one raised OSError: ouch" in caplog.text
    assert "Hook models of chiplet-two raised TypeError: it returned 'gpt'" in caplog.text
    with pytest.raises(PluginError, match="ouch"):
        find(plugins=("chiplet-one",)).model_entries()


def test_what_lacks_a_formats_names_is_no_format(folder, caplog):
    manifest = MANIFEST.partition("[o")[0] + 'quantization = ">=1.0,<2"\n'
    folder.add("one", "@hookimpl\ndef stored_formats(): return [1]", manifest)
    folder.add("two", "@hookimpl\ndef quantization_formats(): return [1]", manifest)
    plugins = find()
    assert {each.name for each in plugins.stored_formats()} >= {"awq", "gptq"}
    assert {each.name for each in plugins.quantization_formats()} >= {"int8", "fp8"}
    assert "Hook stored_formats of chiplet-one raised TypeError: it returned 1" in caplog.text
    assert "Hook quantization_formats of chiplet-two raised TypeError" in caplog.text


def test_doctor_lists_the_options(folder, capsys):
    folder.add("one", RECORDER, MANIFEST)
    main(["doctor", "--device", "reference"])
    assert "option memory_gib: Memory for workspaces." in " ".join(capsys.readouterr().out.split())


def test_no_thread_is_left_where_nothing_hangs(folder):
    folder.add("one", RECORDER, MANIFEST)
    find().shut_down()
    assert [each for each in threading.enumerate() if each.name == "plugin hook"] == []
