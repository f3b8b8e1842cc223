"""Folders as jobs leave them, of simulated decoding whose β are known: what the analysis must find is known too.

Text i has its own level; its β follow an autoregression around it. A call accepts each guess with probability β of its
position, independently given β, as token verification does. Scores hold the same β at every position.
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.special import ndtr

from decoding import DecodingConfig, Generation
from transforms.folder import fingerprint_of
from transforms.parts import FOOTER_KEY, Footer, encode_table
from transforms.records import Example
from transforms.statistics.generations import Statistics
from transforms.write import Row, rows_table

TEXTS, SHARD = 120, 30
PAIR = {"target": "models/pair/target", "draft": "models/pair/draft", "tokenizer": "", "dtype": "float32"}
IDENTITY = {"target": {"w": "aa"}, "draft": {"w": "bb"}}


def betas(number: int, *, constant: float | None = None) -> np.ndarray:
    """float64[T] of text `number`; all equal to `constant` where it is given."""
    rng = np.random.default_rng([7, number])
    level, length = rng.normal(0.4, 0.7), int(rng.integers(8, 60))
    state, found = rng.normal(), []
    for _ in range(length):
        found.append(ndtr(level + state))
        state = 0.7 * state + np.sqrt(1 - 0.49) * rng.normal()
    return np.full(length, constant) if constant is not None else np.array(found)


def generation(number: int, gamma: int, seed: int, beta: np.ndarray) -> Generation:
    """Decodes text `number`, whose tokens are given, with token verification."""
    rng = np.random.default_rng([seed, number, gamma])
    length, source, iteration, examined, gammas, accepted = len(beta), [], [], [], [], []
    while len(source) < length:
        call, done = len(gammas), 0
        while True:
            at = len(source)
            bonus = done == gamma
            taken = not bonus and rng.random() < beta[at]
            source.append(2 if bonus and gamma else 3 if bonus else int(taken))
            examined.append(np.nan if bonus else beta[at])
            iteration.append(call)
            done += taken
            if not taken or len(source) == length:
                break
        gammas.append(gamma)
        accepted.append(done)
    tokens = np.random.default_rng([9, number]).integers(3, 300, length).astype(np.int32)
    tokens[-1] = 1
    logprob = np.random.default_rng([8, number]).uniform(-2, -0.1, length)
    beta32 = np.array(examined, np.float32)
    return Generation(
        tokens=tokens, source=np.array(source, np.int8), iteration=np.array(iteration, np.int32), beta=beta32,
        target_logprob=logprob.astype(np.float32),
        draft_logprob=np.where(np.isnan(beta32), np.nan, logprob + np.log(beta)).astype(np.float32),
        gammas=np.array(gammas, np.int16), accepted=np.array(accepted, np.int16), finish_reason="eos", decode_seconds=1.0,
    )  # fmt: skip


def make_generations(
    folder: pathlib.Path,
    *,
    gamma: int = 3,
    seed: int = 0,
    temperature: float = 1.0,
    baseline: Callable[[int], bool] = lambda shard: False,
    constant: float | None = None,
    inputs: Callable[[int], str] = lambda number: f"input number {number}",
    texts: int = TEXTS,
    name: str = "data.jsonl",
    model: dict | None = None,
    weights: dict = IDENTITY,
    code: str = "c0",
) -> pathlib.Path:
    """A finished folder of `pipeline.generate`; plain shards take twice as long per token."""
    decoding = DecodingConfig(gamma=gamma, seed=seed, temperature=temperature)
    model = model or PAIR
    identity = {
        "input": {"files": [{"name": name}]},
        "model": {role: weights[role] for role in ("target", "draft") if model[role]},
        "decoding": {"seed": seed},
        "code": code,
        "made": [gamma, temperature, constant],
    }
    fingerprint = fingerprint_of(identity)
    (folder / "generations").mkdir(parents=True)
    shards = -(-texts // SHARD)
    for shard in range(shards):
        numbers = range(shard * SHARD, min((shard + 1) * SHARD, texts))
        plain = baseline(shard)
        made = [generation(n, 0 if plain else gamma, seed, betas(n, constant=constant)) for n in numbers]
        rows = [
            Row(Example(f"{name}:{n}", n, inputs(n), None, np.array([4, 1], np.int32), False), 0, one, "prediction")
            for n, one in zip(numbers, made)
        ]
        tokens = sum(len(one.tokens) for one in made)
        statistics = Statistics(parts=1, tokens=tokens, generate_seconds=tokens * (2 if plain else 1) * (1 + shard / 100))
        footer = Footer(shard, fingerprint, 1, "cpu", statistics, plain)
        path = folder / "generations" / f"part-{shard:05d}-of-{shards:05d}.parquet"
        path.write_bytes(encode_table(rows_table(rows, shard), footer))
    finish(folder, identity, shards, decoding, name, {"model": model})
    return folder


def make_scores(folder: pathlib.Path, *, temperature: float = 1.0, constant: float | None = None) -> pathlib.Path:
    """A finished folder of `pipeline.score` over the same texts: the draft, and a copying one that proposes now and then."""
    decoding = DecodingConfig(temperature=temperature)
    drafts, lenience = ("small", "lookup"), [0.5, 0.1]
    identity = {
        "input": {"files": [{"name": "data.jsonl"}]},
        "model": {"target": IDENTITY["target"]},
        "drafts": {"small": IDENTITY["draft"], "lookup": {"copies": 3}},
        "score": {"lenience": lenience},
        "made": [temperature, constant],
    }
    fingerprint = fingerprint_of(identity)
    (folder / "scores").mkdir(parents=True)
    shards = -(-TEXTS // SHARD)
    for shard in range(shards):
        columns: dict[str, list] = {}
        for n in range(shard * SHARD, (shard + 1) * SHARD):
            beta = betas(n, constant=constant)
            one = generation(n, 0, 0, beta)
            logprob = one.target_logprob.astype(np.float64)
            quiet = np.arange(len(beta)) % 3 > 0
            lookup = np.where(quiet, np.nan, beta / 2)
            row = {"example_id": f"data.jsonl:{n}", "shard": shard, "index": n, "sample": 0, "tokens": one.tokens,
                   "target_logprob": logprob}  # fmt: skip
            for name, b in zip(drafts, (beta, lookup)):
                row |= {
                    f"beta_{name}": b,
                    f"draft_logprob_{name}": logprob + np.log(b),
                    f"lenient_beta_{name}": [[min(x / value, 1.0) for value in lenience] for x in b],
                }
            for key, value in row.items():
                columns.setdefault(key, []).append(value)
        types = {"example_id": pa.string(), "shard": pa.int32(), "index": pa.int64(), "sample": pa.int32(),
                 "tokens": pa.list_(pa.int32())}  # fmt: skip
        arrays = {
            key: pa.array(
                values, types.get(key) or (pa.list_(pa.list_(pa.float32())) if "lenient" in key else pa.list_(pa.float32()))
            )
            for key, values in columns.items()
        }
        footer = json.dumps({"fingerprint": fingerprint, "shard": shard}).encode()
        table = pa.table(arrays).replace_schema_metadata({FOOTER_KEY: footer})
        pq.write_table(table, folder / "scores" / f"part-{shard:05d}-of-{shards:05d}.parquet")
    paths = {"small": PAIR["draft"], "lookup": "prompt_lookup"}
    finish(
        folder, identity, shards, decoding, "data.jsonl", {"model": PAIR, "score": {"drafts": paths}},
        job="score", drafts=list(drafts), text={"source": "generations", "of_target": True, "same_sampling": True, "seed": 0},
    )  # fmt: skip
    return folder


def finish(folder, identity, shards, decoding, name, config, **more) -> None:
    """What a run leaves besides its parts; of the manifest what an early version wrote."""
    fingerprint = fingerprint_of(identity)
    manifest = {
        "fingerprint": fingerprint,
        "num_shards": shards,
        "identity": identity,
        "config": {"input": {"pattern": f"data/{name}"}, "decoding": dataclasses.asdict(decoding), **config},
        **more,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    summary = {"fingerprint": fingerprint, "shards": {"total": shards, "committed": shards, "missing": []}}
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "_SUCCESS").write_text("")


def make_benchmark(folder: pathlib.Path, *, complete: bool = True) -> pathlib.Path:
    """benchmark.json of the pair: γ = 3, and γ = auto, at temperature 1 and one slot."""
    folder.mkdir(parents=True)
    ratio = lambda mean: {"mean": mean, "low": mean * 0.95, "high": mean * 1.05, "repeats": 7}
    row = {"num_slots": 1, "temperature": 1.0, "verification": "token", "tokens_per_target_call": 2.0, "seconds": [1.0],
           "iterations": [100], "iteration_cost": ratio(1.4),
           "alpha": {"mean": 0.6, "low": 0.58, "high": 0.62}}  # fmt: skip
    results = {
        "complete": complete,
        "config": {
            "model": PAIR,
            "input": {"pattern": "data/data.jsonl"},
            "decoding": {"top_k": 0, "top_p": 1.0, "lenience": 1.0},
        },
        "identity": {**IDENTITY, "tokenizer": "t", "code": "c0"},
        "rows": [
            {**row, "gamma": 0, "alpha": None, "speedup": None, "predicted": None},
            {**row, "gamma": 3, "speedup": ratio(1.5), "predicted": {}},
            {**row, "gamma": "auto", "speedup": ratio(1.6), "predicted": None},
        ],
        "costs": [
            {"num_slots": 1, "target_seconds": {"1": [0.008]}, "c": ratio(0.1),
             "pass_cost": {str(w): ratio(1 + 0.1 * (w - 1)) for w in (1, 2, 4, 8)}},
        ],
        "machine": {"usable_cores": 2, "processor": "a processor", "device": {"kind": "cpu"}, "versions": {"jax": "0"}},
        "inputs": {"examples": 64, "shortest": 3, "longest": 60},
        "models": {
            "target": {"shape": {"d_model": 256, "num_heads": 8, "d_kv": 32, "num_decoder_layers": 3, "num_layers": 4,
                                 "gated": True, "d_ff": 768, "vocab_size": 8192, "tied": True, "activation": "relu",
                                 "scale_decoder_outputs": True}},
            "draft": {"shape": {"d_model": 96, "num_heads": 4, "d_kv": 32, "num_decoder_layers": 1, "num_layers": 1,
                                "gated": True, "d_ff": 256, "vocab_size": 8192, "tied": True, "activation": "relu",
                                "scale_decoder_outputs": True}},
        },
    }  # fmt: skip
    (folder / "benchmark.json").write_text(json.dumps(results))
    return folder
