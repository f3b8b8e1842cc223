"""Statistics of scores: right by hand, and the same for any sharding and order."""

import dataclasses
import json
import math

import numpy as np
import pytest

from decoding.scoring import DraftScores, TextScores
from transforms.statistics.combine import CombineStatistics
from transforms.statistics.scores import ScoredText, ScoreStatistics, score_statistics


def text(example_id: str, beta, recorded=None) -> ScoredText:
    beta = np.array(beta, np.float32)
    zeros = np.zeros(len(beta), np.float32)
    lenient = np.stack([np.minimum(2 * beta, 1)], axis=-1)
    scores = TextScores(zeros, zeros, {"d": DraftScores(beta, lenient, zeros, zeros, beta > 0.5)})
    recorded = None if recorded is None else np.array(recorded, np.float32)
    return ScoredText(example_id, 3, np.arange(len(beta)), False, scores, recorded)


def statistics(texts, **changes) -> ScoreStatistics:
    return score_statistics(texts, {}, ["d"], [0.5], **changes)


def test_by_hand():
    nan = math.nan
    texts = [text("a", [0.5, nan, 1.0], [0.5, nan, nan]), text("a", [0.25], [0.125]), text("b", [0.75, 0.5], [nan, 0.5])]
    found = statistics(texts, recorded="d", seconds=2.0).summary()
    draft = found["drafts"]["d"]
    assert (found["examples"], found["texts"], found["tokens"], found["input_tokens"]) == (2, 3, 6, 9)
    assert (draft["alpha"]["mean"], draft["alpha"]["positions"], draft["proposed"]) == (3.0 / 5, 5, 5 / 6)
    assert draft["agreement"]["mean"] == 2 / 5
    assert draft["lenient"]["0.5"]["mean"] == (1 + 1 + 0.5 + 1 + 1) / 5
    policy = draft["on_policy"]
    assert (policy["alpha"]["mean"], policy["alpha"]["positions"]) == (1.125 / 3, 3)
    assert policy["difference"]["mean"] == pytest.approx(0.6 - 0.375) and policy["beta_max_difference"] == 0.125
    assert policy["difference"]["low"] <= policy["difference"]["mean"] <= policy["difference"]["high"]
    assert found["timings"] == {"score_seconds": 2.0, "tokens_per_second": 3.0}


def test_nothing_scored():
    found = statistics([]).merge(ScoreStatistics()).summary()
    assert (found["tokens"], found["drafts"]) == (0, {})
    silent = statistics([text("a", [math.nan])]).summary()["drafts"]["d"]
    assert silent == {"alpha": None, "proposed": 0.0, "agreement": None, "lenient": {"0.5": None}, "on_policy": None}


def test_of_what_one_example_tells_the_spread_is_not_known():
    one, silent = text("a", [0.5, 1.0], [0.5, math.nan]), text("b", [math.nan], [math.nan])
    draft = statistics([one, silent], recorded="d").summary()["drafts"]["d"]
    assert [(part["mean"], part["low"], part["high"]) for part in (draft["alpha"], draft["on_policy"]["alpha"])] == [
        (0.75, 0.0, 1.0), (0.5, 0.0, 1.0),
    ]  # fmt: skip
    difference = draft["on_policy"]["difference"]
    assert (difference["mean"], difference["low"], difference["high"]) == (0.25, None, None)


def test_any_sharding_and_order():
    rng = np.random.default_rng(2)
    texts = [text(f"id{i}", rng.random(int(rng.integers(1, 9)))) for i in range(24)]
    whole = statistics(texts)
    cut = [statistics(texts[first : first + 5]) for first in range(0, 24, 5)]
    combine = CombineStatistics(ScoreStatistics)
    merged = combine.merge_accumulators([cut[3], combine.merge_accumulators([cut[1], cut[4]]), cut[0], cut[2]])
    assert merged.parts == 5 and dataclasses.replace(merged, parts=1) == whole
    assert ScoreStatistics.from_json(json.loads(json.dumps(merged.to_json()))) == merged
    assert merged.brief() == f"α {whole.summary()['drafts']['d']['alpha']['mean']:.3f} d"
