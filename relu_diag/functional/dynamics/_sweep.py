"""All local maxima of ``||D(v)||``, less the price of being active, on the circle: sector by sector between kinks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from relu_diag.functional._arrays import Array
from relu_diag.functional.budgets import BUDGETS
from relu_diag.functional.tolerances import FLOAT64

_Complex = NDArray[np.complex128]


def sweep(X: Array, G: Array, slopes: tuple[float, float]) -> Array:
    """Local maxima on the circle. Between kinks ``D = M v``, and ``||M v||^2`` is a sinusoid of twice the angle."""
    edge, M = _sectors(X, G, slopes)
    width = np.append(edge[1:], edge[0] + 2 * np.pi) - edge
    a, b, c = (M[:, :, 0] ** 2).sum(1), (M[:, :, 0] * M[:, :, 1]).sum(1), (M[:, :, 1] ** 2).sum(1)
    flat = np.hypot((a - c) / 2, b) <= FLOAT64.flat * (a + c) / 2
    top = np.arctan2(2 * b, a - c) / 2
    ahead = (top - edge) % np.pi
    inside = (ahead > FLOAT64.same_angle) & (ahead < width - FLOAT64.same_angle) & ~flat
    # On a kink: rising up to it on its left, not rising beyond it. At a quarter turn the sinusoid is lowest.
    left, right = _half_turn(np.roll(top, 1) - edge), _half_turn(top - edge)
    rises = (left >= -FLOAT64.same_angle) & (left < np.pi / 2 - FLOAT64.same_angle) | np.roll(flat, 1)
    falls = (right <= FLOAT64.same_angle) & (right > FLOAT64.same_angle - np.pi / 2) | flat
    angle = np.concatenate([(edge + ahead)[inside], edge[rises & falls]])
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def _sectors(X: Array, G: Array, slopes: tuple[float, float]) -> tuple[Array, Array]:
    """Angles of the kinks, ascending, and the matrix ``M`` with ``D(v) = M v`` in the sector after each."""
    normal = np.arctan2(X[:, 1], X[:, 0])
    jump = (slopes[1] - slopes[0]) * G[:, :, None] * X[:, None, :]
    angle = np.concatenate([normal - np.pi / 2, normal + np.pi / 2]) % (2 * np.pi)
    order = angle.argsort()
    angle, jump = angle[order], np.concatenate([jump, -jump])[order]
    # Counted from the middle of the widest sector, no kink is cut in two by the end of the count.
    gap = np.append(angle[1:], angle[0] + 2 * np.pi) - angle
    widest = int(gap.argmax())
    origin = angle[widest] + gap[widest] / 2
    angle, jump = np.roll(angle, -widest - 1), np.roll(jump, -widest - 1, axis=0)
    start = np.where(X @ np.array([np.cos(origin), np.sin(origin)]) > 0, slopes[1], slopes[0])
    M = (G * start[:, None]).T @ X + jump.cumsum(axis=0)
    angle = origin + (angle - origin) % (2 * np.pi)
    last = np.append(np.diff(angle) > FLOAT64.same_angle, True)
    return angle[last], M[last]


def _half_turn(angle: Array) -> Array:
    """The angle modulo pi, in [-pi/2, pi/2)."""
    return np.asarray((angle + np.pi / 2) % np.pi - np.pi / 2)


def priced_sweep(X: Array, G: Array, slopes: tuple[float, float]) -> Array:
    """Local maxima on the circle of ``||D(v)|| - P(v)``.

    Between kinks ``D = M v`` and ``P = p . v``. Where the height has no slope, ``(v' . A v)^2 = (p . v')^2 v . A v``
    with ``A = M^T M`` and ``v'`` a quarter turn ahead: a polynomial of degree four in ``exp(2 i angle)``.

    Args:
        X: Inputs, shape ``(N, 2)``.
        G: Loss gradients, the price as last column, shape ``(N, J + 1)``.
        slopes: ``(s-, s+)``.

    Returns:
        Unit vectors, shape ``(n, 2)``.
    """
    edge, M = _sectors(X, G, slopes)
    width = np.append(edge[1:], edge[0] + 2 * np.pi) - edge
    ahead = (_flat_angles(M) - edge[:, None]) % (2 * np.pi)
    slope, bend = _slope_at(edge[:, None] + ahead, M)
    size = np.linalg.norm(M, axis=(1, 2))[:, None]
    inside = (ahead > FLOAT64.same_angle) & (ahead < (width - FLOAT64.same_angle)[:, None])
    tops = inside & (np.abs(slope) <= FLOAT64.level * size) & (bend < -FLOAT64.flat * size)
    # On a kink: rising up to it on its left, not rising beyond it.
    left = _slope_at(edge[:, None], np.roll(M, 1, axis=0))[0]
    right = _slope_at(edge[:, None], M)[0]
    kinks = (left >= -FLOAT64.level * np.roll(size, 1, axis=0)) & (right <= FLOAT64.level * size)
    angle = np.sort(np.concatenate([(edge[:, None] + ahead)[tops], edge[kinks[:, 0]]]) % (2 * np.pi))
    # Several roots are polished to one.
    angle = angle[np.diff(angle, append=angle[:1] + 2 * np.pi) > FLOAT64.same_maximum]
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def _flat_angles(M: Array) -> Array:
    """Angles among which are all with no slope in each sector, polished, shape ``(n, 8)``."""
    D, p = M[:, :-1], M[:, -1]
    A = D.transpose(0, 2, 1) @ D
    # ``m + u cos + w sin`` of twice the angle is v . A v, and ``k + r cos + q sin`` is (p . v')^2.
    m, u, w = (A[:, 0, 0] + A[:, 1, 1]) / 2, (A[:, 0, 0] - A[:, 1, 1]) / 2, A[:, 0, 1]
    k, r, q = (p[:, 0] ** 2 + p[:, 1] ** 2) / 2, (p[:, 1] ** 2 - p[:, 0] ** 2) / 2, -p[:, 0] * p[:, 1]
    turned, length, across = _powers(0 * m, w, -u), _powers(m, u, w), _powers(k, r, q)
    half = np.angle(_roots(_product(turned, turned) - _product(across, length))) / 2
    angles = np.concatenate([half, half + np.pi], axis=1)
    for _ in range(BUDGETS.newton):
        slope, bend = _slope_at(angles, M)
        step = -slope / np.where(bend == 0, np.inf, bend)
        angles = angles + np.clip(step, -FLOAT64.longest_turn, FLOAT64.longest_turn)
    return angles


def _powers(constant: Array, cosine: Array, sine: Array) -> _Complex:
    """``constant + cosine cos t + sine sin t``, times ``z = exp(i t)``, as a polynomial in ``z``, highest first."""
    return np.stack([(cosine - 1j * sine) / 2, constant + 0j, (cosine + 1j * sine) / 2], axis=1)


def _product(left: _Complex, right: _Complex) -> _Complex:
    """Coefficients of products of polynomials of degree two, shape ``(n, 5)``."""
    out = np.zeros((len(left), 5), dtype=np.complex128)
    for i in range(3):
        out[:, i : i + 3] += left[:, i, None] * right
    return out


def _roots(coefficients: _Complex) -> _Complex:
    """Roots of polynomials of degree four, zeros in place of those that are missing, shape ``(n, 4)``."""
    size = np.abs(coefficients).max(axis=1)
    full = np.abs(coefficients[:, 0]) > FLOAT64.rank * size
    found = np.zeros((len(coefficients), 4), dtype=np.complex128)
    companions = np.zeros((int(full.sum()), 4, 4), dtype=np.complex128)
    companions[:, [1, 2, 3], [0, 1, 2]] = 1.0
    companions[:, 0] = -coefficients[full, 1:] / coefficients[full, :1]
    found[full] = np.linalg.eigvals(companions)
    for i in np.flatnonzero(~full & (size > 0)):
        roots = np.roots(np.where(np.abs(coefficients[i]) > FLOAT64.rank * size[i], coefficients[i], 0.0))
        found[i, : len(roots)] = roots
    return found


def _slope_at(angle: Array, M: Array) -> tuple[Array, Array]:
    """Slope and second derivative of the height by the angle, shape ``(n, m)`` both, in the sectors of ``M``."""
    v = np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    turned = np.stack([-np.sin(angle), np.cos(angle)], axis=-1)
    here = np.einsum("nja,nma->nmj", M, v)
    there = np.einsum("nja,nma->nmj", M, turned)
    D, B = here[..., :-1], there[..., :-1]
    length = np.linalg.norm(D, axis=-1)
    length = np.where(length > 0, length, 1.0)
    along = (D * B).sum(-1) / length
    bend = ((B * B).sum(-1) - along**2) / length - length + here[..., -1]
    return along - there[..., -1], bend
