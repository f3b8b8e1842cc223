"""Reading parts of generations and score folders for the analysis: only the columns that it needs, as flat arrays."""

import hashlib
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from decoding.config import ACCEPTED, CORRECTED
from transforms.parts import read_rows, read_schema
from transforms.statistics.analysis import Texts

SHOWN_TEXTS = 3
_SHOWN_TOKENS = (8, 60)
_LOWEST = float(np.finfo(np.float32).min)
_GENERATED = ("example_id", "output_tokens", "source", "iteration", "beta", "gammas", "accepted")
_SHOWN = ("example_id", "inputs", "output_tokens", "source", "iteration", "beta", "target_logprob", "draft_logprob", "gammas",
          "accepted")  # fmt: skip


def read_tokens(path: str, column: str) -> np.ndarray:
    """int64[N], the tokens of all texts of a part."""
    return _flat(read_rows(path, (column,)), column).astype(np.int64)


def read_generations(path: str) -> Texts:
    """A part of a generations folder."""
    names = set(read_schema(path).names)
    if "steps" in names:
        return _read_searches(path)
    copied = ("origin", "match") if {"origin", "match"} <= names else ()
    table = read_rows(path, _GENERATED + copied)
    copied = copied if not any(table[name].null_count for name in copied) else ()  # as of what does not tell
    lengths, calls = _lengths(table, "output_tokens"), _lengths(table, "gammas")
    row = np.repeat(np.arange(len(lengths)), lengths)
    iteration = _flat(table, "iteration").astype(np.int64)
    first = np.ones(len(row), bool)  # of the tokens of a target call
    first[1:] = (row[1:] != row[:-1]) | (iteration[1:] != iteration[:-1])
    numbers = np.arange(len(row))
    return Texts(
        example_ids=table["example_id"].to_pylist(),
        lengths=lengths,
        tokens=_flat(table, "output_tokens").astype(np.int64),
        beta=_flat(table, "beta").astype(np.float64),
        place=numbers - np.maximum.accumulate(np.where(first, numbers, 0)),
        source=_flat(table, "source").astype(np.int64),
        gammas=_flat(table, "gammas").astype(np.int64),
        accepted=_flat(table, "accepted").astype(np.int64),
        calls=calls,
        **{name: _flat(table, name).astype(np.int64) for name in copied},
    )


def _read_searches(path: str) -> Texts:
    """A part of beam searches, each as a text of its steps: β of one for which something was drafted is 1 where it was covered,
    else 0. So all that is told of α is told of coverage. Steps beyond the end of the best text have its last token."""
    columns = ("example_id", "sample", "output_tokens", "steps", "gammas", "accepted")
    table = read_rows(path, columns)
    table = table.filter(pa.array(np.asarray(table["sample"]) == 0))
    lengths, calls = _lengths(table, "steps"), _lengths(table, "gammas")
    steps = _flat(table, "steps").astype(np.int64)
    texts = [np.asarray(tokens, np.int64) for tokens in table["output_tokens"].to_pylist()]
    tokens = [text[np.minimum(np.arange(size), len(text) - 1)] for text, size in zip(texts, lengths)]
    first = np.ones(len(steps), bool)  # of the steps of a target call, which ends with one that is not covered
    first[1:] = steps[:-1] != ACCEPTED
    first[np.cumsum(lengths)[:-1]] = True
    numbers = np.arange(len(steps))
    return Texts(
        example_ids=table["example_id"].to_pylist(),
        lengths=lengths,
        tokens=np.concatenate([np.zeros(0, np.int64), *tokens]),
        beta=np.where(steps == ACCEPTED, 1.0, np.where(steps == CORRECTED, 0.0, np.nan)),
        place=numbers - np.maximum.accumulate(np.where(first, numbers, 0)),
        source=steps,
        gammas=_flat(table, "gammas").astype(np.int64),
        accepted=_flat(table, "accepted").astype(np.int64),
        calls=calls,
    )


def read_scores(path: str, drafts: Mapping[str, bool], lenience: tuple[float, ...]) -> dict[str, Texts]:
    """A part of a score folder, by draft.

    Args:
      path: of the part.
      drafts: names, and whether log-probabilities at temperature 1 are those of p and q themselves, so that they tell
        the probability min(1, q / p) with which the token that is there was accepted.
      lenience: values of `lenient_beta_<draft>`.
    """
    columns = ["example_id", "tokens"]
    for name, plain in drafts.items():
        columns += [f"beta_{name}", *([f"draft_logprob_{name}", "target_logprob"] if plain else [])]
        columns += [f"lenient_beta_{name}"] if lenience else []
    table = read_rows(path, tuple(dict.fromkeys(columns)))
    ids, lengths = table["example_id"].to_pylist(), _lengths(table, "tokens")
    tokens, found = _flat(table, "tokens").astype(np.int64), {}
    for name, plain in drafts.items():
        acceptance = None
        if plain:
            with np.errstate(invalid="ignore"):  # -inf less -inf: neither could have made the token
                log_ratio = _flat(table, f"draft_logprob_{name}").astype(np.float64) - _flat(table, "target_logprob")
            acceptance = np.exp(np.minimum(log_ratio, 0.0))
        lenient = {}
        if lenience:
            values = _flat(table, f"lenient_beta_{name}").flatten().to_numpy(zero_copy_only=False)
            lenient = dict(zip(lenience, values.astype(np.float64).reshape(-1, len(lenience)).T))
        beta = _flat(table, f"beta_{name}").astype(np.float64)
        found[name] = Texts(ids, lengths, tokens, beta, acceptance=acceptance, lenient=lenient)
    return found


def texts_to_show(path: str) -> list[tuple[tuple, dict]]:
    """Some generations of a part, the ones that show most, with keys by which the best of all parts are chosen.

    For JSON, which has neither: NaN is None, and the logarithm of 0 the lowest float32.
    """
    table = read_rows(path, _SHOWN)
    found = []
    for number, (name, source) in enumerate(zip(table["example_id"].to_pylist(), table["source"].to_pylist())):
        if _SHOWN_TOKENS[0] <= len(source) <= _SHOWN_TOKENS[1] and set(source) != {3}:
            digest = hashlib.blake2b(f"shown {name} {number}".encode(), digest_size=8).hexdigest()
            found.append(((-len({0, 1, 2} & set(source)), digest), number))
    chosen = sorted(found)[:SHOWN_TEXTS]
    rows = [(key, table.slice(number, 1).to_pylist()[0]) for key, number in chosen]
    for _, row in rows:
        for name in ("beta", "target_logprob", "draft_logprob"):
            row[name] = [None if math.isnan(value) else max(value, _LOWEST) for value in row[name]]
    return rows


def _flat(table: pa.Table, column: str) -> Any:
    """The values of a list column: NumPy, or an Arrow list array where the values are lists themselves."""
    values = table[column].combine_chunks()
    values = values.flatten() if isinstance(values, pa.ListArray) else pa.concat_arrays(values.chunks).flatten()
    return values if pa.types.is_list(values.type) else values.to_numpy(zero_copy_only=False)


def _lengths(table: pa.Table, column: str) -> np.ndarray:
    """int64[n], lengths of a list column's lists."""
    return table[column].combine_chunks().value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
