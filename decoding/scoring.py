"""Teacher-forced scoring: what speculation would have met at every token of given texts, for any number of drafts.

The text is fed to every model as it stands, so the distributions p and q at a token are those after the same prefix:
the expectation of Corollary 3.6 of Leviathan et al., where the texts are the target's own.  The target runs once for
all drafts.  A pass scores a padded batch of one length class; the vocabulary is reduced away on device, and at any time
two arrays [rows, T, V] exist, the target's and one draft's.

Nothing in a text's scores depends on what shares the pass with it.
"""

import dataclasses
import functools
import threading
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.scipy.special import entr

from decoding.compilation import Compiler
from decoding.config import DecodingConfig
from decoding.drafts.base import Draft, fitted
from decoding.faults import NonFiniteLogits
from decoding.models.base import LanguageModel, install
from decoding.models.forced import with_forced_tokens, without_first_tokens
from decoding.models.positions import check_positions
from decoding.rows import Rows
from decoding.sampling import argmax, is_law, log_prob, overlap, standardize
from decoding.sharding import Placement, mesh_of


@dataclasses.dataclass(frozen=True)
class DraftScores:
    """What one draft has to say of a text of T tokens, in NumPy; NaN where it proposes nothing.

    Attributes:
      beta: float32[T], Σ_x min(p(x), q(x)) (Theorem 3.5) of the standardised distributions; at temperature 0, 1 where
        the argmaxes agree and else 0.
      lenient_beta: float32[T, L], the same under every lenience (section A.5): Σ min(p(x) / l, q(x)); at temperature 0,
        1 where the draft's choice has at least l times the probability of the target's.
      logprob: float32[T], of the token under the raw draft at temperature 1; a deterministic draft's is 0 for what it
        proposes and -inf for all else.
      entropy: float32[T], of q in nats.
      argmax_agrees: bool[T], False where the draft proposes nothing.
    """

    beta: np.ndarray
    lenient_beta: np.ndarray
    logprob: np.ndarray
    entropy: np.ndarray
    argmax_agrees: np.ndarray


@dataclasses.dataclass(frozen=True)
class TextScores:
    """Scores of a text of T tokens.

    Attributes:
      target_logprob: float32[T], of the token under the raw target at temperature 1.
      target_entropy: float32[T], of p in nats.
      drafts: by the drafts' names.
    """

    target_logprob: np.ndarray
    target_entropy: np.ndarray
    drafts: Mapping[str, DraftScores]


class _Target(NamedTuple):
    """What a pass of the target leaves for the drafts.

    Attributes:
      measure: float32[B, T, V], the standardised p; at temperature 0 the raw logits.
      best: int32[B, T], the most likely token.
      logprob, entropy: float32[B, T].
      usable: bool[B, T], whether there is a distribution.
    """

    measure: jax.Array
    best: jax.Array
    logprob: jax.Array
    entropy: jax.Array
    usable: jax.Array


class _Batch(NamedTuple):
    """inputs int32[B, N] and their lengths int32[B]; tokens int32[B, T], the texts, padded with anything."""

    inputs: jax.Array
    lengths: jax.Array
    tokens: jax.Array


class Scorer:
    """Scores texts with a target and drafts.

    All programs are compiled at construction; `score` compiles nothing.  Thread-safe: calls take turns.
    """

    def __init__(
        self,
        target: LanguageModel,
        drafts: Mapping[str, Draft | LanguageModel],
        config: DecodingConfig,
        *,
        lenience: Sequence[float] = (),
        batch_tokens: int = 512,
        vocab_size: int | None = None,
    ):
        """
        Args:
          target: the model whose p it is.
          drafts: by name.  A language model is fed the text; another draft proposes one token at every place, to which
            alone a draft without logits gives any probability.
          config: its sampling method (temperature, top_k, top_p), input_buckets, and max_decode_tokens, the longest
            text.  Nothing else of it matters.
          lenience: values to report β under as well.
          batch_tokens: tokens per pass, about.
          vocab_size: how many tokens may occur, as of `Generator`.

        Raises:
          ValueError: a draft does not fit the target.
        """
        for name, model in {"the model": target, **drafts}.items():
            check_positions(name, model, config)
        drafts = {
            name: without_first_tokens(fitted(target, draft, vocab_size)[1], config) for name, draft in drafts.items()
        }
        target = with_forced_tokens(fitted(target, None, vocab_size)[0], config)
        self.config, self.lenience = config, tuple(lenience)
        self._start_id, self._encoder_decoder = target.start_id, target.encoder_decoder
        self._vocab_size, self._batch_tokens = target.vocab_size, batch_tokens
        self._target = nnx.split(target)
        self._drafts = {name: nnx.split(draft) for name, draft in drafts.items()}
        self._lock = threading.Lock()
        self._compile()

    @property
    def length_classes(self) -> list[tuple[int, int]]:
        """(longest input, longest text) of every class, increasing; a text belongs to the first that holds it."""
        buckets, longest = self.config.input_buckets, self.config.max_decode_tokens
        return [(bucket, min(bucket, longest)) for bucket in buckets[:-1]] + [(buckets[-1], longest)]

    def problem(self, inputs: Sequence[int], tokens: Sequence[int]) -> str | None:
        """Why a text cannot be scored, or None."""
        limits = {"input": (inputs, self.config.max_input_tokens), "text": (tokens, self.config.max_decode_tokens)}
        for name, (found, longest) in limits.items():
            if not 1 <= len(found) <= longest:
                return f"the {name} has {len(found)} tokens; allowed: 1 to {longest}"
            for token in (min(found), max(found)):  # a gather would clamp such a token silently
                if not 0 <= token < self._vocab_size:
                    return f"the {name} has the token {token}; allowed: 0 to {self._vocab_size - 1}, the vocabulary"
        return None

    def compilations(self) -> int:
        """Backend compilations of this process so far; as many after a job as before it."""
        return self._compiler.events()

    def score(self, inputs: Sequence[Sequence[int]], texts: Sequence[Sequence[int]]) -> list[TextScores]:
        """Scores every text after its input.

        Args:
          inputs: token ids, each from 1 to `config.max_input_tokens` long.
          texts: token ids that followed, EOS included, each from 1 to `config.max_decode_tokens` long.

        Raises:
          ValueError: as `problem` says, or there are not as many of both.
          NonFiniteLogits: a model gave no distribution for some texts; it has the scores of the others.
        """
        if len(inputs) != len(texts):
            raise ValueError(f"{len(inputs)} inputs and {len(texts)} texts; they must be as many")
        classes: dict[tuple[int, int], list[int]] = {size: [] for size in self.length_classes}
        for i, (given, tokens) in enumerate(zip(inputs, texts)):
            if problem := self.problem(given, tokens):
                raise ValueError(f"text {i}: {problem}")
            classes[next(size for size in classes if len(given) <= size[0] and len(tokens) <= size[1])].append(i)
        results: list[TextScores | None] = [None] * len(texts)
        faults: dict[int, str] = {}
        with self._lock:
            for size, members in classes.items():
                rows = self._rows(size)
                for first in range(0, len(members), rows):
                    self._pass(size, members[first : first + rows], inputs, texts, results, faults)
        if faults:
            raise NonFiniteLogits(faults, results, [f"text {i}" for i in range(len(texts))])
        return results

    def _rows(self, size: tuple[int, int]) -> int:
        return max(1, self._batch_tokens // max(size))

    def _pass(self, size: tuple[int, int], members: Sequence[int], inputs, texts, results, faults) -> None:
        """Scores up to a batch of texts, whose numbers are `members`, into `results`, or says in `faults` why not."""
        rows = self._rows(size)
        batch = _Batch(np.zeros((rows, size[0]), np.int32), np.ones((rows,), np.int32), np.zeros((rows, size[1]), np.int32))
        for row, i in enumerate(members):
            batch.lengths[row] = len(inputs[i])
            batch.inputs[row, : len(inputs[i])], batch.tokens[row, : len(texts[i])] = inputs[i], texts[i]
        target = self._programs["target", size](self._target[1], batch)
        drafts = {
            name: self._programs["draft", name, size](params, batch, target)
            for name, (_, params) in self._drafts.items()
        }
        logprob, entropy, usable, drafts = jax.device_get((target.logprob, target.entropy, target.usable, drafts))
        for row, i in enumerate(members):
            length = len(texts[i])
            every = {"target model": usable, **{f"draft {name!r}": ok for name, (*_, ok) in drafts.items()}}
            if spoilt := [whose for whose, ok in every.items() if not ok[row, :length].all()]:
                faults[i] = spoilt[0]
                continue
            results[i] = TextScores(
                logprob[row, :length],
                entropy[row, :length],
                {name: DraftScores(*(array[row, :length] for array in arrays)) for name, (*arrays, _) in drafts.items()},
            )

    def _compile(self) -> None:
        self._compiler = Compiler()
        jit = Placement(mesh_of(nnx.merge(*self._target))).jit
        integers = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.int32)
        for size in self.length_classes:
            rows = self._rows(size)
            batch = _Batch(integers((rows, size[0])), integers((rows,)), integers((rows, size[1])))
            target = jax.eval_shape(self._score_target, self._target[1], batch)
            self._compiler.add(("target", size), jit(self._score_target), self._target[1], batch)
            for name, (graph, params) in self._drafts.items():
                program = functools.partial(self._score_draft, graph)
                self._compiler.add(("draft", name, size), jit(program), params, batch, target)
        self._programs = self._compiler.compile()

    # On device.

    def _score_target(self, params, batch: _Batch) -> _Target:
        logits = self._logits(nnx.merge(self._target[0], params), batch)
        best, logprob = argmax(logits), log_prob(logits, batch.tokens)
        if self.config.temperature == 0.0:
            return _Target(logits, best, logprob, jnp.zeros_like(logprob), is_law(logits))
        p = standardize(logits, self.config)
        return _Target(p, best, logprob, jnp.sum(entr(p), axis=-1), is_law(logits))

    def _score_draft(self, graph, params, batch: _Batch, target: _Target) -> tuple[jax.Array, ...]:
        """The fields of `DraftScores`, [B, T, ...] each, and whether there is a distribution, bool[B, T]."""
        draft = nnx.merge(graph, params)
        choice = proposed = None
        if isinstance(draft, Draft):
            choice, proposed, logits = self._proposals(draft, batch)
        else:
            logits = self._logits(draft, batch)
        if logits is not None and (choice is None or self.config.temperature > 0.0):
            choice = argmax(logits)
        if logits is None or self.config.temperature == 0.0:
            beta, lenient = self._compare_choice(target, choice)
            entropy = jnp.zeros_like(beta)
        else:
            q = standardize(logits, self.config)
            beta, *lenient = (
                overlap(target.measure, q, value) for value in (1.0, *self.lenience)
            )
            lenient, entropy = _stack(lenient, beta), jnp.sum(entr(q), axis=-1)
        if logits is None:
            logprob = jnp.where(choice == batch.tokens, 0.0, -jnp.inf)
        else:
            logprob = log_prob(logits, batch.tokens)
        agrees = choice == target.best
        usable = jnp.ones_like(agrees) if logits is None else is_law(logits)
        if proposed is not None:
            beta, logprob, entropy = (jnp.where(proposed, found, jnp.nan) for found in (beta, logprob, entropy))
            lenient, agrees = jnp.where(proposed[..., None], lenient, jnp.nan), agrees & proposed
            usable |= ~proposed
        return beta, lenient, logprob, entropy, agrees, usable

    def _compare_choice(self, target: _Target, choice: jax.Array) -> tuple[jax.Array, jax.Array]:
        """β and lenient β of a draft that is sure of int32[B, T] `choice`."""
        chosen = jnp.take_along_axis(target.measure, choice[..., None], axis=-1)[..., 0]
        if self.config.temperature > 0.0:
            lenient = [jnp.minimum(chosen / value, 1.0) for value in self.lenience]
            return chosen, _stack(lenient, chosen)
        beta = (choice == target.best).astype(jnp.float32)
        most = jnp.max(target.measure, axis=-1)
        lenient = [(chosen >= most + jnp.log(value)).astype(jnp.float32) for value in self.lenience]
        return beta, _stack(lenient, beta)

    def _decoder_inputs(self, batch: _Batch) -> tuple[jax.Array, jax.Array]:
        """int32[B, T] what the decoder is fed to predict each token, and int32[B] the position of the first."""
        if self._encoder_decoder:
            first, start = jnp.full_like(batch.lengths, self._start_id), jnp.zeros_like(batch.lengths)
        else:
            start = batch.lengths - 1
            first = jnp.take_along_axis(batch.inputs, start[:, None], axis=1)[:, 0]
        return jnp.concatenate([first[:, None], batch.tokens[:, :-1]], axis=1), start

    def _logits(self, model: LanguageModel, batch: _Batch) -> jax.Array:
        """Raw logits of the distributions that the tokens were predicted by, float32[B, T, V]."""
        rows, length = batch.tokens.shape
        fed, start = self._decoder_inputs(batch)
        state = model.init_state(rows, batch.inputs.shape[1], length)
        state = install(state, model.prefill(batch.inputs, batch.lengths))
        return model.step(fed, start, state)[0]

    def _proposals(self, draft: Draft, batch: _Batch) -> tuple[jax.Array, jax.Array, jax.Array | None]:
        """The one token that a draft proposes at every place.

        Returns:
          int32[B, T]; whether it proposes anything, bool[B, T]; and the raw logits [B, T, V] of a draft that has any.
        """
        rows, length = batch.tokens.shape
        fed, start = self._decoder_inputs(batch)
        before = jnp.take_along_axis(batch.inputs, jnp.maximum(start - 1, 0)[:, None], axis=1)[:, 0]
        before = fed[:, 0] if self._encoder_decoder else before
        previous = jnp.concatenate([before[:, None], fed[:, :-1]], axis=1)
        state = draft.init_state(rows, batch.inputs.shape[1], length + 1)  # a proposal lies behind the last token
        state = install(state, draft.prefill(batch.inputs, batch.lengths))
        # Random numbers for those who draw, from the text alone: padding is 0 and adds nothing.
        keys = [jnp.sum(part * (1 + 2 * np.arange(part.shape[1])), axis=1) for part in (batch.inputs, batch.tokens)]
        keys = jnp.stack(keys, axis=1).astype(jnp.uint32)
        remaining, done = jnp.ones_like(start), jnp.zeros((rows,), bool)

        def propose(state, place):
            previous, last, offset = place
            proposal, state = draft.propose(state, Rows(previous, last, start + offset, remaining, done, keys), 1, self.config)
            logits = None if proposal.logits is None else proposal.logits[:, 0]
            return state, (proposal.tokens[:, 0], proposal.count > 0, logits)

        _, found = jax.lax.scan(propose, state, (previous.T, fed.T, np.arange(length, dtype=np.int32)))
        return jax.tree.map(lambda array: jnp.moveaxis(array, 0, 1), found)


def _stack(values: list[jax.Array], like: jax.Array) -> jax.Array:
    """[B, T] arrays as [B, T, L], L possibly 0."""
    return jnp.stack(values, axis=-1) if values else jnp.zeros((*like.shape, 0), like.dtype)
