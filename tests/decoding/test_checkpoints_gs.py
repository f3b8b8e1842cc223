"""T5X and Orbax checkpoints on gs://, through an emulator."""

import numpy as np
from flax import nnx

import decoding
from decoding.checkpoints import find_checkpoint, orbax
from tests import emulator
from tests.decoding.test_checkpoints_t5x import SHAPE


def parameters(model) -> dict[str, np.ndarray]:
    return {".".join(map(str, keys)): np.asarray(leaf[...]) for keys, leaf in nnx.to_flat_state(nnx.state(model))}


def test_t5x_from_a_bucket_and_orbax_into_one(golden, monkeypatch):
    with emulator.python_emulator() as url:
        emulator.use(monkeypatch, url)
        bucket = f"gs://{emulator.make_bucket(url)}"
        emulator.upload_tree(url, bucket.removeprefix("gs://"), "t5x", golden / "t5x_tiny")
        fetched = parameters(decoding.load_model(f"{bucket}/t5x", architecture=SHAPE))
        checkpoint = find_checkpoint(f"{bucket}/t5x/checkpoint_0", SHAPE)
        assert f"{bucket}/t5x/checkpoint_0/checkpoint" == checkpoint.weight_files[0]
        assert len(checkpoint.weight_files) == 1 + 2 * 66 and all(f.startswith(bucket) for f in checkpoint.weight_files)
        orbax.write(f"{bucket}/converted", checkpoint.raw, checkpoint.parameters(np.float32), {"spiece.model": b"x"})
        converted = parameters(decoding.load_model(f"{bucket}/converted"))
    local = parameters(decoding.load_model(str(golden / "t5x_tiny"), architecture=SHAPE))
    assert fetched.keys() == converted.keys() == local.keys()
    for name, value in local.items():
        np.testing.assert_array_equal(fetched[name], value, err_msg=name)
        np.testing.assert_array_equal(converted[name], value, err_msg=name)
