"""GGUF files written from the golden Llama give its logits; what is not a whole, supported file is refused."""

import gc
import pathlib
import pickle
import sys

import fsspec
import gguf
import numpy as np
import pytest

import decoding
from decoding.checkpoints.gguf import _read_header
from decoding.models.decoder_only import Rotary
from tests.support import tiny_gguf

LLAMA = pathlib.Path(__file__).parents[1] / "testdata" / "golden" / "llama"


@pytest.fixture(scope="module")
def parts():
    return tiny_gguf.metadata(LLAMA), tiny_gguf.weights(LLAMA)


@pytest.fixture(scope="module")
def file(parts, tmp_path_factory):
    return tiny_gguf.write(tmp_path_factory.mktemp("gguf") / "llama.gguf", *parts)


@pytest.fixture(scope="module")
def reference():
    arrays = np.load(LLAMA / "golden.npz")
    text = arrays["input_ids_1"].reshape(1, -1).astype(np.int32)
    return text, arrays["logits_1"].reshape(1, text.shape[1], -1)


def test_golden_logits(file, reference):
    text, logits = reference
    np.testing.assert_allclose(np.asarray(decoding.load_model(file).logits(text)), logits, atol=5e-4)


def test_description(file):
    info = decoding.inspect_checkpoint(file)
    assert (info.family, info.vocab_size, info.start_id, info.eos_id, info.pad_id) == ("llama", 384, 1, 2, 2)
    assert not info.encoder_decoder
    assert info.weight_files == (file,)


def test_eight_bits_come_close(parts, reference, tmp_path):
    text, logits = reference
    path = tiny_gguf.write(tmp_path / "q8.gguf", *parts, kind=gguf.GGMLQuantizationType.Q8_0)
    error = np.abs(np.asarray(decoding.load_model(path).logits(text)) - logits)
    assert 1e-4 < error.max() < 0.02 * np.abs(logits).max()


def test_tied_with_biases_and_no_interleaving(parts, tmp_path):
    """As Qwen2 has it, against the same weights with an output of their own and zero biases."""
    tensors = tiny_gguf.weights(LLAMA, "qwen2")
    tensors["output.weight"] = tensors["token_embd.weight"]
    untied = decoding.load_model(tiny_gguf.write(tmp_path / "a.gguf", parts[0], parts[1] | {
        "output.weight": tensors["token_embd.weight"]}))  # fmt: skip
    del tensors["output.weight"]
    for name in list(tensors):
        if name.endswith(("attn_q.weight", "attn_k.weight", "attn_v.weight")):
            tensors[name.replace("weight", "bias")] = np.zeros(len(tensors[name]), np.float32)
    qwen = tiny_gguf.write(tmp_path / "b.gguf", tiny_gguf.metadata(LLAMA, "qwen2"), tensors, architecture="qwen2")
    text = np.arange(5, dtype=np.int32)[None]
    np.testing.assert_allclose(decoding.load_model(qwen).logits(text), untied.logits(text), atol=1e-5)


def test_rotary_settings(parts, tmp_path):
    values, tensors = parts
    linear = values | {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    model = decoding.load_model(tiny_gguf.write(tmp_path / "linear.gguf", linear, tensors))
    assert model.config.rotary == Rotary(10000.0, "linear", 4.0)
    for key in ("llama.rope.scaling.factor", "llama.rope.scale_linear"):  # the latter of old files
        path = tiny_gguf.write(tmp_path / "factor.gguf", values | {key: 4.0}, tensors)
        assert decoding.load_model(path).config.rotary == model.config.rotary
    factors = np.array([1, 1, 1, 1, 2, 4, 8, 8], np.float32)
    path = tiny_gguf.write(tmp_path / "factors.gguf", values, tensors | {"rope_freqs.weight": factors})
    rotary = decoding.load_model(path).config.rotary
    np.testing.assert_allclose(rotary.frequencies(16), Rotary(10000.0).frequencies(16) / factors, rtol=1e-6)
    assert decoding.load_model(path).config.norm_epsilon == pytest.approx(1e-6)


def test_a_remote_file(file):
    filesystem = fsspec.filesystem("memory")
    filesystem.pipe("/models/llama.gguf", pathlib.Path(file).read_bytes())
    assert decoding.inspect_checkpoint("memory://models/llama.gguf").vocab_size == 384
    assert decoding.load_model("memory://models/llama.gguf").vocab_size == 384
    gc.collect()
    assert "llama.gguf (deleted)" not in pathlib.Path("/proc/self/maps").read_text()  # the copy is gone from the disk


@pytest.mark.parametrize("kept", [0, 3, 20, 500, 0.5, 0.999])
def test_truncated(file, tmp_path, kept):
    data = pathlib.Path(file).read_bytes()
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(data[: kept if isinstance(kept, int) else int(kept * len(data))])
    for use in (decoding.inspect_checkpoint, decoding.load_model):
        with pytest.raises(decoding.CheckpointError, match=r"cut\.gguf is not a whole GGUF file"):
            use(str(cut))


class Trap:
    def __reduce__(self):
        return pathlib.Path.touch, (pathlib.Path("sprung"),)


def test_a_pickle_is_not_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pathlib.Path("trap.gguf").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(decoding.CheckpointError, match="GGUF magic invalid"):
        decoding.load_model("trap.gguf")
    assert not pathlib.Path("sprung").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer.ggml.eos_token_id": None}, "lacks 'tokenizer.ggml.eos_token_id'"),
        ({"llama.block_count": None}, "lacks 'llama.block_count'"),
        ({"llama.expert_count": 8}, "llama.expert_count is 8"),
        ({"llama.attention.head_count": [4, 2]}, r"head_count is \[4, 2\]; supported: one whole number"),
        ({"llama.attention.head_count_kv": [2, 2]}, r"head_count_kv is \[2, 2\]; supported: one whole number"),
        ({"llama.rope.dimension_count": 8}, "8 of a head's 16 dimensions"),
        ({"llama.rope.scaling.type": "yarn"}, "rotary scaling 'yarn'"),
        ({"llama.block_count": 3}, r"missing weight blk.2.attn_norm.weight \[64\]"),
        ({"llama.feed_forward_length": 96}, r"ffn_up.weight: the file has \[112, 64\], the config says \[96, 64\]"),
    ],
)
def test_refused(parts, tmp_path, changes, message):
    values = {key: value for key, value in (parts[0] | changes).items() if value is not None}
    path = tiny_gguf.write(tmp_path / "x.gguf", values, parts[1])
    with pytest.raises(decoding.CheckpointError, match=message):
        decoding.load_model(path)


def test_factors_that_were_not_read_are_refused(parts, tmp_path):
    path = tiny_gguf.write(tmp_path / "x.gguf", parts[0], parts[1] | {"rope_freqs.weight": np.zeros(8, np.float32)})
    with pytest.raises(decoding.CheckpointError, match="rope_freqs.weight holds zeros"):
        decoding.inspect_checkpoint(path)


def test_refused_architecture(parts, tmp_path):
    path = tiny_gguf.write(tmp_path / "x.gguf", *parts, architecture="mamba")
    with pytest.raises(decoding.CheckpointError, match="'mamba'; supported: llama, qwen2, qwen3"):
        decoding.inspect_checkpoint(path)


def test_missing_file_and_missing_package(file, monkeypatch):
    with pytest.raises(decoding.CheckpointError, match="nowhere"):
        decoding.load_model("nowhere.gguf")

    _read_header.cache_clear()
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(decoding.CheckpointError, match="extra 'gguf'"):
        decoding.inspect_checkpoint(file)
