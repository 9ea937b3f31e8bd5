"""Matrix products, from the registers up. A BERT spends nine tenths of its time on them.

    C = A B + start        A (rows, depth), B (depth, columns), C (rows, columns)

**The limit.** In every cycle a core can do two multiply-adds on vectors of WIDTH numbers, if their
factors are in registers. In the same cycle it can load two vectors. But two multiply-adds have four
factors. So a loop that loads both factors of every multiply-add runs at half speed, and at a tenth
if they come from beyond the L1 cache. Every number that is loaded must be used many times.

**The tile.** A tile is a block of C with TILE rows and 2 * WIDTH columns. It stays in registers
from the first step of the sum to the last. Step k loads two vectors from row k of B. For every row
of the tile it also loads one number of A and spreads it over a whole vector:

                          B[k, 0:W]   B[k, W:2W]
        A[0, k] spread       C00          C01         C takes 12 rows x 2 vectors = 24 registers,
        A[1, k] spread       C10          C11         B takes 2, the number of A takes 1: that is
          ...                ...          ...         27 of AVX-512's 32. Where there are only 16
        A[11, k] spread      C11,0        C11,1       registers, a tile has 6 rows.

A step has 24 multiply-adds and only 14 loads, so the multipliers are never idle. They do not wait
for results either: a result is needed again 24 multiply-adds later, and is ready after 4 cycles.

**The panel.** A tile walks down two vectors' width of B. In a checkpoint's layout every step would
touch another page of memory. So B is packed into panels of (depth, 2 * WIDTH), each contiguous, and
a tile reads its panel from front to back. Inference packs every weight once. Training packs it for
every product, which costs little when hundreds of rows use it. A panel begins at a multiple of 64
bytes, where a cache line begins. Otherwise every load would need two lines.

**The prefetch.** With few rows (one short sentence) a panel is used only once or twice. It comes
from main memory, which takes a hundred times as long as a multiplication. So each step also
prefetches. If one tile holds all rows, it prefetches what it needs itself AHEAD steps later. With
more tiles, each prefetches its share of the next panel. So memory and multipliers are always busy.

**Sixteen bits.** Weights that float16 holds exactly, like those that ship, may be packed as
float16. That halves the bytes to wait for. The results are the same bit for bit, because the
processor widens the weights exactly, in the register.

A row's result does not depend on the other rows of its tile, because each number is summed in one
fixed order. So these products give a sentence the same bits in any batch.

The loop itself is in tile.py. Everything here but `_tile` is ordinary Numba.
"""

import numpy as np
from llvmlite import ir
from numba import prange, types
from numba.core import cgutils
from numba.extending import intrinsic

from .. import ops
from . import special, tile
from .host import WIDTH
from .jit import jit
from .tile import AHEAD, LINE, PANEL, TILE

NEAR = 600_000  # bytes of A that stay in the L2 cache
SMALL = 1 << 18  # a product of fewer multiplications is left to NumPy, which packs nothing

F = np.float32


# ---------------------------------------------------------------------------- the tile


@intrinsic
def _tile(
    typing, rows, panel_type, a, a_row, a_step, panel, depth, start, c, c_row, ahead, ahead_step
):
    """Computes C (rows, PANEL) = start + A (rows, depth) panel (depth, PANEL), 1 <= rows <= TILE.

    All arguments are int64 but panel_type, which is any array of the panel's dtype: float32, or
    uint16 for the bits of float16. start and c are addresses, c_row is the distance between rows of
    C in bytes; tile.Places explains the others.
    """
    step = HALVES if panel_type.dtype == types.uint16 else SINGLES
    signature = types.void(types.int64, panel_type, *[types.int64] * 10)

    def codegen(context, builder, signature, arguments):
        rows, _, a, a_row, a_step, panel, depth, start, c, c_row, ahead, ahead_step = arguments
        places = tile.Places(a, a_row, a_step, panel, depth, ahead, ahead_step)

        def emit(count):
            first = [
                tile.load(builder, tile.offset(builder, start, h, 4 * WIDTH), tile.FLOATS, 4)
                for h in (0, 1)
            ]
            result = tile.emit_loop(builder, count, step, places, first)
            for r in range(count):
                for h in (0, 1):
                    row = tile.offset(builder, c, r, c_row)
                    tile.store(builder, result[r][h], tile.offset(builder, row, h, 4 * WIDTH))

        tile.for_every_height(builder, rows, emit)
        return context.get_dummy_value()

    return signature, codegen


def multiply_add(builder, a, b, c):
    kind = ir.FunctionType(tile.FLOATS, [tile.FLOATS] * 3)
    fma = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fma.v{WIDTH}f32")
    return builder.call(fma, [a, b, c])


SINGLES = tile.Step(
    ir.FloatType(), tile.FLOATS, 4 * WIDTH, 4, lambda builder, vector: vector, multiply_add
)
HALVES = tile.Step(
    ir.FloatType(), ir.VectorType(ir.HalfType(), WIDTH), 2 * WIDTH, 2,
    lambda builder, vector: builder.fpext(vector, tile.FLOATS), multiply_add,
)  # fmt: skip


@intrinsic
def widened(typing, x):
    """A float32 as it is; the bits of a float16, uint16, as a float32."""
    if x not in (types.float32, types.uint16):
        return None

    def codegen(context, builder, signature, arguments):
        if x == types.float32:
            return arguments[0]
        return builder.fpext(builder.bitcast(arguments[0], ir.HalfType()), ir.FloatType())

    return types.float32(x), codegen


@jit()
def _call_tile(rows, panels, a, a_row, a_step, panel, depth, start, c, c_row, ahead, ahead_step):
    """Calls _tile; a function of its own, so that the tile is compiled only once."""
    _tile(rows, panels, a, a_row, a_step, panel, depth, start, c, c_row, ahead, ahead_step)


# ---------------------------------------------------------------------------- panels


@jit()
def address(array):
    """Returns the address of an array's first element, as int64 like the distances added to it."""
    return np.int64(array.ctypes.data)


@jit()
def aligned(size):
    """Returns an uninitialised float32 array (size,) that begins where a cache line begins."""
    line = LINE // 4
    room = np.empty(size + line, np.float32)
    first = (-address(room) % LINE) // 4
    return room[first : first + size]


@jit()
def _empty_panels(columns, depth):
    """Returns room for the panels of a matrix: (ceil(columns / PANEL), depth, PANEL)."""
    panels = (columns + PANEL - 1) // PANEL
    return aligned(panels * depth * PANEL).reshape(panels, depth, PANEL)


@jit()
def fill_rows(b, panel):
    """Copies b' to panel (depth, PANEL), padded with 0; b (columns, depth) is a stored weight."""
    columns, depth = b.shape
    for k0 in range(0, depth, 16):  # 16 steps at a time: one cache line from each row of b
        for k in range(k0, min(k0 + 16, depth)):
            for c in range(columns):
                panel[k, c] = b[c, k]
            for c in range(columns, PANEL):
                panel[k, c] = 0


@jit()
def fill_columns(b, rows, first, columns, panel):
    """Copies b[rows[0] : rows[1], first : first + columns] to panel (depth, PANEL), 0 beyond."""
    # b is a whole array: the compiler would not know that the rows of a slice are contiguous
    for k in range(rows[1] - rows[0]):
        b_k, panel_k = b[rows[0] + k, first : first + columns], panel[k]
        if columns == PANEL:
            for c in range(PANEL):  # the compiler knows this length: whole vectors
                panel_k[c] = b_k[c]
        else:
            for c in range(PANEL):
                panel_k[c] = b_k[c] if c < columns else F(0.0)


@jit()
def multiply(a, panel, start, c):
    """Computes c (rows, columns <= PANEL) = start (PANEL,) + a (rows, depth) panel (depth, PANEL).

    Pass a and c as slices [:, i:j] even if they are whole. They then have one type, and this
    function is compiled once. All are float32; the panel may be uint16, the bits of float16.
    """
    rows, depth = a.shape
    columns = c.shape[1]
    spare = np.empty((TILE, PANEL), np.float32)  # for a panel that is not full
    tiles = (rows + TILE - 1) // TILE
    a_row, a_step, c_row = a.strides[0], a.strides[1], c.strides[0]
    a_at, panel_at, start_at = address(a), address(panel), address(start)
    c_at, spare_at = address(c), address(spare)
    step = panel.strides[0]  # bytes from one step of the panel to the next
    for i in range(tiles):
        lo, hi = rows * i // tiles, rows * (i + 1) // tiles  # tiles of nearly the same height
        from_row = a_at + lo * a_row
        to, to_row = (c_at + lo * c_row, c_row) if columns == PANEL else (spare_at, 4 * PANEL)
        # a single tile prefetches its own panel, AHEAD steps on; several share the next panel
        ahead = panel_at + step * (AHEAD if tiles == 1 else depth + depth * i // tiles)
        _call_tile(
            hi - lo, panel, from_row, a_row, a_step, panel_at, depth, start_at, to, to_row,
            ahead, step // tiles,
        )  # fmt: skip
        if columns < PANEL:
            for r in range(lo, hi):
                for j in range(columns):
                    c[r, j] = spare[r - lo, j]


@jit()
def panels_of_rows(b):
    """Returns the panels of b' for b (columns, depth): (ceil(columns / PANEL), depth, PANEL)."""
    panels = _empty_panels(len(b), b.shape[1])
    for i in range(len(panels)):
        fill_rows(b[i * PANEL : (i + 1) * PANEL], panels[i])
    return panels


@jit()
def panels_of_columns(b, rows, first, columns):
    """Returns the panels of b[rows[0] : rows[1], first : first + columns]: (.., depth, PANEL)."""
    depth = rows[1] - rows[0]
    panels = _empty_panels(columns, depth)
    for i in range(len(panels)):
        here = min(PANEL, columns - i * PANEL)
        fill_columns(b, rows, first + i * PANEL, here, panels[i])
    return panels


@jit()
def multiply_panels(a, panels, c):
    """Computes c (rows, columns) = a (rows, depth) times the panels' matrix, in one thread."""
    start = np.zeros(PANEL, np.float32)
    for i in range(len(panels)):
        multiply(a, panels[i], start, c[:, i * PANEL : (i + 1) * PANEL])


# ---------------------------------------------------------------------------- whole products


@jit()
def blocks_of(panels, rows, depth):
    """Returns the number of blocks that a product's rows are cut into.

    A block meets all panels before the next block begins, so it must be small enough to stay in a
    core's L2 cache. If there are few panels, there must be enough blocks for all threads.
    """
    return max((rows * depth * 4 + NEAR - 1) // NEAR, min(rows // (2 * TILE), 12 // panels), 1)


@jit()
def share_of(task, panels, blocks, rows, columns):
    """Returns a task's part of the result: rows lo : hi, columns first : last (one panel's)."""
    block, i = task // panels, task % panels
    lo, hi = rows * block // blocks, rows * (block + 1) // blocks
    return lo, hi, i * PANEL, min((i + 1) * PANEL, columns)


@jit(parallel=True)
def _pack_rows(b):
    """Returns what panels_of_rows returns, packed by all threads."""
    panels = _empty_panels(len(b), b.shape[1])
    for i in prange(len(panels)):
        fill_rows(b[i * PANEL : (i + 1) * PANEL], panels[i])
    return panels


@jit(parallel=True)
def _pack_columns(b):
    """Returns the panels of all columns of b (depth, columns), packed by all threads."""
    depth, columns = b.shape
    panels = _empty_panels(columns, depth)
    for i in prange(len(panels)):
        fill_columns(b, (0, depth), i * PANEL, min(PANEL, columns - i * PANEL), panels[i])
    return panels


@jit()
def _cut_strip(a, lo, hi, strip, total):
    """Copies columns lo : hi of a (K, M) to strip (K, TILE), and their sums to total[lo:hi]."""
    sums = np.zeros(TILE, np.float32)
    for k in range(len(a)):
        a_k, strip_k = a[k, lo:hi], strip[k]
        for r in range(hi - lo):
            strip_k[r] = a_k[r]
            sums[r] += a_k[r]
    for r in range(hi - lo):
        total[lo + r] = sums[r]


@jit(parallel=True)
def _product_of_columns(a, b, out, total):
    """Computes out (M, N) = a' b and total (M,) = the sums of a's columns; a (K, M), b (K, N).

    `a` is first cut into strips of TILE columns. Down a column of `a`, every step would be in
    another cache line; down a strip it is the next number. Cutting also makes the sum, at no cost.
    """
    (depth, rows), columns = a.shape, b.shape[1]
    tiles = (rows + TILE - 1) // TILE
    strips = aligned(tiles * depth * TILE).reshape(tiles, depth, TILE)
    for t in prange(tiles):
        _cut_strip(a, t * TILE, min((t + 1) * TILE, rows), strips[t], total)
    panels, start = _pack_columns(b), np.zeros(PANEL, np.float32)
    blocks = blocks_of(len(panels), tiles * TILE, depth)
    for task in prange(len(panels) * blocks):
        from_tile, to_tile, first, last = share_of(task, len(panels), blocks, tiles, columns)
        for t in range(from_tile, to_tile):
            lo, hi = t * TILE, min((t + 1) * TILE, rows)
            panel = panels[first // PANEL]
            multiply(strips[t, :, : hi - lo].T, panel, start, out[lo:hi, first:last])


@jit()
def gelu_block(x, rows, first):
    """Applies GELU in place to x's rows rows[0] : rows[1], in PANEL columns from `first` on."""
    for r in range(rows[0], rows[1]):
        x_r = x[r, first : first + PANEL]
        for c in range(len(x_r)):  # were it PANEL, LLVM would unroll the loop, number by number
            x_r[c] = special.gelu(x_r[c])


@jit(parallel=True)
def linear_packed(x, panels, starts, gelu, out):
    """Computes out (T, O) = x (T, I) w' + b, or its GELU if `gelu`, by all threads.

    panels (P, I, PANEL) hold w and starts (P, PANEL) hold b, both padded with 0.
    """
    (rows, outputs), depth = out.shape, x.shape[1]
    blocks = blocks_of(len(panels), rows, depth)
    for task in prange(len(panels) * blocks):
        lo, hi, first, last = share_of(task, len(panels), blocks, rows, outputs)
        i = first // PANEL
        multiply(x[lo:hi, :depth], panels[i], starts[i], out[lo:hi, first:last])
        if gelu:  # now, while these numbers are still in the cache
            gelu_block(out, (lo, hi), first)


@jit()
def starts_of(b):
    """Returns a bias b (O,) as one row per panel, (P, PANEL), padded with 0."""
    starts = np.zeros((len(b) + PANEL - 1) // PANEL * PANEL, np.float32)
    for i in range(len(b)):  # Numba takes seconds to compile starts[: len(b)] = b
        starts[i] = b[i]
    return starts.reshape(-1, PANEL)


@jit()
def _linear(x, w, b, out):
    """Computes out (T, O) = x (T, I) w' + b for a weight w (O, I) that is not packed yet."""
    linear_packed(x, _pack_rows(w), starts_of(b), len(x) < 0, out)


@jit()
def _product(a, b, out):
    """Computes out (M, N) = a (M, K) b (K, N)."""
    none = np.zeros(b.shape[1], np.float32)
    linear_packed(a, _pack_columns(b), starts_of(none), len(a) < 0, out)


def pack(w, panels):
    """Packs w (O, I) into panels (ceil(O / PANEL), I, PANEL), padded with 0; float32 or uint16."""
    for i in range(len(panels)):
        fill_rows(w[i * PANEL : (i + 1) * PANEL], panels[i])


def linear_forward(x, w, b):
    """Returns x w' + b (T, O) and a cache, in float32; x (T, I), w (O, I), b (O,)."""
    if x.size * len(w) < SMALL:
        return ops.linear_forward(x, w, b)
    out = np.empty((len(x), len(w)), np.float32)
    _linear(x, w, b, out)
    return out, (x, w)


def linear_backward(dout, cache):
    """Returns dx (T, I), dw (O, I) and db (O,) for dout (T, O), in float32."""
    x, w = cache
    if x.size * len(w) < SMALL:
        return ops.linear_backward(dout, cache)
    dx, dw, db = (np.empty(shape, np.float32) for shape in (x.shape, w.shape, len(w)))
    _product(dout, w, dx)
    _product_of_columns(dout, x, dw, db)
    return dx, dw, db
