"""Latent attention: what the interface asks for is what models with it compute."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from chiplet.api import BuildContext, Dtype, Feature
from chiplet.plugins.self_check.attention import make_batch
from chiplet.reference.attention import PlainAttention
from chiplet.reference.platform import ReferencePlatform
from chiplet.testing.conformance.attention import check_attention
from chiplet.testing.conformance.attention_cases import Shape, attention_request
from chiplet.testing.conformance.attention_inputs import AttentionCase
from tests.conformance.wrong_providers import Wrong

HEADS, LATENT, POSITION, WIDTH, VALUE = 3, 32, 16, 24, 20
SHAPE = Shape(HEADS, 1, LATENT + POSITION, 16)


def request_of(dtype=Dtype.FLOAT32):
    plain = attention_request(SHAPE, dtype)
    return replace(plain, kv=replace(plain.kv, value_dim=LATENT))


def test_absorbed_projections_give_attention_of_many_heads():
    """Source: arXiv:2405.04434, section 2.1.2, whose projections of keys and values vanish."""
    torch.manual_seed(1)
    num_tokens, request = 37, request_of()
    latent, position = torch.randn(num_tokens, LATENT), torch.randn(num_tokens, POSITION)
    to_keys, to_values = torch.randn(HEADS, WIDTH, LATENT), torch.randn(HEADS, VALUE, LATENT)
    q, q_position = torch.randn(num_tokens, HEADS, WIDTH), torch.randn(num_tokens, HEADS, POSITION)
    # Each head has keys and values of its own.
    keys = torch.einsum("hwl,tl->thw", to_keys, latent)
    scores = torch.einsum("qhw,khw->hqk", q, keys)
    scores += torch.einsum("qhp,kp->hqk", q_position, position)
    mask = torch.ones(num_tokens, num_tokens, dtype=torch.bool).tril()
    weights = (request.scale * scores).masked_fill(~mask, -torch.inf).softmax(dim=-1)
    values = torch.einsum("hvl,tl->thv", to_values, latent)
    expected = torch.einsum("hqk,khv->qhv", weights, values)
    # All heads ask one row.
    impl = PlainAttention(request)
    (layout,) = impl.layouts()
    assert layout.shape(request.kv, 5) == (5, 1, 16, 1, LATENT + POSITION)
    absorbed = torch.cat([torch.einsum("thw,hwl->thl", q, to_keys), q_position], dim=-1)
    rows = torch.cat([latent, position], dim=-1).unsqueeze(1)
    table = torch.tensor([[4, 0, 2]], dtype=torch.int32)
    batch = make_batch(table, (0,), (num_tokens,), 16, torch.device("cpu"))
    kv = torch.full(layout.shape(request.kv, 5), torch.nan)
    out = impl.run(absorbed, rows, rows, kv, impl.plan(batch, layout))
    found = torch.einsum("hvl,thl->thv", to_values, out)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_who_has_not_heard_of_it_is_not_asked():
    assert Feature.LATENT_KV in request_of().features


@pytest.mark.parametrize("last", [False, True])
def test_values_that_are_other_elements_are_caught(last):
    class Others(PlainAttention):
        def _cached(self, kv, request):
            keys, _ = super()._cached(kv, request)
            return keys, keys[..., -LATENT:] if last else keys[..., 1 : LATENT + 1]

    case = AttentionCase("mixed", (1, 1, 9), (40, 2, 30))
    with pytest.raises(AssertionError, match="error"):
        check_attention(Wrong(Others), request_of(), BuildContext(ReferencePlatform()), case)
