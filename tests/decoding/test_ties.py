"""With XLA's products a real model's floats differ in their last bits across num_slots: tokens part at ties, and seldom.

Rows are compared decision by decision. Where two generations of one input first differ, the decision there is computed
anew from teacher-forced logits, and both outcomes must lie within 1e-4 of where its random number fell: of the largest
logit, of |r - p/q|, or of an edge of the cumulative distribution.
"""

import itertools
import json
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest
import sentencepiece

import decoding
from decoding import sampling
from decoding.config import ACCEPTED, BONUS, CORRECTED, PLAIN
from tests.support import reference

EXAMPLES = pathlib.Path(__file__).parents[2] / "examples"
CLOSE = 1e-4
GAMMA = 3
SENTENCES = 96
SLOTS = (1, 5, 32)
INPUT, OUTPUT = 48, 64


@pytest.fixture(scope="module")
def pair():
    folder = EXAMPLES / "models" / "ende_software"
    return tuple(decoding.load_model(str(folder / name), weights="plain") for name in ("target", "draft"))


@pytest.fixture(scope="module")
def inputs(pair) -> dict[str, list[int]]:
    pieces = sentencepiece.SentencePieceProcessor(
        model_file=str(EXAMPLES / "models" / "ende_software" / "target" / "spiece.model")
    )
    lines = (EXAMPLES / "data" / "ende_software.test.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["en"] for line in lines]
    tokens = [[*pieces.encode(text), pair[0].eos_id] for text in texts]
    return {str(i): ids for i, ids in enumerate(tokens) if len(ids) <= INPUT}


class Decision:
    """The outcomes that are within CLOSE of right for token `t` of a row, given the tokens before it."""

    def __init__(self, pair, config, example_id: str, tokens: list[int], row, t: int):
        self.config, self.t = config, t
        self.start = int(np.searchsorted(row.iteration, row.iteration[t]))
        prefix, encoder = np.zeros((1, OUTPUT), np.int32), np.zeros((1, INPUT), np.int32)
        prefix[0, : t + 1] = [pair[0].start_id, *row.tokens[:t]]
        encoder[0, : len(tokens)] = tokens
        lengths = np.array([len(tokens)], np.int32)
        self.logits = [np.asarray(model.logits(prefix, encoder, lengths))[0, t] for model in pair]
        self.key = sampling.row_key(config.seed, example_id, 0)[None]

    def outcomes(self) -> set[tuple[int, int]]:
        """(token, source) pairs."""
        offset = self.t - self.start
        if self.config.temperature == 0.0:
            tokens = np.flatnonzero(self.logits[0] >= self.logits[0].max() - CLOSE)
            return set(itertools.product(tokens.tolist(), (ACCEPTED, CORRECTED, BONUS, PLAIN)))
        p, q = (reference.standardize(logits) for logits in self.logits)
        fresh = self._times(sampling.NEXT_STREAM, 0)
        if self.config.gamma == 0:
            return {(token, PLAIN) for token in near(p, fresh)}
        if offset == self.config.gamma:
            return {(token, BONUS) for token in near(p, fresh)}
        found = set()
        for token in near(q, self._times(sampling.DRAFT_STREAM, offset)):
            margin = p[token] / q[token] - self._numbers(sampling.uniforms, sampling.ACCEPT_STREAM, self.config.gamma)[offset]
            if margin > -CLOSE:
                found.add((token, ACCEPTED))
            if margin < CLOSE:
                residual = np.maximum(p - q, 0.0)
                found |= {(other, CORRECTED) for other in near(residual / residual.sum(), fresh)}
        return found

    def _numbers(self, make, stream: int, count: int) -> np.ndarray:
        return np.asarray(make(jnp.asarray(self.key), jnp.array([self.start]), stream, count))[0]

    def _times(self, stream: int, place: int) -> np.ndarray:
        """Of the draw at a place of the iteration."""
        size = sampling.draw_times(len(self.logits[0]))
        return self._numbers(sampling.exponentials, stream, (place + 1) * size)[place * size :]


def near(weights: np.ndarray, times: np.ndarray) -> list[int]:
    """Tokens that win the race of `sampling.draw`, or are behind by a share of CLOSE at most."""
    blocks = len(times) - 128
    padded = np.pad(weights, (0, blocks * 128 - len(weights))).reshape(blocks, 128)

    def winners(weights, times):
        speeds = weights / times
        return np.flatnonzero((speeds >= speeds.max() * (1 - CLOSE)) & (weights > 0))

    return [
        int(block * 128 + lane)
        for block in winners(padded.sum(-1), times[:blocks])
        for lane in winners(padded[block], times[blocks:])
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(dict(gamma=GAMMA), marks=pytest.mark.soak),
        dict(gamma=GAMMA, temperature=0.0),
        *(pytest.param(dict(gamma=0, **law), marks=pytest.mark.soak) for law in ({}, dict(temperature=0.0))),
    ],
    ids=str,
)
def test_across_slots_the_first_difference_is_a_tie(pair, inputs, settings):
    ids = list(inputs)[:SENTENCES]
    config, runs = None, []
    for slots in SLOTS:
        config = decoding.DecodingConfig(**settings, num_slots=slots, max_decode_tokens=OUTPUT, input_buckets=(INPUT,))
        runs.append(decoding.Generator(*pair, config).generate([inputs[name] for name in ids], ids))
    ties = decisions = 0
    for name, *rows in zip(ids, *runs):
        decisions += sum(len(row.tokens) for row in rows[1:])
        for other in rows[1:]:
            first = rows[0]
            steps = [list(zip(row.tokens.tolist(), row.source.tolist())) for row in (first, other)]
            if steps[0] == steps[1]:
                continue
            ties += 1
            t = next(i for i, (a, b) in enumerate(zip(*steps)) if a != b)
            allowed = Decision(pair, config, name, inputs[name], first, t).outcomes()
            assert {steps[0][t], steps[1][t]} <= allowed, (name, t, steps[0][t], steps[1][t], sorted(allowed))
    print(f"{settings}: {ties} ties in {decisions} decisions compared with those of one slot")
    assert ties <= 0.001 * decisions


@pytest.mark.slow
def test_the_check_sees_a_wrong_token(pair, inputs):
    """Negative control: another token than the chosen one is hardly ever within reach."""
    name = next(iter(inputs))
    config = decoding.DecodingConfig(gamma=GAMMA, num_slots=1, max_decode_tokens=OUTPUT, input_buckets=(INPUT,))
    (row,) = decoding.Generator(*pair, config).generate([inputs[name]], [name])
    right = wrong = 0
    for t, (token, source) in enumerate(zip(row.tokens.tolist(), row.source.tolist())):
        allowed = Decision(pair, config, name, inputs[name], row, t).outcomes()
        right += (token, source) in allowed
        wrong += ((token + 1) % pair[0].vocab_size, source) in allowed
    assert right == len(row.tokens) and wrong <= 0.1 * len(row.tokens)
