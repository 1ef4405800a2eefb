"""Checkpoints: the same names, tensors and facts from every format; damage is said plainly."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import dequantize, quantize
from safetensors.torch import save_file

from chiplet.config import Dtype, RopeScaling
from chiplet.errors import ModelError
from chiplet.formats.catalogue import pull
from chiplet.formats.checkpoint import has_blocks, open_checkpoint
from chiplet.formats.model_files import Format, ModelFiles, find_model_files, read_model_config
from chiplet.formats.rope_factors import find_llama3_scaling, llama3_factors
from chiplet.reference.quantization import dequantize_to

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, VOCAB, MLP = 64, 8, 2, 8, 96, 96
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "intermediate_size": MLP,
    "num_hidden_layers": 1,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "dtype": "float32",
}
SHAPES = {
    "model.embed_tokens.weight": (VOCAB, HIDDEN),
    "model.layers.0.input_layernorm.weight": (HIDDEN,),
    "model.layers.0.self_attn.q_proj.weight": (HEADS * HEAD_DIM, HIDDEN),
    "model.layers.0.self_attn.q_proj.bias": (HEADS * HEAD_DIM,),
    "model.layers.0.self_attn.k_proj.weight": (KV_HEADS * HEAD_DIM, HIDDEN),
    "model.layers.0.self_attn.v_proj.weight": (KV_HEADS * HEAD_DIM, HIDDEN),
    "model.layers.0.self_attn.o_proj.weight": (HIDDEN, HEADS * HEAD_DIM),
    "model.layers.0.post_attention_layernorm.weight": (HIDDEN,),
    "model.layers.0.mlp.gate_proj.weight": (MLP, HIDDEN),
    "model.layers.0.mlp.up_proj.weight": (MLP, HIDDEN),
    "model.layers.0.mlp.down_proj.weight": (HIDDEN, MLP),
    "model.norm.weight": (HIDDEN,),
    "lm_head.weight": (VOCAB, HIDDEN),
}
GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.layers.0.input_layernorm": "blk.0.attn_norm",
    "model.layers.0.self_attn.q_proj": "blk.0.attn_q",
    "model.layers.0.self_attn.k_proj": "blk.0.attn_k",
    "model.layers.0.self_attn.v_proj": "blk.0.attn_v",
    "model.layers.0.self_attn.o_proj": "blk.0.attn_output",
    "model.layers.0.post_attention_layernorm": "blk.0.ffn_norm",
    "model.layers.0.mlp.gate_proj": "blk.0.ffn_gate",
    "model.layers.0.mlp.up_proj": "blk.0.ffn_up",
    "model.layers.0.mlp.down_proj": "blk.0.ffn_down",
    "model.norm": "output_norm",
    "lm_head": "output",
}


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def _folder(path: Path, **changes: object) -> Path:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(CONFIG | changes))
    return path


def _interleaved(values: np.ndarray, num_heads: int) -> np.ndarray:
    """What the converter does to query and key rows: the halves of each head are interleaved."""
    rows = values.shape[0]
    order = [
        head * HEAD_DIM + half * HEAD_DIM // 2 + pair
        for head in range(num_heads)
        for pair in range(HEAD_DIM // 2)
        for half in range(2)
    ]
    assert sorted(order) == list(range(rows))
    return values[order]


def _write_gguf(
    path: Path,
    weights: dict[str, torch.Tensor],
    kind: GGMLQuantizationType = GGMLQuantizationType.F32,
    **facts: Any,
) -> Path:
    writer = GGUFWriter(path, facts.pop("architecture", "llama"))
    writer.add_context_length(256)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(1)
    writer.add_feed_forward_length(MLP)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(facts.pop("rope_theta", 500000.0))
    writer.add_eos_token_id(2)
    writer.add_array("tokenizer.ggml.tokens", ["a", "b", "</s>", "<|eot_id|>"])
    factors = facts.pop("rope_factors", None)
    for key, value in facts.items():
        add = writer.add_string if isinstance(value, str) else writer.add_uint32
        add(key.replace("__", "."), value)
    if factors is not None:
        writer.add_tensor("rope_freqs.weight", factors.astype(np.float32))
    for name, tensor in weights.items():
        values = tensor.numpy()
        if ".q_proj" in name or ".k_proj" in name:
            values = _interleaved(values, HEADS if ".q_proj" in name else KV_HEADS)
        stem, _, suffix = name.rpartition(".")
        gguf_name = f"{GGUF_NAMES.get(stem, stem)}.{suffix}"
        if values.ndim == 2:
            writer.add_tensor(gguf_name, quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(gguf_name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _tensors(path: Path, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """All tensors, the coded ones dequantised."""
    checkpoint = open_checkpoint(path)
    tensors = dict(checkpoint.tensors(dtype))
    coded = {name: each for name, each in tensors.items() if not isinstance(each, torch.Tensor)}
    assert {name: each.scheme for name, each in coded.items()} == checkpoint.schemes
    return tensors | {name: dequantize_to(each, dtype) for name, each in coded.items()}


def _assert_same(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert set(got) == set(expected)
    for name, tensor in expected.items():
        assert got[name].dtype == tensor.dtype
        torch.testing.assert_close(got[name], tensor, rtol=0, atol=0)


@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("wanted", [torch.float32, torch.bfloat16])
def test_safetensors(
    tmp_path: Path,
    weights: dict[str, torch.Tensor],
    stored: torch.dtype,
    wanted: torch.dtype,
) -> None:
    folder = _folder(tmp_path / "model")
    saved = {name: tensor.to(stored) for name, tensor in weights.items()}
    saved |= {"steps": torch.tensor(3), "empty": torch.empty(0, 4, dtype=stored)}
    save_file(saved, folder / "model.safetensors", metadata={"format": "pt"})
    checkpoint = open_checkpoint(folder)
    assert not checkpoint.is_dummy
    expected = {
        name: tensor.to(wanted) if tensor.is_floating_point() else tensor
        for name, tensor in saved.items()
    }
    _assert_same(dict(checkpoint.tensors(wanted)), expected)


def test_conversion_in_pieces_misses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: dict[str, torch.Tensor]
) -> None:
    monkeypatch.setattr("chiplet.formats.tensor_reading.PIECE_ELEMENTS", 1000)
    folder = _folder(tmp_path / "model")
    save_file(weights, folder / "model.safetensors")
    expected = {name: tensor.bfloat16() for name, tensor in weights.items()}
    _assert_same(_tensors(folder, torch.bfloat16), expected)
    path = _write_gguf(tmp_path / "m.gguf", weights)
    _assert_same(_tensors(path, torch.bfloat16), expected)


def test_shards_with_and_without_an_index(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    folder = _folder(tmp_path / "model")
    names = sorted(weights)
    shards = {
        "model-00001-of-00002.safetensors": names[:5],
        "model-00002-of-00002.safetensors": names[5:],
    }
    for file_name, members in shards.items():
        save_file({name: weights[name] for name in members}, folder / file_name)
    _assert_same(_tensors(folder), weights)
    weight_map = {name: file_name for file_name, members in shards.items() for name in members}
    index_path = folder / "model.safetensors.index.json"
    index_path.write_text(json.dumps({"weight_map": weight_map}))
    _assert_same(_tensors(folder), weights)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ModelError, match=r"lacks 1 of 2 .*model-00002-of-00002"):
        open_checkpoint(folder)
    index_path.unlink()
    with pytest.raises(ModelError, match=r"lacks 1 of 2 .*model-00002-of-00002"):
        open_checkpoint(folder)
    index_path.write_text(json.dumps({"weight_map": {"x": "../other.safetensors"}}))
    with pytest.raises(ModelError, match="no file of this folder"):
        open_checkpoint(folder)


def test_damaged_safetensors_are_refused(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "model")
    path = folder / "model.safetensors"
    save_file({"a": torch.ones(100)}, path)
    sound = path.read_bytes()
    for length in (0, 4, 20, len(sound) - 1):
        path.write_bytes(sound[:length])
        with pytest.raises(ModelError, match="damaged or cut short"):
            open_checkpoint(folder)
    for old, new in ((b"[100]", b"[999]"), (b"[0,400]", b"[0,396]"), (b'"F32"', b'"F99"')):
        assert old in sound
        path.write_bytes(sound.replace(old, new))
        with pytest.raises(ModelError, match=r"model\.safetensors"):
            open_checkpoint(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_pickles_are_refused_with_reason_and_remedy(tmp_path: Path, name: str) -> None:
    folder = _folder(tmp_path / "model")
    (folder / name).write_bytes(b"\x80\x04")
    for path in (folder, folder / name):
        with pytest.raises(ModelError) as caught:
            open_checkpoint(path)
        assert "run any code" in str(caught.value)
        assert caught.value.remedy


def test_paths_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="There is no model at"):
        open_checkpoint(tmp_path / "nothing")
    with pytest.raises(ModelError, match=r"no config\.json"):
        open_checkpoint(tmp_path)
    with pytest.raises(ModelError, match="dummy"):
        open_checkpoint(_folder(tmp_path / "model"))
    with pytest.raises(ModelError, match="no GGUF file"):
        open_checkpoint(tmp_path / "model", "gguf")


def test_a_dummy_needs_only_a_config(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "model")
    for path in (folder, folder / "config.json"):
        checkpoint = open_checkpoint(path, "dummy")
        assert checkpoint.is_dummy
        assert checkpoint.config.vocab_size == VOCAB
        with pytest.raises(ModelError, match="no tensors"):
            checkpoint.tensors(torch.float32)


def test_a_gguf_holds_what_was_converted(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    path = _write_gguf(tmp_path / "m.gguf", weights)
    checkpoint = open_checkpoint(path)
    config = checkpoint.config
    assert (config.num_heads, config.num_kv_heads, config.head_dim) == (HEADS, KV_HEADS, HEAD_DIM)
    assert (config.vocab_size, config.hidden_size) == (VOCAB, HIDDEN)
    assert (config.intermediate_size, config.num_layers) == (MLP, 1)
    assert (config.context_length, config.rope_theta) == (256, 500000.0)
    assert config.rms_norm_eps == pytest.approx(1e-5)
    assert config.rope_scaling == RopeScaling()
    assert config.eos_token_ids == (2, 3)
    assert not config.tie_word_embeddings
    assert config.attention_bias
    assert not config.mlp_bias
    assert config.dtype is Dtype.FLOAT32
    assert not has_blocks(checkpoint)
    _assert_same(dict(checkpoint.tensors(torch.float32)), weights)


def test_a_gguf_beside_safetensors_is_found_on_demand(
    tmp_path: Path, weights: dict[str, torch.Tensor]
) -> None:
    folder = _folder(tmp_path / "model")
    save_file(weights, folder / "model.safetensors")
    path = _write_gguf(folder / "m.gguf", weights)
    assert find_model_files(folder).format is Format.SAFETENSORS
    assert find_model_files(folder, "gguf") == ModelFiles(Format.GGUF, path, (path,))


def test_a_gguf_without_output_is_tied(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    tied = {name: tensor for name, tensor in weights.items() if name != "lm_head.weight"}
    path = _write_gguf(tmp_path / "m.gguf", tied)
    assert open_checkpoint(path).config.tie_word_embeddings
    # A folder with one GGUF file stands for it.
    assert read_model_config(tmp_path).tie_word_embeddings
    _assert_same(_tensors(tmp_path), tied)


def test_a_quantised_gguf(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    kind = GGMLQuantizationType.Q4_1
    path = _write_gguf(tmp_path / "m.gguf", weights, kind)
    checkpoint = open_checkpoint(path)
    assert checkpoint.config.dtype is Dtype.FLOAT32
    assert has_blocks(checkpoint)
    matrices = {name for name, tensor in weights.items() if tensor.dim() == 2}
    assert set(checkpoint.schemes) == matrices
    assert {str(scheme) for scheme in checkpoint.schemes.values()} == {"q4_1"}
    expected = {
        name: torch.from_numpy(dequantize(quantize(tensor.numpy(), kind), kind))
        if tensor.dim() == 2
        else tensor
        for name, tensor in weights.items()
    }
    _assert_same(_tensors(path), expected)


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"architecture": "gemma"}, "supported: llama"),
        ({"split__count": 3}, "one of 3 parts"),
        ({"llama__expert_count": 8}, "8 experts"),
        ({"llama__rope__dimension_count": 4}, "rope.dimension_count is 4"),
        ({"llama__rope__scaling__type": "yarn"}, "supported: none, linear"),
        ({"rope_factors": np.array([1.0, 3.0, 2.0, 7.0])}, "not those of Llama 3"),
    ],
)
def test_ggufs_that_are_refused(
    tmp_path: Path, weights: dict[str, torch.Tensor], facts: dict[str, Any], said: str
) -> None:
    path = _write_gguf(tmp_path / "m.gguf", weights, **facts)
    with pytest.raises(ModelError, match=said):
        open_checkpoint(path)


def test_an_unknown_tensor_is_refused(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    path = _write_gguf(tmp_path / "m.gguf", weights | {"blk.0.ssm_in.weight": torch.ones(4)})
    with pytest.raises(ModelError, match=r"blk\.0\.ssm_in\.weight belongs to no known part"):
        open_checkpoint(path)


def test_rope_factors_become_parameters(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    scaling = RopeScaling(kind="llama3", factor=32.0)
    factors = llama3_factors(scaling, 500000.0, HEAD_DIM)
    path = _write_gguf(tmp_path / "m.gguf", weights, rope_factors=factors)
    checkpoint = open_checkpoint(path)
    assert checkpoint.config.rope_scaling == scaling
    assert "rope_freqs.weight" not in dict(checkpoint.tensors(torch.float32))


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("factor", [8.0, 32.0])
@pytest.mark.parametrize(("high", "original"), [(4.0, 8192), (8.0, 4096)])
def test_rope_parameters_are_found_again(
    head_dim: int, factor: float, high: float, original: int
) -> None:
    scaling = RopeScaling(
        kind="llama3", factor=factor, high_freq_factor=high, original_context_length=original
    )
    factors = llama3_factors(scaling, 500000.0, head_dim).astype(np.float32).astype(np.float64)
    assert find_llama3_scaling(factors, 500000.0, head_dim) == scaling


def test_rope_factors_are_those_of_transformers() -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    table = {
        "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
    }  # fmt: skip
    config = LlamaConfig(
        hidden_size=128, num_attention_heads=2, max_position_embeddings=131072,
        rope_parameters=table,
    )  # fmt: skip
    theirs, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = 500000.0 ** -(torch.arange(0, 64, 2) / 64)
    scaling = RopeScaling(kind="llama3", factor=8.0)
    ours = llama3_factors(scaling, 500000.0, 64)
    np.testing.assert_allclose((plain / theirs).numpy(), ours, rtol=1e-4)


def test_factors_of_one_mean_no_scaling() -> None:
    assert find_llama3_scaling(np.ones(32), 10000.0, 64) == RopeScaling()
    assert find_llama3_scaling(np.ones(16), 10000.0, 64) is None


@pytest.mark.model
@pytest.mark.slow
def test_loading_takes_little_more_than_what_is_loaded() -> None:
    path = pull("smollm2-135m", progress=False)
    program = """if True:
        import sys
        from pathlib import Path
        import torch
        from chiplet.formats.checkpoint import open_checkpoint

        def status_bytes(name):
            with open("/proc/self/status") as file:
                line = next(each for each in file if each.startswith(name))
            return int(line.split()[1]) * 1024

        torch.ones(8).to(torch.bfloat16)  # what the library takes when first used
        before = status_bytes("VmRSS")
        tensors = dict(open_checkpoint(Path(sys.argv[1])).tensors(torch.bfloat16))
        plain = [each if hasattr(each, "nbytes") else each.weight for each in tensors.values()]
        loaded = sum(each.nbytes for each in plain)
        print((status_bytes("VmHWM") - before) / loaded)
    """
    output = subprocess.run(
        [sys.executable, "-c", program, str(path)], check=True, capture_output=True, text=True
    ).stdout
    assert 1.0 < float(output) < 1.3


def test_what_a_server_reads_needs_no_tensor_library() -> None:
    program = (
        "import sys, chiplet.formats.catalogue, chiplet.formats.model_files, chiplet.text.chat, "
        "chiplet.text.answer_text\n"
        "print(sorted({'torch', 'transformers', 'httpx'} & set(sys.modules)))"
    )
    output = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    ).stdout
    assert output.strip() == "[]"
