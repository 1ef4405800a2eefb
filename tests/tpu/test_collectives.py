"""Collectives of ranks that share one program, on four virtual devices."""

import pytest

pytest.importorskip("torchax", reason="torchax is not installed; run 'make test-tpu'")

import jax
import numpy as np

from chiplet_tpu.communicator import MeshCommunicator
from chiplet_tpu.compilation.arrays import array_of, wrap
from chiplet_tpu.compilation.mesh import SPLIT, RankMesh

SIZE = 4


def on_ranks(function, *inputs):
    """What each rank gets, where rank r gives `inputs[i][r]` as argument i.

    Shapes: inputs and result `[SIZE, ...]`.
    """

    def program(*parts):
        tensors = [wrap(each[0]) for each in parts]  # every rank holds one row
        return array_of(function(*tensors))[None]

    mesh = RankMesh(jax.devices()[:SIZE]).mesh
    specs = (SPLIT,) * len(inputs)
    shared = jax.shard_map(program, mesh=mesh, in_specs=specs, out_specs=SPLIT, check_vma=False)
    compiled = jax.jit(shared).lower(*inputs).compile()
    return np.asarray(compiled(*inputs)), compiled.as_text()


@pytest.fixture
def values():
    return np.random.default_rng().normal(size=(SIZE, SIZE, 3, 5)).astype(np.float32)


COMMUNICATOR = MeshCommunicator()
EXPECTED = {
    "all_reduce": lambda x: np.broadcast_to(x.sum(0), x.shape),
    "all_gather": lambda x: np.broadcast_to(x, (SIZE, *x.shape)),
    "reduce_scatter": lambda x: x.sum(0),
    "all_to_all": lambda x: x.swapaxes(0, 1),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_every_rank_gets_its_result(name, values):
    got, text = on_ranks(getattr(COMMUNICATOR, name), values)
    np.testing.assert_allclose(got, EXPECTED[name](values), atol=1e-6)
    assert name.replace("_", "-") in text, "the program has the collective"


@pytest.mark.parametrize("source", range(SIZE))
def test_every_rank_gets_what_one_had(source, values):
    got, _ = on_ranks(lambda x: COMMUNICATOR.broadcast(x, source), values)
    np.testing.assert_array_equal(got, np.broadcast_to(values[source], values.shape))


def test_no_rank_sends_or_receives_alone(values):
    with pytest.raises(RuntimeError, match="none can send alone"):
        COMMUNICATOR.send(wrap(values), 1)
    with pytest.raises(RuntimeError, match="none can receive alone"):
        COMMUNICATOR.recv(wrap(values), 1)


def test_experts_of_other_ranks_are_reached_by_two_exchanges():
    """What expert parallelism needs: tokens to the ranks of their experts, results back.

    Every rank has some tokens and one expert, here a matrix. A rank has room for all tokens of
    another, so that none is dropped however the router chooses.
    """
    random = np.random.default_rng()
    num_tokens, width = 6, 8
    tokens = random.normal(size=(SIZE, num_tokens, width)).astype(np.float32)
    experts = random.normal(size=(SIZE, width, width)).astype(np.float32)
    chosen = random.integers(0, SIZE, (SIZE, num_tokens)).astype(np.int32)
    chosen[0] = 2  # one rank sends all that it has to one expert

    def mixture(x, expert, targets):
        x, expert, targets = map(array_of, (x, expert, targets))
        is_for = targets[None] == np.arange(SIZE)[:, None]  # [SIZE, num_tokens]
        sent = wrap(is_for[..., None] * x)
        came = array_of(COMMUNICATOR.all_to_all(sent))
        back = array_of(COMMUNICATOR.all_to_all(wrap(came @ expert)))
        return wrap(back.sum(0))

    got, text = on_ranks(mixture, tokens, experts, chosen)
    expected = np.einsum("rtk,rtkn->rtn", tokens, experts[chosen])
    np.testing.assert_allclose(got, expected, atol=1e-5)
    assert "all-to-all" in text
