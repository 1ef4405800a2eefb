"""What lies between two attentions in one kernel: for which shapes, and what it computes."""

import time
from dataclasses import replace
from importlib.resources import files
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from torch.nn import functional as F

from chiplet.api import (
    BuildContext,
    Coding,
    DeviceProbe,
    Dtype,
    Granularity,
    HostFacts,
    LinearRequest,
    LinearWeights,
    No,
    Product,
    StretchProvider,
    StretchRequest,
    WeightScheme,
)
from chiplet.testing.conformance import dequantize, random_weights
from chiplet.testing.conformance.linear import on_device
from chiplet_nvidia import plugin
from chiplet_nvidia.linear.cublas import CublasLinear
from chiplet_nvidia.linear.int4 import Int4Provider
from chiplet_nvidia.linear.stretch import (
    E4M3,
    INT4,
    PLAIN,
    Shape,
    StretchOnlyProvider,
    shape_of,
)
from chiplet_nvidia.platform import CudaPlatform

LLAMA_8B = Shape(
    cut=PLAIN,
    is_bfloat16=True,
    group=128,
    hidden=4096,
    inner=14336,
    heads=4096,
    following=6144,
    blocks=132,
)
FP8 = WeightScheme(coding=Coding.FP8_E4M3, granularity=Granularity.CHANNEL)


def int4(group=128, *, has_zero_points=True):
    return WeightScheme(
        coding=Coding.INT4,
        granularity=Granularity.GROUP,
        group_size=group,
        has_zero_points=has_zero_points,
    )


class Elsewhere(NamedTuple):
    """Weights of which nothing is read but where they are."""

    scheme: WeightScheme | None
    weight: object
    scales: object
    bias: object

    class Tensor:
        device = torch.device("cuda")


class AsItCame(CublasLinear):
    """Weights in eight bits that lie as they came."""

    def pack(self, weights):
        return weights

    def stored(self, packed):
        return packed

    def run(self, x, packed):
        return F.linear(x, dequantize(packed).to(x.dtype), packed.bias)


@pytest.mark.parametrize("cut", [PLAIN, E4M3, INT4])
def test_the_shapes_of_an_8b_model_fit(cut):
    shape = replace(LLAMA_8B, cut=cut)
    assert shape.refusal == ""
    # 14,336 gates and as many ups, dealt to 132 multiprocessors, in pairs of outputs or of tiles.
    assert shape.values == (224 if cut is INT4 else 218)
    assert shape.defines["VALUES"] == shape.values
    assert replace(shape, following=0).refusal == ""


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"hidden": 4097}, "no multiples of"),
        ({"heads": 4160}, "dealt evenly"),
        ({"inner": 11264 + 256}, "dealt evenly"),
        ({"blocks": 4}, "shared memory"),
    ],
)
def test_other_shapes_are_refused(change, text):
    assert text in replace(LLAMA_8B, **change).refusal


def test_every_constant_of_the_source_is_given():
    source = (files("chiplet_nvidia") / "kernels" / "stretch.cu").read_text("utf-8")
    stated = source[source.index("Defined by whoever") : source.index("typedef")]
    for name in LLAMA_8B.defines:
        assert name in stated


def test_layers_alone_are_refused_and_other_gpus():
    facts = {"capability": "8.0", "cores": "108"}
    probe = DeviceProbe(device_type="cuda", index=0, name="A100", total_memory_bytes=1, facts=facts)
    provider = StretchOnlyProvider(probe)
    asked = LinearRequest(role="x", in_features=256, out_features=256, dtype=Dtype.BFLOAT16)
    assert isinstance(provider.assess(asked), No)
    assert isinstance(provider, StretchProvider)
    assert provider.stretch(make_request(None), BuildContext(None)) is None


def test_weights_in_different_codings_are_refused():
    request = make_request(None)
    on_gpu = [Elsewhere(None, Elsewhere.Tensor(), None, None) for _ in request.products]
    assert shape_of(request, on_gpu, 132) is not None
    on_gpu[2] = on_gpu[2]._replace(scheme=FP8)
    assert shape_of(request, on_gpu, 132) is None


def test_a_bias_before_a_norm_is_refused():
    request = make_request(None)
    stored = [Elsewhere(None, Elsewhere.Tensor(), None, None) for _ in request.products]
    last = [*stored[:3], stored[3]._replace(bias=torch.zeros(1))]
    assert shape_of(request, last, 132) is not None
    assert shape_of(request, [stored[0]._replace(bias=torch.zeros(1)), *stored[1:]], 132) is None


def make_request(scheme, **others):
    return make_layers(scheme, **others)[0]


def make_layers(
    scheme, *, sizes=(512, 1024, 512, 768), dtype=Dtype.BFLOAT16, device="cpu", has_following=True
):
    """A request and its weights in float64; sizes: hidden, inner, heads, last."""
    hidden, inner, heads, last = sizes
    shapes = {"o_proj": (hidden, heads), "gate_up_proj": (2 * inner, hidden)}
    shapes |= {"down_proj": (hidden, inner), "qkv_proj": (last, hidden)}
    random = torch.Generator(device).manual_seed(time.time_ns() % 2**31)
    made = [make_product(role, shapes[role], scheme, dtype, random, device) for role in shapes]
    products, plain = zip(*made, strict=True)
    norms = torch.rand(2, hidden, generator=random, device=device) + 0.5
    norms = norms.to(device, getattr(torch, dtype.value))
    request = StretchRequest(
        out=products[0],
        gate_up=products[1],
        down=products[2],
        following=products[3] if has_following else None,
        norm=norms[0],
        following_norm=norms[1] if has_following else None,
        eps=1e-5,
    )
    return request, plain


def make_product(role, shape, scheme, dtype, random, device):
    n, k = shape
    asked = LinearRequest(
        role=role,
        in_features=k,
        out_features=n,
        dtype=dtype,
        scheme=scheme,
        is_gated=role == "gate_up_proj",
        has_bias=role == "qkv_proj",
    )
    torch_dtype = getattr(torch, dtype.value)
    if scheme is None:
        matrix = (torch.randn(n, k, generator=random, device=device) * k**-0.5).to(torch_dtype)
        weights = LinearWeights(scheme=None, weight=matrix)
    else:
        weights = random_weights(scheme, shape, random, k**-0.5)
    if role == "qkv_proj":
        weights = replace(
            weights, bias=torch.randn(n, generator=random, device=device).to(torch_dtype)
        )
    plain = weights.weight if scheme is None else dequantize(weights)
    bias = 0 if weights.bias is None else weights.bias.double().to(device)
    weights = on_device(weights, torch.device(device))
    is_int4 = scheme is not None and scheme.coding is Coding.INT4
    context = BuildContext(SimpleNamespace(torch_device=torch.device(device)))
    impl = Int4Provider((9, 0)).build(asked, context) if is_int4 else AsItCame()
    return Product(asked, impl, impl.pack(weights)), (plain.double().to(device), bias)


def expected(request, plain, attended, residual):
    """In float64, with the roundings between kernels that a residual has in any case."""
    (out, _), (gate_up, _), (down, _), (last, bias) = plain
    dtype = residual.dtype
    middle = (residual.double() + (attended.double() @ out.T).to(dtype)).to(dtype).double()
    gate, up = (rms_norm(middle, request.norm, request.eps) @ gate_up.T).chunk(2, dim=-1)
    inner = (F.silu(gate) * up).to(dtype).double()
    total = middle + inner @ down.T
    if request.following is None:
        return total, None
    return total, rms_norm(total.to(dtype).double(), request.following_norm, 1e-5) @ last.T + bias


def rms_norm(x, weight, eps):
    return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * weight.double()


def off_by(found, wanted):
    return float((found.double() - wanted).norm() / wanted.norm())


BFLOAT16, FLOAT16 = Dtype.BFLOAT16, Dtype.FLOAT16
LLAMA_8B_SIZES, SMALL, MANY_HEADS = (
    (4096, 14336, 4096, 6144),
    (2048, 8192, 2048, 3072),
    (2048, 14336, 4096, 4096),
)


@pytest.mark.device
@pytest.mark.parametrize(
    ("scheme", "sizes", "dtype"),
    [
        (None, LLAMA_8B_SIZES, BFLOAT16),
        (None, SMALL, FLOAT16),
        (None, MANY_HEADS, BFLOAT16),
        (FP8, LLAMA_8B_SIZES, BFLOAT16),
        (FP8, SMALL, FLOAT16),
        (FP8, MANY_HEADS, BFLOAT16),
        (int4(), LLAMA_8B_SIZES, BFLOAT16),
        (int4(), SMALL, FLOAT16),
        (int4(64), MANY_HEADS, BFLOAT16),
        (int4(32), SMALL, BFLOAT16),
        (int4(has_zero_points=False), LLAMA_8B_SIZES, FLOAT16),
    ],
)
def test_a_stretch_computes_what_its_layers_do(scheme, sizes, dtype):
    (probe, *_) = plugin.probe(host=HostFacts(machine="x86_64", num_cores=2, total_memory_bytes=1))
    platform = CudaPlatform(probe)
    platform.activate()
    provider = next(each for each in plugin.linear(device=probe) if each.name == "stretch")
    for has_following in (True, False):
        request, plain = make_layers(
            scheme, sizes=sizes, dtype=dtype, device="cuda", has_following=has_following
        )
        stretch = provider.stretch(request, BuildContext(platform))
        if probe.facts["capability"] != "9.0":
            assert stretch is None
            return
        assert stretch is not None
        x = torch.randn(2, max(sizes), dtype=torch.float32, device="cuda").to(request.norm.dtype)
        attended, residual = x[:1, : sizes[2]].contiguous(), 3 * x[1:, : sizes[0]]
        first = stretch.run(attended, residual)
        for found, wanted in zip(first, expected(request, plain, attended, residual), strict=True):
            assert (found is None) == (wanted is None)
            assert found is None or off_by(found, wanted) < 5e-3
        for _ in range(20):
            again = stretch.run(attended, residual)
            assert torch.equal(again[0], first[0])
            assert first[1] is None or torch.equal(again[1], first[1])
