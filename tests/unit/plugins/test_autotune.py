"""Autotune: the fastest of the best serves, times are kept, and broken caches disturb nobody."""

import fcntl
import json
import logging
import os

import pytest

from chiplet.api import Numerics, Tier, Yes
from chiplet.config import DeviceOptions
from chiplet.plugins import Selector, choose_device, discover, render
from chiplet.plugins.autotune import cache as cache_module
from chiplet.plugins.autotune.cache import LockedError, MeasurementCache, locked
from chiplet.plugins.autotune.tuner import Effort, Tuner
from tests.unit.plugins.test_selection import (
    EMBEDDING,
    LINEAR,
    attention_request,
    make_selector,
    offer,
    only_choice,
)

__all__ = ["make_selector"]

EFFORT = Effort(num_rivals=3, sizes=(1, 64), budget_s=60)
BEST, NEXT, THIRD = (
    offer(name, Yes(score))
    for name, score in (("best", Tier.VENDOR), ("next", Tier.GENERIC + 1), ("third", Tier.GENERIC))
)


class Watch:
    """Says how long providers take, by name and number of tokens."""

    def __init__(self, **times):
        self.times, self.asked = times, []

    def measure(self, request, impl, num_tokens):
        self.asked.append((impl.name, num_tokens))
        time = self.times[impl.name]
        if isinstance(time, Exception):
            raise time
        return time if isinstance(time, (int, float)) else time[num_tokens]


@pytest.fixture
def tuned(make_selector, tmp_path):
    """A selector over providers, with a watch; options of the device may be given."""

    def make(watch, *providers, effort=EFFORT, judge=None, **options):
        make_selector(*providers)
        options = DeviceOptions(**options)
        plugins = discover(options)
        tuner = Tuner(watch, MeasurementCache(tmp_path / "cache", "this machine"), effort)
        chosen = choose_device(plugins, options)
        return Selector(plugins, chosen, options, judge=judge, tuner=tuner), tuner

    return make


def test_the_fastest_serves_and_the_times_are_shown(tuned):
    watch = Watch(best={1: 10.0, 64: 90.0}, next={1: 4.0, 64: 100.0}, third=50.0)
    selector, _ = tuned(watch, BEST, NEXT, THIRD)
    assert selector.linear(LINEAR).name == "next", "10 * 90 > 4 * 100"
    choice = only_choice(selector)
    assert choice.basis == "measured"
    assert choice.timings_us == {
        "best": {1: 10.0, 64: 90.0},
        "next": {1: 4.0, 64: 100.0},
        "third": {1: 50.0, 64: 50.0},
    }
    text = render(selector.plan())
    assert "measured next, us by tokens: 1: 4, 64: 100" in text
    assert "rejected best" in text
    assert "measured slower" in text
    assert selector.plan().to_json()["choices"][0]["timings_us"]["next"] == {1: 4.0, 64: 100.0}


def test_a_little_faster_is_noise(tuned):
    selector, _ = tuned(Watch(best=100.0, next=97.0), BEST, NEXT)
    assert selector.linear(LINEAR).name == "best"
    assert only_choice(selector).basis == "measured"


def test_who_was_disturbed_once_does_not_lose_for_it(tuned):
    watch = Watch(best={1: 10.0, 64: 10.0}, next={1: 12.0, 64: 12.0})
    quiet, watch.times = watch.times, {**watch.times, "best": {1: 50.0, 64: 70.0}}

    def measure(request, impl, num_tokens):
        if ("next", 64) in watch.asked:
            watch.times = quiet
        return Watch.measure(watch, request, impl, num_tokens)

    watch.measure = measure
    selector, _ = tuned(watch, BEST, NEXT)
    assert selector.linear(LINEAR).name == "best"
    assert only_choice(selector).timings_us == {"best": quiet["best"], "next": quiet["next"]}
    order = [name for name, _ in watch.asked]
    assert order == ["best", "best", "next", "next"] * 2


def test_rows_of_a_table_are_measured_each(tuned):
    small = offer("small", Yes(Tier.VENDOR + 1, max_tokens=8))
    watch = Watch(small={1: 1.0, 64: 500.0}, best={1: 9.0, 64: 9.0})
    selector, _ = tuned(watch, small, BEST)
    selector.linear(LINEAR)
    servers = only_choice(selector).servers
    assert [(each.provider, each.max_tokens) for each in servers] == [("small", 8), ("best", None)]


@pytest.mark.parametrize("options", [{"use": ("linear=next",)}, {"deny": ("linear=next",)}])
def test_pins_and_denials_stand_above_measurements(tuned, options):
    watch = Watch(best=100.0, next=1.0)
    selector, _ = tuned(watch, BEST, NEXT, **options)
    assert selector.linear(LINEAR).name == ("next" if "use" in options else "best")
    assert not watch.asked


def test_operations_without_sizes_and_lone_candidates_are_not_measured(tuned):
    watch = Watch()
    selector, _ = tuned(watch, BEST)
    selector.linear(LINEAR)
    selector.attention(attention_request())
    selector, _ = tuned(watch, BEST, NEXT)
    selector.op(EMBEDDING)
    assert not watch.asked
    assert {each.basis for each in selector.plan().choices} == {"score"}


def test_who_expects_to_be_much_slower_is_not_measured(tuned):
    quick = offer("quick", Yes(Tier.VENDOR, estimate_us={1: 10.0}))
    slow = offer("slow", Yes(Tier.VENDOR + 1, estimate_us={1: 31.0}))
    watch = Watch(quick=5.0, next=4.0)
    selector, _ = tuned(watch, slow, quick, NEXT)
    assert selector.linear(LINEAR).name == "next"
    assert {name for name, _ in watch.asked} == {"quick", "next"}


def test_nobody_is_taken_who_rounds_otherwise(tuned):
    rounding = offer("rounding", Yes(Tier.GENERIC, numerics=Numerics.INT8_ACTIVATIONS))
    watch = Watch(best=10.0, next=9.0)
    selector, _ = tuned(watch, BEST, NEXT, rounding)
    assert selector.linear(LINEAR).name == "next"
    assert "rounding" not in {name for name, _ in watch.asked}


def test_who_cannot_be_measured_or_is_wrong_leaves_the_choice_to_scores(tuned, caplog):
    class Judge:
        def checkable(self, request):
            return request

        def compare(self, request, impl, reference, numerics):
            return "differs" if impl.name == "third" else ""

    watch = Watch(best=1.0, next=ValueError("no room"))
    selector, _ = tuned(watch, BEST, NEXT, THIRD, judge=Judge())
    assert selector.linear(LINEAR).name == "best"
    choice = only_choice(selector)
    assert choice.basis == "score"
    assert choice.timings_us is None
    assert "next cannot be measured: no room" in caplog.text
    assert "third" not in {name for name, _ in watch.asked}


def test_times_are_kept_and_measured_once(tuned, caplog):
    selector, tuner = tuned(Watch(best=10.0, next=1.0), BEST, NEXT)
    selector.linear(LINEAR)
    with caplog.at_level(logging.INFO):
        tuner.finish()
    assert "Measured 2 implementations" in caplog.text
    watch = Watch()
    selector, _ = tuned(watch, BEST, NEXT)
    assert selector.linear(LINEAR).name == "next"
    assert not watch.asked
    # More sizes than are known are measured anew.
    effort = Effort(num_rivals=2, sizes=(1, 64, 512), budget_s=60)
    watch = Watch(best=1.0, next=2.0)
    selector, _ = tuned(watch, BEST, NEXT, effort=effort)
    assert selector.linear(LINEAR).name == "best"


def test_what_comes_after_the_budget_or_the_start_goes_by_score(tuned):
    effort = Effort(num_rivals=2, sizes=(1,), budget_s=0)
    watch = Watch(best=10.0, next=1.0)
    selector, _ = tuned(watch, BEST, NEXT, effort=effort)
    assert selector.linear(LINEAR).name == "best"
    selector, tuner = tuned(watch, BEST, NEXT)
    tuner.finish()
    assert selector.linear(LINEAR).name == "best"
    assert not watch.asked


def test_caches_of_two_starts_add_up(tmp_path):
    first, second = (MeasurementCache(tmp_path, "m") for _ in range(2))
    first.put("a", {1: 1.0})
    second.put("b", {8: 2.5})
    first.save()
    second.save()
    third = MeasurementCache(tmp_path, "m")
    assert (third.find("a"), third.find("b")) == ({1: 1.0}, {8: 2.5})
    assert MeasurementCache(tmp_path, "another machine").find("a") is None
    assert sorted(each.suffix for each in tmp_path.iterdir()) == ["", ".json"], "nothing is left"


def test_caches_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(cache_module, "MAX_ENTRIES", 3)
    monkeypatch.setattr(cache_module, "MAX_FILES", 2)
    for number in range(4):
        cache = MeasurementCache(tmp_path, f"machine {number}")
        for name in "abcde":
            cache.put(name, {1: 1.0})
        cache.save()
        path = max(tmp_path.glob("*.json"), key=lambda each: each.stat().st_mtime_ns)
        os.utime(path, (number, number))
    assert len(list(tmp_path.glob("*.json"))) == 2
    last = MeasurementCache(tmp_path, "machine 3")
    assert [name for name in "abcde" if last.find(name)] == ["c", "d", "e"]


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"format": 1}', b"\xff\xfe"])
def test_a_damaged_cache_is_not_used_and_replaced(content, tmp_path, caplog):
    cache = MeasurementCache(tmp_path, "m")
    cache.put("a", {1: 1.0})
    cache.save()
    (path,) = tmp_path.glob("*.json")
    path.write_bytes(content)
    cache = MeasurementCache(tmp_path, "m")
    assert "are not used" in caplog.text
    assert cache.find("a") is None
    cache.put("b", {1: 1.0})
    cache.save()
    assert MeasurementCache(tmp_path, "m").find("b") == {1: 1.0}


def test_another_format_is_replaced(tmp_path):
    cache = MeasurementCache(tmp_path, "m")
    cache.put("a", {1: 1.0})
    cache.save()
    (path,) = tmp_path.glob("*.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))
    assert MeasurementCache(tmp_path, "m").find("a") is None


def test_a_locked_cache_is_left_alone_with_a_warning(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(cache_module, "LOCK_LIMIT_S", 0.05)
    cache = MeasurementCache(tmp_path, "m")
    cache.put("a", {1: 1.0})
    with (tmp_path / "lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(LockedError), locked(tmp_path, limit_s=0):
            pass
        cache.save()
    assert "another process holds" in caplog.text
    assert not list(tmp_path.glob("*.json"))
    assert cache.find("a") == {1: 1.0}, "this start still knows"


def test_a_cache_that_cannot_be_written_is_a_warning(tmp_path, caplog):
    (tmp_path / "file").touch()
    cache = MeasurementCache(tmp_path / "file" / "cache", "m")
    cache.put("a", {1: 1.0})
    cache.save()
    assert "Measurements are not kept in" in caplog.text
