"""Limits of containers, from files as cgroup v1 and v2 have them."""

import pytest

from chiplet_cpu.cgroup import MemoryLimit, cpu_quota, memory_limit

MIB = 1 << 20


@pytest.fixture
def write(tmp_path):
    def write(path, text):
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")

    return write


def test_without_cgroups(tmp_path):
    assert memory_limit(tmp_path) is None
    assert cpu_quota(tmp_path) is None


def test_v2(tmp_path, write):
    write("proc/self/cgroup", "0::/pod/box")
    write("sys/fs/cgroup/pod/box/memory.max", "max")
    write("sys/fs/cgroup/pod/memory.max", 500 * MIB)
    write("sys/fs/cgroup/pod/memory.current", 300 * MIB)
    write("sys/fs/cgroup/pod/memory.stat", f"anon 5\ninactive_file {100 * MIB}")
    write("sys/fs/cgroup/pod/box/cpu.max", "150000 100000")
    write("sys/fs/cgroup/pod/cpu.max", "max 100000")
    assert memory_limit(tmp_path) == MemoryLimit(500 * MIB, 200 * MIB)
    assert memory_limit(tmp_path).free_bytes == 300 * MIB
    assert cpu_quota(tmp_path) == 2


def test_v2_inside_a_container(tmp_path, write):
    # The path is the host's, while the mount shows the container's own group.
    write("proc/self/cgroup", "0::/host/only/path")
    write("sys/fs/cgroup/memory.max", 64 * MIB)
    write("sys/fs/cgroup/memory.current", 70 * MIB)
    assert memory_limit(tmp_path).free_bytes == 0


def test_the_tightest_group_counts(tmp_path, write):
    write("proc/self/cgroup", "0::/a/b")
    for path, limit, used in (("a", 100, 90), ("a/b", 50, 10)):
        write(f"sys/fs/cgroup/{path}/memory.max", limit * MIB)
        write(f"sys/fs/cgroup/{path}/memory.current", used * MIB)
    assert memory_limit(tmp_path).free_bytes == 10 * MIB


def test_v1(tmp_path, write):
    write("proc/self/cgroup", "4:memory:/box\n1:cpu,cpuacct:/box\n0::/")
    write("sys/fs/cgroup/memory/box/memory.limit_in_bytes", 200 * MIB)
    write("sys/fs/cgroup/memory/box/memory.usage_in_bytes", 150 * MIB)
    write("sys/fs/cgroup/memory/box/memory.stat", f"total_inactive_file {30 * MIB}")
    write("sys/fs/cgroup/memory/memory.limit_in_bytes", 9223372036854771712)
    write("sys/fs/cgroup/cpu/box/cpu.cfs_quota_us", 100000)
    write("sys/fs/cgroup/cpu/box/cpu.cfs_period_us", 100000)
    write("sys/fs/cgroup/cpu/cpu.cfs_quota_us", -1)
    write("sys/fs/cgroup/cpu/cpu.cfs_period_us", 100000)
    assert memory_limit(tmp_path) == MemoryLimit(200 * MIB, 120 * MIB)
    assert cpu_quota(tmp_path) == 1
