"""Weights of four bits: how they lie, who serves them, and products on a GPU."""

import shutil
import subprocess
from importlib.resources import as_file, files

import pytest
import torch

from chiplet.api import (
    BuildContext,
    Coding,
    Dtype,
    Granularity,
    HostFacts,
    LinearRequest,
    No,
    WeightScheme,
    Yes,
)
from chiplet.testing.conformance import check_linear
from chiplet.testing.conformance.linear import make_inputs, on_device
from chiplet_nvidia import plugin
from chiplet_nvidia.linear import int4
from chiplet_nvidia.linear.int4 import WIDE_TILINGS, Int4Provider, gated_tiling, tilings
from chiplet_nvidia.linear.int4_layout import pack_codes, pack_scales
from chiplet_nvidia.linear.int4_wgmma import Int4Wgmma
from chiplet_nvidia.linear.tiles import Problem, schedule_of
from chiplet_nvidia.platform import CudaPlatform


def request(k=256, n=48, *, group=128, dtype=Dtype.BFLOAT16, zeros=True, bias=False, gated=False):
    scheme = WeightScheme(
        coding=Coding.INT4,
        granularity=Granularity.GROUP,
        group_size=group,
        has_zero_points=zeros,
    )
    return LinearRequest(
        role="x",
        in_features=k,
        out_features=n,
        dtype=dtype,
        has_bias=bias,
        scheme=scheme,
        is_gated=gated,
    )


def read(words, feature, k):
    """The number of an element, where the module's legend and the kernel look for it."""
    tile, h, r = feature // 16, feature % 16 // 8, feature % 8
    block, b, j, s, p, e = k // 64, k // 32 % 2, k // 8 % 4, k // 4 % 2, k // 2 % 2, k % 2
    word = int(words[tile, block, 4 * r + j, 2 * b + s]) & 0xFFFFFFFF
    return word >> (4 * (4 * e + 2 * p + h)) & 15


def test_elements_lie_where_the_kernel_looks_for_them():
    codes = torch.randint(0, 16, (32, 128), dtype=torch.uint8)
    words = pack_codes(codes[:, ::2] | codes[:, 1::2] << 4).view(torch.int32)
    found = [[read(words, n, k) for k in range(128)] for n in range(32)]
    assert torch.equal(torch.tensor(found, dtype=torch.uint8), codes)


@pytest.mark.parametrize("has_zeros", [True, False])
def test_scales_carry_zero_points(has_zeros):
    scales = torch.randn(32, 3)
    zeros = torch.randint(0, 17, (32, 3), dtype=torch.uint8) if has_zeros else None
    packed = pack_scales(scales, zeros).transpose(1, 2).reshape(32, 3)
    assert torch.equal(packed & 31, torch.full((32, 3), 8) if zeros is None else zeros.int())
    torch.testing.assert_close((packed & ~31).view(torch.float32), scales, rtol=2**-19, atol=0)


@pytest.mark.parametrize("out_features", [48, 4096, 28672])
def test_cuts_serve_more_and_more_rows_in_whole_tiles(out_features):
    cuts = tilings(out_features)
    assert [cut.rows for cut in cuts] == sorted(cut.rows for cut in cuts)
    assert all(out_features % (16 * cut.feature_tiles) == 0 for cut in cuts)
    # Sums of all warps stand in shared memory, of which a kernel has 48 KiB unasked.
    assert all(cut.warps * cut.rows * 16 * cut.feature_tiles * 4 <= 48 << 10 for cut in cuts)


@pytest.mark.parametrize("rows", [1, 8, 9, 16])
def test_a_block_has_gates_and_what_they_are_for(rows):
    cut = gated_tiling(rows)
    assert cut.feature_tiles == 2
    assert rows <= cut.rows
    assert cut.warps * cut.rows * 32 * 4 <= 48 << 10


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        (LinearRequest(role="x", in_features=256, out_features=48, dtype=Dtype.BFLOAT16), "scheme"),
        (request(group=16), "scheme"),
        (request(dtype=Dtype.FLOAT32), "dtype"),
        (request(k=192), "shape"),
        (request(n=40), "shape"),
    ],
    ids=str,
)
def test_what_has_no_kernel_is_refused(asked, code, monkeypatch):
    monkeypatch.setattr(int4, "has_compiler", lambda: True)
    verdict = Int4Provider((9, 0)).assess(asked)
    assert isinstance(verdict, No)
    assert verdict.reasons[0].code == code
    assert isinstance(Int4Provider((9, 0)).assess(request()), Yes)
    assert isinstance(Int4Provider((7, 5)).assess(request()), No)


def segments(schedule, block, blocks):
    """What a block computes, as the kernel's struct Work finds it: tile, first step, last."""
    units = schedule.shared_tiles * schedule.steps
    unit, end = units * block // blocks, units * (block + 1) // blocks
    while unit < end:
        tile, begin = divmod(unit, schedule.steps)
        until = min(schedule.steps, begin + end - unit)
        yield tile, begin, until
        unit += until - begin
    tiles = schedule.row_tiles * schedule.feature_tiles
    for tile in range(schedule.shared_tiles + block, tiles, blocks):
        yield tile, 0, schedule.steps


@pytest.mark.parametrize(
    "problem", [(1, 1, 2), (1, 22, 32), (2, 224, 32), (2, 66, 112), (3, 150, 5), (1, 264, 9)]
)
def test_each_step_of_each_tile_is_computed_once(problem):
    schedule, blocks = schedule_of(Problem(*problem), 132)
    assert 1 <= blocks <= 132
    found = []
    for block in range(blocks):
        mine = list(segments(schedule, block, blocks))
        # A block has one place for a share, and goes on to what it finishes itself.
        assert all(begin == 0 for _, begin, _ in mine[1:])
        found += [(tile, step) for tile, begin, end in mine for step in range(begin, end)]
    tiles = schedule.row_tiles * schedule.feature_tiles
    assert sorted(found) == [
        (tile, step) for tile in range(tiles) for step in range(schedule.steps)
    ]


@pytest.mark.parametrize("tiling", [WIDE_TILINGS[1], WIDE_TILINGS[-1]], ids=str)
def test_the_kernel_for_many_rows_keeps_its_numbers_in_registers(tiling, tmp_path):
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc is not here")
    kernel = Int4Wgmma(tiling, torch.bfloat16, 64).kernel
    defines = [each for each in kernel.options if each.startswith("-D")]
    assert "-arch=sm_90a" in kernel.options
    target = ["-gencode=arch=compute_90a,code=sm_90a", "-Xptxas=-v", "-cubin", "-o"]
    with as_file(files("chiplet_nvidia") / "kernels" / "int4_wgmma.cu") as source:
        command = ["nvcc", *defines, *target, str(tmp_path / "kernel.cubin"), str(source)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    report = done.stdout + done.stderr
    assert "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads" in report
    # A warning would say that products are waited for one by one, or that roles keep no registers.
    assert "warning" not in report.lower()


@pytest.mark.device
@pytest.mark.parametrize("dtype", [Dtype.BFLOAT16, Dtype.FLOAT16])
@pytest.mark.parametrize("num_tokens", [1, 8, 9, 31, 33, 64, 130, 257])
@pytest.mark.parametrize(
    ("k", "n", "group", "zeros"),
    [(256, 48, 128, True), (1152, 64, 32, False), (640, 6144, 64, True)],
)
def test_products(k, n, group, zeros, num_tokens, dtype):
    (probe, *_) = plugin.probe(host=HostFacts(machine="x86_64", num_cores=2, total_memory_bytes=1))
    platform = CudaPlatform(probe)
    platform.activate()
    provider = next(each for each in plugin.linear(device=probe) if each.name == "int4")
    asked = request(k, n, group=group, zeros=zeros, dtype=dtype, bias=num_tokens % 2 == 0)
    assert check_linear(provider, asked, BuildContext(platform), num_tokens=num_tokens)


@pytest.mark.device
@pytest.mark.parametrize("dtype", [Dtype.BFLOAT16, Dtype.FLOAT16])
@pytest.mark.parametrize("num_tokens", [1, 7, 9, 16, 17, 64, 257])
@pytest.mark.parametrize(("k", "n"), [(256, 48), (1152, 64), (640, 6144)])
def test_gated_products(k, n, num_tokens, dtype):
    (probe, *_) = plugin.probe(host=HostFacts(machine="x86_64", num_cores=2, total_memory_bytes=1))
    platform = CudaPlatform(probe)
    platform.activate()
    provider = next(each for each in plugin.linear(device=probe) if each.name == "int4")
    asked = request(k, n, dtype=dtype, bias=num_tokens % 2 == 0, gated=True)
    assert check_linear(provider, asked, BuildContext(platform), num_tokens=num_tokens)


@pytest.mark.device
@pytest.mark.parametrize("num_tokens", [20, 64, 200])
def test_shares_of_tiles_are_added_in_the_same_order_every_time(num_tokens):
    (probe, *_) = plugin.probe(host=HostFacts(machine="x86_64", num_cores=2, total_memory_bytes=1))
    platform = CudaPlatform(probe)
    platform.activate()
    provider = next(each for each in plugin.linear(device=probe) if each.name == "int4")
    asked = request(4096, 10240)
    impl = provider.build(asked, BuildContext(platform))
    _, weights = make_inputs(asked, 1)
    packed = impl.pack(on_device(weights, platform.torch_device))
    x = torch.randn(num_tokens, 4096, dtype=torch.bfloat16, device=platform.torch_device)
    first = impl.run(x, packed)
    assert all(torch.equal(impl.run(x, packed), first) for _ in range(20))
