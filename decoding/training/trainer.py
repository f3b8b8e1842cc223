"""Distillation: a draft is trained on the target's own texts to give what the target gives, so that more guesses are kept.

What speculation gains is a matter of β = Σ min(p, q) (Theorem 3.5), and 1 - β is the total variation between p and q: it
can be minimised itself, over the whole vocabulary, with the target computing p in the same program. DistillSpec (Zhou et
al., 2310.08461) compares it with the divergences that are usual.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from decoding import compilation, sharding
from decoding.config import DATA, DecodingConfig
from decoding.models.base import LanguageModel, State, install
from decoding.models.resident import replaced
from decoding.sampling import argmax, standardize
from decoding.training.recipe import Law, Recipe
from decoding.training.weights import Tensors, Weights, assemble, sources_of, unscaled_queries


class Likely(NamedTuple):
    """The k likeliest of the target's tokens at every place, int32[..., T, k], and their float32 probabilities."""

    tokens: np.ndarray
    probabilities: np.ndarray


class Text(NamedTuple):
    """inputs int32[N] and, after them, the target's tokens int32[T], EOS included, or a reference's; how these were sampled.

    `likely` is what `Trainer.with_likely` found, None for the target itself.
    """

    inputs: np.ndarray
    tokens: np.ndarray
    law: Law = Law()
    likely: Likely | None = None


class Batch(NamedTuple):
    """Texts, padded, whose laws differ in temperature alone.

    Attributes:
      inputs, input_lengths: int32[B, N], int32[B].
      tokens, lengths: int32[B, T], int32[B], 0 where a row is no text.
      temperatures: float32[B], at which they were made.
      likely: of every place, where the texts have it.
    """

    inputs: np.ndarray
    input_lengths: np.ndarray
    tokens: np.ndarray
    lengths: np.ndarray
    temperatures: np.ndarray
    likely: Likely | None = None


class TrainState(NamedTuple):
    """All that changes: the draft's tensors, the optimiser's state, and int32[] steps done."""

    tensors: Tensors
    optimizer: optax.OptState
    step: jax.Array


class Trainer:
    """Compiled steps of a training: one program for each class of lengths.

    Deterministic: the same texts, weights and recipe on the same machine give the same weights; step n of a training that
    was continued is that of one that was not.
    """

    def __init__(
        self,
        target: LanguageModel | None,
        start: Weights,
        recipe: Recipe,
        *,
        buckets: Sequence[int],
        longest: int,
        mesh: Mesh | None = None,
    ):
        """
        Args:
          target: with plain arrays as weights. None to train a target itself: its p is sure of the texts, which then are
            references, and KL(p, q) is their cross-entropy.
          start: the draft's; its vocabulary, where padded otherwise, is cut to what both have.
          buckets: longest inputs of the classes, increasing; most texts are short, so half and a quarter of the first are
            classes too, from 8 on.
          longest: of texts.
          mesh: whose axis "data" shares out the texts of a batch; None for one device.
        """
        self.recipe, self._longest, self._mesh = recipe, longest, mesh
        self.raw, self._config, self._sources = start.raw, start.config, sources_of(start.raw)
        teacher = self._config if target is None else target
        self._vocab_size = min(teacher.vocab_size, self._config.vocab_size)
        self._buckets = (*(size for size in (buckets[0] // 4, buckets[0] // 2) if size >= 8), *buckets)
        self._graph, self._target, self._dtypes = None, None, _rounded(sharding.abstract(self._config), recipe.products)
        if target is not None:
            dtypes = _rounded(target, recipe.products)
            cast = lambda path, value: value.astype(dtypes.get(path, value.dtype))
            self._graph, self._target = nnx.split(replaced(target, cast))
        self._encoder_decoder, self._start_id = teacher.encoder_decoder, teacher.start_id
        self._optimizer = self._make_optimizer(start.tensors)
        self._target = self._place(self._target)
        units = recipe.products == "bfloat16"
        self._step = compilation.jit(self._train, units, static_argnums=0, donate_argnums=1)
        self._beta = compilation.jit(self._measure, units, static_argnums=0)
        self._likely = compilation.jit(self._find_likely, units, static_argnums=0)

    def begin(self, start: Weights) -> TrainState:
        """The state before the first step."""
        tensors = jax.tree.map(jnp.array, start.tensors)  # a copy, since steps reuse their state's memory
        return self._place(TrainState(tensors, self._optimizer.init(tensors), jnp.zeros((), jnp.int32)))

    def step(self, state: TrainState, batch: Batch, cut: Law, own: bool = False) -> tuple[TrainState, jax.Array]:
        """One step, and its loss; the old state's memory is used again. With `own`, on texts that the draft draws itself."""
        return self._step((cut, own), state, self._target, self._place(batch, DATA))

    def beta(self, tensors: Tensors, batch: Batch, cut: Law) -> np.ndarray:
        """β of every token under the law that made it, float32[B, T]; 0 where there is none."""
        return np.asarray(self._beta(cut, tensors, self._target, self._place(batch, DATA)))

    def with_likely(self, texts: Sequence[Text], on_text: Callable[[int], None] = lambda done: None) -> list[Text]:
        """Texts whose `likely` are the target's k = `recipe.target_top_k` tokens of the largest p at every place, int32[T, k].

        p is that of the loss: standardised, at `greedy_temperature` for texts of temperature 0. They are found in batches of
        the texts' own order, so that a training that goes on finds the same bits.

        Args:
          texts: that fit (`fits`).
          on_text: told after every batch how many texts are done.
        """
        found, done = list(texts), 0
        for batch, cut, numbers in self.batches(texts, None):
            likely = jax.device_get(self._likely(cut, self._target, self._place(batch, DATA)))
            for row, i in enumerate(numbers):
                mine = Likely(*(array[row, : len(texts[i].tokens)].copy() for array in likely))
                found[i] = texts[i]._replace(likely=mine)
            done += len(numbers)
            on_text(done)
        return found

    def fits(self, text: Text) -> bool:
        """Whether some class holds a text."""
        return 1 <= len(text.inputs) <= self._buckets[-1] and 1 <= len(text.tokens) <= self._longest

    def batches(self, texts: Sequence[Text], epoch: int | None) -> Iterator[tuple[Batch, Law, np.ndarray]]:
        """Texts that fit, as batches of a class, the law of each but for temperatures, and the texts' numbers.

        They are in an order drawn for the epoch, those of None in the texts' own.
        """
        classes: dict[tuple[int, int, Law], list[int]] = {}
        for i, text in enumerate(texts):
            bucket = next(size for size in self._buckets if len(text.inputs) <= size)
            length = next((size for size in self._buckets if len(text.tokens) <= size), self._longest)
            size = max(bucket, length)
            classes.setdefault((size, min(size, self._longest), text.law._replace(temperature=1.0)), []).append(i)
        draw, order = np.random.default_rng((self.recipe.seed, epoch or 0)), []
        for size in sorted(classes):
            numbers = np.array(classes[size])
            if epoch is not None:
                draw.shuffle(numbers)
            rows = self._rows(size)
            order += [(size, numbers[first : first + rows]) for first in range(0, len(numbers), rows)]
        if epoch is not None:
            draw.shuffle(order)
        for size, numbers in order:
            (inputs, tokens, cut), shape = size, self._rows(size)
            batch = Batch(
                np.zeros((shape, inputs), np.int32),
                np.ones((shape,), np.int32),
                np.zeros((shape, tokens), np.int32),
                np.zeros((shape,), np.int32),
                np.ones((shape,), np.float32),
            )
            if (likely := texts[numbers[0]].likely) is not None:
                filled = (np.zeros((shape, tokens, array.shape[-1]), array.dtype) for array in likely)
                batch = batch._replace(likely=Likely(*filled))
            for row, i in enumerate(numbers):
                text = texts[i]
                batch.inputs[row, : len(text.inputs)], batch.tokens[row, : len(text.tokens)] = text.inputs, text.tokens
                batch.input_lengths[row], batch.lengths[row] = len(text.inputs), len(text.tokens)
                batch.temperatures[row] = text.law.temperature
                for array, mine in zip(batch.likely or (), text.likely or ()):
                    array[row, : len(mine)] = mine
            yield batch, cut, numbers

    def _place(self, tree, *axes: str):
        """Arrays on the mesh: whole on every device, or shared out along those axes."""
        return tree if self._mesh is None else jax.device_put(tree, NamedSharding(self._mesh, PartitionSpec(*axes)))

    def _rows(self, size: tuple[int, ...]) -> int:
        groups = self._mesh.shape[DATA] if self._mesh else 1
        return max(1, self.recipe.batch_tokens // max(size[:2]) // groups) * groups

    def _make_optimizer(self, tensors: Tensors) -> optax.GradientTransformation:
        recipe = self.recipe

        def schedule(peak: float):
            warm = min(recipe.warmup_steps, recipe.steps)
            rise = optax.linear_schedule(peak / max(warm, 1), peak, warm)
            return optax.join_schedules([rise, optax.linear_schedule(peak, 0.0, recipe.steps - warm)], [warm])

        def muon(peak: float):
            return optax.contrib.muon(schedule(peak), weight_decay=recipe.weight_decay)

        matrices = {name for path in self._dtypes if path != "head" for name in self._sources[path].names}
        queries = set(unscaled_queries(self._config, tensors))
        labels = {name: "query" if name in queries else "matrix" if name in matrices else "other" for name in tensors}
        return optax.partition(
            {
                "matrix": muon(recipe.matrix_rate),
                "query": muon(recipe.matrix_rate * self._config.head_dim**-0.5),
                "other": optax.adam(schedule(recipe.rate), b1=0.9, b2=0.98),
            },
            labels,
        )

    # On device.

    def _train(self, how: tuple[Law, bool], state: TrainState, target, batch: Batch) -> tuple[TrainState, jax.Array]:
        cut, own = how
        if own:
            batch = self._drawn(state.tensors, batch, cut, jax.random.fold_in(jax.random.key(self.recipe.seed), state.step))
        temperatures = self._temperatures(batch)
        real = _real(batch)
        tokens = jnp.maximum(jnp.sum(real), 1)
        logits, back = jax.vjp(lambda tensors: self._logits(self._model(tensors), batch), state.tensors)

        def compare(texts):
            judged, guessed, temperatures, real = texts
            if batch.likely is None:
                p = standardize(judged / temperatures, _config(cut))
            else:
                p = jnp.put_along_axis(jnp.zeros_like(guessed), *judged, axis=-1, inplace=False)

            def loss(logits):
                return jnp.sum(jnp.where(real, distance(p, logits / temperatures, self.recipe.kl_weight), 0.0)) / tokens

            return jax.value_and_grad(loss)(guessed)

        # Text by text, so that what has an entry for every token of the vocabulary is small enough for a processor's cache.
        judged = self._target_logits(target, batch) if batch.likely is None else batch.likely
        compared = judged, logits, temperatures, real
        losses, gradient = jax.lax.map(compare, self._one_by_one(compared))
        value, (gradient,) = jnp.sum(losses), back(self._together(gradient))
        updates, optimizer = self._optimizer.update(gradient, state.optimizer, state.tensors)
        return TrainState(optax.apply_updates(state.tensors, updates), optimizer, state.step + 1), value

    def _temperatures(self, batch: Batch) -> jax.Array:
        """At which p and q are compared, float32[B, 1, 1]."""
        return jnp.where(batch.temperatures == 0.0, self.recipe.greedy_temperature, batch.temperatures)[:, None, None]

    def _find_likely(self, cut: Law, target, batch: Batch) -> Likely:
        p = standardize(self._target_logits(target, batch) / self._temperatures(batch), _config(cut))
        probabilities, tokens = jax.lax.top_k(p, min(self.recipe.target_top_k, self._vocab_size))
        return Likely(tokens, probabilities)

    def _measure(self, cut: Law, tensors: Tensors, target, batch: Batch) -> jax.Array:
        p = self._target_logits(target, batch)
        q = self._logits(self._model(tensors), batch)
        greedy = (batch.temperatures == 0.0)[:, None]
        temperatures = jnp.where(greedy, 1.0, batch.temperatures[:, None])[:, :, None]
        overlap = jnp.sum(jnp.minimum(*(standardize(logits / temperatures, _config(cut)) for logits in (p, q))), axis=-1)
        return jnp.where(_real(batch), jnp.where(greedy, argmax(p) == argmax(q), overlap), 0.0)

    def _target_logits(self, target, batch: Batch) -> jax.Array:
        if self._graph is None:
            return jnp.log(jax.nn.one_hot(batch.tokens, self._vocab_size))
        return self._logits(nnx.merge(self._graph, target), batch)

    def _logits(self, model: LanguageModel, batch: Batch) -> jax.Array:
        """Raw logits that each token is predicted by, float32[B, T, V] over what both vocabularies have."""
        first, start, state = self._begun(model, batch)
        fed = jnp.concatenate([first[:, None], batch.tokens[:, :-1]], axis=1)
        return model.step(fed, start, state)[0][..., : self._vocab_size]

    def _one_by_one(self, tree):
        """Arrays [B, ...] as [n, d, ...]: of every one of d devices a text."""
        groups = self._mesh.shape[DATA] if self._mesh else 1
        return jax.tree.map(lambda x: jnp.swapaxes(x.reshape(groups, -1, *x.shape[1:]), 0, 1), tree)

    def _together(self, x: jax.Array) -> jax.Array:
        """The inverse of `_one_by_one`."""
        return jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:])

    def _model(self, tensors: Tensors) -> LanguageModel:
        return assemble(self._config, self._sources, tensors, self._dtypes)

    def _drawn(self, tensors: Tensors, batch: Batch, cut: Law, key: jax.Array) -> Batch:
        """The batch with texts that the draft draws, each to its end or to the longest of the class."""
        model = self._model(tensors)
        first, start, state = self._begun(model, batch)
        greedy = batch.temperatures == 0.0
        temperatures = jnp.where(greedy, 1.0, batch.temperatures)[:, None]

        def extend(carry, offset):
            token, state, ended = carry
            logits, state = model.step(token[:, None], start + offset, state)
            logits = logits[:, 0, : self._vocab_size]
            drawn = jax.random.categorical(
                jax.random.fold_in(key, offset), jnp.log(standardize(logits / temperatures, _config(cut)))
            )
            token = jnp.where(greedy, argmax(logits), drawn.astype(jnp.int32))
            return (token, state, ended | jnp.isin(token, np.array(self._config.eos_ids))), (token, ended)

        begun = first, state, batch.lengths == 0
        _, (tokens, ended) = jax.lax.scan(extend, begun, np.arange(batch.tokens.shape[1], dtype=np.int32))
        return batch._replace(tokens=tokens.T, lengths=jnp.sum(~ended, axis=0, dtype=jnp.int32))

    def _begun(self, model: LanguageModel, batch: Batch) -> tuple[jax.Array, jax.Array, State]:
        """Where texts begin: the token that is fed first, its position, int32[B] each, and the state before it."""
        rows, length = batch.tokens.shape
        if self._encoder_decoder:
            first, start = jnp.full((rows,), self._start_id, jnp.int32), jnp.zeros((rows,), jnp.int32)
        else:
            start = batch.input_lengths - 1
            first = jnp.take_along_axis(batch.inputs, start[:, None], axis=1)[:, 0]
        state = model.init_state(rows, batch.inputs.shape[1], length)
        return first, start, install(state, model.prefill(batch.inputs, batch.input_lengths))


def distance(p: jax.Array, logits: jax.Array, kl_weight: float) -> jax.Array:
    """How far q = softmax(logits) is from p: kl_weight KL(p, q) + (1 - kl_weight) (1 - Σ min(p, q)), float32[...].

    Args:
      p: float32[..., V], sums to 1, or to less where only the likeliest tokens of the target's are kept.
      logits: float32[..., V]; neither top-k nor top-p cuts q, so that what p has and q lacks has a gradient.
    """
    log_q = jax.nn.log_softmax(logits, axis=-1)
    variation = 1.0 - jnp.sum(jnp.minimum(p, jnp.exp(log_q)), axis=-1)
    divergence = -jnp.sum(jax.scipy.special.entr(p), axis=-1) - jnp.sum(p * log_q, axis=-1) if kl_weight else 0.0
    return kl_weight * divergence + (1.0 - kl_weight) * variation


def _rounded(model: LanguageModel, dtype: str) -> dict[str, str]:
    """The dtype of weights that features are multiplied by, by path."""
    return {path: dtype for path, leaf in sharding.parameters(model).items() if leaf.get_metadata().get("role") == "product"}


def _real(batch: Batch) -> jax.Array:
    return np.arange(batch.tokens.shape[1]) < batch.lengths[:, None]


def _config(law: Law) -> DecodingConfig:
    return DecodingConfig(temperature=law.temperature, top_k=law.top_k, top_p=law.top_p)
