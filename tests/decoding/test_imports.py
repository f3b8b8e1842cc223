"""`decoding` stands alone."""

import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
OUTER = {"tensorflow", "apache_beam", "torch", "pipeline", "transforms"}


def test_import_decoding_pulls_in_neither_tensorflow_nor_beam():
    program = (
        "import sys, decoding; decoding.DecodingConfig, decoding.load_model, decoding.Generator;"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(run.stdout.split())
    assert "decoding" in loaded and "jax" in loaded
    assert not loaded & {*OUTER, "transformers", "seqio", "tensorflow_datasets"}


def test_sources_of_decoding_name_no_outer_layer():
    for source in (ROOT / "decoding").rglob("*.py"):
        for line in source.read_text().splitlines():
            words = line.split()
            if words[:1] in (["import"], ["from"]):
                package = words[1].partition(".")[0]
                assert package not in OUTER, f"{source.name}: {line}"
