"""Compiles every kernel for a device that is not there and prints what it would use, as JSON.

Usage: compile_kernels.py cuda:90 | hip:gfx942
"""

import json
import re
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from chiplet.api import (
    Activations,
    AttentionRequest,
    BuildContext,
    Coding,
    DeviceProbe,
    Dtype,
    ExpertWeights,
    ForwardBatch,
    Granularity,
    KvCoding,
    KvSpec,
    LinearRequest,
    LinearWeights,
    MoeRequest,
    WeightScheme,
)

COMPILED = []


class AbsentDriver:
    """Says which device to compile for."""

    def __init__(self, target):
        self.target = target

    def get_current_target(self):
        return self.target

    def get_current_device(self):
        return 0

    def get_current_stream(self, device=None):
        return 0

    def get_active_torch_device(self):
        return torch.device("cpu")


def compile_instead_of_launching():
    run = JITFunction.run

    def compile_only(self, *args, grid, warmup, **options):
        COMPILED.append(run(self, *args, grid=grid, warmup=True, **options))
        return COMPILED[-1]

    JITFunction.run = compile_only


def batch(query_lengths):
    """A batch of requests with 4,096 tokens each; only types and sizes matter."""
    lengths = torch.tensor(query_lengths, dtype=torch.int32)
    num_tokens, num_requests = int(lengths.sum()), len(lengths)
    return ForwardBatch(
        num_decodes=int((lengths == 1).sum()),
        token_ids=torch.zeros(num_tokens, dtype=torch.int32),
        positions=torch.zeros(num_tokens, dtype=torch.int32),
        kv_rows=torch.zeros(num_tokens, dtype=torch.int32),
        query_starts=torch.zeros(num_requests + 1, dtype=torch.int32),
        kv_lengths=torch.zeros(num_requests, dtype=torch.int32),
        page_table=torch.zeros(num_requests, 256, dtype=torch.int32),
        logit_rows=torch.zeros(num_requests, dtype=torch.int32),
        lengths_host=None,
    )


def call_all(device, dtype, torch_dtype):
    from chiplet_triton.device import traits_of
    from chiplet_triton.linear.skinny import TritonLinearProvider
    from chiplet_triton.ops.elementwise import ElementwiseOps
    from chiplet_triton.ops.sampling import Argmax, sample

    def new(*shape, kind=torch_dtype):
        return torch.empty(shape, dtype=kind)

    traits, context = (
        traits_of(device),
        BuildContext(SimpleNamespace(torch_device=torch.device("cpu"))),
    )
    call_attention(traits, context, dtype, torch_dtype)
    call_latent_attention(traits, context, dtype, torch_dtype)
    linear_request = LinearRequest(role="x", in_features=4096, out_features=4096, dtype=dtype)
    linear = TritonLinearProvider(traits).build(linear_request, context)
    packed = linear.pack(LinearWeights(scheme=None, weight=new(4096, 4096)))
    for rows in (1, 2, 4, 16, 32, 64):
        linear.run(new(rows, 4096), packed)
    for rows in (1, 16):
        linear.run_silu_mul(new(rows, 4096), packed)
    call_quantized(traits, context, dtype, torch_dtype)
    call_experts(traits, context, dtype, torch_dtype)
    ops = ElementwiseOps(traits)
    ops.rms_norm(new(2, 4096), new(4096), 1e-5)
    ops.add_rms_norm(new(2, 4096), new(2, 4096), new(4096), 1e-5)
    ops.silu_mul(new(2, 28672))
    ops.embedding(new(2, kind=torch.int32), new(64, 4096))
    ops.rotary(
        new(2, 32, 128),
        new(2, 8, 128),
        new(2, kind=torch.int32),
        new(64, 128, kind=torch.float32),
    )
    floats = [new(2, kind=torch.float32) for _ in range(4)]
    logits, top_k = new(2, 128256, kind=torch.float32), new(2, kind=torch.int32)
    for has_filters in (False, True):
        sample(logits, floats[0], top_k, *floats[1:], has_filters)
    argmax = Argmax(traits, context.torch_device)
    for rows in (1, 256):
        argmax(new(rows, 128256))
    counts = new(2, 128256, kind=torch.int32)
    ops.mask_tokens(logits, new(2, 4008, kind=torch.int32))
    ops.penalize(logits, new(2, 128256, kind=torch.bool), counts, *floats[1:])


def call_attention(traits, context, dtype, torch_dtype):
    from chiplet_triton.attention.paged import TritonAttentionProvider

    def new(*shape, kind=torch_dtype):
        return torch.empty(shape, dtype=kind)

    many = {"softcap": 30.0, "has_sinks": True, "has_tree": True, "num_captured": 16}
    variants = [(None, {}), (None, many), (KvCoding.INT8, {})]
    if traits.has_fp8:
        variants.append((KvCoding.FP8, {}))
    for coding, others in variants:
        spec = KvSpec(num_kv_heads=8, head_dim=128, page_size=16, dtype=dtype, coding=coding)
        request = AttentionRequest(
            group="global",
            num_heads=32,
            num_kv_heads=8,
            head_dim=128,
            scale=0.1,
            dtype=dtype,
            kv=spec,
            **others,
        )
        impl = TritonAttentionProvider(traits).build(request, context)
        (layout,) = impl.layouts()
        kv = new(*layout.shape(spec, 4), kind=torch.uint8 if coding else torch_dtype)
        # Decodes in parts and whole; with codes in int8, whose kernel differs in nothing, whole.
        decodes = ((1,) * 256,) if coding is KvCoding.INT8 else ((1,), (1,) * 256)
        for lengths in (*decodes, (300,)):
            n = sum(lengths)
            bits = new(n, 2, kind=torch.int32) if request.has_tree else None
            plan = impl.plan(replace(batch(lengths), tree_bits=bits), layout)
            tensors = (new(n, 32, 128), new(n, 8, 128), new(n, 8, 128), kv, plan)
            if request.has_sinks:
                impl.run_with_sinks(*tensors, new(32, kind=torch.float32))
                if lengths == (300,):  # the same kernel serves decodes
                    impl.capture(tensors[0], kv, plan, new(32, kind=torch.float32))
            else:
                impl.run(*tensors)


def call_latent_attention(traits, context, dtype, torch_dtype):
    """Heads of DeepSeek-V2-Lite and DeepSeek-V2, whose decodes are cut otherwise."""
    from chiplet_triton.attention.paged import TritonAttentionProvider

    def new(*shape, kind=torch_dtype):
        return torch.empty(shape, dtype=kind)

    plain = KvSpec(num_kv_heads=1, head_dim=576, page_size=16, dtype=dtype, value_dim=512)
    variants = [(plain, 16, {}), (plain, 128, {"softcap": 30.0, "has_sinks": True})]
    if traits.has_fp8:
        variants.append((replace(plain, coding=KvCoding.FP8), 128, {"has_tree": True}))
    for spec, heads, others in variants:
        request = AttentionRequest(
            group="global",
            num_heads=heads,
            num_kv_heads=1,
            head_dim=576,
            scale=0.1,
            dtype=dtype,
            kv=spec,
            **others,
        )
        impl = TritonAttentionProvider(traits).build(request, context)
        (layout,) = impl.layouts()
        kv = new(*layout.shape(spec, 4), kind=torch.uint8 if spec.coding else torch_dtype)
        for lengths in ((1,), (300,)):
            n = sum(lengths)
            bits = new(n, 2, kind=torch.int32) if request.has_tree else None
            plan = impl.plan(replace(batch(lengths), tree_bits=bits), layout)
            row = new(n, 1, 576)
            tensors = (new(n, heads, 576), row, row, kv, plan)
            if request.has_sinks:
                impl.run_with_sinks(*tensors, new(heads, kind=torch.float32))
            else:
                impl.run(*tensors)


def call_experts(traits, context, dtype, torch_dtype):
    from chiplet_triton.moe.grouped import TritonMoeProvider

    request = MoeRequest(
        hidden_size=2048,
        intermediate_size=768,
        num_experts=4,
        top_k=2,
        renormalize=True,
        dtype=dtype,
    )
    experts = TritonMoeProvider(traits).build(request, context)
    weights = ExpertWeights(
        gate_up=torch.empty(4, 1536, 2048, dtype=torch_dtype),
        down=torch.empty(4, 2048, 768, dtype=torch_dtype),
    )
    router_logits = torch.zeros(512, 4, dtype=torch_dtype)
    for rows in (1, 128, 512):
        x = torch.zeros(rows, 2048, dtype=torch_dtype)
        experts.run(x, router_logits[:rows], weights)
    for scheme in schemes(traits)[:3]:
        experts = TritonMoeProvider(traits).build(replace(request, scheme=scheme), context)
        coded = (blank(scheme, 6144, 2048), blank(scheme, 8192, 768))
        packed = experts.pack(ExpertWeights.of_coded(*coded, 4))
        for rows in (64, 512):
            x = torch.zeros(rows, 2048, dtype=torch_dtype)
            experts.run(x, router_logits[:rows], packed)


def schemes(traits):
    """One of each kind that is compiled in another way."""
    of, tensor, channel = WeightScheme, Granularity.TENSOR, Granularity.CHANNEL
    found = [
        of(coding=Coding.INT8, granularity=channel, activations=Activations.PER_TOKEN),
        of(coding=Coding.INT4, granularity=Granularity.GROUP, group_size=128, has_zero_points=True),
        of(coding=Coding.MXFP4, granularity=Granularity.GROUP, group_size=32),
        of(coding=Coding.NVFP4, granularity=Granularity.GROUP, group_size=16),
    ]
    if traits.has_fp8:
        blocks = {"granularity": Granularity.BLOCK, "group_size": 128}
        found += [
            of(coding=Coding.FP8_E4M3, granularity=channel),
            of(coding=Coding.FP8_E4M3, granularity=tensor, activations=Activations.STATIC),
            of(coding=Coding.FP8_E4M3, activations=Activations.PER_TOKEN_GROUP, **blocks),
        ]
    return found


def blank(scheme, n, k):
    """Canonical tensors of a scheme; only types and shapes matter."""
    four = scheme.coding in (Coding.INT4, Coding.MXFP4, Coding.NVFP4)
    kinds = {Coding.INT8: torch.int8, Coding.FP8_E4M3: torch.float8_e4m3fn}
    shapes = {
        Granularity.TENSOR: (1,),
        Granularity.CHANNEL: (n,),
        Granularity.GROUP: (n, k // max(scheme.group_size, 1)),
        Granularity.BLOCK: (n // 128, k // 128),
    }
    scale_kinds = {Coding.MXFP4: torch.uint8, Coding.NVFP4: torch.float8_e4m3fn}
    shape, kind = shapes[scheme.granularity], scale_kinds.get(scheme.coding, torch.float32)
    is_static = scheme.activations is Activations.STATIC
    return LinearWeights(
        scheme=scheme,
        weight=torch.zeros(n, k // (1 + four), dtype=kinds.get(scheme.coding, torch.uint8)),
        scales=torch.zeros(shape, dtype=kind),
        zero_points=torch.zeros(shape, dtype=torch.uint8) if scheme.has_zero_points else None,
        global_scales=torch.zeros(n) if scheme.coding is Coding.NVFP4 else None,
        input_scale=torch.ones(1) if is_static else None,
    )


def call_quantized(traits, context, dtype, torch_dtype):
    from chiplet_triton.linear.quantized import QuantizedLinear

    n = k = 4096
    for scheme in schemes(traits):
        request = LinearRequest(
            role="x", in_features=k, out_features=n, dtype=dtype, scheme=scheme, is_gated=True
        )
        linear = QuantizedLinear(request, traits, context.torch_device)
        packed = linear.pack(blank(scheme, n, k))
        for rows in (1, 64, 512):
            x = torch.empty(rows, k, dtype=torch_dtype)
            (linear.run_silu_mul if rows == 64 else linear.run)(x, packed)


def usage(kernel):
    """Registers and spills of a compiled kernel, and its shared memory in bytes."""
    found = {"kernel": kernel.metadata.name, "shared_bytes": kernel.metadata.shared}
    if "amdgcn" in kernel.asm:
        counts = dict(re.findall(r"\.(vgpr_count|vgpr_spill_count):\s+(\d+)", kernel.asm["amdgcn"]))
        spills = int(counts["vgpr_spill_count"])
        return found | {"registers": int(counts["vgpr_count"]), "spills": spills}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(kernel.asm["cubin"])
        tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
        text = subprocess.run(
            [tool, "--dump-resource-usage", path], capture_output=True, text=True, check=True
        ).stdout
    registers, stack = (int(re.search(rf"{name}:(\d+)", text)[1]) for name in ("REG", "STACK"))
    return found | {"registers": registers, "spills": stack}


def main():
    backend, _, arch = sys.argv[1].partition(":")
    is_cuda = backend == "cuda"
    target = GPUTarget(backend, int(arch) if is_cuda else arch, 32 if is_cuda else 64)
    triton.runtime.driver.set_active(AbsentDriver(target))
    compile_instead_of_launching()
    device = DeviceProbe(
        device_type="cuda" if is_cuda else "rocm",
        index=0,
        name=arch,
        total_memory_bytes=1,
        facts={"capability": f"{int(arch) // 10}.0" if is_cuda else "0.0", "cores": "132"},
    )
    call_all(device, Dtype.BFLOAT16, torch.bfloat16)
    print(json.dumps([usage(each) for each in COMPILED]))


if __name__ == "__main__":
    main()
