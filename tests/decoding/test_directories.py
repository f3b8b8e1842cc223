"""What a directory is taken for, whatever else lies in it, under which names its weights lie, and how long a text it takes."""

import json
import pathlib
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import decoding
from decoding import CheckpointError, DecodingConfig, Generator
from decoding.checkpoints.architecture import parse_config
from tests.support import tiny_gguf, tiny_t5

GOLDEN = pathlib.Path(__file__).parent.parent / "testdata" / "golden"
TEXT = np.arange(3, 9, dtype=np.int32)[None]


@pytest.fixture
def llama(tmp_path) -> pathlib.Path:
    shutil.copytree(GOLDEN / "llama", tmp_path / "llama")
    return tmp_path / "llama"


def change(folder: pathlib.Path, **keys) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | keys))


def logits(folder) -> np.ndarray:
    return np.asarray(decoding.load_model(str(folder)).logits(TEXT))


def refusal(path) -> str:
    with pytest.raises(CheckpointError) as error:
        decoding.load_model(str(path))
    assert "\n" not in str(error.value)
    return str(error.value)


# Names of shared weights.


def t5_logits(folder) -> np.ndarray:
    model = decoding.load_model(str(folder))
    return np.asarray(model.logits(np.array([[0, 3, 7]], np.int32), np.array([[4, 5, 1]], np.int32), np.array([3], np.int32)))


@pytest.mark.parametrize("tied", [True, False])
def test_t5_has_one_embedding_under_any_of_its_names(tmp_path, tied):
    shape = tiny_t5.config(12, tied=tied)
    tensors = tiny_t5.weights(shape, 0)
    whole = t5_logits(tiny_t5.write(tmp_path / "whole", shape, tensors))
    shared = tensors.pop("shared.weight")
    copies = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
    for i, names in enumerate([copies[:1], copies[1:], copies, *([("lm_head.weight",)] if tied else [])]):
        folder = tiny_t5.write(tmp_path / str(i), shape, tensors | {name: shared.copy() for name in names})
        np.testing.assert_array_equal(t5_logits(folder), whole)
    differing = tensors | {"shared.weight": shared, copies[0]: shared + 1}
    assert f"{copies[0]} differs from shared.weight" in refusal(tiny_t5.write(tmp_path / "differ", shape, differing))
    if not tied:  # an untied head is never taken for an embedding, nor the other way round
        assert "missing weight shared.weight" in refusal(tiny_t5.write(tmp_path / "none", shape, tensors))
        del tensors["lm_head.weight"]
        alone = tensors | {"shared.weight": shared}
        assert "missing weight lm_head.weight" in refusal(tiny_t5.write(tmp_path / "headless", shape, alone))


@pytest.mark.parametrize(("family", "name"), [("llama", "model.embed_tokens.weight"), ("gpt2", "transformer.wte.weight")])
def test_a_tied_head_is_the_embedding(tmp_path, family, name):
    shutil.copytree(GOLDEN / family, tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    tensors = load_file(file)
    tensors.pop("lm_head.weight", None)
    change(tmp_path / "model", tie_word_embeddings=True)
    save_file(tensors, file)
    tied = logits(tmp_path / "model")
    embedding = tensors.pop(name)
    save_file(tensors | {"lm_head.weight": embedding}, file)
    np.testing.assert_array_equal(logits(tmp_path / "model"), tied)
    change(tmp_path / "model", tie_word_embeddings=False)
    assert f"missing weight {name}" in refusal(tmp_path / "model")


def test_the_body_of_a_model_saved_alone(llama):
    file = llama / "model.safetensors"
    tensors = load_file(file)
    head = tensors.pop("lm_head.weight")
    change(llama, tie_word_embeddings=True)
    save_file(tensors, file)
    tied = logits(llama)
    save_file({name.removeprefix("model."): tensor for name, tensor in tensors.items()}, file)
    np.testing.assert_array_equal(logits(llama), tied)
    save_file({name.removeprefix("model."): tensor for name, tensor in tensors.items()} | {"lm_head.weight": head}, file)
    assert np.abs(logits(llama) - tied).max() > 0.1


def test_the_same_names_as_transformers(tmp_path, llama):
    """Files that transformers loads too: `save_model` keeps one name, an index may be older than the whole file beside it."""
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_model

    change(llama, tie_word_embeddings=True)
    tensors = load_file(llama / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, llama / "model.safetensors", metadata={"format": "pt"})
    theirs = transformers.LlamaForCausalLM.from_pretrained(llama)
    save_model(theirs, str(llama / "model.safetensors"))
    old = {name: np.zeros_like(tensor) for name, tensor in tensors.items()}
    save_file(old, llama / "model-00001-of-00001.safetensors", metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": dict.fromkeys(old, "model-00001-of-00001.safetensors")}
    (llama / "model.safetensors.index.json").write_text(json.dumps(index))
    torch.save({"model.embed_tokens.weight": torch.zeros(3)}, llama / "pytorch_model.bin")
    wanted = transformers.LlamaForCausalLM.from_pretrained(llama)(torch.tensor(TEXT)).logits.detach().numpy()
    assert np.abs(wanted).max() > 0.1
    np.testing.assert_allclose(logits(llama), wanted, atol=1e-4)


# Other files in the directory.


OTHERS = ("checkpoint", "checkpoint_0/x", "orbax/x", "_CHECKPOINT_METADATA", "other.gguf", "snapshots/a")


@pytest.mark.parametrize("name", OTHERS)
def test_other_files_do_not_decide_what_a_directory_is(llama, name):
    wanted = logits(llama)
    (llama / name).parent.mkdir(exist_ok=True)
    (llama / name).write_text('model_checkpoint_path: "tf_model"\n')
    np.testing.assert_array_equal(logits(llama), wanted)


def test_refusals_name_the_cause(tmp_path, llama):
    (llama / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    assert "an adapter of 'org/base', not a model: merge the two" in refusal(llama)
    (llama / "adapter_config.json").unlink()
    change(llama, quantization_config={"quant_method": "fp8"})
    assert "weights quantised with 'fp8'" in refusal(llama)
    hub = tmp_path / "models--org--name"
    shutil.copytree(GOLDEN / "llama", hub / "snapshots" / "1a2b")
    (hub / "refs").mkdir()
    for path in (hub, hub / "snapshots"):
        assert f"the hub's cache; name a snapshot in it: {hub}/snapshots/1a2b" in refusal(path)
    assert logits(hub / "snapshots" / "1a2b").shape == (1, 6, 384)
    (llama / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    (tmp_path / "x.gguf").write_bytes((llama / "model.safetensors").read_bytes())
    change(llama, quantization_config=None)
    for path in (llama, tmp_path / "x.gguf"):
        assert "it is Git LFS's pointer to one (git lfs pull)" in refusal(path)
    (tmp_path / "ggufs").mkdir()
    values, weights = tiny_gguf.metadata(GOLDEN / "llama"), tiny_gguf.weights(GOLDEN / "llama")
    file = tiny_gguf.write(tmp_path / "ggufs" / "x-00001-of-00002.gguf", values | {"split.count": 2, "split.no": 0}, weights)
    assert f"but GGUF files; name one of them: {file}" in refusal(tmp_path / "ggufs")
    assert "x-00002-of-00002.gguf" in refusal(file)


# Positions.


def decode(folder, bucket: int, tokens: int):
    config = DecodingConfig(gamma=0, temperature=0.0, max_decode_tokens=tokens, num_slots=1, input_buckets=(bucket,))
    return Generator(decoding.load_model(str(folder)), None, config).generate([[5] * bucket], ["a"])


@pytest.mark.parametrize(
    "keys",
    [
        {"max_position_embeddings": 12},
        {"max_position_embeddings": 6, "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
        {"model_type": "mistral", "max_position_embeddings": 12, "sliding_window": 4},
    ],
)
def test_inputs_and_outputs_have_to_fit_and_nothing_more(llama, keys):
    change(llama, **keys)
    decode(llama, 4, 8)
    with pytest.raises(ValueError, match="of up to 5 tokens and .* of 8 need 13 positions; the model has 12"):
        decode(llama, 5, 8)
    with pytest.raises(ValueError, match="has 13 positions; allowed: at most the model's 12"):
        decoding.load_model(str(llama)).logits(np.zeros((1, 13), np.int32))


def test_a_position_table_is_used_to_its_end(tmp_path):
    """A GPT-2 of 12 positions takes 4 + 8, with a draft of as many; its last tokens are those of the whole table."""
    shutil.copytree(GOLDEN / "gpt2", tmp_path / "cut")
    change(tmp_path / "cut", n_positions=12, n_ctx=12)
    name, file = "transformer.wpe.weight", tmp_path / "cut" / "model.safetensors"
    tensors = load_file(file)
    save_file(tensors | {name: tensors[name][:12].copy()}, file)
    whole = decode(GOLDEN / "gpt2", 4, 8)[0].tokens.tolist()
    assert decode(tmp_path / "cut", 4, 8)[0].tokens.tolist() == whole
    model = decoding.load_model(str(tmp_path / "cut"))
    config = DecodingConfig(gamma=3, temperature=0.0, max_decode_tokens=8, num_slots=2, input_buckets=(4,))
    assert Generator(model, model, config).generate([[5] * 4], ["a"])[0].tokens.tolist() == whole
    with pytest.raises(ValueError, match="need 13 positions"):
        decode(tmp_path / "cut", 4, 9)


def test_which_layers_have_a_window():
    qwen = {
        "model_type": "qwen2", "vocab_size": 10, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2,
        "num_attention_heads": 2, "eos_token_id": 1, "sliding_window": 4,
    }  # fmt: skip
    for keys, windows in (
        ({"use_sliding_window": False}, ()),
        ({"use_sliding_window": True}, ()),  # max_window_layers is 28 by default: the first 28 layers have none
        ({"use_sliding_window": True, "max_window_layers": 2}, ()),
        ({"use_sliding_window": True, "max_window_layers": 1}, (0, 4)),
        ({"use_sliding_window": True, "layer_types": ["full_attention"] * 2, "max_window_layers": 0}, ()),
        ({"use_sliding_window": True, "max_window_layers": 0}, (4, 4)),
        ({"layer_types": ["full_attention", "sliding_attention"], "use_sliding_window": True}, (0, 4)),
        ({"model_type": "mistral", "sliding_window": None}, ()),
        ({"model_type": "mistral"}, (4, 4)),
        ({"model_type": "llama"}, ()),
    ):
        config = parse_config(qwen | keys, "")
        assert config.windows == windows and config.max_positions == 0, keys
