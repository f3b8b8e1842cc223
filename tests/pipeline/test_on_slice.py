"""A job on a slice of two hosts, here two processes: the rows of one process, written by the first."""

import os
import pathlib
import runpy
import socket
import subprocess
import sys

import jax
import pytest

from decoding import slices
from pipeline import on_slice
from tests.pipeline.helpers import assert_same_rows, files, rows

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
CONFIG = f"--config={ROOT / 'configs' / 'quickstart.py'}"
SETTINGS = [
    CONFIG, "--config.decoding.input_buckets=(32,)", "--config.decoding.max_decode_tokens=16", "--config.decoding.num_slots=4",
    "--config.shards.baseline_fraction=0.5", "--config.shards.examples_per_shard=4",
]  # fmt: skip


def command(module: str, *args: str) -> subprocess.Popen:
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-m", module, *SETTINGS, *args], env=environment, cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def finish(*processes: subprocess.Popen) -> None:
    """Waits for all; where one fails or hangs, none is left."""
    try:
        for process in processes:
            said = process.communicate(timeout=200)[0]
            assert process.returncode == 0, said[-4000:]
    finally:
        for process in processes:
            process.kill()


@pytest.mark.slow
def test_two_hosts_decode_what_one_does_and_one_of_them_writes(tmp_path):
    sentences = tmp_path / "few.jsonl"
    with open(ROOT / "examples" / "data" / "ende_software.test.jsonl", encoding="utf-8") as file:
        sentences.write_text("".join(line for line, _ in zip(file, range(8))), encoding="utf-8")
    pattern = f"--config.input.pattern={sentences}"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    outputs = [tmp_path / name for name in ("first", "second", "alone")]
    finish(*(
        command(
            "pipeline.on_slice", pattern, f"--output={outputs[host]}", "--config.model.mesh=data:1,model:2",
            f"--coordinator=127.0.0.1:{port}", "--hosts=2", f"--host={host}",
        )
        for host in (0, 1)
    ))  # fmt: skip
    finish(command("pipeline.generate", pattern, f"--output={outputs[2]}"))
    assert not outputs[1].exists()
    assert files(outputs[0]) == files(outputs[2])
    mine, alone = rows(outputs[0]), rows(outputs[2])
    assert sum(map(len, mine["output_tokens"])) > 60
    # Sums over two processes round otherwise: floats agree closely, tokens and what was accepted exactly.
    exact = [name for name in mine.columns if name not in ("beta", "target_logprob", "draft_logprob")]
    assert_same_rows(mine[exact], alone[exact])


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], 'model.mesh is ""; allowed: data:D,model:M with D x M the chips of all hosts'),
        (["--config.model.mesh=model:2", "--hosts=2"], "--coordinator, --hosts and --host are given together"),
        (["--config.model.mesh=model:2", "--runner=FlinkRunner"], "--runner is given; allowed: none"),
        (["--config.model.mesh=model:2", "--direct_running_mode=multi_processing"], "--direct_running_mode is given; allowed"),
        (["--config.model.mesh=model:2", "--config.decoding.gamma='auto'"], 'decoding.gamma is "auto"; allowed: a number'),
    ],
)
def test_what_a_slice_cannot_do_is_said_before_hosts_meet(args, message, capsys, tmp_path):
    assert on_slice.main([CONFIG, f"--output={tmp_path}", *args]) == 2
    assert message in capsys.readouterr().err


@pytest.fixture
def one_host(monkeypatch):
    monkeypatch.setattr(jax.distributed, "initialize", lambda *_: None)
    monkeypatch.setattr(slices, "broadcast", lambda message: message)


def test_a_mesh_that_is_not_the_slice_s_is_refused_before_anything_is_loaded(one_host, capsys, tmp_path):
    assert on_slice.main([CONFIG, f"--output={tmp_path}", "--config.model.mesh=model:64"]) == 2
    assert "error: a mesh of data:1,model:64 has 64 devices, but there are" in capsys.readouterr().err


def test_the_job_gets_the_leader_of_this_process(one_host, monkeypatch, tmp_path):
    """By name: of a function of __main__ the job's workers get a copy, whose leader nobody here knows."""
    given = []
    monkeypatch.setattr(on_slice.generate, "main", lambda job, factory: given.append(factory) or 0)
    mesh = f"--config.model.mesh=model:{jax.device_count()}"
    monkeypatch.setattr(sys, "argv", ["on_slice", CONFIG, f"--output={tmp_path}", mesh])
    with pytest.raises(SystemExit) as ended, pytest.warns(RuntimeWarning, match="found in sys.modules"):
        runpy.run_module("pipeline.on_slice", run_name="__main__")
    assert ended.value.code == 0
    assert given == [on_slice.lead]
