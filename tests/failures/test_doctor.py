"""`chiplet doctor` finds each of these seeded faults, and nothing wrong where nothing is."""

from __future__ import annotations

import importlib.metadata
import shutil
import socket
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from chiplet.api import Check, CheckStatus
from chiplet.cli.doctor.examination import examine
from chiplet.cli.doctor.host import Host, read_host
from chiplet.config import EngineConfig, ServerOptions
from chiplet.plugins import discovery
from chiplet.plugins.autotune.cache import locked
from chiplet.plugins.plan_lock import save_plan
from chiplet.worker import explain
from tests.server.server_process import write_byte_tokenizer
from tests.unit.plugins.conftest import (
    PLATFORM_HOOKS,
    PROVIDER_MANIFEST,
    PluginFolder,
)


@dataclass
class Site:
    """An installation in a folder; sound until something is seeded."""

    root: Path
    plugins: PluginFolder
    patch: pytest.MonkeyPatch
    host: Host
    options: dict[str, Any] = field(default_factory=dict)
    server: dict[str, Any] = field(default_factory=lambda: {"port": 0})
    stack: ExitStack = field(default_factory=ExitStack)

    @property
    def model(self) -> Path:
        return self.root / "model"

    def config(self, **more: Any) -> EngineConfig:
        defaults = {"model": str(self.model), "device": "reference", "context_length": 64}
        given = defaults | self.options | more
        return EngineConfig.from_options(**{k: v for k, v in given.items() if v is not None})

    def set_config(self, **values: Any) -> None:
        path = self.model / "config.json"
        config = msgspec.json.decode(path.read_bytes()) | values
        path.write_bytes(msgspec.json.encode(config))

    def add_brittle(self, memory: str) -> None:
        """A platform whose devices have so much memory: (free, total) in bytes."""
        hooks = PLATFORM_HOOKS.replace(
            "return ReferencePlatform()",
            "import dataclasses\n"
            "    class Small(ReferencePlatform):\n"
            f"        def memory(self):\n            return MemoryInfo(**dict({memory}))\n"
            "    return Small()",
        )
        self.plugins.add_platform("small", hooks)
        self.options["device"] = "small"

    def findings(self) -> list[Check]:
        return examine(self.config(), ServerOptions(**self.server), self.host, is_port_given=True)


@pytest.fixture(scope="session")
def model(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound") / "model"
    shutil.copytree(checkpoint, folder)
    write_byte_tokenizer(folder)
    return folder


@pytest.fixture
def site(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    shutil.copytree(model, tmp_path / "model")
    plugins = tmp_path / "plugins"
    plugins.mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    paths = [str(plugins)]
    monkeypatch.setattr(
        discovery, "distributions", lambda: importlib.metadata.distributions(path=paths)
    )
    monkeypatch.syspath_prepend(str(plugins))
    host = replace(
        read_host(),
        torch="2.13.0",
        num_cores=4,
        num_threads=4,
        max_open_files=65536,
        cache_free_bytes=100 << 30,
    )
    site = Site(tmp_path, PluginFolder(plugins), monkeypatch, host)
    with site.stack:
        yield site
    for name in [name for name in sys.modules if name.startswith("tiny_")]:
        del sys.modules[name]


def missing_library(site: Site) -> None:
    site.plugins.add(
        "acme", "", PROVIDER_MANIFEST.replace("[api]", 'requires = ["acme-driver"]\n[api]')
    )


def wrong_version(site: Site) -> None:
    site.plugins.add(
        "acme", "", PROVIDER_MANIFEST.replace("[api]", 'requires = ["msgspec>=99"]\n[api]')
    )


def two_platforms(site: Site) -> None:
    site.options["device"] = None
    site.plugins.add_platform("north")
    site.plugins.add_platform("south")


def manifest_out_of_range(site: Site) -> None:
    site.plugins.add("acme", "", PROVIDER_MANIFEST.replace(">=1.0,<2", ">=9"))


def unreadable_manifest(site: Site) -> None:
    site.plugins.add("acme", "", "name = [unclosed")


def no_manifest(site: Site) -> None:
    site.plugins.add("acme", "", None)


def raises_at_import(site: Site) -> None:
    site.plugins.add("acme", "raise OSError('libacme.so: cannot open shared object file')")


def missing_module(site: Site) -> None:
    name = site.plugins.add("acme", "")
    info = next(site.plugins.path.glob(f"{name.replace('-', '_')}-*.dist-info"))
    (info / "entry_points.txt").write_text("[chiplet.plugins]\nacme = no_such_package.plugin\n")


def crashing_probe(site: Site) -> None:
    hooks = PLATFORM_HOOKS.replace("    return [", "    import os; os.abort()\n    return [", 1)
    site.plugins.add_platform("acme", hooks)


def platform_aside(site: Site) -> None:
    site.options["device"] = None
    site.plugins.add_platform("acme", "raise ImportError('no driver')")
    site.plugins.add_platform("spare")


def twice_installed(site: Site) -> None:
    site.plugins.add("acme", "")
    info = next(site.plugins.path.glob("chiplet_acme-*.dist-info"))
    other = info.with_name("chiplet_acme-0.9.dist-info")
    shutil.copytree(info, other)
    (other / "METADATA").write_text("Name: chiplet-acme\nVersion: 0.9\n")


def no_native_kernels(site: Site) -> None:
    from chiplet_cpu import native

    site.patch.setattr(native, "library", None)
    site.patch.setattr(native, "reason", "the plugin was installed without a compiler")
    site.patch.setattr(native, "_remedy", native._REMEDY)
    info = site.plugins.path / "chiplet_cpu-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Name: chiplet-cpu\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text("[chiplet.plugins]\ncpu = chiplet_cpu.plugin\n")
    site.options["device"] = "cpu"


def no_model_folder(site: Site) -> None:
    site.options["model"] = str(site.root / "no" / "model")


def damaged_config(site: Site) -> None:
    (site.model / "config.json").write_text("{")


def missing_shard(site: Site) -> None:
    names = {"model.norm.weight": "model-00002-of-00002.safetensors"}
    shutil.move(site.model / "model.safetensors", site.model / "model-00001-of-00002.safetensors")
    index = {"weight_map": names | {"x": "model-00001-of-00002.safetensors"}}
    (site.model / "model.safetensors.index.json").write_bytes(msgspec.json.encode(index))


def truncated_weights(site: Site) -> None:
    path = site.model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def pickled_weights(site: Site) -> None:
    (site.model / "model.safetensors").rename(site.model / "pytorch_model.bin")


def unknown_architecture(site: Site) -> None:
    site.set_config(architectures=["MambaForCausalLM"], model_type="mamba")


def no_tokenizer(site: Site) -> None:
    (site.model / "tokenizer.json").unlink()


def wrong_chat_template(site: Site) -> None:
    path = site.root / "template.jinja"
    path.write_text("{% for %}")
    site.options["chat_template"] = str(path)


def port_taken(site: Site) -> None:
    other = site.stack.enter_context(socket.socket())
    other.bind(("127.0.0.1", 0))
    other.listen()
    site.server["port"] = other.getsockname()[1]


def foreign_address(site: Site) -> None:
    site.server["host"] = "192.0.2.1"


def little_free_memory(site: Site) -> None:
    site.add_brittle("free_bytes=1000, total_bytes=2**40")


def small_limit(site: Site) -> None:
    site.add_brittle("free_bytes=1000, total_bytes=1000")


def full_disk(site: Site) -> None:
    site.host = replace(site.host, cache_free_bytes=1 << 20)


def locked_cache(site: Site) -> None:
    folder = site.host.cache_folder / "autotune"
    folder.mkdir(parents=True)
    site.stack.enter_context(locked(folder))


def read_only_cache(site: Site) -> None:
    # Not even root writes there.
    site.host = replace(site.host, cache_folder=Path("/proc/1/chiplet"))


def no_torch(site: Site) -> None:
    site.host = replace(site.host, torch=None)


def old_torch(site: Site) -> None:
    site.host = replace(site.host, torch="2.1.0")


def broken_torch(site: Site) -> None:
    site.host = replace(site.host, torch_failure="OSError: libtorch_cpu.so: undefined symbol")


def many_threads(site: Site) -> None:
    site.host = replace(site.host, num_threads=64)


def few_files(site: Site) -> None:
    site.host = replace(site.host, max_open_files=256)


def deep_temp_folder(site: Site) -> None:
    folder = site.root / ("x" * 100)
    folder.mkdir()
    site.host = replace(site.host, temp_folder=folder)


def _lock(site: Site) -> Path:
    path = site.root / "plan.lock"
    save_plan(explain(site.config()), path)
    site.options["plan_lock"] = str(path)
    return path


def stale_plan(site: Site) -> None:
    path = _lock(site)
    path.write_text(path.read_text().replace('"provider": "reference"', '"provider": "gone"'))


def denied_in_plan(site: Site) -> None:
    hooks = textwrap.dedent("""
        class Twin:
            name = "twin"
            accepts = frozenset(Feature)
            def assess(self, request):
                return Yes(Tier.VENDOR)
            def build(self, request, context):
                return context.reference(request)
        @hookimpl
        def attention(device):
            return [Twin()]
        """)
    site.plugins.add("acme", hooks)
    _lock(site)
    site.options["deny"] = ("attention=twin",)


def damaged_plan(site: Site) -> None:
    path = site.root / "plan.lock"
    path.write_text("{}")
    site.options["plan_lock"] = str(path)


def useless_pin(site: Site) -> None:
    site.options["use"] = ("moe=reference",)


FAULTS: dict[Callable[[Site], None], tuple[str, str]] = {
    missing_library: ("chiplet-acme", "needs acme-driver, which is not installed"),
    wrong_version: ("chiplet-acme", "needs msgspec>=99, and"),
    two_platforms: ("chosen device", "Several kinds of device found: north"),
    manifest_out_of_range: ("chiplet-acme", "needs interface attention >=9"),
    unreadable_manifest: ("chiplet-acme", "chiplet_plugin.toml cannot be read"),
    no_manifest: ("chiplet-acme", "no chiplet_plugin.toml in"),
    raises_at_import: ("chiplet-acme", "libacme.so: cannot open shared object file"),
    missing_module: ("chiplet-acme", "'no_such_package' of entry point"),
    crashing_probe: ("chiplet-acme", "signal 6"),
    platform_aside: ("chosen device", "chiplet-acme cannot be used"),
    twice_installed: ("chiplet-acme", "installed 2 times"),
    no_native_kernels: ("cpu kernels", "installed without a compiler"),
    no_model_folder: ("model", "There is no file or folder"),
    damaged_config: ("model", "config.json"),
    missing_shard: ("model", "lacks 1 of 2 files with weights: model-00002-of-00002"),
    truncated_weights: ("model", "damaged or cut short"),
    pickled_weights: ("model", "pytorch_model.bin only"),
    unknown_architecture: ("model", "MambaForCausalLM"),
    no_tokenizer: ("tokenizer", "tokenizer.json"),
    wrong_chat_template: ("tokenizer", "template"),
    port_taken: ("port", "Address already in use"),
    foreign_address: ("port", "Cannot assign requested address"),
    little_free_memory: ("memory", "the device has 0 of"),
    small_limit: ("memory", "of 0 MiB free"),
    full_disk: ("disk", "0.0 GiB free"),
    locked_cache: ("measurements", "another process holds"),
    read_only_cache: ("cache folder", "cannot be written to"),
    no_torch: ("torch", "not installed"),
    old_torch: ("torch", "2.1.0 is older than 2.8"),
    broken_torch: ("torch", "cannot be imported: OSError"),
    many_threads: ("threads", "64 for 4 cores"),
    few_files: ("open files", "at most 256"),
    deep_temp_folder: ("sockets", "allowed: 107"),
    stale_plan: ("choice of implementations", "gone of chiplet"),
    denied_in_plan: ("plan file", "names what --deny denies: attention/global=twin"),
    damaged_plan: ("plan file", "is no plan file"),
    useless_pin: ("choice of implementations", "applies to nothing"),
}

COMPANIONS = {
    # One fault, seen from two sides.
    "platform_aside": {"chiplet-acme"},
    "no_native_kernels": {
        "cpu memory",
        "cpu cores",
        "cpu huge pages",
    },  # of the machine that runs the test
}


def bad(findings: list[Check]) -> list[Check]:
    return [each for each in findings if each.status is not CheckStatus.OK]


def test_a_sound_installation_raises_no_alarm(site: Site) -> None:
    assert bad(site.findings()) == []


def test_a_sound_installation_with_plugins_raises_no_alarm(site: Site) -> None:
    site.plugins.add_platform("north")
    site.options["device"] = "north"
    _lock(site)
    (site.host.cache_folder / "autotune").mkdir(parents=True)
    (site.host.cache_folder / "autotune" / "lock").touch()
    findings = site.findings()
    assert bad(findings) == []
    names = {each.name for each in findings}
    assert {"device north:0", "plan file", "model", "tokenizer", "memory", "port"} <= names
    assert "choice of implementations" in names


def test_an_editable_installation_is_one_and_raises_no_alarm(site: Site) -> None:
    name = site.plugins.add("acme", "").replace("-", "_")
    (info,) = site.plugins.path.glob(f"{name}-*.dist-info")
    # The build leaves this in the folder of sources, which the installer then puts on the path.
    sources = site.root / "sources"
    built = sources / f"{name}.egg-info"
    shutil.copytree(info, built)
    (built / "METADATA").rename(built / "PKG-INFO")
    paths = [str(site.plugins.path), str(sources)]
    site.patch.setattr(
        discovery, "distributions", lambda: importlib.metadata.distributions(path=paths)
    )
    assert bad(site.findings()) == []


@pytest.mark.parametrize("seed", FAULTS, ids=lambda seed: seed.__name__)
def test_a_seeded_fault_is_found_with_its_remedy(seed: Callable[[Site], None], site: Site) -> None:
    seed(site)
    name, detail = FAULTS[seed]
    found = bad(site.findings())
    matching = [each for each in found if each.name == name and detail in each.detail]
    assert matching, found
    for each in found:
        assert each.remedy, each
        assert "\n" not in each.remedy
    allowed = {name} | COMPANIONS.get(seed.__name__, set())
    assert {each.name for each in found} <= allowed, "and no false alarm beside it"


def test_there_are_faults_enough() -> None:
    assert len(FAULTS) >= 25


def test_a_default_port_in_use_is_a_warning_as_a_server_may_run_there(site: Site) -> None:
    port_taken(site)
    checks = examine(site.config(), ServerOptions(**site.server), site.host, is_port_given=False)
    (found,) = bad(checks)
    assert found.status is CheckStatus.WARNING
