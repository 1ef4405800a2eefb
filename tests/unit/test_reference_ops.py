from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from chiplet.reference import ops


def test_rms_norm_agrees_with_torch() -> None:
    x, weight = torch.randn(5, 24), torch.randn(24)
    torch.testing.assert_close(ops.rms_norm(x, weight, 1e-5), F.rms_norm(x, (24,), weight, 1e-5))


def test_add_rms_norm_returns_norm_and_sum() -> None:
    x, residual, weight = torch.randn(5, 24), torch.randn(5, 24), torch.rand(24)
    normed, total = ops.add_rms_norm(x, residual, weight, 1e-5)
    torch.testing.assert_close(total, x + residual)
    torch.testing.assert_close(normed, F.rms_norm(x + residual, (24,), weight, 1e-5))


def test_rotary_turns_pairs_by_their_angle() -> None:
    angle = torch.tensor([[0.3, 1.1]])
    table = torch.cat([angle.cos(), angle.sin()], dim=-1).repeat(4, 1)
    table[:3] = torch.tensor([1.0, 1.0, 0.0, 0.0])
    q = torch.tensor([[[1.0, 2.0, 3.0, 4.0]]])
    positions = torch.tensor([3], dtype=torch.int32)
    turned, same = ops.rotary(q, q.clone(), positions, table)
    for pair, theta in enumerate((0.3, 1.1)):
        z = complex(float(q[0, 0, pair]), float(q[0, 0, pair + 2])) * complex(
            math.cos(theta), math.sin(theta)
        )
        assert float(turned[0, 0, pair]) == pytest.approx(z.real, abs=1e-6)
        assert float(turned[0, 0, pair + 2]) == pytest.approx(z.imag, abs=1e-6)
    torch.testing.assert_close(turned, same)


def test_silu_mul_takes_the_gate_first() -> None:
    gate, up = torch.randn(3, 8), torch.randn(3, 8)
    torch.testing.assert_close(ops.silu_mul(torch.cat([gate, up], 1)), F.silu(gate) * up)


def _one(value: float) -> torch.Tensor:
    return torch.tensor([value])


def test_penalties_one_by_one() -> None:
    logits = torch.tensor([[2.0, -2.0, 2.0, 2.0]])
    in_prompt = torch.tensor([[True, False, False, False]])
    counts = torch.tensor([[0, 1, 3, 0]], dtype=torch.int32)
    repeated = ops.penalize(logits, in_prompt, counts, _one(2.0), _one(0.0), _one(0.0))
    assert repeated.tolist() == [[1.0, -4.0, 1.0, 2.0]]
    present = ops.penalize(logits, in_prompt, counts, _one(1.0), _one(0.5), _one(0.0))
    assert present.tolist() == [[2.0, -2.5, 1.5, 2.0]]
    frequent = ops.penalize(logits, in_prompt, counts, _one(1.0), _one(0.0), _one(0.5))
    assert frequent.tolist() == [[2.0, -2.5, 0.5, 2.0]]


def test_a_mask_forbids_tokens_by_their_bits() -> None:
    logits = torch.randn(3, 40)
    logits[1, 39] = torch.nan
    allowed = [{0, 31, 32}, set(range(39)), set[int]()]
    words = [[0] * 2 for _ in allowed]
    for row, tokens in zip(words, allowed, strict=True):
        for token in tokens:
            row[token // 32] |= 1 << token % 32
    words[2][1] = 0xFFFFFF00  # beyond the vocabulary
    mask = torch.tensor(words).int()  # wraps around to the sign
    masked = ops.mask_tokens(logits, mask)
    for row, tokens in enumerate(allowed):
        for token in range(40):
            expected = logits[row, token] if token in tokens else -torch.inf
            assert masked[row, token] == expected


def _draw(
    probs: list[float],
    uniforms: torch.Tensor,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
) -> torch.Tensor:
    n = len(uniforms)
    return ops.sample(
        torch.tensor([probs]).log().expand(n, -1),
        torch.full((n,), temperature),
        torch.full((n,), top_k, dtype=torch.int32),
        torch.full((n,), top_p),
        torch.full((n,), min_p),
        uniforms,
        top_k > 0 or top_p < 1 or min_p > 0,
    )


EVENLY = torch.linspace(0, 1, 1001)[:-1]
PROBS = [0.1, 0.4, 0.2, 0.3]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [0.1, 0.4, 0.2, 0.3]),
        ({"top_k": 2}, [0, 4 / 7, 0, 3 / 7]),
        ({"top_p": 0.65}, [0, 4 / 7, 0, 3 / 7]),
        ({"top_p": 0.75}, [0, 4 / 9, 2 / 9, 3 / 9]),
        ({"min_p": 0.6}, [0, 4 / 7, 0, 3 / 7]),
        ({"top_k": 3, "top_p": 0.5}, [0, 4 / 7, 0, 3 / 7]),
        ({"temperature": 0.5}, [0.01 / 0.3, 0.16 / 0.3, 0.04 / 0.3, 0.09 / 0.3]),
        ({"temperature": 0.0}, [0, 1, 0, 0]),
        ({"top_k": 1}, [0, 1, 0, 0]),
    ],
)
def test_frequencies_follow_the_filtered_distribution(
    settings: dict[str, float], expected: list[float]
) -> None:
    picked = _draw(PROBS, EVENLY, **settings)  # type: ignore[arg-type]
    frequency = torch.bincount(picked.long(), minlength=4) / len(EVENLY)
    torch.testing.assert_close(
        frequency, torch.tensor(expected, dtype=torch.float32), atol=2e-3, rtol=0
    )


def test_top_k_keeps_exactly_k_of_equals() -> None:
    picked = _draw([0.25] * 4, EVENLY, top_k=2)
    assert len(picked.unique()) == 2


def test_a_token_of_no_probability_is_never_picked() -> None:
    picked = _draw([0.0, 0.5, 0.0, 0.5, 0.0], torch.tensor([0.0, 0.5, 1 - 2**-24]))
    assert picked.tolist() == [1, 3, 3]


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    torch.manual_seed(0)
    logits, uniform = torch.randn(6, 50), torch.rand(6)
    temperature = torch.tensor([0.0, 0.7, 1.0, 1.3, 1.0, 1.0])
    top_k = torch.tensor([0, 0, 5, 0, 0, 3], dtype=torch.int32)
    top_p = torch.tensor([1.0, 1.0, 1.0, 0.5, 1.0, 0.9])
    min_p = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.3, 0.0])
    together = ops.sample(logits, temperature, top_k, top_p, min_p, uniform, True)
    for row in range(6):
        only = slice(row, row + 1)
        has_filters = bool(top_k[row] or top_p[row] < 1 or min_p[row])
        alone = ops.sample(
            logits[only],
            temperature[only],
            top_k[only],
            top_p[only],
            min_p[only],
            uniform[only],
            has_filters,
        )
        assert alone.item() == together[row].item()


def test_top_logprobs_are_those_of_the_softmax() -> None:
    logits = torch.randn(3, 10)
    chosen = torch.tensor([1, 5, 9], dtype=torch.int32)
    picked, ids, top = ops.top_logprobs(logits, chosen, 4)
    everything = logits.softmax(-1).log()
    torch.testing.assert_close(picked, everything[torch.arange(3), chosen.long()])
    torch.testing.assert_close(top, everything.sort(-1, descending=True).values[:, :4])
    torch.testing.assert_close(everything.gather(1, ids.long()), top)
