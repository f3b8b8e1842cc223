"""What the families' configs say: tables of relative positions per layer, rotary frequencies, and what is refused."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file

import decoding
from decoding import CheckpointError
from decoding.checkpoints.architecture import parse_config
from decoding.checkpoints.presets import PRESETS
from decoding.models.decoder_only import Rotary
from tests.support import tiny_t5

LLAMA = {
    "model_type": "llama",
    "vocab_size": 10,
    "hidden_size": 64,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "eos_token_id": 2,
}
GPT2 = {"model_type": "gpt2", "vocab_size": 10, "n_embd": 8, "n_head": 2, "n_layer": 1, "n_positions": 16, "eos_token_id": 1}


@pytest.fixture(scope="module")
def umt5(golden):
    arrays = dict(np.load(golden / "umt5" / "golden.npz"))
    return decoding.load_model(str(golden / "umt5")), arrays, arrays["attention_mask"].sum(axis=1).astype(np.int32)


def test_umt5_logits(umt5):
    model, arrays, lengths = umt5
    logits = np.asarray(model.logits(arrays["decoder_input_ids"], arrays["input_ids"], lengths))
    assert np.abs(logits - arrays["logits"]).max() < 1e-4


def test_umt5_greedy_tokens_with_ragged_rows(umt5):
    """The draft is the target, so every block of 3 is kept and the rows end at their own times."""
    model, arrays, lengths = umt5
    config = decoding.DecodingConfig(gamma=3, temperature=0.0, max_decode_tokens=24, num_slots=2, input_buckets=(40,))
    inputs = [row[:length].tolist() for row, length in zip(arrays["input_ids"], lengths)]
    for result, wanted in zip(decoding.Generator(model, model, config).generate(inputs, ["a", "b"]), arrays["greedy"]):
        np.testing.assert_array_equal(result.tokens, wanted[1 : 1 + len(result.tokens)])
        assert np.all(result.accepted[:-1] == 3)


# transformers 5.23's ROPE_INIT_FUNCTIONS for heads of 16.
FREQUENCIES = {
    "linear": (
        {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0},
        [0.25, 0.07905694, 0.025, 0.007905695, 0.0025, 0.00079056947, 0.00025, 7.9056947e-05],
    ),
    "llama3": (
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
            "rope_theta": 500000.0,
        },
        [1.0, 0.079403013, 0.0047007538, 0.00091158313, 0.00017677668, 3.4281024e-05, 6.6478697e-06, 1.2891732e-06],
    ),
}


@pytest.mark.parametrize("kind", FREQUENCIES)
def test_rotary_frequencies_agree_with_the_reference_in_both_forms_of_config(kind):
    newer, wanted = FREQUENCIES[kind]
    older = {key: value for key, value in newer.items() if key != "rope_theta"}
    older["type"] = older.pop("rope_type")
    for raw in ({"rope_parameters": newer}, {"rope_scaling": older, "rope_theta": newer["rope_theta"]}):
        config = parse_config(LLAMA | raw, "config")
        np.testing.assert_allclose(config.rotary.frequencies(config.head_dim), wanted, rtol=1e-6)
    assert parse_config(LLAMA | {"rope_scaling": None}, "config").rotary == Rotary()


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (LLAMA | {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "'yarn'.*default, linear, llama3"),
        (LLAMA | {"rope_scaling": {"type": "dynamic", "factor": 4.0}}, "'dynamic'"),
        (LLAMA | {"rope_parameters": {"rope_type": "longrope"}}, "'longrope'"),
        (LLAMA | {"rope_scaling": {"rope_type": "linear"}}, "config lacks 'factor'"),
        (LLAMA | {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        (LLAMA | {"model_type": "mistral", "sliding_window": "wide"}, "sliding_window is 'wide'"),
        (LLAMA | {"model_type": "qwen3", "layer_types": ["full_attention", "sliding_attention"]}, "sliding_window is None"),
        (LLAMA | {"layer_types": ["chunked_attention"]}, "chunked_attention.*supported: full and sliding"),
        (LLAMA | {"eos_token_id": 10}, "end token is 10; allowed: 0 to 9"),
        (LLAMA | {"eos_token_id": None}, "end token is None"),
        ({key: LLAMA[key] for key in LLAMA if key != "eos_token_id"} | {"model_type": "qwen2"}, "end token is None"),
        (LLAMA | {"hidden_act": "mish"}, "hidden_act is 'mish'.*silu"),
        (LLAMA | {"quantization_config": {"bits": 4}}, "quantised"),
        (LLAMA | {"model_type": "gemma3"}, "'gemma3'; supported: t5, mt5, umt5, bart, mbart"),
        (LLAMA | {"num_attention_heads": "four"}, "cannot be used"),
        (LLAMA | {"num_attention_heads": 0}, "num_heads is 0|cannot be used"),
        (LLAMA | {"num_hidden_layers": 10**9}, "num_layers is 1000000000; allowed: whole numbers from 1 to 1000"),
        (LLAMA | {"num_hidden_layers": 1.5}, "num_layers is 1.5"),
        (LLAMA | {"rms_norm_eps": "small"}, "norm_epsilon is .small."),
        (LLAMA | {"tie_word_embeddings": "yes"}, "tied is .yes."),
        ({key: value for key, value in LLAMA.items() if key != "hidden_size"}, "lacks 'hidden_size'"),
        (GPT2 | {"scale_attn_by_inverse_layer_idx": True}, "attention scores"),
        (GPT2 | {"activation_function": "tanh"}, "activation_function is 'tanh'"),
        ({key: value for key, value in GPT2.items() if key != "n_embd"}, "lacks 'n_embd'"),
    ],
)
def test_what_is_not_supported_is_refused(raw, said):
    with pytest.raises(CheckpointError, match=said):
        parse_config(raw, "here")


def test_differences_of_the_llama_family():
    qwen2 = parse_config(LLAMA | {"model_type": "qwen2"}, "")
    assert (qwen2.qkv_bias, qwen2.out_bias, qwen2.qk_norm) == (True, False, False)
    qwen3 = parse_config(LLAMA | {"model_type": "qwen3", "head_dim": 32, "num_key_value_heads": 2}, "")
    assert (qwen3.qkv_bias, qwen3.qk_norm, qwen3.head_dim, qwen3.num_kv_heads) == (False, True, 32, 2)
    biased = parse_config(LLAMA | {"attention_bias": True, "mlp_bias": True}, "")
    assert biased.qkv_bias and biased.out_bias and biased.feed_forward_bias
    assert parse_config(GPT2 | {"activation_function": "gelu_pytorch_tanh"}, "").activation == "gelu_new"
    assert parse_config(LLAMA | {"model_type": "mistral", "sliding_window": None}, "").position == "rotary"


def test_gpt2_by_the_names_of_openais_checkpoints(golden, tmp_path):
    tensors = load_file(golden / "gpt2" / "model.safetensors")
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    buffer = {"h.0.attn.bias": np.ones((1, 1, 4, 4), np.float32)}
    tiny_t5.write(tmp_path, json.loads((golden / "gpt2" / "config.json").read_text()), tensors | buffer)
    text = np.arange(6, dtype=np.int32)[None]
    wanted = decoding.load_model(str(golden / "gpt2")).logits(text)
    np.testing.assert_array_equal(decoding.load_model(str(tmp_path)).logits(text), wanted)


def test_lamda_has_no_safetensors(tmp_path):
    tiny_t5.write(tmp_path / "model", {}, {"a": np.zeros(1, np.float32)})
    (tmp_path / "model" / "config.json").write_text(json.dumps(PRESETS["lamda-100m"]))
    with pytest.raises(CheckpointError, match="T5X and Orbax"):
        decoding.load_model(str(tmp_path / "model"))


def test_of_several_end_tokens_the_tokenisers_own_is_first(tmp_path, golden):
    """As in Llama 3's instruct models; it ends references that are scored."""
    shutil.copytree(golden / "llama", tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text()) | {"eos_token_id": [7, 8, 9]}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    (tmp_path / "model" / "generation_config.json").unlink()
    assert decoding.inspect_checkpoint(str(tmp_path / "model")).eos_ids == (7, 8, 9)
    added = {str(i): {"content": f"<{i}>"} for i in (5, 7, 8)}
    for named, expected in (("<8>", 8), ({"content": "<8>"}, 8), ("<5>", 7)):
        tokenizer = {"eos_token": named, "added_tokens_decoder": added}
        (tmp_path / "model" / "tokenizer_config.json").write_text(json.dumps(tokenizer))
        assert decoding.inspect_checkpoint(str(tmp_path / "model")).eos_id == expected
