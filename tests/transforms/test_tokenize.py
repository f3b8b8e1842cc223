"""Every tokeniser format: text survives, ids that are no piece are left out, foreign vocabularies are refused."""

import io
import json
import random

import pytest
import sentencepiece
import tokenizers

from tests.support import tiny_gguf, tiny_tokenizers
from transforms.text.sentencepieces import SentencePieceTokenizer
from transforms.text.vocabularies import LibraryTokenizer
from transforms.tokenize import TokenizerError, encode_start, find_tokenizer, load_tokenizer

TEXT = "a tool for files"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found = tmp_path_factory.mktemp("tokenizers")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([TEXT] * 9), model_writer=model, vocab_size=300, byte_fallback=True,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    (found / "spiece").mkdir()
    (found / "spiece" / "spiece.model").write_bytes(model.getvalue())
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<unk>": 0, "a": 1, "tool": 2, "for": 5, "files": 4}, "<unk>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.enable_truncation(2)
    (found / "json").mkdir()
    words.save(str(found / "json" / "tokenizer.json"))
    return found


@pytest.mark.parametrize("kind", ["spiece", "json"])
def test_text_survives_and_nothing_is_added(folder, kind):
    tokenizer = load_tokenizer(str(folder / kind))
    ids = tokenizer.encode(TEXT)
    assert tokenizer.decode(ids) == TEXT
    assert 1 not in ids[1:]
    assert len(tokenizer.sha256) == 64
    pieces = tokenizer.pieces()
    assert all(pieces[i] for i in ids)


def test_ids_beyond_the_pieces_are_left_out(folder):
    tokenizer = load_tokenizer(str(folder / "spiece"))
    ids = tokenizer.encode(TEXT)
    assert tokenizer.decode([*ids, 99_999, 0, 1]) == TEXT


def test_json_truncation_is_not_applied(folder):
    assert load_tokenizer(str(folder / "json")).encode(TEXT) == [1, 2, 5, 4]


def test_tokenizer_json_comes_first(folder, tmp_path):
    for kind, name in (("spiece", "spiece.model"), ("json", "tokenizer.json")):
        (tmp_path / name).write_bytes((folder / kind / name).read_bytes())
    assert find_tokenizer(str(tmp_path)).endswith("tokenizer.json")
    assert find_tokenizer(str(tmp_path / "spiece.model")).endswith("spiece.model")


def test_missing_or_broken(tmp_path):
    with pytest.raises(TokenizerError, match="no tokeniser at"):
        load_tokenizer(str(tmp_path))
    for name in ("spiece.model", "tokenizer.json"):
        (tmp_path / name).write_bytes(b"nonsense")
        with pytest.raises(TokenizerError, match=name):
            load_tokenizer(str(tmp_path / name))
        (tmp_path / name).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
        with pytest.raises(TokenizerError, match=f"{name}' cannot be read: it is Git LFS's pointer"):
            load_tokenizer(str(tmp_path / name))


def panicking(path):
    """T5's make of tokeniser, to which somebody has added a token "\n", normalised: the library panics at "é"."""
    from tokenizers import decoders, models, normalizers, pre_tokenizers

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -9.0), ("▁", -2.0), ("a", -2.0), ("b", -2.0)]
    tokenizer = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=2))
    blanks = normalizers.Replace(tokenizers.Regex(" {2,}"), "▁")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Strip(left=False, right=True), blanks])
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer.add_special_tokens(["<pad>", "</s>"])
    tokenizer.add_tokens([tokenizers.AddedToken("\n", normalized=True)])
    tokenizer.save(str(path / "tokenizer.json"))
    return load_tokenizer(str(path))


def test_a_panic_of_the_library_is_an_error_of_the_text(tmp_path):
    tokenizer = panicking(tmp_path)
    expected = tokenizer.encode("a b")
    assert expected[-1] == 5
    with pytest.raises(TokenizerError, match="panicked: AddedVocabulary bad split"):
        tokenizer.encode("é")
    assert tokenizer.encode("a b") == expected


class Panic(BaseException):
    """Like pyo3_runtime.PanicException: no Exception."""


@pytest.mark.parametrize("raised", [Panic("while decoding"), KeyboardInterrupt(), SystemExit(3), RuntimeError("usual")])
def test_what_is_no_panic_passes(raised):
    class Library:
        no_truncation = no_padding = lambda self: None

        def decode(self, ids):
            raise raised

    expected = TokenizerError if isinstance(raised, Panic) else type(raised)
    with pytest.raises(expected):
        LibraryTokenizer(Library(), "").decode([1])


# Long texts.


def long_texts(rng):
    words = ["a", "tool", "for", "files", "Überraschung", "12", "\n", "  ", "a" * 27, "e\u0301", "\U0001f600", "."]
    yield "".join(rng.choice(["a", "b"]) for _ in range(30_000))
    yield "a" * 30_000
    yield " " * 30_000 + "a tool"
    yield "\n".join(["a tool for files"] * 3000)
    for _ in range(20):
        kinds, blank = rng.sample(words, rng.randrange(1, len(words))), rng.choice(["", " ", " "])
        yield blank.join(rng.choice(kinds) for _ in range(20_000))


@pytest.mark.parametrize("kind", ["spiece", "json", "bpe", "gguf"])
def test_the_start_of_a_long_text_has_the_tokens_of_the_whole(folder, tmp_path, kind):
    if kind == "bpe":
        model, text = io.BytesIO(), "a tool for files, Überraschung 12. aaaa aaaaaaaa"
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter([text] * 9), model_writer=model, vocab_size=320, model_type="bpe", byte_fallback=True,
            hard_vocab_limit=False, minloglevel=2,
        )  # fmt: skip
        tokenizer = SentencePieceTokenizer(model.getvalue())
    elif kind == "gguf":
        tokenizer = load_tokenizer(tiny_gguf.write(tmp_path / "x.gguf", byte_level("qwen2"), {}))
    else:
        tokenizer = load_tokenizer(str(folder / kind))
    cut = 0
    for text in long_texts(random.Random(0)):
        whole = tokenizer.encode(text)
        for limit in (1, 5, 100):
            ids, complete = encode_start(tokenizer, text, limit)
            assert ids[:limit] == whole[:limit]
            assert not complete or ids == whole
            assert len(ids) >= min(limit, len(whole))
            cut += not complete
    assert cut > 20


class Letters:
    """One token a letter, none for a blank; notes how much it was given at once."""

    longest = 0

    def encode(self, text):
        self.longest = max(self.longest, len(text))
        return [ord(letter) for letter in text if letter != " "]


@pytest.mark.parametrize(
    ("text", "expected", "most"),
    [("x" * 20_000_000, 120, 10_000), (" " * 20_000_000 + "y", 0, 1 << 20), (" " * 50_000 + "y" * 20_000_000, 120, 200_000)],
)
def test_little_of_a_long_text_is_tokenised(text, expected, most):
    """What is given up, here because of its blanks, says that it is not whole."""
    tokenizer = Letters()
    ids, whole = encode_start(tokenizer, text, 120)
    assert (len(ids[:120]), whole) == (expected, False)
    assert tokenizer.longest <= most
    assert encode_start(tokenizer, "a b", 120) == ([97, 98], True)


# BERT's wordpieces.

VOCABULARY = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "the", "tool", "##s", "##kit", "read", "cafe", ",", "."]


def test_wordpiece(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    tokenizer = load_tokenizer(str(tmp_path))
    ids = tokenizer.encode("The toolkits,  read Café [SEP] zebra.")
    assert [VOCABULARY[i] for i in ids] == ["the", "tool", "##kit", "##s", ",", "read", "cafe", "[SEP]", "[UNK]", "."]
    assert tokenizer.decode(ids) == "the toolkits, read cafe."
    assert (tokenizer.pieces(), tokenizer.begin) == (VOCABULARY, ())


def test_wordpiece_keeps_case_where_the_vocabulary_does_or_the_config_says(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join([*VOCABULARY, "The"]))
    assert load_tokenizer(str(tmp_path)).encode("The tool") == [13, 6]
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    assert load_tokenizer(str(tmp_path)).encode("The tool") == [5, 6]


def test_wordpieces_that_python_takes_for_ends_of_lines(tmp_path):
    pieces = ["[UNK]", "\u2028", "\x85", "a"]
    (tmp_path / "vocab.txt").write_bytes("\r\n".join(pieces).encode())
    tokenizer = load_tokenizer(str(tmp_path))
    assert (tokenizer.pieces(), tokenizer.encode("a")) == (pieces, [3])


def test_some_other_text_file(tmp_path):
    (tmp_path / "vocab.txt").write_text("a\nb\n")
    with pytest.raises(TokenizerError, match=r"no piece \[UNK\]"):
        load_tokenizer(str(tmp_path))


# What a file puts before every text.


def test_begin_of_a_tokenizer_json(folder, tmp_path):
    assert load_tokenizer(str(folder / "json")).begin == ()
    words = tokenizers.Tokenizer.from_file(str(folder / "json" / "tokenizer.json"))
    words.post_processor = tokenizers.processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 7), ("</s>", 8)])
    words.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(str(tmp_path))
    assert (tokenizer.begin, tokenizer.encode(TEXT)) == ((7,), [1, 2, 5, 4])


def test_begin_of_a_sentencepiece_model(folder, tmp_path):
    (tmp_path / "tokenizer.model").write_bytes((folder / "spiece" / "spiece.model").read_bytes())
    plain = load_tokenizer(str(tmp_path))
    (tmp_path / "tokenizer_config.json").write_text('{"add_bos_token": true, "bos_token": {"content": "</s>"}}')
    tokenizer = load_tokenizer(str(tmp_path))
    assert (plain.begin, tokenizer.begin) == ((), (1,))
    assert plain.sha256 != tokenizer.sha256


# GGUF.


def byte_level(pre, **changes):
    """Metadata of a byte-level BPE over lower-case letters, digits and blanks, with the merges t+o, to+o, Ġ+to, 2+0."""
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    merged = ["to", "too", "Ġto", "20", "202"]
    tokens = ["<|end|>", "<user>", *letters, *"0123456789", "Ġ", "Ċ", *merged, "tools"]
    return {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": pre, "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3, 4] + [1] * (len(tokens) - 2),
        "tokenizer.ggml.merges": ["t o", "to o", "Ġ to", "2 0", "20 2"],
        "tokenizer.ggml.bos_token_id": 0, "tokenizer.ggml.eos_token_id": 0,
    } | changes  # fmt: skip


@pytest.mark.parametrize(
    ("pre", "expected"),
    [
        ("gpt-2", "too Ġto p Ġ 20 20 <|end|> <user> tools"),
        ("smollm", "too Ġto p Ġ 2 0 2 0 <|end|> <user> tools"),
        ("qwen2", "too Ġto p Ġ 2 0 2 0 <|end|> <user> tools"),
        ("llama-bpe", "too Ġto p Ġ 202 0 <|end|> <user> tools"),
        ("default", "too Ġto p Ġ 202 0 <|end|> <user> tools"),
    ],
)
def test_gguf_bytes(tmp_path, pre, expected):
    """Digits go in groups of one, of three or as many as there are; only llama-bpe takes whole words without merges."""
    values = byte_level(pre)
    tokenizer = load_tokenizer(tiny_gguf.write(tmp_path / "x.gguf", values, {}))
    text = "too top 2020<|end|><user>tools"
    found = [tokenizer.pieces()[i] for i in tokenizer.encode(text)]
    assert found == (expected if pre == "llama-bpe" else expected.replace("tools", "too l s")).split()
    assert tokenizer.decode(tokenizer.encode(text)) == "too top 2020<user>tools"
    assert tokenizer.pieces() == values["tokenizer.ggml.tokens"]
    assert tokenizer.begin == ((0,) if pre == "llama-bpe" else ())


def test_gguf_begin_and_identity(tmp_path):
    changes = [{}, {"tokenizer.ggml.add_bos_token": True}, {"tokenizer.ggml.merges": ["t o", "to o"]}]
    found = [
        load_tokenizer(tiny_gguf.write(tmp_path / f"{i}.gguf", byte_level("gpt-2", **change), {}))
        for i, change in enumerate(changes)
    ]
    assert [tokenizer.begin for tokenizer in found] == [(), (0,), ()]
    assert len({tokenizer.sha256 for tokenizer in found}) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer.ggml.pre": "tekken"}, "'tekken'; supported: default, gpt-2, smollm, qwen2, llama-bpe"),
        ({"tokenizer.ggml.model": "bert"}, "'bert'; supported: gpt2, llama"),
        ({"tokenizer.ggml.merges": ["t q"]}, "out of vocabulary|tq"),
    ],
)
def test_gguf_refused(tmp_path, change, message):
    path = tiny_gguf.write(tmp_path / "x.gguf", byte_level("gpt-2") | change, {})
    with pytest.raises(TokenizerError, match=message):
        load_tokenizer(path)


def test_gguf_sentencepiece(folder, tmp_path):
    """A BPE model taken apart as llama.cpp's converter does tokenises as it did before."""
    data = io.BytesIO()
    sentences = [TEXT, "two tools read 12 files", "no file was read"]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences * 9), model_writer=data, vocab_size=320, model_type="bpe", byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    reference = sentencepiece.SentencePieceProcessor(model_proto=data.getvalue())
    size, kinds = reference.GetPieceSize(), ("IsUnknown", "IsControl", "IsByte")
    types = [next((t for t, is_ in zip((2, 3, 6), kinds) if getattr(reference, is_)(i)), 1) for i in range(size)]
    values = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [reference.IdToPiece(i) for i in range(size)],
        "tokenizer.ggml.scores": [reference.GetScore(i) for i in range(size)],
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2,
    }  # fmt: skip
    tokenizer = load_tokenizer(tiny_gguf.write(tmp_path / "x.gguf", values, {}))
    for text in [*sentences, "  two  blanks ", "Überraschung\n12", ""]:
        assert tokenizer.encode(text) == reference.EncodeAsIds(text)
        assert tokenizer.decode(tokenizer.encode(text)) == reference.DecodeIds(reference.EncodeAsIds(text))
    assert tokenizer.begin == (1,)
    ids = tokenizer.encode("<s>a file</s>")
    assert ids == [1, *reference.EncodeAsIds("a file"), 2]
    assert tokenizer.decode(ids) == "a file"


@pytest.mark.slow
def test_gguf_t5(tmp_path):
    """T5's own kind, padded up to the model's vocabulary, with a sentinel that was added: as its spiece.model's."""
    data = tiny_tokenizers.sentencepiece_model(0, 300, pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    (tmp_path / "spiece.model").write_bytes(data)
    sentinel, size = "<extra_id_0>", sentencepiece.SentencePieceProcessor(model_proto=data).GetPieceSize()
    (tmp_path / "added_tokens.json").write_text(json.dumps({sentinel: size}))
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"additional_special_tokens": [sentinel]}))
    values = tiny_gguf.t5_vocabulary(data, [sentinel], padding=20)
    assert values["tokenizer.ggml.precompiled_charsmap"]
    found = load_tokenizer(tiny_gguf.write(tmp_path / "x.gguf", values, {}, architecture="t5"))
    expected = load_tokenizer(str(tmp_path / "spiece.model"))
    assert found.pieces() == expected.pieces() and found.begin == ()
    for text in [*tiny_tokenizers.lines(), "ﬁ e\u0301", "a <extra_id_0> b </s> c"]:
        ids = expected.encode(text)
        assert found.encode(text) == ids and found.decode(ids) == expected.decode(ids), text
