"""Jobs with decoder-only models: dialogs with a model of LaMDA's shape, and texts from nothing with a GPT-like one."""

import json
import pathlib
import shutil

import numpy as np
import pytest
from flax import nnx

import decoding
from decoding.checkpoints import architecture, orbax
from pipeline import generate
from pipeline.settings import ConfigError, parse_command_line
from tests.pipeline import fakes
from tests.pipeline.helpers import errors, rows, summary
from tests.support import reference
from transforms.tokenize import load_tokenizer

ROOT = pathlib.Path(__file__).resolve().parents[2]
LAMDA = {
    "model_type": "lamda", "vocab_size": 384, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2,
    "head_dim": 8, "hidden_act": "gelu_new", "tie_word_embeddings": False,
    "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0,
}  # fmt: skip


def write_lamda(directory: pathlib.Path, spiece_model: bytes, *, layers: int, seed: int) -> str:
    raw = {**LAMDA, "num_hidden_layers": layers}
    model = architecture.build(architecture.parse_config(raw, ""), "float32")
    rng = np.random.default_rng(seed)
    values = {
        ".".join(map(str, keys)): rng.normal(size=leaf.shape).astype(np.float32) * (0.5 if leaf.ndim == 2 else 1.0)
        for keys, leaf in nnx.to_flat_state(nnx.state(model))
    }
    orbax.write(str(directory), raw, values.items())
    (directory / "spiece.model").write_bytes(spiece_model)
    return str(directory)


def preset(name: str, output: pathlib.Path, **settings) -> list[str]:
    return [f"--config={ROOT / 'configs' / name}", f"--output={output}"] + [
        f"--config.{path.replace('__', '.')}={value}" for path, value in settings.items()
    ]


@pytest.mark.slow
def test_dialogs_are_answered_by_a_model_of_lamdas_shape(tmp_path, spiece_model):
    target = write_lamda(tmp_path / "target", spiece_model, layers=2, seed=1)
    draft = write_lamda(tmp_path / "draft", spiece_model, layers=1, seed=2)
    command = preset(
        "lamda_dialog.py", tmp_path / "out", model__target=target, model__draft=draft, model__dtype="float32",
        decoding__gamma=3, decoding__max_decode_tokens=10, decoding__num_slots=4, decoding__input_buckets="(160,)",
        shards__examples_per_shard=8,
    )  # fmt: skip
    assert generate.main(command) == 0
    found, tokenizer, model = rows(tmp_path / "out"), load_tokenizer(target), decoding.load_model(target)
    dialogs = [json.loads(line) for line in (ROOT / "examples" / "data" / "dialogs.jsonl").read_text().splitlines()]
    assert list(found["example_id"]) == [dialog["id"] for dialog in dialogs]
    for row, dialog in zip(found.to_dict("records"), dialogs):
        assert json.loads(row["inputs"]) == dialog["turns"]
        prompt = tokenizer.encode("".join(turn + "\n" for turn in dialog["turns"]))
        assert row["input_tokens"].tolist() == prompt
        answer = row["output_tokens"].tolist()
        whole = np.zeros((1, 170), np.int32)
        whole[0, : len(prompt) + len(answer)] = prompt + answer
        logits = np.asarray(model.logits(whole))[0, len(prompt) - 1 :][: len(answer)]
        ranks = (logits > np.take_along_axis(logits, np.array(answer)[:, None], 1)).sum(1)
        assert len(answer) == 10 or answer[-1] == 1
        assert ranks.max() < 40
    assert max(len(row) for row in found["accepted"]) > 1
    assert summary(tmp_path / "out")["compilations_while_decoding"] == 0


def test_the_dialog_preset_asks_for_models():
    with pytest.raises(ConfigError, match=r"model\.target"):
        parse_command_line(preset("lamda_dialog.py", pathlib.Path("/x")))


@pytest.fixture
def gpt(tmp_path, golden):
    """The reference GPT-2, with a wordpiece vocabulary of its size."""
    directory = tmp_path / "gpt"
    shutil.copytree(golden / "gpt2", directory)
    words = ["[PAD]", "[CLS]", "[UNK]", "a", "tool", "##s", *(f"word{i}" for i in range(378))]
    (directory / "vocab.txt").write_text("\n".join(words))
    return str(directory)


@pytest.mark.slow
def test_texts_from_nothing(tmp_path, gpt):
    """An empty text is decoded from the start token alone; beside it, prompts of wordpieces."""
    path = tmp_path / "input.jsonl"
    texts = ["", "a tools", "", "   "]
    path.write_text("".join(json.dumps({"text": text, "id": f"id{i}"}) + "\n" for i, text in enumerate(texts)))
    config = tmp_path / "config.py"
    config.write_text(
        f"""
from ml_collections import config_dict
def get_config():
    return config_dict.ConfigDict(dict(
        input=dict(pattern={str(path)!r}, input_field="text", id_field="id", empty="start"),
        model=dict(target={gpt!r}, draft="prompt_lookup"),
        decoding=dict(gamma=2, max_decode_tokens=12, num_slots=2, input_buckets=(8,)),
    ))
"""
    )
    command = [f"--config={config}", f"--output={tmp_path / 'out'}"]
    assert generate.main(command) == 0
    found, model = rows(tmp_path / "out"), decoding.load_model(gpt)
    assert [row.tolist() for row in found["input_tokens"]] == [[model.start_id], [3, 4, 5], [model.start_id], [model.start_id]]
    for i in (0, 2, 3):
        output = found["output_tokens"][i].tolist()
        text = np.array([[model.start_id, *output] + [0] * (12 - len(output))], np.int32)
        law = reference.standardize(np.asarray(model.logits(text))[0, : len(output)])
        np.testing.assert_allclose(found["target_logprob"][i], np.log(law[np.arange(len(output)), output]), atol=1e-4)
        assert len(output) == 12 or output[-1] == model.eos_id
    assert len({tuple(row) for row in found["output_tokens"]}) == 4  # every id has random numbers of its own

    refused = ["--config.input.empty=error", f"--output={tmp_path / 'refused'}"]
    assert generate.main([command[0], *refused], factory=fakes.factory()) == 0
    assert [error["error_type"] for error in errors(tmp_path / "refused")] == ["EmptyInput"] * 3


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("--config.input.empty=start", "input.empty is 'start'; allowed: \"error\" for an encoder-decoder model"),
        ("--config.input.chat_template=model", "input.chat_template is 'model'; allowed: \"\" for an encoder-decoder"),
        ("--config.input.empty=maybe", "input.empty is 'maybe'; allowed: \"error\" or \"start\""),
    ],
)
def test_settings_that_do_not_fit(command, capsys, setting, message):
    assert generate.main(command(setting)) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("template", "message"),
    [("model", "no chat template comes with"), ("{% for", "TemplateSyntaxError"), ("{{ x.y.z }}", "UndefinedError")],
)
def test_templates_that_cannot_be_used(command, gpt, capsys, template, message):
    arguments = [f"--config.model.target={gpt}", "--config.model.draft=", "--config.decoding.gamma=0"]
    assert generate.main(command(*arguments, f"--config.input.chat_template={template}")) == 2
    assert f"input.chat_template is {template!r}: " in (shown := capsys.readouterr().err)
    assert message in shown
