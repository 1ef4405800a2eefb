"""Selection: pins, fail-closed features, verdicts, scores; explained, counted and sealed."""

import json
import logging

import pytest
import torch

from chiplet.api import (
    AttentionRequest,
    BuildContext,
    CompilationRequest,
    Dtype,
    Feature,
    KvSpec,
    LinearRequest,
    LinearWeights,
    No,
    Op,
    OpRequest,
    Tier,
    Yes,
)
from chiplet.config import DeviceOptions
from chiplet.errors import ConfigError, PluginError
from chiplet.plugins import Selector, choose_device, discover, render

LINEAR = LinearRequest(role="qkv_proj", in_features=8, out_features=24, dtype=Dtype.FLOAT32)
ROTARY = OpRequest(op=Op.ROTARY, dtype=Dtype.FLOAT32)
EMBEDDING = OpRequest(op=Op.EMBEDDING, dtype=Dtype.FLOAT32)

PLATFORM = """
name = "{name}"
kind = "platform"
device_types = ["{name}"]
[api]
platform = ">=1.0,<2"
attention = ">=1.0,<2"
linear = ">=1.0,<2"
moe = ">=1.0,<2"
ops = ">=1.0,<2"
communication = ">=1.0,<2"
compilation = ">=1.0,<2"
"""

PROVIDERS = """
class Impl:
    def __init__(self, name): self.name = name
    def run(self, x, packed): return self.name

class Provider:
    def __init__(self, name, verdict, accepts=(), fails=False):
        self.name, self.verdict, self.accepts = name, verdict, frozenset(accepts)
        self.fails, self.asked, self.built = fails, 0, 0

    def assess(self, request):
        self.asked += 1
        if isinstance(self.verdict, Exception):
            raise self.verdict
        return self.verdict

    def build(self, request, context):
        self.built += 1
        if self.fails:
            raise MemoryError("too little")
        return Impl(self.name)

PROVIDERS = []

@hookimpl
def probe(host):
    return [DeviceProbe(device_type="{name}", index=0, name="Tiny", total_memory_bytes=1)]

@hookimpl
def platform(device):
    from chiplet.reference.platform import ReferencePlatform
    return ReferencePlatform()

@hookimpl
def attention(device): return PROVIDERS
@hookimpl
def linear(device): return PROVIDERS
@hookimpl
def ops(device): return PROVIDERS
"""


def attention_request(**changes):
    spec = KvSpec(num_kv_heads=1, head_dim=8, page_size=16, dtype=Dtype.FLOAT32)
    fields = {
        "group": "global",
        "num_heads": 2,
        "num_kv_heads": 1,
        "head_dim": 8,
        "scale": 1.0,
        "dtype": Dtype.FLOAT32,
        "kv": spec,
    }
    return AttentionRequest(**fields | changes)


@pytest.fixture
def make_selector(folder):
    """A selector on device 'tiny' whose plugin offers the given providers."""
    import importlib

    folder.add_platform("tiny", PROVIDERS, PLATFORM)
    module_name = next(iter(discover(DeviceOptions()).platforms)).module
    module = importlib.import_module(module_name)

    def make(*providers, **options):
        module.PROVIDERS[:] = [module.Provider(*args, **extra) for args, extra in providers]
        options = DeviceOptions(**options)
        plugins = discover(options)
        selector = Selector(plugins, choose_device(plugins, options), options)
        return selector, module.PROVIDERS

    return make


def offer(*args, **extra):
    return args, extra


def only_choice(selector):
    (choice,) = selector.plan().choices
    return choice


def test_the_highest_score_wins_and_the_others_are_explained(make_selector):
    selector, _ = make_selector(
        offer("fast", Yes(Tier.VENDOR, "with care")),
        offer("mild", Yes(Tier.GENERIC)),
        offer("shy", No.because("dtype", "float32 is not served", "use bfloat16")),
    )
    assert selector.linear(LINEAR).name == "fast"
    choice = only_choice(selector)
    assert (choice.operation, choice.server.provider, choice.server.score) == (
        "linear/qkv_proj",
        "fast",
        200,
    )
    assert (choice.server.distribution, choice.server.version) == ("chiplet-tiny", "1.2")
    assert (choice.server.tier, choice.server.note, choice.is_pinned) == (
        "vendor",
        "with care",
        False,
    )
    losers = {each.provider: each for each in choice.rejections}
    assert losers["mild"].reasons == ("score 100 < 200",)
    assert losers["mild"].pin == "--use linear/qkv_proj=mild"
    assert losers["shy"].reasons == ("float32 is not served (use bfloat16)",)
    assert losers["shy"].pin == ""
    assert losers["reference"].reasons == ("score 0 < 200",)


def test_a_feature_not_heard_of_is_refused_before_the_provider_is_asked(make_selector):
    selector, (old, _) = make_selector(
        offer("old", Yes(Tier.TUNED)),
        offer("new", Yes(Tier.VENDOR), accepts=[Feature.SLIDING_WINDOW]),
    )
    request = attention_request(group="window", window=4)
    assert selector.attention(request).name == "new"
    assert old.asked == 0
    reasons = {each.provider: each.reasons for each in only_choice(selector).rejections}
    assert reasons["old"] == ("feature 'sliding_window' not accepted",)


def test_a_raising_assess_and_a_malformed_verdict_are_refusals(make_selector):
    selector, _ = make_selector(
        offer("raises", ValueError("dizzy")),
        offer("mumbles", "perhaps"),
        offer("fine", Yes(Tier.GENERIC)),
    )
    assert selector.linear(LINEAR).name == "fine"
    reasons = {each.provider: each.reasons[0] for each in only_choice(selector).rejections}
    assert reasons["raises"] == "assess raised ValueError: dizzy"
    assert "'perhaps'" in reasons["mumbles"]


def test_the_next_candidate_is_taken_when_a_build_fails(make_selector):
    selector, _ = make_selector(
        offer("fails", Yes(Tier.TUNED), fails=True), offer("works", Yes(Tier.VENDOR))
    )
    assert selector.linear(LINEAR).name == "works"
    (failed,) = [each for each in only_choice(selector).rejections if each.provider == "fails"]
    assert failed.reasons == ("build raised MemoryError: too little",)
    assert failed.pin == ""


def test_a_provider_may_lean_on_the_reference(make_selector):
    selector, (provider,) = make_selector(offer("leaning", Yes(Tier.GENERIC)))
    provider.build = lambda request, context: context.reference(request)
    impl = selector.linear(LINEAR)
    weight, x = torch.randn(24, 8), torch.randn(3, 8)
    packed = impl.pack(LinearWeights(scheme=None, weight=weight))
    torch.testing.assert_close(impl.run(x, packed), x @ weight.T)
    assert only_choice(selector).server.provider == "leaning"


def test_a_context_made_by_hand_says_that_it_has_no_reference():
    with pytest.raises(LookupError, match="pass reference="):
        BuildContext(platform=None).reference(LINEAR)


def test_a_request_is_answered_once_and_its_uses_are_counted(make_selector):
    selector, (fast,) = make_selector(offer("fast", Yes(Tier.VENDOR)))
    impls = {id(selector.linear(LINEAR)) for _ in range(32)}
    assert len(impls) == 1
    assert fast.built == 1
    assert only_choice(selector).num_uses == 32


@pytest.mark.parametrize("pin", ["linear=mild", "linear/qkv_proj=mild"])
def test_pins(make_selector, pin):
    offers = [offer("fast", Yes(Tier.VENDOR)), offer("mild", Yes(Tier.GENERIC))]
    selector, _ = make_selector(*offers, use=(pin,))
    assert selector.linear(LINEAR).name == "mild"
    choice = only_choice(selector)
    assert choice.is_pinned
    assert "score 200, another is pinned" in choice.rejections[1].reasons
    selector.seal()


def test_the_narrower_pin_wins(make_selector):
    offers = [offer("fast", Yes(Tier.VENDOR)), offer("mild", Yes(Tier.GENERIC))]
    selector, _ = make_selector(*offers, use=("linear=reference", "linear/qkv_proj=mild"))
    assert selector.linear(LINEAR).name == "mild"


def test_attention_backend_is_a_pin(make_selector):
    offers = [offer("fast", Yes(Tier.VENDOR)), offer("mild", Yes(Tier.GENERIC))]
    selector, _ = make_selector(*offers, attention_backend="mild")
    assert selector.attention(attention_request()).name == "mild"


@pytest.mark.parametrize(
    ("verdict", "fails", "reason"),
    [
        (No.because("k", "8 is too small"), False, "8 is too small"),
        (Yes(Tier.VENDOR), True, "too little"),
    ],
)
def test_a_pin_that_cannot_be_kept_is_an_error(make_selector, verdict, fails, reason):
    selector, _ = make_selector(offer("picky", verdict, fails=fails), use=("linear=picky",))
    with pytest.raises(PluginError, match=f"Pin 'linear/qkv_proj=picky'.*{reason}.*reference"):
        selector.linear(LINEAR)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use": ("linear=nobody",)}, "no linear provider 'nobody'.*reference"),
        ({"use": ("linear",)}, "names no operation and provider"),
        ({"use": ("linear/=reference",)}, "names no operation and provider"),
        ({"use": ("gadget=reference",)}, "names no operation and provider"),
        ({"use": ("ops/hum=reference",)}, "no operation 'hum'"),
        ({"use": ("linear=reference", "linear=fast")}, "pinned to both"),
        ({"use": ("attention=fast",), "attention_backend": "reference"}, "pinned to both"),
    ],
)
def test_wrong_pins(make_selector, options, message):
    with pytest.raises(ConfigError, match=message):
        make_selector(offer("fast", Yes(Tier.VENDOR)), **options)


def test_a_pin_that_applies_to_nothing(make_selector):
    selector, _ = make_selector(offer("fast", Yes(Tier.VENDOR)), use=("linear/nose=fast",))
    selector.linear(LINEAR)
    with pytest.raises(ConfigError, match=r"'linear/nose=fast' applies to nothing.*qkv_proj"):
        selector.seal()


def test_sealed(make_selector):
    selector, _ = make_selector(offer("fast", Yes(Tier.VENDOR)))
    impl = selector.linear(LINEAR)
    selector.seal()
    assert selector.linear(LINEAR) is impl
    with pytest.raises(RuntimeError, match="sealed"):
        selector.op(ROTARY)


def test_a_reference_kernel_warns_once_for_a_hot_operation(make_selector, caplog):
    selector, _ = make_selector()
    with caplog.at_level(logging.WARNING):
        for dtype in Dtype:
            selector.op(OpRequest(op=Op.ROTARY, dtype=dtype))
            selector.op(OpRequest(op=Op.EMBEDDING, dtype=dtype))
    assert [record.getMessage().split()[0] for record in caplog.records] == ["ops/rotary"]


def test_strict_refuses_a_reference_kernel_unless_it_is_pinned(make_selector):
    selector, _ = make_selector(strict=True)
    selector.op(EMBEDDING)
    with pytest.raises(ConfigError, match=r"ops/rotary.*--strict"):
        selector.op(ROTARY)
    selector, _ = make_selector(strict=True, use=("ops/rotary=reference",))
    selector.op(ROTARY)


def test_two_plugins_with_one_name(make_selector):
    with pytest.raises(ConfigError, match="both offer attention provider 'reference'"):
        make_selector(offer("reference", Yes(Tier.VENDOR)))


def test_a_raising_provider_hook_is_left_out(folder, caplog):
    folder.add("ill", "@hookimpl\ndef linear(device): raise ValueError('ouch')")
    plugins = discover(DeviceOptions())
    chosen = choose_device(plugins, DeviceOptions())
    selector = Selector(plugins, chosen, DeviceOptions())
    selector.linear(LINEAR)
    assert "ouch" in caplog.text
    with pytest.raises(PluginError, match="ouch"):
        Selector(discover(DeviceOptions(plugins=("Chiplet.Ill",))), chosen, DeviceOptions())


def test_text_and_json(make_selector):
    selector, _ = make_selector(offer("fast", Yes(Tier.VENDOR)))
    selector.linear(LINEAR)
    selector.linear(LINEAR)
    head, line, rejected = (" ".join(each.split()) for each in render(selector.plan()).splitlines())
    assert head == f"device tiny:0 (Tiny), platform chiplet-tiny 1.2, plan {selector.plan().hash}"
    assert line == "linear/qkv_proj x2 8 -> 24, float32 fast (chiplet-tiny 1.2) vendor 200"
    assert rejected == "rejected reference: score 0 < 200 pin: --use linear/qkv_proj=reference"
    values = json.loads(json.dumps(selector.plan().to_json()))
    assert values["choices"][0]["tier"] == "vendor"
    assert values["choices"][0]["rejections"][0]["provider"] == "reference"


COMPILERS = """
class Compiler:
    def __init__(self, name, score, accepts=()):
        self.name, self.score, self.accepts = name, score, frozenset(accepts)

    def assess(self, request):
        return Yes(self.score)

    def build(self, request, context):
        return self.name

@hookimpl
def compilation(device):
    return [Compiler("plain", 200), Compiler("spanning", 100, {Feature.ONE_PROGRAM})]
"""


def test_compilers_are_providers_too(folder):
    folder.add("compilers", COMPILERS)
    plugins = discover(DeviceOptions())
    chosen = choose_device(plugins, DeviceOptions())

    def compiler(num_ranks, **options):
        selector = Selector(plugins, chosen, DeviceOptions(**options))
        request = CompilationRequest(num_ranks=num_ranks)
        return selector.compiler(request), selector.plan().choices[0]

    name, choice = compiler(1)
    assert name == "plain"
    assert choice.operation == "compilation/step"
    assert choice.rejections[0].pin == "--use compilation/step=spanning"
    assert compiler(1, use=("compilation/step=spanning",))[0] == "spanning"
    assert compiler(4)[0] == "spanning"
    with pytest.raises(PluginError, match="feature 'one_program' not accepted"):
        compiler(4, use=("compilation/step=plain",))
