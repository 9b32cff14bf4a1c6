"""Derivatives of single operations along a tangent: forward dual numbers; at a kink, the side that the tangent takes.

A rule computes an operation of torch, and a tangent or None for each tensor that it returns. Numbers that tie, to
within rounding, are ordered by their tangents, as they are one small step further on.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._pytree import tree_leaves, tree_map_only

from relu_diag.functional.tolerances import kink_tolerance

Jet = tuple[Any, list[Tensor | None]]


@dataclass(frozen=True, slots=True, eq=False)
class Dual:
    """Dual numbers: tensors, their tangents, and what ties.

    Attributes:
        of: The tangent of a tensor; None where it stands still.
        kink_tol: Difference, over the largest number beside, that counts as none.
    """

    of: Callable[[Tensor], Tensor | None]
    kink_tol: float | None

    def tied(self, a: Tensor, b: Tensor | float) -> Tensor:
        """Where two tensors agree, bool."""
        if not a.is_floating_point():
            return a == b
        return (a - b).abs() <= self.gap(a)

    def gap(self, a: Tensor) -> Tensor:
        """The difference that counts as none, shape ``()``."""
        if not a.numel():
            return a.new_zeros(())
        sizes = a.abs()
        return kink_tolerance(self.kink_tol, a.dtype) * torch.where(sizes.isfinite(), sizes, 0.0).amax()


Rule = Callable[[Dual, Any, tuple[Any, ...], dict[str, Any]], Jet]


def differentiate(dual: Dual, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Jet:
    """The rule of what has no kink: torch's own forward derivative. What is written in place gets a tangent too."""
    name = _name(func)
    target = args[0] if name.endswith("_") else None
    duals: dict[int, Tensor] = {}

    def lift(x: Tensor) -> Tensor:
        tangent = dual.of(x)
        if tangent is None and x is not target:
            return x
        if id(x) not in duals:
            duals[id(x)] = _dual_number(x, torch.zeros_like(x) if tangent is None else tangent)
        return duals[id(x)]

    with forward_ad.dual_level():
        try:
            values = func(*tree_map_only(Tensor, lift, args), **tree_map_only(Tensor, lift, kwargs))
        except NotImplementedError as error:
            raise NotImplementedError(f"`loss` goes through {name}, which has no forward derivative.") from error
        tangents = [_unpacked(x)[1] if isinstance(x, Tensor) else None for x in tree_leaves(values)]
        values = tree_map_only(Tensor, lambda x: _unpacked(x)[0], values)
    if getattr(func, "namespace", "aten") != "aten" and all(tangent is None for tangent in tangents):
        # Operations that somebody has added may drop tangents in silence.
        raise NotImplementedError(f"`loss` goes through {name}, which has no forward derivative.")
    return values if target is None else target, tangents


def _name(func: Any) -> str:
    return str(getattr(func, "overloadpacket", func).__name__)


def _dual_number(x: Tensor, tangent: Tensor) -> Tensor:
    made: Tensor = forward_ad.make_dual(x, tangent)  # type: ignore[no-untyped-call]
    return made


def _unpacked(x: Tensor) -> tuple[Tensor, Tensor | None]:
    """Number and tangent of a dual number."""
    number, tangent = forward_ad.unpack_dual(x)  # type: ignore[no-untyped-call]
    return number, tangent


def _bent_at(*places: float | str) -> Rule:
    """The rule of an elementwise function with kinks at numbers or at arguments: there it is derived one step aside."""

    def rule(dual: Dual, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Jet:
        z, tangent = args[0], dual.of(args[0])
        if tangent is None:
            return differentiate(dual, func, args, kwargs)
        given = _arguments(func, args, kwargs)
        aside = z.detach()
        for place in places:
            at = given[place] if isinstance(place, str) else place
            if at is not None:
                aside = torch.where(dual.tied(z, at), _beside(at, tangent), aside)
        there = replace(dual, of=lambda x: tangent if x is aside else dual.of(x))
        return func(*args, **kwargs), differentiate(there, func, (aside, *args[1:]), kwargs)[1]

    return rule


def _soft(dual: Dual, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Jet:
    """Soft shrinkage, with a kink on both sides of 0."""
    width = _arguments(func, args, kwargs)["lambd"]
    return _bent_at(-width, width)(dual, func, args, kwargs)


def _beside(place: float, tangent: Tensor) -> Tensor:
    """The numbers next to a place, on the side of the tangents; next to 0, the first with all digits."""
    side = tangent.sign()
    if place == 0:
        return side * torch.finfo(tangent.dtype).tiny
    return torch.nextafter(torch.full_like(tangent, place), side * math.inf)


def _arguments(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """All arguments by name, those left out at their defaults."""
    given = {
        argument.name: argument.default_value for argument in func._schema.arguments if argument.has_default_value()
    }
    given.update(zip((argument.name for argument in func._schema.arguments), args, strict=False))
    return {**given, **kwargs}


def _clamped(dual: Dual, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Jet:
    """Clamps between numbers, or between tensors that may move themselves."""
    given = _arguments(func, args, kwargs)
    low, high = given.get("min"), given.get("max")
    if not isinstance(low, Tensor) and not isinstance(high, Tensor):
        return _bent_at(*(name for name in ("min", "max") if name in given))(dual, func, args, kwargs)
    value, tangent = given["self"], dual.of(given["self"])
    for choose, bound in ((torch.maximum, low), (torch.minimum, high)):
        if bound is not None:
            value, tangent = _larger(dual, choose, (value, tangent), (bound, dual.of(bound)))
    return value, [tangent]


def _extreme_of_two(dual: Dual, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Jet:
    """The larger or smaller of two numbers."""
    a, b = args
    value, tangent = _larger(dual, func, (a, dual.of(a)), (b, dual.of(b)))
    return value, [tangent]


def _larger(
    dual: Dual,
    choose: Callable[[Tensor, Tensor], Tensor],
    one: tuple[Tensor, Tensor | None],
    two: tuple[Tensor, Tensor | None],
) -> tuple[Tensor, Tensor]:
    """What a choice between two numbers gives; where they tie, it is the same choice between their tangents."""
    (a, rate_a), (b, rate_b) = one, two
    along_a = torch.zeros_like(a) if rate_a is None else rate_a
    along_b = torch.zeros_like(b) if rate_b is None else rate_b
    value = choose(a, b)
    apart = torch.where(value == a, along_a, along_b)
    return value, torch.where(dual.tied(a, b), choose(along_a, along_b), apart).to(value.dtype)


def _compared(dual: Dual, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Jet:
    """A comparison; where both sides tie, that of their tangents."""
    a, b = args
    along_a, along_b = (None if not isinstance(x, Tensor) else dual.of(x) for x in (a, b))
    along_a = torch.zeros_like(a) if along_a is None else along_a
    ties = func.overloadpacket(along_a, 0.0 if along_b is None else along_b)
    return torch.where(dual.tied(a, b), ties, func(a, b)), [None]


def _sign(dual: Dual, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Jet:
    """The sign a small step further on."""
    (z,) = args
    tangent = dual.of(z)
    assert tangent is not None
    return torch.where(dual.tied(z, 0.0), func(tangent), func(z)), [None]


def _norm(dual: Dual, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Jet:
    """A norm: at zero it grows as the norm of the tangent does."""
    given = _arguments(func, args, kwargs)
    tangent = dual.of(given["self"])
    assert tangent is not None
    order = given["ord"] if "ord" in given else given["p"]
    if order is not None and math.isinf(order):
        return _largest_size(dual, tangent, order > 0, given)
    value, (slope,) = (_bent_at(0.0) if order == 1 else differentiate)(dual, func, args, kwargs)
    grown = func(tangent, *args[1:], **kwargs)
    return value, [grown if slope is None else torch.where(dual.tied(value, 0.0), grown, slope)]


def _largest_size(dual: Dual, tangent: Tensor, largest: bool, given: dict[str, Any]) -> Jet:
    """The norms that are one of the sizes, the largest or the smallest."""
    z = given["self"]
    sizes = z.abs()
    rates = torch.where(dual.tied(z, 0.0), tangent.abs(), z.sign() * tangent)
    choose = torch.ops.aten.amax.default if largest else torch.ops.aten.amin.default
    return _chosen(
        replace(dual, of=lambda _: rates), choose, (sizes, given.get("dim") or [], given.get("keepdim", False)), {}
    )


def _chosen(dual: Dual, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Jet:
    """What returns some of the numbers it is given, or their indices: computed on their places in ascending order."""
    z, tangent = args[0], dual.of(args[0])
    assert tangent is not None
    numbers, rates = z.flatten(), tangent.flatten()
    order = _order(numbers, rates, dual.gap(z))
    places = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=z.device))
    found = func(places.to(torch.float64).reshape(z.shape), *args[1:], **kwargs)
    origins = [order[x.long()] if x.is_floating_point() else None for x in tree_leaves(found)]
    tangents = [None if origin is None else rates[origin] for origin in origins]
    values = tree_map_only(Tensor, lambda x: numbers[order[x.long()]] if x.is_floating_point() else x, found)
    return values, tangents


def _order(numbers: Tensor, rates: Tensor, gap: Tensor) -> Tensor:
    """The order of dual numbers, ascending, shape ``(n,)``: those that follow each other without a gap tie."""
    order = numbers.argsort(stable=True)
    ascending = numbers[order]
    group = torch.cat([gap.new_zeros(1), (ascending.diff() > gap).to(gap)]).cumsum(0)
    within = rates[order].argsort(stable=True)
    return order[within[group[within].argsort(stable=True)]]


def _weight_norm(dual: Dual, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Jet:
    """The weight of a weight_norm, in parts that have forward derivatives."""

    def parts(v: Tensor, g: Tensor, dim: int = 0) -> tuple[Tensor, Tensor]:
        norm = torch.norm_except_dim(v, 2, dim)
        return v * (g / norm), norm

    return differentiate(dual, parts, args, kwargs)


def _scattered(dual: Dual, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Jet:
    """Sums and means of scattered numbers, which have no kinks."""
    smooth = _arguments(func, args, kwargs)["reduce"] in {"sum", "mean"}
    return (differentiate if smooth else _refused)(dual, func, args, kwargs)


def _refused(dual: Dual, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Jet:
    """Operations with kinks whose sides are not known here."""
    raise NotImplementedError(f"`loss` goes through {_name(func)}, whose one-sided derivatives are not known here.")


RULES: dict[str, Rule] = {
    **dict.fromkeys(("relu", "leaky_relu", "_prelu_kernel", "abs", "elu"), _bent_at(0.0)),
    "hardtanh": _bent_at("min_val", "max_val"),
    **dict.fromkeys(("hardsigmoid", "hardswish"), _bent_at(-3.0, 3.0)),
    "threshold": _bent_at("threshold"),
    "softshrink": _soft,
    **dict.fromkeys(("clamp", "clamp_min", "clamp_max"), _clamped),
    **dict.fromkeys(("maximum", "minimum", "fmax", "fmin"), _extreme_of_two),
    **dict.fromkeys(("gt", "ge", "lt", "le", "eq", "ne"), _compared),
    **dict.fromkeys(("sign", "sgn"), _sign),
    **dict.fromkeys(("linalg_vector_norm", "norm"), _norm),
    **dict.fromkeys(("max", "min", "amax", "amin", "aminmax", "argmax", "argmin"), _chosen),
    **dict.fromkeys(("sort", "topk", "kthvalue", "median", "nanmedian", "cummax", "cummin"), _chosen),
    **dict.fromkeys(("max_pool2d_with_indices", "max_pool3d_with_indices"), _chosen),
    **dict.fromkeys(("adaptive_max_pool2d", "adaptive_max_pool3d"), _chosen),
    "_weight_norm_interface": _weight_norm,
    **dict.fromkeys(("scatter_reduce", "index_reduce"), _scattered),
    **dict.fromkeys(("rrelu_with_noise", "fractional_max_pool2d", "fractional_max_pool3d", "mode", "dist"), _refused),
    **dict.fromkeys(("_foreach_add", "_foreach_mul", "_foreach_copy", "_foreach_lerp", "_foreach_norm"), _refused),
    **dict.fromkeys(("threshold_backward", "leaky_relu_backward", "hardtanh_backward"), _refused),
}
