"""Losses fitted to a gradient: constants by least squares, then every number compared."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from relu_diag.functional.budgets import BUDGETS
from relu_diag.functional.output_loss._targets import one_over_whole
from relu_diag.functional.output_loss.binary_cross_entropy import BinaryCrossEntropy
from relu_diag.functional.output_loss.cross_entropy import CrossEntropy
from relu_diag.functional.output_loss.loss import Loss
from relu_diag.functional.output_loss.regression import AbsoluteError, Huber, Poisson, SquaredError
from relu_diag.functional.tolerances import FLOAT64, tolerances

_SIXTEEN_BITS = (torch.float16, torch.bfloat16)


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """A gradient at outputs, in float64.

    Attributes:
        outputs: Outputs, shape ``(N, J)``.
        G: Gradient, shape ``(N, J)``.
        tol: Rounding of outputs and gradient, over the terms that they are made of.
        dtype: Of the outputs as they came.
    """

    outputs: Tensor
    G: Tensor
    tol: float
    dtype: torch.dtype

    @classmethod
    def of(cls, outputs: Tensor, G: Tensor) -> Iterator[Evidence]:
        """The evidence with the rounding of its dtype, then of 16 bits where every number of the gradient fits them."""
        double = outputs.double(), G.double()
        coarse = max((outputs.dtype, G.dtype), key=lambda dtype: torch.finfo(dtype).eps)
        yield cls(*double, _rounding(coarse), outputs.dtype)
        mantissa, _ = torch.frexp(double[1])
        # A few numbers, such as one over a number of samples, fit 16 bits by themselves.
        if int((double[1].abs().flatten().sort().values.diff() > 0).sum()) < BUDGETS.told_apart:
            return
        for dtype in _SIXTEEN_BITS:
            scaled = 2 * mantissa / torch.finfo(dtype).eps
            if _rounding(dtype) > _rounding(coarse) and bool((scaled == scaled.round()).all()):
                yield cls(*double, _rounding(dtype), outputs.dtype)

    def constants(self, bases: list[Tensor], terms: Tensor) -> list[float] | None:
        """Factors with which gradients ``(N, J)`` made of some terms add up to the one given; None if they do not."""
        A = torch.stack([base.flatten() for base in bases], dim=1)
        told = (A != 0).any(dim=1).sum() if len(bases) == 1 else (A != 0).sum(dim=0).min() / 2
        if told <= 1:
            return None
        factors = _least_squares(A, self.G.flatten())
        fitted = (A @ factors).view_as(self.G)
        scale = float(factors.abs().max())
        return (
            [one_over_whole(float(factor), self.tol) for factor in factors] if self.met(fitted, scale * terms) else None
        )

    def met(self, fitted: Tensor, terms: Tensor) -> bool:
        """Whether a gradient is the one given, but for the rounding of its terms, both ``(N, J)``."""
        miss = self.G - fitted
        # What underflows in 16 bits is small against the largest of them.
        allowed = self.tol * (terms.norm(dim=1) + FLOAT64.explained * self.G.norm(dim=1).max())
        return bool((miss.norm(dim=1) <= allowed).all()) and bool(miss.norm() <= FLOAT64.explained * self.G.norm())


def fits_of_numbers(evidence: Evidence, leaf: Tensor, weight: Tensor | None) -> list[Loss]:
    """Losses of single outputs with targets ``(N, J)`` and given weights that fit."""
    Y = leaf.double()
    if not bool(torch.isfinite(Y).all()):
        known = torch.ones_like(Y[:, :1]) if weight is None else weight.double()
        if bool((Y.isfinite() | (known == 0)).all()):
            Y = torch.where(Y.isfinite(), Y, 0.0)
        else:
            return []
    given = torch.ones_like(Y) if weight is None else weight.double().expand_as(Y)
    found: list[Loss | None] = [_by_output(evidence, SquaredError, Y, given)]
    if found == [None]:
        found = [_huber(evidence, Y, given), *_absolute(evidence, Y, given)]
    found.append(_by_output(evidence, Poisson, Y, given))
    signs = bool((Y.abs() == 1).all()) and bool((Y < 0).any())
    probabilities = (Y + 1) / 2 if signs else Y
    if bool(((probabilities >= 0) & (probabilities <= 1)).all()):
        found.append(_binary(evidence, probabilities, given))
    return [loss for loss in found if loss is not None]


def fits_of_labels(evidence: Evidence, leaf: Tensor, weight: Tensor | None) -> list[Loss]:
    """Losses of classes ``(N, 1)`` or probabilities ``(N, J)`` with given weights that fit."""
    given = evidence.outputs.new_ones(len(leaf)) if weight is None else weight.double()
    outputs = evidence.outputs
    if leaf.shape[1] == 1:
        return _fits_of_classes(evidence, leaf[:, 0], given)
    shares = leaf.double()
    is_shares = leaf.shape == outputs.shape and bool((shares >= 0).all())
    if not is_shares or not bool(((shares.sum(1) - 1).abs() <= FLOAT64.explained).all()):
        return []
    found = _smoothed(evidence, shares, shares, given) or _weighted_classes(evidence, shares, shares, given)
    return [] if found is None else [found]


def _fits_of_classes(evidence: Evidence, leaf: Tensor, given: Tensor) -> list[Loss]:
    """Cross-entropy of classes, and losses of single outputs with a one at the class."""
    classes = evidence.outputs.shape[1]
    whole = leaf.double()
    if not bool((whole == whole.round()).all()):
        return []
    present = (whole >= 0) & (whole < classes)
    if not bool(present.any()):
        return []
    labels = torch.where(present, whole, -100.0).long()
    shares = torch.zeros_like(evidence.outputs)
    shares[present] = shares[present].scatter(1, labels[present][:, None], 1.0)
    masked = given * present
    found: Loss | None = (
        _smoothed(evidence, labels, shares, masked)
        or _by_class(evidence, labels, shares, masked)
        or _weighted_classes(evidence, labels, shares, masked)
    )
    if found is not None:
        return [found]
    weights = masked[:, None].expand_as(shares)
    single = [_by_output(evidence, SquaredError, shares, weights), _binary(evidence, shares, weights)]
    return [loss for loss in single if loss is not None]


def _by_output(
    evidence: Evidence, kind: type[SquaredError] | type[Poisson], Y: Tensor, weight: Tensor
) -> SquaredError | Poisson | None:
    """A loss with one factor, or one for each output."""
    unit = kind(Y, "sum").gradient(evidence.outputs) * weight
    size = evidence.outputs.abs()
    terms = weight * ((1 + size) * evidence.outputs.exp() + Y.abs() if kind is Poisson else 2 * (size + Y.abs()))
    if not bool(torch.isfinite(unit).all()):
        return None
    factor = evidence.constants([unit], terms)
    if factor is not None and factor[0] > 0:
        return kind(*_cast(evidence, Y), "sum", _weight(evidence, weight), factor[0])
    single = _column_factors(evidence, unit, terms)
    return None if single is None else kind(*_cast(evidence, Y), "sum", _weight(evidence, weight * single))


def _column_factors(evidence: Evidence, unit: Tensor, terms: Tensor) -> Tensor | None:
    """One factor a column with which a gradient ``(N, J)`` is the one given, shape ``(J,)``."""
    if unit.shape[1] == 1 or len(unit) <= 2:
        return None
    square = unit.square().sum(0)
    factors = (unit * evidence.G).sum(0) / torch.where(square > 0, square, 1.0)
    fits = bool((factors >= 0).all()) and evidence.met(unit * factors, terms * factors)
    return factors if fits else None


def _huber(evidence: Evidence, Y: Tensor, weight: Tensor) -> Huber | None:
    """Huber's loss: gradients proportional to the residual up to a distance, and of one size beyond."""
    residual = evidence.outputs - Y
    counted = weight > 0
    own = torch.where(counted, evidence.G / torch.where(counted, weight, 1.0), 0.0)
    most = float(own.abs().max())
    beyond = counted & (own.abs() >= most * (1 - 2 * evidence.tol))
    near = counted & ~beyond
    square = float(residual[near].square().sum())
    if int(beyond.sum()) < 2 or int(near.sum()) < 2 or square == 0:
        return None
    factor = float((own[near] * residual[near]).sum()) / square
    if factor <= 0:
        return None
    delta = _rounded(most / factor, evidence.tol)
    loss = Huber(*_cast(evidence, Y), delta, "sum", _weight(evidence, weight), factor)
    terms = factor * weight * (evidence.outputs.abs() + Y.abs()).clamp(max=2 * delta)
    fitted = factor * weight * residual.clamp(-delta, delta)
    return loss if evidence.met(fitted, terms) else None


def _absolute(evidence: Evidence, Y: Tensor, weight: Tensor) -> list[Loss | None]:
    """The absolute error, and Huber's loss where no residual is small, or all have one sign: it might be others."""
    residual = evidence.outputs - Y
    rounding = residual.abs() <= evidence.tol * (evidence.outputs.abs() + Y.abs())
    unit = weight * torch.where(rounding & (evidence.G == 0), 0.0, residual.sign())
    factor = evidence.constants([unit], unit.abs())
    if factor is None or factor[0] <= 0:
        return []
    weights = _weight(evidence, weight)
    found: list[Loss | None] = [AbsoluteError(*_cast(evidence, Y), "sum", weights, factor[0])]
    counted = residual[weight.expand_as(residual) > 0]
    one_sided = bool((counted > 0).all()) or bool((counted < 0).all())
    least = float(counted.abs().min())
    if one_sided or least >= FLOAT64.telling * float(counted.abs().median()):
        delta = min(least, 1.0) or 1.0
        found.append(Huber(*_cast(evidence, Y), delta, "sum", weights, factor[0] / delta))
    return found


def _binary(evidence: Evidence, Y: Tensor, weight: Tensor) -> BinaryCrossEntropy | None:
    """Binary cross-entropy with a factor of its positive part, one or one for each output."""
    outputs = evidence.outputs
    p = outputs.sigmoid()
    q = (-outputs).sigmoid()
    size = 1 + outputs.abs()
    terms = weight * (size * p + Y)
    unit = weight * ((1 - Y) * p - Y * q)
    factor = evidence.constants([unit], terms)
    if factor is not None and factor[0] > 0:
        return BinaryCrossEntropy(*_cast(evidence, Y), None, _weight(evidence, weight), "sum", factor[0])
    parts = [weight * (1 - Y) * p, -weight * Y * q]
    both = evidence.constants(parts, terms)
    if both is not None and min(both) > 0:
        ratio = torch.tensor(_rounded(both[1] / both[0], evidence.tol))
        return BinaryCrossEntropy(*_cast(evidence, Y), ratio, _weight(evidence, weight), "sum", both[0])
    return _binary_by_output(evidence, Y, weight, terms)


def _binary_by_output(evidence: Evidence, Y: Tensor, weight: Tensor, terms: Tensor) -> BinaryCrossEntropy | None:
    """The same with factors of each output; labels 0 and 1 only."""
    if Y.shape[1] == 1 or not bool(((Y == 0) | (Y == 1)).all()) or len(Y) <= 2:
        return None
    unit = weight * (evidence.outputs.sigmoid() - Y)
    factors = []
    for part in (1 - Y, Y):
        own = unit * part
        square = own.square().sum(0)
        factors.append((own * evidence.G).sum(0) / torch.where(square > 0, square, 1.0))
    single = (1 - Y) * factors[0] + Y * factors[1]
    few = int((unit != 0).sum()) <= 2 * Y.shape[1]
    if few or bool((single < 0).any()) or not evidence.met(unit * single, terms * single):
        return None
    return BinaryCrossEntropy(*_cast(evidence, Y), None, _weight(evidence, weight * single), "sum")


def _smoothed(evidence: Evidence, labels: Tensor, shares: Tensor, weight: Tensor) -> CrossEntropy | None:
    """Cross-entropy with and without smoothing: ``c (p - y) + c s (y - 1/J)``."""
    p, given = evidence.outputs.softmax(1), weight[:, None]
    terms = given * _terms(evidence.outputs, shares)
    unit = given * (p - shares)
    factor = evidence.constants([unit], terms)
    if factor is not None and factor[0] > 0:
        return _classes(evidence, labels, weight, 0.0, factor[0])
    both = evidence.constants([unit, given * (shares - 1 / shares.shape[1])], terms + given / shares.shape[1])
    numbers = int(unit.any(dim=1).sum()) * (shares.shape[1] - 1)
    if both is None or numbers <= 2 * len(both) or both[0] <= 0 or not 0 < both[1] <= both[0]:
        return None
    return _classes(evidence, labels, weight, _rounded(both[1] / both[0], evidence.tol), both[0])


def _by_class(evidence: Evidence, labels: Tensor, shares: Tensor, weight: Tensor) -> CrossEntropy | None:
    """Cross-entropy with weights of the classes, drawn into those of the samples."""
    unit = weight[:, None] * (evidence.outputs.softmax(1) - shares)
    index = labels.clamp(min=0)
    zero = unit.new_zeros(shares.shape[1])
    square = zero.index_add(0, index, unit.square().sum(1))
    along = zero.index_add(0, index, (unit * evidence.G).sum(1))
    factors = (along / torch.where(square > 0, square, 1.0))[index]
    fitted = unit * factors[:, None]
    terms = (weight * factors)[:, None] * _terms(evidence.outputs, shares)
    if not _enough(unit, labels) or bool((factors < 0).any()) or not evidence.met(fitted, terms):
        return None
    return _classes(evidence, labels, weight * factors, 0.0, 1.0)


def _weighted_classes(evidence: Evidence, labels: Tensor, shares: Tensor, weight: Tensor) -> CrossEntropy | None:
    """Cross-entropy with weights of the classes and smoothing, as ``m p - t`` with ``t = a y + b`` for each class."""
    samples, classes = shares.shape
    p = evidence.outputs.softmax(1)
    unit = weight[:, None] * (p - shares)
    if classes > BUDGETS.weighted_classes or samples * (classes - 1) <= 4 * classes or not _enough(unit, labels):
        return None
    toward = weight[:, None, None] * (p[:, :, None] - torch.eye(classes).to(p))  # (N, J, class)
    present = (shares.sum(1) > 0).to(shares)[:, None]
    A = torch.cat([toward * shares[:, None, :], toward * present[:, None, :]], dim=2).reshape(-1, 2 * classes)
    if A.numel() > BUDGETS.chunk * classes:
        return None
    solution = _least_squares(A, evidence.G.flatten())
    scale = float(solution.abs().max())
    if not evidence.met((A @ solution).view_as(p), scale * _terms(evidence.outputs, shares)):
        return None
    sharp, spread = solution[:classes], solution[classes:]
    seen = shares.sum(0) > 0
    size = float(sharp[seen].square().sum())
    if size == 0:
        return None
    part = float((sharp[seen] * spread[seen]).sum()) / size  # s / (J (1 - s))
    smoothing = _rounded(classes * part / (1 + classes * part), evidence.tol) if part > evidence.tol else 0.0
    if smoothing >= 1:
        return None
    own = sharp / (1 - smoothing)
    whole = torch.where(seen, own, spread * classes / smoothing if smoothing > 0 else own)
    whole = whole.clamp(min=0)
    loss = _classes(evidence, labels, weight, smoothing, 1.0, whole)
    fits = evidence.met(loss.double().gradient(evidence.outputs), scale * _terms(evidence.outputs, shares))
    return loss if fits else None


def _enough(unit: Tensor, labels: Tensor) -> bool:
    """Whether enough classes are seen again to tell weights of classes from those of samples, or a mask."""
    felt = unit.any(dim=1)
    classes = labels if labels.dim() == 1 else labels.argmax(1)
    return int(felt.sum()) >= len(set(classes[felt].tolist())) + BUDGETS.seen_again


def _least_squares(A: Tensor, b: Tensor) -> Tensor:
    """Of few columns ``(n, m)``, the smallest solution, shape ``(m,)``."""
    inverse: Tensor = torch.linalg.pinv(A.mT @ A, rtol=FLOAT64.rank, hermitian=True)
    return inverse @ (A.mT @ b)


def _classes(
    evidence: Evidence, labels: Tensor, weight: Tensor, smoothing: float, factor: float, classes: Tensor | None = None
) -> CrossEntropy:
    """A cross-entropy with what was found."""
    labels = labels.to(evidence.dtype) if labels.is_floating_point() else labels
    samples = _weight(evidence, weight[:, None])
    return CrossEntropy(
        labels,
        weight=None if classes is None else classes.to(evidence.dtype),
        label_smoothing=smoothing,
        reduction="sum",
        sample_weight=None if samples is None else samples[:, 0],
        factor=factor,
    )


def _terms(outputs: Tensor, shares: Tensor) -> Tensor:
    """What the gradient of a cross-entropy is made of, with what the rounding of outputs makes of it, ``(N, J)``."""
    return outputs.softmax(1) * (1 + outputs.abs().amax(1, keepdim=True)) + shares


def _weight(evidence: Evidence, weight: Tensor) -> Tensor | None:
    """Weights in the dtype of the outputs, ``(N, 1)`` or ``(N, J)``; None where all are 1."""
    if bool((weight == 1).all()):
        return None
    same = bool((weight == weight[:, :1]).all())
    return (weight[:, :1] if same else weight).to(evidence.dtype)


def _cast(evidence: Evidence, Y: Tensor) -> tuple[Tensor]:
    return (Y.to(evidence.dtype),)


def _rounded(value: float, tol: float) -> float:
    """A constant with as few digits as its rounding allows: what someone has typed in."""
    for digits in range(1, 10):
        short = float(f"{value:.{digits}g}")
        if abs(short - value) <= tol * abs(value):
            return short
    return value


def _rounding(dtype: torch.dtype) -> float:
    """What numbers of a dtype may be wrong by, over the terms that they are made of."""
    if dtype in _SIXTEEN_BITS:
        return FLOAT64.roundings * torch.finfo(dtype).eps
    return tolerances(dtype).derivative
