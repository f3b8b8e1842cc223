"""Gemma's, GPT-NeoX's, OPT's and Phi's tokenisers against transformers', over 200 lines in several scripts and odd ones."""

import pytest

from tests.support import tiny_tokenizers
from transforms.tokenize import load_tokenizer

transformers = pytest.importorskip("transformers")

LINES = [
    *tiny_tokenizers.lines(), " ", "   x", "a\nb\n\n c\t d", "e\u0301 ﬁ", "\u00a0x \u200bx", "▁a ▁", "🙂🙂🏽", "12345 67",
    "a  b   c", "a</s>b", "<bos>a <eos> b", "x<|endoftext|>y", "x <|end|>  y", "<start_of_turn>user\nhi<end_of_turn>", "\x07a",
]  # fmt: skip


def compare(folder, family: str, begin: list[int]) -> None:
    """The same ids, with those before every text, and the same texts of these ids."""
    (folder / "config.json").write_text(f'{{"model_type": "{family}"}}')
    mine, theirs = load_tokenizer(str(folder)), transformers.AutoTokenizer.from_pretrained(str(folder))
    assert list(mine.begin) == begin
    for text in LINES:
        ids = theirs(text)["input_ids"]
        assert [*mine.begin, *mine.encode(text)] == ids, text
        assert mine.decode(ids) == theirs.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False), text


def test_gemma(tmp_path):
    """From its sentencepiece model, and as transformers writes it, in a tokenizer.json."""
    tiny_tokenizers.write_gemma(tmp_path)
    compare(tmp_path, "gemma2", [2])
    transformers.AutoTokenizer.from_pretrained(str(tmp_path)).save_pretrained(tmp_path / "saved")
    compare(tmp_path / "saved", "gemma2", [2])


@pytest.mark.parametrize(("write", "family", "begin"), [
    (tiny_tokenizers.write_gpt_neox, "gpt_neox", []), (tiny_tokenizers.write_opt, "opt", [2]),
    (tiny_tokenizers.write_phi3, "phi3", []), (tiny_tokenizers.write_phi4, "phi3", []),
])  # fmt: skip
def test_others(tmp_path, write, family, begin):
    write(tmp_path)
    compare(tmp_path, family, begin)
