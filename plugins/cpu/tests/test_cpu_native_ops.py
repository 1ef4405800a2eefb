"""The plugin's own operations, on every instruction set that this processor runs."""

import shutil
from importlib.metadata import distribution

import pytest
import torch

from chiplet.api import BuildContext, CheckStatus, DeviceProbe, Dtype, No, Op, OpRequest
from chiplet.testing.conformance import REFERENCE_OPS, OpSize, check_op
from chiplet_cpu import checks, native
from chiplet_cpu.ops.native import NativeOpsProvider
from chiplet_cpu.platform import CpuPlatform

PROBE = DeviceProbe(device_type="cpu", index=0, name="A CPU", total_memory_bytes=1)
CONTEXT = BuildContext(CpuPlatform(PROBE))
SERVED = (
    Op.FEED,
    Op.EMBEDDING,
    Op.ARGMAX,
    Op.RMS_NORM,
    Op.ADD_RMS_NORM,
    Op.ROTARY,
    Op.SILU_MUL,
    Op.PENALIZE,
    Op.MASK_TOKENS,
    Op.SAMPLE,
)
FLOAT32_ONLY = (Op.PENALIZE, Op.MASK_TOKENS, Op.SAMPLE)


def test_kernels_are_there_where_they_were_built():
    generator = distribution("chiplet-cpu").read_text("WHEEL") or ""
    if "scikit-build-core" in generator and shutil.which("c++"):
        assert native.is_available(), native.explanation()
        assert native.instruction_sets()[0] == "portable"
    elif not native.is_available():
        assert native.explanation()
        assert native.remedy()


def test_without_kernels_the_plugin_says_so(monkeypatch):
    monkeypatch.setattr(native, "library", None)
    monkeypatch.setattr(native, "reason", "the plugin was installed without a compiler")
    monkeypatch.setattr(native, "_remedy", "Install a C++20 compiler.")
    verdict = NativeOpsProvider().assess(OpRequest(op=Op.RMS_NORM, dtype=Dtype.FLOAT32))
    assert isinstance(verdict, No)
    assert "without a compiler" in verdict.reasons[0].text
    found = {each.name: each for each in checks.run_checks(PROBE)}["cpu kernels"]
    assert found.status is CheckStatus.WARNING
    assert found.remedy
    native.set_threads(2)  # nobody to tell


def test_an_instruction_set_that_is_not_there_is_refused(isa):
    with pytest.raises(ValueError, match="choose one of portable"):
        native.use_instruction_set("abacus")
    assert native.instruction_set() == isa


@pytest.mark.parametrize("num_rows", [1, 33, 300])
@pytest.mark.parametrize("dtype", list(Dtype))
@pytest.mark.parametrize("op", SERVED)
def test_ops(isa, threads, op, dtype, num_rows):
    request = OpRequest(op=op, dtype=dtype)
    served = check_op(NativeOpsProvider(), request, CONTEXT, size=OpSize(num_rows))
    assert served is (op not in FLOAT32_ONLY or dtype is Dtype.FLOAT32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("width", [1, 7, 8, 17, 576])
def test_widths_that_fill_no_vector(isa, dtype, width):
    word = Dtype(str(dtype).removeprefix("torch."))
    provider = NativeOpsProvider()
    norm = provider.build(OpRequest(op=Op.RMS_NORM, dtype=word), CONTEXT)
    silu_mul = provider.build(OpRequest(op=Op.SILU_MUL, dtype=word), CONTEXT)
    random = torch.Generator().manual_seed(width)
    wide = torch.full((5, 2 * width + 3), torch.nan, dtype=dtype)
    wide[:, : 2 * width] = torch.randn(5, 2 * width, generator=random).to(dtype)
    x, weight = wide[:, : 2 * width], torch.randn(2 * width, generator=random).to(dtype)
    allowed = {torch.float32: 1e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}[dtype]
    exact = REFERENCE_OPS[Op.RMS_NORM](x.double(), weight.double(), 1e-5)
    assert torch.allclose(norm(x, weight, 1e-5).double(), exact, rtol=allowed, atol=allowed)
    exact = REFERENCE_OPS[Op.SILU_MUL](x.double())
    assert torch.allclose(silu_mul(x).double(), exact, rtol=allowed, atol=allowed)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_conversion_is_that_of_torch(isa, dtype):
    # silu(80) is 80 in float32, so that the product shows how every number is read and rounded.
    code = {torch.bfloat16: "bfloat16", torch.float16: "float16"}[dtype]
    request = OpRequest(op=Op.SILU_MUL, dtype=Dtype(code))
    silu_mul = NativeOpsProvider().build(request, CONTEXT)
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    every = every[every.isfinite()].unsqueeze(1)
    gate = torch.full_like(every, 80.0)
    result = silu_mul(torch.cat([gate, every], dim=1))
    expected = (torch.nn.functional.silu(gate.float()) * every.float()).to(dtype)
    assert torch.equal(result, expected)


def test_a_norm_of_nan_is_nan(isa):
    norm = NativeOpsProvider().build(OpRequest(op=Op.RMS_NORM, dtype=Dtype.BFLOAT16), CONTEXT)
    x = torch.ones(1, 16, dtype=torch.bfloat16)
    x[0, 3] = torch.nan
    assert norm(x, torch.ones(16, dtype=torch.bfloat16), 1e-5).isnan().all()


@pytest.mark.parametrize("vocab", [1, 31, 32, 33, 64, 4099])
def test_a_mask_copies_what_it_allows_bit_by_bit(isa, threads, vocab):
    mask_tokens = NativeOpsProvider().build(
        OpRequest(op=Op.MASK_TOKENS, dtype=Dtype.FLOAT32), CONTEXT
    )
    random = torch.Generator().manual_seed(vocab)
    logits = torch.randn(9, vocab + 5, generator=random)[:, :vocab]
    logits[3] = torch.inf
    words = torch.randint(0, 2**32, (9, -(-vocab // 32) + 2), generator=random)
    mask = words.int()[:, :-2]
    is_allowed = torch.tensor(
        [[row[i // 32] >> i % 32 & 1 for i in range(vocab)] for row in words.tolist()]
    ).bool()
    expected = torch.where(is_allowed, logits, -torch.inf)
    assert torch.equal(mask_tokens(logits, mask), expected)


FILTERS = (
    {},
    {"top_k": 1},
    {"top_k": 50, "top_p": 0.9},
    {"top_k": 300, "top_p": 0.5},
    {"top_k": 5000},
    {"top_p": 0.0},
    {"top_p": 0.9},
    {"top_p": 0.999},
    {"min_p": 0.001},
    {"min_p": 0.9, "top_p": 0.01},
)


@pytest.mark.parametrize("filters", FILTERS, ids=str)
@pytest.mark.parametrize("spread", [0.0, 0.3, 2.0, 6.0])
def test_sampling_equals_sampling_with_a_sort(isa, filters, spread):
    sample = NativeOpsProvider().build(OpRequest(op=Op.SAMPLE, dtype=Dtype.FLOAT32), CONTEXT)
    random = torch.Generator().manual_seed(9)
    # Few distinct values, so that many tie.
    logits = torch.randn(24, 9001, generator=random).mul(spread).bfloat16().float()
    logits[:, 17] = -torch.inf
    ones = torch.ones(24)
    inputs = [
        logits,
        ones * 0.8,
        (ones * filters.get("top_k", 0)).int(),
        ones * filters.get("top_p", 1.0),
        ones * filters.get("min_p", 0.0),
        torch.rand(24, generator=random),
        True,
    ]
    # In float64: over thousands of ties float32's running sum is off by several tokens.
    exact = [each.double() if torch.is_tensor(each) else each for each in inputs]
    different = (sample(*inputs) != REFERENCE_OPS[Op.SAMPLE](*exact)).sum()
    # One threshold in hundreds may fall between two roundings of a running sum.
    assert different <= 1
