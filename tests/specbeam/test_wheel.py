"""The wheel, installed into an environment of its own and used far from the checkout."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from tests.specbeam.test_model import readme_example

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_the_wheel_works_outside_the_checkout(tmp_path):
    source, elsewhere, site = tmp_path / "source", tmp_path / "elsewhere", tmp_path / "site"
    elsewhere.mkdir()
    packages = ("specbeam", "decoding", "transforms", "pipeline", "configs")
    for name in packages:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    run = lambda *words, expect=0, **more: _run(words, expect, cwd=elsewhere, **more)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path / "wheels", source)
    (wheel,) = (tmp_path / "wheels").glob("specbeam-*.whl")
    # What it depends on is this environment's, less the checkout that it is installed from in place.
    run(sys.executable, "-m", "venv", "--without-pip", site)
    python = site / "bin" / "python"
    run(*pip, "--python", python, "install", "--no-deps", "--no-index", wheel)
    (own,) = (site / "lib").glob("python3*/site-packages")
    others = tmp_path / "others"
    others.mkdir()
    (installed,) = [path for path in map(pathlib.Path, sys.path) if path.name == "site-packages" and (path / "jax").is_dir()]
    for path in installed.iterdir():
        if "specbeam" not in path.name:
            (others / path.name).symlink_to(path)
    (own / "others.pth").write_text(f"{others}\n")

    where = run(python, "-c", "import specbeam, pipeline, configs; print(specbeam.__file__, configs.__file__)")
    assert str(ROOT) not in where and str(site) in where
    command = site / "bin" / "specbeam"
    assert "fit_ngram" in run(command, "--help") and run(command, "--version").startswith("specbeam ")
    words = [command, "generate", "--config=configs/quickstart.py", "--output=out/quickstart"]
    refused = run(*words, expect=2)
    assert refused.count("\n") == 1 and "comes with SpecBeam's repository and not with the installed package" in refused
    shutil.copytree(ROOT / "examples" / "models", elsewhere / "examples" / "models")
    lines = (ROOT / "examples" / "data" / "ende_software.test.jsonl").read_text().splitlines(keepends=True)
    (elsewhere / "mine.jsonl").write_text("".join(lines[:6]))
    words += [f"--config.model.{name}=examples/models/ende_software/{name}" for name in ("target", "draft")]
    words += ["--config.model.draft_vocabulary=examples/models/ende_software/unigram"]
    run(*words, "--config.input.pattern=mine.jsonl", "--config.decoding.input_buckets=(64,)")
    assert len(run(command, "show", "out/quickstart", "--jsonl").splitlines()) == 6
    assert "complete" in run(command, "inspect", "out/quickstart")
    assert "Die Datei konnte nicht geöffnet werden." in run(python, "-c", readme_example())


def _run(words, expect: int, cwd: pathlib.Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    found = subprocess.run([*map(str, words)], cwd=cwd, env=environment, capture_output=True, text=True, timeout=600)
    assert found.returncode == expect, found.stdout + found.stderr
    return found.stdout + (found.stderr if expect else "")
