"""Plugins that are odd rather than broken: left out or outlived, and the model is served."""

from __future__ import annotations

import importlib.metadata
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from chiplet import SamplingParams
from chiplet.api import Check
from chiplet.config import DeviceOptions, EngineConfig
from chiplet.plugins import discover, discovery, render
from chiplet.worker import explain
from tests.models.tiny import VOCAB_SIZE, run_engine
from tests.unit.plugins.conftest import PROVIDER_MANIFEST, PluginFolder

PROVIDER = """
class Provider:
    name = "odd"
    accepts = frozenset(Feature)
    def assess(self, request):
        return Yes(Tier.TUNED)
    def build(self, request, context):
        return context.reference(request)

"""
OFFERED = """
@hookimpl
def attention(device):
    return [Odd()]

@hookimpl
def ops(device):
    return [Odd()]
"""

ODD_PROVIDERS = {
    "a name that is a number": "class Odd(Provider):\n    name = 5\n",
    "a name that --use cannot say": "class Odd(Provider):\n    name = 'a=b c'\n",
    "accepts names of nothing": "class Odd(Provider):\n    accepts = frozenset([5])\n",
    "assess leaves": "class Odd(Provider):\n    def assess(self, request): raise SystemExit(3)\n",
    "build leaves": "class Odd(Provider):\n    def build(self, *_): raise SystemExit(3)\n",
    "run leaves": """
class Odd(Provider):
    def build(self, request, context):
        def leave(*_): raise SystemExit(3)
        return leave
""",
    "a score that is no number": (
        "class Odd(Provider):\n    def assess(self, request): return Yes(float('nan'))\n"
    ),
    "a score in words": "class Odd(Provider):\n    def assess(self, request): return Yes('best')\n",
    "a part in words": (
        "class Odd(Provider):\n    def assess(self, request): return Yes(500, part='prompts')\n"
    ),
    "a part without layouts": """
class Odd(Provider):
    def assess(self, request): return Yes(500, part=Part.PROMPTS)
    def build(self, request, context):
        impl = context.reference(request)
        impl.layouts = lambda: exit(3)
        return impl
""",
    "no reasons": "class Odd(Provider):\n    def assess(self, request): return No(())\n",
    "a reason that is no text": (
        "class Odd(Provider):\n    def assess(self, request): return No.because('x', None)\n"
    ),
    "a reason of markup": (
        "class Odd(Provider):\n    def assess(self, request): return No.because('x', '[/bold]')\n"
    ),
    "a reason that is no UTF-8": (
        "class Odd(Provider):\n    def assess(self, request): return No.because('x', '\\udc80')\n"
    ),
    "a note of markup": (
        "class Odd(Provider):\n    def assess(self, request): return Yes(500, '[/b] \\udc80')\n"
    ),
    "nothing is built": "class Odd(Provider):\n    def build(self, *_): return None\n",
    "what is built compares with nothing": """
class Impl:
    def __init__(self, inner): self.inner = inner
    def __call__(self, *arguments): return self.inner(*arguments)
    def __getattr__(self, name): return getattr(self.inner, name)
    def __eq__(self, other): raise ValueError("never")
    def __hash__(self): raise ValueError("never")
    def __bool__(self): raise ValueError("never")

class Odd(Provider):
    def build(self, request, context): return Impl(context.reference(request))
""",
    "the default type is changed": """
class Odd(Provider):
    def build(self, request, context):
        import torch
        torch.set_default_dtype(torch.float64)
        return context.reference(request)
""",
    "gradients are switched on": """
class Odd(Provider):
    def build(self, request, context):
        import torch
        torch.set_grad_enabled(True)
        return context.reference(request)
""",
    "hook gives a generator that breaks": (
        "def offers():\n    yield Provider()\n    raise OSError\n"
        "@hookimpl\ndef linear(device): return offers()\nOdd = Provider\n"
    ),
    "hook gives a number": "@hookimpl\ndef linear(device): return 5\nOdd = Provider\n",
    "hook leaves": "@hookimpl\ndef linear(device): raise SystemExit(3)\nOdd = Provider\n",
    "proposals without a path": (
        "@hookimpl\ndef config_proposals(config, device):\n"
        "    return [Proposal(None, 1, 'why')]\nOdd = Provider\n"
    ),
    "models leave": "@hookimpl\ndef models(): raise SystemExit(3)\nOdd = Provider\n",
    "architectures in one text": (
        "@hookimpl\ndef models():\n"
        "    return [ModelEntry(architectures='xLlamaForCausalLM', target='a:b')]\nOdd = Provider\n"
    ),
    "checks that are none": "@hookimpl\ndef doctor(device): return [1, None]\nOdd = Provider\n",
    "doctor leaves": "@hookimpl\ndef doctor(device): raise SystemExit(3)\nOdd = Provider\n",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PluginFolder]:
    paths = [str(tmp_path)]
    monkeypatch.setattr(
        discovery, "distributions", lambda: importlib.metadata.distributions(path=paths)
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    dtype = torch.get_default_dtype()
    yield PluginFolder(tmp_path)
    torch.set_default_dtype(dtype)
    torch.set_grad_enabled(True)
    for name in [name for name in sys.modules if name.startswith("tiny_")]:
        del sys.modules[name]


def config_of(checkpoint: Path) -> EngineConfig:
    return EngineConfig.from_options(
        model=str(checkpoint), device="reference", dtype="float32", max_total_tokens=512
    )


def answers(checkpoint: Path) -> list[list[int]]:
    random = np.random.default_rng(0)
    prompts = [random.integers(2, VOCAB_SIZE, size).tolist() for size in (1, 9)]
    greedy = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
    return [each.token_ids for each in run_engine(config_of(checkpoint), prompts, [greedy] * 2)]


@pytest.fixture(scope="module")
def expected(checkpoint: Path) -> list[list[int]]:
    return answers(checkpoint)


@pytest.mark.parametrize("kind", ODD_PROVIDERS)
def test_the_model_is_served_as_ever(
    kind: str, checkpoint: Path, folder: PluginFolder, expected: list[list[int]]
) -> None:
    folder.add("odd", PROVIDER + ODD_PROVIDERS[kind] + OFFERED, PROVIDER_MANIFEST)
    assert answers(checkpoint) == expected
    plan = explain(config_of(checkpoint))
    json.dumps(plan.to_json()).encode()
    render(plan).encode()
    for check in discover(DeviceOptions(device="reference")).doctor(()):
        assert isinstance(check, Check)
        check.detail.encode()


DAMAGED = {
    "no metadata": {"METADATA": None},
    "no name": {"METADATA": "Version: 1\n"},
    "no version": {"METADATA": "Name: chiplet-damaged\n"},
    "no UTF-8": {"entry_points.txt": b"[chiplet.plugins]\nx = \xff\n"},
    "a line that says nothing": {"entry_points.txt": "[chiplet.plugins]\nnothing\n"},
    "no module": {"entry_points.txt": "[chiplet.plugins]\nx = a b c\n"},
    "no package": {"entry_points.txt": "[chiplet.plugins]\nx = .\n"},
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_installation_beside_a_sound_one(kind: str, folder: PluginFolder) -> None:
    folder.add("sound", PROVIDER, PROVIDER_MANIFEST)
    info = folder.path / "chiplet_damaged-1.dist-info"
    info.mkdir()
    files: dict[str, str | bytes | None] = {
        "METADATA": "Name: chiplet-damaged\nVersion: 1\n",
        "entry_points.txt": "[chiplet.plugins]\nx = nowhere.plugin\n",
    }
    for name, text in (files | DAMAGED[kind]).items():
        if text is not None:
            (info / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    plugins = discover(DeviceOptions())
    assert "chiplet-sound" in {each.distribution for each in plugins.loaded}
    assert discovery.duplicates() == {}
    assert [each.reason for each in plugins.quarantined if "damaged" in each.distribution]
    assert plugins.doctor(())
