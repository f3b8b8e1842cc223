"""Programs by themselves: their sizes, and what each does to states and rows."""

import jax
import numpy as np
import pytest

from decoding import DecodingConfig
from decoding.config import ACCEPTED, BONUS
from decoding.models import base
from decoding.models.base import install
from decoding.programs import Programs, max_positions, prefill_rows
from decoding.rows import DONE, POSITION, new_row
from decoding.sampling import row_key
from tests.support.scripted import reciting


@pytest.mark.parametrize(
    ("bucket", "groups", "platform", "rows"),
    [
        (64, 1, "tpu", 48),  # no more than there are slots
        (512, 1, "gpu", 8),
        (2048, 1, "tpu", 2),
        (8192, 1, "tpu", 1),
        (64, 1, "cpu", 8),
        (1024, 1, "cpu", 1),
        (200, 6, "tpu", 18),  # shared out evenly: not 20
        (2048, 4, "tpu", 1),  # nothing to share out
    ],
)
def test_rows_of_a_prefill(bucket, groups, platform, rows):
    config = DecodingConfig(num_slots=48, input_buckets=(bucket,))
    assert prefill_rows(config, bucket, groups, platform) == rows


@pytest.mark.parametrize(("bucket", "platform", "rows"), [(32, "cpu", 8), (128, "cpu", 4), (512, "cpu", 1), (32, "tpu", 1)])
def test_rows_of_a_prefill_for_one_slot(bucket, platform, rows):
    assert prefill_rows(DecodingConfig(num_slots=1, input_buckets=(bucket,)), bucket, platform=platform) == rows


@pytest.mark.parametrize(("gamma", "positions"), [(0, 101), (5, 106), ("auto", 108)])
def test_states_have_room_behind_the_last_position(gamma, positions):
    assert max_positions(DecodingConfig(max_decode_tokens=100, gamma=gamma)) == positions


def test_prefilled_rows_are_installed_into_slots():
    resident = {"k": np.zeros((3, 2, 4)), "own": np.full((3, 5), 7.0), "parts": [{"n": np.zeros((3,))}]}
    prefilled = {"k": np.arange(8.0).reshape(2, 2, 2) + 1, "parts": [{"n": np.array([5.0, 6.0])}]}
    rows, slots = np.array([1, 0, 0]), np.array([0, 2, 3])  # the last is out of range
    found = jax.jit(install)(resident, prefilled, rows, slots)
    np.testing.assert_array_equal(found["k"][0], [[5, 6, 0, 0], [7, 8, 0, 0]])
    np.testing.assert_array_equal(found["k"][1], np.zeros((2, 4)))
    np.testing.assert_array_equal(found["k"][2], [[1, 2, 0, 0], [3, 4, 0, 0]])
    np.testing.assert_array_equal(found["own"], resident["own"])
    np.testing.assert_array_equal(found["parts"][0]["n"], [6, 0, 5])


def test_prefilled_rows_for_every_slot():
    resident = {"k": np.full((2, 3), 9.0)}
    each = install(resident, {"k": np.array([[1.0, 2.0], [3.0, 4.0]])})
    np.testing.assert_array_equal(each["k"], [[1, 2, 9], [3, 4, 9]])
    same = install(resident, {"k": np.array([[1.0, 2.0]])})
    np.testing.assert_array_equal(same["k"], [[1, 2, 9], [1, 2, 9]])


@pytest.fixture(scope="module")
def programs() -> Programs:
    """A target that recites 3 4 5 6 and a draft that is right at positions 0, 1 and 3, wrong at 2."""
    config = DecodingConfig(gamma="auto", gamma_choices=(0, 2), num_slots=2, max_decode_tokens=8, temperature=0.0,
                            input_buckets=(2, 4), chunk_iterations=5)  # fmt: skip
    found = Programs(reciting([3, 4, 5, 6]), reciting([3, 4, 7, 6]), config, None)
    found.compile()
    return found


def test_programs_of_a_configuration(programs):
    names = set(programs._compiled)
    assert names == {"empty", "follow", ("chunk", 0), ("chunk", 2)} | {
        (what, bucket) for what in ("prefill", "prefill draft", "insert", "insert draft") for bucket in (2, 4)
    }


def prefilled(programs, bucket: int = 2):
    """Both models' states with the same prefilled row in both slots."""
    states = []
    for which, state in enumerate(programs.empty()):
        rows = programs.prefill_rows(bucket)
        staged = programs.prefill(which, np.full((rows, bucket), 2, np.int32), np.full((rows,), bucket, np.int32))
        states.append(programs.insert(which, bucket, state, staged, np.zeros(2, np.int32), np.arange(2, dtype=np.int32)))
    return tuple(states)


def row(position: int = 0, last: int = 0, remaining: int = 8) -> np.ndarray:
    return new_row(last, last, position, remaining, row_key(0, "a", 0))


def test_a_chunk_runs_until_rows_are_done(programs):
    packed = np.stack([row(), row(remaining=2)])
    states, rows, log = programs.chunk(2, prefilled(programs), packed, 5, 1)
    log = jax.tree.map(np.asarray, log)
    # The second row is done after the first iteration (3 4), and one is enough to stop.
    assert log.count.tolist() == [[3, 2], [0, 0], [0, 0], [0, 0], [0, 0]]
    assert log.tokens[0, 0].tolist() == [3, 4, 5]
    assert log.source[0, 0].tolist() == [ACCEPTED, ACCEPTED, BONUS]
    assert np.asarray(rows)[:, DONE].tolist() == [0, 1]
    assert np.asarray(rows)[:, POSITION].tolist() == [3, 2]
    # At position 3 the draft is right (6), right (3), and the bonus is 4.
    states, rows, log = programs.chunk(2, states, np.asarray(rows), 1, 2)
    assert np.asarray(log.tokens)[0, 0].tolist() == [6, 3, 4]
    assert np.asarray(log.count).tolist() == [[3, 0], [0, 0], [0, 0], [0, 0], [0, 0]]
    assert np.asarray(rows)[:, POSITION].tolist() == [6, 2]


def test_a_plain_chunk_leaves_the_draft_alone(programs):
    states = prefilled(programs)
    before = jax.tree.map(np.array, states[1])
    states, rows, log = programs.chunk(0, states, np.stack([row(), row()]), 3, 2)
    assert np.asarray(log.tokens)[:3, 0, 0].tolist() == [3, 4, 5]
    jax.tree.map(np.testing.assert_array_equal, before, states[1])
    # Fed what was decoded without it, the draft goes on as if it had been there: 6, 3 and the bonus 4.
    fed = np.array([[0, 3, 4]] * 2, np.int32)
    states = (states[0], programs.follow(states[1], fed, np.zeros(2, np.int32)))
    _, rows, log = programs.chunk(2, states, np.asarray(rows), 1, 2)
    assert np.asarray(log.tokens)[0, 0].tolist() == [6, 3, 4]


@pytest.mark.parametrize("slots", [[3, 0, 4, 4], [2, 4, 4, 4], [4, 4, 4, 4], [1, 3, 0, 2]])
def test_rows_are_installed_in_turn_as_they_are_at_once(slots):
    """Slot 4 is none; a row may go to several slots."""
    rng = np.random.default_rng(0)
    resident = [rng.standard_normal((4, 3, 8)).astype(np.float32), np.arange(4, dtype=np.int32)]
    prefilled = [rng.standard_normal((2, 3, 5)).astype(np.float32), np.array([10, 11], np.int32)]
    rows, slots = np.array([1, 0, 1, 0], np.int32), np.array(slots, np.int32)
    in_turn, at_once = (
        jax.tree.map(np.asarray, jax.jit(way)(resident, prefilled, rows, slots))
        for way in (base._install_in_turn, base._install_at_once)
    )
    jax.tree.map(np.testing.assert_array_equal, in_turn, at_once)
    for row, slot in zip(rows, slots):
        if slot < 4:
            assert np.array_equal(in_turn[0][slot, :, :5], prefilled[0][row]) and in_turn[1][slot] == 10 + row
    assert np.array_equal(in_turn[0][..., 5:], resident[0][..., 5:])
