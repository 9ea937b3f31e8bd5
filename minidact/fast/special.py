"""exp and the normal distribution in float32, as polynomials that LLVM can vectorise.

The C library's exp and erf are function calls. Each call computes one number, in 3 and 7 ns. Here
they are multiplications and additions, so LLVM computes a whole vector at once: 0.5 and 0.9 ns a
number. Every constant is a float32, because one Python float would promote the whole expression to
float64.
"""

import numpy as np

from .jit import jit

F = np.float32


@jit(fastmath={"contract"})
def _times_power_of_2(y, shifted):
    """Returns y 2^n, where shifted is n + 1.5 * 2^23: its lowest bits hold n."""
    bits = np.float32(shifted).view(np.int32)
    exponent = np.int32((bits + np.int32(127)) << np.int32(23))
    return y * np.int32(exponent).view(np.float32)


@jit(fastmath={"contract"})
def exp(x):
    """Returns e^x for a float32, with a relative error of 2e-7; NaN stays NaN.

    The result is 2^n times a polynomial in the remainder r, |r| < ln(2) / 2.
    """
    clamped = min(max(x, F(-87.0)), F(88.0))
    # A float32 near 1.5 * 2^23 has no bits after the point, so this sum is rounded to a whole
    # number. The order of these lines must stay: no "reassoc" above.
    shifted = clamped * F(1.4426950408889634) + F(12582912.0)
    n = shifted - F(12582912.0)
    r = clamped - n * F(0.693359375) - n * F(-2.1219444e-4)  # ln 2 in two parts
    y = F(1.3836742e-3)
    y = y * r + F(8.3748987e-3)
    y = y * r + F(4.1668232e-2)
    y = y * r + F(1.6666420e-1)
    y = y * r + F(0.49999991)
    y = y * r + F(1.0)
    y = y * r + F(1.0)
    y = _times_power_of_2(y, shifted)
    y = F(0.0) if x < F(-87.0) else y
    y = F(np.inf) if x > F(88.0) else y
    return y if x == x else x  # NaN stays NaN


@jit(fastmath={"contract"})
def exp2(x):
    """Returns 2^x for a float32 below 127, to 2e-7; below -126 2^-126; NaN stays NaN.

    A softmax needs no more, and gets along with half of what exp does. The polynomial of degree 5
    was fitted for this file, to a relative error of 8e-8, for a remainder of at most 1/2.
    """
    x = F(-126.0) if x < F(-126.0) else x
    shifted = x + F(12582912.0)  # rounded to a whole number, as in exp
    r = x - (shifted - F(12582912.0))
    y = F(1.32764643e-3)
    y = y * r + F(9.67554189e-3)
    y = y * r + F(5.55071346e-2)
    y = y * r + F(2.40221202e-1)
    y = y * r + F(6.93146944e-1)
    y = y * r + F(1.00000012)
    return _times_power_of_2(y, shifted)


@jit()
def normal(x):
    """Returns (Phi(x), phi(x)), the normal distribution function and its density, for a float32.

    The relative error is below 1e-6. The upper tail has the shape of phi:

        1 - Phi(u) = e^(-u^2/2) P(t),    t = 1 / (1 + 0.35 u),    u >= 0

    P is a polynomial of degree 7. It was fitted for this file, to a relative error of 3e-7.
    """
    # beyond 12.6 the tail is below 1e-36; it becomes 0 before numbers get subnormal and slow
    far = abs(x) > F(12.6)
    u = F(12.6) if far else abs(x)
    bell = exp(u * u * F(-0.5))
    t = F(1.0) / (F(1.0) + F(0.35) * u)
    y = F(4.894249513745308e-2)
    y = y * t + F(-2.0211946964263916e-1)
    y = y * t + F(2.4064113199710846e-1)
    y = y * t + F(-1.702369749546051e-2)
    y = y * t + F(1.5596161782741547e-1)
    y = y * t + F(1.333550661802292e-1)
    y = y * t + F(1.4027035236358643e-1)
    y = y * t + F(-2.731577114900574e-5)
    tail = F(0.0) if far else y * bell
    return (tail if x < F(0.0) else F(1.0) - tail), bell * F(0.3989422804014327)


@jit()
def gelu(x):
    """Returns x Phi(x), the GELU (with erf, not tanh), for a float32. The error is below 5e-7.

    A forward pass needs no density, and a tail that is small needs no small relative error. So this
    is half the work of `normal`:

        1 - Phi(u) = 1 / (2 P(u)^8),    u >= 0

    P is a polynomial of degree 8. It was fitted for this file, to an error of 5e-8 in u (1 - Phi).
    """
    u = min(abs(x), F(12.6))
    y = F(2.9693203e-6)
    y = y * u + F(-1.7241264e-5)
    y = y * u + F(1.00276877e-4)
    y = y * u + F(1.03624632e-4)
    y = y * u + F(9.9323143e-4)
    y = y * u + F(8.5799647e-3)
    y = y * u + F(4.4794682e-2)
    y = y * u + F(9.973108e-2)
    y = y * u + F(1.0)
    y *= y
    y *= y
    tail = F(0.5) / (y * y)
    cdf = tail if x < F(0.0) else F(1.0) - tail
    y = x * cdf if x > F(-12.6) else F(0.0)
    return y if x == x else x  # NaN stays NaN
