"""A provider from outside, with a kernel and a layout of its own."""

from __future__ import annotations

import ast
import re
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch

from chiplet import SamplingParams
from chiplet.api import AttentionRequest, Dtype, ForwardBatch, HostLengths, KvSpec
from chiplet.config import DeviceOptions, EngineConfig
from chiplet.testing.conformance.case import Status, run_case
from chiplet.testing.conformance.suite import all_cases, find_subjects, pair
from chiplet.worker import explain
from tests.examples.conftest import EXAMPLES, install
from tests.models.tiny import VOCAB_SIZE, make_checkpoint, run_engine


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sliced")
    install(EXAMPLES / "chiplet-sliced", folder / "site", folder)
    return folder / "site"


@pytest.fixture(autouse=True)
def sliced(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plugin in this process."""
    monkeypatch.syspath_prepend(str(site))


def test_it_passes_the_kit() -> None:
    # Every fifth case; `chiplet conformance --provider sliced` runs them all.
    subjects = find_subjects(DeviceOptions(device="reference"), "sliced")
    pairs = [each for each in pair(all_cases(quick=True), subjects) if each[0].family != "platform"]
    outcomes = [run_case(*each) for each in pairs[::5]]
    assert {each.case.id: each.detail for each in outcomes if each.status is Status.FAILED} == {}
    # Features of caches and scores that are younger than it are refused on its behalf.
    refused = [each.detail for each in outcomes if each.status is Status.REFUSED]
    assert [each for each in refused if "not accepted" not in each] == []
    assert sum(each.status is Status.PASSED for each in outcomes) > 50


@pytest.mark.parametrize("kind", ["llama-bias", "mistral-window"])
def test_its_answers_are_those_of_the_reference(kind: str, tmp_path: Path) -> None:
    make_checkpoint(kind, tmp_path)
    rng = np.random.default_rng(0)
    prompts = [rng.integers(2, VOCAB_SIZE, size).tolist() for size in (1, 20, 33)]
    greedy = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)

    def answers(provider: str) -> list[list[int]]:
        config = EngineConfig.from_options(
            model=str(tmp_path),
            device="reference",
            dtype="float32",
            use=(f"attention={provider}",),
            page_size=4,
            chunked_prefill_size=9,
            max_total_tokens=512,
            context_length=80,
        )
        return [each.token_ids for each in run_engine(config, prompts, [greedy] * len(prompts))]

    assert answers("sliced") == answers("reference")


def test_it_serves_where_it_is_pinned(tmp_path: Path) -> None:
    make_checkpoint("llama-bias", tmp_path)

    def server(**options: object) -> str:
        plan = explain(EngineConfig.from_options(model=str(tmp_path), device="cpu", **options))
        choice = next(each for each in plan.choices if each.operation == "attention/global")
        return choice.servers[0].distribution

    assert server() == "chiplet-cpu"
    assert server(use=("attention=sliced",)) == "chiplet-sliced"


def test_slices_are_merged_whatever_their_size() -> None:
    from chiplet_sliced.kernel import Slice, attend

    random = np.random.default_rng(0)
    queries = random.standard_normal((2, 3, 4, 8), np.float32) * 5
    keys = random.standard_normal((6, 2, 8, 5), np.float32)
    values = random.standard_normal((6, 2, 5, 8), np.float32)
    positions = np.arange(20, 24)

    def attended(size: int) -> np.ndarray:
        slices = (
            Slice(keys[at : at + size].copy(), values[at : at + size].copy(), at * 5)
            for at in range(0, 6, size)
        )
        return attend(queries, positions, slices, scale=0.5, window=None)

    for size in (1, 2, 3):
        np.testing.assert_allclose(attended(size), attended(6), rtol=1e-5, atol=1e-6)


def test_its_pages_come_back_from_the_canonical_layout() -> None:
    from chiplet_sliced.layout import SlicedLayout

    spec = KvSpec(num_kv_heads=2, head_dim=8, page_size=4, dtype=Dtype.FLOAT32)
    layout = SlicedLayout()
    kv = torch.zeros(layout.shape(spec, 5))
    assert kv[0].nbytes == layout.page_bytes(spec)
    canonical, page_ids = torch.randn(2, 2, 4, 2, 8), torch.tensor([3, 1])
    layout.from_canonical(canonical, kv, page_ids, spec)
    assert torch.equal(layout.to_canonical(kv, page_ids, spec), canonical)
    assert not kv[[0, 2, 4]].any()


def test_all_that_it_uses_stands_in_the_ladder() -> None:
    """Names of the contract, fields of its values: the pages for authors tell of each."""
    docs = EXAMPLES.parent / "docs"
    pages = [docs / "plugins.md", *(docs / "plugins").glob("*.md")]
    ladder = "\n".join(each.read_text("utf-8") for each in pages)
    values = (ForwardBatch, HostLengths, AttentionRequest, KvSpec)
    fields_of_values = {each.name for value in values for each in fields(value)}
    used: set[str] = set()
    for path in (EXAMPLES / "chiplet-sliced" / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module == "chiplet.api":
                used |= {each.name for each in node.names}
            elif isinstance(node, ast.Attribute) and node.attr in fields_of_values:
                used.add(node.attr)
    assert {"ForwardBatch", "page_table", "head_dim"} <= used
    assert sorted(each for each in used if not re.search(rf"\b{each}\b", ladder)) == []
