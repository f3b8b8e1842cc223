"""Which tokens start, end and are forced into a text: what the files say, and that the decoder does it."""

import json
import pathlib
import shutil

import numpy as np
import pytest

import decoding
from decoding import CheckpointError, DecodingConfig, Generator
from decoding.models.forced import with_forced_tokens
from tests.support import tiny_t5
from tests.support.scripted import Scripted, random_script

GOLDEN = pathlib.Path(__file__).parent.parent / "testdata" / "golden"


@pytest.fixture
def llama(tmp_path) -> pathlib.Path:
    shutil.copytree(GOLDEN / "llama", tmp_path / "llama")
    (tmp_path / "llama" / "generation_config.json").unlink()
    return tmp_path / "llama"


def say(folder: pathlib.Path, name: str, **keys) -> None:
    file = folder / name
    file.write_text(json.dumps((json.loads(file.read_text()) if file.exists() else {}) | keys))


def test_generation_config_goes_before_config(llama):
    say(llama, "config.json", eos_token_id=[3, 4], bos_token_id=5)
    info = decoding.inspect_checkpoint(str(llama))
    assert (info.eos_ids, info.start_id) == ((3, 4), 5)
    say(llama, "generation_config.json", eos_token_id=[7, 8, 7, 100_000], bos_token_id=6)
    info = decoding.inspect_checkpoint(str(llama))
    assert (info.eos_ids, info.eos_id, info.start_id) == ((7, 8), 7, 6)
    say(llama, "generation_config.json", eos_token_id=None, bos_token_id=None)
    assert decoding.inspect_checkpoint(str(llama)).eos_ids == (3, 4)
    say(llama, "config.json", eos_token_id=8)  # what config.json alone knows ends inputs and references
    say(llama, "generation_config.json", eos_token_id=[7, 8])
    assert decoding.inspect_checkpoint(str(llama)).eos_ids == (8, 7)


@pytest.mark.parametrize("value", ["</s>", [[2]], {"a": 1}, True, -1, 2.0, []])
def test_end_tokens_that_are_none(llama, value):
    say(llama, "generation_config.json", eos_token_id=value)
    with pytest.raises(CheckpointError, match="the end token is .*; allowed: 0 to 383"):
        decoding.inspect_checkpoint(str(llama))


@pytest.mark.parametrize("gamma", [pytest.param(0, marks=pytest.mark.slow), 3])
def test_each_end_token_ends_a_text(gamma):
    """Greedy over a script: cut after whichever comes first, and the same tokens up to there."""
    table = np.asarray(random_script(5).table[...])

    def decoded(eos_ids):
        target = Scripted(table, eos_ids=eos_ids)
        config = DecodingConfig(gamma=gamma, temperature=0.0, max_decode_tokens=12, num_slots=4, input_buckets=(8,))
        inputs = [[2, 3], [4], [5, 5, 5], [3, 1], [2, 2]]
        draft = random_script(6) if gamma else None
        return Generator(target, draft, config).generate(inputs, list("abcde"))

    endless = [row.tokens.tolist() for row in decoded((99,))]
    assert any(len(set(tokens)) > 2 for tokens in endless)
    for ends in ((1,), (2, 4), (3, 1, 0)):
        for row, tokens in zip(decoded(ends), endless):
            places = [i for i, token in enumerate(tokens) if token in ends]
            wanted = tokens[: places[0] + 1] if places else tokens
            assert row.tokens.tolist() == wanted
            assert row.finish_reason == ("eos" if places else "length")


@pytest.fixture
def t5(tmp_path) -> pathlib.Path:
    shape = tiny_t5.config(12)
    return pathlib.Path(tiny_t5.write(tmp_path / "t5", shape, tiny_t5.weights(shape, 0)))


@pytest.mark.parametrize("gamma", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_forced_tokens_of_an_encoder_decoder(t5, gamma):
    config = DecodingConfig(gamma=gamma, temperature=0.0, max_decode_tokens=5, num_slots=2, input_buckets=(8,))

    def decoded(inputs=((4, 5, 1), (7, 1))):
        target = decoding.load_model(str(t5))
        draft = Scripted(np.zeros((1, 1, 12))) if gamma else None
        return target, Generator(target, draft, config).generate(inputs, ["a", "b"])

    target, plain = decoded()
    say(t5, "generation_config.json", eos_token_id=11, forced_bos_token_id=6, forced_eos_token_id=11, decoder_start_token_id=3)
    _, rows = decoded()
    for row, given in zip(rows, ((4, 5, 1), (7, 1))):
        fed, wanted = [3, 6], [6]
        while len(wanted) < 5 and wanted[-1] != 11:
            logits = target.logits(np.array([fed], np.int32), np.array([given], np.int32), np.array([len(given)], np.int32))
            wanted.append(11 if len(wanted) == 4 else int(np.argmax(logits[0, -1])))
            fed.append(wanted[-1])
        assert row.tokens.tolist() == wanted
        assert row.finish_reason == "eos"
        assert row.target_logprob[0] == 0.0
    assert any(row.tokens[0] != 6 for row in plain)


def test_forced_ends_of_a_decoder_only_model_are_refused(llama):
    config = DecodingConfig(gamma=0, max_decode_tokens=4, num_slots=1, input_buckets=(8,))
    say(llama, "generation_config.json", forced_bos_token_id=9)
    first = Generator(decoding.load_model(str(llama)), None, config).generate([[5], [5, 6]], ["a", "b"])
    assert first[0].tokens[0] == 9 and first[1].tokens[0] != 9  # transformers: only where nothing else was given
    say(llama, "generation_config.json", forced_eos_token_id=2)
    with pytest.raises(ValueError, match="end with token 2, which is supported for encoder-decoder models only"):
        with_forced_tokens(decoding.load_model(str(llama)), config)
