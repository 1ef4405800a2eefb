"""The failure table at start: whatever a plugin does, the model is served or the start says why."""

from __future__ import annotations

from pathlib import Path

import pytest

from chiplet.cli.main import main
from chiplet.config import EngineConfig
from chiplet.sampling_params import SamplingParams
from chiplet.worker import EngineFacts, explain, start
from tests.models.tiny import make_checkpoint, run_engine
from tests.unit.plugins.conftest import PLATFORM_HOOKS, PROVIDER_MANIFEST, PluginFolder, folder

__all__ = ["folder"]

MANIFEST = PROVIDER_MANIFEST
GREEDY = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)

PROVIDER = """
class Provider:
    name = "broken"
    accepts = frozenset(Feature)
    def assess(self, request):
        {assess}
        return Yes(Tier.TUNED)
    def build(self, request, context):
        {build}
        return context.reference(request)

@hookimpl
def {family}(device):
    return [Provider()]
"""

WRONG_ATTENTION = """
        inner = context.reference(request)
        class Wrong:
            layouts, plan = inner.layouts, inner.plan
            def run(self, *arguments): return inner.run(*arguments) * 1.5
        return Wrong()
"""

WRONG_LINEAR = """
        inner = context.reference(request)
        class Wrong:
            pack = inner.pack
            def run(self, x, packed): return inner.run(x, packed) + 1
        return Wrong()
"""

WRONG_MOE = """
        inner = context.reference(request)
        class Wrong:
            pack = inner.pack
            def run(self, x, router_logits, packed):
                return inner.run(x, router_logits.flip(1), packed)
        return Wrong()
"""

WRONG_OP = """
        inner = context.reference(request)
        def run(*arguments):
            found = inner(*arguments)
            return tuple(each + 1 for each in found) if isinstance(found, tuple) else found + 1
        return run
"""


def provider(family: str, assess: str = "pass", build: str = "pass") -> str:
    text = PROVIDER.replace("{assess}", assess).replace("{build}", build.strip())
    return text.replace("{family}", family)


SET_ASIDE = {
    "raises at import": ("raise OSError('no libacme')", "raised OSError: no libacme"),
    "half-registers": (
        provider("attention") + "\n@hookimpl\ndef linear(gadget): return []\n",
        "registration failed",
    ),
    "hook typo": ("@hookimpl\ndef atention(device): return []", "unknown hook 'atention'"),
    "wrong signature": ("@hookimpl\ndef ops(gadget): return []", "gadget"),
}
"""What is never loaded, and the reason in the banner."""

PASSED_OVER = {
    "assess raises": ("attention/", provider("attention", "1 / 0"), "assess raised ZeroDivision"),
    "assess answers nonsense": ("linear/", provider("linear", "return 5"), "not a verdict"),
    "build raises": ("linear/", provider("linear", build="1 / 0"), "build raised ZeroDivision"),
    "wrong attention": ("attention/", provider("attention", build=WRONG_ATTENTION), "differs from"),
    "wrong linear": ("linear/", provider("linear", build=WRONG_LINEAR), "differs from"),
    "wrong mixture of experts": ("moe/", provider("moe", build=WRONG_MOE), "differs from"),
    "wrong operation": ("ops/rms_norm", provider("ops", build=WRONG_OP), "self-check:"),
}
"""Who is loaded and does not serve: the operation, and the reason in the plan."""


def config(checkpoint: Path, **options: object) -> EngineConfig:
    return EngineConfig.from_options(
        model=str(checkpoint),
        dtype="float32",
        max_total_tokens=256,
        context_length=64,
        **({"device": "reference"} | options),
    )


def answer(checkpoint: Path, **options: object) -> list[int]:
    (collected,) = run_engine(config(checkpoint, **options), [[5, 6, 7]], [GREEDY])
    return collected.token_ids


@pytest.fixture(scope="session")
def of_experts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("experts")
    make_checkpoint("qwen3-moe", made)
    return made


@pytest.fixture(scope="session")
def right_answer(checkpoint: Path) -> list[int]:
    (collected,) = run_engine(config(checkpoint, use=("linear=reference",)), [[5, 6, 7]], [GREEDY])
    return collected.token_ids


@pytest.mark.parametrize("kind", SET_ASIDE)
def test_a_plugin_that_does_not_load_is_named_and_the_model_served(
    kind: str, folder: PluginFolder, checkpoint: Path, right_answer: list[int]
) -> None:
    source, reason = SET_ASIDE[kind]
    folder.add("broken", source, MANIFEST)
    facts: EngineFacts = start(config(checkpoint))[1]
    (line,) = [each for each in facts.banner if "chiplet-broken" in each]
    assert reason in line
    providers = {each["provider"] for each in facts.plan["choices"]}
    assert providers == {"reference"}, "nothing of it is left behind"
    assert answer(checkpoint) == right_answer


@pytest.mark.parametrize("kind", PASSED_OVER)
def test_a_provider_that_fails_is_passed_over_and_the_model_served(
    kind: str, folder: PluginFolder, checkpoint: Path, of_experts: Path
) -> None:
    operation, source, reason = PASSED_OVER[kind]
    model = of_experts if operation == "moe/" else checkpoint
    folder.add("broken", source, MANIFEST)
    choices = [
        each for each in explain(config(model)).choices if each.operation.startswith(operation)
    ]
    assert choices
    for choice in choices:
        assert choice.server.provider == "reference"
        (rejection,) = choice.rejections
        assert reason in rejection.reasons[0]
    (line,) = [each for each in start(config(model))[1].banner if "broken" in each]
    assert line.startswith("Provider broken is not used for ")
    assert operation in line
    assert reason in line
    assert answer(model) == answer(model, no_plugin=("chiplet-broken",))


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("import os; os.kill(os.getpid(), 11)", "signal 11"),
        ("raise RuntimeError('no driver')", "no driver"),
    ],
)
def test_a_probe_that_fails_counts_as_no_device(
    fault: str,
    reason: str,
    folder: PluginFolder,
    checkpoint: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    hooks = PLATFORM_HOOKS.replace("    return [", f"    {fault}\n    return [", 1)
    folder.add_platform("broken", hooks)
    folder.add_platform("spare")
    # The other device is the only one there is: a warning says what failed.
    facts = start(config(checkpoint, device=None))[1]
    assert facts.device.startswith("spare:0")
    assert reason in "\n".join(facts.banner)
    # Asked for by name, it ends the start.
    assert main(["explain", str(checkpoint), "--device", "broken"]) != 0
    assert reason in capsys.readouterr().err


def test_a_broken_plugin_asked_for_by_name_ends_the_start(
    folder: PluginFolder, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = folder.add("broken", "raise OSError('no libacme')", MANIFEST)
    command = ["explain", str(checkpoint), "--device", "reference", "--plugins", name]
    assert main(command) != 0
    printed = capsys.readouterr().err
    assert "chiplet-broken" in printed
    assert "no libacme" in printed


def test_another_device_is_never_taken_silently(
    folder: PluginFolder, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder.add_platform("broken", "raise OSError('no libacme')")
    folder.add_platform("spare")
    assert main(["explain", str(checkpoint)]) != 0
    printed = capsys.readouterr().err
    assert "no other device is taken in its place unless it is named" in printed
    assert "--device spare" in printed
    assert main(["explain", str(checkpoint), "--device", "spare"]) == 0
