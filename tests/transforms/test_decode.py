"""The model handlers: in anyone's pipeline, one failing example alone, a failing device as a whole."""

import dataclasses
import functools
import secrets
import time
from concurrent.futures import ThreadPoolExecutor

import apache_beam as beam
import jax
import numpy as np
import pytest
from apache_beam.ml.inference.base import RunInference
from apache_beam.testing.util import assert_that

from decoding import DecodingConfig, NonFiniteLogits
from pipeline.runners.options import LOCAL_RUNNER
from tests.pipeline import fakes
from transforms import DecodeFailure, Prompt, SpeculativeModelHandler, costs
from transforms.decode import ShardModelHandler, decode_batch, is_baseline
from transforms.folder import Manifest, fingerprint_of
from transforms.models import Models
from transforms.records import Example, TokenizedShard, WorkShard
from transforms.storage import OutputFolder

CONFIG = DecodingConfig(gamma=2, max_decode_tokens=9, num_slots=4)


def prompts(count: int) -> list[Prompt]:
    return [Prompt(f"id{i}", [i + 3, 1]) for i in range(count)]


def shard(count: int) -> TokenizedShard:
    work = WorkShard(5, 9, "f", "f", 0, count, 0, None)
    examples = (Example(f"id{i}", i, "text", None, np.array([i + 3, 1], np.int32), False) for i in range(count))
    return TokenizedShard(work, 1, tuple(examples), ())


def test_in_a_pipeline_of_ones_own():
    handler = SpeculativeModelHandler("t", "d", CONFIG, batch_size=4, factory=fakes.factory(poisoned=("id6",)))

    def check(results):
        found = {result.example.example_id: result.inference for result in results}
        assert len(results) == len(found) == 10
        assert found.pop("id6") == DecodeFailure("ArithmeticError", "poisoned by id6")
        for prompt in prompts(10):
            if prompt.example_id == "id6":
                continue
            (generation,) = found[prompt.example_id]
            expected = fakes.fake_generation(CONFIG, tuple(prompt.tokens), prompt.example_id)
            np.testing.assert_array_equal(generation.tokens, expected.tokens)
        assert {result.model_id for result in results} == {"t"}

    with beam.Pipeline(runner=LOCAL_RUNNER) as root:
        assert_that(root | beam.Create(prompts(10)) | RunInference(handler), check)


def test_handler_is_what_run_inference_needs():
    handler = SpeculativeModelHandler("t", config=DecodingConfig(gamma=0), batch_size=7)
    assert handler.batch_elements_kwargs() == {"min_batch_size": 1, "max_batch_size": 7}
    assert handler.get_num_bytes([Prompt("a", [1, 2]), Prompt("b", [1])]) == 12
    assert handler.get_metrics_namespace() == "specbeam"
    assert handler.share_model_across_processes() is False
    handler.validate_inference_args(None)
    with pytest.raises(ValueError, match="temperature"):
        handler.validate_inference_args({"temperature": 1.0})


def test_results_are_a_list_in_order():
    handler = SpeculativeModelHandler("t", "d", CONFIG, factory=fakes.factory())
    results = handler.run_inference(prompts(5), handler.load_model())
    assert isinstance(results, list)
    assert [result.example.example_id for result in results] == [f"id{i}" for i in range(5)]


class Overflowing(fakes.FakeGenerator):
    """Whose target gives no logits for some examples, and draft for one."""

    def __init__(self, config, target: tuple[int, ...], draft: tuple[int, ...] = ()):
        super().__init__(config)
        self._spoilt = dict.fromkeys(target, "target model") | dict.fromkeys(draft, "draft model")

    def generate_with_report(self, inputs, example_ids, hints=None):
        results, report = super().generate_with_report(inputs, example_ids)
        results = [None if i in self._spoilt else result for i, result in enumerate(results)]
        raise NonFiniteLogits(self._spoilt, results, example_ids, report)


def test_logits_that_are_not_finite_are_errors_that_name_the_model():
    for target, draft in (((0, 3), (4,)), (tuple(range(5)), ())):
        factory = lambda *_, t=target, d=draft: Overflowing(CONFIG, t, d)
        handler = ShardModelHandler("unused", Models("t", "d"), CONFIG, factory=factory)
        (decoded,) = handler.run_inference([shard(5)], handler.load_model())
        assert decoded.failure is None  # though it be all of them: each says why
        failures = {i: one for i, one in enumerate(decoded.results) if isinstance(one, DecodeFailure)}
        say = lambda whose: DecodeFailure("NonFiniteLogits", f"logits of the {whose} model are not finite")
        assert failures == dict.fromkeys(target, say("target")) | dict.fromkeys(draft, say("draft"))
        assert decoded.counters.row_iterations > 0


def test_only_the_culprits_fail():
    model = fakes.FakeGenerator(CONFIG, poisoned=("id0", "id7", "id8"))
    tokens, ids = [p.tokens for p in prompts(13)], [p.example_id for p in prompts(13)]
    results, counters = decode_batch(model, tokens, ids)
    failed = [name for name, result in zip(ids, results) if isinstance(result, DecodeFailure)]
    assert failed == ["id0", "id7", "id8"]
    generations = [result[0] for result in results if isinstance(result, tuple)]
    assert counters.row_iterations == sum(generation.num_iterations for generation in generations)
    assert counters.slot_iterations == counters.row_iterations * CONFIG.num_slots


def test_samples_are_grouped():
    config = DecodingConfig(gamma=2, max_decode_tokens=9, num_samples=3)
    results, _ = decode_batch(fakes.FakeGenerator(config), [[3], [4]], ["a", "b"])
    assert [len(result) for result in results] == [3, 3]
    expected = fakes.fake_generation(config, (4,), "b", 2)
    np.testing.assert_array_equal(results[1][2].tokens, expected.tokens)


def test_shards_stay_together():
    handler = ShardModelHandler("unused", Models("t", "d"), CONFIG, factory=fakes.factory(poisoned=("id1",)))
    (result,) = handler.run_inference([shard(3)], handler.load_model())
    assert result.failure is None
    assert [isinstance(one, DecodeFailure) for one in result.results] == [False, True, False]
    assert result.tokenized.work.shard == 5
    assert result.device


def test_the_first_shard_tells_what_loading_has_compiled():
    def factory(*_):
        for _ in range(2):
            number = secrets.randbits(60)  # which no cache has seen
            jax.jit(lambda x, number=number: x + number % 1_000_003 / 7.0).lower(0.0).compile()
        return fakes.FakeGenerator(CONFIG)

    handler = ShardModelHandler("unused", Models("t", "d"), CONFIG, factory=factory)
    loaded = handler.load_model()
    assert [handler.run_inference([shard(3)], loaded)[0].compiled for _ in range(2)] == [2, 0]


@pytest.mark.parametrize(("count", "fails"), [(3, True), (1, False), (0, False)])
def test_a_shard_whose_examples_all_fail_is_set_aside(count, fails):
    handler = ShardModelHandler("unused", Models("t", "d"), CONFIG, factory=fakes.factory(broken=True))
    (result,) = handler.run_inference([shard(count)], handler.load_model())
    assert (result.failure is not None) == fails
    if fails:
        assert (result.failure.shard, result.failure.stage) == (5, "decode")
        assert "all 3 examples failed" in result.failure.message


def test_baseline_shards_are_a_share_chosen_by_hash():
    chosen = [is_baseline(shard, 0.25, 7) for shard in range(4000)]
    assert 995 < sum(chosen) < 1005
    assert all(4 <= sum(chosen[first : first + 20]) <= 6 for first in range(3980))  # a small job has its share too
    assert all(not c or is_baseline(shard, 0.3, 7) for shard, c in enumerate(chosen))  # more of them, the same ones
    assert chosen != [is_baseline(shard, 0.25, 8) for shard in range(4000)]
    assert not any(is_baseline(shard, 0.0, 7) for shard in range(100))
    assert all(is_baseline(shard, 1.0, 7) for shard in range(100))


@pytest.mark.parametrize(("fraction", "source"), [(0.0, 2), (1.0, 3)])
def test_a_baseline_shard_is_decoded_plainly(fraction, source):
    handler = ShardModelHandler("unused", Models("t", "d"), CONFIG, factory=fakes.factory(), baseline_fraction=fraction)
    (result,) = handler.run_inference([shard(8)], handler.load_model())
    assert result.baseline == (fraction == 1)
    assert {int(g.source[-1]) for (g,) in result.results} <= {0, source}
    assert all((g.gammas == 0).all() for (g,) in result.results) == (fraction == 1)


def test_baseline_and_other_shards_take_turns(monkeypatch):
    """Threads of a process have one device, and the two are compared by their times."""
    at_once, most, decode = [], [], fakes.FakeGenerator.generate_with_report

    def count(self, *args):
        at_once.append(self)
        most.append(len(at_once))
        time.sleep(0.01)
        at_once.pop()
        return decode(self, *args)

    monkeypatch.setattr(fakes.FakeGenerator, "generate_with_report", count)
    handler = ShardModelHandler("unused", Models("t", "d"), CONFIG, factory=fakes.factory(), baseline_fraction=0.5)
    model, one = handler.load_model(), shard(2)
    shards = [dataclasses.replace(one, work=dataclasses.replace(one.work, shard=i)) for i in range(8)]
    with ThreadPoolExecutor(4) as pool:
        decoded = list(pool.map(lambda one: handler.run_inference([one], model)[0], shards))
    assert {one.baseline for one in decoded} == {True, False}
    assert most == [1] * 8


def manifest() -> Manifest:
    config = {"input": {}, "model": {}, "decoding": {}}
    return Manifest("0", fingerprint_of({}), exact=True, started="", config=config, identity={}, num_shards=1)


def test_costs_are_measured_once_per_run(tmp_path):
    folder = OutputFolder(str(tmp_path))
    folder.put("manifest.json", manifest().encode())
    config = DecodingConfig(gamma="auto", input_buckets=(8, 16))

    handler = functools.partial(
        ShardModelHandler, str(tmp_path), Models("t", "d"), config, factory=fakes.factory()
    )

    def load():
        return handler().load_model().speculative.costs

    first, second = load(), load()
    assert first == second
    assert set(first) == set(config.gammas)
    costs.move_to_manifest(folder)
    folder.delete([costs.NAME])
    assert load() == first


def test_the_slower_worker_takes_the_faster_ones_costs(tmp_path):
    folder = OutputFolder(str(tmp_path))
    folder.put("manifest.json", manifest().encode())
    assert costs.freeze(folder, {0: 0.1, 2: 0.3}) == {0: 0.1, 2: 0.3}
    assert costs.freeze(folder, {0: 0.2, 2: 0.2}) == {0: 0.1, 2: 0.3}
