"""What becomes of the logs of chunks, on logs written by hand."""

import numpy as np

from decoding.config import ACCEPTED, BONUS, CORRECTED, PLAIN
from decoding.harvest import Occupant, generation, guesses
from decoding.speculative import Emission

NAN = np.nan


def log(iterations: int, places: int, batch: tuple[int, ...] = (), **fields) -> Emission:
    """An Emission [iterations, *batch, ...] of zeros but for these fields."""
    wide = (iterations, *batch, places)
    kinds = {"tokens": np.int32, "source": np.int8} | dict.fromkeys(("beta", "target_logprob", "draft_logprob"), np.float32)
    arrays = {name: np.zeros(wide if name in kinds else wide[:-1], kinds.get(name, np.int32)) for name in Emission._fields}
    for name, values in fields.items():
        arrays[name][...] = values
    return Emission(**arrays)


# Two iterations with γ = 2: one guess kept and one corrected, then both kept and a bonus that the budget cut off; a third
# iteration was not run. Then, with γ = 0, one plain token that ends the text.
SPECULATIVE = log(
    3,
    3,
    tokens=[[5, 6, 99], [7, 8, 99], [0, 0, 0]],
    source=[[ACCEPTED, CORRECTED, CORRECTED], [ACCEPTED, ACCEPTED, BONUS], [0, 0, 0]],
    beta=[[0.5, 0.25, NAN], [1.0, 0.75, NAN], [0, 0, 0]],
    target_logprob=[[-1, -2, -9], [-3, -4, -9], [0, 0, 0]],
    draft_logprob=[[-5, -6, NAN], [-7, -8, NAN], [0, 0, 0]],
    count=[2, 2, 0],
    proposed=[2, 2, 0],
)
ALONE = log(2, 1, tokens=[[1], [0]], source=PLAIN, beta=NAN, target_logprob=-0.5, draft_logprob=NAN, count=[1, 0])


def occupant(*chunks: Emission) -> Occupant:
    return Occupant(item=0, since=10.0, chunks=list(chunks), prompt=[3, 4], drafted=None)


def test_chunks_of_different_gamma_are_joined():
    found = generation(occupant(SPECULATIVE, ALONE), eos_ids=(1,), now=12.5)
    assert found.tokens.tolist() == [5, 6, 7, 8, 1]
    assert found.source.tolist() == [ACCEPTED, CORRECTED, ACCEPTED, ACCEPTED, PLAIN]
    assert found.iteration.tolist() == [0, 0, 1, 1, 2]
    np.testing.assert_array_equal(found.beta, np.float32([0.5, 0.25, 1.0, 0.75, NAN]))
    np.testing.assert_array_equal(found.target_logprob, np.float32([-1, -2, -3, -4, -0.5]))
    np.testing.assert_array_equal(found.draft_logprob, np.float32([-5, -6, -7, -8, NAN]))
    assert found.gammas.tolist() == [2, 2, 0]
    assert found.accepted.tolist() == [1, 2, 0]
    assert (found.finish_reason, found.decode_seconds, found.num_iterations) == ("eos", 2.5, 3)
    assert generation(occupant(SPECULATIVE), eos_ids=(1,), now=11).finish_reason == "length"


def test_decoder_inputs_are_the_prompt_and_what_was_emitted():
    assert occupant(SPECULATIVE, ALONE).decoder_inputs().tolist() == [3, 4, 5, 6, 7, 8, 1]


def test_guesses_are_counted_by_place_and_cut_off_ones_are_not():
    # Two rows: the first as above, of the second only the first guess was emitted (it ended the text).
    both = log(
        1,
        3,
        (2,),
        source=[[[ACCEPTED, CORRECTED, CORRECTED], [ACCEPTED, ACCEPTED, BONUS]]],
        count=[[2, 1]],
    )
    accepted, reached = guesses(both, 2)
    assert (accepted.tolist(), reached.tolist()) == ([2, 0], [2, 1])


def test_a_place_without_a_guess_was_reached_and_not_accepted():
    """Else a draft that copies, and guesses in few iterations, would seem to bring tokens in all of them."""
    # Three rows, one iteration with γ = 3: no guess at all; one guess, kept; three, of which the second was wrong.
    found = log(
        1,
        4,
        (3,),
        source=[[[PLAIN] * 4, [ACCEPTED, BONUS, BONUS, BONUS], [ACCEPTED, CORRECTED, CORRECTED, CORRECTED]]],
        count=[[1, 2, 2]],
        proposed=[[0, 1, 3]],
    )
    accepted, reached = guesses(found, 3)
    assert (accepted.tolist(), reached.tolist()) == ([2, 0, 0], [3, 2, 0])
    emitted = int(found.count.sum())
    assert emitted == 3 * (1 + 2 / 3 + 2 / 3 * 0), "tokens of three iterations, by the formula of decoding.adaptive"
