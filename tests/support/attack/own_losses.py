"""Losses near the outputs of a point, from their definitions: many steps at once, small ones without cancellation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .problem import Array

# Steps of the outputs ``(B, N, J)``.
ByStep = Callable[[Array], Array]


@dataclass(frozen=True)
class OwnLoss:
    """A loss near the outputs of a point.

    ``change`` (B, N, J) what every output adds to its change after steps (B, N, J), ``slope`` (B, N, J) its gradient
    there.
    """

    change: ByStep
    slope: ByStep


def squared(r: Array, weight: Array) -> OwnLoss:
    """``weight r^2``."""
    return OwnLoss(lambda m: weight * m * (2 * r + m), lambda m: 2 * weight * (r + m))


def huber(r: Array, weight: Array, delta: float) -> OwnLoss:
    def change(m: Array) -> Array:
        there = r + m
        near = (np.abs(r) <= delta) & (np.abs(there) <= delta)
        far = (np.abs(r) >= delta) & (np.abs(there) >= delta) & (r * there > 0)
        plain = _huber(there, delta) - _huber(r, delta)
        return weight * np.where(near, m * (r + m / 2), np.where(far, delta * np.sign(r) * m, plain))

    return OwnLoss(change, lambda m: weight * np.clip(r + m, -delta, delta))


def _huber(r: Array, delta: float) -> Array:
    return np.where(np.abs(r) <= delta, r**2 / 2, delta * (np.abs(r) - delta / 2))


def absolute(r: Array, weight: Array) -> OwnLoss:
    def change(m: Array) -> Array:
        return weight * np.where(r * (r + m) > 0, np.sign(r) * m, np.abs(r + m) - np.abs(r))

    return OwnLoss(change, lambda m: weight * np.sign(r + m))


def poisson(out: Array, E: Array, scale: float) -> OwnLoss:
    """``(exp(yhat) - y yhat) / scale``, its gradient at ``out`` being ``E``."""
    rate = np.exp(out) / scale
    return OwnLoss(lambda m: rate * (np.expm1(m) - m) + E * m, lambda m: rate * np.expm1(m) + E)


def binary(out: Array, Y: Array, weight: Array) -> OwnLoss:
    p = 1 / (1 + np.exp(-out))

    def change(m: Array) -> Array:
        near = np.log1p(p * np.expm1(np.clip(m, -1.0, 1.0)))
        return np.asarray(weight * (np.where(np.abs(m) < 1, near, _softplus(out + m) - _softplus(out)) - Y * m))

    return OwnLoss(change, lambda m: weight * (1 / (1 + np.exp(-(out + m))) - Y))


def _softplus(x: Array) -> Array:
    return np.logaddexp(0.0, x)


def classes(out: Array, shares: Array, weight: Array) -> OwnLoss:
    """``weight`` (N, 1); the logarithm of the sum is spread over the outputs evenly."""
    here = _log_sum(out)
    p = np.exp(out - here)

    def change(m: Array) -> Array:
        near = np.log1p((p * np.expm1(np.clip(m, -1.0, 1.0))).sum(-1, keepdims=True))
        small = np.abs(m).max(-1, keepdims=True) < 1
        risen = np.where(small, near, _log_sum(out + m) - here)
        return np.asarray(weight * (risen / out.shape[1] - shares * m))

    return OwnLoss(change, lambda m: weight * (np.exp(out + m - _log_sum(out + m)) - shares))


def _log_sum(x: Array) -> Array:
    most = x.max(-1, keepdims=True)
    return np.asarray(most + np.log(np.exp(x - most).sum(-1, keepdims=True)))


def log_cosh(u: Array, size: float) -> OwnLoss:
    """``size log cosh u``."""

    def change(m: Array) -> Array:
        t = np.clip(m, -1.0, 1.0)
        near = np.log1p(2 * np.sinh(t / 2) ** 2 + np.tanh(u) * np.sinh(t))
        return size * np.where(np.abs(m) < 1, near, _log_cosh(u + m) - _log_cosh(u))

    return OwnLoss(change, lambda m: size * np.tanh(u + m))


def _log_cosh(u: Array) -> Array:
    return np.asarray(np.logaddexp(u, -u) - np.log(2))
