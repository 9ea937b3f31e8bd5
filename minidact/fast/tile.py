"""The tile: the loop in the middle of every matrix product, in LLVM's own instructions.

gemm.py says what a tile is, and why it has this form. Here is the loop that all precisions share:

    for k in range(depth):
        b0, b1 = two vectors from step k of the panel
        for r in range(rows):
            a = what row r of A has for step k, spread over a vector
            C[r] = C[r] + a b0, C[r] + a b1
        prefetch what comes later

C stays in registers from the first step to the last. What a vector holds, and how one is multiplied
and added, is what a precision says in its own file, as a `Step`.

Python cannot say "keep this in a register". Numba lets a function emit LLVM's instructions directly
(`numba.extending.intrinsic`), and those who call `for_every_height` do so.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from llvmlite import ir

from .host import REGISTERS, WIDTH

PANEL = 2 * WIDTH  # columns of a panel, and of a tile
TILE = 12 if REGISTERS == 32 else 6  # rows of a tile, at most
AHEAD = 64  # a tile that holds all rows prefetches so many steps ahead
LINE = 64  # bytes of a cache line

I32, I64, BYTE = ir.IntType(32), ir.IntType(64), ir.IntType(8).as_pointer()
FLOATS = ir.VectorType(ir.FloatType(), WIDTH)


class Step(NamedTuple):
    """What one step of the sum is, in a precision.

    number: LLVM's type of what a row of A has for a step; it is spread over WIDTH places. stored:
    of a vector in the panel; size: its bytes; align: what its address is a multiple of.
    widen(builder, vector): what is done once to a vector of the panel. add(builder, a, b, c):
    c + a b.
    """

    number: Any
    stored: Any
    size: int
    align: int
    widen: Callable
    add: Callable


class Places(NamedTuple):
    """Where a tile finds its factors, as LLVM's int64: addresses, and distances in bytes.

    a; a_row and a_step: between rows of A, and between steps. panel. depth: steps of the sum.
    ahead: what step 0 prefetches; ahead_step: how much further each step's is.
    """

    a: Any
    a_row: Any
    a_step: Any
    panel: Any
    depth: Any
    ahead: Any
    ahead_step: Any


def for_every_height(builder, rows, emit) -> None:
    """Emits emit(count) for every count of rows up to TILE, and the choice of the one that fits."""
    done = builder.append_basic_block("done")
    switch = builder.switch(rows, done)
    for count in range(1, TILE + 1):
        block = builder.append_basic_block(f"rows{count}")
        switch.add_case(I64(count), block)
        builder.position_at_end(block)
        emit(count)
        builder.branch(done)
    builder.position_at_end(done)


def offset(builder, address, count, step):
    """address + count * step; step: bytes, a number or a value of LLVM's."""
    step = step if isinstance(step, ir.Value) else I64(step)
    return builder.add(address, builder.mul(step, I64(count)))


def load(builder, address, kind, align):
    loaded = builder.load(builder.inttoptr(address, kind.as_pointer()))
    loaded.align = align
    return loaded


def spread(builder, number):
    """A vector with the number in all its WIDTH places."""
    nothing = ir.Constant(ir.VectorType(number.type, WIDTH), ir.Undefined)
    one = builder.insert_element(nothing, number, I32(0))
    return builder.shuffle_vector(one, nothing, ir.Constant(ir.VectorType(I32, WIDTH), [0] * WIDTH))


def emit_loop(builder, rows: int, step: Step, places: Places, first: list) -> list:
    """Emits the loop. first: the two vectors that C starts from. Returns C, rows of two vectors."""
    prefetch = builder.module.declare_intrinsic(
        "llvm.prefetch", [BYTE], ir.FunctionType(ir.VoidType(), [BYTE, I32, I32, I32])
    )
    before = builder.block
    loop, after = builder.append_basic_block("loop"), builder.append_basic_block("after")
    builder.branch(loop)
    builder.position_at_end(loop)

    k, a_k, b_k, far = (builder.phi(I64) for _ in range(4))
    old = [[builder.phi(first[0].type) for _ in (0, 1)] for _ in range(rows)]
    vectors = [load(builder, offset(builder, b_k, h, step.size), step.stored, step.align)
               for h in (0, 1)]  # fmt: skip
    b = [step.widen(builder, vector) for vector in vectors]
    for line in range(0, 2 * step.size, LINE):
        there = builder.inttoptr(offset(builder, far, 1, line), BYTE)
        builder.call(prefetch, [there, I32(0), I32(3), I32(1)])  # to read, keep in all caches
    new = []
    for r in range(rows):
        a = spread(builder, load(builder, offset(builder, a_k, r, places.a_row), step.number, 4))
        new.append([step.add(builder, a, b[h], old[r][h]) for h in (0, 1)])
    k_next, a_next = builder.add(k, I64(1)), builder.add(a_k, places.a_step)
    b_next, far_next = builder.add(b_k, I64(2 * step.size)), builder.add(far, places.ahead_step)
    builder.cbranch(builder.icmp_signed("<", k_next, places.depth), loop, after)

    for phi, value, following in (
        (k, I64(0), k_next), (a_k, places.a, a_next), (b_k, places.panel, b_next),
        (far, places.ahead, far_next),
    ):  # fmt: skip
        phi.add_incoming(value, before)
        phi.add_incoming(following, loop)
    for r in range(rows):
        for h in (0, 1):
            old[r][h].add_incoming(first[h], before)
            old[r][h].add_incoming(new[r][h], loop)
    builder.position_at_end(after)
    return new


def store(builder, vector, address) -> None:
    builder.store(vector, builder.inttoptr(address, vector.type.as_pointer())).align = 4
