"""A decoder of known cost in place of a model: it sleeps, so that workers never take the processor from one another.

    python -m benchmarks.known_cost --seconds=0.0125 --log=FILE --config=... --output=... [options of pipeline.generate]

runs `pipeline.generate` with it, on any runner. Every shard appends one line to the log: when its sleep began and ended.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import os
import sys
import time
from pathlib import Path

import numpy as np

import decoding
from pipeline import generate

_ITERATIONS, _GAMMA = 10, 3


@dataclasses.dataclass(frozen=True)
class Report:
    """The fields of `decoding.EngineReport` that the handlers read."""

    iterations: int
    row_iterations: int
    seconds: float
    compilations: int = 0


@dataclasses.dataclass(frozen=True)
class Shard:
    """One line of the log: the process, and when its sleep began and ended, in seconds since 1970."""

    process: int
    began: float
    ended: float


class KnownCost:
    """In place of `decoding.Generator`. Unlike it, it lets its threads decode at the same time."""

    costs = ()

    def __init__(self, config: decoding.DecodingConfig, seconds: float, log: str):
        self.config, self._seconds, self._log = config, seconds, log

    def plain(self) -> KnownCost:
        return self

    def generate_with_report(self, inputs, example_ids, hints=None) -> tuple[list[decoding.Generation], Report]:
        began = time.time()
        time.sleep(self._seconds * len(inputs))
        ended = time.time()
        append(self._log, Shard(os.getpid(), began, ended))
        results = [generation(self._seconds) for _ in range(len(inputs) * self.config.num_samples)]
        return results, Report(len(results) * _ITERATIONS, len(results) * _ITERATIONS, ended - began)


def generation(seconds: float) -> decoding.Generation:
    """As long as a translated sentence, with every record that a speculative one has: 40 tokens in 10 iterations."""
    length = _ITERATIONS * (_GAMMA + 1)
    examined = np.tile([True] * _GAMMA + [False], _ITERATIONS)
    return decoding.Generation(
        tokens=np.arange(100, 100 + length, dtype=np.int32),
        source=np.where(examined, 1, 2).astype(np.int8),
        iteration=np.repeat(np.arange(_ITERATIONS, dtype=np.int32), _GAMMA + 1),
        beta=np.where(examined, 0.75, np.nan).astype(np.float32),
        target_logprob=np.full(length, -1.0, np.float32),
        draft_logprob=np.where(examined, -1.5, np.nan).astype(np.float32),
        gammas=np.full(_ITERATIONS, _GAMMA, np.int16),
        accepted=np.full(_ITERATIONS, _GAMMA, np.int16),
        finish_reason="length",
        decode_seconds=seconds,
    )


def append(log: str, shard: Shard) -> None:
    """Adds a line in one write, so that processes do not tear each other's."""
    file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(file, f"{shard.process} {shard.began:.6f} {shard.ended:.6f}\n".encode())
    finally:
        os.close(file)


def read_log(log: Path) -> list[Shard]:
    lines = (line.split() for line in log.read_text().splitlines())
    return [Shard(int(process), float(began), float(ended)) for process, began, ended in lines]


def build(models, config, costs, *, seconds: float, log: str) -> KnownCost:
    """A `GeneratorFactory`, once its keyword arguments are bound."""
    del models, costs
    return KnownCost(config, seconds, log)


def main(args: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--seconds", type=float, required=True, help="per example")
    parser.add_argument("--log", required=True)
    own, rest = parser.parse_known_args(args)
    return generate.main(rest, factory=functools.partial(build, seconds=own.seconds, log=own.log))


if __name__ == "__main__":
    from benchmarks import known_cost  # whose functions workers can import by name, which __main__'s they cannot

    sys.exit(known_cost.main(sys.argv[1:]))
