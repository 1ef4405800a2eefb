"""FlashInfer's latent attention: with a stand-in for its module, and on a GPU."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from chiplet.api import (
    AttentionRequest,
    BuildContext,
    DeviceProbe,
    DoneEvent,
    Dtype,
    HostFacts,
    HostPlanning,
    KvCoding,
    KvSpec,
    No,
    Part,
    Tier,
    Yes,
)
from chiplet.testing.conformance import check_attention
from chiplet.testing.conformance.attention import lengths_to_try
from chiplet.testing.conformance.replay import bucket_cases, check_in_bucket
from chiplet_nvidia import plugin
from chiplet_nvidia.attention import mla, modules
from chiplet_nvidia.attention.flashinfer import FlashInferProvider
from chiplet_nvidia.platform import CudaPlatform

MANY, FEW = 72, 16
CASES = [each for each in lengths_to_try() if "long" not in each.name]


def request_of(heads=MANY, dtype=Dtype.BFLOAT16, page_size=16, dims=(512, 576), kv_heads=1):
    spec = KvSpec(
        num_kv_heads=kv_heads,
        head_dim=dims[1],
        page_size=page_size,
        dtype=dtype,
        value_dim=dims[0],
    )
    return AttentionRequest(
        group="global",
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=dims[1],
        scale=0.1,
        dtype=dtype,
        kv=spec,
    )


DEVICE = DeviceProbe(
    device_type="cuda",
    index=0,
    name="A GPU",
    total_memory_bytes=1,
    facts={"capability": "9.0", "cores": "4"},
)


@pytest.fixture
def compiled(monkeypatch, tmp_path):
    """FlashInfer, with modules of latent attention for both types."""
    monkeypatch.setenv("FLASHINFER_WORKSPACE_BASE", str(tmp_path))
    monkeypatch.setattr(modules, "find_spec", lambda name: None)
    monkeypatch.setattr(modules, "version", lambda name: modules.TRIED_VERSIONS[-1])
    release = tmp_path / ".cache" / "flashinfer" / modules.TRIED_VERSIONS[-1]
    for dtype in modules.TYPE_NAMES:
        name = modules.latent_module_name(dtype)
        path = release / "90a" / "cached_ops" / name / f"{name}.so"
        path.parent.mkdir(parents=True)
        path.touch()


def test_all_steps_of_many_heads_are_served_and_prompts_of_few(compiled):
    provider = FlashInferProvider(DEVICE)
    assert provider.assess(request_of()) == Yes(Tier.VENDOR, "FlashInfer's MLA")
    assert provider.assess(request_of(64)).part is Part.PROMPTS
    assert mla.latent_class(request_of(64)) is mla.FlashInferLatent
    assert mla.latent_class(request_of(65)) is mla.RecordableLatent


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (
            request_of(dims=(256, 576)),
            "1 rows of 576 with values of 256; served: 1 of 576 with 512",
        ),
        (request_of(kv_heads=2), "2 rows of 576"),
        (request_of(dtype=Dtype.FLOAT32), "float32; served: bfloat16, float16"),
    ],
)
def test_other_rows_are_refused(compiled, request_, said):
    assert said in FlashInferProvider(DEVICE).assess(request_).reasons[0].text


def test_a_module_that_is_not_there_and_codes_are_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("FLASHINFER_WORKSPACE_BASE", str(tmp_path))
    monkeypatch.setattr(modules, "version", lambda name: modules.TRIED_VERSIONS[-1])
    verdict = FlashInferProvider(DEVICE).assess(request_of())
    assert isinstance(verdict, No)
    command = "python -m chiplet_nvidia.attention.compile --latent --dtype bfloat16"
    assert command in verdict.reasons[0].hint
    coded = request_of()
    object.__setattr__(coded.kv, "coding", KvCoding.FP8)
    assert not coded.features <= FlashInferProvider.accepts


class StandIn:
    """FlashInfer's module in plain operations; arguments as FlashInfer 0.6.14 takes them."""

    most_tokens = 0

    def plan(self, partial, work, pinned, starts, key_starts, kv_lengths, heads, value_dim, causal):
        assert (value_dim, causal) == (512, True)
        assert len(starts) == len(key_starts) == len(kv_lengths) + 1
        assert partial.numel() >= 2 * 4 * 64 * (2 * 512 + 4)
        assert min(len(work), len(pinned)) >= 9 * 4 * 16384
        StandIn.most_tokens = max(StandIn.most_tokens, int(starts[-1] - starts[0]))
        # As it is copied from: a later plan that writes here too early would be seen.
        text = torch.cat([torch.tensor([len(kv_lengths)]).int(), starts, key_starts, kv_lengths])
        pinned[: 4 * len(text)] = text.view(torch.uint8)
        work[: 4 * len(text)] = pinned[: 4 * len(text)]
        return ["all places are fixed", heads]

    def run(self, partial, work, schedule, q, q_rest, rows, rest, pages, out, lse, causal, *how):
        heads, page_size, scale, *factors = how
        assert (lse, causal, factors) == (None, 1, [False, 1.0, 1.0])
        assert schedule == ["all places are fixed", heads]
        count = int(work[:4].view(torch.int32))
        numbers = work[4 : 4 * (3 * count + 3)].view(torch.int32).tolist()
        starts, key_starts = numbers[: count + 1], numbers[count + 1 : 2 * count + 2]
        keys = torch.cat([rows, rest], dim=-1)
        queries = torch.cat([q, q_rest], dim=-1).float()
        for index, length in enumerate(numbers[2 * count + 2 :]):
            own = slice(starts[index], starts[index + 1])
            at = torch.arange(length)
            page = pages.flatten()[key_starts[index] + at // page_size].long()
            found = keys[page, at % page_size].float()
            scores = torch.einsum("qhd,kd->qhk", queries[own], found) * scale
            num_queries = own.stop - own.start
            seen = torch.ones(num_queries, length, dtype=torch.bool).tril(length - num_queries)
            weights = scores.masked_fill(~seen[:, None], -torch.inf).softmax(-1)
            out[own] = torch.einsum("qhk,kd->qhd", weights, found[:, :512]).to(out.dtype)


class HostPlatform:
    """As much of a platform as planning needs, in main memory."""

    torch_device = torch.device("cpu")

    def record_event(self):
        return DoneEvent()

    def to_device_async(self, tensor):
        return tensor.clone()

    def to_host_async(self, tensor):
        return tensor.clone()


def write_plainly(k, kv, kv_rows):
    kv.view(-1, k.shape[-1])[kv_rows.long()] = k[:, 0]


class WithStandIn(FlashInferProvider):
    def build(self, request, context):
        kind = mla.latent_class(request)
        return kind(request, StandIn(), context.platform, write_plainly, num_cores=4)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "-"))
@pytest.mark.parametrize("heads", [MANY, FEW])
def test_plans_and_arguments(compiled, case, heads):
    assert check_attention(
        WithStandIn(DEVICE), request_of(heads, Dtype.FLOAT16), BuildContext(HostPlatform()), case
    )


def test_steps_of_many_rows_have_several_plans(compiled, monkeypatch):
    monkeypatch.setattr(mla, "_MOST_WORKS", 40)
    monkeypatch.setattr(StandIn, "most_tokens", 0)
    case = CASES[-1]
    assert sum(case.query_lengths) > 17
    context = BuildContext(HostPlatform())
    assert check_attention(WithStandIn(DEVICE), request_of(), context, case)
    assert 0 < StandIn.most_tokens <= 20 * 64 // MANY


def test_segments_keep_what_each_token_sees():
    starts, lengths = np.array([0, 1, 1, 7000, 7003]), np.array([9, 5, 8000, 3], np.int32)
    first, second, third = mla.segments_of(starts, lengths, 512, num_heads=128)
    assert first.starts.tolist() == [0, 1]
    assert (second.starts.tolist(), second.kv_lengths.tolist()) == ([1, 4097], [5097])
    assert second.key_starts[0] == third.key_starts[0] == 1024
    assert (third.starts.tolist(), third.kv_lengths.tolist()) == ([4097, 7000, 7003], [8000, 3])
    whole = mla.segments_of(starts, lengths, 512, num_heads=64)
    assert [each.starts.tolist() for each in whole] == [[0, 1, 7000, 7003]]
    assert whole[0].key_starts.tolist() == [0, 1024, 1536, 2048]
    assert whole[0].kv_lengths.tolist() == [9, 8000, 3]


@pytest.mark.parametrize("case", bucket_cases(16), ids=lambda case: case.name.replace(" ", "-"))
def test_plans_of_buckets(compiled, case):
    request, context = request_of(), BuildContext(HostPlatform())
    impl = WithStandIn(DEVICE).build(request, context)
    assert isinstance(impl, HostPlanning)
    check_in_bucket(impl, request, context, case, is_recorded=False, name="stand-in")


def test_a_recorded_step_of_few_heads_is_not_planned(compiled):
    impl = WithStandIn(DEVICE).build(request_of(FEW), BuildContext(HostPlatform()))
    assert not isinstance(impl, HostPlanning)
    with pytest.raises(NotImplementedError, match="recorded"):
        impl.plan(type("Batch", (), {"lengths_host": None}), impl.layouts()[0])


def test_rows_are_written_to_their_places():
    """In a process of its own: Triton reads once whether it is to interpret kernels."""
    pytest.importorskip("triton")
    code = """if True:
        import torch
        from chiplet_nvidia.kernels.kv_write import write_rows

        row = torch.randn(9, 1, 700).half()[..., :576]
        before = torch.randn(6, 1, 16, 1, 576).half()
        rows = torch.randperm(6 * 16)[:9].int()
        after = before.clone()
        after.view(-1, 576)[rows.long()] = row[:, 0]
        write_rows(row, before, rows)
        assert torch.equal(before, after)
    """
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


@pytest.fixture(scope="module")
def gpu():
    (probe, *_) = plugin.probe(
        host=HostFacts(machine="x86_64", num_cores=2, total_memory_bytes=1 << 30)
    )
    platform = CudaPlatform(probe)
    platform.activate()
    return FlashInferProvider(probe), BuildContext(platform)


def served(provider, request):
    verdict = provider.assess(request)
    if isinstance(verdict, No):
        pytest.skip(verdict.reasons[0].text)
    return request


@pytest.mark.device
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "-"))
@pytest.mark.parametrize("heads", [16, 128])
def test_lengths_on_the_device(gpu, heads, case):
    provider, context = gpu
    assert check_attention(provider, served(provider, request_of(heads)), context, case)


@pytest.mark.device
@pytest.mark.parametrize("page_size", [1, 16, 64])
@pytest.mark.parametrize("dtype", list(modules.TYPE_NAMES))
def test_types_and_pages_on_the_device(gpu, dtype, page_size):
    provider, context = gpu
    request = served(provider, request_of(128, dtype, page_size))
    case = next(each for each in lengths_to_try(page_size) if each.name == "mixed")
    assert check_attention(provider, request, context, case)


@pytest.mark.device
@pytest.mark.parametrize("is_recorded", [False, True])
@pytest.mark.parametrize("case", bucket_cases(16), ids=lambda case: case.name.replace(" ", "-"))
def test_buckets_on_the_device(gpu, case, is_recorded):
    provider, context = gpu
    request = served(provider, request_of(128))
    impl = provider.build(request, context)
    check_in_bucket(impl, request, context, case, is_recorded=is_recorded, name="flashinfer")
