"""The reference is what the code says: pages are current and hold every name."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Sequence
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import chiplet
from chiplet import api, errors, hooks, modeling
from chiplet.cli.command import ENGINE_GROUPS
from chiplet.cli.main import COMMANDS, load_command
from chiplet.cli.parsing import flags_of
from chiplet.config import ServerOptions, option_fields
from chiplet.sampling_params import SamplingParams
from chiplet.server.metrics import Metrics

DOCS = Path(__file__).parents[2] / "docs"


def load(name: str) -> Any:
    """A module of docs/, which its neighbours find as a script's do."""
    sys.path.insert(0, str(DOCS))
    try:
        return import_module(name)
    finally:
        sys.path.remove(str(DOCS))


PAGES: dict[str, str] = load("generate").pages()


def page(name: str) -> str:
    return (DOCS / "reference" / name).read_text("utf-8")


@pytest.mark.parametrize("name", PAGES)
def test_page_is_current(name: str) -> None:
    assert page(name) == PAGES[name], "run `make docs`"


def test_no_page_is_left_over() -> None:
    assert {path.name for path in (DOCS / "reference").iterdir()} == set(PAGES)


def test_every_hook_stands_with_its_true_signature() -> None:
    found = 0
    for name, hook in vars(hooks).items():
        if inspect.isfunction(hook) and hook.__module__ == hooks.__name__:
            parameters = ", ".join(
                f"{each.name}: {each.annotation}"
                for each in inspect.signature(hook).parameters.values()
            )
            signature = f"def {name}({parameters}) -> {hook.__annotations__['return']}\n"
            assert signature in page("hooks.md")
            assert signature in (DOCS / "plugins.md").read_text("utf-8")
            found += 1
    assert found >= 8


@pytest.mark.parametrize("options", [*ENGINE_GROUPS.values(), ServerOptions])
def test_every_setting_is_documented(options: type) -> None:
    text = page("configuration.md")
    for name, _ in option_fields(options):
        assert f"| `{name}` |" in text
        assert f"`--{name.replace('_', '-')}" in text


@pytest.mark.parametrize("name", COMMANDS)
def test_every_flag_is_documented(name: str) -> None:
    text = page("cli.md") + page("configuration.md")
    assert f"## chiplet {name}\n" in text
    assert [flag for flag in flags_of(load_command(name)) if flag not in text] == []


def test_every_error_is_documented() -> None:
    for name, value in vars(errors).items():
        if inspect.isclass(value) and issubclass(value, errors.ChipletError):
            assert f"## {name}\n" in page("errors.md")
            assert name in (errors.__doc__ or ""), "the tree in errors.py lacks it"


def test_every_metric_is_documented() -> None:
    lines = Metrics().render().decode().splitlines()
    names = [line.split()[2] for line in lines if line.startswith("# TYPE")]
    assert names
    for name in names:
        assert name.endswith("_created") or f"| `{name}` |" in page("metrics.md")


CONTRACT_PAGES = ("plugin-api.md", *(f"interface-{each}.md" for each in api.INTERFACE_VERSIONS))


@pytest.mark.parametrize(
    ("module", "names"),
    [(api, CONTRACT_PAGES), (modeling, ("interface-models.md",)), (chiplet, ("python-api.md",))],
)
def test_every_public_name_is_documented(module: ModuleType, names: Sequence[str]) -> None:
    text = "".join(map(page, names))
    for public in module.__all__:
        assert text.count(f"\n## {public}\n") == 1, f"{public} stands on no page, or on two"
        section = text.partition(f"## {public}\n")[2].partition("\n## ")[0]
        assert section.strip(), f"{public} has no text"


def test_every_sampling_field_is_documented() -> None:
    section = page("python-api.md").partition("## SamplingParams\n")[2]
    for each in fields(SamplingParams):
        assert f"- {each.name}: " in section


@pytest.mark.parametrize("name", api.INTERFACE_VERSIONS)
def test_an_interface_has_a_page(name: str) -> None:
    text = page(f"interface-{name}.md")
    major, minor = api.INTERFACE_VERSIONS[name]
    assert f"# Interface {name} {major}.{minor}\n" in text
    assert f'`{name} = ">={major}.{minor},<{major + 1}"`' in text
    assert "```python\ndef " in text


REQUESTS = (
    api.AttentionRequest,
    api.LinearRequest,
    api.MoeRequest,
    api.OpRequest,
    api.CommunicationRequest,
    api.KvSpec,
    api.WeightScheme,
    api.ForwardBatch,
    api.StepInputs,
    api.DeviceState,
    api.ModelEntry,
    api.DeviceProbe,
    api.Topology,
)


@pytest.mark.parametrize("request_type", REQUESTS)
def test_every_field_of_a_request_is_explained(request_type: type) -> None:
    names = getattr(request_type, "_fields", None) or [each.name for each in fields(request_type)]
    told = (request_type.__doc__ or "").partition("Attributes:\n")[2]
    assert [each for each in names if not re.search(rf"\b{each}\b", told)] == []


def test_every_feature_is_explained() -> None:
    told = dict(load("contract").feature_docs())
    assert set(told) == set(map(str, api.Feature))
    starts = ("attention", "linear", "communication", "moe", "ops")
    assert all(each.lower().startswith(starts) for each in told.values())


METHODS_THAT_TAKE_TENSORS = (
    (api.AttentionImpl, "run"),
    (api.LinearImpl, "run"),
    (api.MoeImpl, "run"),
    (api.MoeImpl, "pack"),
    (api.KvLayout, "to_canonical"),
    (api.QuantizationFormat, "quantize"),
    (api.Communicator, "all_gather"),
    (api.Communicator, "reduce_scatter"),
    (api.Communicator, "all_to_all"),
)


@pytest.mark.parametrize(("owner", "name"), METHODS_THAT_TAKE_TENSORS)
def test_shapes_are_given(owner: type, name: str) -> None:
    assert "Shapes: " in (getattr(owner, name).__doc__ or "")
