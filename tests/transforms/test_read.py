"""Reading: each kind of broken record becomes its error, and tokens are cut where the limit is, EOS kept."""

import json

import numpy as np
import pytest

from transforms.chat import ChatTemplate
from transforms.encoding import Translation
from transforms.inputs import lines
from transforms.plan import Cut, InputError, InputSpec, RecordFields, ShardTable, plan_input
from transforms.read import read_shard


class Letters:
    """A tokeniser with one token per letter, 'a' = 10; refuses '!' and has no token for '?'."""

    begin = ()

    def encode(self, text):
        if "!" in text:
            raise RuntimeError("cannot encode '!'")
        return [10 + ord(letter) - ord("a") for letter in text if letter != "?"]


PAIRS = RecordFields("en", "de")


def read(path, *, fields=PAIRS, prefix="", eos_id=1, limit=8, size=100, shard=0, **settings):
    spec = InputSpec("jsonl", fields, (str(path),))
    work = ShardTable(plan_input(spec, Cut(size)))[shard]
    return read_shard(work, spec, Letters(), prefix=prefix, eos_id=eos_id, max_input_tokens=limit, **settings)


def one(tmp_path, line: bytes, **kwargs):
    """Reads `line`, which follows a good record, and returns its example or error."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"en": "ab", "de": "x", "k": "first"}\n' + line + b"\n")
    shard = read(path, **kwargs)
    assert len(shard.examples) + len(shard.errors) == 2
    return (*shard.examples[1:], *shard.errors)[0]


def test_example(tmp_path):
    example = one(tmp_path, b'{"en": "abc", "de": "xyz"}')
    assert (example.example_id, example.index, example.inputs, example.targets) == ("a.jsonl:2", 1, "abc", "xyz")
    np.testing.assert_array_equal(example.tokens, np.array([10, 11, 12, 1], np.int32))
    assert example.tokens.dtype == np.int32
    assert not example.truncated


@pytest.mark.parametrize(
    ("text", "tokens", "truncated"),
    [("abc", [10, 11, 12, 1], False), ("abcd", [10, 11, 12, 1], True), ("ab", [10, 11, 1], False)],
)
def test_truncation_keeps_the_end(tmp_path, text, tokens, truncated):
    example = one(tmp_path, json.dumps({"en": text}).encode(), limit=4)
    assert (example.tokens.tolist(), example.truncated) == (tokens, truncated)


def test_prefix_and_no_eos(tmp_path):
    example = one(tmp_path, b'{"en": "b"}', prefix="a", eos_id=None, limit=3)
    assert (example.tokens.tolist(), example.inputs) == ([10, 11], "b")
    assert one(tmp_path, b'{"en": "bbbb"}', eos_id=None, limit=3).tokens.tolist() == [11, 11, 11]


def test_missing_reference_is_none(tmp_path):
    assert one(tmp_path, b'{"en": "a"}').targets is None
    assert one(tmp_path, b'{"en": "a", "de": null}').targets is None


@pytest.mark.parametrize(
    ("line", "stage", "error_type"),
    [
        (b'{"en": "a"', "read", "MalformedJson"),
        (b"[" * 100_000, "read", "MalformedJson"),
        (b'{"en": ' + b"1" * 5000 + b"}", "read", "MalformedJson"),
        (b'"en"', "read", "NotAnObject"),
        (b"  ", "read", "EmptyLine"),
        (b'{"de": "a"}', "read", "MissingField"),
        (b'{"en": null}', "read", "WrongType"),
        (b'{"en": ["a"]}', "read", "WrongType"),
        (b'{"en": "a", "de": 4}', "read", "WrongType"),
        (b'{"en": " \\n "}', "read", "EmptyInput"),
        (b'{"en": "\xff"}', "read", "InvalidUtf8"),
        (b'{"en": "\\udc00"}', "read", "InvalidText"),
        (b'{"en": "a!"}', "tokenize", "RuntimeError"),
        (b'{"en": "??"}', "tokenize", "NoTokens"),
    ],
)
def test_broken_record(tmp_path, line, stage, error_type):
    error = one(tmp_path, line)
    assert (error.stage, error.error_type, error.place, error.index) == (stage, error_type, "a.jsonl:2", 1)
    assert error.message
    assert len(error.record) <= 4096
    assert error.record_truncated == (len(line) > 4096)


@pytest.mark.parametrize(
    ("line", "example_id"),
    [(b'{"en": "a", "k": "x"}', "x"), (b'{"en": "a", "k": 12}', "12")],
)
def test_id_from_the_record(tmp_path, line, example_id):
    assert one(tmp_path, line, fields=RecordFields("en", "", "k")).example_id == example_id


@pytest.mark.parametrize(
    ("line", "error_type"),
    [
        (b'{"en": "a"}', "MissingField"),
        (b'{"en": "a", "k": ""}', "WrongType"),
        (b'{"en": "a", "k": 1.5}', "WrongType"),
        (b'{"en": "a", "k": "\\ud800"}', "WrongType"),
    ],
)
def test_bad_id(tmp_path, line, error_type):
    error = one(tmp_path, line, fields=RecordFields("en", "", "k"))
    assert (error.error_type, error.example_id) == (error_type, "a.jsonl:2")


def test_byte_order_mark(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"en": "a", "de": "x"}\n{"en": "b"}\n')
    assert [example.inputs for example in read(path).examples] == ["a", "b"]


def test_text_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b'\xef\xbb\xbfab\r\n{"en": "c"}\n\n\xff\n cd')
    spec = InputSpec("text", RecordFields("text"), (str(path),))
    work = ShardTable(plan_input(spec, Cut(100)))[0]
    shard = read_shard(work, spec, Letters(), prefix="", eos_id=1, max_input_tokens=8)
    assert [(e.example_id, e.inputs) for e in shard.examples] == [
        ("a.txt:1", "ab"), ("a.txt:2", '{"en": "c"}'), ("a.txt:5", " cd"),
    ]  # fmt: skip
    assert [(e.example_id, e.error_type) for e in shard.errors] == [("a.txt:3", "EmptyLine"), ("a.txt:4", "InvalidUtf8")]


def test_fields_at_dotted_paths(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"en": "a", "t": {"en": "b", "de": "y"}, "t.de": "z"}')
    (example,) = read(path, fields=RecordFields("t.en", "t.de")).examples
    assert (example.inputs, example.targets) == ("b", "z")


@pytest.mark.parametrize("block", [4, 1 << 22])
def test_endless_line(tmp_path, monkeypatch, block):
    """A line beyond the limit is an error of its own, of which no more than the limit is held."""
    monkeypatch.setattr(lines, "MAX_RECORD_BYTES", 64)
    monkeypatch.setattr(lines, "_BLOCK_BYTES", block)
    error = one(tmp_path, b'{"en": "' + b"a" * 1000 + b'"}')
    assert (error.error_type, error.place, len(error.record)) == ("RecordTooLong", "a.jsonl:2", 64)


def test_changed_file(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"en": "a"}\n' * 6)
    spec = InputSpec("jsonl", RecordFields("en"), (str(path),))
    work = ShardTable(plan_input(spec, Cut(4)))[1]
    path.write_text('{"en": "a"}\n' * 5)
    with pytest.raises(InputError, match="has changed"):
        read_shard(work, spec, Letters(), prefix="", eos_id=1, max_input_tokens=8)


# Decoder-only models.


def test_what_the_tokeniser_begins_with(tmp_path, monkeypatch):
    """Of BART's inputs too, as in transformers; where languages stand around a text, they take its place."""
    monkeypatch.setattr(Letters, "begin", (7,))
    assert one(tmp_path, b'{"en": "ab"}', translation=Translation(8, False, 9)).tokens.tolist() == [9, 8, 10, 11, 1]
    assert one(tmp_path, b'{"en": "ab"}', translation=Translation(8, True, None)).tokens.tolist() == [10, 11, 1, 8]
    assert one(tmp_path, b'{"en": "ab"}', eos_id=None).tokens.tolist() == [7, 10, 11]
    assert one(tmp_path, b'{"en": "ab"}').tokens.tolist() == [7, 10, 11, 1]
    assert one(tmp_path, b'{"en": "??"}', eos_id=None).error_type == "NoTokens"


def test_an_empty_text_may_become_the_start_token(tmp_path):
    for line in (b'{"en": ""}', b'{"en": "??"}'):
        example = one(tmp_path, line, eos_id=None, empty_id=5)
        assert (example.tokens.tolist(), example.truncated) == ([5], False)
    assert one(tmp_path, b'{"en": "ab"}', eos_id=None, empty_id=5).tokens.tolist() == [10, 11]


def test_conversations(tmp_path):
    template = ChatTemplate("{% for m in messages %}{{ m.role[0] }}{{ m.content }}{% endfor %}a")
    found = one(tmp_path, b'{"en": ["b", "c", "d"]}', eos_id=None, prefix="p", chat_template=template)
    assert "".join(chr(97 + i - 10) for i in found.tokens) == "ubacupda"
    assert found.inputs == '["b", "c", "d"]'
    text = one(tmp_path, b'{"en": "bcdefg"}', eos_id=None, limit=5, chat_template=template)
    assert ("".join(chr(97 + i - 10) for i in text.tokens), text.truncated) == ("ubcda", True)
    error = one(tmp_path, b'{"en": [{"role": "user"}]}', eos_id=None, chat_template=template)
    assert (error.stage, error.error_type) == ("tokenize", "ChatError")
