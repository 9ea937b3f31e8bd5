"""Measures the limits of the machine: products in the L1 cache, and bytes read from memory."""

import math
import time

import numba
import numpy as np

from ..fast import gemm


@numba.njit(parallel=True)
def _multiply_in_cache(x, panel, start, out, repeat):
    """Multiplies one tile by one panel, again and again, in every thread."""
    for t in numba.prange(len(out)):
        for _ in range(repeat):
            gemm.multiply(x[:, : x.shape[1]], panel, start, out[t][:, : gemm.PANEL])


def limits() -> dict:
    """Returns {"gflops": products in the L1 cache, in GFLOP/s, "gb_per_s": memory read, in GB/s}.

    Both are those of all threads that Numba uses.
    """
    threads, depth, repeat = numba.get_num_threads(), 256, 2000
    x, start = np.ones((gemm.TILE, depth), np.float32), np.ones(gemm.PANEL, np.float32)
    panel = aligned_ones(depth + gemm.AHEAD, gemm.PANEL)[:depth]
    out = np.empty((threads, gemm.TILE, gemm.PANEL), np.float32)
    flop = 2 * threads * repeat * out[0].size * depth
    peak = flop / quickest(lambda: _multiply_in_cache(x, panel, start, out, repeat)) / 1e9
    panels = aligned_ones(2**28 // (4 * 384 * gemm.PANEL), 384, gemm.PANEL)  # 256 MiB
    row, starts = np.ones((1, 384), np.float32), np.zeros((len(panels), gemm.PANEL), np.float32)
    long = np.empty((1, starts.size), np.float32)
    seconds = quickest(lambda: gemm.linear_packed(row, panels, starts, False, long))
    return {"gflops": peak, "gb_per_s": panels.nbytes / seconds / 1e9}


def aligned_ones(*shape):
    """Returns float32 ones of a shape that begin where a cache line begins, like packed weights."""
    ones = gemm.aligned(math.prod(shape)).reshape(shape)
    ones[:] = 1
    return ones


def quickest(run, times=10) -> float:
    """Returns the seconds of the fastest of some runs, after one run that does not count."""
    run()
    seconds = []
    for _ in range(times):
        begin = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - begin)
    return min(seconds)
