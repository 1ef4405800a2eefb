"""The reference is what the code says: pages are current and hold every name."""

from __future__ import annotations

import importlib.util
import inspect
from dataclasses import fields
from pathlib import Path
from types import ModuleType

import pytest

import chiplet
from chiplet import api, errors, hooks
from chiplet.cli.command import ENGINE_GROUPS
from chiplet.cli.main import COMMANDS, load_command
from chiplet.cli.parsing import flags_of
from chiplet.config import ServerOptions, option_fields
from chiplet.sampling_params import SamplingParams
from chiplet.server.metrics import Metrics

DOCS = Path(__file__).parents[2] / "docs"


def load_generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


GENERATOR = load_generator()
PAGES: dict[str, str] = GENERATOR.pages()


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


@pytest.mark.parametrize(("module", "name"), [(api, "plugin-api.md"), (chiplet, "python-api.md")])
def test_every_public_name_is_documented(module: ModuleType, name: str) -> None:
    text = page(name)
    for public in module.__all__:
        section = text.partition(f"## {public}\n")[2].partition("\n## ")[0]
        assert section.strip(), f"{public} has no text"


def test_every_sampling_field_is_documented() -> None:
    section = page("python-api.md").partition("## SamplingParams\n")[2]
    for each in fields(SamplingParams):
        assert f"- {each.name}: " in section
