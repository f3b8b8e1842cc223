"""Gemma's, GPT-NeoX's, OPT's and Phi's tokenisers against transformers', over 200 lines in several scripts and odd ones."""

import json

import pytest
import tokenizers
from sentencepiece import sentencepiece_model_pb2 as protos
from tokenizers import decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

from tests.support import tiny_tokenizers
from transforms.tokenize import load_tokenizer

transformers = pytest.importorskip("transformers")

LINES = [
    *tiny_tokenizers.lines(), " ", "   x", "a\nb\n\n c\t d", "e\u0301 ﬁ", "\u00a0x \u200bx", "▁a ▁", "🙂🙂🏽", "12345 67",
    "a  b   c", "a</s>b", "<bos>a <eos> b", "x<|endoftext|>y", "x <|end|>  y", "<start_of_turn>user\nhi<end_of_turn>", "\x07a",
]  # fmt: skip
PHI4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def compare(folder, begin: list[int]) -> None:
    """The same ids, with those before every text, and the same texts of these ids."""
    mine, theirs = load_tokenizer(str(folder)), transformers.AutoTokenizer.from_pretrained(str(folder))
    assert list(mine.begin) == begin
    for text in LINES:
        ids = theirs(text)["input_ids"]
        assert [*mine.begin, *mine.encode(text)] == ids, text
        assert mine.decode(ids) == theirs.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False), text


def write(folder, family: str, **config) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text(json.dumps({"model_type": family}))


def write_pairs(folder, normalizer, words, special, **flags) -> None:
    """A tokenizer.json of pairs of bytes, its special tokens first."""
    found = tokenizers.Tokenizer(BPE())
    found.pre_tokenizer, found.decoder = words, decoders.ByteLevel()
    if normalizer:
        found.normalizer = normalizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    first = [tokenizers.AddedToken(text, **flags) for text in special]
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=600, special_tokens=first, initial_alphabet=alphabet, show_progress=False
    )
    found.train_from_iterator(LINES, trainer)
    found.add_tokens([tokenizers.AddedToken(" " * count, normalized=True) for count in (4, 3, 2)])
    found.save(str(folder / "tokenizer.json"))


def test_gemma(tmp_path):
    """From its sentencepiece model, and as transformers writes it, in a tokenizer.json."""
    model = tiny_tokenizers.sentencepiece_model(
        0, 700, "bpe", byte_fallback=True, pad_id=0, eos_id=1, bos_id=2, unk_id=3, pad_piece="<pad>", eos_piece="<eos>",
        bos_piece="<bos>", add_dummy_prefix=False, remove_extra_whitespaces=False, normalization_rule_name="identity",
        user_defined_symbols=["<mask>", "<start_of_turn>", "<end_of_turn>", "\n", "\n\n", "▁▁", "▁▁▁"], split_digits=True,
    )  # fmt: skip
    (tmp_path / "tokenizer.model").write_bytes(model)
    special = {f"{name}_token": f"<{name}>" for name in ("bos", "eos", "pad", "unk")}
    write(tmp_path, "gemma2", tokenizer_class="GemmaTokenizer", add_bos_token=True, **special)
    compare(tmp_path, [2])
    transformers.AutoTokenizer.from_pretrained(str(tmp_path)).save_pretrained(tmp_path / "saved")
    (tmp_path / "saved" / "config.json").write_text('{"model_type": "gemma2"}')
    compare(tmp_path / "saved", [2])


def test_gpt_neox(tmp_path):
    special = ["<|endoftext|>", "<|padding|>"]
    write_pairs(tmp_path, normalizers.NFC(), pre_tokenizers.ByteLevel(add_prefix_space=False), special)
    named = dict.fromkeys(("bos_token", "eos_token", "unk_token"), special[0])
    write(tmp_path, "gpt_neox", tokenizer_class="GPTNeoXTokenizer", add_prefix_space=False, **named)
    compare(tmp_path, [])


def test_opt(tmp_path):
    """Whose texts begin with its end token."""
    pairs = tokenizers.ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    pairs.train_from_iterator(LINES, vocab_size=600, special_tokens=special, show_progress=False)
    pairs.save_model(str(tmp_path))
    named = dict.fromkeys(("unk_token", "bos_token", "eos_token"), "</s>") | {"pad_token": "<pad>"}
    write(tmp_path, "opt", tokenizer_class="GPT2Tokenizer", add_prefix_space=False, add_bos_token=True, **named)
    compare(tmp_path, [2])


def test_phi3(tmp_path):
    """Llama's pieces in a tokenizer.json, behind some of whose added tokens blanks are dropped."""
    model = tiny_tokenizers.sentencepiece_model(
        0, 700, "bpe", byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False
    )
    pieces = protos.ModelProto.FromString(model).pieces
    numbers, scores = {piece.piece: i for i, piece in enumerate(pieces)}, {piece.piece: piece.score for piece in pieces}
    merges = transformers.convert_slow_tokenizer.generate_merges(numbers, scores)
    found = tokenizers.Tokenizer(BPE(numbers, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    found.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    found.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    found.add_special_tokens(["<unk>", "<s>", "<|endoftext|>"])
    found.add_tokens([tokenizers.AddedToken("</s>", rstrip=True)])
    found.add_special_tokens([tokenizers.AddedToken(text, rstrip=True) for text in ("<|assistant|>", "<|end|>")])
    found.save(str(tmp_path / "tokenizer.json"))
    named = dict(bos_token="<s>", eos_token="<|endoftext|>", pad_token="<|endoftext|>", unk_token="<unk>")
    write(tmp_path, "phi3", tokenizer_class="LlamaTokenizer", add_bos_token=False, legacy=False, **named)
    compare(tmp_path, [])


def test_phi4(tmp_path):
    """Bytes, cut into words as by GPT-4."""
    split = pre_tokenizers.Split(tokenizers.Regex(PHI4), "removed", invert=True)
    words = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    write_pairs(tmp_path, None, words, ["<|endoftext|>", "<|end|>"], lstrip=True, rstrip=True)
    named = dict(bos_token="<|endoftext|>", eos_token="<|end|>", pad_token="<|endoftext|>", unk_token="<|endoftext|>")
    write(tmp_path, "phi3", tokenizer_class="GPT2Tokenizer", add_prefix_space=False, **named)
    compare(tmp_path, [])
