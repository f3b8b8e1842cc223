"""Single passes of models whose steps can be watched."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from decoding import compilation
from pipeline.benchmarking import passes
from pipeline.benchmarking.passes import PassTimer
from tests.support import scripted


class Watched(scripted.Scripted):
    """Tells `seen` every step's positions, number of tokens and state."""

    seen: list

    def step(self, tokens, positions, state, *, at=None):
        jax.debug.callback(lambda *found: Watched.seen.append(found), positions, tokens, state["input"])
        return super().step(tokens, positions, state, at=at)


def test_single_passes(monkeypatch):
    monkeypatch.setattr(Watched, "seen", [], raising=False)
    monkeypatch.setattr(passes, "_MAX_PASSES", 8)
    table = np.zeros((1, 1, 8), np.float32)
    table[..., 3] = 1.0
    timer = PassTimer(Watched(table), num_slots=2, input_bucket=4, max_positions=12, positions=(1, 3), min_seconds=99)
    found = timer.seconds([2, 3], 9, (3, 1))
    jax.effects_barrier()
    assert list(found) == [3, 1] and all(0 < seconds < 99 for seconds in found.values())
    for width in (1, 3):
        steps = [[np.asarray(array) for array in step] for step in Watched.seen if step[1].shape[1] == width]
        starts = sorted(int(positions[0]) for positions, _, _ in steps)
        # Two single passes to see how many make a run, then one run of 8 over positions 0 to 8: 9k // 8.
        assert starts == sorted([0, 0, *range(8)])
        assert all(positions[0] == positions[1] for positions, _, _ in steps)
        assert all(inputs.tolist() == [2 + 2 * 3] * 2 for _, _, inputs in steps)  # every row holds the example
        # A pass feeds what the one before it yielded, so that none can be left out; a run begins with token 0.
        fed = sorted({(int(positions[0]) > 0, *tokens.flat) for positions, tokens, _ in steps})
        assert fed == [(False, *[0] * 2 * width), (True, *[3] * 2 * width)]


class Slow(scripted.Scripted):
    """A prefill that takes long: tenths of a second."""

    def prefill(self, inputs, lengths):
        start = jnp.full((256, 256), 1e-3) * inputs[0, 0]
        end = jax.lax.fori_loop(0, 300, lambda _, x: jnp.tanh(x @ x), start)
        return super().prefill(inputs + (end[0, 0] > 9), lengths)


def test_the_prefill_is_no_part_of_a_timed_run(monkeypatch):
    """It is dispatched asynchronously; with a long input it took ten times a pass, which the first run then seemed to."""
    timer = PassTimer(Slow(np.eye(8)[None, :1]), num_slots=1, input_bucket=4, max_positions=9, positions=(1,), min_seconds=0)
    fill, filled, ready = timer._programs["fill"], [], []
    monkeypatch.setitem(timer._programs, "fill", lambda *arguments: filled.append(fill(*arguments)) or filled[-1])
    timed = timer._timed

    def watched(state, *arguments):
        ready.append(all(leaf.is_ready() for leaf in jax.tree.leaves(state)))
        return timed(state, *arguments)

    monkeypatch.setattr(timer, "_timed", watched)
    timer.seconds([2, 3], 5, (1,))
    timer.seconds([2, 3], 5, (1,))
    assert len(filled) == 2 and all(ready)


class DecoderOnly(Watched):
    encoder_decoder = False


@pytest.mark.parametrize(("model", "first"), [(Watched, 0), (DecoderOnly, 2)])
def test_passes_start_where_decoding_does(monkeypatch, model, first):
    monkeypatch.setattr(Watched, "seen", [], raising=False)
    monkeypatch.setattr(passes, "_MAX_PASSES", 4)
    timer = PassTimer(model(np.eye(8)[None, :1]), num_slots=1, input_bucket=4, max_positions=12, positions=(1,))
    timer.seconds([2, 3, 4], 8, (1,))
    jax.effects_barrier()
    assert [int(positions[0]) for positions, _, _ in Watched.seen][-4:] == [first, first + 2, first + 4, first + 6]


def test_passes_are_compiled_as_the_engines_programs(monkeypatch):
    monkeypatch.setattr(compilation, "compiler_options", lambda platform: {"no_such_option": "1"})
    with pytest.raises(Exception, match="no_such_option"):
        PassTimer(scripted.reciting([3]), num_slots=1, input_bucket=4, max_positions=9, positions=(1,))


def test_a_run_of_passes_is_as_long_as_asked(monkeypatch):
    timer = PassTimer(
        scripted.reciting([3]), num_slots=1, input_bucket=4, max_positions=9, positions=(1,), min_seconds=1.0
    )
    asked = []

    def timed(state, width, passes, first, span):  # 0.1 s of dispatch and 0.01 s per pass
        asked.append(passes)
        return state, 0.1 + 0.01 * passes

    monkeypatch.setattr(timer, "_timed", timed)
    assert timer.seconds([2], 5, (1,)) == {1: pytest.approx(0.01 + 0.1 / asked[-1])}
    assert asked[:4] == [1, 1, 10, 50]
    assert 0.1 + 0.01 * asked[-1] >= 1.0 and asked[-1] == asked[-2]
    before = len(asked)
    timer.seconds([2], 5, (1,))
    assert asked[before:] == [asked[-1]]
