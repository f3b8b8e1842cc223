"""Training: the loss against its closed form, where weights begin, and steps that are the same whenever they are taken."""

import functools
import itertools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from safetensors.numpy import load_file

import decoding
from decoding import CheckpointError
from decoding.models.base import KEY_BLOCK, attend, attend_existing
from decoding.training.checkpoint import pack, unpack
from decoding.training.recipe import Law, Recipe
from decoding.training.trainer import Batch, Text, Trainer, distance
from decoding.training.weights import Weights, assemble, sources_of

GOLDEN = pathlib.Path(__file__).parent.parent / "testdata" / "golden"
TARGET = str(GOLDEN / "t5_v1_1_target")
LAWS = (Law(1.0), Law(0.0))
slowly = functools.partial(pytest.param, marks=pytest.mark.slow)


@pytest.fixture(scope="module")
def target():
    return decoding.load_model(TARGET, weights="plain")


def texts(count: int, seed: int = 0) -> list[Text]:
    """Inputs, and tokens that follow from them in a way that is learnt in no time."""
    draw = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        inputs = draw.integers(3, 40, draw.integers(2, 8)).astype(np.int32)
        rows.append(Text(inputs, np.append(inputs[::-1], 1).astype(np.int32), LAWS[i % 2]))
    return rows


def trainer(target, start: Weights, recipe: Recipe) -> Trainer:
    return Trainer(target, start, recipe, buckets=(8,), longest=8)


def test_short_texts_share_smaller_classes(target):
    recipe = Recipe(batch_tokens=64)
    training = Trainer(target, Weights.read(TARGET), recipe, buckets=(32, 64), longest=40)
    lengths = [(3, 8), (9, 2), (5, 16), (17, 1), (2, 40)]  # of inputs and tokens
    some = [Text(*(np.ones(size, np.int32) for size in pair)) for pair in lengths]
    found = [(*batch.inputs.shape, batch.tokens.shape[1], *numbers) for batch, _, numbers in training.batches(some, None)]
    assert found == [(8, 8, 8, 0), (4, 16, 16, 1, 2), (2, 32, 32, 3), (1, 64, 40, 4)]


def trained(training: Trainer, start: Weights, steps: int):
    state = training.begin(start)
    for batch, cut, _ in itertools.islice(training.batches(texts(64), epoch=0), steps):
        state, _ = training.step(state, batch, cut)
    return state


# The loss.


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def test_distances_and_their_gradients_equal_the_closed_forms():
    draw = np.random.default_rng(0)
    logits, other = draw.normal(size=(2, 3, 7))
    p, q = softmax(other), softmax(logits)
    variation, divergence = 1 - np.minimum(p, q).sum(-1), (p * np.log(p / q)).sum(-1)
    for weight in (0.0, 0.25, 1.0):
        expected = weight * divergence + (1 - weight) * variation
        value, back = jax.vjp(functools.partial(distance, jnp.array(p), kl_weight=weight), jnp.array(logits))
        (gradient,) = back(jnp.ones(3))
        np.testing.assert_allclose(value, expected, rtol=1e-5)
        kept = q * (q < p)  # what of q still grows min(p, q)
        of_variation = q * kept.sum(-1, keepdims=True) - kept
        np.testing.assert_allclose(gradient, weight * (q - p) + (1 - weight) * of_variation, atol=1e-6)


def test_a_p_with_zeros_costs_no_more_than_it_has():
    p, logits = jnp.array([[1.0, 0.0, 0.0]]), jnp.array([[2.0, 0.0, -1.0]])
    q = softmax(np.asarray(logits))[0, 0]
    np.testing.assert_allclose(distance(p, logits, 0.0), [1 - q], rtol=1e-6)
    np.testing.assert_allclose(distance(p, logits, 1.0), [-np.log(q)], rtol=1e-6)


def test_attention_over_blocks_has_the_gradient_of_attention():
    draw = np.random.default_rng(0)
    query, key, value = (draw.normal(size=(2, 2, size, 8)).astype(np.float32) for size in (3, 2 * KEY_BLOCK, 2 * KEY_BLOCK))
    existing = KEY_BLOCK + 5
    bias = np.where(np.arange(2 * KEY_BLOCK) < existing, 0.0, -1e30).astype(np.float32)[None, None, None]
    bias = np.broadcast_to(bias, (2, 1, 3, 2 * KEY_BLOCK))

    def total(attention, *arrays):
        return jnp.sum(jnp.sin(attention(*arrays)))

    gradients = [
        jax.jit(jax.grad(lambda *arrays, f=attention: total(f, *arrays), argnums=(0, 1, 2)))(query, key, value)
        for attention in (
            lambda *arrays: attend(*arrays, bias),
            lambda *arrays: attend_existing(*arrays, bias, jnp.int32(existing)),
        )
    ]
    for mine, other in zip(*gradients):
        np.testing.assert_allclose(mine, other, atol=1e-5)


# Where weights begin.


@pytest.mark.parametrize("name", ["t5_v1_1_target", "gpt2", slowly("t5_v1_0"), slowly("umt5"), slowly("llama")])
def test_weights_are_the_files_tensors_and_make_the_same_model(tmp_path, name):
    weights = Weights.read(str(GOLDEN / name))
    stored = load_file(GOLDEN / name / "model.safetensors")
    for tensor, value in weights.tensors.items():
        np.testing.assert_array_equal(value, stored[tensor].astype(np.float32))
    weights.write(str(tmp_path / "copy"), {})
    tokens, lengths = np.array([[0, 5, 9, 4]], np.int32), np.array([4], np.int32)
    given = (tokens, tokens, lengths) if "t5" in name else (tokens,)
    mine = assemble(weights.config, sources_of(weights.raw), weights.tensors)
    expected = decoding.load_model(str(GOLDEN / name), weights="plain").logits(*given)
    for model in (mine, decoding.load_model(str(tmp_path / "copy"), weights="plain")):
        np.testing.assert_array_equal(model.logits(*given), expected)


@pytest.mark.parametrize(
    "name, counts", [("t5_v1_1_target", {"num_layers": 1, "num_decoder_layers": 2}), ("umt5", {"num_decoder_layers": 1})]
)
def test_layers_are_the_targets_own_the_first_and_the_last(name, counts):
    target = Weights.read(str(GOLDEN / name))
    draft = Weights.of_layers(target, counts)
    most = target.raw.get("num_decoder_layers") or target.raw["num_layers"]
    if counts["num_decoder_layers"] > 1:
        mine = draft.tensors["decoder.block.1.layer.1.EncDecAttention.q.weight"]
        np.testing.assert_array_equal(mine, target.tensors[f"decoder.block.{most - 1}.layer.1.EncDecAttention.q.weight"])
    for tensor in ("shared.weight", "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"):
        np.testing.assert_array_equal(draft.tensors[tensor], target.tensors[tensor])
    assemble(draft.config, sources_of(draft.raw), draft.tensors)
    with pytest.raises(CheckpointError, match="num_decoder_layers is 99; allowed: 1 to"):
        Weights.of_layers(target, {"num_decoder_layers": 99})


@pytest.mark.slow
def test_new_embeddings_are_the_targets_principal_components():
    target = Weights.read(TARGET)
    draft = Weights.new({**target.raw, "d_model": 16, "num_layers": 1}, 0, target)
    table, reduced = (np.asarray(weights.tensors["shared.weight"], np.float64) for weights in (target, draft))
    singular = np.linalg.svd(table, compute_uv=False)
    np.testing.assert_allclose(np.linalg.norm(reduced) ** 2, (singular[:16] ** 2).sum(), rtol=1e-4)
    same = Weights.new({**target.raw, "num_layers": 1}, 0, target)
    np.testing.assert_array_equal(same.tensors["lm_head.weight"], target.tensors["lm_head.weight"])


@pytest.mark.parametrize("name", ["t5_v1_0", slowly("t5_v1_1_draft"), slowly("llama")])
@pytest.mark.slow
def test_a_draft_grows_without_changing_its_logits(name):
    draft = Weights.read(str(GOLDEN / name))
    if name == "llama":
        more = {key: draft.raw[key] + extra for key, extra in (("intermediate_size", 8), ("num_hidden_layers", 1))}
    else:
        more = {key: draft.raw[key] + extra for key, extra in (("d_model", 8), ("d_ff", 16), ("num_layers", 1))}
        more["num_decoder_layers"] = (draft.raw.get("num_decoder_layers") or draft.raw["num_layers"]) + 1
    grown = draft.grown(more, 0)
    assert grown.size > draft.size
    tokens, lengths = np.array([[0, 5, 9, 4]], np.int32), np.array([3], np.int32)
    given = (tokens, tokens, lengths) if "t5" in name else (tokens,)
    mine, other = (assemble(w.config, sources_of(w.raw), w.tensors).logits(*given) for w in (grown, draft))
    np.testing.assert_allclose(mine, other, atol=2e-5)
    with pytest.raises(CheckpointError, match="allowed: no less"):
        draft.grown({key: value // 2 for key, value in more.items() if key in ("d_ff", "intermediate_size")}, 0)


# Steps.


def test_a_training_is_the_same_again_and_when_it_goes_on(target):
    start = Weights.new({**json.loads((GOLDEN / "t5_v1_1_draft" / "config.json").read_text())}, 0)
    recipe = Recipe(steps=6, batch_tokens=64, warmup_steps=2)
    training, other = (trainer(target, start, recipe) for _ in range(2))
    straight, half, again = trained(training, start, 6), trained(training, start, 3), trained(other, start, 6)
    half, about = unpack(pack(half, {"seen": 3}), training.begin(start), "the state")
    assert about == {"seen": 3} and int(half.step) == 3
    for number, (batch, cut, _) in enumerate(training.batches(texts(64), epoch=0)):
        if 3 <= number < 6:
            half, _ = training.step(half, batch, cut)
    for name, value in straight.tensors.items():
        np.testing.assert_array_equal(value, again.tensors[name])
        np.testing.assert_array_equal(value, half.tensors[name])
        assert np.any(value != start.tensors[name])
    with pytest.raises(CheckpointError, match="is no state of a training"):
        unpack(b"nonsense", half, "the state")


@pytest.mark.slow
def test_alpha_rises_and_is_what_scoring_finds(target):
    start = Weights.new({**json.loads((GOLDEN / "t5_v1_1_draft" / "config.json").read_text())}, 0)
    recipe = Recipe(steps=150, batch_tokens=256, kl_weight=0.5, warmup_steps=5, rate=0.01)
    training, held = trainer(target, start, recipe), texts(32, seed=1)

    def alpha(tensors) -> float:
        total = count = 0.0
        for batch, cut, _ in training.batches(held, None):
            total, count = total + training.beta(tensors, batch, cut).sum(), count + batch.lengths.sum()
        return total / count

    state, done, epoch = training.begin(start), 0, 0
    before = alpha(state.tensors)
    while done < recipe.steps:
        for batch, cut, _ in training.batches(texts(64), epoch):
            state, _ = training.step(state, batch, cut)
            done += 1
        epoch += 1
    after = alpha(state.tensors)
    assert after > before + 0.05, (before, after)

    # The same β by hand, text by text.
    model = assemble(start.config, sources_of(start.raw), state.tensors)
    for batch, cut, numbers in training.batches(held, None):
        beta = training.beta(state.tensors, batch, cut)
        for row, i in enumerate(numbers[:3]):
            text = held[i]
            fed = np.append(0, text.tokens[:-1]).astype(np.int32)[None]
            p, q = (
                np.asarray(m.logits(fed, text.inputs[None], np.array([len(text.inputs)], np.int32)))[0] for m in (target, model)
            )
            if text.law.temperature == 0.0:
                expected = p.argmax(-1) == q.argmax(-1)
            else:
                expected = np.minimum(softmax(p), softmax(q)).sum(-1)
            np.testing.assert_allclose(beta[row, : len(text.tokens)], expected, atol=1e-4)
            assert not beta[row, len(text.tokens) :].any()


@pytest.mark.parametrize("name", ["t5_v1_1_draft", pytest.param("llama", marks=pytest.mark.soak)])
def test_the_drafts_own_texts_are_what_it_draws(name):
    """Greedy ones token for token, and those at temperature 1 by chi-square of their first tokens (20 most likely)."""
    start = Weights.read(str(GOLDEN / name))
    model, rows = assemble(start.config, sources_of(start.raw), start.tensors), 4096
    training = trainer(decoding.load_model(str(GOLDEN / name), weights="plain"), start, Recipe())
    inputs = np.tile(np.array([[0, 5, 9, 4]], np.int32), (rows, 1))
    batch = Batch(inputs, np.full((rows,), 4, np.int32), np.zeros((rows, 3), np.int32), np.full((rows,), 3, np.int32), None)

    def drawn(temperature: float):
        of = batch._replace(temperatures=np.full((rows,), temperature, np.float32))
        return jax.jit(training._drawn, static_argnums=2)(start.tensors, of, Law(), jax.random.key(3))

    encoder_decoder, text = start.config.encoder_decoder, [0] if start.config.encoder_decoder else inputs[0].tolist()
    likely = None
    for _ in range(3):
        given = (np.array([text], np.int32), *((inputs[:1], np.array([4], np.int32)) if encoder_decoder else ()))
        logits = np.asarray(model.logits(*given))[0, -1]
        likely = softmax(logits) if likely is None else likely
        text.append(int(logits.argmax()))
        if text[-1] in start.config.eos_ids:
            break
    greedy, chosen = drawn(0.0), text[1 if encoder_decoder else 4 :]
    assert np.asarray(greedy.tokens)[7, : len(chosen)].tolist() == chosen and int(greedy.lengths[7]) == len(chosen)
    first = np.asarray(drawn(1.0).tokens)[:, 0]
    ranked = np.argsort(-likely)[:20]
    seen = np.bincount(first, minlength=len(likely))[ranked]
    expected = likely[ranked].astype(np.float64) * rows
    seen, expected = (np.append(part, rows - part.sum()) for part in (seen, expected))
    assert scipy.stats.chisquare(seen, expected).pvalue > 1e-4


@pytest.mark.parametrize("name", [
    slowly("t5_v1_1_draft"),
    *(pytest.param(name, marks=pytest.mark.soak) for name in ("t5_v1_0", "gpt2")),
])  # fmt: skip
def test_products_of_bfloat16_have_nearly_the_same_loss_and_gradient(name):
    """Against float32's, of heads that are tied and that are not: rounding to 8 bits of mantissa is 0.4% of a factor."""
    start = Weights.read(str(GOLDEN / name))
    target = decoding.load_model(str(GOLDEN / name.replace("draft", "target")), weights="plain")
    given = {**start.tensors}
    for key, value in given.items():  # a draft that is not the target, where there is no other
        given[key] = value + 0.05 * jnp.sin(jnp.arange(value.size, dtype=jnp.float32)).reshape(value.shape)
    start, results = Weights(start.raw, given), []
    for products in ("float32", "bfloat16"):
        training = trainer(target, start, Recipe(products=products, rate=1.0, matrix_rate=0.0, warmup_steps=0))
        batch, cut, _ = next(training.batches(texts(64), None))
        state, loss = training.step(training.begin(start), batch, cut)
        moments = [leaf for path, leaf in jax.tree.leaves_with_path(state.optimizer) if ".mu" in jax.tree_util.keystr(path)]
        results.append((float(loss), np.concatenate([np.ravel(leaf) for leaf in moments if leaf.size > 1])))
    (loss, gradient), (other_loss, other) = results
    np.testing.assert_allclose(other_loss, loss, rtol=0.01)
    cosine = gradient @ other / np.linalg.norm(gradient) / np.linalg.norm(other)
    assert 0.99 < cosine < 1 - 1e-9, cosine  # near, and not the same program


@pytest.mark.slow
def test_the_likeliest_tokens_stand_for_the_target(target):
    """All of them are all of p; of few, the loss is that of a p without the others. By hand, text by text."""
    start = Weights.read(str(GOLDEN / "t5_v1_1_draft"))
    some, law = texts(12), {}
    for size in (0, 4, target.vocab_size):
        training = trainer(target, start, Recipe(target_top_k=size, kl_weight=0.3))
        known = training.with_likely(some) if size else some
        batch, cut, numbers = next(training.batches(known, epoch=0))
        state, loss = training.step(training.begin(start), batch, cut)
        law[size] = batch, float(loss), state.tensors
    assert law[4][0].likely.tokens.shape == (*batch.tokens.shape, 4)
    np.testing.assert_allclose(law[target.vocab_size][1], law[0][1], rtol=1e-5)
    for name, value in law[0][2].items():
        np.testing.assert_allclose(law[target.vocab_size][2][name], value, atol=1e-4)
    model, losses = assemble(start.config, sources_of(start.raw), start.tensors), []
    for text in (some[i] for i in numbers):
        fed = np.append(0, text.tokens[:-1]).astype(np.int32)[None]
        p, q = (
            np.asarray(m.logits(fed, text.inputs[None], np.array([len(text.inputs)], np.int32)))[0] for m in (target, model)
        )
        temperature = text.law.temperature or Recipe().greedy_temperature
        p, log_q = softmax(p / temperature), np.log(softmax(q / temperature))
        p = np.where(p >= np.sort(p, axis=-1)[:, -4, None], p, 0.0)
        divergence = (np.where(p > 0, p * np.log(np.maximum(p, 1e-30)), 0.0) - p * log_q).sum(-1)
        losses.extend(0.3 * divergence + 0.7 * (1 - np.minimum(p, np.exp(log_q)).sum(-1)))
    np.testing.assert_allclose(law[4][1], np.mean(losses), rtol=1e-4)
    assert abs(law[4][1] - law[0][1]) > 1e-3
    with pytest.raises(ValueError, match=r"target_top_k is 4 with own_share 0.5; allowed: 0"):
        Recipe(target_top_k=4, own_share=0.5)


@pytest.mark.slow
def test_a_share_of_the_steps_is_on_the_drafts_own_texts(target):
    recipe = Recipe(steps=8, own_share=0.25)
    assert [step for step in range(1, 9) if recipe.own(step)] == [4, 8]
    assert not any(Recipe().own(step) for step in range(1, 9)) and all(Recipe(own_share=1.0).own(step) for step in range(1, 9))
    start = Weights.read(str(GOLDEN / "t5_v1_1_draft"))
    training = trainer(target, start, recipe)
    batch, cut, _ = next(training.batches(texts(64), None))
    changed = [training.step(training.begin(start), batch, cut, own)[0].tensors for own in (True, True, False)]
    same = [all(np.array_equal(changed[0][name], other[name]) for name in other) for other in changed[1:]]
    assert same == [True, False]


@pytest.mark.slow
def test_without_a_target_references_are_learnt_by_their_cross_entropy():
    start = Weights.new({**json.loads((GOLDEN / "t5_v1_1_draft" / "config.json").read_text())}, 0)
    recipe = Recipe(steps=40, batch_tokens=256, kl_weight=1.0, warmup_steps=5, rate=0.01)
    training, references = trainer(None, start, recipe), [text._replace(law=Law()) for text in texts(64)]
    batch, cut, numbers = next(training.batches(references, None))
    model, surprise = assemble(start.config, sources_of(start.raw), start.tensors), []
    for text in (references[i] for i in numbers):
        fed = np.append(0, text.tokens[:-1]).astype(np.int32)[None]
        q = softmax(np.asarray(model.logits(fed, text.inputs[None], np.array([len(text.inputs)], np.int32)))[0])
        surprise.extend(-np.log(q[np.arange(len(text.tokens)), text.tokens]))
    state, losses = training.begin(start), []
    for _ in range(recipe.steps):
        state, loss = training.step(state, batch, cut)
        losses.append(float(loss))
    np.testing.assert_allclose(losses[0], np.mean(surprise), rtol=1e-4)
    assert losses[-1] < 0.5 * losses[0]
    beta = training.beta(state.tensors, batch, cut)[batch.lengths > 0]  # q of the reference
    np.testing.assert_allclose(-np.log(beta[beta > 0]).mean(), losses[-1], rtol=0.2)


def test_recipes_say_what_is_allowed():
    with pytest.raises(ValueError, match=r"distill\.recipe\.kl_weight is 2; allowed: from 0 to 1"):
        Recipe(kl_weight=2)
