"""Comparisons side by side at start, and what is made of their outcome."""

import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest

from chiplet.api import Tier, Yes
from chiplet.config import DeviceOptions
from chiplet.plugins import Selector, choose_device, discover
from chiplet.plugins.foresight import foresee
from tests.unit.plugins.test_selection import (
    EMBEDDING,
    LINEAR,
    ROTARY,
    attention_request,
    make_selector,
    offer,
)

__all__ = ["make_selector"]

FAST, MILD = offer("fast", Yes(Tier.VENDOR)), offer("mild", Yes(Tier.GENERIC))
REQUESTS = (attention_request(), LINEAR, replace(LINEAR, role="o_proj"), ROTARY, EMBEDDING)


class SideBySide:
    """A judge whose comparisons end when so many are under way at once."""

    def __init__(self, num_together, *faulty):
        self.barrier = threading.Barrier(num_together, timeout=20)
        self.faulty = faulty
        self.compared = []
        self.under_way = []
        self.overlapping = []

    def checkable(self, request):
        return request

    def compare(self, request, impl, reference, numerics):
        is_linear = type(request) is type(LINEAR)
        self.compared.append((request, impl.name))
        if is_linear:
            self.overlapping.append(bool(self.under_way))
            self.under_way.append(request)
        is_ahead = threading.current_thread() is not threading.main_thread()
        if is_ahead and not (is_linear and request.role == "o_proj"):
            self.barrier.wait()
        if is_linear:
            self.under_way.remove(request)
        return "differs" if impl.name in self.faulty else ""


def selector_of(judge, num_threads):
    options = DeviceOptions()
    plugins = discover(options)
    chosen = choose_device(plugins, options)
    if num_threads is not None:
        chosen.platform.num_check_threads = num_threads
    return Selector(plugins, chosen, options, judge=judge), chosen.platform


def ask(selector):
    """What a model asks for, and what answers."""
    return SimpleNamespace(
        attention=selector.attention(REQUESTS[0]),
        qkv=selector.linear(REQUESTS[1]),
        o=selector.linear(REQUESTS[2]),
        rotary=selector.op(REQUESTS[3]),
        embedding=selector.op(REQUESTS[4]),
    )


def test_comparisons_run_side_by_side_and_each_once(make_selector):
    make_selector(FAST, MILD)
    judge = SideBySide(4)  # attention, one of two linear layers, two operations
    selector, platform = selector_of(judge, 4)
    foresee(selector, platform, ask)
    assert {request for request, _ in judge.compared} == set(REQUESTS)
    assert len(judge.compared) == len(REQUESTS)
    assert judge.overlapping == [False, False]  # linear layers share kernels
    answers = ask(selector)
    assert {each.name for each in vars(answers).values()} == {"fast"}
    assert len(judge.compared) == len(REQUESTS)
    choices = selector.plan().choices
    assert [each.check for each in choices] == ["equal"] * len(REQUESTS)
    assert [each.num_uses for each in choices] == [1] * len(REQUESTS)


def test_who_is_wrong_is_replaced_as_without_foresight(make_selector, caplog):
    make_selector(FAST, MILD)
    judge = SideBySide(4, "fast")
    selector, platform = selector_of(judge, 4)
    foresee(selector, platform, ask)
    assert not caplog.records
    assert ask(selector).qkv.name == "mild"
    assert [name for request, name in judge.compared if request == LINEAR] == ["fast", "mild"]
    texts = [each.getMessage() for each in caplog.records]
    assert "linear/qkv_proj: provider fast is not used; self-check: differs" in texts


@pytest.mark.parametrize(("num_threads", "has_judge"), [(None, True), (4, False)])
def test_nothing_is_foreseen_where_nothing_would_run_side_by_side(
    make_selector, num_threads, has_judge
):
    make_selector(FAST)
    selector, platform = selector_of(SideBySide(1) if has_judge else None, num_threads)
    asked = []
    foresee(selector, platform, asked.append)
    assert asked == []


def test_what_was_not_foreseen_is_compared_when_it_is_asked_for(make_selector):
    make_selector(FAST)
    judge = SideBySide(1)
    selector, platform = selector_of(judge, 4)
    foresee(selector, platform, lambda scout: scout.linear(LINEAR))
    selector.op(ROTARY)
    assert judge.compared == [(LINEAR, "fast"), (ROTARY, "fast")]
