"""How much memory a load takes, measured in a process of its own."""

import json
import subprocess
import sys
import weakref

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from decoding.checkpoints import hf_t5
from decoding.checkpoints.architecture import parse_config, resolve
from decoding.checkpoints.fill import fill

PROGRAM = """
import sys, jax, decoding
jax.block_until_ready(jax.numpy.zeros(4) + 1)
def kilobytes(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name))
before = kilobytes("VmRSS")
model = decoding.load_model(sys.argv[1], dtype=sys.argv[2])
print((kilobytes("VmHWM") - before) * 1024)
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """T5 v1.1 base with random weights, 0.99 GB in ten files."""
    folder = tmp_path_factory.mktemp("large")
    raw, _ = resolve("t5-v1.1-base")
    sources = hf_t5.sources(parse_config(raw, "preset"))
    shapes = {name: shape for source in sources.values() for name, shape in zip(source.names, source.shapes)}
    rng, names, weight_map = np.random.default_rng(0), sorted(shapes), {}
    for i in range(10):
        file = f"model-{i + 1:05d}-of-00010.safetensors"
        save_file({name: rng.random(shapes[name], np.float32) for name in names[i::10]}, str(folder / file))
        weight_map |= dict.fromkeys(names[i::10], file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(raw))
    yield folder, sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    for path in folder.glob("*.safetensors"):
        path.unlink()


def test_a_parameter_is_let_go_before_the_next_is_read():
    last = lambda: None

    def parameters():
        nonlocal last
        for path, value in {"kernel": np.ones((2, 3), np.float32), "bias": np.ones(3, np.float32)}.items():
            assert last() is None
            value = value.copy()
            last = weakref.ref(value)
            yield path, value
            del value

    build = lambda: nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    model = fill(build, parameters(), place=lambda path, value: jnp.zeros(value.shape))
    assert model.kernel.shape == (2, 3)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("dtype", "share"), [("float32", 1.0), ("bfloat16", 0.5)])
def test_peak_of_host_memory_is_near_the_models_size(large, dtype, share):
    folder, size = large
    assert size > 0.98e9
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder), dtype], capture_output=True, text=True, check=True, timeout=120
    )
    ratio = int(run.stdout) / (share * size)
    print(f"peak of {dtype}: {ratio:.2f} times the parameters")
    assert 0.95 < ratio < 1.3
