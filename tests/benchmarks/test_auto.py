"""benchmarks.auto and benchmarks.costs: what is called a fixed γ is one."""

from benchmarks.auto import always
from decoding.adaptive import policy_of


def test_a_fixed_gamma_is_taken_whatever_it_costs():
    gammas, costs = (0, 1, 3), {0: 1.0, 1: 50.0, 3: 90.0}
    with always(3):
        assert policy_of(gammas, costs).choose() == (3, False)
    assert policy_of(gammas, costs).choose() == (0, False)
