"""Plugins frozen at a version of the interfaces run on core as it is now.

A folder for each version, one plugin in it for each interface. Nothing in such a folder is ever
changed: what stops working here stops working for people who have such plugins installed.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from chiplet import SamplingParams
from chiplet.config import DeviceOptions, EngineConfig
from chiplet.errors import PluginError
from chiplet.formats.quantization.registry import find_format
from chiplet.plugins import PluginSet, discover
from chiplet.plugins.manifest import Manifest
from chiplet.testing.conformance.case import Status, run_case
from chiplet.testing.conformance.suite import all_cases, find_subjects, pair
from chiplet.testing.formats import check_quantization_format, check_stored_format
from chiplet.worker import explain
from tests.models.tiny import make_checkpoint, run_engine

HERE = Path(__file__).parent

DIGESTS = {
    "v1_0": "aa3d3153aa680c9a072c327ca16460a383edba3325ad081f74ef4121fd6e1be3",
}
"""Of all files of each folder: see `digest`."""

PLUGINS = {
    "ops": "fossil-norm",
    "linear": "fossil-linear",
    "moe": "fossil-moe",
    "attention": "fossil-attention",
    "communication": "fossil-files",
    "platform": "fossil-device",
    "compilation": "fossil-step",
    "quantization": "fossil-clipped",
    "stored": "fossil-nibbles",
    "models": "fossil-parallel",
}
"""Distributions by what they bring."""


def digest(folder: Path) -> str:
    """One number for names and contents of all files."""
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            total.update(path.relative_to(folder).as_posix().encode() + b"\0")
            total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def test_no_fossil_is_ever_changed() -> None:
    found = {path.name: digest(path) for path in HERE.glob("v*") if path.is_dir()}
    assert found == DIGESTS, "put back what was changed: a fossil is what people have installed"


def site_of(version: str, folder: Path) -> Path:
    """A folder for the import path, as an installer would leave it."""
    site = folder / "site"
    site.mkdir()
    for project in sorted((HERE / version).iterdir()):
        if not project.is_dir():
            continue
        facts = tomllib.loads((project / "pyproject.toml").read_text("utf-8"))["project"]
        for package in (each for each in project.iterdir() if each.is_dir()):
            (site / package.name).mkdir()
            (site / package.name / "__init__.py").touch()
            for path in package.iterdir():
                if path.is_file():
                    (site / package.name / path.name).write_bytes(path.read_bytes())
        info = site / f"{facts['name'].replace('-', '_')}-{facts['version']}.dist-info"
        info.mkdir()
        named = f"Name: {facts['name']}\nVersion: {facts['version']}\n"
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\n{named}")
        entries = facts["entry-points"]["chiplet.plugins"].items()
        lines = "".join(f"{name} = {module}\n" for name, module in entries)
        (info / "entry_points.txt").write_text(f"[chiplet.plugins]\n{lines}")
    return site


@pytest.fixture(autouse=True, params=DIGESTS)
def site(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """The fossils of one version, installed."""
    folder = site_of(request.param, tmp_path)
    monkeypatch.syspath_prepend(str(folder))
    yield folder
    for name in [each for each in sys.modules if each.startswith("fossil_")]:
        del sys.modules[name]


def options(*kinds: str, **more: Any) -> DeviceOptions:
    return DeviceOptions(plugins=tuple(PLUGINS[each] for each in kinds), **more)


def config(model: Path, *kinds: str, **more: Any) -> EngineConfig:
    given: dict[str, Any] = {
        "dtype": "float32",
        "max_total_tokens": 256,
        "context_length": 64,
        "max_running_requests": 2,
        "chunked_prefill_size": 16,
    }
    given |= more
    names = tuple(PLUGINS[each] for each in kinds)
    return EngineConfig.from_options(model=str(model), plugins=names, **given)


def tokens(settings: EngineConfig, prompt: list[int]) -> list[int]:
    params = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
    (answer,) = run_engine(settings, [prompt], [params])
    return answer.token_ids


PROMPT = [3, 14, 15, 9, 2, 6]


def test_all_are_found_and_negotiated() -> None:
    found = discover(options(*PLUGINS))
    assert found.quarantined == ()
    outside: dict[str, Manifest] = {
        each.distribution: each.manifest for each in found.loaded if not each.is_core
    }
    assert set(outside) == set(PLUGINS.values())
    for kind in PLUGINS:
        interface = "quantization" if kind == "stored" else kind
        assert outside[PLUGINS[kind]].api[interface] == "<2,>=1.0"


@pytest.mark.parametrize(
    ("kind", "provider", "every", "at_least"),
    [
        ("ops", "fossil-norm", 1, 5),
        ("linear", "fossil", 4, 5),
        ("moe", "fossil-moe", 2, 5),
        ("attention", "fossil-attention", 9, 8),
        ("communication", "fossil-files", 3, 8),
    ],
)
def test_a_provider_passes_the_kit(kind: str, provider: str, every: int, at_least: int) -> None:
    assert passed(find(options(kind, device="reference"), provider), kind, every) >= at_least


def test_the_platform_passes_the_kit() -> None:
    assert passed(find(options("platform", device="fossil")), "platform", 1) >= 6


def find(given: DeviceOptions, provider: str | None = None) -> Any:
    plugins: PluginSet = discover(given)
    return find_subjects(given, provider, plugins)


def passed(subjects: Any, kind: str, every: int) -> int:
    """Cases of the quick tier that passed; every `every`-th is run, none fails."""
    pairs = [
        each
        for each in pair(all_cases(quick=True), subjects)
        if each[1].distribution == PLUGINS[kind] and each[0].family != "package"
    ]
    outcomes = [run_case(*each) for each in pairs[::every]]
    assert {each.case.id: each.detail for each in outcomes if each.status is Status.FAILED} == {}
    return sum(each.status is Status.PASSED for each in outcomes)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    make_checkpoint("llama-bias", tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize(
    ("kind", "device"), [("platform", "fossil"), ("compilation", "fossil-step")]
)
def test_a_device_serves(kind: str, device: str, tiny: Path) -> None:
    settings = config(tiny, kind, device=device)
    assert tokens(settings, PROMPT) == tokens(config(tiny, kind, device="reference"), PROMPT)


def test_providers_serve_together(tmp_path: Path) -> None:
    # One without biases, which the linear provider has not heard of.
    tiny = tmp_path / "model"
    make_checkpoint("llama-tied", tiny)
    kinds = ("ops", "linear", "attention")
    settings = config(tiny, *kinds, device="reference")
    providers = {each.operation: each.server.provider for each in explain(settings).choices}
    assert providers["attention/global"] == "fossil-attention"
    assert providers["linear/o_proj"] == "fossil"
    assert providers["ops/rms_norm"] == "fossil-norm"
    plain = config(tiny, *kinds, device="reference", use=("attention=reference",
                   "linear=reference", "ops=reference"))  # fmt: skip
    assert tokens(settings, PROMPT) == tokens(plain, PROMPT)


def test_experts_serve_and_hooks_are_told(tmp_path: Path) -> None:
    make_checkpoint("mixtral", tmp_path / "model")
    told = {"plugin_option": ("fossil-moe.label=here",)}
    settings = config(tmp_path / "model", "moe", device="reference", **told)
    choices = {each.operation: each.server.provider for each in explain(settings).choices}
    assert choices["moe/experts"] == "fossil-moe"
    plain = config(tmp_path / "model", "moe", device="reference", use=("moe=reference",))
    assert tokens(settings, PROMPT) == tokens(plain, PROMPT)
    plugins = discover(settings.device)
    (module,) = [sys.modules[each.module] for each in plugins.loaded if not each.is_core]
    before = len(module.CONFIGURED)
    assert module.CONFIGURED[-1].options == {"label": "here"}
    plugins.shut_down()
    assert len(module.CONFIGURED) == before - 1
    assert "as it was" in [each.detail for each in plugins.doctor(())]


def test_proposals_are_taken(tiny: Path) -> None:
    chosen = explain(config(tiny, "compilation", device="fossil-step"))
    pages = {each.request for each in chosen.choices if each.operation == "attention/global"}
    assert any("pages of 8" in each for each in pages)


def test_the_format_quantizes(tiny: Path) -> None:
    found = find_format(discover(options("quantization")).quantization_formats(), "fossil-clipped")
    assert found is not None
    check_quantization_format(found)
    settings = config(tiny, "quantization", device="reference", quantization="fossil-clipped")
    requests = {each.operation: each.request for each in explain(settings).choices}
    assert "int8 per channel" in requests["linear/o_proj"]


def test_the_quantized_checkpoint_is_read() -> None:
    found = discover(options("stored")).stored_formats()[-1]
    nibbles = (torch.arange(8 * 16) % 251).to(torch.uint8).reshape(8, 16)
    steps = torch.arange(1, 17).reshape(8, 2).half() / 16
    codes = torch.stack([nibbles >> 4, nibbles & 15], dim=-1).flatten(1)
    check_stored_format(
        found,
        quantization={"quant_method": "fossil-nibbles", "group": 16},
        tensors={"a.nibbles": nibbles, "a.steps": steps, "norm.weight": torch.ones(32)},
        values={"a.weight": (codes.float() - 8) * steps.float().repeat_interleave(16, 1)},
    )


def test_the_model_answers_as_it_did(site: Path, tmp_path: Path) -> None:
    model = tmp_path / "parallel"
    model.mkdir()
    expected = json.loads((HERE / "v1_0" / "models" / "expected.json").read_text("utf-8"))
    (model / "config.json").write_text(json.dumps(expected["config"]))
    save_file(waves(expected["shapes"]), model / "model.safetensors")
    assert tokens(config(model, "models", device="reference"), PROMPT) == expected["tokens"]


def waves(shapes: dict[str, list[int]]) -> dict[str, torch.Tensor]:
    """Weights that every version of every library makes alike."""
    found: dict[str, torch.Tensor] = {}
    for index, (name, shape) in enumerate(sorted(shapes.items())):
        places = torch.arange(math.prod(shape), dtype=torch.float64)
        values = torch.sin(places * 12.9898 + index * 78.233) * (1.0 if len(shape) == 1 else 0.5)
        found[name] = (values + (1.5 if len(shape) == 1 else 0.0)).float().reshape(shape)
    return found


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (">=1.99", "newer than this core has"),
        (">=2,<3", "newer than this core has"),
        ("<1", "older than this core has"),
    ],
)
def test_what_asks_for_another_version_is_refused(site: Path, wanted: str, said: str) -> None:
    path = site / "fossil_norm" / "chiplet_plugin.toml"
    path.write_text(path.read_text().replace(">=1.0,<2", wanted))
    (site / "fossil_norm" / "plugin.py").write_text("raise SystemExit('it is imported')\n")
    reasons = {each.distribution: each.reason for each in discover(DeviceOptions()).quarantined}
    assert said in reasons["fossil-norm"]
    with pytest.raises(PluginError, match=said):
        discover(options("ops"))
