"""Running the job in a test, and reading what it left."""

import json
import pathlib

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import generate
from tests.pipeline import fakes


def run(args, expect=0, **fake):
    assert generate.main(args, factory=fakes.factory(**fake)) == expect


def files(folder: pathlib.Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def rows(folder: pathlib.Path) -> pd.DataFrame:
    """All rows without shard and times, by example id."""
    table = pa.concat_tables([pq.read_table(path) for path in sorted((folder / "generations").iterdir())])
    return table.drop_columns(["shard", "decode_seconds"]).to_pandas().sort_values("index").reset_index(drop=True)


def summary(folder: pathlib.Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


def errors(folder: pathlib.Path) -> list[dict]:
    found = sorted((folder / "errors").glob("*.jsonl"))
    return [json.loads(line) for path in found for line in path.read_text().splitlines()]


def assert_same_rows(a: pd.DataFrame, b: pd.DataFrame) -> None:
    assert list(a["example_id"]) == list(b["example_id"])
    for column in a.columns:
        for x, y in zip(a[column], b[column]):
            np.testing.assert_array_equal(x, y, err_msg=column)
