"""Tokenisers of decoder-only families whose files need more than reading, against transformers' own."""

import json

import pytest
import tokenizers

from transforms.tokenize import load_tokenizer

TEXTS = ["the cat sat", "der Hund läuft.  zwei", "猫が座った Привет", " x", "a</s>b"]


def test_opt_texts_begin_with_its_end_token(tmp_path):
    transformers = pytest.importorskip("transformers")
    pairs = tokenizers.ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    pairs.train_from_iterator(TEXTS * 9, vocab_size=320, special_tokens=special, show_progress=False)
    pairs.save_model(str(tmp_path))
    config = dict.fromkeys(("unk_token", "bos_token", "eos_token"), "</s>")
    config |= {"pad_token": "<pad>", "add_prefix_space": False, "add_bos_token": True, "tokenizer_class": "GPT2Tokenizer"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "config.json").write_text('{"model_type": "opt"}')
    ours, theirs = load_tokenizer(str(tmp_path)), transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    assert ours.begin == (2,)
    for text in TEXTS:
        ids = theirs(text)["input_ids"]
        assert [*ours.begin, *ours.encode(text)] == ids
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
