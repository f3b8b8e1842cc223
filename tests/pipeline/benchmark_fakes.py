"""For tests of the benchmark: generations made by hand, and a generator that always yields them."""

import math

import numpy as np

import decoding


def generation(beta: list[float], tokens=(5, 6, 1)) -> decoding.Generation:
    count = len(tokens)
    zeros = np.zeros(count, np.float32)
    return decoding.Generation(
        tokens=np.array(tokens, np.int32), source=np.ones(count, np.int8), iteration=np.zeros(count, np.int32),
        beta=np.array(beta, np.float32), target_logprob=zeros, draft_logprob=zeros, gammas=np.array([1], np.int16),
        accepted=np.array([1], np.int16), finish_reason="eos", decode_seconds=1.0,
    )  # fmt: skip


class FakeGenerator:
    """Three tokens per example and per repeat; γ = 2 gets one example wrong in every repeat, at any temperature."""

    calls: list[tuple]

    def __init__(self, target, draft, config, vocab_size=None):
        self.config, self.costs = config, {}

    def generate_with_report(self, inputs, example_ids, hints=None):
        FakeGenerator.calls.append((self.config.gamma, tuple(example_ids)))
        found = []
        for name in example_ids:
            wrong = self.config.gamma == 2 and name.startswith(("b/", "input.jsonl:2/"))
            found += [generation([0.5, 0.5, math.nan], (5, 7 if wrong else 6, 1))] * self.config.num_samples
        return found, decoding.EngineReport(4, 7, 0.875, 1, 0.5, 0, {self.config.gamma: 4})


class FakeTimer:
    """A pass over n positions takes (n + 1) / 2 ms at first, and a tenth more every time."""

    def __init__(self, model, *, num_slots, input_bucket, max_positions, positions, min_seconds):
        assert max_positions > max(positions) and num_slots > 0 and input_bucket > 0
        self._scale = 1e-3

    def seconds(self, example, span, order):
        assert len(example) > 0 and span > 0
        self._scale *= 1.1
        return {width: self._scale * (width + 1) / 2 for width in order}
