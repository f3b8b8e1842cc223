"""A rule: every position's token is drawn from the target, and drafted ones stay as long as they are the same.

The output is the target's own sample, so the rule is exact; it accepts with probability Σ p q, less than the others do.
"""

import jax.numpy as jnp

import decoding
from decoding.sampling import NEXT_STREAM, draw, draw_times, exponentials, standardize
from decoding.verification import Rule, Verdict


class SampleAndCompare(Rule):
    def verify(self, target_logits, proposal, noise):
        p = standardize(target_logits, self.config)
        gamma = proposal.tokens.shape[1]
        times = [
            exponentials(noise.keys, noise.positions + i, NEXT_STREAM, draw_times(p.shape[-1])) for i in range(gamma + 1)
        ]
        own = jnp.stack([draw(p[:, i], times[i]) for i in range(gamma + 1)], axis=1)
        stays = (own[:, :-1] == proposal.tokens) & (jnp.arange(gamma) < proposal.count[:, None])
        accepted = jnp.sum(jnp.cumprod(stays.astype(jnp.int32), axis=1), axis=1)
        next_token = jnp.take_along_axis(own, accepted[:, None], axis=1)[:, 0]
        beta = jnp.sum(jnp.minimum(p[:, :-1], proposal.distribution(p.shape[-1])), axis=-1)
        return Verdict(accepted, next_token, beta)


decoding.register_rule("sample_and_compare", SampleAndCompare)
