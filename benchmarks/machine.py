"""What the machine can do at best: the two rates that bound any decoder's time per token."""
from __future__ import annotations

import os
import time
from collections.abc import Callable

import numpy as np

from pipeline.job.machine import processor


def _best_seconds(call: Callable[[], object], repeats: int = 7) -> float:
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return best


def rates(size: int = 2048, read_mib: int = 512) -> dict[str, float]:
    """Best of several: float32 matrix product in GFLOP/s (NumPy's BLAS), and main memory read in GB/s (matrix-vector)."""
    a = np.random.default_rng(0).random((size, size), dtype=np.float32)
    flops = 2 * size**3 / _best_seconds(lambda: a @ a)
    wide = np.ones((read_mib * 256, 1024), np.float32)   # read_mib MiB
    vector = np.ones(1024, np.float32)
    read = wide.nbytes / _best_seconds(lambda: wide @ vector)
    return {"matrix_gflops": flops / 1e9, "read_gb_per_s": read / 1e9}


def describe(threads: int) -> dict[str, object]:
    """The processor, the threads used, the system's load at the start, and the two rates."""
    return {"cpu": processor(), "threads": threads, "load_at_start": os.getloadavg()[0], **rates()}
