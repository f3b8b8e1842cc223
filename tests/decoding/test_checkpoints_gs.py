"""T5X and Orbax checkpoints on gs://, through emulators."""

import numpy as np
import pytest
from flax import nnx

import decoding
from decoding.checkpoints import find_checkpoint, orbax
from tests.decoding.test_checkpoints_t5x import SHAPE
from tests.support import emulator


def parameters(model) -> dict[str, np.ndarray]:
    return {".".join(map(str, keys)): np.asarray(leaf[...]) for keys, leaf in nnx.to_flat_state(nnx.state(model))}


def assert_same(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


@pytest.mark.slow
def test_t5x_from_a_bucket(golden, monkeypatch):
    with emulator.python_emulator() as url:
        emulator.use(monkeypatch, url)
        bucket = emulator.make_bucket(url)
        emulator.upload_tree(url, bucket, "t5x", golden / "t5x_tiny")
        fetched = parameters(decoding.load_model(f"gs://{bucket}/t5x", architecture=SHAPE, weights="plain"))
        files = find_checkpoint(f"gs://{bucket}/t5x/checkpoint_0", SHAPE).weight_files
    assert files[0] == f"gs://{bucket}/t5x/checkpoint_0/checkpoint"
    assert len(files) == 1 + 2 * 66 and all(file.startswith(f"gs://{bucket}/t5x/") for file in files)
    assert_same(fetched, parameters(decoding.load_model(str(golden / "t5x_tiny"), architecture=SHAPE, weights="plain")))


@pytest.mark.soak  # it may have to build the emulator: the Python one leaves out generations, which OCDBT's stores need
def test_orbax_into_a_bucket_and_back(golden, monkeypatch):
    checkpoint = find_checkpoint(str(golden / "gpt2"))
    with emulator.go_emulator() as url:
        emulator.use(monkeypatch, url)
        output = f"gs://{emulator.make_bucket(url)}/converted"
        orbax.write(output, checkpoint.raw, checkpoint.parameters(np.float32), {"tokenizer.json": b"{}"})
        fetched = parameters(decoding.load_model(output, weights="plain"))
        files = find_checkpoint(output).weight_files
    assert f"{output}/orbax/_CHECKPOINT_METADATA" in files
    assert_same(fetched, parameters(decoding.load_model(str(golden / "gpt2"), weights="plain")))
