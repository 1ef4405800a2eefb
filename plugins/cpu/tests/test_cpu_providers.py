"""The CPU plugin's providers: conformance, and what is their own."""

import pytest
import torch

from chiplet.api import (
    AttentionRequest,
    BuildContext,
    DeviceProbe,
    Dtype,
    KvSpec,
    LinearRequest,
    No,
    Op,
    OpRequest,
    Yes,
)
from chiplet.testing.conformance import (
    ATTENTION_CASES,
    REFERENCE_OPS,
    AttentionCase,
    OpSize,
    check_attention,
    check_linear,
    check_op,
)
from chiplet_cpu.attention.paged import PagedSdpaProvider
from chiplet_cpu.linear.onednn import OneDnnProvider
from chiplet_cpu.linear.plain import TorchLinearProvider
from chiplet_cpu.ops.provider import TorchOpsProvider
from chiplet_cpu.ops.sampling import sample
from chiplet_cpu.platform import CpuPlatform

CONTEXT = BuildContext(
    CpuPlatform(DeviceProbe(device_type="cpu", index=0, name="A CPU", total_memory_bytes=1))
)


def attention_request(dtype=Dtype.BFLOAT16, page_size=16, window=None):
    return AttentionRequest(
        group="global",
        num_heads=9,
        num_kv_heads=3,
        head_dim=64,
        scale=0.2,
        dtype=dtype,
        kv=KvSpec(num_kv_heads=3, head_dim=64, page_size=page_size, dtype=dtype),
        window=window,
    )


@pytest.mark.parametrize("case", ATTENTION_CASES[:-1], ids=lambda case: case.name)
@pytest.mark.parametrize("window", [None, 20])
def test_attention(case, window):
    assert check_attention(PagedSdpaProvider(), attention_request(window=window), CONTEXT, case)


@pytest.mark.parametrize("page_size", [1, 3, 128])
def test_attention_with_unusual_pages(page_size):
    case = AttentionCase("mixed", (1, 1, 1, 30, 5), (1, 127, 129, 30, 260))
    request = attention_request(Dtype.FLOAT32, page_size)
    assert check_attention(PagedSdpaProvider(), request, CONTEXT, case)


def test_many_decodes_are_split_into_groups():
    lengths = (*range(200, 264), 9)
    case = AttentionCase("many", (1,) * len(lengths), lengths)
    assert check_attention(PagedSdpaProvider(), attention_request(), CONTEXT, case)


@pytest.mark.parametrize("num_tokens", [1, 7, 129])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("dtype", [Dtype.FLOAT32, Dtype.BFLOAT16])
def test_linear(dtype, has_bias, num_tokens):
    request = LinearRequest(
        role="down_proj", in_features=192, out_features=64, dtype=dtype, has_bias=has_bias
    )
    assert check_linear(TorchLinearProvider(), request, CONTEXT, num_tokens=num_tokens)
    is_served = isinstance(OneDnnProvider().assess(request), Yes)
    assert check_linear(OneDnnProvider(), request, CONTEXT, num_tokens=num_tokens) is is_served


def test_packing_refuses_what_this_torch_or_processor_lacks(monkeypatch):
    float16 = LinearRequest(role="x", in_features=8, out_features=8, dtype=Dtype.FLOAT16)
    assert isinstance(OneDnnProvider().assess(float16), No)
    float32 = LinearRequest(role="x", in_features=8, out_features=8, dtype=Dtype.FLOAT32)
    monkeypatch.setattr("chiplet_cpu.linear.onednn._NAMES", ("_no_such_operation",))
    verdict = OneDnnProvider().assess(float32)
    assert isinstance(verdict, No)
    assert "_no_such_operation" in verdict.reasons[0].text


@pytest.mark.parametrize("dtype", list(Dtype))
@pytest.mark.parametrize("op", list(Op))
def test_ops(op, dtype):
    check_op(TorchOpsProvider(), OpRequest(op=op, dtype=dtype), CONTEXT, size=OpSize(33))


def sampling_inputs(num_rows, vocab, spread, top_k=0, top_p=1.0, min_p=0.0):
    random = torch.Generator().manual_seed(vocab)
    logits = torch.randn(num_rows, vocab, generator=random).mul(spread).bfloat16().float()
    ones = torch.ones(num_rows)
    uniform = torch.rand(num_rows, generator=random)
    return [logits, ones, (ones * top_k).int(), ones * top_p, ones * min_p, uniform, True]


@pytest.mark.parametrize(
    "filters",
    [
        {},
        {"top_k": 1},
        {"top_k": 50, "top_p": 0.9},
        {"top_k": 300, "top_p": 0.503},
        {"top_k": 300, "top_p": 0.302},
        {"top_k": 5000},
        {"top_p": 0.9},
        {"top_p": 0.999},
        {"min_p": 0.001},
        {"min_p": 0.9, "top_p": 0.01},
    ],
    ids=str,
)
@pytest.mark.parametrize("spread", [0.0, 0.3, 2.0, 6.0])
def test_sampling_without_a_sort_equals_sampling_with_one(filters, spread):
    inputs = sampling_inputs(24, 9000, spread, **filters)
    different = (sample(*inputs) != REFERENCE_OPS[Op.SAMPLE](*inputs)).sum()
    # One threshold in hundreds may fall between two roundings of a running sum.
    assert different <= 1


def test_a_row_is_sampled_alike_in_any_batch():
    inputs = sampling_inputs(16, 9000, 3.0, top_p=0.95)
    inputs[1] = torch.tensor([0.0, 1.0, 0.7, 2.0] * 4)
    inputs[2] = torch.tensor([0, 5, 700, 9000] * 4).int()
    together = sample(*inputs)
    for row in range(16):
        alone = [each[row : row + 1] if isinstance(each, torch.Tensor) else each for each in inputs]
        assert sample(*alone).item() == together[row].item()


def test_barred_tokens_are_never_picked():
    inputs = sampling_inputs(8, 1000, 1.0, top_k=50)
    inputs[0][:, 3:] = -torch.inf
    assert (sample(*inputs) < 3).all()
