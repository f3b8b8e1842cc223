"""Hints as they are read: from fields of records, cut and counted, and never a record's error."""

import json

import pytest

from tests.transforms.test_read import Letters, read
from transforms.hints import HintSettings
from transforms.inputs.base import RecordFields

FIELDS = RecordFields("en", hints=("old", "memory.match"))


@pytest.mark.parametrize(
    ("record", "hints", "cut"),
    [
        ({}, [], 0),
        ({"old": "ab"}, [[10, 11, 1]], 0),
        ({"old": "ab", "memory": {"match": "c"}}, [[10, 11, 1], [12, 1]], 0),
        ({"old": "abcdefg"}, [[10, 11, 12, 13, 14, 15, 16]], 1),  # seven tokens, and the end has no room
        ({"old": "abcdef", "memory": {"match": "c"}}, [[10, 11, 12], [12, 1]], 1),  # each has its share of the room
        ({"old": "c", "memory": {"match": "abcdef"}}, [[12, 1], [10, 11, 12, 13]], 1),  # and what the first leaves
        ({"old": "a" * 100_000}, [[10] * 7], 1),
        ({"old": None, "memory": {"match": 7}}, [], 0),
        ({"old": "", "memory": "no match"}, [], 0),
        ({"old": "a tokeniser refuses!", "memory": {"match": "??"}}, [], 0),
        ({"old": "\ud800"}, [], 0),
    ],
)
def test_hints_of_records(tmp_path, record, hints, cut):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"en": "x", "old": "a", "memory": {"match": "b"}}) + "\n" + json.dumps({"en": "y", **record}))
    shard = read(path, fields=FIELDS, hints=HintSettings(room=7, eos_id=1))
    assert not shard.errors
    assert [hint.tolist() for hint in shard.examples[0].hints] == [[10, 1], [11, 1]]
    example = shard.examples[1]
    assert ([hint.tolist() for hint in example.hints], example.hints_cut) == (hints, cut)


def test_the_tokeniser_of_these_tests_refuses_what_is_said_here():
    with pytest.raises(RuntimeError):
        Letters().encode("!")
    assert Letters().encode("??") == []
