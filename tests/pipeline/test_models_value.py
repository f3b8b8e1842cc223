"""Which models a job loads is one value; a mesh that cannot be is found at launch, and honoured or refused by every job."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from flax import nnx

from decoding import kernels
from decoding.kernels import PackedWeight
from pipeline import benchmark, generate, score
from pipeline.job.preflight import check_models, models_of
from pipeline.settings import parse_command_line
from tests.pipeline import fakes
from tests.pipeline.helpers import rows
from transforms.models import Models

MESH = "--config.model.mesh=data:64"


def refused(status, capsys) -> str:
    said = capsys.readouterr().err
    assert status == 2 and said.count("\n") == 1 and "model.mesh is 'data:64'" in said, said
    return said


def test_generate(command, tmp_path, capsys):
    said = refused(generate.main(command(MESH), fakes.factory()), capsys)
    assert f"there are {jax.device_count()}" in said
    assert not (tmp_path / "out").exists()


def test_worker_processes(command, capsys):
    processes = ("--direct_running_mode=multi_processing", "--direct_num_workers=2")
    assert "each of 2 worker processes has one device" in refused(generate.main(command(MESH, *processes)), capsys)


def test_score(command, finished_run, capsys):
    refused(score.main(command(MESH, f"--config.score.generations={finished_run}")), capsys)


def test_benchmark(command, capsys):
    refused(benchmark.main(command(MESH)), capsys)


def test_every_setting_of_models_is_in_the_value(command):
    config = parse_command_line(command("--config.model.dtype=bfloat16", "--config.model.prompt_lookup_max_ngram=5")).config
    models = check_models(config).to_load
    assert models == models_of(config.model, models.vocab_size)
    assert (models.target, models.draft, models.dtype, models.max_ngram) == (
        config.model.target, config.model.draft, "bfloat16", 5,
    )  # fmt: skip


@pytest.mark.parametrize("mesh", ["", f"data:{jax.device_count()}"])
def test_what_is_loaded(models, mesh):
    value = Models(str(models["target"]), str(models["draft"]), mesh=mesh)
    tokens = np.array([[0, 5, 6]])
    inputs = (tokens, np.array([[7, 8, 1]]), np.array([3]))
    target = value.load_target()
    assert target.logits(*inputs).shape == (1, 3, 384)
    assert value.load_draft() is not None and value.load_draft("") is None
    assert dataclasses.replace(value, draft="prompt_lookup").load_draft() is not None


def kinds(model) -> set[str]:
    packed = jax.tree.leaves(nnx.state(model), is_leaf=lambda leaf: isinstance(leaf, PackedWeight))
    return {leaf.kind for leaf in packed if isinstance(leaf, PackedWeight)}


@pytest.mark.skipif(kernels.available() is None, reason="products of decoding.kernels are off here")
def test_a_draft_in_another_form_than_its_target(models, monkeypatch):
    value = Models(str(models["target"]), str(models["draft"]), draft_weights="int8")
    assert (kinds(value.load_target()), kinds(value.load_draft())) == ({"float32"}, {"int8"})
    assert value.identity == {"dtype": "float32", "draft_weights": "int8"}
    monkeypatch.setattr(kernels, "available", lambda: None)  # as on an accelerator
    assert kinds(value.load_draft()) == set() and value.load_draft() is not None


@pytest.mark.slow
def test_a_rounded_draft_leaves_greedy_outputs_alone(command, tmp_path):
    greedy, outputs = ["--config.decoding.temperature=0.0", "--config.decoding.gamma=3"], []
    for form in ("", "int8"):
        folder = tmp_path / f"out{form}"
        changed = [word for word in command(*greedy) if not word.startswith("--output")]
        assert generate.main([*changed, f"--output={folder}", f"--config.model.draft_weights={form}"]) == 0
        outputs.append(rows(folder)["output_tokens"])
    for one, other in zip(*outputs, strict=True):
        np.testing.assert_array_equal(one, other)
    with open(tmp_path / "outint8" / "manifest.json", encoding="utf-8") as file:
        assert json.load(file)["config"]["model"]["draft_weights"] == "int8"
