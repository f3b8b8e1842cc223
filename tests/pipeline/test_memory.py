"""A worker's memory does not grow with the number of shards that it does."""

import json
import subprocess
import sys

import numpy as np
import pytest

SHARDS, WARM_UP = 2000, 500
KIB_PER_SHARD = 1.5

PROGRAM = """
import json, pathlib, resource, sys
from pipeline import generate
from tests.pipeline import fakes

pages, generate_with_report = [], fakes.FakeGenerator.generate_with_report

def generate_and_look(self, inputs, example_ids):
    pages.append(int(pathlib.Path("/proc/self/statm").read_text().split()[1]))
    return generate_with_report(self, inputs, example_ids)

fakes.FakeGenerator.generate_with_report = generate_and_look
status = generate.main(sys.argv[2:], fakes.factory())
pathlib.Path(sys.argv[1]).write_text(json.dumps([page * resource.getpagesize() for page in pages]))
sys.exit(status)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_flat_over_2000_shards(command, tmp_path, sentences):
    sentences.write_text("".join(json.dumps({"en": f"some text {i}", "de": f"Text {i}"}) + "\n" for i in range(2 * SHARDS)))
    resident = tmp_path / "resident.json"
    args = [str(resident), *command("--config.shards.examples_per_shard=2")]
    subprocess.run([sys.executable, "-c", PROGRAM, *args], check=True, timeout=600)
    kib = np.array(json.loads(resident.read_text())) / 1024
    assert len(kib) == SHARDS
    slope = np.polyfit(np.arange(WARM_UP, SHARDS), kib[WARM_UP:], 1)[0]
    print(f"resident memory: {kib[WARM_UP] / 1024:.0f} MiB, {slope:+.3f} KiB per shard")
    assert slope < KIB_PER_SHARD
