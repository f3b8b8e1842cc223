"""Names that scripts import, wherever what they name has moved to."""

import importlib

import pytest


@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("transforms.aggregate", ("DecodedText", "Statistics", "poisson_weights", "shard_statistics")),
        ("transforms.chat", ("ChatTemplate",)),
        ("transforms.finish", ("write_summary",)),
        ("transforms.plan", ("Cut", "InputError", "InputSpec", "RecordFields", "plan_input")),
        ("transforms.tokenize", ("load_tokenizer",)),
        ("transforms.write", ("read_footer",)),
    ],
)
def test_import(module, names):
    assert all(callable(getattr(importlib.import_module(module), name)) for name in names)
