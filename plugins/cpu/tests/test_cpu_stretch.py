"""What lies between two attentions in one call: the bits of its layers, and nearly exact sums."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from chiplet.api import (
    Activations,
    BuildContext,
    Coding,
    DeviceProbe,
    Dtype,
    Granularity,
    LinearRequest,
    LinearWeights,
    Op,
    OpRequest,
    Product,
    StretchProvider,
    StretchRequest,
    WeightScheme,
)
from chiplet.testing.conformance import dequantize, random_weights
from chiplet_cpu import native
from chiplet_cpu.linear.native import NativeInt8Provider, NativeLinearProvider
from chiplet_cpu.linear.plain import TorchLinearProvider
from chiplet_cpu.linear.stretch import MAX_ROWS
from chiplet_cpu.ops.native import NativeOpsProvider
from chiplet_cpu.platform import CpuPlatform

PROBE = DeviceProbe(device_type="cpu", index=0, name="A CPU", total_memory_bytes=1)
CONTEXT = BuildContext(CpuPlatform(PROBE))
KEPT, ROUNDED = NativeLinearProvider(), NativeInt8Provider()

PACKED = {
    coding: WeightScheme(coding=coding, granularity=Granularity.PACKED)
    for coding in (Coding.Q4_0, Coding.Q4_1, Coding.Q8_0, Coding.Q4_K, Coding.Q6_K)
}
INT8 = WeightScheme(
    coding=Coding.INT8, granularity=Granularity.CHANNEL, activations=Activations.PER_TOKEN
)
INT4 = WeightScheme(coding=Coding.INT4, granularity=Granularity.GROUP, group_size=64)
SERVED = [
    *((KEPT, scheme) for scheme in (None, INT4, *PACKED.values())),
    *((ROUNDED, scheme) for scheme in (INT8, INT4, *PACKED.values())),
]
# Random minima make weights of one sign, whose sums are small beside what is rounded before them.
CENTRED = [each for each in SERVED if each[1] not in (PACKED[Coding.Q4_1], PACKED[Coding.Q4_K])]


def over(layers):
    names = [f"{each.name}-{scheme}" for each, scheme in layers]
    return pytest.mark.parametrize(("provider", "scheme"), layers, ids=names)


def make_layers(provider, scheme, dtype, *, width=256, has_following=True):
    """A request, and the weights and biases of its products in float64."""
    random = torch.Generator().manual_seed(torch.seed() % 2**31)
    hidden, heads = 256, 512
    shapes = {"o_proj": (hidden, heads), "gate_up_proj": (2 * width, hidden)}
    shapes |= {"down_proj": (hidden, width), "qkv_proj": (392, hidden)}
    products, plain = zip(
        *(make_product(provider, role, shapes[role], scheme, dtype, random) for role in shapes),
        strict=True,
    )
    norms = (torch.rand(2, hidden, generator=random) + 0.5).to(getattr(torch, dtype))
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


def make_product(provider, role, shape, scheme, dtype, random):
    n, k = shape
    torch_dtype = getattr(torch, dtype)
    if scheme is None:
        matrix = torch.randn(n, k, generator=random) * k**-0.5
        weights = LinearWeights(scheme=None, weight=matrix.to(torch_dtype))
    else:
        weights = random_weights(scheme, shape, random, k**-0.5)
    bias = torch.randn(n, generator=random).to(torch_dtype)
    weights = replace(weights, bias=bias)
    asked = LinearRequest(
        role=role,
        in_features=k,
        out_features=n,
        dtype=dtype,
        scheme=scheme,
        is_gated=role == "gate_up_proj",
        has_bias=True,
    )
    plain = weights.weight if scheme is None else dequantize(weights)
    impl = provider.build(asked, CONTEXT)
    return Product(asked, impl, impl.pack(weights)), (plain.double(), bias.double())


def inputs_of(request, rows):
    random = torch.Generator().manual_seed(torch.seed() % 2**31)
    dtype = request.norm.dtype
    attended = torch.randn(rows, request.out.request.in_features, generator=random)
    residual = torch.randn(rows, len(request.norm), generator=random)
    return attended.to(dtype), residual.to(dtype)


def one_by_one(request, attended, residual):
    """The same products and operations, each called by itself."""
    dtype = request.out.request.dtype
    asked = OpRequest(op=Op.ADD_RMS_NORM, dtype=dtype)
    add_rms_norm = NativeOpsProvider().build(asked, CONTEXT)

    def run(product, x):
        return product.impl.run(x, product.packed)

    x, total = add_rms_norm(run(request.out, attended), residual, request.norm, request.eps)
    x = run(request.down, request.gate_up.impl.run_silu_mul(x, request.gate_up.packed))
    if request.following is None:
        return total + x, None
    x, total = add_rms_norm(x, total, request.following_norm, request.eps)
    return total, run(request.following, x)


def in_float64(plain, request, attended, residual):
    out, gate_up, down, following = plain
    total = residual.double() + product(out, attended.double())
    gate, up = product(gate_up, rms_norm(total, request.norm)).chunk(2, dim=-1)
    total = total + product(down, F.silu(gate) * up)
    return total, product(following, rms_norm(total, request.following_norm))


def product(layer, x):
    return x @ layer[0].T + layer[1]


def rms_norm(x, weight):
    return x * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * weight.double()


@pytest.mark.parametrize("dtype", list(Dtype))
@over(SERVED)
def test_it_gives_the_bits_of_its_layers(isa, threads, provider, scheme, dtype):
    # Plain weights take a width that fills no panel: one then holds gates and what they are for.
    width = 264 if scheme is None else 256
    for rows, has_following in ((1, True), (2, True), (5, False), (MAX_ROWS, True)):
        request, _ = make_layers(provider, scheme, dtype, width=width, has_following=has_following)
        inputs = inputs_of(request, rows)
        found = provider.stretch(request, CONTEXT).run(*inputs)
        for mine, theirs in zip(found, one_by_one(request, *inputs), strict=True):
            assert (mine is None) == (theirs is None)
            assert mine is None or torch.equal(mine, theirs)


@pytest.mark.parametrize("rows", [1, 2, 3, MAX_ROWS])
@pytest.mark.parametrize("dtype", [Dtype.FLOAT32, Dtype.BFLOAT16])
@over(CENTRED)
def test_it_is_close_to_float64(provider, scheme, dtype, rows):
    request, plain = make_layers(provider, scheme, dtype)
    inputs = inputs_of(request, rows)
    found = provider.stretch(request, CONTEXT).run(*inputs)
    allowed = 1e-5 if provider is KEPT and dtype is Dtype.FLOAT32 else 4e-2
    for mine, exact in zip(found, in_float64(plain, request, *inputs), strict=True):
        assert float((mine.double() - exact).norm() / exact.norm()) < allowed


def test_inputs_are_left_as_they_were():
    request, _ = make_layers(KEPT, None, Dtype.BFLOAT16)
    attended, residual = inputs_of(request, 2)
    kept = attended.clone(), residual.clone()
    KEPT.stretch(request, CONTEXT).run(attended, residual)
    assert torch.equal(attended, kept[0])
    assert torch.equal(residual, kept[1])


def test_layers_of_somebody_else_are_left_to_him():
    request, _ = make_layers(KEPT, None, Dtype.BFLOAT16)
    assert isinstance(KEPT, StretchProvider)
    assert KEPT.stretch(request, CONTEXT) is not None
    elsewhere = request.down._replace(
        impl=TorchLinearProvider().build(request.down.request, CONTEXT)
    )
    assert KEPT.stretch(replace(request, down=elsewhere), CONTEXT) is None


def test_a_tape_repeats_it():
    request, _ = make_layers(ROUNDED, PACKED[Coding.Q4_1], Dtype.BFLOAT16)
    stretch = ROUNDED.stretch(request, CONTEXT)
    attended, residual = inputs_of(request, 1)
    native.library.tape_begin()
    total, following = stretch.run(attended, residual)
    tape = native.library.tape_end()
    for _ in range(2):
        for old, new in zip((attended, residual), inputs_of(request, 1), strict=True):
            old.copy_(new)
        native.library.tape_replay(tape, 0, 1)
        expected = stretch.run(attended, residual)
        assert torch.equal(total, expected[0])
        assert torch.equal(following, expected[1])
    native.library.tape_drop(tape)
