"""The policy of γ = "auto" by itself: what it chooses from which costs and which acceptances."""

import json

import numpy as np
import pytest

from decoding.adaptive import GammaPolicy, decode_costs, encode_costs


def probes(policy: GammaPolicy, chunks: int, accepted: float) -> list[int]:
    """Numbers of the chunks that were probes, where so much of 8 guesses at each place is accepted."""
    found = []
    for chunk in range(chunks):
        gamma, probe = policy.choose()
        if probe:
            found.append(chunk)
        policy.observe(gamma, np.full(gamma, 8 * accepted), np.full(gamma, 8))
    return found


def test_little_is_decoded_before_something_is_known_of_the_draft():
    policy = GammaPolicy({0: 1.0, 3: 1.2})
    assert policy.choose() == (3, True), "short: a draft is believed in, but not yet seen"
    policy.observe(3, np.array([4, 0, 0]), np.array([8, 4, 0]))
    assert policy.choose() == (3, True)
    policy.observe(3, np.array([4, 4, 2]), np.array([4, 4, 4]))
    assert policy.choose() == (3, False)
    assert GammaPolicy({0: 1.0, 3: 9.0}).choose() == (0, False)


def test_a_draft_that_never_pays_is_looked_at_after_48_chunks_and_then_twice_as_many_each_time():
    assert probes(GammaPolicy({0: 1.0, 3: 9.0}), 400, accepted=0.0) == [48, 48 + 97, 48 + 97 + 193]


def test_a_draft_is_not_given_up_for_a_few_wrong_guesses():
    """Found on the shipped pair: two of the first ten guesses of a shard were right, of all 64%, and γ stayed 0 to its end."""
    policy = GammaPolicy({0: 1.0, 2: 1.7})
    policy.observe(2, np.array([2, 0]), np.array([8, 2]))
    assert policy.acceptance[0] < 0.6 and policy.choose() == (2, True)
    policy.observe(2, np.array([16, 10]), np.array([24, 16]))
    assert policy.choose() == (2, False)
    hopeless = GammaPolicy({0: 1.0, 2: 1.7})
    hopeless.observe(2, np.array([8, 0]), np.array([40, 8]))
    assert hopeless.choose() == (0, False)


def test_a_draft_that_begins_to_pay_is_noticed_and_then_watched_as_from_the_start():
    policy = GammaPolicy({0: 1.0, 3: 3.1})
    probes(policy, 48 + 97 + 193, accepted=0.0)
    assert policy.choose() == (3, True)
    while policy.choose()[0] == 0 or policy.choose()[1]:  # ends as soon as the draft is used on its merits
        gamma, _ = policy.choose()
        policy.observe(gamma, np.full(gamma, 512), np.full(gamma, 512))
    policy.observe(3, np.full(3, 0), np.full(3, 4096))
    assert policy.choose() == (0, False)
    assert probes(policy, 60, accepted=0.0) == [48]


def test_the_choice_maximises_tokens_per_second_over_all_gammas():
    costs = {0: 1.0, 1: 1.1, 2: 1.5, 5: 2.5}
    policy = GammaPolicy(costs)
    policy.observe(5, np.full(5, 9_000_000), np.full(5, 10_000_000))
    alpha = policy.acceptance[0]
    rates = {gamma: sum(alpha**i for i in range(gamma + 1)) / cost for gamma, cost in costs.items()}
    assert abs(alpha - 0.9) < 1e-3 and max(rates, key=rates.get) == 5
    assert policy.choose() == (5, False), rates


def test_iterations_in_which_a_cascades_model_rests_cost_what_they_cost():
    """Guesses that are mostly copied pay though the model's would not: what an iteration costs follows who made them."""
    costs = {0: 1.0, 3: 4.0, -3: 1.2}
    copied, drafted = GammaPolicy(costs), GammaPolicy(costs)
    copied.observe(3, np.full(3, 900), np.full(3, 1000), iterations=1000, rested=900)
    drafted.observe(3, np.full(3, 900), np.full(3, 1000), iterations=1000, rested=100)
    assert copied.choose() == (3, False) and drafted.choose() == (0, False)
    assert copied.seconds(3) == pytest.approx(0.1 * 4.0 + 0.9 * 1.2) and drafted.seconds(0) == 1.0
    for _ in range(100):  # and it is forgotten as acceptance is
        copied.observe(3, np.full(3, 900), np.full(3, 1000), iterations=1000, rested=0)
    assert copied.choose() == (0, False)
    assert decode_costs(json.loads(json.dumps(encode_costs(costs)))) == costs


def test_costs_in_json_and_those_of_older_versions():
    costs = {0: 0.5, 3: 0.75, 10: 1.0}
    assert encode_costs(costs) == {"0": 0.5, "3": 0.75, "10": 1.0}
    assert decode_costs(json.loads(json.dumps(encode_costs(costs)))) == costs
    assert decode_costs([[512, 0, 0.5], [512, 3, 0.75], [512, 10, 1.0]]) == costs
    for wrong in ({"0": "fast"}, {"0": None}, [1, 2], [[512, 0]], 3):
        with pytest.raises(ValueError, match="costs are no numbers by γ"):
            decode_costs(wrong)
