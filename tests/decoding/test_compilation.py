"""The persistent cache: a second process takes compiled programs from the first."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "testdata" / "golden"

_PROGRAM = """
import json, sys
import decoding
from decoding.compilation import backend_compilations
directory = decoding.keep_programs(sys.argv[1])
model = decoding.load_model(sys.argv[2])
decoding.Generator(model, None, decoding.DecodingConfig(gamma=0, num_slots=2, input_buckets=(16,)))
print(json.dumps([directory, *backend_compilations()]))
"""


@pytest.mark.slow
def test_a_second_process_spends_at_most_a_third_of_the_compile_time(tmp_path):
    def run():
        command = [sys.executable, "-c", _PROGRAM, str(tmp_path), str(GOLDEN / "t5_v1_1_target")]
        environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
        output = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
        return json.loads(output.splitlines()[-1])

    directory, cold_events, cold_seconds = run()
    assert directory == str(tmp_path) and cold_events >= 4 and any(tmp_path.iterdir())
    _, _, warm_seconds = run()
    assert warm_seconds <= cold_seconds / 3
