"""A scorer without models, and reading what the score job left."""

import functools
import pathlib

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from decoding.scoring import DraftScores, TextScores


class FakeScorer:
    """Scores without models: β of a token depends on the token alone, and the draft called "silent" proposes nothing."""

    def __init__(self, settings, trap=""):
        self._settings, self._trap = settings, trap

    def problem(self, inputs, tokens):
        return None if len(tokens) <= self._settings.config.max_decode_tokens else "too long"

    def compilations(self):
        return 0

    def score(self, inputs, texts):
        if self._trap and pathlib.Path(self._trap).exists():
            raise RuntimeError("the accelerator is gone")
        return [self._scores(np.asarray(tokens)) for tokens in texts]

    def _scores(self, tokens):
        zeros = np.zeros(len(tokens), np.float32)
        return TextScores(-tokens.astype(np.float32), zeros, {
            name: DraftScores(
                zeros + np.nan if name == "silent" else beta_of(tokens),
                np.stack([beta_of(tokens) / 2 for _ in self._settings.lenience], axis=-1)
                if self._settings.lenience else np.zeros((len(tokens), 0), np.float32),
                zeros, zeros, tokens % 2 == 0,
            )
            for name in self._settings.names
        })  # fmt: skip


def beta_of(tokens):
    return (np.asarray(tokens) % 8 / 8).astype(np.float32)


def fake(**kwargs):
    return functools.partial(FakeScorer, **kwargs)


def scores(folder: pathlib.Path) -> pd.DataFrame:
    table = pa.concat_tables([pq.read_table(path) for path in sorted((folder / "scores").iterdir())])
    rows = table.drop_columns(["shard"]).to_pandas().sort_values(["index", "sample"]).reset_index(drop=True)
    for name in rows.columns[rows.columns.str.startswith("lenient_beta_")]:
        rows[name] = [np.stack(cell) for cell in rows[name]]
    return rows
