"""Slots, refill and records, on scripted models whose answers are known by hand."""

import collections
import itertools
import threading

import jax
import numpy as np
import pytest

import decoding.engine
from decoding import DecodingConfig, Generator
from tests.support import scripted
from tests.support.records import assert_same, check_consistency

MAX_TOKENS = 12


def examples(count: int, seed: int = 0) -> tuple[list[list[int]], list[str]]:
    """Inputs of 1 to 8 tokens."""
    rng = np.random.default_rng(seed)
    return [rng.integers(2, 6, size=rng.integers(1, 9)).tolist() for _ in range(count)], [
        f"ex-{i}" for i in range(count)
    ]


def config(**changes) -> DecodingConfig:
    defaults = dict(max_decode_tokens=MAX_TOKENS, num_slots=8, input_buckets=(8,), chunk_iterations=4)
    return DecodingConfig(**(defaults | changes))


@pytest.fixture(scope="module")
def target():
    return scripted.random_script(0)


@pytest.fixture(scope="module")
def draft(target):
    return scripted.near(target, 1, noise=0.7)


@pytest.fixture(scope="module")
def generator(target, draft):
    """Generators by their config's changes, each built once."""
    built = {}

    def get(**changes) -> Generator:
        key = config(**changes)
        if key not in built:
            built[key] = Generator(target, draft, key)
        return built[key]

    return get


# Worked by hand.


def test_records_of_a_scripted_run_are_those_worked_out_by_hand():
    # The target says 3 4 5 6 2 1(EOS).  The draft says 3 4 7 6 2 1: wrong at place 2 alone.  γ = 2:
    #   iteration 0: drafts 3 4, both accepted, bonus 5
    #   iteration 1: drafts 6 2, both accepted, bonus 1, the end
    target, draft = scripted.reciting([3, 4, 5, 6, 2, 1]), scripted.reciting([3, 4, 7, 6, 2, 1])
    # For γ = 2 the budget is exactly what is needed: EOS as its last token is "eos".
    budgets = {2: 6, 5: MAX_TOKENS}

    def run(gamma):
        settings = config(gamma=gamma, temperature=0.0, max_decode_tokens=budgets[gamma])
        return Generator(target, draft, settings).generate([[2]], ["a"])[0]

    row = run(2)
    np.testing.assert_array_equal(row.tokens, [3, 4, 5, 6, 2, 1])
    np.testing.assert_array_equal(row.source, [1, 1, 2, 1, 1, 2])
    np.testing.assert_array_equal(row.iteration, [0, 0, 0, 1, 1, 1])
    np.testing.assert_array_equal(row.gammas, [2, 2])
    np.testing.assert_array_equal(row.accepted, [2, 2])
    np.testing.assert_array_equal(row.beta, [1, 1, np.nan, 1, 1, np.nan])
    assert row.finish_reason == "eos" and row.num_iterations == 2
    # γ = 5:
    #   iteration 0: drafts 3 4 7 6 2, two accepted, 7 corrected to 5
    #   iteration 1: drafts 6 2 1 and then, past the period, 3 4: EOS inside the block ends the row
    row = run(5)
    np.testing.assert_array_equal(row.tokens, [3, 4, 5, 6, 2, 1])
    np.testing.assert_array_equal(row.source, [1, 1, 0, 1, 1, 1])
    np.testing.assert_array_equal(row.iteration, [0, 0, 0, 1, 1, 1])
    np.testing.assert_array_equal(row.gammas, [5, 5])
    np.testing.assert_array_equal(row.accepted, [2, 3])
    np.testing.assert_array_equal(row.beta, [1, 1, 0, 1, 1, 1])
    # log-probabilities of the raw models: 9 against seven zeros, at temperature 1 although decoding is greedy.
    sure = 9 - np.log(np.exp(9) + 7)
    np.testing.assert_allclose(row.target_logprob, [sure] * 6, atol=1e-6)
    np.testing.assert_allclose(row.draft_logprob, [sure, sure, sure - 9, sure, sure, sure], atol=1e-6)


def test_the_budget_cuts_a_block_and_says_length():
    model = scripted.reciting([3, 4, 5, 6, 2, 7, 1])
    row = Generator(model, model, config(gamma=7, temperature=0.0, max_decode_tokens=3)).generate([[2]], ["a"])[0]
    np.testing.assert_array_equal(row.tokens, [3, 4, 5])
    np.testing.assert_array_equal(row.source, [1, 1, 1])
    np.testing.assert_array_equal(row.accepted, [3])
    assert row.finish_reason == "length" and row.num_iterations == 1


def test_the_scripted_model_itself_notices_a_hole():
    model = scripted.random_script(3)
    state = model.init_state(2, 4, 8) | model.prefill(np.array([[2, 3], [2, 3]]), np.array([2, 2]))
    start = np.zeros(2, np.int32)
    _, state = model.step(np.array([[0, 4, 5], [0, 4, 5]]), start, state)
    whole, _ = model.step(np.array([[3], [3]]), start + 3, state)
    np.testing.assert_array_equal(whole[0, 0], scripted.next_logits(model, [2, 3], [4, 5, 3]))
    for place, stale in [(0, 0), (1, 0), (2, 0), (1, 4)]:
        holed, _ = model.step(np.array([[3], [3]]), start + 3, state | {"fed": state["fed"].at[1, place].set(stale)})
        np.testing.assert_array_equal(holed[0], whole[0])
        assert np.abs(holed[1] - whole[1]).max() > 0.1


# Greedy.


# Two buckets, so that refilled rows differ in length from the resident ones.
@pytest.mark.parametrize(
    ("gamma", "buckets"),
    [
        (0, (8,)),
        (2, (4, 8)),
        (7, (8,)),
        pytest.param(1, (4, 8), marks=pytest.mark.slow),
        pytest.param(4, (4, 8), marks=pytest.mark.slow),
    ],
)
def test_greedy_output_is_plain_greedy_with_more_examples_than_slots(generator, target, gamma, buckets):
    inputs, ids = examples(50)
    rows, report = generator(gamma=gamma, temperature=0.0, input_buckets=buckets).generate_with_report(inputs, ids)
    for tokens, row in zip(inputs, rows):
        assert row.tokens.tolist() == scripted.greedy(target, tokens, MAX_TOKENS)
    assert {row.finish_reason for row in rows} == {"eos", "length"}, "the script must exercise both ends"
    if gamma:
        sources = np.concatenate([row.source for row in rows])
        assert all(np.mean(sources == source) > 0.02 for source in ((0, 1, 2) if gamma < 7 else (0, 1)))
    assert report.compilations == 0
    assert report.row_iterations == sum(row.num_iterations for row in rows)
    assert 0.5 < report.occupancy <= 1.0
    assert report.occupancy == report.row_iterations / (report.iterations * 8)


def test_gamma_far_beyond_the_budget_changes_nothing(target, draft):
    inputs, ids = examples(20)
    for budget, gamma in [(1, 7), (5, 16)]:
        rows = Generator(target, draft, config(gamma=gamma, temperature=0.0, max_decode_tokens=budget)).generate(
            inputs, ids
        )
        for tokens, row in zip(inputs, rows):
            assert row.tokens.tolist() == scripted.greedy(target, tokens, budget)


# What a row's result may depend on.

VERIFIED = [
    dict(gamma=3, verification="token"),
    dict(gamma=3, verification="block"),
    dict(gamma=3, verification="coupled"),
    dict(gamma=3, verification="token", lenience=0.5, top_k=4),
    dict(gamma=0),
]
NAMES = ["token", "block", "coupled", "lenient", "plain"]


@pytest.mark.parametrize(
    ("changes", "others"),
    [
        pytest.param(*case, id=name, marks=[pytest.mark.slow] if name in ("block", "lenient", "coupled") else [])
        for name, *case in zip(NAMES, VERIFIED, [(1,), (64,), (64,), (64,), (64,)])
    ],
)
def test_records_do_not_depend_on_slots_or_arrival_order(generator, changes, others):
    inputs, ids = examples(70)
    whole = generator(**changes).generate(inputs, ids)
    shuffled = np.random.default_rng(5).permutation(len(ids))
    again = generator(**changes).generate([inputs[i] for i in shuffled], [ids[i] for i in shuffled])
    assert_same([whole[i] for i in shuffled], again)
    for slots in others:
        assert_same(whole, generator(**changes, num_slots=slots).generate(inputs, ids))


def test_records_do_not_depend_on_how_examples_are_split_into_calls(generator):
    inputs, ids = examples(70)
    engine = generator(gamma=3)
    whole = engine.generate(inputs, ids)
    for shards in (2, 7, 70):
        parts = [engine.generate(inputs[i::shards], ids[i::shards]) for i in range(shards)]
        assert_same(whole, [parts[i % shards][i // shards] for i in range(len(ids))])


def test_records_do_not_depend_on_chunk_length(generator):
    inputs, ids = examples(30)
    assert_same(generator(gamma=3).generate(inputs, ids), generator(gamma=3, chunk_iterations=1).generate(inputs, ids))


def test_seed_and_example_id_change_the_samples(generator):
    inputs, ids = examples(70)
    tokens = lambda rows: [row.tokens.tolist() for row in rows]
    base = tokens(generator(gamma=3).generate(inputs, ids))
    differing = lambda other: sum(a != b for a, b in zip(base, tokens(other)))
    assert differing(generator(gamma=3, seed=1).generate(inputs, ids)) > 35
    assert differing(generator(gamma=3).generate(inputs, [f"other-{i}" for i in ids])) > 35


def test_samples_of_one_input_are_adjacent_differ_and_agree_with_fewer_samples(generator):
    inputs, ids = examples(20)
    one, many = generator(gamma=3).generate(inputs, ids), generator(gamma=3, num_samples=5).generate(inputs, ids)
    assert len(many) == 100
    assert_same(one, many[::5])
    for i in range(20):
        assert len({tuple(row.tokens) for row in many[5 * i : 5 * i + 5]}) > 1


def test_threads_take_turns(generator):
    inputs, ids = examples(40)
    engine = generator(gamma=3)
    halves = [(inputs[:20], ids[:20]), (inputs[20:], ids[20:])]
    alone = [engine.generate(*half) for half in halves]
    together = [None, None]

    def work(i):
        together[i] = engine.generate(*halves[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for a, b in zip(alone, together):
        assert_same(a, b)


# Coupled.


def assert_coupled(plain, rows):
    """The same samples; log-probabilities may differ in the last bits, as programs of different γ may round."""
    assert_same(plain, rows, ["tokens"])
    for one, other in zip(plain, rows):
        np.testing.assert_allclose(one.target_logprob, other.target_logprob, atol=1e-5)


def test_coupled_samples_are_those_of_plain_decoding_whatever_the_draft(generator, target):
    inputs, ids = examples(70)
    plain = generator(gamma=0, verification="coupled").generate(inputs, ids)
    assert_coupled(plain, generator(gamma=3, verification="coupled").generate(inputs, ids))
    unrelated = Generator(target, scripted.random_script(99), config(gamma=7, verification="coupled"))
    rows = unrelated.generate(inputs, ids)
    assert_coupled(plain, rows)
    assert 0.05 < np.mean(np.concatenate([row.source for row in rows]) == 1) < 0.8


@pytest.mark.slow
@pytest.mark.parametrize("gamma", [1, 2, 5, 7])
def test_coupled_samples_are_those_of_plain_decoding_for_more_gammas(generator, target, gamma):
    inputs, ids = examples(70)
    plain = generator(gamma=0, verification="coupled").generate(inputs, ids)
    assert_coupled(plain, generator(gamma=gamma, verification="coupled").generate(inputs, ids))
    same = Generator(target, target, config(gamma=gamma, verification="coupled")).generate(inputs, ids)
    assert_coupled(plain, same)
    assert not any(np.any(row.source == 0) for row in same)


# Consistency of a row's records with each other.


@pytest.mark.parametrize(
    "changes",
    [
        *VERIFIED,
        dict(gamma=7, temperature=0.0),
        pytest.param(dict(gamma=7, verification="block", top_k=3), marks=pytest.mark.slow),
        dict(gamma=4, temperature=0.0, lenience=0.3),
        pytest.param(dict(gamma=1), marks=pytest.mark.slow),
        pytest.param(dict(gamma=5, top_p=0.8, temperature=0.7), marks=pytest.mark.slow),
        pytest.param(dict(gamma=7, verification="coupled", top_p=0.9), marks=pytest.mark.slow),
        pytest.param(dict(gamma=4, temperature=0.0, verification="block"), marks=pytest.mark.slow),
    ],
    ids=lambda changes: "-".join(f"{name}-{value}" for name, value in changes.items()),
)
def test_records_of_every_row_are_consistent(generator, changes):
    inputs, ids = examples(60, seed=2)
    engine = generator(**changes)
    for row in engine.generate(inputs, ids):
        check_consistency(row, engine.config, eos_id=1, vocab_size=6)


# Refusals.


def test_bad_calls_are_refused(generator, target):
    engine = generator(gamma=3)
    with pytest.raises(ValueError, match="distinct.*'a'"):
        engine.generate([[2], [3], [2]], ["a", "b", "a"])
    with pytest.raises(ValueError, match="2 inputs and 1 example"):
        engine.generate([[2], [3]], ["a"])
    with pytest.raises(ValueError, match="'empty' has 0 tokens.*1 to 8"):
        engine.generate([[2], []], ["fine", "empty"])
    with pytest.raises(ValueError, match="'long' has 9 tokens.*1 to 8"):
        engine.generate([[2] * 9], ["long"])
    for token in (-1, 6, 2**31):
        with pytest.raises(ValueError, match=f"'odd'.*{token}"):
            engine.generate([[2, token]], ["odd"])
    assert len(engine.generate([[2]], ["after"])) == 1, "a refused call must leave the engine usable"


def test_nothing_in_nothing_out(generator):
    rows, report = generator(gamma=3).generate_with_report([], [])
    assert rows == [] and report.iterations == 0 and report.compilations == 0


def test_bad_pairs_are_refused(target, draft):
    with pytest.raises(ValueError, match="gamma is 3 without a draft"):
        Generator(target, None, config(gamma=3))
    with pytest.raises(ValueError, match="7 tokens.*6"):
        Generator(target, scripted.random_script(0, vocab_size=7), config(gamma=3))
    assert Generator(target, None, config(gamma=0)).generate([[2]], ["a"])[0].source[0] == 3


# Compiled once.


def test_nothing_is_compiled_after_construction(target, draft):
    engine = Generator(target, draft, config(gamma=3, num_samples=2, input_buckets=(2, 4, 8)))
    events = []
    listen = lambda event, duration, **_: events.append(event) if "backend_compile" in event else None
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        inputs, ids = examples(40)
        reports = [engine.generate_with_report(inputs, ids)[1]]
        for length in range(1, 9):  # every bucket as the resident one
            reports.append(engine.generate_with_report([[2] * length, [3]], [f"{length}-a", f"{length}-b"])[1])
        assert events == [] and {report.compilations for report in reports} == {0}
        jax.jit(lambda x: x * 3 + len(ids))(np.ones(7))
        assert events, "the listener must notice a compilation"
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


# γ = "auto".


class Cycle:
    """In place of `GammaPolicy`: γ by turns, every chunk another, so that the draft's cache often falls behind."""

    def __init__(self, costs):
        del costs
        self._turns = itertools.cycle([3, 0, 1, 0, 0, 3, 3, 0])

    def choose(self):
        return next(self._turns), False

    def observe(self, gamma, accepted, examined, iterations, rested):
        assert len(accepted) == len(examined) == gamma and np.all(accepted <= examined)


AUTO = dict(gamma="auto", gamma_choices=(0, 1, 3), num_slots=4, chunk_iterations=2, max_decode_tokens=24)
COSTS = {0: 1.0, 1: 1.0, 3: 1.0}


def test_a_draft_that_sat_out_some_chunks_has_no_hole_in_its_cache(target, monkeypatch):
    monkeypatch.setattr(decoding.adaptive, "GammaPolicy", Cycle)
    engine = Generator(target, target, config(**AUTO), costs=COSTS)
    inputs, ids = examples(40)
    rows, report = engine.generate_with_report(inputs, ids)
    assert set(report.gammas) == {0, 1, 3} and report.compilations == 0
    assert sum(report.gammas.values()) == report.iterations
    assert any(len(set(row.gammas)) > 1 for row in rows)
    for row in rows:
        check_consistency(row, engine.config, eos_id=1, vocab_size=6)
    sources = np.concatenate([row.source for row in rows])
    assert np.sum(sources == 1) > 50 and np.sum(sources == 0) == 0, "a draft equal to the target is always accepted"


def test_changing_gammas_leave_greedy_output_and_order_alone(target, draft, monkeypatch):
    monkeypatch.setattr(decoding.adaptive, "GammaPolicy", Cycle)
    engine = Generator(target, draft, config(**AUTO, temperature=0.0), costs=COSTS)
    inputs, ids = examples(40)
    rows = engine.generate(inputs, ids)
    for tokens, row in zip(inputs, rows):
        assert row.tokens.tolist() == scripted.greedy(target, tokens, 24)
    assert_same(rows[::-1], engine.generate(inputs[::-1], ids[::-1]))


def test_auto_measures_costs_and_chooses_by_them(target, draft):
    inputs, ids = examples(40)
    engine = Generator(target, draft, config(**AUTO))
    assert set(engine.costs) == set(COSTS) and all(seconds > 0 for seconds in engine.costs.values())
    dear = Generator(target, draft, config(**AUTO), costs={0: 1.0, 1: 9.0, 3: 9.0})
    report = dear.generate_with_report(inputs, ids)[1]
    assert report.gammas[0] > 0.9 * report.iterations, "but for probes, a draft that does not pay is not used"
    free = Generator(target, target, config(**AUTO), costs=COSTS)
    assert set(free.generate_with_report(inputs, ids)[1].gammas) == {3}
    with pytest.raises(ValueError, match=r"costs lack the gammas \[3\]; they have \[0, 1\]"):
        Generator(target, draft, config(**AUTO), costs={0: 1.0, 1: 1.0})


def test_a_draft_that_never_pays_is_not_prefilled(target, draft):
    """But for probes, after 48 chunks for the first time, with the rows that are decoding then."""
    engine = Generator(target, draft, config(**AUTO), costs={0: 1.0, 1: 9.0, 3: 9.0})
    calls = collections.Counter()

    def counting(name, program):
        def call(*args):
            calls.update({name[0], name})
            return program(*args)

        return call

    programs = engine._programs
    programs._compiled = {name: counting(name, program) for name, program in programs._compiled.items()}
    inputs, ids = examples(20)  # eight a prefill
    gammas = engine.generate_with_report(inputs, ids)[1].gammas
    assert set(gammas) == {0} and calls["prefill"] == 3 and calls["prefill draft"] == calls["insert draft"] == 0
    calls.clear()
    inputs, ids = examples(60)
    engine.generate(inputs, ids)
    probes = calls["chunk", 3]
    assert probes >= 1 and calls["prefill"] == 8 and calls["prefill draft"] <= 2 * probes


def test_records_are_the_same_bits_in_shards_of_short_and_of_long_inputs(golden):
    """Caches have one length whatever a shard's longest input is, so a row's floats round the same way everywhere."""
    models = [decoding.load_model(str(golden / name)) for name in ("t5_v1_1_target", "t5_v1_1_draft")]
    rng = np.random.default_rng(5)
    texts = [rng.integers(3, 380, size).tolist() for size in (3, 60, 14, 30, 7, 45)]
    names = [str(i) for i in range(len(texts))]
    settings = DecodingConfig(gamma=3, max_decode_tokens=24, num_slots=2, input_buckets=(16, 64))
    engine = Generator(*models, settings)
    together = engine.generate(texts, names)
    for i in range(len(texts)):
        (alone,) = engine.generate([texts[i]], [names[i]])
        np.testing.assert_array_equal(alone.tokens, together[i].tokens)
        np.testing.assert_array_equal(alone.beta, together[i].beta)
        np.testing.assert_array_equal(alone.target_logprob, together[i].target_logprob)
