"""Ten thousand rows of which three thousand are broken, in twelve ways: every one is accounted for."""

import json
import random

from tests.pipeline.helpers import errors, rows, run, summary

BROKEN = {  # what is wrong, its error type, and the line
    "malformed JSON": ("MalformedJson", lambda i: b'{"en": "no end, "k": %d' % i),
    "two records in a line": ("MalformedJson", lambda i: b'{"en": "a", "k": %d} {"en": "b"}' % i),
    "not an object": ("NotAnObject", lambda i: b'["en", %d]' % i),
    "a field is missing": ("MissingField", lambda i: b'{"de": "nur deutsch", "k": %d}' % i),
    "a field is null": ("WrongType", lambda i: b'{"en": null, "k": %d}' % i),
    "a field has the wrong type": ("WrongType", lambda i: b'{"en": {"text": "deep"}, "k": %d}' % i),
    "an empty text": ("EmptyInput", lambda i: b'{"en": "", "k": %d}' % i),
    "whitespace only": ("EmptyInput", lambda i: b'{"en": " \\t\\u00a0\\n", "k": %d}' % i),
    "invalid UTF-8": ("InvalidUtf8", lambda i: b'{"en": "caf\xe9", "k": %d}' % i),
    "half a surrogate pair": ("InvalidText", lambda i: b'{"en": "half \\ud83d", "k": %d}' % i),
    "a blank line": ("EmptyLine", lambda i: b" " * (i % 3)),
    "the id has the wrong type": ("WrongType", lambda i: b'{"en": "a text", "k": [%d]}' % i),
}
GOOD = ("A sentence of ordinary words.", "with a NUL \0 in it", "\u202eright to left", "<script>alert(1)</script>", "ß" * 300)


def test_every_row_is_decoded_or_in_errors(command, tmp_path, sentences):
    kinds = [*BROKEN] * 250 + [""] * 7000
    random.Random(0).shuffle(kinds)
    lines = [
        BROKEN[kind][1](i) if kind else json.dumps({"en": f"{GOOD[i % len(GOOD)]} {i}", "de": "Satz", "k": i}).encode()
        for i, kind in enumerate(kinds)
    ]
    assert len(lines) == 10_000 and len(BROKEN) == 12
    sentences.write_bytes(b"\n".join(lines) + b"\n")
    run(command("--config.input.id_field=k", "--config.shards.examples_per_shard=256", "--config.decoding.max_decode_tokens=3"))
    found, out = errors(tmp_path / "out"), rows(tmp_path / "out")
    assert [(error["index"], error["error_type"]) for error in found] == [
        (i, BROKEN[kind][0]) for i, kind in enumerate(kinds) if kind
    ]
    for error in found:
        i = error["index"]
        assert error["place"] == f"input.jsonl:{i + 1}"
        assert error["stage"] == "read" and error["message"]
        assert error["record"] == lines[i].decode("utf-8", "backslashreplace")
    good = [i for i, kind in enumerate(kinds) if not kind]
    assert list(out["index"]) == good
    assert list(out["example_id"]) == [str(i) for i in good]
    assert list(out["inputs"]) == [f"{GOOD[i % len(GOOD)]} {i}" for i in good]
    total = summary(tmp_path / "out")
    assert (total["examples"], total["errors"], total["complete"]) == (7000, {"total": 3000, "read": 3000}, True)
    assert total["truncated_inputs"] == sum(out["input_truncated"]) > 0
