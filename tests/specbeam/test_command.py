"""The command `specbeam`: its jobs, `show`, and what it says of what is none."""

import importlib
import json
import pathlib
import shutil
import subprocess
import sys
import tomllib

import pytest

from specbeam import command, show
from tests.pipeline.helpers import rows

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_every_job_is_a_command():
    jobs = {path.stem for path in (ROOT / "pipeline").glob("*.py") if '__name__ == "__main__"' in path.read_text()}
    assert jobs >= {*command.JOBS}
    assert jobs - {*command.JOBS} <= {"local_processes"}  # a worker's own
    shown = command.help_text()
    for name in command.JOBS:
        assert f"  {name} " in shown and command.about(f"pipeline.{name}") in shown


def test_what_is_none(capsys):
    assert command.main(["genrate"]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: 'genrate' is not a job of specbeam; did you mean 'generate'?")
    assert message.count("\n") == 1
    assert command.main([]) == 0 and "specbeam JOB" in capsys.readouterr().out


def test_a_job_ends_as_it_would_by_itself():
    for words, expect, told in (
        (["generate", "--config=nowhere.py", "--output=/x"], 2, "'nowhere.py'"),
        (["inspect", "/no/such/folder"], 2, "/no/such/folder"),
    ):
        found = subprocess.run([sys.executable, "-m", "specbeam", *words], capture_output=True, text=True)
        assert found.returncode == expect and told in found.stderr and found.stderr.startswith("error: ")


def test_the_entry_point():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    module, _, function = project["project"]["scripts"]["specbeam"].partition(":")
    assert getattr(importlib.import_module(module), function) is command.main
    assert "specbeam" in project["tool"]["setuptools"]["packages"]["find"]["include"]


def test_show(finished_run, capsys):
    assert show.main([str(finished_run)]) == 0
    lines = capsys.readouterr().out.splitlines()
    frame = rows(finished_run)
    assert len(lines) >= 3 * 30
    assert lines[0] == frame["inputs"][0] and lines[1] == frame["prediction"][0].splitlines()[0]


def test_show_lines(finished_run, capsys):
    assert show.main([str(finished_run), "--jsonl"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    frame = rows(finished_run)
    assert [row["example_id"] for row in found] == list(frame["example_id"])
    assert [row["output_tokens"] for row in found] == [list(tokens) for tokens in frame["output_tokens"]]
    assert any(beta is None for row in found for beta in row["beta"])  # JSON has no NaN
    assert show.main([str(finished_run), "--jsonl", "--limit=9"]) == 0
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == found[:9]


def test_show_in_colour(finished_run, capsys):
    assert show.main([str(finished_run), "--colour"]) == 0
    legend, _, texts = capsys.readouterr().out.partition("\n\n")
    assert "accepted: drafted" in legend and "[" in texts and "{" in texts
    assert show.main([str(finished_run)]) == 0
    assert "[" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("spoil", "args", "told"),
    [
        (lambda out: None, ["--jsnol"], "--jsnol"),
        (lambda out: (out / "_SUCCESS").unlink(), [], "is unfinished"),
        (lambda out: shutil.rmtree(out), [], "is empty or does not exist"),
        (lambda out: (out / "generations" / "part-00001-of-00004.parquet").write_bytes(b"PAR1"), [], "cannot be read"),
    ],
)
def test_what_cannot_be_shown(finished_run, tmp_path, capsys, spoil, args, told):
    out = shutil.copytree(finished_run, tmp_path / "out")
    spoil(out)
    assert show.main([str(out), *args]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and message.count("\n") == 1 and told in message


def test_a_reader_that_has_enough(finished_run):
    program = f"{sys.executable} -m specbeam show {finished_run} --jsonl | head -n 1"
    found = subprocess.run(["bash", "-o", "pipefail", "-c", program], capture_output=True, text=True)
    assert found.returncode == 0 and found.stderr == "" and json.loads(found.stdout)["index"] == 0
