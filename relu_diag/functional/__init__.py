"""Pure functions from tensors to frozen results: the mathematics, without any training framework."""

from relu_diag.functional.affine import AffineProblem, affine_coefficients, invariant, leaky_as_relu
from relu_diag.functional.affine_verdict import classify_affine
from relu_diag.functional.arrangement import cell_directions
from relu_diag.functional.block import BlockSignal, ShallowBlock, rho, squared_error_signal, squared_loss
from relu_diag.functional.cell_saddles import CellSaddle, cell_saddles
from relu_diag.functional.cells import CellMinimum, all_cell_minima, boundary_minimum, cell_minimum, cell_pattern
from relu_diag.functional.convergence import (
    ConvergenceCertificate,
    convergence_certificate,
    lojasiewicz_ratio,
    smooth_convergence_certificate,
)
from relu_diag.functional.embedding import add_inactive_propagation, add_inactive_units, replicate_unit
from relu_diag.functional.escape import EscapeNeurons, escape_neurons
from relu_diag.functional.extremal import ExtremalDirections, extremal_directions
from relu_diag.functional.forecast import EscapeForecast, forecast_escape
from relu_diag.functional.generalised_gradient import (
    Strictness,
    generalised_gradient,
    generalised_jacobian,
    strictness,
)
from relu_diag.functional.geometry import (
    NeuronGeometry,
    geometry_from_sums,
    neuron_geometry,
    radial_directions,
    tangential_derivatives,
)
from relu_diag.functional.interval import IntervalTarget, interval_l2_loss
from relu_diag.functional.levels import (
    CriticalLevel,
    Guarantee,
    convergence_threshold,
    critical_levels,
    nearest_level,
)
from relu_diag.functional.neuron_types import NeuronTypes, neuron_types
from relu_diag.functional.neurons import NeuronStates, dead_sector, neuron_states, states_from_sums, target_scale
from relu_diag.functional.preservation import Preservation, addition_preserves, replication_preserves
from relu_diag.functional.proposal import GrowthProposal, growth_proposals
from relu_diag.functional.stationarity import Stationarity, stationarity
from relu_diag.functional.stationary_point import NearbyStationaryPoint, nearby_stationary_point
from relu_diag.functional.sums import KinkSamples, NeuronSums, neuron_sums
from relu_diag.functional.taylor import PerturbationTest, TaylorExpansion, perturbation_test, taylor_expansion
from relu_diag.functional.verdict import Verdict, classify, classify_signal
from relu_diag.functional.witness import Direction

__all__ = [
    "AffineProblem",
    "BlockSignal",
    "CellMinimum",
    "CellSaddle",
    "ConvergenceCertificate",
    "CriticalLevel",
    "Direction",
    "EscapeForecast",
    "EscapeNeurons",
    "ExtremalDirections",
    "GrowthProposal",
    "Guarantee",
    "IntervalTarget",
    "KinkSamples",
    "NearbyStationaryPoint",
    "NeuronGeometry",
    "NeuronStates",
    "NeuronSums",
    "NeuronTypes",
    "PerturbationTest",
    "Preservation",
    "ShallowBlock",
    "Stationarity",
    "Strictness",
    "TaylorExpansion",
    "Verdict",
    "add_inactive_propagation",
    "add_inactive_units",
    "addition_preserves",
    "affine_coefficients",
    "all_cell_minima",
    "boundary_minimum",
    "cell_directions",
    "cell_minimum",
    "cell_pattern",
    "cell_saddles",
    "classify",
    "classify_affine",
    "classify_signal",
    "convergence_certificate",
    "convergence_threshold",
    "critical_levels",
    "dead_sector",
    "escape_neurons",
    "extremal_directions",
    "forecast_escape",
    "generalised_gradient",
    "generalised_jacobian",
    "geometry_from_sums",
    "growth_proposals",
    "interval_l2_loss",
    "invariant",
    "leaky_as_relu",
    "lojasiewicz_ratio",
    "nearby_stationary_point",
    "nearest_level",
    "neuron_geometry",
    "neuron_states",
    "neuron_sums",
    "neuron_types",
    "perturbation_test",
    "radial_directions",
    "replicate_unit",
    "replication_preserves",
    "rho",
    "smooth_convergence_certificate",
    "squared_error_signal",
    "squared_loss",
    "states_from_sums",
    "stationarity",
    "strictness",
    "tangential_derivatives",
    "target_scale",
    "taylor_expansion",
]
