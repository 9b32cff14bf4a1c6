"""Pure functions from tensors to frozen results: the mathematics, without any training framework."""

from relu_diag.functional.block import BlockSignal, ShallowBlock, rho, squared_error_signal, squared_loss
from relu_diag.functional.cells import (
    CellMinimum,
    NearbyStationaryPoint,
    boundary_minimum,
    cell_minimum,
    nearby_stationary_point,
)
from relu_diag.functional.dynamics import EscapeForecast, ExtremalDirections, extremal_directions, forecast_escape
from relu_diag.functional.errors import NotFiniteError
from relu_diag.functional.guarantee import (
    ConvergenceCertificate,
    convergence_certificate,
    smooth_convergence_certificate,
)
from relu_diag.functional.integral import (
    IntervalTarget,
    classify_affine,
    convergence_threshold,
    critical_levels,
    interval_l2_loss,
    neuron_types,
)
from relu_diag.functional.local import (
    NeuronGeometry,
    NeuronStates,
    neuron_geometry,
    neuron_states,
    tangential_derivatives,
)
from relu_diag.functional.verdict import (
    Direction,
    EscapeNeurons,
    Stationarity,
    Verdict,
    classify,
    classify_signal,
    escape_neurons,
    perturbation_test,
    stationarity,
    taylor_expansion,
)
from relu_diag.functional.widening import (
    GrowthProposal,
    add_inactive_propagation,
    add_inactive_units,
    growth_proposals,
    replicate_unit,
    replication_preserves,
)

__all__ = [
    "BlockSignal",
    "CellMinimum",
    "ConvergenceCertificate",
    "Direction",
    "EscapeForecast",
    "EscapeNeurons",
    "ExtremalDirections",
    "GrowthProposal",
    "IntervalTarget",
    "NearbyStationaryPoint",
    "NeuronGeometry",
    "NeuronStates",
    "NotFiniteError",
    "ShallowBlock",
    "Stationarity",
    "Verdict",
    "add_inactive_propagation",
    "add_inactive_units",
    "boundary_minimum",
    "cell_minimum",
    "classify",
    "classify_affine",
    "classify_signal",
    "convergence_certificate",
    "convergence_threshold",
    "critical_levels",
    "escape_neurons",
    "extremal_directions",
    "forecast_escape",
    "growth_proposals",
    "interval_l2_loss",
    "nearby_stationary_point",
    "neuron_geometry",
    "neuron_states",
    "neuron_types",
    "perturbation_test",
    "replicate_unit",
    "replication_preserves",
    "rho",
    "smooth_convergence_certificate",
    "squared_error_signal",
    "squared_loss",
    "stationarity",
    "tangential_derivatives",
    "taylor_expansion",
]
