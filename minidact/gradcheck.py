"""Is a backward pass the transpose of its forward's derivative? In float64, by finite differences.

For one argument x of f, with a random tangent u (x's shape) and a random cotangent v (f's shape):

    numeric  = <v, f(x + eps u) - f(x - eps u)> / (2 eps)
    analytic = <u, vjp(v)>

A cotangent of ones would be blind: the sum of a softmax, or of a layer norm, does not depend on its
input, so a wrong gradient of either passes. Both vectors are drawn from N(0, 1) here.

    >>> import numpy as np
    >>> from minidact import ops
    >>> from minidact.gradcheck import check_op
    >>> x = np.random.default_rng(0).standard_normal((5, 7))
    >>> check_op(ops.softmax_forward, ops.softmax_backward, {"x": x}, np.random.default_rng(1))

A gradient that is wrong raises AssertionError with its name and both numbers. Keep away from kinks
(a relu's 0, a threshold, two ranks that are level): there the two may differ, and both be right.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

EPS = 1e-6  # the step: its square is the error of the difference, its inverse multiplies rounding


def check_gradient(
    forward: Callable[[np.ndarray], Any],
    analytic: Callable[[Any], np.ndarray],
    x: np.ndarray,
    rng: np.random.Generator,
    name: str = "x",
    cotangent: Any = None,
) -> None:
    """Checks one gradient along one random direction.

    forward: x -> an array, or a number. analytic: v, of forward's shape -> the gradient of
    <v, forward(x)>, of x's shape. x: float64, of any shape. cotangent: v, drawn where it is None.
    Raises AssertionError, naming `name`, if they differ by more than finite differences do, and
    TypeError if x is not float64.
    """
    if x.dtype != np.float64:
        raise TypeError(f"{name} is {x.dtype}: finite differences are only meaningful in float64")
    u = rng.standard_normal(x.shape)
    v = rng.standard_normal(np.shape(forward(x))) if cotangent is None else cotangent
    difference = (np.asarray(forward(x + EPS * u)) - np.asarray(forward(x - EPS * u))) / (2 * EPS)
    numeric = float(np.sum(v * difference))
    gradient = analytic(v)
    if gradient.shape != x.shape:
        raise AssertionError(f"gradient of {name}: shape {gradient.shape}, not {x.shape}")
    exact = float(np.sum(u * gradient))
    tolerance = 1e-7 * np.linalg.norm(v) * np.linalg.norm(difference) + 1e-8
    if not abs(numeric - exact) <= tolerance:
        raise AssertionError(
            f"gradient of {name}: numeric {numeric:.12g}, analytic {exact:.12g}, "
            f"difference {abs(numeric - exact):.3g} > {tolerance:.3g}"
        )


def check_op(
    forward: Callable[..., tuple],
    backward: Callable[[Any, Any], Any],
    args: dict[str, Any],
    rng: np.random.Generator,
    wrt: Sequence[str] | None = None,
) -> None:
    """Checks an f_forward / f_backward pair as ops.py has them: every argument, and their manners.

    forward(**args) -> (out, cache); backward(dout, cache) -> a gradient, or a tuple of them, one
    for each float64 array in the order of args. wrt: which of these to check (default: all). Raises
    AssertionError if a gradient is wrong, if two gradients share memory with each other or with
    dout, or if an argument was written to.
    """
    order = [k for k, a in args.items() if getattr(a, "dtype", None) == np.float64]
    names = wrt or order
    before = {k: np.copy(a) for k, a in args.items() if isinstance(a, np.ndarray)}
    _, cache = forward(**args)

    for name in names:
        at = order.index(name)

        def f(x, name=name):
            return forward(**{**args, name: x})[0]

        def vjp(v, at=at):
            grads = backward(v, cache)
            grads = grads if isinstance(grads, tuple) else (grads,)
            for a, first in enumerate(grads):
                if np.shares_memory(first, v):
                    raise AssertionError("a gradient is a view of dout")
                if any(np.shares_memory(first, second) for second in grads[a + 1 :]):
                    raise AssertionError("two gradients share memory")
            return grads[at]

        check_gradient(f, vjp, args[name], rng, name)
    for name in before:
        if not np.array_equal(args[name], before[name]):
            raise AssertionError(f"the forward or the backward changed {name}")
