"""The ladder for authors: every block of its pages is installed and held against core."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.models.tiny import make_checkpoint, run_engine

from chiplet import SamplingParams
from chiplet.api import LayerFacts, LinearWeights
from chiplet.config import DeviceOptions, EngineConfig
from chiplet.errors import ModelError
from chiplet.formats.quantization.registry import find_format
from chiplet.plugins import choose_device, discover
from chiplet.reference.quantization import dequantize
from chiplet.testing.conformance.case import Status, run_case
from chiplet.testing.conformance.suite import all_cases, find_subjects, pair
from chiplet.testing.formats import check_quantization_format
from chiplet.worker import explain

LADDER = Path(__file__).parents[2] / "docs" / "plugins"
STEPS = (
    "op",
    "gemm",
    "experts",
    "attention",
    "communication",
    "platform",
    "quantization",
    "stored",
    "model",
)
BLOCK = re.compile(r"(?:^`([\w./-]+)`\n\n)?^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Page:
    """A page's plugin: its distribution, and the files that the page shows."""

    distribution: str
    files: dict[str, str]


def read(step: str) -> Page:
    blocks = BLOCK.findall((LADDER / f"{step}.md").read_text("utf-8"))
    nameless = [text for path, language, text in blocks if not path and language != "sh"]
    assert nameless == [], "every block of code says which file it is"
    files = {path: text for path, language, text in blocks if language != "sh"}
    return Page(tomllib.loads(files["pyproject.toml"])["project"]["name"], files)


@pytest.fixture
def page(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    yield from installed(request.param, tmp_path, monkeypatch)


def installed(step: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Page]:
    """The plugin of a page, as pip would install it."""
    page = read(step)
    project = tomllib.loads(page.files["pyproject.toml"])["project"]
    packages = {path.partition("/")[0] for path in page.files if path.count("/") == 1}
    packages.discard("tests")
    for path, text in page.files.items():
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text(text)
    for package in packages:
        (folder / package / "__init__.py").touch()
    info = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    facts = f"Name: {project['name']}\nVersion: {project['version']}\n"
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\n{facts}")
    entries = project["entry-points"]["chiplet.plugins"].items()
    lines = [f"{name} = {module}\n" for name, module in entries]
    (info / "entry_points.txt").write_text("[chiplet.plugins]\n" + "".join(lines))
    monkeypatch.syspath_prepend(str(folder))
    yield page
    for name in [each for each in sys.modules if each.partition(".")[0] in packages]:
        del sys.modules[name]


def check(page: Page, device: str, *, every: int = 1, provider: str | None = None) -> int:
    """Cases of the quick tier that passed; every `every`-th is run."""
    options = DeviceOptions(device=device, plugins=(page.distribution,))
    pairs = [
        each
        for each in pair(all_cases(quick=True), find_subjects(options, provider))
        if each[1].distribution == page.distribution
    ]
    outcomes = [run_case(*each) for each in pairs[::every]]
    assert {each.case.id: each.detail for each in outcomes if each.status is Status.FAILED} == {}
    assert all(each.detail for each in outcomes if each.status is Status.REFUSED)
    return sum(each.status is Status.PASSED for each in outcomes)


def test_every_page_is_a_step() -> None:
    assert {path.stem for path in LADDER.glob("*.md")} == set(STEPS)


@pytest.mark.parametrize("step", STEPS)
def test_a_wheel_of_the_page_holds_its_manifest(step: str) -> None:
    files = read(step).files
    manifest = next(each for each in files if each.endswith("/chiplet_plugin.toml"))
    package, _, name = manifest.partition("/")
    tables = tomllib.loads(files["pyproject.toml"])["tool"]["setuptools"]
    assert tables == {"package-data": {package: [name]}}


@pytest.mark.parametrize("page", ["op"], indirect=True)
def test_a_page_is_built_as_it_stands(page: Page, tmp_path: Path) -> None:
    pytest.importorskip("setuptools", reason="builds without a network")
    source = tmp_path / "source"
    for path, text in page.files.items():
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        (source / path).write_text(text)
    (source / "acme_norm" / "__init__.py").touch()
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, str(source), "-w", str(tmp_path / "wheels")], check=True)
    (wheel,) = (tmp_path / "wheels").iterdir()
    with zipfile.ZipFile(wheel) as built:
        names = built.namelist()
    assert {"acme_norm/plugin.py", "acme_norm/norm.py", "acme_norm/chiplet_plugin.toml"} <= {*names}


@pytest.mark.parametrize(
    ("page", "provider", "every", "at_least"),
    [
        ("op", "acme-norm", 1, 5),
        ("gemm", "acme", 2, 10),
        ("experts", "acme-experts", 2, 25),
        ("attention", "acme-attention", 3, 25),
        ("communication", "acme-files", 1, 25),
    ],
    indirect=["page"],
)
def test_a_provider_passes_the_kit(page: Page, provider: str, every: int, at_least: int) -> None:
    assert check(page, "reference", every=every, provider=provider) >= at_least


@pytest.mark.parametrize("page", ["platform"], indirect=True)
def test_the_platform_passes_the_kit(page: Page) -> None:
    assert check(page, "acme") >= 6
    options = DeviceOptions(device="acme", plugins=(page.distribution,))
    plugins = discover(options)
    assert [each.detail for each in plugins.doctor(()) if each.name == "acme"] == ["no device"]
    assert choose_device(plugins, options).label == "acme:0"


@pytest.mark.parametrize("page", ["platform"], indirect=True)
def test_the_platform_serves(page: Page, tmp_path: Path) -> None:
    make_checkpoint("llama-bias", tmp_path / "model")
    config = EngineConfig.from_options(
        model=str(tmp_path / "model"), device="acme", max_total_tokens=256, context_length=64
    )
    (answer,) = run_engine(config, [[5, 6, 7]], [SamplingParams(temperature=0, max_tokens=4)])
    assert len(answer.token_ids) == 4


@pytest.mark.parametrize("page", ["quantization"], indirect=True)
def test_the_format_quantizes(page: Page, tmp_path: Path) -> None:
    plugins = discover(DeviceOptions(plugins=(page.distribution,)))
    found = find_format(plugins.quantization_formats(), "acme-clipped")
    assert found is not None
    check_quantization_format(found)
    weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(0))
    layer = LayerFacts(name="o_proj", role="o_proj", in_features=64, out_features=16)
    weights = found.quantize(weight, found.scheme(layer))
    assert isinstance(weights, LinearWeights)
    # The largest of 64 is clipped to the second largest; all others are rounded.
    error = (dequantize(weights) - weight).abs().sort(dim=1).values
    assert bool((error[:, -2] <= weights.scales * 0.51).all())
    make_checkpoint("llama-bias", tmp_path / "model")
    config = EngineConfig.from_options(
        model=str(tmp_path / "model"),
        device="reference",
        plugins=(page.distribution,),
        quantization="acme-clipped",
    )
    requests = {each.operation: each.request for each in explain(config).choices}
    assert "int8 per channel" in requests["linear/o_proj"]
    assert "int8" not in requests["linear/lm_head"]


@pytest.mark.parametrize("page", ["stored"], indirect=True)
def test_the_quantized_checkpoint_is_served(page: Page, tmp_path: Path) -> None:
    folders = write_nibbles(tmp_path)
    options: dict[str, object] = {
        "device": "reference",
        "plugins": (page.distribution,),
        "dtype": "float32",
        "max_total_tokens": 256,
        "context_length": 64,
    }
    # Pinned, since a coding is kept where somebody serves it better than the reference.
    options["use"] = ("linear=reference",)
    configs = {
        kind: EngineConfig.from_options(model=str(folder), **options)
        for kind, folder in folders.items()
    }
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
    answers = {
        kind: run_engine(config, [[3, 14, 15, 9, 2]], [params])[0].token_ids
        for kind, config in configs.items()
    }
    assert answers["nibbles"] == answers["plain"]
    requests = {each.operation: each.request for each in explain(configs["nibbles"]).choices}
    assert "int4 groups of 16" in requests["linear/qkv_proj"]
    assert "int4" not in requests["linear/lm_head"]
    # Without the plugin the checkpoint is refused, with what could be read.
    with pytest.raises(ModelError, match=r"quantized \(acme-nibbles\); supported: awq"):
        explain(EngineConfig.from_options(model=str(folders["nibbles"]), device="reference",
                                          no_plugin=(page.distribution,)))  # fmt: skip


def write_nibbles(folder: Path) -> dict[str, Path]:
    """A tiny checkpoint in the page's format, and a plain one of the same numbers."""
    folders = {kind: folder / kind for kind in ("plain", "nibbles")}
    make_checkpoint("llama-bias", folders["plain"])
    plain = load_file(folders["plain"] / "model.safetensors")
    stored: dict[str, torch.Tensor] = {}
    for name, weight in plain.items():
        if not name.endswith("proj.weight"):
            stored[name] = weight
            continue
        groups = weight.unflatten(1, (-1, 16))
        steps = (groups.abs().amax(-1) / 7).half()
        codes = (groups / steps.float()[..., None]).round().clamp(-8, 7)
        plain[name] = (codes * steps.float()[..., None]).flatten(1)
        halves = (codes + 8).to(torch.uint8).flatten(1).unflatten(1, (-1, 2))
        stem = name.removesuffix(".weight")
        stored[f"{stem}.nibbles"] = (halves[..., 0] << 4) | halves[..., 1]
        stored[f"{stem}.steps"] = steps
    facts = json.loads((folders["plain"] / "config.json").read_text())
    facts["quantization_config"] = {"quant_method": "acme-nibbles", "group": 16}
    folders["nibbles"].mkdir()
    (folders["nibbles"] / "config.json").write_text(json.dumps(facts))
    save_file(plain, folders["plain"] / "model.safetensors")
    save_file(stored, folders["nibbles"] / "model.safetensors")
    return folders


@pytest.mark.parametrize("page", ["stored"], indirect=True)
def test_the_test_of_the_page_passes(page: Page) -> None:
    names: dict[str, Any] = {}
    exec(page.files["tests/test_nibbles.py"], names)
    names["test_what_the_numbers_are_worth"]()
    assert "check_stored_format" in names


@pytest.mark.parametrize("page", ["model"], indirect=True)
def test_the_model_refuses_what_it_does_not_serve(page: Page, tmp_path: Path) -> None:
    write_parallel_model(tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"gate": "gelu"}))
    options = {"device": "reference", "plugins": (page.distribution,)}
    with pytest.raises(ModelError, match="gate is 'gelu'; supported: silu"):
        explain(EngineConfig.from_options(model=str(tmp_path / "model"), **options))


@pytest.mark.parametrize("page", ["model"], indirect=True)
def test_the_model_computes_what_it_says(page: Page, tmp_path: Path) -> None:
    weights = write_parallel_model(tmp_path / "model")
    prompt = [3, 14, 15, 9, 2, 6]
    config = EngineConfig.from_options(
        model=str(tmp_path / "model"),
        device="reference",
        plugins=(page.distribution,),
        dtype="float32",
        max_total_tokens=256,
        page_size=4,
        chunked_prefill_size=4,
    )
    params = SamplingParams(temperature=0, max_tokens=5, ignore_eos=True)
    (answer,) = run_engine(config, [prompt], [params])
    tokens = list(prompt)
    for _ in range(5):
        tokens.append(int(parallel_logits(weights, tokens).argmax()))
    assert answer.token_ids == tokens[len(prompt) :]


VOCAB, HIDDEN, HEADS, MIDDLE, LAYERS, THETA = 32, 16, 2, 24, 2, 10000.0
BRANCH_SCALE = 0.75


def write_parallel_model(folder: Path) -> dict[str, torch.Tensor]:
    """A tiny checkpoint of the page's architecture."""
    folder.mkdir()
    random = torch.Generator().manual_seed(1)
    shapes = {"embed": (VOCAB, HIDDEN), "head": (VOCAB, HIDDEN), "norm": (HIDDEN,)}
    for layer in range(LAYERS):
        shapes |= {f"layers.{layer}.{each}": (HIDDEN, HIDDEN) for each in "qkvo"}
        shapes |= {f"layers.{layer}.{each}": (MIDDLE, HIDDEN) for each in ("gate", "up")}
        shapes |= {f"layers.{layer}.down": (HIDDEN, MIDDLE), f"layers.{layer}.norm": (HIDDEN,)}
    weights = {
        f"{name}.weight": torch.randn(shape, generator=random) * (0.4 if len(shape) > 1 else 1)
        for name, shape in shapes.items()
    }
    save_file(weights, folder / "model.safetensors")
    config = {
        "architectures": ["AcmeParallelForCausalLM"],
        "vocab_size": VOCAB,
        "width": HIDDEN,
        "depth": LAYERS,
        "heads": HEADS,
        "branch_scale": BRANCH_SCALE,
        "intermediate_size": MIDDLE,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "torch_dtype": "float32",
        "eos_token_id": 0,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return weights


def parallel_logits(weights: dict[str, torch.Tensor], tokens: list[int]) -> torch.Tensor:
    """Logits of the last token, computed in the plainest way."""

    def get(name: str) -> torch.Tensor:
        return weights[f"{name}.weight"].double()

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * get(name)

    head_dim = HIDDEN // HEADS
    frequencies = THETA ** -(torch.arange(0, head_dim, 2).double() / head_dim)
    angles = torch.arange(len(tokens)).double()[:, None] * frequencies

    def rotated(x: torch.Tensor) -> torch.Tensor:
        first, second = x.chunk(2, -1)
        cos, sin = angles.cos()[:, None], angles.sin()[:, None]
        return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)

    x = get("embed")[torch.tensor(tokens)]
    for layer in range(LAYERS):
        at = f"layers.{layer}"
        y = norm(x, f"{at}.norm")
        q, k, v = ((y @ get(f"{at}.{each}").T).unflatten(1, (HEADS, -1)) for each in "qkv")
        scores = torch.einsum("qhd,khd->hqk", rotated(q), rotated(k)) * head_dim**-0.5
        mask = torch.ones(len(tokens), len(tokens), dtype=torch.bool).triu(1)
        weight = scores.masked_fill(mask, -np.inf).softmax(-1)
        attended = torch.einsum("hqk,khd->qhd", weight, v).flatten(1) @ get(f"{at}.o").T
        gate, up = (y @ get(f"{at}.{each}").T for each in ("gate", "up"))
        fed = (torch.nn.functional.silu(gate) * up) @ get(f"{at}.down").T
        x = x + BRANCH_SCALE * (attended + fed)
    return norm(x, "norm")[-1] @ get("head").T
