"""Recorded steps: memory, operations between kernels, and what is refused."""

import mmap
from collections import Counter

import pytest
import torch

from chiplet.api import ALL_SAMPLING, BuildContext, DeviceProbe, Dtype, Op, OpRequest, StepLimits
from chiplet_cpu import native
from chiplet_cpu.ops.native import NativeOpsProvider
from chiplet_cpu.platform import CpuPlatform
from chiplet_cpu.recording.arena import Arena
from chiplet_cpu.recording.buckets import decode_buckets
from chiplet_cpu.recording.recorder import CannotRecord, Recorder

PROBE = DeviceProbe(device_type="cpu", index=0, name="A CPU", total_memory_bytes=1)


@pytest.fixture(params=[1] if native.is_available() else [])
def norm(request):
    context = BuildContext(CpuPlatform(PROBE))
    return NativeOpsProvider().build(OpRequest(op=Op.RMS_NORM, dtype=Dtype.FLOAT32), context)


@torch.inference_mode()
def test_repetition_follows_its_inputs(norm):
    random = torch.Generator().manual_seed(0)
    table, weight, scale = (torch.randn(n, generator=random) for n in ((9, 8), (8,), (8, 8)))
    counts = torch.zeros(9, dtype=torch.int32)
    ids = torch.zeros(4, dtype=torch.int32)

    def step():
        x = norm(table[torch.where(ids < 0, -ids, ids)], weight, 1e-5)
        x = norm((x @ scale).view(2, 2, 8).transpose(0, 1).reshape(4, 8), weight, 1e-5)
        counts.index_add_(0, ids, torch.ones_like(ids))
        first, second = x.to(torch.bfloat16).float().split([3, 5], dim=1)
        values, places = torch.cat([second, first], dim=1).topk(2, dim=1)
        return values, places.int()

    recorder = Recorder(Arena())
    with recorder:
        recorded = step()
    for wanted in ([1, 2, 3, 4], [8, 0, 2, 2]):
        ids.copy_(torch.tensor(wanted))
        counts.zero_()
        for entry in recorder.entries:
            entry()
        assert counts.tolist() == [Counter(wanted)[each] for each in range(9)]
        assert all(torch.equal(*pair) for pair in zip(recorded, step(), strict=True))
    assert "aten.where.self" in recorder.torch_operations
    assert len(recorder.entries) == len(recorder.torch_operations) + 2
    native.library.tape_drop(recorder.tape)


@torch.inference_mode()
def test_results_have_the_shapes_and_types_of_torchs(norm):
    wide, tall, mask = torch.randn(3, 1, 5), torch.randn(4, 5).half(), torch.rand(4, 1) > 0.5
    whole, places = torch.arange(20).view(4, 5), torch.zeros(2, 3, dtype=torch.long)
    one, none = torch.tensor(2.0, dtype=torch.float64), torch.zeros(0, 5)

    def step():
        yield from (wide + tall, tall + one, whole * 2.5, whole // (whole + 1), wide > one)
        yield from (mask & (whole > 3), wide.masked_fill(mask, 0), torch.where(mask, whole, 1.5))
        yield from (none + one, none.exp(), torch.log_softmax(tall, 0), wide.softmax(-1))
        yield from (torch.ones_like(tall), torch.zeros_like(whole, dtype=torch.int8))
        yield from (torch.full_like(mask, 1), whole.gather(1, places))
        for dim in (0, 1, -1):
            yield from tall.topk(2, dim=dim)
        yield from whole.topk(3)

    expected = list(step())
    recorder = Recorder(Arena())
    with recorder:
        recorded = list(step())
    for entry in recorder.entries:
        entry()
    for ours, theirs in zip(recorded, expected, strict=True):
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
        assert torch.equal(ours, theirs)
    native.library.tape_drop(recorder.tape)


@torch.inference_mode()
def test_results_of_torch_live_in_the_arena_and_no_longer_than_in_the_step(norm):
    # Of their own memory, large batches with penalties kept a gigabyte each for ever.
    width = 1 << 18
    arena, x = Arena(), torch.zeros(width)

    def step():
        y = x
        for _ in range(30):
            y = y * 2.0 + 1.0
        low, places = y.view(2, -1).t().sort(dim=1)
        return low.t().contiguous(), places

    addresses = set()
    for number in range(3):
        recorder = Recorder(arena)
        with recorder:
            recorded = step()
        addresses.add(tuple(each.data_ptr() for each in recorded))
        assert len(recorder.entries) > 60
        x.fill_(float(number))
        for entry in recorder.entries:
            entry()
        assert all(torch.equal(*pair) for pair in zip(recorded, step(), strict=True))
        native.library.tape_drop(recorder.tape)
    assert len(addresses) == 1
    assert arena.size_bytes <= 16 << 20  # of 60 results of 1 MiB


@torch.inference_mode()
def test_tokens_are_noted_by_a_kernel_as_torch_would(norm):
    random = torch.Generator().manual_seed(0)
    notes, wanted = (torch.arange(9, dtype=torch.int32) for _ in range(2))
    slots, tokens = (torch.zeros(4, dtype=torch.int32) for _ in range(2))
    x, weight = torch.ones(1, 2), torch.ones(2)
    recorder = Recorder(Arena())
    with recorder:
        norm(x, weight, 1e-5)
        assert notes.index_put_((slots,), tokens) is notes
    assert recorder.torch_operations == []
    assert len(recorder.entries) == 1
    for _ in range(20):
        slots.copy_(torch.randperm(9, generator=random)[:4] - 4)  # some count from the end
        tokens.copy_(torch.randint(1000, (4,), generator=random))
        if len({each % 9 for each in slots.tolist()}) < 4:
            continue  # two tokens at one place: either may win
        recorder.entries[0]()
        assert torch.equal(notes, wanted.index_put_((slots,), tokens))
    native.library.tape_drop(recorder.tape)


@torch.inference_mode()
def test_other_notes_stay_with_torch(norm):
    notes, slots = torch.zeros(9), torch.tensor([3, 3], dtype=torch.int32)
    counts, ones = torch.zeros(9, dtype=torch.int32), torch.ones(2, dtype=torch.int32)
    one = torch.ones(1)
    recorder = Recorder(Arena())
    with recorder:
        notes.index_put_((slots,), one)
        counts.index_put_((slots,), ones, accumulate=True)
    for entry in recorder.entries:
        entry()
    assert recorder.torch_operations == ["aten.index_put_.default"] * 2
    assert notes[3] == 1
    assert counts[3] == 2
    native.library.tape_drop(recorder.tape)


@pytest.mark.parametrize(
    ("read", "name"),
    [
        (lambda x: x.sum().item(), "_local_scalar_dense"),
        (lambda x: bool(x[0] > 0), "_local_scalar_dense"),
        (lambda x: x.nonzero(), "nonzero"),
        (lambda x: x[x > 0], "index"),
        (lambda x: torch.equal(x, x), "equal"),
        (lambda x: x.numpy(), "numpy"),
        (lambda x: x.tolist(), "tolist"),
    ],
)
def test_what_depends_on_values_is_refused_by_name(norm, read, name):
    recorder = Recorder(Arena())
    with pytest.raises(CannotRecord, match=name), recorder:
        read(norm(torch.ones(2, 2), torch.ones(2), 1e-5)[0])
    assert recorder.tape
    native.library.tape_drop(recorder.tape)
    assert norm(torch.ones(1, 2), torch.ones(2), 0.0).tolist() == [[1.0, 1.0]]


def test_memory_is_given_again_when_the_last_view_is_gone():
    arena = Arena()
    arena.begin()
    first = arena.empty((4, 8), torch.float32)
    view, address = first[1:].flatten(), first.data_ptr()
    del first
    second = arena.empty((4, 8), torch.float32)
    assert second.data_ptr() != address
    del view
    third = arena.empty((32,), torch.int32)
    assert third.data_ptr() == address
    assert address % 64 == second.data_ptr() % 64 == 0
    large = arena.empty((3 << 20,), torch.float32)
    assert large.shape == (3 << 20,)
    size = arena.size_bytes
    arena.begin()
    del second  # of an earlier recording: its memory is free already
    fourth, fifth = arena.empty((4, 8), torch.float32), arena.empty((4, 8), torch.float32)
    assert fourth.data_ptr() == address != fifth.data_ptr()
    assert arena.size_bytes == size
    assert arena.empty((0, 3), torch.bfloat16).numel() == 0


def test_buckets_waste_little():
    limits = StepLimits(
        max_tokens=512, max_requests=100, max_pages=600, max_prompt_rows=0, page_size=16
    )
    buckets = decode_buckets(limits)
    assert len(buckets) == len(set(buckets))
    for num_requests in range(1, 101):
        serving = [b for b in buckets if b.num_requests >= num_requests]
        assert min(b.num_requests for b in serving) <= num_requests * 1.125
    assert {b.max_pages for b in buckets} == {64, 512, 600}
    assert max(b.num_requests for b in buckets) == 100
    assert all(b.is_decode for b in buckets)
    assert any(b.sampling == ALL_SAMPLING for b in buckets)


def test_huge_pages_leave_untouched_memory_alone(norm):
    size = 16 << 20
    # Of the system itself: what numpy gives may lie in a heap that was written to before.
    numbers = torch.frombuffer(mmap.mmap(-1, size), dtype=torch.uint8)
    numbers[6 << 20 : (6 << 20) + 100] = 7
    made = native.library.use_huge_pages(numbers.data_ptr(), size)
    assert -1 <= made <= 2  # none where the system grants none
    assert numbers.sum() == 700
    assert native.library.use_huge_pages(numbers.data_ptr(), 4096) in (-1, 0)
