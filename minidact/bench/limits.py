"""Measures the limits of the machine: products in the L1 cache, and bytes read from memory."""

import math
import time

import numba
import numpy as np

from ..fast import gemm, int8


@numba.njit(parallel=True)
def _multiply_in_cache(x, panel, start, out, repeat):
    """Multiplies one tile by one panel, again and again, in every thread."""
    for t in numba.prange(len(out)):
        for _ in range(repeat):
            gemm.multiply(x[:, : x.shape[1]], panel, start, out[t][:, : gemm.PANEL])


@numba.njit(parallel=True)
def _multiply_int8_in_cache(q, scales, panel, columns, out, repeat):
    """The same in eight bits."""
    for t in numba.prange(len(out)):
        for _ in range(repeat):
            int8.multiply(q, scales, panel, columns, False, (0, len(q)), 0, out[t])


def limits() -> dict:
    """Returns what the machine can do, with all threads that Numba uses.

    gflops, gops_int8: products in the L1 cache, in G operations/s; gb_per_s: memory read, in GB/s.
    """
    threads, depth, repeat = numba.get_num_threads(), 256, 2000
    x, start = np.ones((gemm.TILE, depth), np.float32), np.ones(gemm.PANEL, np.float32)
    panel = aligned_ones(depth + gemm.AHEAD, gemm.PANEL)[:depth]
    out = np.empty((threads, gemm.TILE, gemm.PANEL), np.float32)
    operations = 2 * threads * repeat * out[0].size * depth
    peak = operations / quickest(lambda: _multiply_in_cache(x, panel, start, out, repeat)) / 1e9
    q: np.ndarray = np.ones((gemm.TILE, depth), int8.KIND)
    scales = np.ones(gemm.TILE, np.float32)
    panel8 = (
        panel.reshape(-1).view(np.int8)[: depth * gemm.PANEL].reshape(-1, gemm.PANEL * int8.GROUP)
    )
    columns = np.zeros((3, gemm.PANEL), np.float32)
    seconds8 = quickest(lambda: _multiply_int8_in_cache(q, scales, panel8, columns, out, repeat))
    panels = aligned_ones(2**28 // (4 * 384 * gemm.PANEL), 384, gemm.PANEL)  # 256 MiB
    row, starts = np.ones((1, 384), np.float32), np.zeros((len(panels), gemm.PANEL), np.float32)
    long = np.empty((1, starts.size), np.float32)
    seconds = quickest(lambda: gemm.linear_packed(row, panels, starts, False, long))
    read = panels.nbytes / seconds / 1e9
    return {"gflops": peak, "gops_int8": operations / seconds8 / 1e9, "gb_per_s": read}


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
