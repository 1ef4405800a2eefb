"""Memory for packed weights: cut from large pieces, aligned, and given again."""

import gc
from itertools import pairwise

import torch

from chiplet.api import CheckStatus, DeviceProbe
from chiplet_cpu import checks, plugin
from chiplet_cpu.host import huge_page_switch
from chiplet_cpu.linear.weight_memory import HUGE_BYTES, WeightMemory


def test_tensors_follow_one_another_from_a_huge_page_on():
    memory = WeightMemory()
    first, second = memory.empty(3, 50), memory.empty(2, 64)
    assert first.shape == (3, 50)
    assert first.data_ptr() % HUGE_BYTES == 0
    assert second.data_ptr() == first.data_ptr() + 192
    assert memory.empty(0, 5).shape == (0, 5)


def test_tensors_do_not_overlap_and_keep_what_was_written():
    memory = WeightMemory()
    random = torch.Generator().manual_seed(0)
    kept = []
    for number in range(200):
        shape = torch.randint(1, 4000, (2,), generator=random).tolist()
        rows = torch.full(shape, number, dtype=torch.uint8)
        kept.append((memory.keep(rows), number))
        if number % 3 == 2:
            del kept[number % len(kept)]
    assert all((rows == number).all() for rows, number in kept)
    spans = sorted((rows.data_ptr(), rows.nbytes) for rows, _ in kept)
    assert all(a + size <= b for (a, size), (b, _) in pairwise(spans))


def test_what_is_dropped_is_given_again():
    memory = WeightMemory()
    first, second, third = (memory.empty(1, 1 << 20) for _ in range(3))
    address = first.data_ptr()
    view = first[0, 5:]
    del first, second
    gc.collect()
    assert memory.empty(1, 2 << 20).data_ptr() > third.data_ptr()  # one of two is still in use
    del view
    gc.collect()
    assert memory.empty(1, 2 << 20).data_ptr() == address
    assert memory.empty(1, 100 << 20).nbytes == 100 << 20  # larger than a piece


def test_tensors_outlive_their_memory():
    rows = WeightMemory().keep(torch.arange(7, dtype=torch.uint8)[None])
    gc.collect()
    assert rows[0].tolist() == list(range(7))


def test_doctor_tells_what_the_system_grants(monkeypatch, tmp_path):
    device = DeviceProbe(device_type="cpu", index=0, name="A CPU", total_memory_bytes=1)

    def check(switch):
        monkeypatch.setattr(checks, "huge_page_switch", lambda: switch)
        return next(each for each in plugin.doctor(device) if each.name == "cpu huge pages")

    assert check("always [madvise] never").status is CheckStatus.OK
    assert check(None).status is CheckStatus.OK
    refused = check("always madvise [never]")
    assert refused.status is CheckStatus.WARNING
    assert "echo madvise" in refused.remedy
    folder = tmp_path / "sys/kernel/mm/transparent_hugepage"
    folder.mkdir(parents=True)
    (folder / "enabled").write_text("[always] madvise never\n")
    assert huge_page_switch(tmp_path) == "[always] madvise never"
    assert huge_page_switch(tmp_path / "none") is None
