"""Models split over a mesh compute what they compute on one device."""

import functools
import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from decoding import sharding
from decoding.checkpoints import architecture
from tests.decoding import sharded_models

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
MESHES = [(8, 1), (4, 2), (2, 4), (1, 8)]


def measure(*cases: str) -> dict[str, dict]:
    """Results by case, from one process with 8 virtual devices."""
    environment = {
        **os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    command = [sys.executable, "-m", "tests.decoding.sharded_models", *cases]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


@functools.cache
def quick() -> dict[str, dict]:
    return measure("t5:2:4", "collectives", "loaded", "rounded")


def check(case: str, found: dict) -> None:
    assert found["error"] < 1e-5, (case, found)
    assert found["same_tokens"] and found["tokens"] > 20, (case, found)


@pytest.mark.slow
def test_logits_and_speculative_greedy_tokens_are_those_of_one_device():
    check("t5:2:4", quick()["t5:2:4"])


# Others differ from one of these in norms, biases and windows, which divide alike.
FEW = ("t5", "llama")
MORE = (
    *("m2m_100", "gpt2", "gemma2", "gpt_neox", "lamda", "bart", "mbart", "marian", "pegasus", "opt", "phi3", "mistral"),
    "gemma3_text",
)


@pytest.mark.parametrize("family", [
    *(pytest.param(name, marks=pytest.mark.slow) for name in FEW),
    *(pytest.param(name, marks=pytest.mark.soak) for name in MORE),
])  # fmt: skip
def test_every_family_on_every_mesh(family):
    cases = [f"{family}:{data}:{ways}" for data, ways in MESHES]
    results = measure(*cases)
    for case in cases:
        check(case, results[case])
        assert not results[case]["undivided"], (case, results[case])


@pytest.mark.soak
def test_beams_are_those_of_one_device():
    for case, found in measure("t5:2:4:beams", "llama:4:2:beams").items():
        check(case, found)


def test_each_device_holds_its_share():
    found = quick()["t5:2:4"]
    # Norms and nothing else are whole on every device.
    assert found["whole_bytes"] / 4 < found["device_bytes"] < found["whole_bytes"] / 4 * 1.1
    assert found["undivided"] == []


def test_fused_projections_are_taken_apart_without_moving_anything():
    """Three sums per decoder layer and one for the embedding; with contiguous columns there would be exchanges."""
    found = quick()["collectives"]
    assert found.get("all-reduce", 0) >= 3
    assert not {"all-to-all", "collective-permute", "all-gather"} & set(found), found


UNDIVIDED = [
    "attention heads 6 is not divisible by 4: whole on every device",
    "vocabulary 97 is not divisible by 4: whole on every device",
]


def test_what_the_mesh_does_not_divide_is_said():
    indivisible = config("indivisible")
    assert sharding.undivided(indivisible, mesh_of(1, 4)) == UNDIVIDED
    assert sharding.undivided(indivisible, mesh_of(4, 1)) == []
    split = sharding.divided(indivisible, mesh_of(1, 4))
    assert (split.attention_shards, split.feed_forward_shards) == (1, 4)


@pytest.mark.slow
def test_what_the_mesh_does_not_divide_is_whole_everywhere():
    found = measure("indivisible:1:4")["indivisible:1:4"]
    check("indivisible:1:4", found)
    assert found["undivided"] == UNDIVIDED
    assert found["whole_bytes"] / 2 < found["device_bytes"] < found["whole_bytes"]


def test_checkpoints_are_loaded_onto_a_mesh():
    assert quick()["loaded"] == {"llama": True, "t5_v1_1_draft": True}


def test_weights_in_fewer_bits_on_a_mesh_are_the_numbers_that_they_are_rounded_to():
    for case, found in quick()["rounded"].items():
        assert found["error"] < 1e-5 < found["changed"] < 1 / 250, (case, found)
        assert found["as_planned"], case
        # Two devices share all products but what is whole on both.
        assert found["short_bytes"] < found["plain_bytes"] / (7 if "int8" in case else 3.5), (case, found)


def config(name: str):
    return architecture.parse_config(sharded_models.MODELS[name], name)


def mesh_of(data: int, ways: int):
    """A mesh that is only looked at."""
    return jax.sharding.AbstractMesh((data, ways), ("data", "model"))


def test_columns_of_fused_projections_lie_device_by_device():
    # Two heads of width 1 each for queries, keys and values: 0 1 | 2 3 | 4 5.
    t5 = architecture.parse_config(sharded_models.MODELS["t5"] | {"num_heads": 2, "d_kv": 1}, "t5")
    columns = np.arange(6)[None]
    split = sharding.Division(t5, mesh_of(1, 2))
    assert split.arrange("decoder.0.attention.qkv", columns).tolist() == [[0, 2, 4, 1, 3, 5]]
    assert split.arrange("decoder.0.cross.kv", columns[:, :4]).tolist() == [[0, 2, 1, 3]]
    assert split.arrange("decoder.0.cross.query", columns[:, :2]).tolist() == [[0, 1]]
    assert split.arrange("decoder.0.cross.out", columns.T).tolist() == columns.T.tolist()


def test_shared_heads_of_keys_are_repeated_until_they_divide():
    # Four heads of queries 0 1 2 3, of which two share a head of keys (4, 5) and of values (6, 7).
    raw = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 2, "attention_bias": True}
    raw = sharded_models.MODELS["llama"] | raw
    llama = architecture.parse_config(raw, "llama")
    split = sharding.Division(llama, mesh_of(1, 4))
    assert (split.config.num_kv_heads, split.config.attention_shards) == (4, 4)
    columns = np.repeat(np.arange(8), 2)
    assert split.arrange("blocks.0.qkv.bias", columns)[::2].tolist() == [0, 4, 6, 1, 4, 6, 2, 5, 7, 3, 5, 7]


def test_logical_axes_become_axes_of_the_mesh():
    raw = sharded_models.MODELS["llama"] | {"attention_bias": True}
    llama = sharding.Division(architecture.parse_config(raw, "llama"), mesh_of(2, 4))
    umt5 = sharding.Division(
        architecture.parse_config(sharded_models.MODELS["t5"] | {"model_type": "umt5"}, "umt5"), mesh_of(2, 4)
    )
    axes = lambda division, path: tuple(division.partition(path))
    assert axes(llama, "embedding") == ("model", None)
    assert axes(llama, "head") == (None, "model")
    assert axes(llama, "blocks.1.qkv.kernel") == (None, "model")
    assert axes(llama, "blocks.1.qkv.bias") == ("model",)
    assert axes(llama, "blocks.1.out.kernel") == ("model", None)
    assert axes(llama, "blocks.1.out.bias") == (None,)
    assert axes(llama, "blocks.1.attention_norm.scale") == (None,)
    assert axes(umt5, "decoder_bias") == (None, None, "model")


def test_a_mesh_that_does_not_match_is_refused():
    with pytest.raises(ValueError, match="data:2,model:3 has 6 devices, but there are 1; allowed: .* product is 1"):
        sharding.make_mesh(2, 3, jax.devices()[:1])
    with pytest.raises(ValueError, match=r"axes \('x',\); allowed"):
        sharding.divided(config("t5"), jax.sharding.AbstractMesh((1,), ("x",)))
    with pytest.raises(ValueError, match="a mesh is 'rows:2'; allowed: numbers"):
        sharding.parse_mesh("rows:2")
    assert sharding.parse_mesh("model:4") == (1, 4)


def test_slots_that_groups_cannot_share_are_refused():
    place = sharding.Placement(mesh_of(2, 4))
    place.check_slots(6)
    with pytest.raises(ValueError, match="decoding.num_slots is 3; allowed: multiples of 2, the mesh's axis 'data'"):
        place.check_slots(3)
