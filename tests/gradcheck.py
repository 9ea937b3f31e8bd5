"""Is a backward pass the transpose of its forward's derivative? In float64, by finite differences.

For one argument x of f, with a random tangent u (x's shape) and a random cotangent v (f's shape):

    numeric  = <v, f(x + eps u) - f(x - eps u)> / (2 eps)
    analytic = <u, vjp(v)>

A cotangent of ones would be blind: the sum of a softmax, or of a layer norm, does not depend on its
input, so a wrong gradient of either passes. Both vectors are drawn from N(0, 1) here.
"""

import numpy as np

EPS = 1e-6


def check_gradient(forward, analytic, x, rng, name="x", cotangent=None):
    """forward: x -> array or scalar; analytic: v -> gradient of <v, forward(x)>, of x's shape."""
    assert x.dtype == np.float64, "finite differences are meaningless in float32"
    u = rng.standard_normal(x.shape)
    out = np.asarray(forward(x))
    v = rng.standard_normal(out.shape) if cotangent is None else cotangent
    difference = (np.asarray(forward(x + EPS * u)) - np.asarray(forward(x - EPS * u))) / (2 * EPS)
    numeric = float(np.sum(v * difference))
    gradient = analytic(v)
    assert gradient.shape == x.shape, f"gradient of {name}: {gradient.shape}, not {x.shape}"
    exact = float(np.sum(u * gradient))
    tolerance = 1e-7 * np.linalg.norm(v) * np.linalg.norm(difference) + 1e-8
    assert abs(numeric - exact) <= tolerance, (
        f"gradient of {name}: numeric {numeric:.12g}, analytic {exact:.12g}, "
        f"difference {abs(numeric - exact):.3g} > {tolerance:.3g}"
    )


def check_op(forward, backward, args, rng, wrt=None):
    """An f_forward / f_backward pair: every argument in wrt (default: all arrays of floats).

    args: dict of the forward's arguments, in the order in which the backward returns gradients.
    """
    names = wrt or [k for k, a in args.items() if getattr(a, "dtype", None) == np.float64]
    _, cache = forward(**args)
    before = {name: np.copy(args[name]) for name in names}

    for i, name in enumerate(names):

        def f(x, name=name):
            return forward(**{**args, name: x})[0]

        def vjp(v, i=i):
            grads = backward(v, cache)
            grads = grads if isinstance(grads, tuple) else (grads,)
            for a, first in enumerate(grads):  # no gradient may share memory with another one
                assert not np.shares_memory(first, v), "a gradient is a view of dout"
                for second in grads[a + 1 :]:
                    assert not np.shares_memory(first, second), "two gradients share memory"
            return grads[i]

        check_gradient(f, vjp, args[name], rng, name)
    for name in names:
        assert np.array_equal(args[name], before[name]), f"the forward or backward changed {name}"
