"""`chiplet bench perplexity` against losses that Transformers computes."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from chiplet.cli.main import main
from chiplet.text.tokenizer import load_tokenizer
from tests.models.tiny import SHAPE
from tests.server.server_process import write_byte_tokenizer

TEXT = "Pages are fixed runs of positions; a lease names those that one request may use. " * 4
WINDOW = 48


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, LlamaForCausalLM]:
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(5)
    model = LlamaForCausalLM(LlamaConfig(**(SHAPE | {"vocab_size": 256}))).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2) if parameter.dim() > 1 else parameter.uniform_(0.5, 1.5)
    model.save_pretrained(folder)
    write_byte_tokenizer(folder)
    return folder, model


def bench(folder: Path, tmp_path: Path, *flags: str) -> dict:
    text, report = tmp_path / "text.txt", tmp_path / "report.json"
    text.write_text(TEXT, "utf-8")
    words = ["bench", "perplexity", str(folder), "--device", "cpu", "--max-total-tokens", "1024"]
    words += ["--text", str(text), "--window-tokens", str(WINDOW), "--json", str(report), *flags]
    assert main(words) == 0
    return json.loads(report.read_text("utf-8"))


def test_it_is_what_transformers_computes_and_what_the_reference_does(
    checkpoint: tuple[Path, LlamaForCausalLM], tmp_path: Path
) -> None:
    folder, model = checkpoint
    # The radix cache knows earlier windows' beginnings, which must not shorten what is predicted.
    report = bench(folder, tmp_path, "--dtype", "float32", "--against-reference")
    num_windows = len(TEXT) // WINDOW
    assert report["workload"]["windows"] == num_windows
    assert report["workload"]["predicted_tokens"] == num_windows * (WINDOW - 1)
    token_ids = load_tokenizer(folder).encode(TEXT)
    ids = torch.tensor(token_ids[: num_windows * WINDOW]).view(num_windows, WINDOW)
    with torch.inference_mode():
        logits = model(ids).logits[:, :-1].flatten(0, 1)
        loss = torch.nn.functional.cross_entropy(logits, ids[:, 1:].flatten()).item()
    for figures in report["figures"].values():
        assert figures["loss"] == pytest.approx(loss, rel=1e-5)
        assert figures["perplexity"] == pytest.approx(math.exp(loss), rel=1e-4)
    assert report["figures"]["reference"]["device"].startswith("reference:0")
    (ratio,) = report["ratios"].values()
    assert ratio == pytest.approx(1, abs=2e-5)


def test_coarser_weights_are_seen(
    checkpoint: tuple[Path, LlamaForCausalLM], tmp_path: Path
) -> None:
    folder, _ = checkpoint
    flags = ("--dtype", "float32", "--quantization", "int4", "--windows", "2")
    report = bench(folder, tmp_path, *flags, "--against-reference")
    assert report["workload"]["windows"] == 2
    (ratio,) = report["ratios"].values()
    assert abs(ratio - 1) > 1e-3


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "--text is missing"),
        (["--text", "nowhere.txt"], "cannot be read: No such file"),
    ],
)
def test_a_text_must_be_given(
    flags: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "perplexity", *flags]) == 2
    assert words in capsys.readouterr().err


def test_a_text_shorter_than_a_window_is_refused(
    checkpoint: tuple[Path, LlamaForCausalLM], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = checkpoint
    text = tmp_path / "short.txt"
    text.write_text("short", "utf-8")
    words = ["bench", "perplexity", str(folder), "--device", "cpu", "--max-total-tokens", "1024"]
    assert main([*words, "--text", str(text)]) == 2
    assert "has 5 tokens; a window takes 512" in capsys.readouterr().err
