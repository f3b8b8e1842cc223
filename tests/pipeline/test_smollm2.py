"""A real model from its GGUF file: tokens, logits and texts are those of transformers; see testdata/smollm2/make.py."""

import json
import pathlib

import numpy as np
import pytest

import decoding
from pipeline import generate
from pipeline.settings import parse_command_line
from tests.pipeline.helpers import rows
from transforms import chat
from transforms.tokenize import load_tokenizer

ROOT = pathlib.Path(__file__).resolve().parents[2]
REFERENCE = json.loads((ROOT / "tests" / "testdata" / "smollm2" / "reference.json").read_text(encoding="utf-8"))


def preset(task: str, tmp_path: pathlib.Path, *settings: str) -> list[str]:
    return [f"--config={ROOT / 'configs' / 'smollm2.py'}:{task}", f"--output={tmp_path / 'out'}", *settings]


def first_rows(tmp_path: pathlib.Path, name: str, count: int) -> str:
    """A setting that has the job read the first rows of a shipped file."""
    lines = (ROOT / "examples" / "data" / name).read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / name).write_text("".join(lines[:count]), encoding="utf-8")
    return f"--config.input.pattern={tmp_path / name}"


def test_preset_and_prompts(tmp_path):
    config = parse_command_line(preset("summarize", tmp_path)).config
    info = decoding.inspect_checkpoint(config.model.target)
    assert (info.family, info.vocab_size, info.eos_id, info.pad_id) == ("llama", 49152, 2, 2)
    tokenizer = load_tokenizer(config.model.target)
    assert tokenizer.pieces()[info.eos_id] == "<|im_end|>"
    article = json.loads(pathlib.Path(config.input.pattern).read_text(encoding="utf-8").splitlines()[0])["article"]
    template = chat.find_template(config.model.target)
    ids, cut = chat.encode(tokenizer, template, article, prefix=REFERENCE["summary"]["prefix"], max_tokens=512)
    assert (ids, cut) == (REFERENCE["summary"]["input_tokens"], False)
    prompts = parse_command_line(preset("continue", tmp_path)).config.input.pattern
    texts = [json.loads(line)["text"] for line in pathlib.Path(prompts).read_text(encoding="utf-8").splitlines()[:3]]
    assert [tokenizer.encode(text) for text in texts] == [c["input_tokens"] for c in REFERENCE["continuations"]]
    assert [tokenizer.decode(c["output_tokens"]) for c in REFERENCE["continuations"]] == [
        c["text"] for c in REFERENCE["continuations"]
    ]


@pytest.mark.slow
def test_continuations_are_the_reference(tmp_path):
    command = preset("continue", tmp_path, first_rows(tmp_path, "prompts.jsonl", 3), "--config.decoding.max_decode_tokens=64")
    assert generate.main(command) == 0
    found = rows(tmp_path / "out")
    assert [row.tolist() for row in found["output_tokens"]] == [c["output_tokens"] for c in REFERENCE["continuations"]]
    assert found["prediction"].tolist() == [c["text"] for c in REFERENCE["continuations"]]
    model = decoding.load_model(parse_command_line(command).config.model.target)
    for case in REFERENCE["continuations"]:
        logits = np.asarray(model.logits(np.array([case["input_tokens"]], np.int32)))[0, -1]
        for token, value in case["first_logits"].items():
            assert logits[int(token)] == pytest.approx(value, abs=5e-4)


@pytest.mark.slow
def test_a_summary_is_the_reference(tmp_path):
    text = first_rows(tmp_path, "summarize_software.test.jsonl", 1)
    prefix = f"--config.input.prefix={REFERENCE['summary']['prefix']}"
    command = preset("summarize", tmp_path, text, prefix, "--config.decoding.max_decode_tokens=64")
    assert generate.main(command) == 0
    found = rows(tmp_path / "out")
    assert found["output_tokens"][0].tolist() == REFERENCE["summary"]["output_tokens"]
    assert found["prediction"][0] == REFERENCE["summary"]["text"]
    assert found["num_iterations"][0] < 64  # prompt lookup found something to copy
