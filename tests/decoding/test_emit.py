"""What an iteration emits into its rows, case by case."""

import jax
import jax.numpy as jnp
import numpy as np

from decoding.config import ACCEPTED, BONUS, CORRECTED, PLAIN
from decoding.rows import Rows
from decoding.sampling import log_prob
from decoding.speculative import emit
from decoding.verification import Proposal, Verdict

EOS, VOCABULARY = (1,), 10
NAN = np.nan


def rows_of(batch: int, **fields) -> Rows:
    """Rows at position 4 after the tokens 8 9, with room for ten more."""
    values = {"previous": 8, "last": 9, "position": 4, "remaining": 10, "done": False} | fields
    arrays = {name: jnp.broadcast_to(jnp.asarray(value), (batch,)) for name, value in values.items()}
    return Rows(keys=jnp.zeros((batch, 2), jnp.uint32), **arrays)


def logits(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=(*shape, VOCABULARY)), jnp.float32)


def emitted(rows: Rows, drafted, accepted, next_token, count=2, own=True):
    """(rows, emission, target's logits, draft's) of an iteration that judged int32[B, 2] `drafted`."""
    batch = len(rows.last)
    p, q = logits(0, batch, 3), logits(1, batch, 2)
    counts = jnp.broadcast_to(jnp.asarray(count, jnp.int32), (batch,))
    proposal = Proposal(jnp.asarray(drafted, jnp.int32), q if own else None, None, counts)
    accepted, next_token = jnp.asarray(accepted, jnp.int32), jnp.asarray(next_token, jnp.int32)
    beta = jnp.broadcast_to(jnp.float32([0.25, 0.75]), (batch, 2))
    verdict = Verdict(accepted, next_token, beta, accepted + 1)
    moved, emission = emit(rows, p, accepted, next_token, EOS, proposal, verdict)
    return moved, jax.tree.map(np.asarray, emission), p, q


def test_what_each_token_was_and_where_rows_stand():
    rows = rows_of(4)
    moved, emission, p, q = emitted(
        rows, drafted=[[5, 6]] * 4, accepted=[0, 1, 2, 0], next_token=[7, 7, 7, 3], count=[2, 2, 2, 0]
    )
    assert emission.count.tolist() == [1, 2, 3, 1]
    assert [emission.tokens[i, :n].tolist() for i, n in enumerate(emission.count)] == [[7], [5, 7], [5, 6, 7], [3]]
    sources = [emission.source[i, :n].tolist() for i, n in enumerate(emission.count)]
    assert sources == [[CORRECTED], [ACCEPTED, CORRECTED], [ACCEPTED, ACCEPTED, BONUS], [PLAIN]]
    assert emission.proposed.tolist() == [2, 2, 2, 0]
    assert moved.position.tolist() == [5, 6, 7, 5]
    assert moved.previous.tolist() == [9, 5, 6, 9]
    assert moved.last.tolist() == [7, 7, 7, 3]
    assert moved.remaining.tolist() == [9, 8, 7, 9] and not moved.done.any()
    np.testing.assert_array_equal(emission.beta[2], np.float32([0.25, 0.75, NAN]))
    assert np.isnan(emission.beta[3]).all() and np.isnan(emission.draft_logprob[3]).all()
    np.testing.assert_allclose(emission.target_logprob[2], log_prob(p[2], jnp.array([5, 6, 7])), rtol=1e-6)
    # The draft's logarithm is of the token that came, also where it was corrected.
    np.testing.assert_allclose(emission.draft_logprob[1, :2], log_prob(q[1], jnp.array([5, 7])), rtol=1e-6)
    assert not emission.fault.any()


def test_a_deterministic_draft_is_sure_of_what_it_proposed():
    _, emission, _, _ = emitted(rows_of(2), drafted=[[5, 6]] * 2, accepted=[1, 2], next_token=[7, 7], own=False)
    np.testing.assert_array_equal(emission.draft_logprob[0, :2], [0, -np.inf])
    np.testing.assert_array_equal(emission.draft_logprob[1], [0, 0, NAN])


def test_rows_end_at_eos_and_at_their_budget():
    rows = rows_of(5, remaining=jnp.array([10, 10, 10, 1, 2]))
    moved, emission, _, _ = emitted(
        rows,
        drafted=[[1, 6], [5, 1], [5, 6], [5, 6], [5, 6]],
        accepted=[2, 1, 1, 2, 1],
        next_token=[7, 7, 1, 7, 7],
    )
    # An accepted end, one that was rejected, one that came as correction, and budgets of 1 and of exactly what came.
    assert emission.count.tolist() == [1, 2, 2, 1, 2]
    assert moved.done.tolist() == [True, False, True, True, True]
    assert moved.last.tolist() == [1, 7, 1, 5, 7]
    assert moved.position.tolist() == [5, 6, 6, 5, 6]


def test_done_rows_are_frozen():
    rows = rows_of(1, done=True)
    moved, emission, _, _ = emitted(rows, drafted=[[5, 6]], accepted=[2], next_token=[7])
    assert emission.count.tolist() == [0]
    for before, after in zip(rows, moved):
        np.testing.assert_array_equal(before, after)


def test_a_plain_iteration():
    rows, p = rows_of(2), logits(0, 2, 1)
    moved, emission = emit(rows, p, jnp.zeros(2, jnp.int32), jnp.array([3, 1]), EOS)
    assert emission.source.tolist() == [[PLAIN], [PLAIN]] and emission.proposed.tolist() == [0, 0]
    assert emission.tokens.tolist() == [[3], [1]] and moved.done.tolist() == [False, True]
    assert np.isnan(emission.beta).all() and np.isnan(emission.draft_logprob).all()
