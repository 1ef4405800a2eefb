"""Prefixes that decodes share, found and read once: interpreted, against the reference."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from chiplet.api import AttentionRequest, BuildContext, DeviceProbe, Dtype, KvCoding, KvSpec
from chiplet.testing.conformance import AttentionCase, check_attention
from chiplet.testing.conformance.attention_inputs import make_batch
from chiplet.testing.conformance.attention_prefixes import drawn_prefixes, prefix_cases
from chiplet_triton import plugin
from chiplet_triton.attention.prefixes import FEWEST_REQUESTS, FEWEST_TOKENS, PrefixSharing
from chiplet_triton.device import traits_of

DEVICE = DeviceProbe(
    device_type="cuda",
    index=0,
    name="none",
    total_memory_bytes=1,
    facts={"cores": "4", "capability": "8.9"},
)
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy on infinity

CONTEXT = BuildContext(SimpleNamespace(torch_device=torch.device("cpu")))


def attention_request(dtype=Dtype.FLOAT32, heads=(2, 1), head_dim=16, page_size=16, **others):
    spec = KvSpec(
        num_kv_heads=heads[1],
        head_dim=head_dim,
        page_size=page_size,
        dtype=dtype,
        coding=others.pop("coding", None),
    )
    return AttentionRequest(
        group="global",
        num_heads=heads[0],
        num_kv_heads=heads[1],
        head_dim=head_dim,
        scale=0.2,
        dtype=dtype,
        kv=spec,
        **others,
    )


def find(request, case):
    batch, _ = make_batch(case, request.kv.page_size, torch.Generator().manual_seed(case.seed))
    sharing = PrefixSharing(request, traits_of(DEVICE))
    found = sharing.find(batch)
    assert found is not None
    groups = found.groups.view(-1, 3)[: int(found.counts[0])].tolist()
    order = found.order.tolist()
    members = [order[first : first + count] for first, count, _ in groups]
    pages = [each[2] for each in groups]
    return batch, found, members, pages


@pytest.mark.parametrize("seed", range(4))
def test_who_is_grouped_has_the_pages_in_common(seed):
    page_size = (16, 4, 1, 32)[seed % 4]
    request = attention_request(heads=(2, 2) if seed % 2 else (8, 1), page_size=page_size)
    case = drawn_prefixes(page_size, 100 + seed, num_decodes=25 + 7 * seed)
    batch, found, members, pages = find(request, case)
    full = (batch.kv_lengths - 1) // page_size
    shared = np.zeros(batch.num_decodes, int)
    for requests, count in zip(members, pages, strict=True):
        assert 3 <= len(requests) <= 64
        assert count * page_size >= FEWEST_TOKENS
        assert (full[requests] >= count).all()
        assert (batch.page_table[requests, :count] == batch.page_table[requests[0], :count]).all()
        assert (shared[requests] == 0).all()
        shared[requests] = count * page_size
    assert found.shared_keys.tolist() == shared.tolist()
    assert sorted(found.order.tolist()) == list(range(batch.num_decodes))
    # In order, each begins with no smaller pages than the one before.
    rows = [tuple(batch.page_table[each, : full[each]].tolist()) for each in found.order.tolist()]
    assert rows == sorted(rows)


def decodes(pages, prefixes):
    """Of so many full pages each, and one token more."""
    lengths = tuple(16 * each + 1 for each in pages)
    return AttentionCase("decodes", (1,) * len(pages), lengths, prefixes=prefixes)


def test_a_run_is_cut_evenly_and_the_longest_common_prefix_is_taken():
    request = attention_request(Dtype.FLOAT16, heads=(4, 1))  # sixteen requests in a tile
    alone = tuple((at, 0) for at in range(37, 40))
    small = ((33, 0), (0, 2), (34, 20), (34, 20))
    case = decodes([30] * 34 + [20] * 3 + [1] * 3, ((0, 0), *((0, 30),) * 32, *small, *alone))
    _, found, members, pages = find(request, case)
    # Two pages in common with the large group are fewer than the twenty of the small one.
    assert sorted(zip(map(len, members), pages, strict=True)) == [(3, 20), *[(11, 30)] * 3]
    assert {34, 35, 36} in [set(each) for each in members]
    assert not found.shared_keys[33].any()
    assert not found.shared_keys[37:].any()


def test_groups_that_save_little_are_left():
    request = attention_request()
    alone = tuple((at, 0) for at in range(5, 24))
    _, found, members, _ = find(request, decodes([20] * 24, ((0, 0), *((0, 20),) * 4, *alone)))
    assert not members
    assert not found.shared_keys.any()
    pairs = tuple((at - at % 2, 20 * (at % 2)) for at in range(24))
    _, found, members, _ = find(request, decodes([20] * 24, pairs))
    assert not members
    assert not found.shared_keys.any()


def test_few_decodes_and_windows_are_served_as_before():
    request = attention_request()
    traits = traits_of(DEVICE)
    case = drawn_prefixes(16, 1, num_decodes=FEWEST_REQUESTS - 1)
    batch, _ = make_batch(case, 16, torch.Generator())
    assert PrefixSharing(request, traits).find(batch) is None
    case = drawn_prefixes(16, 1, num_decodes=FEWEST_REQUESTS)
    batch, _ = make_batch(case, 16, torch.Generator())
    assert PrefixSharing(request, traits).find(batch) is not None
    windowed = attention_request(window=64)
    assert PrefixSharing(windowed, traits).find(batch) is None
    one_for_many = attention_request(heads=(64, 1))
    assert PrefixSharing(one_for_many, traits).find(batch) is None


@pytest.mark.parametrize(
    ("request_", "which"),
    [
        (attention_request(), 0),
        (attention_request(Dtype.FLOAT16), 1),
        (attention_request(Dtype.FLOAT16, heads=(3, 1), head_dim=24, page_size=5), 0),
        (attention_request(heads=(2, 2), page_size=1), 0),
        (attention_request(softcap=2.0, has_sinks=True), 0),
        (attention_request(window=40), 0),
        (attention_request(Dtype.FLOAT16, coding=KvCoding.FP8, head_dim=32), 0),
        (attention_request(Dtype.FLOAT16, coding=KvCoding.INT8, head_dim=32, softcap=2.0), 0),
        (attention_request(coding=KvCoding.INT8), 0),
    ],
    ids=str,
)
def test_decodes_with_prefixes(request_, which):
    (provider,) = plugin.attention(device=DEVICE)
    case = prefix_cases(request_.kv.page_size)[which]
    assert check_attention(provider, request_, CONTEXT, case)
