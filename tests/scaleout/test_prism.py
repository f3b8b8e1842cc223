"""Prism: the binary and what is said without it; the same rows as the local runner; a job that is killed goes on."""

import os
import pathlib
import shutil
import signal
import socket
import stat
import sys

import pytest
from apache_beam.options.pipeline_options import PrismRunnerOptions
from apache_beam.version import __version__ as beam_version

from pipeline import generate
from pipeline.runners import prism
from pipeline.runners.options import beam_options, in_this_process
from pipeline.settings import ConfigError
from tests.pipeline.helpers import assert_same_rows, files, rows, run
from tests.scaleout.processes import children, launch, line_of, wait_for

RUNNER = "--runner=PrismRunner"


@pytest.fixture(scope="module")
def binary() -> str:
    """Beam's own, built if it is not there."""
    if prism.find_go() is None and not os.path.exists(os.path.join(prism.default_folder(), "prism")):
        (pytest.fail if os.environ.get("CI") else pytest.skip)("no Go to build Prism with")
    return prism.build(prism.default_folder())


@pytest.mark.slow
def test_the_demo_translation_is_the_same(demo, tmp_path, binary):
    assert generate.main(demo.arguments(tmp_path / "out", RUNNER)) == 0
    demo.check(tmp_path / "out")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_killed_job_goes_on(command, tmp_path, binary):
    alone, out = tmp_path / "alone", tmp_path / "out"
    run(command("--config.shards.examples_per_shard=2", output=alone))
    launched = launch(command("--config.shards.examples_per_shard=2", RUNNER, output=out), "delay_secs=0.5")
    try:
        wait_for(lambda: (out / "generations").exists() and len(list((out / "generations").iterdir())) >= 2)
        (job,) = children(launched.pid)
        servers = [process for process in children(job) if b"prism" in line_of(process)]
        assert servers
        assert len(list((out / "attempts").glob("part-*.json"))) <= 8  # bundles
        os.kill(job, signal.SIGKILL)
        _, stderr = launched.communicate(timeout=200)
    finally:
        launched.kill()
    assert launched.returncode == 0, stderr
    assert stderr.count("died of SIGKILL") == 1
    assert not any(line_of(server) for server in servers)
    assert files(out) == files(alone)
    assert_same_rows(rows(alone), rows(out))


@pytest.fixture
def nothing_there(tmp_path, monkeypatch):
    """An empty cache directory, and no Go."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(prism, "find_go", lambda: None)
    return tmp_path / "cache"


@pytest.fixture
def go(nothing_there, tmp_path, monkeypatch) -> pathlib.Path:
    """In the place of Go: writes its arguments down, and the binary."""
    command, log = tmp_path / "go", tmp_path / "go.log"
    command.write_text(f'#!/bin/sh\necho "$@" >> {log}\nprintf "#!/bin/sh\\n" > "$GOBIN/prism"\nchmod +x "$GOBIN/prism"\n')
    command.chmod(command.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setattr(prism, "find_go", lambda: str(command))
    return log


def test_without_the_binary(nothing_there):
    with pytest.raises(ConfigError, match="needs Beam's Go binary.*build it with `python -m pipeline.runners.prism build`"):
        beam_options([RUNNER])
    with pytest.raises(ConfigError, match="--prism_location is '/no/prism'; allowed: an executable file"):
        beam_options([RUNNER, "--prism_location=/no/prism"])
    beam_options([RUNNER, "--job_endpoint=localhost:8073"])  # somebody else's


def test_without_go(nothing_there, capsys):
    assert prism.main(["build"]) == 2
    assert "Go is missing" in capsys.readouterr().err


def test_go_is_found_beside_python(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    found = prism.find_go()
    assert found is None or found == "/usr/local/go/bin/go"
    (tmp_path / "bin").mkdir()
    shutil.copy("/bin/sh", tmp_path / "bin" / "go")
    assert prism.find_go() == str(tmp_path / "bin" / "go")


def test_built_once_and_found(go, capsys):
    assert prism.main(["build"]) == 0
    binary = prism.default_folder() + "/prism"
    assert f"built: {binary}" in capsys.readouterr().out
    assert prism.main(["build"]) == 0
    assert f"there already: {binary}" in capsys.readouterr().out
    assert go.read_text() == f"install github.com/apache/beam/sdks/v2/go/cmd/prism@v{beam_version}\n"
    options = beam_options([RUNNER])
    assert options.view_as(PrismRunnerOptions).prism_location == binary
    assert in_this_process(options)  # models are loaded by the launcher


def test_built_in_a_folder(go, tmp_path, capsys):
    assert prism.main(["build", f"--folder={tmp_path / 'here'}"]) == 0
    assert f"--runner=PrismRunner --prism_location={tmp_path / 'here' / 'prism'}" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["prism"]


def test_what_go_says_is_passed_on(nothing_there, tmp_path, monkeypatch, capsys):
    command = tmp_path / "go"
    command.write_text("#!/bin/sh\necho 'no such module' >&2\nexit 1\n")
    command.chmod(0o755)
    monkeypatch.setattr(prism, "find_go", lambda: str(command))
    assert prism.main(["build"]) == 1
    assert "failed: no such module" in capsys.readouterr().err
    assert prism.main(["bild"]) == 2


def test_a_busy_port(go):
    prism.build(prism.default_folder())
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"--job_port is {port}, which is in use"):
            beam_options([RUNNER, f"--job_port={port}"])
    assert beam_options([RUNNER, f"--job_port={port}"])
