"""Pure functions from tensors to frozen results: the mathematics, without any training framework."""

from relu_diag.functional.arrangement import cell_directions
from relu_diag.functional.block import BlockSignal, ShallowBlock, rho, squared_error_signal, squared_loss
from relu_diag.functional.cell_saddles import CellSaddle, cell_saddles
from relu_diag.functional.cells import CellMinimum, all_cell_minima, boundary_minimum, cell_minimum, cell_pattern
from relu_diag.functional.escape import EscapeNeurons, escape_neurons
from relu_diag.functional.extremal import ExtremalDirections, extremal_directions
from relu_diag.functional.forecast import EscapeForecast, forecast_escape
from relu_diag.functional.geometry import (
    NeuronGeometry,
    geometry_from_sums,
    neuron_geometry,
    radial_directions,
    tangential_derivatives,
)
from relu_diag.functional.neurons import NeuronStates, dead_sector, neuron_states, states_from_sums, target_scale
from relu_diag.functional.stationarity import Stationarity, stationarity
from relu_diag.functional.stationary_point import NearbyStationaryPoint, nearby_stationary_point
from relu_diag.functional.sums import KinkSamples, NeuronSums, neuron_sums
from relu_diag.functional.taylor import PerturbationTest, TaylorExpansion, perturbation_test, taylor_expansion
from relu_diag.functional.verdict import Verdict, classify, classify_signal
from relu_diag.functional.witness import Direction

__all__ = [
    "BlockSignal",
    "CellMinimum",
    "CellSaddle",
    "Direction",
    "EscapeForecast",
    "EscapeNeurons",
    "ExtremalDirections",
    "KinkSamples",
    "NearbyStationaryPoint",
    "NeuronGeometry",
    "NeuronStates",
    "NeuronSums",
    "PerturbationTest",
    "ShallowBlock",
    "Stationarity",
    "TaylorExpansion",
    "Verdict",
    "all_cell_minima",
    "boundary_minimum",
    "cell_directions",
    "cell_minimum",
    "cell_pattern",
    "cell_saddles",
    "classify",
    "classify_signal",
    "dead_sector",
    "escape_neurons",
    "extremal_directions",
    "forecast_escape",
    "geometry_from_sums",
    "nearby_stationary_point",
    "neuron_geometry",
    "neuron_states",
    "neuron_sums",
    "perturbation_test",
    "radial_directions",
    "rho",
    "squared_error_signal",
    "squared_loss",
    "states_from_sums",
    "stationarity",
    "tangential_derivatives",
    "target_scale",
    "taylor_expansion",
]
