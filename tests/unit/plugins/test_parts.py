"""Attention of two implementations: which part goes where, and who is chosen for it."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from chiplet.api import (
    AttentionRequest,
    CanonicalLayout,
    Dtype,
    ForwardBatch,
    HostLengths,
    HostPlanning,
    KvSpec,
    LinearRequest,
    Part,
    ShapeBucket,
    Tier,
    Yes,
)
from chiplet.config import DeviceOptions
from chiplet.errors import ConfigError, PluginError
from chiplet.plugins import Selector, choose_device, discover, render
from chiplet.plugins.parts import PartedAttention, parted_attention
from chiplet.plugins.plan_lock import save_plan
from chiplet.reference.attention import PlainAttention

PAGE = 4
REQUEST = AttentionRequest(
    group="global",
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    scale=0.3,
    dtype=Dtype.FLOAT32,
    kv=KvSpec(num_kv_heads=2, head_dim=8, page_size=PAGE, dtype=Dtype.FLOAT32),
)


class Prompts(PlainAttention):
    """Attends for the last tokens of a batch, and leaves NaN for those before."""

    def __init__(self, request):
        super().__init__(request)
        self.plans = []

    def plan(self, batch, layout):
        assert batch.num_decodes == 0
        assert batch.lengths_host is not None
        leading = batch.num_tokens - int(batch.lengths_host.queries.sum())
        assert int(batch.query_starts[0]) == leading
        own = replace(
            batch,
            token_ids=batch.token_ids[leading:],
            positions=batch.positions[leading:],
            kv_rows=batch.kv_rows[leading:],
            query_starts=batch.query_starts - leading,
        )
        self.plans.append(batch)
        return leading, super().plan(own, layout)

    def run(self, q, k, v, kv, plan):
        leading, own = plan
        out = torch.full_like(q, torch.nan)
        out[leading:] = super().run(q[leading:], k[leading:], v[leading:], kv, own)
        return out


class Others(PlainAttention):
    """Notes the batches that it gets."""

    def __init__(self, request):
        super().__init__(request)
        self.plans = []

    def plan(self, batch, layout):
        self.plans.append(batch)
        return super().plan(batch, layout)


def batch_of(queries, lengths, *, is_recorded=False):
    queries, lengths = np.array(queries, np.int32), np.array(lengths, np.int32)
    counts = -(-lengths // PAGE)
    table = torch.zeros(len(queries), int(counts.max()), dtype=torch.int32)
    first = np.concatenate([[0], np.cumsum(counts)])
    for index, count in enumerate(counts.tolist()):
        table[index, :count] = torch.arange(count).flip(0) + int(first[index])
    positions = [torch.arange(b - a, b) for a, b in zip(queries, lengths, strict=True)]
    rows = [table[i][at // PAGE] * PAGE + at % PAGE for i, at in enumerate(positions)]
    starts = torch.from_numpy(np.concatenate([[0], np.cumsum(queries)]).astype(np.int32))
    return ForwardBatch(
        num_decodes=int((queries == 1).sum()),
        token_ids=torch.zeros(int(queries.sum()), dtype=torch.int32),
        positions=torch.cat(positions).int(),
        kv_rows=torch.cat(rows).int(),
        query_starts=starts,
        kv_lengths=torch.from_numpy(lengths),
        page_table=table,
        logit_rows=starts[1:] - 1,
        lengths_host=None if is_recorded else HostLengths(queries, lengths),
    )


@pytest.mark.parametrize(
    ("queries", "lengths", "to_prompts", "to_others"),
    [
        ((1, 1, 5, 3), (9, 1, 5, 10), [2], [2]),
        ((1, 1), (9, 4), [], [2]),
        ((6, 2), (6, 11), [2], []),
    ],
)
def test_each_part_goes_to_its_own(queries, lengths, to_prompts, to_others):
    prompts, others = Prompts(REQUEST), Others(REQUEST)
    parted = parted_attention(prompts, others)
    batch, layout = batch_of(queries, lengths), CanonicalLayout()
    q = torch.randn(batch.num_tokens, 4, 8)
    k, v = torch.randn(2, batch.num_tokens, 2, 8)
    cached = torch.randn(layout.shape(REQUEST.kv, 12))
    kv, expected_kv = cached.clone(), cached.clone()
    out = parted.run(q, k, v, kv, parted.plan(batch, layout))
    plain = PlainAttention(REQUEST)
    expected = plain.run(q, k, v, expected_kv, plain.plan(batch, layout))
    torch.testing.assert_close(out, expected)
    assert torch.equal(kv, expected_kv)
    assert [each.num_requests for each in prompts.plans] == to_prompts
    assert [each.num_requests for each in others.plans] == to_others


def test_a_recorded_step_goes_to_the_others():
    others = Others(REQUEST)
    batch = batch_of((1, 5), (9, 5), is_recorded=True)
    parted_attention(Prompts(REQUEST), others).plan(batch, CanonicalLayout())
    assert others.plans == [batch]


def test_who_plans_recorded_steps_on_the_host_is_asked_to():
    class Storage:
        plan = "made on the host"
        updates = ()

        def update(self, host):
            self.updates += (host,)

    class Planning(PlainAttention):
        def plan_storage(self, bucket, layout):
            return Storage()

        def run(self, q, k, v, kv, plan):
            return plan

    assert not isinstance(parted_attention(Prompts(REQUEST), Others(REQUEST)), HostPlanning)
    parted = parted_attention(Prompts(REQUEST), Planning(REQUEST))
    assert isinstance(parted, HostPlanning)
    bucket = ShapeBucket(num_tokens=1, num_requests=1, num_decodes=1, max_pages=1)
    storage = parted.plan_storage(bucket, CanonicalLayout())
    storage.update("inputs")
    assert storage._storage.updates == ("inputs",)
    assert parted.run(None, None, None, None, storage.plan) == "made on the host"


PROVIDERS = """
from chiplet.api import CanonicalLayout

class Layout(CanonicalLayout):
    def __init__(self, name): self.name = name

class Impl:
    def __init__(self, name, layouts): self.name, self._layouts = name, layouts
    def layouts(self): return tuple(map(Layout, self._layouts))

class Provider:
    accepts = frozenset()
    def __init__(self, name, verdict, layouts=("canonical",)):
        self.name, self.verdict, self.layouts = name, verdict, layouts
    def assess(self, request): return self.verdict
    def build(self, request, context): return Impl(self.name, self.layouts)

PROVIDERS = []

@hookimpl
def attention(device): return PROVIDERS
@hookimpl
def linear(device): return PROVIDERS
"""

QUICK = ("quick", Yes(Tier.VENDOR, "in a hurry", part=Part.PROMPTS))
STEADY = ("steady", Yes(Tier.GENERIC))


@pytest.fixture
def select(folder):
    """A selector whose plugin offers the given providers."""
    import importlib

    folder.add("parts", PROVIDERS)
    module = importlib.import_module(discover(DeviceOptions()).loaded[-1].module)

    def make(*offers, **options):
        module.PROVIDERS[:] = [module.Provider(*each) for each in offers]
        options = DeviceOptions(**options)
        plugins = discover(options)
        return Selector(plugins, choose_device(plugins, options), options)

    return make


def servers(selector):
    (choice,) = selector.plan().choices
    return [(each.provider, each.part) for each in choice.servers]


def test_a_part_and_the_rest(select):
    selector = select(STEADY, QUICK)
    assert isinstance(selector.attention(REQUEST), PartedAttention)
    assert servers(selector) == [("quick", Part.PROMPTS), ("steady", Part.ALL)]
    text = " ".join(render(selector.plan()).split())
    assert "prompts: quick" in text
    assert "in a hurry" in text
    assert "all else: steady" in text


def test_a_part_that_does_not_win_serves_nothing(select):
    selector = select(("quick", Yes(Tier.GENERIC, part=Part.PROMPTS)), ("best", Yes(Tier.TUNED)))
    assert selector.attention(REQUEST).name == "best"


@pytest.mark.parametrize(
    ("pin", "expected"),
    [
        ("quick", [("quick", Part.PROMPTS), ("steady", Part.ALL)]),
        ("steady", [("steady", Part.ALL)]),
    ],
)
def test_a_pin(select, pin, expected):
    best = ("best", Yes(Tier.TUNED, part=Part.PROMPTS))
    selector = select(STEADY, QUICK, best, use=(f"attention={pin}",))
    selector.attention(REQUEST)
    assert servers(selector) == expected
    pinned = {each.seat.candidate.name for each in selector.bound if each.is_pinned}
    assert pinned == {pin}


def test_without_a_layout_in_common_the_rest_serves_all(select):
    selector = select(STEADY, (*QUICK, ("its own",)))
    assert selector.attention(REQUEST).name == "steady"
    (choice,) = selector.plan().choices
    (lost,) = [each for each in choice.rejections if each.provider == "quick"]
    assert lost.reasons == ("no KV layout in common with steady, which serves the rest",)
    with pytest.raises(PluginError, match="no KV layout in common"):
        select(STEADY, (*QUICK, ("its own",)), use=("attention=quick",)).attention(REQUEST)


def test_a_linear_layer_has_no_parts(select):
    selector = select(STEADY, QUICK)
    request = LinearRequest(role="x", in_features=8, out_features=8, dtype=Dtype.FLOAT32)
    assert selector.linear(request).name == "steady"


def test_a_plan_file_keeps_parts(select, tmp_path):
    path = tmp_path / "plan.lock"
    selector = select(STEADY, QUICK)
    selector.attention(REQUEST)
    save_plan(selector.plan(), path)
    again = select(("best", Yes(Tier.TUNED)), STEADY, QUICK, plan_lock=str(path))
    again.attention(REQUEST)
    assert servers(again) == servers(selector)
    assert again.plan().hash == selector.plan().hash
    changed = select(STEADY, ("quick", Yes(Tier.VENDOR)), plan_lock=str(path))
    changed.attention(REQUEST)
    with pytest.raises(ConfigError, match="for prompts, which is for all here"):
        changed.seal()
