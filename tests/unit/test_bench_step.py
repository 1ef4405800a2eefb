"""`chiplet bench step`: floors by hand, and a run with random weights."""

import json

import pytest

from chiplet.cli.bench.floors import Ceilings, Work, decode_work, kv_bytes_per_token, prefill_work
from chiplet.cli.bench.step_profile import covered
from chiplet.cli.main import main
from chiplet.config import Dtype
from chiplet.errors import ModelError
from chiplet.formats.catalogue import find_shape, resolve_model, shape_names
from chiplet.formats.model_files import read_model_config

CONFIG = {
    "model_type": "llama",
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 256,
    "torch_dtype": "float32",
}
BFLOAT16 = (Dtype.BFLOAT16, "none")


def shape(name):
    return read_model_config(resolve_model(name), "dummy")


def test_the_weights_of_a_well_known_model_are_counted_in_full():
    work = decode_work(shape("llama-3.1-8b"), *BFLOAT16, num_requests=1, context=0)
    # 8,030,261,248 parameters less the embedding (525,336,576) and the norms (65 x 4,096).
    assert work.num_bytes == 2 * (8_030_261_248 - 525_336_576 - 65 * 4096)
    assert kv_bytes_per_token(shape("llama-3.1-8b"), Dtype.BFLOAT16) == 131_072


def test_quantized_weights_weigh_less_but_not_in_the_head():
    model = shape("llama-3.1-8b")
    plain, eight, four = (
        decode_work(model, Dtype.BFLOAT16, name, num_requests=1, context=0).num_bytes
        for name in ("none", "int8", "int4")
    )
    head = 2 * 4096 * 128256
    assert (eight - head) == (plain - head) / 2
    assert 0.25 < (four - head) / (plain - head) < 0.28
    with_head = decode_work(model, Dtype.BFLOAT16, "int8", num_requests=1, context=0, head="int8")
    assert with_head.num_bytes == plain / 2


def test_one_token_reads_its_experts_alone_and_many_read_nearly_all():
    model = shape("qwen3-30b-a3b")
    one, many = (
        decode_work(model, *BFLOAT16, num_requests=n, context=0).num_bytes for n in (1, 1000)
    )
    assert 5.5e9 < one < 7e9  # 3.3e9 active parameters, less the embedding
    assert 58e9 < many < 62e9


def test_a_whole_prompt_is_bound_by_arithmetic_and_a_token_by_bytes():
    model, rates = shape("llama-3.1-8b"), Ceilings(3e12, 784e12)
    prompt = prefill_work(model, *BFLOAT16, num_requests=1, context=8192)
    assert prompt.floor_s(rates) == pytest.approx(prompt.flops / 784e12)
    assert 0.160 < prompt.floor_s(rates) < 0.176
    ones = prefill_work(model, *BFLOAT16, num_requests=8192, context=1)
    body = 32 * (4096 * (4096 + 1024) * 2 + 3 * 4096 * 14336)
    scores = 32 * 4096 / 2 * 2
    assert ones.flops == pytest.approx(2 * 8192 * (body + scores + 128256 * 4096))
    # One prompt: of the last of 32 layers all but one token need keys and values alone.
    layer = 4096 * 4096 * 2 + 3 * 4096 * 14336 + 2 * 4096 * 4096
    rows = 2 * 8192 * (body + 32 * 2 * 4096 * 4096) + 2 * 128256 * 4096
    assert prompt.flops == pytest.approx(rows - 2 * 8191 * layer)
    token = decode_work(model, *BFLOAT16, num_requests=1, context=1024)
    assert token.floor_s(rates) == pytest.approx(token.num_bytes / 3e12)
    assert Work(3e12, 0).floor_s(rates) == 1
    assert Work(3e12, 0).floor_s(rates.of_ranks(4)) == 0.25


def test_busy_time_counts_overlapping_kernels_once():
    assert covered([(5, 6), (0, 2), (1, 3), (1.5, 1.8)]) == 4
    assert covered([]) == 0


def test_shapes_have_names_and_no_weights():
    assert "llama-3.1-8b" in shape_names()
    assert find_shape("../catalogue") is None
    with pytest.raises(ModelError, match="without weights"):
        read_model_config(resolve_model("Llama-3.1-8B"))


def test_a_run_reports_each_work_beside_its_floor(tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG), "utf-8")
    report = tmp_path / "report.json"
    words = ["bench", "step", str(tmp_path), "--load-format", "dummy", "--device", "cpu"]
    words += ["--work", "1x20", "--work", "3x9", "--steps", "2", "--json", str(report)]
    assert main([*words, "--max-total-tokens", "4096"]) == 0
    assert "decode_floor_ms" in capsys.readouterr().out
    figures = json.loads(report.read_text("utf-8"))["figures"]
    assert list(figures) == ["1x20", "3x9"]
    for each in figures.values():
        assert 0 < each["decode_floor_ms"] < each["decode_ms"]
        assert 0 < each["prefill_floor_ms"] < each["prefill_ms"]


def test_work_in_other_words_is_refused(capsys):
    assert main(["bench", "step", "--work", "64"]) == 2
    assert "like 64x1024" in capsys.readouterr().err
