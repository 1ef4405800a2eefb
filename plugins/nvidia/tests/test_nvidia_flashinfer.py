"""FlashInfer as a provider: without it, with a stand-in for its module, and on a GPU."""

import subprocess
import sys
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import numpy as np
import pytest
import torch

from chiplet.api import (
    AttentionRequest,
    BuildContext,
    CheckStatus,
    DeviceProbe,
    DoneEvent,
    Dtype,
    HostFacts,
    KvSpec,
    No,
    Part,
    Tier,
    Yes,
)
from chiplet.testing.conformance import check_attention
from chiplet.testing.conformance.attention import lengths_to_try
from chiplet.testing.conformance.guards import Placement
from chiplet_nvidia import plugin
from chiplet_nvidia.attention import compile as command
from chiplet_nvidia.attention import modules
from chiplet_nvidia.attention.flashinfer import FlashAttention3, FlashInferProvider
from chiplet_nvidia.platform import CudaPlatform

HOST = HostFacts(machine="x86_64", num_cores=2, total_memory_bytes=1 << 30)
CASES = lengths_to_try()


def request_of(dtype=Dtype.BFLOAT16, head_dim=128, heads=(4, 2), page_size=16, **changes):
    spec = KvSpec(num_kv_heads=heads[1], head_dim=head_dim, page_size=page_size, dtype=dtype)
    fields = {
        "group": "global",
        "num_heads": heads[0],
        "num_kv_heads": heads[1],
        "head_dim": head_dim,
        "scale": 0.2,
        "dtype": dtype,
        "kv": spec,
    }
    return AttentionRequest(**fields | changes)


def device(capability="9.0"):
    return DeviceProbe(
        device_type="cuda",
        index=0,
        name="A GPU",
        total_memory_bytes=1,
        facts={"capability": capability},
    )


@pytest.fixture
def installed(monkeypatch, tmp_path):
    """FlashInfer of a tried version, with an empty cache; sets the version."""
    monkeypatch.setenv("FLASHINFER_WORKSPACE_BASE", str(tmp_path))
    monkeypatch.setattr(modules, "find_spec", lambda name: None)

    def install(version=modules.TRIED_VERSIONS[-1]):
        monkeypatch.setattr(modules, "version", lambda name: version)

    install()
    return install


def put_module(folder, dtype=Dtype.BFLOAT16, head_dim=128, architecture="90a"):
    name = modules.module_name(dtype, head_dim)
    release = modules.TRIED_VERSIONS[-1]
    path = folder / ".cache" / "flashinfer" / release / architecture / "cached_ops" / name
    path.mkdir(parents=True)
    (path / f"{name}.so").touch()
    return path / f"{name}.so"


def code_of(verdict):
    assert isinstance(verdict, No)
    return verdict.reasons[0].code


def test_without_flashinfer_it_is_a_refusal_with_what_to_install(monkeypatch):
    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(modules, "version", missing)
    verdict = FlashInferProvider(device()).assess(request_of())
    assert code_of(verdict) == "not_installed"
    assert "chiplet-nvidia[flashinfer]" in verdict.reasons[0].hint


def test_a_version_that_was_not_tried(installed):
    installed("9.9")
    verdict = FlashInferProvider(device()).assess(request_of())
    assert code_of(verdict) == "version"
    assert "9.9" in verdict.reasons[0].text


def test_a_module_that_is_not_compiled(installed, tmp_path):
    put_module(tmp_path, architecture="80")
    put_module(tmp_path, head_dim=64)
    verdict = FlashInferProvider(device()).assess(request_of())
    assert code_of(verdict) == "not_compiled"
    line = "python -m chiplet_nvidia.attention.compile --dtype bfloat16 --head-dim 128"
    assert line in verdict.reasons[0].hint


@pytest.mark.parametrize("architecture", ["90a", "80_90a"])
def test_a_compiled_module_serves_prompts(installed, tmp_path, architecture):
    path = put_module(tmp_path, architecture=architecture)
    assert modules.find_module(Dtype.BFLOAT16, 128) == path
    verdict = FlashInferProvider(device()).assess(request_of())
    assert verdict == Yes(Tier.VENDOR, "FlashAttention-3", part=Part.PROMPTS)


def test_modules_that_come_compiled(installed, monkeypatch, tmp_path):
    name = modules.module_name(Dtype.FLOAT16, 64)
    (tmp_path / "flashinfer_jit_cache" / name).mkdir(parents=True)
    (tmp_path / "flashinfer_jit_cache" / name / f"{name}.so").touch()
    (tmp_path / "flashinfer_jit_cache" / "__init__.py").write_text(
        f"__version__ = '{modules.TRIED_VERSIONS[-1]}+cu130'\n"
        "def get_jit_cache_dir(): return __path__[0]\n"
    )
    monkeypatch.undo()
    monkeypatch.setattr(modules, "version", lambda name: modules.TRIED_VERSIONS[-1])
    monkeypatch.syspath_prepend(str(tmp_path))
    found = modules.find_module(Dtype.FLOAT16, 64)
    assert isinstance(found, Path)
    assert found.parent.parent == tmp_path / "flashinfer_jit_cache"


@pytest.mark.parametrize(
    ("capability", "changes", "code"),
    [
        ("8.0", {}, "capability"),
        ("10.0", {}, "capability"),
        ("9.0", {"dtype": Dtype.FLOAT32}, "dtype"),
        ("9.0", {"head_dim": 80}, "head_dim"),
        ("9.0", {"scale": -1.0}, "scale"),
    ],
)
def test_what_is_refused(installed, capability, changes, code):
    assert code_of(FlashInferProvider(device(capability)).assess(request_of(**changes))) == code


def test_it_is_offered_to_gpus_alone():
    assert [each.name for each in plugin.attention(device=device())] == ["flashinfer"]
    assert plugin.attention(device=replace(device(), device_type="cpu")) == []


def test_the_doctor_tells_what_is_compiled(installed, monkeypatch, tmp_path):
    assert plugin.doctor(device=None) == plugin.doctor(device=device("8.0")) == []
    (missing,) = plugin.doctor(device=device())
    assert missing.status is CheckStatus.WARNING
    assert "chiplet_nvidia.attention.compile" in missing.remedy
    put_module(tmp_path, Dtype.FLOAT16, 256)
    (found,) = plugin.doctor(device=device())
    assert (found.status, found.detail) == (CheckStatus.OK, "compiled for float16 heads of 256")

    def absent(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(modules, "version", absent)
    (optional,) = plugin.doctor(device=device())
    assert optional.status is CheckStatus.OK
    assert "not installed" in optional.detail


def test_the_command_finds_what_is_compiled(installed, tmp_path, capsys):
    path = put_module(tmp_path)
    assert command.main([]) == 0
    assert str(path) in capsys.readouterr().out


def test_the_command_compiles_what_is_not(installed, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(command, "_compile", lambda *args: put_module(tmp_path, *args))
    assert command.main(["--dtype", "float16", "--head-dim", "64"]) == 0
    said = capsys.readouterr().out
    assert "Compiling FlashAttention-3 for heads of 64 in float16" in said


def test_the_command_tells_what_went_wrong(installed, monkeypatch, capsys):
    def fail(dtype, head_dim):
        raise RuntimeError("no nvcc here")

    monkeypatch.setattr(command, "_compile", fail)
    assert command.main([]) == 1
    assert "no nvcc here" in capsys.readouterr().err
    installed("9.9")
    assert command.main([]) == 1
    assert "FlashInfer 9.9" in capsys.readouterr().err


class HostPlatform:
    """As much of a platform as planning needs, in main memory."""

    torch_device = torch.device("cpu")

    def record_event(self):
        return DoneEvent()


class StandIn:
    """FlashInfer's module in plain operations; arguments as FlashInfer 0.6.14 takes them.

    Tokens of a request share tiles of 128 with nobody, keys are read by `key_starts` alone.
    """

    def plan(self, unused, work, pinned, starts, key_starts, kv_lengths, *sizes):
        num_tokens, num_requests, self.num_heads, self.num_kv_heads, page_size, *rest = sizes
        head_dim = rest[1]
        assert rest == [False, head_dim, head_dim, True, -1]
        assert len(starts) == len(key_starts) == num_requests + 1
        assert starts[-1] == num_tokens
        queries = np.diff(starts.numpy())
        tiles = int((-(-queries // 128)).sum()) * self.num_heads
        assert min(len(work), len(pinned)) >= 4 * (7 * tiles + 133) + 8 * 16
        self.page_size = page_size
        # As it is copied from: a later plan that writes here too early would be seen.
        text = torch.cat([starts, key_starts, kv_lengths]).view(torch.uint8)
        pinned[: len(text)] = text
        work[: len(text)] = pinned[: len(text)]
        return [num_requests, len(text)]

    def _requests(self, work, schedule):
        count, size = schedule
        numbers = work[:size].view(torch.int32).tolist()
        starts, key_starts = numbers[: count + 1], numbers[count + 1 : 2 * count + 2]
        for index, length in enumerate(numbers[2 * count + 2 :]):
            yield slice(starts[index], starts[index + 1]), key_starts[index], length

    def _attend(self, q, keys, values, out, rest):
        unasked, causal, heads_first, window, pdl, *absent, softcap, scale, factor, items = rest
        assert (unasked, causal, heads_first, window, pdl) == (None, 1, 0, -1, False)
        assert (absent, softcap, factor, items) == ([None] * 4, 0.0, 1.0, 0)
        assert q.data_ptr() % 16 == 0
        group = self.num_heads // self.num_kv_heads
        keys, values = (each.float().repeat_interleave(group, 1) for each in (keys, values))
        scores = torch.einsum("qhd,khd->hqk", q.float(), keys) * scale
        seen = torch.ones(len(q), len(keys), dtype=torch.bool).tril(len(keys) - len(q))
        weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
        out.copy_(torch.einsum("hqk,khd->qhd", weights, values))

    def ragged_run(self, unused, work, schedule, q, k, v, starts, key_starts, out, *rest):
        out.fill_(torch.nan)
        for own, first, length in self._requests(work, schedule):
            keys = slice(first, first + length)
            self._attend(q[own], k[keys], v[keys], out[own], rest)

    def paged_run(self, unused, work, schedule, q, k, v, starts, _, table, lengths, out, *rest):
        out.fill_(torch.nan)
        pages = table.flatten()
        for own, first, length in self._requests(work, schedule):
            at = torch.arange(length)
            page, offset = pages[first + at // self.page_size].long(), at % self.page_size
            self._attend(q[own], k[page, offset], v[page, offset], out[own], rest)


def write_plainly(k, v, kv, kv_rows):
    page, offset = kv_rows.long() // kv.shape[2], kv_rows.long() % kv.shape[2]
    kv[page, 0, offset], kv[page, 1, offset] = k, v


class WithStandIn(FlashInferProvider):
    def build(self, request, context):
        return FlashAttention3(request, StandIn(), context.platform, write_plainly)


@pytest.mark.parametrize("dtype", [Dtype.BFLOAT16, Dtype.FLOAT16])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "-"))
def test_plans_and_arguments(installed, tmp_path, case, dtype):
    put_module(tmp_path, dtype, 64)
    request = request_of(dtype, 64)
    context = BuildContext(HostPlatform())
    assert check_attention(WithStandIn(device()), request, context, case)


@pytest.mark.parametrize("placement", list(Placement))
def test_inputs_that_lie_otherwise(installed, tmp_path, placement):
    put_module(tmp_path, head_dim=64)
    provider, context = WithStandIn(device()), BuildContext(HostPlatform())
    for case in (CASES[4], CASES[-2]):
        assert check_attention(
            provider, request_of(head_dim=64), context, case, placement=placement
        )


def test_keys_and_values_are_written_to_their_rows(monkeypatch):
    """In a process of its own: Triton reads once whether it is to interpret kernels."""
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    code = """if True:
        import torch
        from chiplet_nvidia.kernels.kv_write import write_kv

        stacked = torch.randn(9, 10, 64).half()
        _, k, v = stacked.split([4, 3, 3], dim=1)
        before = torch.randn(6, 2, 16, 3, 64).half()
        rows = torch.randperm(6 * 16)[:9].int()
        after, page, offset = before.clone(), rows.long() // 16, rows.long() % 16
        after[page, 0, offset], after[page, 1, offset] = k, v
        write_kv(k, v, before, rows)
        assert torch.equal(before, after)
    """
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_recorded_step_is_not_planned(installed):
    impl = WithStandIn(device()).build(request_of(), BuildContext(HostPlatform()))
    batch = type("Batch", (), {"lengths_host": None})
    with pytest.raises(NotImplementedError, match="recorded"):
        impl.plan(batch, impl.layouts()[0])


@pytest.fixture(scope="module")
def gpu():
    (probe, *_) = plugin.probe(host=HOST)
    platform = CudaPlatform(probe)
    platform.activate()
    return probe, BuildContext(platform)


def check_on(gpu, request, case, **how):
    probe, context = gpu
    provider = FlashInferProvider(probe)
    verdict = provider.assess(request)
    if isinstance(verdict, No):
        pytest.skip(verdict.reasons[0].text)
    assert check_attention(provider, request, context, case, **how)


@pytest.mark.device
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "-"))
@pytest.mark.parametrize("heads", [(4, 2), (8, 1), (3, 3)], ids=str)
@pytest.mark.parametrize("head_dim", modules.HEAD_DIMS)
@pytest.mark.parametrize("dtype", list(modules.TYPE_NAMES))
def test_lengths_on_the_device(gpu, dtype, head_dim, heads, case):
    check_on(gpu, request_of(dtype, head_dim, heads), case)


@pytest.mark.device
@pytest.mark.parametrize("score_scale", [1.0, 30.0, 1000.0])
@pytest.mark.parametrize("placement", list(Placement))
@pytest.mark.parametrize("page_size", [1, 16, 64])
def test_placements_on_the_device(gpu, page_size, placement, score_scale):
    case = next(each for each in lengths_to_try(page_size) if each.name == "mixed")
    check_on(
        gpu,
        request_of(page_size=page_size),
        case,
        placement=placement,
        score_scale=score_scale,
    )
