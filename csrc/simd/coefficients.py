"""Prints the polynomial coefficients of math.hpp: near-minimax fits through Chebyshev nodes. Needs mpmath."""

from collections.abc import Callable

import mpmath as mp

mp.mp.dps = 50
Function = Callable[[mp.mpf], mp.mpf]


def fit(f: Function, low: float, high: float, degree: int) -> list[mp.mpf]:
    """Coefficients, lowest power first, of the polynomial through f at the Chebyshev nodes of [low, high]."""
    n = degree + 1
    nodes = [(low + high) / 2 + (high - low) / 2 * mp.cos(mp.pi * (2 * k + 1) / (2 * n)) for k in range(n)]
    powers = mp.matrix(n, n)
    for i, x in enumerate(nodes):
        for j in range(n):
            powers[i, j] = x**j
    return list(mp.lu_solve(powers, mp.matrix([f(x) for x in nodes])))


def show(name: str, f: Function, low: float, high: float, degree: int) -> None:
    coefficients = fit(f, mp.mpf(low), mp.mpf(high), degree)
    points = [mp.mpf(low) + (mp.mpf(high) - mp.mpf(low)) * k / 1000 for k in range(1001)]
    error = max(abs(mp.polyval(coefficients[::-1], x) - f(x)) for x in points)
    print(f"{name}: {', '.join(mp.nstr(c, 10) for c in coefficients)}  (error {mp.nstr(error, 2)})")


def exp_rest(r: mp.mpf) -> mp.mpf:
    """e^r = 1 + r + r^2 * this."""
    return mp.mpf(0.5) if r == 0 else (mp.expm1(r) - r) / r**2


def tanh_rest(z: mp.mpf) -> mp.mpf:
    """tanh x = x + x^3 * this, z = x^2."""
    x = mp.sqrt(z)
    return mp.mpf(-1) / 3 if z == 0 else (mp.tanh(x) - x) / x**3


def erf_ratio(z: mp.mpf) -> mp.mpf:
    """erf x = x * this, z = x^2."""
    x = mp.sqrt(z)
    return 2 / mp.sqrt(mp.pi) if z == 0 else mp.erf(x) / x


if __name__ == "__main__":
    show("exp", exp_rest, -0.3466, 0.3466, 5)
    show("tanh", tanh_rest, 0, 0.625**2, 4)
    show("erf, |x| <= 1", erf_ratio, 0, 1, 6)
    show("log erfc, 1 <= x <= 4", lambda x: mp.log(mp.erfc(x)), 1, 4, 8)
