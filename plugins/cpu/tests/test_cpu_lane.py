"""Steps that run while Python goes on: their order, their results, and who waits for them."""

import os
import weakref

import numpy as np
import pytest
import torch

from chiplet.api import BuildContext, DeviceProbe, DoneEvent, Dtype, Op, OpRequest
from chiplet_cpu import native
from chiplet_cpu.ops.native import NativeOpsProvider
from chiplet_cpu.platform import CpuPlatform
from chiplet_cpu.recording.arena import Arena
from chiplet_cpu.recording.lane import Lane
from chiplet_cpu.recording.recorder import Recorder

pytestmark = pytest.mark.skipif(not native.is_available(), reason="no kernels of the plugin's own")

PROBE = DeviceProbe(device_type="cpu", index=0, name="A CPU", total_memory_bytes=1)
ROWS, WIDTH = 300, 96


class Recorded:
    """A norm of many rows, and the note of one number: what a step does, in small."""

    def __init__(self):
        context = BuildContext(CpuPlatform(PROBE))
        provider = NativeOpsProvider()
        self.norm = provider.build(OpRequest(op=Op.RMS_NORM, dtype=Dtype.FLOAT32), context)
        self.inputs = torch.zeros(ROWS, WIDTH)
        self.weight = torch.rand(WIDTH, generator=torch.Generator().manual_seed(1))
        self.notes = torch.zeros(8, dtype=torch.int32)
        self.recorder = Recorder(Arena())
        with self.recorder:
            self.result = self.norm(self.inputs, self.weight, 1e-5)
            words = self.inputs.view(torch.int32).flatten()
            self.notes.index_put_((words[:1],), words[1:2])
        assert not self.recorder.torch_operations

    def launch(self, lane, values, out):
        tape = self.recorder.tape
        return lane.launch(tape, self.inputs, values, self.result, out, self)


def random_values(random, number):
    values = random.standard_normal((ROWS, WIDTH), dtype=np.float32)
    values.view(np.int32)[0, :2] = number % 8, number
    return values


@pytest.fixture(params=[2, 3, 5])
def threads(request):
    native.set_threads(request.param)
    yield request.param
    native.set_threads(1)


@torch.inference_mode()
def test_steps_run_in_the_order_of_their_launch_on_values_of_that_moment(threads):
    step, lane, random = Recorded(), Lane(), np.random.default_rng(threads)
    expected, outs = [], []
    for number in range(1, 60):
        values = random_values(random, number)
        expected.append(step.norm(torch.from_numpy(values.copy()), step.weight, 1e-5))
        outs.append(torch.empty(ROWS, WIDTH))
        assert step.launch(lane, values, outs[-1])
        values[:] = np.nan  # its owner may go on to use it
        if number % 7 == 0:
            lane.event().wait()
            assert torch.equal(outs[-1], expected[-1])
    lane.drain()
    assert all(torch.equal(*pair) for pair in zip(outs, expected, strict=True))
    assert sorted(step.notes.tolist()) == list(range(52, 60))
    assert isinstance(lane.event(), DoneEvent)


@torch.inference_mode()
def test_operations_made_at_once_may_run_beside_a_step(threads):
    step, lane, random = Recorded(), Lane(), np.random.default_rng(threads)
    x = torch.randn(ROWS, WIDTH)
    wanted = step.norm(x, step.weight, 1e-5)
    for number in range(40):
        out = torch.empty(ROWS, WIDTH)
        step.launch(lane, random_values(random, number), out)
        assert torch.equal(step.norm(x, step.weight, 1e-5), wanted)
    lane.drain()


@torch.inference_mode()
def test_who_uses_memory_of_steps_waits_for_them(threads):
    step, platform, random = Recorded(), CpuPlatform(PROBE), np.random.default_rng(0)
    lane = platform._lane
    for number, use in enumerate((platform.to_device_async, platform.to_host_async)):
        values, out = random_values(random, number), torch.empty(ROWS, WIDTH)
        for _ in range(20):
            step.launch(lane, values, out)
        copy, event = platform.to_host_async(out), platform.record_event()
        use(torch.ones(1))
        assert event.is_done()
        assert torch.equal(copy, step.norm(torch.from_numpy(values), step.weight, 1e-5))
    copied = torch.ones(1)
    assert platform.to_host_async(copied) is not copied


@torch.inference_mode()
def test_what_a_step_uses_is_kept_until_it_has_run(threads):
    step, lane = Recorded(), Lane()
    kept = weakref.ref(step)
    step.launch(lane, np.zeros((ROWS, WIDTH), np.float32), torch.empty(ROWS, WIDTH))
    del step
    assert kept() is not None
    lane.drain()
    assert kept() is None


def test_one_thread_runs_nothing_beside_python():
    native.set_threads(1)
    step, out = Recorded(), torch.full((1,), 7.0)
    assert not step.launch(Lane(), np.zeros((ROWS, WIDTH), np.float32), out)
    assert out.item() == 7


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_waits_for_no_step_of_its_parent(threads):
    step, lane = Recorded(), Lane()
    for _ in range(50):
        step.launch(lane, np.zeros((ROWS, WIDTH), np.float32), torch.empty(ROWS, WIDTH))
    child = os.fork()
    if child == 0:
        native.library.lane_wait_for_all()
        os._exit(7)
    lane.drain()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
