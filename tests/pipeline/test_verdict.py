"""The sentence says what the interval says."""

import pytest

from pipeline.benchmarking.verdict import of_benchmark, verdict


def ratio(mean, low, high):
    return {"mean": mean, "low": low, "high": high, "repeats": 5}


@pytest.mark.parametrize(
    ("speedup", "says"),
    [
        (ratio(1.5, 1.4, 1.6), "Speculation pays here: at 1 slot, γ = 3 is 1.50 times (1.40 to 1.60) as fast"),
        (ratio(0.7, 0.6, 0.8), "Speculation does not pay here: at 1 slot, γ = 3 is 0.70 times (0.60 to 0.80) as fast"),
        (ratio(1.1, 0.9, 1.3), "Whether speculation pays here is open: at 1 slot, γ = 3 is 1.10 times (0.90 to 1.30)"),
        (ratio(1.1, None, None), "Whether speculation pays here is open: at 1 slot, γ = 3 is 1.10 times as fast"),
    ],
)
def test_the_interval_decides(speedup, says):
    assert verdict(speedup, gamma=3, where="1 slot").startswith(says)


def test_reasons_are_the_cost_of_a_call_and_what_it_brings():
    text = verdict(
        ratio(1.5, 1.4, 1.6), gamma=3, where="here", pass_cost=ratio(1.2, 1.1, 1.3), alpha=0.631, tokens_per_call=2.04,
        draft_cost=0.1,
    )  # fmt: skip
    assert text.endswith(
        "because a call over 4 positions costs 1.20 of one over a single position, 3 draft calls 0.30, "
        "and of the guesses 63% are accepted (α), 2.04 tokens a call."
    )


def test_of_beams_a_call_has_nodes_and_decides_steps():
    text = verdict(
        ratio(1.5, 1.4, 1.6), gamma=2, where="here", pass_cost=ratio(1.6, 1.5, 1.7), alpha=0.3, tokens_per_call=1.4,
        draft_cost=0.1, positions=20, plain_positions=4,
    )  # fmt: skip
    assert text.endswith(
        "because a call over 20 positions costs 1.60 of one over 4, 2 draft calls 0.20, and of the steps 30% are covered, "
        "1.40 steps a call."
    )


def row(gamma, speedup, slots=1, temperature=0.0):
    return {
        "num_slots": slots, "temperature": temperature, "verification": "token", "gamma": gamma, "speedup": speedup,
        "alpha": {"mean": 0.5}, "tokens_per_target_call": 1.9,
    }  # fmt: skip


def test_of_a_benchmark_the_best_setting_is_told_and_where_it_loses():
    cost = {"num_slots": 1, "c": None, "pass_cost": {"1": ratio(1, 1, 1), "4": ratio(1.25, 1.2, 1.3)}}
    results = {
        "rows": [
            row(0, None),
            row(3, ratio(1.5, 1.4, 1.6)),
            row("auto", ratio(1.6, 1.4, 1.8)),
            row(0, None, 8),
            row(3, ratio(0.8, 0.7, 0.9), 8),
        ],
        "costs": [cost, {**cost, "num_slots": 8}],
    }
    text = of_benchmark(results)
    assert text.startswith("Speculation pays here: at 1 slot, temperature 0, γ = 3 is 1.50 times")
    assert "a call over 4 positions costs 1.25" in text
    assert text.endswith("It loses in 1 of 3 settings, most at 8 slots, temperature 0, γ = 3: 0.80 times.")
    assert of_benchmark({"rows": [row(0, None)], "costs": [cost]}) == ""


def test_a_choice_of_gamma_that_alone_is_sure_to_win_is_what_is_told():
    cost = {"num_slots": 1, "c": None, "pass_cost": {"4": ratio(1.9, 1.6, 2.2)}}
    rows = [row(0, None), row(3, ratio(1.13, 0.95, 1.35)), row("auto", ratio(1.32, 1.15, 1.52))]
    assert of_benchmark({"rows": rows, "costs": [cost]}) == (
        "Speculation pays here: at 1 slot, temperature 0, γ = auto is 1.32 times (1.15 to 1.52) as fast as plain decoding, "
        "because of the guesses 50% are accepted (α), 1.90 tokens a call."
    )
    rows[2] = row("auto", ratio(1.3, 0.9, 1.5))
    assert of_benchmark({"rows": rows, "costs": [cost]}).startswith("Whether speculation pays here is open: at 1 slot")
    assert "γ = 3 is 1.13" in of_benchmark({"rows": rows, "costs": [cost]})
