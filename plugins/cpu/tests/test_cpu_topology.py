"""Cores and NUMA nodes, read from trees as Linux has them, and what is made of them."""

import ctypes
import logging
import os
import threading
from dataclasses import replace
from platform import machine as platform_name

import pytest
import torch

from chiplet.api import CheckStatus, DeviceProbe
from chiplet_cpu import checks, native, placement, platform, plugin, thread_trial
from chiplet_cpu.placement import MemoryPolicy, PlacementOptions, apply_to_thread, place
from chiplet_cpu.platform import CpuPlatform
from chiplet_cpu.topology import Node, parse_list, read_nodes

PROBE = DeviceProbe(device_type="cpu", index=0, name="A CPU", total_memory_bytes=1)
NO_OPTIONS = PlacementOptions()
ALL = frozenset(range(64))
GET_MEMPOLICY = {"x86_64": 239, "aarch64": 236}


@pytest.fixture
def machine(tmp_path):
    """Writes the tree of a machine: nodes' processors, and cores of so many of them."""

    def write(node_lists, siblings=(), memories=None):
        for index, processors in enumerate(node_lists):
            folder = tmp_path / f"sys/devices/system/node/node{index}"
            folder.mkdir(parents=True)
            (folder / "cpulist").write_text(f"{processors}\n")
            (folder / "meminfo").write_text(
                f"Node {index} MemTotal:  9000 kB\nNode {index} MemFree:  {index + 1}000 kB\n"
                f"Node {index} Inactive(file):  24 kB\nNode {index} HugePages_Free:  0\n"
            )
        for group in siblings:
            for processor in parse_list(group):
                folder = tmp_path / f"sys/devices/system/cpu/cpu{processor}/topology"
                folder.mkdir(parents=True)
                (folder / "thread_siblings_list").write_text(f"{group}\n")
        if memories is not None:
            (tmp_path / "proc/self").mkdir(parents=True)
            (tmp_path / "proc/self/status").write_text(f"Name: x\nMems_allowed_list:\t{memories}\n")
        return tmp_path

    return write


def never_asked(fewer, more):
    raise AssertionError("nothing is to be measured")


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("0-3,8\n", [0, 1, 2, 3, 8]), ("5", [5]), ("\n", []), ("none", []), ("1-x,2", [2])],
)
def test_lists(text, numbers):
    assert parse_list(text) == numbers


def test_a_machine_without_a_tree_is_one_node(tmp_path):
    assert read_nodes(tmp_path, {2, 5}) == (Node(0, ((2,), (5,))),)


def test_this_machine_has_what_it_may_use():
    processors = [each for node in read_nodes() for each in node.processors]
    assert sorted(processors) == sorted(os.sched_getaffinity(0))


def test_nodes_and_cores_of_two_threads(machine):
    root = machine(["0-3,8-11", "4-7,12-15"], [f"{i},{i + 8}" for i in range(8)])
    first, second = read_nodes(root, ALL)
    assert first.cores == ((0, 8), (1, 9), (2, 10), (3, 11))
    assert second.processors == (4, 5, 6, 7, 12, 13, 14, 15)
    assert second.free_bytes == 2024 << 10


def test_nodes_come_in_the_order_of_their_numbers(machine):
    assert [each.index for each in read_nodes(machine(map(str, range(12))), ALL)] == [*range(12)]


def test_only_what_the_process_may_use_counts(machine):
    root = machine(["0-3", "4-7", "8-11"], ["0-1", "2-3"], memories="0,2")
    nodes = read_nodes(root, {1, 2, 3, 5, 9})
    assert nodes == (Node(0, ((1,), (2, 3)), 1024 << 10), Node(2, ((9,),), 3024 << 10))
    assert read_nodes(root, {4}) == (Node(0, ((4,),)),)  # no node is left: one without a name


TWO_NODES = (Node(0, ((0, 8), (1, 9))), Node(1, ((2, 10), (3, 11))))


def test_one_thread_for_each_core():
    found = place([Node(0, ((0,), (1,)))], None, NO_OPTIONS, never_asked, {})
    assert (found.threads, found.pins, found.policy) == (2, (), MemoryPolicy.LOCAL)
    assert "one for each core" in found.reason


def test_a_containers_quota_is_kept():
    assert place(TWO_NODES, 3, NO_OPTIONS, never_asked, {}).threads == 3
    asked = []
    found = place(TWO_NODES, 6, NO_OPTIONS, lambda *n: asked.append(n) or (n[1], "faster"), {})
    assert (asked, found.threads) == ([(4, 6)], 6)
    assert found.reason.startswith("6 threads on 4 cores: faster")


def test_the_user_is_obeyed():
    for options, environment, threads in (
        (PlacementOptions(threads=7), {"OMP_NUM_THREADS": "2"}, 7),
        (NO_OPTIONS, {"OMP_NUM_THREADS": "2,1"}, 2),
    ):
        assert place(TWO_NODES, 3, options, never_asked, environment).threads == threads
    odd = place([Node(0, ((0,),))], None, NO_OPTIONS, never_asked, {"OMP_NUM_THREADS": "many"})
    assert odd.threads == 1


def test_memory_of_several_nodes_comes_in_turn():
    found = place(TWO_NODES, None, NO_OPTIONS, lambda few, more: (few, "no gain"), {})
    assert (found.policy, found.nodes) == (MemoryPolicy.INTERLEAVE, (0, 1))


def test_one_node_alone():
    options = PlacementOptions(numa_node=1, pin=True)
    found = place(TWO_NODES, None, options, lambda few, more: (more, "faster"), {})
    assert found.processors == (2, 3, 10, 11)
    assert found.pins == (2, 3, 10, 11), "a core of its own for each, before two share one"
    assert (found.policy, found.nodes) == (MemoryPolicy.BIND, (1,))
    with pytest.raises(ValueError, match="numa_node is 4; this process may use: 0, 1"):
        place(TWO_NODES, None, PlacementOptions(numa_node=4), never_asked, {})


def test_more_threads_than_processors_cannot_be_pinned():
    options = PlacementOptions(pin=True, threads=9)
    with pytest.raises(ValueError, match="9 threads on 8 processors"):
        place(TWO_NODES, None, options, never_asked, {})


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("threads", "0", "1 or more"),
        ("threads", "two", "a number"),
        ("pin", "yes", "allowed: on, off"),
        ("numa_node", "-1", "0 or more"),
    ],
)
def test_options_are_refused_with_what_is_allowed(name, text, words):
    with pytest.raises(ValueError, match=words):
        PlacementOptions.read({name: text})


def test_options_reach_the_platform(monkeypatch):
    monkeypatch.setattr(plugin.GIVEN, "placement", NO_OPTIONS)
    context = type("Context", (), {"options": {"threads": "3", "pin": "off"}})
    plugin.configure(context=context)
    before = torch.get_num_threads()
    try:
        plugin.platform(device=PROBE).activate()
        assert torch.get_num_threads() == 3
        if native.is_available():
            assert native.library.threads() == 3
    finally:
        torch.set_num_threads(before)
        native.set_threads(1)


def test_an_instruction_set_may_be_forced(monkeypatch):
    context = type("Context", (), {"options": {"isa": "portable"}})
    if native.is_available():
        before = native.instruction_set()
        try:
            plugin.configure(context=context)
            assert native.instruction_set() == "portable"
        finally:
            native.use_instruction_set(before)
        context.options["isa"] = "mmx"
        with pytest.raises(ValueError, match="'mmx' cannot be used; choose one of portable"):
            plugin.configure(context=context)
    monkeypatch.setattr(native, "library", None)
    with pytest.raises(ValueError, match="cannot be used: "):
        plugin.configure(context=context)


def test_threads_stay_where_they_are_bound():
    """The library's threads have Linux's names of their own: /proc shows where they may run."""
    if not native.is_available():
        pytest.skip(native.explanation())
    allowed = os.sched_getaffinity(0)
    target = max(allowed)
    try:
        native.set_threads(3, [target] * 3)
        work = thread_trial._product(64, 4 << 20)
        work()  # now there are threads
        bound = [os.sched_getaffinity(int(task)) for task in os.listdir("/proc/self/task")]
        assert bound.count({target}) >= 2 or len(allowed) == 1
        assert os.sched_getaffinity(0) == allowed, "the caller is left alone"
    finally:
        for index in (1, 2):
            native.library.bind_thread(index, -1)
        native.set_threads(1)
    assert all(os.sched_getaffinity(int(task)) == allowed for task in os.listdir("/proc/self/task"))


def test_fewer_threads_are_kept_unless_more_are_faster(monkeypatch):
    for gains, best in (((1.0, 1.01), 4), ((0.8, 1.5), 4), ((1.2, 1.0), 8), ((1.3, 1.2), 8)):
        measured = iter(gains)
        monkeypatch.setattr(thread_trial, "_product", lambda rows, size: None)
        monkeypatch.setattr(thread_trial, "_gain", lambda *given, it=measured: next(it))
        monkeypatch.setattr(native, "library", object())
        threads, figures = thread_trial.faster(4, 8)
        assert threads == best
        assert f"{gains[0]:.2f} of the speed" in figures
    monkeypatch.setattr(native, "library", None)
    assert thread_trial.faster(4, 8)[0] == 4


def test_policies_are_those_that_linux_then_reports():
    """In a thread of its own, whose policy ends with it."""
    if platform_name() not in GET_MEMPOLICY:
        pytest.skip("no number for the call is known")
    found = place([Node(0, ((0,),))], None, PlacementOptions(numa_node=0), never_asked, {})
    interleaved = replace(found, policy=MemoryPolicy.INTERLEAVE)
    reported = []

    def work():
        for each in (found, interleaved):
            if not placement._set_policy(each):
                return  # a container forbids it
            reported.append(_policy())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert reported in ([(2, 1), (3, 1)], [])


def _policy():
    """Mode and first nodes, of the calling thread."""
    mode, mask = ctypes.c_int(-1), (ctypes.c_ulong * 16)()
    size, none = ctypes.c_ulong(1024), ctypes.c_void_p(0)
    number = ctypes.c_long(GET_MEMPOLICY[platform_name()])
    call = ctypes.CDLL(None).syscall
    assert call(number, ctypes.byref(mode), mask, size, none, ctypes.c_ulong(0)) == 0
    return mode.value, mask[0]


def test_a_bound_engine_counts_its_nodes_memory_alone(monkeypatch):
    nodes = (Node(3, ((0,),), free_bytes=5 << 20),)
    monkeypatch.setattr(platform, "read_nodes", lambda: nodes)
    monkeypatch.setattr(platform, "apply_to_thread", lambda placement: None)
    before = torch.get_num_threads()
    try:
        bound = CpuPlatform(PROBE, PlacementOptions(numa_node=3))
        assert bound.memory().free_bytes > 5 << 20
        bound.activate()
        assert bound.memory().free_bytes == 5 << 20
    finally:
        torch.set_num_threads(before)
        native.set_threads(1)


def test_a_policy_that_linux_refuses_is_a_warning(monkeypatch, caplog):
    monkeypatch.setattr(placement, "_set_policy", lambda given: False)
    found = place(TWO_NODES, None, NO_OPTIONS, lambda few, more: (few, ""), {})
    with caplog.at_level(logging.WARNING):
        apply_to_thread(found)
    assert "seccomp" in caplog.text


def test_doctor_names_the_nodes(monkeypatch):
    assert all(
        each.name != "cpu nodes" or len(read_nodes()) > 1 for each in checks.run_checks(PROBE)
    )
    monkeypatch.setattr(checks, "read_nodes", lambda: TWO_NODES)
    found = {each.name: each for each in checks.run_checks(PROBE)}["cpu nodes"]
    assert found.status is CheckStatus.OK
    assert "chiplet-cpu.numa_node=0" in found.detail
    assert "--tensor-parallel-size 2" in found.detail


def shares(nodes, num_ranks, quota=None):
    """Where each of so many ranks is put."""
    return [
        place(
            nodes,
            quota,
            PlacementOptions(rank=rank, num_ranks=num_ranks),
            lambda few, more: (few, "no gain"),
            {},
        )
        for rank in range(num_ranks)
    ]


def test_ranks_take_a_node_each():
    first, second = shares(TWO_NODES, 2)
    assert (first.processors, second.processors) == ((0, 1, 8, 9), (2, 3, 10, 11))
    assert [each.policy for each in (first, second)] == [MemoryPolicy.BIND] * 2
    assert (first.nodes, second.nodes, second.threads) == ((0,), (1,), 2)
    assert second.is_kept
    assert second.memory_parts == 1
    assert second.reason.startswith("2 cores of node 1: ")


def test_more_ranks_than_nodes_share_them_evenly():
    found = shares(TWO_NODES, 4)
    assert [each.processors for each in found] == [(0, 8), (1, 9), (2, 10), (3, 11)]
    assert [each.nodes for each in found] == [(0,), (0,), (1,), (1,)]
    assert {each.memory_parts for each in found} == {2}


def test_ranks_that_nodes_cannot_share_out_take_cores_of_all():
    found = shares(TWO_NODES, 3)
    assert [each.processors for each in found] == [(0, 8), (1, 9), (2, 3, 10, 11)]
    assert {each.memory_parts for each in found} == {3}


def test_ranks_share_the_cores_of_one_node_and_are_not_bound():
    one = Node(0, ((0,), (1,)))
    first, second = shares([one], 2)
    assert (first.processors, second.processors) == ((0,), (1,))
    assert (first.threads, first.policy, first.is_kept) == (1, MemoryPolicy.LOCAL, False)
    assert first.reason.startswith("1 of 2 cores: ")
    crowded = shares([one], 3)
    assert [each.threads for each in crowded] == [1, 1, 1]
    assert "for 3 ranks" in crowded[0].reason
    assert [each.threads for each in shares(TWO_NODES, 2, quota=2)] == [1, 1]


def test_ranks_count_their_part_of_the_memory(monkeypatch):
    nodes = (Node(0, ((0,),), free_bytes=8 << 20), Node(1, ((1,),), free_bytes=6 << 20))
    monkeypatch.setattr(platform, "read_nodes", lambda: nodes)
    bound, alone = CpuPlatform(PROBE), CpuPlatform(PROBE)
    bound.take_share(1, 2)
    assert bound.memory().free_bytes == 6 << 20
    assert bound.memory().total_bytes == alone.memory().total_bytes // 2
