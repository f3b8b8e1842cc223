"""Float64 NumPy references, written from the papers and apart from `decoding`, and the tests' statistics."""

import itertools

import numpy as np
from scipy import stats


def standardize(logits, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> np.ndarray:
    """Temperature, then top-k, then top-p (section 2.2 of 2211.17192), token by token.  float64[..., V]."""
    logits = np.asarray(logits, np.float64)
    probs = np.empty_like(logits)
    for index in np.ndindex(logits.shape[:-1]):
        row = logits[index] / temperature
        kept = list(np.argsort(-row, kind="stable"))
        if top_k:
            kept = [token for token in kept if row[token] >= row[kept[min(top_k, len(kept)) - 1]]]
        weights = {token: np.exp(row[token] - row.max()) for token in kept}
        total = sum(weights.values())
        if top_p < 1.0:
            reached, nucleus = 0.0, []
            for token in kept:
                if reached >= top_p and weights[token] < weights[nucleus[-1]]:
                    break
                nucleus.append(token)
                reached += weights[token] / total
            weights = {token: weights[token] for token in nucleus}
            total = sum(weights.values())
        probs[index] = 0.0
        for token, weight in weights.items():
            probs[index][token] = weight / total
    return probs


def nucleus_margin(logits, temperature: float, top_k: int, top_p: float) -> np.ndarray:
    """How far cumulative probabilities stay from top_p, so that float32 and float64 keep the same set: float64[...]."""
    probs = -np.sort(-standardize(logits, temperature, top_k), axis=-1)
    return np.min(np.abs(np.cumsum(probs, axis=-1) - top_p), axis=-1)


# Joint laws.


def sequence_law(model, inputs, *, length: int, temperature: float, top_k: int, top_p: float) -> dict:
    """Law of the first `length` tokens after `inputs`, EOS absorbing: tuple of tokens -> probability.

    Teacher-forced logits of every prefix without EOS; sequences that meet EOS end there.
    """
    letters = [token for token in range(model.vocab_size) if token != model.eos_id]
    prefixes = list(itertools.product(letters, repeat=length - 1))
    if model.encoder_decoder:
        fed = np.array([(model.start_id, *prefix) for prefix in prefixes], np.int32)
        encoder = np.repeat(np.asarray([inputs], np.int32), len(prefixes), axis=0)
        lengths = np.full((len(prefixes),), len(inputs), np.int32)
        logits = np.asarray(model.logits(fed, encoder, lengths))
    else:
        fed = np.array([(*inputs, *prefix) for prefix in prefixes], np.int32)
        logits = np.asarray(model.logits(fed))[:, len(inputs) - 1 :]
    if top_p < 1.0:
        assert nucleus_margin(logits, temperature, top_k, top_p).min() > 1e-5, "choose weights without nucleus edges"
    probs = standardize(logits, temperature, top_k, top_p)
    law: dict[tuple, float] = {}

    def extend(prefix: tuple, mass: float) -> None:
        row = prefixes.index(prefix + (letters[0],) * (length - 1 - len(prefix)))
        for token in range(model.vocab_size):
            extended, weight = (*prefix, token), mass * probs[row, len(prefix), token]
            if token == model.eos_id or len(extended) == length:
                law[extended] = weight
            else:
                extend(extended, weight)

    extend((), 1.0)
    assert abs(sum(law.values()) - 1.0) < 1e-12
    return law


def chi_square(outcomes, law: dict, smallest: float = 10.0) -> tuple[float, int]:
    """p-value of observed outcomes under a law, and the number of cells.

    Cells are pooled, smallest expectation first, until each expects at least `smallest`.  An outcome of
    probability 0 gives p = 0.
    """
    counts = dict.fromkeys(law, 0)
    for outcome in outcomes:
        if law.get(outcome, 0.0) == 0.0:
            return 0.0, 0
        counts[outcome] += 1
    total = len(outcomes)
    cells, observed, expected = [], 0, 0.0
    for outcome in sorted(law, key=law.get):
        observed, expected = observed + counts[outcome], expected + total * law[outcome]
        if expected >= smallest:
            cells.append((observed, expected))
            observed, expected = 0, 0.0
    cells[-1] = (cells[-1][0] + observed, cells[-1][1] + expected)
    found, wanted = np.array(cells, np.float64).T
    return float(stats.chi2.sf(np.sum((found - wanted) ** 2 / wanted), len(cells) - 1)), len(cells)


# Verification rules.  p: float64[γ + 1, V], q: float64[γ, V], tokens: γ drafted tokens.  A rule gives
# (thresholds [γ], law of the accepted length [γ + 1], law of the next token by accepted length [γ + 1, V]).


def _normalised(weights, otherwise):
    total = weights.sum()
    return weights / total if total > 0 else otherwise


def token_rule(p, q, tokens, lenience: float = 1.0):
    """Algorithm 1: accept while r_i < p_i(x_i) / (l q_i(x_i)), then norm(max(0, p - q))."""
    gamma = len(tokens)
    thresholds = np.array([min(1.0, p[i, x] / (lenience * q[i, x])) for i, x in enumerate(tokens)])
    reached = np.concatenate([[1.0], np.cumprod(thresholds)])
    lengths = np.append(reached[:-1] * (1.0 - thresholds), reached[-1])
    nexts = [_normalised(np.maximum(p[i] - q[i], 0.0), p[i]) for i in range(gamma)] + [p[gamma]]
    return thresholds, lengths, np.array(nexts)


def block_rule(p, q, tokens):
    """Block verification (2403.10444): the longest i with u_i < h_i."""
    gamma = len(tokens)
    weights = [1.0]
    for i, x in enumerate(tokens):
        weights.append(min(weights[-1] * p[i, x] / q[i, x], 1.0))
    thresholds = np.empty(gamma)
    for i in range(1, gamma):
        surplus = np.maximum(weights[i] * p[i] - q[i], 0.0).sum()
        rest = surplus + 1.0 - weights[i]
        thresholds[i - 1] = surplus / rest if rest > 0 else 1.0
    thresholds[gamma - 1] = weights[gamma]
    later_fail = np.append(np.cumprod((1.0 - thresholds)[::-1])[::-1], 1.0)  # [i]: all of i + 1 .. γ fail
    lengths = np.append([1.0], thresholds) * later_fail
    nexts = [_normalised(np.maximum(weights[i] * p[i] - q[i], 0.0), p[i]) for i in range(gamma)] + [p[gamma]]
    return thresholds, lengths, np.array(nexts)


def coupled_acceptance(p, q) -> float:
    """P(argmax(log p + g) = argmax(log q + g)) for shared Gumbel noise g.

    x wins both races when its exponential clock, divided by p_x and by q_x, is first: the rates of the others are
    max(p_y / p_x, q_y / q_x) relative to it.
    """
    both = [x for x in range(len(p)) if p[x] > 0 and q[x] > 0]
    return float(sum(1.0 / np.maximum(p / p[x], q / q[x]).sum() for x in both))
