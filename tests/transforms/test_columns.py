"""The columns of parts are what they always were, and what the docs say."""

import pathlib
import re

import pytest

from transforms.columns import BEAMS, GENERATIONS, ORIGINS, meaning, schema, score_columns

DOCS = pathlib.Path(__file__).resolve().parents[2] / "docs"
SCORES = score_columns(("big", "bi_gram"), lenient=True)


def test_generations():
    assert schema(GENERATIONS).to_string() == (
        "example_id: string not null\nshard: int32 not null\nindex: int64 not null\nsample: int32 not null\n"
        "inputs: string not null\n"
        "targets: string\nprediction: string not null\n"
        "input_tokens: list<item: int32> not null\n  child 0, item: int32\n"
        "output_tokens: list<item: int32> not null\n  child 0, item: int32\n"
        "finish_reason: string not null\ninput_truncated: bool not null\n"
        "source: list<item: int8> not null\n  child 0, item: int8\n"
        "iteration: list<item: int32> not null\n  child 0, item: int32\n"
        "beta: list<item: float> not null\n  child 0, item: float\n"
        "target_logprob: list<item: float> not null\n  child 0, item: float\n"
        "draft_logprob: list<item: float> not null\n  child 0, item: float\n"
        "gammas: list<item: int16> not null\n  child 0, item: int16\n"
        "accepted: list<item: int16> not null\n  child 0, item: int16\n"
        "num_iterations: int32 not null\ndecode_seconds: float not null"
    )


def test_scores():
    names = ["example_id", "shard", "index", "sample", "input_tokens", "tokens", "text_truncated", "target_logprob",
             "target_entropy"]  # fmt: skip
    kinds = ["beta", "draft_logprob", "draft_entropy", "argmax_agrees", "lenient_beta"]
    of_drafts = [f"{kind}_{draft}" for draft in ("big", "bi_gram") for kind in kinds]
    assert schema(SCORES).names == names + of_drafts
    assert not any(field.nullable for field in schema(SCORES))
    assert schema(score_columns(("big",), lenient=False)).names == names + [f"{kind}_big" for kind in kinds[:-1]]
    assert str(schema(SCORES).field("lenient_beta_big").type) == "list<item: list<item: float>>"


def test_meanings():
    assert meaning("beta") == next(column.meaning for column in GENERATIONS if column.name == "beta")
    assert meaning("lenient_beta_bi_gram") == "per token and lenience l: sum of min(p / l, q), for the draft bi_gram"
    assert all(meaning(column.name) == column.meaning for column in SCORES)


@pytest.mark.parametrize(
    ("page", "columns"),
    [("outputs.md", GENERATIONS + ORIGINS + BEAMS), ("alpha_datasets.md", score_columns(("<draft>",), lenient=True))],
)
def test_docs_have_every_column_with_its_type(page, columns):
    rows = re.findall(r"^\| (`.*?) \| (.*?) \| .* \|$", (DOCS / page).read_text(), re.MULTILINE)
    documented = []
    for names, types in rows:
        names, types = re.findall(r"`([^`]+)`", names), re.sub(r"\[\w\]", "", types).split(", ")
        documented += zip(names, types * len(names) if len(types) == 1 else types)
    shown = {"float": "float32", "list<item: float>": "list<float32>", "list<item: list<item: float>>": "list<list<float32>>"}
    expected = [(column.name, shown.get(str(column.type), str(column.type).replace("item: ", ""))) for column in columns]
    assert [row for row in documented if row[0] in dict(expected)] == expected
