"""Overhead and shares: where a job's time went, by hand; and one small job through the decoder of known cost."""
import json
import types

import pytest

from benchmarks import known_cost, overhead, stages
from benchmarks.known_cost import Shard
from benchmarks.overhead import Size, TimedJob


def test_the_ideal_is_decoding_alone_in_whole_waves():
    size = Size(shards=10, examples_per_shard=4, seconds_per_example=0.5)
    assert [size.ideal(workers) for workers in (1, 2, 4)] == [20.0, 10.0, 6.0]


def test_where_a_job_s_time_went():
    """Two workers: two shards of 2 s each, with 0.5 s and 0.1 s between them."""
    size = Size(shards=4, examples_per_shard=4, seconds_per_example=0.5)
    shards = [Shard(7, 103.0, 105.0), Shard(7, 105.5, 107.5), Shard(8, 103.4, 105.4), Shard(8, 105.5, 107.5)]
    job = overhead.account("threads", 2, 0, size, shards, began=100.0, ended=109.0)
    assert (job.wall, job.start, job.end) == pytest.approx((9.0, 3.0, 1.5))
    assert job.per_shard == pytest.approx(4.5 * 2 / 4 - 2.0)
    assert (job.at_once, job.processes) == (2, 2)
    alone = overhead.account("threads", 2, 0, size, shards[:2], began=100.0, ended=109.0)
    assert (alone.at_once, alone.processes) == (1, 1)


def test_table_of_overhead():
    size = Size(shards=4, examples_per_shard=4, seconds_per_example=0.5)
    job = lambda repeat, wall: TimedJob("processes", 2, repeat, wall, 3.0, 1.5, 0.25, 2, 2)
    rows = overhead.table([job(0, 8.0), job(1, 12.0), job(2, 9.0)], size).splitlines()
    assert len(rows) == 3
    assert rows[2].startswith("| local processes | 2 | 4.0 | 9.0 (8.0 to 12.0) | 2.25 (2.00 to 3.00) | 3.0 (3.0 to 3.0) ")
    assert rows[2].endswith("| 250.0 (250.0 to 250.0) | 1.5 (1.5 to 1.5) | 2 | 2 |")


def test_an_unknown_runner_is_refused(capsys):
    with pytest.raises(SystemExit):
        overhead.main(["--runners=threads,spark"])
    assert "--runners has spark; allowed: threads, processes, prism, flink" in capsys.readouterr().err


def test_lines_of_many_writers_come_back(tmp_path):
    shards = [Shard(process, 1e9 + process, 1e9 + process + 0.25) for process in (3, 4)]
    for shard in shards:
        known_cost.append(str(tmp_path / "log"), shard)
    assert known_cost.read_log(tmp_path / "log") == shards


def test_a_small_job(tmp_path):
    """Every shard is decoded once, in the time that was asked for, and the folder is complete."""
    overhead.write_input(tmp_path / "input.jsonl", 24)
    began = known_cost.time.time()
    status = known_cost.main([
        "--seconds=0.01", f"--log={tmp_path / 'log'}", f"--config={overhead.ROOT / 'configs' / 'quickstart.py'}",
        f"--config.input.pattern={tmp_path / 'input.jsonl'}", "--config.shards.examples_per_shard=4",
        f"--output={tmp_path / 'out'}", "--direct_num_workers=2",
    ])  # fmt: skip
    assert status == 0
    shards = known_cost.read_log(tmp_path / "log")
    assert len(shards) == 6 and all(shard.ended - shard.began >= 0.04 for shard in shards)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["complete"] and (summary["examples"], summary["tokens"]) == (24, 24 * 40)
    size = Size(6, 4, 0.01)
    job = overhead.account("threads", 2, 0, size, shards, began, known_cost.time.time())
    assert job.wall == pytest.approx(job.start + job.end + 3 * (0.04 + job.per_shard))


def test_the_clock_tells_steps_apart(monkeypatch):
    now = iter([1.0, 1.5, 2.0, 10.0, 11.0, 12.0, 14.0, 15.0])
    monkeypatch.setattr(stages.time, "perf_counter", lambda: next(now))
    clock = stages.Clock()
    clock.around("load", lambda: None)()
    inner = clock.around("tokenise", lambda: None)
    assert clock.around("read", lambda x: inner() or x)(5) == 5
    assert clock.around("decode", max)(3, 4) == 4
    assert clock.seconds == {"notes": 0, "read": 10.0, "tokenise": 1.0, "decode": 1.0, "commit": 0, "load": 0.5}
    assert (clock.first, clock.last, clock.calls["tokenise"]) == (2.0, 15.0, 1)


def test_clocks_are_taken_off_again():
    before = {(owner, name): getattr(owner, name) for functions in stages.STEPS.values() for owner, name in functions}
    with pytest.raises(KeyError), stages.Clock().running():
        assert all(getattr(owner, name) is not function for (owner, name), function in before.items())
        raise KeyError
    assert all(getattr(owner, name) is function for (owner, name), function in before.items())


def test_shares_are_of_the_decode_stage():
    seconds = {"notes": 0.5, "read": 3.0, "tokenise": 2.0, "decode": 90.0, "commit": 4.0, "load": 7.0}
    clock = types.SimpleNamespace(seconds=seconds, first=10.0, last=110.0)
    summary = {"examples": 40, "tokens": 800, "shards": {"committed": 4}}
    job = stages.account(clock, 8, 1, summary, ended=111.0)
    assert (job.wall, job.read, job.finish) == (100.0, 1.0, 1.0)
    assert job.beam == pytest.approx(2.5)
    row = stages.table([job]).splitlines()[-1]
    assert row == "| 8 | 40 | 100.0 | 90.00 | 1.00 | 2.00 | 4.00 | 0.50 | 2.50 | 10.00 |"
    costs = stages.costs([job], [[5, 9]], occupancy=0.9)
    assert costs["decode_per_example"] == pytest.approx(90 / 40 * 0.9)
    assert (costs["per_shard"], costs["load"]) == pytest.approx((0.75, 7.0))
    assert costs["read_per_example"] == pytest.approx(3 / 40)
