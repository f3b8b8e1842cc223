"""pipeline.convert: what it writes loads to the same bits, and runs as a job's model."""

import json
import pathlib
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import decoding
from decoding.checkpoints import CheckpointError, architecture, find_checkpoint, orbax
from decoding.models.decoder_only import DecoderOnly
from pipeline import convert
from pipeline.job import preflight
from tests.support import tiny_tokenizers
from transforms.tokenize import load_tokenizer

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAIR = ROOT / "examples" / "models" / "ende_software"
T5X = {
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
LAMDA = {
    "model_type": "lamda",
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "head_dim": 8,
    "intermediate_size": 128,
    "tie_word_embeddings": False,
    "eos_token_id": 1,
}


def load_plain(path: str, **settings):
    """Plain arrays, which tests look at."""
    return decoding.load_model(path, weights="plain", **settings)


def parameters(model) -> dict[str, np.ndarray]:
    return {".".join(map(str, keys)): np.asarray(leaf[...]) for keys, leaf in nnx.to_flat_state(nnx.state(model))}


def logits(model) -> np.ndarray:
    tokens = np.arange(2, 14, dtype=np.int32).reshape(2, 6)
    encoder = (tokens[:, ::-1], np.array([6, 3], np.int32)) if model.encoder_decoder else ()
    return np.asarray(model.logits(tokens, *encoder))


def refusal(*args, **kwargs) -> str:
    with pytest.raises(CheckpointError) as error:
        convert.convert(*map(str, args), **kwargs)
    return str(error.value)


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("marian", "gemma2")]
SOAK = [pytest.param(name, marks=pytest.mark.soak) for name in ("m2m_100", "bart", "gpt_neox", "opt")]


@pytest.mark.parametrize("name", ["t5_v1_1_target", "t5_v1_0", "umt5", "gpt2", "llama", "t5x_tiny", *SLOW, *SOAK])
def test_logits_are_the_same_bits(golden, tmp_path, name):
    given = T5X if name == "t5x_tiny" else None
    model = load_plain(str(golden / name), architecture=given)
    count, _ = convert.convert(str(golden / name), str(tmp_path / "out"), architecture=given, dtype="float32")
    assert count == sum(value.size for value in parameters(model).values())
    converted = load_plain(str(tmp_path / "out"))
    assert converted.config == model.config
    np.testing.assert_array_equal(logits(converted), logits(model))


def test_tokenisers_of_several_files_stay_whole(golden, tmp_path):
    for family, write in (("marian", tiny_tokenizers.write_marian), ("opt", tiny_tokenizers.write_opt)):
        folder, output = tmp_path / family, tmp_path / f"{family}_converted"
        shutil.copytree(golden / family, folder)
        write(folder)
        convert.convert(str(folder), str(output))
        before, after = load_tokenizer(str(folder)), load_tokenizer(str(output))
        assert after.sha256 == before.sha256 and after.begin == before.begin


def test_bfloat16_is_half_as_large_and_loads_as_either(golden, tmp_path):
    source, output = str(golden / "llama"), str(tmp_path / "out")
    convert.convert(source, output)
    assert find_checkpoint(output).raw["model_type"] == "llama"
    half = load_plain(output, dtype="bfloat16")
    np.testing.assert_array_equal(logits(half), logits(load_plain(source, dtype="bfloat16")))
    for name, value in parameters(load_plain(output)).items():
        assert value.dtype == np.float32
        np.testing.assert_array_equal(value, parameters(half)[name].astype(np.float32))


def test_a_model_larger_than_a_group_is_written_in_parts(golden, tmp_path, monkeypatch):
    monkeypatch.setattr(orbax, "_GROUP_BYTES", 40_000)  # of 350,000
    convert.convert(str(golden / "gpt2"), str(tmp_path / "out"), dtype="float32")
    converted = parameters(load_plain(str(tmp_path / "out")))
    for name, value in parameters(load_plain(str(golden / "gpt2"))).items():
        np.testing.assert_array_equal(converted[name], value)


@pytest.mark.slow
def test_lamdas_shape_goes_through_orbax_and_decodes(tmp_path):
    """No weights of this shape are published, so a random model is written; speculation keeps its greedy tokens."""
    config = architecture.parse_config(LAMDA, "")
    model = DecoderOnly(config, rngs=nnx.Rngs(3))
    assert parameters(model)["relative"].shape == (32, 4)
    orbax.write(str(tmp_path / "lamda"), LAMDA, parameters(model).items())
    loaded = load_plain(str(tmp_path / "lamda"))
    assert decoding.inspect_checkpoint(str(tmp_path / "lamda")).family == "lamda"
    np.testing.assert_array_equal(logits(loaded), logits(model))
    prompts = [[3, 4, 5, 6, 7], [9, 8]]
    settings = decoding.DecodingConfig(gamma=3, temperature=0.0, max_decode_tokens=10, num_slots=2, input_buckets=(8,))
    results = decoding.Generator(loaded, loaded, settings).generate(prompts, ["a", "b"])
    whole = np.zeros((2, 15), np.int32)
    for row, prompt, result in zip(whole, prompts, results):
        text = prompt + result.tokens.tolist()
        row[: len(text)] = text
    best = np.asarray(model.logits(jnp.asarray(whole))).argmax(-1)
    for row, prompt, result in zip(best, prompts, results):  # each is the argmax of one pass over the whole text
        assert result.tokens.tolist() == row[len(prompt) - 1 :][: len(result.tokens)].tolist()
        assert len(result.tokens) == 10 or result.tokens[-1] == loaded.eos_id


def test_as_a_command_and_as_the_model_of_a_job(tmp_path):
    """In a process of its own, where an import of TensorFlow would be seen; the tokeniser comes along."""
    trap = tmp_path / "trap"
    trap.mkdir()
    (trap / "tensorflow.py").write_text("import os; print('TensorFlow was imported', flush=True); os._exit(77)")
    output = tmp_path / "draft"
    command = [sys.executable, "-m", "pipeline.convert", f"--model={PAIR}/draft", f"--output={output}"]
    environment = {"PYTHONPATH": f"{trap}:{ROOT}", "PATH": "/usr/bin:/bin", "JAX_PLATFORMS": "cpu"}
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert "parameters in bfloat16, with generation_config.json, spiece.model" in run.stdout
    assert (output / "spiece.model").read_bytes() == (PAIR / "draft" / "spiece.model").read_bytes()
    assert sorted(path.name for path in output.iterdir()) == [
        "config.json",
        "generation_config.json",
        "orbax",
        "spiece.model",
    ]
    info = decoding.inspect_checkpoint(str(output))
    assert info == decoding.CheckpointInfo(
        **vars(decoding.inspect_checkpoint(f"{PAIR}/draft")) | {"weight_files": info.weight_files}
    )
    identity = preflight.model_identity(str(output), info)
    assert len(identity) == 2 + len(info.weight_files) and "orbax/_CHECKPOINT_METADATA" in identity


def test_what_is_refused(golden, tmp_path, capsys):
    out = tmp_path / "out"
    assert "nowhere" in refusal(tmp_path / "nowhere", out)
    assert "name the architecture" in refusal(golden / "t5x_tiny", out)
    assert "'huge'" in refusal(golden / "t5x_tiny", out, architecture="huge")
    assert "--tokenizer" in refusal(golden / "gpt2", out, tokenizer="pieces.bin")
    assert not out.exists()
    convert.convert(str(golden / "gpt2"), str(out))
    assert "holds orbax and config.json already" in refusal(golden / "llama", out)
    for args, said in [
        ([], "--model and --output must be given"),
        ([f"--model={golden}/gpt2", f"--output={out}"], "already"),
        ([f"--model={golden}/gpt2", f"--output={out}", "--dtype=float16"], "float16"),
        ([f"--model={golden}/gpt2", f"--output={out}", "--speed=9"], "speed"),
        ([f"--model={golden}/gpt2", f"--output={out}", "x"], "unknown arguments: x"),
        ([f"--model={golden}/t5x_tiny", f"--output={out}2", "--architecture={"], "not a JSON object"),
    ]:
        assert convert.main(args) == 2
        assert said in capsys.readouterr().err
    given = f"--architecture={json.dumps(T5X)}"
    assert convert.main([f"--model={golden}/t5x_tiny", f"--output={out}2", given]) == 0
    assert "205,264 parameters" in capsys.readouterr().out


def test_an_interrupted_conversion_leaves_no_model_and_can_be_repeated(golden, tmp_path, monkeypatch):
    monkeypatch.setattr(orbax, "_GROUP_BYTES", 40_000)
    checkpoint, out = find_checkpoint(str(golden / "gpt2")), str(tmp_path / "out")

    def breaks():
        for i, parameter in enumerate(checkpoint.parameters(np.float32)):
            if i == 12:
                raise OSError("the line is down")
            yield parameter

    with pytest.raises(OSError, match="line is down"):
        orbax.write(out, checkpoint.raw, breaks())
    with pytest.raises(CheckpointError):
        load_plain(out)
    convert.convert(str(golden / "gpt2"), out, dtype="float32")
    np.testing.assert_array_equal(logits(load_plain(out)), logits(load_plain(str(golden / "gpt2"))))


def test_damaged_orbax_checkpoints_are_refused(golden, tmp_path):
    out = tmp_path / "out"
    convert.convert(str(golden / "gpt2"), str(out), dtype="float32")

    def load(path=out) -> str:
        with pytest.raises(CheckpointError) as error:
            load_plain(str(path))
        return str(error.value)

    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | {"n_inner": 100}))
    assert "blocks.0.wi.kernel: the file has [48, 192], the config says [48, 100]" in load()
    (out / "config.json").write_text(json.dumps(config | {"n_layer": 1}))
    assert "unexpected weight blocks.1.qkv.kernel" in load()
    (out / "config.json").unlink()
    assert "config.json" in load()
    (out / "config.json").write_text(json.dumps(config))
    for file in (out / "orbax").rglob("d/*"):
        file.unlink()
    assert str(out / "orbax") in load()
    shutil.rmtree(out / "orbax")
    (out / "orbax").mkdir()
    assert "not a finished Orbax checkpoint" in load()


def test_only_a_group_of_weights_is_held(golden, tmp_path, monkeypatch):
    """Each parameter is let go before the group after the next is begun."""
    import weakref

    monkeypatch.setattr(orbax, "_GROUP_BYTES", 40_000)
    alive, most = [], 0
    checkpoint = find_checkpoint(str(golden / "gpt2"))

    def watched():
        nonlocal most
        for path, value in checkpoint.parameters(jnp.bfloat16):
            alive.append(weakref.ref(value))
            most = max(most, sum(ref().nbytes for ref in alive if ref() is not None))
            yield path, value
            del value

    count = orbax.write(str(tmp_path / "out"), checkpoint.raw, watched())
    largest = max(leaf.size for leaf in jax.tree.leaves(nnx.state(load_plain(str(golden / "gpt2")))))
    assert most <= 40_000 + 2 * 2 * largest < count * 2
