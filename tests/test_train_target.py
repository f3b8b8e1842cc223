"""examples/train_target.py: from a corpus to a directory that jobs load, and that transformers reads the config of."""

import gzip
import json
import pathlib
import subprocess
import sys

import pytest

import decoding
from transforms.tokenize import load_tokenizer

ROOT = pathlib.Path(__file__).resolve().parent.parent
SHAPE = {"d_model": 16, "d_ff": 24, "num_heads": 2, "d_kv": 8, "num_layers": 1, "num_decoder_layers": 1}


@pytest.mark.slow
def test_a_target_from_a_corpus(tmp_path):
    sentences = (ROOT / "examples" / "data" / "ende_software.test.jsonl").read_text(encoding="utf-8")
    with gzip.open(tmp_path / "train.jsonl.gz", "wt", encoding="utf-8") as corpus:
        corpus.write(sentences)
    command = [sys.executable, "examples/train_target.py", f"--train={tmp_path / 'train.jsonl.gz'}"]
    command += [f"--output={tmp_path / 'target'}", f"--shape={json.dumps(SHAPE)}", "--pieces=600", "--steps=40"]
    done = subprocess.run([*command, "--batch-tokens=512"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    model = decoding.load_model(str(tmp_path / "target"))
    assert (model.vocab_size, model.config.d_model, model.eos_id) == (600, 16, 1)
    tokenizer = load_tokenizer(str(tmp_path / "target"))
    assert tokenizer.decode(tokenizer.encode("Ein Paket")) == "Ein Paket"
    loss = float(done.stdout.rsplit("last batch ", 1)[1].split(":")[0])
    assert loss < 6.2  # of 600 pieces: 6.4 where nothing was learnt
