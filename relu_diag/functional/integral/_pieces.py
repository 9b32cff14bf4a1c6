"""The squared error of a piecewise affine function, integrated piece by piece, differentiable twice."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from relu_diag.functional.budgets import BUDGETS
from relu_diag.functional.integral.function import Function1d, evaluate


@dataclass(frozen=True, slots=True, eq=False)
class PieceRule:
    """What is integrated, and how.

    Attributes:
        target: Vectorised target ``f``.
        density: Vectorised weight, or None for 1.
        order: Gauss-Legendre nodes per piece.
        origin: Point about which the affine pieces are written.
    """

    target: Function1d
    density: Function1d | None
    order: int
    origin: float


def integrate_pieces(edges: Tensor, value: Tensor, slope: Tensor, rule: PieceRule) -> Tensor:
    """``sum_k`` of the integral of ``(value_k + slope_k (x - origin) - f(x))^2`` over ``[edges_k, edges_k+1]``.

    First and second derivatives are those of the integral of a *continuous* piecewise affine function whose joints are
    the edges: moving a joint changes nothing to first order, so ``edges`` get no first derivative, and the derivative
    of the target is never needed.

    Args:
        edges: Sorted, float64, shape ``(K + 1,)``.
        value: Values at the origin, shape ``(K,)``.
        slope: Slopes, shape ``(K,)``.
        rule: Target, weight and order.

    Returns:
        Scalar.
    """
    total, _, _ = _SquaredError.apply(edges, value, slope, rule)  # type: ignore[no-untyped-call]
    out: Tensor = total
    return out


class _SquaredError(torch.autograd.Function):
    """The loss and its moments; derivatives are made of the moments, which can be differentiated once more."""

    generate_vmap_rule = True

    @staticmethod
    def forward(edges: Tensor, value: Tensor, slope: Tensor, rule: PieceRule) -> tuple[Tensor, Tensor, Tensor]:
        total = value.new_zeros(())
        moments = []
        for part, x, weight in _nodes(edges, rule):
            error = _error(x, value[part, None], slope[part, None], rule)
            weighted = weight * error
            total = total + (weighted * error).sum()
            moments.append((weighted.sum(1), (weighted * (x - rule.origin)).sum(1)))
        zeroth, first = (torch.cat(part) for part in zip(*moments, strict=True))
        return total, zeroth, first

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.rule = inputs[3]
        ctx.save_for_backward(*inputs[:3], *output[1:])
        ctx.save_for_forward(*inputs[:3], *output[1:])
        ctx.mark_non_differentiable(*output[1:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        zeroth, first = _moments_again(ctx)
        return None, 2 * grads[0] * zeroth, 2 * grads[0] * first, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> tuple[Tensor | None, ...]:
        zeroth, first = _moments_again(ctx)
        return 2 * (zeroth @ tangents[1] + first @ tangents[2]), None, None


def _moments_again(ctx: Any) -> tuple[Tensor, Tensor]:
    """The moments of the forward pass, or the same with a graph where they are differentiated once more."""
    edges, value, slope, zeroth, first = ctx.saved_tensors
    if torch.is_grad_enabled():
        zeroth, first = _Moments.apply(edges, value, slope, ctx.rule)  # type: ignore[no-untyped-call]
    return zeroth, first


class _Moments(torch.autograd.Function):
    """Per piece the integrals of the error and of the error times ``x - origin``."""

    generate_vmap_rule = True

    @staticmethod
    def forward(edges: Tensor, value: Tensor, slope: Tensor, rule: PieceRule) -> tuple[Tensor, Tensor]:
        _, zeroth, first = _SquaredError.forward(edges, value, slope, rule)
        return zeroth, first

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.rule = inputs[3]
        ctx.save_for_backward(*inputs[:3])
        ctx.save_for_forward(*inputs[:3])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        zeroth, first = grads
        x, ends, powers = _rates(ctx)
        left, right = (error * (zeroth + first * at) for error, at in zip(ends, (x[:-1], x[1:]), strict=True))
        # A piece grows at its right edge and shrinks at its left one.
        by_edge = torch.cat([-left[:1], right[:-1] - left[1:], right[-1:]])
        return by_edge, zeroth * powers[0] + first * powers[1], zeroth * powers[1] + first * powers[2], None

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> tuple[Tensor, Tensor]:
        edge, value, slope = tangents[:3]
        x, ends, powers = _rates(ctx)
        left, right = ends[0] * edge[:-1], ends[1] * edge[1:]
        zeroth = right - left + powers[0] * value + powers[1] * slope
        first = right * x[1:] - left * x[:-1] + powers[1] * value + powers[2] * slope
        return zeroth, first


def _rates(ctx: Any) -> tuple[Tensor, tuple[Tensor, Tensor], list[Tensor]]:
    """Edges from the origin, weighted errors of each piece at its two ends, and moments 0 to 2 of the weight."""
    edges, value, slope = ctx.saved_tensors
    rule = ctx.rule
    x = edges - rule.origin
    at_edge = evaluate("target", rule.target, edges)
    density = torch.ones_like(edges) if rule.density is None else evaluate("density", rule.density, edges)
    ends = (
        density[:-1] * (value + slope * x[:-1] - at_edge[:-1]),
        density[1:] * (value + slope * x[1:] - at_edge[1:]),
    )
    return x, ends, [torch.cat(part) for part in zip(*_weight_moments(edges, rule), strict=True)]


def _nodes(edges: Tensor, rule: PieceRule) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Pieces in chunks: which, their nodes ``(k, order)`` and the weights of the nodes."""
    unit, share = _gauss_legendre(rule.order, edges.device)
    numbers = BUDGETS.nodes if edges.device.type == "cpu" else BUDGETS.nodes_on_gpu
    rows = max(1, numbers // rule.order)
    for start in range(0, len(edges) - 1, rows):
        part = slice(start, min(start + rows, len(edges) - 1))
        left = edges[part]
        length = edges[start + 1 : part.stop + 1] - left
        x = torch.addcmul(left[:, None], length[:, None], unit)
        weight = length[:, None] * share
        if rule.density is not None:
            weight = weight * evaluate("density", rule.density, x.flatten()).reshape(x.shape)
        yield part, x, weight


def _error(x: Tensor, value: Tensor, slope: Tensor, rule: PieceRule) -> Tensor:
    """Network minus target at the nodes, shape ``(k, order)``."""
    affine = torch.addcmul(value, slope, x - rule.origin)
    return affine.sub_(evaluate("target", rule.target, x.flatten()).reshape(x.shape))


def _weight_moments(edges: Tensor, rule: PieceRule) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Moments 0 to 2 of the weight in each piece, in chunks ``(k,)``."""
    for _, x, weight in _nodes(edges, rule):
        x = x - rule.origin
        yield weight.sum(1), (weight * x).sum(1), (weight * x * x).sum(1)


@lru_cache(maxsize=64)
def _gauss_legendre(order: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Nodes and weights on [0, 1], kept on the device: a copy at every call would make the host wait."""
    nodes, weights = np.polynomial.legendre.leggauss(order)
    return torch.as_tensor(nodes / 2 + 0.5, device=device), torch.as_tensor(weights / 2, device=device)
