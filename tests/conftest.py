"""Shared by all tests: where reference models lie, and a persistent compilation cache."""

import os
import pathlib

import pytest

_ROOT = pathlib.Path(__file__).resolve().parent.parent

# As in the Makefile, for a plain `pytest` as well: a second run compiles almost nothing.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_ROOT / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")

# Read when gcsfs is imported, by whichever test comes first: it would ask storage emulators over gRPC, and wait.
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")


@pytest.fixture(scope="session")
def golden() -> pathlib.Path:
    """Folder of the reference models; see its README."""
    return _ROOT / "tests" / "testdata" / "golden"


@pytest.fixture
def hub():
    """A hub of models on localhost, empty."""
    from tests.support.hub import running

    with running() as server:
        yield server
