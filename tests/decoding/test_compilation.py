"""The persistent cache, and the fusions that XLA is kept from because they are wrong."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from decoding.xla_flags import safe_flags

ROOT = pathlib.Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "testdata" / "golden"

_PROGRAM = """
import json, sys
import decoding
from decoding.compilation import backend_compilations, newly_compiled
directory = decoding.keep_programs(sys.argv[1])
model = decoding.load_model(sys.argv[2])
decoding.Generator(model, None, decoding.DecodingConfig(gamma=0, num_slots=2, input_buckets=(16,)))
print(json.dumps([directory, *backend_compilations(), newly_compiled()]))
"""


@pytest.mark.slow
def test_a_second_process_spends_at_most_a_third_of_the_compile_time(tmp_path):
    def run():
        command = [sys.executable, "-c", _PROGRAM, str(tmp_path), str(GOLDEN / "t5_v1_1_target")]
        environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
        output = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
        return json.loads(output.splitlines()[-1])

    directory, cold_events, cold_seconds, compiled = run()
    assert directory == str(tmp_path) and cold_events >= 4 and any(tmp_path.iterdir())
    assert 4 <= compiled <= cold_events
    _, events, warm_seconds, compiled = run()
    assert (events, compiled) == (cold_events, 0)
    assert warm_seconds <= cold_seconds / 3


# Two programs that jaxlib 0.10.2 breaks (jax-ml/jax#39103 and #40412): a sum of squares far off, and a crash.
_REPRODUCERS = """
import jax.numpy as jnp
first = jnp.arange(32769.0)
rows = jnp.stack((first, 0 * first, 0 * first), axis=1)
squares = lambda rows: jax.vmap(lambda row: jnp.sum((jnp.eye(3) @ row) ** 2))(rows)
ones = jnp.ones((3, 1, 2, 2, 8, 8, 8))
products = lambda a, b: jnp.sum(a * b, axis=3)
def check(jit):
    assert jit(squares)(rows)[-1] == 32768.0**2, float(jit(squares)(rows)[-1])
    assert (jit(products)(ones, ones) == 2).all()
"""
_PLAIN_JIT = _REPRODUCERS + "check(jax.jit)"
_LATE = (
    "import jax; jax.devices(); from decoding import compilation"
    + _REPRODUCERS
    + """
check(compilation.jit)
def compiled(function):
    def call(*arguments):
        compiler = compilation.Compiler()
        compiler.add("it", jax.jit(function), *arguments)
        return compiler.compile()["it"](*arguments)
    return call
check(compiled)
"""
)


def _run(program: str, **variables: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR")}
    command = [sys.executable, "-c", f"{program}\nimport os; print(os.environ['XLA_FLAGS'])"]
    run = subprocess.run(
        command, cwd=ROOT, env=environment | {"JAX_PLATFORMS": "cpu"} | variables, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, (run.returncode, run.stderr[-2000:])
    return run.stdout.strip()


@pytest.mark.parametrize(
    "program",
    [
        "import decoding, jax" + _PLAIN_JIT,
        "import jax, decoding" + _PLAIN_JIT,
        # What a worker of Beam's has imported before it loads a model.
        pytest.param("import transforms.decode, jax" + _PLAIN_JIT, marks=pytest.mark.slow),
        _LATE,
    ],
    ids=["first", "jax first", "worker", "backend first"],
)
def test_nobody_compiles_a_wrong_fusion(program):
    _run(program)


def test_flags_of_the_user_are_kept():
    seen = _run("import decoding, jax; assert len(jax.devices()) == 3" + _PLAIN_JIT,
                XLA_FLAGS="--xla_force_host_platform_device_count=3")  # fmt: skip
    assert seen == "--xla_force_host_platform_device_count=3 --xla_cpu_experimental_ynn_fusion_type="
    own = "--xla_cpu_experimental_ynn_fusion_type=reduce"
    assert _run("import decoding, jax; jax.devices()", XLA_FLAGS=own) == own


@pytest.mark.parametrize(
    ("version", "known"),
    [((0, 10, 1), False), ((0, 10, 2), True), ((0, 11, 2), True), ((0, 12, 0, 1), True), ((0, 13, 0), False), ((1, 0), False)],
)
def test_a_flag_is_set_for_jaxlibs_that_know_it_only(version, known):
    assert safe_flags("", version) == ("--xla_cpu_experimental_ynn_fusion_type=" if known else "")
    assert safe_flags("--a=b", version).startswith("--a=b")
