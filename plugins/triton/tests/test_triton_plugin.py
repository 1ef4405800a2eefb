"""What the plugin offers, and to whom."""

import subprocess
import sys
import tomllib
from pathlib import Path

from chiplet.api import AttentionRequest, DeviceProbe, Dtype, KvSpec, No, Op, OpRequest
from chiplet_triton import plugin
from chiplet_triton.device import traits_of


def device(device_type="cuda", **facts):
    return DeviceProbe(
        device_type=device_type, index=0, name="A GPU", total_memory_bytes=1, facts=facts
    )


def test_it_is_asked_about_gpus_only():
    path = Path(plugin.__file__).parent / "chiplet_plugin.toml"
    manifest = tomllib.loads(path.read_text("utf-8"))
    assert manifest["kind"] == "provider"
    assert manifest["device_types"] == ["cuda", "rocm"]


def test_hooks_import_no_torch_until_they_are_called():
    code = "import sys; from chiplet_triton import plugin; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_traits_come_from_the_probe():
    assert traits_of(device(capability="9.0", cores="132")).can_overlap
    assert traits_of(device(capability="9.0", cores="132")).num_cores == 132
    assert not traits_of(device(capability="8.0")).can_overlap
    assert not traits_of(device("rocm", capability="9.4")).can_overlap
    assert traits_of(device("rocm")).shared_bytes == 65536


def test_refusals_carry_a_reason():
    (ops,) = plugin.ops(device=device())
    assert isinstance(ops.assess(OpRequest(op=Op.TOP_LOGPROBS, dtype=Dtype.FLOAT32)), No)
    (attention,) = plugin.attention(device=device())
    spec = KvSpec(num_kv_heads=1, head_dim=512, page_size=16, dtype=Dtype.FLOAT16)
    request = AttentionRequest(
        group="global",
        num_heads=1,
        num_kv_heads=1,
        head_dim=512,
        scale=1.0,
        dtype=Dtype.FLOAT16,
        kv=spec,
    )
    assert "512" in attention.assess(request).reasons[0].text
