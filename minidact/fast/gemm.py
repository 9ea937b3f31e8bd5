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
fixed order. So a sentence gets the same bits in any batch.

Python cannot say "keep this in a register". Numba lets a function emit LLVM's instructions directly
(`numba.extending.intrinsic`), and `_tile` does so. Everything else here is ordinary Numba.
"""

import numpy as np
from llvmlite import ir
from numba import prange, types
from numba.core import cgutils
from numba.extending import intrinsic

from .. import ops
from . import special
from .jit import WIDTH, jit

PANEL = 2 * WIDTH  # columns of a panel, and of a tile
TILE = 12 if WIDTH == 16 else 6  # rows of a tile, at most
AHEAD = 64  # a tile that holds all rows prefetches so many steps ahead
LINE = 64  # bytes of a cache line
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
    uint16 for the bits of float16. a, panel, start and c are addresses. a_row, a_step and c_row are
    distances in bytes: between rows of A, between steps of the sum, between rows of C. Step k
    prefetches the address ahead + k * ahead_step.
    """
    half = panel_type.dtype == types.uint16
    signature = types.void(types.int64, panel_type, *[types.int64] * 10)

    def codegen(context, builder, signature, arguments):
        rows, _, *rest = arguments
        done = builder.append_basic_block("done")
        switch = builder.switch(rows, done)
        for count in range(1, TILE + 1):  # one loop for every number of rows, chosen here
            block = builder.append_basic_block(f"rows{count}")
            switch.add_case(ir.Constant(ir.IntType(64), count), block)
            builder.position_at_end(block)
            _emit_tile(builder, count, half, *rest)
            builder.branch(done)
        builder.position_at_end(done)
        return context.get_dummy_value()

    return signature, codegen


def _emit_tile(
    builder, rows, half, a, a_row, a_step, panel, depth, start, c, c_row, ahead, ahead_step
):
    """Emits LLVM's instructions for one tile of a fixed number of rows."""
    i32, i64, byte = ir.IntType(32), ir.IntType(64), ir.IntType(8).as_pointer()
    number, vector = ir.FloatType(), ir.VectorType(ir.FloatType(), WIDTH)
    stored = ir.VectorType(ir.HalfType(), WIDTH) if half else vector  # a panel's vector
    size = WIDTH * (2 if half else 4)  # bytes of that vector
    fma = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(vector, [vector] * 3), f"llvm.fma.v{WIDTH}f32"
    )
    prefetch = builder.module.declare_intrinsic(
        "llvm.prefetch", [byte], ir.FunctionType(ir.VoidType(), [byte, i32, i32, i32])
    )
    spread = ir.Constant(ir.VectorType(i32, WIDTH), [0] * WIDTH)

    def offset(address, count, step):
        step = step if isinstance(step, ir.Value) else i64(step)
        return builder.add(address, builder.mul(step, i64(count)))

    def load(address, kind, align):
        loaded = builder.load(builder.inttoptr(address, kind.as_pointer()))
        loaded.align = align
        return loaded

    first = [load(offset(start, h, 4 * WIDTH), vector, 4) for h in (0, 1)]
    before = builder.block
    loop, after = builder.append_basic_block("loop"), builder.append_basic_block("after")
    builder.branch(loop)
    builder.position_at_end(loop)

    k, a_k, b_k, far = (builder.phi(i64) for _ in range(4))
    old = [[builder.phi(vector) for _ in (0, 1)] for _ in range(rows)]
    b = [load(offset(b_k, h, size), stored, 2 if half else 4) for h in (0, 1)]
    b = [builder.fpext(v, vector) for v in b] if half else b
    for line in range(0, 2 * size, LINE):
        there = builder.inttoptr(offset(far, 1, line), byte)
        builder.call(prefetch, [there, i32(0), i32(3), i32(1)])  # to read, keep in all caches
    new = []
    for r in range(rows):
        one = load(offset(a_k, r, a_row), number, 4)
        one = builder.insert_element(ir.Constant(vector, ir.Undefined), one, i32(0))
        one = builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), spread)
        new.append([builder.call(fma, [one, b[h], old[r][h]]) for h in (0, 1)])
    k_next, a_next = builder.add(k, i64(1)), builder.add(a_k, a_step)
    b_next, far_next = builder.add(b_k, i64(2 * size)), builder.add(far, ahead_step)
    builder.cbranch(builder.icmp_signed("<", k_next, depth), loop, after)

    counters = ((k, i64(0), k_next), (a_k, a, a_next), (b_k, panel, b_next), (far, ahead, far_next))
    for phi, value, following in counters:
        phi.add_incoming(value, before)
        phi.add_incoming(following, loop)
    builder.position_at_end(after)
    for r in range(rows):
        for h in (0, 1):
            old[r][h].add_incoming(first[h], before)
            old[r][h].add_incoming(new[r][h], loop)
            at = offset(offset(c, r, c_row), h, 4 * WIDTH)
            builder.store(new[r][h], builder.inttoptr(at, vector.as_pointer())).align = 4


@jit()
def _call_tile(rows, panels, a, a_row, a_step, panel, depth, start, c, c_row, ahead, ahead_step):
    """Calls _tile; a function of its own, so that the tile is compiled only once."""
    _tile(rows, panels, a, a_row, a_step, panel, depth, start, c, c_row, ahead, ahead_step)


# ---------------------------------------------------------------------------- panels


@jit()
def _at(array):
    """Returns the address of an array's first element, as int64 like the distances added to it."""
    return np.int64(array.ctypes.data)


@jit()
def aligned(size):
    """Returns an uninitialised float32 array (size,) that begins where a cache line begins."""
    line = LINE // 4
    room = np.empty(size + line, np.float32)
    first = (-_at(room) % LINE) // 4
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
    a_at, panel_at, start_at = _at(a), _at(panel), _at(start)
    c_at, spare_at = _at(c), _at(spare)
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
def _blocks(panels, rows, depth):
    """Returns the number of blocks that a product's rows are cut into.

    A block meets all panels before the next block begins, so it must be small enough to stay in a
    core's L2 cache. If there are few panels, there must be enough blocks for all threads.
    """
    return max((rows * depth * 4 + NEAR - 1) // NEAR, min(rows // (2 * TILE), 12 // panels), 1)


@jit()
def _share(task, panels, blocks, rows, columns):
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
    total[lo:hi] = sums[: hi - lo]


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
    blocks = _blocks(len(panels), tiles * TILE, depth)
    for task in prange(len(panels) * blocks):
        from_tile, to_tile, first, last = _share(task, len(panels), blocks, tiles, columns)
        for t in range(from_tile, to_tile):
            lo, hi = t * TILE, min((t + 1) * TILE, rows)
            panel = panels[first // PANEL]
            multiply(strips[t, :, : hi - lo].T, panel, start, out[lo:hi, first:last])


@jit()
def _gelu_block(x, rows, first):
    """Applies GELU in place to x's rows rows[0] : rows[1], in PANEL columns from `first` on."""
    for r in range(rows[0], rows[1]):
        x_r = x[r, first : first + PANEL]
        for c in range(min(PANEL, len(x_r))):
            x_r[c] = special.gelu(x_r[c])


@jit(parallel=True)
def linear_packed(x, panels, starts, gelu, out):
    """Computes out (T, O) = x (T, I) w' + b, or its GELU if `gelu`, by all threads.

    panels (P, I, PANEL) hold w and starts (P, PANEL) hold b, both padded with 0.
    """
    (rows, outputs), depth = out.shape, x.shape[1]
    blocks = _blocks(len(panels), rows, depth)
    for task in prange(len(panels) * blocks):
        lo, hi, first, last = _share(task, len(panels), blocks, rows, outputs)
        i = first // PANEL
        multiply(x[lo:hi, :depth], panels[i], starts[i], out[lo:hi, first:last])
        if gelu:  # now, while these numbers are still in the cache
            _gelu_block(out, (lo, hi), first)


@jit()
def _starts(b):
    """Returns a bias b (O,) as one row per panel, (P, PANEL), padded with 0."""
    starts = np.zeros((len(b) + PANEL - 1) // PANEL * PANEL, np.float32)
    starts[: len(b)] = b
    return starts.reshape(-1, PANEL)


@jit()
def _linear(x, w, b, out):
    """Computes out (T, O) = x (T, I) w' + b for a weight w (O, I) that is not packed yet."""
    linear_packed(x, _pack_rows(w), _starts(b), len(x) < 0, out)


@jit()
def _product(a, b, out):
    """Computes out (M, N) = a (M, K) b (K, N)."""
    none = np.zeros(b.shape[1], np.float32)
    linear_packed(a, _pack_columns(b), _starts(none), len(a) < 0, out)


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
    dx, dw, db = np.empty_like(x), np.empty_like(w), np.empty(len(w), np.float32)
    _product(dout, w, dx)
    _product_of_columns(dout, x, dw, db)
    return dx, dw, db
