"""Matrix products in eight bits: int8 by int8, summed in int32, and scaled to float32 at the end.

    x[t] ~ s_t q_t,  w[o] ~ r_o p_o    q: whole numbers from -127 to 127, p: from -63 to 63
    s_t = max |x[t]| / 127,  r_o = max |w[o]| / 63
    x[t] . w[o] ~ s_t r_o (q_t . p_o)

A weight has one scale for each output, found once. A row of activations has one of its own, found
when the row is there. Such a scale can be taken out of the sum, because it is the same for all its
terms; a scale for each input could not.

**Four numbers at a time.** A vector register holds 4 times as many numbers of eight bits as of 32.
Where the processor has an instruction for it (AVX-512 VNNI, AVX-VNNI, Arm's dot product), that
multiplies all of them by another register's, and adds each four neighbouring products to one number
of a third register, which has 32 bits. So tile.py's loop makes four steps of the sum at once. The
panel holds the four numbers of a column side by side, and of a row of activations four are spread:

        panel, steps k .. k + 3        column 0     column 1     ..    column W - 1
                                      p p p p      p p p p            p p p p
        a row of A, spread            q q q q      q q q q            q q q q
        the tile's row (int32)        + q.p        + q.p              + q.p

**Which side is unsigned.** x86's instruction takes one factor as 0..255 and the other as -128..127.
We store q + 128. That adds to every sum of a column 128 times the sum of the column's p, which is
known when the weight is packed. So the tile starts from minus that instead of 0.

**Exact.** A product is at most 127 * 63, so a sum of 200,000 of them fits in 32 bits, and whole
numbers are added without rounding. The int32 result is the same in any order, by any instruction,
and in NumPy (ops.linear_int8). All error is in q and p: half a step of each scale.

**Why a weight has seven bits.** AVX2, and AVX-512 without VNNI, take two instructions: "maddubs"
multiplies bytes and adds two neighbours in sixteen bits, and another adds two of those sums in 32.
Sixteen bits hold at most 32,767; a larger sum would be cut off without a word. 2 * 255 * 127 would
be, 2 * 255 * 63 is not. That costs a little accuracy, as tutorials/08_eight_bits.ipynb measures it,
on every processor alike, so that all of them answer alike.

**Without such an instruction**, "pairs": two steps at once, in sixteen bits, widened in the
register. Every processor can do that. It takes as many multiplications as float32, and reads a
quarter of the bytes.
"""

import os
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from llvmlite import ir
from numba import prange, types
from numba.core import cgutils
from numba.extending import intrinsic

from .. import ops
from ..errors import known
from . import tile
from .gemm import address, blocks_of, gelu_block, multiply_add, share_of, starts_of
from .host import HOST, WIDTH
from .jit import jit
from .tile import AHEAD, PANEL, TILE

F = np.float32
INTS = ir.VectorType(tile.I32, WIDTH)


# ---------------------------------------------------------------------------- instructions


def _intrinsic(builder, name: str, kinds: list, out):
    """One of LLVM's functions for one processor."""
    return cgutils.get_or_insert_function(builder.module, ir.FunctionType(out, kinds), name)


def _vnni(builder, a, b, c):
    """c + the sums of four products; a: unsigned, b: signed, each four bytes in 32 bits."""
    name = f"llvm.x86.avx512.vpdpbusd.{32 * WIDTH}"
    return builder.call(_intrinsic(builder, name, [INTS] * 3, INTS), [c, a, b])


def _dot_product(builder, a, b, c):
    """c + the sums of four products, both signed, on Arm."""
    kind = ir.VectorType(ir.IntType(8), 4 * WIDTH)
    call = _intrinsic(builder, f"llvm.aarch64.neon.sdot.v{WIDTH}i32.v{4 * WIDTH}i8",
                      [INTS, kind, kind], INTS)  # fmt: skip
    return builder.call(call, [c, builder.bitcast(a, kind), builder.bitcast(b, kind)])


MADDUBS = {  # for so many numbers of 32 bits: who has it; products of bytes; sums of pairs
    16: ("avx512bw", "avx512.pmaddubs.w.512", "avx512.pmaddw.d.512"),
    8: ("avx2", "avx2.pmadd.ub.sw", "avx2.pmadd.wd"),
    4: ("ssse3", "ssse3.pmadd.ub.sw.128", "sse2.pmadd.wd"),
}


def _maddubs(builder, a, b, c):
    """c + the sums of four products, as _vnni, by two instructions; |b| is at most 63."""
    bytes_, pairs = (ir.VectorType(ir.IntType(bits), 32 // bits * WIDTH) for bits in (8, 16))
    _, multiply, add = MADDUBS[WIDTH]
    two = _intrinsic(builder, f"llvm.x86.{multiply}", [bytes_] * 2, pairs)
    sums = builder.call(two, [builder.bitcast(a, bytes_), builder.bitcast(b, bytes_)])
    four = _intrinsic(builder, f"llvm.x86.{add}", [pairs] * 2, INTS)
    ones = ir.Constant(pairs, [1] * (2 * WIDTH))
    return builder.add(c, builder.call(four, [sums, ones]))


def _pairs(builder, a, b, c):
    """c + the sums of two products of signed 16 bits."""
    kind = ir.VectorType(ir.IntType(16), 2 * WIDTH)
    a, b = builder.bitcast(a, kind), builder.bitcast(b, kind)
    for place in (0, 1):
        every = ir.Constant(ir.VectorType(tile.I32, WIDTH), list(range(place, 2 * WIDTH, 2)))
        nothing = ir.Constant(kind, ir.Undefined)
        x, y = (builder.sext(builder.shuffle_vector(v, nothing, every), INTS) for v in (a, b))
        c = builder.add(c, builder.mul(x, y))
    return c


def _widen_pairs(builder, vector):
    return builder.sext(vector, ir.VectorType(ir.IntType(16), 2 * WIDTH))


class Instruction(NamedTuple):
    """How products of eight bits are made.

    group: steps of the sum at once. kind: what activations are stored as; shift: what is added to
    them. add, widen: as tile.Step has them. there: can this processor do it?
    """

    group: int
    kind: type
    shift: int
    add: Callable
    widen: Callable
    there: bool

    @property
    def step(self) -> tile.Step:
        stored = ir.VectorType(ir.IntType(8), self.group * WIDTH)
        return tile.Step(tile.I32, stored, self.group * WIDTH, 4, self.widen, self.add)


def _as_ints(builder, vector):
    return builder.bitcast(vector, INTS)


INSTRUCTIONS = {
    "vnni": Instruction(
        4, np.uint8, 128, _vnni, _as_ints,
        HOST.get("avx512vnni", False) or (HOST.get("avxvnni", False) and WIDTH < 16),
    ),
    "dotprod": Instruction(4, np.int8, 0, _dot_product, _as_ints, HOST.get("dotprod", False)),
    "maddubs": Instruction(
        4, np.uint8, 128, _maddubs, _as_ints, HOST.get(MADDUBS[WIDTH][0], False)
    ),
    "pairs": Instruction(2, np.int16, 0, _pairs, _widen_pairs, True),
}  # fmt: skip


def chosen() -> str:
    """The first that this processor has; MINIDACT_INT8 forces another one, for tests."""
    there = [name for name, instruction in INSTRUCTIONS.items() if instruction.there]
    forced = os.environ.get("MINIDACT_INT8")
    return there[0] if forced is None else known("MINIDACT_INT8", forced, there)


INSTRUCTION = INSTRUCTIONS[chosen()]
GROUP, KIND, SHIFT, STEP = INSTRUCTION.group, INSTRUCTION.kind, INSTRUCTION.shift, INSTRUCTION.step
MASK = np.int32(0x7FFFFFFF)  # all of a float32 but its sign


# ---------------------------------------------------------------------------- the tile


@intrinsic
def _tile(typing, rows, a, a_row, panel, steps, columns, scales, c, c_row, ahead, ahead_step):
    """Computes C (rows, PANEL) in float32 from rows of q and a panel of p, 1 <= rows <= TILE.

    All arguments are int64. columns: the address of (3, PANEL): int32 to start from, scales,
    biases. scales: the address of the rows' scales.
    """
    signature = types.void(*[types.int64] * 11)

    def codegen(context, builder, signature, arguments):
        rows, a, a_row, panel, steps, columns, scales, c, c_row, ahead, ahead_step = arguments
        places = tile.Places(a, a_row, tile.I64(4), panel, steps, ahead, ahead_step)

        def column(place, h, kind):
            at = tile.offset(builder, columns, 1, 4 * (place * PANEL + h * WIDTH))
            return tile.load(builder, at, kind, 4)

        def emit(count):
            first = [column(0, h, INTS) for h in (0, 1)]
            sums = tile.emit_loop(builder, count, STEP, places, first)
            for r in range(count):
                s = tile.load(builder, tile.offset(builder, scales, r, 4), ir.FloatType(), 4)
                s, row = tile.spread(builder, s), tile.offset(builder, c, r, c_row)
                for h in (0, 1):
                    scale = builder.fmul(s, column(1, h, tile.FLOATS))
                    value = builder.sitofp(sums[r][h], tile.FLOATS)
                    value = multiply_add(builder, value, scale, column(2, h, tile.FLOATS))
                    tile.store(builder, value, tile.offset(builder, row, h, 4 * WIDTH))

        tile.for_every_height(builder, rows, emit)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def _round(typing, x):
    """The nearest whole number of a float32, ties to even, as np.rint."""

    def codegen(context, builder, signature, arguments):
        kind = ir.FunctionType(ir.FloatType(), [ir.FloatType()])
        rint = cgutils.get_or_insert_function(builder.module, kind, "llvm.rint.f32")
        return builder.call(rint, arguments)

    return types.float32(types.float32), codegen


@jit()
def _call_tile(rows, a, a_row, panel, steps, columns, scales, c, c_row, ahead, ahead_step):
    """Calls _tile; a function of its own, so that the tile is compiled only once."""
    _tile(rows, a, a_row, panel, steps, columns, scales, c, c_row, ahead, ahead_step)


@jit()
def multiply(q, scales, panel, columns, gelu, rows, first, out):
    """Computes out[rows[0] : rows[1], first : first + PANEL] from q, scales and a panel.

    q (T, depth), scales (T,), panel (depth / GROUP, PANEL * GROUP) int8; columns (3, PANEL)
    float32, as pack makes them; out (T, O) float32. gelu: its GELU, tile by tile, while the tile is
    still in the cache.
    """
    (begin, end), steps, width = rows, len(panel), min(PANEL, out.shape[1] - first)
    spare = np.empty((TILE, PANEL), np.float32)  # for a panel that is not full
    tiles = (end - begin + TILE - 1) // TILE
    step, out_row = panel.strides[0], out.strides[0]
    q_at, panel_at, scales_at = address(q), address(panel), address(scales)
    out_at = address(out) + 4 * first
    for i in range(tiles):  # of nearly the same height
        lo = begin + (end - begin) * i // tiles
        hi = begin + (end - begin) * (i + 1) // tiles
        to, to_row = (out_at + lo * out_row, out_row) if width == PANEL else (
            address(spare), 4 * PANEL)  # fmt: skip
        ahead = panel_at + step * (AHEAD if tiles == 1 else steps + steps * i // tiles)
        _call_tile(
            hi - lo, q_at + lo * q.strides[0], q.strides[0], panel_at, steps, address(columns),
            scales_at + 4 * lo, to, to_row, ahead, step // tiles,
        )  # fmt: skip
        if width < PANEL:
            for r in range(lo, hi):
                for j in range(width):
                    out[r, first + j] = spare[r - lo, j]
        if gelu:
            gelu_block(out, (lo, hi), first)


# ---------------------------------------------------------------------------- quantising


@jit(fastmath=())
def _scales_of(top):
    """(scale, its inverse) of a row whose largest size is top; both 0 if the row is."""
    return top / F(127.0), F(127.0) / top if top > F(0.0) else F(0.0)


@jit()
def quantise_row(x, q):
    """Writes a row x (n,) float32 as q (n,), shifted; returns its scale. Twin: ops.quantise."""
    bits, top = x.view(np.int32), np.int32(0)
    for c in range(len(x)):  # a float32's bits without the sign are in the order of its size
        top = max(top, bits[c] & MASK)
    size = np.array([top], np.int32).view(np.float32)[0]
    scale, inverse = _scales_of(size)
    for c in range(len(x)):
        q[c] = KIND(np.int32(_round(x[c] * inverse)) + np.int32(SHIFT))
    return scale


# ---------------------------------------------------------------------------- whole products


@jit(parallel=True)
def linear_packed(q, scales, panels, columns, gelu, out):
    """Computes out (T, O) ~ x w' + b, or its GELU if `gelu`, by all threads.

    x is quantised as q and scales, w is packed as panels and columns.
    """
    rows, outputs = out.shape
    blocks = blocks_of(len(panels), rows, q.shape[1] // 4)
    for task in prange(len(panels) * blocks):
        lo, hi, first, _ = share_of(task, len(panels), blocks, rows, outputs)
        i = first // PANEL
        multiply(q, scales, panels[i], columns[i], gelu, (lo, hi), first, out)


@jit()
def depth_of(inputs):
    """How many numbers a quantised row of so many inputs has room for: whole steps."""
    return (inputs + GROUP - 1) // GROUP * GROUP


def pack(w, b, panels, columns):
    """Quantises and packs w (O, I) with its bias b (O,), float16 or 32, as multiply reads them.

    panels (P, depth / GROUP, PANEL * GROUP) int8 and columns (P, 3, PANEL) float32 are filled.
    """
    count, steps, _ = panels.shape
    p, r = ops.quantise(w.astype(np.float32, copy=False), ops.WEIGHT_TOP)
    padded = np.zeros((count * PANEL, steps * GROUP), np.int8)
    padded[: len(p), : p.shape[1]] = p
    grouped = padded.reshape(count, PANEL, steps, GROUP).transpose(0, 2, 1, 3)
    panels[:] = grouped.reshape(panels.shape)
    start = -SHIFT * padded.sum(1, dtype=np.int32)
    columns[:, 0] = start.view(np.float32).reshape(count, PANEL)
    columns[:, 1], columns[:, 2] = starts_of(r), starts_of(b.astype(np.float32, copy=False))
