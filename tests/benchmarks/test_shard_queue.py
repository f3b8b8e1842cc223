"""The simulation against formulas, against a plain event-by-event one, and its accounts."""
import heapq
import math

import numpy as np
import pytest

from benchmarks import shard_queue
from benchmarks.shard_queue import Costs, SimulatedJob, drain_occupancy, simulate


def job(**changes) -> SimulatedJob:
    settings = dict(examples=1000, shard=10, workers=4, costs=Costs(decode=0.5))
    return SimulatedJob(**(settings | changes))


@pytest.mark.parametrize(
    ("examples", "workers", "waves"),
    [(1000, 4, 25), (1010, 4, 26), (1001, 4, 26), (30, 4, 1), (100_000, 3, 3334), (100_000, 256, 40)],
)
def test_equal_costs_take_whole_waves(examples, workers, waves):
    costs = Costs(decode=0.5, read=0.01, commit=0.02, per_shard=0.7, load=30, list_part=0.001, footer=0.2)
    found = simulate(job(examples=examples, workers=workers, costs=costs))
    shards = -(-examples // 10)
    assert found.parts == shards
    assert found.makespan == pytest.approx(30 + waves * 6.0 + shards * (0.001 + 0.2 / workers), rel=1e-9)
    assert found.shares["decode"] * found.makespan * workers == pytest.approx(5.0 * shards)
    assert found.shares["beside"] * found.makespan * workers == pytest.approx(1.0 * shards)
    assert found.shares["lost"] == found.shares["restart"] == found.preemptions == 0


def test_what_overlaps_costs_nothing_until_it_is_longer_than_decoding():
    costs = Costs(decode=0.5, per_shard=3.0, overlapped=True)
    assert job(costs=costs).parts == {"decode": 5.0, "drain": 0.0, "beside": 0.0}
    assert job(costs=costs, shard=2).parts == {"decode": 1.0, "drain": 0.0, "beside": 2.0}
    assert job(costs=costs, occupancy=0.5).parts == {"decode": 5.0, "drain": 5.0, "beside": 0.0}


def expected_seconds(seconds: float, rate: float, restart: float = 0.0) -> float:
    """Until an attempt of `seconds` goes through under `rate` preemptions per second, in the mean."""
    return (math.exp(rate * seconds) - 1) * (1 / rate + restart)


@pytest.mark.parametrize("seconds", [0.5, 5.0, 20.0])
def test_preemptions_cost_what_the_formula_says(seconds):
    """One worker, so nothing waits: shards are independent, and their mean has a known deviation."""
    rate, count = 0.1, 20_000
    found = simulate(job(examples=count, shard=1, workers=1, costs=Costs(decode=seconds), preemptions=rate, seed=1))
    expected = expected_seconds(seconds, rate)
    variance = (math.exp(2 * rate * seconds) - 1 - 2 * rate * seconds * math.exp(rate * seconds)) / rate**2
    error = math.sqrt(variance / count)
    assert abs(found.makespan / count - expected) < 5 * error
    assert found.shares["lost"] * found.makespan / count == pytest.approx(found.makespan / count - seconds)
    # The same would not pass for half the rate, nor for what is lost on average being half a shard.
    assert abs(found.makespan / count - expected_seconds(seconds, rate / 2)) > 5 * error
    halved = seconds + math.expm1(rate * seconds) * seconds / 2
    assert abs(expected - halved) > 5 * error or seconds < 5


def test_replacements_cost_their_restart_and_loading():
    rate, count, costs = 0.1, 20_000, Costs(decode=5.0, load=3.0, restart=7.0)
    found = simulate(job(examples=count, shard=1, workers=1, costs=costs, preemptions=rate, seed=2))
    assert found.shares["restart"] * found.makespan == pytest.approx(10.0 * found.preemptions)
    assert found.preemptions / count == pytest.approx(math.expm1(0.5), rel=0.03)
    assert found.makespan / count == pytest.approx(expected_seconds(5.0, rate, 10.0), rel=0.03)


def plain(job: SimulatedJob) -> tuple[float, int, float]:
    """Event by event from the beginning: when the last shard was done, attempts lost, and seconds lost."""
    seeds = [seed.spawn(2) for seed in np.random.SeedSequence(job.seed).spawn(job.workers)]
    draws, ups = ([np.random.default_rng(pair[i]) for pair in seeds] for i in (0, 1))
    slow = [number < round(job.slow_share * job.workers) for number in range(job.workers)]
    away = job.costs.restart + job.costs.load
    uptime = lambda number: ups[number].exponential(1 / job.preemptions) if job.preemptions else math.inf
    preempted = [job.costs.load + uptime(number) for number in range(job.workers)]
    events = [(job.costs.load, number, "free") for number in range(job.workers)]
    queued = unfinished = job.shards
    idle, finished, losses, lost = [], 0.0, 0, 0.0
    while unfinished:
        now, number, what = heapq.heappop(events)
        if what == "lost":
            queued += 1
            preempted[number] = now + away + uptime(number)
            heapq.heappush(events, (now + away, number, "free"))
            if not idle:
                continue
            number = idle.pop()
        elif what == "done":
            unfinished, finished = unfinished - 1, now
        if not queued:
            idle.append(number)
            continue
        queued -= 1
        if preempted[number] < now:
            preempted[number] = now + uptime(number)
        normal = draws[number].standard_normal() if job.spread else 0.0
        factor = math.exp(job.spread * normal - job.spread**2 / 2) * (job.slow_factor if slow[number] else 1)
        over = now + sum(job.parts.values()) * factor
        if over > preempted[number]:
            over, what, losses, lost = preempted[number], "lost", losses + 1, lost + preempted[number] - now
        else:
            what = "done"
        heapq.heappush(events, (over, number, what))
    return finished, losses, lost


@pytest.mark.parametrize("shards", [3, 700, 9000])
@pytest.mark.parametrize("preemptions", [0.0, 1 / 200, 1 / 20])
def test_drawing_many_attempts_at_once_changes_nothing(shards, preemptions):
    costs = Costs(decode=0.5, load=3.0, restart=20.0)
    one = job(
        examples=shards * 10, workers=7, costs=costs, preemptions=preemptions, spread=0.5,
        slow_share=0.3, slow_factor=2.0, seed=shards,
    )  # fmt: skip
    finished, losses, lost = plain(one)
    found = simulate(one)
    assert found.makespan == pytest.approx(finished, rel=1e-9)
    assert found.preemptions == losses
    assert found.shares["lost"] * found.makespan * 7 == pytest.approx(lost)


def test_slow_machines_get_less_to_do_and_are_waited_for():
    """Two workers, one half as fast, and an even split of time: 3 shards while one does 2 and the other 1."""
    found = simulate(job(examples=30, workers=2, slow_share=0.5, slow_factor=2.0))
    assert found.makespan == pytest.approx(10.0)
    assert simulate(job(examples=40, workers=2, slow_share=0.5, slow_factor=2.1)).makespan == pytest.approx(15.0)


def test_stragglers_keep_the_mean_and_lengthen_the_end():
    even, uneven = simulate(job(examples=100_000)), simulate(job(examples=100_000, spread=0.5, seed=3))
    assert uneven.shares["decode"] * uneven.makespan == pytest.approx(even.shares["decode"] * even.makespan, rel=0.03)
    assert simulate(job(examples=40, spread=0.5)).shares["idle"] > 0 == simulate(job(examples=40)).shares["idle"]


def test_shares_are_of_everything():
    costs = Costs(decode=0.5, read=0.01, per_shard=0.2, load=30, restart=60, list_part=0.001)
    for preemptions in (0.0, 1 / 300):
        found = simulate(
            job(examples=5000, costs=costs, occupancy=0.8, preemptions=preemptions, spread=0.3, slow_share=0.25, slow_factor=3)
        )
        assert sum(found.shares.values()) == pytest.approx(1.0)
        assert min(found.shares.values()) > -1e-12
        assert found.wasted == pytest.approx(1 - found.shares["decode"])
        assert found.shares["drain"] == pytest.approx(found.shares["decode"] * 0.25)


def test_the_same_seed_gives_the_same_and_another_does_not():
    one = job(examples=5000, preemptions=1 / 300, spread=0.3)
    assert simulate(one) == simulate(one)
    assert simulate(one) != simulate(job(examples=5000, preemptions=1 / 300, spread=0.3, seed=1))


def test_drain_by_hand():
    # 5 and 3 begin; after 3 the 2 takes the free slot, and both end after 5.
    assert shard_queue._shard_iterations(np.array([5, 3, 2]), 2) == 5
    assert shard_queue._shard_iterations(np.array([5, 3, 4]), 2) == 7
    # Sixteen slots are refilled two at a time: the first waits for the second.
    assert shard_queue._shard_iterations(np.array([1, 2] + [9] * 14 + [9]), 16) == 2 + 9
    assert drain_occupancy([[1, 4]], 16, 8) == 1.0
    assert drain_occupancy([[1, 4]], 4, 8) == 0.5


def test_larger_shards_drain_less():
    texts = [[10, calls] for calls in np.random.default_rng(0).geometric(1 / 20, 300)]
    found = [drain_occupancy(texts, shard, 8) for shard in (16, 64, 256, 1024)]
    assert found == sorted(found) and found[0] < 0.7 < 0.97 < found[-1] < 1
