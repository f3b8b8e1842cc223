"""The jars that a Flink cluster runs from, fetched with Maven once: Flink itself, and Beam's runner for it."""

import os
import pathlib
import shutil
import subprocess
import tempfile

import platformdirs

from pipeline.runners.flink import submit as flink_runner
from pipeline.settings import ConfigError

FLINK_VERSION = "1.19.0"
BEAM_VERSION = "2.62.0"
"""Of Beam's Java side, which translates the pipeline. Beam's protocols allow it to differ from the Python side's."""

_POM = """<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>specbeam</groupId><artifactId>flink-cluster</artifactId><version>1</version><packaging>pom</packaging>
  <dependencies>{dependencies}</dependencies>
</project>
"""
_DEPENDENCIES = (
    ("org.apache.beam", f"beam-runners-flink-{FLINK_VERSION.rsplit('.', 1)[0]}", BEAM_VERSION),
    ("org.apache.flink", "flink-runtime-web", FLINK_VERSION),
    ("org.slf4j", "slf4j-jdk14", "1.7.36"),
)


def fetch(cache: pathlib.Path) -> pathlib.Path:
    """The folder of all jars of Flink and of Beam's runner, fetched with Maven where it is not there yet.

    Raises:
      ConfigError: Maven is not there, or cannot fetch them.
    """
    lib = cache / f"flink-{FLINK_VERSION}-beam-{BEAM_VERSION}"
    if lib.is_dir():
        return lib
    if shutil.which("mvn") is None:
        raise ConfigError("mvn is not installed, which fetches Flink once (Debian: apt-get install maven)")
    print(f"Fetching Flink {FLINK_VERSION} and Beam's runner {BEAM_VERSION}, 160 MB, to {lib}", flush=True)
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as temporary:
        folder = pathlib.Path(temporary)
        tags = ("groupId", "artifactId", "version")
        (folder / "pom.xml").write_text(
            _POM.format(
                dependencies="".join(
                    f"<dependency>{''.join(f'<{tag}>{value}</{tag}>' for tag, value in zip(tags, names))}</dependency>"
                    for names in _DEPENDENCIES
                )
            )
        )
        command = ["mvn", "-B", "-q", "-f", str(folder / "pom.xml"), "dependency:copy-dependencies"]
        command += [f"-DoutputDirectory={folder / 'lib'}", "-DincludeScope=runtime"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            lines = [line for line in (done.stdout + done.stderr).splitlines() if "ERROR" in line]
            raise ConfigError(f"mvn cannot fetch Flink: {lines[0] if lines else 'no reason given'}")
        flink_runner.write_job_jar(folder / "lib")
        try:
            os.rename(folder / "lib", lib)
        except OSError:  # somebody else has just fetched it
            if not lib.is_dir():
                raise
    return lib


def default_cache() -> pathlib.Path:
    """Where Flink's jars are kept: $SPECBEAM_FLINK_CACHE, else below the user's own cache directory."""
    own = platformdirs.user_cache_path("specbeam") / "flink"
    return pathlib.Path(os.environ.get("SPECBEAM_FLINK_CACHE") or own).expanduser()
