"""The library of products, compiled where it runs: at first use, once per user and machine, in seconds.

A compiled file lies in the user's cache under a name made of everything it depends on: sources, compiler, its flags and
XLA's headers. Of processes that start together one compiles, and the others wait for it.
"""

import concurrent.futures
import ctypes
import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import filelock
import jax
import platformdirs

_SOURCES = Path(__file__).parent
_PATIENCE = 600  # seconds for another process that compiles the same
_FLAGS = ["-std=c++17", "-O3", "-fPIC", "-w"]
# A sum is one fused multiply-add after the other; nothing else in the source changes by fusing.
_PRODUCT_FLAGS = ["-ffp-contract=fast"]
# Flags of each instruction set, in GCC's and in zig's words; zig's own choice would be what this machine has.
_TARGETS = {
    "x86_64": {
        "plain": ([], ["-mcpu=baseline"]),
        "avx2": (["-march=x86-64-v3"], ["-mcpu=x86_64_v3"]),
        "avx512": (["-march=x86-64-v4", "-mprefer-vector-width=512"], ["-mcpu=x86_64_v4", "-mprefer-vector-width=512"]),
        "avx512_vnni": (
            ["-march=x86-64-v4", "-mavx512vnni", "-mprefer-vector-width=512"],
            ["-mcpu=x86_64_v4+avx512vnni", "-mprefer-vector-width=512"],
        ),
    },
    "aarch64": {"plain": ([], ["-mcpu=baseline"]), "neon": ([], ["-mcpu=baseline"])},
}


class BuildError(RuntimeError):
    """The products cannot be compiled on this machine; says why in one line."""


def compilers() -> list[list[str]]:
    """Commands that may compile C++ here, the first choice first: $CXX, the system's, and PyPI's ziglang."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    commands = [[path] for path in map(shutil.which, names) if path]
    if importlib.util.find_spec("ziglang"):
        commands.append([sys.executable, "-m", "ziglang", "c++"])
    return commands


def build(compiler: list[str], directory: Path) -> Path:
    """Compiles the library into `directory`, unless it is there, and returns its path.

    Raises:
      BuildError: the compiler fails, or the processor is of an unknown kind.
    """
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine().lower(), platform.machine().lower())
    targets = _TARGETS.get(machine, {"plain": ([], ["-mcpu=baseline"])})
    zig = "ziglang" in compiler
    include = jax.ffi.include_dir()
    path = directory / f"products-{_key(compiler, machine, include)}.so"
    if path.exists():
        return path
    directory.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(f"{path}.lock", timeout=_PATIENCE), tempfile.TemporaryDirectory(dir=directory) as scratch:
        if path.exists():
            return path
        flags = [*_FLAGS, "-O1", *targets["plain"][zig], f"-I{include}"]
        handlers = ("dispatch", "dispatch_logits")
        commands = [[*flags, "-c", f"{_SOURCES}/{source}.cc", "-o", f"{scratch}/{source}.o"] for source in handlers]
        for name, flags in targets.items():
            flags = [*_FLAGS, *_PRODUCT_FLAGS, *flags[zig], f"-DTARGET={name}"]
            # With VNNI attention and logits are AVX-512's (product.cc).
            for source in ("product",) if name == "avx512_vnni" else ("attention", "product", "logits"):
                commands.append([*flags, "-c", f"{_SOURCES}/{source}.cc", "-o", f"{scratch}/{source}-{name}.o"])
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(lambda arguments: _run([*compiler, *arguments]), commands))
        objects = [command[-1] for command in commands]
        _run([*compiler, "-shared", *objects, "-o", f"{scratch}/products.so"])
        os.replace(f"{scratch}/products.so", path)
    return path


def load() -> ctypes.CDLL:
    """The library, built by the first compiler that can and kept in the user's cache directory.

    Raises:
      BuildError: no compiler, or none that works.
    """
    failures = []
    for compiler in compilers():
        try:
            return ctypes.CDLL(str(build(compiler, platformdirs.user_cache_path("specbeam") / "kernels")))
        except (BuildError, OSError) as error:
            failures.append(str(error))
    raise BuildError("; ".join(failures) or "no C++ compiler was found (c++, g++, clang++, or the package ziglang)")


def sources_key() -> str:
    """Names the version of the C++ sources."""
    digest = hashlib.sha256()
    for source in [*sorted(_SOURCES.glob("*.h")), *sorted(_SOURCES.glob("*.cc"))]:
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


def _key(compiler: list[str], machine: str, include: str) -> str:
    version = _run([*compiler, "--version"])
    digest = hashlib.sha256(repr((sources_key(), compiler, version, machine, _FLAGS, _PRODUCT_FLAGS, _TARGETS)).encode())
    for header in sorted(Path(include).rglob("*.h")):
        digest.update(header.read_bytes())
    return digest.hexdigest()[:16]


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error:" in line] or done.stderr.splitlines()
        raise BuildError(f"{' '.join(command[:4])} ...: {lines[0] if lines else f'exit code {done.returncode}'}")
    return done.stdout
