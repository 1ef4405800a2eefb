"""From plans to tokens: batch builder, slot tables and sampler together, on given logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from chiplet.api import (
    Dtype,
    InputLayout,
    OpRequest,
    Sampling,
    ShapeBucket,
    StepInputs,
    StepOutputs,
)
from chiplet.reference.ops import REFERENCE_OPS
from chiplet.reference.platform import ReferencePlatform
from chiplet.runner.batch_builder import BatchBuilder
from chiplet.runner.sampler import Sampler
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
        self.tables = SlotTables(num_slots=4, max_pages=8, vocab_size=VOCAB, kv=(), platform=HOST)
        self.builder = BatchBuilder(self.tables, page_size=4, padding_page=50)
        self.sampler = Sampler(ReferenceBindings(), Dtype.FLOAT32)  # type: ignore[arg-type]

    def inputs(self, plan: StepPlan, bucket: ShapeBucket | None = None) -> StepInputs[torch.Tensor]:
        self.tables.admit(plan.admissions)
        self.tables.update_pages(plan.page_updates)
        bucket = bucket or self.builder.shape(plan)
        buffer = torch.from_numpy(self.builder.build(plan, bucket).buffer)
        return InputLayout.of(bucket).split(buffer, torch.float32)

    def pick(self, plan: StepPlan, logits: Sequence[Sequence[float]]) -> StepOutputs:
        inputs = self.inputs(plan)
        bucket = self.builder.shape(plan)
        return self.sampler.pick(torch.tensor(logits), inputs, self.tables.state, bucket)


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
    batch = bench.inputs(plan)
    assert bench.tables.state.last_tokens[2] == 5  # sampled above
    assert batch.token_ids.tolist() == [-1 - 2, 7, 8, 9, 10]
    assert batch.positions.tolist() == [5, 2, 3, 4, 5]
    assert batch.kv_rows.tolist() == [21, 26, 27, 4, 5]
    assert batch.query_starts.tolist() == [0, 1, 5]
    assert batch.kv_lengths.tolist() == [6, 6]
    assert batch.page_table.tolist() == [[3, 5], [6, 1]]
    assert batch.logit_rows.tolist() == [0, 4]
    assert batch.slots.tolist() == [2, bench.tables.padding_slot]


def test_padding_goes_to_its_own_page_and_slot() -> None:
    bench = Bench()
    pages = [(2, 0, 3), (2, 1, 5)]
    plan = _plan([2], [_admission(2, GREEDY)], starts=[5], token_ids=[9], pages=pages)
    decode = ShapeBucket(num_tokens=3, num_requests=3, num_decodes=3, max_pages=4)
    batch = bench.inputs(plan, decode)
    assert batch.token_ids.tolist() == [9, 0, 0]
    assert batch.positions.tolist() == [5, 0, 0]
    assert batch.kv_rows.tolist() == [21, 200, 200]
    assert batch.query_starts.tolist() == [0, 1, 2, 3]
    assert batch.kv_lengths.tolist() == [6, 1, 1]
    assert batch.page_table.tolist() == [[3, 5, 0, 0], [50, 0, 0, 0], [50, 0, 0, 0]]
    assert batch.slots.tolist() == [2, 4, 4]
    mixed = ShapeBucket(num_tokens=4, num_requests=2, num_decodes=0, max_pages=2)
    batch = bench.inputs(plan, mixed)
    assert batch.query_starts.tolist() == [0, 1, 1]
    assert batch.kv_lengths.tolist() == [6, 0]
    assert batch.kv_rows.tolist() == [21, 200, 200, 200]
    assert batch.logit_rows.tolist() == [0, 0]


def test_a_bucket_serves_what_is_no_larger() -> None:
    mixed = ShapeBucket(num_tokens=8, num_requests=4, num_decodes=0, max_pages=2)
    decode = ShapeBucket(num_tokens=4, num_requests=4, num_decodes=4, max_pages=2)
    drawn = replace(decode, sampling=Sampling.DRAW)
    assert mixed.serves(decode)
    assert not decode.serves(mixed)
    assert drawn.serves(decode)
    assert not decode.serves(drawn)
    for larger in ({"max_pages": 3}, {"num_prompt_rows": 1}, {"num_tokens": 9}):
        assert not mixed.serves(replace(mixed, **larger))


def test_a_new_request_finds_no_pages_of_the_former_one() -> None:
    bench = Bench()
    pages = [(0, 0, 3), (0, 1, 5), (1, 0, 6)]
    plan = _plan([0, 1], [_admission(0, GREEDY), _admission(1, GREEDY)], starts=[5, 1], pages=pages)
    bench.tables.page_table[1, 1] = 7  # left by the slot's former request
    assert bench.inputs(plan).page_table.tolist() == [[3, 5], [6, 0]]


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
    assert bench.inputs(plan).logit_rows.tolist() == [2, 0, 1]
    logits = torch.randn(3, VOCAB)
    got = bench.pick(plan, logits.tolist())
    expected = torch.log_softmax(logits, -1)
    assert got.token_ids.tolist() == [0]
    assert got.logprobs is not None
    torch.testing.assert_close(got.logprobs.chosen[0], expected[0, 0])
    torch.testing.assert_close(got.logprobs.top[0], expected[0].topk(VOCAB).values)
    torch.testing.assert_close(got.logprobs.chosen[1:], expected[[1, 2], [2, 3]])


def test_a_token_that_is_not_wanted_is_noted_for_nobody() -> None:
    bench = Bench()
    bench.pick(_plan([0], [_admission(0, GREEDY)]), [UPWARD])
    plan = _plan([0], lengths=[2], token_ids=[1, 2], sampled=[False], pages=[(0, 0, 1)])
    bench.pick(plan, [UPWARD[::-1]])
    assert bench.tables.state.last_tokens.tolist() == [5, 0, 0, 0, 0]
