"""Which way of a product proves fastest: with a clock of the test's own, and on a GPU."""

import pytest
import torch

from chiplet.api import BuildContext, Dtype, HostFacts, LinearRequest, LinearWeights
from chiplet_nvidia import plugin
from chiplet_nvidia.linear.trials import FIRST_REST, LONGEST_REST, SAMPLES, Trials

HOST = HostFacts(machine="x86_64", num_cores=2, total_memory_bytes=1 << 30)


class Stream:
    """A device whose time passes as its work says, and that may lag behind."""

    def __init__(self, durations):
        self.durations = durations
        self.now = 0.0
        self.passed = float("inf")
        self.ways = []

    def work(self, way):
        """One call; returns its way."""
        self.ways.append(way)
        self.now += self.durations[way]
        return way

    def event(self):
        """As `torch.cuda.Event`."""
        return Mark(self)


class Mark:
    def __init__(self, stream):
        self.stream, self.at = stream, 0.0

    def record(self):
        self.stream.now += 0.001
        self.at = self.stream.now

    def query(self):
        return self.at <= self.stream.passed

    def elapsed_time(self, end_event):
        return end_event.at - self.at


def run(trials, stream, calls):
    stream.ways.clear()
    assert [trials.run(stream.work) for _ in range(calls)] == stream.ways
    return list(stream.ways)


def test_ways_take_turns_and_the_fastest_goes_on():
    stream = Stream([2.0, 1.9, 2.5])
    trials = Trials(3, stream.event)
    assert run(trials, stream, 3 * SAMPLES) == [0, 1, 2] * SAMPLES
    assert run(trials, stream, 1) == [1]
    assert run(trials, stream, FIRST_REST) == [1] * FIRST_REST


def test_a_gain_within_the_noise_is_none():
    stream = Stream([2.0, 1.99])
    trials = Trials(2, stream.event)
    run(trials, stream, 2 * SAMPLES + 1)
    assert set(run(trials, stream, FIRST_REST)) == {0}


def test_nobody_waits_for_times_that_have_not_come():
    stream = Stream([2.0, 1.0])
    stream.passed = 0.0
    trials = Trials(2, stream.event)
    run(trials, stream, 2 * SAMPLES)
    assert set(run(trials, stream, 50)) == {0}
    stream.passed = stream.now
    run(trials, stream, 1)
    assert set(run(trials, stream, FIRST_REST)) == {1}


def test_rounds_come_again_after_pauses_that_grow():
    stream = Stream([2.0, 1.0])
    trials = Trials(2, stream.event)
    round_size, rests = 2 * SAMPLES, [FIRST_REST << i for i in range(7)]
    assert rests[-1] == LONGEST_REST
    run(trials, stream, round_size + 1)
    for rest in (*rests, LONGEST_REST, LONGEST_REST):
        assert set(run(trials, stream, rest)) == {1}
        assert run(trials, stream, round_size) == [0, 1] * SAMPLES
        assert run(trials, stream, 1) == [1]


def test_what_was_the_fastest_need_not_stay_so():
    stream = Stream([2.0, 1.0])
    trials = Trials(2, stream.event)
    run(trials, stream, 2 * SAMPLES + 1 + FIRST_REST)
    stream.durations = [2.0, 3.0]
    run(trials, stream, 2 * SAMPLES + 1)
    assert set(run(trials, stream, 2 * FIRST_REST)) == {0}


@pytest.mark.device
@pytest.mark.parametrize("dtype", [Dtype.BFLOAT16, Dtype.FLOAT16])
def test_every_algorithm_named_gives_the_same_product(dtype):
    (probe, *_) = plugin.probe(host=HOST)
    platform = plugin.platform(device=probe)
    platform.activate()
    provider, *_ = plugin.linear(device=probe)
    request = LinearRequest(role="x", in_features=1024, out_features=1536, dtype=dtype)
    impl = provider.build(request, BuildContext(platform))
    kind, device = getattr(torch, dtype.value), platform.torch_device
    weight = torch.randn(1536, 1024, device=device, dtype=kind) / 32
    packed = impl.pack(LinearWeights(scheme=None, weight=weight))
    results = []
    for num_rows in (2048, 3000, 2048):
        x = torch.randn(num_rows, 2048, device=device, dtype=kind)[:, :1024]
        expected = x.double() @ weight.double().T
        for _ in range(100):
            y = impl.run(x, packed)
            assert (y - expected).norm() < 2e-3 * expected.norm()
            results.append(y)
    assert len(results) == 300
