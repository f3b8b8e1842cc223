"""`pipeline.plan --prepare`: what it keeps is what a job looks for."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from pipeline import plan
from pipeline.planning import chips

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
CONFIG = f"--config={ROOT / 'configs' / 'quickstart.py'}"
NEEDS_LIBTPU = pytest.mark.skipif(not chips.has_compiler(), reason="libtpu is not installed (extra tpu)")


def command(module: str, *args: str, cache: pathlib.Path | None = None) -> str:
    """Standard output of a job of its own, with the cache of no other test."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("JAX_COMPILATION_CACHE")}
    environment = kept | {"JAX_PLATFORMS": "cpu"} | ({"JAX_COMPILATION_CACHE_DIR": str(cache)} if cache else {})
    done = subprocess.run(
        [sys.executable, "-m", module, CONFIG, *args], env=environment, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def programs(directory: pathlib.Path) -> set[str]:
    return {path.name for path in directory.iterdir() if path.name.endswith("-cache")}


@pytest.mark.slow
def test_a_job_compiles_nothing_that_plan_has_prepared(tmp_path):
    """Not at load either, of plain shards and of others, wherever the directory lies now.

    JAX's cache keeps whatever a process compiles, and has no more than before.
    """
    sentences = tmp_path / "few.jsonl"
    sentences.write_text("".join(json.dumps({"en": f"Open the file {i}."}) + "\n" for i in range(4)))
    settings = [
        f"--config.input.pattern={sentences}", "--config.input.target_field=", "--config.decoding.input_buckets=(32,)",
        "--config.decoding.max_decode_tokens=16", "--config.decoding.num_slots=2", "--config.shards.baseline_fraction=0.5",
        "--config.shards.examples_per_shard=2",
    ]  # fmt: skip
    cache = tmp_path / "programs"
    said = command("pipeline.plan", *settings, f"--prepare={cache}")
    prepared = programs(cache)
    assert f"programs are kept; a job finds them with JAX_COMPILATION_CACHE_DIR={cache} and the same settings" in said
    assert sum(name.startswith("jit__chunk-") for name in prepared) == 2  # with γ = 3 and 0
    elsewhere = cache.rename(tmp_path / "mounted")
    command("pipeline.generate", *settings, f"--output={tmp_path / 'out'}", cache=elsewhere)
    assert (tmp_path / "out" / "_SUCCESS").exists()
    assert programs(elsewhere) == prepared


@pytest.mark.slow
@NEEDS_LIBTPU
def test_programs_for_a_slice_are_kept_under_one_name_in_every_process(tmp_path):
    """What a TPU's own process asks for cannot be shown here; that the name does not depend on the process can."""
    settings = [
        "--config.model.dtype=bfloat16", "--topology=v4:2x2x1", "--config.model.mesh=data:1,model:4",
        "--config.decoding.num_slots=4", "--config.decoding.input_buckets=(32,)", "--config.decoding.gamma=1",
    ]  # fmt: skip
    kept = []
    for name in ("one", "two"):
        said = command("pipeline.plan", *settings, f"--prepare={tmp_path / name}")
        kept.append(programs(tmp_path / name))
        assert "programs are kept" in said and "--config.model.mesh=data:1,model:4" in said
    assert kept[0] == kept[1]
    assert any(name.startswith("jit__chunk-") for name in kept[0])


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--num_slots=3"], "--num_slots is given with --prepare; allowed: the job's own, --config.decoding.num_slots=1"),
        (["--split_draft"], "--split_draft is given with --prepare; allowed: without"),
        (["--topology=v4:2x2x1", "--chips=1"], "--prepare is given with 1 of the 4 chips of v4:2x2x1; allowed: all"),
    ],
)
def test_what_no_job_would_ask_for_is_not_prepared(args, message, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(chips, "has_compiler", lambda: True)
    assert plan.main([CONFIG, *args, f"--prepare={tmp_path}"]) == 2
    assert message in capsys.readouterr().err


def test_a_slices_programs_cannot_be_prepared_without_its_compiler(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(chips, "has_compiler", lambda: False)
    assert plan.main([CONFIG, "--topology=v4:2x2x1", f"--prepare={tmp_path}"]) == 2
    assert "--prepare for --topology needs libtpu, which is not installed" in capsys.readouterr().err
