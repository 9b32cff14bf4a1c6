"""Losses that are integrals over the inputs: exact in one input, with everything that is known about affine targets.

Never a data set: sums over samples are the business of the other rooms.
"""

from relu_diag.functional.integral.affine import AffineProblem, affine_coefficients, invariant, leaky_as_relu
from relu_diag.functional.integral.affine_verdict import classify_affine
from relu_diag.functional.integral.function import Function1d, evaluate
from relu_diag.functional.integral.generalised_gradient import (
    Strictness,
    generalised_gradient,
    generalised_jacobian,
    strictness,
)
from relu_diag.functional.integral.interval import (
    Interval,
    IntervalTarget,
    Pieces,
    check_interval,
    interval_l2_loss,
    network_pieces,
)
from relu_diag.functional.integral.levels import (
    CriticalLevel,
    Guarantee,
    convergence_threshold,
    critical_levels,
    nearest_level,
)
from relu_diag.functional.integral.neuron_types import NeuronTypes, neuron_types
from relu_diag.functional.integral.nodes import (
    Box,
    Domain,
    Gaussian,
    as_domain,
    random_shift,
    sobol_points,
    tensor_nodes,
)

__all__ = [
    "AffineProblem",
    "Box",
    "CriticalLevel",
    "Domain",
    "Function1d",
    "Gaussian",
    "Guarantee",
    "Interval",
    "IntervalTarget",
    "NeuronTypes",
    "Pieces",
    "Strictness",
    "affine_coefficients",
    "as_domain",
    "check_interval",
    "classify_affine",
    "convergence_threshold",
    "critical_levels",
    "evaluate",
    "generalised_gradient",
    "generalised_jacobian",
    "interval_l2_loss",
    "invariant",
    "leaky_as_relu",
    "nearest_level",
    "network_pieces",
    "neuron_types",
    "random_shift",
    "sobol_points",
    "strictness",
    "tensor_nodes",
]
