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
    log_normalizer,
    log_prob,
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
      probs: float32[B, γ, V], the standardised distributions q that the tokens were really drawn from; None where each is
        one-hot at its token, as those of a deterministic draft are, and every draft's at temperature 0.
      count: int32[B], at most γ: how many of the row's tokens are really proposed.
      origin: int8[B], where they come from, as of `Generation`; None for a model's.
      match: int32[B], how many of the last tokens stood where they come from; None with a model's.
      support: int32[B, γ, S], where q is 0 but for few tokens: those, and `logits` and `probs` are of these S. A token stands
        there once, but for entries of probability 0 (and logit -inf), which fill the list. None where both are of all V.
    """

    tokens: jax.Array
    logits: jax.Array | None
    probs: jax.Array | None
    count: jax.Array
    origin: jax.Array | None = None
    match: jax.Array | None = None
    support: jax.Array | None = None

    def distribution(self, vocab_size: int) -> jax.Array:
        """q, float32[B, γ, V].  One-hot rows are comparisons that fuse into what reads them, not an array."""
        if self.probs is None:
            return jax.nn.one_hot(self.tokens, vocab_size)
        return self.probs if self.support is None else spread(self.support, self.probs, vocab_size)

    def distribution_at(self, place: jax.Array, vocab_size: int) -> jax.Array:
        """q at one position int32[B] of each row, the last where there is none: float32[B, V]."""
        place = jnp.minimum(place, self.tokens.shape[1] - 1)
        if self.probs is None:
            return jax.nn.one_hot(_at(self.tokens, place), vocab_size)
        probs = _at(self.probs, place)
        return probs if self.support is None else spread(_at(self.support, place), probs, vocab_size)

    def chance(self) -> jax.Array:
        """q of the proposed tokens: float32[B, γ]."""
        if self.probs is None:
            return jnp.ones(self.tokens.shape)
        if self.support is None:
            return _of(self.probs, self.tokens)
        return jnp.sum(jnp.where(self.support == self.tokens[..., None], self.probs, 0.0), axis=-1)

    def log_prob(self, tokens: jax.Array) -> jax.Array:
        """Log-probability of tokens int32[B, γ] under the raw logits: float32[B, γ]."""
        if self.logits is None:
            return jnp.where(tokens == self.tokens, 0.0, -jnp.inf)
        if self.support is None:
            return log_prob(self.logits, tokens)
        own = jnp.max(jnp.where(self.support == tokens[..., None], self.logits, -jnp.inf), axis=-1)
        return own - log_normalizer(self.logits)

    def surplus(self, p: jax.Array, weights: jax.Array) -> jax.Array:
        """Σ max(w_i p_{i+1} - q_{i+1}, 0) behind each drafted token but the last: float32[B, γ - 1].

        Args:
          p: float32[B, γ + 1, V], the target's distributions, whose sums are 1: of few tokens with q above 0, the sum is
            w less what p and q share there.
          weights: float32[B, γ], w.
        """
        weights = weights[:, :-1]
        if self.probs is not None and self.support is None:
            return residual(p[:, 1:-1], self.probs[:, 1:], weights)[1]
        support = self.tokens[..., None] if self.support is None else self.support
        p = jnp.take_along_axis(p[:, 1:-1], support[:, 1:], axis=-1) * weights[..., None]
        shared = jnp.minimum(p[..., 0], 1.0) if self.probs is None else overlap(p, self.probs[:, 1:])
        return jnp.maximum(weights - shared, 0.0)

    def overlap(self, p: jax.Array, lenience: float = 1.0) -> jax.Array:
        """β = Σ min(p / lenience, q) of the target's distributions float32[B, γ + 1, V] at drafted positions: float32[B, γ]."""
        if self.probs is None:
            return jnp.minimum(_of(p, self.tokens) / lenience, 1.0)
        if self.support is not None:
            p = jnp.take_along_axis(p[:, : self.tokens.shape[1]], self.support, axis=-1)
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

    def guess_among(
        self, support: jax.Array, logits: jax.Array, randomness: Any, vocab_size: int
    ) -> tuple[jax.Array, jax.Array | None]:
        """As `guess`, of tokens int32[B, S] alone (`Proposal.support`), from logits and to probabilities float32[B, S]."""
        place, probs = self.guess(logits, randomness)
        return _at(support, place), probs

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
        r = uniforms(noise.keys, noise.positions, ACCEPT_STREAM, gamma)
        stays = r * lenience * proposal.chance() < _of(p, proposal.tokens)
        accepted = _prefix_length(stays, proposal.count)
        next_token = _draw_next(p, proposal, accepted, jnp.ones(accepted.shape), noise)
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
        ratio = _of(p, proposal.tokens) / proposal.chance()

        def extend(weight, ratio):
            weight = jnp.minimum(weight * ratio, 1.0)
            return weight, weight

        first = jnp.ones(ratio.shape[:1])
        weights = jax.lax.scan(extend, first, ratio.T)[1].T  # [B, γ]: p̃_1 .. p̃_γ
        surplus = proposal.surplus(p, weights)
        rest = surplus + 1.0 - weights[:, :-1]
        partial = jnp.where(rest > 0, surplus / jnp.where(rest > 0, rest, 1.0), 1.0)
        length = jnp.arange(1, gamma + 1)
        threshold = jnp.concatenate([partial, weights[:, -1:]], axis=1)
        threshold = jnp.where(length == proposal.count[:, None], weights, threshold)
        u = uniforms(noise.keys, noise.positions, ACCEPT_STREAM, gamma)
        accepted = jnp.max(jnp.where((u < threshold) & (length <= proposal.count[:, None]), length, 0), axis=1)
        scale = _at(jnp.concatenate([first[:, None], weights], axis=1), accepted)
        next_token = _draw_next(p, proposal, accepted, scale, noise)
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

    def guess_among(
        self, support: jax.Array, logits: jax.Array, randomness: Noise, vocab_size: int
    ) -> tuple[jax.Array, jax.Array]:
        probs = standardize(logits, self.config)
        return coupled_choice(spread(support, probs, vocab_size), randomness), probs  # a token's noise is its own

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


def spread(support: jax.Array, values: jax.Array, vocab_size: int, nothing: float = 0.0) -> jax.Array:
    """Of the whole vocabulary, what float32[..., S] is of tokens int32[..., S] (`Proposal.support`): float32[..., V].

    Args:
      nothing: the value of other tokens, and of entries that fill the list.
    """
    one = lambda tokens, values: jnp.full((vocab_size,), nothing, values.dtype).at[tokens].max(values)
    rows = support.reshape(-1, support.shape[-1]), values.reshape(-1, values.shape[-1])
    return jax.vmap(one)(*rows).reshape(*support.shape[:-1], vocab_size)


def _draw_next(p, proposal, accepted, scale, noise) -> jax.Array:
    """Draws from norm(max(0, scale * p_{n+1} - q_{n+1})), or from p_{n+1} where every offered token was accepted.

    p [B, γ+1, V], accepted int32[B], scale float32[B] -> int32[B].
    """
    p_next = _at(p, accepted)
    rest, mass = residual(p_next, proposal.distribution_at(accepted, p.shape[-1]), scale)
    # Rounding can reject where p = q and leave no residual at all; p is then the limit.
    rejected = (accepted < proposal.count) & (mass > 0)
    return fresh_draw(jnp.where(rejected[:, None], rest, p_next), noise)


def _of(probs: jax.Array, tokens: jax.Array) -> jax.Array:
    """probs [B, γ or more, V] at tokens [B, γ]."""
    return jnp.take_along_axis(probs[:, : tokens.shape[1]], tokens[..., None], axis=-1)[..., 0]


def _at(values: jax.Array, index: jax.Array) -> jax.Array:
    """values [B, N, ...] at index int32[B] -> [B, ...]."""
    shape = (-1,) + (1,) * (values.ndim - 1)
    return jnp.take_along_axis(values, index.reshape(shape), axis=1)[:, 0]
