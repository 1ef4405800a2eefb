"""The pretended device behaves as accelerators do, and breaks as it is told."""

from __future__ import annotations

import pytest
import torch

from chiplet.api import BuildContext, Dtype, LinearRequest, LinearWeights
from chiplet_fake.broken_linear import BrokenLinear
from chiplet_fake.faults import Faults
from chiplet_fake.hardware import DEVICE, MEMORY, STREAM, DeviceFault
from chiplet_fake.hardware.stream import Stream
from chiplet_fake.platform import FakePlatform

REQUEST = LinearRequest(role="o_proj", in_features=3, out_features=2, dtype=Dtype.FLOAT32)


def test_work_runs_late() -> None:
    source = torch.ones(4)
    there = torch.empty(4, device=DEVICE).copy_(source, non_blocking=True)
    source[0] = 5  # too early: the copy has not read it
    back = (there + 1).to("cpu", non_blocking=True)
    assert back.tolist() == [-77] * 4
    STREAM.wait()
    assert back.tolist() == [6, 2, 2, 2]


def test_plain_copies_wait() -> None:
    source = torch.ones(4)
    there = source.to(DEVICE)
    source[0] = 5
    assert there.cpu().tolist() == [1, 1, 1, 1]


def test_host_tensors_are_refused() -> None:
    there = torch.ones(3, device=DEVICE)
    for pair in ((there, torch.ones(3)), (torch.ones(3), there)):
        with pytest.raises(RuntimeError, match="to_device_async"):
            torch.add(*pair)
    assert (there * torch.tensor(2.0)).tolist() == [2, 2, 2]
    with pytest.raises(RuntimeError):
        there.numpy()


def test_shapes_that_depend_on_values_wait_for_them() -> None:
    there = torch.tensor([0, 3, 0, 4], device=DEVICE)
    assert there.nonzero().tolist() == [[1], [3]]
    assert there[there > 0].tolist() == [3, 4]
    assert there[1].item() == 3


def test_views_share_memory() -> None:
    before = MEMORY.used_bytes
    there = torch.zeros(2, 8, device=DEVICE)
    view = there[1].view(torch.int32)
    view.fill_(0x3F800000)  # 1.0
    assert there.tolist() == [[0] * 8, [1] * 8]
    assert MEMORY.used_bytes == before + 64
    del there
    assert MEMORY.used_bytes == before + 64
    del view
    assert MEMORY.used_bytes == before


def test_graphs_replay_on_new_inputs() -> None:
    before = MEMORY.used_bytes
    x = torch.zeros(3, device=DEVICE)
    with STREAM.recording() as graph:
        y = x
        for _ in range(50):
            y = y + x
        with pytest.raises(RuntimeError, match="recorded"):
            y.cpu()
    for value in (1.0, 2.0):
        x.fill_(value)
        STREAM.replay(graph)
        assert y.tolist() == [51 * value] * 3
    # Sums that nobody needs any more lent their memory to later ones.
    assert MEMORY.used_bytes - before <= 4 * x.nbytes
    del x, y, graph
    assert MEMORY.used_bytes == before


def test_a_fault_stays() -> None:
    stream = Stream()
    ran: list[int] = []
    stream.queue(lambda: ran.append(1))
    stream.queue(lambda: 1 // 0)
    stream.queue(lambda: ran.append(2))
    with pytest.raises(DeviceFault, match=r"fake:0 failed: .*zero"):
        stream.wait()
    for again in (stream.wait, lambda: stream.queue(lambda: ran.append(3))):
        with pytest.raises(DeviceFault):
            again()
    assert ran == [1]


def test_faults_are_named() -> None:
    faults = Faults.parse("probe=hang, run=raise:12")
    assert (faults.probe, faults.run, faults.at_call) == ("hang", "raise", 12)
    assert faults.breaks_linear
    assert not Faults.parse("").breaks_linear
    with pytest.raises(ValueError, match="has 'run=melt'; allowed: probe=hang"):
        Faults.parse("run=melt")


class Plain:
    """A linear layer."""

    def pack(self, weights: LinearWeights) -> torch.Tensor:
        return weights.weight

    def run(self, x: torch.Tensor, packed: torch.Tensor) -> torch.Tensor:
        return x @ packed.t()


def test_a_layer_breaks_in_time() -> None:
    context = BuildContext(FakePlatform(), lambda request: Plain())
    x, weight = torch.ones(1, 3).to("fake"), torch.ones(2, 3).to("fake")
    outcomes = []
    for run in ("late:2", "raise:2"):
        layer = BrokenLinear(Faults.parse(f"run={run}")).build(REQUEST, context)
        packed = layer.pack(LinearWeights(scheme=None, weight=weight))
        outcomes.append(layer.run(x, packed).tolist())
        if run.startswith("late"):
            outcomes.append(layer.run(x, packed).tolist())
        else:
            with pytest.raises(RuntimeError, match="told to fail"):
                layer.run(x, packed)
    assert outcomes == [[[3, 3]], [[4, 4]], [[3, 3]]]
