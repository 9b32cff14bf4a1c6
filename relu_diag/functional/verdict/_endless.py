"""Whether the loss falls for ever along some weights: labels that are separable, counts that are zero."""

from __future__ import annotations

from torch import Tensor

from relu_diag.functional.problem import LossProblem


def falls_for_ever(problem: LossProblem) -> bool:
    """Whether a ray of output weights is known on which the loss falls for ever: that of growing ones is looked at."""
    bias = problem.block.output_bias
    outputs = problem.outputs
    rays = [outputs] if bias is None else [outputs - bias, outputs]
    return any(_falls(problem, ray) for ray in rays)


def _falls(problem: LossProblem, ray: Tensor) -> bool:
    """Whether the loss falls from here to infinity on a ray of outputs ``(N, J)``."""
    if not bool(ray.any()):
        return False
    slope = problem.output_loss.recession(ray)
    return bool((slope <= 0).all()) and bool((problem.signal.G * ray).sum() < 0)
