"""Layers between two attentions in one call: who is asked, who serves, and what comes out."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from chiplet.api import BuildContext, Dtype, LinearRequest, Product, StretchRequest
from chiplet.config import EngineConfig
from chiplet.layers.stretches import run_in_parts, serving
from chiplet.models.stretched import stretched
from chiplet.plugins import choose_device, discover
from chiplet.plugins.dispatch import SizedLinear
from chiplet.plugins.stretches import offered
from chiplet.reference.linear import PlainLinear, ReferenceLinear
from chiplet.reference.platform import ReferencePlatform
from chiplet.sampling_params import SamplingParams
from chiplet.testing.conformance.engines import Answer, serve
from chiplet.testing.conformance.tiny_models import VOCAB_SIZE, write_checkpoint
from chiplet.worker import start

NUM_LAYERS = 2
PROMPTS = ([5, 9, 3, 7, 11, 2, 8], [4])
GREEDY = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True, logprobs=VOCAB_SIZE)


@dataclass
class InParts:
    """A stretch that runs its layers one after another, and counts its calls."""

    request: StretchRequest
    factor: float = 1.0
    num_calls: int = 0
    max_rows: int = 1

    def run(self, attended: Any, residual: Any) -> Any:
        assert len(attended) == len(residual) <= self.max_rows
        self.num_calls += 1
        total, following = run_in_parts(self.request, attended, residual)
        return total * self.factor, following


@dataclass
class Offers:
    """What was offered, and how wrong it is."""

    made: list[InParts] = field(default_factory=list[InParts])
    factor: float = 1.0
    error: Exception | None = None

    @property
    def num_calls(self) -> int:
        return sum(each.num_calls for each in self.made)


@pytest.fixture
def offers(monkeypatch: pytest.MonkeyPatch) -> Offers:
    """Lets the reference offer stretches."""
    made = Offers()

    def stretch(provider: ReferenceLinear, request: StretchRequest, context: Any) -> InParts:
        if made.error is not None:
            raise made.error
        made.made.append(InParts(request, made.factor))
        return made.made[-1]

    monkeypatch.setattr(ReferenceLinear, "stretch", stretch, raising=False)
    return made


def answers(folder: Any, kind: str, **options: Any) -> list[Answer]:
    """Each prompt alone, so that steps have one token after the prompt."""
    if not (folder / "config.json").exists():
        write_checkpoint(kind, folder)
    settings = {"self_check": False, "eager": True, "device": "reference"} | options
    config = EngineConfig.from_options(
        model=str(folder), dtype="float32", context_length=64, **settings
    )
    plugins = discover(config.device)
    engine, facts = start(config, Chosen(choose_device(plugins, config.device), plugins))
    try:
        return serve(engine, facts.limits, [[prompt] for prompt in PROMPTS], GREEDY)[0]
    finally:
        engine.close()


@dataclass
class Chosen:
    """A device that was chosen before; see `chiplet.plugins.device.PendingDevice`."""

    chosen: Any
    plugin_set: Any

    def finish(self) -> Any:
        return self.chosen


@pytest.mark.parametrize("kind", ["llama", "qwen3", "mistral with a window", "llama with biases"])
def test_steps_of_one_token_run_as_stretches(kind, tmp_path, offers):
    with_stretches = answers(tmp_path, kind)
    # The first token of the answer is the prompt's; a prompt of one token is a step of one too.
    steps = GREEDY.max_tokens - 1 + GREEDY.max_tokens
    assert offers.num_calls == NUM_LAYERS * steps
    without = answers(tmp_path, kind, deny=("linear/stretch=reference",))
    assert offers.num_calls == NUM_LAYERS * steps
    for mine, theirs in zip(with_stretches, without, strict=True):
        assert mine.token_ids == theirs.token_ids
        difference = mine.logprobs(VOCAB_SIZE) - theirs.logprobs(VOCAB_SIZE)
        assert np.abs(difference).max() < 1e-4


@pytest.mark.parametrize("kind", ["mixtral", "deepseek"])
def test_models_whose_layers_do_something_else_are_not_asked_for(kind, tmp_path, offers):
    answers(tmp_path, kind)
    assert offers.made == []


def test_a_wrong_stretch_is_left_out(tmp_path, offers):
    offers.factor = 1.1
    answers(tmp_path, "llama", self_check=True)
    (only,) = offers.made
    assert only.num_calls == 1  # that of the comparison


def test_a_right_stretch_passes_the_comparison(tmp_path, offers):
    answers(tmp_path, "llama", self_check=True)
    assert len(offers.made) == NUM_LAYERS
    assert offers.num_calls > NUM_LAYERS


def test_a_stretch_that_cannot_be_made_is_left_out(tmp_path, offers, caplog):
    offers.error = RuntimeError("no room")
    assert [len(each.token_ids) for each in answers(tmp_path, "llama")] == [6, 6]
    assert "linear/stretch" in caplog.text
    assert "no room" in caplog.text


@pytest.mark.parametrize("pin", ["linear=reference", "ops/silu_mul=reference"])
def test_a_pin_to_the_same_provider_stands_not_against_it(pin, tmp_path, offers):
    answers(tmp_path, "llama", use=(pin,))
    assert offers.num_calls > 0


@pytest.mark.parametrize("pinned", ["linear/o_proj", "linear/qkv_proj", "ops/add_rms_norm"])
def test_a_pin_to_another_provider_stands_against_it(pinned, tmp_path, offers):
    answers(tmp_path, "llama")
    request, before = offers.made[0].request, len(offers.made)
    candidates: Any = [SimpleNamespace(name="reference", provider=ReferenceLinear())]

    def found(pins: dict[str, str]) -> Any:
        return offered(
            request,
            candidates=candidates,
            context=BuildContext(ReferencePlatform()),
            pin_of=pins.get,
            denial_of=lambda operation, name: None,
            judge=None,
        )

    assert found({pinned: "somebody"}) is None
    assert len(offers.made) == before
    assert found({pinned: "reference", "linear/lm_head": "somebody"}) is offers.made[-1]


def test_the_last_stretch_has_nothing_after_it(tmp_path, offers):
    answers(tmp_path, "llama")
    first, last = (each.request for each in offers.made)
    assert first.following is not None
    assert last.following is None
    assert last.following_norm is None
    roles = [each.request.role for each in first.products]
    assert roles == ["o_proj", "gate_up_proj", "down_proj", "qkv_proj"]


def test_what_serves_a_size_is_found_in_a_table():
    small, large = PlainLinear(), PlainLinear()
    table = SizedLinear([(4, small), (None, large)])
    assert serving(table, ("a", "b"), 4) == (small, "a")
    assert serving(table, ("a", "b"), 5) == (large, "b")
    assert serving(small, "a", 5) == (small, "a")


@dataclass
class LayerOfSizes:
    """A layer whose products are served by `small` for up to so many tokens, and by `large`."""

    most: int
    attention: Any = None
    small: Any = field(default_factory=PlainLinear)
    large: Any = field(default_factory=PlainLinear)

    def __post_init__(self) -> None:
        self.attention = SimpleNamespace(attended=None)

    def begin(self, x: Any) -> Any:
        return x

    def stretch_to(self, following: Any, num_tokens: int) -> StretchRequest:
        impl = self.small if num_tokens <= self.most else self.large
        product = Product(
            LinearRequest(role="x", in_features=1, out_features=1, dtype=Dtype.FLOAT32), impl, None
        )
        return StretchRequest(
            out=product,
            gate_up=product,
            down=product,
            following=None,
            norm=torch.ones(1),
            following_norm=None,
            eps=1e-5,
        )


@pytest.mark.parametrize(("sizes", "max_rows"), [((64, 99), 64), ((64, 63), 1)])
def test_many_tokens_are_taken_only_where_the_same_implementations_serve_them(sizes, max_rows):
    bindings: Any = SimpleNamespace(stretch=lambda request: SimpleNamespace(max_rows=64, run=None))
    found = stretched([LayerOfSizes(each) for each in sizes], bindings)
    assert found is not None
    assert found.max_rows == max_rows
