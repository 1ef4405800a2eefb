"""Weights of four bits: how they lie, who serves them, and products on a GPU."""

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
from chiplet_nvidia import plugin
from chiplet_nvidia.linear import int4
from chiplet_nvidia.linear.int4 import Int4Provider, tilings
from chiplet_nvidia.linear.int4_layout import pack_codes, pack_scales
from chiplet_nvidia.platform import CudaPlatform


def request(k=256, n=48, *, group=128, dtype=Dtype.BFLOAT16, zeros=True, bias=False):
    scheme = WeightScheme(
        coding=Coding.INT4,
        granularity=Granularity.GROUP,
        group_size=group,
        has_zero_points=zeros,
    )
    return LinearRequest(
        role="x", in_features=k, out_features=n, dtype=dtype, has_bias=bias, scheme=scheme
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
