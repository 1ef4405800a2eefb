"""Kernels of linear layers run by Triton's interpreter, against the reference.

float32 and float16 only: the interpreter computes bfloat16 on bit patterns, silently wrong.
"""

from types import SimpleNamespace

import pytest
import torch

from chiplet.api import (
    Activations,
    BuildContext,
    Coding,
    DeviceProbe,
    Dtype,
    Granularity,
    LinearRequest,
    LinearWeights,
    MoeRequest,
    WeightScheme,
)
from chiplet.testing.conformance import WEIGHT_SCHEMES, MoeLoad, check_linear, check_moe
from chiplet_triton import plugin
from chiplet_triton.linear import quantized
from chiplet_triton.linear.quantized import QuantizedLinear, Tiling

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy on NaN and infinity

FACTS = {"cores": "4", "capability": "8.9"}
DEVICE = DeviceProbe(device_type="cuda", index=0, name="none", total_memory_bytes=1, facts=FACTS)
CONTEXT = BuildContext(SimpleNamespace(torch_device=torch.device("cpu")))
DTYPES = (Dtype.FLOAT32, Dtype.FLOAT16)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_tokens", [1, 2, 4, 7, 33])
@pytest.mark.parametrize(("k", "n"), [(300, 65), (1024, 16)])
def test_linear(k, n, num_tokens, dtype):
    provider, _ = plugin.linear(device=DEVICE)
    request = LinearRequest(
        role="x", in_features=k, out_features=n, dtype=dtype, has_bias=num_tokens % 2 == 0
    )
    assert check_linear(provider, request, CONTEXT, num_tokens=num_tokens)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_tokens", [1, 5, 70])
@pytest.mark.parametrize(("k", "n"), [(300, 130), (2304, 34)])
def test_gated_linear(k, n, num_tokens, dtype):
    provider, _ = plugin.linear(device=DEVICE)
    request = LinearRequest(
        role="x",
        in_features=k,
        out_features=n,
        dtype=dtype,
        has_bias=num_tokens == 5,
        is_gated=True,
    )
    assert check_linear(provider, request, CONTEXT, num_tokens=num_tokens)


SCHEMES = [each for each in WEIGHT_SCHEMES if each.coding.block is None]
SERVED_SCHEMES = [
    *(each for each in SCHEMES if each.coding is not Coding.INT8 or not each.group_size),
    WeightScheme(coding=Coding.FP8_E4M3, granularity=Granularity.BLOCK, group_size=128),
]
SERVED_SCHEMES.remove(WeightScheme(coding=Coding.INT4, granularity=Granularity.CHANNEL))


def check_scheme(scheme, sizes, *, num_tokens, dtype):
    provider, _ = plugin.linear(device=DEVICE)
    request = LinearRequest(
        role="x",
        in_features=sizes[0],
        out_features=sizes[1],
        dtype=dtype,
        has_bias=num_tokens != 1,
        scheme=scheme,
        is_gated=sizes[1] % 2 == 0,
    )
    assert check_linear(provider, request, CONTEXT, num_tokens=num_tokens)


@pytest.mark.parametrize("scheme", SERVED_SCHEMES, ids=str)
@pytest.mark.parametrize(("num_tokens", "dtype"), [(1, Dtype.FLOAT16), (33, Dtype.FLOAT32)])
def test_quantized_linear(scheme, num_tokens, dtype):
    # No whole step of the kernels where the scheme allows it, and so many that K is split.
    k = {64: 320, 128: 384}.get(scheme.group_size, 288)
    k = 2304 if num_tokens > 1 and scheme.coding in (Coding.NVFP4, Coding.INT8) else k
    check_scheme(scheme, (k, 10 if num_tokens == 1 else 70), num_tokens=num_tokens, dtype=dtype)


@pytest.mark.parametrize("scheme", SERVED_SCHEMES, ids=str)
def test_quantized_linear_of_many_rows(scheme, monkeypatch):
    monkeypatch.setattr(quantized, "_MAX_SKINNY_ROWS", 8)
    k = 384 if scheme.group_size in (64, 128) else 288
    check_scheme(scheme, (k, 150), num_tokens=19, dtype=Dtype.FLOAT16)


def test_many_blocks_of_rows_share_a_grid(monkeypatch):
    monkeypatch.setattr(quantized, "_MAX_SKINNY_ROWS", 8)
    monkeypatch.setattr(QuantizedLinear, "_large_tiling", lambda self: Tiling(16, 32, 64, 1, 4, 2))
    scheme = WeightScheme(
        coding=Coding.INT8, granularity=Granularity.CHANNEL, activations=Activations.PER_TOKEN
    )
    # Nine blocks: eight that follow one another, and one.
    check_scheme(scheme, (64, 70), num_tokens=135, dtype=Dtype.FLOAT32)


E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
E2M1 = torch.cat([E2M1, -E2M1])


@pytest.mark.parametrize("group_size", [16, 32])
def test_fp4_is_unpacked_as_it_is_defined(group_size):
    """Every code with every scale, of a row whose largest scale is 1 and of one that is tiny."""
    is_mx = group_size == 32
    scheme = WeightScheme(
        coding=Coding.MXFP4 if is_mx else Coding.NVFP4,
        granularity=Granularity.GROUP,
        group_size=group_size,
    )
    codes = torch.arange(256, dtype=torch.uint8).repeat(2 * group_size)
    num_scales = codes.numel() * 2 // group_size
    scales = torch.arange(num_scales) % 256
    scales[(scales & 0x7F) == 0x7F] = 1  # NaN, of both kinds
    scales = torch.stack([scales, scales % 8]).to(torch.uint8)
    weights = LinearWeights(
        scheme=scheme,
        weight=torch.stack([codes, codes]),
        scales=scales if is_mx else scales.view(torch.float8_e4m3fn),
        global_scales=None if is_mx else torch.tensor([0.7, 1e-9]),
    )
    n, k = weights.shape
    request = LinearRequest(
        role="x", in_features=k, out_features=n, dtype=Dtype.FLOAT32, scheme=scheme
    )
    provider, _ = plugin.linear(device=DEVICE)
    impl = provider.build(request, CONTEXT)
    plain = impl._plain(impl.pack(weights), torch.float32)
    nibbles = torch.stack([weights.weight & 15, weights.weight >> 4], dim=-1).flatten(1).long()
    factors = torch.exp2(scales.float() - 127) if is_mx else weights.scales.float()
    exact = E2M1[nibbles] * factors.repeat_interleave(group_size, 1)
    if not is_mx:
        exact *= weights.global_scales[:, None]
    is_kept = exact.abs() >= exact.abs().amax(1, keepdim=True) * 2.0**-126
    assert is_kept.float().mean() > 0.4
    torch.testing.assert_close(plain[is_kept], exact[is_kept], rtol=3e-7, atol=0)


EXPERT_SCHEMES = [
    each
    for each in SERVED_SCHEMES
    if each.granularity in (Granularity.CHANNEL, Granularity.GROUP)
    and each.activations is not Activations.STATIC
    and each.group_size in (0, 16, 32)
]


@pytest.mark.parametrize("scheme", EXPERT_SCHEMES, ids=str)
def test_quantized_experts(scheme):
    (provider,) = plugin.moe(device=DEVICE)
    is_even = EXPERT_SCHEMES.index(scheme) % 2 == 0
    request = MoeRequest(
        hidden_size=160,
        intermediate_size=96,
        num_experts=3,
        top_k=2,
        renormalize=True,
        dtype=DTYPES[is_even],
        scheme=scheme,
    )
    load = MoeLoad.SPREAD if is_even else MoeLoad.ONE_TAKES_ALL
    assert check_moe(provider, request, CONTEXT, num_tokens=29 if is_even else 3, load=load)
