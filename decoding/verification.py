"""Verification rules: which drafted tokens stay, and what follows them.

A rule is a `Rule`.  All here are exact: emitted tokens have the target's standardised distribution whatever the draft
(but for lenience below 1).
"""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from decoding.config import DecodingConfig
from decoding.registry import RULES
from decoding.sampling import (
    ACCEPT_STREAM,
    DRAFT_STREAM,
    NEXT_STREAM,
    argmax,
    draw,
    draw_coupled,
    draw_times,
    exponentials,
    integers,
    overlap,
    residual,
    standardize,
    uniforms,
)


class Proposal(NamedTuple):
    """What a draft offers: γ tokens per row and the distributions they were drawn from.

    Attributes:
      tokens: int32[B, γ].
      logits: float32[B, γ, V], raw; None where the draft has no distribution of its own.
      probs: float32[B, γ, V], the standardised distributions the tokens were really drawn from; None where each is
        one-hot at its token, as those of a deterministic draft are, and every draft's at temperature 0.
      count: int32[B], at most γ: how many of the row's tokens are really proposed.
      origin: int8[B], where they come from, as of `Generation`; None for a model's.
      match: int32[B], how many of the last tokens stood where they come from; None with a model's.
    """

    tokens: jax.Array
    logits: jax.Array | None
    probs: jax.Array | None
    count: jax.Array
    origin: jax.Array | None = None
    match: jax.Array | None = None

    def distribution(self, vocab_size: int) -> jax.Array:
        """q, float32[B, γ, V].  One-hot rows are comparisons that fuse into what reads them, not an array."""
        return jax.nn.one_hot(self.tokens, vocab_size) if self.probs is None else self.probs

    def overlap(self, p: jax.Array, lenience: float = 1.0) -> jax.Array:
        """β = Σ min(p / lenience, q) of the target's distributions float32[B, γ + 1, V] at drafted positions: float32[B, γ]."""
        if self.probs is None:
            return jnp.minimum(_of(p, self.tokens) / lenience, 1.0)
        return overlap(p, self.probs, lenience)


class Noise(NamedTuple):
    """Where random numbers come from: keys uint32[B, 2] and positions int32[B], for a rule the iteration's first."""

    keys: jax.Array
    positions: jax.Array


class Verdict(NamedTuple):
    """Attributes:
    accepted: int32[B], n, the length of the accepted prefix.
    next_token: int32[B], the token after it.
    beta: float32[B, γ], Σ_x min(p(x), q(x)) at every drafted position (Theorem 3.5).
    examined: int32[B], how many of the target's distributions decided; None where those behind n + 1 did not.
    """

    accepted: jax.Array
    next_token: jax.Array
    beta: jax.Array
    examined: jax.Array | None = None


@dataclasses.dataclass(frozen=True)
class Rule:
    """A verification rule: which drafted tokens stay and what follows them, and how tokens are drawn under it.

    A subclass says how it verifies; the rest is that of independent draws.  A rule of one's own is registered by name,
    see `decoding.registry`.  Random numbers come from `Noise` and one of `sampling`'s streams, each used for one purpose.

    Attributes:
      config: how logits are standardised.
      plain_tokens: whether the output is plain decoding's under the same rule, token for token, and not just in law.
    """

    config: DecodingConfig

    plain_tokens: ClassVar[bool] = False

    def verify(self, target_logits: jax.Array, proposal: Proposal, noise: Noise) -> Verdict:
        """Judges a proposal by the target's raw logits float32[B, γ + 1, V]."""
        raise NotImplementedError

    def plain(self, logits: jax.Array, noise: Noise) -> jax.Array:
        """Plain decoding's choice from the target's raw logits float32[B, V]: int32[B]."""
        return fresh_draw(standardize(logits, self.config), noise)

    def randomness(self, noise: Noise, gamma: int, vocab_size: int) -> Any:
        """What γ guesses of a draft are drawn with, a pytree whose leaves have the guess as first axis."""
        size = draw_times(vocab_size)
        times = exponentials(noise.keys, noise.positions, DRAFT_STREAM, gamma * size)
        return jnp.moveaxis(times.reshape(-1, gamma, size), 1, 0)

    def guess(self, logits: jax.Array, randomness: Any) -> tuple[jax.Array, jax.Array | None]:
        """A draft's choice from its raw logits float32[B, V]: int32[B], and what it was drawn from (`Proposal.probs`).

        Args:
          randomness: one guess's, its first axis gone.
        """
        probs = standardize(logits, self.config)
        return draw(probs, randomness), probs

    def guess_evenly(self, noise: Noise, gamma: int, vocab_size: int) -> jax.Array:
        """int32[B, γ] guesses for which all tokens are equally likely."""
        return integers(noise.keys, noise.positions, DRAFT_STREAM, gamma, vocab_size)


def rule_for(config: DecodingConfig) -> Rule:
    """The verification rule of a config; at temperature 0 all are the same comparison of argmaxes."""
    return Greedy(config) if config.temperature == 0.0 else RULES.get(config.verification)(config)


class Greedy(Rule):
    """Temperature 0: a token stays while it is the target's argmax.

    Under lenience (section A.5) it stays while p(x) >= l * max p, before standardising.
    """

    plain_tokens = True

    def plain(self, logits: jax.Array, noise: Noise) -> jax.Array:
        return argmax(logits)

    def randomness(self, noise: Noise, gamma: int, vocab_size: int) -> None:
        return None

    def guess(self, logits: jax.Array, randomness: None) -> tuple[jax.Array, None]:
        return argmax(logits), None

    def verify(self, target_logits: jax.Array, proposal: Proposal, noise: Noise) -> Verdict:
        best, lenience = argmax(target_logits), self.config.lenience
        if lenience == 1.0:
            stays = proposal.tokens == best[:, :-1]
        else:
            drafted = target_logits[:, :-1]
            picked = jnp.take_along_axis(drafted, proposal.tokens[..., None], axis=-1)[..., 0]
            stays = picked >= jnp.max(drafted, axis=-1) + jnp.log(lenience)
        accepted = _prefix_length(stays, proposal.count)
        return Verdict(accepted, _at(best, accepted), stays.astype(jnp.float32))


class Token(Rule):
    """Algorithm 1: accept x_i while r_i < p_i(x_i) / q_i(x_i), then draw from norm(max(0, p - q)).

    The comparison is strict because a token with p = 0 must never stay, even were r 0.  With lenience l (section A.5) q
    is multiplied by l in the comparison and β is Σ min(p / l, q).
    """

    def verify(self, target_logits: jax.Array, proposal: Proposal, noise: Noise) -> Verdict:
        gamma, lenience = proposal.tokens.shape[1], self.config.lenience
        p = standardize(target_logits, self.config)
        q = proposal.distribution(p.shape[-1])
        r = uniforms(noise.keys, noise.positions, ACCEPT_STREAM, gamma)
        stays = r * lenience * _of(q, proposal.tokens) < _of(p, proposal.tokens)
        accepted = _prefix_length(stays, proposal.count)
        next_token = _draw_next(p, q, accepted, proposal.count, jnp.ones(accepted.shape), noise)
        return Verdict(accepted, next_token, proposal.overlap(p, lenience))


class Block(Rule):
    """Block verification (Sun et al., ICLR 2025, arXiv 2403.10444): the longest accepted prefix, judged jointly.

    With p̃_0 = 1 and p̃_i = min(p̃_{i-1} p_i(x_i) / q_i(x_i), 1), a prefix of i < γ tokens is accepted with probability
    h_i = s_i / (s_i + 1 - p̃_i), s_i = Σ max(p̃_i p_{i+1} - q_{i+1}, 0), the whole block with h_γ = p̃_γ; the next
    token comes from norm(max(0, p̃_τ p_{τ+1} - q_{τ+1})).
    """

    def verify(self, target_logits: jax.Array, proposal: Proposal, noise: Noise) -> Verdict:
        gamma = proposal.tokens.shape[1]
        p = standardize(target_logits, self.config)
        q = proposal.distribution(p.shape[-1])
        ratio = _of(p, proposal.tokens) / _of(q, proposal.tokens)

        def extend(weight, ratio):
            weight = jnp.minimum(weight * ratio, 1.0)
            return weight, weight

        first = jnp.ones(ratio.shape[:1])
        weights = jax.lax.scan(extend, first, ratio.T)[1].T  # [B, γ]: p̃_1 .. p̃_γ
        surplus = residual(p[:, 1:-1], q[:, 1:], weights[:, :-1])[1]
        rest = surplus + 1.0 - weights[:, :-1]
        partial = jnp.where(rest > 0, surplus / jnp.where(rest > 0, rest, 1.0), 1.0)
        length = jnp.arange(1, gamma + 1)
        threshold = jnp.concatenate([partial, weights[:, -1:]], axis=1)
        threshold = jnp.where(length == proposal.count[:, None], weights, threshold)
        u = uniforms(noise.keys, noise.positions, ACCEPT_STREAM, gamma)
        accepted = jnp.max(jnp.where((u < threshold) & (length <= proposal.count[:, None]), length, 0), axis=1)
        scale = _at(jnp.concatenate([first[:, None], weights], axis=1), accepted)
        next_token = _draw_next(p, q, accepted, proposal.count, scale, noise)
        return Verdict(accepted.astype(jnp.int32), next_token, proposal.overlap(p), proposal.count + 1)


class Coupled(Rule):
    """Shared Gumbel noise (arXiv 2408.07978): the token at position t is argmax(log p + g_t), whatever was drafted.

    The draft proposes argmax(log q + g_t) with the same noise, so the output is plain decoding's, sample for sample.
    """

    plain_tokens = True

    def plain(self, logits: jax.Array, noise: Noise) -> jax.Array:
        return coupled_choice(standardize(logits, self.config), noise)

    def randomness(self, noise: Noise, gamma: int, vocab_size: int) -> Noise:
        offsets = jnp.arange(gamma, dtype=jnp.int32)[:, None]
        return Noise(jnp.broadcast_to(noise.keys, (gamma, *noise.keys.shape)), noise.positions + offsets)

    def guess(self, logits: jax.Array, randomness: Noise) -> tuple[jax.Array, jax.Array]:
        probs = standardize(logits, self.config)
        return coupled_choice(probs, randomness), probs

    def guess_evenly(self, noise: Noise, gamma: int, vocab_size: int) -> jax.Array:
        even = jnp.full((len(noise.keys), vocab_size), 1.0 / vocab_size)
        places = [Noise(noise.keys, noise.positions + place) for place in range(gamma)]
        return jnp.stack([coupled_choice(even, place) for place in places], axis=1)

    def verify(self, target_logits: jax.Array, proposal: Proposal, noise: Noise) -> Verdict:
        p = standardize(target_logits, self.config)
        own = [coupled_choice(p[:, i], Noise(noise.keys, noise.positions + i)) for i in range(p.shape[1])]
        own = jnp.stack(own, axis=1)
        accepted = _prefix_length(proposal.tokens == own[:, :-1], proposal.count)
        return Verdict(accepted, _at(own, accepted), proposal.overlap(p))


def coupled_choice(probs: jax.Array, noise: Noise) -> jax.Array:
    """argmax(log probs + g_t) with the noise of positions `noise.positions`: float32[B, V] -> int32[B]."""
    return draw_coupled(probs, noise.keys, noise.positions)


def fresh_draw(weights: jax.Array, noise: Noise) -> jax.Array:
    """The draw that ends an iteration, from unnormalised weights float32[B, V]: int32[B]."""
    return draw(weights, exponentials(noise.keys, noise.positions, NEXT_STREAM, draw_times(weights.shape[-1])))


def _prefix_length(stays: jax.Array, count: jax.Array) -> jax.Array:
    """Length of the leading run of True, at most `count`: bool[B, γ], int32[B] -> int32[B]."""
    offered = jnp.arange(stays.shape[1]) < count[:, None]
    return jnp.sum(jnp.cumprod((stays & offered).astype(jnp.int32), axis=1), axis=1)


def _draw_next(p, q, accepted, count, scale, noise) -> jax.Array:
    """Draws from norm(max(0, scale * p_{n+1} - q_{n+1})), or from p_{n+1} where every offered token was accepted.

    p [B, γ+1, V], q [B, γ, V], accepted and count int32[B], scale float32[B] -> int32[B].
    """
    p_next = _at(p, accepted)
    q_next = _at(q, jnp.minimum(accepted, q.shape[1] - 1))
    rest, mass = residual(p_next, q_next, scale)
    # Rounding can reject where p = q and leave no residual at all; p is then the limit.
    rejected = (accepted < count) & (mass > 0)
    return fresh_draw(jnp.where(rejected[:, None], rest, p_next), noise)


def _of(probs: jax.Array, tokens: jax.Array) -> jax.Array:
    """probs [B, γ or more, V] at tokens [B, γ]."""
    return jnp.take_along_axis(probs[:, : tokens.shape[1]], tokens[..., None], axis=-1)[..., 0]


def _at(values: jax.Array, index: jax.Array) -> jax.Array:
    """values [B, N, ...] at index int32[B] -> [B, ...]."""
    shape = (-1,) + (1,) * (values.ndim - 1)
    return jnp.take_along_axis(values, index.reshape(shape), axis=1)[:, 0]
