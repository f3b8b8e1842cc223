"""The verification rules: their laws by enumeration in float64, and the JAX rules decision for decision.

Two steps make "exact" checkable.  The float64 transcriptions in `tests.support.reference` are enumerated: every draft string,
every accepted length, every next token, on trees of random conditional distributions, and the law of what they emit
is compared with the target's.  Then the JAX rules are fed chosen uniforms and must decide as the transcriptions do.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from decoding import DecodingConfig, sampling, verification
from decoding.verification import Noise, Proposal
from tests.support import reference

# Trees of conditional distributions: {prefix: float64[V]}.


def random_tree(rng, vocab_size: int, depth: int, like: dict | None = None) -> dict:
    """Random conditionals of every prefix up to `depth` tokens: smooth, with zeros, one-hot, or equal to `like`."""
    tree = {}
    for length in range(depth + 1):
        for prefix in itertools.product(range(vocab_size), repeat=length):
            kind = rng.choice(["smooth", "zeros", "one-hot", "equal"], p=[0.6, 0.15, 0.1, 0.15])
            probs = rng.dirichlet(np.full(vocab_size, rng.choice([0.4, 1.0, 3.0])))
            if kind == "zeros":
                probs[rng.integers(vocab_size)] = 0.0
            if kind == "one-hot":
                probs = np.eye(vocab_size)[rng.integers(vocab_size)]
            if kind == "equal" and like is not None:
                probs = like[prefix]
            tree[prefix] = probs / probs.sum()
    return tree


def along(tree: dict, tokens) -> np.ndarray:
    """float64[len(tokens) + 1, V]: the conditionals met along a string."""
    return np.array([tree[tuple(tokens[:i])] for i in range(len(tokens) + 1)])


def enumerate_rule(rule, p: dict, q: dict, vocab_size: int, gamma: int) -> tuple[dict, float]:
    """Law of the next γ + 1 tokens, filled up from p after the rule's last one, and the expected accepted tokens."""
    law = dict.fromkeys(itertools.product(range(vocab_size), repeat=gamma + 1), 0.0)
    expected = 0.0

    def fill(prefix: tuple, mass: float) -> None:
        if len(prefix) == gamma + 1:
            law[prefix] += mass
        elif mass > 0:
            for token in range(vocab_size):
                fill((*prefix, token), mass * p[prefix][token])

    for drafted in itertools.product(range(vocab_size), repeat=gamma):
        offered = along(q, drafted)[:-1]
        weight = np.prod([offered[i, x] for i, x in enumerate(drafted)])
        if weight == 0:
            continue
        _, lengths, nexts = rule(along(p, drafted), offered, drafted)
        assert abs(lengths.sum() - 1) < 1e-12
        expected += weight * lengths @ np.arange(gamma + 1)
        for n, token in itertools.product(range(gamma + 1), range(vocab_size)):
            fill((*drafted[:n], token), weight * lengths[n] * nexts[n, token])
    return law, expected


def distance_from(p: dict, law: dict) -> float:
    """Largest difference between a law of strings and p's own."""
    return max(abs(mass - np.prod([p[string[:i]][x] for i, x in enumerate(string)])) for string, mass in law.items())


SMALL = [(vocab_size, gamma) for vocab_size in (2, 3) for gamma in (1, 2, 3)]


@pytest.mark.parametrize(("vocab_size", "gamma"), SMALL)
def test_laws_by_enumeration_and_block_never_accepts_less(vocab_size, gamma):
    rng = np.random.default_rng(10 * vocab_size + gamma)
    gains = []
    for _ in range(20 if gamma == 3 else 60):
        p = random_tree(rng, vocab_size, gamma)
        q = random_tree(rng, vocab_size, gamma, like=p)
        accepted = {}
        for name, rule in (("token", reference.token_rule), ("block", reference.block_rule)):
            law, accepted[name] = enumerate_rule(rule, p, q, vocab_size, gamma)
            assert distance_from(p, law) < 1e-12, name
        gains.append(accepted["block"] - accepted["token"])
    assert min(gains) > -1e-12
    if gamma == 1:
        assert max(gains) < 1e-12, "with one guess the two rules are the same"
    else:
        assert max(gains) > 0.005


@pytest.mark.parametrize("broken", ["residual of p", "missing q", "no cap"])
def test_enumeration_rejects_wrong_block_rules(broken):
    # The bugs of pitfall 7, and of forgetting the cap of p̃ at 1.
    def wrong(p, q, tokens):
        thresholds, lengths, nexts = reference.block_rule(p, q, tokens)
        if broken == "residual of p":
            nexts = p
        elif broken == "missing q":  # Algorithm 1's residual, without p̃
            nexts = np.append(np.maximum(p[:-1] - q, 0), p[-1:], axis=0)
            nexts = nexts / np.maximum(nexts.sum(axis=1, keepdims=True), 1e-300)
        else:
            ratios = np.cumprod([p[i, x] / q[i, x] for i, x in enumerate(tokens)])
            thresholds = np.append(thresholds[:-1], min(ratios[-1], 1.0))
            later_fail = np.append(np.cumprod((1.0 - thresholds)[::-1])[::-1], 1.0)
            lengths = np.append([1.0], thresholds) * later_fail
        return thresholds, lengths, nexts

    rng, worst = np.random.default_rng(0), 0.0
    for _ in range(20):
        p, q = random_tree(rng, 3, 2), random_tree(rng, 3, 2)
        law, _ = enumerate_rule(wrong, p, q, 3, 2)
        worst = max(worst, distance_from(p, law))
    assert worst > 1e-3


@pytest.mark.parametrize("lenience", [0.9, 0.5, 0.1])
def test_no_token_exceeds_p_over_lenience(lenience):
    rng, largest = np.random.default_rng(0), 0.0
    for gamma, _ in itertools.product((1, 2, 3), range(15)):
        p, q = random_tree(rng, 3, gamma), random_tree(rng, 3, gamma)
        rule = lambda p, q, tokens: reference.token_rule(p, q, tokens, lenience)
        law, expected = enumerate_rule(rule, p, q, 3, gamma)
        mass = lambda prefix, law=law: sum(w for string, w in law.items() if string[: len(prefix)] == prefix)
        for length in range(gamma + 1):
            for prefix in itertools.product(range(3), repeat=length):
                if (total := mass(prefix)) > 1e-9:
                    shares = np.array([mass((*prefix, x)) for x in range(3)]) / total
                    assert np.all(shares <= p[prefix] / lenience + 1e-9)
                    largest = max(largest, np.max(shares - p[prefix]))
        assert expected >= enumerate_rule(reference.token_rule, p, q, 3, gamma)[1] - 1e-12
    assert largest > 0.02, "lenience must be seen to do something"


# The JAX rules decide as the transcriptions do.


def random_cases(rng, count: int, gamma: int, vocab_size: int):
    """p float32[N, γ + 1, V], q float32[N, γ, V] with zeros, one-hots and q = p among them, tokens drawn from q."""

    def some(shape):
        probs = rng.dirichlet(np.full(vocab_size, 0.7), size=shape)
        probs = probs * (rng.uniform(size=probs.shape) > rng.choice([0.0, 0.4], size=(*shape, 1)))
        probs[probs.sum(-1) == 0, 0] = 1.0
        return probs / probs.sum(-1, keepdims=True)

    p, q = some((count, gamma + 1)), some((count, gamma))
    # Nearby distributions are where long prefixes survive; equal ones are where rounding matters.
    mix = rng.choice([0.0, 0.8, 1.0], size=(count, 1, 1), p=[0.3, 0.6, 0.1])
    q = (1 - mix) * q + mix * p[:, :-1]
    p, q = p.astype(np.float32), q.astype(np.float32)
    ranks = rng.uniform(size=(count, gamma, 1))
    tokens = np.sum(np.cumsum(q, -1, dtype=np.float64) / q.sum(-1, dtype=np.float64)[..., None] <= ranks, axis=-1)
    tokens = np.minimum(tokens, vocab_size - 1 - np.argmax(q[..., ::-1] > 0, axis=-1))
    return p, q, tokens.astype(np.int32)


def run_rule(monkeypatch, rule, p, q, tokens, accept_u, next_u, config, count=None):
    """Runs a JAX rule with given uniforms in place of its own, and draws that invert the cumulative distribution."""
    monkeypatch.setattr(verification, "uniforms", lambda keys, positions, stream, n: jnp.asarray(accept_u[:, :n]))
    monkeypatch.setattr(verification, "fresh_draw", lambda weights, noise: invert(weights, jnp.asarray(next_u)))
    with np.errstate(divide="ignore"):
        logits, draft_logits = np.log(p), np.log(q)
    count = np.full(len(p), q.shape[1], np.int32) if count is None else count
    noise = Noise(np.zeros((len(p), 2), np.uint32), np.zeros(len(p), np.int32))
    proposal = Proposal(jnp.asarray(tokens), jnp.asarray(draft_logits), jnp.asarray(q), jnp.asarray(count))
    verdict = jax.jit(rule(config).verify)(jnp.asarray(logits), proposal, noise)
    return jax.tree.map(np.asarray, verdict)


def invert(weights, u):
    """First token of positive weight at which the cumulative distribution passes u, else the last of them."""
    passed = (jnp.cumsum(weights, axis=-1) > u[:, None] * jnp.sum(weights, axis=-1, keepdims=True)) & (weights > 0)
    last = weights.shape[-1] - 1 - jnp.argmax(weights[:, ::-1] > 0, axis=-1)
    return jnp.where(jnp.any(passed, axis=-1), jnp.argmax(passed, axis=-1), last)


def edges(thresholds, u) -> float:
    return float(np.min(np.abs(thresholds - u)))


@pytest.mark.parametrize(("name", "lenience"), [("token", 1.0), ("token", 0.4), ("block", 1.0)])
@pytest.mark.parametrize("gamma", [1, 2, 3, 5])
def test_rules_decide_as_the_reference_given_the_same_uniforms(monkeypatch, name, lenience, gamma):
    rng, cases, vocab_size = np.random.default_rng(gamma), 1500, 4
    p, q, tokens = random_cases(rng, cases, gamma, vocab_size)
    accept_u = rng.uniform(size=(cases, gamma)).astype(np.float32)
    accept_u[rng.uniform(size=accept_u.shape) < 0.05] = 0.0
    next_u = rng.uniform(size=cases).astype(np.float32)
    counts = np.where(rng.uniform(size=cases) < 0.3, rng.integers(0, gamma + 1, cases), gamma).astype(np.int32)
    rule = {"token": verification.Token, "block": verification.Block}[name]
    config = DecodingConfig(verification=name, lenience=lenience)
    verdict = run_rule(monkeypatch, rule, p, q, tokens, accept_u, next_u, config, counts)
    close = 0
    for i in range(cases):
        count = counts[i]
        p_i, q_i, x = p[i, : count + 1].astype(np.float64), q[i, :count].astype(np.float64), tokens[i, :count]
        if count == 0:
            accepted, law = 0, p_i[0] / p_i[0].sum()
        else:
            transcription, args = (reference.token_rule, (lenience,)) if name == "token" else (reference.block_rule, ())
            thresholds, _, nexts = transcription(p_i, q_i, x, *args)
            if edges(thresholds, accept_u[i, :count]) < 1e-5:
                close += 1  # includes every u = 0 against a threshold of 0: tested apart
                continue
            stays = accept_u[i, :count] < thresholds
            if name == "token":
                accepted = int(np.sum(np.cumprod(stays)))
            else:
                accepted = int(np.max(np.where(stays, np.arange(1, count + 1), 0)))
            law = nexts[accepted]
        assert verdict.accepted[i] == accepted
        cumulative = np.cumsum(law / law.sum())
        if edges(cumulative, next_u[i]) > 1e-4 and np.max(law) > 1e-4:
            assert verdict.next_token[i] == np.sum(cumulative <= next_u[i])
        beta = np.minimum(p_i[:count] / lenience, q_i).sum(-1)
        np.testing.assert_allclose(verdict.beta[i, :count], beta, atol=1e-5)
    assert close < 0.35 * cases
    reached = [np.mean(verdict.accepted == n) for n in range(gamma + 1)]
    assert min(reached) > 0.005, reached


@pytest.mark.parametrize("rule", [verification.Token, verification.Block])
def test_a_token_without_target_probability_is_never_accepted(monkeypatch, rule):
    # Rounded down, a uniform may be 0: the comparison must be strict.
    p = np.tile(np.array([0.0, 0.5, 0.5], np.float32), (4, 3, 1))
    q = np.tile(np.array([1.0, 0.0, 0.0], np.float32), (4, 2, 1))
    zeros = np.zeros((4, 2), np.float32)
    next_u = np.float32([0.0, 0.2, 0.6, 1 - 2**-24])
    verdict = run_rule(monkeypatch, rule, p, q, np.zeros((4, 2), np.int32), zeros, next_u, DecodingConfig())
    np.testing.assert_array_equal(verdict.accepted, 0)
    np.testing.assert_array_equal(verdict.next_token, [1, 1, 2, 2])
    np.testing.assert_array_equal(verdict.beta, 0)


@pytest.mark.parametrize("rule", [verification.Token, verification.Block])
def test_equal_distributions_accept_all_and_the_bonus_is_from_the_target(monkeypatch, rule):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(3000, 6, 5)).astype(np.float32)
    p = np.asarray(jax.nn.softmax(logits))
    tokens = np.stack([[rng.choice(5, p=one / one.sum()) for one in row] for row in p[:, :-1].astype(np.float64)])
    u = np.minimum(rng.uniform(size=(3000, 5)), 1 - 1e-5).astype(np.float32)
    next_u = rng.uniform(size=3000).astype(np.float32)
    verdict = run_rule(monkeypatch, rule, p, p[:, :-1], tokens.astype(np.int32), u, next_u, DecodingConfig())
    np.testing.assert_array_equal(verdict.accepted, 5)
    np.testing.assert_allclose(verdict.beta, 1, atol=1e-5)
    wanted = np.sum(np.cumsum(p[:, 5], -1) <= next_u[:, None], -1)
    assert np.mean(verdict.next_token == wanted) > 0.999


# Temperature 0.


def test_greedy_and_its_lenient_form():
    probs = np.array([[[0.5, 0.3, 0.2], [0.1, 0.5, 0.4], [0.2, 0.2, 0.6]]], np.float32)
    noise = Noise(np.zeros((1, 2), np.uint32), np.zeros(1, np.int32))

    def run(tokens, lenience, count=2):
        proposal = Proposal(jnp.array([tokens]), jnp.zeros((1, 2, 3)), None, jnp.array([count]))
        config = DecodingConfig(temperature=0.0, lenience=lenience)
        verdict = verification.rule_for(config).verify(jnp.log(probs), proposal, noise)
        return int(verdict.accepted[0]), int(verdict.next_token[0]), np.asarray(verdict.beta[0]).tolist()

    assert run([0, 1], 1.0) == (2, 2, [1, 1])
    assert run([0, 2], 1.0) == (1, 1, [1, 0])
    assert run([1, 1], 1.0) == (0, 0, [0, 1])
    # p >= l * max p: 0.3 >= 0.59 * 0.5 and 0.4 >= 0.79 * 0.5, but not above.
    assert run([1, 2], 0.59) == (2, 2, [1, 1])
    assert run([1, 2], 0.61) == (0, 0, [0, 1])
    assert run([0, 2], 0.79) == (2, 2, [1, 1])
    assert run([0, 2], 0.81) == (1, 1, [1, 0])
    assert run([0, 1], 1.0, count=1)[:2] == (1, 1)
    assert run([0, 1], 1.0, count=0)[:2] == (0, 0)


# Coupled.


def test_coupled_acceptance_is_its_closed_form_and_within_its_bounds():
    """Each p, q: 2e4 draws of both choices; two-sided binomial p-value above 1e-6 against the closed form."""
    rng, draws = np.random.default_rng(0), 20_000
    keys = np.stack([sampling.row_key(0, f"{i}", 0) for i in range(draws)])
    noise = Noise(keys, np.full(draws, 2, np.int32))
    choose = jax.jit(
        lambda probs: verification.coupled_choice(jnp.broadcast_to(probs, (draws, probs.shape[-1])), noise)
    )
    for _ in range(8):
        tree = random_tree(rng, 4, 1)
        for p, q in [(tree[()], tree[(0,)]), (tree[(1,)], tree[(2,)])]:
            exact = reference.coupled_acceptance(p, q)
            distance = 0.5 * np.abs(p - q).sum()
            assert (1 - distance) / (1 + distance) - 1e-12 <= exact <= 1 - distance + 1e-12
            ours, theirs = np.asarray(choose(jnp.float32(p))), np.asarray(choose(jnp.float32(q)))
            agreed = int(np.sum(ours == theirs))
            assert stats.binomtest(agreed, draws, min(exact, 1.0)).pvalue > 1e-6
            for probs, chosen in ((p, ours), (q, theirs)):
                law = {x: probs[x] for x in range(4)}
                if np.count_nonzero(probs * draws >= 10) > 1:
                    assert reference.chi_square(chosen.tolist(), law)[0] > 1e-6
                assert np.all(probs[chosen] > 0)


def test_verify_coupled_emits_the_targets_own_choices():
    rng = np.random.default_rng(1)
    logits = jnp.asarray(rng.normal(size=(500, 3, 6)) * 2, jnp.float32)
    draft_logits = logits[:, :-1] + jnp.asarray(rng.normal(size=(500, 2, 6)), jnp.float32)
    config = DecodingConfig(verification="coupled", top_k=4)
    noise = Noise(np.stack([sampling.row_key(0, f"{i}", 0) for i in range(500)]), np.arange(500, dtype=np.int32))
    rule = verification.Coupled(config)
    q = sampling.standardize(draft_logits, config)

    @jax.jit
    def choices(values):
        randomness = rule.randomness(noise, *values.shape[1:])
        lots = [jax.tree.map(lambda leaf, i=i: leaf[i], randomness) for i in range(values.shape[1])]
        return jnp.stack([rule.guess(values[:, i], lot)[0] for i, lot in enumerate(lots)], axis=1)

    own, drafted = np.asarray(choices(logits)), np.asarray(choices(draft_logits))
    proposal = Proposal(jnp.asarray(drafted), draft_logits, q, jnp.full((500,), 2, jnp.int32))
    verdict = jax.jit(rule.verify)(logits, proposal, noise)
    accepted = np.asarray(verdict.accepted)
    np.testing.assert_array_equal(rule.plain(logits[:, 0], noise), own[:, 0])
    np.testing.assert_array_equal(accepted, np.sum(np.cumprod(drafted == own[:, :-1], axis=1), axis=1))
    np.testing.assert_array_equal(verdict.next_token, own[np.arange(500), accepted])
    p = reference.standardize(np.asarray(logits), top_k=4)[:, :-1]
    wanted = np.minimum(p, reference.standardize(np.asarray(draft_logits), top_k=4)).sum(-1)
    np.testing.assert_allclose(verdict.beta, wanted, atol=1e-5)
    assert 0.1 < np.mean(accepted == 2) < 0.9
