"""Reading Hugging Face T5 directories: every published form, and what is said of broken ones."""

import json
import pathlib
import pickle
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

import decoding
from decoding import CheckpointError
from tests.support import tiny_t5

SHAPE = tiny_t5.config(12)
TIED = tiny_t5.config(12, tied=True)


@pytest.fixture
def folder(tmp_path) -> pathlib.Path:
    return pathlib.Path(tiny_t5.write(tmp_path / "model", SHAPE, tiny_t5.weights(SHAPE, 0)))


def logits(model) -> np.ndarray:
    fed = np.array([[0, 3, 7, 2], [0, 5, 5, 9]], np.int32)
    return np.asarray(model.logits(fed, np.array([[4, 5, 1], [6, 1, 0]], np.int32), np.array([3, 2], np.int32)))


def refusal(path) -> str:
    with pytest.raises(CheckpointError) as error:
        decoding.load_model(str(path))
    return str(error.value)


def split(folder: pathlib.Path, tensors: dict) -> None:
    """Replaces the one file by three and an index."""
    (folder / "model.safetensors").unlink()
    names, weight_map = sorted(tensors), {}
    for i in range(3):
        file = f"model-{i + 1:05d}-of-00003.safetensors"
        save_file({name: tensors[name] for name in names[i::3]}, str(folder / file))
        weight_map |= dict.fromkeys(names[i::3], file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_a_checkpoint_split_with_an_index_is_the_same_model(folder):
    whole = logits(decoding.load_model(str(folder)))
    split(folder, tiny_t5.weights(SHAPE, 0))
    np.testing.assert_array_equal(logits(decoding.load_model(str(folder))), whole)
    assert len(decoding.inspect_checkpoint(str(folder)).weight_files) == 3
    (folder / "model-00002-of-00003.safetensors").unlink()
    assert "model-00002-of-00003.safetensors" in refusal(folder)


def test_bfloat16_files_load_as_either_dtype(folder):
    rounded = {name: value.astype(ml_dtypes.bfloat16) for name, value in tiny_t5.weights(SHAPE, 0).items()}
    save_file(rounded, str(folder / "model.safetensors"))
    model = decoding.load_model(str(folder), weights="plain")
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(model))} == {jnp.dtype("float32")}
    tiny_t5.write(folder.parent / "widened", SHAPE, {name: value.astype(np.float32) for name, value in rounded.items()})
    as_stored, widened = (decoding.load_model(str(path)) for path in (folder, folder.parent / "widened"))
    np.testing.assert_array_equal(logits(as_stored), logits(widened))
    half = decoding.load_model(str(folder), dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(half))} == {jnp.dtype("bfloat16")}
    with pytest.raises(ValueError, match="float16.*bfloat16, float32"):
        decoding.load_model(str(folder), dtype="float16")


def test_a_missing_weight_is_named(folder):
    tensors = tiny_t5.weights(SHAPE, 0)
    del tensors["decoder.block.0.layer.1.EncDecAttention.k.weight"]
    save_file(tensors, str(folder / "model.safetensors"))
    assert "missing weight decoder.block.0.layer.1.EncDecAttention.k.weight" in refusal(folder)


def test_a_head_that_the_config_says_is_there_is_missed(folder):
    tensors = tiny_t5.weights(SHAPE, 0)
    del tensors["lm_head.weight"]
    save_file(tensors, str(folder / "model.safetensors"))
    assert "missing weight lm_head.weight [12, 8]" in refusal(folder)


def test_a_misshaped_weight_is_named_with_both_shapes(folder):
    tensors = tiny_t5.weights(SHAPE, 0)
    name = "encoder.block.0.layer.1.DenseReluDense.wo.weight"
    tensors[name] = np.ascontiguousarray(tensors[name].T)
    save_file(tensors, str(folder / "model.safetensors"))
    message = refusal(folder)
    assert name in message and "[16, 8]" in message and "[8, 16]" in message


def test_an_unexpected_weight_is_named(folder):
    tensors = tiny_t5.weights(SHAPE, 0) | {"encoder.block.7.extra.weight": np.zeros(3, np.float32)}
    save_file(tensors, str(folder / "model.safetensors"))
    assert "unexpected weight encoder.block.7.extra.weight" in refusal(folder)


def test_copies_of_the_embedding_are_not_unexpected(folder):
    whole = logits(decoding.load_model(str(folder)))
    tensors = tiny_t5.weights(SHAPE, 0)
    for name in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight"):
        tensors[name] = tensors["shared.weight"].copy()
    save_file(tensors, str(folder / "model.safetensors"))
    np.testing.assert_array_equal(logits(decoding.load_model(str(folder))), whole)


class _Creates:
    """Unpickling this creates a file."""

    def __init__(self, path: pathlib.Path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.safetensors", "flax_model.msgpack"])
def test_pickles_are_refused_and_never_opened(folder, name):
    (folder / "model.safetensors").unlink()
    opened, data = folder / "opened", pickle.dumps(_Creates(folder / "opened"))
    (folder / name).write_bytes(data)
    message = refusal(folder)
    assert name in message and "safetensors" in message
    refusal(folder / name)  # named itself, it is no directory
    with pytest.raises(CheckpointError):
        decoding.inspect_checkpoint(str(folder))
    assert not opened.exists()
    pickle.loads(data).close()
    assert opened.exists()  # so it would have been


def test_headers_that_lie_are_refused(folder):
    file = folder / "model.safetensors"
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    entry = header["shared.weight"]

    def write(**changes) -> str:
        lying = json.dumps(header | {"shared.weight": entry | changes}).encode()
        file.write_bytes(len(lying).to_bytes(8, "little") + lying + data[8 + length :])
        return refusal(folder)

    start, end = entry["data_offsets"]
    assert "[12, 8]" in write(data_offsets=[start, end - 4])
    assert "bytes -4 to" in write(data_offsets=[-4, end - start - 4])
    assert "'F8_E4M3'" in write(dtype="F8_E4M3")
    assert "not a whole safetensors file" in write(shape="large")
    assert "its header says" in write(data_offsets=[start + 10**6, end + 10**6])
    file.write_bytes((1 << 60).to_bytes(8, "little") + data[8:])
    assert "cannot hold a header" in refusal(folder)
    file.write_bytes(data + b"more")
    assert "its header says" in refusal(folder)


def test_the_same_name_in_two_files_is_refused(folder):
    tensors = tiny_t5.weights(SHAPE, 0)
    split(folder, tensors)
    save_file(tensors, str(folder / "model-00003-of-00003.safetensors"))
    assert "in another file too" in refusal(folder)


@pytest.mark.parametrize("keep", [0, 4, 300, -100])
def test_a_truncated_file_is_named(folder, keep):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    assert "model.safetensors" in refusal(folder)


def test_missing_and_broken_configs_are_named(folder, tmp_path):
    assert "nowhere" in refusal(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "config.json" in refusal(tmp_path / "empty")
    config = folder / "config.json"
    for text, said in [
        ("{", "not valid JSON"),
        ("[]", "list"),
        (json.dumps(SHAPE | {"model_type": "bert"}), "'bert'"),
        (json.dumps({name: value for name, value in SHAPE.items() if name != "d_kv"}), "d_kv"),
        (json.dumps(SHAPE | {"feed_forward_proj": "gated-tanh"}), "gated-tanh"),
        (json.dumps(SHAPE | {"vocab_size": 13}), "[13, 8]"),
        (json.dumps(SHAPE | {"decoder_start_token_id": None}), "start token is None; allowed: 0 to 11"),
    ]:
        config.write_text(text)
        assert said in refusal(folder)
    config.unlink()
    assert "config.json" in refusal(folder)


def test_inspect_says_what_the_config_says(folder):
    info = decoding.inspect_checkpoint(str(folder))
    assert (info.family, info.vocab_size, info.start_id, info.eos_id, info.pad_id) == ("t5", 12, 0, 1, 0)
    assert info.encoder_decoder and info.weight_files == (str(folder / "model.safetensors"),)


# Both forms of published configs: older ones write `tie_word_embeddings: false` for untied heads, newer ones write
# true into all and add `scale_decoder_outputs`.


def test_both_forms_of_an_untied_config_are_the_same_model(folder, golden, tmp_path):
    older = logits(decoding.load_model(str(folder)))
    newer = SHAPE | {"tie_word_embeddings": True, "scale_decoder_outputs": False}
    (folder / "config.json").write_text(json.dumps(newer))
    np.testing.assert_array_equal(logits(decoding.load_model(str(folder))), older)
    # The reference's numbers, under the newer form.
    shutil.copytree(golden / "t5_v1_1_draft", tmp_path / "copy")
    config = json.loads((tmp_path / "copy" / "config.json").read_text())
    assert config["tie_word_embeddings"] is False
    config |= {"tie_word_embeddings": True, "scale_decoder_outputs": False}
    (tmp_path / "copy" / "config.json").write_text(json.dumps(config))
    arrays = np.load(golden / "t5_v1_1_draft" / "golden.npz")
    lengths = arrays["attention_mask"].sum(axis=1).astype(np.int32)
    model = decoding.load_model(str(tmp_path / "copy"))
    found = np.asarray(model.logits(arrays["decoder_input_ids"], arrays["input_ids"], lengths))
    assert np.abs(found - arrays["logits"]).max() < 1e-4


def test_a_tied_head_is_scaled_unless_the_config_says_otherwise(tmp_path):
    def load(name: str, **changes):
        shape = {key: value for key, value in (TIED | changes).items() if value is not None}
        return logits(decoding.load_model(tiny_t5.write(tmp_path / name, shape, tiny_t5.weights(TIED, 0))))

    scaled = load("older", tie_word_embeddings=True)
    np.testing.assert_array_equal(load("newer", tie_word_embeddings=True, scale_decoder_outputs=True), scaled)
    np.testing.assert_array_equal(load("absent", tie_word_embeddings=None), scaled)
    unscaled = load("unscaled", scale_decoder_outputs=False)
    np.testing.assert_array_equal(load("mt5", model_type="mt5"), unscaled)
    np.testing.assert_allclose(unscaled, scaled * 8**0.5, rtol=1e-4, atol=1e-5)


def test_an_untied_head_under_a_config_that_says_tied_is_used_and_scaled(tmp_path):
    # Published v1.1-style weights with neither key changed: the file decides about the head, the config about scale.
    tensors = tiny_t5.weights(SHAPE, 0)
    plain = logits(decoding.load_model(tiny_t5.write(tmp_path / "a", SHAPE, tensors)))
    scaled = logits(decoding.load_model(tiny_t5.write(tmp_path / "b", SHAPE | {"tie_word_embeddings": True}, tensors)))
    np.testing.assert_allclose(scaled * 8**0.5, plain, rtol=1e-4, atol=1e-5)
