"""Broken checkpoints: whatever lies in a header or a config, the outcome is a checkpoint or one line that says what is wrong.

Each file is mutated in two ways: its bytes (cut, flipped, filled with others) and, where it holds JSON or metadata, its
values (another type, another size, absent). Nothing else may come out, take 10 seconds, or write a file.
"""

import contextlib
import json
import pathlib
import random
import resource
import shutil
import time

import gguf
import numpy as np
import pytest
from flax import serialization

import decoding
from decoding import CheckpointError
from decoding.checkpoints import find_checkpoint
from tests.support import tiny_gguf, tiny_t5
from transforms.tokenize import TokenizerError, load_tokenizer

T5X = {
    "model_type": "t5", "vocab_size": 384, "d_model": 48, "d_kv": 16, "d_ff": 96, "num_layers": 2, "num_decoder_layers": 3,
    "num_heads": 4, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False,
}  # fmt: skip
GOLDEN = pathlib.Path(__file__).parent.parent / "testdata" / "golden"
INPUTS, SECONDS = 1000, 10.0
MEMORY = 1 << 30  # bytes more than before

VALUES = (
    None, True, False, 0, 1, -1, 2, 3, 7, 2**31, 2**63, 10**9, 10**30, 0.5, -0.0, float("nan"), float("inf"), "", "x", "1",
    "é\x00",
    "../../x", "/etc/passwd", [], [0], [1, 2], [None], [[]], [2**40, 2**40], {}, {"a": 1}, {"": None}, [-1, 4], ["a"], 1e308,
)  # fmt: skip


def mutated_bytes(random_: random.Random, data: bytes) -> bytes:
    head = min(len(data), random_.choice([16, 64, 512, len(data)]))
    changed = bytearray(data)
    for _ in range(random_.choice([1, 1, 2, 8])):
        kind, at = random_.randrange(6), random_.randrange(max(head, 1))
        if kind == 0:
            changed = changed[:at]
        elif kind == 1 and at < len(changed):
            changed[at] ^= 1 << random_.randrange(8)
        elif kind == 2:
            changed[at : at + 8] = random_.choice([0, 1, 2**31, 2**40, 2**63, 2**64 - 1]).to_bytes(8, "little")
        elif kind == 3:
            changed[at:at] = random_.randbytes(random_.choice([1, 4, 100]))
        elif kind == 4:
            changed[at : at + random_.choice([1, 8, 64])] = b""
        else:
            changed = bytearray(random_.randbytes(random_.choice([0, 1, 7, 8, 9, 64])))
    return bytes(changed)


def mutated_json(random_: random.Random, value):
    """A copy with one value in it, or itself, changed."""
    if isinstance(value, dict) and value and random_.random() < 0.95:
        key, found = random_.choice(list(value)), dict(value)
        kind = random_.random()
        if kind < 0.1:
            del found[key]
        elif kind < 0.15:
            found[random_.choice(["", "x", key + "x"])] = found.pop(key)
        else:
            found[key] = mutated_json(random_, value[key])
        return found
    if isinstance(value, list) and value and random_.random() < 0.6:
        at = random_.randrange(len(value))
        return [*value[:at], mutated_json(random_, value[at]), *value[at + 1 :]]
    return random_.choice(VALUES)


def mutated_object(random_: random.Random, value: dict) -> bytes:
    for _ in range(random_.choice([1, 1, 2, 3])):
        value = mutated_json(random_, value)
    data = json.dumps(value).encode()
    return mutated_bytes(random_, data) if random_.random() < 0.15 else data


def outcome(call, allowed=(CheckpointError,)) -> str:
    """"loads", or the kind of refusal; fails on any other outcome."""
    began = time.process_time()
    try:
        call()
    except allowed as error:
        assert str(error) and "\n" not in str(error) and len(str(error)) < 5000, str(error)
        return "refused"
    finally:
        assert time.process_time() - began < SECONDS
    return "loads"


@contextlib.contextmanager
def nothing_else(folder: pathlib.Path):
    """No file is made or removed, and memory does not explode."""
    files, peak = sorted(folder.rglob("*")), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert sorted(folder.rglob("*")) == files
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) * 1024 < MEMORY


def run(folder: pathlib.Path, file: pathlib.Path, make, call, allowed=(CheckpointError,), inputs=INPUTS):
    """Tries what `make` makes of one file; some must be refused, and the file as it was must load."""
    good = file.read_bytes()
    assert outcome(call, allowed) == "loads"
    seen, last = {"loads": 0, "refused": 0}, b""
    with nothing_else(folder):
        for seed in range(inputs):
            last = make(random.Random(seed))
            file.write_bytes(last)
            try:
                seen[outcome(call, allowed)] += 1
            except BaseException as error:
                raise AssertionError(f"seed {seed}: {last[:400]!r}") from error
    file.write_bytes(good)
    assert seen["refused"] > inputs // 20, seen


@pytest.fixture(scope="module")
def t5(tmp_path_factory) -> pathlib.Path:
    shape = tiny_t5.config(12)
    folder = pathlib.Path(tiny_t5.write(tmp_path_factory.mktemp("fuzz") / "t5", shape, tiny_t5.weights(shape, 0)))
    special = {"eos_token_id": [1, 2], "decoder_start_token_id": 0, "pad_token_id": 0}
    (folder / "generation_config.json").write_text(json.dumps(special))
    return folder


@pytest.fixture(scope="module")
def decoder_only(tmp_path_factory) -> dict[str, pathlib.Path]:
    root = tmp_path_factory.mktemp("fuzz")
    return {name: pathlib.Path(shutil.copytree(GOLDEN / name, root / name)) for name in ("llama", "gpt2")}


def inspect(folder):
    return lambda: decoding.inspect_checkpoint(str(folder))


@pytest.mark.slow
def test_safetensors_headers(t5):
    file = t5 / "model.safetensors"
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header, rest = json.loads(data[8 : 8 + length]), data[8 + length :]

    def make(random_):
        if random_.random() < 0.4:
            return mutated_bytes(random_, data)
        text = mutated_object(random_, header)
        return len(text).to_bytes(8, "little") + text + rest

    def load():
        for _, value in find_checkpoint(str(t5)).parameters(np.dtype("float32")):
            value.sum()

    run(t5, file, make, load)


@pytest.mark.slow
def test_safetensors_indexes(t5, tmp_path):
    folder = pathlib.Path(shutil.copytree(t5, tmp_path / "t5"))
    file = folder / "model.safetensors.index.json"
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    index = {"metadata": {"total_size": 1}, "weight_map": {"shared.weight": "model-00001-of-00001.safetensors"}}
    file.write_text(json.dumps(index))
    run(folder, file, lambda random_: mutated_object(random_, index), inspect(folder))


@pytest.mark.slow
@pytest.mark.parametrize("family", ["t5", "llama", "gpt2", "qwen2"])
def test_configs(t5, decoder_only, family):
    folder = t5 if family == "t5" else decoder_only["llama" if family == "qwen2" else family]
    file = folder / "config.json"
    good, config = file.read_bytes(), json.loads(file.read_bytes())
    more = {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                             "original_max_position_embeddings": 64},
            "sliding_window": 4096, "layer_types": ["full_attention"] * 2}  # fmt: skip
    try:
        if family == "qwen2":
            config |= {"model_type": "qwen2", "use_sliding_window": True, "rope_parameters": None, **more}
        file.write_text(json.dumps(config))
        run(folder, file, lambda random_: mutated_object(random_, config), inspect(folder))
    finally:
        file.write_bytes(good)


@pytest.mark.slow
def test_generation_configs(t5):
    file = t5 / "generation_config.json"
    config = json.loads(file.read_bytes()) | {"bos_token_id": 3, "forced_bos_token_id": 4, "forced_eos_token_id": 1}
    run(t5, file, lambda random_: mutated_object(random_, config), inspect(t5))


@pytest.mark.slow
def test_tokenizer_configs_beside_weights(t5):
    file = t5 / "tokenizer_config.json"
    config = {"eos_token": {"content": "</s>"}, "added_tokens_decoder": {"1": {"content": "</s>", "special": True}}}
    file.write_text(json.dumps(config))
    run(t5, file, lambda random_: mutated_object(random_, config), inspect(t5))
    file.unlink()


TOKENIZER_FILES = ("tokenizer_config.json", "added_tokens.json", "special_tokens_map.json", "tokenizer.json", "spiece.model")


@pytest.mark.slow
@pytest.mark.parametrize("name", TOKENIZER_FILES)
def test_tokenizer_files(tmp_path, name):
    import sentencepiece
    import tokenizers

    words = tokenizers.Tokenizer(tokenizers.models.BPE({"<unk>": 0, "a": 1, "b": 2, "ab": 3}, [("a", "b")]))
    words.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel()
    words.decoder = tokenizers.decoders.ByteLevel()
    words.add_special_tokens(["</s>"])
    with open(tmp_path / "spiece.model", "wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(["a b c"] * 9), model_writer=file, vocab_size=300, byte_fallback=True,
            pad_id=0, eos_id=1, unk_id=2, bos_id=-1, hard_vocab_limit=False, minloglevel=2,
        )  # fmt: skip
    size = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "spiece.model")).GetPieceSize()
    added = {"content": "<x>", "lstrip": False, "normalized": False, "rstrip": True, "single_word": False, "special": True}
    about = {
        "tokenizer_config.json": {"tokenizer_class": "T5Tokenizer", "extra_ids": 2, "legacy": False, "add_bos_token": True,
                                  "bos_token": "</s>", "additional_special_tokens": ["<y>", added], "eos_token": added,
                                  "added_tokens_decoder": {str(size): added}, "add_prefix_space": True},
        "added_tokens.json": {"<z>": size, "{": size + 1},
        "special_tokens_map.json": {"eos_token": "</s>", "pad_token": added, "additional_special_tokens": ["<y>"]},
        "tokenizer.json": json.loads(words.to_str()),
    }  # fmt: skip
    if name in about:
        (tmp_path / name).write_text(json.dumps(about[name]))
    data = (tmp_path / name).read_bytes()

    def make(random_):
        if name in about and random_.random() < 0.7:
            return mutated_object(random_, about[name])
        return mutated_bytes(random_, data)

    def use():
        tokenizer = load_tokenizer(str(tmp_path))
        tokenizer.pieces()
        with contextlib.suppress(Exception):  # of one text: the error of a record
            tokenizer.decode(tokenizer.encode("a <x> b </s>{"))

    run(tmp_path, tmp_path / name, make, use, (TokenizerError,), inputs=INPUTS // 2 if name == "spiece.model" else INPUTS)


@pytest.mark.slow
def test_gguf_headers(tmp_path):
    values = tiny_gguf.metadata(GOLDEN / "llama") | {"tokenizer.ggml.tokens": ["<s>", "a"], "llama.context_length": 64}
    weights = {name: tensor[:1] for name, tensor in tiny_gguf.weights(GOLDEN / "llama").items()}
    weights |= {name: tensor for name, tensor in tiny_gguf.weights(GOLDEN / "llama").items() if name == "token_embd.weight"}
    file = pathlib.Path(tiny_gguf.write(tmp_path / "x.gguf", values, weights))
    data = file.read_bytes()
    reader = gguf.GGUFReader(file)
    header = reader.data_offset

    def make(random_):
        if random_.random() < 0.2:
            return mutated_bytes(random_, data)
        return mutated_bytes(random_, data[:header]) + data[header:]

    run(tmp_path, file, make, inspect(file))


@pytest.mark.slow
def test_t5x_indexes_and_array_metadata(tmp_path):
    source = GOLDEN / "t5x_tiny" / "checkpoint_0"
    folder = pathlib.Path(shutil.copytree(source, tmp_path / "checkpoint_0"))
    call = lambda: decoding.inspect_checkpoint(str(folder), architecture=T5X)
    index = serialization.msgpack_restore((folder / "checkpoint").read_bytes())

    def make_index(random_):
        if random_.random() < 0.5:
            return mutated_bytes(random_, (source / "checkpoint").read_bytes())
        with contextlib.suppress(Exception):
            return serialization.msgpack_serialize(mutated_json(random_, index))
        return b""

    run(folder, folder / "checkpoint", make_index, call, inputs=INPUTS // 2)
    array = sorted(folder.glob("target.*/.zarray"))[0]
    about = json.loads(array.read_bytes())
    run(folder, array, lambda random_: mutated_object(random_, about), call, inputs=INPUTS // 2)


@pytest.mark.slow
def test_orbax_stores(tmp_path):
    from pipeline.convert import convert

    convert(str(GOLDEN / "gpt2"), str(tmp_path / "orbax"))
    manifest = min((tmp_path / "orbax").rglob("manifest.ocdbt"), key=lambda file: len(file.parts))
    data = manifest.read_bytes()
    run(tmp_path, manifest, lambda random_: mutated_bytes(random_, data), inspect(tmp_path / "orbax"), inputs=INPUTS // 2)
