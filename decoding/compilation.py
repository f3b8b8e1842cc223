"""Ahead-of-time compilation: every program is compiled at load, on several threads, and nothing later.

`Compiler.events` counts backend compilations through jax.monitoring, so "nothing compiles during a job" is measured.
"""

import concurrent.futures
import functools
import logging
import os
import threading
from collections.abc import Callable, Hashable

import jax
import platformdirs

from decoding import xla_flags

_EVENT = "/jax/core/compile/backend_compile_duration"
_FOUND = "/jax/compilation_cache/cache_hits"  # which are among those events
_status = logging.getLogger("specbeam.status")  # what a launcher in this process shows
_lock = threading.Lock()
_counts = {"events": 0, "seconds": 0.0, "found": 0, "told": 0}


def _listen(event: str, duration: float, **_) -> None:
    if event == _EVENT:
        with _lock:
            _counts["events"] += 1
            _counts["seconds"] += duration


def _listen_found(event: str, **_) -> None:
    if event == _FOUND:
        with _lock:
            _counts["found"] += 1


jax.monitoring.register_event_duration_secs_listener(_listen)
jax.monitoring.register_event_listener(_listen_found)


def backend_compilations() -> tuple[int, float]:
    """Backend compilations of this process so far, and their seconds."""
    with _lock:
        return _counts["events"], _counts["seconds"]


def newly_compiled() -> int:
    """Programs that this process has compiled since the last call, without those that were found in JAX's cache."""
    with _lock:
        compiled = _counts["events"] - _counts["found"]
        before, _counts["told"] = _counts["told"], compiled
        return compiled - before


def keep_programs(directory: str | None = None) -> str:
    """Turns JAX's persistent compilation cache on, so that a second process compiles almost nothing.

    Args:
      directory: where programs are kept; may be shared by workers, and be on gs://.  None leaves a directory that is
        set already (JAX_COMPILATION_CACHE_DIR), and else takes `specbeam/programs` in the user's cache directory.

    Returns:
      The directory.
    """
    directory = directory or jax.config.jax_compilation_cache_dir
    if not directory:
        directory = os.path.join(platformdirs.user_cache_dir("specbeam"), "programs")
    jax.config.update("jax_compilation_cache_dir", directory)
    # Many programs of small models compile in under a second, JAX's threshold, and there are dozens.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    # The path of XLA's own caches, which lie within, would be part of every program's name: a directory that was moved, or is
    # mounted elsewhere on a worker, would be as good as empty.
    jax.config.update("jax_persistent_cache_enable_xla_caches", "none")
    return directory


def compiler_options(platform: str, matrix_units: bool = False) -> dict[str, str] | None:
    """What every program of ours is compiled with for a platform, "cpu": as `compiler_options` of jax.jit.

    Args:
      matrix_units: as of `jit`.
    """
    if platform != "cpu":
        return None
    # Matrix-vector products of XLA's own read weights a tenth faster in 512-bit vectors than in the 256-bit ones it
    # prefers; where a processor has none, nothing changes.
    options = {"xla_cpu_prefer_vector_width": "512"}
    if xla_flags.without_fusions(os.environ.get("XLA_FLAGS", "")):
        # Said again, because a process that had a backend before `decoding` was imported does not look there any more.
        # A product by itself is none of those that go wrong.
        options[xla_flags.FUSIONS] = "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT" if matrix_units else ""
    return options


def jit(function: Callable, matrix_units: bool = False, **options) -> Callable:
    """`jax.jit` with our options, for what is compiled when it is first called.

    Args:
      matrix_units: whether a processor's are used for the program's products of bfloat16.
    """

    @functools.cache
    def compiled(platform: str) -> Callable:
        return jax.jit(function, compiler_options=compiler_options(platform, matrix_units), **options)

    @functools.wraps(function)
    def call(*args, **kwargs):
        return compiled(jax.default_backend())(*args, **kwargs)

    return call


class Compiler:
    """Collects programs with their argument shapes, then compiles them together.

    Attributes:
      lowered: what lowers each program, by name; empty once they are compiled.
    """

    def __init__(self):
        self.lowered: dict[Hashable, Callable[[], jax.stages.Lowered]] = {}

    def add(self, name: Hashable, function, *arguments) -> None:
        """Registers a jitted function with abstract or concrete arguments."""
        self.lowered[name] = lambda: function.lower(*arguments)

    def compile(self, platform: str | None = None) -> dict[Hashable, jax.stages.Compiled]:
        """Compiles all programs, with progress in the log `specbeam.status`.

        Args:
          platform: of the devices that the programs are for, "tpu"; None for those of this process.
        """
        programs, options = {}, compiler_options(platform or jax.default_backend())
        with concurrent.futures.ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            # Tracing holds Python's lock; the backend's compilation, which takes the time, does not.
            futures = {
                pool.submit(lambda make=make: make().compile(options)): name for name, make in self.lowered.items()
            }
            for done, future in enumerate(concurrent.futures.as_completed(futures), 1):
                programs[futures[future]] = future.result()
                _status.info("compiling %d of %d", done, len(futures))
        self.lowered.clear()
        return programs

    def events(self) -> int:
        """Backend compilations of this process so far."""
        return backend_compilations()[0]
