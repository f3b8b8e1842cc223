"""T5X checkpoints: the reference's numbers from every layout, and what is said of broken ones."""

import json
import pathlib
import pickle
import shutil
import weakref

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx, serialization

import decoding
from decoding import CheckpointError
from decoding.checkpoints import architecture, find_checkpoint
from decoding.checkpoints.arrays import Arrays
from tests.support import tiny_t5x

SHAPE = {
    "model_type": "t5",
    "vocab_size": 384,
    "d_model": 48,
    "d_kv": 16,
    "d_ff": 96,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 4,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
}
QUERY = "decoder.layers_1.self_attention.query.kernel"


def load(path, **settings):
    """Plain arrays, which tests look at."""
    return decoding.load_model(path, weights="plain", **settings)


@pytest.fixture(scope="module")
def folder(golden) -> pathlib.Path:
    return golden / "t5x_tiny"


@pytest.fixture(scope="module")
def reference(folder) -> dict:
    arrays = dict(np.load(folder / "golden.npz"))
    return arrays | {"lengths": (arrays["encoder_input_tokens"] > 0).sum(axis=1).astype(np.int32)}


@pytest.fixture(scope="module")
def model(folder):
    return load(str(folder / "checkpoint_0"), architecture=SHAPE)


@pytest.fixture(scope="module")
def arrays(folder) -> dict[str, np.ndarray]:
    return tiny_t5x.read(folder / "checkpoint_0")


def parameters(model) -> dict[str, np.ndarray]:
    return {".".join(map(str, keys)): np.asarray(leaf[...]) for keys, leaf in nnx.to_flat_state(nnx.state(model))}


def assert_same(model, other) -> None:
    mine, others = parameters(model), parameters(other)
    assert mine.keys() == others.keys()
    for name in mine:
        np.testing.assert_array_equal(mine[name], others[name], err_msg=name)


def refusal(path, shape=SHAPE) -> str:
    with pytest.raises(CheckpointError) as error:
        load(str(path), architecture=shape)
    return str(error.value)


def copied(folder, tmp_path) -> pathlib.Path:
    shutil.copytree(folder / "checkpoint_0", tmp_path / "checkpoint_0")
    return tmp_path / "checkpoint_0"


def test_golden_logits_and_their_best_tokens(model, reference):
    logits = np.asarray(
        model.logits(reference["decoder_input_tokens"], reference["encoder_input_tokens"], reference["lengths"])
    )
    counted = reference["decoder_target_tokens"] > 0  # T5X masks attention from and to padding of the targets
    assert counted.sum() > 20 and reference["lengths"].tolist() != [20, 20]
    assert np.abs(logits - reference["logits"])[counted].max() < 1e-4
    np.testing.assert_array_equal(logits.argmax(-1)[counted], reference["logits"].argmax(-1)[counted])


def test_prefill_and_steps_with_rows_at_their_own_positions(model, reference):
    """Blocks of 4 of which each row keeps its own number; what it does not keep is garbage to be overwritten."""
    fed, wanted = reference["decoder_input_tokens"], reference["logits"]
    rows, length = fed.shape
    graph, params = nnx.split(model)
    state = model.init_state(rows, reference["encoder_input_tokens"].shape[1], length + 4)
    state |= model.prefill(jnp.asarray(reference["encoder_input_tokens"]), jnp.asarray(reference["lengths"]))
    step = jax.jit(lambda *args: nnx.merge(graph, params).step(*args))
    rng, positions, worst, spread = np.random.default_rng(0), np.zeros(rows, np.int32), 0.0, 0
    lengths = (reference["decoder_target_tokens"] > 0).sum(axis=1)
    while (positions < lengths).any():
        right = np.minimum(rng.integers(1, 5, rows), lengths - positions)
        tokens = rng.integers(0, 384, (rows, 4)).astype(np.int32)
        for row in range(rows):
            tokens[row, : right[row]] = fed[row, positions[row] : positions[row] + right[row]]
        logits, state = step(jnp.asarray(tokens), jnp.asarray(positions), state)
        for row in range(rows):
            part = wanted[row, positions[row] : positions[row] + right[row]]
            worst = max(worst, np.abs(np.asarray(logits)[row, : right[row]] - part).max(initial=0.0))
        positions = (positions + right).astype(np.int32)
        spread = max(spread, np.ptp(positions))
    assert worst < 1e-4 and spread > 0


def test_the_newest_finished_step_of_a_directory(folder, model, arrays, tmp_path):
    other = {name: array + 1 for name, array in arrays.items()}
    tiny_t5x.write(tmp_path / "checkpoint_900", other)
    shutil.copytree(folder / "checkpoint_0", tmp_path / "checkpoint_1000")
    (tmp_path / "checkpoint_2000").mkdir()
    (tmp_path / "checkpoint_3000.tmp-17").mkdir()
    assert_same(load(str(tmp_path), architecture=SHAPE), model)
    info = decoding.inspect_checkpoint(str(tmp_path), architecture=SHAPE)
    assert (info.family, info.vocab_size, info.eos_id, info.encoder_decoder) == ("t5", 384, 1, True)
    assert info.weight_files[0] == str(tmp_path / "checkpoint_1000" / "checkpoint")
    assert str(tmp_path / "checkpoint_1000" / f"target.{QUERY}" / "0.0") in info.weight_files
    assert not any("param_states" in file for file in info.weight_files)  # the optimizer's
    shutil.rmtree(tmp_path / "checkpoint_900")
    shutil.rmtree(tmp_path / "checkpoint_1000")
    assert "checkpoint_2000" in refusal(tmp_path) and "finished" in refusal(tmp_path)


def test_a_config_beside_the_arrays_is_enough(folder, model, tmp_path):
    path = copied(folder, tmp_path)
    assert "config.json" in refusal(path, None) and "t5-v1.1-xxl" in refusal(path, None)
    (tmp_path / "config.json").write_text(json.dumps(SHAPE))
    assert_same(load(str(tmp_path)), model)
    (path / "config.json").write_text(json.dumps(SHAPE))
    assert_same(load(str(path)), model)
    message = refusal(path, SHAPE | {"d_ff": 64})
    assert "d_ff is 96 there and 64 in the architecture" in message
    assert "t5-v1.1-small" in refusal(path, "t5-small")


def test_chunks_bfloat16_and_arrays_in_the_index(arrays, model, tmp_path):
    inline = {name: array for name, array in arrays.items() if name.endswith("_norm.scale")}
    rest = {name: array for name, array in arrays.items() if name not in inline}
    assert_same(
        load(tiny_t5x.write(tmp_path / "checkpoint_1", rest, chunks=3, inline=inline), architecture=SHAPE),
        model,
    )
    half = {name: array.astype(ml_dtypes.bfloat16) for name, array in arrays.items()}
    loaded = load(tiny_t5x.write(tmp_path / "checkpoint_2", half), architecture=SHAPE)
    for name, value in parameters(loaded).items():
        assert value.dtype == np.float32
        np.testing.assert_array_equal(value, parameters(model)[name].astype(ml_dtypes.bfloat16).astype(np.float32))


def test_layers_apart_with_heads_apart(arrays, model, tmp_path):
    apart = tiny_t5x.heads_apart(arrays, 4)
    assert apart[QUERY].shape == (48, 4, 16)
    assert_same(load(tiny_t5x.write(tmp_path / "checkpoint_1", apart), architecture=SHAPE), model)


@pytest.mark.parametrize(("bias", "inner"), [("relpos_bias", None), ("relative_posemb", "layers")])
def test_scanned_layers(arrays, model, reference, tmp_path, bias, inner):
    """Stacked layers have a table of relative positions each; with equal tables the model is the golden one."""
    stacked = tiny_t5x.scanned(tiny_t5x.heads_apart(arrays, 4), bias, inner=inner)
    assert stacked[f"decoder.{inner or 'decoder'}.self_attention.query.kernel"].shape == (48, 3, 4, 16)
    path = tiny_t5x.write(tmp_path / "checkpoint_1", stacked)
    loaded = load(path, architecture=SHAPE)
    mine, golden = parameters(loaded), parameters(model)
    for side, depth in (("encoder", 2), ("decoder", 3)):
        np.testing.assert_array_equal(mine.pop(f"{side}_bias"), np.stack([golden.pop(f"{side}_bias")] * depth))
    for name in golden:
        np.testing.assert_array_equal(mine[name], golden[name], err_msg=name)
    assert find_checkpoint(path, SHAPE).raw["model_type"] == "umt5"  # which has a table per layer, too
    logits = loaded.logits(reference["decoder_input_tokens"], reference["encoder_input_tokens"], reference["lengths"])
    counted = reference["decoder_target_tokens"] > 0
    assert np.abs(np.asarray(logits) - reference["logits"])[counted].max() < 1e-4


def test_scanned_arrays_are_let_go_at_the_end(arrays, tmp_path, monkeypatch):
    path, read, found = tiny_t5x.write(tmp_path / "checkpoint_1", tiny_t5x.scanned(arrays, "relpos_bias")), Arrays.read, []

    def watched(self, name):
        array = read(self, name)
        found.append(weakref.ref(array))
        return array

    monkeypatch.setattr(Arrays, "read", watched)
    for _ in find_checkpoint(path, SHAPE).parameters(np.float32):
        pass
    del _
    assert len(found) > 10 and all(ref() is None for ref in found)


def test_tables_of_scanned_layers_keep_their_order(arrays, tmp_path):
    stacked = tiny_t5x.scanned(arrays, "relpos_bias")
    name = "decoder.decoder.relpos_bias.rel_embedding"
    stacked[name] = np.random.default_rng(0).normal(size=stacked[name].shape).astype(np.float32)
    loaded = load(tiny_t5x.write(tmp_path / "checkpoint_1", stacked), architecture=SHAPE)
    tables = parameters(loaded)["decoder_bias"]
    for layer in range(3):
        np.testing.assert_array_equal(tables[layer], stacked[name][:, layer].T)


def test_decoder_only_networks(tmp_path):
    """T5X's `decoder_only`, LaMDA's shape: every parameter finds its place."""
    shape = {
        "model_type": "lamda",
        "vocab_size": 20,
        "hidden_size": 12,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "head_dim": 8,
        "intermediate_size": 28,
        "tie_word_embeddings": False,
        "eos_token_id": 1,
    }
    rng = np.random.default_rng(0)
    values = {
        "decoder.token_embedder.embedding": (20, 12),
        "decoder.logits_dense.kernel": (12, 20),
        "decoder.decoder_norm.scale": (12,),
        "decoder.relpos_bias.rel_embedding": (3, 32),
    }
    for i in range(2):
        at = f"decoder.layers_{i}"
        values |= {f"{at}.self_attention.{x}.kernel": (12, 24) for x in ("query", "key", "value")}
        values |= {f"{at}.self_attention.out.kernel": (24, 12), f"{at}.mlp.wo.kernel": (28, 12)}
        values |= {f"{at}.mlp.wi_{j}.kernel": (12, 28) for j in (0, 1)}
        values |= {f"{at}.{norm}.scale": (12,) for norm in ("pre_self_attention_layer_norm", "pre_mlp_layer_norm")}
    values = {name: rng.normal(size=size).astype(np.float32) for name, size in values.items()}
    path = tiny_t5x.write(tmp_path / "checkpoint_1", values)
    found = parameters(load(path, architecture=shape))
    assert found.keys() == parameters(architecture.build(architecture.parse_config(shape, ""), jnp.float32)).keys()
    np.testing.assert_array_equal(found["relative"], values["decoder.relpos_bias.rel_embedding"].T)
    part = lambda name: values[f"decoder.layers_1.{name}.kernel"]
    fused = np.concatenate([part(f"self_attention.{x}") for x in ("query", "key", "value")], axis=1)
    np.testing.assert_array_equal(found["blocks.1.qkv.kernel"], fused)
    np.testing.assert_array_equal(found["blocks.1.wi.kernel"], np.concatenate([part("mlp.wi_0"), part("mlp.wi_1")], axis=1))
    assert "tie_word_embeddings" in refusal(path, shape | {"tie_word_embeddings": True})


def test_missing_extra_and_misshaped_arrays_are_all_listed(arrays, tmp_path):
    broken = dict(arrays)
    del broken["encoder.layers_0.mlp.wo.kernel"], broken["decoder.relpos_bias.rel_embedding"]
    broken[QUERY] = broken[QUERY][:, :60]
    broken["encoder.layers_0.attention.out.kernel"] = broken["encoder.layers_0.attention.out.kernel"].T.copy()
    broken["decoder.layers_3.mlp.wo.kernel"] = np.zeros((96, 48), np.float32)
    message = refusal(tiny_t5x.write(tmp_path / "checkpoint_1", broken))
    assert message.partition(": ")[2].split("; ") == [
        "missing weight encoder.layers_0.mlp.wo.kernel [96, 48]",
        "missing weight decoder.relpos_bias.rel_embedding [4, 32]",
        "unexpected weight decoder.layers_3.mlp.wo.kernel [96, 48]",
        "encoder.layers_0.attention.out.kernel: the file has [48, 64], the config says [64, 48]",
        f"{QUERY}: the file has [48, 60], the config says [48, 64]",
    ]


def test_a_missing_chunk_is_not_read_as_zeros(arrays, tmp_path):
    path = tiny_t5x.write(tmp_path / "checkpoint_1", arrays, chunks=2)
    (pathlib.Path(path) / f"target.{QUERY}" / "0.1").unlink()
    assert QUERY in refusal(path)
    (pathlib.Path(path) / f"target.{QUERY}" / "0.1").write_bytes(b"\x1f\x8b")
    assert QUERY in refusal(path)
    (pathlib.Path(path) / f"target.{QUERY}" / ".zarray").write_text("{")
    assert QUERY in refusal(path) and "zarr" in refusal(path)


class _Creates:
    """Unpickling this creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_an_index_that_is_a_pickle_or_garbage_is_refused(folder, tmp_path):
    path, opened = copied(folder, tmp_path), tmp_path / "opened"
    index = path / "checkpoint"
    for content in (
        pickle.dumps(_Creates(opened)),
        b"",
        index.read_bytes()[:500],
        serialization.msgpack_serialize({"version": 3}),
    ):
        index.write_bytes(content)
        assert "not the index of a T5X checkpoint" in refusal(path)
    assert not opened.exists()
    pickle.loads(pickle.dumps(_Creates(opened))).close()
    assert opened.exists()  # so the pickle would have
