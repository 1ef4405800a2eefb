"""Kernels run by Triton's interpreter, against the reference.

float32 and float16 only: the interpreter computes bfloat16 on bit patterns, silently wrong. Races,
shared memory and layouts are invisible to it.
"""

from types import SimpleNamespace

import pytest
import torch

from chiplet.api import (
    AttentionRequest,
    BuildContext,
    DeviceProbe,
    Dtype,
    KvCoding,
    KvSpec,
    MoeRequest,
    Op,
    OpRequest,
)
from chiplet.testing.conformance import (
    ATTENTION_CASES,
    REFERENCE_OPS,
    AttentionCase,
    MoeLoad,
    OpSize,
    check_attention,
    check_layout,
    check_moe,
    check_op,
)
from chiplet.testing.conformance.attention_captures import check_capture
from chiplet.testing.conformance.attention_trees import (
    check_tree_paths,
    random_tree,
    tree_cases,
)
from chiplet_triton import plugin
from chiplet_triton.kernels.kv_write import kv_write_kernel
from chiplet_triton.moe import grouped

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy on NaN and infinity

DEVICE = DeviceProbe(
    device_type="cuda",
    index=0,
    name="none",
    total_memory_bytes=1,
    facts={"cores": "4", "capability": "8.9"},
)
CONTEXT = BuildContext(SimpleNamespace(torch_device=torch.device("cpu")))
DTYPES = (Dtype.FLOAT32, Dtype.FLOAT16)
SERVED = {Op.EMBEDDING, Op.RMS_NORM, Op.ADD_RMS_NORM, Op.ROTARY, Op.SILU_MUL, Op.ARGMAX}
ON_LOGITS = {Op.PENALIZE, Op.MASK_TOKENS, Op.SAMPLE}


def attention_request(
    dtype, window=None, heads=(6, 2), head_dim=32, page_size=16, kv_dtype=None, **others
):
    spec = KvSpec(
        num_kv_heads=heads[1],
        head_dim=head_dim,
        page_size=page_size,
        dtype=kv_dtype or dtype,
        coding=others.pop("coding", None),
    )
    return AttentionRequest(
        group="global",
        num_heads=heads[0],
        num_kv_heads=heads[1],
        head_dim=head_dim,
        scale=0.2,
        dtype=dtype,
        kv=spec,
        window=window,
        **others,
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "size",
    [OpSize(7), OpSize(3, width=1, vocab=1, heads=(1, 1, 2)), OpSize(2, 33, 1023, (3, 1, 6))],
    ids=str,
)
@pytest.mark.parametrize("op", list(Op))
def test_ops(op, size, dtype):
    (provider,) = plugin.ops(device=DEVICE)
    served = check_op(provider, OpRequest(op=op, dtype=dtype), CONTEXT, size=size)
    assert served == (op in SERVED or (op in ON_LOGITS and dtype is Dtype.FLOAT32))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [None, 1, 20])
@pytest.mark.parametrize("case", ATTENTION_CASES[:-1], ids=lambda case: case.name)
def test_attention(case, window, dtype):
    (provider,) = plugin.attention(device=DEVICE)
    assert check_attention(provider, attention_request(dtype, window), CONTEXT, case)


@pytest.mark.parametrize(
    "request_",
    [
        attention_request(Dtype.FLOAT32, heads=(8, 1), page_size=1),
        attention_request(Dtype.FLOAT32, heads=(3, 3), head_dim=24, page_size=5),
        attention_request(Dtype.FLOAT32, kv_dtype=Dtype.FLOAT16),
        attention_request(Dtype.FLOAT32, coding=KvCoding.FP8),
        attention_request(Dtype.FLOAT16, 20, coding=KvCoding.FP8),
        attention_request(Dtype.FLOAT32, softcap=2.0),
        attention_request(Dtype.FLOAT16, 20, softcap=5.0),
        attention_request(Dtype.FLOAT16, coding=KvCoding.INT8),
        attention_request(Dtype.FLOAT16, 20, softcap=5.0, coding=KvCoding.INT8, has_sinks=True),
        attention_request(
            Dtype.FLOAT32, heads=(3, 3), head_dim=24, page_size=6, coding=KvCoding.INT8
        ),
        attention_request(
            Dtype.FLOAT16, heads=(3, 3), head_dim=24, page_size=6, coding=KvCoding.INT8
        ),
        attention_request(Dtype.FLOAT32, has_sinks=True),
        attention_request(Dtype.FLOAT16, 20, has_sinks=True, coding=KvCoding.FP8),
    ],
    ids=[
        "one KV head",
        "odd sizes",
        "shorter cache",
        "fp8 cache",
        "fp8 cache and window",
        "softcap",
        "softcap and window",
        "int8 cache",
        "int8 cache and all else",
        "int8 cache and odd sizes",
        "int8 cache, few of the dimensions of a tile",
        "sinks",
        "sinks, window and fp8 cache",
    ],
)
def test_unusual_attention(request_):
    (provider,) = plugin.attention(device=DEVICE)
    case = AttentionCase("mixed", (1, 1, 1, 30, 5), (1, 127, 129, 30, 90))
    # Sharp scores show what is rounded twice.
    score_scale = 30.0 if request_.kv.coding is KvCoding.INT8 else 1.0
    assert check_attention(provider, request_, CONTEXT, case, score_scale=score_scale)


ODD_LENGTHS = AttentionCase("odd lengths", (1, 1, 9), (77, 2, 30))
SMALL_TREES = AttentionCase("small trees", (1, 10), (3, 30), parents=((-1,), random_tree(10, 2)))
TREE_CASES = [*tree_cases(16)[:1], tree_cases(16)[3]]


@pytest.mark.parametrize("case", TREE_CASES, ids=lambda case: case.name)
@pytest.mark.parametrize(
    "request_",
    [
        attention_request(Dtype.FLOAT32, has_tree=True),
        attention_request(Dtype.FLOAT16, 1, has_tree=True),
        attention_request(Dtype.FLOAT32, 20, has_tree=True, heads=(2, 2)),
        attention_request(
            Dtype.FLOAT16, 9, has_tree=True, has_sinks=True, softcap=5.0, coding=KvCoding.INT8
        ),
    ],
    ids=["plain", "window 1", "window 20", "all else"],
)
def test_trees(request_, case):
    (provider,) = plugin.attention(device=DEVICE)
    assert check_attention(provider, request_, CONTEXT, case)


def test_a_tree_sees_its_paths():
    (provider,) = plugin.attention(device=DEVICE)
    request = attention_request(Dtype.FLOAT32, 20, has_tree=True)
    (case,) = (each for each in tree_cases(16) if each.name == "random trees")
    assert check_tree_paths(provider, request, CONTEXT, case)


@pytest.mark.parametrize(
    ("request_", "case"),
    [
        (attention_request(Dtype.FLOAT32, num_captured=3), ODD_LENGTHS),
        (
            attention_request(Dtype.FLOAT16, 20, num_captured=4, has_tree=True, has_sinks=True),
            SMALL_TREES,
        ),
        (
            attention_request(
                Dtype.FLOAT32, None, (3, 3), num_captured=1, softcap=5.0, coding=KvCoding.INT8
            ),
            ODD_LENGTHS,
        ),
    ],
    ids=["few", "of trees", "one of codes"],
)
def test_captures(request_, case):
    (provider,) = plugin.attention(device=DEVICE)
    assert check_capture(provider, request_, CONTEXT, case)


@pytest.mark.parametrize("coding", [KvCoding.INT8, KvCoding.FP8])
def test_pages_of_codes_go_to_the_canonical_layout_and_back(coding):
    (provider,) = plugin.attention(device=DEVICE)
    request = attention_request(Dtype.FLOAT16, heads=(4, 2), coding=coding)
    (layout,) = provider.build(request, CONTEXT).layouts()
    check_layout(layout, request.kv, torch.device("cpu"))


@pytest.mark.parametrize("filters", [{}, {"top_k": 50, "top_p": 0.9}, {"top_p": 0.3}], ids=str)
def test_sampling_without_a_sort_equals_sampling_with_one(filters):
    (provider,) = plugin.ops(device=DEVICE)
    sample = provider.build(OpRequest(op=Op.SAMPLE, dtype=Dtype.FLOAT32), CONTEXT)
    random = torch.Generator().manual_seed(1)
    logits = torch.randn(6, 9000, generator=random).mul(3).bfloat16().float()
    ones = torch.ones(6)
    inputs = [
        logits,
        ones,
        (ones * filters.get("top_k", 0)).int(),
        ones * filters.get("top_p", 1.0),
        ones * 0,
        torch.rand(6, generator=random),
        bool(filters),
    ]
    assert torch.equal(sample(*inputs), REFERENCE_OPS[Op.SAMPLE](*inputs))


@pytest.mark.parametrize("load", list(MoeLoad))
@pytest.mark.parametrize(
    ("num_tokens", "sizes"), [(1, (48, 20, 8, 3)), (7, (33, 17, 5, 5)), (40, (80, 96, 2, 1))]
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_experts(dtype, num_tokens, sizes, load):
    (provider,) = plugin.moe(device=DEVICE)
    hidden, width, num_experts, top_k = sizes
    request = MoeRequest(
        hidden_size=hidden,
        intermediate_size=width,
        num_experts=num_experts,
        top_k=top_k,
        renormalize=num_tokens > 1,
        dtype=dtype,
    )
    has_spoilt_row = num_tokens == 7
    assert check_moe(
        provider,
        request,
        CONTEXT,
        num_tokens=num_tokens,
        load=load,
        has_spoilt_row=has_spoilt_row,
    )


def test_many_tokens_go_through_their_experts_in_parts(monkeypatch):
    monkeypatch.setattr(grouped, "_MAX_TOKENS", 16)
    (provider,) = plugin.moe(device=DEVICE)
    request = MoeRequest(
        hidden_size=32,
        intermediate_size=16,
        num_experts=4,
        top_k=2,
        renormalize=True,
        dtype=Dtype.FLOAT32,
    )
    assert check_moe(provider, request, CONTEXT, num_tokens=37, load=MoeLoad.SPREAD)


def test_a_cache_in_fp8_is_rounded_as_it_is_defined():
    every = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(torch.float16)
    every = torch.cat([every[every.isfinite()].float(), torch.tensor([1e9, -1e9, 2**-10, 3e-39])])
    x = torch.nn.functional.pad(every, (0, -len(every) % 1024)).view(-1, 8, 128)
    seen, no_scales = torch.empty(2, *x.shape), x
    pages = torch.empty(-(-len(x) // 16), 2, 16, 8, 128, dtype=torch.float8_e4m3fn)
    kv_write_kernel[(len(x),)](
        x,
        x,
        pages,
        torch.arange(len(x), dtype=torch.int32),
        *seen,
        no_scales,
        *x.stride()[:2],
        *x.stride()[:2],
        PAGE_SIZE=16,
        NUM_KV_HEADS=8,
        HEAD_DIM=128,
        BLOCK_HEADS=8,
        BLOCK_DIM=128,
        WRITES_SEEN=True,
    )
    wanted = x.clamp(-448, 448).to(torch.float8_e4m3fn)
    for kind in range(2):
        found = pages[:, kind].flatten(0, 1)[: len(x)]
        assert torch.equal(found.view(torch.uint8), wanted.view(torch.uint8))
        assert torch.equal(seen[kind], wanted.float())
