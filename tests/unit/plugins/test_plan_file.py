"""Denials, tables by size, the judge, the plan's hash and its file."""

import json

import pytest

from chiplet.api import LinearRequest, Tier, Yes
from chiplet.config import DeviceOptions
from chiplet.errors import ConfigError, PluginError
from chiplet.plugins import Selector, choose_device, discover, render
from chiplet.plugins.dispatch import SizedLinear, sized_op
from chiplet.plugins.plan_lock import save_plan
from chiplet.plugins.request_key import request_key
from tests.unit.plugins.test_selection import (
    LINEAR,
    ROTARY,
    attention_request,
    make_selector,
    offer,
    only_choice,
)

__all__ = ["make_selector"]

FAST, MILD = offer("fast", Yes(Tier.VENDOR)), offer("mild", Yes(Tier.GENERIC))


class Judged:
    """Finds fault with providers by name."""

    def __init__(self, *faulty):
        self.faulty, self.compared = faulty, []

    def checkable(self, request):
        return request

    def compare(self, request, impl, reference, numerics):
        self.compared.append((impl.name, type(reference).__name__))
        return "differs" if impl.name in self.faulty else ""


def judged_selector(judge, **options):
    options = DeviceOptions(**options)
    plugins = discover(options)
    return Selector(plugins, choose_device(plugins, options), options, judge=judge)


def test_wrong_numbers_hand_over_to_the_next(make_selector):
    make_selector(FAST, MILD)
    judge = Judged("fast")
    selector = judged_selector(judge)
    assert selector.linear(LINEAR).name == "mild"
    assert judge.compared == [("fast", "PlainLinear"), ("mild", "PlainLinear")]
    choice = only_choice(selector)
    assert choice.check == "equal"
    (failed,) = [each for each in choice.rejections if each.provider == "fast"]
    assert failed.reasons == ("self-check: differs",)


def test_everybody_wrong_ends_at_the_reference_and_a_wrong_pin_is_an_error(make_selector):
    make_selector(FAST, MILD)
    selector = judged_selector(Judged("fast", "mild"))
    selector.linear(LINEAR)
    assert only_choice(selector).server.provider == "reference"
    assert only_choice(selector).check == "is the reference"
    with pytest.raises(PluginError, match=r"Pin 'linear/qkv_proj=fast'.*self-check: differs"):
        judged_selector(Judged("fast"), use=("linear=fast",)).linear(LINEAR)


@pytest.mark.parametrize("denial", ["linear=fast", "linear/qkv_proj=fast"])
def test_denied(make_selector, denial):
    selector, (fast, _) = make_selector(FAST, MILD, deny=(denial,))
    assert selector.linear(LINEAR).name == "mild"
    assert fast.asked == 0
    assert only_choice(selector).rejections[1].reasons == (f"denied by --deny {denial}",)
    assert selector.attention(attention_request()).name == "fast"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"deny": ("linear=nobody",)}, "no linear provider 'nobody'"),
        ({"deny": ("linear",)}, "'--deny linear' names no operation"),
        ({"deny": ("linear=fast",), "use": ("linear=fast",)}, "both pinned and denied"),
    ],
)
def test_wrong_denials(make_selector, options, message):
    with pytest.raises(ConfigError, match=message):
        make_selector(FAST, **options)


def test_demoted(make_selector):
    selector, _ = make_selector(FAST, MILD)
    selector.linear(LINEAR)
    selector.seal()
    (failed,) = selector.bound
    selector.demote(failed, "raised in a step")
    assert selector.linear(LINEAR).name == "mild"
    assert only_choice(selector).num_uses == 1
    assert only_choice(selector).rejections[1].reasons == ("raised in a step",)


def test_what_is_pinned_is_not_demoted(make_selector):
    selector, _ = make_selector(FAST, MILD, use=("linear=fast",))
    selector.linear(LINEAR)
    (failed,) = selector.bound
    with pytest.raises(PluginError, match="pinned to 'fast', which failed: ouch"):
        selector.demote(failed, "ouch")


def test_a_table_by_size(make_selector):
    small = offer("small", Yes(Tier.TUNED, max_tokens=8))
    selector, _ = make_selector(small, FAST)
    impl = selector.linear(LINEAR)
    assert isinstance(impl, SizedLinear)
    servers = only_choice(selector).servers
    assert [(each.provider, each.max_tokens) for each in servers] == [("small", 8), ("fast", None)]
    text = " ".join(render(selector.plan()).split())
    assert "1 to 8 tokens: small (chiplet-tiny 1.2), tuned 300" in text
    assert "9 and more tokens: fast (chiplet-tiny 1.2), vendor 200" in text


def test_a_limit_that_does_not_win_makes_no_table(make_selector):
    selector, _ = make_selector(offer("small", Yes(Tier.GENERIC, max_tokens=8)), FAST)
    assert selector.linear(LINEAR).name == "fast"
    assert len(only_choice(selector).servers) == 1


def test_a_limit_on_attention_is_refused(make_selector):
    selector, _ = make_selector(offer("small", Yes(Tier.TUNED, max_tokens=8)), FAST)
    assert selector.attention(attention_request()).name == "fast"


class Rows:
    def __init__(self, count):
        self.shape = (count, 4)


class NamedImpl:
    def __init__(self, name):
        self.name = name

    def pack(self, *weights):
        return (self.name, *weights)

    def run(self, x, packed):
        return packed


def test_calls_go_by_their_size():
    linear = SizedLinear([(1, NamedImpl("a")), (8, NamedImpl("b")), (None, NamedImpl("c"))])
    packed = linear.pack("w", None)
    for count, name in ((0, "a"), (1, "a"), (2, "b"), (8, "b"), (9, "c"), (4096, "c")):
        assert linear.run(Rows(count), packed) == (name, "w", None)
    op = sized_op([(2, lambda x, y: ("few", y)), (None, lambda x, y: ("many", y))])
    assert op(Rows(2), 5) == ("few", 5)
    assert op(Rows(3), 5) == ("many", 5)


class NamedGate(NamedImpl):
    def run_silu_mul(self, x, packed):
        return ("gated", packed)


def test_gated_calls_go_by_their_size_too():
    linear = SizedLinear([(1, NamedGate("a")), (8, NamedImpl("b")), (None, NamedGate("c"))])
    packed = linear.pack("w")
    run = linear.gated_run(lambda product: ("operation", product))
    assert run is not None
    for count, kind, name in ((1, "gated", "a"), (8, "operation", "b"), (9, "gated", "c")):
        assert run(Rows(count), packed) == (kind, (name, "w"))
    without = SizedLinear([(1, NamedImpl("a")), (None, NamedImpl("b"))])
    assert without.gated_run(lambda product: product) is None


def test_the_hash_is_of_who_serves_what(make_selector):
    def plan_of(*offers, **options):
        selector, _ = make_selector(*offers, **options)
        selector.linear(LINEAR)
        return selector.plan()

    first = plan_of(FAST, MILD)
    assert first.hash == plan_of(MILD, FAST).hash, "the order of discovery does not count"
    assert first.hash == plan_of(offer("fast", Yes(Tier.TUNED, "note")), MILD).hash
    assert first.hash != plan_of(FAST, MILD, use=("linear=mild",)).hash
    assert first.to_json()["hash"] == first.hash
    wider = LinearRequest(role="qkv_proj", in_features=8, out_features=25, dtype=LINEAR.dtype)
    assert request_key(LINEAR) != request_key(wider)


@pytest.fixture
def lock(make_selector, tmp_path):
    """A file in which 'mild' serves."""
    selector, _ = make_selector(FAST, MILD, use=("linear=mild",))
    selector.linear(LINEAR)
    path = tmp_path / "plan.lock"
    save_plan(selector.plan(), path)
    return path


def test_a_saved_plan_is_repeated(make_selector, lock):
    selector, _ = make_selector(FAST, MILD, plan_lock=str(lock))
    assert selector.linear(LINEAR).name == "mild"
    selector.check_plan_file()
    selector.seal()
    assert only_choice(selector).basis == "plan file"
    assert selector.plan().hash == json.loads(lock.read_text())["hash"]


@pytest.mark.parametrize(
    ("old", "new", "difference"),
    [
        ('"version": "1.2"', '"version": "1.1"', "linear/qkv_proj: file mild of chiplet-tiny 1.1"),
        ('"provider": "mild"', '"provider": "gone"', "gone of chiplet-tiny 1.2, which is not here"),
        ('"device": "tiny"', '"device": "huge"', "device: file huge, here tiny"),
        ('"platform_version": "1.2"', '"platform_version": "9"', "its version: file 9, here 1.2"),
        ('\\"out_features\\": 24', '\\"out_features\\": 25', "linear/qkv_proj: not in the file"),
    ],
)
def test_a_plan_that_cannot_be_followed(make_selector, lock, old, new, difference):
    assert old in lock.read_text()
    lock.write_text(lock.read_text().replace(old, new))
    selector, _ = make_selector(FAST, MILD, plan_lock=str(lock))
    selector.linear(LINEAR)
    with pytest.raises(ConfigError, match=f"cannot be followed.*{difference}.*--save"):
        selector.check_plan_file()


def test_a_plan_with_more_than_is_asked(make_selector, lock):
    selector, _ = make_selector(FAST, MILD, plan_lock=str(lock))
    selector.check_plan_file()
    with pytest.raises(ConfigError, match="linear/qkv_proj: asked for by nobody here"):
        selector.seal()


def test_a_denial_stands_above_the_file(make_selector, lock):
    selector, _ = make_selector(FAST, MILD, plan_lock=str(lock), deny=("linear=mild",))
    assert selector.linear(LINEAR).name == "fast"
    selector.seal()


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "cannot be read"), ("{", "is no plan file"), ('{"plan_lock": 2}', "is no plan file")],
)
def test_a_damaged_plan_file(make_selector, tmp_path, content, message):
    path = tmp_path / "bad.lock"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        make_selector(FAST, plan_lock=str(path))


def test_another_format_is_refused(make_selector, lock):
    lock.write_text(lock.read_text().replace('"plan_lock": 1', '"plan_lock": 2'))
    with pytest.raises(ConfigError, match="has format 2; read is 1"):
        make_selector(FAST, MILD, plan_lock=str(lock))


def test_a_plan_that_cannot_be_written(make_selector, tmp_path):
    selector, _ = make_selector(FAST)
    selector.op(ROTARY)
    with pytest.raises(ConfigError, match="cannot be written"):
        save_plan(selector.plan(), tmp_path / "nowhere" / "plan.lock")
