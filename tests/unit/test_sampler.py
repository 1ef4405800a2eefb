"""From plans to tokens: batch builder, slot tables and sampler together, on given logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from chiplet.api import OpRequest
from chiplet.reference.ops import REFERENCE_OPS
from chiplet.reference.platform import ReferencePlatform
from chiplet.runner.batch_builder import BatchBuilder, SamplingBatch
from chiplet.runner.sampler import SampledTokens, Sampler
from chiplet.runner.slots import SlotTables
from chiplet.sampling_params import SamplingParams
from chiplet.step import Chunks, PageUpdates, SlotAdmission, StepPlan

VOCAB = 6
HOST = ReferencePlatform()


class ReferenceBindings:
    """Answers with reference operations only."""

    def op(self, request: OpRequest) -> Any:
        return REFERENCE_OPS[request.op]


def _int32(values: Sequence[int]) -> np.ndarray:
    return np.array(values, dtype=np.int32)


def _admission(slot: int, sampling: SamplingParams, **changes: Any) -> SlotAdmission:
    defaults: dict[str, Any] = {
        "seed": 1,
        "prompt_token_ids": _int32([0]),
        "output_token_ids": _int32([]),
        "end_token_ids": (),
    }
    return SlotAdmission(slot=slot, sampling=sampling, **(defaults | changes))


def _plan(
    slots: Sequence[int],
    admissions: Sequence[SlotAdmission] = (),
    *,
    starts: Sequence[int] | None = None,
    lengths: Sequence[int] | None = None,
    sampled: Sequence[bool] | None = None,
    fed: Sequence[bool] | None = None,
    output_indices: Sequence[int] | None = None,
    targets: Sequence[int] = (),
    token_ids: Sequence[int] | None = None,
    pages: Sequence[tuple[int, int, int]] = (),
) -> StepPlan:
    n = len(slots)
    lengths = lengths or [1] * n
    chunks = Chunks(
        slots=_int32(slots),
        starts=_int32(starts or [0] * n),
        lengths=_int32(lengths),
        is_sampled=np.array(sampled or [True] * n),
        is_fed=np.array(fed or [False] * n),
        output_indices=_int32(output_indices or [0] * n),
    )
    page_columns = zip(*pages, strict=True) if pages else ((), (), ())
    return StepPlan(
        step_id=0,
        chunks=chunks,
        num_decodes=sum(length == 1 for length in lengths),
        token_ids=_int32(token_ids or [0] * sum(lengths)),
        admissions=tuple(admissions),
        page_updates=PageUpdates(*(_int32(list(column)) for column in page_columns)),
        prompt_targets=_int32(targets),
    )


class Bench:
    """Tables, builder and sampler of four slots."""

    def __init__(self) -> None:
        self.tables = SlotTables(num_slots=4, max_pages=8, vocab_size=VOCAB, platform=HOST)
        self.builder = BatchBuilder(self.tables, page_size=4, platform=HOST)
        self.sampler = Sampler(ReferenceBindings(), self.tables)  # type: ignore[arg-type]

    def batches(self, plan: StepPlan) -> tuple[Any, SamplingBatch]:
        self.tables.admit(plan.admissions)
        self.tables.update_pages(plan.page_updates)
        return self.builder.build(plan)

    def pick(self, plan: StepPlan, logits: Sequence[Sequence[float]]) -> SampledTokens:
        return self.sampler.pick(torch.tensor(logits), self.batches(plan)[1])


UPWARD = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
GREEDY = SamplingParams(temperature=0)


def test_forward_batch_of_a_mixed_step() -> None:
    bench = Bench()
    bench.pick(_plan([2], [_admission(2, GREEDY)]), [UPWARD])
    plan = _plan(
        [2, 0],
        [_admission(0, GREEDY)],
        starts=[5, 2],
        lengths=[1, 4],
        fed=[True, False],
        sampled=[True, False],
        token_ids=[0, 7, 8, 9, 10],
        pages=[(2, 0, 3), (2, 1, 5), (0, 0, 6), (0, 1, 1)],
    )
    batch, sampling = bench.batches(plan)
    assert batch.token_ids.tolist() == [5, 7, 8, 9, 10]  # 5 was sampled for slot 2 above
    assert batch.positions.tolist() == [5, 2, 3, 4, 5]
    assert batch.kv_rows.tolist() == [21, 26, 27, 4, 5]
    assert batch.query_starts.tolist() == [0, 1, 5]
    assert batch.kv_lengths.tolist() == [6, 6]
    assert batch.page_table.tolist() == [[3, 5], [6, 1]]
    assert batch.logit_rows.tolist() == [0]
    assert sampling.slots.tolist() == [2]


def test_entries_past_the_last_page_are_zero() -> None:
    bench = Bench()
    pages = [(0, 0, 3), (0, 1, 5), (1, 0, 6)]
    plan = _plan([0, 1], [_admission(0, GREEDY), _admission(1, GREEDY)], starts=[5, 1], pages=pages)
    bench.tables.page_table[1, 1] = 7  # left by the slot's former request
    assert bench.batches(plan)[0].page_table.tolist() == [[3, 5], [6, 0]]


def test_bias_and_end_tokens_before_their_time() -> None:
    bench = Bench()
    sampling = SamplingParams(temperature=0, logit_bias={1: 50.0}, min_tokens=2)
    plan = _plan([0], [_admission(0, sampling, end_token_ids=(1, 5))])
    assert bench.pick(plan, [UPWARD]).token_ids.tolist() == [4]
    assert bench.pick(_plan([0], output_indices=[1]), [UPWARD]).token_ids.tolist() == [4]
    assert bench.pick(_plan([0], output_indices=[2]), [UPWARD]).token_ids.tolist() == [1]


def test_penalties_count_what_was_sampled_and_what_came_before_a_retraction() -> None:
    bench = Bench()
    sampling = SamplingParams(temperature=0, frequency_penalty=1.5)
    admission = _admission(1, sampling, output_token_ids=_int32([5, 5]))
    first = bench.pick(_plan([1], [admission]), [UPWARD])
    assert first.token_ids.tolist() == [4]  # 5 - 2 * 1.5 = 2
    second = bench.pick(_plan([1], output_indices=[1]), [UPWARD])
    assert second.token_ids.tolist() == [3]  # 4 - 1.5 = 2.5
    fresh = bench.pick(_plan([1], [_admission(1, sampling)]), [UPWARD])
    assert fresh.token_ids.tolist() == [5]


def test_a_slot_without_penalties_is_not_penalised_by_its_neighbour() -> None:
    bench = Bench()
    penalised = SamplingParams(temperature=0, presence_penalty=2.0, repetition_penalty=2.0)
    admissions = [_admission(0, GREEDY), _admission(1, penalised, prompt_token_ids=_int32([5]))]
    picked = bench.pick(_plan([0, 1], admissions), [UPWARD, UPWARD])
    assert picked.token_ids.tolist() == [5, 4]
    again = bench.pick(_plan([0, 1], output_indices=[1, 1]), [UPWARD, UPWARD])
    assert again.token_ids.tolist() == [5, 3]


def test_seed_decides_whatever_else_is_in_the_batch() -> None:
    torch.manual_seed(0)
    logits = torch.randn(3, VOCAB).tolist()
    seeded = SamplingParams(temperature=1.0, top_p=0.9)
    alone = [
        Bench().pick(
            _plan([0], [_admission(0, seeded, seed=9)], output_indices=[index]), [logits[0]]
        )
        for index in range(20)
    ]
    crowded = [
        Bench().pick(
            _plan(
                [3, 1, 2],
                [_admission(3, GREEDY), _admission(1, seeded, seed=9), _admission(2, seeded)],
                output_indices=[0, index, 5],
            ),
            [logits[1], logits[0], logits[2]],
        )
        for index in range(20)
    ]
    tokens = [each.token_ids[0].item() for each in alone]
    assert tokens == [each.token_ids[1].item() for each in crowded]
    assert len(set(tokens)) > 1


def test_logprobs_ignore_temperature_and_bias_and_reach_the_prompt() -> None:
    bench = Bench()
    sampling = SamplingParams(
        temperature=0, logit_bias={0: 99.0}, logprobs=2, prompt_logprobs=0, max_tokens=4
    )
    plan = _plan(
        [0],
        [_admission(0, sampling)],
        lengths=[3],
        token_ids=[1, 2, 3],
        targets=[2, 3, -1],
        pages=[(0, 0, 2)],
    )
    forward, batch = bench.batches(plan)
    assert forward.logit_rows.tolist() == [2, 0, 1]
    logits = torch.randn(3, VOCAB)
    got = bench.sampler.pick(logits, batch)
    expected = torch.log_softmax(logits, -1)
    assert got.token_ids.tolist() == [0]
    assert got.logprobs is not None
    assert got.prompt_logprobs is not None
    torch.testing.assert_close(got.logprobs[0], expected[0, :1])
    torch.testing.assert_close(got.logprobs[2], expected[:1].topk(2).values)
    torch.testing.assert_close(got.prompt_logprobs[0], expected[[1, 2], [2, 3]])
    assert got.prompt_logprobs[1].shape == (2, 0)


def test_a_step_that_samples_nothing() -> None:
    bench = Bench()
    plan = _plan(
        [0],
        [_admission(0, SamplingParams())],
        lengths=[2],
        token_ids=[1, 2],
        sampled=[False],
        pages=[(0, 0, 1)],
    )
    forward, batch = bench.batches(plan)
    assert forward.logit_rows.tolist() == [0]
    assert bench.sampler.pick(torch.randn(1, VOCAB), batch).token_ids.shape == (0,)
