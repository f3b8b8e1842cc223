"""Families, drafts and rules from outside the package, found through entry points and used in jobs by their names."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from decoding import registry
from pipeline import generate
from tests.pipeline.helpers import assert_same_rows, rows

ROOT = pathlib.Path(__file__).resolve().parents[2]
ADDITIONS = ("other_names", "repeat_last", "sample_and_compare")
SMALL = ("--config.decoding.num_slots=4", "--config.decoding.input_buckets=(64,)", "--config.decoding.max_decode_tokens=8")


@pytest.fixture
def installed(tmp_path) -> pathlib.Path:
    """A folder with the three modules and the metadata that installing their package would have written."""
    folder = tmp_path / "site"
    metadata = folder / "additions-1.0.dist-info"
    metadata.mkdir(parents=True)
    for name in ADDITIONS:
        source = (ROOT / "tests" / "additions" / f"{name}.py").read_text()
        assert len(source.splitlines()) <= 40
        (folder / f"{name}.py").write_text(source)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: additions\nVersion: 1.0\n")
    lines = [f"[{registry.GROUP}]", *(f"{name} = {name}" for name in ADDITIONS)]
    (metadata / "entry_points.txt").write_text("\n".join(lines))
    return folder


@pytest.fixture
def found(installed, monkeypatch):
    """The same, in this process."""
    monkeypatch.syspath_prepend(installed)
    for names in (registry.FAMILIES, registry.DRAFTS, registry.RULES):
        monkeypatch.setattr(names, "_entries", dict(names._entries))
    registry._import_plugins.cache_clear()
    yield
    registry._import_plugins.cache_clear()
    for name in ADDITIONS:
        sys.modules.pop(name, None)


@pytest.fixture
def renamed(models, tmp_path) -> pathlib.Path:
    """The target of `command`, as a model of the family `other_names`."""
    folder = tmp_path / "renamed"
    shutil.copytree(models["target"], folder)
    tensors = load_file(folder / "model.safetensors")
    save_file({f"network.{name}": tensor for name, tensor in tensors.items()}, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "other_names", "width": config.pop("d_model")}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_family(found, renamed, command, tmp_path):
    assert generate.main(command(*SMALL)) == 0
    assert generate.main(command(*SMALL, f"--config.model.target={renamed}", output=tmp_path / "again")) == 0
    assert_same_rows(rows(tmp_path / "out"), rows(tmp_path / "again"))


def test_a_draft(found, command, tmp_path):
    greedy = (*SMALL, "--config.decoding.temperature=0")
    assert generate.main(command(*greedy, "--config.model.draft=", "--config.decoding.gamma=0")) == 0
    assert generate.main(command(*greedy, "--config.model.draft=repeat_last", output=tmp_path / "repeated")) == 0
    plain, repeated = rows(tmp_path / "out"), rows(tmp_path / "repeated")
    for a, b in zip(plain["output_tokens"], repeated["output_tokens"]):
        np.testing.assert_array_equal(a, b)
    assert {3} == {int(gamma) for row in repeated["gammas"] for gamma in row}


def test_a_rule(found, command, tmp_path):
    """Where the draft is the target, the rule accepts as often as two samples are the same, less than Algorithm 1 does."""
    rule = (*SMALL, "--config.decoding.verification=sample_and_compare")
    assert generate.main(command(*rule)) == 0
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["config"]["decoding"]["verification"] == "sample_and_compare"
    accepted = np.concatenate(rows(tmp_path / "out")["accepted"].tolist())
    assert accepted.min() >= 0 and accepted.max() <= 3


def test_a_name_that_nobody_registered(found, command, capsys):
    assert generate.main(command("--config.decoding.verification=nonesuch")) != 0
    allowed = "decoding.verification is 'nonesuch'; allowed: token, block, coupled, sample_and_compare"
    assert allowed in capsys.readouterr().err


@pytest.mark.slow
def test_worker_processes_know_them_too(installed, renamed, command, tmp_path):
    added = (
        f"--config.model.target={renamed}",
        "--config.model.draft=repeat_last",
        "--config.decoding.verification=sample_and_compare",
    )
    processes = ("--direct_running_mode=multi_processing", "--direct_num_workers=2")
    environment = {**os.environ, "PYTHONPATH": f"{installed}:{ROOT}"}
    arguments = command(*SMALL, *added, *processes)
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.generate", *arguments],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert len(rows(tmp_path / "out")) == 30
