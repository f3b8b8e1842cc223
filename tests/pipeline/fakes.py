"""A generator without a model: tokens are a function of the example's id, input and sample, and can be computed by hand.

It keeps the engine's contract (order of inputs, samples adjacent, consistent per-token records), so everything around
the engine can be tested in milliseconds.
"""

import dataclasses
import functools
import hashlib
import os
import pathlib
import signal
import time

import numpy as np

import decoding

loads = 0
"""How often a generator was built in this process."""


@dataclasses.dataclass(frozen=True)
class FakeReport:
    """The fields of `decoding.EngineReport` that the handlers read."""

    iterations: int
    row_iterations: int
    seconds: float
    compilations: int


class FakeGenerator:
    def __init__(self, config, eos_id=1, poisoned=(), broken=False, costs=None, delay_secs=0.0, deadly=()):
        # Never the same twice, as measurements are.
        self.costs = costs or {gamma: time.perf_counter() for gamma in config.gammas}
        self.config, self.eos_id, self._poisoned, self._broken = config, eos_id, poisoned, broken
        self._delay_secs, self._deadly = delay_secs, deadly

    def plain(self):
        return FakeGenerator(dataclasses.replace(self.config, gamma=0), self.eos_id, self._poisoned)

    def generate_with_report(self, inputs, example_ids, hints=None):
        time.sleep(self._delay_secs)
        if not {*self._deadly}.isdisjoint(example_ids):
            os.kill(os.getpid(), signal.SIGKILL)
        if self._broken:
            raise RuntimeError("no device")
        for name in example_ids:
            if name in self._poisoned:
                raise ArithmeticError(f"poisoned by {name}")
        results = [
            fake_generation(self.config, tuple(int(t) for t in tokens), name, sample, self.eos_id)
            for tokens, name in zip(inputs, example_ids, strict=True)
            for sample in range(self.config.num_samples)
        ]
        iterations = sum(generation.num_iterations for generation in results)
        return results, FakeReport(iterations=iterations, row_iterations=iterations, seconds=0.25, compilations=0)


def fake_generation(config, tokens, name, sample=0, eos_id=1) -> decoding.Generation:
    """A generation whose every record is consistent, seeded with everything that may determine it."""
    seed = hashlib.sha256(repr((config.seed, config.temperature, tokens, name, sample)).encode()).digest()
    rng = np.random.default_rng(np.frombuffer(seed, np.uint32))
    length = int(rng.integers(1, config.max_decode_tokens + 1))
    source, iteration, gammas, accepted = [], [], [], []
    while len(source) < length:
        gamma = config.gammas[-1]
        n = min(int(rng.integers(0, gamma + 1)), length - len(source) - 1) if gamma else 0
        last = 3 if gamma == 0 else 2 if n == gamma else 0
        source += [1] * n + [last]
        iteration += [len(gammas)] * (n + 1)
        gammas.append(gamma)
        accepted.append(n)
    generated = rng.integers(3, 380, length)
    ended = bool(rng.integers(0, 2)) or length < config.max_decode_tokens
    if ended:
        generated[-1] = eos_id
    source = np.array(source, np.int8)
    beta = np.where(source >= 2, np.nan, rng.random(length)).astype(np.float32)
    return decoding.Generation(
        tokens=generated.astype(np.int32),
        source=source,
        iteration=np.array(iteration, np.int32),
        beta=beta,
        target_logprob=-rng.random(length).astype(np.float32),
        draft_logprob=np.where(np.isnan(beta), np.nan, -rng.random(length)).astype(np.float32),
        gammas=np.array(gammas, np.int16),
        accepted=np.array(accepted, np.int16),
        finish_reason="eos" if ended else "length",
        decode_seconds=float(rng.random()),
    )


def make_fake(models, config, costs, *, poisoned=(), broken=False, crash_file=None, delay_secs=0.0, deadly=()):
    """A `GeneratorFactory`. With `crash_file`, loading fails while that file exists."""
    global loads
    loads += 1
    if crash_file and pathlib.Path(crash_file).exists():
        raise RuntimeError("the accelerator is gone")
    return FakeGenerator(config, poisoned=poisoned, broken=broken, costs=costs, delay_secs=delay_secs, deadly=deadly)


def factory(**kwargs):
    return functools.partial(make_fake, **kwargs)
