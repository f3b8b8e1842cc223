"""The workers' image, as far as it can be checked without a Docker engine: linted, and its packages resolved."""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest
from packaging.requirements import Requirement

ROOT = pathlib.Path(__file__).resolve().parents[2]
DOCKERFILE = ROOT / "Dockerfile"
PROGRAMS = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
HADOLINT = shutil.which("hadolint", path=PROGRAMS)
UV = shutil.which("uv", path=PROGRAMS)


def instructions() -> list[tuple[str, str]]:
    """(name, rest) of every instruction, continued lines joined."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [tuple(line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]


def of(name: str) -> list[str]:
    return [rest for instruction, rest in instructions() if instruction == name]


def lock() -> dict[str, str]:
    """Versions by package, for the image's Python."""
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    image = {"python_version": "3.11", "python_full_version": "3.11.9", "sys_platform": "linux", "platform_machine": "x86_64"}
    return {pin.name: next(iter(pin.specifier)).version for pin in pins if pin.marker is None or pin.marker.evaluate(image)}


def copied() -> list[str]:
    """What of this repository the image gets."""
    return [name for rest in of("COPY") if not rest.startswith("--from") for name in rest.split()[:-1]]


def lint(path: pathlib.Path) -> subprocess.CompletedProcess:
    return subprocess.run([HADOLINT, path], capture_output=True, text=True, check=False)


@pytest.mark.skipif(HADOLINT is None, reason="hadolint is not installed")
def test_lint(tmp_path):
    found = lint(DOCKERFILE)
    assert found.returncode == 0, found.stdout
    (tmp_path / "Dockerfile").write_text("FROM python\nRUN cd / && pip install jax && sudo echo $x\n")
    bad = lint(tmp_path / "Dockerfile")
    assert bad.returncode == 1 and {"DL3006", "DL3004", "SC2086"} <= set(re.findall(r"(?:DL|SC)\d+", bad.stdout))


def test_beam_and_python_are_those_of_the_lock():
    images = [rest.split()[0] for rest in of("FROM")]
    assert images == [f"apache/beam_python3.11_sdk:{lock()['apache-beam']}", "python:3.11-slim-bookworm"]
    assert of("ENTRYPOINT") == ['["/opt/apache/beam/boot"]']
    assert of("COPY")[0] == "--from=beam /opt/apache/beam /opt/apache/beam"


def test_dependencies_are_a_layer_of_their_own():
    """Sources are copied after it, but for what names the version."""
    names = [f"{name} {rest}" for name, rest in instructions()]
    install = next(i for i, name in enumerate(names) if name.startswith("RUN case"))
    before = [name for name in names[:install] if name.startswith("COPY ") and "--from" not in name]
    assert before == [
        "COPY pyproject.toml setup.py requirements.lock README.md LICENSE ./",
        "COPY decoding/version.py decoding/",
    ]


def test_what_is_copied_is_there_and_sent_to_the_engine():
    ignore = (ROOT / ".dockerignore").read_text().split()
    assert "*" in ignore
    for name in copied():
        assert (ROOT / name).exists()
        assert "!" + name.split("/")[0] in ignore
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} & {"decoding", "transforms", "pipeline", "configs"}
    assert packages <= set(copied())


@pytest.fixture
def run_install(tmp_path):
    """Runs the image's first RUN as it stands, with a pip that resolves and installs nothing."""
    if UV is None:
        pytest.skip("uv is not installed")
    context, shims = tmp_path / "context", tmp_path / "bin"
    for name in (name for rest in of("COPY")[1:3] for name in rest.split()[:-1]):
        (context / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, context / name)
    shims.mkdir()
    pip = shims / "pip"
    pip.write_text(
        f"""#!/bin/sh
test "$1" = install || exit 9
shift
for argument; do
    shift
    case "$argument" in --no-cache-dir | --no-input) ;; *) set -- "$@" "$argument" ;; esac
done
exec "{UV}" pip install --dry-run --python "{sys.executable}" --target "{tmp_path / "empty"}" \\
    --python-version 3.11 --python-platform x86_64-manylinux_2_36 "$@"
"""
    )
    pip.chmod(0o755)
    arguments = dict(rest.split("=", 1) for rest in of("ARG"))

    def run(**chosen: str) -> subprocess.CompletedProcess:
        env = {**os.environ, **arguments, **chosen, "PATH": f"{shims}{os.pathsep}{os.environ['PATH']}"}
        return subprocess.run(["sh", "-c", of("RUN")[0]], cwd=context, env=env, capture_output=True, text=True, check=False)

    return run


def test_an_unknown_device_ends_the_build(run_install):
    done = run_install(DEVICE="gpu")
    assert done.returncode == 1
    assert "DEVICE is 'gpu'; allowed: cpu, cuda, tpu" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "device, wanted, unwanted",
    [
        ("cpu", (), ("jax-cuda13-plugin", "libtpu", "tensorflow")),
        ("cuda", ("jax-cuda13-plugin",), ("libtpu", "tensorflow")),
        ("tpu", ("libtpu",), ("jax-cuda13-plugin", "tensorflow")),
    ],
)
def test_packages_are_those_of_the_lock(device, wanted, unwanted, run_install):
    done = run_install(DEVICE=device)
    assert done.returncode == 0, done.stderr
    found = dict(re.findall(r"^ \+ ([\w.-]+)==([\w.+-]+)", done.stdout + done.stderr, re.MULTILINE))
    assert " + specbeam @ " in done.stdout + done.stderr
    assert len(found) > 100
    pins = lock()
    assert {name: version for name, version in found.items() if pins.get(name) != version} == {}
    assert {"apache-beam", "jax", "flax", "gguf", "google-cloud-dataflow-client", "google-auth-httplib2", *wanted} <= set(found)
    assert not set(unwanted) & set(found)


@pytest.mark.skipif(os.path.exists("/dev/nvidiactl"), reason="there is a GPU")
def test_a_worker_without_its_gpu_fails_at_once():
    """Where JAX is told of another platform beside it, it passes over a GPU that is not there."""
    variables = dict(pair.split("=", 1) for pair in of("ENV")[0].split())
    platforms = variables["JAX_PLATFORMS"].replace("${DEVICE}", "cuda")
    command = [sys.executable, "-c", "import jax; print(jax.devices())"]
    done = subprocess.run(command, env={**os.environ, "JAX_PLATFORMS": platforms}, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stdout
    assert "Error" in done.stderr.splitlines()[-1]
