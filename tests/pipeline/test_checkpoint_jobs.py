"""Jobs over models as they are found: broken ones end in one line, several end tokens end a text, extra tokens do no harm."""

import json
import pathlib
import shutil

import pytest
import tokenizers

from pipeline import generate
from tests.pipeline.helpers import errors, rows

CONFIG = """
from ml_collections import config_dict
def get_config():
    return config_dict.ConfigDict(dict(
        input=dict(pattern={pattern!r}, input_field="text"),
        model=dict(target={target!r}, draft=""),
        decoding=dict(gamma=0, temperature=0.0, max_decode_tokens=8, num_slots=2, input_buckets=(8,)),
    ))
"""


@pytest.fixture
def model(tmp_path, golden) -> pathlib.Path:
    """The reference GPT-2, with a word for each of its 384 tokens and one more."""
    shutil.copytree(golden / "gpt2", tmp_path / "gpt")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({f"w{i}": i for i in range(384)}, "w0"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    words.add_special_tokens(["<pad>"])
    words.save(str(tmp_path / "gpt" / "tokenizer.json"))
    return tmp_path / "gpt"


@pytest.fixture
def launch(tmp_path, model):
    (tmp_path / "in.jsonl").write_text('{"text": "w5 w6"}\n{"text": "w5 <pad>"}\n{"text": "w9"}\n')
    (tmp_path / "config.py").write_text(CONFIG.format(pattern=str(tmp_path / "in.jsonl"), target=str(model)))

    def run(output, *settings):
        return generate.main([f"--config={tmp_path / 'config.py'}", f"--output={tmp_path / output}", *settings])

    return run


def say(file: pathlib.Path, **keys) -> None:
    file.write_text(json.dumps((json.loads(file.read_text()) if file.exists() else {}) | keys))


def test_each_of_several_end_tokens_and_a_token_beyond_the_embedding(launch, model, tmp_path):
    assert launch("plain") == 0
    plain = rows(tmp_path / "plain")
    assert [error["stage"] for error in errors(tmp_path / "plain")] == ["decode"]
    assert "has the token 384; allowed: 0 to 383" in errors(tmp_path / "plain")[0]["message"]
    third = [tokens[3] for tokens in plain["output_tokens"]]
    say(model / "generation_config.json", eos_token_id=[1, *map(int, third)])
    assert launch("ended") == 0
    for before, after in zip(plain.to_dict("records"), rows(tmp_path / "ended").to_dict("records")):
        tokens = before["output_tokens"].tolist()
        end = next(i for i, token in enumerate(tokens) if token in (1, *third))
        assert after["output_tokens"].tolist() == tokens[: end + 1]
        assert after["finish_reason"] == "eos"
        assert after["prediction"].split() == [f"w{token}" for token in tokens[:end]]


def hub_cache(model):
    files = [file for file in model.iterdir() if file.is_file()]
    (model / "snapshots" / "abc").mkdir(parents=True)
    for file in files:
        file.rename(model / "snapshots" / "abc" / file.name)


BROKEN = {
    "zero heads": (lambda model: say(model / "config.json", n_head=0), "config.json: the config cannot be used"),
    "many layers": (lambda model: say(model / "config.json", n_layer=10**9), "num_layers is 1000000000; allowed"),
    "wrong type": (lambda model: say(model / "config.json", n_embd="wide"), "config.json: the config cannot be used"),
    "header": (lambda model: (model / "model.safetensors").write_bytes(b"\xff" * 7 + b"\n{}"), "cannot hold a header of"),
    "index": (
        lambda model: (
            (model / "model.safetensors").unlink(),
            say(model / "model.safetensors.index.json", weight_map={"a": 3}),
        ),
        "values that are no file names",
    ),
    "tokenizer.json": (lambda model: (model / "tokenizer.json").write_text("[" * 10**6), "tokenizer.json' cannot be read"),
    "tokenizer_config.json": (lambda model: (model / "tokenizer_config.json").write_text("[]"), "holds a JSON list"),
    "end token": (lambda model: say(model / "generation_config.json", eos_token_id="</s>"), "the end token is '</s>'"),
    "adapter": (lambda model: say(model / "adapter_config.json", peft_type="LORA"), "an adapter of None, not a model"),
    "hub cache": (hub_cache, "snapshots/abc"),
    "quantised": (
        lambda model: say(model / "config.json", quantization_config={"quant_method": "fp8"}), "quantised with 'fp8'"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_model_ends_the_launch_with_one_line(launch, model, tmp_path, capsys, name):
    breaking, said = BROKEN[name]
    breaking(model)
    assert launch("out") == 2
    shown = capsys.readouterr().err.strip()
    assert shown.startswith("error: ") and said in shown and "\n" not in shown
    assert not (tmp_path / "out").exists()


def test_inputs_and_outputs_that_do_not_fit(launch, capsys):
    assert launch("fits", "--config.decoding.max_decode_tokens=248", "--dry_run") == 0  # GPT-2's table has 256 rows
    assert launch("out", "--config.decoding.max_decode_tokens=249") == 2
    assert "allowed: 256 together, the positions of model.target" in capsys.readouterr().err


def test_a_template_that_asks_for_the_date(launch, model, capsys, tmp_path):
    template = "--config.input.chat_template={{ strftime_now('w%d') }} {{ messages[0].content }}"
    assert launch("out", template) == 2
    assert "input.chat_date says what it shows" in capsys.readouterr().err
    assert launch("out", template, "--config.input.chat_date=26 July") == 2
    assert "input.chat_date is '26 July'; allowed: a date, YYYY-MM-DD" in capsys.readouterr().err
    assert launch("out", template, "--config.input.chat_date=2024-07-26") == 0
    assert rows(tmp_path / "out")["input_tokens"].iloc[0].tolist() == [26, 5, 6]
    assert launch("out", template, "--config.input.chat_date=2024-07-27") == 2  # another prompt, another run


def test_a_draft_of_fewer_positions(launch, model, golden, tmp_path, capsys):
    """Llama in front of GPT-2: one vocabulary, other positions."""
    draft = pathlib.Path(shutil.copytree(golden / "llama", tmp_path / "llama"))
    say(draft / "generation_config.json", eos_token_id=1)
    say(draft / "config.json", max_position_embeddings=16)
    settings = (f"--config.model.draft={draft}", "--config.decoding.gamma=2")
    assert launch("fits", *settings, "--dry_run") == 0
    say(draft / "config.json", max_position_embeddings=15)
    assert launch("out", *settings) == 2
    assert "allowed: 15 together, the positions of model.draft" in capsys.readouterr().err
