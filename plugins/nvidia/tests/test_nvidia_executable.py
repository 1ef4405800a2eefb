"""Recorded steps: which there are, and on a GPU that a replay equals the step itself."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from chiplet.api import (
    GREEDY,
    DeviceState,
    HostFacts,
    HostInputs,
    InputLayout,
    Logprobs,
    Sampling,
    ShapeBucket,
    StepLimits,
    StepOutputs,
)
from chiplet_nvidia import plugin
from chiplet_nvidia.buckets import recorded_buckets, sizes
from chiplet_nvidia.executable import Recorder
from chiplet_nvidia.platform import CudaPlatform

HOST = HostFacts(machine="x86_64", num_cores=2, total_memory_bytes=1 << 30)


def limits(max_requests=256, max_pages=8192, max_tokens=8448):
    return StepLimits(
        max_tokens=max_tokens,
        max_requests=max_requests,
        max_pages=max_pages,
        max_prompt_rows=8192,
        page_size=16,
    )


def step_of(num_requests, max_pages, num_tokens=None, sampling=GREEDY):
    return ShapeBucket(
        num_tokens=num_tokens or num_requests,
        num_requests=num_requests,
        num_decodes=num_requests - (num_tokens is not None),
        max_pages=max_pages,
        sampling=sampling,
    )


@pytest.mark.parametrize("largest", [1, 3, 64, 65, 100, 256, 300, 512, 1000])
def test_sizes_reach_the_largest_and_never_pass_it(largest):
    found = sizes(largest)
    assert found == sorted(set(found))
    assert (found[0], found[-1]) == (1, largest)


@pytest.mark.parametrize("sampling", [GREEDY, Sampling.DRAW, Sampling.DRAW | Sampling.FILTERS])
@pytest.mark.parametrize("max_pages", [1, 128, 129, 8192])
@pytest.mark.parametrize("num_requests", [1, 63, 64, 200, 256])
def test_a_bucket_serves_every_usual_decode_step(num_requests, max_pages, sampling):
    step = step_of(num_requests, max_pages, sampling=sampling)
    serving = [each for each in recorded_buckets(limits()) if each.serves(step)]
    assert serving
    assert min(each.num_requests for each in serving) < num_requests + 16


def test_small_mixtures_are_recorded_and_large_ones_are_not():
    buckets = recorded_buckets(limits())
    assert any(each.serves(step_of(9, 100, num_tokens=300)) for each in buckets)
    assert not any(each.serves(step_of(9, 100, num_tokens=600)) for each in buckets)


def test_limits_smaller_than_any_bucket_are_kept():
    small = limits(max_requests=2, max_pages=4, max_tokens=20)
    buckets = recorded_buckets(small)
    assert len(buckets) == len(set(buckets))
    assert all(each.num_tokens <= 20 and each.num_requests <= 2 for each in buckets)
    assert {each.max_pages for each in buckets} == {4}


class CountingStep:
    """Draws `token + last token of the slot`, and notes it."""

    def __init__(self, bucket, device):
        self.bucket = bucket
        self.layout = InputLayout.of(bucket)
        empty = torch.zeros(0, device=device)
        self.state = DeviceState(
            (), torch.zeros(9, dtype=torch.int32, device=device), empty, empty, empty, empty
        )

    def __call__(self, inputs, state):
        slots = inputs.slots.long()
        tokens = inputs.token_ids + state.last_tokens[slots]
        state.last_tokens.index_put_((slots,), tokens)
        chosen = tokens.float() * inputs.settings[0]
        return StepOutputs(tokens, Logprobs(chosen, tokens[:, None], chosen[:, None]))

    def padding(self):
        return self.inputs([0] * self.bucket.num_requests, [8] * self.bucket.num_requests)

    def inputs(self, tokens, slots, temperature=1.0):
        buffer = np.zeros(self.layout.size, dtype=np.int32)
        arrays = self.layout.split(buffer, np.float32)
        arrays.token_ids[:], arrays.slots[:] = tokens, slots
        arrays.settings[0] = temperature
        return HostInputs(buffer, arrays)


@pytest.mark.device
def test_a_replay_equals_the_step_itself():
    (probe, *_) = plugin.probe(host=HOST)
    platform = CudaPlatform(probe)
    platform.activate()
    with torch.inference_mode():
        small, large = (CountingStep(step_of(size, 4), platform.torch_device) for size in (2, 4))
        recorded = SimpleNamespace(small=platform.prepare(small), large=platform.prepare(large))
        assert small.state.last_tokens.tolist() == [0] * 9, "padding left a trace"
        first = recorded.small.launch(small.inputs([5, 7], [0, 3], 0.5))
        arrived = platform.to_host_async(first.token_ids)
        recorded.large.launch(large.inputs([1, 1, 1, 1], [0, 1, 2, 3]))
        for _ in range(5):  # more launches than pinned buffers
            second = recorded.small.launch(small.inputs([1, 2], [0, 3], 2.0))
        platform.record_event().wait()
    assert arrived.tolist() == [5, 7]
    assert second.token_ids.tolist() == [10, 17]
    assert second.logprobs.chosen.tolist() == [20.0, 34.0]
    assert small.state.last_tokens.tolist() == [10, 0, 0, 17, 0, 0, 0, 0, 0]
    assert large.state.last_tokens.tolist() == [1, 1, 1, 1, 0, 0, 0, 0, 0]


@pytest.mark.device
def test_it_records_again_when_nothing_recorded_is_left():
    recorder = Recorder(torch.device("cuda", 0))
    x = torch.zeros(4, device="cuda")
    for count in (1, 2, 3):
        graph = recorder.record(lambda: x.add_(1))
        graph.replay()
        assert x.tolist() == [count] * 4
        del graph
